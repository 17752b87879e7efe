"""The nested family's part of training: label-free distillation from the uncompressed classifier.

    loss = weights . (cut features, later features, KL of the classes) + lambda(level) * bpp

Every frame of a batch draws its own depth and level; the deepest exit gets a fixed share (the sandwich rule). The
decoder sees the latent rounded, with the gradient passed straight through. The rate is that of the rounded latent too,
or of the latent with additive noise (`rates.quantiser`), which at low rates counts half as many bits again.
"""

from __future__ import annotations

import math
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.codec.classifier import CLASSIFIERS, Classifier
from pipeline.codec.nested import Block, NestedCodec, NestedShape, interpolate
from pipeline.codec.principal_start import start_from_principal_components
from pipeline.training.datasets import Pictures, use_views
from pipeline.training.losses import Targets, cut_distortion, distortion_weights, task_distortion, task_weight
from pipeline.training.muon import Muon
from pipeline.training.ranks import ALONE, Ranks
from pipeline.training.recipes import Recipe
from pipeline.training.schedule import learning_rate_share, rate_ramp
from pipeline.training.silent_channels import HiddenPeaks
from pipeline.training.task import LossParts, Parts, divergence, set_peaks
from pipeline.training.teacher import Teacher, normalise

CONTINUOUS_LEVEL_SHARE = 0.4
"""Of the frames that train on a level between two whole ones."""
VALIDATION_PICTURES = 192
VALIDATION_BATCH = 32


def build_codec(recipe: Recipe) -> NestedCodec:
    """An untrained codec of the recipe's sizes."""
    cut = CLASSIFIERS[recipe.classifier].cuts[recipe.cut]
    levels = len(recipe.rates.target_bpp)
    sizes = recipe.network.model_dump()
    return NestedCodec(NestedShape(cut_channels=cut.channels, cut_stride=cut.stride, levels=levels, **sizes))


class NestedTask:
    """Networks, loss and rate weights of one run of the nested family.

    Args:
        x: normalised training crops, of which gains, or principal components, are found before the first step.
    """

    def __init__(
        self, recipe: Recipe, classifier: Classifier, teacher: Teacher, x: Tensor, device: str, ranks: Ranks = ALONE
    ) -> None:
        self.recipe, self.classifier, self.teacher, self.ranks = recipe, classifier, teacher, ranks
        self.device = torch.device(device)
        codec = build_codec(recipe)
        codec.decoder.feature_mean.copy_(teacher.feature_mean)
        codec.decoder.feature_std.copy_(teacher.feature_std)
        if recipe.start == "principal":
            start_from_principal_components(codec, x.cpu(), recipe.rates.coarsest_step, recipe.rates.level_ratio)
        else:
            codec.fit_initial_gain(x.cpu())
        # Nothing of it is trained, and in bf16 throughout it takes two thirds of the time under autocast.
        self.task_network = deepcopy(classifier).to(torch.bfloat16).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.codec: NestedCodec = codec.to(self.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.averaged_codec = deepcopy(self.codec).requires_grad_(False)
        self.network = nn.ModuleDict({"codec": self.codec})
        self.average = nn.ModuleDict({"codec": self.averaged_codec})
        self.optimisers = _build_optimisers(self.codec, recipe)
        self.log_lmbda = torch.log(torch.tensor(recipe.rates.initial_lmbda))
        self._silent: dict[str, str] = {}

    def advance(self, progress: float) -> bool:
        """One part from start to end."""
        return False

    def learning_rate_share(self, step: int, progress: float) -> float:
        """Warm-up and cosine, lower once the classes are in the loss."""
        optimiser, weight = self.recipe.optimiser, task_weight(progress, self.recipe.loss)
        return learning_rate_share(step, progress, optimiser) * (1 + weight * (optimiser.task_share - 1))

    def targets(self, x: Tensor, labels: Tensor, progress: float) -> Targets:
        """What the uncompressed classifier gives; labels are not used."""
        return self.teacher.targets(x) if task_weight(progress, self.recipe.loss) > 0 else self.teacher.cut_targets(x)

    def facts(self) -> dict[str, Any]:
        """Rate weight of each level; blocks with hidden channels that fired on no picture of the last validation."""
        silent = {"silent_channels": self._silent} if self._silent else {}
        return {"lmbda": [round(value, 4) for value in self.log_lmbda.exp().tolist()], **silent}

    def take_over(self) -> None:
        """Standardise features as the other run did: its decoder's numbers are in those units."""
        decoder = self.codec.decoder
        self.teacher.feature_mean, self.teacher.feature_std = decoder.feature_mean.clone(), decoder.feature_std.clone()

    def finish(self, pictures: Pictures) -> dict[str, Any]:
        """Nothing: tables are fitted to symbols at export."""
        return {}

    def state(self) -> dict[str, Any]:
        """The rate weights."""
        return {"log_lmbda": self.log_lmbda.clone()}

    def restore(self, state: dict[str, Any]) -> None:
        """Rate weights of a saved state."""
        self.log_lmbda = state["log_lmbda"].clone()

    def _draw_operating_points(self, batch: int) -> tuple[Tensor, Tensor]:
        """Exit index, deepest first, and level of each frame, on the CPU.

        Drawn systematically: every batch holds its share of each exit and of each level. Its gradient says less of the
        draw then, and a GPU meets the same sizes at every step.
        """
        exits, levels = len(self.codec.shape.depths), self.codec.shape.levels
        share = torch.full((exits,), (1 - self.recipe.deepest_share) / exits)
        share[0] += self.recipe.deepest_share
        exit_index = exits - 1 - _systematic(share, batch)
        level = _systematic(torch.full((levels,), 1 / levels), batch)[torch.randperm(batch)].float()
        continuous = torch.rand(batch) < CONTINUOUS_LEVEL_SHARE
        level[continuous] = torch.rand(int(continuous.sum())) * (levels - 1)
        return exit_index, level

    def loss(self, x: Tensor, targets: Targets, progress: float) -> tuple[Tensor, LossParts]:
        """Mean loss of a batch, every frame at a depth and a level that are drawn here."""
        exit_index, level = self._draw_operating_points(len(x))
        return self._loss(x, targets, exit_index, level, progress)

    def _loss(
        self, x: Tensor, targets: Targets, exit_index: Tensor, level: Tensor, progress: float
    ) -> tuple[Tensor, LossParts]:
        codec, recipe = self.codec, self.recipe
        weight = task_weight(progress, recipe.loss)
        autocast = torch.autocast(self.device.type, torch.bfloat16)
        with autocast:
            latent = codec.encoder.mixed_latents(x, exit_index).float()
        exit_index, level = exit_index.to(self.device), level.to(self.device)
        scaled = latent * codec.gain(level)[:, :, None, None]
        rounded = scaled + (scaled.round() - scaled).detach()
        counted = rounded if recipe.rates.quantiser == "rounding" else scaled + torch.rand_like(scaled) - 0.5
        bpp = codec.bits(counted, exit_index, level) / (x.shape[-2] * x.shape[-1])
        inverse_gain, condition = codec.decoder_inputs(exit_index, level)
        with autocast:
            features = codec.decoder.standardised(rounded * inverse_gain[:, :, None, None], condition).float()
        cut = cut_distortion(features, targets)
        weights = distortion_weights(recipe.loss, level / (codec.shape.levels - 1))
        distortion = (recipe.loss.cut + weight * (weights[:, 0] - recipe.loss.cut)) * cut
        parts = {"cut": cut.detach().mean(), "bpp": bpp.detach().mean()}
        if weight > 0:
            raw = features * codec.decoder.feature_std[:, None, None] + codec.decoder.feature_mean[:, None, None]
            stages = self.task_network.stages(raw.to(torch.bfloat16), recipe.cut)
            error, divergence = task_distortion(stages, targets, weights[:, 1:-1])
            distortion = distortion + weight * (error + weights[:, -1] * divergence)
            parts |= {"stages": error.detach().mean(), "kl": divergence.detach().mean()}
            if recipe.rates.adaptation > 0:
                self._adapt_lmbda(weight, bpp.detach(), exit_index, level)
        lmbda = torch.exp(interpolate(self.log_lmbda[:, None].to(self.device), level))[:, 0]
        rate_weight = recipe.rates.start_share + (1 - recipe.rates.start_share) * weight
        rate_weight *= rate_ramp(progress, recipe.rates.ramp_share)
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
        self.ranks.average(self.log_lmbda)

    @torch.no_grad()
    def validate(self, pictures: Pictures, levels: list[float] | None = None) -> list[Parts]:
        """Agreement, KL and estimated bpp of every depth at the given levels on held-out pictures, as in use."""
        views = use_views(pictures.held_out, VALIDATION_PICTURES, self.recipe.data.side_px)
        codec = self.averaged_codec.eval()
        points: dict[tuple[int, float], list[Tensor]] = {}
        with HiddenPeaks(codec) as peaks:
            for start in range(0, len(views), VALIDATION_BATCH):
                batch = views[start : start + VALIDATION_BATCH, :, :, ::-1].copy()
                x = normalise(batch, self.device, self.recipe.classifier)
                reference = self.teacher.targets(x).logits
                latents = codec.encoder.latents(x)
                for exit_index, depth in enumerate(codec.shape.depths):
                    for level in levels or [float(index) for index in range(codec.shape.levels)]:
                        rows = self._validate_point(latents[exit_index], exit_index, level, reference)
                        points.setdefault((depth, level), []).append(rows)
        self._silent = peaks.silent()
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
        codec = self.averaged_codec
        exits = torch.full((len(latent),), exit_index, device=latent.device)
        levels = torch.full((len(latent),), level, device=latent.device)
        symbols = torch.round(latent * codec.gain(levels)[:, :, None, None])
        bpp = codec.bits(symbols, exits, levels) / (codec.shape.symbol_stride**2 * symbols[0, 0].numel())
        features = codec.decoder(symbols, *codec.decoder_inputs(exits, levels))
        logits = self.task_network.classify(features.to(torch.bfloat16), self.recipe.cut).float()
        agrees = (logits.argmax(1) == reference.argmax(1)).float()
        return torch.stack([agrees, divergence(reference, logits), bpp], dim=1)


def _systematic(share: Tensor, count: int) -> Tensor:
    """Indices int64 (count,), rising; of each as many as its share says, but for one."""
    position = (torch.arange(count) + torch.rand(1)) / count
    return torch.searchsorted(share.cumsum(0)[:-1].contiguous(), position, right=True)


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
    return set_peaks(optimisers)
