"""The factorised prior: one learned distribution a channel, without any context.

    training:  z -> quantize -> z_hat -> likelihood -> bits
    coding:    z -> quantize -> symbols -> dequantize -> z_hat
    export:    fit_quantiles -> check_coverage -> channel_probabilities -> integer tables

A channel's cumulative distribution is sigmoid(f(z)), with f a chain of four hidden layers of three units that
rises by construction. The probability of a symbol is the mass of an interval of length 1 around it.
Source: Balle, Minnen, Singh, Hwang and Johnston 2018 (arXiv 1802.01436), appendix 6.1. Names and layout of
the parameters are those of CompressAI's EntropyBottleneck, the reference that the tests compare with.
Letters: B batch, C channels, n values of one channel.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.codec.bounds import lower_bound
from pipeline.errors import TrainingError

FILTERS = (3, 3, 3, 3)
"""Units of the hidden layers."""
LIKELIHOOD_FLOOR = 1e-9
TAIL_MASS = 1e-9
"""Mass outside the quantiles, both sides together."""
MAX_SYMBOL = 2**15
"""The bitstream's bound on a symbol's absolute value."""
BISECTION_STEPS = 80
"""Halves any bracket below the spacing of float64 numbers."""
MAX_BRACKET = 2.0**40
STALE_LOGIT = 0.25
"""Quantiles whose logits are further off than this belong to other parameters."""
FLOAT32_SPACING = 2.0**-22
"""Of stored quantiles, relative to their size."""
HALF_TABLE_UNIT = 0.5 / 65536
"""Tables count in 65536ths: below half of one, a symbol is cheaper in the escape than with its own entry."""

QuantizeMode = Literal["noise", "symbols", "straight_through"]


@dataclass(frozen=True, slots=True)
class ChannelProbabilities:
    """What an integer table of one channel is made from.

    Attributes:
        offset: the symbol of the first probability.
        probabilities: float64 (n,), of the symbols offset, offset + 1 ...
        escape: the mass of all other symbols; the sum with `probabilities` is 1.
    """

    offset: int
    probabilities: NDArray[np.float64]
    escape: float


@dataclass(frozen=True, slots=True)
class Coverage:
    """How well the fitted quantiles hold real symbols.

    Attributes:
        share: of the symbols that lie inside their channel's quantiles.
        channel_shares: the same, float64 (C,).
        num_outside: symbols outside; each one costs an escape.
    """

    share: float
    channel_shares: NDArray[np.float64]
    num_outside: int


class FactorisedPrior(nn.Module):
    """Learned distribution of each latent channel; 61 parameters a channel, the three quantiles among them.

    Likelihoods are computed in float32 at least, also under autocast, because a difference of two sigmoids in
    half precision is mostly rounding error. The quantiles get no gradient: `fit_quantiles` finds them after
    training.

    Args:
        channels: of the latent.
        init_scale: half width of the distribution before training.
        tail_mass: mass outside the outer quantiles.
    """

    target: Tensor

    def __init__(self, channels: int, *, init_scale: float = 10.0, tail_mass: float = TAIL_MASS) -> None:
        super().__init__()
        self.channels = channels
        self.tail_mass = tail_mass
        widths = (1, *FILTERS, 1)
        scale = init_scale ** (1 / (len(FILTERS) + 1))
        self.matrices, self.biases, self.factors = nn.ParameterList(), nn.ParameterList(), nn.ParameterList()
        for width_in, width_out in zip(widths[:-1], widths[1:], strict=True):
            weight = math.log(math.expm1(1 / scale / width_out))
            self.matrices.append(nn.Parameter(torch.full((channels, width_out, width_in), weight)))
            self.biases.append(nn.Parameter(torch.rand(channels, width_out, 1) - 0.5))
        for width in FILTERS:
            self.factors.append(nn.Parameter(torch.zeros(channels, width, 1)))
        quantiles = torch.tensor([-init_scale, 0.0, init_scale]).repeat(channels, 1, 1)
        self.quantiles = nn.Parameter(quantiles, requires_grad=False)
        logit = math.log(2 / tail_mass - 1)
        self.register_buffer("target", torch.tensor([-logit, 0.0, logit]), persistent=False)

    @property
    def medians(self) -> Tensor:
        """Middle quantiles (C,): symbols count from here."""
        return self.quantiles[:, 0, 1].detach()

    def quantize(self, latent: Tensor, mode: QuantizeMode, generator: torch.Generator | None = None) -> Tensor:
        """Replace a latent (B, C, H, W) by what coding makes of it.

        Args:
            mode: `noise`, for rates in training: plus uniform noise in [-0.5, 0.5). `symbols`, for coding:
                int32, round(z - median). `straight_through`, for decoders in training: round(z - median) +
                median, with the gradient of the identity.
            generator: source of the noise; the device's own unless given.

        Raises:
            ValueError: unknown mode.
        """
        if mode == "noise":
            noise = torch.rand(latent.shape, generator=generator, dtype=latent.dtype, device=latent.device)
            return latent + (noise - 0.5)
        medians = self.medians.to(latent.dtype)[:, None, None]
        if mode == "symbols":
            return torch.round(latent - medians).to(torch.int32)
        if mode == "straight_through":
            return latent + (torch.round(latent - medians) + medians - latent).detach()
        raise ValueError(f"unknown mode {mode!r} of quantize; known: noise, symbols, straight_through")

    def dequantize(self, symbols: Tensor) -> Tensor:
        """Latent float32 (B, C, H, W) that symbols stand for: the inverse of `symbols` up to the rounding."""
        return symbols.to(torch.float32) + self.medians[:, None, None]

    def likelihood(self, latent: Tensor) -> Tensor:
        """Probability (B, C, H, W) of a quantised or noisy latent, at least `LIKELIHOOD_FLOOR`.

        float32, or float64 for a float64 latent.
        """
        dtype = torch.promote_types(latent.dtype, torch.float32)
        with torch.autocast(latent.device.type, enabled=False):
            values = latent.to(dtype).transpose(0, 1)
            mass = self._mass(values.reshape(self.channels, 1, -1))
            return lower_bound(mass, LIKELIHOOD_FLOOR).reshape(values.shape).transpose(0, 1)

    def bits(self, latent: Tensor) -> Tensor:
        """Ideal code length (B,) in bits of a quantised or noisy latent (B, C, H, W)."""
        return -torch.log2(self.likelihood(latent)).flatten(1).sum(dim=1)

    @torch.no_grad()
    def fit_quantiles(self) -> None:
        """Put median and outer quantiles where the learned distribution has them, by bisection in float64.

        To be called once training is over, and before tables are made: the symbols' origin moves with the
        medians.

        Raises:
            TrainingError: a channel's distribution is not finite, or too flat to hold its tail mass anywhere.
        """
        target = self.target.to(torch.float64).expand(self.channels, 1, 3)
        high = torch.ones_like(target)
        while bool((self._logits(high) < target).any() | (self._logits(-high) > target).any()):
            high = high * 2
            if high[0, 0, 0] > MAX_BRACKET:
                raise TrainingError("the prior's quantiles are out of reach: has it diverged?")
        low = -high
        for _ in range(BISECTION_STEPS):
            middle = (low + high) / 2
            is_below = self._logits(middle) < target
            low, high = torch.where(is_below, middle, low), torch.where(is_below, high, middle)
        self.quantiles.copy_((low + high) / 2)
        self._check_quantiles()

    @torch.no_grad()
    def coverage(self, latent: Tensor) -> Coverage:
        """Which share of the symbols of a latent (B, C, H, W) the quantiles hold."""
        low, high = self._support()
        symbols = self.quantize(latent.float(), "symbols")
        is_inside = (symbols >= low[:, None, None]) & (symbols <= high[:, None, None])
        shares = is_inside.double().mean(dim=(0, 2, 3)).cpu().numpy()
        return Coverage(float(shares.mean()), shares, int((~is_inside).sum()))

    def check_coverage(self, latent: Tensor, at_least: float = 0.999) -> Coverage:
        """`coverage`, refusing a prior that would send real latents through escapes.

        Raises:
            TrainingError: the share of some channel is below `at_least`, or the quantiles were not fitted.
        """
        self._check_quantiles()
        coverage = self.coverage(latent)
        worst = int(coverage.channel_shares.argmin())
        if coverage.channel_shares[worst] < at_least:
            raise TrainingError(
                f"the prior holds {coverage.channel_shares[worst]:.4f} of channel {worst}'s symbols, "
                f"less than {at_least}: it does not fit the latent, train it longer"
            )
        return coverage

    @torch.no_grad()
    def channel_probabilities(self, smallest: float = HALF_TABLE_UNIT) -> list[ChannelProbabilities]:
        """Probabilities of each channel's symbols, in float64, for making integer tables once at export.

        Args:
            smallest: symbols at both ends that are less probable than this go to the escape.

        Raises:
            TrainingError: the quantiles do not belong to the parameters; call `fit_quantiles` after training.
        """
        self._check_quantiles()
        low, high = self._support()
        first, last = int(low.min()), int(high.max())
        symbols = torch.arange(first, last + 1, dtype=torch.float64, device=low.device)
        mass = self._mass(symbols + self.medians.double()[:, None, None])[:, 0].cpu().numpy()
        is_inside = ((symbols >= low[:, None]) & (symbols <= high[:, None])).cpu().numpy()
        channels = []
        for row, inside in zip(mass, is_inside, strict=True):
            kept = np.flatnonzero(inside & (row >= smallest))
            if not kept.size:  # no symbol of its own is worth an entry: keep the likeliest
                kept = np.array([int(np.where(inside, row, -1.0).argmax())])
            probabilities = row[kept[0] : kept[-1] + 1]
            escape = max(1.0 - float(probabilities.sum()), self.tail_mass)
            total = float(probabilities.sum()) + escape
            channels.append(ChannelProbabilities(first + int(kept[0]), probabilities / total, escape / total))
        return channels

    def _logits(self, values: Tensor) -> Tensor:
        """Logit of the cumulative distribution at values (C, 1, n)."""
        logits = values
        for index, (matrix, bias) in enumerate(zip(self.matrices, self.biases, strict=True)):
            logits = F.softplus(matrix.to(values.dtype)) @ logits + bias.to(values.dtype)
            if index < len(self.factors):
                logits = logits + torch.tanh(self.factors[index].to(values.dtype)) * torch.tanh(logits)
        return logits

    def _mass(self, values: Tensor) -> Tensor:
        """Mass (C, 1, n) of the intervals of length 1 around values (C, 1, n)."""
        lower, upper = self._logits(values - 0.5), self._logits(values + 0.5)
        # Beyond the median both sigmoids are close to 1 and their difference cancels: take the other side.
        sign = torch.where(lower + upper > 0, -1.0, 1.0).to(values.dtype)
        return (torch.sigmoid(sign * upper) - torch.sigmoid(sign * lower)).abs()

    def _support(self) -> tuple[Tensor, Tensor]:
        """First and last symbol (C,) inside the quantiles."""
        quantiles = self.quantiles[:, 0].double()
        low = -torch.ceil(quantiles[:, 1] - quantiles[:, 0])
        high = torch.ceil(quantiles[:, 2] - quantiles[:, 1])
        return low.clamp(-MAX_SYMBOL, 0), high.clamp(0, MAX_SYMBOL)

    @torch.no_grad()
    def _check_quantiles(self) -> None:
        quantiles = self.quantiles.double()
        spacing = FLOAT32_SPACING * (1 + quantiles.abs())  # on a steep slope the stored number's rounding shows
        is_low = self._logits(quantiles - spacing) <= self.target + STALE_LOGIT
        is_high = self._logits(quantiles + spacing) >= self.target - STALE_LOGIT
        if not bool((is_low & is_high).all()):  # also where a logit is not a number
            raise TrainingError(
                "the prior's quantiles do not belong to its parameters: call fit_quantiles after training"
            )
