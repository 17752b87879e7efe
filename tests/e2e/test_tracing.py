"""Traces of real programs, as a collector receives them."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from tests.e2e.conftest import Start, start_cloud

service = pytest.importorskip(
    "opentelemetry.proto.collector.trace.v1.trace_service_pb2", reason="extra [otel] is missing"
)


class Collector:
    """Takes OTLP over HTTP, as Jaeger or any collector does.

    Attributes:
        spans: (service, span) in the order of their arrival.
    """

    def __init__(self) -> None:
        self.spans: list[tuple[str, Any]] = []
        spans = self.spans

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                for resource in service.ExportTraceServiceRequest.FromString(body).resource_spans:
                    facts = {entry.key: entry.value.string_value for entry in resource.resource.attributes}
                    for scope in resource.scope_spans:
                        spans.extend((facts["service.name"], span) for span in scope.spans)
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}/v1/traces"
        self._thread = threading.Thread(target=self._http.serve_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.close()


def test_frames_are_traced_through_node_and_cloud(start: Start, collector: Collector) -> None:
    cloud = start_cloud(start, RAC_TRACING__ENDPOINT=collector.url)
    node = start(
        "rac-node", "--name", "dock", "--camera", "door=test:?fps=10", "--metrics-port", "0",
        "--cloud", cloud.get("start")[0]["endpoint"],
        RAC_TRACING__ENDPOINT=collector.url, RAC_TRACING__EVERY="4",
    )  # fmt: skip
    node.wait_event("result", 20)
    node.end()
    cloud.end()
    roots = [span for name, span in collector.spans if name == "rac-node" and span.name == "frame"]
    assert len(roots) >= 4
    whole = [span for name, span in collector.spans if name == "rac-cloud" and span.name == "cloud"]
    by_trace = {span.trace_id: span for span in roots}
    assert len(by_trace) == len(roots)
    assert whole
    for span in whole:
        assert span.parent_span_id == by_trace[span.trace_id].span_id
        assert span.start_time_unix_nano >= by_trace[span.trace_id].start_time_unix_nano
        assert span.end_time_unix_nano <= by_trace[span.trace_id].end_time_unix_nano
    answered = {span.trace_id for span in whole}
    names = {span.name for _, span in collector.spans if span.trace_id in answered}
    assert {"preprocess", "capture", "encode", "entropy", "send", "result", "queue", "decode", "inference"} <= names
    sequences = sorted(
        entry.value.int_value for span in roots for entry in span.attributes if entry.key == "rac.sequence"
    )
    assert len(sequences) == len(set(sequences))
    assert len(roots) < len(node.get("result")), "sampled, not all"
