"""OpenTelemetry traces of sampled frames, from capture to result, over the wire.

A node starts a trace with every so many frames of a camera; the ids travel in the frame's message (`wire.FRAME.trace`)
and the cloud puts its spans under the node's. Spans are made when a frame ends, of times that were taken anyway:

    frame                       capture to result, on the node
      preprocess, capture       the view in the reader process, and its way to the node's loop
      encode, entropy           network and coder
      send                      handing over to the socket
      result                    sent to answered
      cloud                     received to answered, in the cloud
        queue, decode, inference, answer

Without the extra [otel], or without an endpoint, nothing of OpenTelemetry is imported (it is only here)
and nothing is sent.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span, Tracer

TRACE_ID_BYTES: Final = 16
SPAN_ID_BYTES: Final = 8
OFFSET_TRIES: Final = 5

logger = logging.getLogger("rac.tracing")


def open_provider(service: str, name: str, endpoint: str | None) -> TracerProvider | None:
    """What sends spans to an endpoint, in a thread of its own; None without an endpoint, or without the extra."""
    if endpoint is None:
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        text = "nothing is traced: OpenTelemetry is missing (pip install 'edge-cloud-rac[otel]')"
        logger.warning(text, extra={"event": "tracing_missing"})
        return None
    resource = Resource.create({"service.name": service, "service.instance.id": name})
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint)))
    return provider


def wall_offset_ns() -> int:
    """What is added to a monotonic time to show it as wall time."""
    # Whoever is held up between the two clocks comes out too low, and spans of two programs would not fit together.
    return max(time.time_ns() - time.monotonic_ns() for _ in range(OFFSET_TRIES))


def ids_of(span: Span) -> bytes:
    """What a message carries of a span: the ids of its trace and of itself."""
    context = span.get_span_context()
    return context.trace_id.to_bytes(TRACE_ID_BYTES, "big") + context.span_id.to_bytes(SPAN_ID_BYTES, "big")


def start_under(tracer: Tracer, ids: bytes, name: str, begun_ns: int, attributes: Mapping[str, str | int]) -> Span:
    """Start a span under one of another program; ids that no tracer makes (zero) begin a trace of their own."""
    from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, TraceFlags, set_span_in_context

    context = SpanContext(
        int.from_bytes(ids[:TRACE_ID_BYTES], "big"),
        int.from_bytes(ids[TRACE_ID_BYTES:], "big"),
        is_remote=True,
        trace_flags=TraceFlags(TraceFlags.SAMPLED),
    )
    parent = set_span_in_context(NonRecordingSpan(context))
    return tracer.start_span(name, parent, SpanKind.SERVER, dict(attributes), start_time=begun_ns)


def add_span(tracer: Tracer, parent: Span, name: str, begun_ns: int, ended_ns: int) -> None:
    """Add a span that is over."""
    from opentelemetry.trace import set_span_in_context

    tracer.start_span(name, set_span_in_context(parent), start_time=begun_ns).end(max(begun_ns, ended_ns))


def mark_failed(span: Span, reason: str) -> None:
    """Say that a span's frame has no result, and why."""
    from opentelemetry.trace import Status, StatusCode

    span.set_status(Status(StatusCode.ERROR, reason))
