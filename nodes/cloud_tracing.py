"""The cloud's part of traces that nodes begin: a watcher of the front's loop; see `nodes.tracing`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nodes.cloud import AnsweredFrame, AnswerWatcher
from nodes.tracing import add_span, mark_failed, start_under
from pipeline.ledger import Outcome

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

NS_PER_US = 1_000


class CloudTracing(AnswerWatcher):
    """Puts the cloud's spans under those of nodes that trace a frame; told of every answered frame."""

    def __init__(self, provider: TracerProvider, offset_ns: int) -> None:
        self._tracer = provider.get_tracer("rac.cloud")
        self._offset_ns = offset_ns

    def answered(self, answered: AnsweredFrame) -> None:
        """Add the spans of a frame whose node traces it."""
        trace = answered.frame.frame.trace
        if trace is None:
            return
        frame, answer = answered.frame, answered.answer
        received_ns, end_ns = frame.received_ns + self._offset_ns, answered.answered_ns + self._offset_ns
        attributes: dict[str, str | int] = {
            "rac.node": frame.node,
            "rac.camera": frame.camera,
            "rac.sequence": frame.frame.sequence,
            "rac.outcome": answered.outcome.value,
            "rac.batch_frames": answer.batch_frames,
        }
        whole = start_under(self._tracer, trace, "cloud", received_ns, attributes)
        # Decoding and inference are the batch's, whole; what is left before the answer is theirs to wait for.
        moments = [received_ns]
        for duration_us in (answer.queue_us, answer.decode_us, answer.classify_us):
            moments.append(min(end_ns, moments[-1] + duration_us * NS_PER_US))
        if answer.batch_frames:
            for name, begun_ns, ended_ns in zip(("queue", "decode", "inference"), moments, moments[1:], strict=False):
                add_span(self._tracer, whole, name, begun_ns, ended_ns)
        add_span(self._tracer, whole, "answer", moments[-1], end_ns)
        if answered.outcome is not Outcome.OK:
            mark_failed(whole, answered.outcome.value)
        whole.end(end_ns)
