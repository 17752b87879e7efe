"""Camera to class over real processes and sockets; the balance under faults."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.programs import Program, balance, running

pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def cloud() -> Iterator[Program]:
    """One cloud for the tests that do not harm it."""
    with running("cloud", "--workers", "1", "--bind", "tcp://127.0.0.1:0") as program:
        program.wait_for(lambda event: event["event"] == "start")
        yield program


def endpoint(program: Program) -> str:
    return str(program.events[0]["endpoint"])


def worker_pids(parent: int) -> list[int]:
    """Worker processes of a cloud."""
    children = Path(f"/proc/{parent}/task/{parent}/children")
    pids = [int(pid) for pid in children.read_text().split()] if children.exists() else []
    return [pid for pid in pids if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def test_frames_come_back_classified_and_the_ledger_balances(cloud: Program) -> None:
    arguments = ("--camera", "test:?fps=10", "--cloud", endpoint(cloud), "--reference-every", "1", "--name", "one")
    with running("node", *arguments) as node:
        node.wait_results(20)
        summary = node.stop()
        assert node.process.returncode == 0
        assert "Traceback" not in node.stderr
    assert balance(summary)
    assert summary["in_flight"] == 0
    assert summary["references"] == summary["results"] >= 20
    results = [event for event in node.events if event["event"] == "result"]
    assert all(len(event["classes"]) == 5 for event in results)
    assert {event["label"] for event in results} >= {967}, "the espresso photograph comes with its class"


def test_labelled_folder_runs_to_its_end_and_counts_labels(cloud: Program, tmp_path: Path) -> None:
    from nodes.sources import find_photographs

    photographs = find_photographs()
    for index, name in ((967, "coffee.png"), (872, "camera.png")):
        (tmp_path / str(index)).mkdir()
        (tmp_path / str(index) / name).write_bytes((photographs / name).read_bytes())
    arguments = ("--camera", str(tmp_path), "--fps", "max", "--cloud", endpoint(cloud), "--name", "folder")
    with running("node", *arguments) as node:
        summary = node.finish(60.0)
        assert node.process.returncode == 0
    assert summary["captured"] == summary["results"] == summary["labelled"] == 2
    assert summary["dropped"] == {}


def test_killed_worker_costs_no_frame() -> None:
    with running("cloud", "--workers", "1", "--bind", "tcp://127.0.0.1:0") as cloud:
        cloud.wait_for(lambda event: event["event"] == "start")
        with running("node", "--camera", "test:?fps=20", "--cloud", endpoint(cloud)) as node:
            node.wait_results(5)
            (pid,) = worker_pids(cloud.process.pid)
            os.kill(pid, signal.SIGKILL)
            node.wait_results(15)
            summary = node.stop()
        totals = cloud.stop()
    assert balance(summary)
    assert "worker_lost" not in summary["dropped"], "a batch is tried once more"
    assert totals["received"] == sum(totals["results"].values()) + totals["in_flight"]


def test_node_outlives_its_cloud() -> None:
    with running("cloud", "--workers", "1", "--bind", "tcp://127.0.0.1:0") as first:
        first.wait_for(lambda event: event["event"] == "start")
        address = endpoint(first)
        with running("node", "--camera", "test:?fps=10", "--cloud", address) as node:
            node.wait_results(3)
            first.process.kill()
            first.process.wait()
            node.wait_for(lambda event: event["event"] == "link" and event["state"] == "down")
            with running("cloud", "--workers", "1", "--bind", address) as second:
                second.wait_for(lambda event: event["event"] == "start")
                node.wait_results(5)
                summary = node.stop()
    assert balance(summary)
    assert summary["dropped"].get("link_down", 0) > 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_both_programs_stop_in_order(number: signal.Signals) -> None:
    with running("cloud", "--workers", "1", "--bind", "tcp://127.0.0.1:0") as cloud:
        cloud.wait_for(lambda event: event["event"] == "start")
        with running("node", "--camera", "test:", "--cloud", endpoint(cloud)) as node:
            node.wait_results(2)
            assert balance(node.stop(number))
            assert node.process.returncode == 0
        totals = cloud.stop(number)
        assert cloud.process.returncode == 0
        assert totals["in_flight"] == 0
        assert "Traceback" not in cloud.stderr + node.stderr
        assert worker_pids(cloud.process.pid) == []


def test_missing_camera_is_told_and_retried_while_others_go_on(cloud: Program) -> None:
    arguments = ("--camera", "absent=/dev/video97", "--camera", "present=test:", "--cloud", endpoint(cloud))
    with running("node", *arguments, "--name", "half") as node:
        node.wait_for(lambda event: event.get("camera") == "absent" and event.get("state") == "down")
        node.wait_for(lambda event: event["event"] == "result" and event["camera"] == "present")
        node.wait_for(lambda event: event.get("camera") == "absent" and event.get("state") == "down")
        summary = node.stop()
        assert node.process.returncode == 0
    assert balance(summary)


def test_bad_arguments_are_one_line_and_code_2() -> None:
    code = "import sys; from nodes.cli import node_main; sys.exit(node_main())"
    for arguments in (["--camera", "no-such-file.mp4"], ["--camera", "test:", "--budget-ms", "none"], []):
        ended = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
        assert ended.returncode == 2
        assert len(ended.stderr.strip().splitlines()) == 1
