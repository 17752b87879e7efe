"""Crops made on the GPU, of pictures that live in its memory: a GPU waits for no CPU that decodes and resizes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from pipeline.training.datasets import Crop, Pictures, draw_crop
from pipeline.training.recipes import DataRecipe

SPARE_SHARE = 0.5
"""Of the free memory that pictures may take: the rest is for networks and batches."""


class DeviceCropSampler:
    """`CropSampler` on a device: one seed draws the same crops there, and each other's states can be restored.

    Attributes:
        random: whose state is the sampler's; on the CPU, so that it does not depend on the device.
        drawn: which pictures the last batch was cut from, int64 (B,).
    """

    def __init__(
        self, pictures: Sequence[NDArray[np.uint8]], recipe: DataRecipe, seed: int, device: torch.device | str
    ) -> None:
        # (3, H, W) RGB
        self._pictures = [
            torch.from_numpy(np.ascontiguousarray(picture[:, :, ::-1].transpose(2, 0, 1))).to(device)
            for picture in pictures
        ]
        self._recipe = recipe
        self._device = torch.device(device)
        self.random = np.random.default_rng(seed)
        self.drawn: NDArray[np.int64] = np.zeros(0, np.int64)

    def batch(self, size_px: int, batch: int) -> Tensor:
        """uint8 (batch, size, size, 3) RGB on the device."""
        self.drawn = self.random.integers(len(self._pictures), size=batch)
        drawn, regions = [], []
        for index in self.drawn:
            picture = self._pictures[index]
            crop = draw_crop(self.random, picture.shape[1], picture.shape[2], size_px, self._recipe)
            drawn.append(crop)
            regions.append(_resize(picture, crop, size_px))
        pixels = torch.stack(regions)
        mirrored = self._column([crop.is_mirrored for crop in drawn])
        pixels = torch.where(mirrored, pixels.flip(3), pixels)
        varied = pixels * self._column([crop.contrast for crop in drawn]) + self._column([c.shift for c in drawn])
        # As OpenCV does: the absolute value, rounded and limited.
        return varied.abs().round().clamp_max(255).to(torch.uint8).permute(0, 2, 3, 1)

    def _column(self, values: list[float] | list[bool]) -> Tensor:
        """(B, 1, 1, 1)"""
        return torch.tensor(values, device=self._device)[:, None, None, None]


def _resize(picture: Tensor, crop: Crop, size_px: int) -> Tensor:
    """Float (3, size, size) in 0 to 255, in whole steps; averaged over areas where it shrinks."""
    region = picture[None, :, crop.top : crop.top + crop.height, crop.left : crop.left + crop.width].float()
    shrinks = crop.width > size_px and crop.height > size_px
    size = (size_px, size_px)
    return F.interpolate(region, size, mode="bilinear", align_corners=False, antialias=shrinks)[0].round()


def fits(pictures: Pictures, device: torch.device) -> bool:
    """Whether the device is a GPU with memory to spare for the training pictures."""
    if device.type != "cuda" or not isinstance(pictures.training, list):
        return False
    free_bytes, _ = torch.cuda.mem_get_info(device)
    return bool(sum(picture.nbytes for picture in pictures.training) < SPARE_SHARE * free_bytes)
