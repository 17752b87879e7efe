"""The dead zone of each level: tried on held-out pictures, the cheapest kept."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.codec.lite0 import Lite0
from pipeline.codec.principal_start import start_from_principal_components
from pipeline.encoder import round_with_dead_zone
from pipeline.training.datasets import Pictures, use_views
from pipeline.training.dead_zone import (
    CANDIDATES,
    DeadZoneFit,
    choose_dead_zones,
    lean_towards_zero,
    level_slopes,
    try_dead_zones,
)
from pipeline.training.nested_task import build_codec
from pipeline.training.recipes import Recipe
from pipeline.training.teacher import normalise


@pytest.mark.parametrize("dead_zone", [0.0, 0.12, 0.28])
def test_torch_rounds_as_the_node_does(dead_zone: float) -> None:
    """Else the dead zone would be chosen for another rounding than the one that is sent."""
    scaled = np.random.default_rng(1).normal(0, 3, 5000).astype(np.float32)
    expected = round_with_dead_zone(scaled, dead_zone)
    np.testing.assert_array_equal(lean_towards_zero(torch.from_numpy(scaled), dead_zone).numpy(), expected)


def test_zone_is_chosen_that_leaves_the_curve() -> None:
    """Level 1 has a zone that saves bits for less than the curve's slope of 2, and one for more; level 0 has none."""
    points = {
        (0, 0.0): (1.0, 0.10), (0, 0.1): (1.3, 0.05),
        (1, 0.0): (0.8, 0.20), (1, 0.1): (0.82, 0.18), (1, 0.2): (1.0, 0.11),
        (2, 0.0): (0.6, 0.30), (2, 0.1): (0.6, 0.30),
    }  # fmt: skip
    fits = [DeadZoneFit(level, zone, *point) for (level, zone), point in points.items()]
    assert choose_dead_zones(fits) == [0.0, 0.1, 0.0]


def test_slopes_are_those_of_the_curve() -> None:
    """Divergence 1 / bpp falls by 1 / bpp^2 for a bit per pixel more."""
    plain = [DeadZoneFit(level, 0.0, 1 / bpp, bpp) for level, bpp in enumerate((0.1, 0.2, 0.4, 0.8))]
    assert level_slopes(plain) == pytest.approx([1 / fit.bpp**2 for fit in plain])
    # One that two levels do not show is hardly any.
    assert level_slopes([DeadZoneFit(0, 0.0, 0.5, 0.1), DeadZoneFit(1, 0.0, 0.6, 0.2)]) == [1e-3, 1e-3]
    # A network for one rate has one level twice: what lies between its two is chance, however steep.
    assert level_slopes([DeadZoneFit(0, 0.0, 0.50, 0.300), DeadZoneFit(1, 0.0, 0.48, 0.301)]) == [1e-3, 1e-3]


def test_wider_dead_zone_takes_fewer_bits(recipe: Recipe, classifier: Lite0, pictures: Pictures) -> None:
    torch.manual_seed(2)
    codec = build_codec(recipe)
    x = normalise(use_views(pictures.held_out)[:, :, :, ::-1].copy(), torch.device("cpu"))
    start_from_principal_components(codec, x, coarsest_step=1.0, level_ratio=2.0)
    fits = try_dead_zones(codec.eval(), classifier, recipe.cut, x)
    assert [fit.dead_zone for fit in fits] == 2 * list(CANDIDATES)
    rates = [fit.bpp for fit in fits if fit.level == 1]
    assert rates[-1] < 0.95 * rates[0]
