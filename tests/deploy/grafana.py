"""What Grafana does with a dashboard before Prometheus sees it: variables and intervals filled in."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from deploy.grafana.boards.catalogue import BOARDS
from deploy.grafana.boards.model import Board, Json

#: What Grafana reads of each provisioned dashboard; a test compares it with the files.
DASHBOARDS: Mapping[str, Json] = {board.uid: board.to_json() for board in BOARDS}
#: Widths of a step that Grafana chooses from, in seconds, up to an hour's worth of a day.
_STEPS_S = (1, 2, 5, 10, 15, 20, 30, 60, 120, 300, 600, 900, 1800, 3600)
_SECONDS = {"s": 1, "m": 60}


@dataclass(frozen=True)
class View:
    """How a dashboard is looked at.

    Attributes:
        range_s: the chosen time, up to now.
        points: width of a panel in points.
        scrape_s: scrape interval, as the data source knows it.
        choices: value of a variable in place of "All".
    """

    range_s: int
    points: int = 400
    scrape_s: int = 1
    choices: Mapping[str, str] | None = None

    def step_s(self, panel: Json) -> int:
        """Distance of the points that the panel asks for."""
        least = panel.get("interval", f"{self.scrape_s}s")
        least_s = max(self.scrape_s, int(least[:-1]) * _SECONDS[least[-1]])
        return next(step for step in _STEPS_S if step >= self.range_s / self.points and step >= least_s)

    def rate_interval_s(self, panel: Json) -> int:
        """$__rate_interval, as Grafana's documentation has it."""
        return max(self.step_s(panel) + self.scrape_s, 4 * self.scrape_s)

    def fill(self, expr: str, dashboard: Json, panel: Json) -> str:
        """The expression that Grafana sends.

        Raises:
            AssertionError: a variable that the dashboard does not have.
        """
        values = {"__rate_interval": f"{self.rate_interval_s(panel)}s", "__range": f"{self.range_s}s"}
        values |= {variable["name"]: self._value(variable) for variable in variables(dashboard)}
        filled = re.sub(r"\$(\w+)|\$\{(\w+)\}", lambda match: values.get(match[1] or match[2], match[0]), expr)
        assert "$" not in filled, filled
        return filled

    def _value(self, variable: Json) -> str:
        if variable["type"] == "constant":
            return str(variable["query"])
        return (self.choices or {}).get(variable["name"], variable.get("allValue", ""))


def variables(dashboard: Json) -> list[Json]:
    """Its variables, in their order."""
    found: list[Json] = dashboard["templating"]["list"]
    return found


def panels(dashboard: Json) -> list[Json]:
    """Its panels without the headings of rows."""
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def every_panel() -> list[tuple[Json, Json]]:
    """Each dashboard with each of its panels."""
    return [(dashboard, panel) for dashboard in DASHBOARDS.values() for panel in panels(dashboard)]


def expressions(dashboard: Json) -> list[str]:
    """Every expression of a dashboard."""
    return [target["expr"] for panel in panels(dashboard) for target in panel["targets"]]


def name_of(value: Any) -> str | None:
    """Name of a parametrised test: the dashboard, or the panel's title."""
    if isinstance(value, Board):
        return value.uid
    return str(value.get("uid") or value["title"])
