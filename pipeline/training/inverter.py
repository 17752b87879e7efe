"""An inverter: from the symbols of one depth back to the picture, to see what features give away.

    symbols * inverse gain(level) -> y -+-> linear ------------------------> 8 x 8 patches -+-> picture
                                        +-> + level -> blocks -> x2 -> blocks -> x4 --------+

What a listener has who reads the wire and owns the bundle: depth and level stand in the clear in a frame's header,
gains in the bundle. One network for all levels; each picture of a batch has a level of its own. The linear way is there
because the least deep latents nearly are a linear function of patches; the other one learns what is missing.

Letters: B batch, C latent channels, K levels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load as load_tensors
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.bundle import DECODER_FILE, Bundle
from pipeline.codec.graphs import INVERSE_GAIN, decoder_shape
from pipeline.codec.lite0 import INPUT_MEAN, INPUT_SCALE
from pipeline.codec.nested import LATENT_STRIDE, BlockTransform
from pipeline.encoder import Encoder, OperatingPoint
from pipeline.errors import TrainingError
from pipeline.training.datasets import use_views

WIDTHS, NUM_BLOCKS = (96, 48), (3, 2)
"""Channels and blocks at strides 8 and 4. Plain convolutions: depthwise ones are cheaper on paper and three times as
slow to train on a CPU, and blocks at stride 2 would take most of the time."""
BATCH = 16
LEARNING_RATE = 2e-3
WARM_UP_STEPS = 50
FINAL_SHARE = 0.01
CLIP_NORM = 1.0
SEED = 1


class Residual(nn.Module):
    """x + conv2(relu(conv1(x))), both 3 x 3; the identity at first."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.conv2(F.relu(self.conv1(x)))
        return y


class Inverter(nn.Module):
    """Symbols (B, C, h, w) to normalised RGB pictures (B, 3, 224, 224).

    Args:
        block_side: of the DCT that the symbols are coefficients of; what follows sees its inverse, at stride 8.

    Attributes:
        inverse_gains: (K, C), of the levels that it knows, in their order.
    """

    inverse_gains: Tensor

    def __init__(self, inverse_gains: Tensor, block_side: int = 1) -> None:
        super().__init__()
        levels, channels = len(inverse_gains), inverse_gains.shape[1] // block_side**2
        coarse, fine = WIDTHS
        self.register_buffer("inverse_gains", inverse_gains.clone())
        self.transform = BlockTransform(block_side, channels)
        self.linear = nn.Conv2d(channels, 3 * LATENT_STRIDE**2, 1)
        self.level = nn.Embedding(levels, coarse)
        nn.init.zeros_(self.level.weight)
        self.enter = nn.Conv2d(channels, coarse, 1)
        self.coarse = nn.Sequential(*(Residual(coarse) for _ in range(NUM_BLOCKS[0])), nn.ReLU())
        self.widen = nn.Conv2d(coarse, 4 * fine, 1)
        self.fine = nn.Sequential(*(Residual(fine) for _ in range(NUM_BLOCKS[1])), nn.ReLU())
        self.leave = nn.Conv2d(fine, 3 * (LATENT_STRIDE // 2) ** 2, 3, padding=1)

    def forward(self, symbols: Tensor, level_index: Tensor) -> Tensor:
        """Pictures of symbols, of any type, at levels given by their place (B,) int64 in `inverse_gains`."""
        y = self.transform.inverse(symbols.to(torch.float32) * self.inverse_gains[level_index][:, :, None, None])
        patches = F.pixel_shuffle(self.linear(y), LATENT_STRIDE)
        h = self.coarse(self.enter(y) + self.level(level_index)[:, :, None, None])
        h = self.fine(F.pixel_shuffle(self.widen(h), 2))
        missing = F.pixel_shuffle(self.leave(h), LATENT_STRIDE // 2)
        return patches.float() + missing.float()


class Listener:
    """What somebody sees who reads a node's frames: symbols at one depth, made by the bundle's own encoder.

    Raises:
        TrainingError: the bundle has no such depth or level, or its exits are not at stride 8.
    """

    def __init__(self, bundle: Bundle, depth: int, levels: Sequence[int]) -> None:
        manifest = bundle.manifest
        if depth not in manifest.depths:
            raise TrainingError(f"{manifest.name} has no depth {depth}; it has {', '.join(map(str, manifest.depths))}")
        unknown = [level for level in levels if 16 * level not in manifest.levels16]
        if unknown:
            whole = [str(each // 16) for each in manifest.levels16 if each % 16 == 0]
            raise TrainingError(f"{manifest.name} has no level {unknown[0]}; it has {', '.join(whole)}")
        if manifest.family != "nested":
            raise TrainingError(f"{manifest.name}: an inverter takes bundles of the nested family")
        self.block_side = decoder_shape(bundle).block_side
        self._encoder = Encoder(bundle)
        self.points = [OperatingPoint(depth, 16 * level) for level in levels]
        rows = load_tensors(bundle.files[DECODER_FILE])[INVERSE_GAIN][manifest.depths.index(depth)]
        self.inverse_gains = rows[[manifest.levels16.index(point.level16) for point in self.points]]

    def symbols(self, views: NDArray[np.uint8], level_index: Sequence[int]) -> Tensor:
        """Symbols float (B, C, h, w) of views uint8 (B, 224, 224, 3) BGR."""
        rows = [self._encoder.symbols(view, self.points[index]) for view, index in zip(views, level_index, strict=True)]
        return torch.from_numpy(np.stack(rows).astype(np.float32))

    def mean_bytes(self, views: NDArray[np.uint8], level_index: int) -> float:
        """Mean length of the bitstreams, with their headers."""
        return float(np.mean([len(self._encoder.encode(view, self.points[level_index])) for view in views]))


@dataclass(frozen=True, slots=True)
class Step:
    """How one step of training went.

    Attributes:
        error: mean absolute error, in steps of 255.
    """

    number: int
    seen: int
    error: float


def train_inverter(
    listener: Listener,
    pictures: Sequence[NDArray[np.uint8]],
    side_px: int,
    progress: Callable[[int], float],
    step_done: Callable[[Step], None],
    should_stop: Callable[[], bool],
) -> Inverter:
    """Learn to draw pictures from their symbols: L1, AdamW, a cosine over the run.

    Args:
        pictures: uint8 (H, W, 3) BGR; each is seen as a whole view, mirrored or not, at a level drawn anew.
        side_px: short side at which they are looked at (`use_views`).
        progress: share of the run that is done when so many pictures were seen.
        step_done: told each step.
        should_stop: asked before each step.
    """
    torch.manual_seed(SEED)
    random = np.random.default_rng(SEED)
    inverter: Inverter = Inverter(listener.inverse_gains, listener.block_side)
    inverter = inverter.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimiser = torch.optim.AdamW(inverter.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.0)
    number = seen = 0
    while (share := progress(seen)) < 1 and not should_stop():
        cosine = FINAL_SHARE + (1 - FINAL_SHARE) * (1 + math.cos(math.pi * share)) / 2
        for group in optimiser.param_groups:
            group["lr"] = LEARNING_RATE * min(1.0, (number + 1) / WARM_UP_STEPS) * cosine
        chosen = [pictures[index] for index in random.integers(len(pictures), size=BATCH)]
        views = use_views(chosen, side_px=side_px)
        is_mirrored = random.random(BATCH) < 0.5
        views[is_mirrored] = views[is_mirrored, :, ::-1]
        level_index = random.integers(len(listener.points), size=BATCH)
        symbols = listener.symbols(views, level_index.tolist())
        target = to_network(views)
        with torch.autocast("cpu", torch.bfloat16):
            drawn = inverter(symbols, torch.from_numpy(level_index))
        loss = (drawn - target).abs().mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(inverter.parameters(), CLIP_NORM)
        optimiser.step()
        number, seen = number + 1, seen + BATCH
        step_done(Step(number, seen, INPUT_SCALE * float(loss.detach())))
    return inverter.eval()


@torch.no_grad()
def invert(inverter: Inverter, listener: Listener, views: NDArray[np.uint8], level_index: int) -> NDArray[np.uint8]:
    """Pictures uint8 (N, 224, 224, 3) BGR as an inverter draws them from the symbols of views."""
    drawn = []
    for start in range(0, len(views), BATCH):
        batch = views[start : start + BATCH]
        places = [level_index] * len(batch)
        drawn.append(inverter(listener.symbols(batch, places), torch.tensor(places)))
    pixels = torch.cat(drawn) * INPUT_SCALE + INPUT_MEAN
    rgb = pixels.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return np.ascontiguousarray(rgb[:, :, :, ::-1])


def to_network(views: NDArray[np.uint8]) -> Tensor:
    """Normalised RGB (B, 3, 224, 224) of views (B, 224, 224, 3) BGR."""
    rgb = torch.from_numpy(np.ascontiguousarray(views[:, :, :, ::-1])).permute(0, 3, 1, 2)
    return (rgb.to(torch.float32) - INPUT_MEAN) / INPUT_SCALE
