"""The classifier tuned on pictures that WebP has been through: what a fleet could do without any learnt codec.

    KL of the tuned classifier on the decoded picture from the untouched one on the picture as it was

so no labels are needed. The quality is drawn anew for every picture; one set of weights serves them all.
"""

from __future__ import annotations

import io
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.codec.classifier import Classifier
from pipeline.codec.lite0 import INPUT_MEAN, INPUT_SCALE
from pipeline.training.datasets import Pictures
from pipeline.training.recipes import Recipe
from pipeline.training.schedule import learning_rate_share
from pipeline.training.task import Parts, agreement_parts, divergence, held_out_views, set_peaks
from pipeline.training.teacher import Teacher, normalise

VALIDATED_QUALITIES = (1, 30)


class TunedTask:
    """The classifier, its loss and schedule.

    Raises:
        ModuleNotFoundError: Pillow is not installed.
    """

    def __init__(self, recipe: Recipe, classifier: Classifier, teacher: Teacher, device: str) -> None:
        import PIL.Image  # noqa: F401  # said at the start, not in the first step

        self.recipe, self.teacher, self.device = recipe, teacher, torch.device(device)
        tuned = deepcopy(classifier).train().requires_grad_(True)
        self.network = nn.ModuleDict({"classifier": tuned.to(self.device).to(memory_format=torch.channels_last)})  # type: ignore[call-overload]
        self.average = deepcopy(self.network).requires_grad_(False)
        rate, decay = recipe.optimiser.learning_rate, recipe.optimiser.weight_decay
        groups = [
            {"params": [weight for weight in tuned.parameters() if weight.ndim > 1], "lr": rate, "weight_decay": decay},
            {"params": [weight for weight in tuned.parameters() if weight.ndim == 1], "lr": rate, "weight_decay": 0.0},
        ]
        self.optimisers = set_peaks([torch.optim.AdamW(groups, betas=(0.9, 0.98))])

    def advance(self, progress: float) -> bool:
        """One stage only."""
        return False

    def learning_rate_share(self, step: int, progress: float) -> float:
        """Warm-up and cosine."""
        return learning_rate_share(step, progress, self.recipe.optimiser)

    def targets(self, x: Tensor, labels: Tensor, progress: float) -> Tensor:
        """The untouched classifier's logits on the pictures as they are."""
        return self.teacher.engine(x)[1][-1]

    def loss(self, x: Tensor, targets: Tensor, progress: float) -> tuple[Tensor, Parts]:
        """KL on the pictures behind WebP; qualities come from torch's random numbers."""
        lowest, highest = self.recipe.tuned.qualities
        seen = self._through_webp(x, torch.randint(lowest, highest + 1, (len(x),)).tolist())
        with torch.autocast(self.device.type, torch.bfloat16):
            logits = self.network["classifier"](seen)
        kl = divergence(targets, logits.float()).mean()
        return kl, {"kl": float(kl.detach())}

    def _through_webp(self, x: Tensor, qualities: list[int]) -> Tensor:
        pixels = (x * INPUT_SCALE + INPUT_MEAN).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        seen = np.stack([through_webp(crop, quality) for crop, quality in zip(pixels, qualities, strict=True)])
        return normalise(seen, self.device, self.recipe.classifier)

    def facts(self) -> dict[str, Any]:
        """Nothing beyond the loss."""
        return {}

    @torch.no_grad()
    def validate(self, pictures: Pictures) -> list[Parts]:
        """A point for each of two qualities: agreement and KL of the tuned classifier."""
        tuned = self.average["classifier"].eval()
        points: list[Parts] = []
        for quality in VALIDATED_QUALITIES:
            rows = []
            for x in held_out_views(pictures, self.recipe, self.device):
                logits = tuned(self._through_webp(x, [quality] * len(x)))
                rows.append(torch.stack(agreement_parts(self.teacher.engine(x)[1][-1], logits), dim=1))
            agreement, kl = torch.cat(rows).mean(0).tolist()
            points.append({"quality": quality, "agreement": agreement, "kl": kl})
        return points

    def take_over(self) -> None:
        """Nothing: classes are compared as they are."""

    def finish(self, pictures: Pictures) -> dict[str, Any]:
        """Nothing is left to fit."""
        return {}

    def state(self) -> dict[str, Any]:
        """Nothing beyond the classifier."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Nothing to go back to."""


def through_webp(picture: NDArray[np.uint8], quality: int) -> NDArray[np.uint8]:
    """A picture uint8 (H, W, 3) RGB as it comes out of lossy WebP, Pillow's default method."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "webp", quality=quality)
    return np.asarray(Image.open(buffer).convert("RGB"), np.uint8)
