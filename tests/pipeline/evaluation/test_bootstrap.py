"""Intervals by resampling: as wide as they must be, equal in every run, and paired."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.evaluation.bootstrap import bootstrap_intervals, difference_interval

NUM_PICTURES = 400


def test_interval_is_that_of_a_share_of_independent_pictures() -> None:
    labels = np.zeros(NUM_PICTURES, np.int64)
    predictions = (np.arange(NUM_PICTURES) % 10 < 3).astype(np.int64)  # 30 % wrong
    (found,) = bootstrap_intervals([predictions], labels, labels)
    half = 1.96 * np.sqrt(0.7 * 0.3 / NUM_PICTURES)
    assert found.agreement == pytest.approx((0.7 - half, 0.7 + half), abs=0.006)
    assert found.top1 == found.agreement
    assert found.share_of_top1 == found.agreement  # the uncompressed classifier is always right here
    assert bootstrap_intervals([predictions], labels, labels) == [found]


def test_share_of_top1_divides_by_the_classifier_on_the_same_drawn_pictures() -> None:
    """A system that is right exactly where the classifier is has a share of one, however few those pictures are."""
    labels = np.zeros(NUM_PICTURES, np.int64)
    reference = (np.arange(NUM_PICTURES) % 2).astype(np.int64)
    (found,) = bootstrap_intervals([reference], reference, labels)
    assert found.share_of_top1 == (1.0, 1.0)
    assert found.top1 is not None
    assert found.top1[0] < 0.47
    assert found.top1[1] > 0.53


def test_without_labels_only_agreement_has_an_interval() -> None:
    reference = np.arange(20)
    (found,) = bootstrap_intervals([reference], reference, None)
    assert (found.agreement, found.top1, found.share_of_top1) == ((1.0, 1.0), None, None)


def test_a_classifier_that_is_never_right_gives_no_share() -> None:
    (found,) = bootstrap_intervals([np.zeros(20, np.int64)], np.ones(20, np.int64), np.zeros(20, np.int64))
    assert found.top1 == (1.0, 1.0)
    assert found.share_of_top1 is None


def test_a_difference_is_paired() -> None:
    """Two systems that err on nearly the same pictures differ by little, though each share is uncertain."""
    is_right = np.arange(NUM_PICTURES) % 2 == 0
    slightly_better = is_right.copy()
    slightly_better[[1, 3, 5, 7]] = True
    low, high = difference_interval(slightly_better, is_right)
    assert 0 <= low < 0.01 < high < 0.025
    assert difference_interval(is_right, is_right) == (0.0, 0.0)
