"""The cloud's metrics: the front's process owns all of them; workers report with their answers."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping, Sequence

from nodes.cloud import AnsweredFrame, CloudFront
from nodes.exporter import Exporter
from nodes.metrics_server import Health
from nodes.pool import BatchDone, SlotState, WorkerLost, WorkerReady
from nodes.results import ResultSink
from nodes.version import revision
from pipeline.batching import Batch
from pipeline.bundle import Bundle
from pipeline.cloud_actions import CloseReason, FrameArrived, SessionClosed, SessionOpened
from pipeline.decoding import Classes
from pipeline.frames import VIEW_SIDE_PX
from pipeline.ledger import Outcome
from pipeline.metrics import HANDSHAKE

PUBLISH_EVERY_NS = 1_000_000_000
LAST_FRAME = "rac_cloud_session_last_frame_timestamp_seconds"
# A node that said goodbye or whose key was taken back is not missed; any other that stopped sending is.
ENDS_THAT_ARE_MEANT = frozenset({CloseReason.BYE, CloseReason.REVOKED})


class CloudMetrics:
    """A watcher of the front's loop that fills the exporter.

    Sessions, sinks and sockets keep totals of their own; they are carried over by their growth.
    """

    def __init__(
        self,
        exporter: Exporter,
        health: Health,
        version: str,
        sinks: Sequence[ResultSink],
        wall_clock: Callable[[], float] = time.time,
        every_second: Callable[[], None] = lambda: None,
    ) -> None:
        """Join.

        Args:
            every_second: what else is to be done as often as publishing.
        """
        self._exporter, self._health, self._sinks, self._wall_clock = exporter, health, sinks, wall_clock
        self._every_second = every_second
        self._front: CloudFront | None = None
        self._published_ns = 0
        self._carried: dict[tuple[str, ...], float] = {}
        exporter.inform("rac_cloud_build_info", version, revision(), platform.python_version())

    def attach(self, front: CloudFront) -> None:
        """Name the front whose state is published."""
        self._front = front

    def show_bundle(self, bundle: Bundle) -> None:
        """Publish what a served bundle says of itself, once it is loaded."""
        exporter, short_id = self._exporter, bundle.short_id
        exporter.inform("rac_cloud_bundle_info", short_id, bundle.manifest.classifier)
        exporter.set("rac_cloud_bundle_loaded_timestamp_seconds", self._wall_clock(), short_id)
        for point in bundle.manifest.measured.points if bundle.manifest.measured is not None else ():
            level, part = divmod(point.level16, 16)
            if part:
                continue  # levels in between share a series with the nearest whole one
            labels = (short_id, point.depth, level)
            exporter.set("rac_cloud_bundle_measured_bits_per_pixel", point.bpp, *labels)
            exporter.set("rac_cloud_bundle_measured_agreement", point.agreement, *labels)
            if point.share_of_top1 is not None:
                exporter.set("rac_cloud_bundle_measured_top1_share", point.share_of_top1, *labels)

    def received(self, frame: FrameArrived, depth: int | None) -> None:
        exporter = self._exporter
        exporter.set(LAST_FRAME, self._wall_clock(), frame.node)
        exporter.add("rac_cloud_frames_received_total", depth)
        exporter.add("rac_cloud_bitstream_bytes_total", depth, amount=len(frame.frame.bitstream))
        exporter.add("rac_cloud_coded_pixels_total", depth, amount=VIEW_SIDE_PX**2)

    def batch_formed(self, batch: Batch[FrameArrived]) -> None:
        self._exporter.observe("rac_cloud_batch_frames", len(batch.items))
        self._exporter.observe("rac_cloud_batch_wait_seconds", max(batch.waits_ns) / 1e9)
        for wait_ns in batch.waits_ns:
            self._exporter.observe("rac_cloud_queue_wait_seconds", wait_ns / 1e9)

    def batch_done(self, done: BatchDone, num_frames: int) -> None:
        exporter, timings = self._exporter, done.answer.timings
        stages = {
            "entropy_decode": timings.entropy_decode_ns,
            "classify": timings.classify_ns,
            "reply": done.reply_ns,
        }
        if any(isinstance(answer, Classes) and answer.reference_top1 is not None for answer in done.answer.answers):
            stages["reference"] = timings.reference_ns
        for stage, duration_ns in stages.items():
            exporter.observe("rac_cloud_stage_duration_seconds", duration_ns / 1e9, stage)
        exporter.add("rac_cloud_worker_busy_seconds_total", done.slot, amount=done.busy_ns / 1e9)
        exporter.add("rac_cloud_worker_frames_total", done.slot, amount=num_frames)
        exporter.set("rac_cloud_worker_last_batch_timestamp_seconds", self._wall_clock(), done.slot)
        exporter.set("rac_cloud_worker_resident_bytes", done.answer.resident_bytes, done.slot)

    def answered(self, answered: AnsweredFrame) -> None:
        if answered.outcome is not Outcome.OK:
            return
        exporter, answer, frame = self._exporter, answered.answer, answered.frame
        depth, level = answered.depth, round((answered.level16 or 0) / 16)
        exporter.observe("rac_cloud_end_to_end_seconds", (answered.answered_ns - frame.born_ns) / 1e9, depth)
        exporter.observe("rac_cloud_top1_probability", answer.classes[0].probability, depth)
        best, label = [entry.index for entry in answer.classes], frame.frame.label
        if label is not None:
            exporter.add("rac_cloud_labelled_frames_total", depth, level)
            exporter.add("rac_cloud_camera_labelled_total", frame.node, frame.camera)
            if best[0] == label:
                exporter.add("rac_cloud_labelled_correct_total", depth, level, 1)
                exporter.add("rac_cloud_camera_correct_total", frame.node, frame.camera)
            if label in best:
                exporter.add("rac_cloud_labelled_correct_total", depth, level, 5)
        if answer.reference_top1 is not None:
            exporter.add("rac_cloud_reference_frames_total", depth, level)
            exporter.add("rac_cloud_camera_references_total", frame.node, frame.camera)
            if best[0] == answer.reference_top1:
                exporter.add("rac_cloud_reference_agreements_total", depth, level)
                exporter.add("rac_cloud_camera_agreements_total", frame.node, frame.camera)

    def worker_ready(self, ready: WorkerReady) -> None:
        """States of workers are published once a second."""

    def worker_lost(self, lost: WorkerLost) -> None:
        self._exporter.add("rac_cloud_worker_restarts_total", lost.reason.value)

    def session_changed(self, action: SessionOpened | SessionClosed) -> None:
        """Numbers of sessions are published from the session machine's own totals."""
        if isinstance(action, SessionOpened):
            self._exporter.set(LAST_FRAME, self._wall_clock(), action.node)
        elif action.reason in ENDS_THAT_ARE_MEANT:
            self._exporter.remove(LAST_FRAME, action.node)

    def idle(self, now_ns: int) -> None:
        """Say that the loop turns; once a second, publish."""
        self._health.beat()
        if now_ns - self._published_ns >= PUBLISH_EVERY_NS:
            self._published_ns = now_ns
            self.publish()
            self._every_second()

    def publish(self) -> None:
        """Bring gauges, carried totals and the ledger up to date."""
        front, exporter = self._front, self._exporter
        assert front is not None
        ledger = front.ledger.snapshot()
        totals: dict[tuple[object, ...], float] = {("rac_cloud_in_flight_frames",): ledger.in_flight}
        totals |= {("rac_cloud_results_total", outcome): count for outcome, count in ledger.results.items()}
        exporter.publish(totals)
        for state in SlotState:
            exporter.set("rac_cloud_workers", front.pool.count(state), state.value)
        queue = front.batcher.statistics()
        exporter.set("rac_cloud_queue_frames", queue.waiting)
        exporter.set("rac_cloud_queue_limit_frames", queue.capacity)
        self._publish_sessions(front)
        self._carry(
            "rac_cloud_network_bytes_total",
            {"sent": front.door.sent_bytes, "received": front.door.received_bytes},
        )
        self._grow(("rac_cloud_connections_ended_total",), front.door.connections.ended)
        self._carry(
            "rac_cloud_sink_dropped_total",
            {str(place): sink.dropped for place, sink in enumerate(self._sinks)},
        )
        self._health.set_reasons(front.obstacles())

    def _publish_sessions(self, front: CloudFront) -> None:
        statistics = front.sessions.statistics()
        self._exporter.set("rac_cloud_credit_outstanding_frames", statistics.credit)
        windows = [session.window for session in statistics.sessions]
        self._exporter.set("rac_cloud_credit_window_frames", max(windows, default=0))
        known = {word: count for word, count in statistics.handshakes.items() if word in HANDSHAKE.values}
        self._carry("rac_cloud_handshakes_total", known)
        self._carry("rac_cloud_sessions_closed_total", statistics.closed)
        singles = {
            "rac_cloud_sequence_gaps_total": statistics.gaps,
            "rac_cloud_frames_missing_total": statistics.missing,
            "rac_cloud_frames_duplicate_total": statistics.duplicates,
            "rac_cloud_credit_granted_total": statistics.credit_granted,
        }
        for name, total in singles.items():
            self._grow((name,), total)
        # Last: a page that shows a session as gone, or there, has counted its end, or its handshake.
        self._exporter.set("rac_cloud_sessions", len(statistics.sessions))

    def _carry(self, name: str, totals: Mapping[str, float]) -> None:
        for label, total in totals.items():
            self._grow((name, str(label)), total)

    def _grow(self, series: tuple[str, ...], total: float) -> None:
        """Advance a counter to a total that somebody else keeps."""
        grown = total - self._carried.get(series, 0.0)
        if grown > 0:
            self._carried[series] = total
            self._exporter.add(series[0], *series[1:], amount=grown)
