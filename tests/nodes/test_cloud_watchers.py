"""What a cloud shows of itself: lines for people, metrics that equal the ledger, results for sinks."""

from __future__ import annotations

import io
import logging
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console

from nodes.cloud import AnsweredFrame
from nodes.cloud_console import CloudConsole, SinkWatcher
from nodes.cloud_log import CloudLog
from nodes.cloud_metrics import CloudMetrics
from nodes.cloud_status import CloudStatus
from nodes.exporter import Exporter
from nodes.metrics_server import Health
from nodes.pool import BatchDone, LossReason, WorkerLost, WorkerReady
from nodes.status_board import StatusBoard
from nodes.uplink import framed_bytes
from nodes.watchers import Watchers
from nodes.worker import BatchAnswer
from pipeline.batching import Batcher, BatcherSettings
from pipeline.bundle import load_bundle
from pipeline.cloud_actions import Answer, CloseReason, CloudSettings, FrameArrived, SessionClosed, SessionOpened
from pipeline.cloud_ledger import CloudLedger
from pipeline.cloud_session import CloudSessions
from pipeline.decoding import BatchTimings
from pipeline.ledger import Outcome
from pipeline.wire import CameraEntry, FrameMessage, Hello, RejectCode, TopClass, pack
from tests.fakes import BUNDLE_ID, MS, FakeClock, FakePool, S, make_bitstream, make_classes
from tests.trivial_worker import make_job

KNOWN = {"depth": [0, 4], "level": [0, 1, 2, 3], "bundle": ["ab"], "worker": [0, 1], "sink": [0]}


class FakeSink:
    name = "fake"

    def __init__(self) -> None:
        self.dropped = 0
        self.lines: list[Any] = []

    def put(self, result: Any) -> None:
        self.lines.append(result)

    def close(self, timeout_s: float) -> None:
        pass


class FakeFront:
    """What watchers read of a front."""

    def __init__(self) -> None:
        self.ledger = CloudLedger()
        self.sessions = CloudSessions(CloudSettings(frozenset({BUNDLE_ID})), lambda: bytes(8))
        self.batcher = Batcher[FrameArrived](BatcherSettings())
        self.pool = FakePool(2)
        self.door = SimpleNamespace(sent_bytes=500, received_bytes=9000, connections=SimpleNamespace(ended=3))
        self.trouble: list[str] = []

    def obstacles(self) -> list[str]:
        return self.trouble


def answered(
    outcome: Outcome = Outcome.OK, *, best: int = 967, label: int | None = None, reference: int | None = None
) -> AnsweredFrame:
    message = FrameMessage(0, 7, 0, 0, label, make_bitstream(4, 48))
    frame = FrameArrived(1, "dock", "gate", BUNDLE_ID, message, received_ns=10 * MS, born_ns=0)
    classes = (TopClass(best, "espresso", 0.75), TopClass(3, "shark", 0.2)) if outcome is Outcome.OK else ()
    text = "" if outcome is Outcome.OK else "why"
    return AnsweredFrame(frame, Answer(outcome, classes, reference, text=text), outcome, 4, 48, answered_ns=40 * MS)


def values(exporter: Exporter) -> dict[tuple[str, ...], float]:
    text, _ = exporter.render()
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


@pytest.fixture
def front() -> Any:
    return FakeFront()


@pytest.fixture
def sink() -> FakeSink:
    return FakeSink()


@pytest.fixture
def exporter() -> Exporter:
    return Exporter("cloud", KNOWN)


@pytest.fixture
def metrics(front: Any, exporter: Exporter, sink: FakeSink) -> CloudMetrics:
    made = CloudMetrics(exporter, Health(), "1", [sink], wall_clock=lambda: 1000.0)
    made.attach(front)
    return made


def test_metrics_are_the_ledgers_own_numbers(front: Any, exporter: Exporter, metrics: CloudMetrics) -> None:
    outcomes = [Outcome.OK] * 5 + [Outcome.STALE, Outcome.WORKER_LOST, Outcome.UNROUTABLE, Outcome.UNROUTABLE]
    for ticket in range(len(outcomes) + 3):
        front.ledger.receive(ticket)
    for ticket, outcome in enumerate(outcomes):
        front.ledger.close(ticket, outcome)
    metrics.publish()
    found = values(exporter)
    snapshot = front.ledger.snapshot()
    results = {key[1]: count for key, count in found.items() if key[0] == "rac_cloud_results_total"}
    assert results == snapshot.results
    assert found["rac_cloud_in_flight_frames",] == snapshot.in_flight == 3
    assert sum(results.values()) + found["rac_cloud_in_flight_frames",] == snapshot.received


def test_totals_that_others_keep_are_carried_over_once(
    front: Any, exporter: Exporter, metrics: CloudMetrics, sink: FakeSink
) -> None:
    sink.dropped = 4
    hello = Hello(0, "dock", bytes(16), (BUNDLE_ID,), (CameraEntry(0, "gate"),))
    front.sessions.receive(b"r", hello, 0)
    for _ in range(3):
        metrics.publish()
    found = values(exporter)
    assert found["rac_cloud_handshakes_total", "accepted"] == 1
    assert found["rac_cloud_sessions",] == 1
    assert found["rac_cloud_credit_granted_total",] == 8
    assert found["rac_cloud_network_bytes_total", "received"] == 9000
    assert found["rac_cloud_sink_dropped_total", "0"] == 4
    assert found["rac_cloud_workers", "ready"] == 2
    sink.dropped = 6
    front.door.received_bytes = 9500
    metrics.publish()
    found = values(exporter)
    assert found["rac_cloud_sink_dropped_total", "0"] == 6
    assert found["rac_cloud_network_bytes_total", "received"] == 9500


def test_accuracy_is_counted_for_classified_frames(exporter: Exporter, metrics: CloudMetrics) -> None:
    metrics.answered(answered(label=967, reference=967))
    metrics.answered(answered(label=3, reference=3))
    metrics.answered(answered(label=500))
    metrics.answered(answered(Outcome.STALE, label=967))
    found = values(exporter)
    assert found["rac_cloud_labelled_frames_total", "4", "3"] == 3
    assert found["rac_cloud_labelled_correct_total", "4", "3", "1"] == 1
    assert found["rac_cloud_labelled_correct_total", "4", "3", "5"] == 2
    assert found["rac_cloud_reference_frames_total", "4", "3"] == 2
    assert found["rac_cloud_reference_agreements_total", "4", "3"] == 1
    assert found["rac_cloud_camera_labelled_total", "gate", "dock"] == 3
    assert found["rac_cloud_camera_correct_total", "gate", "dock"] == 1
    assert found["rac_cloud_camera_references_total", "gate", "dock"] == 2
    assert found["rac_cloud_camera_agreements_total", "gate", "dock"] == 1


def test_header_of_a_stranger_makes_no_new_series(exporter: Exporter, metrics: CloudMetrics) -> None:
    for depth in (4, 77, None):
        metrics.received(answered().frame, depth)
    found = values(exporter)
    assert found["rac_cloud_frames_received_total", "4"] == 1
    assert found["rac_cloud_frames_received_total", "_other"] == 2


def test_workers_loss_and_work_are_counted(exporter: Exporter, metrics: CloudMetrics) -> None:
    metrics.worker_lost(WorkerLost(0, LossReason.HANG, -9, None))
    answer = BatchAnswer(0, (make_classes(),) * 3, BatchTimings(2 * MS, 3 * MS, 0), resident_bytes=4096)
    metrics.batch_done(BatchDone(1, answer, 6 * MS), 3)
    found = values(exporter)
    assert found["rac_cloud_worker_restarts_total", "hang"] == 1
    assert found["rac_cloud_worker_frames_total", "1"] == 3
    assert found["rac_cloud_worker_resident_bytes", "1"] == 4096
    assert found["rac_cloud_worker_busy_seconds_total", "1"] == 0.006
    assert found["rac_cloud_stage_duration_seconds_sum", "classify"] == 0.003


def test_stages_of_a_batch_are_timed_where_they_happened(exporter: Exporter, metrics: CloudMetrics) -> None:
    """A batch without references says nothing of how long they take."""
    timings = BatchTimings(2 * MS, 3 * MS, 7 * MS)
    plain, referenced = make_classes(), replace(make_classes(), reference_top1=3)
    metrics.batch_done(BatchDone(1, BatchAnswer(0, (plain, "bad bytes"), timings), 6 * MS, reply_ns=MS), 2)
    metrics.batch_done(BatchDone(1, BatchAnswer(1, (plain, referenced), timings), 6 * MS, reply_ns=MS), 2)
    found = values(exporter)
    sums = {key[1]: value for key, value in found.items() if key[0] == "rac_cloud_stage_duration_seconds_sum"}
    assert sums == {"entropy_decode": 0.004, "classify": 0.006, "reply": 0.002, "reference": 0.007}


def test_silent_node_is_shown_until_it_ends_in_order(exporter: Exporter, metrics: CloudMetrics) -> None:
    series = ("rac_cloud_session_last_frame_timestamp_seconds", "dock")
    metrics.session_changed(SessionOpened(b"r", "dock", ("gate",)))
    assert values(exporter)[series] == 1000.0
    for reason in (CloseReason.TIMEOUT, CloseReason.LOST, CloseReason.REPLACED):
        metrics.session_changed(SessionClosed(b"r", "dock", reason))
        assert values(exporter)[series] == 1000.0
    for reason in (CloseReason.BYE, CloseReason.REVOKED, CloseReason.BYE):
        metrics.session_changed(SessionClosed(b"r", "dock", reason))
        assert series not in values(exporter)
        metrics.received(answered().frame, 4)
        assert values(exporter)[series] == 1000.0


def test_bundle_shows_what_it_was_measured_at() -> None:
    """Whole levels only: the others have no series of their own."""
    bundle = load_bundle("default")
    measured = bundle.manifest.measured
    assert measured is not None
    known = {**KNOWN, "depth": bundle.manifest.depths, "level": range(9), "bundle": [bundle.short_id]}
    exporter = Exporter("cloud", known)
    CloudMetrics(exporter, Health(), "1", []).show_bundle(bundle)
    found = values(exporter)
    points = [point for point in measured.points if point.level16 % 16 == 0]
    assert points
    for point in points:
        labels = (bundle.short_id, str(point.depth), str(point.level16 // 16))
        assert found["rac_cloud_bundle_measured_bits_per_pixel", *labels] == point.bpp
        assert found["rac_cloud_bundle_measured_agreement", *labels] == point.agreement
        assert found["rac_cloud_bundle_measured_top1_share", *labels] == point.share_of_top1
    assert sum(key[0] == "rac_cloud_bundle_measured_agreement" for key in found) == len(points)
    assert found["rac_cloud_bundle_info", bundle.short_id, bundle.manifest.classifier] == 1


def test_cloud_is_not_ready_without_workers(front: Any, exporter: Exporter, sink: FakeSink) -> None:
    health = Health()
    metrics = CloudMetrics(exporter, health, "1", [sink])
    metrics.attach(front)
    front.trouble = ["no worker can serve"]
    metrics.publish()
    assert health.reasons() == ["no worker can serve"]
    front.trouble = []
    metrics.publish()
    assert health.reasons() == []


def test_line_a_second_while_frames_flow(front: Any) -> None:
    shown = io.StringIO()
    console = CloudConsole(Console(file=shown, width=200))
    console.attach(front)
    console.idle(S)
    for _ in range(8):
        console.received(answered().frame, 4)
        console.answered(answered())
    console.batch_formed(SimpleNamespace())  # type: ignore[arg-type]
    console.answered(answered(Outcome.UNROUTABLE))
    console.idle(2 * S)
    console.idle(3 * S)
    (line,) = shown.getvalue().splitlines()
    words = " ".join(line.split())
    assert words == "9.0 frames/s batch 9.0 30.0 ms 7 kbit/s 0 nodes 0 of 2 workers busy unroutable 1"


def test_first_ready_worker_is_told_once() -> None:
    told: list[int] = []
    console = CloudConsole(None, first_ready=lambda: told.append(1))
    console.worker_ready(WorkerReady(0, S))
    console.worker_ready(WorkerReady(1, S))
    assert told == [1]


def test_changes_go_to_the_log(caplog: pytest.LogCaptureFixture) -> None:
    log = CloudLog()
    with caplog.at_level(logging.INFO, "rac.cloud"):
        log.session_changed(SessionOpened(b"r", "dock", ("gate", "belt")))
        log.session_changed(SessionClosed(b"r", "dock", CloseReason.TIMEOUT))
        log.worker_lost(WorkerLost(1, LossReason.CRASH, -9, make_job(frames=3)))
        log.answered(answered(Outcome.CORRUPT))
    assert caplog.messages == [
        "node dock is there, cameras gate, belt",
        "node dock is gone (timeout)",
        "worker 1 lost (crash, exit code -9), with a batch of 3; it is started again",
        "frames not classified (corrupt): why",
    ]
    facts = [(record.event, getattr(record, "reason", None)) for record in caplog.records]  # type: ignore[attr-defined]
    assert facts == [
        ("session_opened", None),
        ("session_closed", "timeout"),
        ("worker_lost", "crash"),
        ("drops_began", "corrupt"),
    ]


def told(caplog: pytest.LogCaptureFixture) -> list[tuple[Any, ...]]:
    """Event, reason, sequence and count of what was logged since the last call."""
    records = [
        tuple(getattr(record, name, None) for name in ("event", "reason", "sequence", "count"))
        for record in caplog.records
    ]
    caplog.clear()
    return records


def test_lost_frames_are_one_spell_in_the_log(front: Any, caplog: pytest.LogCaptureFixture) -> None:
    log = CloudLog()
    log.attach(front)
    caplog.set_level(logging.INFO, "rac.cloud")
    for _ in range(500):
        log.answered(answered(Outcome.STALE))
        log.answered(answered())
    log.idle(S)
    assert told(caplog) == [("drops_began", "stale", 7, None)]
    log.idle(60 * S)
    assert told(caplog) == [("drops_ended", "stale", 7, 500)]
    log.idle(120 * S)
    assert told(caplog) == []


def test_what_nobody_tells_is_looked_for(front: Any, sink: FakeSink, caplog: pytest.LogCaptureFixture) -> None:
    """Readiness, nodes that are not let in, and sinks that are too slow."""
    log = CloudLog([sink], is_for_machines=True)
    log.attach(front)
    caplog.set_level(logging.INFO, "rac.cloud")
    front.trouble = ["no worker can serve: 2 starting"]
    log.idle(S)
    front.trouble = ["no worker can serve: 1 starting"]
    log.idle(2 * S)
    assert told(caplog) == [("not_ready", None, None, None)], "other words for the same are no change"
    front.trouble = []
    log.idle(3 * S)
    assert told(caplog) == [("ready", None, None, None)]
    for _ in range(5):
        front.sessions.refuse(b"r", RejectCode.FULL, "full")
    sink.dropped = 20
    log.idle(4 * S)
    sink.dropped = 30
    log.idle(5 * S)
    assert told(caplog) == [("handshakes_refused", "full", None, 5), ("drops_began", "sink 0", None, None)]
    log.idle(20 * S)
    assert told(caplog) == [("drops_ended", "sink 0", None, 30)]


def test_sinks_get_every_answered_frame(sink: FakeSink) -> None:
    watcher = SinkWatcher([sink])
    watcher.answered(answered(label=967, reference=3))
    watcher.answered(answered(Outcome.STALE))
    ok, stale = sink.lines
    assert (ok["node"], ok["camera"], ok["sequence"], ok["outcome"]) == ("dock", "gate", 7, "ok")
    assert ok["classes"][0] == {"index": 967, "name": "espresso", "probability": 0.75}
    assert (ok["label"], ok["reference_top1"], ok["depth"], ok["level"], ok["age_ms"]) == (967, 3, 4, 3.0, 40.0)
    assert (stale["outcome"], stale["classes"], stale["text"]) == ("stale", [], "why")


def test_every_watcher_is_told_in_order() -> None:
    told: list[str] = []

    class Watcher:
        def __init__(self, name: str) -> None:
            self.name = name

        def idle(self, now_ns: int) -> None:
            told.append(f"{self.name} {now_ns}")

    watchers = Watchers([Watcher("a"), Watcher("b")])
    watchers.idle(1)
    watchers.idle(2)
    assert told == ["a 1", "b 1", "a 2", "b 2"]
    with pytest.raises(AttributeError):
        watchers.nothing()


def test_status_is_made_when_a_page_asks(front: Any) -> None:
    clock = FakeClock(0)
    board = StatusBoard(clock, patience_s=0.0)
    status = CloudStatus(board, {"program": "rac-cloud"}, 10, clock)
    status.attach(front)
    status.session_changed(SessionOpened(b"r", "dock", ("gate",)))
    status.received(answered().frame, 4)
    status.answered(answered(reference=967))
    status.answered(answered(Outcome.STALE))
    status.idle(S)
    assert board.read() == ({}, None), "nobody had asked"
    status.idle(S)
    document, _ = board.read()
    (row,) = document["cameras"]
    assert (row["node"], row["camera"], row["class"], row["depth"], row["level"]) == (
        "dock",
        "gate",
        "espresso",
        4,
        3.0,
    )
    assert (row["agreement"], row["references"], row["results"], row["frames"]) == (1.0, 1, 1, 1)
    assert [worker["state"] for worker in document["workers"]] == ["ready", "ready"]
    assert document["program"] == "rac-cloud"
    front.trouble = ["no worker can serve"]
    clock.advance(S)
    status.session_changed(SessionClosed(b"r", "dock", CloseReason.TIMEOUT))
    board.read()
    status.idle(2 * S)
    document, _ = board.read()
    assert document["trouble"] == ["no worker can serve"]
    assert document["cameras"][0]["state"] == "down"


def test_wire_bytes_of_a_frame_count_its_framing(front: Any) -> None:
    clock = FakeClock(0)
    status = CloudStatus(StatusBoard(clock), {}, 10, clock)
    status.attach(front)
    status.session_changed(SessionOpened(b"r", "dock", ("gate",)))
    status.idle(0)
    frame = answered().frame
    for _ in range(60):
        status.received(frame, 4)
    document = status.document(6 * S)
    wire_bytes = framed_bytes(pack(frame.frame))
    assert wire_bytes > len(frame.frame.bitstream)
    assert document["cameras"][0]["kbps"] == pytest.approx(8 * 60 * wire_bytes / 6 / 1000, rel=0.001)
