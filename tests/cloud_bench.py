"""The front's loop with a clock that stands still: socket and workers are fakes, all decisions are real."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from nodes.cloud import AnsweredFrame, CloudFront
from nodes.pool import BatchDone, WorkerLost, WorkerReady
from pipeline.admission import Admission
from pipeline.batching import Batch, Batcher, BatcherSettings
from pipeline.cloud_actions import CloudSettings, FrameArrived, SessionClosed, SessionOpened
from pipeline.cloud_session import CloudSessions
from pipeline.wire import CameraEntry, Hello, Result
from tests.fakes import BUNDLE_ID, MS, FakeClock, FakeDoor, FakePool, S, Script, make_frame_message

NAMES = tuple(f"class {index}" for index in range(1000))
MAX_AGE_NS = 5 * S


@dataclass
class Notes:
    """A watcher that remembers."""

    answered_frames: list[AnsweredFrame] = field(default_factory=list)
    batches: list[Batch[FrameArrived]] = field(default_factory=list)
    lost: list[WorkerLost] = field(default_factory=list)
    sessions: list[SessionOpened | SessionClosed] = field(default_factory=list)
    depths: list[int | None] = field(default_factory=list)

    def answered(self, answered: AnsweredFrame) -> None:
        self.answered_frames.append(answered)

    def batch_formed(self, batch: Batch[FrameArrived]) -> None:
        self.batches.append(batch)

    def batch_done(self, done: BatchDone, num_frames: int) -> None:
        pass

    def worker_ready(self, ready: WorkerReady) -> None:
        pass

    def worker_lost(self, lost: WorkerLost) -> None:
        self.lost.append(lost)

    def session_changed(self, action: SessionOpened | SessionClosed) -> None:
        self.sessions.append(action)

    def received(self, frame: FrameArrived, depth: int | None) -> None:
        self.depths.append(depth)

    def idle(self, now_ns: int) -> None:
        pass


class Bench:
    """A front with everything around it, and nodes that are only routing ids."""

    def __init__(
        self,
        workers: int = 1,
        *,
        capacity: int = 64,
        max_frames: int = 4,
        queue: int | None = None,
        admission: Admission | None = None,
    ) -> None:
        self.clock = FakeClock()
        self.door = FakeDoor()
        self.pool = FakePool(workers)
        self.notes = Notes()
        ids = itertools.count()
        settings = CloudSettings(frozenset({BUNDLE_ID}), window_frames=8, capacity_frames=capacity, max_sessions=8)
        self.front = CloudFront(
            door=self.door,  # type: ignore[arg-type]
            sessions=CloudSessions(settings, lambda: next(ids).to_bytes(8, "little")),
            batcher=Batcher[FrameArrived](
                BatcherSettings(
                    max_frames=max_frames,
                    max_wait_ns=5 * MS,
                    capacity=queue or settings.queue_frames,
                    node_share=1.0,
                    max_age_ns=MAX_AGE_NS,
                )
            ),
            pool=self.pool,  # type: ignore[arg-type]
            class_names=NAMES,
            watcher=self.notes,
            max_age_ns=MAX_AGE_NS,
            clock=self.clock,
            admission=admission,
        )

    def run(self, *steps: Callable[[], object] | int, drain_ns: int = 0) -> None:
        script = Script(*steps)
        try:
            self.front.run(script, script.fd, drain_ns)
        finally:
            script.close()
            self.door.close()
        self.check()

    def check(self) -> None:
        """Every accepted frame was answered once, and the ledger says the same."""
        assert self.pool.is_stopped
        snapshot = self.front.ledger.snapshot()
        assert snapshot.in_flight == 0
        tickets = [answered.frame.ticket for answered in self.notes.answered_frames]
        assert len(tickets) == len(set(tickets)) == snapshot.received
        counts = Counter(answered.outcome.value for answered in self.notes.answered_frames)
        assert counts == {outcome: count for outcome, count in snapshot.results.items() if count}
        results = [(to, result.camera, result.sequence) for to, result in self.door.sent if isinstance(result, Result)]
        assert len(results) == len(set(results)), "a node got two answers for one frame"
        assert len(results) == snapshot.received - snapshot.results["unroutable"]

    def hello(self, node: str = "dock") -> Callable[[], None]:
        cameras = (CameraEntry(0, "gate"), CameraEntry(1, "belt"))
        message = Hello(0, node, node.encode().ljust(16, b"-"), (BUNDLE_ID,), cameras)
        return lambda: self.door.put(node.encode(), message)

    def frames(self, first: int, last: int, node: str = "dock", age_us: int = 0) -> Callable[[], None]:
        def put() -> None:
            for sequence in range(first, last + 1):
                self.door.put(node.encode(), make_frame_message(sequence, age_us=age_us))

        return put

    def wait(self, duration_ns: int) -> Callable[[], None]:
        return lambda: self.clock.advance(duration_ns)

    def outcomes(self) -> dict[str, int]:
        return {outcome: count for outcome, count in self.front.ledger.snapshot().results.items() if count}
