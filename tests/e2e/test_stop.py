"""Stopping from every state: in order within --drain-seconds, at once at the second signal, and nothing left behind.

How fast is not asserted, for that is the machine's. Instead, everything that a stop must not wait for takes ten minutes
here, and the tests' patience is two.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from nodes.lifecycle import EXIT_FAILURE
from tests.e2e.balance import RECOVERIES, wait_until
from tests.e2e.conftest import START_WITH, Start, start_cloud
from tests.e2e.programs import PATIENCE_S, PUBLISHED_S, Program, assert_gone

pytest.importorskip("skimage", reason="photographs are missing: pip install 'edge-cloud-rac[demo]'")
pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes in /proc")

LONG_S = "600"
LONG_DRAIN = ("--drain-seconds", LONG_S)
SHORT_DRAIN = ("--drain-seconds", "1")
HELD = {"RAC_POOL__BATCH_TIMEOUT_S": LONG_S, "RAC_POOL__MAX_AGE_S": LONG_S}
HELD_NODE = {"RAC_LINK__RESULT_TIMEOUT_S": LONG_S, "RAC_CAPTURE__OPEN_TIMEOUT_S": LONG_S}
NOWHERE = "tcp://127.0.0.1:9"  # discard: nothing of ours listens there

Stage = Callable[..., Program]
"""Brings a program into a state, with these arguments more; the program that is to be stopped."""


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port where connections are taken and nobody ever says a word."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        yield server.getsockname()[1]


def node(start: Start, endpoint: str, camera: str, *arguments: str) -> Program:
    words = ("--camera", camera, "--cloud", endpoint, "--metrics-port", "0", *arguments)
    made = start("rac-node", *words, **HELD_NODE)
    made.wait_event("start")
    return made


@pytest.fixture
def stages(start: Start, silent_port: int) -> dict[str, Stage]:
    """The states by name."""
    silence = f"tcp://127.0.0.1:{silent_port}"

    def with_held_workers(*arguments: str, cloud_arguments: tuple[str, ...] = ()) -> tuple[Program, Program]:
        cloud = start_cloud(start, *cloud_arguments, **HELD)
        streaming = node(start, cloud.get("start")[0]["endpoint"], "test:?fps=20", *arguments)
        streaming.wait_event("result", 5)
        for pid in cloud.workers():
            os.kill(pid, signal.SIGSTOP)
        cloud.wait_metrics(lambda found: found["rac_cloud_in_flight_frames",] > 0, for_s=PUBLISHED_S)
        return cloud, streaming

    def cloud_without_workers(*arguments: str) -> Program:
        cloud = start_cloud(start, *arguments)
        for pid in cloud.workers():
            os.kill(pid, signal.SIGKILL)
        cloud.wait_metrics(lambda found: found["rac_cloud_worker_restarts_total", "crash"] == 2)
        return cloud

    def cloud_whose_workers_start(*arguments: str) -> Program:
        cloud = start("rac-cloud", *START_WITH, *arguments)
        cloud.wait_event("start")
        return cloud

    return {
        "node, no camera and no cloud": lambda *words: node(start, NOWHERE, "/dev/video99", *words),
        "node, no cloud": lambda *words: node(start, NOWHERE, "test:", *words),
        "node, cloud that never answers": lambda *words: node(start, silence, "test:", *words),
        "node, camera that never answers": lambda *words: node(
            start, NOWHERE, f"http://127.0.0.1:{silent_port}/", *words
        ),
        "node, mid-batch": lambda *words: with_held_workers(*words)[1],
        "cloud, workers start": cloud_whose_workers_start,
        "cloud, no nodes": lambda *words: start_cloud(start, *words),
        "cloud, workers lost": cloud_without_workers,
        "cloud, mid-batch": lambda *words: with_held_workers(cloud_arguments=words)[0],
    }


STATES = (
    "node, no camera and no cloud",
    "node, no cloud",
    "node, cloud that never answers",
    "node, camera that never answers",
    "node, mid-batch",
    "cloud, workers start",
    "cloud, no nodes",
    "cloud, workers lost",
    "cloud, mid-batch",
)


# What every other test of these programs does at its end.
ORDINARY = {"node, no cloud", "cloud, no nodes"}


def slow_if(states: set[str]) -> list[Any]:
    """All states; these are for the long run."""
    return [pytest.param(state, marks=pytest.mark.slow) if state in states else state for state in STATES]


@pytest.mark.parametrize("state", slow_if(ORDINARY))
def test_first_signal_ends_in_order_within_the_drain_time(stages: dict[str, Stage], state: str) -> None:
    has_something_to_wait_for = state.endswith("mid-batch")
    drain = SHORT_DRAIN if has_something_to_wait_for else LONG_DRAIN
    program = stages[state](*drain)
    began_s = time.monotonic()
    summary = program.end()
    RECOVERIES.note(f"SIGTERM, {state}", time.monotonic() - began_s, " ".join(drain))
    ended = summary["dropped"] if "captured" in summary else summary["results"]
    assert summary["in_flight"] == 0
    assert ("shutdown" in ended) == has_something_to_wait_for, summary


# Where there is something to wait for the second signal matters; the other states end as fast at the first one.
HOLDING = {"node, mid-batch", "cloud, mid-batch", "node, camera that never answers"}


@pytest.mark.parametrize("state", slow_if(set(STATES) - HOLDING))
def test_second_signal_ends_at_once(stages: dict[str, Stage], state: str) -> None:
    program = stages[state](*LONG_DRAIN)
    children = program.children()
    program.send_signal(signal.SIGTERM)
    # Another one, for two of the same before the first is seen are one.
    program.send_signal(signal.SIGINT)
    code = program.process.wait(PATIENCE_S)
    # A program with nothing to wait for may have ended in order before the second one came.
    assert code == EXIT_FAILURE or not state.endswith("mid-batch")
    assert "Traceback" not in program.errors
    assert_gone(children)


@pytest.mark.slow  # on a loaded machine a frame that was not sent yet may be closed as shutdown
def test_drain_waits_for_what_is_on_its_way(start: Start) -> None:
    """A worker that goes on while both stop: its results still arrive, and nothing is closed as shutdown."""
    with ExitStack() as held:
        cloud = start_cloud(start, *LONG_DRAIN, **HELD)
        streaming = node(start, cloud.get("start")[0]["endpoint"], "test:?fps=20", *LONG_DRAIN)
        streaming.wait_event("result", 5)
        for pid in cloud.workers():
            os.kill(pid, signal.SIGSTOP)
            held.callback(os.kill, pid, signal.SIGCONT)
        cloud.wait_metrics(lambda found: found["rac_cloud_in_flight_frames",] > 0, for_s=PUBLISHED_S)
        streaming.send_signal(signal.SIGTERM)
        cloud.send_signal(signal.SIGTERM)
        wait_until(lambda: "stopping" in cloud.readiness()[1], PATIENCE_S, "readiness says that the cloud stops")
    assert "shutdown" not in streaming.check_end()["dropped"]
    summary = cloud.check_end()
    assert set(summary["results"]) == {"ok"}, summary
