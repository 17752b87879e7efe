"""The comparison as pictures, from its JSON object: rate and accuracy, Delta-accuracy and time, the ablation."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.evaluation.comparison_report import ABLATION_SYSTEMS, BASELINE
from pipeline.evaluation.curves import Curve
from pipeline.evaluation.published import ABLATIONS, ENTROPIC_STUDENT, FIGURE_4

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LINES = {"picture codec": "--", "trained baseline": ":", "ours": "-", "paper": "-."}
MARKERS = {"picture codec": "x", "trained baseline": "^", "ours": "o", "paper": "s"}
MAX_BPP = 1.5
OURS_COLOURS = ("#9ecae1", "#6baed6", "#4292c6", "#2171b5", "#08306b")
"""Of depths 0, 1, 2, 4 and 8."""
FAMILY_MARKERS = "osD^vP*X<"
LEAST_POINTS = 3
"""Of a curve whose mean over rates says something."""
LABEL_SIZE = 8
LABEL_PLACES = ((6, 6), (6, -6), (-6, 6), (-6, -6), (7, 0), (-7, 0), (0, 10), (0, -10), (10, 14), (-10, -14), (10, -14))
"""Points to the right and up, nearest first."""


def plot_all(content: dict[str, Any], folder: Path) -> list[Path]:
    """Draw three PNG files; one that would be empty is left out.

    rate-accuracy.png: all curves. delta-accuracy.png: what encoding takes and what it brings, as the paper's Fig. 4.
    ablation.png: the curves behind Table I, as its Fig. 5. The latter two have the published numbers beside them.

    Raises:
        OSError: a file cannot be written.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    written = []
    for name, draw, columns in (
        ("rate-accuracy.png", _draw_rates, 3),
        ("delta-accuracy.png", _draw_deltas, 2),
        ("ablation.png", _draw_ablation, 2),
    ):
        figure, axes = pyplot.subplots(1, columns, figsize=(6.5 * columns, 6), dpi=110, squeeze=False, layout="tight")
        try:
            if draw(content, list(axes[0])):
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
    panels = _panels(content["systems"])
    for each, (title, systems) in zip(axes, panels.items(), strict=True):
        for system in systems:
            line, marker = LINES[system["kind"]], MARKERS[system["kind"]]
            _draw_curve(each, _percents(system), system["name"], line, marker, _shade(system))
        each.axhline(100 * content["reference_top1"], color="grey", linewidth=1, label="uncompressed")
        each.set_xlim(0, MAX_BPP)
        each.set_ylim(0, 100 * min(1.0, content["reference_top1"] + 0.05))
        each.set_title(title)
        _finish(each, "bits per pixel of the 224 x 224 view (coded bytes with headers)", "top-1, %")
    facts = f"{content['images']} pictures of {content['source']}, {content['classifier']}"
    axes[0].figure.suptitle(facts)
    return any(panels.values())


def _panels(systems: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """What is drawn together: no panel with more curves than one can tell apart."""
    drawn = [system for system in systems if system["kind"] != "local" and system["points"]]
    of_sweep = [system for system in drawn if system["pictures_seen"] is not None]
    ours = [system for system in of_sweep if _OURS.fullmatch(system["name"])]
    papers = [system for system in of_sweep if system["kind"] == "paper"]
    fixed = [system for system in papers if "joint" not in system["name"]]
    joint = [system for system in papers if "joint" in system["name"]]
    others = [system for system in drawn if system["kind"] not in ("ours", "paper")]
    bundle = [system for system in drawn if system["kind"] == "ours" and system["pictures_seen"] is None]
    return {
        "picture codecs, and the bundle": [*_default_speeds(others), *bundle],
        "one budget, classifier fixed": [*fixed, *ours],
        "one budget, classifier trained too, beside ours": [*joint, *(ours if joint else [])],
    }


def _shade(system: dict[str, Any]) -> str | None:
    """Ours in one colour, darker with depth; the others take turns."""
    depth = re.search(r"N=(\d+)", system["name"])
    if system["kind"] != "ours" or depth is None:
        return None
    return OURS_COLOURS[min(len(OURS_COLOURS) - 1, int(depth[1]).bit_length())]


def _draw_deltas(content: dict[str, Any], axes: Sequence[Axes]) -> bool:
    rows = [
        (*_family(system["name"]), system["encode"]["median_ms"], system["delta_top1"]["value"])
        for system in content["systems"]
        if system.get("delta_top1") and system["encode"] and len(system["points"]) >= LEAST_POINTS
    ]
    if not rows:
        return False
    baseline = next(system for system in content["systems"] if system["name"] == BASELINE)
    if baseline["encode"]:
        rows.append((BASELINE, "", baseline["encode"]["median_ms"], 0.0))
    published = [(each.family, each.label, each.latency_ms, each.delta) for each in FIGURE_4]
    axes[0].set_title("here: equal terms, one thread, 1280 x 720 array to bytes")
    axes[1].set_title("published: ImageNet, ResNet-50, as shipped, 224 x 224 picture to bytes")
    for each, points in zip(axes, (rows, published), strict=True):
        _draw_families(each, points)
        each.axhline(0, color="grey", linewidth=1)
        _finish(each, "encoding, ms a picture, entropy coding included", f"top-1, points over {BASELINE}")
    for each, points in zip(axes, (rows, published), strict=True):  # once nothing moves the axes any more
        place_labels(each, [(time_ms, delta, label) for _, label, time_ms, delta in points])
    return True


_OURS = re.compile(r"ours N=\d+")
_SETTING = re.compile(r",? (N=\d+|m\d+|ultrafast|fast|veryslow)\b")


def _family(name: str) -> tuple[str, str]:
    """A system's name without its depth or speed, and that: "paper N=4, fixed" is N=4 of "paper, fixed"."""
    found = _SETTING.search(name)
    return (name, "") if found is None else (_SETTING.sub("", name, count=1), found[1])


def _draw_families(axes: Axes, rows: Sequence[tuple[str, str, float, float]]) -> None:
    """A line for each family (name, setting, ms, points) in the order of its times, its settings as labels."""
    from matplotlib.ticker import LogFormatter, LogLocator, NullFormatter

    families: dict[str, list[tuple[float, float, str]]] = {}
    for family, label, time_ms, delta in rows:
        families.setdefault(family, []).append((time_ms, delta, label))
    for number, (family, points) in enumerate(families.items()):
        times, deltas, _ = zip(*sorted(points), strict=True)
        colour, marker = f"C{number % 10}", FAMILY_MARKERS[number % len(FAMILY_MARKERS)]
        axes.plot(times, deltas, "-", marker=marker, markersize=5, linewidth=1, color=colour, label=family)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))  # powers of ten with their minor labels overlap
    axes.xaxis.set_major_formatter(LogFormatter(labelOnlyBase=False))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.margins(x=0.12, y=0.12)


def place_labels(axes: Axes, points: Sequence[tuple[float, float, str]]) -> None:
    """Write each label (x, y, text) beside its point where it covers neither a point nor another label.

    The nearest of some places around it that is free; a label with none is left out, its family's line still is there.
    """
    figure = axes.figure
    figure.canvas.draw()  # limits, scales and the legend's place are final from here on
    scale = figure.dpi / 72
    width, height = LABEL_SIZE * 0.62 * scale, LABEL_SIZE * 1.15 * scale
    pixels = [axes.transData.transform((x, y)) for x, y, _ in points]
    taken = [(x - 3 * scale, y - 3 * scale, x + 3 * scale, y + 3 * scale) for x, y in pixels]
    frame, legend = axes.get_window_extent(), axes.get_legend()
    if legend is not None:
        covered = legend.get_window_extent()
        taken.append((covered.x0, covered.y0, covered.x1, covered.y1))
    for (x, y), (_, _, text) in zip(pixels, points, strict=True):
        for right, up in LABEL_PLACES if text else ():
            left = x + right * scale - (width * len(text) if right < 0 else 0 if right > 0 else width * len(text) / 2)
            bottom = y + up * scale - height / 2
            box = (left, bottom, left + width * len(text), bottom + height)
            is_inside = frame.x0 < box[0] and box[2] < frame.x1 and frame.y0 < box[1] and box[3] < frame.y1
            if is_inside and not any(_overlap(box, other) for other in taken):
                taken.append(box)
                place = axes.transData.inverted().transform((box[0], box[1]))
                axes.text(place[0], place[1], text, fontsize=LABEL_SIZE, verticalalignment="bottom")
                break


def _overlap(box: Sequence[float], other: Sequence[float]) -> bool:
    return box[0] < other[2] and other[0] < box[2] and box[1] < other[3] and other[1] < box[3]


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


def _draw_curve(axes: Axes, curve: Curve, name: str, line: str, marker: str, colour: str | None = None) -> None:
    axes.plot(
        [bpp for bpp, _ in curve],
        [value for _, value in curve],
        linestyle=line,
        marker=marker,
        markersize=4,
        color=colour,
        label=name,
    )


def _finish(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
