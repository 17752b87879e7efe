"""Traces of a node's frames: a watcher of the node's loop; see `nodes.tracing`."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nodes.capture_events import BadFrames, Down, Finished, Up
from nodes.frame_encoder import EncodedFrame
from nodes.lanes import Lane
from nodes.tracing import add_span, ids_of, mark_failed
from pipeline.bundle_trial import BundleChange
from pipeline.ledger import ClosedFrame, Outcome
from pipeline.rate_control import DepthChange
from pipeline.session import Backoff, Lost, Opened
from pipeline.wire import Result

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span


@dataclass(slots=True)
class _Traced:
    """A frame on its way with the span that stands for it."""

    root: Span
    encoded: EncodedFrame
    done_ns: int
    sent_ns: int | None = None


class NodeTracing:
    """A watcher of the node's loop that traces every so many frames of a camera."""

    def __init__(
        self,
        provider: TracerProvider,
        node: str,
        every: int,
        offset_ns: int,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        """Join.

        Args:
            every: 1 traces all frames.
            offset_ns: from the clock to wall time.
        """
        self._tracer = provider.get_tracer("rac.node")
        self._node, self._every, self._offset_ns, self._clock = node, every, offset_ns, clock
        self._counts: dict[str, int] = {}
        self._traced: dict[tuple[str, int], _Traced] = {}
        self._newest: dict[str, _Traced] = {}

    def begin(self, encoded: EncodedFrame) -> bytes | None:
        """Start the trace of a frame whose turn it is; what its message carries."""
        frame = encoded.frame
        count = self._counts.get(frame.camera, 0)
        self._counts[frame.camera] = count + 1
        if count % self._every:
            return None
        root = self._tracer.start_span(
            "frame",
            start_time=frame.captured_ns + self._offset_ns,
            attributes={
                "rac.node": self._node,
                "rac.camera": frame.camera,
                "rac.sequence": frame.sequence,
                "rac.depth": encoded.point.depth,
                "rac.level": encoded.point.level16 / 16,
                "rac.bitstream_bytes": encoded.bitstream_bytes,
            },
        )
        traced = _Traced(root, encoded, self._clock())
        self._traced[frame.camera, frame.sequence] = self._newest[frame.camera] = traced
        return ids_of(root)

    def sent(self, camera: str, duration_ns: int) -> None:
        traced = self._newest.pop(camera, None)
        if traced is not None:
            traced.sent_ns = self._clock()

    def closed(self, closed: ClosedFrame, result: Result | None) -> None:
        traced = self._traced.pop((closed.camera, closed.sequence), None)
        if traced is None:
            return
        now_ns = self._clock()
        self._add_stages(traced, now_ns)
        traced.root.set_attribute("rac.outcome", closed.outcome.value)
        if closed.outcome is not Outcome.OK:
            mark_failed(traced.root, closed.outcome.value)
        traced.root.end(now_ns + self._offset_ns)

    def _add_stages(self, traced: _Traced, now_ns: int) -> None:
        encoded = traced.encoded
        entropy_ns = traced.done_ns - encoded.entropy_ns
        begun_ns = entropy_ns - encoded.network_ns
        viewed_ns = encoded.frame.captured_ns + encoded.frame.view_ns
        self._add(traced, "preprocess", encoded.frame.captured_ns, viewed_ns)
        self._add(traced, "capture", viewed_ns, begun_ns)
        self._add(traced, "encode", begun_ns, entropy_ns)
        self._add(traced, "entropy", entropy_ns, traced.done_ns)
        if traced.sent_ns is not None:
            self._add(traced, "send", traced.done_ns, traced.sent_ns)
            self._add(traced, "result", traced.sent_ns, now_ns)

    def _add(self, traced: _Traced, name: str, begun_ns: int, ended_ns: int) -> None:
        add_span(self._tracer, traced.root, name, begun_ns + self._offset_ns, ended_ns + self._offset_ns)

    def encoded(self, encoded: EncodedFrame) -> None:
        """`begin` was asked before."""

    def camera_changed(self, lane: Lane, event: Up | Down | Finished | BadFrames) -> None:
        """Only frames are traced."""

    def link_changed(self, action: Opened | Lost | Backoff) -> None:
        """Only frames are traced."""

    def depth_changed(self, change: DepthChange) -> None:
        """Only frames are traced."""

    def bundle_changed(self, change: BundleChange) -> None:
        """Only frames are traced."""

    def idle(self, now_ns: int) -> None:
        """Nothing to do between frames."""
