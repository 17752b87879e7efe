"""One function for each kind of panel that the dashboards have."""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import Final

from deploy.grafana.boards.model import Json, Panel, Query, Thresholds

#: Least step of shares over few frames.
SLOW: Final = "1m"
GOOD: Final = "green"
WARN: Final = "orange"
BAD: Final = "red"
NEUTRAL: Final[Thresholds] = ((None, "blue"),)


def number(
    title: str,
    description: str,
    unit: str,
    *queries: Query,
    thresholds: Thresholds = NEUTRAL,
    width: int = 4,
    height: int = 4,
    decimals: int | None = None,
) -> Panel:
    """One large value for each query, coloured by thresholds."""
    defaults: Json = {"color": {"mode": "thresholds"}, "thresholds": _thresholds(thresholds), "noValue": "-"}
    if decimals is not None:
        defaults["decimals"] = decimals
    options = {
        "colorMode": "value",
        "graphMode": "none",
        "justifyMode": "auto",
        "orientation": "auto",
        "textMode": "auto" if len(queries) == 1 else "value_and_name",
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
    }
    return Panel("stat", title, description, unit, queries, width, height, True, defaults, _units(queries), options)


def lines(
    title: str,
    description: str,
    unit: str,
    *queries: Query,
    width: int = 8,
    height: int = 8,
    stacked: bool = False,
    steps: bool = False,
    many: bool = False,
    maximum: float | None = None,
    interval: str = "",
) -> Panel:
    """Values over time.

    Args:
        stacked: on top of one another, where their sum means something.
        steps: for values that jump.
        many: series in a table beside the picture, the largest first.
    """
    custom: Json = {
        "drawStyle": "line",
        "lineInterpolation": "stepAfter" if steps else "linear",
        "lineWidth": 1,
        "fillOpacity": 40 if stacked else 8,
        "showPoints": "never",
        "spanNulls": False,
        "stacking": {"mode": "normal" if stacked else "none", "group": "A"},
    }
    defaults: Json = {"color": {"mode": "palette-classic"}, "min": 0, "custom": custom}
    if maximum is not None:
        defaults["max"] = maximum
    legend: Json = {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []}
    if many:
        legend |= {"displayMode": "table", "placement": "right", "calcs": ["mean"], "sortBy": "Mean", "sortDesc": True}
    options = {"legend": legend, "tooltip": {"mode": "multi", "sort": "desc"}}
    overrides = _units(queries) + _limits(queries)
    return Panel(
        "timeseries",
        title,
        description,
        unit,
        queries,
        width,
        height,
        defaults=defaults,
        overrides=overrides,
        options=options,
        interval=interval,
    )


def heatmap(title: str, description: str, unit: str, expr: str, *, width: int = 8, height: int = 8) -> Panel:
    """How a histogram's observations lie over time; `unit` is that of its buckets."""
    options = {
        "calculate": False,
        "cellGap": 1,
        "color": {"mode": "scheme", "scheme": "Oranges", "steps": 64, "exponent": 0.5, "fill": "dark-orange"},
        "filterValues": {"le": 1e-9},
        "rowsFrame": {"layout": "auto"},
        "showValue": "never",
        "tooltip": {"mode": "single", "yHistogram": True, "showColorScale": False},
        "legend": {"show": True},
        "exemplars": {"color": "rgba(255,0,255,0.7)"},
        "yAxis": {"axisPlacement": "left", "unit": unit, "reverse": False},
    }
    options["color"] |= {"reverse": False}  # type: ignore[operator]
    return Panel("heatmap", title, description, unit, (Query(expr, "{{le}}"),), width, height, options=options)


def timeline(title: str, description: str, *queries: Query, width: int = 12, height: int = 8) -> Panel:
    """When something was up (1) or down (0), a line for each series."""
    states = {"0": {"text": "down", "color": BAD, "index": 0}, "1": {"text": "up", "color": GOOD, "index": 1}}
    defaults = {
        "color": {"mode": "thresholds"},
        "thresholds": _thresholds(((None, BAD), (1, GOOD))),
        "mappings": [{"type": "value", "options": states}],
        "custom": {"lineWidth": 0, "fillOpacity": 70},
    }
    options = {
        "alignValue": "left",
        "mergeValues": True,
        "rowHeight": 0.9,
        "showValue": "never",
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True, "calcs": []},
        "tooltip": {"mode": "single", "sort": "none"},
    }
    return Panel(
        "state-timeline", title, description, "bool", queries, width, height, defaults=defaults, options=options
    )


def table(
    title: str,
    description: str,
    *columns: Query,
    sort: str = "",
    descending: bool = False,
    limit: int = 0,
    hidden: Sequence[str] = (),
    headings: Sequence[tuple[str, str]] = (),
    link: str = "",
    width: int = 24,
    height: int = 8,
) -> Panel:
    """One row for each set of labels, one column for each query.

    Args:
        sort: heading of the column that rows are sorted by, before `limit` cuts them.
        hidden: columns left out.
        headings: label and how its column is called; they come first, in this order.
        link: where a click on a row's first column leads.
    """
    values = {
        query.legend: f"Value #{letter}" if len(columns) > 1 else "Value"
        for letter, query in zip(string.ascii_uppercase, columns, strict=False)
    }
    names = dict(headings) | {value: heading for heading, value in values.items()}
    transformations: list[Json] = [{"id": "merge", "options": {}}]
    if sort:
        order = [{"field": values[sort], "desc": descending}]
        transformations.append({"id": "sortBy", "options": {"fields": {}, "sort": order}})
    if limit:
        transformations.append({"id": "limit", "options": {"limitField": limit}})
    organize = {
        "excludeByName": dict.fromkeys(("Time", *hidden), True),
        "indexByName": {name: place for place, name in enumerate(names)},
        "renameByName": names,
    }
    transformations.append({"id": "organize", "options": organize})
    overrides = [_override(query.legend, *_column(query)) for query in columns]
    if link:
        links = [{"title": "Look closer", "url": link, "targetBlank": False}]
        overrides.append(_override(headings[0][1], {"id": "links", "value": links}))
    defaults = {"custom": {"align": "auto", "filterable": True}, "noValue": "-"}
    options = {"showHeader": True, "cellHeight": "sm"}
    return Panel(
        "table",
        title,
        description,
        "short",
        columns,
        width,
        height,
        is_instant=True,
        defaults=defaults,
        overrides=overrides,
        options=options,
        transformations=transformations,
    )


def _column(query: Query) -> list[Json]:
    properties: list[Json] = [{"id": "unit", "value": query.unit}]
    if query.thresholds:
        properties.append({"id": "thresholds", "value": _thresholds(query.thresholds)})
        properties.append({"id": "custom.cellOptions", "value": {"type": "color-text"}})
    return properties


def _units(queries: Sequence[Query]) -> list[Json]:
    """Units of queries that differ from their panel's."""
    return [
        _override(letter, {"id": "unit", "value": query.unit}, matcher="byFrameRefID")
        for letter, query in zip(string.ascii_uppercase, queries, strict=False)
        if query.unit
    ]


def _limits(queries: Sequence[Query]) -> list[Json]:
    """How limits are drawn."""
    dashes: list[Json] = [
        {"id": "custom.stacking", "value": {"mode": "none", "group": "A"}},
        {"id": "custom.fillOpacity", "value": 0},
        {"id": "custom.lineStyle", "value": {"fill": "dash", "dash": [10, 10]}},
    ]
    return [
        _override(letter, *dashes, matcher="byFrameRefID")
        for letter, query in zip(string.ascii_uppercase, queries, strict=False)
        if query.is_limit
    ]


def _override(name: str, *properties: Json, matcher: str = "byName") -> Json:
    return {"matcher": {"id": matcher, "options": name}, "properties": list(properties)}


def _thresholds(steps: Thresholds) -> Json:
    return {"mode": "absolute", "steps": [{"value": value, "color": color} for value, color in steps]}
