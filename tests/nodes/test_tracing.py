"""Traces: spans of a sampled frame join over the wire, and nothing of it is there when nobody asks."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest

from nodes.cloud import AnsweredFrame
from nodes.cloud_tracing import CloudTracing
from nodes.frame_encoder import EncodedFrame
from nodes.node_tracing import NodeTracing
from nodes.tracing import open_provider
from pipeline.cloud_actions import Answer, FrameArrived
from pipeline.encoder import OperatingPoint
from pipeline.frames import Frame
from pipeline.ledger import ClosedFrame, Outcome
from pipeline.wire import FrameMessage, pack, parse
from tests.fakes import BUNDLE_ID, MS, VIEW, FakeClock, S, make_bitstream

sdk = pytest.importorskip("opentelemetry.sdk.trace", reason="extra [otel] is missing")
from opentelemetry.sdk.trace.export import SimpleSpanProcessor  # noqa: E402
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter  # noqa: E402

# Two machines whose wall clocks agree, and whose monotonic clocks do not.
NODE_OFFSET_NS, CLOUD_OFFSET_NS = 1000 * S, 5000 * S


class Traced:
    """A node's and a cloud's tracing over one exporter."""

    def __init__(self, every: int = 1) -> None:
        self.exporter = InMemorySpanExporter()
        provider = sdk.TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.clock = FakeClock(100 * S)
        self.node = NodeTracing(provider, "dock", every, NODE_OFFSET_NS, self.clock)
        self.cloud = CloudTracing(provider, CLOUD_OFFSET_NS)

    def run(self, sequence: int, outcome: Outcome = Outcome.OK, camera: str = "door") -> bytes | None:
        """A frame from its encoder through the cloud to its end; what its message carried."""
        captured_ns = self.clock.now_ns - 10 * MS
        frame = Frame(camera, sequence, captured_ns, VIEW, view_ns=MS)
        encoded = EncodedFrame(frame, OperatingPoint(4, 48), 1500, 2 * MS, 5 * MS, 2 * MS, 8 * MS, is_over_budget=False)
        trace = self.node.begin(encoded)
        self.clock.advance(MS)
        self.node.sent(camera, MS)
        message = parse(pack(FrameMessage(0, sequence, captured_ns, 0, None, make_bitstream(), trace=trace)))
        assert isinstance(message, FrameMessage)
        self.answer(message, outcome)
        self.clock.advance(30 * MS)
        self.node.closed(ClosedFrame(camera, sequence, outcome, None, 4, 3, 41 * MS, 30 * MS), None)
        return message.trace

    def answer(self, message: FrameMessage, outcome: Outcome) -> None:
        received_ns = self.clock.now_ns + 5 * MS + NODE_OFFSET_NS - CLOUD_OFFSET_NS
        frame = FrameArrived(1, "dock", "door", BUNDLE_ID, message, received_ns, received_ns)
        answer = Answer(outcome, queue_us=4000, decode_us=2000, classify_us=8000, batch_frames=3)
        self.cloud.answered(AnsweredFrame(frame, answer, outcome, 4, 48, received_ns + 15 * MS))

    def spans(self) -> dict[str, Any]:
        return {span.name: span for span in self.exporter.get_finished_spans()}


def test_one_trace_from_capture_to_result() -> None:
    traced = Traced()
    carried = traced.run(7)
    spans = traced.spans()
    assert set(spans) == {
        "frame", "preprocess", "capture", "encode", "entropy", "send", "result",
        "cloud", "queue", "decode", "inference", "answer",
    }  # fmt: skip
    root = spans["frame"]
    assert len({span.context.trace_id for span in spans.values()}) == 1
    assert carried == root.context.trace_id.to_bytes(16, "big") + root.context.span_id.to_bytes(8, "big")
    assert root.parent is None
    children = {name for name, span in spans.items() if span.parent and span.parent.span_id == root.context.span_id}
    assert children == {"preprocess", "capture", "encode", "entropy", "send", "result", "cloud"}
    assert {spans[name].parent.span_id for name in ("queue", "decode", "inference", "answer")} == {
        spans["cloud"].context.span_id
    }
    assert (root.attributes["rac.camera"], root.attributes["rac.sequence"], root.attributes["rac.depth"]) == (
        "door",
        7,
        4,
    )
    assert spans["cloud"].attributes["rac.batch_frames"] == 3


def test_times_are_those_of_the_frame_and_stages_follow_one_another() -> None:
    traced = Traced()
    traced.run(7)
    spans = traced.spans()
    lengths = {name: (span.end_time - span.start_time) / MS for name, span in spans.items()}
    assert lengths == {
        "frame": 41, "preprocess": 1, "capture": 2, "encode": 5, "entropy": 2, "send": 1, "result": 30,
        "cloud": 15, "queue": 4, "decode": 2, "inference": 8, "answer": 1,
    }  # fmt: skip
    assert spans["frame"].start_time == 100 * S - 10 * MS + NODE_OFFSET_NS
    for names in (("preprocess", "capture", "encode", "entropy", "send", "result"), ("queue", "decode", "inference")):
        for before, after in zip(names, names[1:], strict=False):
            assert spans[before].end_time == spans[after].start_time
    assert spans["result"].start_time < spans["cloud"].start_time < spans["cloud"].end_time < spans["result"].end_time


def test_every_so_many_frames_of_each_camera_and_nothing_on_the_wire_for_the_others() -> None:
    traced = Traced(every=5)
    carried = [traced.run(sequence) is not None for sequence in range(11)]
    assert carried == [True, False, False, False, False, True, False, False, False, False, True]
    assert traced.run(0, camera="yard") is not None
    assert sum(span.name == "frame" for span in traced.exporter.get_finished_spans()) == 4
    assert sum(span.name == "cloud" for span in traced.exporter.get_finished_spans()) == 4


def test_frame_that_is_lost_ends_its_trace_with_the_reason() -> None:
    traced = Traced()
    traced.run(0, Outcome.STALE)
    spans = traced.spans()
    for name in ("frame", "cloud"):
        assert spans[name].attributes["rac.outcome"] == "stale"
        assert not spans[name].status.is_ok
    assert not traced.node._traced


@pytest.mark.parametrize("ids", [bytes(24), b"\xff" * 24])
def test_ids_that_a_stranger_made_up_harm_nothing(ids: bytes) -> None:
    traced = Traced()
    traced.answer(FrameMessage(0, 0, 0, 0, None, make_bitstream(), trace=ids), Outcome.OK)
    assert "cloud" in traced.spans()


def test_frames_without_trace_make_no_span_in_the_cloud() -> None:
    traced = Traced()
    traced.answer(FrameMessage(0, 0, 0, 0, None, make_bitstream()), Outcome.OK)
    assert traced.spans() == {}


def test_trace_adds_its_bytes_to_a_message_and_no_more() -> None:
    plain = FrameMessage(0, 0, 0, 0, None, make_bitstream())
    assert sum(map(len, pack(replace(plain, trace=bytes(24))))) - sum(map(len, pack(plain))) == 26


def test_without_an_endpoint_or_the_extra_nothing_is_traced(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert open_provider("rac-node", "dock", None) is None
    assert caplog.records == []
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    assert open_provider("rac-node", "dock", "http://127.0.0.1:1/v1/traces") is None
    assert "pip install 'edge-cloud-rac[otel]'" in caplog.text


def test_programs_load_nothing_of_it_unless_asked() -> None:
    code = (
        "import sys, nodes.node_command, nodes.cloud_command; from nodes.tracing import open_provider;"
        "assert open_provider('rac-node', 'x', None) is None;"
        "sys.exit(any(name.startswith('opentelemetry') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
