"""The systemd units: taken by systemd's own check, little exposed, and their commands are the programs' own."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from tests.deploy.checks import DEPLOY, PROGRAMS, configuration, run, tool

UNITS = sorted((DEPLOY / "systemd").glob("*.service"))


def unit(path: Path) -> dict[str, list[str]]:
    """Values of a unit's keys, of all sections."""
    found: dict[str, list[str]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if "=" in line and not line.startswith("#"):
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_systemd_takes_the_unit_and_finds_little_exposed(path: Path, tmp_path: Path) -> None:
    """Every complaint counts: for what it does not know, systemd-analyze only says that it ignores it."""
    copy = tmp_path / path.name
    copy.write_text(
        re.sub("^ExecStart=/opt/rac/bin/[a-z-]+", "ExecStart=/bin/true", path.read_text(), flags=re.MULTILINE)
    )
    assert run(tool("systemd-analyze"), "verify", copy) == ""
    run(tool("systemd-analyze"), "security", "--offline=yes", "--threshold=20", copy)


@pytest.mark.parametrize("path", UNITS, ids=lambda path: path.name)
def test_units_command_is_the_programs_own(path: Path) -> None:
    keys = unit(path)
    (words,) = map(shlex.split, keys["ExecStart"])
    program = Path(words[0]).name
    assert program == path.stem
    arguments = PROGRAMS[program][0]().parse(words[1:])
    sample = DEPLOY / "systemd" / Path(arguments.config).name
    variables = dict(line.split("=") for line in keys["Environment"])
    config = configuration(program, words[1:], variables, sample)
    assert variables["RAC_CACHE"] == f"/var/cache/{keys['CacheDirectory'][0]}"
    assert config.security.key is not None
    assert config.drain_s < float(keys["TimeoutStopSec"][0])
    assert keys["RestartPreventExitStatus"] == ["2"]
