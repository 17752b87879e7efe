"""`make` in a fresh clone: which Python it takes, and what it says when none fits."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CANDIDATES = ("python3.12", "python3.11", "python3")

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "bin").mkdir()
    for name in CANDIDATES:
        put(tmp_path, name, "exit 127")
    return tmp_path


def put(clone: Path, name: str, script: str) -> None:
    """Put a program in front of the machine's own."""
    path = clone / "bin" / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def make(clone: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": f"{clone / 'bin'}:/usr/bin:/bin", "HOME": str(clone)}
    return subprocess.run(
        ["make", *arguments],
        cwd=clone,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_help_lists_every_target_without_installing(clone: Path) -> None:
    done = make(clone)
    assert done.returncode == 0
    assert [line.split()[0] for line in done.stdout.splitlines()] == [
        *("help", "demo", "test", "lint", "bench", "fuzz", "soak", "clean")
    ]
    assert not (clone / ".venv").exists()


def test_no_python_that_fits_says_what_to_install(clone: Path) -> None:
    """A shim of a version manager exists and fails: it counts as absent."""
    done = make(clone, ".venv/.ready")
    assert done.returncode != 0
    assert "Python 3.11 or 3.12 with venv is needed: apt install python3-venv make" in done.stderr
    assert not (clone / ".venv").exists()


def test_python_without_venv_says_what_to_install(clone: Path) -> None:
    put(clone, "python3.11", "exit 4")
    done = make(clone, ".venv/.ready")
    assert done.returncode != 0
    assert "python3.11 fits but has no venv: apt install python3-venv make" in done.stderr


def test_first_python_that_runs_makes_the_environment(clone: Path) -> None:
    """The one taken is called for the probe, its version and the environment; pip's arguments pass through."""
    venv_pip = 'echo "pip $*" >>calls; case "$*" in *show*) exit 1;; esac'
    put(clone, "python3.11", f'test "$1" = -c && exec {sys.executable} "$@"; echo "3.11 $*" >>calls; sh ./venv.sh "$@"')
    put(clone, "python3", 'echo "python3 $*" >>calls')
    (clone / "venv.sh").write_text(
        'test "$2" = venv || exit 0\n'
        "mkdir -p .venv/bin\n"
        f"printf '#!/bin/sh\\n%s\\n' '{venv_pip}' >.venv/bin/python\n"
        "chmod +x .venv/bin/python\n"
    )
    done = make(clone, ".venv/.ready", "PIP_ARGS=--no-cache-dir")
    assert done.returncode == 0, done.stderr
    calls = (clone / "calls").read_text()
    assert "3.11 -m venv --clear .venv" in calls
    assert "python3 " not in calls
    first, second = [line for line in calls.splitlines() if " install " in line]
    assert first == "pip -m pip install --no-cache-dir -c constraints.txt torch==2.13.0 numpy"
    assert second == "pip -m pip install --no-cache-dir -c constraints.txt -e .[cloud,demo,train,otel,dev]"
    assert make(clone, ".venv/.ready").stdout.strip() == "make: '.venv/.ready' is up to date."


def test_failed_install_is_tried_again(clone: Path) -> None:
    (clone / ".venv/bin").mkdir(parents=True)
    python = clone / ".venv/bin/python"
    python.write_text('#!/bin/sh\ncase "$*" in *install*) exit 1;; esac\n')
    python.chmod(0o755)
    assert make(clone, ".venv/.ready").returncode != 0
    assert not (clone / ".venv/.ready").exists()
