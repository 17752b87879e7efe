"""The node's metrics: events counted as they happen, totals published from the ledger once a second."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable

from nodes.capture_events import BadFrames, Down, Finished, Up
from nodes.edge import EdgeNode
from nodes.exporter import Exporter
from nodes.frame_encoder import EncodedFrame
from nodes.lanes import Lane
from nodes.metrics_server import Health
from nodes.spool import Spool
from nodes.version import revision
from pipeline.bundle import Bundle
from pipeline.bundle_trial import BundleChange
from pipeline.ledger import ClosedFrame, Outcome
from pipeline.rate_control import DepthChange
from pipeline.session import Backoff, Lost, Opened
from pipeline.totals import LedgerSnapshot
from pipeline.wire import Result

PUBLISH_EVERY_NS = 1_000_000_000


class NodeMetrics:
    """A watcher of the node's loop that fills the exporter.

    The node is attached after it is built, because it is built with its watchers.
    """

    def __init__(
        self,
        exporter: Exporter,
        health: Health,
        version: str,
        num_endpoints: int,
        wall_clock: Callable[[], float] = time.time,
        every_second: Callable[[], None] = lambda: None,
    ) -> None:
        """Join.

        Args:
            every_second: what else is to be done as often as publishing.
        """
        self._exporter, self._health, self._wall_clock = exporter, health, wall_clock
        self._num_endpoints = num_endpoints
        self._every_second = every_second
        self._node: EdgeNode | None = None
        self._published_ns = 0
        self._wire = (0, 0)
        self._corrupt = 0
        self._captured: dict[str, int] = {}
        self._bundle_id = ""
        exporter.inform("rac_node_build_info", version, revision(), platform.python_version())

    def attach(self, node: EdgeNode) -> None:
        """Name the node whose ledger is published."""
        self._node = node

    def encoded(self, encoded: EncodedFrame) -> None:
        exporter, camera, depth = self._exporter, encoded.frame.camera, encoded.point.depth
        level = round(encoded.point.level16 / 16)
        stages = {
            "capture": encoded.hand_over_ns,
            "preprocess": encoded.frame.view_ns,
            "encode": encoded.network_ns,
            "entropy": encoded.entropy_ns,
        }
        for stage, duration_ns in stages.items():
            exporter.observe("rac_node_stage_duration_seconds", duration_ns / 1e9, stage)
        exporter.observe("rac_node_encode_duration_seconds", encoded.elapsed_ns / 1e9, depth)
        exporter.observe("rac_node_bitstream_bytes", encoded.bitstream_bytes, depth, level)
        exporter.set("rac_node_encoder_depth", depth, camera)
        exporter.set("rac_node_level", encoded.point.level16 / 16, camera)
        if encoded.is_over_budget:
            exporter.add("rac_node_budget_overruns_total", camera, depth)

    def sent(self, camera: str, duration_ns: int) -> None:
        self._exporter.observe("rac_node_stage_duration_seconds", duration_ns / 1e9, "send")

    def closed(self, closed: ClosedFrame, result: Result | None) -> None:
        if closed.outcome is not Outcome.OK:
            return
        exporter = self._exporter
        exporter.set("rac_node_last_result_timestamp_seconds", self._wall_clock(), closed.camera)
        if closed.latency_ns is not None:
            exporter.observe("rac_node_capture_to_result_seconds", closed.latency_ns / 1e9, closed.depth)
            exporter.observe("rac_node_camera_capture_to_result_seconds", closed.latency_ns / 1e9, closed.camera)
        if closed.round_trip_ns is not None:
            exporter.observe("rac_node_round_trip_seconds", closed.round_trip_ns / 1e9, closed.depth)

    def camera_changed(self, lane: Lane, event: Up | Down | Finished | BadFrames) -> None:
        exporter, name = self._exporter, lane.name
        match event:
            case Up():
                exporter.set("rac_node_camera_up", 1, name)
                exporter.set("rac_node_last_frame_timestamp_seconds", self._wall_clock(), name)
                exporter.inform("rac_node_camera_info", name, lane.reader.kind.value, event.width, event.height)
            case Down():
                exporter.set("rac_node_camera_up", 0, name)
                exporter.add("rac_node_camera_reconnects_total", name, event.reason.value)
            case Finished():
                exporter.set("rac_node_camera_up", 0, name)
            case BadFrames():
                pass  # not frames: they never got a number

    def link_changed(self, action: Opened | Lost | Backoff) -> None:
        assert self._node is not None
        index = self._node.link_index
        match action:
            case Opened():
                self._exporter.set("rac_node_link_up", 1, index)
            case Lost():
                for place in range(self._num_endpoints):
                    self._exporter.set("rac_node_link_up", 0, place)
                self._exporter.add("rac_node_reconnects_total", index, action.reason.value)
            case Backoff():
                pass

    def depth_changed(self, change: DepthChange) -> None:
        assert self._node is not None
        for lane in self._node.lanes:
            self._exporter.add("rac_node_depth_changes_total", lane.name, change.cause.value)

    def bundle_changed(self, change: BundleChange) -> None:
        self._exporter.add("rac_node_bundle_updates_total", change.outcome.value)

    def idle(self, now_ns: int) -> None:
        """Say that the loop turns; once a second, publish."""
        self._health.beat()
        if now_ns - self._published_ns >= PUBLISH_EVERY_NS:
            self._published_ns = now_ns
            self.publish()
            self._every_second()

    def publish(self) -> None:
        """Bring gauges and the ledger's totals up to date."""
        node, exporter = self._node, self._exporter
        assert node is not None
        snapshot = node.ledger.snapshot()
        exporter.publish(ledger_totals(snapshot))
        self._publish_last_frames(snapshot)
        self._publish_bundle(node.bundle)
        exporter.set("rac_node_credit_frames", node.session.credit)
        for depth in node.controller.depths:
            exporter.set("rac_node_depth_cost_seconds", node.controller.cost_ns(depth) / 1e9, depth)
        exporter.set("rac_node_budget_seconds", node.controller.budget_ns / 1e9)
        sent, received = node.uplink.sent_bytes, node.uplink.received_bytes
        exporter.add("rac_node_network_bytes_total", "sent", amount=sent - self._wire[0])
        exporter.add("rac_node_network_bytes_total", "received", amount=received - self._wire[1])
        self._wire = (sent, received)
        if node.spool is not None:
            self._publish_spool(node.spool)
        self._health.set_reasons(readiness(node))

    def _publish_last_frames(self, snapshot: LedgerSnapshot) -> None:
        """A camera whose frames are captured is alive, though none of them be encoded for want of a cloud."""
        for camera, totals in snapshot.cameras.items():
            if totals.captured > self._captured.get(camera, 0):
                self._captured[camera] = totals.captured
                self._exporter.set("rac_node_last_frame_timestamp_seconds", self._wall_clock(), camera)

    def _publish_bundle(self, bundle: Bundle) -> None:
        if self._bundle_id == bundle.short_id:
            return
        if self._bundle_id:
            self._exporter.forget("rac_node_bundle_info", self._bundle_id)
        self._bundle_id = bundle.short_id
        self._exporter.inform("rac_node_bundle_info", bundle.short_id, bundle.manifest.classifier)

    def _publish_spool(self, spool: Spool) -> None:
        self._exporter.set("rac_node_spool_frames", len(spool))
        self._exporter.set("rac_node_spool_bytes", spool.num_bytes)
        self._exporter.set("rac_node_spool_oldest_timestamp_seconds", spool.oldest_wall_s)
        self._exporter.add("rac_node_spool_corrupt_total", amount=spool.corrupt - self._corrupt)
        self._corrupt = spool.corrupt


def readiness(node: EdgeNode) -> list[str]:
    """What is in the way of work: no camera up, or no session."""
    reasons = [] if node.session.is_up else ["no session with a cloud"]
    if node.session.needs_bundle:
        reasons.append("the cloud's bundle is not here yet")
    down = [lane.name for lane in node.lanes if not lane.reader.is_up]
    if len(down) == len(node.lanes):
        reasons.append(f"no camera is up ({', '.join(down[:5])})")
    return reasons


def ledger_totals(snapshot: LedgerSnapshot) -> dict[tuple[object, ...], float]:
    """The ledger's values by (metric, labels), as `Exporter.publish` takes them."""
    values: dict[tuple[object, ...], float] = {("rac_node_in_flight_frames",): snapshot.total.in_flight}
    for camera, totals in snapshot.cameras.items():
        values["rac_node_frames_captured_total", camera] = totals.captured
        values["rac_node_frames_recovered_total", camera] = totals.recovered
        for reason, count in totals.dropped.items():
            values["rac_node_frames_dropped_total", camera, reason] = count
        values["rac_node_camera_bitstream_bytes_total", camera] = totals.bitstream_bytes
        values["rac_node_wire_bytes_total", camera, "sent"] = totals.wire_sent_bytes
        values["rac_node_wire_bytes_total", camera, "received"] = totals.wire_received_bytes
        values["rac_node_results_total", camera, "ok"] = totals.results
        values["rac_node_results_total", camera, "repeated"] = totals.repeated
        values["rac_node_results_total", camera, "late"] = totals.late
    for (camera, depth, level), coded in snapshot.coded.items():
        key = ("rac_node_frames_encoded_total", camera, depth)
        values[key] = values.get(key, 0) + coded.frames
        values["rac_node_coded_pixels_total", camera, depth, level] = coded.coded_pixels
    return values
