"""What a machine sees of a node: one JSON object a line on standard output."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from nodes.calibration import NodeStart
from nodes.capture_events import BadFrames, Down, Finished, Up
from nodes.edge import EdgeNode
from nodes.frame_encoder import EncodedFrame
from nodes.lanes import Lane
from pipeline.bundle_trial import BundleChange
from pipeline.ledger import ClosedFrame, Outcome
from pipeline.rate_control import DepthChange
from pipeline.session import Backoff, Lost, Opened
from pipeline.wire import Result


class NodeJson:
    """Events `start`, `result`, `drop`, `camera`, `link`, `depth`, and `summary` at the end.

    Drops of frames that were never handed to the node (superseded and the like) are in the summary's counts.
    """

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._sizes: dict[tuple[str, int], tuple[int, int]] = {}

    def emit(self, event: str, **fields: Any) -> None:
        """Write one line."""
        self._write(json.dumps({"event": event, **fields}))

    def attach(self, node: EdgeNode) -> None:
        """Nothing to read from the node: its events say all."""

    def started(self, start: NodeStart) -> None:
        """Say what the node begins with."""
        self.emit(
            "start",
            bundle=start.bundle.short_id,
            level=start.level16 / 16,
            budget_ms=start.budget_ns / 1e6,
            depth=start.depth,
            costs=[
                {"depth": cost.depth, "median_ms": cost.median_ns / 1e6, "p90_ms": cost.p90_ns / 1e6}
                for cost in start.costs
            ],
            metrics=start.metrics_url,
        )

    def ended(self, figures: Mapping[str, Any]) -> None:
        """Say how the run went: the last line."""
        self.emit("summary", **figures)

    def encoded(self, encoded: EncodedFrame) -> None:
        key = (encoded.frame.camera, encoded.frame.sequence)
        self._sizes[key] = (encoded.bitstream_bytes, encoded.elapsed_ns)

    def sent(self, camera: str, duration_ns: int) -> None:
        """A frame is told of once it has ended."""

    def closed(self, closed: ClosedFrame, result: Result | None) -> None:
        num_bytes, encode_ns = self._sizes.pop((closed.camera, closed.sequence), (None, None))
        common = {"camera": closed.camera, "sequence": closed.sequence}
        if closed.outcome is not Outcome.OK or result is None:
            self.emit("drop", **common, reason=closed.outcome.value)
            return
        self.emit(
            "result",
            **common,
            label=closed.label,
            classes=[
                {"index": top.index, "name": top.name, "probability": round(top.probability, 4)}
                for top in result.classes
            ],
            reference_top1=result.reference_top1,
            depth=closed.depth,
            level=closed.level,
            bytes=num_bytes,
            encode_ms=None if encode_ns is None else round(encode_ns / 1e6, 3),
            latency_ms=None if closed.latency_ns is None else round(closed.latency_ns / 1e6, 3),
            cloud_ms=round(result.timings.cloud_us / 1e3, 3),
            queue_ms=round(result.timings.queue_us / 1e3, 3),
            batch_frames=result.batch_frames,
        )

    def camera_changed(self, lane: Lane, event: Up | Down | Finished | BadFrames) -> None:
        match event:
            case Up():
                self.emit("camera", camera=lane.name, state="up", width=event.width, height=event.height)
            case Down():
                self.emit("camera", camera=lane.name, state="down", reason=event.reason.value, text=event.text)
            case Finished():
                self.emit("camera", camera=lane.name, state="finished")
            case BadFrames():
                self.emit("camera", camera=lane.name, state="bad_frames", count=event.count)

    def link_changed(self, action: Opened | Lost | Backoff) -> None:
        match action:
            case Opened():
                self.emit(
                    "link",
                    state="up",
                    bundle=action.welcome.bundle_id.hex()[:16],
                    credit=action.welcome.credit,
                )
            case Lost():
                code = None if action.code is None else action.code.value
                self.emit("link", state="down", reason=action.reason.value, code=code, text=action.text)
            case Backoff():
                pass

    def depth_changed(self, change: DepthChange) -> None:
        self.emit("depth", before=change.before, after=change.after, cause=change.cause.value)

    def bundle_changed(self, change: BundleChange) -> None:
        self.emit("bundle", outcome=change.outcome.value, bundle=change.bundle, text=change.text)

    def idle(self, now_ns: int) -> None:
        """Nothing to do between events."""
