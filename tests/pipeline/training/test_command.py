"""`rac train` and `rac export`, from a recipe to a bundle that encodes and decodes."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from numpy.typing import NDArray

from nodes.cli import main
from pipeline.bundle import load_bundle
from pipeline.codec.classifier import classifier_sha256
from pipeline.encoder import Encoder, OperatingPoint
from pipeline.training import command
from pipeline.training.checkpoint import load_checkpoint
from pipeline.training.loop import CHECKPOINT_FILE, Training
from pipeline.training.needs import STATUS, StepMemory, describe_needs
from pipeline.training.ranks import Ranks
from pipeline.training.recipes import CropRecipe, Recipe
from tests.resnet import random_resnet50, write_weights

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
    recipe_file: Path, recipe_fields: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    crops = [{"until": 0.5, "size_px": 32, "batch": 100}, {"until": 1.0, "size_px": 64, "batch": 50}]
    changed = {"pictures": 25_000_000, "crops": crops, "data": {**recipe_fields["data"], "folders": ["nowhere"]}}
    recipe_file.write_text(yaml.safe_dump({**recipe_fields, **changed}), encoding="utf-8")
    shorter = ["--pictures", "8", "--batch", "4", "--data", recipe_fields["data"]["folders"][0]]
    assert train(recipe_file, *shorter) == 0
    said, time, memory, disk = capsys.readouterr().err.splitlines()[-4:]
    assert said == "tiny in full: 25,000,000 pictures seen, 1,250,000.0 epochs of the 20 here, 375,000 steps"
    assert re.fullmatch(r"  time: about [\d,.]+ hours at the [\d.]+ pictures/s measured here \(cpu, threads: 1\)", time)
    found = re.fullmatch(
        r"  memory: about ([\d.]+) GB with batches of 100 x 32 px and 50 x 64 px, ([\d.]+) GB of .*", memory
    )
    assert found is not None
    assert 0.1 < float(found[2]) <= float(found[1])
    assert re.match(r"  disk: [\d.]+ GB beside the pictures", disk)
    assert load_checkpoint(tmp_path / "runs" / "tiny" / CHECKPOINT_FILE)["step"] == 2
    assert train(recipe_file, "--pictures", "8", "--minutes", "1") == 2
    with pytest.raises(SystemExit) as ended:
        train(recipe_file, "--batch", "1")
    assert ended.value.code == 2


def test_needs_grow_with_the_batch(tmp_path: Path, recipe: Recipe) -> None:
    """What a step takes beyond networks and pictures, at another size of the batch."""

    class Memory(StepMemory):
        def __init__(self) -> None:
            self.before_bytes = 2 * 10**9

        def peak_bytes(self) -> int:
            return 3 * 10**9

    (tmp_path / CHECKPOINT_FILE).write_bytes(bytes(5 * 10**6))
    full = recipe.model_copy(update={"crops": (CropRecipe(until=1.0, size_px=128, batch=8),)})
    run = recipe.model_copy(update={"crops": (CropRecipe(until=1.0, size_px=64, batch=4),)})
    training = SimpleNamespace(
        recipe=run,
        seen=100,
        elapsed_s=50.0,
        ranks=Ranks(0, 4),
        device=torch.device("cuda"),
        pictures=SimpleNamespace(training=range(40)),
    )
    text = describe_needs(full.model_copy(update={"pictures": 14_400}), training, tmp_path, Memory())
    assert text.splitlines() == [
        "tiny in full: 14,400 pictures seen, 360.0 epochs of the 40 here, 450 steps",
        "  time: about 2.0 hours at the 2 pictures/s measured here (4 x cuda)",
        "  memory: about 10.0 GB with batches of 8 x 128 px, 2.0 GB of it whatever their size",
        "  disk: 0.01 GB beside the pictures, for a checkpoint and the one before",
    ]


@pytest.mark.skipif(not STATUS.exists(), reason="looks at memory in /proc")
def test_memory_of_steps_is_what_came_after() -> None:
    ballast = np.ones(64 * 2**20, np.uint8)
    del ballast
    memory = StepMemory(torch.device("cpu"))
    before = memory.peak_bytes()
    grown = np.ones(128 * 2**20, np.uint8)
    assert memory.peak_bytes() - before > 0.9 * grown.nbytes
    assert memory.before_bytes <= before


def test_classifier_weights_that_are_not_there_are_a_mistake_of_the_command(
    recipe_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(recipe_file, "--classifier-weights", "none.pth") == 2
    assert "none.pth: no such file" in capsys.readouterr().err


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


@pytest.mark.slow
def test_export_for_resnet50_takes_the_weights_that_it_was_trained_with(
    recipe_file: Path,
    recipe_fields: dict[str, Any],
    tmp_path: Path,
    stop_after: Callable[[int, signal.Signals], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The nested family, cut at stride 4; the paper's goes the whole way in tests/e2e/test_resnet.py."""
    weights = write_weights(random_resnet50(), tmp_path / "resnet50.pth")
    fields = {**recipe_fields, "cut": "stride4", "classifier": "resnet50", "crops": [PAPER_CROP]}
    recipe_file.write_text(yaml.safe_dump({**fields, "classifier_weights": str(weights)}), encoding="utf-8")
    stop_after(2, signal.SIGTERM)
    assert train(recipe_file, "--minutes", "5", "--out", str(tmp_path / "run")) == 0
    assert export(tmp_path / "run" / CHECKPOINT_FILE, tmp_path / "bundle") == 0
    manifest = load_bundle(str(tmp_path / "bundle")).manifest
    assert (manifest.family, manifest.classifier, manifest.network["cut_channels"]) == ("nested", "resnet50", 256)
    assert manifest.classifier_sha256 == classifier_sha256("resnet50", weights)
    assert manifest.measured is not None
    assert len(manifest.measured.points) == 4
    weights.unlink()
    capsys.readouterr()
    assert export(tmp_path / "run" / CHECKPOINT_FILE, tmp_path / "again") == 1
    assert "resnet50.pth" in capsys.readouterr().err


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
    torch.save(state, tmp_path / "other.pt")
    assert export(tmp_path / "other.pt", tmp_path / "bundle") == 1
    err = capsys.readouterr().err
    assert "not a checkpoint of this program" in err
    assert len(err.splitlines()) == 1
