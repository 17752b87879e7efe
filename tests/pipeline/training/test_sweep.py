"""A sweep over tiny networks: done once, taken up where it was, whatever ended it; broken networks are left alone."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from nodes.cli import main
from pipeline.bundle import load_bundle
from pipeline.training import command, trained
from pipeline.training.checkpoint import load_checkpoint, save_checkpoint
from pipeline.training.loop import Training
from pipeline.training.run_folder import CHECKPOINT_FILE, LOG_FILE, read_log
from pipeline.training.sweep import BUNDLE_FOLDER, SWEEP_FILE

PICTURES, BATCH = 8, 2


@pytest.fixture(autouse=True)
def _light(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, classifier: object) -> None:
    monkeypatch.setattr(command, "TEACHER_SAMPLE", 8)
    monkeypatch.setattr(command, "find_spec", lambda name: None)
    monkeypatch.setattr(trained, "FITTED_PICTURES", 4)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def plan_file(tmp_path: Path, picture_folder: Path) -> Path:
    """N = 0 at two rates."""
    plan = {
        "name": "tiny",
        "budget": {
            "pictures": PICTURES,
            "data": {"folders": [str(picture_folder)], "side_px": 96},
            "crops": [{"until": 1.0, "size_px": 64, "batch": BATCH}],
        },
        "networks": [
            {
                "name": "fixed-n0",
                "system": "paper N=0, fixed",
                "lmbda": [0.5, 2],
                "recipe": {"family": "paper", "cut": "stride4", "paper": {"depth": 0}},
            }
        ],
    }
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump(plan), encoding="utf-8")
    return path


def sweep(plan_file: Path, *more: str) -> int:
    return main(["sweep", str(plan_file), "--threads", "1", *more])


def standing(folder: Path) -> dict[str, str]:
    content: dict[str, Any] = json.loads((folder / SWEEP_FILE).read_text(encoding="utf-8"))
    return {network["name"]: network["status"] for network in content["networks"]}


@pytest.fixture
def stop_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[], None]], None]:
    """Have something happen behind the n-th step of all networks together."""
    train_step = Training.train_step

    def patch(number: int, action: Callable[[], None]) -> None:
        made = iter(range(1, 1000))

        def watched(self: Training) -> dict[str, float]:
            parts = train_step(self)
            if next(made) == number:
                action()
            return parts

        monkeypatch.setattr(Training, "train_step", watched)

    return patch


def test_a_sweep_trains_and_exports_and_does_nothing_twice(
    plan_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep(plan_file) == 0
    folder = tmp_path / "runs/tiny"
    assert standing(folder) == {"fixed-n0-0.5": "done", "fixed-n0-2": "done"}
    err = capsys.readouterr().err
    assert "2 networks, 8 pictures seen each, of 20 (0 unreadable, no labels: CE is left out for all)" in err
    assert "fixed-n0-2: 2 of 2, about" in err
    for name in ("fixed-n0-0.5", "fixed-n0-2"):
        assert read_log(folder / name / LOG_FILE)[-1]["seen"] == PICTURES
        assert load_bundle(str(folder / name / BUNDLE_FOLDER)).manifest.name == name
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.name != SWEEP_FILE}
    assert sweep(plan_file) == 0
    assert capsys.readouterr().err.count("done before") == 2
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.name != SWEEP_FILE} == before


def test_a_stopped_sweep_goes_on_at_the_same_step(
    plan_file: Path, tmp_path: Path, stop_at: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    stop_at(2, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert sweep(plan_file) == 0
    assert "0 of 2 networks done; stopped, the same command goes on" in capsys.readouterr().err
    assert standing(tmp_path / "runs/tiny") == {"fixed-n0-0.5": "begun", "fixed-n0-2": "missing"}
    assert main(["sweep", str(plan_file), "--list"]) == 0
    assert "fixed-n0-0.5  paper N=0, fixed  begun" in capsys.readouterr().out
    assert sweep(plan_file) == 0
    assert "resumed at 50%" in capsys.readouterr().err
    assert load_checkpoint(tmp_path / "runs/tiny/fixed-n0-0.5" / CHECKPOINT_FILE)["step"] == PICTURES // BATCH


def test_a_network_that_fails_does_not_keep_the_others_from_it(
    plan_file: Path, tmp_path: Path, stop_at: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    from pipeline.errors import TrainingError

    def diverge() -> None:
        raise TrainingError("step 2: the loss is not finite")

    stop_at(2, diverge)
    assert sweep(plan_file) == 1
    assert standing(tmp_path / "runs/tiny") == {"fixed-n0-0.5": "failed", "fixed-n0-2": "done"}
    assert "fixed-n0-0.5: failed: step 2: the loss is not finite" in capsys.readouterr().err


def test_weights_that_are_not_the_logs_are_told_and_left_alone(
    plan_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep(plan_file, "--only", "fixed-n0-2") == 0
    checkpoint = tmp_path / "runs/tiny/fixed-n0-2" / CHECKPOINT_FILE
    save_checkpoint({**load_checkpoint(checkpoint), "step": 3}, checkpoint)
    content = checkpoint.read_bytes()
    capsys.readouterr()
    assert sweep(plan_file, "--only", "fixed-n0-2") == 1
    err = capsys.readouterr().err
    assert "left out: log.jsonl and checkpoint.pt disagree" in err
    assert "remove" in err
    assert checkpoint.read_bytes() == content
    assert standing(tmp_path / "runs/tiny") == {"fixed-n0-0.5": "missing", "fixed-n0-2": "broken"}


def test_a_bundle_that_is_torn_or_of_older_weights_is_made_again(plan_file: Path, tmp_path: Path) -> None:
    assert sweep(plan_file, "--only", "fixed-n0-2") == 0
    bundle = tmp_path / "runs/tiny/fixed-n0-2" / BUNDLE_FOLDER
    (bundle / "manifest.json").unlink()  # it is written last
    assert sweep(plan_file, "--only", "fixed-n0-2") == 0
    assert load_bundle(str(bundle)).manifest.name == "fixed-n0-2"
    shutil.rmtree(bundle)
    assert sweep(plan_file, "--only", "fixed-n0-2") == 0
    assert load_bundle(str(bundle)).manifest.name == "fixed-n0-2"


def test_an_unknown_network_is_told_with_the_nearest_name(plan_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sweep(plan_file, "--only", "fixd-n0") == 2
    assert "no network fixd-n0; did you mean fixed-n0?" in capsys.readouterr().err


KILLED = """
import os, pathlib, signal, sys
import torch
torch.set_num_threads(1)
from pipeline.training import command, trained
command.TEACHER_SAMPLE, command.find_spec, trained.FITTED_PICTURES = 8, lambda name: None, 4
from nodes.cli import main
replace, count = pathlib.Path.replace, [0]
def killed(self, target):
    count[0] += self.name == sys.argv[1]
    if self.name == sys.argv[1] and count[0] == int(sys.argv[2]):
        self.write_bytes(self.read_bytes()[: self.stat().st_size // 2])  # half of the write, and the end
        os.kill(os.getpid(), signal.SIGKILL)
    return replace(self, target)
pathlib.Path.replace = killed
sys.exit(main(["sweep", sys.argv[3], "--threads", "1"]))
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("name", "number"), [("checkpoint.partial", 1), ("sweep.partial", 2)])
def test_a_sweep_killed_in_the_middle_of_a_write_goes_on(
    plan_file: Path, tmp_path: Path, name: str, number: int
) -> None:
    arguments = [sys.executable, "-c", KILLED, name, str(number), str(plan_file)]
    ended = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert sweep(plan_file) == 0
    assert standing(tmp_path / "runs/tiny") == {"fixed-n0-0.5": "done", "fixed-n0-2": "done"}
