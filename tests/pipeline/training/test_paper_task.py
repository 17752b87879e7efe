"""The paper's family in the common loop: both losses, classifier fixed or joint, with labels or without."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from pipeline.codec.lite0 import Lite0
from pipeline.codec.resnet import ResNet50
from pipeline.errors import TrainingError
from pipeline.training.checkpoint import load_checkpoint
from pipeline.training.datasets import CropSampler, Pictures
from pipeline.training.families import start_training
from pipeline.training.loop import CHECKPOINT_FILE, LOG_FILE, Training, resume, run_training
from pipeline.training.paper_task import PaperTask
from pipeline.training.recipes import Recipe
from pipeline.training.teacher import Teacher, TorchEngine, normalise

MakePaper = Callable[..., Training]
STEPS = 8
CPU = torch.device("cpu")


@pytest.fixture(scope="session")
def paper_teacher(classifier: Lite0, pictures: Pictures) -> Teacher:
    recipe = Recipe.model_validate({"name": "any", "data": {"folders": ["none"]}})
    sample = CropSampler(pictures.training, recipe.data, 1).batch(64, 8)
    return Teacher(TorchEngine(classifier, "stride4"), normalise(sample, CPU), "stride4")


@pytest.fixture
def labelled(pictures: Pictures) -> Pictures:
    """Every second picture with a class."""
    known = [np.where(np.arange(len(part)) % 2, 7, -1) for part in (pictures.training, pictures.held_out)]
    return replace(pictures, training_labels=known[0].astype(np.int64), held_out_labels=known[1].astype(np.int64))


@pytest.fixture
def make_paper(
    recipe_fields: dict[str, Any], classifier: Lite0, paper_teacher: Teacher, pictures: Pictures
) -> MakePaper:
    """Runs of eight steps of the paper's N = 0."""

    def make(pictures: Pictures = pictures, **paper: Any) -> Training:
        crops = [{"until": 1.0, "size_px": 64, "batch": 4}]
        changed = {"family": "paper", "cut": "stride4", "minutes": STEPS / 64 / 60, "crops": crops}
        recipe = Recipe.model_validate({**recipe_fields, **changed, "paper": {"depth": 0, **paper}})
        return start_training(recipe, classifier, paper_teacher, pictures, "cpu")

    return make


def train(training: Training, folder: Path, steps: int = STEPS + 1, start: int = 0) -> None:
    folder.mkdir(exist_ok=True)
    ticks = count(start)
    run_training(training, folder, (), lambda: training.step >= steps, lambda: next(ticks) / 64)


def last_line(folder: Path) -> dict[str, Any]:
    line: dict[str, Any] = json.loads((folder / LOG_FILE).read_text(encoding="utf-8").splitlines()[-1])
    return line


def weights(training: Training, name: str = "codec") -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in training.task.network[name].state_dict().items()}


def batch_of(training: Training) -> torch.Tensor:
    return normalise(training.sampler.batch(64, 4), CPU)


# The losses


def test_single_stage_loss_is_equation_2(make_paper: MakePaper, labelled: Pictures) -> None:
    training = make_paper(labelled, lmbda=0.64)
    task, x, labels = training.task, batch_of(training), torch.tensor([7, -1, 3, -1])
    targets = task.targets(x, labels, 0.0)
    torch.manual_seed(2)
    loss, parts = task.loss(x, targets, 0.0)
    torch.manual_seed(2)
    codec = task.network["codec"]
    features, bits = codec(x, "noise")
    classifier = training.task.teacher.engine._classifier
    points = [features, *classifier.stages(features, "stride4")[:3]]
    truth = classifier.features(x, "stride4")
    true_points = [truth, *classifier.stages(truth, "stride4")[:3]]
    logits, true_logits = (classifier.classify(each, "stride4") for each in (features, truth))
    error = sum(F.mse_loss(point, true) for point, true in zip(points, true_points, strict=True))
    ce = F.cross_entropy(logits[[0, 2]], labels[[0, 2]])
    kl = F.kl_div(logits.log_softmax(1), true_logits.log_softmax(1), reduction="batchmean", log_target=True)
    expected = 0.5 * ce + 0.5 * kl + error + 0.64 * bits.mean() / 64**2
    # The task computes in bf16.
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=0.03)
    assert parts["ce"] == pytest.approx(float(ce.detach()), rel=0.05)
    assert parts["bpp"] == pytest.approx(float(bits.mean().detach()) / 64**2, rel=0.03)


def test_without_labels_cross_entropy_is_left_out(make_paper: MakePaper, pictures: Pictures) -> None:
    training = make_paper(pictures)
    assert set(training.train_step()) == {"bpp", "features", "kl", "loss", "gradient_norm"}


def test_two_stages_first_features_and_rate_then_classes_alone(
    make_paper: MakePaper, labelled: Pictures, tmp_path: Path
) -> None:
    training = make_paper(labelled, schedule="two_stage", network="entropic_student")
    assert set(training.train_step()) == {"bpp", "features", "loss", "gradient_norm"}
    training.elapsed_s = 0.6 * 60 * training.recipe.minutes
    first = training.train_step()
    assert "features" not in first
    assert "kl" in first
    before = weights(training)
    training.train_step()
    after = weights(training)
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"decoder"}


@pytest.mark.parametrize(("progress", "share"), [(0.0, 0.01), (0.25, 0.1), (0.5, 1.0), (1.0, 1.0)])
def test_rate_comes_in_over_its_share_of_the_run(make_paper: MakePaper, progress: float, share: float) -> None:
    training = make_paper(lmbda=0.64, rate_ramp_share=0.5)
    x, labels = batch_of(training), torch.full((4,), -1)
    loss, parts = training.task.loss(x, training.task.targets(x, labels, progress), progress)
    rate = float(loss.detach()) - parts["features"] - 0.5 * parts["kl"]
    assert rate == pytest.approx(0.64 * share * parts["bpp"], rel=0.01, abs=1e-4)


def test_rate_of_two_stages_is_whole_before_the_second_begins(make_paper: MakePaper) -> None:
    training = make_paper(lmbda=0.64, rate_ramp_share=1.0, schedule="two_stage", second_stage=0.4)
    x, labels = batch_of(training), torch.full((4,), -1)
    loss, parts = training.task.loss(x, training.task.targets(x, labels, 0.4), 0.4)
    assert float(loss.detach()) - parts["features"] == pytest.approx(0.64 * parts["bpp"], rel=0.01)


# Whole runs


def test_muon_moves_convolutions_and_adam_the_rest(
    recipe_fields: dict[str, Any], classifier: Lite0, paper_teacher: Teacher, pictures: Pictures
) -> None:
    """A step of Muon has the same size whatever the gradient's; depthwise weights, biases and the prior are Adam's."""
    optimiser = {"matrices": "muon", "muon_learning_rate": 0.01, "learning_rate": 1e-9, "warmup_steps": 0}
    fields = {**recipe_fields, "family": "paper", "cut": "stride4", "paper": {"depth": 1}, "optimiser": optimiser}
    fields["crops"] = [{"until": 1.0, "size_px": 64, "batch": 4}]
    training = start_training(Recipe.model_validate(fields), classifier, paper_teacher, pictures, "cpu")
    before = weights(training)
    training.train_step()
    moved = {name: float((value - before[name]).abs().max()) for name, value in weights(training).items()}
    matrices = {name for name, value in before.items() if value.ndim == 4 and value.shape[1] > 1}
    assert matrices
    assert all((moved[name] > 1e-5) == (name in matrices) for name in moved)


def test_sgd_has_the_papers_momentum_and_leaves_the_prior_its_adam(
    recipe_fields: dict[str, Any], classifier: Lite0, paper_teacher: Teacher, pictures: Pictures
) -> None:
    optimiser = {"method": "sgd", "learning_rate": 0.01, "weight_decay": 1e-4, "warmup_steps": 0, "clip_norm": None}
    fields = {**recipe_fields, "family": "paper", "cut": "stride4", "paper": {"depth": 0}, "optimiser": optimiser}
    training = start_training(Recipe.model_validate(fields), classifier, paper_teacher, pictures, "cpu")
    sgd, adam = training.task.optimisers
    assert isinstance(sgd, torch.optim.SGD)
    assert isinstance(adam, torch.optim.AdamW)
    assert {group["momentum"] for group in sgd.param_groups} == {0.9}
    prior = {id(value) for value in training.task.network["codec"].prior.parameters() if value.requires_grad}
    assert {id(value) for group in adam.param_groups for value in group["params"]} == prior
    decayed = [value for group in sgd.param_groups if group["weight_decay"] > 0 for value in group["params"]]
    assert {value.ndim for value in decayed} == {4}
    before = weights(training)
    training.train_step()
    assert any(not torch.equal(value, before[name]) for name, value in weights(training).items())


def test_run_ends_with_fitted_and_checked_quantiles(make_paper: MakePaper, labelled: Pictures, tmp_path: Path) -> None:
    training = make_paper(labelled)
    before = weights(training)
    train(training, tmp_path)
    line = last_line(tmp_path)
    assert line["coverage"] > 0.999
    (point,) = line["validation"]
    assert set(point) == {"depth", "agreement", "kl", "bpp", "top1"}
    saved = load_checkpoint(tmp_path / CHECKPOINT_FILE)
    codec = training.task.average["codec"]
    codec.load_state_dict(saved["average"])
    codec.prior.channel_probabilities()  # refuses quantiles that are not of these weights
    learnt = weights(training)
    same = {name for name in before if torch.equal(before[name], learnt[name])}
    assert same == {"feature_mean", "feature_std", "prior.quantiles"}


def test_prior_that_does_not_fit_is_an_error_that_keeps_the_run(
    make_paper: MakePaper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: PaperTask, pictures: Pictures) -> dict[str, Any]:
        raise TrainingError("the prior holds too little")

    monkeypatch.setattr(PaperTask, "finish", refuse)
    with pytest.raises(TrainingError, match="holds too little"):
        train(make_paper(), tmp_path)
    assert load_checkpoint(tmp_path / CHECKPOINT_FILE)["step"] == STEPS


@pytest.mark.parametrize("paper", [{"schedule": "two_stage"}, {"classifier_training": "joint"}], ids=str)
def test_resumed_run_is_the_uninterrupted_one(make_paper: MakePaper, tmp_path: Path, paper: dict[str, str]) -> None:
    whole = make_paper(**paper)
    train(whole, tmp_path / "whole")
    train(make_paper(**paper), tmp_path / "parts", steps=5)
    second = make_paper(**paper)
    assert resume(second, tmp_path / "parts")
    train(second, tmp_path / "parts", start=640)
    for name, module in whole.task.average.items():
        resumed = second.task.average[name].state_dict()
        assert all(torch.equal(resumed[key], value) for key, value in module.state_dict().items())


def test_joint_classifier_learns_behind_the_cut_and_the_teacher_does_not(
    make_paper: MakePaper, classifier: Lite0, tmp_path: Path
) -> None:
    untouched = {name: value.clone() for name, value in classifier.state_dict().items()}
    training = make_paper(classifier_training="joint")
    training.train_step()
    training.train_step()
    learnt = weights(training, "classifier")
    same = {name for name, value in untouched.items() if torch.equal(learnt[name], value)}
    assert {name.split(".")[0] if "blocks" not in name else int(name.split(".")[1]) < 3 for name in same} == {
        "stem",
        True,
    }
    assert all(torch.equal(value, untouched[name]) for name, value in classifier.state_dict().items())
    train(training, tmp_path, steps=training.step)
    assert set(load_checkpoint(tmp_path / CHECKPOINT_FILE)) >= {"average", "classifier", "average_classifier"}


def test_joint_classifier_waits_for_the_second_stage(make_paper: MakePaper) -> None:
    """In the first its own features are the targets: they would run away with it."""
    training = make_paper(schedule="two_stage", classifier_training="joint")
    before = weights(training, "classifier")
    training.train_step()
    assert all(torch.equal(value, before[name]) for name, value in weights(training, "classifier").items())
    training.elapsed_s = 0.6 * 60 * training.recipe.minutes
    training.train_step()
    assert not torch.equal(weights(training, "classifier")["fc.weight"], before["fc.weight"])


@pytest.mark.slow
def test_joint_resnet_has_batch_statistics_of_its_own(recipe_fields: dict[str, Any], pictures: Pictures) -> None:
    """The teacher stays in evaluation mode; the average follows the student's running statistics."""
    torch.manual_seed(1)
    classifier = ResNet50().eval().requires_grad_(False)
    crops = [{"until": 1.0, "size_px": 64, "batch": 4}]
    changed = {"family": "paper", "cut": "stride4", "classifier": "resnet50", "classifier_weights": "x", "crops": crops}
    paper = {"depth": 0, "classifier_training": "joint"}
    recipe = Recipe.model_validate({**recipe_fields, **changed, "paper": paper})
    crop = CropSampler(pictures.training, recipe.data, 1).batch(64, 4)
    teacher = Teacher(TorchEngine(classifier, "stride4"), normalise(crop, CPU, "resnet50"), "stride4")
    training = start_training(recipe, classifier, teacher, pictures, "cpu")
    training.train_step()
    student, average = (network["classifier"] for network in (training.task.network, training.task.average))
    assert not torch.equal(student.layer2[0].bn1.running_mean, torch.zeros(128))
    assert torch.equal(average.layer2[0].bn1.running_mean, student.layer2[0].bn1.running_mean)
    assert torch.equal(classifier.layer2[0].bn1.running_mean, torch.zeros(128))
