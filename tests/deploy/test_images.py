"""The Dockerfiles: linted, pinned, nobody special, and without torch where a node runs. No engine builds them here."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.deploy.checks import DEPLOY, NODES, PROGRAMS, PROJECT, ROOT, SERVICES, run, tool

DOCKERFILES = sorted(DEPLOY.glob("*.Dockerfile"))


def instructions(path: Path) -> list[tuple[str, str]]:
    """A Dockerfile's instructions and their arguments, joined from their lines."""
    text = "\n".join(line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#"))
    words = [line.partition(" ") for line in re.sub(r"\\\n\s*", " ", text).splitlines() if line.strip()]
    return [(word, rest.strip()) for word, _, rest in words]


def arguments_of(path: Path, instruction: str) -> list[str]:
    return [rest for word, rest in instructions(path) if word == instruction]


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_linter_finds_nothing(path: Path) -> None:
    assert run(tool("hadolint"), path) == ""


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_image_is_pinned_and_runs_as_nobody_special(path: Path) -> None:
    for base in arguments_of(path, "FROM"):
        assert re.match(r"python:3\.1[12]\.\d+-slim-\w+( AS \w+)?$", base)
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", arguments_of(path, "USER")[-1])
    assert "PIP_CONSTRAINT=/src/constraints.txt" in arguments_of(path, "ENV")
    assert "ADD" not in dict(instructions(path))
    (health,) = arguments_of(path, "HEALTHCHECK")
    program = f"rac-{path.name.partition('.')[0]}"
    assert str(PROGRAMS[program][1]().metrics.port) in health
    assert arguments_of(path, "ENTRYPOINT") == [f'["{program}"]']
    assert program in PROJECT["project"]["scripts"]


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_what_an_image_copies_is_there_and_let_through(path: Path) -> None:
    let_through = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for copied in arguments_of(path, "COPY"):
        words = [word for word in copied.split() if not word.startswith("--")]
        if "--from=build" in copied:
            continue
        for word in words[:-1]:
            assert (ROOT / word).exists(), word
            assert word in let_through, word


def test_node_image_has_no_torch() -> None:
    """Neither by default nor with the photographs of the test camera."""
    (line,) = [rest for rest in arguments_of(DEPLOY / "node.Dockerfile", "ARG") if rest.startswith("EXTRAS")]
    assert line == 'EXTRAS=""'
    assert {SERVICES[name]["build"]["args"]["EXTRAS"] for name in NODES} == {"demo"}
    extras = PROJECT["project"]["optional-dependencies"]
    assert not [word for word in [*PROJECT["project"]["dependencies"], *extras["demo"]] if word.startswith("torch")]
