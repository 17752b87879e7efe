"""What a family of codecs brings to the training loop; the loop knows nothing else of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.training.datasets import Pictures, use_views
from pipeline.training.recipes import Recipe
from pipeline.training.teacher import normalise

VALIDATION_PICTURES = 96
"""Of baselines, for the closing line of a log; the comparison measures on pictures of its own."""
VALIDATION_BATCH = 32

Parts = dict[str, float]
"""Named parts of a loss, or of a validated point."""
LossParts = Mapping[str, Tensor | float]
"""Parts that may still be on their way: reading one waits for the GPU."""


class Task(Protocol):
    """A family's networks, loss and schedule.

    Attributes:
        network: everything that is trained, the codec under the name `codec`.
        average: the same networks with the moving average of their weights.
        optimisers: of the network's parameters; each group holds its highest learning rate as `peak_lr`.
    """

    network: nn.ModuleDict
    average: nn.ModuleDict
    optimisers: list[torch.optim.Optimizer]

    def advance(self, progress: float) -> bool:
        """Enter the part of the run that `progress` lies in; says whether other parameters are trained from now on."""

    def learning_rate_share(self, step: int, progress: float) -> float:
        """Share of the peak learning rates."""

    def targets(self, x: Tensor, labels: Tensor, progress: float) -> Any:
        """What the loss compares with, for normalised pictures (B, 3, H, W) and labels int64 (B,), -1 if unknown."""

    def loss(self, x: Tensor, targets: Any, progress: float) -> tuple[Tensor, LossParts]:
        """Mean loss of a batch and its named parts; draws from torch's random numbers."""

    def facts(self) -> dict[str, Any]:
        """What a line of the log says beyond the parts of the loss."""

    def validate(self, pictures: Pictures) -> list[Parts]:
        """The averaged networks on held-out pictures, as in use, one point for each depth and level."""

    def take_over(self) -> None:
        """The networks have just been given the weights of another run."""

    def finish(self, pictures: Pictures) -> dict[str, Any]:
        """Last things before the final checkpoint, on the averaged networks; returns what the log says of it."""

    def state(self) -> dict[str, Any]:
        """What a checkpoint needs beyond networks, averages and optimisers."""

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to what `state` gave."""


def set_peaks(optimisers: list[torch.optim.Optimizer]) -> list[torch.optim.Optimizer]:
    """Keep each group's learning rate as its peak; the loop sets shares of it."""
    for group in (group for optimiser in optimisers for group in optimiser.param_groups):
        group["peak_lr"] = group["lr"]
    return optimisers


def divergence(reference: Tensor, logits: Tensor) -> Tensor:
    """Kullback-Leibler divergence (B,) of the classes from the reference's."""
    return (reference.softmax(1) * (reference.log_softmax(1) - logits.log_softmax(1))).sum(1)


def labels_of(pictures: Pictures, rows: NDArray[np.int64]) -> Tensor:
    """Labels int64 (B,) of training pictures, -1 where none is known."""
    if pictures.training_labels is None:
        return torch.full((len(rows),), -1)
    return torch.from_numpy(pictures.training_labels[rows])


def agreement_parts(reference: Tensor, logits: Tensor) -> list[Tensor]:
    """Whether the classes of logits (B, classes) are the reference's, as float (B,), and the divergence (B,)."""
    return [(logits.argmax(1) == reference.argmax(1)).float(), divergence(reference, logits)]


def held_out_views(pictures: Pictures, recipe: Recipe, device: torch.device) -> list[Tensor]:
    """Batches of normalised views of use of held-out pictures."""
    views = use_views(pictures.held_out, VALIDATION_PICTURES, recipe.data.side_px)[:, :, :, ::-1].copy()
    starts = range(0, len(views), VALIDATION_BATCH)
    return [normalise(views[start : start + VALIDATION_BATCH], device, recipe.classifier) for start in starts]
