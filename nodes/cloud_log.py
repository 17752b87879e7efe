"""What a cloud writes into its log: one event for each change of state, never one for each frame."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from nodes.cloud import AnsweredFrame, CloudFront
from nodes.pool import BatchDone, LossReason, WorkerLost, WorkerReady
from nodes.results import ResultSink
from pipeline.batching import Batch
from pipeline.cloud_actions import FrameArrived, SessionClosed, SessionOpened
from pipeline.cloud_ledger import CloudLedgerSnapshot
from pipeline.drop_spells import DropSpells
from pipeline.ledger import Outcome

LOOK_EVERY_NS = 1_000_000_000

logger = logging.getLogger("rac.cloud")


class CloudLog:
    """A watcher of the front's loop; the events are listed in nodes/README.md."""

    def __init__(self, sinks: Sequence[ResultSink] = (), *, is_for_machines: bool = False) -> None:
        """Join.

        Args:
            is_for_machines: whether the log has to tell what people read on the console.
        """
        self._quiet = logging.INFO if is_for_machines else logging.DEBUG
        self._sinks = tuple(sinks)
        self._front: CloudFront | None = None
        self._spells = DropSpells()
        self._newest_ns = 0
        self._looked_ns = 0
        self._obstacles: list[str] | None = None
        self._refused: Mapping[str, int] = {}
        self._sink_dropped = [0] * len(self._sinks)

    def attach(self, front: CloudFront) -> None:
        """Name the front whose readiness and refusals are told."""
        self._front = front

    def started(self, endpoint: str, workers: int) -> None:
        """The socket is bound, the workers are started next."""
        facts = {"event": "cloud_started", "endpoint": endpoint, "workers": workers}
        logger.log(self._quiet, "listening on %s, workers: %d", endpoint, workers, extra=facts)

    def ended(self, totals: CloudLedgerSnapshot) -> None:
        """The run is over."""
        lost = totals.received - totals.results[Outcome.OK.value] - totals.in_flight
        facts = {"event": "cloud_stopped", "received": totals.received, "results": totals.results[Outcome.OK.value]}
        text = "received %d, classified %d, lost %d"
        counts = (totals.received, totals.results[Outcome.OK.value], lost)
        logger.log(self._quiet, text, *counts, extra=facts)

    def answered(self, answered: AnsweredFrame) -> None:
        if answered.outcome is Outcome.OK:
            return
        frame, reason, sequence = answered.frame, answered.outcome.value, answered.frame.frame.sequence
        key = (frame.node, frame.camera, reason)
        if self._spells.drop(key, sequence, answered.answered_ns) is not None:
            facts = {"node": frame.node, "camera": frame.camera, "sequence": sequence, "reason": reason}
            text = answered.answer.text
            logger.warning("frames not classified (%s): %s", reason, text, extra={"event": "drops_began", **facts})

    def worker_ready(self, ready: WorkerReady) -> None:
        facts = {"event": "worker_ready", "worker": ready.slot}
        logger.log(self._quiet, "worker %d is ready after %.1f s", ready.slot, ready.start_ns / 1e9, extra=facts)

    def worker_lost(self, lost: WorkerLost) -> None:
        facts = {"event": "worker_lost", "worker": lost.slot, "reason": lost.reason.value, "exit_code": lost.exit_code}
        if lost.reason is LossReason.MEMORY:
            logger.warning("worker %d is over pool.worker_memory_mb; it is started again", lost.slot, extra=facts)
            return
        held = f", with a batch of {len(lost.job.frames)}" if lost.job else ""
        text = "worker %d lost (%s, exit code %s)%s; it is started again"
        logger.warning(text, lost.slot, lost.reason, lost.exit_code, held, extra=facts)

    def session_changed(self, action: SessionOpened | SessionClosed) -> None:
        if isinstance(action, SessionOpened):
            facts = {"event": "session_opened", "node": action.node, "cameras": len(action.cameras)}
            logger.info("node %s is there, cameras %s", action.node, ", ".join(action.cameras), extra=facts)
        else:
            facts = {"event": "session_closed", "node": action.node, "reason": action.reason.value}
            logger.info("node %s is gone (%s)", action.node, action.reason, extra=facts)

    def received(self, frame: FrameArrived, depth: int | None) -> None:
        """No event: it happens with every frame."""

    def batch_formed(self, batch: Batch[FrameArrived]) -> None:
        """No event: it happens all the time."""

    def batch_done(self, done: BatchDone, num_frames: int) -> None:
        """No event: it happens all the time."""

    def idle(self, now_ns: int) -> None:
        """Once a second, look for what changed without being told."""
        if self._front is None or now_ns - self._looked_ns < LOOK_EVERY_NS:
            return
        self._looked_ns = now_ns
        self._look_at_readiness(self._front.obstacles())
        self._look_at_refusals(self._front.sessions.statistics().handshakes)
        self._look_at_sinks(now_ns)
        for spell in self._spells.take_over(now_ns):
            assert isinstance(spell.key, tuple)
            node, camera, reason = spell.key
            known = {"node": node, "camera": camera, "sequence": spell.last, "reason": reason, "count": spell.count}
            facts = {name: value for name, value in known.items() if value is not None}
            seconds = (spell.newest_ns - spell.began_ns) / 1e9
            text = "no more frames are lost (%s): %d within %.0f s"
            logger.info(text, reason, spell.count, seconds, extra={"event": "drops_ended", **facts})

    def _look_at_readiness(self, obstacles: list[str]) -> None:
        # What is in the way changes its words, as workers start; ready or not is the change.
        before, self._obstacles = self._obstacles, obstacles
        if before is not None and bool(before) == bool(obstacles):
            return
        if obstacles:
            level = self._quiet if before is None else logging.WARNING
            logger.log(level, "not ready: %s", "; ".join(obstacles), extra={"event": "not_ready"})
        elif before is not None:
            logger.log(self._quiet, "ready", extra={"event": "ready"})

    def _look_at_refusals(self, handshakes: Mapping[str, int]) -> None:
        for code, count in handshakes.items():
            grown = count - self._refused.get(code, 0)
            if grown and code != "accepted":
                facts = {"event": "handshakes_refused", "reason": str(code), "count": grown}
                logger.warning("refused %d nodes (%s)", grown, code, extra=facts)
        self._refused = handshakes

    def _look_at_sinks(self, now_ns: int) -> None:
        for place, sink in enumerate(self._sinks):
            grown, self._sink_dropped[place] = sink.dropped - self._sink_dropped[place], sink.dropped
            if grown and self._spells.drop((None, None, f"sink {place}"), None, now_ns, grown) is not None:
                facts = {"event": "drops_began", "reason": f"sink {place}"}
                logger.warning("%s is too slow: results are dropped", sink.name, extra=facts)
