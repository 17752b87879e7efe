"""The way between node and cloud goes bad, and comes back: nobody restarts anything, and both ledgers balance."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import pytest

from tests.e2e.balance import RECOVERIES, Watched, check_ends_agree, check_pages, longest_gap_s
from tests.e2e.conftest import Start, start_cloud, starter
from tests.e2e.programs import Event, Program, sum_of
from tests.fault_proxy import FaultProxy

pytest.importorskip("skimage", reason="photographs are missing: pip install 'edge-cloud-rac[demo]'")

# Short, so that silence is noticed within a test; what they are by default is the README's word.
OFTEN = {"RAC_LINK__HEARTBEAT_S": "0.5", "RAC_LINK__PEER_TIMEOUT_S": "2"}
SOON = {"RAC_LINK__RECONNECT_MAX_S": "1"}
# What may become of a live camera's frame while the link is bad.
LINK_ENDS = {"superseded", "no_credit", "link_down", "rate_limit", "lost_in_link", "stale", "expired", "shutdown"}


@dataclass
class Line:
    """A cloud, a proxy before it and a node that speaks through the proxy."""

    cloud: Program
    proxy: FaultProxy
    node: Program
    watched: Watched

    def end(self) -> Event:
        """Stop the node; its summary."""
        self.watched.check_growth()
        check_pages([self.node], [self.cloud])
        return self.node.end()


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Program, list[Program]]]:
    """One cloud for all lines, and the nodes that spoke to it; at its end both sides have to agree."""
    with ExitStack() as programs:
        cloud = start_cloud(starter(tmp_path_factory.mktemp("cloud"), programs), **OFTEN)
        nodes: list[Program] = []
        yield cloud, nodes
        check_ends_agree([node.check_end() for node in nodes], [cloud.end()])


@contextmanager
def line_to(cloud: Program, start: Start) -> Iterator[Line]:
    """A line to a cloud, and a node on it whose results are coming."""
    port = int(cloud.get("start")[0]["endpoint"].rpartition(":")[2])
    with FaultProxy(port) as proxy:
        camera = ("--camera", "test:?fps=20", "--cloud", proxy.endpoint, "--metrics-port", "0")
        node = start("rac-node", *camera, **SOON)
        node.wait_event("result", 10)
        yield Line(cloud, proxy, node, Watched(cloud, node))


@pytest.fixture
def line(ends: tuple[Program, list[Program]], start: Start) -> Iterator[Line]:
    cloud, nodes = ends
    with line_to(cloud, start) as made:
        yield made
        nodes.append(made.node)


def pause(seconds: float) -> None:
    """Let a fault last."""
    threading.Event().wait(seconds)


@pytest.mark.parametrize("seconds", [4.0, pytest.param(30.0, marks=pytest.mark.slow)])
def test_unplugged_cable_is_noticed_by_both_ends_and_the_stream_comes_back(line: Line, seconds: float) -> None:
    line.proxy.stall()
    began_s = time.monotonic()
    line.node.wait_event("link", state="down", reason="heartbeat")
    RECOVERIES.note("cable unplugged: the node says that the link is down", time.monotonic() - began_s, "2 s silence")
    line.node.wait_metrics(lambda found: found["rac_node_frames_dropped_total", "test", "link_down"] > 0)
    line.cloud.wait_metrics(lambda found: found["rac_cloud_sessions",] == 0)
    pause(max(0.0, seconds - (time.monotonic() - began_s)))
    ended_s = time.monotonic()
    line.proxy.resume()
    RECOVERIES.until_result(f"cable plugged in again after {seconds:g} s", line.node, ended_s)
    line.node.wait_more("result", 20)
    assert set(line.end()["dropped"]) <= LINK_ENDS


def test_broken_connection_comes_back(line: Line) -> None:
    for _ in range(3):
        began_s = time.monotonic()
        line.proxy.reset()
        RECOVERIES.until_result("connection reset", line.node, began_s)
        line.node.wait_more("result", 10)
    line.end()


def test_refused_connections_are_tried_until_they_are_not(line: Line) -> None:
    line.proxy.refuse()
    line.node.wait_event("link", state="down")
    refused = line.proxy.accepted
    line.node.wait_metrics(lambda found: line.proxy.accepted > refused + 2)
    ended_s = time.monotonic()
    line.proxy.resume()
    RECOVERIES.until_result("connections refused, then not", line.node, ended_s)
    line.node.wait_more("result", 10)
    line.end()


def test_slow_and_uneven_line_only_costs_time(start: Start) -> None:
    """Delay that jumps, in pieces that cut messages anywhere: what loss and reordering of packets are to a program.

    With the timeouts of every day: two seconds could be over on a busy machine.
    """
    cloud = start_cloud(start)
    with line_to(cloud, start) as line:
        for way in (line.proxy.up, line.proxy.down):
            way.delay_s, way.jitter_s, way.piece_bytes = 0.05, 0.3, 100
        line.node.wait_more("result", 30)
        assert not line.node.get("link", state="down")
        found = line.node.metrics()
        assert sum_of(found, "rac_node_link_up") == 1
        summary = line.end()
    assert "lost_in_link" not in summary["dropped"]
    check_ends_agree([summary], [cloud.end()])


@pytest.mark.parametrize(("way", "bytes_per_s"), [("up", 8_000.0), ("down", 2_000.0)])
def test_line_too_narrow_for_the_camera_drops_at_the_node(line: Line, way: str, bytes_per_s: float) -> None:
    """Credit comes back with results only, so nothing piles up: frames are superseded or find no credit.

    Downwards it is a node that reads slowly.
    """
    getattr(line.proxy, way).bytes_per_s = bytes_per_s
    began_s = time.monotonic()
    line.node.wait_more("result", 20)
    RECOVERIES.note(f"line too narrow ({way}): longest gap", longest_gap_s(line.node, began_s))
    getattr(line.proxy, way).bytes_per_s = None
    line.node.wait_more("result", 10)
    dropped = line.end()["dropped"]
    assert dropped.get("no_credit", 0) + dropped.get("superseded", 0) > 0


def test_connection_that_is_cut_in_the_middle_of_messages_comes_back(line: Line) -> None:
    for place in (1, 10, 100, 3_000):
        before = line.proxy.accepted
        line.proxy.up.bytes_left = place
        line.node.wait_metrics(lambda found, before=before: line.proxy.accepted > before)  # type: ignore[misc]
        line.node.wait_more("result", 5)
    line.end()


@pytest.mark.parametrize(("way", "enough_bytes"), [("up", 100_000), ("down", 20_000)])
def test_damaged_bytes_cost_frames_or_the_connection_and_nothing_else(line: Line, way: str, enough_bytes: int) -> None:
    """TCP's checksum catches nearly all of this on a real line, CURVE all; what comes through meets our own checks."""
    direction = getattr(line.proxy, way)
    enough = direction.passed_bytes + enough_bytes
    direction.corrupt_every = enough_bytes // 10
    line.node.wait_metrics(lambda found: direction.passed_bytes > enough)
    direction.corrupt_every = None
    line.node.wait_more("result", 20)
    # A flipped bit may lie in a frame's number: then the frame expires at the node, and the balance still holds.
    assert set(line.end()["dropped"]) <= LINK_ENDS | {"corrupt"}
