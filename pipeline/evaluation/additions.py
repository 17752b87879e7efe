"""What each thing that ours adds to the paper costs or brings, in points of agreement at equal rate.

    nesting         one network for all depths, against one for a single depth at all rates
    gains           one depth at all rates, against one depth and one rate
    both            ours, against one depth and one rate, at each depth: is it anywhere more than a point below?
    DCT of blocks   ours, the latent turned before rounding, against ours without
    light decoder   one depth and one rate, with our decoder against the paper's
    rounding        a bundle with its dead zones, against the same networks without

A network of one rate is a point. Two points of different rates are compared by their distances from one curve: that of
ours at the same depth.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation.accuracy import RatePoint
from pipeline.evaluation.bootstrap import Interval
from pipeline.evaluation.comparison import System
from pipeline.evaluation.curve_bootstrap import Measure, curves_interval
from pipeline.evaluation.curves import Curve, bd_rate, delta_accuracy, distance

OURS, ALONE, DCT = "ours N={depth}", "ours alone, N={depth}", "ours with a DCT N={depth}"
ONE_DEPTH, HEAVY = "ours at one depth, N=4", "ours alone, N=4, paper's decoder"
"""Curves' names, as the sweep's plan has them."""
DEPTHS = (0, 4, 8)
COMPARED_DEPTH = 4
TOLERATED = 1.0
"""Points of agreement that one network for all may be below one for a single depth and rate."""
INTERVAL_SAMPLES = 1000


@dataclass(frozen=True, slots=True)
class Addition:
    """One row.

    Attributes:
        difference: points of agreement, with less without; None where a network is missing.
        bd_rate: the same as a share of the rate, where both are curves.
        beside: what else it changes.
        missing: what the row waits for.
    """

    addition: str
    with_it: str
    without: str
    difference: float | None = None
    interval: Interval | None = None
    bd_rate: float | None = None
    beside: str = ""
    missing: str = ""


def additions(
    systems: Mapping[str, System],
    rounding: Mapping[str, Mapping[bool, Sequence[RatePoint]]],
    truth: NDArray[np.int64],
) -> list[dict[str, Any]]:
    """Rows as JSON objects, those that wait for a network included.

    Args:
        systems: by their names.
        rounding: points with the dead zones and without, by bundle.
        truth: the uncompressed classifier's classes (N,).
    """
    ours, alone = OURS.format(depth=COMPARED_DEPTH), ALONE.format(depth=COMPARED_DEPTH)
    rows = [
        _row(
            systems, truth, "nesting", ours, ONE_DEPTH, [ours, ONE_DEPTH], _between, beside="all depths in one network"
        ),
        _row(systems, truth, "gains", ONE_DEPTH, alone, [ONE_DEPTH, alone], _below, beside="all rates in one network"),
    ]
    for depth in DEPTHS:
        whole, single = OURS.format(depth=depth), ALONE.format(depth=depth)
        rows.append(_row(systems, truth, "nesting and gains", whole, single, [whole, single], _below))
    for depth in DEPTHS:
        turned, plain = DCT.format(depth=depth), OURS.format(depth=depth)
        rows.append(
            _row(systems, truth, "DCT of blocks", turned, plain, [turned, plain], _between, "16 times the channels")
        )
    rows.append(
        _row(systems, truth, "light decoder", alone, HEAVY, [alone, HEAVY, ours], _apart, _decoders(systems, alone))
    )
    for bundle, points in rounding.items():
        curves = [_curve(points[True]), _curve(points[False])]
        rate = bd_rate(curves[0], curves[1])
        rows.append(
            Addition(
                "rounding towards zero",
                f"{bundle}, tables fitted anew to these pictures",
                "the same without dead zones",
                _between(curves),
                curves_interval([points[True], points[False]], truth, _between),
                None if rate is None else rate.value,
                "nothing at the cloud changes",
            )
        )
    if not rounding:
        rows.append(
            Addition(
                "rounding towards zero", "a bundle", "the same without dead zones", missing="a bundle with dead zones"
            )
        )
    return [asdict(row) for row in rows]


def _row(
    systems: Mapping[str, System],
    truth: NDArray[np.int64],
    addition: str,
    with_it: str,
    without: str,
    names: Sequence[str],
    measure: Measure,
    beside: str = "",
) -> Addition:
    missing = [name for name in names if name not in systems or not systems[name].points]
    if missing:
        return Addition(addition, with_it, without, beside=beside, missing=" and ".join(missing))
    points = [systems[name].points for name in names]
    difference = measure([_curve(each) for each in points])
    if difference is None:
        return Addition(addition, with_it, without, beside=beside, missing="rates that both have")
    interval = curves_interval(points, truth, measure)
    rate = bd_rate(*(_curve(each) for each in points)) if measure is _between else None
    return Addition(
        addition, with_it, without, difference, interval, None if rate is None else rate.value, beside=beside
    )


def _curve(points: Sequence[RatePoint]) -> Curve:
    return [(point.bpp, 100 * point.agreement) for point in points]


def _between(curves: Sequence[Curve]) -> float | None:
    """Mean difference of two curves over the rates that both have."""
    found = delta_accuracy(curves[0], curves[1], INTERVAL_SAMPLES)
    return None if found is None else found.value


def _below(curves: Sequence[Curve]) -> float | None:
    """How far a curve lies above points."""
    found = distance(curves[1], curves[0])
    return None if found is None else -found


def _apart(curves: Sequence[Curve]) -> float | None:
    """Difference of two systems' points in their distances from a third one's curve."""
    first, second = distance(curves[0], curves[2]), distance(curves[1], curves[2])
    return None if first is None or second is None else first - second


def _decoders(systems: Mapping[str, System], light: str) -> str:
    """What both decoders cost."""
    texts = []
    for name in (light, HEAVY):
        system = systems.get(name)
        if system is None or system.cost is None:
            return ""
        took = "" if system.decode_times is None else f" and {system.decode_times.median_ms:.2f} ms"
        texts.append(f"{system.cost.decoder_macs / 1e6:.0f} MMAC{took}")
    return f"decoder {texts[0]} a picture against {texts[1]}"


def pairs(systems: Mapping[str, System], truth: NDArray[np.int64]) -> list[dict[str, Any]]:
    """Ours of a sweep beside the same network trained for one depth and one rate alone, at the rate of the latter."""
    found = []
    for depth in DEPTHS:
        whole, alone = (systems.get(name.format(depth=depth)) for name in (OURS, ALONE))
        if whole is None or alone is None:
            continue
        for point in alone.points:
            difference = _below([_curve(whole.points), _curve([point])])
            if difference is None:
                continue
            found.append(
                {
                    "alone": alone.name,
                    "bpp": round(point.bpp, 5),
                    "alone_agreement": 100 * point.agreement,
                    "ours_agreement": 100 * point.agreement + difference,
                    "difference": difference,
                    "interval": curves_interval([whole.points, [point]], truth, _below),
                    "is_within_a_point": difference >= -TOLERATED,
                }
            )
    return found


def additions_table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Markdown of the rows of `additions`."""
    lines = [
        "What each thing that ours adds costs or brings, in points of agreement at equal rate (95 % paired bootstrap):",
        "",
        "| addition | with it | without | difference, points | BD-rate | beside |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        rate = "" if row["bd_rate"] is None else f"{100 * row['bd_rate']:+.1f} %"
        found = with_interval(row["difference"], row["interval"]) or f"waits for {row['missing']}"
        lines.append(
            f"| {row['addition']} | {row['with_it']} | {row['without']} | {found} | {rate} | {row['beside']} |"
        )
    return [*lines, ""]


def pairs_table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Markdown of the rows of `pairs`, with the answer to what they are for."""
    if not rows:
        return []
    lines = [
        "One network for all depths and rates beside the same network for one depth and rate, at the latter's rate "
        "(95 % paired bootstrap):",
        "",
        "| alone | bpp | agreement alone, % | ours, % | difference, points | at most one point below |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row['alone']} | {row['bpp']:.3f} | {row['alone_agreement']:.1f} | {row['ours_agreement']:.1f} | "
        f"{with_interval(row['difference'], row['interval'])} | {'yes' if row['is_within_a_point'] else 'no'} |"
        for row in rows
    ]
    num_below = sum(not row["is_within_a_point"] for row in rows)
    answer = "in none" if num_below == 0 else f"in {num_below}"
    return [*lines, "", f"Of {len(rows)} pairs ours is more than one point below {answer}.", ""]


def with_interval(value: float | None, interval: Sequence[float] | None) -> str:
    """A difference in points with its interval; "" where there is none."""
    if value is None:
        return ""
    return f"{value:+.1f}" if interval is None else f"{value:+.1f} ({interval[0]:+.1f} to {interval[1]:+.1f})"
