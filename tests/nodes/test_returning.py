"""The node's loop with two endpoints: it leaves the first one when it must, and goes back when that is there again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nodes.returning import Returning
from pipeline.failover import PROBE_ANSWERS, PROBE_INTERVAL_NS
from pipeline.session import LossReason, Lost, Opened
from pipeline.wire import Bye, Hello, Message, Ping, Reject, RejectCode
from tests.edge_bench import Bench
from tests.fakes import FakeCloud, FakeUplink, S

EVERY = 30 * S
FIRST, SECOND = "tcp://127.0.0.1:1", "tcp://127.0.0.1:2"


class FailoverBench(Bench):
    """Two clouds, each of which may be there or not; the probe has a connection of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.there = {FIRST: True, SECOND: True}
        self.clouds = {FIRST: FakeCloud(), SECOND: FakeCloud()}
        self.uplink.peer = self.stream_peer
        self.probe = FakeUplink(self.probe_peer)
        probe: Any = self.probe
        self.node.companions.append(Returning(self.node.session, probe, (FIRST, SECOND), EVERY, self.clock))

    def stream_peer(self, message: Message) -> list[Message]:
        assert self.uplink.endpoint is not None
        return self.clouds[self.uplink.endpoint](message) if self.there[self.uplink.endpoint] else []

    def probe_peer(self, message: Message) -> list[Message]:
        assert isinstance(message, Ping)
        assert self.probe.endpoint is not None
        return [Reject(RejectCode.NO_SESSION)] if self.there[self.probe.endpoint] else []

    def set(self, endpoint: str, is_there: bool) -> Callable[[], None]:
        return lambda: self.there.__setitem__(endpoint, is_there)

    def pass_time(self, seconds: int) -> list[Callable[[], object] | int]:
        """Seconds one by one, with a frame whenever one is asked for."""
        return [step for _ in range(seconds) for step in (self.wait(S), self.give_if_asked(), 1)]

    def endpoints(self) -> list[str]:
        return self.uplink.opened


def test_node_goes_on_with_the_second_cloud_and_back_to_the_first_without_a_loss() -> None:
    bench = FailoverBench()
    bench.run(
        *bench.pass_time(2),
        bench.set(FIRST, False),
        *bench.pass_time(10),
        bench.set(FIRST, True),
        *bench.pass_time(45),
    )
    assert bench.endpoints() == [FIRST, SECOND, FIRST]
    assert bench.probe.opened == [FIRST]
    reasons = [link.reason for link in bench.notes.links if isinstance(link, Lost)]
    assert reasons == [LossReason.HEARTBEAT, LossReason.FAILOVER]
    # One frame was on its way to the cloud that fell silent; the way back costs none.
    assert bench.dropped().get("lost_in_link", 0) <= 8
    assert bench.clouds[FIRST].sessions == 2
    assert bench.clouds[SECOND].sessions == 1
    assert sum(isinstance(link, Opened) for link in bench.notes.links) == 3


def test_node_stays_where_it_is_while_the_better_cloud_is_away() -> None:
    bench = FailoverBench()
    bench.set(FIRST, False)()
    bench.run(*bench.pass_time(100))
    assert bench.endpoints() == [FIRST, SECOND]
    assert len(bench.probe.opened) >= 2
    assert bench.node.ledger.snapshot().total.results > 50


def test_way_back_waits_for_results_that_are_on_the_way() -> None:
    bench = FailoverBench()
    bench.set(FIRST, False)()
    slow = bench.clouds[SECOND]

    def answer_late() -> None:
        bench.uplink.deliver(*slow.answers())

    begin = [*bench.pass_time(8), bench.set(FIRST, True), bench.wait(EVERY), 1]
    looks: list[Callable[[], object] | int] = [bench.wait(PROBE_INTERVAL_NS), 2] * PROBE_ANSWERS
    bench.run(*begin, lambda: setattr(slow, "outcome", None), bench.give_if_asked(), *looks, answer_late, 3)
    assert bench.endpoints()[-1] == FIRST
    assert bench.dropped().get("lost_in_link", 0) == 0


def test_goodbye_is_said_to_the_cloud_that_is_left() -> None:
    bench = FailoverBench()
    bench.set(FIRST, False)()
    bench.run(*bench.pass_time(8), bench.set(FIRST, True), *bench.pass_time(45))
    kinds = [type(message) for message in bench.uplink.sent if isinstance(message, Bye | Hello)]
    assert kinds[-3:] == [Bye, Hello, Bye]
