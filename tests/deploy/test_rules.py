"""Recording rules and alerts: taken by Prometheus, tested one by one, about metrics that exist, with a runbook."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.config import CloudConfig, NodeConfig, config_keys
from pipeline.metrics import METRICS, Kind
from tests.deploy.conftest import Fleet
from tests.e2e.balance import wait_until
from tests.e2e.programs import PATIENCE_S, ROOT

PROMETHEUS = ROOT / "deploy/prometheus"
RULES = sorted((PROMETHEUS / "rules").glob("*.yml"))
UNIT_TESTS = ROOT / "tests/deploy/alerts.yml"
RUNBOOK = ROOT / "deploy/RUNBOOK.md"
#: What a target's labels add to those of the table.
TARGET_LABELS = {"job", "instance", "node"}
ENDINGS = re.compile(r"_(?:bucket|sum|count)$")

needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is missing: apt install prometheus"
)


def load(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def rules(kind: str) -> dict[str, dict[str, Any]]:
    """Rules of all files by name: `alert` or `record`."""
    found = [rule for path in RULES for group in load(path)["groups"] for rule in group["rules"] if kind in rule]
    named = {rule[kind]: rule for rule in found}
    assert len(named) == len(found), "a name is there twice"
    return named


def promtool(*arguments: str) -> None:
    done = subprocess.run(["promtool", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_promtool_takes_configuration_and_rules(tmp_path: Path) -> None:
    """With the token's file, which every installation makes for itself."""
    folder = tmp_path / "prometheus"
    shutil.copytree(PROMETHEUS, folder)
    (folder / "secrets").mkdir(exist_ok=True)
    (folder / "secrets/metrics-token").write_text("0123456789abcdef")
    promtool("check", "config", "--lint=all", str(folder / "prometheus.yml"))
    promtool("check", "rules", "--lint=all", "--lint-fatal", *map(str, RULES))


@needs_promtool
@pytest.mark.timeout(300)  # five seconds of computing, which a loaded machine stretches
def test_alerts_fire_and_stay_silent_as_their_unit_tests_say() -> None:
    promtool("test", "rules", str(UNIT_TESTS))


@pytest.mark.parametrize("name", rules("alert"))
def test_every_alert_has_a_test_that_fires_and_one_that_stays_silent(name: str) -> None:
    cases = [case["alert_rule_test"] for case in load(UNIT_TESTS)["tests"]]
    expected = [bool(check["exp_alerts"]) for checks in cases for check in checks if check["alertname"] == name]
    assert sorted(expected) == [False, True]


def unit_test_series() -> Iterator[tuple[str, dict[str, str]]]:
    for case in load(UNIT_TESTS)["tests"]:
        for given in case["input_series"]:
            name, _, labels = given["series"].partition("{")
            yield name, dict(re.findall(r'(\w+)="([^"]*)"', labels))


def check_series(name: str, labels: Mapping[str, str]) -> None:
    """A series that a program can have: its metric is in the table, with these labels and values of theirs."""
    if name == "up":
        assert labels.keys() <= TARGET_LABELS
        return
    metric = METRICS.get(name) or METRICS[ENDINGS.sub("", name)]
    assert (metric.kind is Kind.HISTOGRAM) == (name not in METRICS)
    known = {label.name: label.values for label in metric.labels}
    assert labels.keys() <= {*known, *TARGET_LABELS, "le"}, (name, labels)
    for label, value in labels.items():
        assert not known.get(label) or value in known[label], (name, label, value)
    if "le" in labels:
        assert name.endswith("_bucket")
        assert float(labels["le"]) in metric.buckets


def test_unit_tests_are_about_series_that_exist() -> None:
    """Otherwise an alert would stay silent because of a misspelt name."""
    for name, labels in unit_test_series():
        check_series(name, labels)


@pytest.mark.parametrize(
    "rule", [*rules("record").values(), *rules("alert").values()], ids=lambda rule: next(iter(rule.values()))
)
def test_rules_ask_for_series_that_exist(rule: dict[str, Any]) -> None:
    asked = re.findall(r"\b((?:\w+:)?rac_\w+(?::\w+)?|up)\b(?:\{([^}]*)\})?", rule["expr"])
    assert asked or "__name__" in rule["expr"]
    for name, selector in asked:
        if ":" in name:
            assert name in rules("record")
            continue
        for label, _, values in re.findall(r'(\w+)(=~|!~|!=|=)"([^"]*)"', selector):
            for value in values.split("|"):
                check_series(
                    name, {label: value} if value not in (".*", "_other", "rac-cloud", "rac-node") else {label: ""}
                )
        check_series(name, {})


@pytest.mark.parametrize("name", rules("alert"))
def test_alert_says_how_urgent_it_is_and_where_to_read_on(name: str) -> None:
    rule = rules("alert")[name]
    assert re.fullmatch(r"Rac[A-Za-z]+", name)
    assert rule["labels"]["severity"] in ("page", "ticket")
    assert rule["annotations"].keys() == {"summary", "description", "runbook"}
    assert rule["annotations"]["runbook"] == f"deploy/RUNBOOK.md#{name.lower()}"


def test_runbook_has_a_section_for_each_alert_and_no_other() -> None:
    text = RUNBOOK.read_text(encoding="utf-8")
    sections = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL))
    alerts = rules("alert")
    assert list(sections) == list(alerts)
    for name, section in sections.items():
        for part in (f"**Means** ({alerts[name]['labels']['severity']})", "**Look at**", "**Do**"):
            assert part in section, (name, part)


def test_runbook_names_metrics_and_keys_that_exist() -> None:
    text = RUNBOOK.read_text(encoding="utf-8")
    for name in re.findall(r"\b(?:\w+:)?rac_(?:node|cloud)_\w+(?::\w+)?", text):
        assert name in METRICS or name in rules("record"), name
    keys = {*config_keys(NodeConfig), *config_keys(CloudConfig)}
    assert set(re.findall(r"`([a-z]+\.[a-z_]+)`", text)) <= keys


def test_running_prometheus_evaluates_every_rule(fleet: Fleet) -> None:
    """Every recording rule has a value in a fleet where all is well, and no rule ends in an error."""
    for name in rules("record"):
        fleet.prometheus.wait_for(name)

    def found_rules() -> list[dict[str, Any]]:
        return [rule for group in fleet.prometheus.get("rules")["groups"] for rule in group["rules"]]

    wait_until(lambda: all(rule["health"] != "unknown" for rule in found_rules()), PATIENCE_S, "all are evaluated")
    found = found_rules()
    assert {rule["name"] for rule in found} == {*rules("record"), *rules("alert")}
    assert [(rule["name"], rule.get("lastError")) for rule in found if rule["health"] != "ok"] == []


def test_fleet_that_works_raises_none_of_these(fleet: Fleet) -> None:
    """Not even as pending, but for a moment. Those about time and load are left out: this machine may be slow."""
    calm = {
        name
        for name in rules("alert")
        if re.search("Cameras?Down|Unreach|Absent|Insecure|Poison|Corrupt|Key|Bundle|Version", name)
    }
    assert len(calm) > 8
    # A scrape that took too long makes a target absent for a second.
    fleet.prometheus.wait_for("ALERTS", lambda samples: not calm & {labels["alertname"] for labels, _ in samples})
