"""Muon: momentum whose direction is made orthogonal, for the matrices of 1 x 1 convolutions.

Every singular value of a step is about 1, so rare directions learn as fast as loud ones. On the decoder of our codec
it halved the pictures that AdamW needed (`LOG.md`). torch.optim.Muon takes matrices
only; weights here are (out, in, 1, 1).
Source: Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks" (the five coefficients' source).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic iteration that drives singular values towards 1; chosen by its authors for speed, not exactness."""
ITERATIONS = 5


def orthogonalise(matrices: Tensor) -> Tensor:
    """Matrices (..., R, C) with the singular vectors of the given ones, singular values between about 0.7 and 1.2."""
    is_tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.float().mT if is_tall else matrices.float()
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    a, b, c = COEFFICIENTS
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    orthogonal: Tensor = x.mT if is_tall else x
    return orthogonal


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, made orthogonal.

    Args:
        params: weights of at least two axes; all but the first are one for the purpose.
        lr: spectral size of a step, times sqrt(rows / columns) for tall matrices.
        weight_decay: decoupled, times lr.
    """

    def __init__(
        self, params: Iterable[Tensor], lr: float = 0.02, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step for every parameter that has a gradient; `closure` is not used.

        Matrices of one size are made orthogonal together: one by one they are too small for a GPU.
        """
        for group in self.param_groups:
            alike: dict[tuple[int, int], list[Tensor]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    alike.setdefault((len(parameter), parameter[0].numel()), []).append(parameter)
            for (rows, columns), parameters in alike.items():
                ahead = torch.stack([self._ahead(parameter, group["momentum"]) for parameter in parameters])
                size = max(1.0, rows / columns) ** 0.5
                torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
                steps = [
                    direction.reshape(parameter.shape)
                    for direction, parameter in zip(orthogonalise(ahead), parameters, strict=True)
                ]
                torch._foreach_add_(parameters, steps, alpha=-group["lr"] * size)

    def _ahead(self, parameter: Tensor, share: float) -> Tensor:
        """Nesterov's look ahead, as a matrix; the momentum is moved on."""
        assert parameter.grad is not None
        state = self.state[parameter]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter)
        momentum: Tensor = state["momentum"].lerp_(parameter.grad, 1 - share)
        return parameter.grad.lerp(momentum, share).reshape(len(parameter), -1)
