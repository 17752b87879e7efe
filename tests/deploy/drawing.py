"""Draws dashboards with matplotlib: each panel in its place, from what its queries gave. A likeness, not Grafana."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from deploy.grafana.boards.model import COLUMNS, Json
from tests.deploy.prometheus import Sample
from tests.deploy.tables import transformed
from tests.deploy.units import write

#: Inches of a column and of a row of Grafana's grid, and dots an inch.
COLUMN_IN = 0.62
ROW_IN = 0.31
DPI = 100
#: What remains free around a panel, in the same.
GAP_IN = 0.05
HEAD_IN = 0.6
COLORS = {"green": "#2f9e44", "orange": "#e8590c", "red": "#e03131", "blue": "#1971c2"}
PALETTE = ("#2f9e44", "#f08c00", "#1971c2", "#e8590c", "#9c36b5", "#e03131", "#0c8599", "#66a80f", "#5c7cfa", "#868e96")
SMALL = {"fontsize": 7, "color": "#495057"}
LONGEST_LEGEND = 10
#: Units of what is never in parts.
WHOLE = ("short", "suffix: frames", "suffix: workers", "suffix: blocks")
LEGEND: Mapping[str, Any] = {
    "fontsize": 6.5,
    "frameon": False,
    "handlelength": 0.9,
    "columnspacing": 0.9,
    "labelspacing": 0.25,
    "handletextpad": 0.4,
}
Series = tuple[Mapping[str, str], list[Any]]


@dataclass(frozen=True)
class Answers:
    """What a panel's queries gave, one entry a query.

    Attributes:
        samples: of an instant panel.
        series: labels and (unix s, "value") pairs of any other.
    """

    samples: list[list[Sample]] = field(default_factory=list)
    series: list[list[Series]] = field(default_factory=list)


def draw(dashboard: Json, answers: Mapping[int, Answers], start_s: float, end_s: float) -> Figure:
    """The dashboard as a picture.

    Args:
        answers: by the panel's id.
        start_s, end_s: the chosen time, in unix seconds.
    """
    rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in dashboard["panels"])
    size = (COLUMNS * COLUMN_IN, rows * ROW_IN + HEAD_IN)
    figure = Figure(figsize=size, dpi=DPI, facecolor="#f1f3f5")
    head = 1 - 0.22 / size[1]
    figure.text(0.004, head, f"edge-cloud-rac / {dashboard['title']}", fontsize=14, weight="bold", va="center")
    note = "drawn by tests/deploy/render_dashboards.py from this dashboard's queries; not a picture of Grafana"
    figure.text(0.996, head, note, ha="right", va="center", **SMALL)
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        box = (
            (place["x"] * COLUMN_IN + GAP_IN) / size[0],
            1 - (HEAD_IN + (place["y"] + place["h"]) * ROW_IN - GAP_IN) / size[1],
            (place["w"] * COLUMN_IN - 2 * GAP_IN) / size[0],
            (place["h"] * ROW_IN - 2 * GAP_IN) / size[1],
        )
        if panel["type"] == "row":
            figure.text(box[0], box[1] + box[3] / 2, panel["title"], fontsize=11, weight="bold", va="center")
            continue
        figure.add_artist(
            Rectangle(box[:2], *box[2:], facecolor="white", edgecolor="#dee2e6", linewidth=0.8, zorder=-1)
        )
        top = box[1] + box[3]
        figure.text(box[0] + 0.004, top - 0.13 / size[1], panel["title"], fontsize=8.5, weight="bold", va="center")
        _DRAW[panel["type"]](figure, box, panel, answers[panel["id"]], (start_s, end_s))
    return figure


def _axes(figure: Figure, box: tuple[float, ...], left: float, right: float, bottom: float, top: float = 0.3) -> Axes:
    """Axes within a panel, so many inches from its borders."""
    width, height = figure.get_size_inches()
    place = (
        box[0] + left / width,
        box[1] + bottom / height,
        box[2] - (left + right) / width,
        box[3] - (bottom + top) / height,
    )
    axes = figure.add_axes(place)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0, labelsize=7, labelcolor="#495057")
    return axes


def _time_axis(axes: Axes, span: tuple[float, float]) -> None:
    start_s, end_s = span
    axes.set_xlim(start_s, end_s)
    width_in = axes.get_position().width * axes.figure.get_size_inches()[0]
    step_s = next(step for step in (60, 120, 300, 600, 1800, 3600) if (end_s - start_s) / step <= 1.3 * width_in)
    ticks = range(math.ceil(start_s / step_s) * step_s, int(end_s) + 1, step_s)
    axes.set_xticks(list(ticks), [time.strftime("%H:%M", time.gmtime(tick)) for tick in ticks])


def _legend(target: Json, labels: Mapping[str, str]) -> str:
    return re.sub(r"{{(\w+)}}", lambda match: labels.get(match[1], ""), target["legendFormat"]).strip()


def _properties(panel: Json, matcher: Json) -> dict[str, Any]:
    """What overrides say of a field."""
    found = [each["properties"] for each in panel["fieldConfig"]["overrides"] if each["matcher"] == matcher]
    return {entry["id"]: entry["value"] for properties in found for entry in properties}


def _unit(panel: Json, target: Json) -> str:
    """Unit of a query's series: the panel's, or that of its override."""
    default: str = panel["fieldConfig"]["defaults"]["unit"]
    return str(_properties(panel, {"id": "byFrameRefID", "options": target["refId"]}).get("unit", default))


def _color(value: float, thresholds: Json) -> str:
    steps = thresholds["steps"]
    return COLORS[[step["color"] for step in steps if step["value"] is None or value >= step["value"]][-1]]


def _draw_stat(
    figure: Figure, box: tuple[float, ...], panel: Json, answers: Answers, span: tuple[float, float]
) -> None:
    axes = _axes(figure, box, 0.05, 0.05, 0.05)
    axes.set_axis_off()
    count = len(panel["targets"])
    for index, (target, samples) in enumerate(zip(panel["targets"], answers.samples, strict=True)):
        x = (index + 0.5) / count
        value = samples[0][1] if samples else None
        color = "#868e96" if value is None else _color(value, panel["fieldConfig"]["defaults"]["thresholds"])
        text = write(value, _unit(panel, target))
        axes.text(x, 0.6, text, fontsize=15, weight="bold", color=color, ha="center", va="center")
        axes.text(x, 0.12, _legend(target, {}), ha="center", va="center", **SMALL)


def _draw_lines(
    figure: Figure, box: tuple[float, ...], panel: Json, answers: Answers, span: tuple[float, float]
) -> None:
    defaults = panel["fieldConfig"]["defaults"]
    named = [
        (_legend(target, labels), _unit(panel, target), [(float(at), float(value)) for at, value in values])
        for target, series in zip(panel["targets"], answers.series, strict=True)
        for labels, values in series
    ]
    limits = {
        _legend(target, {})
        for target in panel["targets"]
        if "custom.lineStyle" in _properties(panel, {"id": "byFrameRefID", "options": target["refId"]})
    }
    is_beside = panel["options"]["legend"]["placement"] == "right"
    if is_beside:
        named.sort(key=lambda entry: -_mean(entry[2]))
    other_unit = next((unit for _, unit, _ in named if unit != defaults["unit"]), "")
    axes = _axes(figure, box, 0.75, 1.55 if is_beside else 0.6 if other_unit else 0.12, 0.28 if is_beside else 0.48)
    axes.grid(axis="y", color="#e9ecef", linewidth=0.7)
    axes.set_axisbelow(True)
    second = axes
    if other_unit:
        second = axes.twinx()
        second.spines[:].set_visible(False)
        second.tick_params(length=0, labelsize=7, labelcolor="#495057")
    is_stacked = defaults["custom"]["stacking"]["mode"] == "normal"
    is_stepped = defaults["custom"]["lineInterpolation"] == "stepAfter"
    drawn = []
    base: dict[float, float] = {}
    for index, (name, unit, values) in enumerate(named):
        color = PALETTE[index % len(PALETTE)]
        times = [at for at, _ in values]
        if is_stacked and name not in limits:
            low = [base.get(at, 0.0) for at in times]
            high = [
                below + (value if math.isfinite(value) else 0) for below, (_, value) in zip(low, values, strict=True)
            ]
            step = "post" if is_stepped else None
            axes.fill_between(times, low, high, color=color, alpha=0.6, linewidth=0, step=step)
            base.update(zip(times, high, strict=True))
            drawn.append((Rectangle((0, 0), 1, 1, color=color), name))
        else:
            where = axes if unit == defaults["unit"] else second
            style = "steps-post" if is_stepped else "default"
            line = where.plot(times, [value for _, value in values], color=color, lw=1.1, drawstyle=style)[0]
            line.set_linestyle("--" if name in limits else "-")
            drawn.append((line, name))
    if other_unit:
        _value_axis(second, other_unit, None)
    _value_axis(axes, defaults["unit"], defaults.get("max"))
    _time_axis(axes, span)
    if not drawn:
        return
    if is_beside:
        means = [f"{name}  {write(_mean(values), unit)}" for name, unit, values in named]
        shown = [(line, text) for (line, _), text in zip(drawn, means, strict=True)][:LONGEST_LEGEND]
        axes.legend(*zip(*shown, strict=True), loc="upper left", bbox_to_anchor=(1.0, 1.05), **LEGEND)
    else:
        _legend_below(axes, panel, drawn)


def _legend_below(axes: Axes, panel: Json, drawn: Sequence[tuple[Any, str]]) -> None:
    """Two lines of names, as many as there is room for."""
    width_in = panel["gridPos"]["w"] * COLUMN_IN
    columns = max(1, int(width_in / (0.3 + 0.052 * max(len(name) for _, name in drawn))))
    shown = drawn[: 2 * columns]
    columns = min(columns, math.ceil(len(shown) / (2 if len(shown) > columns else 1)))
    left = -0.65 / (axes.get_position().width * axes.figure.get_size_inches()[0])
    below = -0.16 / (axes.get_position().height * axes.figure.get_size_inches()[1])
    axes.legend(*zip(*shown, strict=True), loc="upper left", bbox_to_anchor=(left, below), ncol=columns, **LEGEND)


def _mean(values: Sequence[tuple[float, float]]) -> float:
    known = [value for _, value in values if math.isfinite(value)]
    return sum(known) / len(known) if known else 0.0


def _value_axis(axes: Axes, unit: str, maximum: float | None) -> None:
    heights = [value for line in axes.lines for value in line.get_ydata() if math.isfinite(value)]
    is_flat = not axes.collections and max(heights, default=0) <= 0
    top = 1.0 if is_flat else axes.get_ylim()[1]
    axes.set_ylim(0, top if maximum is None else 1.02 * maximum)
    ticks = [
        tick
        for tick in MaxNLocator(4, integer=unit in WHOLE).tick_values(*axes.get_ylim())
        if 0 <= tick <= axes.get_ylim()[1]
    ]
    axes.set_yticks(ticks, [write(tick, unit) for tick in ticks])


def _draw_heatmap(
    figure: Figure, box: tuple[float, ...], panel: Json, answers: Answers, span: tuple[float, float]
) -> None:
    [series] = answers.series
    unit = panel["fieldConfig"]["defaults"]["unit"]
    axes = _axes(figure, box, 0.85, 0.12, 0.28)
    bounds = sorted(series, key=lambda entry: float(entry[0]["le"]))
    times = sorted({float(at) for _, values in bounds for at, _ in values})
    cumulated = [{float(at): float(value) for at, value in values} for _, values in bounds]
    cells = [
        [column.get(at, 0.0) - (cumulated[index - 1].get(at, 0.0) if index else 0.0) for at in times]
        for index, column in enumerate(cumulated)
    ]
    used = [index for index, row in enumerate(cells) if max(row, default=0) > 1e-9]
    if times and used:
        first, last = max(0, used[0] - 1), min(len(cells), used[-1] + 2)
        shown = [[value if value > 1e-9 else math.nan for value in row] for row in cells[first:last]]
        step_s = times[1] - times[0] if len(times) > 1 else 1.0
        edges = [*times, times[-1] + step_s]
        norm = PowerNorm(0.5, vmin=0)
        axes.pcolormesh(edges, range(len(shown) + 1), shown, cmap="Oranges", norm=norm, rasterized=True)
        names = [entry[0]["le"] for entry in bounds[first:last]]
        texts = ["more" if name == "+Inf" else f"<= {write(float(name), unit)}" for name in names]
        every = max(1, len(texts) // 8)
        axes.set_yticks([index + 0.5 for index in range(0, len(texts), every)], texts[::every])
    _time_axis(axes, span)


def _draw_timeline(
    figure: Figure, box: tuple[float, ...], panel: Json, answers: Answers, span: tuple[float, float]
) -> None:
    axes = _axes(figure, box, 1.05, 0.12, 0.28)
    named = [
        (_legend(target, labels), values)
        for target, series in zip(panel["targets"], answers.series, strict=True)
        for labels, values in series
    ]
    for row, (_, values) in enumerate(named):
        for (at, value), (until, _) in zip(values, [*values[1:], (span[1], "")], strict=True):
            color = COLORS["green" if float(value) else "red"]
            axes.broken_barh([(at, until - at)], (row + 0.15, 0.7), color=color, linewidth=0)
    axes.set_ylim(max(1, len(named)), 0)
    axes.set_yticks([row + 0.5 for row in range(len(named))], [name for name, _ in named])
    _time_axis(axes, span)


def _draw_table(
    figure: Figure, box: tuple[float, ...], panel: Json, answers: Answers, span: tuple[float, float]
) -> None:
    axes = _axes(figure, box, 0.1, 0.1, 0.05)
    axes.set_axis_off()
    headings, rows = transformed(panel, answers.samples)
    properties = {heading: _properties(panel, {"id": "byName", "options": heading}) for heading in headings}
    texts = [
        [_cell_text(cell, properties[heading]) for heading, cell in zip(headings, row, strict=True)] for row in rows
    ]
    widths = [max(map(len, column)) + 3 for column in zip(headings, *texts, strict=True)]
    starts = [sum(widths[:x]) for x in range(len(widths))]
    axes.set_xlim(0, sum(widths))
    lines = panel["gridPos"]["h"] * 1.05
    axes.set_ylim(lines, 0)
    for x, heading in zip(starts, headings, strict=True):
        axes.text(x, 0.4, heading, weight="bold", va="center", **SMALL)
    axes.axhline(0.85, color="#dee2e6", linewidth=0.8)
    if not rows:
        axes.text(sum(widths) / 2, lines / 2, "No data", ha="center", **SMALL)
    for y, (row, line) in enumerate(zip(rows, texts, strict=True)):
        for x, heading, cell, text in zip(starts, headings, row, line, strict=True):
            thresholds = properties[heading].get("thresholds")
            color = _color(cell, thresholds) if thresholds and isinstance(cell, int | float) else "#212529"
            axes.text(x, y + 1.35, text, fontsize=7, va="center", color=color)


def _cell_text(cell: float | str | None, properties: Json) -> str:
    return cell if isinstance(cell, str) else write(cell, properties.get("unit", "none"))


_DRAW = {
    "stat": _draw_stat,
    "timeseries": _draw_lines,
    "heatmap": _draw_heatmap,
    "state-timeline": _draw_timeline,
    "table": _draw_table,
}
