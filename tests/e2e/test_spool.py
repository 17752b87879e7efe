"""The spool with real processes: whatever is killed, every frame of a folder ends once over all runs."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest

from pipeline.spool_records import find_records
from tests.e2e.conftest import PATIENT, Start, start_cloud
from tests.e2e.programs import PUBLISHED_S, Program, Series, node_metrics_balance, sum_of

cv2 = pytest.importorskip("cv2")
pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes in /proc")

OFTEN = {"RAC_LINK__HEARTBEAT_S": "0.5", "RAC_LINK__PEER_TIMEOUT_S": "2"}
PICTURES = 60


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A labelled folder of small pictures, each another."""
    folder, random = tmp_path / "pictures", np.random.default_rng(3)
    for number in range(PICTURES):
        (folder / str(number % 3)).mkdir(parents=True, exist_ok=True)
        coarse = random.integers(0, 256, (8, 8, 3)).astype(np.uint8)
        picture = cv2.resize(coarse, (256, 256), interpolation=cv2.INTER_CUBIC)
        assert cv2.imwrite(str(folder / str(number % 3) / f"{number:03}.png"), picture)
    return folder


def endpoint_of(cloud: Program) -> str:
    return str(cloud.get("start")[0]["endpoint"])


def start_node(start: Start, endpoint: str, pictures: Path, spool: Path, *more: str) -> Program:
    words = ["--camera", f"shelf={pictures}", "--cloud", endpoint, "--metrics-port", "0", "--spool", str(spool)]
    return start("rac-node", *words, *more, "--name", "shop", RAC_LINK__RECONNECT_MAX_S="1")


def ends(*runs: Program) -> Counter[int]:
    """How often each frame was told of as ended, over the runs."""
    events = [line for run in runs for line in run.events if line["event"] in ("result", "drop")]
    return Counter(line["sequence"] for line in events)


def open_and_done(spool: Path) -> tuple[set[int], set[int]]:
    """Sequences on the disk: without an end, and ended."""
    found = [item for path in spool.glob("frames-*") for item in find_records(path.read_bytes())]
    frames = [(item.frame.sequence, item.is_done) for item in found if item.frame is not None]
    return {number for number, done in frames if not done}, {number for number, done in frames if done}


def has_answered_all(found: Mapping[Series, float]) -> bool:
    """Whether a cloud has answered what it received: that is counted at once, answers are once a second."""
    return sum_of(found, "rac_cloud_frames_received_total") == sum_of(found, "rac_cloud_results_total")


def test_killed_node_and_killed_cloud_lose_no_frame_and_repeat_none(
    start: Start, pictures: Path, tmp_path: Path
) -> None:
    spool = tmp_path / "spool"
    cloud = start_cloud(start, **OFTEN)
    endpoint = cloud.get("start")[0]["endpoint"]
    first = start_node(start, endpoint, pictures, spool, "--fps", "10")
    first.wait_event("result", 10)
    cloud.kill()
    first.wait_event("link", state="down")
    # Without a cloud the folder goes on: onto the disk.
    first.wait_metrics(lambda found: found["rac_node_spool_frames",] >= 15)
    first.kill()
    left, done = open_and_done(spool)
    assert len(left) >= 15
    assert set(ends(first)) | left >= set(range(max(left) + 1))

    again = start("rac-cloud", "--bind", endpoint, "--metrics-port", "0", "--workers", "2", **PATIENT | OFTEN)
    second = start_node(start, endpoint, pictures, spool, "--fps", "max")
    summary = second.check_end()
    assert summary["recovered"] == len(left)
    assert (summary["captured"], summary["results"], summary["dropped"]) == (PICTURES, PICTURES + len(left), {})
    assert list(spool.glob("frames-*")) == []
    told = ends(first, second)
    # Between the mark on the disk and the line on standard output the kill may have come: one frame at most.
    assert set(told.values()) == {1}
    assert len(left | done | set(ends(first))) - len({*ends(first), *left}) <= 1
    # The answered ones of the second run are its own and the recovered ones, each with its label.
    assert summary["labelled"] == summary["results"]
    again.wait_metrics(lambda found: found["rac_cloud_results_total", "ok"] == summary["results"])
    # On a slow machine its workers start too late for the first ones, which then come again.
    results = again.end()["results"]
    assert results["ok"] == summary["results"]
    assert set(results) <= {"ok", "stale"}


def test_node_killed_with_answers_on_the_way_is_answered_from_memory(
    start: Start, pictures: Path, tmp_path: Path
) -> None:
    """The cloud had computed what the killed node never heard of: it says the same again."""
    spool = tmp_path / "spool"
    cloud = start_cloud(start)
    endpoint = cloud.get("start")[0]["endpoint"]
    first = start_node(start, endpoint, pictures, spool, "--fps", "10")
    first.wait_event("result", 5)
    # Frames are held on the way, the node stands still, and they are answered; then it is gone.
    for pid in cloud.workers():
        os.kill(pid, signal.SIGSTOP)
    cloud.wait_metrics(lambda found: found["rac_cloud_in_flight_frames",] > 0, for_s=PUBLISHED_S)
    first.send_signal(signal.SIGSTOP)
    for pid in cloud.workers():
        os.kill(pid, signal.SIGCONT)
    cloud.wait_metrics(has_answered_all)
    first.kill()
    left, done = open_and_done(spool)
    assert left
    second = start_node(start, endpoint, pictures, spool, "--fps", "max")
    summary = second.check_end()
    assert summary["recovered"] == len(left)
    assert set(ends(first, second).values()) == {1}
    cloud.wait_metrics(lambda found: found["rac_cloud_frames_duplicate_total",] > 0)
    results = cloud.end()["results"]
    # Every frame was computed once, whichever run it is of; answers may have found no way to the node that was gone.
    assert set(results) <= {"ok", "unroutable"}
    assert sum(results.values()) == max(left | done) + 1 + PICTURES


def test_ordered_stop_leaves_the_rest_for_the_next_start(start: Start, pictures: Path, tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    nobody = "tcp://127.0.0.1:9"  # discard: nothing of ours listens there
    first = start_node(start, nobody, pictures, spool, "--fps", "50")
    first.wait_event("start")
    first.wait_metrics(lambda found: found["rac_node_spool_frames",] >= 10)
    summary = first.end()
    assert summary["in_flight"] == summary["captured"] >= 10
    assert summary["dropped"] == {}
    cloud = start_cloud(start)
    second = start_node(start, cloud.get("start")[0]["endpoint"], pictures, spool, "--fps", "max")
    ended = second.check_end()
    assert (ended["recovered"], ended["in_flight"]) == (summary["in_flight"], 0)
    assert ended["results"] == PICTURES + summary["in_flight"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48k", "tmpfs", str(folder)], check=False)
    if made.returncode:
        pytest.skip("only root may mount a small disk")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_disk_that_is_full_under_the_spool_costs_one_frame_and_the_folder_waits(
    start: Start, pictures: Path, small_disk: Path
) -> None:
    """48 kB hold some thirty frames; the folder has sixty, and there is no cloud."""
    node = start_node(start, "tcp://127.0.0.1:9", pictures, small_disk / "spool", "--fps", "max")
    began_s = time.monotonic()
    node.wait_event("drop", reason="spool_full")
    found = node.wait_metrics(lambda found: found["rac_node_spool_frames",] > 5)
    assert node_metrics_balance(found)
    assert "the disk under the spool takes nothing" in node.errors
    summary = node.end()
    assert set(summary["dropped"]) == {"spool_full"}
    # One with each look at the disk, every two seconds.
    assert summary["dropped"]["spool_full"] <= 2 + (time.monotonic() - began_s) / 2
    assert summary["in_flight"] == summary["captured"] - summary["dropped"]["spool_full"]
    cloud = start_cloud(start)
    again = start_node(start, endpoint_of(cloud), pictures, small_disk / "spool", "--fps", "max")
    ended = again.check_end()
    assert (ended["recovered"], ended["in_flight"]) == (summary["in_flight"], 0)
    assert set(ended["dropped"]) <= {"spool_full"}
