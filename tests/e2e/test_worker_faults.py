"""Workers die, hang, grow and panic under real streams: the frame to blame is found, and all others are answered."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.e2e.balance import RECOVERIES, Watched, longest_gap_s, wait_until
from tests.e2e.conftest import Start, start_cloud, starter
from tests.e2e.peer import SoundPeer
from tests.e2e.programs import PATIENCE_S, PUBLISHED_S, Program, Series, assert_gone

pytest.importorskip("skimage", reason="photographs are missing: pip install 'edge-cloud-rac[demo]'")
pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes in /proc")

# More than a sound batch takes on a busy machine: an innocent one that is late looks like a hang.
BATCH_TIMEOUT_S = PATIENCE_S / 30
# A worker of the default bundle has 500 to 600, by the size of its batches; one leak is far over it.
MEMORY_LIMIT_MB = 850
# What may become of a live camera's frame while workers come and go, though not one is to blame: the last word is for
# frames whose workers were both killed from outside.
INNOCENT_ENDS = {"superseded", "no_credit", "link_down", "rate_limit", "stale", "shutdown", "worker_lost"}


def restarts(found: Mapping[Series, float], reason: str) -> float:
    return found["rac_cloud_worker_restarts_total", reason]


def serving(found: Mapping[Series, float]) -> float:
    return found["rac_cloud_workers", "ready"] + found["rac_cloud_workers", "busy"]


def wait_all_workers(cloud: Program) -> Mapping[Series, float]:
    """Wait until every worker can serve."""
    return cloud.wait_metrics(lambda found: serving(found) == 2, for_s=PUBLISHED_S)


@pytest.fixture(scope="module")
def quarantine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kept") / "quarantine"


@pytest.fixture(scope="module")
def fragile_cloud(tmp_path_factory: pytest.TempPathFactory, quarantine: Path) -> Iterator[Program]:
    """One cloud for all tests; what is left at its end has to balance."""
    with ExitStack() as programs:
        made = start_cloud(
            starter(tmp_path_factory.mktemp("cloud"), programs),
            program="fragile-cloud",
            RAC_POOL__BATCH_TIMEOUT_S=str(BATCH_TIMEOUT_S),
            RAC_LINK__PEER_TIMEOUT_S="120",  # the stranger answers no PING while its test does something else
            RAC_POOL__BATCH_FRAMES="8",
            RAC_POOL__MAX_AGE_S="600",
            RAC_POOL__WORKER_MEMORY_MB=str(MEMORY_LIMIT_MB),
            RAC_POOL__QUARANTINE=str(quarantine),
        )
        yield made
        made.end()


@pytest.fixture
def cloud(fragile_cloud: Program) -> Program:
    """The cloud, with all of its workers."""
    wait_all_workers(fragile_cloud)
    return fragile_cloud


@pytest.fixture
def node(cloud: Program, start: Start) -> Iterator[Program]:
    """A node that streams all the time, and to whose frames nothing may happen but what the clock does.

    With references, so that batches are larger than what a worker's socket takes at once.
    """
    endpoint = cloud.get("start")[0]["endpoint"]
    words = ("--camera", "test:?fps=10", "--cloud", endpoint, "--metrics-port", "0", "--reference-every", "2")
    # Workers that were lost often come back late, and frames that wait for them meanwhile have no other end.
    made = start("rac-node", *words, RAC_LINK__RESULT_TIMEOUT_S="600")
    made.wait_event("result", 10)
    watched = Watched(cloud, made)
    yield made
    made.wait_more("result", 10)
    watched.check_growth()
    summary = made.end()
    assert set(summary["dropped"]) <= INNOCENT_ENDS, summary


@pytest.fixture
def stranger(cloud: Program) -> Iterator[SoundPeer]:
    made = SoundPeer(cloud)
    yield made
    made.close()


def test_worker_killed_in_the_middle_of_a_batch_costs_no_frame(cloud: Program, node: Program) -> None:
    before = restarts(cloud.metrics(), "crash")
    victim = cloud.workers()[0]
    # So that it surely has one: they take turns.
    os.kill(victim, signal.SIGSTOP)
    node.wait_more("result", 4)
    began_s = time.monotonic()
    os.kill(victim, signal.SIGKILL)
    RECOVERIES.until_result("worker killed with -9 in the middle of a batch", node, began_s)
    cloud.wait_metrics(lambda found: restarts(found, "crash") == before + 1)
    wait_all_workers(cloud)
    RECOVERIES.note("worker killed with -9: as many workers as before", time.monotonic() - PUBLISHED_S - began_s)


def test_stopped_worker_is_replaced_and_its_batch_answered_by_another(cloud: Program, node: Program) -> None:
    before = restarts(cloud.metrics(), "hang")
    stopped = cloud.workers()[0]
    began_s = time.monotonic()
    os.kill(stopped, signal.SIGSTOP)
    cloud.wait_metrics(lambda found: restarts(found, "hang") == before + 1)
    assert_gone([stopped])
    wait_all_workers(cloud)
    node.wait_more("result", 5)
    gap_s = longest_gap_s(node, began_s)
    RECOVERIES.note(
        "worker stopped (SIGSTOP): longest gap between results", gap_s, f"batch timeout {BATCH_TIMEOUT_S} s"
    )


def test_cloud_without_workers_says_so_until_it_has_one(cloud: Program, node: Program) -> None:
    assert cloud.readiness() == (200, "ok\n")
    began_s = time.monotonic()
    for pid in cloud.workers():
        os.kill(pid, signal.SIGKILL)

    def is_said() -> bool:
        status, text = cloud.readiness()
        return status == 503 and "no worker can serve" in text

    wait_until(is_said, PATIENCE_S, "not ready")
    wait_until(lambda: cloud.readiness()[0] == 200, PATIENCE_S, "ready again")
    RECOVERIES.until_result("all workers killed with -9", node, began_s)


def test_frame_that_crashes_workers_is_found_and_kept(
    cloud: Program, node: Program, stranger: SoundPeer, quarantine: Path
) -> None:
    before = restarts(cloud.metrics(), "crash")
    began_s = time.monotonic()
    sound = stranger.send("", shade=1)
    bad = stranger.send("crash", shade=2)
    outcomes = sorted(stranger.result().outcome for _ in range(2))
    RECOVERIES.note("frame that crashes its workers: found", time.monotonic() - began_s)
    assert outcomes == ["ok", "poison"]
    # Two of a batch and one alone; two when it was alone from the start.
    killed = restarts(wait_all_workers(cloud), "crash") - before
    assert killed in (2, 3)
    assert {file.read_bytes() for file in quarantine.iterdir()} == {bad}
    assert sound != bad
    assert quarantine.stat().st_mode & 0o777 == 0o700
    assert "poisonous frame 1 kept as" in cloud.errors
    # Known now: no worker sees it again.
    stranger.join()
    stranger.send("crash", shade=2)
    assert stranger.result().text == "the same bytes broke workers before"
    assert restarts(cloud.metrics(), "crash") == before + killed
    cloud.wait_metrics(lambda found: found["rac_cloud_results_total", "poison"] == 2)


def test_frame_that_hangs_workers_is_found_before_its_node_gives_up(
    cloud: Program, node: Program, stranger: SoundPeer
) -> None:
    before = restarts(cloud.metrics(), "hang")
    began_s = time.monotonic()
    stranger.send("hang", shade=3)
    assert stranger.result().outcome == "poison"
    RECOVERIES.note(
        "frame that hangs its workers: found", time.monotonic() - began_s, f"batch timeout {BATCH_TIMEOUT_S} s"
    )
    assert restarts(cloud.metrics(), "hang") - before in (2, 3)


def test_panic_costs_its_frame_and_no_worker(
    cloud: Program, node: Program, stranger: SoundPeer, quarantine: Path
) -> None:
    before = {reason: restarts(cloud.metrics(), reason) for reason in ("crash", "hang", "memory")}
    bad = stranger.send("panic", shade=4)
    result = stranger.result()
    assert (result.outcome, result.text) == ("poison", "native panic: index out of bounds")
    # The answer goes out first.
    wait_until(lambda: bad in {file.read_bytes() for file in quarantine.iterdir()}, PATIENCE_S, "kept")
    assert {reason: restarts(cloud.metrics(), reason) for reason in before} == before


def test_worker_that_grows_is_replaced_between_batches(cloud: Program, node: Program, stranger: SoundPeer) -> None:
    found = cloud.metrics()
    before = restarts(found, "memory")
    assert (
        max(value for key, value in found.items() if key[0] == "rac_cloud_worker_resident_bytes")
        < MEMORY_LIMIT_MB << 20
    )
    began_s = time.monotonic()
    for shade in (5, 6):
        stranger.send("leak", shade=shade)
        assert stranger.result().outcome == "ok"
    cloud.wait_metrics(lambda found: restarts(found, "memory") > before)
    wait_all_workers(cloud)
    node.wait_more("result", 5)
    RECOVERIES.note("worker over its memory limit: longest gap between results", longest_gap_s(node, began_s))
    assert "is over pool.worker_memory_mb" in cloud.errors
