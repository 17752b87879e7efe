"""What a dashboard is made of, and the JSON that Grafana wants of it.

A `Board` has rows of panels; they are laid out from left to right in Grafana's 24 columns, the heights of a line being
equal. The JSON is the classic model of schema 39 (Grafana 11), which later versions read too.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

Json = dict[str, Any]

COLUMNS: Final = 24
SCHEMA_VERSION: Final = 39
#: All our dashboards carry it; the links at their top find one another by it.
TAG: Final = "edge-cloud-rac"
DATASOURCE: Final[Json] = {"type": "prometheus", "uid": "${datasource}"}
#: Colour from each value on; the first one holds below all of them.
Thresholds = Sequence[tuple[float | None, str]]


@dataclass(frozen=True)
class Query:
    """One query.

    Attributes:
        expr: PromQL, with Grafana's variables.
        legend: name of its series, `{{label}}` filled in; in a table the heading of its column.
        unit: where it is another than the panel's.
        thresholds: colours of a table's column.
        is_limit: a dashed line that the others are held against, on top of nothing.
    """

    expr: str
    legend: str
    unit: str = ""
    thresholds: Thresholds = ()
    is_limit: bool = False


@dataclass(frozen=True)
class Panel:
    """One panel, without its place.

    Attributes:
        kind: Grafana's name of the panel type.
        description: what it shows, and what a reader should make of it.
        unit: Grafana's name of the unit.
        is_instant: whether its queries give one value each, of the end of the chosen time.
        defaults, overrides, options, transformations: as in Grafana's model.
        interval: least step, for quantities that need many frames.
    """

    kind: str
    title: str
    description: str
    unit: str
    queries: tuple[Query, ...]
    width: int
    height: int
    is_instant: bool = False
    defaults: Json = field(default_factory=dict)
    overrides: list[Json] = field(default_factory=list)
    options: Json = field(default_factory=dict)
    transformations: list[Json] = field(default_factory=list)
    interval: str = ""

    def to_json(self, number: int, x: int, y: int) -> Json:
        formats = {"table": "table", "heatmap": "heatmap"}
        targets = [
            {
                "refId": letter,
                "datasource": DATASOURCE,
                "editorMode": "code",
                "expr": query.expr,
                "legendFormat": query.legend,
                "format": formats.get(self.kind, "time_series"),
                "instant": self.is_instant,
                "range": not self.is_instant,
            }
            for letter, query in zip(string.ascii_uppercase, self.queries, strict=False)
        ]
        panel = {
            "id": number,
            "type": self.kind,
            "title": self.title,
            "description": self.description,
            "datasource": DATASOURCE,
            "gridPos": {"x": x, "y": y, "w": self.width, "h": self.height},
            "fieldConfig": {"defaults": {"unit": self.unit, **self.defaults}, "overrides": self.overrides},
            "options": self.options,
            "targets": targets,
        }
        if self.transformations:
            panel["transformations"] = self.transformations
        if self.interval:
            panel["interval"] = self.interval
        return panel


@dataclass(frozen=True)
class Row:
    """A heading and the panels below it."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class Variable:
    """A choice at the top of a dashboard: values of a label, or a constant that is not shown.

    Attributes:
        query: `label_values(...)`; may name variables that stand before it.
        constant: its value, instead of a query.
    """

    name: str
    label: str
    description: str
    query: str = ""
    constant: str = ""

    def to_json(self) -> Json:
        common = {"name": self.name, "label": self.label, "description": self.description}
        if self.constant:
            current = {"text": self.constant, "value": self.constant}
            return common | {"type": "constant", "hide": 2, "query": self.constant, "current": current}
        return common | {
            "type": "query",
            "datasource": DATASOURCE,
            "definition": self.query,
            "query": self.query,
            "refresh": 2,  # when the chosen time changes
            "sort": 1,
            "multi": True,
            "includeAll": True,
            "allValue": ".*",
            "current": {"text": ["All"], "value": ["$__all"]},
        }


DATASOURCE_VARIABLE: Final[Json] = {
    "name": "datasource",
    "label": "Prometheus",
    "description": "The Prometheus that scrapes nodes and clouds.",
    "type": "datasource",
    "query": "prometheus",
    "refresh": 1,
    "current": {},
}
NODES: Final = Variable("node", "Node", "Nodes, by their names.", "label_values(rac_node_build_info, node)")
CAMERAS: Final = Variable(
    "camera",
    "Camera",
    "Cameras of the chosen nodes.",
    'label_values(rac_node_frames_captured_total{node=~"$node"}, camera)',
)
CLOUDS: Final = Variable(
    "cloud", "Cloud", "Clouds, as Prometheus reaches them.", "label_values(rac_cloud_build_info, instance)"
)


@dataclass(frozen=True)
class Board:
    """One dashboard.

    Attributes:
        uid: its address in Grafana, `/d/UID`, and the name of its file.
    """

    uid: str
    title: str
    description: str
    variables: tuple[Variable, ...]
    rows: tuple[Row, ...]

    def to_json(self) -> Json:
        links = {
            "title": "edge-cloud-rac",
            "type": "dashboards",
            "icon": "external link",
            "tooltip": "The other dashboards, with the same time and choices",
            "tags": [TAG],
            "asDropdown": False,
            "targetBlank": False,
            "includeVars": True,
            "keepTime": True,
        }
        return {
            "uid": self.uid,
            "title": self.title,
            "description": self.description,
            "tags": [TAG],
            "schemaVersion": SCHEMA_VERSION,
            "timezone": "browser",
            "editable": True,
            "graphTooltip": 1,  # one crosshair for all panels
            "refresh": "30s",
            "time": {"from": "now-1h", "to": "now"},
            "links": [links],
            "templating": {"list": [DATASOURCE_VARIABLE, *(variable.to_json() for variable in self.variables)]},
            "panels": self._panels(),
        }

    def _panels(self) -> list[Json]:
        found: list[Json] = []
        y = 0
        for row in self.rows:
            place = {"x": 0, "y": y, "w": COLUMNS, "h": 1}
            heading = {"id": len(found) + 1, "type": "row", "title": row.title, "collapsed": False, "panels": []}
            found.append(heading | {"gridPos": place})
            x, y, height = 0, y + 1, 0
            for panel in row.panels:
                if x + panel.width > COLUMNS:
                    x, y = 0, y + height
                height = panel.height
                found.append(panel.to_json(len(found) + 1, x, y))
                x += panel.width
            y += height
        return found
