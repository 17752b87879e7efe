"""What a measurement looks like: JSON for machines, a table and a plot for people."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.evaluation.accuracy import RatePoint


def as_json(points: Sequence[RatePoint], images: int, reference_top1: float | None) -> dict[str, Any]:
    """The object that `rac eval --json` prints; shares are 0..1."""
    return {
        "images": images,
        "reference_top1": reference_top1,
        "points": [
            {
                "codec": point.codec,
                "depth": point.depth,
                "rate": point.rate,
                "bpp": round(point.bpp, 5),
                "top1": point.top1,
                "agreement": point.agreement,
                "share_of_top1": share_of_top1(point, reference_top1),
            }
            for point in points
        ],
    }


def share_of_top1(point: RatePoint, reference_top1: float | None) -> float | None:
    """Top-1 of a point over that of the uncompressed classifier on the same pictures."""
    if point.top1 is None or not reference_top1:
        return None
    return point.top1 / reference_top1


def as_markdown(points: Sequence[RatePoint], reference_top1: float | None) -> str:
    """A table with one row a point."""
    lines = [
        "| codec | depth | rate | bpp | bytes a frame | top-1 | share of top-1 | agreement |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for point in points:
        share = share_of_top1(point, reference_top1)
        cells = [
            point.codec,
            "" if point.depth is None else str(point.depth),
            f"{point.rate:g}",
            f"{point.bpp:.3f}",
            f"{point.num_bytes.mean():.0f}",
            "" if point.top1 is None else f"{point.top1:.3f}",
            "" if share is None else f"{share:.3f}",
            f"{point.agreement:.3f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def plot(points: Sequence[RatePoint], path: Path, title: str) -> None:
    """Agreement over bits per pixel, one line for each codec and depth, as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5), dpi=110)
    curves: dict[str, list[RatePoint]] = {}
    for point in points:
        name = point.codec if point.depth is None else f"ours, N={point.depth}"
        curves.setdefault(name, []).append(point)
    for name, curve in curves.items():
        ours = curve[0].depth is not None
        ordered = sorted(curve, key=lambda point: point.bpp)
        axes.plot(
            [point.bpp for point in ordered],
            [100 * point.agreement for point in ordered],
            marker="o" if ours else "x",
            linestyle="-" if ours else "--",
            label=name,
        )
    axes.set_xlabel("bits per pixel of the 224 x 224 view (bitstream with header)")
    axes.set_ylabel("agreement with the uncompressed classifier, %")
    axes.set_title(title)
    axes.set_xlim(0, 1.2)
    axes.set_ylim(0, 100)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right", fontsize=8)
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)
