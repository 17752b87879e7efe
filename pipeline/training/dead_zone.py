"""How far rounding leans towards zero at each level: fitted once, before a bundle is made.

A symbol nearer to zero takes fewer bits, and most values that lie about half way between two symbols say little to the
classifier. A zone is worth its divergence where it saves more bits than a lower level would for the same: each level's
bits are weighed with the slope of the curve through the levels there, so that a zone moves off the curve, not along it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from pipeline.codec.classifier import Classifier
from pipeline.codec.nested import NestedCodec

CANDIDATES = (0.0, 0.04, 0.08, 0.12, 0.16, 0.2, 0.24, 0.28)
SMALLEST_FALL = 1e-3
"""Where two levels are as good as each other, by chance or because training was short."""
SMALLEST_STEP = 1.05
"""Between the rates of two levels that a slope is taken of: a network for one rate has one level twice."""
BATCH = 32


@dataclass(frozen=True, slots=True)
class DeadZoneFit:
    """What one dead zone gives at one level, on the pictures that it was chosen on.

    Attributes:
        divergence: mean Kullback-Leibler divergence from the uncompressed classifier, nats.
        bpp: mean estimated rate.
    """

    level: int
    dead_zone: float
    divergence: float
    bpp: float


def lean_towards_zero(scaled: Tensor, dead_zone: float) -> Tensor:
    """Whole numbers; what `pipeline.encoder.round_with_dead_zone` gives, in torch."""
    return torch.trunc(scaled + torch.copysign(torch.full_like(scaled, 0.5 - dead_zone), scaled))


@torch.no_grad()
def try_dead_zones(codec: NestedCodec, classifier: Classifier, cut: str, x: Tensor) -> list[DeadZoneFit]:
    """Every candidate at every whole level of the deepest exit.

    Args:
        x: normalised held-out views (B, 3, H, W).
    """
    exit_index, deepest = len(codec.shape.depths) - 1, max(codec.shape.depths)
    batches = torch.split(x, BATCH)
    latents = [codec.encoder(batch, deepest) for batch in batches]
    references = [classifier(batch).log_softmax(1) for batch in batches]
    fits = []
    for level in range(codec.shape.levels):
        for dead_zone in CANDIDATES:
            divergence = bits = 0.0
            for latent, reference in zip(latents, references, strict=True):
                exits = torch.full((len(latent),), exit_index)
                levels = torch.full((len(latent),), float(level))
                symbols = lean_towards_zero(latent * codec.gain(levels)[:, :, None, None], dead_zone)
                logits = classifier.classify(codec.decoder(symbols, *codec.decoder_inputs(exits, levels)), cut)
                divergence += float((reference.exp() * (reference - logits.log_softmax(1))).sum())
                bits += _empirical_bits(symbols)
            pixels = codec.shape.symbol_stride**2 * latents[0][0, 0].numel()
            divergence, bpp = divergence / len(x), bits / (len(x) * pixels)
            fits.append(DeadZoneFit(level, dead_zone, divergence, bpp))
    return fits


def choose_dead_zones(fits: Sequence[DeadZoneFit]) -> list[float]:
    """The candidate of the least divergence + slope * bpp at each level, in the order of the levels."""
    plain = sorted((fit for fit in fits if fit.dead_zone == 0), key=lambda fit: fit.level)
    chosen = []
    for level, slope in enumerate(level_slopes(plain)):
        of_level = [fit for fit in fits if fit.level == level]
        chosen.append(min(of_level, key=lambda fit: fit.divergence + slope * fit.bpp).dead_zone)
    return chosen


def level_slopes(plain: Sequence[DeadZoneFit]) -> list[float]:
    """Fall of the divergence for a bit per pixel more at each level, from fits without a zone, lowest level first.

    The geometric mean of the falls to both neighbours; at either end the last fall, extrapolated half a level.
    """
    falls = [_fall(low, high) for low, high in pairwise(plain)]
    if len(falls) < 2:
        return [falls[0]] * len(plain)
    inner = [math.sqrt(before * after) for before, after in pairwise(falls)]
    return [falls[0] * math.sqrt(falls[0] / falls[1]), *inner, falls[-1] * math.sqrt(falls[-1] / falls[-2])]


def _fall(low: DeadZoneFit, high: DeadZoneFit) -> float:
    if high.bpp <= SMALLEST_STEP * low.bpp:
        return SMALLEST_FALL
    return max(SMALLEST_FALL, (low.divergence - high.divergence) / (high.bpp - low.bpp))


def _empirical_bits(symbols: Tensor) -> float:
    """Ideal code length of symbols (B, C, H, W) under each channel's own frequencies.

    Tables are fitted to the symbols that are sent, so the prior's bits would be those of another table.
    """
    bits = 0.0
    for channel in symbols.transpose(0, 1).flatten(1):
        counts = torch.unique(channel, return_counts=True)[1].double()
        bits -= float((counts * torch.log2(counts / counts.sum())).sum())
    return bits
