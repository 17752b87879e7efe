"""A second try for tests with real processes; a test that needs it is a defect, and the summary names it.

A conftest beside such tests marks them with `give_second_try` and imports the two hooks. Fixtures that live as long as
a module (a cloud that all of its tests use) would go on after a failed test as that left them, killed or stopped. So
they are ended with it, and the second try, or the next test, starts them anew.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import suppress
from pathlib import Path

import pytest

from tests.e2e.programs import PATIENCE_S

LIMIT_S = 5 * PATIENCE_S
"""For a first try with its fixtures. Every wait has a limit of its own, and a test that fails has waited once."""
_HAS_FAILED = pytest.StashKey[bool]()


def give_second_try(items: Iterable[pytest.Item], folder: Path) -> None:
    """Mark every test under a folder."""
    for item in items:
        if item.path.is_relative_to(folder):
            # A debugger at the first failure and a second try exclude one another.
            item.add_marker(pytest.mark.flaky(reruns=0 if item.config.option.usepdb else 1))
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(LIMIT_S))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Note whether this try has failed."""
    report = yield
    item.stash[_HAS_FAILED] = report.failed or (call.when != "setup" and item.stash.get(_HAS_FAILED, False))
    return report


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    """End the module's fixtures too when the test has failed; what they say of their end is no news then."""
    module = item.getparent(pytest.Module)
    if item.stash.get(_HAS_FAILED, False) and module is not None:
        with suppress(Exception):
            item.session._setupstate.teardown_exact(module.parent)  # type: ignore[arg-type]
