"""What is written about the project is what the code does."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from nodes.arguments import SUBCOMMANDS, OneLineParser, cloud_parser, node_parser, rac_parser
from pipeline.config import CloudConfig, NodeConfig, config_keys
from pipeline.config_files import load_config
from pipeline.config_sample import render_sample
from pipeline.ledger import Outcome
from pipeline.metrics import METRICS, render_metrics_page

ROOT = Path(__file__).parents[1]
SAMPLES = {"node.yaml": NodeConfig, "cloud.yaml": CloudConfig}
PAGES = [ROOT / name for name in ("README.md", "nodes/README.md", "pipeline/README.md", "deploy/README.md")]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))

_METRIC = re.compile(r"\brac_(?:node|cloud)_[a-z0-9_]+")


def pinned() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line.partition(";")[0].strip() for line in lines if line and not line.startswith("#")]
    return {name: version for name, _, version in (pin.partition("==") for pin in pins)}


def normalised(requirement: str) -> str:
    name = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert name is not None
    return re.sub(r"[._-]+", "-", name[0]).lower()


@pytest.mark.parametrize(("file", "model"), SAMPLES.items())
def test_sample_configuration_loads_and_is_up_to_date(file: str, model: Any) -> None:
    """Write it anew: rac-node --sample-config > configs/node.yaml"""
    path = ROOT / "configs" / file
    assert load_config(model, path, {}, {}) == model()
    assert path.read_text(encoding="utf-8") == render_sample(model)


@pytest.mark.parametrize("model", SAMPLES.values())
def test_every_key_says_what_it_means(model: Any) -> None:
    for key, field in config_keys(model).items():
        assert field.description, key
        assert field.description.endswith("."), key


@pytest.mark.parametrize(("command", "model"), [("node", NodeConfig), ("cloud", CloudConfig)])
def test_every_key_is_read_by_its_program(command: str, model: Any) -> None:
    """A key that nothing reads would promise what it does not do."""
    places = [ROOT / "nodes" / name for name in (f"{command}_command.py", "cli.py", "security.py")]
    source = "\n".join(path.read_text(encoding="utf-8") for path in places)
    unread = [key for key in config_keys(model) if not re.search(_reading(key), source)]
    assert not unread


def _reading(key: str) -> str:
    """A key as it is read: config.link.bind, or capture.fps where a section has a name of its own."""
    section, _, name = key.rpartition(".")
    return rf"\bconfig\.{re.escape(key)}\b|\b{section or 'config'}\.{name}\b"


def test_metrics_page_is_up_to_date() -> None:
    """Write it anew: pipeline.metrics.render_metrics_page()"""
    assert (ROOT / "nodes/METRICS.md").read_text(encoding="utf-8") == render_metrics_page()


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_pages_name_only_metrics_that_exist(path: Path) -> None:
    endings = re.compile(r"_(?:bucket|sum|count)$")
    for name in _METRIC.findall(path.read_text(encoding="utf-8")):
        assert name in METRICS or endings.sub("", name) in METRICS or name.endswith("_"), name


def test_operations_table_names_reasons_and_keys_that_exist() -> None:
    """`What happens when` in the README: its third column speaks the ledger's language, settings are keys."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = text.partition("### What happens when")[2].partition("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("|")][2:]
    assert len(rows) > 10
    keys = {*config_keys(NodeConfig), *config_keys(CloudConfig)}
    for row in rows:
        assert len(row) == 4, row
        reasons = set(row[2].split(", ")) - {"-"}
        assert reasons <= {outcome.value for outcome in Outcome}, row
        assert set(re.findall(r"`([a-z]+\.[a-z_]+)`", " ".join(row))) <= keys, row


@pytest.mark.skipif(not (ROOT / "README.md").exists(), reason="README.md is not written yet")
@pytest.mark.parametrize("command", ["rac-node", "rac-cloud", *(f"rac {name}" for name in SUBCOMMANDS)])
def test_readme_names_every_command(command: str) -> None:
    assert command in (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("parser", [node_parser(), cloud_parser()], ids=["rac-node", "rac-cloud"])
def test_every_flag_has_help(parser: OneLineParser) -> None:
    assert all(action.help for action in parser._actions)


def test_makefile_targets_say_what_they_do() -> None:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    phony = re.search(r"^\.PHONY: (.*)$", text, re.MULTILINE)
    assert phony is not None
    for target in phony[1].split():
        assert re.search(rf"^{target}:.*## \w", text, re.MULTILINE), target


def test_every_requirement_that_make_installs_is_pinned() -> None:
    groups = PROJECT["project"]["optional-dependencies"]
    wanted = [*PROJECT["project"]["dependencies"]]
    for extra in ("cloud", "demo", "train", "dev"):
        wanted += groups[extra]
    assert {normalised(requirement) for requirement in wanted} <= set(pinned())


def test_pins_are_exact_and_plain() -> None:
    """A local version or a path would tie the project to one machine."""
    for name, version in pinned().items():
        assert name == normalised(name)
        assert re.fullmatch(r"[0-9][0-9A-Za-z.]*", version), name


def test_exact_requirements_equal_their_pins() -> None:
    pins = pinned()
    groups = PROJECT["project"]["optional-dependencies"]
    every = [*PROJECT["project"]["dependencies"], *(line for group in groups.values() for line in group)]
    for requirement in every:
        exact = re.match(r"[A-Za-z0-9._-]+==([^;\s]+)", requirement)
        if exact is not None:
            assert pins[normalised(requirement)] == exact[1]


def test_scripts_exist() -> None:
    for target in PROJECT["project"]["scripts"].values():
        module, _, function = target.partition(":")
        source = (ROOT / module.replace(".", "/")).with_suffix(".py").read_text(encoding="utf-8")
        assert f"def {function}(" in source


REQUIRED = {
    "eval": ["--data", "x"],
    "invert": ["--data", "x"],
    "train": ["x"],
    "sweep": ["plan.yaml"],
    "export": ["x", "--out", "y"],
    "bundle": ["show"],
    "keys": ["server"],
}


@pytest.mark.parametrize("name", SUBCOMMANDS)
def test_sub_command_is_given_every_argument_that_it_reads(name: str) -> None:
    source = (ROOT / SUBCOMMANDS[name].module.replace(".", "/")).with_suffix(".py")
    read = set(re.findall(r"\b(?:args|arguments)\.(\w+)", source.read_text(encoding="utf-8")))
    given = vars(rac_parser().parse([name, *REQUIRED.get(name, [])]))
    assert read <= set(given)


def test_every_sub_command_is_there() -> None:
    for name, command in SUBCOMMANDS.items():
        source = (ROOT / command.module.replace(".", "/")).with_suffix(".py")
        assert "def run(" in source.read_text(encoding="utf-8"), name


def test_every_event_of_the_log_is_listed() -> None:
    """A change of state that nobody can look up is noise."""
    source = "\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "nodes").glob("*.py")))
    used = set(re.findall(r'"event": "([a-z_]+)"', source)) | {"ready", "not_ready"}
    table = (ROOT / "nodes/README.md").read_text(encoding="utf-8").partition("| event | of |")[2]
    listed = {
        word for row in table.splitlines() for word in re.findall(r"[a-z_]+", row.split("|")[1] if "|" in row else "")
    }
    assert used == listed
