"""What one rate-accuracy curve is worth beside another: mean difference in accuracy, and in rate.

A curve is a sequence of points (bits per pixel, accuracy), accuracy in any unit. Between its points it is PCHIP, the
monotone cubic of Fritsch and Butland, in ln(bpp): unlike a polynomial through all points it invents no bumps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Curve = Sequence[tuple[float, float]]
Floats = NDArray[np.float64]

SAMPLES = 10_000
"""Rates at which two curves are compared, evenly spaced over what they share; the paper takes as many."""
PAPER_DEGREE = 4
"""Of the polynomial in the paper's formula."""


@dataclass(frozen=True, slots=True)
class DeltaAccuracy:
    """Mean difference of accuracy over the bits per pixel that two curves share.

    Attributes:
        value: of the curve less the reference's, in the accuracies' unit.
        low_bpp / high_bpp: the interval.
    """

    value: float
    low_bpp: float
    high_bpp: float


def delta_accuracy(curve: Curve, reference: Curve, samples: int = SAMPLES) -> DeltaAccuracy | None:
    """How much more accurate a curve is than another at the same rate, on average; None where they share no rates.

    The mean is over bits per pixel, evenly, of PCHIP in ln(bpp).
    """
    shared = shared_interval(curve, reference)
    if shared is None:
        return None
    rates = np.linspace(*shared, samples)
    difference = _interpolate_accuracy(curve)(rates) - _interpolate_accuracy(reference)(rates)
    return DeltaAccuracy(float(difference.mean()), *shared)


def distance(points: Curve, curve: Curve) -> float | None:
    """How much more accurate points are than a curve at their rates, on average; None where it has none of these."""
    if len({bpp for bpp, _ in curve}) < 2:
        return None
    low, high = min(bpp for bpp, _ in curve), max(bpp for bpp, _ in curve)
    within = [(bpp, accuracy) for bpp, accuracy in points if low <= bpp <= high]
    if not within:
        return None
    bpp, accuracy = np.array(within, np.float64).T
    return float((accuracy - _interpolate_accuracy(curve)(bpp)).mean())


def paper_compat(curve: Curve, reference: Curve) -> DeltaAccuracy | None:
    """Delta-accuracy as the paper computes it, mistake included: only to be set beside its published numbers.

    A polynomial of degree 4 of accuracy in ln(bpp), summed at 10,000 rates, divided by their number *and* by the width
    of the interval. The mistake: the sum over their number already is the mean, so the result is off by 1 / width.
    None where the curves share no rates or one has fewer than five points.
    """
    shared = shared_interval(curve, reference)
    if shared is None or min(len(curve), len(reference)) <= PAPER_DEGREE:
        return None
    rates = np.linspace(*shared, SAMPLES)
    means = []
    for points in (curve, reference):
        bpp, accuracy = _columns(points)
        fitted = np.polyval(np.polyfit(np.log(bpp), accuracy, PAPER_DEGREE), np.log(rates))
        means.append(float(fitted.sum()) / SAMPLES)
    return DeltaAccuracy((means[0] - means[1]) / (shared[1] - shared[0]), *shared)


def shared_interval(curve: Curve, reference: Curve) -> tuple[float, float] | None:
    """Lowest and highest bpp that both curves have, or None."""
    if min(len(curve), len(reference)) < 2:
        return None
    low = max(min(bpp for bpp, _ in points) for points in (curve, reference))
    high = min(max(bpp for bpp, _ in points) for points in (curve, reference))
    return (low, high) if low < high else None


@dataclass(frozen=True, slots=True)
class RateDifference:
    """Mean difference in rate over the accuracies that two curves share.

    Attributes:
        value: of the curve, as a share of the reference's rate; -0.3 is 30 % fewer bits.
        low_accuracy / high_accuracy: the interval.
    """

    value: float
    low_accuracy: float
    high_accuracy: float


def bd_rate(curve: Curve, reference: Curve) -> RateDifference | None:
    """Bjontegaard's rate difference: how many more bits a curve takes for the same accuracy; None without overlap.

    The mean of ln(bpp) over accuracy, by PCHIP. Points that are no more accurate than one of a lower rate are left
    out: nobody would choose them, and a curve needs one rate for each accuracy.
    """
    fronts = [_worth_their_rate(points) for points in (curve, reference)]
    if min(len(front) for front in fronts) < 2:
        return None
    low, high = max(front[0][1] for front in fronts), min(front[-1][1] for front in fronts)
    if low >= high:
        return None
    accuracies = np.linspace(low, high, SAMPLES)
    rates = []
    for front in fronts:
        bpp, accuracy = np.array(front, np.float64).T
        rates.append(pchip(accuracy, np.log(bpp))(accuracies))
    return RateDifference(float(np.exp((rates[0] - rates[1]).mean()) - 1), low, high)


def _worth_their_rate(curve: Curve) -> list[tuple[float, float]]:
    front: list[tuple[float, float]] = []
    for bpp, accuracy in sorted(curve):
        if front and front[-1][0] == bpp:
            front[-1] = (bpp, max(accuracy, front[-1][1]))
        elif not front or accuracy > front[-1][1]:
            front.append((bpp, accuracy))
    return front


def _interpolate_accuracy(curve: Curve) -> Callable[[Floats], Floats]:
    bpp, accuracy = _columns(curve)
    spline = pchip(np.log(bpp), accuracy)
    return lambda rates: spline(np.log(rates))


def _columns(curve: Curve) -> tuple[Floats, Floats]:
    """bpp, rising, and accuracy; of points with one rate the most accurate."""
    best: dict[float, float] = {}
    for bpp, accuracy in curve:
        best[bpp] = max(accuracy, best.get(bpp, accuracy))
    return np.array(sorted(best), np.float64), np.array([best[bpp] for bpp in sorted(best)], np.float64)


def pchip(x: Floats, y: Floats) -> Callable[[Floats], Floats]:
    """Monotone cubic interpolation of at least two points, x strictly rising; constant beyond them.

    Slopes are the weighted harmonic means of Fritsch and Butland (1984), zero where the data turn, and at the ends the
    three-point formula, limited so that the shape is kept.
    """
    steps = np.diff(x)
    secants = np.diff(y) / steps
    slopes = np.full(len(x), secants[0])
    if len(x) > 2:
        before, after = 2 * steps[1:] + steps[:-1], steps[1:] + 2 * steps[:-1]
        rises = secants[:-1] * secants[1:] > 0
        inverse = np.where(rises, before / np.where(rises, secants[:-1], 1), 1) + np.where(
            rises, after / np.where(rises, secants[1:], 1), 1
        )
        slopes[1:-1] = np.where(rises, (before + after) / inverse, 0.0)
        slopes[0] = _end_slope(steps[0], steps[1], secants[0], secants[1])
        slopes[-1] = _end_slope(steps[-1], steps[-2], secants[-1], secants[-2])

    def interpolate(values: Floats) -> Floats:
        values = np.clip(values, x[0], x[-1])
        piece = np.clip(np.searchsorted(x, values, side="right") - 1, 0, len(x) - 2)
        step, t = steps[piece], (values - x[piece]) / steps[piece]
        result: Floats = (
            (1 + 2 * t) * (1 - t) ** 2 * y[piece]
            + t * (1 - t) ** 2 * step * slopes[piece]
            + t**2 * (3 - 2 * t) * y[piece + 1]
            + t**2 * (t - 1) * step * slopes[piece + 1]
        )
        return result

    return interpolate


def _end_slope(step: float, next_step: float, secant: float, next_secant: float) -> float:
    slope = ((2 * step + next_step) * secant - step * next_secant) / (step + next_step)
    if slope * secant <= 0:
        return 0.0
    if secant * next_secant <= 0 and abs(slope) > 3 * abs(secant):
        return 3 * secant
    return float(slope)
