"""Mean differences of curves, against hand-made curves, scipy, and the paper's own published table."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pipeline.evaluation.curves import bd_rate, delta_accuracy, paper_compat, pchip, shared_interval
from pipeline.evaluation.published import ABLATIONS, ENTROPIC_STUDENT, TABLE_I


@pytest.mark.parametrize(("name", "correct"), [("A", 0.10), ("B", 0.26), ("C", 1.03)])
def test_published_points_give_the_published_table_and_beside_it_the_correct_mean(name: str, correct: float) -> None:
    """The paper's 0.13 / 0.20 / 0.93 come out of its formula, so its printed numbers carry the formula's mistake."""
    compat = paper_compat(ABLATIONS[name], ENTROPIC_STUDENT)
    right = delta_accuracy(ABLATIONS[name], ENTROPIC_STUDENT)
    assert compat is not None
    assert right is not None
    assert round(compat.value, 2) == TABLE_I[name].delta_accuracy
    assert round(right.value, 2) == correct
    assert (right.low_bpp, right.high_bpp) == (compat.low_bpp, compat.high_bpp)


def test_the_papers_formula_is_off_by_one_over_the_width() -> None:
    """Two points more everywhere are two points more; the formula says four on half a bit of width."""
    reference = [(rate, 50 + 10 * math.log(rate)) for rate in (0.5, 0.6, 0.7, 0.8, 1.0)]
    better = [(rate, accuracy + 2) for rate, accuracy in reference]
    compat, right = paper_compat(better, reference), delta_accuracy(better, reference)
    assert compat is not None
    assert compat.value == pytest.approx(4)
    assert right is not None
    assert right.value == pytest.approx(2)
    assert (right.low_bpp, right.high_bpp) == (0.5, 1.0)


def test_the_interval_is_what_both_curves_have() -> None:
    low, high = [(0.1, 40.0), (0.6, 70.0)], [(0.3, 50.0), (1.2, 75.0)]
    assert shared_interval(low, high) == (0.3, 0.6)
    assert shared_interval(high, low) == (0.3, 0.6)


@pytest.mark.parametrize("measure", [delta_accuracy, paper_compat, bd_rate])
@pytest.mark.parametrize("curve", [[], [(0.5, 60.0)], [(2.0, 90.0), (3.0, 95.0)]])
def test_curves_that_share_nothing_have_no_difference(measure: object, curve: list[tuple[float, float]]) -> None:
    assert callable(measure)
    assert measure(curve, [(0.1, 40.0), (0.6, 70.0)]) is None


def test_the_order_of_the_points_does_not_matter() -> None:
    assert delta_accuracy(ABLATIONS["C"][::-1], ENTROPIC_STUDENT) == delta_accuracy(ABLATIONS["C"], ENTROPIC_STUDENT)


def test_half_the_bits_for_the_same_accuracy_is_a_rate_difference_of_minus_half() -> None:
    reference = [(rate, 50 + 10 * math.log(rate)) for rate in (0.1, 0.2, 0.4, 0.9)]
    saved = bd_rate([(rate / 2, accuracy) for rate, accuracy in reference], reference)
    assert saved is not None
    assert saved.value == pytest.approx(-0.5)
    assert saved.low_accuracy == pytest.approx(reference[0][1])
    assert saved.high_accuracy == pytest.approx(reference[-1][1])


def test_a_point_that_costs_more_and_gives_less_changes_no_rate_difference() -> None:
    reference = [(0.1, 50.0), (0.2, 60.0), (0.4, 66.0)]
    curve = [(0.05, 50.0), (0.1, 60.0), (0.2, 66.0)]
    with_a_bad_one = bd_rate([*curve, (0.15, 58.0)], reference)
    assert with_a_bad_one == bd_rate(curve, reference)


def test_pchip_is_scipys() -> None:
    interpolate = pytest.importorskip("scipy.interpolate")
    random = np.random.default_rng(0)
    for size in (2, 3, 4, 7):
        for _ in range(20):
            x, y = np.cumsum(random.random(size) + 0.05), random.normal(size=size)
            between = np.linspace(x[0], x[-1], 50)
            expected = interpolate.PchipInterpolator(x, y)(between)
            np.testing.assert_allclose(pchip(x, y)(between), expected, atol=1e-12)
