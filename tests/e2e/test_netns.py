"""Node and cloud in namespaces of their own, with a line between them that treats real packets badly."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests import netns
from tests.e2e.balance import RECOVERIES, Watched, check_ends_agree, longest_gap_s
from tests.e2e.conftest import PATIENT, START_WITH, Start
from tests.e2e.programs import Event, Program

pytest.importorskip("skimage", reason="photographs are missing: pip install 'edge-cloud-rac[demo]'")
PROBLEM = netns.probe()
pytestmark = [pytest.mark.netns, pytest.mark.skipif(PROBLEM is not None, reason=str(PROBLEM))]

OFTEN = {"RAC_LINK__HEARTBEAT_S": "0.5", "RAC_LINK__PEER_TIMEOUT_S": "2"}
ENDS = {"superseded", "no_credit", "link_down", "rate_limit", "lost_in_link", "stale", "expired", "shutdown"}


@dataclass
class Ends:
    """A cloud on the right, a node on the left."""

    line: netns.Line
    cloud: Program
    node: Program
    watched: Watched

    def end(self) -> Event:
        """Stop both: the node's summary, which agrees with the cloud's."""
        self.watched.check_growth()
        node, cloud = self.node.end(), self.cloud.end()
        check_ends_agree([node], [cloud])
        assert set(node["dropped"]) <= ENDS
        return node


@pytest.fixture
def ends(start: Start) -> Iterator[Ends]:
    with netns.Line(seed=1) as line:
        bind = ("--bind", f"tcp://{line.right_address}:5570", *START_WITH[2:], "--insecure")
        cloud = start("rac-cloud", *bind, prefix=line.inside(line.right), **PATIENT | OFTEN)
        cloud.wait_event("ready")
        endpoint = f"tcp://{line.right_address}:5570"
        words = ("--camera", "test:?fps=20", "--cloud", endpoint, "--metrics-port", "0", "--insecure")
        node = start("rac-node", *words, prefix=line.inside(line.left), RAC_LINK__RECONNECT_MAX_S="1")
        node.wait_event("result", 10)
        yield Ends(line, cloud, node, Watched(cloud, node))


def test_packets_that_are_lost_late_doubled_and_in_another_order_only_cost_time(ends: Ends) -> None:
    line = ends.line
    line.loss, line.doubling, line.delay_s, line.jitter_s = 0.05, 0.05, 0.02, 0.04
    began_s, lost = time.monotonic(), line.lost
    ends.node.wait_more("result", 60)
    ends.node.wait_for(lambda: line.lost > lost + 5, "packets that were lost")
    RECOVERIES.note("5 % of packets lost, others late and doubled: longest gap", longest_gap_s(ends.node, began_s))
    line.loss = line.doubling = line.delay_s = line.jitter_s = 0.0
    ends.node.wait_more("result", 20)
    ends.end()


@pytest.mark.parametrize("seconds", [5.0, pytest.param(30.0, marks=pytest.mark.slow)])
def test_cable_that_is_cut_and_mended(ends: Ends, seconds: float) -> None:
    began_s = time.monotonic()
    ends.line.is_cut = True
    ends.node.wait_event("link", state="down")
    RECOVERIES.note("cable cut: the node says that the link is down", time.monotonic() - began_s, "2 s silence")
    ends.cloud.wait_said("is gone (timeout)")
    # Long enough for frames to meet no session, though both ends were late to notice.
    threading.Event().wait(max(2.0, began_s + seconds - time.monotonic()))
    ended_s = time.monotonic()
    ends.line.is_cut = False
    RECOVERIES.until_result(f"cable mended after {seconds:g} s", ends.node, ended_s)
    ends.node.wait_more("result", 20)
    assert ends.end()["dropped"]["link_down"] > 0
