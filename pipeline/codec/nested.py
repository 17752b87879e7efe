"""Our codec: one set of weights for every encoder depth and every rate.

    x -> patch embedding -> block 1 .. block d -> exit d -> DCT of blocks -> y -> * gain(level) -> round -> symbols
    symbols -> * inverse gain(depth, level) -> inverse DCT -> decoder (+ condition(depth, level)) -> features at the cut

Letters: B batch, C channels of the latent y, h and w its sides, E exits, L whole rate levels. Depth d runs the first d
blocks of the same weights. A level is a number in [0, L - 1]; between two whole levels gains, inverse gains and scales
of the prior are interpolated geometrically (Cui et al., arXiv 2003.02012), the decoder's condition linearly.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LATENT_STRIDE = 8
"""Pixels of the view a position of the latent, along either axis."""
PAPER_UPSCALING = 2
"""Of the paper's decoder, by its first layer."""
MIN_LOG_SCALE = -4.0
"""A channel that narrow is always zero; narrower ones only make gradients of 1 / scale."""
INITIAL_STANDARD_DEVIATION = 2.0
"""Of the scaled latent at level 0: against rounding noise of +-0.5 a smaller one teaches nothing at first."""
NEGATIVE_SLOPE = 0.1
"""Of `leaky_relu`."""
INITIAL_LEVEL_RATIO = 1.5
"""Between the gains of neighbouring levels before training."""


@dataclass(frozen=True, slots=True)
class NestedShape:
    """Sizes of a nested codec; everything that is needed to build it again.

    Attributes:
        cut_channels / cut_stride: of the features that the decoder rebuilds; the stride divides 8.
        depths: exits, rising, the first one 0.
        levels: number of whole rate levels, at least 2.
        activation: of the blocks; behind a `relu` a hidden channel that no picture makes fire never learns again.
        channels / expansion / kernel: width, inner widening and depthwise kernel of the encoder's blocks.
        latent_channels: channels of the exits, at stride 8.
        block_side: side of the blocks of positions that the DCT turns into as many channels again, 1: none. Neighbours
            are alike, and a step that most values round to zero loses what they have in common; a coefficient keeps it.
        decoder_channels / decoder_blocks / decoder_expansion / decoder_kernel: the same for the decoder.
        decoder: `light`, or the layers of the `paper`'s, with decoder_channels and twice as many between them.
    """

    cut_channels: int = 3
    cut_stride: int = 1
    depths: tuple[int, ...] = (0, 1, 2, 4, 8)
    levels: int = 5
    activation: Literal["relu", "leaky_relu"] = "relu"
    channels: int = 64
    expansion: int = 3
    kernel: int = 5
    latent_channels: int = 48
    block_side: int = 1
    decoder_channels: int = 96
    decoder_blocks: int = 3
    decoder_expansion: int = 2
    decoder_kernel: int = 5
    decoder: Literal["light", "paper"] = "light"

    @property
    def symbol_channels(self) -> int:
        """C."""
        return self.latent_channels * self.block_side**2

    @property
    def symbol_stride(self) -> int:
        """Pixels of the view a position of the symbols, along either axis."""
        return LATENT_STRIDE * self.block_side


class Block(nn.Module):
    """x + project(activation(expand(depthwise(x)))): no normalisation, so nothing to fold and nothing to drift."""

    def __init__(self, channels: int, expansion: int, kernel: int, activation: str = "relu") -> None:
        super().__init__()
        self.negative_slope = {"relu": 0.0, "leaky_relu": NEGATIVE_SLOPE}[activation]
        self.depthwise = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels)
        self.expand = nn.Conv2d(channels, channels * expansion, 1)
        self.project = nn.Conv2d(channels * expansion, channels, 1)
        nn.init.zeros_(self.project.bias)  # type: ignore[arg-type]
        with torch.no_grad():
            self.project.weight.mul_(0.5)  # a deep stack starts close to the identity

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu":  # where the gradient of depthwise weights is five times slower in bf16 (torch 2.13)
            with _full_precision(x):
                y = self.depthwise(x.float())
        else:
            y = self.depthwise(x)
        y = self.expand(y)
        residual: Tensor = self.project(F.leaky_relu(y, self.negative_slope) if self.negative_slope else F.relu(y))
        return x + residual


class BlockTransform(nn.Module):
    """Orthonormal DCT-II of blocks of side x side positions, each channel on its own; nothing in it is learned.

    Channel c of the input becomes channels c * side^2 to c * side^2 + side^2 - 1, vertical frequencies first.
    """

    basis: Tensor
    kernel: Tensor

    def __init__(self, side: int, channels: int) -> None:
        super().__init__()
        self.side, self.channels = side, channels
        # On the CPU also where weights are to be laid in afterwards and the rest is built without memory.
        position = torch.arange(side, dtype=torch.float64, device="cpu")
        rows = torch.cos(math.pi / side * (position + 0.5) * position[:, None]) * math.sqrt(2 / side)
        rows[0] /= math.sqrt(2)
        basis = torch.einsum("ui,vj->uvij", rows, rows).reshape(side**2, side**2).float()
        self.register_buffer("basis", basis, persistent=False)
        self.register_buffer("kernel", basis.reshape(-1, 1, side, side).repeat(channels, 1, 1, 1), persistent=False)

    def forward(self, y: Tensor) -> Tensor:
        """Coefficients (B, channels * side^2, H / side, W / side) of float (B, channels, H, W)."""
        if self.side == 1:
            return y
        with _full_precision(y):
            return F.conv2d(y.float(), self.kernel, stride=self.side, groups=self.channels)

    def inverse(self, y: Tensor) -> Tensor:
        """The positions of coefficients; `forward` turned round."""
        if self.side == 1:
            return y
        batch, _, height, width = y.shape
        # A transposed convolution would say the same, and take the cloud 1.3 ms a frame (OpenVINO 2026.4).
        with _full_precision(y):
            blocks = self.basis.T @ y.float().reshape(batch, self.channels, self.side**2, height * width)
        blocks = blocks.reshape(batch, self.channels, self.side, self.side, height, width).permute(0, 1, 4, 2, 5, 3)
        return blocks.reshape(batch, self.channels, height * self.side, width * self.side)


class NestedEncoder(nn.Module):
    """Patch embedding, blocks and one exit a depth.

    Input: normalised RGB (B, 3, H, W), H and W multiples of `NestedShape.symbol_stride`.
    """

    def __init__(self, shape: NestedShape) -> None:
        super().__init__()
        self.depths = shape.depths
        self.patch = nn.Conv2d(3, shape.channels, 8, 8)
        self.blocks = nn.ModuleList(
            Block(shape.channels, shape.expansion, shape.kernel, shape.activation) for _ in range(max(shape.depths))
        )
        self.exits = nn.ModuleDict({str(depth): self._build_exit(shape, depth) for depth in shape.depths})
        self.transform = BlockTransform(shape.block_side, shape.latent_channels)

    @staticmethod
    def _build_exit(shape: NestedShape, depth: int) -> nn.Module:
        if depth == 0:  # a small perceptron stands in for the non-linearity that depth 0 has no block for
            return nn.Sequential(
                nn.Conv2d(shape.channels, 2 * shape.channels, 1),
                nn.ReLU(),
                nn.Conv2d(2 * shape.channels, shape.latent_channels, 1),
            )
        return nn.Conv2d(shape.channels, shape.latent_channels, 1)

    def forward(self, x: Tensor, depth: int) -> Tensor:
        """Latent (B, C, h, w) of one depth, before the gain."""
        y = self.patch(x)
        for block in self.blocks[:depth]:
            y = block(y)
        latent: Tensor = self.transform(self.exits[str(depth)](y))
        return latent

    def latents(self, x: Tensor) -> list[Tensor]:
        """Latents of every exit in the order of `depths`, from one pass."""
        latents = []
        y = self.patch(x)
        for depth in range(max(self.depths) + 1):
            if depth > 0:
                y = self.blocks[depth - 1](y)
            if depth in self.depths:
                latents.append(self.transform(self.exits[str(depth)](y)))
        return latents

    def mixed_latents(self, x: Tensor, exit_index: Tensor) -> Tensor:
        """Latent of each picture's own exit, in one pass that no picture goes deeper than its exit.

        Args:
            exit_index: places in `depths` (B,) int64, falling, so that the pictures that go on are the first ones; on
                the CPU, where nobody waits for a GPU to say how many they are.
        """
        left_at = [int((exit_index > index).sum()) for index in range(len(self.depths))]
        latents = []
        y = self.patch(x)
        for depth in range(max(self.depths) + 1):
            if depth > 0:
                y = self.blocks[depth - 1](y)
            if depth in self.depths:
                left = left_at[self.depths.index(depth)]
                # An exit that nobody takes is run on nothing: its gradient is zero and not absent.
                latents.append(self.exits[str(depth)](y[left:]))
                y = y[:left]
        latent: Tensor = self.transform(torch.cat(latents[::-1]))
        return latent


class NestedDecoder(nn.Module):
    """One decoder for every depth and level: light, or for comparison with the layers of the paper's.

        light:  1 x 1 -> + condition -> blocks -> 1 x 1 -> pixel shuffle to the cut's stride
        paper:  transposed 5 x 5 to stride 4 -> + condition -> 3 x 3 -> 3 x 3 -> 1 x 1, GELU between (`codec.paper`)

    Either begins with the inverse DCT.

    The last step turns standardised features into the classifier's own by a fixed mean and standard deviation for each
    channel, so that the network learns numbers of size one.
    """

    feature_mean: Tensor
    feature_std: Tensor

    def __init__(self, shape: NestedShape) -> None:
        super().__init__()
        width, wide = shape.decoder_channels, 2 * shape.decoder_channels
        self.upscaling = LATENT_STRIDE // shape.cut_stride
        self.enter: nn.Conv2d | nn.ConvTranspose2d
        if shape.decoder == "paper":
            if self.upscaling != PAPER_UPSCALING:
                raise ValueError("the paper's decoder ends at stride 4")
            self.enter = nn.ConvTranspose2d(shape.latent_channels, width, 5, 2, padding=2, output_padding=1)
            layers = [nn.GELU(), nn.Conv2d(width, wide, 3, padding=1)]
            layers += [nn.GELU(), nn.Conv2d(wide, width, 3, padding=1), nn.GELU()]
            self.blocks, self.upscaling = nn.Sequential(*layers), 1
        else:
            self.enter = nn.Conv2d(shape.latent_channels, width, 1)
            self.blocks = nn.Sequential(
                *(
                    Block(width, shape.decoder_expansion, shape.decoder_kernel, shape.activation)
                    for _ in range(shape.decoder_blocks)
                )
            )
        self.transform = BlockTransform(shape.block_side, shape.latent_channels)
        self.leave = nn.Conv2d(width, shape.cut_channels * self.upscaling**2, 1)
        self.register_buffer("feature_mean", torch.zeros(shape.cut_channels))
        self.register_buffer("feature_std", torch.ones(shape.cut_channels))

    def standardised(self, latent: Tensor, condition: Tensor) -> Tensor:
        """Features with mean 0 and standard deviation 1 a channel; what the training loss compares."""
        y = self.enter(self.transform.inverse(latent)) + condition[:, :, None, None]
        return F.pixel_shuffle(self.leave(self.blocks(y)), self.upscaling)

    def forward(self, symbols: Tensor, inverse_gain: Tensor, condition: Tensor) -> Tensor:
        """Features at the cut.

        Args:
            symbols: float (B, C, H, W), whole numbers.
            inverse_gain: (B, C), one vector a frame.
            condition: (B, decoder channels), one vector a frame.
        """
        y = self.standardised(symbols * inverse_gain[:, :, None, None], condition)
        return y * self.feature_std[:, None, None] + self.feature_mean[:, None, None]


class NestedCodec(nn.Module):
    """Encoder, decoder, gains and prior of one bundle.

    The prior is a Laplace distribution with a mean and a scale for each (depth, level, channel), in units of one
    symbol. It serves training only; the bundle's integer tables are fitted to the symbols themselves.
    """

    def __init__(self, shape: NestedShape) -> None:
        super().__init__()
        self.shape = shape
        self.encoder = NestedEncoder(shape)
        self.decoder = NestedDecoder(shape)
        num_exits, levels, channels = len(shape.depths), shape.levels, shape.symbol_channels
        ratio = torch.log(torch.tensor(INITIAL_LEVEL_RATIO)) * torch.arange(levels, dtype=torch.float32)
        self.log_gain = nn.Parameter(ratio[:, None].repeat(1, channels))
        self.log_inverse_gain = nn.Parameter(-ratio[None, :, None].repeat(num_exits, 1, channels))
        self.log_scale = nn.Parameter(ratio[None, :, None].repeat(num_exits, 1, channels))
        self.mean = nn.Parameter(torch.zeros(num_exits, levels, channels))
        self.condition = nn.Parameter(torch.zeros(num_exits, levels, shape.decoder_channels))

    @torch.no_grad()
    def fit_initial_gain(self, x: Tensor) -> None:
        """Scale the gains so that the latent of the given pictures starts with `INITIAL_STANDARD_DEVIATION`."""
        latents = self.encoder.latents(x)
        spread = torch.stack([latent.float().std(dim=(0, 2, 3)) for latent in latents]).mean(dim=0)
        log_gain = torch.log(INITIAL_STANDARD_DEVIATION / spread.clamp_min(1e-6))
        self.log_gain.add_(log_gain)
        self.log_inverse_gain.sub_(log_gain)
        for index, latent in enumerate(latents):
            scaled = latent.float() * torch.exp(log_gain)[:, None, None]
            self.log_scale[index] += torch.log(scaled.std(dim=(0, 2, 3)).clamp_min(0.1) / 2**0.5)

    def gain(self, level: Tensor) -> Tensor:
        """Gain (B, C) of fractional levels (B,)."""
        return torch.exp(interpolate(self.log_gain, level))

    def decoder_inputs(self, exit_index: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
        """Inverse gain (B, C) and condition (B, decoder channels) of exits (B,) int64 and levels (B,)."""
        inverse_gain = torch.exp(interpolate_rows(self.log_inverse_gain, exit_index, level))
        return inverse_gain, interpolate_rows(self.condition, exit_index, level)

    def bits(self, scaled: Tensor, exit_index: Tensor, level: Tensor) -> Tensor:
        """Code length (B,) in bits under the prior of scaled latents (B, C, H, W) with noise or rounding on them."""
        mean = interpolate_rows(self.mean, exit_index, level)[:, :, None, None]
        log_scale = interpolate_rows(self.log_scale, exit_index, level).clamp_min(MIN_LOG_SCALE)
        scale = torch.exp(log_scale)[:, :, None, None]
        distance = (scaled.float() - mean).abs()
        return -laplace_log_mass(distance, scale).sum(dim=(1, 2, 3)) / math.log(2)


def _full_precision(x: Tensor) -> AbstractContextManager[object]:
    """Without autocast, where there is one; the meta device, on which layers are counted, has none."""
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()


def laplace_log_mass(distance: Tensor, scale: Tensor) -> Tensor:
    """Natural logarithm of a Laplace distribution's mass on an interval of length 1, `distance` >= 0 from its mean.

    Exact however far out: a floor under the mass would leave the symbols that cost most without a gradient, and the
    rate would run away. Written with exponentials of non-positive numbers only, so that none overflows or cancels.
    """
    near = distance.clamp_max(0.5)
    inside = -0.5 * (torch.expm1(-(0.5 - near) / scale) + torch.expm1(-(0.5 + near) / scale))
    outside = -(distance - 0.5).clamp_min(0) / scale + torch.log(-0.5 * torch.expm1(-1 / scale))
    return torch.where(distance < 0.5, torch.log(inside), outside)


def interpolate(rows: Tensor, level: Tensor) -> Tensor:
    """Linear interpolation in rows (L, C) at fractional levels (B,) -> (B, C)."""
    low = level.floor().clamp(0, rows.shape[0] - 2).long()
    share = (level - low)[:, None]
    return rows[low] * (1 - share) + rows[low + 1] * share


def interpolate_rows(rows: Tensor, exit_index: Tensor, level: Tensor) -> Tensor:
    """As `interpolate`, in rows (E, L, C), each frame with its own exit (B,)."""
    low = level.floor().clamp(0, rows.shape[1] - 2).long()
    share = (level - low)[:, None]
    return rows[exit_index, low] * (1 - share) + rows[exit_index, low + 1] * share
