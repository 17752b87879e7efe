"""A lower bound that lets gradients back in."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _LowerBound(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bound: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.bound = bound
        return x.clamp_min(bound)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        (gradient,) = gradients
        # A step of descent goes against the gradient: a negative one would raise x, towards the bound.
        return gradient * ((x >= ctx.bound) | (gradient < 0)), None


def lower_bound(x: Tensor, bound: float) -> Tensor:
    """Max of x and bound, whose gradient stays alive below the bound when it would raise x.

    A plain clamp would leave a parameter or a likelihood that once fell below the bound there for good.
    Without a gradient to keep it is a plain clamp, which graph exporters know.
    Source: Balle, Laparra and Simoncelli 2017 (arXiv 1611.01704), projected descent for GDN.
    """
    if torch.is_grad_enabled() and x.requires_grad:
        bounded: Tensor = _LowerBound.apply(x, bound)  # type: ignore[no-untyped-call]
        return bounded
    return x.clamp_min(bound)
