"""Crops made on the GPU, of pictures that live in its memory: a GPU waits for no CPU that decodes and resizes.

A crop is two small matrix products, one along each axis: a batch takes some dozen kernels, where resizing one picture
after the other took thousands.

Letters: B crops, R rows or columns of the largest region, S side of the squares.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.training.datasets import Crop, Pictures, draw_crops
from pipeline.training.recipes import DataRecipe

SPARE_SHARE = 0.5
"""Of the free memory that pictures may take: the rest is for networks and batches."""
MAX_PIXELS = 2**24
"""Of the regions that are cut together: some 500 MB."""


class DeviceCropSampler:
    """`CropSampler` on a device: one seed draws the same crops there, and each other's states can be restored.

    Attributes:
        random: whose state is the sampler's; on the CPU, so that it does not depend on the device.
        drawn: which pictures the last batch was cut from, int64 (B,).
    """

    def __init__(
        self, pictures: Sequence[NDArray[np.uint8]], recipe: DataRecipe, seed: int, device: torch.device | str
    ) -> None:
        self._heights, self._widths = np.array([picture.shape[:2] for picture in pictures]).T
        sizes = 3 * self._heights * self._widths
        self._starts = np.cumsum(sizes) - sizes
        # One after the other, each (3, H, W) RGB.
        self._values = torch.empty(int(sizes.sum()), dtype=torch.uint8, device=device)
        for picture, start, size in zip(pictures, self._starts, sizes, strict=True):
            planes = np.ascontiguousarray(picture[:, :, ::-1].transpose(2, 0, 1)).reshape(-1)
            self._values[start : start + size] = torch.from_numpy(planes)
        self._recipe = recipe
        self._device = torch.device(device)
        self.random = np.random.default_rng(seed)
        self.drawn: NDArray[np.int64] = np.zeros(0, np.int64)

    def batch(self, size_px: int, batch: int) -> Tensor:
        """uint8 (batch, size, size, 3) RGB on the device."""
        self.drawn = self.random.integers(len(self._heights), size=batch)
        drawn = draw_crops(self.random, self._heights[self.drawn], self._widths[self.drawn], size_px, self._recipe)
        parts = [self._cut(self.drawn[part], drawn[part], size_px) for part in _parts(drawn)]
        return torch.cat(parts)

    def _cut(self, pictures: NDArray[np.int64], drawn: list[Crop], size_px: int) -> Tensor:
        """uint8 (B, S, S, 3)"""
        shrinks = torch.tensor([crop.width > size_px and crop.height > size_px for crop in drawn]).to(self._device)
        rows, columns = (
            _resizing(torch.tensor(lengths).to(self._device), max(lengths), shrinks, size_px)
            for lengths in ([crop.height for crop in drawn], [crop.width for crop in drawn])
        )
        mirrored = torch.tensor([crop.is_mirrored for crop in drawn])[:, None, None].to(self._device)
        columns = torch.where(mirrored, columns.flip(1), columns)
        squares = rows[:, None] @ self._regions(pictures, drawn, rows.shape[2], columns.shape[2]) @ columns.mT[:, None]
        contrast, shift = (
            torch.tensor(values)[:, None, None, None].to(self._device)
            for values in ([crop.contrast for crop in drawn], [crop.shift for crop in drawn])
        )
        # As OpenCV does: in whole steps, and the absolute value, rounded and limited.
        varied = (squares.round() * contrast + shift).abs().round().clamp_max(255)
        return varied.to(torch.uint8).permute(0, 2, 3, 1)

    def _regions(self, pictures: NDArray[np.int64], drawn: list[Crop], height: int, width: int) -> Tensor:
        """Float (B, 3, R, R) in 0 to 255; beyond a region's own size anything, which gets no weight."""
        starts, heights, widths = (
            torch.from_numpy(values[pictures]) for values in (self._starts, self._heights, self._widths)
        )
        corner = torch.tensor([[crop.top, crop.left] for crop in drawn])
        first = (starts + corner[:, 0] * widths + corner[:, 1]).to(self._device)
        planes = (heights * widths).to(self._device)[:, None] * torch.arange(3, device=self._device)
        rows = widths.to(self._device)[:, None] * torch.arange(height, device=self._device)
        places = (first[:, None] + planes)[:, :, None, None] + rows[:, None, :, None]
        places = places + torch.arange(width, device=self._device)
        return self._values[places.clamp_max(len(self._values) - 1)].float()


def _parts(drawn: list[Crop]) -> Iterator[slice]:
    """Runs of crops whose regions, each as large as the largest, are no more than `MAX_PIXELS` together."""
    start, height, width = 0, 0, 0
    for index, crop in enumerate(drawn):
        height, width = max(height, crop.height), max(width, crop.width)
        if index > start and (index + 1 - start) * height * width > MAX_PIXELS:
            yield slice(start, index)
            start, height, width = index, crop.height, crop.width
    yield slice(start, len(drawn))


def _resizing(lengths: Tensor, longest: int, shrinks: Tensor, size_px: int) -> Tensor:
    """Weights (B, S, R) that turn the first `lengths` of R values into S.

    Linear; averaged over areas where a crop shrinks.
    """
    length = lengths[:, None, None].float()
    scale = length / size_px
    centre = (torch.arange(size_px, device=lengths.device)[:, None] + 0.5) * scale
    position = torch.arange(longest, device=lengths.device) + 0.5
    reach = torch.where(shrinks[:, None, None], scale, 1.0)
    weights = (1 - (position - centre).abs() / reach).clamp_min(0) * (position < length)
    return weights / weights.sum(dim=2, keepdim=True)


def fits(pictures: Pictures, device: torch.device) -> bool:
    """Whether the device is a GPU with memory to spare for the training pictures."""
    if device.type != "cuda" or not isinstance(pictures.training, list):
        return False
    free_bytes, _ = torch.cuda.mem_get_info(device)
    return bool(sum(picture.nbytes for picture in pictures.training) < SPARE_SHARE * free_bytes)
