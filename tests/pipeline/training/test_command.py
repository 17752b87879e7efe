"""`rac train` and `rac export`, from a recipe to a bundle that encodes and decodes."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from numpy.typing import NDArray

from nodes.cli import main
from pipeline.bundle import load_bundle
from pipeline.encoder import Encoder, OperatingPoint
from pipeline.training import command
from pipeline.training.checkpoint import load_checkpoint
from pipeline.training.loop import CHECKPOINT_FILE, Training

PAPER_CROP = {"until": 1.0, "size_px": 64, "batch": 2}


@pytest.fixture(autouse=True)
def _light(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, classifier: object) -> None:
    """Little pictures for the teacher's statistics, torch for its engine, an own cache and folder."""
    monkeypatch.setattr(command, "TEACHER_SAMPLE", 8)
    monkeypatch.setattr(command, "find_spec", lambda name: None)
    monkeypatch.setenv("RAC_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def recipe_file(tmp_path: Path, recipe_fields: dict[str, Any]) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(recipe_fields), encoding="utf-8")
    return path


@pytest.fixture
def stop_after(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, signal.Signals], None]:
    """Have the process signalled after some steps."""

    def patch(steps: int, name: signal.Signals) -> None:
        train_step = Training.train_step

        def watched(self: Training) -> dict[str, float]:
            parts = train_step(self)
            if self.step == steps:
                os.kill(os.getpid(), name)
            return parts

        monkeypatch.setattr(Training, "train_step", watched)

    return patch


def train(recipe_file: Path, *more: str) -> int:
    return main(["train", str(recipe_file), "--threads", "1", *more])


# rac train


def test_train_ends_with_its_time_and_leaves_a_checkpoint(
    recipe_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(recipe_file, "--minutes", "0.001", "--json") == 0
    out, err = capsys.readouterr()
    assert "20 pictures, 4 held out, 0 unreadable" in err
    last = json.loads(out.splitlines()[-1])
    assert len(last["validation"]) == 4
    assert load_checkpoint(tmp_path / "runs" / "tiny" / CHECKPOINT_FILE)["step"] == last["step"] > 0


def test_train_again_does_not_write_over_hours_of_work(
    recipe_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "runs" / "tiny"
    run.mkdir(parents=True)
    (run / CHECKPOINT_FILE).write_bytes(b"precious")
    assert train(recipe_file) == 1
    assert "--resume" in capsys.readouterr().err
    assert (run / CHECKPOINT_FILE).read_bytes() == b"precious"


@pytest.mark.parametrize("name", [signal.SIGINT, signal.SIGTERM])
def test_train_stops_in_order_and_goes_on(
    recipe_file: Path,
    tmp_path: Path,
    stop_after: Callable[[int, signal.Signals], None],
    capsys: pytest.CaptureFixture[str],
    name: signal.Signals,
) -> None:
    handler = signal.getsignal(name)
    stop_after(3, name)
    options = ["--minutes", "5", "--out", str(tmp_path / "run")]
    assert train(recipe_file, *options) == 0
    assert signal.getsignal(name) is handler
    assert load_checkpoint(tmp_path / "run" / CHECKPOINT_FILE)["step"] == 3
    stop_after(6, name)
    assert train(recipe_file, *options, "--resume") == 0
    assert "resumed at step 3" in capsys.readouterr().err
    assert load_checkpoint(tmp_path / "run" / CHECKPOINT_FILE)["step"] == 6


@pytest.mark.parametrize(
    ("change", "code", "text"),
    [
        ({"minuts": 3}, 2, "did you mean minutes?"),
        ({"data": {"folders": ["nowhere"]}}, 1, "nowhere: no such folder"),
    ],
)
def test_train_tells_a_bad_recipe_in_one_line(
    recipe_file: Path,
    recipe_fields: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
    change: dict[str, Any],
    code: int,
    text: str,
) -> None:
    recipe_file.write_text(yaml.safe_dump({**recipe_fields, **change}), encoding="utf-8")
    assert train(recipe_file) == code
    err = capsys.readouterr().err
    assert text in err
    assert len(err.splitlines()) == 1


def test_train_on_a_device_that_is_not_there_says_so(
    recipe_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(recipe_file, "--device", "abacus") == 2
    assert "--device: abacus cannot be used here" in capsys.readouterr().err


def test_train_into_a_file_says_so(recipe_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(recipe_file, "--out", str(recipe_file / "run")) == 1
    assert "cannot be made" in capsys.readouterr().err


def test_train_from_another_runs_weights(
    recipe_file: Path,
    tmp_path: Path,
    stop_after: Callable[[int, signal.Signals], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    stop_after(2, signal.SIGTERM)
    assert train(recipe_file, "--minutes", "5", "--out", str(tmp_path / "first")) == 0
    weights = str(tmp_path / "first" / CHECKPOINT_FILE)
    assert train(recipe_file, "--minutes", "5", "--out", str(tmp_path / "second"), "--from", weights) == 0
    assert f"starts from the weights of {weights}" in capsys.readouterr().err
    assert load_checkpoint(tmp_path / "second" / CHECKPOINT_FILE)["step"] == 2
    assert train(recipe_file, "--out", str(tmp_path / "second"), "--from", weights, "--resume") == 2
    assert "give one of them" in capsys.readouterr().err


def test_a_shortened_run_says_what_the_whole_one_takes(
    recipe_file: Path, recipe_fields: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    recipe_file.write_text(yaml.safe_dump({**recipe_fields, "pictures": 25_000_000}), encoding="utf-8")
    assert train(recipe_file, "--pictures", "8") == 0
    err = capsys.readouterr().err
    assert "8 pictures seen into" in err
    assert "tiny in full: 25,000,000 pictures seen, about" in err
    assert "hours at the" in err
    assert train(recipe_file, "--pictures", "8", "--minutes", "1") == 2


# rac export


@pytest.fixture
def checkpoint(recipe_file: Path, tmp_path: Path, stop_after: Callable[[int, signal.Signals], None]) -> Path:
    """Of a run of two steps."""
    stop_after(2, signal.SIGTERM)
    assert train(recipe_file, "--minutes", "5", "--out", str(tmp_path / "run")) == 0
    return tmp_path / "run" / CHECKPOINT_FILE


def export(checkpoint: Path, out: Path, *more: str) -> int:
    return main(["export", str(checkpoint), "--out", str(out), *more])


def test_export_seals_a_measured_bundle(
    checkpoint: Path, tmp_path: Path, views: NDArray[np.uint8], capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert export(checkpoint, tmp_path / "bundle", "--name", "mine") == 0
    bundle = load_bundle(str(tmp_path / "bundle"))
    assert bundle.manifest.name == "mine"
    assert bundle.short_id in capsys.readouterr().out
    assert bundle.manifest.training["recipe"] == "tiny"
    assert bundle.manifest.training["steps"] == 2
    measured = bundle.manifest.measured
    assert measured is not None
    assert (measured.pictures, measured.source) == (4, "held-out training pictures")
    assert {(point.depth, point.level16) for point in measured.points} == {(0, 0), (0, 16), (1, 0), (1, 16)}
    assert all(point.share_of_top1 is None for point in measured.points)
    # What was measured is what a node writes.
    assert len(Encoder(bundle).encode(views[0], OperatingPoint(1, 16))) > 16
    assert not (tmp_path / "cache").exists()  # of a bundle that is not used again


def test_export_measures_labelled_pictures_when_asked(checkpoint: Path, tmp_path: Path, picture_folder: Path) -> None:
    labels = tmp_path / "labels.csv"
    names = sorted(path.name for path in picture_folder.iterdir())[:3]
    labels.write_text("file,label\n" + "".join(f"{name},7\n" for name in names), encoding="utf-8")
    assert export(checkpoint, tmp_path / "bundle", "--measure", str(picture_folder), "--labels", str(labels)) == 0
    measured = load_bundle(str(tmp_path / "bundle")).manifest.measured
    assert measured is not None
    assert (measured.pictures, measured.source) == (3, picture_folder.name)


@pytest.mark.parametrize(
    ("options", "code", "text"),
    [
        (["--name", "my bundle"], 2, "--name"),
        (["--measure", "nowhere"], 1, "nowhere"),
    ],
)
def test_export_tells_what_is_wrong_before_the_work(
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    code: int,
    text: str,
) -> None:
    from pipeline.training import export_command

    monkeypatch.setattr(export_command, "load_pictures", lambda _: pytest.fail("work begun"))
    capsys.readouterr()
    assert export(checkpoint, tmp_path / "bundle", *options) == code
    err = capsys.readouterr().err
    assert text in err
    assert len(err.splitlines()) == 1


def test_export_takes_nothing_away(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """--out of a folder with other things, such as the run's own."""
    before = sorted(path.name for path in checkpoint.parent.iterdir())
    assert export(checkpoint, checkpoint.parent) == 1
    assert CHECKPOINT_FILE in capsys.readouterr().err
    assert sorted(path.name for path in checkpoint.parent.iterdir()) == before


def test_export_of_a_codec_for_resnet50_says_that_it_cannot(
    tmp_path: Path, recipe_fields: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    fields = {**recipe_fields, "family": "paper", "cut": "stride4", "classifier": "resnet50", "classifier_weights": "x"}
    torch.save({"recipe": fields}, tmp_path / "paper.pt")
    assert export(tmp_path / "paper.pt", tmp_path / "bundle") == 1
    assert "codecs for resnet50 cannot be exported yet" in capsys.readouterr().err


@pytest.mark.parametrize("paper", [{"depth": 0}, {"network": "entropic_student", "classifier_training": "joint"}])
def test_export_of_the_papers_family_is_a_bundle_like_any_other(
    recipe_file: Path,
    recipe_fields: dict[str, Any],
    tmp_path: Path,
    views: NDArray[np.uint8],
    stop_after: Callable[[int, signal.Signals], None],
    paper: dict[str, Any],
) -> None:
    fields = {**recipe_fields, "family": "paper", "cut": "stride4", "paper": paper, "crops": [PAPER_CROP]}
    recipe_file.write_text(yaml.safe_dump(fields), encoding="utf-8")
    stop_after(2, signal.SIGTERM)
    assert train(recipe_file, "--minutes", "5", "--out", str(tmp_path / "run")) == 0
    assert export(tmp_path / "run" / CHECKPOINT_FILE, tmp_path / "bundle", "--name", "paper-n0") == 0
    bundle = load_bundle(str(tmp_path / "bundle"))
    assert (bundle.manifest.family, bundle.manifest.depths, bundle.manifest.levels16) == ("paper", (0,), (0,))
    measured = bundle.manifest.measured
    assert measured is not None
    bits = 8 * len(Encoder(bundle).encode(views[0], OperatingPoint(0, 0)))
    assert [point.bpp for point in measured.points] == pytest.approx([bits / 224**2], rel=0.6)


@pytest.mark.parametrize("state", [{}, {"recipe": {"name": "x"}}, {"recipe": [1]}])
def test_export_of_something_else_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], state: dict[str, Any]
) -> None:
    import torch

    torch.save(state, tmp_path / "other.pt")
    assert export(tmp_path / "other.pt", tmp_path / "bundle") == 1
    err = capsys.readouterr().err
    assert "not a checkpoint of this program" in err
    assert len(err.splitlines()) == 1
