"""The dashboards over a real Prometheus that scrapes a real fleet: every query answers, every choice has values."""

from __future__ import annotations

import math
import re

import pytest

from deploy.grafana.boards.model import Json
from deploy.grafana.boards.promql import LOST
from tests.deploy.conftest import Fleet
from tests.deploy.grafana import DASHBOARDS, View, every_panel, name_of, variables
from tests.deploy.prometheus import Sample

VIEW = View(range_s=300)
#: Panels that are empty while all is well, and why. Prometheus must still take what they ask.
MAY_BE_EMPTY = {
    "Firing alerts": "nothing fires, unless this machine is so loaded that results are late",
}

panel_of_board = pytest.mark.parametrize(("dashboard", "panel"), every_panel(), ids=name_of)


def has_a_value(samples: list[Sample]) -> bool:
    return any(math.isfinite(value) for _, value in samples)


@panel_of_board
def test_every_query_has_an_answer(fleet: Fleet, dashboard: Json, panel: Json) -> None:
    """Some need a moment: shares wait for their least sample."""
    for target in panel["targets"]:
        expr = VIEW.fill(target["expr"], dashboard, panel)
        if panel["title"] in MAY_BE_EMPTY:
            fleet.prometheus.query(expr)
            continue
        samples = fleet.prometheus.wait_for(expr, has_a_value)
        labels = re.findall(r"{{(\w+)}}", target["legendFormat"])
        assert all(entry.get(label) for entry, _ in samples for label in labels), samples
        names = [tuple(entry[label] for label in labels) for entry, _ in samples]
        assert panel["type"] == "table" or len(set(names)) == len(names), "series that one cannot tell apart"


def test_panels_that_may_be_empty_exist() -> None:
    assert MAY_BE_EMPTY.keys() <= {panel["title"] for _, panel in every_panel()}


@pytest.mark.parametrize("dashboard", list(DASHBOARDS.values()), ids=name_of)
def test_every_variable_has_values(fleet: Fleet, dashboard: Json) -> None:
    for variable in variables(dashboard):
        if variable["type"] == "query":
            assert values_of(fleet, dashboard, variable, VIEW), variable["name"]
        elif variable["type"] == "constant":
            assert float(variable["query"]) > 0


def test_cameras_to_choose_from_follow_the_node(fleet: Fleet) -> None:
    dashboard = DASHBOARDS["rac-node"]
    cameras = next(variable for variable in variables(dashboard) if variable["name"] == "camera")
    assert values_of(fleet, dashboard, cameras, VIEW, 3) == {"gate", "fence", "pond"}
    assert values_of(fleet, dashboard, cameras, View(60, choices={"node": "yard"}), 2) == {"fence", "pond"}


def values_of(fleet: Fleet, dashboard: Json, variable: Json, view: View, count: int = 1) -> set[str]:
    """What Grafana's `label_values(series, label)` offers, once there are so many: a scrape may have taken too long."""
    match = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"])
    assert match is not None
    series = view.fill(match[1], dashboard, {})
    found = fleet.prometheus.wait_for(f"group by ({match[2]}) ({series})", lambda samples: len(samples) >= count)
    return {labels[match[2]] for labels, _ in found}


def test_camera_and_node_chosen_leave_only_theirs(fleet: Fleet) -> None:
    dashboard, panel = next(
        pair for pair in every_panel() if (pair[0]["uid"], pair[1]["title"]) == ("rac-fleet", "Worst ten cameras")
    )
    view = View(60, choices={"node": "yard", "camera": "pond"})
    for target in panel["targets"]:
        found = fleet.prometheus.query(view.fill(target["expr"], dashboard, panel))
        assert {(labels["node"], labels["camera"]) for labels, _ in found} <= {("yard", "pond")}


def test_health_is_one_unless_frames_were_lost(fleet: Fleet) -> None:
    """Superseded frames of a live camera are no loss."""
    dashboard, panel = next(pair for pair in every_panel() if pair[1]["title"] == "Worst ten cameras")
    health = VIEW.fill(panel["targets"][0]["expr"], dashboard, panel)
    drops = f"rac_node_frames_dropped_total{{{LOST}}}[{VIEW.range_s}s]"
    lost = f"sum by (node, camera) (increase({drops}))"
    # In one query: all of it is of the same moment.
    agreement = f"(({health}) == 1 and {lost} == 0) or (({health}) < 1 and {lost} > 0)"
    found = fleet.prometheus.wait_for(agreement, lambda samples: len(samples) == 3)
    cameras = {(labels["node"], labels["camera"]) for labels, _ in found}
    assert cameras == {("dock", "gate"), ("yard", "fence"), ("yard", "pond")}


def test_jpeg_costs_what_its_constants_say(fleet: Fleet) -> None:
    """yard sends level 2 only: its bits are the pixels times that constant."""
    dashboard, panel = next(pair for pair in every_panel() if pair[1]["title"].startswith("Bitrate, and JPEG"))
    view = View(60, choices={"node": "yard"})
    [jpeg] = [target["expr"] for target in panel["targets"] if target["legendFormat"].startswith("JPEG")]
    bpp = next(variable["query"] for variable in variables(dashboard) if variable["name"] == "jpeg_bpp_2")
    pixels = f'sum(rate(rac_node_coded_pixels_total{{node="yard"}}[{view.rate_interval_s(panel)}s]))'
    share = f"({view.fill(jpeg, dashboard, panel)}) / ({pixels} > 0)"
    [(_, value)] = fleet.prometheus.wait_for(share, has_a_value)
    assert value == pytest.approx(float(bpp))
