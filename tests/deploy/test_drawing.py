"""Pictures of the dashboards: tables as Grafana puts them together, numbers as it writes them, every kind of panel."""

from __future__ import annotations

import io
import re

import pytest

from deploy.grafana.boards.model import Json, Query
from deploy.grafana.boards.panels import table
from tests.deploy.drawing import Answers, draw
from tests.deploy.grafana import DASHBOARDS, every_panel, panels
from tests.deploy.tables import transformed
from tests.deploy.units import write

START_S, END_S = 1000.0, 1300.0


def test_rows_of_several_queries_meet_by_their_common_labels() -> None:
    """The worst first, no more than the limit, facts beside values, and nothing where a query says nothing."""
    panel = table(
        "Worst",
        "",
        Query("", "Health", "percentunit"),
        Query("", "Known", "none"),
        sort="Health",
        limit=2,
        hidden=("Value #B",),
        headings=(("node", "Node"), ("camera", "Camera"), ("kind", "Kind")),
    ).to_json(1, 0, 0)
    health = [({"node": "dock", "camera": name}, value) for name, value in (("a", 0.9), ("b", 0.1), ("c", 0.5))]
    known = [({"node": "dock", "camera": name, "kind": "rtsp"}, 1.0) for name in "ac"]
    headings, rows = transformed(panel, [health, known])
    assert headings == ["Node", "Camera", "Kind", "Health"]
    assert rows == [["dock", "b", None, 0.1], ["dock", "c", "rtsp", 0.5]]


def test_single_query_has_no_letter() -> None:
    panel = table("One", "", Query("", "Up", "bool_yes_no"), headings=(("node", "Node"),)).to_json(1, 0, 0)
    assert transformed(panel, [[({"node": "dock"}, 1.0)]]) == (["Node", "Up"], [["dock", 1.0]])


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.0034, "s", "3.4 ms"),
        (0.0, "s", "0 s"),
        (90.0, "s", "1.5 min"),
        (0.995, "percentunit", "99.5 %"),
        (131072.0, "bytes", "128 KiB"),
        (12500.0, "bps", "12.5 kb/s"),
        (0.287, "suffix: bpp", "0.29 bpp"),
        (1250.0, "short", "1.25 K"),
        (float("nan"), "s", "-"),
        (None, "fps", "-"),
    ],
)
def test_number_is_written_with_its_unit(value: float | None, unit: str, text: str) -> None:
    assert write(value, unit) == text


def test_every_unit_of_the_dashboards_can_be_written() -> None:
    for _, panel in every_panel():
        units = [panel["fieldConfig"]["defaults"]["unit"]]
        for override in panel["fieldConfig"]["overrides"]:
            units += [entry["value"] for entry in override["properties"] if entry["id"] == "unit"]
        assert all(write(1.0, unit) for unit in units)


@pytest.mark.parametrize("is_empty", [False, True])
def test_dashboard_is_drawn_with_and_without_answers(is_empty: bool) -> None:
    """The one that has every kind of panel."""
    dashboard = DASHBOARDS["rac-node"]
    assert {panel["type"] for panel in panels(dashboard)} == {panel["type"] for _, panel in every_panel()}
    answers = {panel["id"]: _answers(panel, is_empty) for panel in panels(dashboard)}
    figure = draw(dashboard, answers, START_S, END_S)
    written = io.BytesIO()
    figure.savefig(written, format="png", dpi=20)
    assert written.getvalue().startswith(b"\x89PNG")
    texts = " ".join(text.get_text() for text in figure.texts)
    assert all(panel["title"] in texts for panel in panels(dashboard))
    assert "not a picture of Grafana" in texts


def _answers(panel: Json, is_empty: bool) -> Answers:
    """Something, or nothing, for every query."""
    targets = panel["targets"]
    if is_empty:
        return Answers(samples=[[] for _ in targets], series=[[] for _ in targets])
    values = [[at, "0.5"] for at in (START_S, START_S + 100, END_S)]
    if panel["type"] == "heatmap":
        return Answers(series=[[({"le": bound}, values) for bound in ("0.1", "1", "+Inf")]])
    labels = {name: "x" for target in targets for name in re.findall(r"{{(\w+)}}", target["legendFormat"])}
    return Answers(samples=[[(labels, 0.5)] for _ in targets], series=[[(labels, values)] for _ in targets])
