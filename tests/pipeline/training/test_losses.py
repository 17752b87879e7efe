"""Distortion in named parts, on numbers that can be worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from pipeline.training.losses import Targets, cut_distortion, distortion_weights, task_distortion, task_weight
from pipeline.training.recipes import CoarsestLossRecipe, LossRecipe

RECIPE = LossRecipe(stages=(0.3, 0.5, 0.7), pooled=0.2, warmup_share=0.1, ramp_share=0.2)
STAGE_WEIGHTS = distortion_weights(RECIPE, torch.zeros(2))[:, 1:-1]


def make_targets() -> Targets:
    stages = [torch.zeros(2, 3, 4, 4), torch.ones(2, 5, 2, 2), torch.zeros(2, 7, 1, 1), torch.zeros(2, 9)]
    return Targets(
        torch.zeros(2, 4, 8, 8), stages, [1.0, 4.0, 2.0, 0.5], torch.tensor([[0.0, 0.0], [0.0, math.log(3)]])
    )


def decoded(targets: Targets) -> list[torch.Tensor]:
    return [*(stage.clone() for stage in targets.stages), targets.logits.clone()]


@pytest.mark.parametrize(
    ("progress", "weight"), [(0.0, 0.0), (0.1, 0.0), (0.15, 0.25), (0.2, 0.5), (0.3, 1.0), (1.0, 1.0)]
)
def test_task_comes_in_after_the_features_on_a_ramp(progress: float, weight: float) -> None:
    assert task_weight(progress, RECIPE) == pytest.approx(weight)


def test_task_without_a_warm_up_still_ramps() -> None:
    recipe = LossRecipe(warmup_share=0.0, ramp_share=0.5)
    assert task_weight(0.0, recipe) == 0
    assert task_weight(0.25, recipe) == 0.5


def test_cut_distortion_is_the_mean_square_of_each_frame() -> None:
    targets = make_targets()
    features = torch.zeros(2, 4, 8, 8)
    features[1] = 3.0
    assert cut_distortion(features, targets).tolist() == [0.0, 9.0]


def test_task_distortion_of_the_targets_themselves_is_zero() -> None:
    targets = make_targets()
    error, divergence = task_distortion(decoded(targets), targets, STAGE_WEIGHTS)
    assert error.tolist() == [0.0, 0.0]
    assert divergence.abs().max() < 1e-6


@pytest.mark.parametrize(
    ("index", "expected"), [(0, 0.3 * 4 / 1), (1, 0.5 * 4 / 4), (2, 0.7 * 4 / 2), (3, 0.2 * 4 / 0.5)]
)
def test_each_stage_counts_with_its_weight_over_its_variance(index: int, expected: float) -> None:
    targets = make_targets()
    stages = decoded(targets)
    stages[index][0] += 2.0
    error, divergence = task_distortion(stages, targets, STAGE_WEIGHTS)
    assert error.tolist() == pytest.approx([expected, 0.0])
    assert divergence.abs().max() < 1e-6


def test_divergence_is_from_the_targets_classes_to_the_decoded_ones() -> None:
    """KL(target || decoded) of (1/4, 3/4) against (1/2, 1/2); the other way round it would be another number."""
    targets = make_targets()
    stages = decoded(targets)
    stages[-1][1] = 0.0
    _, divergence = task_distortion(stages, targets, STAGE_WEIGHTS)
    expected = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)
    assert divergence.tolist() == pytest.approx([0.0, expected], abs=1e-6)


def test_weights_go_from_the_coarsest_level_to_the_finest_geometrically() -> None:
    coarsest = CoarsestLossRecipe(cut=1, stages=(4, 16, 64), pooled=8, kl=20)
    recipe = LossRecipe(cut_later=100, stages=(4, 4, 1), pooled=2, kl=5, coarsest=coarsest)
    weights = distortion_weights(recipe, torch.tensor([0.0, 0.5, 1.0]))
    expected = [[1, 4, 16, 64, 8, 20], [10, 4, 8, 8, 4, 10], [100, 4, 4, 1, 2, 5]]
    assert torch.allclose(weights, torch.tensor(expected, dtype=torch.float32))


def test_weights_without_a_coarsest_level_are_the_same_everywhere() -> None:
    weights = distortion_weights(LossRecipe(cut_later=0.0, stages=(1, 0, 2), pooled=3, kl=4), torch.tensor([0.0, 1.0]))
    assert weights.tolist() == [[0, 1, 0, 2, 3, 4]] * 2
