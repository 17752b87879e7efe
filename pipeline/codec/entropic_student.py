"""The Entropic Student's bottleneck, the paper's baseline; ablation A trains the same network in one stage.

    x (3 x 224 x 224) -> g_a -> z (24 x 55 x 55) -> symbols -> z_hat -> g_s -> features (256 x 56 x 56)

Letters: x normalised RGB picture, g_a encoder, z latent, z_hat latent after rounding, g_s decoder.

Source: Matsubara, Yang, Levorato and Mandt, "Supervised Compression for Resource-Constrained Edge Computing
Systems" (WACV 2022); GDN1 is the simplified form of Johnston, Eban, Gordon and Balle (arXiv 1912.08771).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.codec.bounds import lower_bound

REPARAMETRISATION_OFFSET = 2.0**-18
"""A parameter of 0 is stored as this, so that its square root has a finite slope."""
BETA_MINIMUM = 1e-6
GAMMA_INITIAL = 0.1


@dataclass(frozen=True, slots=True)
class DecoderWidths:
    """Hidden widths, in channels, of the decoders that end at a cut; 256 and 512 at ResNet-50's."""

    narrow: int
    wide: int


def decoder_widths(target_channels: int) -> DecoderWidths:
    """The widths for a cut of so many channels: exactly the papers' at 256, with a floor for narrow cuts."""
    return DecoderWidths(max(64, target_channels), max(128, 2 * target_channels))


class GDN1(nn.Module):
    """Simplified generalised divisive normalisation.

    y_i = x_i / (beta_i + sum_j gamma_ij |x_j|); the inverse multiplies instead. beta and gamma never fall
    below their
    minima: what is stored and trained is the square root of the value plus a small offset.

    Args:
        channels: of input and output, both (B, channels, H, W).
        inverse: multiply, as decoders do.
    """

    def __init__(self, channels: int, *, inverse: bool = False) -> None:
        super().__init__()
        self.inverse = inverse
        self.beta = nn.Parameter(_stored(torch.ones(channels)))
        self.gamma = nn.Parameter(_stored(GAMMA_INITIAL * torch.eye(channels)))

    def forward(self, x: Tensor) -> Tensor:
        channels = self.beta.shape[0]
        gamma = _value(self.gamma, minimum=0.0).reshape(channels, channels, 1, 1)
        norm = F.conv2d(x.abs(), gamma, _value(self.beta, BETA_MINIMUM))
        return x * norm if self.inverse else x / norm


def _stored(value: Tensor) -> Tensor:
    return torch.sqrt(value + REPARAMETRISATION_OFFSET**2)


def _value(stored: Tensor, minimum: float) -> Tensor:
    offset = REPARAMETRISATION_OFFSET**2
    return lower_bound(stored, (minimum + offset) ** 0.5) ** 2 - offset


class EntropicStudentEncoder(nn.Module):
    """Three convolutions without bias and two GDN1: normalised RGB (B, 3, H, W) to latent (B, 24, H/4 - 1,
    W/4 - 1).

        x 3 x 224 x 224 -> conv k5 s2 -> 96 x 112 x 112 -> GDN1 -> conv k5 s2 -> 48 x 56 x 56 -> GDN1
          -> conv k2 -> z 24 x 55 x 55

    Its first convolution pads with zeros, which stand for the mean colour: normalisation does not fold into
    it.
    """

    def __init__(self, latent_channels: int = 24) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 4 * latent_channels, 5, 2, padding=2, bias=False),
            GDN1(4 * latent_channels),
            nn.Conv2d(4 * latent_channels, 2 * latent_channels, 5, 2, padding=2, bias=False),
            GDN1(2 * latent_channels),
        )
        self.head = nn.Conv2d(2 * latent_channels, latent_channels, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        latent: Tensor = self.head(self.layers(x))
        return latent


class EntropicStudentDecoder(nn.Module):
    """Three convolutions without bias and two inverse GDN1: latent (B, 24, h, w) to features (B, C, h + 1, w
    + 1).

        z_hat 24 x 55 x 55 -> conv k2 p1 -> 512 x 56 x 56 -> inverse GDN1 -> conv k2 -> 256 x 55 x 55
          -> inverse GDN1 -> conv k2 p1 -> features 256 x 56 x 56

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
            nn.Conv2d(latent_channels, widths.wide, 2, padding=1, bias=False),
            GDN1(widths.wide, inverse=True),
            nn.Conv2d(widths.wide, widths.narrow, 2, bias=False),
            GDN1(widths.narrow, inverse=True),
            nn.Conv2d(widths.narrow, target_channels, 2, padding=1, bias=False),
        )

    def forward(self, latent: Tensor) -> Tensor:
        features: Tensor = self.layers(latent)
        return features
