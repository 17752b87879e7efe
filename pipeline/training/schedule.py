"""Learning rates and rate weights over a run."""

from __future__ import annotations

import math
from typing import Final

from pipeline.training.recipes import OptimiserRecipe

RATE_START_SHARE: Final = 0.01
"""Of a rate's weight that rises."""


def learning_rate_share(step: int, progress: float, recipe: OptimiserRecipe) -> float:
    """Share of the peak learning rates: linear warm-up over steps, cosine over the run."""
    cosine = 0.5 * (1 + math.cos(math.pi * progress))
    share = recipe.final_share + (1 - recipe.final_share) * cosine
    return share * min(1.0, (step + 1) / (recipe.warmup_steps + 1))


def rate_ramp(progress: float, ramp_share: float) -> float:
    """Share of the rate's weight at a progress in [0, 1]: a hundredth at the start, as a geometric series up to 1.

    In a short run the rate comes in late: a channel that it empties at the start stays empty.

    Args:
        ramp_share: of the run, in which it rises; 0 for none.
    """
    left = max(0.0, 1 - progress / ramp_share) if ramp_share > 0 else 0.0
    return math.exp(left * math.log(RATE_START_SHARE))
