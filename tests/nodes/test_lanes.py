"""A camera's lane: every captured frame is booked once, under the reason why nobody asked for it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nodes.lanes import RESERVE_NS, Lane
from pipeline.frames import Frame
from pipeline.ledger import Ledger, Outcome
from tests.fakes import VIEW, FakeReader


def make_lane() -> tuple[Lane, Ledger]:
    reader = FakeReader("door")
    return Lane(0, reader), Ledger(["door"])


def make_frame(sequence: int) -> Frame:
    return Frame("door", sequence, 0, VIEW, view_ns=0)


def dropped(ledger: Ledger) -> dict[str, int]:
    return ledger.snapshot().cameras["door"].dropped


def test_frames_before_the_one_that_came_are_superseded() -> None:
    lane, ledger = make_lane()
    lane.ask(0)
    lane.accept(ledger, make_frame(4), rate_limited_total=0)
    assert dropped(ledger) == {"superseded": 4}
    assert ledger.snapshot().total.captured == 5
    assert ledger.in_flight == 1


def test_rate_limited_frames_keep_their_reason_and_are_booked_once() -> None:
    lane, ledger = make_lane()
    lane.accept(ledger, make_frame(4), rate_limited_total=3)
    lane.accept(ledger, make_frame(5), rate_limited_total=3)
    lane.settle(ledger, captured_total=8, rate_limited_total=5)
    assert dropped(ledger) == {"rate_limit": 5, "superseded": 1}
    assert ledger.snapshot().total.captured == 8


def test_reason_holds_for_what_was_missed_under_it_and_no_longer() -> None:
    lane, ledger = make_lane()
    lane.block(Outcome.NO_CREDIT)
    lane.settle(ledger, captured_total=2, rate_limited_total=0)
    lane.accept(ledger, make_frame(3), rate_limited_total=0)
    assert dropped(ledger) == {"no_credit": 2, "superseded": 1}


def test_a_missing_link_outweighs_missing_credit() -> None:
    lane, ledger = make_lane()
    lane.block(Outcome.LINK_DOWN)
    lane.block(Outcome.NO_CREDIT)
    lane.settle(ledger, captured_total=2, rate_limited_total=0)
    lane.block(Outcome.NO_CREDIT)
    lane.settle(ledger, captured_total=3, rate_limited_total=0)
    assert dropped(ledger) == {"link_down": 2, "no_credit": 1}


def test_lane_reserves_credit_for_an_answer_that_is_to_come_soon_only() -> None:
    """A camera that is slow or down must not keep the others waiting."""
    lane, ledger = make_lane()
    assert not lane.reserves(0)
    lane.ask(10)
    assert lane.reserves(10 + RESERVE_NS - 1)
    assert not lane.reserves(10 + RESERVE_NS)
    assert not lane.can_ask
    lane.accept(ledger, make_frame(0), rate_limited_total=0)
    assert lane.can_ask
    lane.frame = make_frame(0)
    assert lane.reserves(10 + RESERVE_NS)
    assert not lane.can_ask


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["frame", "settle"]),
            st.integers(0, 5),
            st.integers(0, 3),
            st.sampled_from([None, Outcome.NO_CREDIT, Outcome.LINK_DOWN]),
        ),
        max_size=40,
    )
)
def test_whatever_a_camera_tells_every_frame_has_one_entry(
    events: list[tuple[str, int, int, Outcome | None]],
) -> None:
    lane, ledger = make_lane()
    captured = limited = arrived = missed = 0
    for kind, num_missed, num_limited, reason in events:
        if reason is not None:
            lane.block(reason)
        captured += num_missed + num_limited
        missed += num_missed
        limited += num_limited
        if kind == "frame":
            captured += 1
            arrived += 1
            lane.accept(ledger, make_frame(captured - 1), limited)
        else:
            lane.settle(ledger, captured, limited)
    total = ledger.snapshot().total
    assert total.captured == captured
    assert total.in_flight == arrived
    assert total.dropped.get("rate_limit", 0) == limited
    assert sum(total.dropped.values()) == limited + missed
