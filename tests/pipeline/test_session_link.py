"""Both sides of the session, ledgers and batcher together, over links that delay and break.

Whatever happens: no honest node is ever found to break the protocol, credit is neither lost nor made, the
queue never overflows, both ledgers balance, and in the end every frame of every camera has one outcome.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

import pytest

from pipeline.batching import Batcher, BatcherSettings
from pipeline.cloud_actions import Answer, CloudAction, CloudSettings, FrameArrived, SendTo
from pipeline.cloud_ledger import CloudLedger
from pipeline.cloud_session import CloudSessions
from pipeline.ledger import Ledger, Outcome
from pipeline.session import (
    Action,
    CloseLink,
    LossReason,
    Lost,
    NodeSession,
    NodeSettings,
    OpenLink,
    ResultArrived,
    Send,
)
from pipeline.wire import (
    CameraEntry,
    Credit,
    FrameMessage,
    Hello,
    Message,
    RejectCode,
    Result,
    TopClass,
    Welcome,
    pack,
    parse,
)

MS = 1_000_000
S = 1000 * MS
BUNDLE = b"\x02" * 32
RESULT_TIMEOUT_NS = 3 * S
STEP_NS = 10 * MS


@dataclass
class Link:
    """One connection: two ordered directions of (arrival time, parts). `cut` loses what is on the way."""

    routing_id: bytes
    delay: Callable[[], int]
    up: deque[tuple[int, list[bytes]]] = field(default_factory=deque)
    down: deque[tuple[int, list[bytes]]] = field(default_factory=deque)
    is_open: bool = True

    def put(self, way: deque[tuple[int, list[bytes]]], message: Message, now_ns: int) -> None:
        earliest_ns = way[-1][0] if way else 0
        way.append((max(earliest_ns, now_ns + self.delay()), pack(message)))

    @staticmethod
    def take(way: deque[tuple[int, list[bytes]]], now_ns: int) -> list[Message]:
        messages = []
        while way and way[0][0] <= now_ns:
            messages.append(parse(way.popleft()[1]))
        return messages

    def cut(self) -> None:
        self.is_open = False
        self.up.clear()
        self.down.clear()


class Node:
    """What `nodes/edge.py` does with a session and a ledger, in a few lines."""

    def __init__(self, name: str, random: Random, connect: Callable[[Node], Link]) -> None:
        self.name = name
        self.random = random
        self.connect = connect
        hello = Hello(0, name, random.randbytes(16), (BUNDLE,), (CameraEntry(0, "gate"), CameraEntry(1, "belt")))
        self.session = NodeSession(NodeSettings(hello, ("tcp://cloud:5570",)), random.random)
        self.ledger = Ledger(["gate", "belt"])
        self.link: Link | None = None
        self.sequence = [0, 0]
        self.losses: list[Lost] = []

    def act(self, actions: list[Action], now_ns: int) -> None:
        for action in actions:
            match action:
                case OpenLink():
                    self.link = self.connect(self)
                case CloseLink():
                    assert self.link is not None
                    self.link.is_open = action.is_orderly and self.link.is_open
                case Send() if self.link is not None and self.link.is_open:
                    self.link.put(self.link.up, action.message, now_ns)
                case Lost():
                    self.ledger.lose_link(now_ns)
                    self.losses.append(action)
                case ResultArrived(camera=camera, result=result):
                    classes = [top.index for top in result.classes]
                    self.ledger.answer(camera, result.sequence, result.outcome, now_ns, classes=classes)
                case _:
                    pass

    def step(self, now_ns: int) -> None:
        if self.link is not None:
            for message in Link.take(self.link.down, now_ns):
                self.act(self.session.receive(message, now_ns), now_ns)
            if not self.link.is_open:
                self.act(self.session.link_failed(LossReason.CLOSED, "disconnected", now_ns), now_ns)
        self.act(self.session.tick(now_ns), now_ns)
        self.ledger.expire(now_ns, RESULT_TIMEOUT_NS)

    def capture(self, number: int, now_ns: int) -> None:
        camera, sequence = ("gate", "belt")[number], self.sequence[number]
        self.sequence[number] += 1
        self.ledger.capture(camera, sequence, now_ns)
        if not self.session.can_send:
            outcome = Outcome.NO_CREDIT if self.session.is_up else Outcome.LINK_DOWN
            self.ledger.drop(camera, sequence, outcome, now_ns)
            return
        self.ledger.send(camera, sequence, now_ns, depth=0, level16=0, bitstream_bytes=4, coded_pixels=50_176)
        frame = FrameMessage(number, sequence, now_ns, 0, None, b"bits")
        self.act(self.session.send_frame(frame, now_ns), now_ns)


class Cloud:
    """What `nodes/cloud.py` does with sessions, batcher, ledger and two workers, in a few lines."""

    def __init__(self, random: Random, capacity: int, max_sessions: int = 8) -> None:
        ids = itertools.count()
        self.random = random
        self.settings = CloudSettings(
            frozenset({BUNDLE}), window_frames=4, capacity_frames=capacity, max_sessions=max_sessions
        )
        self.sessions = CloudSessions(self.settings, lambda: next(ids).to_bytes(8, "big"))
        self.batcher: Batcher[FrameArrived] = Batcher(
            BatcherSettings(
                max_frames=4,
                max_wait_ns=20 * MS,
                capacity=self.settings.queue_frames,
                node_share=1.0,
                max_age_ns=S,
            )
        )
        self.ledger = CloudLedger()
        self.links: dict[bytes, Link] = {}
        self.busy: list[tuple[int, int, tuple[FrameArrived, ...]]] = []
        self.num_batches = itertools.count()
        self.num_computed = 0

    def act(self, actions: list[CloudAction], now_ns: int) -> None:
        for action in actions:
            match action:
                case SendTo():
                    self.send(action, now_ns)
                case FrameArrived():
                    self.ledger.receive(action.ticket)
                    refusal = self.batcher.offer(
                        action,
                        node=action.node,
                        camera=action.camera,
                        bundle_id=action.bundle_id,
                        now_ns=now_ns,
                        born_ns=action.born_ns,
                    )
                    if refusal is not None:
                        self.answer(action, Answer(refusal.outcome, text=refusal), now_ns)
                case _:
                    pass

    def send(self, action: SendTo, now_ns: int) -> bool:
        link = self.links.get(action.routing_id)
        if link is None or not link.is_open:
            self.act(self.sessions.link_lost(action.routing_id), now_ns)
            return False
        link.put(link.down, action.message, now_ns)
        return True

    def answer(self, arrived: FrameArrived, answer: Answer, now_ns: int) -> None:
        send = self.sessions.answer(arrived.ticket, answer, now_ns)
        is_sent = send is not None and self.send(send, now_ns)
        self.ledger.close(arrived.ticket, answer.outcome if is_sent else Outcome.UNROUTABLE)

    def step(self, now_ns: int) -> None:
        for link in list(self.links.values()):
            for message in Link.take(link.up, now_ns):
                self.act(self.sessions.receive(link.routing_id, message, now_ns), now_ns)
            if not link.is_open and not link.up:
                del self.links[link.routing_id]
        while self.busy and self.busy[0][0] <= now_ns:
            _, _, items = heapq.heappop(self.busy)
            for arrived in items:
                self.num_computed += 1
                self.answer(arrived, Answer(Outcome.OK, (TopClass(7, "bottle", 0.5),)), now_ns)
        for arrived in self.batcher.take_stale(now_ns):
            self.answer(arrived, Answer(Outcome.STALE), now_ns)
        while (batch := self.batcher.next_batch(now_ns, 2 - len(self.busy))) is not None:
            done_ns = now_ns + self.random.randint(5, 120) * MS
            heapq.heappush(self.busy, (done_ns, next(self.num_batches), batch.items))
        if now_ns % (100 * MS) == 0:
            self.act(self.sessions.tick(now_ns), now_ns)


class World:
    """Nodes, a cloud, and what goes wrong between them."""

    def __init__(self, seed: int, num_nodes: int, capacity: int, max_sessions: int = 8) -> None:
        self.random = Random(seed)
        self.now_ns = 0
        self.link_ids = itertools.count()
        self.cloud = Cloud(self.random, capacity, max_sessions)
        self.nodes = [Node(f"node-{index}", self.random, self.connect) for index in range(num_nodes)]
        for node in self.nodes:
            node.act(node.session.start(0), 0)

    def connect(self, node: Node) -> Link:
        slowest_ms = self.random.choice([2, 40, 200])
        link = Link(next(self.link_ids).to_bytes(4, "big"), lambda: self.random.randint(1, slowest_ms) * MS)
        self.cloud.links[link.routing_id] = link
        return link

    def run(self, seconds: float, fps: float = 20.0, cuts_per_s: float = 0.0) -> None:
        until_ns = self.now_ns + int(seconds * S)
        while self.now_ns < until_ns:
            self.now_ns += STEP_NS
            for node in self.nodes:
                node.step(self.now_ns)
                for number in range(2):
                    if self.random.random() < fps * STEP_NS / S:
                        node.capture(number, self.now_ns)
                if node.link is not None and self.random.random() < cuts_per_s * STEP_NS / S:
                    node.link.cut()
            self.cloud.step(self.now_ns)
            self.check()

    def check(self) -> None:
        self.cloud.ledger.check_balance()
        statistics = self.cloud.sessions.statistics()
        assert statistics.credit + statistics.computing <= self.cloud.settings.queue_frames
        assert statistics.computing == self.cloud.ledger.in_flight
        assert statistics.closed["protocol_error"] == 0
        queue = self.cloud.batcher.statistics()
        assert queue.refused["queue full"] == queue.refused["node has its share of the queue"] == 0
        by_node = {session.node: session.credit for session in statistics.sessions}
        for node in self.nodes:
            node.ledger.check_balance()
            assert not [loss for loss in node.losses if loss.reason is LossReason.PROTOCOL]
            if node.link is not None and node.link.is_open and node.session.is_up and node.name in by_node:
                assert by_node[node.name] == node.session.credit + self.credit_on_the_way(node.link)

    @staticmethod
    def credit_on_the_way(link: Link) -> int:
        frames = sum(isinstance(parse(parts), FrameMessage) for _, parts in link.up)
        granted = 0
        for _, parts in link.down:
            match parse(parts):
                case Result(credit=credit) | Credit(frames=credit):
                    granted += credit
                case _:
                    pass
        return frames + granted

    def finish(self) -> None:
        """Orderly stop: the cloud drains and says goodbye, then the nodes stop."""
        self.cloud.sessions.drain()
        self.cloud.batcher.close()
        self.run(1.5)
        assert self.cloud.sessions.computing == self.cloud.ledger.in_flight == 0
        self.cloud.act(self.cloud.sessions.close("stopped"), self.now_ns)
        self.run(0.5, fps=0.0)
        for node in self.nodes:
            assert not node.session.is_up
            node.act(node.session.stop("stopped"), self.now_ns)
            node.ledger.close_all(Outcome.SHUTDOWN, self.now_ns)
            snapshot = node.ledger.snapshot()
            assert (snapshot.total.in_flight, snapshot.total.unknown) == (0, 0)
            assert snapshot.total.captured == sum(node.sequence)
            node.session.stop("again")


@pytest.mark.parametrize("seed", range(3))
def test_steady_links_lose_nothing(seed: int) -> None:
    world = World(seed, num_nodes=3, capacity=32)
    world.run(4.0)
    for node in world.nodes:
        total = node.ledger.snapshot().total
        assert total.results > 30
        assert set(total.dropped) <= {"no_credit", "link_down"}
        assert (total.late, total.repeated) == (0, 0)
        assert node.losses == []
    world.finish()


@pytest.mark.parametrize("seed", range(4))
def test_links_that_break_all_the_time_leave_every_frame_accounted_for(seed: int) -> None:
    world = World(100 + seed, num_nodes=3, capacity=16)
    world.run(8.0, cuts_per_s=0.5)
    world.run(8.0)  # calm again: everybody comes back and works
    assert all(node.session.is_up for node in world.nodes)
    assert sum(len(node.losses) for node in world.nodes) > 3
    assert all(node.ledger.snapshot().total.results > 20 for node in world.nodes)
    results = world.cloud.ledger.snapshot().results
    assert results["ok"] + results["unroutable"] + results["stale"] > 0
    world.finish()


def test_more_nodes_than_frames_of_capacity_all_get_their_turn() -> None:
    world = World(7, num_nodes=8, capacity=6)
    world.run(6.0)
    results = [node.ledger.snapshot().total.results for node in world.nodes]
    assert min(results) > 5
    assert all(node.losses == [] for node in world.nodes)
    world.finish()


def test_node_beyond_the_number_of_sessions_is_refused_by_name() -> None:
    world = World(8, num_nodes=3, capacity=16, max_sessions=2)
    world.run(3.0)
    (refused,) = [node for node in world.nodes if node.losses]
    assert [loss.code for loss in refused.losses] == [RejectCode.FULL]
    assert refused.ledger.snapshot().total.dropped.keys() == {"link_down"}
    world.finish()


def test_cloud_that_restarts_with_an_empty_memory_gets_its_nodes_back() -> None:
    """The connection survives in the transport, the session does not: REJECT tells the node at once."""
    world = World(3, num_nodes=2, capacity=16)
    world.run(2.0)
    links = world.cloud.links
    world.cloud = Cloud(world.random, 16)
    world.cloud.links = links
    world.run(5.0)
    for node in world.nodes:
        assert [loss.code for loss in node.losses] == [RejectCode.NO_SESSION]
        assert node.session.is_up
    world.finish()


def test_welcome_is_lost_with_its_link_and_the_next_attempt_works() -> None:
    world = World(5, num_nodes=1, capacity=16)
    (node,) = world.nodes
    link = node.link
    assert link is not None
    while not any(isinstance(parse(parts), Welcome) for _, parts in link.down):
        world.run(0.01, fps=0.0)
    link.cut()
    world.run(2.0)
    assert node.session.is_up
    ends = world.cloud.sessions.statistics().closed
    assert ends["replaced"] + ends["lost"] == 1
    world.finish()
