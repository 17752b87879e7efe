"""The paper's networks, rebuilt exactly: encoder of any depth N, decoder, ablations A, B and C.

    x -> encoder -> z -> quantize -> symbols  |  symbols + median = z_hat -> decoder -> features at the cut

Source: Duan and Zhu, "Efficient Feature Compression for Edge-Cloud Systems" (PCS 2022). Ablation A is the
Entropic Student's network trained in one stage, B ("4x") works at stride 4 without GDN, C is the paper's own
encoder at N = 4.
Letters: x normalised RGB picture, z latent, z_hat latent after rounding, N depth, B batch, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from pipeline.codec.entropic_student import (
    DecoderWidths,
    EntropicStudentDecoder,
    EntropicStudentEncoder,
    decoder_widths,
)
from pipeline.codec.prior import FactorisedPrior, QuantizeMode

INITIAL_STANDARD_DEVIATION = 2.0
"""Of the latent, where asked for: against rounding noise of +-0.5 a smaller one teaches nothing at first."""


class ResBlock(nn.Module):
    """x + conv2(gelu(conv1(gelu(x)))), both convolutions 3x3 with bias, half the width between them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels // 2, 3, padding=1)
        self.conv2 = nn.Conv2d(channels // 2, channels, 3, padding=1)
        self.gelu = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.conv2(self.gelu(self.conv1(self.gelu(x))))
        return y


class PaperEncoder(nn.Module):
    """Patch embedding, N blocks, 1x1 head; normalised RGB (B, 3, H, W) to latent (B, 64, H/8, W/8).

        x 3 x 224 x 224 -> conv k8 s8 -> 128 x 28 x 28 -> N x ResBlock -> conv k1 -> z 64 x 28 x 28

    N = 0 is not the prefix of a deeper encoder: it has one GELU in place of the blocks, which no other depth
    has.

    Args:
        depth: N, number of blocks.
        hidden: width of the blocks.
        latent_channels: of the latent.
        patch_px: kernel and stride of the patch embedding; H and W are multiples of it.

    Raises:
        ValueError: negative depth.
    """

    def __init__(self, depth: int, *, hidden: int = 128, latent_channels: int = 64, patch_px: int = 8) -> None:
        super().__init__()
        if depth < 0:
            raise ValueError(f"depth {depth} is negative")
        self.patch = nn.Conv2d(3, hidden, patch_px, patch_px)
        blocks: list[nn.Module] = [ResBlock(hidden) for _ in range(depth)]
        self.blocks = nn.Sequential(*(blocks or [nn.GELU()]))
        self.head = nn.Conv2d(hidden, latent_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        latent: Tensor = self.head(self.blocks(self.patch(x)))
        return latent


class PaperDecoder(nn.Module):
    """The same for every N: latent (B, 64, h, w) to features (B, C, 2h, 2w).

        z_hat 64 x 28 x 28 -> transposed conv k5 s2 -> 256 x 56 x 56 -> GELU -> conv k3 -> 512 -> GELU
          -> conv k3 -> 256 -> GELU -> conv k1 -> features 256 x 56 x 56

    Linear at its end, although the features are behind a ReLU: so in the paper.

    Args:
        target_channels: C, channels of the features at the cut.
        widths: hidden widths, by `decoder_widths` unless given.
    """

    def __init__(
        self, target_channels: int = 256, *, widths: DecoderWidths | None = None, latent_channels: int = 64
    ) -> None:
        super().__init__()
        widths = widths or decoder_widths(target_channels)
        self.layers = nn.Sequential(
            nn.ConvTranspose2d(latent_channels, widths.narrow, 5, 2, padding=2, output_padding=1),
            nn.GELU(),
            nn.Conv2d(widths.narrow, widths.wide, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(widths.wide, widths.narrow, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(widths.narrow, target_channels, 1),
        )

    def forward(self, latent: Tensor) -> Tensor:
        features: Tensor = self.layers(latent)
        return features


class AblationBEncoder(PaperEncoder):
    """Ablation B ("4x"): the paper's encoder at stride 4 and three blocks of 72 channels.

    x 3 x 224 x 224 -> conv k4 s4 -> 72 x 56 x 56 -> 3 x ResBlock -> conv k1 -> z 24 x 56 x 56
    """

    def __init__(self) -> None:
        super().__init__(3, hidden=72, latent_channels=24, patch_px=4)


class AblationBDecoder(nn.Module):
    """Ablation B ("4x"): latent (B, 24, h, w) to features (B, C, h, w), nothing to upsample.

        z_hat 24 x 56 x 56 -> conv k3 -> 512 -> GELU -> conv k3 -> 256 -> GELU
          -> conv k1 -> features 256 x 56 x 56

    Args:
        target_channels: C, channels of the features at the cut.
        widths: hidden widths, by `decoder_widths` unless given.
    """

    def __init__(
        self, target_channels: int = 256, *, widths: DecoderWidths | None = None, latent_channels: int = 24
    ) -> None:
        super().__init__()
        widths = widths or decoder_widths(target_channels)
        self.layers = nn.Sequential(
            nn.Conv2d(latent_channels, widths.wide, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(widths.wide, widths.narrow, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(widths.narrow, target_channels, 1),
        )

    def forward(self, latent: Tensor) -> Tensor:
        features: Tensor = self.layers(latent)
        return features


PaperNetwork = Literal["paper", "entropic_student", "ablation_a", "ablation_b", "ablation_c"]


@dataclass(frozen=True, slots=True)
class PaperShape:
    """Everything that is needed to build a codec of the paper's family again.

    Attributes:
        network: `ablation_a` is built as `entropic_student` and `ablation_c` as `paper` at depth 4; what sets
            them apart is their training.
        depth: N of `paper`; no other network reads it.
        cut_channels: channels of the features that the decoder rebuilds, at stride 4.
    """

    network: PaperNetwork = "paper"
    depth: int = 4
    cut_channels: int = 256


class PaperEdge(nn.Module):
    """The node's half: normalised RGB (B, 3, H, W) to `scaled`, the latent that rounds to symbols."""

    median: Tensor

    def __init__(self, encoder: nn.Module, median: Tensor) -> None:
        super().__init__()
        self.encoder = encoder
        self.register_buffer("median", median.clone())

    def forward(self, x: Tensor) -> Tensor:
        scaled: Tensor = self.encoder(x) - self.median[:, None, None]
        return scaled


class PaperCloud(nn.Module):
    """The cloud's half: symbols (B, C, H, W), of any type, to features at the cut."""

    median: Tensor
    feature_mean: Tensor
    feature_std: Tensor

    def __init__(self, decoder: nn.Module, median: Tensor, feature_mean: Tensor, feature_std: Tensor) -> None:
        super().__init__()
        self.decoder = decoder
        self.register_buffer("median", median.clone())
        self.register_buffer("feature_mean", feature_mean.clone())
        self.register_buffer("feature_std", feature_std.clone())

    def forward(self, symbols: Tensor) -> Tensor:
        standardised = self.decoder(symbols.to(self.median.dtype) + self.median[:, None, None])
        features: Tensor = standardised * self.feature_std[:, None, None] + self.feature_mean[:, None, None]
        return features


class PaperCodec(nn.Module):
    """Encoder, prior and decoder of one operating point: one rate and one complexity, as in the paper.

        x -> encoder -> z -> prior.quantize -> z_hat -> decoder -> * std + mean -> features

    `feature_mean` and `feature_std` (0 and 1, the paper's case, unless set) let the decoder learn numbers of
    size one; they are fixed and no parameters.
    """

    feature_mean: Tensor
    feature_std: Tensor

    def __init__(self, encoder: nn.Module, decoder: nn.Module, prior: FactorisedPrior, cut_channels: int) -> None:
        super().__init__()
        self.encoder, self.decoder, self.prior = encoder, decoder, prior
        self.register_buffer("feature_mean", torch.zeros(cut_channels))
        self.register_buffer("feature_std", torch.ones(cut_channels))

    def forward(self, x: Tensor, mode: QuantizeMode = "noise") -> tuple[Tensor, Tensor]:
        """Features at the cut and the code length (B,) in bits of normalised pictures (B, 3, H, W).

        Args:
            mode: `noise`, as the paper trains, or `straight_through`, whose numbers are those of real
            symbols.

        Raises:
            ValueError: `symbols`, which have no gradient; `edge()` and `cloud()` are there for coding.
        """
        if mode == "symbols":
            raise ValueError("mode symbols is for coding: use edge() and cloud()")
        z_hat = self.prior.quantize(self.encoder(x).float(), mode)
        return self.features(z_hat), self.prior.bits(z_hat)

    def features(self, z_hat: Tensor) -> Tensor:
        """Features at the cut from a quantised or noisy latent."""
        standardised = self.decoder(z_hat)
        features: Tensor = standardised * self.feature_std[:, None, None] + self.feature_mean[:, None, None]
        return features

    def edge(self) -> PaperEdge:
        """The node's half, sharing this codec's encoder; the medians are those of this moment."""
        return PaperEdge(self.encoder, self.prior.medians)

    def cloud(self) -> PaperCloud:
        """The cloud's half, sharing this codec's decoder; the medians are those of this moment."""
        return PaperCloud(self.decoder, self.prior.medians, self.feature_mean, self.feature_std)

    @torch.no_grad()
    def fit_initial_scale(self, x: Tensor) -> None:
        """Scale the head: each latent channel of these pictures starts at mean 0 and deviation 2."""
        latent = self.encoder(x).float()
        head = self.encoder.head
        assert isinstance(head, nn.Conv2d)
        scale = INITIAL_STANDARD_DEVIATION / latent.std(dim=(0, 2, 3)).clamp_min(1e-6)
        head.weight.mul_(scale[:, None, None, None])
        if head.bias is not None:  # the Entropic Student's head has none, its means stay where they are
            head.bias.copy_((head.bias - latent.mean(dim=(0, 2, 3))) * scale)


def build_paper_codec(shape: PaperShape) -> PaperCodec:
    """An untrained codec of the paper's family.

    Raises:
        ValueError: unknown network.
    """
    encoder: nn.Module
    decoder: nn.Module
    if shape.network in ("paper", "ablation_c"):
        encoder = PaperEncoder(shape.depth if shape.network == "paper" else 4)
        decoder, latent_channels = PaperDecoder(shape.cut_channels), 64
    elif shape.network in ("entropic_student", "ablation_a"):
        encoder, latent_channels = EntropicStudentEncoder(), 24
        decoder = EntropicStudentDecoder(shape.cut_channels)
    elif shape.network == "ablation_b":
        encoder, decoder, latent_channels = AblationBEncoder(), AblationBDecoder(shape.cut_channels), 24
    else:
        raise ValueError(f"unknown network {shape.network!r} of the paper's family")
    return PaperCodec(encoder, decoder, FactorisedPrior(latent_channels), shape.cut_channels)


def fold_normalisation(
    patch: nn.Conv2d, mean: Sequence[float], std: Sequence[float], *, reverse_channels: bool = False
) -> nn.Conv2d:
    """A convolution on raw pixels that equals `patch` on (pixels - mean) / std.

    w' = w / std and b' = b - sum(w * mean / std), computed in float64.

    Args:
        patch: convolution without padding, left as it is.
        mean / std: for each of its input channels, on the scale of the raw pixels.
        reverse_channels: the raw pixels are BGR where `patch` takes RGB.

    Raises:
        ValueError: `patch` pads: its zeros stand for the mean colour, which raw pixels cannot say.
    """
    if patch.padding not in ((0, 0), "valid"):
        raise ValueError("normalisation does not fold into a padded convolution")
    weight = patch.weight.detach().double()
    means = torch.tensor(mean, dtype=torch.float64, device=weight.device)[None, :, None, None]
    weight = weight / torch.tensor(std, dtype=torch.float64, device=weight.device)[None, :, None, None]
    shift = (weight * means).sum(dim=(1, 2, 3))
    bias = patch.bias.detach().double() if patch.bias is not None else torch.zeros_like(shift)
    if reverse_channels:
        weight = weight.flip(1)
    kernel, stride = patch.kernel_size, patch.stride
    folded = nn.Conv2d(patch.in_channels, patch.out_channels, (kernel[0], kernel[1]), (stride[0], stride[1]))
    folded = folded.to(patch.weight.device)
    with torch.no_grad():
        folded.weight.copy_(weight)
        assert folded.bias is not None
        folded.bias.copy_(bias - shift)
    return folded
