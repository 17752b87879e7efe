"""A start from principal components: a transform codec before the first step."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pipeline.codec.nested import NestedCodec, NestedShape
from pipeline.codec.principal_start import principal_components, start_from_principal_components

SHAPE = NestedShape(
    depths=(0, 1, 2), levels=3, channels=192, latent_channels=192, decoder_channels=192, decoder_blocks=1
)


@pytest.fixture(scope="module")
def pictures() -> Tensor:
    """Smooth random pictures, so that few components hold most of them."""
    noise = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    return torch.nn.functional.interpolate(noise, scale_factor=8, mode="bicubic")


@pytest.fixture(scope="module")
def codec(pictures: Tensor) -> NestedCodec:
    torch.manual_seed(1)
    codec = NestedCodec(SHAPE).requires_grad_(False)
    codec.decoder.feature_mean.copy_(torch.tensor([0.1, -0.2, 0.3]))
    codec.decoder.feature_std.copy_(torch.tensor([0.5, 1.0, 2.0]))
    start_from_principal_components(codec, pictures, coarsest_step=0.5, level_ratio=2.0)
    return codec


def decode(codec: NestedCodec, pictures: Tensor, exit_index: int, level: float) -> Tensor:
    exits = torch.full((len(pictures),), exit_index)
    levels = torch.full((len(pictures),), level)
    latent = codec.encoder.latents(pictures)[exit_index]
    symbols = torch.round(latent * codec.gain(levels)[:, :, None, None])
    return codec.decoder(symbols, *codec.decoder_inputs(exits, levels))


def test_components_are_orthonormal_and_fall_in_loudness(pictures: Tensor) -> None:
    _, components, std = principal_components(pictures, 20)
    torch.testing.assert_close(components @ components.T, torch.eye(20), rtol=0, atol=1e-4)
    assert (std.diff() <= 0).all()


def test_every_exit_brings_the_pixels_back_to_within_its_step(codec: NestedCodec, pictures: Tensor) -> None:
    for exit_index in range(3):
        for level, step in ((0.0, 0.5), (1.0, 0.25), (2.0, 0.125)):
            error = decode(codec, pictures, exit_index, level) - pictures
            # Uniform rounding leaves step / sqrt(12) on each component, and the transform keeps lengths.
            assert error.square().mean().sqrt() <= 1.1 * step / 12**0.5


def test_prior_fits_the_latent_it_starts_with(codec: NestedCodec, pictures: Tensor) -> None:
    """Wrong scales would make the rate's gradient the only one that counts at first."""
    exits, levels = torch.zeros(len(pictures), dtype=torch.long), torch.zeros(len(pictures))
    scaled = torch.round(codec.encoder.latents(pictures)[0] * codec.gain(levels)[:, :, None, None])
    best = float(codec.bits(scaled, exits, levels).sum())
    for change in (-1.5, 1.5):
        with torch.no_grad():
            codec.log_scale.add_(change)
            assert float(codec.bits(scaled, exits, levels).sum()) > best
            codec.log_scale.sub_(change)


def test_prior_knows_that_a_blocks_coefficients_are_not_as_wide_as_each_other(pictures: Tensor) -> None:
    shape = NestedShape(depths=(0, 1), levels=2, channels=24, latent_channels=16, block_side=4, decoder_blocks=1)
    codec = NestedCodec(shape).requires_grad_(False)
    start_from_principal_components(codec, pictures, 0.05, 2.0)
    levels = torch.zeros(len(pictures))
    scaled = codec.encoder(pictures, 1) * codec.gain(levels)[:, :, None, None]
    wide = scaled.std(dim=(0, 2, 3)) > 1  # the others start at the smallest scale
    assert wide.sum() > 100
    torch.testing.assert_close(codec.log_scale[1, 0].exp()[wide] * 2**0.5, scaled.std(dim=(0, 2, 3))[wide])
    mean_colour = codec.log_scale[1, 0][:16]
    assert mean_colour[0] - mean_colour[-1] > 0.5


def test_narrow_networks_keep_the_loudest_components(pictures: Tensor) -> None:
    codec = NestedCodec(NestedShape(depths=(0, 1), levels=2, channels=24, latent_channels=16, decoder_blocks=1))
    start_from_principal_components(codec.requires_grad_(False), pictures, 0.05, 2.0)
    error = decode(codec, pictures, 1, 1.0) - pictures
    assert error.square().mean() < 0.1 * pictures.var()


@torch.no_grad()
def test_a_decoder_with_the_papers_layers_hears_every_component_as_loud(pictures: Tensor) -> None:
    """Else it would see the mean colour alone for a third of a short training."""
    sizes = {"depths": (0,), "levels": 2, "channels": 24, "latent_channels": 16, "decoder_channels": 16}
    codec = NestedCodec(NestedShape(cut_channels=24, cut_stride=4, decoder="paper", **sizes))  # type: ignore[arg-type]
    start_from_principal_components(codec, pictures, 0.05, 2.0)
    latent = codec.encoder(pictures, 0)
    spread = latent.std(dim=(0, 2, 3)) * codec.decoder.enter.weight.std(dim=(1, 2, 3))
    assert latent.std(dim=(0, 2, 3)).max() / latent.std(dim=(0, 2, 3)).min() > 5
    assert spread.max() / spread.min() < 3
    assert decode(codec, pictures, 0, 1.0).std() > 0
