"""The dashboards as they lie in the repository: what Grafana needs of them, and what a reader does."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.grafana.boards.catalogue import BOARDS, FOLDER, render
from deploy.grafana.boards.fleet import OBJECTIVE_S
from deploy.grafana.boards.jpeg import JPEG_POINTS, jpeg_bpp_by_level
from deploy.grafana.boards.model import Board, Json
from deploy.grafana.boards.promql import FOREIGN, LOST, mean, quantile, rate, select
from pipeline.metrics import METRICS, Kind
from tests.deploy.grafana import DASHBOARDS, every_panel, expressions, name_of, panels, variables

ROOT = Path(__file__).parents[2]
GRAFANA = ROOT / "deploy/grafana"
COLUMNS = 24

board = pytest.mark.parametrize("dashboard", list(DASHBOARDS.values()), ids=name_of)
panel_of_board = pytest.mark.parametrize(("dashboard", "panel"), every_panel(), ids=name_of)


@pytest.mark.parametrize("source", BOARDS, ids=name_of)
def test_file_is_what_the_code_says(source: Board) -> None:
    """Write them anew: python -m deploy.grafana.boards"""
    assert (FOLDER / f"{source.uid}.json").read_text(encoding="utf-8") == render(source)


def test_folder_holds_no_other_dashboard() -> None:
    assert {path.name for path in FOLDER.iterdir()} == {f"{uid}.json" for uid in DASHBOARDS}


# The classic model is the one that Grafana reads from files; its class warns that there is a newer one.
@board
@pytest.mark.filterwarnings("ignore:Prefer using dashboardv2:DeprecationWarning")
def test_grafana_knows_every_key(dashboard: Json) -> None:
    """Grafana's own model, read and written again, keeps all that was said: a misspelt key would be gone."""
    from grafana_foundation_sdk.cog.encoder import JSONEncoder
    from grafana_foundation_sdk.cog.plugins import register_default_plugins
    from grafana_foundation_sdk.models.dashboard import Dashboard

    register_default_plugins()
    kept = json.loads(json.dumps(Dashboard.from_json(dashboard), cls=JSONEncoder))
    assert list(_lost(dashboard, kept, "")) == []


def _lost(ours: Any, kept: Any, place: str) -> Iterator[str]:
    if isinstance(ours, dict) and isinstance(kept, dict):
        for key, value in ours.items():
            if key in kept:
                yield from _lost(value, kept[key], f"{place}.{key}")
            else:
                yield f"{place}.{key}"
    elif isinstance(ours, list) and isinstance(kept, list) and len(ours) == len(kept):
        for index, (left, right) in enumerate(zip(ours, kept, strict=True)):
            yield from _lost(left, right, f"{place}[{index}]")
    elif ours != kept:
        yield f"{place}: {ours} became {kept}"


@board
def test_panels_have_places_of_their_own(dashboard: Json) -> None:
    every = dashboard["panels"]
    ids = [panel["id"] for panel in every]
    assert len(set(ids)) == len(ids)
    taken: set[tuple[int, int]] = set()
    for panel in every:
        place = panel["gridPos"]
        assert place["x"] >= 0
        assert place["x"] + place["w"] <= COLUMNS, panel["title"]
        cells = set(
            itertools.product(range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"]))
        )
        assert not cells & taken, panel["title"]
        taken |= cells
    # No holes either: a row whose last line is not full looks broken.
    assert len(taken) == COLUMNS * max(place["y"] + place["h"] for place in (panel["gridPos"] for panel in every))


@panel_of_board
def test_panel_tells_what_it_shows(dashboard: Json, panel: Json) -> None:
    """A unit, a description of at least a sentence, and a name for every series."""
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert re.fullmatch(r"[A-Z0-9].{20,}\.", panel["description"]), panel["description"]
    assert all(target["legendFormat"] for target in panel["targets"])
    if panel["type"] == "table":
        units = {
            override["matcher"]["options"]: override["properties"] for override in panel["fieldConfig"]["overrides"]
        }
        for target in panel["targets"]:
            assert any(entry["id"] == "unit" and entry["value"] for entry in units[target["legendFormat"]])
    elif panel["type"] == "heatmap":
        assert panel["options"]["yAxis"]["unit"] == panel["fieldConfig"]["defaults"]["unit"]


@panel_of_board
def test_panel_asks_the_chosen_prometheus(dashboard: Json, panel: Json) -> None:
    chosen = {"type": "prometheus", "uid": "${datasource}"}
    assert panel["datasource"] == chosen
    letters = [target["refId"] for target in panel["targets"]]
    assert letters
    assert len(set(letters)) == len(letters)
    for target in panel["targets"]:
        assert target["datasource"] == chosen
        assert target["instant"] != target["range"]


@board
def test_titles_are_told_apart_within_a_row(dashboard: Json) -> None:
    titles: list[str] = []
    for panel in dashboard["panels"]:
        if panel["type"] == "row":
            titles = []
            continue
        assert panel["title"] not in titles
        titles.append(panel["title"])


@board
def test_metrics_exist(dashboard: Json) -> None:
    text = " ".join([*expressions(dashboard), *(str(variable["query"]) for variable in variables(dashboard))])
    names = set(re.findall(r"\b(?:rac_|process_)\w+|\b(?:up|ALERTS)\b(?={)", text))
    assert len(names) > 10
    assert names <= FOREIGN.keys() | _series()


def _series() -> set[str]:
    """Names of all series that the table stands for."""
    endings = {Kind.HISTOGRAM: ("_bucket", "_sum", "_count")}
    return {f"{name}{ending}" for name, metric in METRICS.items() for ending in endings.get(metric.kind, ("",))}


@board
def test_rates_are_of_counters_over_the_interval_that_grafana_chooses(dashboard: Json) -> None:
    found = [
        match for expr in expressions(dashboard) for match in re.findall(r"(\w+)\((\w+)(?:{[^}]*})?\[([^]]+)\]", expr)
    ]
    assert found
    for function, name, window in found:
        base = re.sub(r"_(?:bucket|sum|count)$", "", name)
        kind = METRICS[base].kind if base in METRICS else METRICS[name].kind if name in METRICS else None
        assert kind in (Kind.COUNTER, Kind.HISTOGRAM) or FOREIGN.get(name), name
        assert (function, window) in (("rate", "$__rate_interval"), ("increase", "$__range"))


@board
def test_divisions_have_a_guard(dashboard: Json) -> None:
    """Every divisor is `(... > 0)` or `(... >= sample)`: nothing is shown rather than NaN or infinity."""
    for expr in expressions(dashboard):
        for match in re.finditer(r" / ", expr):
            divisor = _parenthesis(expr, match.end())
            assert re.search(r" (?:> 0|>= \d+)$", divisor), expr


def _parenthesis(text: str, start: int) -> str:
    """What stands in the parenthesis that opens here."""
    assert text[start] == "(", text[start:]
    depth = 0
    for index in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[index], 0)
        if depth == 0:
            return text[start + 1 : index]
    raise AssertionError(text)


@board
def test_facts_join_by_what_identifies_them(dashboard: Json) -> None:
    """The side with the facts has one series for each set of the labels that are joined on."""
    joins = [expr for expr in expressions(dashboard) if "group_left" in expr]
    for expr in joins:
        match = re.search(r"\* on \(([\w, ]+)\) group_left \(([\w, ]+)\) max by \(([\w, ]+)\) \(rac_\w+_info\{", expr)
        assert match is not None, expr
        assert set(match[3].split(", ")) == {*match[1].split(", "), *match[2].split(", ")}


@board
def test_variables_are_used_and_chained(dashboard: Json) -> None:
    names = [variable["name"] for variable in variables(dashboard)]
    assert names[0] == "datasource"
    for place, variable in enumerate(variables(dashboard)):
        assert variable["label"]
        assert variable["description"].endswith(".")
        assert set(re.findall(r"\$(\w+)", str(variable["query"]))) <= set(names[:place])
        if variable["type"] == "query":
            assert variable["datasource"]["uid"] == "${datasource}"
    used = set(re.findall(r"\$(\w+)", " ".join(expressions(dashboard)))) - {"__rate_interval", "__range"}
    assert used == set(names[1:])
    if "camera" in names:
        assert "$node" in next(variable for variable in variables(dashboard) if variable["name"] == "camera")["query"]


@board
def test_links_lead_to_the_other_dashboards(dashboard: Json) -> None:
    [top] = dashboard["links"]
    assert top["includeVars"]
    assert top["keepTime"]
    assert all(set(top["tags"]) <= set(other["tags"]) for other in DASHBOARDS.values())
    for url in re.findall(r'"url": "(/d/[^"]+)"', json.dumps(dashboard)):
        target = DASHBOARDS[url.split("/")[2]]
        names = {variable["name"] for variable in variables(target)}
        assert set(re.findall(r"[?&]var-(\w+)=", url)) <= names
        assert "${__url_time_range}" in url


def test_worst_cameras_lead_to_their_node() -> None:
    worst = next(panel for panel in panels(DASHBOARDS["rac-fleet"]) if panel["title"] == "Worst ten cameras")
    assert "/d/rac-node/?" in json.dumps(worst["fieldConfig"]["overrides"])


def test_table_renames_and_cuts_what_its_queries_give() -> None:
    """Grafana calls a query's values Value #A, or Value where there is one query only."""
    for _, panel in every_panel():
        if panel["type"] != "table":
            continue
        several = len(panel["targets"]) > 1
        names = {f"Value #{target['refId']}" if several else "Value" for target in panel["targets"]}
        for entry in panel["transformations"]:
            options = entry["options"]
            columns = {*options.get("renameByName", {}), *(each["field"] for each in options.get("sort", []))}
            assert {column for column in columns if column.startswith("Value")} <= names
        labels = " ".join(target["expr"] for target in panel["targets"])
        organize = panel["transformations"][-1]["options"]
        for column in organize["renameByName"].keys() - names:
            assert re.search(rf"\b{column}\b", labels), column


def test_expressions_of_what_is_not_there_are_refused() -> None:
    for wrong in (
        lambda: select("rac_node_frames_seen_total"),
        lambda: select("rac_node_encode_duration_seconds"),
        lambda: rate("rac_node_encoder_depth"),
        lambda: rate("process_resident_memory_bytes"),
        lambda: quantile(0.5, "rac_node_frames_captured_total", ""),
        lambda: mean("rac_node_budget_seconds", ""),
    ):
        with pytest.raises(ValueError, match="rac_node|process"):
            wrong()


def test_lost_and_late_mean_what_they_mean_in_the_alerts() -> None:
    rules = (ROOT / "deploy/prometheus/rules/recording.yml").read_text()
    assert f"{{{LOST}}}" in rules
    assert set(re.findall(r'le="([\d.]+)"', rules)) == {str(OBJECTIVE_S)}


def test_jpeg_points_are_those_of_the_readme() -> None:
    rows = re.findall(
        r"^\| jpeg \|[^|]*\|[^|]*\| ([\d.]+) \|[^|]*\| ([\d.]+) \|", (ROOT / "README.md").read_text(), re.M
    )
    assert tuple((float(bpp), float(share)) for bpp, share in rows) == JPEG_POINTS


def test_jpeg_rates_rise_with_the_level_and_lie_on_its_curve() -> None:
    rates = list(jpeg_bpp_by_level().values())
    assert rates == sorted(rates)
    assert JPEG_POINTS[0][0] <= rates[0]
    assert rates[-1] <= JPEG_POINTS[-1][0]


def test_provisioned_prometheus_is_what_is_deployed() -> None:
    file = yaml.safe_load((GRAFANA / "provisioning/datasources/prometheus.yaml").read_text())
    [source] = file["datasources"]
    assert file["apiVersion"] == 1
    assert source["type"] == "prometheus"
    assert source["isDefault"]
    prometheus = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
    assert source["jsonData"]["timeInterval"] == prometheus["global"]["scrape_interval"]


def test_provisioned_folder_is_read_as_files() -> None:
    file = yaml.safe_load((GRAFANA / "provisioning/dashboards/edge-cloud-rac.yaml").read_text())
    [provider] = file["providers"]
    assert file["apiVersion"] == 1
    assert provider["type"] == "file"
    assert Path(provider["options"]["path"]).is_absolute()
