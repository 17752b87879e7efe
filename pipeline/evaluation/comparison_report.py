"""The comparison as one JSON object and one Markdown page; what is computed from several curves is computed here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pipeline.evaluation.accuracy import RatePoint
from pipeline.evaluation.additions import (
    INTERVAL_SAMPLES,
    additions,
    additions_table,
    pairs,
    pairs_table,
)
from pipeline.evaluation.bootstrap import Intervals, bootstrap_intervals
from pipeline.evaluation.comparison import LOCAL, Bench, Missing, System
from pipeline.evaluation.curve_bootstrap import curves_interval
from pipeline.evaluation.curves import Curve, bd_rate, delta_accuracy, paper_compat
from pipeline.evaluation.published import ABLATIONS, ENTROPIC_STUDENT, TABLE_I
from pipeline.evaluation.sweep_file import SweepResult

BASELINE = "Entropic Student"
"""The system against which Delta-accuracy is measured."""
ABLATION_SYSTEMS = {"A": "ablation A", "B": "ablation B", "C": "paper N=4, joint", "C, fixed": "paper N=4, fixed"}
"""Ours beside the paper's: its C is the joint network."""
FORMAT_VERSION = 1
LEAST_RATIO = 1.2
"""Of a curve's highest rate to its lowest; what lies nearer together is one rate, whose mean says nothing."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What the page says of how it was made."""

    source: str
    images: int
    unreadable: int
    classifier: str
    engine: str
    precision: str
    threads: int


def curve_of(system: System, measure: str = "top1") -> Curve:
    """Points (bpp, percent) of a system's top-1 or agreement."""
    return [(point.bpp, 100 * value) for point in system.points if (value := getattr(point, measure)) is not None]


def as_json(
    systems: Sequence[System],
    missing: Sequence[Missing],
    bench: Bench,
    facts: Facts,
    sweep: SweepResult | None,
    rounding: Mapping[str, Mapping[bool, Sequence[RatePoint]]] | None = None,
) -> dict[str, Any]:
    """Everything that was measured; shares are 0..1, differences of accuracy are in points.

    Args:
        rounding: points of a bundle's networks with dead zones (True) and without, by its name.
    """
    flat = [point for system in systems for point in system.points]
    found = bootstrap_intervals([point.predictions for point in flat], bench.reference, bench.labels) if flat else []
    intervals = {id(point): interval for point, interval in zip(flat, found, strict=True)}
    reference_top1 = float((bench.reference == bench.labels).mean())
    by_name = {system.name: system for system in systems}
    rows = [_system(system, by_name, intervals, reference_top1, bench) for system in systems]
    return {
        "format_version": FORMAT_VERSION,
        **asdict(facts),
        "reference_top1": reference_top1,
        "sweep": None if sweep is None else _budget(sweep),
        "systems": rows,
        "missing": [asdict(row) for row in missing],
        "pairs": pairs(by_name, bench.reference),
        "additions": additions(by_name, rounding or {}, bench.reference),
        "ablation": _ablation(rows),
    }


def _budget(sweep: SweepResult) -> dict[str, Any]:
    return {
        "name": sweep.name,
        "budget": sweep.budget,
        "training_pictures": sweep.training_pictures,
        "labelled": sweep.labelled,
    }


def _system(
    system: System, by_name: dict[str, System], intervals: dict[int, Intervals], reference_top1: float, bench: Bench
) -> dict[str, Any]:
    row: dict[str, Any] = {
        "name": system.name,
        "kind": system.kind,
        "note": system.note,
        "cost": None if system.cost is None else asdict(system.cost),
        "encode": None if system.encode_times is None else asdict(system.encode_times),
        "encode_as_shipped": None if system.shipped_times is None else asdict(system.shipped_times),
        "decode": None if system.decode_times is None else asdict(system.decode_times),
        "pictures_seen": max((network.pictures_seen for network in system.networks), default=None),
        "training_s": sum(network.training_s for network in system.networks) if system.networks else None,
        "points": [
            _point(point, intervals[id(point)], reference_top1, system.name == LOCAL) for point in system.points
        ],
    }
    if system.kind == "local":
        return row
    baseline = by_name.get(BASELINE)
    for measure, truth in (("top1", bench.labels), ("agreement", bench.reference)):
        curve = curve_of(system, measure) if _is_curve(system) else []
        reference = curve_of(baseline, measure) if baseline is not None and baseline is not system else []
        delta = _optional(delta_accuracy(curve, reference))
        if delta is not None and baseline is not None:
            delta["interval"] = curves_interval([system.points, baseline.points], truth, _delta_of)
        row[f"delta_{measure}"] = delta
        row[f"delta_{measure}_paper_compat"] = _optional(paper_compat(curve, reference))
        for other in ("jpeg", "webp"):
            beside = next((each for name, each in by_name.items() if name in (other, f"{other} m4")), None)
            points = curve_of(beside, measure) if beside is not None and beside is not system else []
            row[f"bd_rate_{other}_{measure}"] = _optional(bd_rate(curve, points))
    return row


def _is_curve(system: System) -> bool:
    """Whether its rates differ by more than what one weight of the rate gives by chance."""
    rates = [point.bpp for point in system.points]
    return max(rates) > LEAST_RATIO * min(rates)


def _delta_of(curves: Sequence[Curve]) -> float | None:
    found = delta_accuracy(curves[0], curves[1], INTERVAL_SAMPLES)
    return None if found is None else found.value


def _optional(value: Any) -> dict[str, Any] | None:
    return None if value is None else asdict(value)


def _point(point: RatePoint, interval: Intervals, reference_top1: float, is_local: bool) -> dict[str, Any]:
    return {
        "depth": point.depth,
        "rate": point.rate,
        "bpp": None if is_local else round(point.bpp, 5),
        "bytes": None if is_local else round(float(point.num_bytes.mean()), 1),
        "top1": point.top1,
        "share_of_top1": None if point.top1 is None or not reference_top1 else point.top1 / reference_top1,
        "agreement": point.agreement,
        "interval": asdict(interval),
    }


def _ablation(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Ours and the paper's own numbers, one row each; ours are None where a curve is missing."""
    measured = {row["name"]: row for row in rows}
    found = []
    for name, system_name in {BASELINE: BASELINE, **ABLATION_SYSTEMS}.items():
        own = measured.get(system_name, {})
        published = ABLATIONS.get(name)
        table = TABLE_I.get(name)
        found.append(
            {
                "ablation": name,
                "system": system_name,
                "ours": own.get("delta_top1"),
                "ours_paper_compat": own.get("delta_top1_paper_compat"),
                "ours_macs_without_gdn": (own.get("cost") or {}).get("encoder_macs_without_gdn"),
                "ours_macs": (own.get("cost") or {}).get("encoder_macs"),
                "ours_encode": own.get("encode"),
                "ours_encode_as_shipped": own.get("encode_as_shipped"),
                "published": None if table is None else table.delta_accuracy,
                "published_macs": None if table is None else table.macs,
                "published_ms": None if table is None else table.latency_ms,
                "published_corrected": None
                if published is None
                else _optional(delta_accuracy(published, ENTROPIC_STUDENT)),
            }
        )
    return found


AS_SHIPPED_MEANS = (
    "As shipped: the network rebuilt, in eager PyTorch fp32, its symbols through Python lists to CompressAI's coder, "
    "as the authors' programs do; it stands for those, on this machine."
)
WHAT_DIFFERS = (
    "The paper: ImageNet with labels, ResNet-50, 50,000 pictures, classifier trained too, rates that are estimated "
    "entropies, and a formula that divides the mean by the interval's width once more. Here: the data, classifier and "
    "budget named above, coded bytes with their headers, and the mean."
)


def as_markdown(content: dict[str, Any]) -> str:
    """The page for people, from the JSON object."""
    lines = [
        f"{content['images']} pictures of {content['source']} ({content['unreadable']} unreadable, left out), "
        f"{content['classifier']}, uncompressed top-1 {content['reference_top1']:.3f}; {content['engine']} "
        f"{content['precision']}, {content['threads']} threads. bpp and bytes: the bitstream or file with its header. "
        "In brackets: 95 % paired bootstrap. Times: encoding from a 1280 x 720 array with entropy coding, at the "
        "middle of each curve, one thread, interleaved, median / p90; in the cloud a picture of a batch, all threads.",
        "",
        f"On equal terms: every network as a graph in ONNX Runtime, with our coder; the headline. {AS_SHIPPED_MEANS} "
        f"`{LOCAL}` is the whole classifier on the node, from the same array.",
        "",
        *_budget_lines(content["sweep"]),
        *_points_table(content["systems"]),
        "",
        *_systems_table(content["systems"]),
        "",
        *_ablation_table(content["ablation"]),
        "",
        *pairs_table(content["pairs"]),
        *additions_table(content["additions"]),
    ]
    if content["missing"]:
        lines += ["| not there | why |", "|---|---|"]
        lines += [f"| {row['system']} | {row['reason']} |" for row in content["missing"]]
    return "\n".join(lines).rstrip() + "\n"


def _budget_lines(sweep: dict[str, Any] | None) -> list[str]:
    if sweep is None:
        return ["No trained networks were given: `--networks FOLDER` names what `rac sweep` made.", ""]
    labels = (
        f"{sweep['labelled']} of them labelled" if sweep["labelled"] else "without labels, so CE is left out for all"
    )
    return [
        f"Networks of {sweep['name']}: each saw {sweep['budget']['pictures']:,} crops of "
        f"{sweep['training_pictures']:,} pictures, {labels}.",
        "",
    ]


def _points_table(systems: Sequence[dict[str, Any]]) -> list[str]:
    lines = [
        "| system | rate setting | bpp | bytes | top-1 | share of top-1 | agreement |",
        "|---|---|---|---|---|---|---|",
    ]
    for system in systems:
        for point in system["points"]:
            interval = point["interval"]
            cells = [
                system["name"],
                "" if point["bpp"] is None else f"{point['rate']:g}",
                "" if point["bpp"] is None else f"{point['bpp']:.3f}",
                "" if point["bytes"] is None else f"{point['bytes']:.0f}",
                _share_with_interval(point["top1"], interval["top1"]),
                _share_with_interval(point["share_of_top1"], interval["share_of_top1"]),
                _share_with_interval(point["agreement"], interval["agreement"]),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def _share_with_interval(value: float | None, interval: Sequence[float] | None) -> str:
    if value is None:
        return ""
    return f"{value:.3f}" if interval is None else f"{value:.3f} ({interval[0]:.3f} to {interval[1]:.3f})"


def _systems_table(systems: Sequence[dict[str, Any]]) -> list[str]:
    lines = [
        "| system | encoder parameters | encoder MMAC (without GDN) | encoding ms | over the whole classifier's | "
        f"as shipped, ms | decoder MMAC | cloud ms | Delta-top-1 against {BASELINE} (interval; bpp) | "
        "BD-rate to JPEG / WebP by agreement | note |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    local = next((system["encode"] for system in systems if system["name"] == LOCAL), None)
    for system in systems:
        cost, encode, decode = system["cost"], system["encode"], system["decode"]
        cells = [
            system["name"],
            "" if cost is None else f"{cost['encoder_parameters']:,}",
            "" if cost is None else f"{cost['encoder_macs'] / 1e6:.1f} ({cost['encoder_macs_without_gdn'] / 1e6:.1f})",
            _times(encode),
            "" if encode is None or local is None else f"{encode['median_ms'] / local['median_ms']:.2f}",
            _times(system["encode_as_shipped"]),
            "" if cost is None else f"{cost['decoder_macs'] / 1e6:.1f}",
            "" if decode is None else f"{decode['median_ms']:.2f}",
            _delta(system.get("delta_top1")),
            f"{_rate(system.get('bd_rate_jpeg_agreement'))} / {_rate(system.get('bd_rate_webp_agreement'))}",
            system["note"],
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _times(times: dict[str, float] | None) -> str:
    return "" if times is None else f"{times['median_ms']:.2f} / {times['p90_ms']:.2f}"


def _delta(value: dict[str, Any] | None) -> str:
    if value is None:
        return ""
    interval = value.get("interval")
    limits = "" if interval is None else f"{interval[0]:+.2f} to {interval[1]:+.2f}; "
    return f"{value['value']:+.2f} ({limits}{value['low_bpp']:.3f} to {value['high_bpp']:.3f})"


def _rate(value: dict[str, float] | None) -> str:
    return "-" if value is None else f"{100 * value['value']:+.0f} %"


def _ablation_table(rows: Sequence[dict[str, Any]]) -> list[str]:
    lines = [
        f"Delta-accuracy against {BASELINE} in points of top-1, beside the paper's (Table I). {WHAT_DIFFERS} MMAC: the "
        "encoder's without GDN, as the paper counts; times: as shipped, here and on its authors' CPU.",
        "",
        "| ablation | here (interval; bpp) | here, by the paper's formula | published | published, mean by PCHIP "
        "| MMAC here / published | ms here / published |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        compat, published = row["ours_paper_compat"], row["published"]
        shipped, macs = row["ours_encode_as_shipped"], row["ours_macs_without_gdn"]
        is_baseline = row["system"] == BASELINE
        cells = [
            row["system"] if is_baseline else f"{row['ablation']}: {row['system']}",
            "0" if is_baseline else _delta(row["ours"]) or "not there",
            "" if compat is None else f"{compat['value']:+.2f}",
            "" if published is None else f"{published:+.2f}",
            _delta(row["published_corrected"]),
            f"{_millions(macs)} / {_millions(row['published_macs'])}",
            f"{'-' if shipped is None else format(shipped['median_ms'], '.2f')} / {row['published_ms'] or '-'}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _millions(macs: float | None) -> str:
    return "-" if macs is None else f"{macs / 1e6:.0f}"
