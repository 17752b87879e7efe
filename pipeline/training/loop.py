"""The training loop of the nested codec: label-free distillation from the uncompressed classifier.

    loss = weights . (cut features, later features, KL of the classes) + lambda(level) * bpp

Every frame of a batch draws its own depth and level; the deepest exit gets a fixed share (the sandwich rule). The rate
is measured on the latent with additive noise, the decoder sees it rounded, with the gradient passed straight through.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.codec.lite0 import Lite0
from pipeline.codec.nested import NestedCodec, NestedShape, interpolate
from pipeline.errors import TrainingError
from pipeline.training.checkpoint import load_checkpoint, save_checkpoint
from pipeline.training.datasets import CropSampler, Pictures, use_views
from pipeline.training.losses import Targets, cut_distortion, task_distortion, task_weight
from pipeline.training.recipes import CropRecipe, Recipe
from pipeline.training.teacher import Teacher, normalise

CHECKPOINT_FILE, LOG_FILE = "checkpoint.pt", "log.jsonl"
CONTINUOUS_LEVEL_SHARE = 0.4
"""Of the frames that train on a level between two whole ones."""
VALIDATION_PICTURES = 192
VALIDATION_BATCH = 32

MAX_SKIPPED_STEPS = 20
"""Steps with a gradient that is not finite are left out; more of them than this is divergence, not bad luck."""

Report = Callable[[dict[str, Any]], None]


def build_codec(recipe: Recipe) -> NestedCodec:
    """An untrained codec of the recipe's sizes."""
    network = recipe.network.model_dump()
    return NestedCodec(NestedShape(levels=len(recipe.rates.target_bpp), **network))


class NestedTraining:
    """State of one run: weights, their moving average, optimiser, rate weights, progress, random numbers."""

    def __init__(self, recipe: Recipe, classifier: Lite0, teacher: Teacher, pictures: Pictures, device: str) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe, self.classifier, self.teacher, self.pictures = recipe, classifier, teacher, pictures
        self.device = torch.device(device)
        self.sampler = CropSampler(pictures.training, recipe.data, recipe.seed)
        codec = build_codec(recipe)
        codec.decoder.feature_mean.copy_(teacher.feature_mean)
        codec.decoder.feature_std.copy_(teacher.feature_std)
        codec.fit_initial_gain(normalise(self.sampler.batch(recipe.crops[0].size_px, 64), torch.device("cpu")))
        self.codec = codec.to(self.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average = deepcopy(self.codec).requires_grad_(False)
        self.optimiser = _build_optimiser(self.codec, recipe)
        self.log_lmbda = torch.log(torch.tensor(recipe.rates.initial_lmbda))
        self.step = 0
        self.elapsed_s = 0.0
        self.skipped_steps = 0

    @property
    def progress(self) -> float:
        """Share of the run that is done, by time."""
        return min(1.0, self.elapsed_s / (60 * self.recipe.minutes))

    def state(self) -> dict[str, Any]:
        """Everything that a checkpoint needs to go on exactly."""
        return {
            "recipe": self.recipe.model_dump(mode="json"),
            "codec": self.codec.state_dict(),
            "average": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "log_lmbda": self.log_lmbda.clone(),
            "step": self.step,
            "elapsed_s": self.elapsed_s,
            "skipped_steps": self.skipped_steps,
            "torch_random": torch.get_rng_state(),
            "cuda_random": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
            "crop_random": self.sampler.random.bit_generator.state,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to a state that `state` gave."""
        self.codec.load_state_dict(state["codec"])
        self.average.load_state_dict(state["average"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.log_lmbda = state["log_lmbda"].clone()
        self.step, self.elapsed_s = state["step"], state["elapsed_s"]
        self.skipped_steps = state.get("skipped_steps", 0)
        torch.set_rng_state(state["torch_random"])
        if self.device.type == "cuda" and state.get("cuda_random") is not None:
            torch.cuda.set_rng_state(state["cuda_random"], self.device)
        self.sampler.random.bit_generator.state = state["crop_random"]

    def train_step(self) -> dict[str, float]:
        """One step of the optimiser; returns the named parts of its loss."""
        recipe, crop = self.recipe, self._crop_recipe()
        for group in self.optimiser.param_groups:
            group["lr"] = group["lr_factor"] * learning_rate(self.step, self.progress, recipe)
        x = normalise(self.sampler.batch(crop.size_px, crop.batch), self.device)
        targets = self.teacher.targets(x)
        exit_index, level = self._draw_operating_points(crop.batch)
        loss, parts = self._loss(x, targets, exit_index, level)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(self.codec.parameters(), recipe.optimiser.clip_norm)
        if not torch.isfinite(norm):
            self.skipped_steps += 1
            if self.skipped_steps > MAX_SKIPPED_STEPS:
                raise TrainingError(f"step {self.step}: the loss is not finite; last parts {parts}")
        else:
            self.optimiser.step()
        self.step += 1
        self._update_average()
        return {**parts, "loss": float(loss.detach()), "gradient_norm": float(norm)}

    def _crop_recipe(self) -> CropRecipe:
        return next(crop for crop in self.recipe.crops if self.progress <= crop.until)

    def _draw_operating_points(self, batch: int) -> tuple[Tensor, Tensor]:
        """Exit index and level of each frame."""
        exits, levels = len(self.codec.shape.depths), self.codec.shape.levels
        exit_index = torch.randint(0, exits, (batch,))
        exit_index[torch.rand(batch) < self.recipe.deepest_share] = exits - 1
        level = torch.randint(0, levels, (batch,)).float()
        continuous = torch.rand(batch) < CONTINUOUS_LEVEL_SHARE
        level[continuous] = torch.rand(int(continuous.sum())) * (levels - 1)
        return exit_index.to(self.device), level.to(self.device)

    def _loss(self, x: Tensor, targets: Targets, exit_index: Tensor, level: Tensor) -> tuple[Tensor, dict[str, float]]:
        codec, recipe = self.codec, self.recipe
        autocast = torch.autocast(self.device.type, torch.bfloat16)
        with autocast:
            latents = torch.stack(codec.encoder.latents(x), dim=1)
        latent = latents[torch.arange(len(x), device=self.device), exit_index].float()
        scaled = latent * codec.gain(level)[:, :, None, None]
        bits = codec.bits(scaled + torch.rand_like(scaled) - 0.5, exit_index, level)
        bpp = bits / (x.shape[-2] * x.shape[-1])
        rounded = scaled + (scaled.round() - scaled).detach()
        inverse_gain, condition = codec.decoder_inputs(exit_index, level)
        with autocast:
            features = codec.decoder.standardised(rounded * inverse_gain[:, :, None, None], condition).float()
        cut = cut_distortion(features, targets)
        distortion = recipe.loss.cut * cut
        parts = {"cut": float(cut.detach().mean()), "bpp": float(bpp.detach().mean())}
        weight = task_weight(self.progress, recipe.loss)
        if weight > 0:
            with autocast:
                raw = features * codec.decoder.feature_std[:, None, None] + codec.decoder.feature_mean[:, None, None]
                stages = self.classifier.stages(raw, recipe.cut)
            error, divergence = task_distortion(stages, targets, recipe.loss)
            distortion = distortion + weight * (error + recipe.loss.kl * divergence)
            parts |= {"stages": float(error.detach().mean()), "kl": float(divergence.detach().mean())}
            self._adapt_lmbda(weight, bpp.detach(), exit_index, level)
        lmbda = torch.exp(interpolate(self.log_lmbda[:, None].to(self.device), level))[:, 0]
        rate_weight = recipe.rates.start_share + (1 - recipe.rates.start_share) * weight
        return (distortion + rate_weight * lmbda * bpp).mean(), parts

    def _adapt_lmbda(self, weight: float, bpp: Tensor, exit_index: Tensor, level: Tensor) -> None:
        """Move each whole level's rate weight towards its target, judged by the deepest exit."""
        deepest = exit_index == len(self.codec.shape.depths) - 1
        for index, target in enumerate(self.recipe.rates.target_bpp):
            chosen = deepest & (level == index)
            if chosen.any():
                error = math.log(max(float(bpp[chosen].mean()), 1e-4) / target)
                if math.isfinite(error):  # else the step is left out anyway
                    self.log_lmbda[index] += weight * self.recipe.rates.adaptation * max(-1.0, min(1.0, error))

    @torch.no_grad()
    def _update_average(self) -> None:
        decay = min(self.recipe.optimiser.ema_decay, (1 + self.step) / (10 + self.step))
        averages, values = list(self.average.parameters()), list(self.codec.parameters())
        torch._foreach_lerp_(averages, values, 1 - decay)

    @torch.no_grad()
    def validate(self, levels: list[float] | None = None) -> list[dict[str, float]]:
        """Agreement, KL and estimated bpp of every depth at the given levels on held-out pictures, as in use."""
        views = use_views(self.pictures.held_out, VALIDATION_PICTURES)
        codec = self.average.eval()
        points: dict[tuple[int, float], list[Tensor]] = {}
        for start in range(0, len(views), VALIDATION_BATCH):
            x = normalise(views[start : start + VALIDATION_BATCH, :, :, ::-1].copy(), self.device)
            reference = self.teacher.targets(x).logits
            latents = codec.encoder.latents(x)
            for exit_index, depth in enumerate(codec.shape.depths):
                for level in levels or [float(index) for index in range(codec.shape.levels)]:
                    rows = _validate_point(codec, self.classifier, latents[exit_index], exit_index, level, reference)
                    points.setdefault((depth, level), []).append(rows)
        return [
            dict(
                zip(
                    ("depth", "level", "agreement", "kl", "bpp"),
                    (*key, *torch.cat(rows).mean(0).tolist()),
                    strict=True,
                )
            )
            for key, rows in points.items()
        ]


def _validate_point(
    codec: NestedCodec, classifier: Lite0, latent: Tensor, exit_index: int, level: float, reference: Tensor
) -> Tensor:
    """Rows (B, 3): agrees, KL, bpp."""
    exits = torch.full((len(latent),), exit_index, device=latent.device)
    levels = torch.full((len(latent),), level, device=latent.device)
    symbols = torch.round(latent * codec.gain(levels)[:, :, None, None])
    bpp = codec.bits(symbols, exits, levels) / (64 * symbols.shape[-2] * symbols.shape[-1])
    with torch.autocast(latent.device.type, torch.bfloat16):
        logits = classifier.classify(codec.decoder(symbols, *codec.decoder_inputs(exits, levels)), "stride8").float()
    divergence = (reference.softmax(1) * (reference.log_softmax(1) - logits.log_softmax(1))).sum(1)
    return torch.stack([(logits.argmax(1) == reference.argmax(1)).float(), divergence, bpp], dim=1)


def learning_rate(step: int, progress: float, recipe: Recipe) -> float:
    """Linear warm-up over steps, cosine over the run."""
    optimiser = recipe.optimiser
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    share = optimiser.final_share + (1 - optimiser.final_share) * cosine
    return optimiser.learning_rate * share * min(1.0, (step + 1) / (optimiser.warmup_steps + 1))


def _build_optimiser(codec: NestedCodec, recipe: Recipe) -> torch.optim.Optimizer:
    """AdamW; weight decay on convolution weights alone, chosen by shape, not by name.

    Gains and prior are logarithms that have to move by several units while the rate comes in; at the networks' learning
    rate they lag behind and the rate weight winds up against them.
    """
    operating = [codec.log_gain, codec.log_inverse_gain, codec.log_scale, codec.mean, codec.condition]
    chosen = {id(parameter) for parameter in operating}
    others = [parameter for parameter in codec.parameters() if id(parameter) not in chosen]
    groups = [
        {
            "params": [p for p in others if p.ndim == 4],
            "weight_decay": recipe.optimiser.weight_decay,
            "lr_factor": 1.0,
        },
        {"params": [p for p in others if p.ndim != 4], "weight_decay": 0.0, "lr_factor": 1.0},
        {"params": operating, "weight_decay": 0.0, "lr_factor": recipe.optimiser.operating_lr_factor},
    ]
    return torch.optim.AdamW(groups, lr=recipe.optimiser.learning_rate, betas=(0.9, 0.98))


def run_training(
    training: NestedTraining,
    folder: Path,
    report: Report,
    should_stop: Callable[[], bool],
    clock: Callable[[], float],
) -> None:
    """Train until the recipe's time is up or a stop is asked for; the state is saved either way.

    At the end of its time the run is validated; a stop does not wait for that.

    Args:
        folder: gets `checkpoint.pt` and `log.jsonl`.
        report: called with each line of the log.
        clock: seconds, monotonic; the time of pauses between two runs does not count.
    """
    checkpoint, recipe = folder / CHECKPOINT_FILE, training.recipe
    begun = clock() - training.elapsed_s
    saved_s = validated_s = training.elapsed_s
    with (folder / LOG_FILE).open("a", encoding="utf-8") as log:

        def write(line: dict[str, Any]) -> None:
            log.write(json.dumps(line) + "\n")
            log.flush()
            report(line)

        while training.progress < 1 and not should_stop():
            parts = training.train_step()
            training.elapsed_s = clock() - begun
            if training.step % 50 == 0:
                lmbda = [round(value, 4) for value in training.log_lmbda.exp().tolist()]
                line: dict[str, Any] = {
                    "step": training.step,
                    "progress": training.progress,
                    "steps_per_s": training.step / max(training.elapsed_s, 1e-9),
                    "lmbda": lmbda,
                }
                write(line | {name: round(value, 5) for name, value in parts.items()})
            if training.elapsed_s - saved_s > 60 * recipe.checkpoint_minutes:
                save_checkpoint(training.state(), checkpoint)
                saved_s = training.elapsed_s
            if training.elapsed_s - validated_s > 60 * recipe.validate_minutes:
                write({"step": training.step, "validation": training.validate()})
                validated_s = training.elapsed_s
        save_checkpoint(training.state(), checkpoint)
        ending = {"validation": training.validate()} if training.progress >= 1 else {"stopped": True}
        write({"step": training.step, "elapsed_s": training.elapsed_s, **ending})


def resume(training: NestedTraining, folder: Path) -> bool:
    """Take up the folder's checkpoint if there is one; says whether there was."""
    checkpoint = folder / CHECKPOINT_FILE
    if not checkpoint.exists():
        return False
    training.restore(load_checkpoint(checkpoint, training.recipe.model_dump(mode="json")))
    return True


def now_s() -> float:
    """The clock of real runs."""
    return time.monotonic()
