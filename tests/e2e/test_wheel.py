"""The built wheel in an empty environment, run from another folder: nothing may depend on the source tree."""

from __future__ import annotations

import json
import shutil
import site
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from tests.e2e.programs import PATIENCE_S, ROOT, environment

pytest.importorskip("skimage", reason="photographs are missing: pip install 'edge-cloud-rac[demo]'")
pytest.importorskip("setuptools", minversion="77.0.3")
pytest.importorskip("pip")

# The wheel is built and installed with the first test; on a busy machine that takes a while.
pytestmark = pytest.mark.timeout(300)

PARTS = ("pipeline", "nodes", "configs", "pyproject.toml", "README.md", "LICENSE")


def call(*words: str | Path, folder: Path) -> str:
    done = subprocess.run(
        [str(word) for word in words],
        cwd=folder,
        env={name: value for name, value in environment().items() if name != "PYTHONPATH"},
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of an environment with the wheel; what it depends on comes from the environment of the tests."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for name in PARTS:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            source.mkdir(exist_ok=True)
            shutil.copy(ROOT / name, source)
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    offline = ("--no-deps", "--no-index", "--quiet")
    call(*pip, "wheel", *offline, "--no-build-isolation", "--wheel-dir", folder, source, folder=folder)
    shutil.rmtree(source)
    (wheel,) = folder.glob("*.whl")
    venv.create(folder / "venv", symlinks=True)
    python = folder / "venv" / "bin" / "python"
    call(*pip, "--python", python, "install", *offline, wheel, folder=folder)
    packages = call(python, "-c", "import site; print(site.getsitepackages()[0])", folder=folder).strip()
    # Only folders are added: the .pth files in them, such as that of an editable install, are not looked at.
    (Path(packages) / "tests-dependencies.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    return folder / "venv"


def test_packages_are_those_of_the_wheel(installed: Path, tmp_path: Path) -> None:
    places = call(
        installed / "bin" / "python",
        "-c",
        "import nodes, pipeline; print(nodes.__file__); print(pipeline.__file__)",
        folder=tmp_path,
    )
    assert all(line.startswith(str(installed)) for line in places.splitlines())


def test_demo_runs_from_another_folder(installed: Path, tmp_path: Path) -> None:
    """A folder that has a package of ours by name must not be in the way."""
    (tmp_path / "nodes").mkdir()
    (tmp_path / "nodes" / "__init__.py").write_text("raise RuntimeError('not this one')\n")
    done = call(installed / "bin" / "rac", "demo", "--seconds", "2", "--json", folder=tmp_path)
    figures = json.loads(done.splitlines()[-1])
    assert figures["results"] > 0
    assert figures["captured"] == figures["results"] + sum(figures["dropped"].values()) + figures["in_flight"]


def test_bundle_classes_and_sample_configurations_came_along(installed: Path, tmp_path: Path) -> None:
    shown = json.loads(call(installed / "bin" / "rac", "bundle", "show", "--json", folder=tmp_path))
    assert shown["path"].startswith(str(installed))
    count = "from pipeline.classes import load_classes; print(len(load_classes().names))"
    assert call(installed / "bin" / "python", "-c", count, folder=tmp_path) == "1000\n"
    for name in ("node", "cloud"):
        sample = installed / "share" / "edge-cloud-rac" / f"{name}.yaml"
        said = call(installed / "bin" / f"rac-{name}", "--config", sample, "--check-config", folder=tmp_path)
        assert said.startswith("ok")


def test_page_came_along(installed: Path, tmp_path: Path) -> None:
    count = "from nodes.page_files import read_page_files; print(sorted(map(len, dict(read_page_files()))))"
    assert call(installed / "bin" / "python", "-c", count, folder=tmp_path) == "[1, 8, 9, 9]\n"
