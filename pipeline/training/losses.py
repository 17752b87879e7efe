"""Rate and distortion, in named parts."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.training.recipes import LossRecipe


@dataclass(frozen=True, slots=True)
class Targets:
    """What the uncompressed classifier gives for a batch.

    Attributes:
        cut: standardised features at the cut, (B, C, H, W).
        stages: features behind the cut, pooled features last.
        stage_variances: variance of each stage over the training pictures; divides its error.
        logits: (B, classes).
    """

    cut: Tensor
    stages: list[Tensor]
    stage_variances: list[float]
    logits: Tensor


def task_weight(progress: float, recipe: LossRecipe) -> float:
    """Share of everything but the cut's features at a progress in [0, 1]: 0 in the warm-up, then a ramp to 1.

    Features first: with the other terms from the start the codec stays at chance for hundreds of steps.
    """
    return min(1.0, max(0.0, (progress - recipe.warmup_share) / recipe.ramp_share))


def cut_distortion(features: Tensor, targets: Targets) -> Tensor:
    """Mean squared error (B,) of the standardised features."""
    return (features.float() - targets.cut).square().mean(dim=(1, 2, 3))


def distortion_weights(recipe: LossRecipe, fineness: Tensor) -> Tensor:
    """Weights (B, 6) of the cut's features, the stages behind it, the pooled features and the divergence.

    Args:
        fineness: of each frame's level (B,), 0 at the lowest rate, 1 at the highest.
    """
    fine = torch.tensor([recipe.cut_later, *recipe.stages, recipe.pooled, recipe.kl], device=fineness.device)
    if recipe.coarsest is None:
        return fine.expand(len(fineness), -1)
    chosen = recipe.coarsest
    coarse = torch.tensor([chosen.cut, *chosen.stages, chosen.pooled, chosen.kl], device=fineness.device)
    return coarse ** (1 - fineness)[:, None] * fine ** fineness[:, None]


def task_distortion(stages: list[Tensor], targets: Targets, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted error of the later features (B,) and Kullback-Leibler divergence of the classes (B,).

    Args:
        stages: what `stages()` of the classifier gives for the decoded features, logits last.
        weights: of all but the logits, (B, stages).
    """
    logits = stages[-1].float()
    error = torch.zeros(logits.shape[0], device=logits.device)
    for weight, stage, target, variance in zip(
        weights.T, stages[:-1], targets.stages, targets.stage_variances, strict=True
    ):
        error = error + weight * (stage.float() - target).square().flatten(1).mean(dim=1) / variance
    divergence = F.kl_div(
        F.log_softmax(logits, dim=1), F.log_softmax(targets.logits, dim=1), reduction="none", log_target=True
    ).sum(dim=1)
    return error, divergence
