"""A watcher of the front's loop that keeps what the cloud's status page shows."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from nodes.cloud import AnsweredFrame, CloudFront
from nodes.pool import BatchDone, WorkerLost, WorkerReady
from nodes.status_board import StatusBoard
from nodes.uplink import framed_bytes
from pipeline.batching import Batch
from pipeline.cloud_actions import FrameArrived, SessionClosed, SessionOpened
from pipeline.fleet_status import FleetStatus, SlotFacts
from pipeline.ledger import Outcome
from pipeline.wire import pack

PAGE_CAMERAS = 512
"""More than anybody reads; a document of them takes the loop 20 ms."""


class CloudStatus:
    """Fills the fleet's status and publishes it when a page asks."""

    def __init__(
        self,
        board: StatusBoard,
        facts: Mapping[str, Any],
        max_cameras: int,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        """Join.

        Args:
            facts: of the program, that never change: they go into every document.
        """
        self._board, self._facts, self._clock = board, dict(facts), clock
        self._fleet = FleetStatus(min(max_cameras, PAGE_CAMERAS), clock())
        self._front: CloudFront | None = None

    def attach(self, front: CloudFront) -> None:
        """Name the front whose workers and queue are shown."""
        self._front = front

    def received(self, frame: FrameArrived, depth: int | None) -> None:
        num_bytes = framed_bytes(pack(frame.frame))
        self._fleet.receive(frame.node, frame.camera, frame.frame.sequence, num_bytes, frame.received_ns)

    def answered(self, answered: AnsweredFrame) -> None:
        frame, answer = answered.frame, answered.answer
        if answered.outcome is not Outcome.OK:
            self._fleet.answer(frame.node, frame.camera, answered.outcome, 0)
            return
        best = answer.classes[0]
        self._fleet.answer(
            frame.node,
            frame.camera,
            answered.outcome,
            answered.answered_ns - frame.born_ns,
            (best.name, best.probability),
            answered.depth,
            None if answered.level16 is None else answered.level16 / 16,
            None if answer.reference_top1 is None else answer.reference_top1 == best.index,
        )

    def batch_formed(self, batch: Batch[FrameArrived]) -> None:
        self._fleet.form_batch(len(batch.items), max(batch.waits_ns))

    def batch_done(self, done: BatchDone, num_frames: int) -> None:
        self._fleet.finish_batch(done.slot, done.busy_ns, num_frames)

    def worker_ready(self, ready: WorkerReady) -> None:
        """States of workers are read from the pool."""

    def worker_lost(self, lost: WorkerLost) -> None:
        self._fleet.lose_worker(lost.slot)

    def session_changed(self, action: SessionOpened | SessionClosed) -> None:
        if isinstance(action, SessionOpened):
            self._fleet.open_session(action.routing_id, action.node, action.cameras, self._clock())
        else:
            self._fleet.close_session(action.routing_id, action.reason, self._clock())

    def idle(self, now_ns: int) -> None:
        """Take a sample when one is due; publish when a page asks."""
        if self._fleet.is_due(now_ns):
            self._fleet.sample(now_ns)
        if self._board.is_wanted:
            self._board.publish(self.document(now_ns))

    def document(self, now_ns: int) -> dict[str, Any]:
        """What the page shows, of this moment."""
        front = self._front
        assert front is not None
        slots = [
            SlotFacts(slot.number, slot.state.value, slot.since_ns, slot.resident_bytes) for slot in front.pool.slots
        ]
        queue = front.batcher.statistics()
        sessions = front.sessions.statistics()
        fleet = self._fleet.document(slots, now_ns)
        return {
            **self._facts,
            "trouble": front.obstacles(),
            "facts": {
                "Nodes": str(len(sessions.sessions)),
                "Batches": _batch_text(fleet["batches"]),
                "Queue": f"{queue.waiting} of {queue.capacity} frames",
                "Credit out": f"{sessions.credit} frames",
                "Computing": f"{sessions.computing} frames",
                "Engine": str(self._facts.get("engine", "-")),
            },
            **fleet,
        }


def _batch_text(figures: Mapping[str, float | None]) -> str:
    if not figures["frames"]:
        return "none in the last minute"
    return f"{figures['per_second']:.1f}/s, {figures['frames']:.1f} frames each, wait {figures['wait_ms']:.0f} ms"
