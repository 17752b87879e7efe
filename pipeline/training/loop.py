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

from pipeline.codec.lite0 import CUTS, Lite0
from pipeline.codec.nested import LATENT_STRIDE, Block, NestedCodec, NestedShape, interpolate
from pipeline.codec.principal_start import start_from_principal_components
from pipeline.errors import TrainingError
from pipeline.training.checkpoint import load_checkpoint, save_checkpoint
from pipeline.training.datasets import CropSampler, Pictures, use_views
from pipeline.training.losses import Targets, cut_distortion, task_distortion, task_weight
from pipeline.training.muon import Muon
from pipeline.training.recipes import CropRecipe, OptimiserRecipe, Recipe
from pipeline.training.teacher import Teacher, normalise

CHECKPOINT_FILE, LOG_FILE = "checkpoint.pt", "log.jsonl"
CONTINUOUS_LEVEL_SHARE = 0.4
"""Of the frames that train on a level between two whole ones."""
START_PICTURES = 64
"""Of which gains, or principal components, are found before the first step."""
VALIDATION_PICTURES = 192
VALIDATION_BATCH = 32

MAX_SKIPPED_STEPS = 20
"""Steps with a gradient that is not finite are left out; more of them than this is divergence, not bad luck."""

Report = Callable[[dict[str, Any]], None]


def build_codec(recipe: Recipe) -> NestedCodec:
    """An untrained codec of the recipe's sizes."""
    cut = CUTS[recipe.cut]
    levels = len(recipe.rates.target_bpp)
    sizes = recipe.network.model_dump()
    return NestedCodec(NestedShape(cut_channels=cut.channels, cut_stride=cut.stride, levels=levels, **sizes))


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
        x = normalise(self.sampler.batch(recipe.crops[0].size_px, START_PICTURES), torch.device("cpu"))
        if recipe.start == "principal":
            start_from_principal_components(codec, x, recipe.rates.coarsest_step, recipe.rates.level_ratio)
        else:
            codec.fit_initial_gain(x)
        # Nothing of it is trained, and in bf16 throughout it takes two thirds of the time under autocast.
        self.task_network = deepcopy(classifier).to(torch.bfloat16).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.codec = codec.to(self.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average = deepcopy(self.codec).requires_grad_(False)
        self.optimisers = _build_optimisers(self.codec, recipe)
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
            "optimisers": [optimiser.state_dict() for optimiser in self.optimisers],
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
        for optimiser, saved in zip(self.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
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
        weight = task_weight(self.progress, recipe.loss)
        share = learning_rate_share(self.step, self.progress, recipe.optimiser)
        share *= 1 + weight * (recipe.optimiser.task_share - 1)
        for group in (group for optimiser in self.optimisers for group in optimiser.param_groups):
            group["lr"] = share * group["peak_lr"]
        x = normalise(self.sampler.batch(crop.size_px, crop.batch), self.device)
        targets = self.teacher.targets(x) if weight > 0 else self.teacher.cut_targets(x)
        exit_index, level = self._draw_operating_points(crop.batch)
        loss, parts = self._loss(x, targets, exit_index, level)
        self.codec.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(self.codec.parameters(), recipe.optimiser.clip_norm)
        if not torch.isfinite(norm):
            self.skipped_steps += 1
            if self.skipped_steps > MAX_SKIPPED_STEPS:
                raise TrainingError(f"step {self.step}: the loss is not finite; last parts {parts}")
        else:
            for optimiser in self.optimisers:
                optimiser.step()
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
        weight = task_weight(self.progress, recipe.loss)
        distortion = (recipe.loss.cut + weight * (recipe.loss.cut_later - recipe.loss.cut)) * cut
        parts = {"cut": float(cut.detach().mean()), "bpp": float(bpp.detach().mean())}
        if weight > 0:
            raw = features * codec.decoder.feature_std[:, None, None] + codec.decoder.feature_mean[:, None, None]
            stages = self.task_network.stages(raw.to(torch.bfloat16), recipe.cut)
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
                    rows = self._validate_point(latents[exit_index], exit_index, level, reference)
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

    @torch.no_grad()
    def _validate_point(self, latent: Tensor, exit_index: int, level: float, reference: Tensor) -> Tensor:
        """Rows (B, 3): agrees, KL, bpp."""
        codec = self.average
        exits = torch.full((len(latent),), exit_index, device=latent.device)
        levels = torch.full((len(latent),), level, device=latent.device)
        symbols = torch.round(latent * codec.gain(levels)[:, :, None, None])
        bpp = codec.bits(symbols, exits, levels) / (LATENT_STRIDE**2 * symbols.shape[-2] * symbols.shape[-1])
        features = codec.decoder(symbols, *codec.decoder_inputs(exits, levels))
        logits = self.task_network.classify(features.to(torch.bfloat16), self.recipe.cut).float()
        divergence = (reference.softmax(1) * (reference.log_softmax(1) - logits.log_softmax(1))).sum(1)
        return torch.stack([(logits.argmax(1) == reference.argmax(1)).float(), divergence, bpp], dim=1)


def learning_rate_share(step: int, progress: float, recipe: OptimiserRecipe) -> float:
    """Share of the peak learning rates: linear warm-up over steps, cosine over the run."""
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    share = recipe.final_share + (1 - recipe.final_share) * cosine
    return share * min(1.0, (step + 1) / (recipe.warmup_steps + 1))


def _build_optimisers(codec: NestedCodec, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """AdamW, and Muon for the blocks' matrices; weight decay on convolution weights alone.

    Gains and prior are logarithms that have to move by several units while the rate comes in; at the networks' learning
    rate they lag behind and the rate weight winds up against them.
    """
    chosen = recipe.optimiser
    blocks = [module for module in codec.modules() if isinstance(module, Block)]
    matrices = [layer.weight for block in blocks for layer in (block.expand, block.project)]
    operating = [codec.log_gain, codec.log_inverse_gain, codec.log_scale, codec.mean, codec.condition]
    apart = {id(parameter) for parameter in operating}
    optimisers: list[torch.optim.Optimizer] = []
    if chosen.matrices == "muon":
        apart |= {id(parameter) for parameter in matrices}
        optimisers.append(Muon(matrices, chosen.muon_learning_rate, weight_decay=chosen.weight_decay))
    others = [parameter for parameter in codec.parameters() if id(parameter) not in apart]
    rate = chosen.learning_rate
    groups = [
        {"params": [p for p in others if p.ndim == 4], "lr": rate, "weight_decay": chosen.weight_decay},
        {"params": [p for p in others if p.ndim != 4], "lr": rate, "weight_decay": 0.0},
        {"params": operating, "lr": rate * chosen.operating_lr_factor, "weight_decay": 0.0},
    ]
    optimisers.append(torch.optim.AdamW(groups, betas=(0.9, 0.98)))
    for group in (group for optimiser in optimisers for group in optimiser.param_groups):
        group["peak_lr"] = group["lr"]
    return optimisers


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
