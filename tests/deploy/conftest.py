"""What the tests of `deploy/` share: one running fleet with a real Prometheus, started once for all of them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.deploy.prometheus import Prometheus
from tests.e2e.conftest import PATIENT, START_WITH, _cache, starter  # noqa: F401 (a fixture is found by its name here)
from tests.e2e.programs import Program
from tests.reruns import give_second_try, pytest_runtest_makereport, pytest_runtest_teardown  # noqa: F401 (hooks)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    give_second_try(items, Path(__file__).parent)


@dataclass(frozen=True, slots=True)
class Fleet:
    """A cloud, two nodes with three cameras, and the Prometheus that scrapes them once a second.

    Series of the nodes carry node="dock" and node="yard". Both send references; their pictures are partly labelled.

    Attributes:
        prometheus: `query(promql)` gives (labels, value) of each series; `wait_for(promql)` asks until there are any.
    """

    cloud: Program
    nodes: tuple[Program, ...]
    prometheus: Prometheus


@pytest.fixture(scope="session")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """The fleet after some seconds of work: every node's results have been scraped, rates over 15 s have a value."""
    if shutil.which("prometheus") is None:
        pytest.skip("prometheus is missing: apt install prometheus")
    pytest.importorskip("skimage", reason="photographs are missing: pip install 'edge-cloud-rac[demo]'")
    if not Path("/proc/self/stat").exists():
        pytest.skip("looks at processes in /proc")
    folder = tmp_path_factory.mktemp("fleet")
    with ExitStack() as programs:
        start = starter(folder, programs)
        cloud = start("rac-cloud", *START_WITH, **PATIENT)
        cloud.wait_event("start")  # after the graphs are made
        cloud.wait_event("ready")
        link = ("--cloud", cloud.get("start")[0]["endpoint"], "--metrics-port", "0", "--reference-every", "3")
        often = {"RAC_LINK__RECONNECT_MAX_S": "1"}
        dock = start("rac-node", "--camera", "gate=test:?seed=0&fps=5", "--name", "dock", *link, **often)
        cameras = ("--camera", "fence=test:?seed=4&fps=3", "--camera", "pond=test:?seed=5&fps=2")
        yard = start("rac-node", *cameras, "--name", "yard", "--depth", "1", "--rate", "2", *link, **often)
        for node in (dock, yard):
            node.wait_event("start")
        storage = folder / "prometheus"
        storage.mkdir()
        targets = {"rac-cloud": [(cloud, {})], "rac-node": [(dock, {"node": "dock"}), (yard, {"node": "yard"})]}
        prometheus = programs.enter_context(Prometheus(storage, targets))
        for camera in ("gate", "fence", "pond"):
            results = f'rac_node_results_total{{camera="{camera}",outcome="ok"}}'
            prometheus.wait_for(f"rate({results}[15s]) > 0 and {results} > 10")
        yield Fleet(cloud, (dock, yard), prometheus)
        for program in (dock, yard, cloud):
            program.end()
