"""A node or a cloud misbehaves: killed, stopped, slow, deaf. The others do not notice, and both ends balance."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import zmq

from pipeline.bundle import load_bundle
from pipeline.wire import CameraEntry, Hello, Ping, pack
from tests.e2e.balance import (
    MIB,
    RECOVERIES,
    Watched,
    check_ends_agree,
    check_pages,
    longest_gap_s,
    resident_bytes,
    wait_until,
)
from tests.e2e.conftest import Start, start_cloud, starter
from tests.e2e.programs import PATIENCE_S, Program, assert_gone, sum_of

pytest.importorskip("skimage", reason="photographs are missing: pip install 'edge-cloud-rac[demo]'")
pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes in /proc")

OFTEN = {"RAC_LINK__HEARTBEAT_S": "0.5", "RAC_LINK__PEER_TIMEOUT_S": "2"}
# Where nodes beside a fault must not lose their session: they may be late by as much as it takes by default.
STEADY = {"RAC_LINK__HEARTBEAT_S": "0.5", "RAC_LINK__PEER_TIMEOUT_S": "6"}
# A fault that held the others up would do so until the test mends it, or for a timeout of the cloud's.
LONGEST_GAP_S = 20.0
# What may become of a live camera's frame while its cloud is slow or its node was away.
ENDS = {"superseded", "no_credit", "link_down", "rate_limit", "lost_in_link", "stale", "expired", "shutdown"}


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """One cloud; killed nodes leave no summary, so at the end it is this one's ledger that has to balance."""
    with ExitStack() as programs:
        made = start_cloud(starter(tmp_path_factory.mktemp("cloud"), programs), **STEADY)
        yield made
        made.end()


def node(start: Start, cloud: Program, name: str, camera: str = "test:?fps=20") -> Program:
    """A node whose results are coming."""
    endpoint = cloud.get("start")[0]["endpoint"]
    words = ("--camera", camera, "--cloud", endpoint, "--metrics-port", "0", "--name", name)
    made = start("rac-node", *words, RAC_LINK__RECONNECT_MAX_S="1")
    made.wait_event("result", 10)
    return made


@pytest.fixture
def other(start: Start, cloud: Program) -> Iterator[Program]:
    """A node beside the fault, which does not notice it."""
    made = node(start, cloud, "other")
    watched = Watched(cloud, made)
    began_s = time.monotonic()
    yield made
    assert longest_gap_s(made, began_s) < LONGEST_GAP_S
    assert not made.get("link", state="down")
    check_pages([made], [cloud])
    watched.check_growth()
    assert set(made.end()["dropped"]) <= ENDS - {"lost_in_link", "expired"}


def test_killed_node_takes_its_readers_along_and_its_successor_is_served_at_once(
    start: Start, cloud: Program, other: Program
) -> None:
    victim = node(start, cloud, "dock")
    readers = victim.children()
    assert readers
    began_s = time.monotonic()
    victim.send_signal(signal.SIGKILL)
    assert_gone([victim.pid, *readers])
    wait_until(lambda: "node dock is gone" in cloud.errors, PATIENCE_S, "the session is closed")
    RECOVERIES.note("node killed with -9: its session is closed", time.monotonic() - began_s)
    node(start, cloud, "dock").end()


def test_stopped_node_is_given_up_and_comes_back_when_it_goes_on(start: Start, cloud: Program, other: Program) -> None:
    sleeper = node(start, cloud, "sleeper")
    began_s = time.monotonic()
    sleeper.send_signal(signal.SIGSTOP)
    cloud.wait_said("node sleeper is gone (timeout)")
    RECOVERIES.note("node stopped (SIGSTOP): its session is closed", time.monotonic() - began_s, "6 s silence")
    ended_s = time.monotonic()
    sleeper.send_signal(signal.SIGCONT)
    sleeper.wait_event("link", state="down")
    sleeper.wait_event("link", 2, state="up")
    RECOVERIES.note(
        "node goes on (SIGCONT): session again", sleeper.moments_of("link", ended_s, state="up")[0] - ended_s
    )
    sleeper.wait_more("result", 10)
    assert set(sleeper.end()["dropped"]) <= ENDS


def test_stopped_cloud_is_given_up_and_found_again(start: Start) -> None:
    cloud = start_cloud(start, **OFTEN)
    streaming = node(start, cloud, "dock")
    watched = Watched(cloud, streaming)
    cloud.send_signal(signal.SIGSTOP)
    began_s = time.monotonic()
    streaming.wait_event("link", state="down", reason="heartbeat")
    RECOVERIES.note("cloud stopped (SIGSTOP): the node says so", time.monotonic() - began_s, "2 s silence")
    ended_s = time.monotonic()
    cloud.send_signal(signal.SIGCONT)
    RECOVERIES.until_result("cloud goes on (SIGCONT)", streaming, ended_s)
    streaming.wait_more("result", 20)
    watched.check_growth()
    check_pages([streaming], [cloud])
    summaries = streaming.end(), cloud.end()
    check_ends_agree([summaries[0]], [summaries[1]])


def test_slow_cloud_takes_what_it_can_and_the_rest_never_leaves_the_nodes(start: Start) -> None:
    """Its workers run a tenth of the time; what they cannot do finds no credit, and no queue grows."""
    cloud = start_cloud(start, RAC_POOL__BATCH_TIMEOUT_S="600", **OFTEN)
    nodes = [node(start, cloud, f"node{number}") for number in range(3)]
    watched = Watched(cloud, *nodes)
    workers = cloud.workers()
    limit = cloud.metrics()["rac_cloud_queue_limit_frames",]
    pause = threading.Event()
    for _ in range(6):
        for number in (signal.SIGSTOP, signal.SIGCONT):
            for pid in workers:
                os.kill(pid, number)
            pause.wait(0.45 if number is signal.SIGSTOP else 0.05)
        found = cloud.metrics()
        assert found["rac_cloud_queue_frames",] <= limit
        assert found["rac_cloud_in_flight_frames",] <= 3 * 64
    # Until nobody has credit left, however much of their time a busy machine gave the workers.
    for pid in workers:
        os.kill(pid, signal.SIGSTOP)
    for streaming in nodes:
        streaming.wait_metrics(lambda found: found["rac_node_frames_dropped_total", "test", "no_credit"] > 0)
    found = cloud.metrics()
    assert found["rac_cloud_queue_frames",] <= limit
    assert found["rac_cloud_in_flight_frames",] <= 3 * 64
    for pid in workers:
        os.kill(pid, signal.SIGCONT)
    began_s = time.monotonic()
    for streaming in nodes:
        RECOVERIES.until_result("cloud ten times too slow, then not", streaming, began_s)
        streaming.wait_more("result", 10)
    watched.check_growth()
    check_pages(nodes, [cloud])
    summaries = [streaming.end() for streaming in nodes]
    assert all(summary["dropped"]["no_credit"] > 0 for summary in summaries), summaries
    check_ends_agree(summaries, [cloud.end()])


def test_node_that_never_reads_fills_no_memory_and_holds_nobody_up(cloud: Program, other: Program) -> None:
    """It asks and asks, and lets the answers lie."""
    before = resident_bytes(cloud.pid)
    bundle_id = load_bundle("default").bundle_id
    with zmq.Context() as context:
        sockets = []
        for number in range(4):
            deaf: zmq.Socket[bytes] = context.socket(zmq.DEALER)
            for option, value in ((zmq.LINGER, 0), (zmq.RCVHWM, 1), (zmq.RCVBUF, 4096), (zmq.SNDTIMEO, 2_000)):
                deaf.setsockopt(option, value)
            deaf.connect(cloud.get("start")[0]["endpoint"])
            cameras = (CameraEntry(0, "x"),)
            deaf.send_multipart(pack(Hello(0, f"deaf{number}", os.urandom(16), (bundle_id,), cameras)))
            sockets.append(deaf)
        limit_s = time.monotonic() + 4.0
        sent = 0
        while time.monotonic() < limit_s or sent <= 1000:
            for deaf in sockets:
                for _ in range(100):
                    try:
                        deaf.send_multipart(pack(Ping(1, 1)), zmq.DONTWAIT)
                        sent += 1
                    except zmq.Again:
                        break
            other.wait_more("result", 1)
        for deaf in sockets:
            deaf.close()
    assert resident_bytes(cloud.pid) - before < 50 * MIB
    cloud.wait_metrics(lambda found: sum_of(found, "rac_cloud_sessions") == 1)
    assert cloud.readiness()[0] == 200
