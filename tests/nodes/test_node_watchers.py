"""What a node shows of itself: lines for people, JSON for machines, metrics that equal the ledger."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console

from nodes.calibration import DepthCost, NodeStart
from nodes.capture_events import BadFrames, Down, Finished, Up
from nodes.capture_link import DownReason
from nodes.exporter import Exporter
from nodes.frame_encoder import EncodedFrame
from nodes.lanes import Lane
from nodes.metrics_server import Health
from nodes.node_console import NodeConsole
from nodes.node_json import NodeJson
from nodes.node_log import NodeLog
from nodes.node_metrics import NodeMetrics, ledger_totals, readiness
from nodes.node_status import NodeStatus
from nodes.status_board import StatusBoard
from pipeline.encoder import OperatingPoint
from pipeline.frames import Frame
from pipeline.ledger import ClosedFrame, Ledger, Outcome
from pipeline.rate_control import ChangeCause, DepthChange, DepthController
from pipeline.session import LossReason, Lost, Opened
from pipeline.wire import Result, TopClass, Welcome
from tests.fakes import BUNDLE_ID, MS, VIEW, FakeClock, FakeReader, S

DOOR = Lane(0, FakeReader("door"))
KNOWN = {"camera": ["door", "yard"], "depth": [0, 4], "level": [0, 1, 2, 3], "endpoint": [0, 1]}


def encoded(sequence: int = 0) -> EncodedFrame:
    frame = Frame("door", sequence, 0, VIEW, view_ns=MS)
    return EncodedFrame(frame, OperatingPoint(4, 48), 1500, MS, 3 * MS, MS, 5 * MS, is_over_budget=False)


def closed(outcome: Outcome = Outcome.OK, sequence: int = 0) -> ClosedFrame:
    return ClosedFrame("door", sequence, outcome, 967, 4, 3, 40 * MS, 30 * MS)


def result(name: str = "espresso") -> Result:
    return Result(0, 0, 0, Outcome.OK, (TopClass(967, name, 0.75),), reference_top1=967, batch_frames=2)


def opened() -> Opened:
    return Opened(Welcome(0, bytes(8), BUNDLE_ID, 8, 262_144, 2000, 6000, ()))


class FakeNode:
    """What watchers read of a node."""

    def __init__(self) -> None:
        self.ledger = Ledger(["door", "yard"])
        self.lanes = [DOOR]
        self.session = SimpleNamespace(credit=5, is_up=True, needs_bundle=False)
        self.bundle = SimpleNamespace(short_id="abcdef", manifest=SimpleNamespace(classifier="lite0", name="default"))
        self.spool = None
        self.uplink = SimpleNamespace(sent_bytes=1000, received_bytes=200)
        self.controller = DepthController({0: MS, 4: 4 * MS}, 8 * MS)
        self.link_index = 1


@pytest.fixture
def node() -> Any:
    return FakeNode()


@pytest.fixture
def shown() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def console(node: Any, shown: io.StringIO) -> NodeConsole:
    made = NodeConsole(Console(file=shown, width=200, highlight=False), ["door", "yard"])
    made.attach(node)
    made.idle(S)
    return made


def test_line_a_second_says_what_a_camera_did(console: NodeConsole, shown: io.StringIO) -> None:
    for sequence in range(10):
        console.encoded(encoded(sequence))
        console.closed(closed(sequence=sequence), result("water_bottle"))
    console.idle(2 * S - 1)
    assert shown.getvalue() == ""
    console.idle(2 * S)
    (line,) = shown.getvalue().splitlines()
    words = " ".join(line.split())
    assert words == "door N=4 level 3 10.0 fps 1.50 kB/frame 120 kbit/s 40.0 ms water bottle 0.75"


def test_line_names_drops_that_never_reached_the_loop(console: NodeConsole, node: Any, shown: io.StringIO) -> None:
    """Without a cloud that is all there is to say, and the line is the only place where a person sees it."""
    node.ledger.skip("door", 0, 6, Outcome.LINK_DOWN)
    console.idle(2 * S)
    node.ledger.skip("door", 7, 8, Outcome.LINK_DOWN)
    node.ledger.skip("door", 9, 9, Outcome.SUPERSEDED)
    console.idle(3 * S)
    console.idle(4 * S)
    lines = [" ".join(line.split()) for line in shown.getvalue().splitlines()]
    assert lines == ["door dropped: link_down 7", "door dropped: link_down 2, superseded 1"]


def test_names_from_the_cloud_are_text_not_markup(console: NodeConsole, shown: io.StringIO) -> None:
    console.closed(closed(), result("[/bold] [red]"))
    console.idle(2 * S)
    assert "[/bold] [red] 0.75" in shown.getvalue()


def test_result_without_classes_harms_nothing(console: NodeConsole) -> None:
    console.closed(closed(), replace(result(), classes=()))
    console.idle(2 * S)


@pytest.mark.parametrize(
    ("tell", "words"),
    [
        (lambda watcher: watcher.camera_changed(DOOR, Up(640, 480)), "door: fake door is up, 640 x 480"),
        (
            lambda watcher: watcher.camera_changed(DOOR, Down(DownReason.OPEN_FAILED, "no /dev/video0", 0, 0, 0)),
            "door: down (open_failed): no /dev/video0; trying again",
        ),
        (lambda watcher: watcher.camera_changed(DOOR, Finished(3, 0)), "door: fake door is through"),
        (lambda watcher: watcher.link_changed(opened()), "link: session open, credit 8"),
        (
            lambda watcher: watcher.link_changed(Lost(LossReason.HEARTBEAT, "cloud is silent", None, was_up=True)),
            "link: lost (heartbeat): cloud is silent; trying again",
        ),
        (
            lambda watcher: watcher.link_changed(Lost(LossReason.NO_ANSWER, "no answer", None, was_up=False)),
            "link: no session (no_answer): no answer; trying again",
        ),
        (
            lambda watcher: watcher.depth_changed(DepthChange(8, 4, ChangeCause.OVERRUN, 9 * MS)),
            "depth: 8 -> 4 (overrun)",
        ),
    ],
)
def test_changes_are_said_at_once(
    console: NodeConsole, shown: io.StringIO, tell: Callable[[NodeConsole], None], words: str
) -> None:
    tell(console)
    assert shown.getvalue() == words + "\n"


def test_unreadable_pictures_are_named(console: NodeConsole, shown: io.StringIO) -> None:
    console.camera_changed(DOOR, BadFrames(3))
    console.idle(2 * S)
    assert "3 pictures unreadable" in shown.getvalue()


def make_start(**changes: Any) -> NodeStart:
    bundle: Any = SimpleNamespace(
        manifest=SimpleNamespace(name="tiny"),
        short_id="0123456789ab",
        measured_point=lambda depth, level16: SimpleNamespace(bpp=0.3, agreement=0.8) if depth else None,
    )
    costs = tuple(DepthCost(depth, (depth + 1) * MS, (depth + 2) * MS) for depth in (0, 4, 8))
    return replace(NodeStart(bundle, 48, costs, False, 8 * MS, 4, "http://127.0.0.1:9570/metrics"), **changes)


def test_table_of_depths_says_what_is_used_and_what_does_not_fit(console: NodeConsole, shown: io.StringIO) -> None:
    console.started(make_start())
    text = shown.getvalue()
    rows = [" ".join(line.split()) for line in text.splitlines()]
    assert "bundle tiny 0123456789ab, level 3" in text
    assert [row for row in rows if row.endswith("over budget \u2502")]
    assert next(row for row in rows if "used" in row).startswith("\u2502 4 \u2502 5.00 \u2502 6.00 \u2502 200")
    assert "made-up" not in text
    console.started(make_start(is_made_up=True, budget_ns=MS))
    assert "no camera gave a frame yet" in shown.getvalue()
    assert "used, over budget" in shown.getvalue()


def test_summary_begins_with_the_balance(console: NodeConsole, shown: io.StringIO) -> None:
    figures = {
        "captured": 10,
        "results": 7,
        "dropped": {"link_down": 1, "superseded": 2},
        "in_flight": 0,
        "bytes_per_frame": None,
        "e2e_ms_p50": 41.5,
    }
    console.ended(figures)
    assert shown.getvalue().splitlines() == [
        "captured 10 = results 7 + dropped 3 + in flight 0",
        "dropped by reason: link_down 1, superseded 2",
        "e2e_ms_p50: 41.5",
    ]


def json_lines(tell: Callable[[NodeJson], object]) -> list[dict[str, Any]]:
    lines: list[str] = []
    tell(NodeJson(lines.append))
    return [json.loads(line) for line in lines]


def test_json_result_has_class_size_and_times() -> None:
    def tell(machine: NodeJson) -> None:
        machine.encoded(encoded())
        machine.closed(closed(), result())
        assert machine._sizes == {}

    (line,) = json_lines(tell)
    assert line["event"] == "result"
    assert line["classes"] == [{"index": 967, "name": "espresso", "probability": 0.75}]
    assert (line["camera"], line["sequence"], line["label"], line["reference_top1"]) == ("door", 0, 967, 967)
    assert (line["depth"], line["level"], line["bytes"], line["encode_ms"], line["latency_ms"]) == (4, 3, 1500, 5, 40)


def test_json_drop_of_a_sent_frame_frees_what_was_noted() -> None:
    def tell(machine: NodeJson) -> None:
        machine.encoded(encoded())
        machine.closed(closed(Outcome.LOST_IN_LINK), None)
        assert machine._sizes == {}

    assert json_lines(tell) == [{"event": "drop", "camera": "door", "sequence": 0, "reason": "lost_in_link"}]


def test_json_begins_with_costs_and_ends_with_the_summary() -> None:
    def tell(machine: NodeJson) -> None:
        machine.started(make_start())
        machine.ended({"captured": 3})

    start, summary = json_lines(tell)
    assert (start["event"], start["depth"], start["level"], start["budget_ms"]) == ("start", 4, 3.0, 8.0)
    assert start["costs"][1] == {"depth": 4, "median_ms": 5.0, "p90_ms": 6.0}
    assert start["metrics"] == "http://127.0.0.1:9570/metrics"
    assert summary == {"event": "summary", "captured": 3}


def test_json_tells_every_change() -> None:
    def tell(machine: NodeJson) -> None:
        machine.camera_changed(DOOR, Up(640, 480))
        machine.camera_changed(DOOR, Down(DownReason.READ_TIMEOUT, "late", 0, 0, 0))
        machine.camera_changed(DOOR, BadFrames(1))
        machine.camera_changed(DOOR, Finished(0, 0))
        machine.link_changed(opened())
        machine.link_changed(Lost(LossReason.CLOSED, "gone", None, was_up=True))
        machine.depth_changed(DepthChange(8, 4, ChangeCause.OVERRUN, None))

    lines = json_lines(tell)
    assert [(line["event"], line.get("state")) for line in lines] == [
        ("camera", "up"),
        ("camera", "down"),
        ("camera", "bad_frames"),
        ("camera", "finished"),
        ("link", "up"),
        ("link", "down"),
        ("depth", None),
    ]
    assert lines[1]["reason"] == "read_timeout"
    assert lines[-1]["cause"] == "overrun"


def values(exporter: Exporter) -> dict[tuple[str, ...], float]:
    """Samples by name and label values, in the order of the label names."""
    text, _ = exporter.render()
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def fill(ledger: Ledger) -> None:
    """Frames with every kind of end, and one in flight."""
    ledger.skip("door", 0, 4, Outcome.SUPERSEDED)
    ledger.skip("yard", 0, 1, Outcome.NO_CREDIT)
    for sequence in range(5, 12):
        ledger.capture("door", sequence, 0, label=967)
        ledger.send("door", sequence, 0, depth=4, level16=48, bitstream_bytes=1000, coded_pixels=50176, wire_bytes=1100)
    for sequence in range(5, 9):
        ledger.answer("door", sequence, Outcome.OK, 1, classes=[967], reference_top1=967, wire_bytes=90)
    ledger.answer("door", 9, Outcome.STALE, 1)
    ledger.answer("door", 5, Outcome.OK, 2, classes=[967])
    ledger.expire(20 * S, 10 * S)
    ledger.answer("door", 10, Outcome.OK, 2, classes=[967])
    ledger.capture("door", 12, 0)


def test_metrics_are_the_ledgers_own_numbers(node: Any) -> None:
    fill(node.ledger)
    exporter = Exporter("node", KNOWN)
    metrics = NodeMetrics(exporter, Health(), "1", num_endpoints=2)
    metrics.attach(node)
    metrics.publish()
    found = values(exporter)
    total = node.ledger.snapshot().cameras["door"]
    assert found["rac_node_frames_captured_total", "door"] == total.captured == 13
    reasons = {key[2]: count for key, count in found.items() if key[:2] == ("rac_node_frames_dropped_total", "door")}
    assert {reason: count for reason, count in reasons.items() if count} == total.dropped
    assert found["rac_node_results_total", "door", "ok"] == total.results == 4
    assert found["rac_node_results_total", "door", "repeated"] == total.repeated == 1
    assert found["rac_node_results_total", "door", "late"] == total.late == 1
    assert found["rac_node_in_flight_frames",] == total.in_flight == 1
    assert found["rac_node_frames_dropped_total", "yard", "no_credit"] == 2
    assert found["rac_node_frames_encoded_total", "door", "4"] == total.sent == 7
    assert found["rac_node_coded_pixels_total", "door", "4", "3"] == 7 * 50176
    assert found["rac_node_camera_bitstream_bytes_total", "door"] == total.bitstream_bytes == 7000
    assert found["rac_node_wire_bytes_total", "door", "sent"] == 7700
    assert found["rac_node_credit_frames",] == 5
    assert found["rac_node_network_bytes_total", "sent"] == 1000


def test_totals_add_up_in_one_scrape(node: Any) -> None:
    fill(node.ledger)
    totals = ledger_totals(node.ledger.snapshot())
    captured = sum(value for key, value in totals.items() if key[0] == "rac_node_frames_captured_total")
    dropped = sum(value for key, value in totals.items() if key[0] == "rac_node_frames_dropped_total")
    results = sum(value for key, value in totals.items() if key[0] == "rac_node_results_total" and key[2] == "ok")
    assert captured == results + dropped + totals["rac_node_in_flight_frames",]


def test_last_frame_is_the_last_that_was_captured_not_the_last_that_was_sent(node: Any) -> None:
    """Without a cloud nothing is encoded, and no alert should say that the cameras are gone."""
    exporter, now_s = Exporter("node", KNOWN), [1000.0]
    metrics = NodeMetrics(exporter, Health(), "1", num_endpoints=2, wall_clock=lambda: now_s[0])
    metrics.attach(node)
    node.ledger.skip("door", 0, 6, Outcome.LINK_DOWN)
    metrics.publish()
    now_s[0] = 1010.0
    metrics.publish()
    series = "rac_node_last_frame_timestamp_seconds"
    assert (values(exporter)[series, "door"], values(exporter)[series, "yard"]) == (1000.0, 0)
    node.ledger.skip("door", 7, 7, Outcome.LINK_DOWN)
    metrics.publish()
    assert values(exporter)[series, "door"] == 1010.0


def test_metrics_count_what_happens(node: Any) -> None:
    exporter = Exporter("node", KNOWN)
    metrics = NodeMetrics(exporter, Health(), "1", num_endpoints=2, wall_clock=lambda: 1000.0)
    metrics.attach(node)
    metrics.encoded(replace(encoded(), is_over_budget=True))
    metrics.sent("door", 2 * MS)
    metrics.closed(closed(), result())
    metrics.closed(closed(Outcome.STALE), None)
    metrics.camera_changed(DOOR, Up(640, 480))
    metrics.link_changed(opened())
    metrics.depth_changed(DepthChange(4, 0, ChangeCause.OVERRUN, None))
    found = values(exporter)
    assert found["rac_node_budget_overruns_total", "door", "4"] == 1
    assert found["rac_node_bitstream_bytes_sum", "4", "3"] == 1500
    assert found["rac_node_stage_duration_seconds_sum", "send"] == 0.002
    assert found["rac_node_capture_to_result_seconds_count", "4"] == 1
    assert found["rac_node_camera_up", "door"] == 1
    assert found["rac_node_last_result_timestamp_seconds", "door"] == 1000
    assert found["rac_node_link_up", "1"] == 1
    assert found["rac_node_depth_changes_total", "door", "overrun"] == 1
    metrics.link_changed(Lost(LossReason.HEARTBEAT, "silent", None, was_up=True))
    metrics.camera_changed(DOOR, Down(DownReason.CRASHED, "x", 0, 0, 0))
    found = values(exporter)
    assert found["rac_node_link_up", "1"] == 0
    assert found["rac_node_reconnects_total", "1", "heartbeat"] == 1
    assert found["rac_node_camera_reconnects_total", "door", "crashed"] == 1
    assert found["rac_node_camera_up", "door"] == 0


def test_publishing_is_once_a_second(node: Any) -> None:
    ticks: list[int] = []
    metrics = NodeMetrics(Exporter("node", KNOWN), Health(), "1", 2, every_second=lambda: ticks.append(1))
    metrics.attach(node)
    for now_ns in (S, S + 1, 2 * S - 1, 2 * S, 2 * S + 1):
        metrics.idle(now_ns)
    assert len(ticks) == 2


def test_node_is_ready_with_a_session_and_a_camera(node: Any) -> None:
    assert readiness(node) == []
    node.session.is_up = False
    node.lanes = [Lane(0, FakeReader("door", is_up=False))]
    assert readiness(node) == ["no session with a cloud", "no camera is up (door)"]


def test_status_is_made_when_a_page_asks(node: Any) -> None:
    clock = FakeClock(0)
    board = StatusBoard(clock, patience_s=0.0)
    status = NodeStatus(
        board, {"program": "rac-node", "name": "dock"}, ["door", "yard"], ["tcp://a:1", "tcp://b:1"], clock
    )
    status.attach(node)
    status.camera_changed(DOOR, Up(640, 480))
    status.link_changed(opened())
    status.encoded(encoded())
    status.closed(closed(), result("water_bottle"))
    status.closed(closed(sequence=1), replace(result(), classes=()))
    status.closed(closed(Outcome.EXPIRED, 2), None)
    node.ledger.skip("door", 0, 6, Outcome.NO_CREDIT)
    board.read()
    status.idle(S)
    document, _ = board.read()
    door, yard = document["cameras"]
    assert (door["node"], door["camera"], door["depth"], door["level"]) == ("dock", "door", 4, 3.0)
    assert (door["frames"], door["state"], yard["state"]) == (7, "ok", "waiting")
    assert (door["agreement"], door["references"]) == (1.0, 1)
    assert document["facts"]["Cloud"] == "tcp://b:1"
    assert document["bundles"] == "default abcdef"
    status.camera_changed(DOOR, Down(DownReason.READ_TIMEOUT, "rtsp://me:secret@cam/x: no picture", 0, 0, 0))
    status.link_changed(Lost(LossReason.HEARTBEAT, "cloud is silent", None, was_up=True))
    node.session.is_up = False
    clock.advance(S)
    board.read()
    status.idle(2 * S)
    document, _ = board.read()
    assert document["cameras"][0]["why"].startswith("read_timeout: rtsp://")
    assert "secret" not in json.dumps(document)
    assert document["facts"]["Cloud"] == "none: heartbeat: cloud is silent"
    assert "no session with a cloud" in document["trouble"]


def told(caplog: pytest.LogCaptureFixture) -> list[tuple[Any, ...]]:
    """Event, reason, sequence and count of what was logged since the last call."""
    records = [
        tuple(getattr(record, name, None) for name in ("event", "reason", "sequence", "count"))
        for record in caplog.records
    ]
    caplog.clear()
    return records


def test_log_has_every_change_of_camera_and_link_once(node: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "rac.node")
    log = NodeLog()
    log.attach(node)
    log.camera_changed(DOOR, Up(640, 480))
    log.camera_changed(DOOR, Down(DownReason.READ_TIMEOUT, "no picture", 0, 0, 0))
    log.camera_changed(DOOR, BadFrames(3))
    log.camera_changed(DOOR, Finished(0, 0))
    assert told(caplog) == [
        ("camera_up", None, 0, None),
        ("camera_down", "read_timeout", 0, None),
        ("bad_frames", None, 0, 3),
        ("camera_finished", None, 0, None),
    ]
    nobody = Lost(LossReason.NO_ANSWER, "nobody there", None, was_up=False)
    log.link_changed(Lost(LossReason.HEARTBEAT, "cloud is silent", None, was_up=True))
    for _ in range(5):
        log.link_changed(nobody)
    log.link_changed(opened())
    log.link_changed(nobody)
    log.depth_changed(DepthChange(4, 2, ChangeCause.OVERRUN, 9 * MS))
    events = [entry[:2] for entry in told(caplog)]
    assert events == [
        ("link_down", "heartbeat"),
        ("link_down", "no_answer"),
        ("link_up", None),
        ("link_down", "no_answer"),
        ("depth_changed", "overrun"),
    ]


def test_log_tells_lost_frames_as_a_spell_and_choices_not_at_all(node: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "rac.node")
    log = NodeLog()
    log.attach(node)
    log.idle(S)
    assert told(caplog) == [("ready", None, None, None)]
    node.ledger.skip("door", 0, 6, Outcome.SUPERSEDED)
    node.ledger.capture("door", 7, 0)
    log.closed(ClosedFrame("door", 7, Outcome.ENCODE_ERROR, None, None, None, None, None), None)
    node.ledger.drop("door", 7, Outcome.ENCODE_ERROR, 0)
    log.idle(2 * S)
    assert told(caplog) == [("drops_began", "encode_error", 7, None)]
    node.session.is_up = False
    node.ledger.skip("door", 8, 90, Outcome.LINK_DOWN)
    log.idle(3 * S)
    node.ledger.skip("door", 91, 95, Outcome.LINK_DOWN)
    log.idle(4 * S)
    assert [entry[:2] for entry in told(caplog)] == [("not_ready", None), ("drops_began", "link_down")]
    log.idle(30 * S)
    assert [entry[:2] + entry[3:] for entry in told(caplog)] == [
        ("drops_ended", "encode_error", 1),
        ("drops_ended", "link_down", 88),
    ]
