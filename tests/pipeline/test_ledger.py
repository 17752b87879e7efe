"""Every captured frame ends once: captured = results + dropped + in flight, at every step."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from pipeline.cloud_ledger import CloudLedger
from pipeline.errors import LedgerError
from pipeline.ledger import (
    CAMERA_LATENCY_SAMPLES,
    CLOUD_OUTCOMES,
    LATENCY_SAMPLES,
    NODE_DROPS,
    RECENT_SENT,
    RESULT_OUTCOMES,
    Ledger,
    Outcome,
)
from pipeline.percentiles import SampleWindow, percentile
from pipeline.totals import CameraTotals, CodedTotals, add_totals

MS = 1_000_000


def send(ledger: Ledger, sequence: int, now_ns: int = 0, camera: str = "gate", depth: int = 4) -> None:
    ledger.send(
        camera,
        sequence,
        now_ns,
        depth=depth,
        level16=40,
        bitstream_bytes=1000,
        coded_pixels=50_176,
        wire_bytes=1040,
    )


def sent_ledger(*sequences: int, label: int | None = None) -> Ledger:
    """Frames captured at 0 and sent at 10 ms."""
    ledger = Ledger(["gate"])
    for sequence in sequences:
        ledger.capture("gate", sequence, 0, label)
        send(ledger, sequence, 10 * MS)
    return ledger


def totals(ledger: Ledger) -> CameraTotals:
    return ledger.snapshot().total


def test_answered_frame_is_a_result_with_latency_on_the_nodes_clock() -> None:
    ledger = sent_ledger(0)
    closed = ledger.answer("gate", 0, Outcome.OK, 50 * MS, classes=[7], wire_bytes=200)
    assert closed is not None
    assert (closed.latency_ns, closed.round_trip_ns, closed.depth, closed.level) == (50 * MS, 40 * MS, 4, 2)
    total = totals(ledger)
    assert (total.captured, total.sent, total.results, total.in_flight) == (1, 1, 1, 0)
    assert (total.wire_sent_bytes, total.wire_received_bytes) == (1040, 200)
    assert (total.first_result_ns, total.last_result_ns) == (50 * MS, 50 * MS)


def test_outcome_other_than_ok_is_a_drop_by_that_reason() -> None:
    ledger = sent_ledger(0, 1, 2)
    ledger.answer("gate", 0, Outcome.STALE, 50 * MS, classes=[1], reference_top1=1)
    ledger.answer("gate", 1, Outcome.STALE, 50 * MS)
    ledger.answer("gate", 2, Outcome.CORRUPT, 50 * MS)
    total = totals(ledger)
    assert total.dropped == {"stale": 2, "corrupt": 1}
    assert (total.results, total.references, total.last_result_ns) == (0, 0, None)


def test_skipped_frames_are_captured_and_dropped_in_one_call() -> None:
    ledger = Ledger()
    ledger.skip("gate", 0, 4, Outcome.SUPERSEDED)
    ledger.capture("gate", 5, 0)
    ledger.skip("gate", 6, 5, Outcome.SUPERSEDED)  # an empty range: nothing was overwritten
    ledger.skip("gate", 6, 6, Outcome.NO_CREDIT)
    total = totals(ledger)
    assert (total.captured, total.in_flight) == (7, 1)
    assert total.dropped == {"superseded": 5, "no_credit": 1}


def test_sequence_that_does_not_rise_is_our_bug() -> None:
    ledger = Ledger()
    ledger.capture("gate", 3, 0)
    for call in (
        lambda: ledger.capture("gate", 3, 0),
        lambda: ledger.capture("gate", 2, 0),
        lambda: ledger.skip("gate", 3, 9, Outcome.SUPERSEDED),
    ):
        with pytest.raises(LedgerError, match="after frame 3"):
            call()
    assert totals(ledger).captured == 1


def test_frame_closes_once() -> None:
    ledger = sent_ledger(0)
    ledger.drop("gate", 0, Outcome.SHUTDOWN, 20 * MS)
    with pytest.raises(LedgerError, match="not open"):
        ledger.drop("gate", 0, Outcome.SHUTDOWN, 20 * MS)
    with pytest.raises(LedgerError, match="not open"):
        send(ledger, 0)
    with pytest.raises(LedgerError, match="not open"):
        ledger.drop("gate", 1, Outcome.ENCODE_ERROR, 0)
    assert totals(ledger).dropped == {"shutdown": 1}


def test_frame_is_sent_once() -> None:
    ledger = sent_ledger(0)
    with pytest.raises(LedgerError, match="sent twice"):
        send(ledger, 0)
    assert totals(ledger).sent == 1


def test_each_side_gives_its_own_reasons_only() -> None:
    assert set(Outcome) == NODE_DROPS | CLOUD_OUTCOMES
    # At the drain deadline; and bytes that are damaged, in the node's spool or on their way.
    assert {Outcome.SHUTDOWN, Outcome.CORRUPT} == NODE_DROPS & CLOUD_OUTCOMES
    assert {Outcome.UNROUTABLE} == CLOUD_OUTCOMES - RESULT_OUTCOMES
    ledger, cloud = sent_ledger(0), CloudLedger()
    cloud.receive(0)
    for call in (
        lambda: ledger.drop("gate", 0, Outcome.OK, 0),
        lambda: ledger.drop("gate", 0, Outcome.STALE, 0),
        lambda: ledger.skip("gate", 1, 2, Outcome.OK),
        lambda: ledger.answer("gate", 0, Outcome.EXPIRED, 0),
        lambda: ledger.close_all(Outcome.OK, 0),
        lambda: cloud.close(0, Outcome.SUPERSEDED),
    ):
        with pytest.raises(LedgerError, match="cannot be given"):
            call()
    assert (ledger.in_flight, cloud.in_flight) == (1, 1)


def test_expire_closes_what_waits_too_long_and_only_that() -> None:
    ledger = Ledger()
    for sequence in range(3):
        ledger.capture("gate", sequence, 0)
    send(ledger, 0, 10)
    send(ledger, 1, 20)
    assert ledger.next_expiry_ns(100) == 110
    assert ledger.expire(109, 100) == []
    assert [closed.sequence for closed in ledger.expire(110, 100)] == [0]
    assert ledger.expire(119, 100) == []
    assert [closed.sequence for closed in ledger.expire(120, 100)] == [1]
    assert ledger.next_expiry_ns(100) is None
    total = totals(ledger)
    assert (total.dropped, total.in_flight, total.unanswered) == ({"expired": 2}, 1, 0)


def test_lost_link_takes_sent_frames_and_leaves_waiting_ones() -> None:
    ledger = sent_ledger(0, 1)
    ledger.capture("gate", 2, 0)
    assert {closed.sequence for closed in ledger.lose_link(30 * MS)} == {0, 1}
    assert ledger.lose_link(30 * MS) == []
    total = totals(ledger)
    assert (total.dropped, total.in_flight) == ({"lost_in_link": 2}, 1)


def test_close_all_ends_everything() -> None:
    ledger = sent_ledger(0, 1)
    ledger.capture("gate", 2, 0)
    ledger.capture("belt", 0, 0)
    assert len(ledger.close_all(Outcome.SHUTDOWN, 30 * MS)) == 4
    snapshot = ledger.snapshot()
    assert (snapshot.total.in_flight, snapshot.total.dropped) == (0, {"shutdown": 4})
    assert snapshot.peak_in_flight == 4


def test_results_outside_the_balance_are_told_apart() -> None:
    ledger = sent_ledger(0, 1)
    ledger.capture("gate", 2, 0)
    ledger.expire(20_000 * MS, 1)
    assert ledger.answer("gate", 0, Outcome.OK, 1) is None  # late
    send(ledger, 2)
    ledger.answer("gate", 2, Outcome.OK, 1)
    assert ledger.answer("gate", 2, Outcome.OK, 1) is None  # repeated
    ledger.capture("gate", 3, 0)
    assert ledger.answer("gate", 3, Outcome.OK, 1) is None  # still here, cannot have been seen
    assert ledger.answer("gate", 99, Outcome.OK, 1) is None  # never captured
    total = totals(ledger)
    assert (total.late, total.repeated, total.unknown) == (1, 1, 2)
    assert (total.captured, total.results, total.dropped, total.in_flight) == (4, 1, {"expired": 2}, 1)


def test_result_for_an_older_frame_that_still_waits_here_is_unknown() -> None:
    ledger = Ledger()
    ledger.capture("gate", 0, 0)
    ledger.capture("gate", 1, 0)
    send(ledger, 1)
    ledger.answer("gate", 1, Outcome.OK, 1)
    assert ledger.answer("gate", 0, Outcome.OK, 1) is None
    total = totals(ledger)
    assert (total.unknown, total.late, total.in_flight) == (1, 0, 1)


def test_result_older_than_the_memory_is_late() -> None:
    ledger = sent_ledger(*range(RECENT_SENT + 5))
    for sequence in range(RECENT_SENT + 5):
        ledger.answer("gate", sequence, Outcome.OK, 20 * MS)
    assert ledger.answer("gate", 2, Outcome.OK, 30 * MS) is None
    assert ledger.answer("gate", 5, Outcome.OK, 30 * MS) is None
    total = totals(ledger)
    assert (total.late, total.repeated, total.unknown) == (1, 1, 0)


def test_result_for_a_camera_without_frames_is_our_bug() -> None:
    with pytest.raises(LedgerError, match="attic"):
        Ledger(["gate"]).answer("attic", 0, Outcome.OK, 0)


def test_accuracy_counts() -> None:
    ledger = sent_ledger(*range(5), label=7)
    ledger.capture("gate", 5, 0)
    send(ledger, 5)
    ledger.answer("gate", 0, Outcome.OK, 1, classes=[7, 1, 2, 3, 4], reference_top1=7)  # both right
    ledger.answer("gate", 1, Outcome.OK, 1, classes=[1, 7, 2, 3, 4], reference_top1=1)  # agree on a wrong one
    ledger.answer("gate", 2, Outcome.OK, 1, classes=[1, 2, 3, 4, 5])  # wrong, no reference
    ledger.answer("gate", 3, Outcome.OK, 1)  # ok without classes: counted as wrong
    ledger.answer("gate", 4, Outcome.STALE, 1, classes=[7])  # no result, no count
    ledger.answer("gate", 5, Outcome.OK, 1, classes=[9], reference_top1=8)  # no label
    total = totals(ledger)
    assert (total.labelled, total.correct_top1, total.correct_top5) == (4, 1, 2)
    assert (total.references, total.agreements) == (3, 2)
    assert (total.labelled_references, total.reference_correct) == (2, 1)


def test_coded_totals_by_depth_and_whole_level() -> None:
    ledger = sent_ledger(0, 1)
    ledger.capture("gate", 2, 0)
    send(ledger, 2, depth=0)
    snapshot = ledger.snapshot()
    assert snapshot.coded == {
        ("gate", 4, 2): CodedTotals(2, 2000, 2 * 50_176),
        ("gate", 0, 2): CodedTotals(1, 1000, 50_176),
    }
    assert (snapshot.total.bitstream_bytes, snapshot.total.coded_pixels) == (3000, 3 * 50_176)


def test_latency_percentiles_are_of_results_only() -> None:
    ledger = sent_ledger(*range(101))
    for sequence in range(100):
        ledger.answer("gate", sequence, Outcome.OK, (sequence + 1) * MS)
    ledger.answer("gate", 100, Outcome.STALE, 9999 * MS)
    snapshot = ledger.snapshot()
    assert (snapshot.latency_p50_ns, snapshot.latency_p99_ns) == (50 * MS, 99 * MS)
    assert snapshot.camera_latency_p50_ns == {"gate": 50 * MS}
    assert sorted(ledger.latency_samples_ns()) == [latency * MS for latency in range(1, 101)]


def test_known_camera_shows_zeros_and_totals_add_up() -> None:
    ledger = Ledger(["gate", "belt"])
    ledger.capture("gate", 0, 0)
    ledger.skip("belt", 0, 1, Outcome.RATE_LIMIT)
    send(ledger, 0)
    ledger.answer("gate", 0, Outcome.OK, 5)
    snapshot = ledger.snapshot()
    assert Ledger(["gate"]).snapshot().cameras == {"gate": CameraTotals()}
    assert snapshot.total == add_totals(snapshot.cameras.values())
    assert (snapshot.total.captured, snapshot.total.first_result_ns) == (3, 5)
    assert Ledger().snapshot().latency_p50_ns is None


def test_snapshot_does_not_change_afterwards() -> None:
    ledger = sent_ledger(0)
    before = ledger.snapshot()
    ledger.lose_link(20 * MS)
    assert (before.cameras["gate"].in_flight, before.cameras["gate"].dropped) == (1, {})


def test_memory_stays_bounded_over_many_frames() -> None:
    """Closed frames leave totals behind, and bounded rings."""
    ledger = Ledger()
    for sequence in range(10_000):
        ledger.capture("gate", sequence, 0)
        send(ledger, sequence)
        ledger.answer("gate", sequence, Outcome.OK, 10)
    state = ledger._cameras["gate"]
    assert (len(state.open), len(ledger._sent), len(state.recent)) == (0, 0, RECENT_SENT)
    assert (len(state.latency), len(ledger._latency)) == (CAMERA_LATENCY_SAMPLES, LATENCY_SAMPLES)


def test_leak_of_open_entries_stops_loudly() -> None:
    ledger, cloud = Ledger(max_open=2), CloudLedger(max_open=1)
    for sequence in range(2):
        ledger.capture("gate", sequence, 0)
    with pytest.raises(LedgerError, match="not being closed"):
        ledger.capture("gate", 2, 0)
    cloud.receive(0)
    with pytest.raises(LedgerError, match="none closes"):
        cloud.receive(1)
    assert (totals(ledger).captured, cloud.snapshot().received) == (2, 1)


def test_balance_check_sees_a_miscount() -> None:
    ledger = sent_ledger(0)
    ledger._cameras["gate"].totals.captured += 1
    with pytest.raises(LedgerError, match="gate: 2 captured"):
        ledger.snapshot()


def test_cloud_ledger_counts_each_frame_once_by_outcome() -> None:
    ledger = CloudLedger()
    for ticket in range(3):
        ledger.receive(ticket)
    ledger.close(0, Outcome.OK)
    ledger.close(2, Outcome.UNROUTABLE)
    for ticket in (0, 7):
        with pytest.raises(LedgerError, match="not open"):
            ledger.close(ticket, Outcome.OK)
    with pytest.raises(LedgerError):
        ledger.receive(1)
    snapshot = ledger.snapshot()
    assert (snapshot.received, snapshot.in_flight, snapshot.peak_in_flight) == (3, 1, 3)
    assert {word: count for word, count in snapshot.results.items() if count} == {"ok": 1, "unroutable": 1}
    assert set(snapshot.results) == {outcome.value for outcome in CLOUD_OUTCOMES}
    assert ledger.open_tickets() == [1]


def test_percentile_is_nearest_rank() -> None:
    samples = [50, 10, 40, 20, 30]
    assert [percentile(samples, percent) for percent in (1, 20, 21, 50, 90, 100)] == [10, 10, 20, 30, 50, 50]
    assert percentile([7], 99) == 7


def test_window_keeps_the_newest() -> None:
    window = SampleWindow(3)
    assert window.percentile(50) is None
    for sample in range(5):
        window.add(sample)
    assert sorted(window.samples()) == [2, 3, 4]
    window.clear()
    window.add(9)
    assert window.samples() == [9]


def test_frame_in_the_spool_outlives_session_and_run() -> None:
    ledger = sent_ledger(0, 1)
    ledger.keep("gate", 0)
    assert ledger.is_kept_and_sent("gate", 0)
    assert [closed.sequence for closed in ledger.lose_link(20 * MS)] == [1]
    assert not ledger.is_kept_and_sent("gate", 0)
    send(ledger, 0)
    ledger.unsend("gate", 0)
    for call in (lambda: ledger.unsend("gate", 0), lambda: ledger.unsend("gate", 1)):
        with pytest.raises(LedgerError):
            call()
    assert ledger.close_all(Outcome.SHUTDOWN, 30 * MS) == []
    total = totals(ledger)
    assert (total.sent, total.in_flight, total.unanswered, total.dropped) == (3, 1, 0, {"lost_in_link": 1})


def test_recovered_frame_is_not_captured_again_and_has_no_latency() -> None:
    ledger = Ledger()
    ledger.recover("gate", 4, label=7)
    send(ledger, 4)
    closed = ledger.answer("gate", 4, Outcome.OK, 50 * MS, classes=[7])
    assert closed is not None
    assert closed.latency_ns is None
    ledger.capture("gate", 9, 60 * MS)
    total = totals(ledger)
    assert (total.captured, total.recovered, total.results, total.in_flight, total.correct_top1) == (1, 1, 1, 1, 1)
    assert ledger.snapshot().latency_p50_ns is None


class LedgerMachine(RuleBasedStateMachine):
    """Any order of calls against a model that remembers every frame for ever."""

    def __init__(self) -> None:
        super().__init__()
        self.ledger = Ledger()
        self.now_ns = 0
        self.next_sequence = Counter({"a": 0, "b": 0})
        self.open: dict[tuple[str, int], int | None] = {}  # sent at, or None
        self.ended: Counter[str] = Counter()
        self.captured = 0
        self.stray = 0
        self.sent: set[tuple[str, int]] = set()
        self.kept: set[tuple[str, int]] = set()
        self.recovered = 0
        self.resent = 0

    cameras = st.sampled_from(["a", "b"])
    drops = st.sampled_from(sorted(NODE_DROPS))

    @rule(camera=cameras, gap=st.integers(0, 3))
    def capture(self, camera: str, gap: int) -> None:
        sequence = self.next_sequence[camera] + gap
        self.ledger.capture(camera, sequence, self.now_ns)
        self.next_sequence[camera] = sequence + 1
        self.open[camera, sequence] = None
        self.captured += 1

    @rule(camera=cameras)
    def recover(self, camera: str) -> None:
        key = (camera, self.next_sequence[camera])
        self.ledger.recover(*key)
        self.next_sequence[camera] += 1
        self.open[key] = None
        self.kept.add(key)
        self.recovered += 1

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def keep(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(list(self.open)))
        self.ledger.keep(*key)
        self.kept.add(key)

    @rule(camera=cameras, frames=st.integers(0, 5), outcome=drops)
    def skip(self, camera: str, frames: int, outcome: Outcome) -> None:
        first = self.next_sequence[camera]
        self.ledger.skip(camera, first, first + frames - 1, outcome)
        self.next_sequence[camera] += frames
        self.captured += frames
        self.ended[outcome] += frames

    @rule(step_ns=st.integers(0, 50))
    def wait(self, step_ns: int) -> None:
        self.now_ns += step_ns

    @precondition(lambda self: None in self.open.values())
    @rule(data=st.data())
    def send(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from([key for key, sent_ns in self.open.items() if sent_ns is None]))
        send(self.ledger, key[1], self.now_ns, camera=key[0])
        self.open[key] = self.now_ns
        self.sent.add(key)

    @precondition(lambda self: self.open)
    @rule(data=st.data(), outcome=drops)
    def drop(self, data: st.DataObject, outcome: Outcome) -> None:
        key = data.draw(st.sampled_from(list(self.open)))
        self.ledger.drop(*key, outcome, self.now_ns)
        del self.open[key]
        self.ended[outcome] += 1

    @precondition(lambda self: self.captured)
    @rule(data=st.data(), outcome=st.sampled_from(sorted(RESULT_OUTCOMES)))
    def answer(self, data: st.DataObject, outcome: Outcome) -> None:
        """A RESULT for any frame, waiting or not."""
        camera = data.draw(st.sampled_from(sorted(camera for camera, count in self.next_sequence.items() if count)))
        key = (camera, data.draw(st.integers(0, self.next_sequence[camera] + 1)))
        closed = self.ledger.answer(*key, outcome, self.now_ns)
        if self.open.get(key) is None:
            assert closed is None
            self.stray += 1
        else:
            assert closed is not None
            del self.open[key]
            self.ended[outcome] += 1

    @rule(timeout_ns=st.integers(1, 100))
    def expire(self, timeout_ns: int) -> None:
        due = {key for key, sent_ns in self.open.items() if sent_ns is not None and self.now_ns - sent_ns >= timeout_ns}
        closed = self.ledger.expire(self.now_ns, timeout_ns)
        assert {(frame.camera, frame.sequence) for frame in closed} == due
        self.forget(due, Outcome.EXPIRED)

    @rule()
    def lose_link(self) -> None:
        waiting = {key for key, sent_ns in self.open.items() if sent_ns is not None}
        lost = waiting - self.kept
        assert len(self.ledger.lose_link(self.now_ns)) == len(lost)
        self.forget(lost, Outcome.LOST_IN_LINK)
        for key in waiting & self.kept:
            self.open[key] = None
            self.sent.discard(key)
            self.resent += 1

    @rule()
    def close_all(self) -> None:
        self.ledger.close_all(Outcome.SHUTDOWN, self.now_ns)
        self.forget(set(self.open) - self.kept, Outcome.SHUTDOWN)

    def forget(self, keys: set[tuple[str, int]], outcome: Outcome) -> None:
        self.ended[outcome] += len(keys)
        for key in keys:
            del self.open[key]

    @invariant()
    def balance_holds(self) -> None:
        total = totals(self.ledger)
        ended = total.results + sum(total.dropped.values())
        assert total.captured + total.recovered == ended + total.in_flight == self.captured + self.recovered
        assert total.results == self.ended[Outcome.OK]
        assert total.dropped == {word: count for word, count in self.ended.items() if count and word != Outcome.OK}
        assert total.in_flight == len(self.open)
        assert total.sent == len(self.sent) + self.resent
        assert total.late + total.repeated + total.unknown == self.stray
        assert self.ledger.unanswered == sum(sent_ns is not None for sent_ns in self.open.values())


def test_balance_holds_at_every_step_in_any_order() -> None:
    run_state_machine_as_test(
        LedgerMachine,
        settings=settings(derandomize=True, deadline=None, max_examples=60, stateful_step_count=40),
    )
