"""Baselines of the comparison: trained, taken up, exported; without their package they are told and left out."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from nodes.cli import main
from pipeline.codec.lite0 import Lite0
from pipeline.codec.picture_network import PictureCoder
from pipeline.codec.weights_file import read_weights
from pipeline.errors import TrainingError
from pipeline.evaluation.picture_networks import read_network
from pipeline.training import command, trained, tuned_task
from pipeline.training.baseline_weights import WEIGHTS_FILE
from pipeline.training.checkpoint import load_checkpoint
from pipeline.training.datasets import Pictures, use_views
from pipeline.training.families import start_training
from pipeline.training.loop import Training
from pipeline.training.recipes import Recipe
from pipeline.training.run_folder import CHECKPOINT_FILE
from pipeline.training.teacher import Teacher
from pipeline.training.trained import read_trained

STEPS, BATCH = 4, 2


@pytest.fixture(autouse=True)
def _light(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, classifier: object) -> None:
    pytest.importorskip("PIL")
    monkeypatch.setattr(command, "TEACHER_SAMPLE", 8)
    monkeypatch.setattr(command, "find_spec", lambda name: None)
    monkeypatch.setattr(trained, "FITTED_PICTURES", 4)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def _with_compressai() -> None:
    from pipeline.codec.compressai_import import import_compressai

    try:
        import_compressai()
    except ModuleNotFoundError as error:
        pytest.skip(f"{error.name} is not installed: pip install 'edge-cloud-rac[train]'")


@pytest.fixture
def plan_file(tmp_path: Path, picture_folder: Path) -> Path:
    """Both picture codecs at a rate, the tuned classifier, and a network of the paper's."""
    picture = {"channels": 8, "latent_channels": 12}
    networks = [
        {
            "name": name,
            "system": name,
            "lmbda": [0.02],
            "recipe": {"family": "picture", "picture": {"network": name, **picture}},
        }
        for name in ("factorized", "hyperprior")
    ]
    networks += [
        {"name": "webp-tuned", "system": "WebP, classifier tuned", "recipe": {"family": "tuned"}},
        {
            "name": "fixed-n0",
            "system": "paper N=0",
            "lmbda": [1],
            "recipe": {"family": "paper", "cut": "stride4", "paper": {"depth": 0}},
        },
    ]
    budget = {
        "pictures": STEPS * BATCH,
        "data": {"folders": [str(picture_folder)], "side_px": 96},
        "crops": [{"until": 1.0, "size_px": 64, "batch": BATCH}],
    }
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump({"name": "tiny", "budget": budget, "networks": networks}), encoding="utf-8")
    return path


def sweep(plan_file: Path, *names: str) -> int:
    only = [word for name in names for word in ("--only", name)]
    return main(["sweep", str(plan_file), "--threads", "1", *only])


def standing(folder: Path) -> dict[str, dict[str, Any]]:
    content = json.loads((folder / "sweep.json").read_text(encoding="utf-8"))
    return {network["name"]: network for network in content["networks"]}


@pytest.mark.usefixtures("_with_compressai")
@pytest.mark.timeout(900)
def test_a_sweep_trains_baselines_and_exports_what_codes_real_bytes(
    plan_file: Path, tmp_path: Path, pictures: Pictures, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("factorized", "hyperprior", "webp-tuned")
    assert sweep(plan_file, *names) == 0
    folder = tmp_path / "runs/tiny"
    found = standing(folder)
    assert [found[name]["status"] for name in ("factorized-0.02", "hyperprior-0.02", "webp-tuned")] == ["done"] * 3
    assert (found["hyperprior-0.02"]["family"], found["hyperprior-0.02"]["network"]) == ("picture", "hyperprior")
    assert found["webp-tuned"]["bundle"] == f"webp-tuned/{WEIGHTS_FILE}"
    view = use_views(pictures.held_out, 1, 96)[0]
    for name in ("factorized-0.02", "hyperprior-0.02"):
        coder = PictureCoder(read_network(folder / found[name]["bundle"]))
        decoded = coder.decode(coder.encode(view))
        assert np.abs(decoded.astype(int) - coder.expected(view)).max() <= 1
    tensors, facts = read_weights(folder / found["webp-tuned"]["bundle"])
    assert facts["family"] == "tuned"
    Lite0().load_state_dict(tensors)
    capsys.readouterr()
    assert sweep(plan_file, *names) == 0
    assert capsys.readouterr().err.count("done before") == 3
    # Weights that are torn are written again, and nothing is trained for it.
    weights = folder / found["factorized-0.02"]["bundle"]
    before = PictureCoder(read_network(weights)).encode(view)
    weights.write_bytes(weights.read_bytes()[:-8])
    assert sweep(plan_file, "factorized") == 0
    assert "resumed" not in capsys.readouterr().err
    assert PictureCoder(read_network(weights)).encode(view) == before
    with pytest.raises(TrainingError, match="it has no bundle"):
        read_trained(folder / "webp-tuned" / CHECKPOINT_FILE)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("package", ["compressai", "torchvision"])
def test_without_their_package_picture_codecs_are_told_and_the_rest_is_trained(
    plan_file: Path,
    tmp_path: Path,
    package: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for module in [name for name in sys.modules if name.partition(".")[0] in ("compressai", package)]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, package, None)
    assert sweep(plan_file, "hyperprior", "fixed-n0") == 1
    found = standing(tmp_path / "runs/tiny")
    assert (found["hyperprior-0.02"]["status"], found["fixed-n0-1"]["status"]) == ("failed", "done")
    assert found["hyperprior-0.02"]["reason"].startswith(f"{package} is not installed: pip install")
    assert f"hyperprior-0.02: failed: {package} is not installed" in capsys.readouterr().err


@pytest.mark.usefixtures("_with_compressai")
@pytest.mark.timeout(900)
def test_a_stopped_picture_codec_goes_on_to_the_same_weights(
    plan_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sweep(plan_file, "factorized") == 0
    checkpoint = tmp_path / "runs/tiny/factorized-0.02" / CHECKPOINT_FILE
    whole = load_checkpoint(checkpoint)["average"]
    (tmp_path / "runs").rename(tmp_path / "before")
    train_step = Training.train_step

    def stopped(self: Training) -> dict[str, float]:
        if self.step == 2:
            monkeypatch.setattr(Training, "train_step", train_step)
            os.kill(os.getpid(), signal.SIGTERM)
        return train_step(self)

    monkeypatch.setattr(Training, "train_step", stopped)
    assert sweep(plan_file, "factorized") == 0
    assert load_checkpoint(checkpoint)["step"] == 3
    assert sweep(plan_file, "factorized") == 0
    again = load_checkpoint(checkpoint)["average"]
    for name, tensor in whole.items():
        torch.testing.assert_close(again[name], tensor, rtol=0, atol=0)


def make_run(
    recipe_fields: dict[str, Any], classifier: Lite0, teacher: Teacher, pictures: Pictures, **changes: Any
) -> Training:
    """A run that sees the same four crops in every step."""
    fields = {key: recipe_fields[key] for key in ("name", "seed", "data")} | changes
    fields |= {"pictures": 400, "crops": [{"until": 1.0, "size_px": 64, "batch": 4}]}
    run = start_training(Recipe.model_validate(fields), classifier, teacher, pictures, "cpu")
    crops = run.sampler.batch(64, 4)
    run.sampler.batch = lambda size_px, batch: crops  # type: ignore[method-assign]
    return run


@pytest.mark.usefixtures("_with_compressai")
@pytest.mark.parametrize("network", ["factorized", "hyperprior"])
def test_a_picture_codec_learns(
    network: str, recipe_fields: dict[str, Any], classifier: Lite0, teacher: Teacher, pictures: Pictures
) -> None:
    optimiser = {"warmup_steps": 2, "learning_rate": 0.003}
    picture = {"network": network, "channels": 8, "latent_channels": 12, "lmbda": 0.02}
    run = make_run(recipe_fields, classifier, teacher, pictures, family="picture", picture=picture, optimiser=optimiser)
    parts = [run.train_step() for _ in range(30)]
    assert np.mean([part["mse"] for part in parts[-5:]]) < 0.7 * np.mean([part["mse"] for part in parts[:5]])
    (point,) = run.task.validate(pictures)
    assert point["psnr"] > 8
    assert 0 < point["bpp"] < 8
    assert 0 <= point["agreement"] <= 1


def test_a_classifier_is_tuned_on_webp_of_the_qualities_that_are_asked_for(
    recipe_fields: dict[str, Any],
    classifier: Lite0,
    teacher: Teacher,
    pictures: Pictures,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    qualities = []
    through_webp = tuned_task.through_webp

    def watched(picture: Any, quality: int) -> Any:
        qualities.append(quality)
        return through_webp(picture, quality)

    monkeypatch.setattr(tuned_task, "through_webp", watched)
    before = {name: tensor.clone() for name, tensor in classifier.state_dict().items()}
    optimiser = {"warmup_steps": 2, "learning_rate": 0.0003}
    run = make_run(
        recipe_fields,
        classifier,
        teacher,
        pictures,
        family="tuned",
        tuned={"qualities": [1, 5]},
        optimiser=optimiser,
    )
    parts = [run.train_step() for _ in range(20)]
    assert set(qualities) == {1, 2, 3, 4, 5}
    assert np.mean([part["kl"] for part in parts[-5:]]) < 0.8 * np.mean([part["kl"] for part in parts[:5]])
    assert [point["quality"] for point in run.task.validate(pictures)] == [1, 30]
    for name, tensor in classifier.state_dict().items():  # the teacher
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"family": "picture", "crops": [{"until": 1.0, "size_px": 96}]}, "multiple of 64"),
        ({"family": "tuned", "tuned": {"qualities": [30, 5]}}, "must rise"),
        ({"family": "tuned", "tuned": {"qualities": [0, 5]}}, "greater than or equal to 1"),
    ],
)
def test_recipes_that_cannot_work_are_refused(fields: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Recipe.model_validate({"name": "x", "data": {"folders": ["none"]}, **fields})
