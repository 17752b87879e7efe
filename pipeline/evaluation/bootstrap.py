"""95 % intervals by resampling pictures, paired: every system meets the same resampled pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000
SEED = 0
OUTSIDE_PERCENT = 2.5
"""On either side of a 95 % interval."""

Interval = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Intervals:
    """Of one system's shares on one set of pictures; those about labels are None without them.

    Attributes:
        share_of_top1: None also where the uncompressed classifier is never right.
    """

    agreement: Interval
    top1: Interval | None
    share_of_top1: Interval | None


def bootstrap_intervals(
    predictions: Sequence[NDArray[np.int64]],
    reference: NDArray[np.int64],
    labels: NDArray[np.int64] | None,
    resamples: int = RESAMPLES,
) -> list[Intervals]:
    """Intervals of each system's agreement, top-1 and share of top-1.

    Args:
        predictions: classes (N,) of each system on the same pictures.
        reference: classes (N,) of the uncompressed classifier.
    """
    agreements = _resampled_means([each == reference for each in predictions], resamples)
    if labels is None:
        return [Intervals(_interval(column), None, None) for column in agreements]
    *correct, reference_correct = _resampled_means([each == labels for each in [*predictions, reference]], resamples)
    is_known = bool((reference_correct > 0).all())
    return [
        Intervals(_interval(agreement), _interval(top1), _interval(top1 / reference_correct) if is_known else None)
        for agreement, top1 in zip(agreements, correct, strict=True)
    ]


def difference_interval(is_right: NDArray[np.bool_], other: NDArray[np.bool_], resamples: int = RESAMPLES) -> Interval:
    """Interval of the difference of two systems' shares, from what each made of the same pictures (N,)."""
    first, second = _resampled_means([is_right, other], resamples)
    return _interval(first - second)


def _resampled_means(columns: Sequence[NDArray[np.bool_]], resamples: int) -> list[NDArray[np.float64]]:
    """Means (resamples,) of each column over the same drawn pictures."""
    values = np.stack(columns).astype(np.float64)  # (systems, N)
    num_pictures = values.shape[1]
    random = np.random.default_rng(SEED)
    means = np.empty((len(values), resamples))
    for row in range(resamples):  # drawn one by one: memory for 50,000 pictures stays small
        drawn = np.bincount(random.integers(num_pictures, size=num_pictures), minlength=num_pictures)
        means[:, row] = values @ drawn / num_pictures
    return list(means)


def _interval(values: NDArray[np.float64]) -> Interval:
    low, high = np.percentile(values, [OUTSIDE_PERCENT, 100 - OUTSIDE_PERCENT])
    return float(low), float(high)
