"""The nested codec: one set of weights for every depth, levels in between, a prior that is a distribution."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.fft import dctn
from torch import Tensor

from pipeline.codec.counts import count
from pipeline.codec.lite0 import Lite0
from pipeline.codec.nested import (
    INITIAL_STANDARD_DEVIATION,
    BlockTransform,
    NestedCodec,
    NestedDecoder,
    NestedEncoder,
    NestedShape,
    laplace_log_mass,
)
from pipeline.codec.paper import PaperDecoder
from pipeline.training.nested_task import build_codec
from pipeline.training.recipes import load_recipe

DEEP = NestedShape(
    cut_channels=40, cut_stride=8, depths=(0, 1, 2, 4), levels=3, channels=8, expansion=2, kernel=3, latent_channels=5
)
PER_CHANNEL = ("log_gain", "log_inverse_gain", "log_scale", "mean")
RECIPE = Path(__file__).parents[3] / "configs" / "train" / "nested-lite0.yaml"


@pytest.fixture(scope="module")
def encoder() -> NestedEncoder:
    torch.manual_seed(3)
    return NestedEncoder(DEEP).eval().requires_grad_(False)


@pytest.fixture
def codec() -> NestedCodec:
    """With every level and exit different."""
    torch.manual_seed(4)
    codec = NestedCodec(DEEP).requires_grad_(False)
    for parameter in (codec.log_gain, codec.log_inverse_gain, codec.log_scale, codec.mean, codec.condition):
        parameter.add_(torch.randn_like(parameter) * 0.3)
    return codec


def pictures(number: int = 2, side: int = 32) -> Tensor:
    return torch.randn(number, 3, side, side, generator=torch.Generator().manual_seed(9))


# The DCT of blocks


@pytest.mark.parametrize("side", [2, 4])
def test_dct_comes_back_and_keeps_the_energy(side: int) -> None:
    transform = BlockTransform(side, 3)
    y = torch.randn(2, 3, 8, 12, generator=torch.Generator().manual_seed(2))
    coefficients = transform(y)
    assert coefficients.shape == (2, 3 * side**2, 8 // side, 12 // side)
    torch.testing.assert_close(transform.inverse(coefficients), y)
    torch.testing.assert_close(coefficients.square().sum(), y.square().sum())


def test_dct_is_scipys_of_each_block() -> None:
    y = torch.randn(1, 2, 8, 8, generator=torch.Generator().manual_seed(2))
    blocks = y[0].reshape(2, 2, 4, 2, 4).permute(0, 2, 4, 1, 3).numpy()
    expected = dctn(blocks, axes=(1, 2), norm="ortho").reshape(32, 2, 2)
    np.testing.assert_allclose(BlockTransform(4, 2)(y)[0].numpy(), expected, atol=1e-5)


def test_dct_is_in_full_precision_under_autocast() -> None:
    """Rounded to bf16, coefficients of some tens would be off by a tenth of a step."""
    transform = BlockTransform(4, 1)
    y = 100 * torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(transform(y), BlockTransform(4, 1)(y))
        assert transform.inverse(transform(y)).dtype == torch.float32
    torch.testing.assert_close(transform.inverse(transform(y)), y, rtol=1e-5, atol=1e-4)


def test_codec_of_blocks_has_the_coefficients_as_channels() -> None:
    """One pass, each depth alone and pictures of mixed depths give the same; what was not rounded comes back whole."""
    torch.manual_seed(5)
    codec = NestedCodec(replace(DEEP, block_side=4)).requires_grad_(False)
    assert (codec.shape.symbol_channels, codec.shape.symbol_stride) == (80, 32)
    x = pictures(3, 64)
    latents = codec.encoder.latents(x)
    for depth, latent in zip(DEEP.depths, latents, strict=True):
        assert latent.shape == (3, 80, 2, 2)
        torch.testing.assert_close(codec.encoder(x, depth), latent)
    mixed = codec.encoder.mixed_latents(x, torch.tensor([3, 1, 0]))
    torch.testing.assert_close(mixed, torch.stack([latents[3][0], latents[1][1], latents[0][2]]))
    inverse_gain, condition = codec.decoder_inputs(torch.tensor([3] * 3), torch.zeros(3))
    assert inverse_gain.shape == (3, 80)
    plain = NestedCodec(DEEP).requires_grad_(False)
    plain.load_state_dict(codec.state_dict() | {name: plain.state_dict()[name] for name in PER_CHANNEL})
    features = codec.decoder(latents[3], torch.ones(3, 80), condition)
    expected = plain.decoder(plain.encoder(x, 4), torch.ones(3, 5), condition)
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-4)


# One set of weights


def test_one_pass_gives_what_each_depth_gives_alone(encoder: NestedEncoder) -> None:
    """Training and validation use `latents`, nodes run one depth: they must not come apart."""
    x = pictures()
    latents = encoder.latents(x)
    assert len(latents) == len(DEEP.depths)
    for depth, latent in zip(DEEP.depths, latents, strict=True):
        assert latent.shape == (2, 5, 4, 4)
        torch.testing.assert_close(encoder(x, depth), latent)


@pytest.mark.parametrize("exits", [[3, 3, 1, 0, 0], [2, 2, 1, 1, 1], [0] * 5, [3] * 5], ids=str)
def test_mixed_pass_gives_each_picture_its_own_exit(encoder: NestedEncoder, exits: list[int]) -> None:
    x = pictures(5)
    found = encoder.mixed_latents(x, torch.tensor(exits))
    for picture, exit_index, latent in zip(x, exits, found, strict=True):
        torch.testing.assert_close(encoder(picture[None], DEEP.depths[exit_index])[0], latent)


def test_exit_that_no_picture_takes_has_a_gradient_of_zero() -> None:
    """Several GPUs wait for each other's gradients of every weight."""
    encoder = NestedEncoder(DEEP)
    encoder.mixed_latents(pictures(), torch.tensor([1, 0])).sum().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None, name
        goes_deeper = name.startswith(("blocks.1", "blocks.2", "blocks.3", "exits.2", "exits.4"))
        assert bool(parameter.grad.any()) is not goes_deeper or "depthwise" in name, name


@pytest.mark.parametrize("depth", DEEP.depths)
def test_depth_uses_the_first_blocks_and_its_own_exit_alone(encoder: NestedEncoder, depth: int) -> None:
    torch.manual_seed(3)
    other = NestedEncoder(DEEP).eval().requires_grad_(False)
    for index, block in enumerate(other.blocks):
        if index >= depth:
            for parameter in block.parameters():
                parameter.fill_(torch.nan)
    for name, layer in other.exits.items():
        if name != str(depth):
            for parameter in layer.parameters():
                parameter.fill_(torch.nan)
    torch.testing.assert_close(other(pictures(), depth), encoder(pictures(), depth))


def test_every_block_before_an_exit_matters(encoder: NestedEncoder) -> None:
    x = pictures()
    for index in range(4):
        torch.manual_seed(3)
        other = NestedEncoder(DEEP).eval().requires_grad_(False)
        for parameter in other.blocks[index].parameters():
            parameter.mul_(1.5)
        assert not torch.allclose(other(x, 4), encoder(x, 4), atol=1e-4)


# Levels


def test_gain_between_two_levels_is_their_geometric_mean(codec: NestedCodec) -> None:
    low, middle, high = codec.gain(torch.tensor([1.0, 1.5, 2.0]))
    torch.testing.assert_close(middle, (low * high).sqrt())
    quarter = codec.gain(torch.tensor([0.25]))[0]
    ends = codec.gain(torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(quarter, ends[0] ** 0.75 * ends[1] ** 0.25)


def test_decoder_inputs_follow_exit_and_level_of_each_frame(codec: NestedCodec) -> None:
    exits, levels = torch.tensor([0, 3, 3]), torch.tensor([2.0, 0.5, 1.0])
    inverse_gain, condition = codec.decoder_inputs(exits, levels)
    torch.testing.assert_close(inverse_gain[0], codec.log_inverse_gain[0, 2].exp())
    torch.testing.assert_close(inverse_gain[1], codec.log_inverse_gain[3, :2].mean(dim=0).exp())
    torch.testing.assert_close(condition[1], codec.condition[3, :2].mean(dim=0))
    torch.testing.assert_close(condition[2], codec.condition[3, 1])


def test_scale_between_two_levels_is_their_geometric_mean(codec: NestedCodec) -> None:
    codec.mean.zero_()
    other = NestedCodec(DEEP).requires_grad_(False)
    other.mean.zero_()
    other.log_scale.copy_(codec.log_scale[:, :2].mean(dim=1, keepdim=True).expand_as(codec.log_scale))
    scaled, exits = torch.randn(1, 5, 4, 4), torch.tensor([2])
    torch.testing.assert_close(
        codec.bits(scaled, exits, torch.tensor([0.5])), other.bits(scaled, exits, torch.tensor([0.5]))
    )


def test_initial_gain_lifts_the_latent_above_the_rounding_noise(encoder: NestedEncoder) -> None:
    codec = NestedCodec(DEEP)
    codec.fit_initial_gain(pictures(8))
    latents = torch.stack(codec.encoder.latents(pictures(8))) * codec.gain(torch.zeros(1))[0][:, None, None]
    spread = latents.std(dim=(1, 3, 4)).mean(dim=0)
    torch.testing.assert_close(spread, torch.full((5,), INITIAL_STANDARD_DEVIATION), rtol=0.02, atol=0)
    restored = codec.gain(torch.ones(1)) * codec.decoder_inputs(torch.zeros(1, dtype=torch.long), torch.ones(1))[0]
    torch.testing.assert_close(restored, torch.ones(1, 5))


# The prior


@pytest.mark.parametrize("scale", [0.02, 0.3, 1.0, 10.0, 1000.0])
@pytest.mark.parametrize("offset", [0.0, 0.3, 0.5, 1.49])
def test_laplace_mass_of_all_symbols_is_one(scale: float, offset: float) -> None:
    symbols = torch.arange(-30_000, 30_001, dtype=torch.float32)
    masses = laplace_log_mass((symbols - offset).abs(), torch.tensor(scale)).exp()
    assert masses.min() >= 0
    assert masses.double().sum().item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("scale", [1e-3, 1e-2, 1.0, 1e3, 1e6])
@pytest.mark.parametrize("distance", [0.0, 0.25, 0.5, 0.50001, 1.0, 50.0, 1e4])
def test_laplace_log_mass_has_finite_gradients(scale: float, distance: float) -> None:
    inputs = torch.tensor([distance], requires_grad=True), torch.tensor([scale], requires_grad=True)
    mass = laplace_log_mass(*inputs)
    mass.sum().backward()  # type: ignore[no-untyped-call]
    assert torch.isfinite(mass).all()
    assert all(each.grad is not None and torch.isfinite(each.grad).all() for each in inputs)


def test_laplace_mass_is_that_of_the_distribution() -> None:
    laplace = torch.distributions.Laplace(torch.tensor(0.0, dtype=torch.float64), torch.tensor(1.7))
    distance = torch.linspace(0, 8, 200, dtype=torch.float64)
    expected = laplace.cdf(distance + 0.5) - laplace.cdf(distance - 0.5)  # type: ignore[no-untyped-call]
    log_mass = laplace_log_mass(distance, torch.tensor(1.7, dtype=torch.float64))
    torch.testing.assert_close(log_mass, expected.log())


def test_bits_stay_finite_however_narrow_the_prior_and_however_far_the_latent(codec: NestedCodec) -> None:
    codec.log_scale.fill_(-50.0)
    codec.log_scale.requires_grad_(True)
    codec.mean.requires_grad_(True)
    scaled = torch.full((2, 5, 4, 4), 1e4)
    bits = codec.bits(scaled, torch.tensor([0, 3]), torch.tensor([0.0, 1.5]))
    bits.sum().backward()  # type: ignore[no-untyped-call]
    assert bits.shape == (2,)
    assert torch.isfinite(bits).all()
    assert codec.log_scale.grad is not None
    assert torch.isfinite(codec.log_scale.grad).all()


def test_a_symbol_far_out_still_pulls_its_scale_and_its_latent(codec: NestedCodec) -> None:
    """Were it left without a gradient, as under a floor, nothing would hold the rate."""
    codec.log_scale.fill_(-4.0)
    codec.log_scale.requires_grad_(True)
    scaled = torch.full((1, 5, 4, 4), 3.0, requires_grad=True)
    codec.bits(scaled, torch.tensor([0]), torch.tensor([0.0])).sum().backward()  # type: ignore[no-untyped-call]
    assert codec.log_scale.grad is not None
    assert scaled.grad is not None
    assert (codec.log_scale.grad[0, 0] < 0).all()
    assert (scaled.grad > 0).all()


# The budget


def test_decoder_of_the_default_recipe_is_light() -> None:
    """It runs for every frame of the fleet: at most 0.2 GMAC, beside 0.4 of the whole classifier."""
    codec = build_codec(load_recipe(RECIPE))
    shape = codec.shape
    counts = count(
        codec.decoder,
        (shape.symbol_channels, *(224 // shape.symbol_stride,) * 2),
        lambda decoder, symbols: decoder(
            symbols,
            torch.ones(1, shape.symbol_channels, device="meta"),
            torch.zeros(1, shape.decoder_channels, device="meta"),
        ),
    )
    assert counts.macs <= 200e6
    assert counts.parameters <= 300_000


@pytest.mark.parametrize(("depth", "share"), [(0, 0.06), (4, 0.25), (8, 0.5)])
def test_encoder_of_the_default_recipe_is_cheap_beside_the_classifier(
    classifier: Lite0, depth: int, share: float
) -> None:
    """Where it cost as much, the node could as well classify by itself; in time it is about half of these shares."""
    encoder = build_codec(load_recipe(RECIPE)).encoder
    counts = count(encoder, (3, 224, 224), lambda network, x: network(x, depth))
    assert counts.macs <= share * count(classifier, (3, 224, 224)).macs
    assert counts.parameters <= 300_000


def test_decoder_is_of_the_shape_that_training_compares(codec: NestedCodec) -> None:
    """What the cloud runs is what the loss saw, in the classifier's own units."""
    decoder: NestedDecoder = codec.decoder
    decoder.feature_mean.copy_(torch.arange(40.0))
    decoder.feature_std.copy_(torch.arange(40.0) + 1)
    symbols, inverse_gain = torch.randint(-3, 4, (2, 5, 4, 4)).float(), torch.rand(2, 5)
    condition = torch.randn(2, DEEP.decoder_channels)
    standardised = decoder.standardised(symbols * inverse_gain[:, :, None, None], condition)
    features = decoder(symbols, inverse_gain, condition)
    assert features.shape == (2, 40, 4, 4)
    torch.testing.assert_close(
        (features - torch.arange(40.0)[:, None, None]) / (torch.arange(40.0) + 1)[:, None, None],
        standardised,
        rtol=1e-4,
        atol=1e-4,
    )


@pytest.mark.parametrize(("channels", "stride"), [(3, 1), (24, 4), (40, 8)])
@torch.no_grad()
def test_decoder_reaches_the_size_of_every_cut(channels: int, stride: int) -> None:
    decoder = NestedDecoder(NestedShape(cut_channels=channels, cut_stride=stride, latent_channels=5))
    condition = torch.zeros(1, NestedShape().decoder_channels)
    features = decoder(torch.zeros(1, 5, 4, 4), torch.ones(1, 5), condition)
    assert features.shape == (1, channels, 32 // stride, 32 // stride)


@torch.no_grad()
def test_decoder_with_the_papers_layers_costs_what_the_papers_does_and_hears_the_condition() -> None:
    shape = NestedShape(cut_channels=24, cut_stride=4, latent_channels=64, decoder_channels=64, decoder="paper")
    decoder = NestedDecoder(shape)
    condition = torch.zeros(1, 64)
    own = count(decoder, (64, 28, 28), lambda each, y: each.standardised(y, condition.to("meta")))
    papers = count(PaperDecoder(24), (64, 28, 28))
    assert (own.parameters, own.macs) == (papers.parameters, papers.macs)
    symbols = torch.ones(1, 64, 4, 4)
    features = decoder(symbols, torch.ones(1, 64), condition)
    assert features.shape == (1, 24, 8, 8)
    assert not torch.equal(decoder(symbols, torch.ones(1, 64), condition + 1), features)


def test_decoder_with_the_papers_layers_ends_at_stride_4_alone() -> None:
    with pytest.raises(ValueError, match="stride 4"):
        NestedDecoder(NestedShape(cut_stride=8, decoder="paper"))
