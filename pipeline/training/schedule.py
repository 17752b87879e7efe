"""Learning rates over a run."""

from __future__ import annotations

import math

from pipeline.training.recipes import OptimiserRecipe


def learning_rate_share(step: int, progress: float, recipe: OptimiserRecipe) -> float:
    """Share of the peak learning rates: linear warm-up over steps, cosine over the run."""
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    share = recipe.final_share + (1 - recipe.final_share) * cosine
    return share * min(1.0, (step + 1) / (recipe.warmup_steps + 1))
