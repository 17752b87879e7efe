"""95 % intervals of what is computed from whole curves, paired: every curve meets the same resampled pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.accuracy import VIEW_PIXELS, RatePoint
from pipeline.evaluation.bootstrap import OUTSIDE_PERCENT, SEED, Interval
from pipeline.evaluation.curves import Curve

RESAMPLES = 500
"""A curve is interpolated anew for each."""
LEAST_SHARE = 0.95
"""Of the resamples, in which there must be a value at all: curves that hardly overlap have no interval."""

Measure = Callable[[Sequence[Curve]], float | None]


def curves_interval(
    systems: Sequence[Sequence[RatePoint]],
    truth: NDArray[np.int64],
    measure: Measure,
    resamples: int = RESAMPLES,
) -> Interval | None:
    """Interval of a measure of several systems' curves (bpp, percent); None where it has too often no value.

    Rates are resampled with the accuracies: a picture that is drawn twice counts twice in both.

    Args:
        systems: points of each, on the same pictures.
        truth: classes (N,), labels or the uncompressed classifier's.
    """
    is_right = [np.stack([point.predictions == truth for point in points]).astype(np.float64) for points in systems]
    num_bytes = [np.stack([point.num_bytes for point in points]).astype(np.float64) for points in systems]
    random = np.random.default_rng(SEED)
    values = []
    for _ in range(resamples):
        drawn = np.bincount(random.integers(len(truth), size=len(truth)), minlength=len(truth)) / len(truth)
        curves = [
            list(zip((8 / VIEW_PIXELS * sizes @ drawn).tolist(), (100 * right @ drawn).tolist(), strict=True))
            for sizes, right in zip(num_bytes, is_right, strict=True)
        ]
        values.append(measure(curves))
    found = [value for value in values if value is not None]
    if len(found) < LEAST_SHARE * resamples:
        return None
    low, high = np.percentile(found, [OUTSIDE_PERCENT, 100 - OUTSIDE_PERCENT])
    return float(low), float(high)
