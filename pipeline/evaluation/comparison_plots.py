"""The comparison as pictures, from its JSON object: rate and accuracy, Delta-accuracy and time, the ablation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.evaluation.comparison_report import ABLATION_SYSTEMS, BASELINE
from pipeline.evaluation.curves import Curve
from pipeline.evaluation.published import ABLATIONS, ENTROPIC_STUDENT

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LINES = {"picture codec": "--", "trained baseline": ":", "ours": "-", "paper": "-."}
MARKERS = {"picture codec": "x", "trained baseline": "^", "ours": "o", "paper": "s"}
MAX_BPP = 1.5


def plot_all(content: dict[str, Any], folder: Path) -> list[Path]:
    """Draw three PNG files; one that would be empty is left out.

    Raises:
        OSError: a file cannot be written.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    written = []
    for name, draw, width in (
        ("rate-accuracy.png", _draw_rates, 10),
        ("delta-accuracy.png", _draw_deltas, 8),
        ("ablation.png", _draw_ablation, 12),
    ):
        figure, axes = pyplot.subplots(
            1, 2 if name == "ablation.png" else 1, figsize=(width, 6), dpi=110, squeeze=False
        )
        try:
            if draw(content, list(axes[0])):
                figure.tight_layout()
                figure.savefig(folder / name)
                written.append(folder / name)
        finally:
            pyplot.close(figure)
    return written


def _percents(system: dict[str, Any]) -> Curve:
    return sorted((point["bpp"], 100 * point["top1"]) for point in system["points"] if point["top1"] is not None)


def _default_speeds(systems: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without the other speeds of picture codecs, whose curves lie close together: the first of each is its default."""
    seen: set[str] = set()
    kept = []
    for system in systems:
        codec = system["name"].split()[0]
        if system["kind"] != "picture codec" or codec not in seen:
            kept.append(system)
        if system["kind"] == "picture codec":
            seen.add(codec)
    return kept


def _draw_rates(content: dict[str, Any], axes: Sequence[Axes]) -> bool:
    systems = [system for system in content["systems"] if system["kind"] != "local" and system["points"]]
    for system in _default_speeds(systems):
        _draw_curve(axes[0], _percents(system), system["name"], LINES[system["kind"]], MARKERS[system["kind"]])
    axes[0].axhline(100 * content["reference_top1"], color="grey", linewidth=1, label="uncompressed")
    axes[0].set_xlim(0, MAX_BPP)
    axes[0].set_title(f"{content['images']} pictures of {content['source']}, {content['classifier']}")
    _finish(axes[0], "bits per pixel of the 224 x 224 view (coded bytes with headers)", "top-1, %")
    return bool(systems)


def _draw_deltas(content: dict[str, Any], axes: Sequence[Axes]) -> bool:
    rows = [system for system in content["systems"] if system.get("delta_top1") and system["encode"]]
    if not rows:
        return False
    for system in rows:
        time, delta = system["encode"]["median_ms"], system["delta_top1"]["value"]
        axes[0].plot([time], [delta], MARKERS[system["kind"]], color="black")
        axes[0].annotate(system["name"], (time, delta), xytext=(4, 4), textcoords="offset points", fontsize=8)
    axes[0].axhline(0, color="grey", linewidth=1, label=BASELINE)
    axes[0].set_xscale("log")
    axes[0].set_title("mean difference of top-1 at equal rate, and what encoding takes")
    _finish(axes[0], "encoding, ms a picture, one thread, entropy coding included", f"points over {BASELINE}")
    return True


def _draw_ablation(content: dict[str, Any], axes: Sequence[Axes]) -> bool:
    by_name = {system["name"]: system for system in content["systems"]}
    ours = {name: by_name[name] for name in (BASELINE, *ABLATION_SYSTEMS.values()) if name in by_name}
    if not ours:
        return False
    for name, system in ours.items():
        _draw_curve(axes[0], _percents(system), name, "-", "s")
    axes[0].set_title("here: coded bytes, budget and classifier of the table")
    for name, curve in {BASELINE: ENTROPIC_STUDENT, **ABLATIONS}.items():
        _draw_curve(axes[1], curve, name, "-", "s")
    axes[1].set_xlim(0, MAX_BPP)
    axes[1].set_title("published: ImageNet, ResNet-50, estimated entropy")
    for each in axes:
        _finish(each, "bits per pixel", "top-1, %")
    return True


def _draw_curve(axes: Axes, curve: Curve, name: str, line: str, marker: str) -> None:
    axes.plot(
        [bpp for bpp, _ in curve],
        [value for _, value in curve],
        linestyle=line,
        marker=marker,
        markersize=4,
        label=name,
    )


def _finish(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
