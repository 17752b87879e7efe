"""The dead zone of each level: tried on held-out pictures, the cheapest kept."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.codec.lite0 import Lite0
from pipeline.codec.principal_start import start_from_principal_components
from pipeline.encoder import round_with_dead_zone
from pipeline.training.datasets import Pictures, use_views
from pipeline.training.dead_zone import CANDIDATES, DeadZoneFit, choose_dead_zones, lean_towards_zero, try_dead_zones
from pipeline.training.nested_task import build_codec
from pipeline.training.recipes import Recipe
from pipeline.training.teacher import normalise


@pytest.mark.parametrize("dead_zone", [0.0, 0.12, 0.28])
def test_torch_rounds_as_the_node_does(dead_zone: float) -> None:
    """Else the dead zone would be chosen for another rounding than the one that is sent."""
    scaled = np.random.default_rng(1).normal(0, 3, 5000).astype(np.float32)
    expected = round_with_dead_zone(scaled, dead_zone)
    np.testing.assert_array_equal(lean_towards_zero(torch.from_numpy(scaled), dead_zone).numpy(), expected)


def test_cheapest_candidate_of_each_level_is_chosen() -> None:
    costs = {(0, 0.0): 3.0, (0, 0.1): 2.0, (1, 0.0): 1.0, (1, 0.1): 1.5}
    fits = [DeadZoneFit(level, zone, 0.0, 0.0, cost) for (level, zone), cost in costs.items()]
    assert choose_dead_zones(fits) == [0.1, 0.0]


def test_wider_dead_zone_takes_fewer_bits_and_the_rate_weight_decides(
    recipe: Recipe, classifier: Lite0, pictures: Pictures
) -> None:
    torch.manual_seed(2)
    codec = build_codec(recipe)
    x = normalise(use_views(pictures.held_out)[:, :, :, ::-1].copy(), torch.device("cpu"))
    start_from_principal_components(codec, x, coarsest_step=1.0, level_ratio=2.0)
    fits = try_dead_zones(codec.eval(), classifier, recipe.cut, x, (0.0, 1e6))
    assert [fit.dead_zone for fit in fits] == 2 * list(CANDIDATES)
    rates = [fit.bpp for fit in fits if fit.level == 1]
    assert rates[-1] < 0.95 * rates[0]
    # At such a weight the rate alone counts.
    assert choose_dead_zones(fits)[1] == CANDIDATES[-1]
