"""Rates from samples of totals."""

from __future__ import annotations

from pipeline.history import Growth, History

S = 1_000_000_000


def sampled(*totals: int | None, step_s: int = 5) -> History:
    """A history of one key, sampled every step; None: the key is not there yet."""
    history = History(step_s * S, num_steps=4)
    for index, total in enumerate(totals):
        history.take(index * step_s * S, {} if total is None else {"door": (total, 10 * total)})
    return history


def test_growth_is_over_the_oldest_sample_within_the_span() -> None:
    history = sampled(0, 10, 30)
    assert history.growth("door", (36, 360), 12 * S, 10 * S) == Growth(7.0, (26, 260))
    assert history.growth("door", (36, 360), 12 * S, 60 * S) == Growth(12.0, (36, 360))


def test_nothing_is_said_without_a_sample_in_the_span() -> None:
    assert History().growth("door", (5,), 0, 10 * S) is None
    assert sampled(1).growth("door", (5, 50), 30 * S, 10 * S) is None
    assert sampled(1).growth("door", (5, 50), 0, 10 * S) is None, "no time has passed"


def test_key_that_appeared_since_a_sample_began_with_nothing() -> None:
    assert sampled(None, None).growth("door", (5, 50), 7 * S, 10 * S) == Growth(2.0, (5, 50))
    assert sampled(None, 4).growth("door", (5, 50), 7 * S, 60 * S) == Growth(7.0, (5, 50))


def test_growth_of_all_goes_back_to_where_the_key_appeared() -> None:
    history = sampled(None, None, 4, 8)
    assert history.growth_of_all("door", (9, 90), 16 * S) == Growth(11.0, (9, 90))
    assert sampled(2, 4).growth_of_all("door", (9, 90), 6 * S) == Growth(6.0, (7, 70))
    assert History().growth_of_all("door", (9, 90), 16 * S) is None


def test_steps_are_bounded_and_unknown_where_the_key_was_not() -> None:
    history = sampled(None, None, 4, 8)
    assert history.steps("door") == [None, Growth(5.0, (4, 40)), Growth(5.0, (4, 40))]
    assert history.newest_step("door") == Growth(5.0, (4, 40))
    assert len(sampled(*range(50)).steps("door")) == 4
    assert sampled(1).newest_step("door") is None


def test_totals_that_begin_again_never_give_a_negative_rate() -> None:
    assert sampled(100, 3).newest_step("door") == Growth(5.0, (0, 0))


def test_a_sample_is_due_once_a_step() -> None:
    history = History(5 * S)
    assert history.is_due(0)
    history.take(0, {})
    assert not history.is_due(5 * S - 1)
    assert history.is_due(5 * S)
