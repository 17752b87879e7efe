"""`rac demo`: the line that issue 2 fixes, and that nothing is left of it, however it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nodes.lifecycle import EXIT_FAILURE
from tests.e2e.programs import PATIENCE_S, ROOT, assert_gone, command, descendants, environment, run
from tests.nodes.test_demo import KEYS

pytest.importorskip("skimage", reason="photographs are missing: pip install 'edge-cloud-rac[demo]'")
pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes in /proc")

SECONDS = 3


def test_last_line_has_the_fixed_keys_and_balances() -> None:
    done = run("rac", "demo", "--seconds", str(SECONDS), "--json")
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    (line,) = done.stdout.splitlines()
    figures = json.loads(line)
    assert set(figures) >= KEYS
    assert figures["captured"] == figures["results"] + sum(figures["dropped"].values()) + figures["in_flight"]
    assert SECONDS <= figures["seconds"] < SECONDS + PATIENCE_S
    assert figures["cameras"] == 2
    assert figures["results"] > 0
    assert figures["labelled"] > 0
    assert figures["bits_per_pixel"] == pytest.approx(8 * figures["bytes_per_frame"] / 224**2)
    assert 0 < figures["e2e_ms_p50"] <= figures["e2e_ms_p99"]
    assert isinstance(figures["depth"], int)
    shares = [figures[key] for key in ("top1", "reference_top1", "agreement")]
    assert all(share is None or 0.0 <= share <= 1.0 for share in shares)
    # Photographs that the uncompressed classifier always names.
    assert figures["reference_top1"] in (None, 1.0)


def test_people_get_a_table_and_a_balance() -> None:
    done = run("rac", "demo", "--seconds", "1", "--cameras", "1", "--workers", "1", COLUMNS="80")
    assert done.returncode == 0, done.stderr
    assert "captured" in done.stdout
    assert "capture to result" in done.stdout
    assert "no benchmark" in done.stdout
    # Lines of the programs underneath would tear the table.
    assert "INFO" not in done.stderr


@pytest.fixture
def running(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A demo in the middle of its work, with its cloud, nodes, workers and readers."""
    with (tmp_path / "errors").open("w") as errors:
        process = subprocess.Popen(
            command("rac", "demo", "--seconds", "600", "--json"),
            cwd=ROOT,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,
        )
    limit_s, pause = time.monotonic() + PATIENCE_S, threading.Event()
    # The demo, cloud, two nodes; two workers, two readers.
    while len(descendants(process.pid)) < 3 + 2 + 2:
        assert time.monotonic() < limit_s
        assert process.poll() is None
        pause.wait(0.1)
    yield process
    if process.poll() is None:
        for pid in [process.pid, *descendants(process.pid)]:
            os.kill(pid, signal.SIGKILL)
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


def test_one_signal_ends_the_demo_in_order_with_its_figures(running: subprocess.Popen[str]) -> None:
    left = descendants(running.pid)
    running.send_signal(signal.SIGINT)
    stdout, _ = running.communicate(timeout=PATIENCE_S)
    assert running.returncode == 0
    figures = json.loads(stdout.splitlines()[-1])
    assert figures["captured"] == figures["results"] + sum(figures["dropped"].values()) + figures["in_flight"]
    assert_gone(left)


def test_second_signal_leaves_nothing_behind(running: subprocess.Popen[str]) -> None:
    left = descendants(running.pid)
    running.send_signal(signal.SIGTERM)
    running.send_signal(signal.SIGINT)
    assert running.wait(PATIENCE_S) == EXIT_FAILURE
    assert_gone(left)
