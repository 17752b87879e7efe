"""What the tests of the files in `deploy/` share: tools, and the programs' own way to read arguments."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from nodes.arguments import cloud_parser, config_flags, node_parser
from pipeline.config import CloudConfig, NodeConfig
from pipeline.config_files import load_config
from tests.e2e.programs import ROOT, environment

DEPLOY = ROOT / "deploy"
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
SERVICES: dict[str, Any] = COMPOSE["services"]
NODES = ("node-a", "node-b")
PROGRAMS = {"rac-node": (node_parser, NodeConfig), "rac-cloud": (cloud_parser, CloudConfig)}


def tool(name: str) -> str:
    """A program beside this Python or on the path; the test skips itself without it."""
    found = shutil.which(name, path=os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])))
    return found or pytest.skip(f"{name} is missing")


def run(*words: str | Path, **changes: str) -> str:
    """Run to the end, which has to be a good one; return what it says."""
    done = subprocess.run(
        [str(word) for word in words], env=environment(**changes), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def configuration(program: str, words: Sequence[str], variables: Mapping[str, str], path: Path | None = None) -> Any:
    """What a program makes of its arguments and environment; a misspelt one is an error."""
    parser, model = PROGRAMS[program]
    arguments = parser().parse(words)
    return load_config(model, path, variables, config_flags(arguments))
