"""Picture codecs in training: CompressAI's networks for one rate, as baselines of the comparison.

    bpp + lambda * 255^2 * MSE of pixels from 0 to 1

as CompressAI trains them, so lambda weighs the distortion here; of what the classifier sees nothing is in the loss.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.codec.lite0 import INPUT_MEAN, INPUT_SCALE
from pipeline.codec.picture_network import (
    PictureShape,
    build_picture_network,
    fit_initial_scale,
    fit_quantiles,
    reconstruct,
)
from pipeline.training.datasets import Pictures
from pipeline.training.muon import Muon
from pipeline.training.recipes import OptimiserRecipe, Recipe
from pipeline.training.schedule import learning_rate_share
from pipeline.training.task import Parts, agreement_parts, held_out_views, set_peaks
from pipeline.training.teacher import Teacher

MAX_PIXEL = 255.0


def picture_shape_of(recipe: Recipe) -> PictureShape:
    """Sizes of the recipe's network."""
    return PictureShape(recipe.picture.network, recipe.picture.channels, recipe.picture.latent_channels)


class PictureTask:
    """Network, loss and schedule of one run.

    Args:
        x: normalised training crops, on which the network is scaled before the first step.
    """

    def __init__(self, recipe: Recipe, teacher: Teacher, x: Tensor, device: str) -> None:
        self.recipe, self.teacher, self.device = recipe, teacher, torch.device(device)
        codec = build_picture_network(picture_shape_of(recipe))
        fit_initial_scale(codec, _unit(x.cpu()))
        self.network = nn.ModuleDict({"codec": codec.to(self.device).to(memory_format=torch.channels_last)})  # type: ignore[call-overload]
        self.average = deepcopy(self.network).requires_grad_(False)
        self.optimisers = _build_optimisers(codec, recipe.optimiser)

    def advance(self, progress: float) -> bool:
        """One stage only."""
        return False

    def learning_rate_share(self, step: int, progress: float) -> float:
        """Warm-up and cosine."""
        return learning_rate_share(step, progress, self.recipe.optimiser)

    def targets(self, x: Tensor, labels: Tensor, progress: float) -> Tensor:
        """The pictures themselves, 0 to 1."""
        return _unit(x)

    def loss(self, x: Tensor, targets: Tensor, progress: float) -> tuple[Tensor, Parts]:
        """Rate and squared error."""
        x_hat, bits = reconstruct(self.network["codec"], targets, torch.bfloat16)
        bpp = bits.mean() / (x.shape[-2] * x.shape[-1])
        error = MAX_PIXEL**2 * (x_hat - targets).square().mean()
        parts = {"bpp": float(bpp.detach()), "mse": float(error.detach())}
        return bpp + self.recipe.picture.lmbda * error, parts

    def facts(self) -> dict[str, Any]:
        """Nothing beyond the loss."""
        return {}

    @torch.no_grad()
    def validate(self, pictures: Pictures) -> list[Parts]:
        """One point: PSNR, estimated bpp of real symbols, and what the classifier says of the decoded pictures."""
        codec: Any = deepcopy(self.average["codec"]).eval()
        fit_quantiles(codec)
        rows = []
        for x in held_out_views(pictures, self.recipe, self.device):
            original = self.targets(x, torch.empty(0), 1.0)
            x_hat, bits = reconstruct(codec, original)
            decoded = (x_hat.clamp(0, 1) * MAX_PIXEL).round()
            psnr = -10 * (decoded / MAX_PIXEL - original).square().flatten(1).mean(1).clamp_min(1e-10).log10()
            logits = self.teacher.engine((decoded - INPUT_MEAN) / INPUT_SCALE)[1][-1]
            parts = agreement_parts(self.teacher.engine(x)[1][-1], logits)
            rows.append(torch.stack([*parts, bits / (x.shape[-2] * x.shape[-1]), psnr], dim=1))
        agreement, kl, bpp, psnr_mean = torch.cat(rows).mean(0).tolist()
        return [{"agreement": agreement, "kl": kl, "bpp": bpp, "psnr": psnr_mean}]

    def take_over(self) -> None:
        """Nothing: pictures are compared as they are."""

    def finish(self, pictures: Pictures) -> dict[str, Any]:
        """Fit the averaged prior's quantiles, from which tables are built at export."""
        fit_quantiles(self.average["codec"])
        return {}

    def state(self) -> dict[str, Any]:
        """Nothing beyond the networks."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Nothing to go back to."""


def _unit(x: Tensor) -> Tensor:
    """Normalised pictures as the networks take them, 0 to 1."""
    return (x * INPUT_SCALE + INPUT_MEAN) / MAX_PIXEL


def _build_optimisers(codec: nn.Module, chosen: OptimiserRecipe) -> list[torch.optim.Optimizer]:
    """AdamW, with Muon for convolutions as the other families have it; the prior learns faster."""
    trained = [(name.partition(".")[0], weight) for name, weight in codec.named_parameters() if weight.requires_grad]
    prior = [weight for part, weight in trained if part == "entropy_bottleneck"]
    matrices = [weight for part, weight in trained if part != "entropy_bottleneck" and weight.ndim == 4]
    others = [weight for part, weight in trained if part != "entropy_bottleneck" and weight.ndim != 4]
    groups = [
        {"params": others, "lr": chosen.learning_rate, "weight_decay": 0.0},
        {"params": prior, "lr": chosen.learning_rate * chosen.operating_lr_factor, "weight_decay": 0.0},
    ]
    if chosen.matrices == "muon":
        muon = Muon(matrices, chosen.muon_learning_rate, weight_decay=chosen.weight_decay)
        return set_peaks([torch.optim.AdamW(groups, betas=(0.9, 0.98)), muon])
    groups.append({"params": matrices, "lr": chosen.learning_rate, "weight_decay": chosen.weight_decay})
    return set_peaks([torch.optim.AdamW(groups, betas=(0.9, 0.98))])
