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


def orthogonalise(matrix: Tensor) -> Tensor:
    """Matrix (R, C) with the singular vectors of the given one and singular values between about 0.7 and 1.2."""
    is_tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.float().mT if is_tall else matrix.float()
    x = x / (x.norm() + 1e-7)
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
        """One step for every parameter that has a gradient; `closure` is not used."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(parameter)
                momentum = state["momentum"].lerp_(parameter.grad, 1 - group["momentum"])
                ahead = parameter.grad.lerp(momentum, group["momentum"])
                direction = orthogonalise(ahead.reshape(len(ahead), -1))
                size = max(1.0, direction.shape[0] / direction.shape[1]) ** 0.5
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(direction.reshape(parameter.shape), alpha=-group["lr"] * size)
