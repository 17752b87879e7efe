"""The second try of tests with real processes: it shows, it gets fresh fixtures, and it excuses no lasting failure."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LIMIT_S = 240

CONFTEST = """
from pathlib import Path
from tests.reruns import give_second_try, pytest_runtest_makereport, pytest_runtest_teardown

def pytest_collection_modifyitems(items):
    give_second_try(items, Path(__file__).parent)
"""

TESTS = """
import itertools, warnings, pytest
numbers = itertools.count()

@pytest.fixture(scope="module")
def cloud():
    made = {"number": next(numbers), "is_killed": False}
    yield made
    assert not made["is_killed"], "does not balance"

def test_that_kills_its_cloud_and_fails_once(cloud):
    if cloud["number"] == 0:
        cloud["is_killed"] = True
        pytest.fail("too slow this time")

def test_that_comes_after_it(cloud):
    assert cloud == {"number": 1, "is_killed": False}

def test_that_never_passes(cloud):
    assert cloud["number"] == "a number"

def test_that_warns():
    warnings.warn("as bad as an error")

def test_that_fails_once_at_the_end(cloud):
    assert cloud["number"] == 4
"""


@pytest.mark.timeout(2 * LIMIT_S)
def test_second_try_shows_has_fresh_fixtures_and_excuses_no_lasting_failure(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_tried.py").write_text(TESTS)
    words = ["-c", str(ROOT / "pyproject.toml"), f"--rootdir={tmp_path}", "-q", "-p", "no:cacheprovider", "--color=no"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *words, str(tmp_path)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    ends = [line.partition(" - ")[0] for line in lines if line.startswith(("RERUN", "PASSED", "FAILED"))]
    tried = "test_tried.py::test_that_"
    assert ends == [
        f"RERUN {tried}kills_its_cloud_and_fails_once",
        f"PASSED {tried}kills_its_cloud_and_fails_once",
        f"RERUN {tried}never_passes",
        f"FAILED {tried}never_passes",
        f"RERUN {tried}warns",
        f"FAILED {tried}warns",
        f"RERUN {tried}fails_once_at_the_end",
        f"PASSED {tried}fails_once_at_the_end",
        f"FAILED {tried}never_passes",
        f"FAILED {tried}warns",
    ]
    assert "too slow this time" in done.stdout
    assert "does not balance" not in done.stdout
    assert lines[-1].startswith("2 failed, 3 passed, 4 rerun in ")
