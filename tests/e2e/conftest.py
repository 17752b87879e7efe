"""What the end-to-end tests share: the cache of graphs, and one cloud for those tests that leave it as it was."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.e2e.balance import RECOVERIES
from tests.e2e.programs import Program
from tests.reruns import give_second_try, pytest_runtest_makereport, pytest_runtest_teardown  # noqa: F401 (hooks)

START_WITH = ("--bind", "tcp://127.0.0.1:0", "--metrics-port", "0", "--workers", "2")
# A machine that is busy is late with everything. What a test is not about shall not happen to its frames for that.
PATIENT = {
    "RAC_POOL__BATCH_TIMEOUT_S": "20",
    "RAC_POOL__MAX_AGE_S": "15",
    "RAC_LINK__PEER_TIMEOUT_S": "20",
}

Start = Callable[..., Program]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    give_second_try(items, Path(__file__).parent)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What the fault tests measured: the figures of "What happens when" in the README."""
    if RECOVERIES.lines:
        terminalreporter.section("recovery")
        for line in RECOVERIES.lines:
            terminalreporter.line(line)


@pytest.fixture(scope="session", autouse=True)
def _cache(request: pytest.FixtureRequest) -> Iterator[None]:
    """Graphs are made once for the source tree, not in the user's own cache."""
    with pytest.MonkeyPatch.context() as patch:
        if "RAC_CACHE" not in os.environ:
            patch.setenv("RAC_CACHE", str(request.config.cache.mkdir("graphs")))
        yield


def starter(folder: Path, programs: ExitStack) -> Start:
    """What starts programs that end with the stack, each with a log of its own."""
    numbers = itertools.count()

    def start(program: str, *arguments: str, prefix: Sequence[str] = (), **settings: str) -> Program:
        log = folder / f"{program}-{next(numbers)}.log"
        return programs.enter_context(Program(program, *arguments, log=log, prefix=prefix, **settings))

    return start


def start_cloud(start: Start, *arguments: str, program: str = "rac-cloud", **settings: str) -> Program:
    """A cloud of its own on any port, with a worker that can serve; patient, but for what `settings` say."""
    cloud = start(program, *START_WITH, *arguments, **PATIENT | settings)
    cloud.wait_event("ready")
    return cloud


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    with ExitStack() as programs:
        yield starter(tmp_path, programs)


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """One cloud for the module; at its end it has to balance, whatever the tests did to it."""
    with ExitStack() as programs:
        made = start_cloud(starter(tmp_path_factory.mktemp("cloud"), programs))
        yield made
        made.end()
