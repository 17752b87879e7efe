"""The training loop: every part learns, runs can be stopped and taken up exactly, divergence is told."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch
from torch import Tensor

from pipeline.codec.lite0 import Lite0
from pipeline.errors import TrainingError
from pipeline.training import loop
from pipeline.training.checkpoint import load_checkpoint
from pipeline.training.datasets import CropSampler, Pictures
from pipeline.training.families import start_training
from pipeline.training.loop import (
    CHECKPOINT_FILE,
    LOG_FILE,
    MAX_SKIPPED_STEPS,
    Training,
    resume,
    run_training,
)
from pipeline.training.progress import format_line
from pipeline.training.recipes import CoarsestLossRecipe, LossRecipe, Recipe
from pipeline.training.schedule import learning_rate_share
from pipeline.training.teacher import Teacher, TorchEngine, normalise

MakeTraining = Callable[[], Training]
STEPS = 12


def ticking(start: int = 0) -> Callable[[], float]:
    """A clock on which every step takes 1/64 s, exact in binary."""
    ticks = count(start)
    return lambda: next(ticks) / 64


def recorded(training: Training) -> list[dict[str, float]]:
    """What every step of the run gives, as it goes on."""
    losses: list[dict[str, float]] = []
    step = training.train_step

    def train_step() -> dict[str, float]:
        losses.append(step())
        return losses[-1]

    training.train_step = train_step  # type: ignore[method-assign]
    return losses


def train(training: Training, folder: Path, steps: int | None = None, start: int = 0) -> list[dict[str, float]]:
    losses = recorded(training)
    folder.mkdir(exist_ok=True)
    stop = (lambda: len(losses) >= steps) if steps is not None else (lambda: False)
    run_training(training, folder, (), stop, ticking(start))
    return losses


def read_log(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / LOG_FILE).read_text(encoding="utf-8").splitlines()]


# A whole run


def test_run_ends_with_its_time_and_says_what_it_reached(make_training: MakeTraining, tmp_path: Path) -> None:
    training = make_training()
    losses = train(training, tmp_path)
    assert len(losses) == STEPS
    assert set(losses[0]) == {"cut", "bpp", "loss", "gradient_norm"}
    assert set(losses[-1]) == {"cut", "bpp", "stages", "kl", "loss", "gradient_norm"}
    last = read_log(tmp_path)[-1]
    assert (last["step"], last["elapsed_s"]) == (STEPS, STEPS / 64)
    points = {(point["depth"], point["level"]): point for point in last["validation"]}
    assert set(points) == {(0, 0.0), (0, 1.0), (1, 0.0), (1, 1.0)}
    assert all(0 <= point["agreement"] <= 1 and point["bpp"] > 0 for point in points.values())
    assert load_checkpoint(tmp_path / CHECKPOINT_FILE)["step"] == STEPS


def test_every_parameter_learns(make_training: MakeTraining, tmp_path: Path) -> None:
    """One that no gradient reaches would stay as it was drawn, and nobody would notice."""
    training = make_training()
    before = {name: value.detach().clone() for name, value in training.task.network["codec"].named_parameters()}
    train(training, tmp_path)
    for name, value in training.task.network["codec"].named_parameters():
        assert not torch.equal(value, before[name]), name
        assert not torch.equal(dict(training.task.average["codec"].named_parameters())[name], before[name]), name


def test_classifier_and_its_statistics_stay_as_they_are(make_training: MakeTraining, tmp_path: Path) -> None:
    training = make_training()
    before = [value.clone() for value in training.task.classifier.state_dict().values()]
    train(training, tmp_path, steps=8)
    assert all(map(torch.equal, before, training.task.classifier.state_dict().values()))
    torch.testing.assert_close(training.task.network["codec"].decoder.feature_mean, training.task.teacher.feature_mean)
    torch.testing.assert_close(training.task.average["codec"].decoder.feature_std, training.task.teacher.feature_std)


def test_features_of_seen_pictures_come_closer(
    recipe_fields: dict[str, Any],
    classifier: Lite0,
    teacher: Teacher,
    pictures: Pictures,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The least that training must do: learn four crops by heart."""
    recipe_fields["optimiser"] = {"warmup_steps": 2, "learning_rate": 0.02}
    training = start_training(Recipe.model_validate(recipe_fields), classifier, teacher, pictures, "cpu")
    crops = training.sampler.batch(32, 4)
    monkeypatch.setattr(training.sampler, "batch", lambda size_px, batch: crops)
    losses = [training.train_step()["cut"] for _ in range(60)]
    # Medians: at so high a learning rate a step now and then throws it back, for a few steps.
    assert median(losses[-10:]) < 0.7 * median(losses[:10])


def test_a_run_of_so_many_pictures_ends_with_them_whatever_the_time(
    recipe_fields: dict[str, Any], classifier: Lite0, teacher: Teacher, pictures: Pictures, tmp_path: Path
) -> None:
    """Crops of four until half of the pictures, then of two; by the clock the run would be over."""
    recipe = Recipe.model_validate({**recipe_fields, "minutes": 1e-9, "pictures": 12})
    training = start_training(recipe, classifier, teacher, pictures, "cpu")
    train(training, tmp_path, steps=2)
    assert (training.seen, training.progress) == (8, pytest.approx(8 / 12))
    assert training.left_s == pytest.approx(training.elapsed_s / 2)
    again = start_training(recipe, classifier, teacher, pictures, "cpu")
    assert resume(again, tmp_path)
    train(again, tmp_path)
    assert (again.seen, again.step) == (12, 4)
    assert read_log(tmp_path)[-1]["seen"] == 12


# Stopping and taking up


def test_resumed_run_is_the_uninterrupted_one(make_training: MakeTraining, tmp_path: Path) -> None:
    """Same losses at every step, same weights at the end: the pause leaves no trace."""
    whole = make_training()
    expected = train(whole, tmp_path / "whole")
    first = train(make_training(), tmp_path / "parts", steps=5)
    second = make_training()
    assert resume(second, tmp_path / "parts")
    assert second.step == 5
    # Another process, another clock.
    rest = train(second, tmp_path / "parts", start=64_000)
    assert [*first, *rest] == expected
    for name, value in whole.task.average["codec"].state_dict().items():
        assert torch.equal(second.task.average["codec"].state_dict()[name], value), name
    assert torch.equal(second.task.log_lmbda, whole.task.log_lmbda)


def test_validation_and_checkpoints_change_nothing(
    recipe_fields: dict[str, Any], make_training: MakeTraining, tmp_path: Path
) -> None:
    """How often one looks must not decide what is learnt."""
    watched = make_training()
    watched.recipe = Recipe.model_validate({**recipe_fields, "checkpoint_minutes": 1e-6, "validate_minutes": 1e-6})
    losses = train(watched, tmp_path / "watched")
    assert len([line for line in read_log(tmp_path / "watched") if "validation" in line]) > STEPS
    assert losses == train(make_training(), tmp_path / "plain")


def test_stop_request_saves_at_once(
    make_training: MakeTraining, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the validation, which takes a minute on a slow machine."""
    training = make_training()
    monkeypatch.setattr(training.task, "validate", lambda _: pytest.fail("validated"))
    train(training, tmp_path, steps=3)
    state = load_checkpoint(tmp_path / CHECKPOINT_FILE)
    assert (state["step"], state["elapsed_s"]) == (3, 3 / 64)
    assert read_log(tmp_path)[-1] == {"step": 3, "elapsed_s": 3 / 64, "stopped": True}


def test_stop_request_before_the_first_step_still_leaves_a_checkpoint(
    make_training: MakeTraining, tmp_path: Path
) -> None:
    assert train(make_training(), tmp_path, steps=0) == []
    assert load_checkpoint(tmp_path / CHECKPOINT_FILE)["step"] == 0


def test_pause_does_not_count(make_training: MakeTraining, tmp_path: Path) -> None:
    train(make_training(), tmp_path, steps=3)
    training = make_training()
    resume(training, tmp_path)
    train(training, tmp_path, steps=2, start=1_000_000)
    assert training.elapsed_s == 5 / 64


def test_checkpoint_is_written_while_the_run_goes_on(
    recipe_fields: dict[str, Any], make_training: MakeTraining, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine that dies costs two minutes, not the night."""
    saved: list[int] = []

    def save(state: dict[str, Any], path: Path) -> None:
        saved.append(state["step"])
        path.touch()

    monkeypatch.setattr(loop, "save_checkpoint", save)
    training = make_training()
    training.recipe = Recipe.model_validate({**recipe_fields, "checkpoint_minutes": 4 / 64 / 60})
    train(training, tmp_path)
    assert saved == [5, 10, 12]


def test_resume_without_a_checkpoint_starts_anew(make_training: MakeTraining, tmp_path: Path) -> None:
    assert not resume(make_training(), tmp_path)


def test_checkpoint_of_another_recipe_is_refused(
    make_training: MakeTraining, recipe_fields: dict[str, Any], tmp_path: Path
) -> None:
    train(make_training(), tmp_path, steps=1)
    other = make_training()
    other.recipe = Recipe.model_validate({**recipe_fields, "seed": 4})
    with pytest.raises(TrainingError, match="another recipe"):
        resume(other, tmp_path)


def test_full_disk_ends_the_run_with_the_checkpoint_before(
    make_training: MakeTraining, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(make_training(), tmp_path, steps=2)

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    training = make_training()
    resume(training, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", fail)
        with pytest.raises(TrainingError, match="No space left"):
            train(training, tmp_path, steps=2)
    assert load_checkpoint(tmp_path / CHECKPOINT_FILE)["step"] == 2


# Divergence


def test_diverged_run_stops_and_says_where(make_training: MakeTraining, tmp_path: Path) -> None:
    train(make_training(), tmp_path, steps=1)
    training = make_training()
    resume(training, tmp_path)
    with torch.no_grad():
        training.task.network["codec"].log_gain.fill_(torch.nan)
    with pytest.raises(TrainingError, match=rf"step {MAX_SKIPPED_STEPS + 1}: .* not finite; .*'bpp': nan"):
        run_training(training, tmp_path, (), lambda: False, lambda: 0.0)
    # What was good is still there.
    assert torch.isfinite(load_checkpoint(tmp_path / CHECKPOINT_FILE)["codec"]["log_gain"]).all()


def test_single_bad_step_is_left_out(make_training: MakeTraining, monkeypatch: pytest.MonkeyPatch) -> None:
    training = make_training()
    training.train_step()
    before = {name: value.clone() for name, value in training.task.network["codec"].state_dict().items()}
    right = training.task._loss

    def wrong(*inputs: Any) -> tuple[Tensor, dict[str, float]]:
        loss, parts = right(*inputs)
        return loss * torch.nan, parts

    with monkeypatch.context() as patch:
        patch.setattr(training.task, "_loss", wrong)
        training.train_step()
    for name, value in training.task.network["codec"].state_dict().items():
        assert torch.equal(value, before[name]), name
    assert torch.isfinite(torch.tensor(training.train_step()["loss"]))
    assert training.skipped_steps == 1


# Schedules


def test_learning_rate_rises_then_falls_to_its_share(recipe: Recipe) -> None:
    rates = [learning_rate_share(step, step / 100, recipe.optimiser) for step in range(101)]
    assert rates[0] < rates[1] < rates[2]
    assert rates[2:] == sorted(rates[2:], reverse=True)
    assert rates[-1] == pytest.approx(recipe.optimiser.final_share)


def test_frames_draw_every_depth_and_level_and_the_deepest_most(make_training: MakeTraining) -> None:
    training = make_training()
    expected = training.recipe.deepest_share + (1 - training.recipe.deepest_share) / 2
    for batch in (20, 2000):  # a batch holds its share, whatever its size
        exits, levels = training.task._draw_operating_points(batch)
        assert torch.bincount(exits, minlength=2)[1].item() == pytest.approx(expected * batch, abs=1.001)
        assert exits.tolist() == sorted(exits.tolist(), reverse=True)
    assert abs(torch.corrcoef(torch.stack([exits.float(), levels]))[0, 1]) < 0.1  # deep ones are not the fine ones
    whole = levels == levels.round()
    assert 0.5 < whole.float().mean() < 0.7
    assert levels.min() == 0
    assert levels.max() == 1


@pytest.mark.parametrize("quantiser", ["noise", "rounding"])
def test_rate_is_that_of_the_symbols_where_the_recipe_says_so(
    recipe: Recipe, classifier: Lite0, teacher: Teacher, pictures: Pictures, quantiser: str
) -> None:
    rates = recipe.rates.model_copy(update={"quantiser": quantiser})
    training = start_training(recipe.model_copy(update={"rates": rates}), classifier, teacher, pictures, "cpu")
    task, codec = training.task, training.task.codec
    x = normalise(CropSampler(pictures.training, recipe.data, 1).batch(64, 4), torch.device("cpu"))
    exits, levels = torch.tensor([1, 1, 0, 0]), torch.tensor([0.0, 1.0, 0.0, 0.5])
    parts = task._loss(x, task.targets(x, torch.zeros(4), 0.0), exits, levels, 0.0)[1]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        latent = codec.encoder.mixed_latents(x, exits).float()
        symbols = torch.round(latent * codec.gain(levels)[:, :, None, None])
        bpp = float(codec.bits(symbols, exits, levels).mean()) / 64**2
    assert (parts["bpp"] == pytest.approx(bpp, rel=1e-6)) == (quantiser == "rounding")
    codec.zero_grad()
    task._loss(x, task.targets(x, torch.zeros(4), 0.0), exits, levels, 0.0)[0].backward()
    assert codec.log_gain.grad is not None
    assert (codec.log_gain.grad != 0).all()


def test_each_frame_is_weighed_by_its_own_level(
    recipe: Recipe, classifier: Lite0, teacher: Teacher, pictures: Pictures
) -> None:
    """At the lowest level as if the coarsest weights were everybody's, at the highest as if there were none."""
    fine = recipe.loss.model_copy(update={"cut_later": 1.0, "stages": (0.3, 0.5, 0.5), "pooled": 0.5, "kl": 1.0})
    coarsest = CoarsestLossRecipe(cut=20.0, stages=(3.0, 40.0, 5.0), pooled=60.0, kl=70.0)
    coarse = fine.model_copy(update={"cut_later": 20.0, "stages": (3.0, 40.0, 5.0), "pooled": 60.0, "kl": 70.0})
    x = normalise(CropSampler(pictures.training, recipe.data, 1).batch(64, 4), torch.device("cpu"))
    exits = torch.tensor([1, 1, 0, 0])

    def loss(of: LossRecipe, levels: list[float]) -> float:
        training = start_training(recipe.model_copy(update={"loss": of}), classifier, teacher, pictures, "cpu")
        task = training.task
        torch.manual_seed(2)
        return task._loss(x, task.targets(x, torch.zeros(4), 1.0), exits, torch.tensor(levels), 1.0)[0].item()

    both = fine.model_copy(update={"coarsest": coarsest})
    assert loss(both, [0.0] * 4) == pytest.approx(loss(coarse, [0.0] * 4), rel=1e-5)
    assert loss(both, [1.0] * 4) == pytest.approx(loss(fine, [1.0] * 4), rel=1e-5)
    assert loss(fine, [0.0] * 4) < loss(both, [0.5, 0.5, 0.0, 1.0]) < loss(coarse, [0.0] * 4)


def test_validation_names_blocks_whose_hidden_channels_never_fire(make_training: MakeTraining, tmp_path: Path) -> None:
    training = make_training()
    for codec in (training.task.codec, training.task.averaged_codec):
        codec.encoder.blocks[0].expand.bias.data[:3] = -1e6
        codec.encoder.blocks[0].expand.bias.data[3:] = 10.0
        codec.decoder.blocks[0].expand.bias.data[:] = 10.0
    train(training, tmp_path)
    line = read_log(tmp_path)[-1]
    assert line["silent_channels"] == {"encoder.blocks.0": "3 of 8"}
    assert "encoder.blocks.0: 3 of 8 hidden channels never fire" in format_line(line)


def test_behind_a_leaky_relu_no_channel_is_silent_and_each_one_learns(
    recipe: Recipe, classifier: Lite0, teacher: Teacher, pictures: Pictures
) -> None:
    network = recipe.network.model_copy(update={"activation": "leaky_relu"})
    training = start_training(recipe.model_copy(update={"network": network}), classifier, teacher, pictures, "cpu")
    block = training.task.codec.encoder.blocks[0]
    for codec in (training.task.codec, training.task.averaged_codec):
        codec.encoder.blocks[0].expand.bias.data[:] = -10.0
    training.task.validate(pictures)
    assert "silent_channels" not in training.task.facts()
    training.train_step()
    assert (block.expand.weight.grad.abs().sum(dim=(1, 2, 3)) > 0).all()


def test_rate_weight_moves_towards_its_target(make_training: MakeTraining) -> None:
    training = make_training()
    targets = training.recipe.rates.target_bpp
    before = training.task.log_lmbda.clone()
    bpp = torch.tensor([targets[0] * 2, targets[1] / 2, 99.0, 99.0])
    # Not judged: another depth, and a level in between.
    training.task._adapt_lmbda(1.0, bpp, torch.tensor([1, 1, 0, 1]), torch.tensor([0.0, 1.0, 1.0, 0.5]))
    assert training.task.log_lmbda[0] > before[0]
    assert training.task.log_lmbda[1] < before[1]


def test_rate_weight_ignores_a_rate_that_is_no_number(make_training: MakeTraining) -> None:
    training = make_training()
    before = training.task.log_lmbda.clone()
    training.task._adapt_lmbda(1.0, torch.tensor([torch.nan]), torch.tensor([1]), torch.tensor([0.0]))
    assert torch.equal(training.task.log_lmbda, before)


def test_crops_follow_the_progress_of_the_run(make_training: MakeTraining) -> None:
    training = make_training()
    assert training.crop.size_px == 32
    training.elapsed_s = 60 * training.recipe.minutes
    assert training.crop.size_px == 64


# Other checkpoints


def test_checkpoint_of_before_a_key_was_added_goes_on(
    recipe: Recipe, make_training: MakeTraining, tmp_path: Path
) -> None:
    """A run of hours survives an update that brings a key with a default."""
    train(make_training(), tmp_path, steps=2)
    state = load_checkpoint(tmp_path / CHECKPOINT_FILE)
    for key in ("paper", "classifier_weights"):
        del state["recipe"][key]
    del state["other_ranks"]
    torch.save(state, tmp_path / CHECKPOINT_FILE)
    training = make_training()
    assert resume(training, tmp_path)
    assert training.step == 2


def test_warm_start_takes_the_averaged_weights_and_begins_anew(make_training: MakeTraining, tmp_path: Path) -> None:
    train(make_training(), tmp_path, steps=4)
    state = load_checkpoint(tmp_path / CHECKPOINT_FILE)
    training = make_training()
    assert training.start_from({"average": state["average"]}, tmp_path / CHECKPOINT_FILE) == []
    for network in (training.task.network, training.task.average):
        for name, value in network["codec"].state_dict().items():
            assert torch.equal(value, state["average"][name]), name
    assert (training.step, training.elapsed_s) == (0, 0.0)
    training.train_step()
    assert not torch.equal(training.task.network["codec"].log_gain, state["average"]["log_gain"])


def test_warm_start_for_another_cut_begins_its_last_layer_anew(
    recipe: Recipe, classifier: Lite0, make_training: MakeTraining, pictures: Pictures, tmp_path: Path
) -> None:
    state = {"average": make_training().task.network["codec"].state_dict()}
    sample = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    teacher = Teacher(TorchEngine(classifier, "stride4"), sample, "stride4")
    training = start_training(recipe.model_copy(update={"cut": "stride4"}), classifier, teacher, pictures, "cpu")
    own = {name: value.clone() for name, value in training.task.network["codec"].state_dict().items()}
    new = {f"decoder.{name}" for name in ("feature_mean", "feature_std", "leave.weight", "leave.bias")}
    assert set(training.start_from(state, tmp_path / "other.pt")) == {f"codec.{name}" for name in new}
    for name, value in training.task.network["codec"].state_dict().items():
        assert torch.equal(value, own[name] if name in new else state["average"][name]), name


@pytest.mark.parametrize("state", [{"average": {"log_gain": torch.zeros(9, 9)}}, {"average": {}}, {}], ids=str)
def test_warm_start_of_other_sizes_is_one_line(
    make_training: MakeTraining, tmp_path: Path, state: dict[str, Any]
) -> None:
    with pytest.raises(TrainingError, match=r"other\.pt: its codec is not of this recipe's sizes") as caught:
        make_training().start_from(state, tmp_path / "other.pt")
    assert "\n" not in str(caught.value)


def test_log_holds_speed_and_means_of_its_interval(
    recipe_fields: dict[str, Any], make_training: MakeTraining, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "LINE_STEPS", 4)
    losses = train(make_training(), tmp_path)
    first = read_log(tmp_path)[0]
    assert first["images_per_s"] == 4 * 64
    assert first["loss"] == pytest.approx(sum(step["loss"] for step in losses[:4]) / 4, abs=1e-4)
    assert len(first["lmbda"]) == 2
