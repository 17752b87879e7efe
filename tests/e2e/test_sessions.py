"""Sessions with real processes: clouds that die, come back and stand in for one another; peers of other versions."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import msgpack
import pytest
import zmq

from pipeline.bundle import load_bundle
from pipeline.wire import WIRE_MAJOR, CameraEntry, Hello, Ping, Reject, RejectCode, Welcome, pack, parse
from tests.e2e.balance import RECOVERIES
from tests.e2e.conftest import Start, start_cloud
from tests.e2e.programs import PATIENCE_S, Program, node_metrics_balance, sum_of

pytest.importorskip("skimage", reason="photographs are missing: pip install 'edge-cloud-rac[demo]'")
pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes in /proc")

# A frame that comes before a worker is there is stale in good time: before the node gives it up.
AGE = {"RAC_POOL__BATCH_TIMEOUT_S": "20", "RAC_POOL__MAX_AGE_S": "5"}
OFTEN = {"RAC_LINK__HEARTBEAT_S": "0.5", "RAC_LINK__PEER_TIMEOUT_S": "2", **AGE}
SOON = {"RAC_LINK__RECONNECT_MAX_S": "1", "RAC_LINK__RETURN_S": "2"}
ORDINARY = {"superseded", "no_credit", "link_down", "rate_limit", "lost_in_link", "stale", "shutdown"}
PATIENCE_MS = round(1000 * PATIENCE_S)


def endpoint_of(cloud: Program) -> str:
    return str(cloud.get("start")[0]["endpoint"])


def start_node(start: Start, name: str, *endpoints: str) -> Program:
    clouds = [word for endpoint in endpoints for word in ("--cloud", endpoint)]
    words = ["--camera", "test:?fps=10", *clouds, "--metrics-port", "0", "--name", name]
    return start("rac-node", *words, **SOON)


def check_node(node: Program) -> None:
    """The ledger balances now and at the end, and nothing unusual happened to a frame."""
    assert node_metrics_balance(node.metrics())
    summary = node.end()
    assert set(summary["dropped"]) <= ORDINARY
    assert summary["results"] > 0


def test_three_nodes_come_back_by_themselves_when_their_cloud_is_killed_and_started_again(start: Start) -> None:
    cloud = start_cloud(start, **OFTEN)
    endpoint = endpoint_of(cloud)
    nodes = [start_node(start, f"node{number}", endpoint) for number in range(3)]
    for node in nodes:
        node.wait_event("result", 5)
    cloud.kill()
    for node in nodes:
        node.wait_event("link", state="down")
    began_s = time.monotonic()
    again = start("rac-cloud", "--bind", endpoint, "--metrics-port", "0", "--workers", "1", **OFTEN)
    for node in nodes:
        node.wait_event("link", 2, state="up")
        RECOVERIES.until_result("cloud of three nodes killed with -9: first result after its start", node, began_s)
        node.wait_more("result", 5)
    again.wait_metrics(lambda found: found["rac_cloud_sessions",] == 3)
    for node in nodes:
        check_node(node)
    again.end()


def test_node_fails_over_to_the_second_cloud_and_goes_back_to_the_first(start: Start) -> None:
    first, second = start_cloud(start, **OFTEN), start_cloud(start, **OFTEN)
    endpoint = endpoint_of(first)
    node = start_node(start, "box", endpoint, endpoint_of(second))
    node.wait_event("result", 5)
    began_s = time.monotonic()
    first.kill()
    node.wait_event("link", 2, state="up")
    took_s = node.moments_of("link", began_s, state="up")[0] - began_s
    RECOVERIES.note("cloud killed with -9: session with the next endpoint", took_s)
    node.wait_more("result", 5)
    found = node.wait_metrics(lambda found: found["rac_node_link_up", "1"] == 1)
    assert found["rac_node_link_up", "0"] == 0
    again = start("rac-cloud", "--bind", endpoint, "--metrics-port", "0", "--workers", "1", **OFTEN)
    node.wait_event("link", state="down", reason="failover")
    node.wait_event("link", 3, state="up")
    node.wait_more("result", 5)
    found = node.wait_metrics(lambda found: found["rac_node_link_up", "0"] == 1)
    assert found["rac_node_reconnects_total", "1", "failover"] == 1
    # The second cloud was told, and has nothing left of this node.
    second.wait_metrics(lambda found: found["rac_cloud_sessions_closed_total", "bye"] == 1)
    second.wait_metrics(lambda found: found["rac_cloud_in_flight_frames",] == 0)
    check_node(node)
    again.end()
    assert set(second.end()["results"]) <= {"ok"}


@pytest.fixture
def foreign_cloud() -> Iterator[tuple[str, zmq.Socket[bytes]]]:
    """A ROUTER of somebody else's, and where it listens."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    router: zmq.Socket[bytes] = context.socket(zmq.ROUTER)
    router.setsockopt(zmq.LINGER, 0)
    router.bind("tcp://127.0.0.1:0")
    yield router.getsockopt_string(zmq.LAST_ENDPOINT), router
    router.close()
    context.term()


def test_cloud_of_another_major_version_is_named_and_left_alone(
    start: Start, foreign_cloud: tuple[str, zmq.Socket[bytes]]
) -> None:
    endpoint, router = foreign_cloud
    node = start("rac-node", "--camera", "test:?fps=20", "--cloud", endpoint, "--metrics-port", "0")
    assert router.poll(PATIENCE_MS)
    routing_id, _ = router.recv_multipart()
    router.send_multipart([routing_id, msgpack.packb([WIRE_MAJOR + 1, 2, 0])])
    down = node.wait_event("link", state="down")
    assert (down["reason"], down["code"]) == ("refused", "bad_version")
    assert f"version {WIRE_MAJOR + 1}" in down["text"]
    # Two seconds of frames later it has not tried again; a HELLO that it repeated came over the same connection.
    node.wait_metrics(lambda found: sum_of(found, "rac_node_frames_captured_total") >= 40)
    assert len(node.get("link", state="down")) == 1
    while router.poll(0):
        assert router.recv_multipart()[0] == routing_id
    node.end()


@pytest.fixture
def stranger(cloud: Program) -> Iterator[zmq.Socket[bytes]]:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    dealer: zmq.Socket[bytes] = context.socket(zmq.DEALER)
    dealer.setsockopt(zmq.LINGER, 0)
    dealer.connect(endpoint_of(cloud))
    yield dealer
    dealer.close()
    context.term()


def ask(stranger: zmq.Socket[bytes], parts: list[bytes]) -> object:
    stranger.send_multipart(parts)
    while True:
        assert stranger.poll(PATIENCE_MS), "the cloud does not answer"
        answer = parse(stranger.recv_multipart())
        if not isinstance(answer, Ping):
            return answer


def test_node_of_another_major_version_gets_a_named_error(cloud: Program, stranger: zmq.Socket[bytes]) -> None:
    answer = ask(stranger, [msgpack.packb([WIRE_MAJOR + 1, 1, "from the future"])])
    assert isinstance(answer, Reject)
    assert answer.code is RejectCode.BAD_VERSION
    assert f"version {WIRE_MAJOR + 1}" in answer.text


def test_node_of_an_older_or_newer_minor_version_is_served(cloud: Program, stranger: zmq.Socket[bytes]) -> None:
    bundle_id = load_bundle("default").bundle_id
    hello = Hello(0, "old", os.urandom(16), (bundle_id,), (CameraEntry(0, "gate"),))
    assert isinstance(ask(stranger, pack(hello)), Welcome)
    newer = msgpack.unpackb(pack(Hello(9, "new", os.urandom(16), (bundle_id,), (CameraEntry(0, "gate"),)))[0])
    assert isinstance(ask(stranger, [msgpack.packb([*newer, "a field of minor 9", 7])]), Welcome)
