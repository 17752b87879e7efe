"""The Entropic Student against its published sizes, and GDN1 against its formula and CompressAI's."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from torch import Tensor

from pipeline.codec.counts import count
from pipeline.codec.entropic_student import (
    GDN1,
    DecoderWidths,
    EntropicStudentDecoder,
    EntropicStudentEncoder,
    decoder_widths,
)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(2022)


def test_encoder_has_the_published_size() -> None:
    counts = count(EntropicStudentEncoder(), (3, 224, 224))
    assert counts.parameters == 138_672
    assert counts.macs == pytest.approx(588.4e6, abs=0.05e6)
    assert counts.macs_without_gdn == pytest.approx(465.5e6, abs=0.05e6)
    assert [(layer.output_shape, layer.parameters) for layer in counts.layers] == [
        ((96, 112, 112), 7_200),
        ((96, 112, 112), 9_312),
        ((48, 56, 56), 115_200),
        ((48, 56, 56), 2_352),
        ((24, 55, 55), 4_608),
    ]


def test_decoder_has_the_published_size() -> None:
    counts = count(EntropicStudentDecoder(), (24, 55, 55))
    assert counts.parameters == 1_164_032
    assert counts.macs == pytest.approx(3582.5e6, abs=0.05e6)
    assert [(layer.output_shape, layer.parameters) for layer in counts.layers] == [
        ((512, 56, 56), 49_152),
        ((512, 56, 56), 262_656),
        ((256, 55, 55), 524_288),
        ((256, 55, 55), 65_792),
        ((256, 56, 56), 262_144),
    ]


def test_decoder_of_a_narrow_cut_keeps_64_and_128_hidden_channels() -> None:
    shapes = [layer.output_shape for layer in count(EntropicStudentDecoder(24), (24, 55, 55)).layers]
    assert [shape[0] for shape in shapes] == [128, 128, 64, 64, 24]
    assert shapes[-1] == (24, 56, 56)


def test_decoder_takes_given_widths() -> None:
    decoder = EntropicStudentDecoder(24, widths=DecoderWidths(narrow=32, wide=48))
    assert [layer.output_shape[0] for layer in count(decoder, (24, 55, 55)).layers] == [48, 48, 32, 32, 24]


@pytest.mark.parametrize(
    ("channels", "narrow", "wide"), [(24, 64, 128), (64, 64, 128), (100, 100, 200), (256, 256, 512)]
)
def test_decoder_widths_follow_the_cut(channels: int, narrow: int, wide: int) -> None:
    assert decoder_widths(channels) == DecoderWidths(narrow, wide)


def _random_gdn(inverse: bool) -> tuple[GDN1, Tensor, Tensor]:
    """A GDN1 and the values of beta (C,) and gamma (C, C) that it is meant to have."""
    layer = GDN1(7, inverse=inverse)
    beta, gamma = torch.rand(7) + 0.5, torch.rand(7, 7)
    with torch.no_grad():
        layer.beta.copy_(torch.sqrt(beta + 2.0**-36))
        layer.gamma.copy_(torch.sqrt(gamma + 2.0**-36))
    return layer, beta, gamma


@pytest.mark.parametrize("inverse", [False, True])
def test_gdn_follows_its_formula(inverse: bool) -> None:
    layer, beta, gamma = _random_gdn(inverse)
    x = torch.randn(2, 7, 4, 5)
    norm = beta[:, None, None] + torch.einsum("ij,bjhw->bihw", gamma, x.abs())
    torch.testing.assert_close(layer(x), x * norm if inverse else x / norm)


def test_gdn_starts_as_one_plus_a_tenth_of_itself() -> None:
    x = torch.randn(1, 5, 3, 3)
    torch.testing.assert_close(GDN1(5)(x), x / (1 + 0.1 * x.abs()))


@pytest.mark.parametrize("inverse", [False, True])
def test_gdn_equals_compressai_with_the_same_parameters(inverse: bool, compressai_layers: ModuleType) -> None:
    """Gradients too, with parameters on both sides of their minima."""
    ours, theirs = GDN1(6, inverse=inverse), compressai_layers.GDN1(6, inverse=inverse)
    with torch.no_grad():
        for name in ("beta", "gamma"):
            stored = getattr(ours, name)
            stored.copy_(torch.randn_like(stored))
            getattr(theirs, name).copy_(stored)
    x, weight = torch.randn(2, 6, 5, 5), torch.randn(2, 6, 5, 5)
    (ours(x) * weight).sum().backward()
    (theirs(x) * weight).sum().backward()
    torch.testing.assert_close(ours(x), theirs(x))
    torch.testing.assert_close(ours.beta.grad, theirs.beta.grad)
    torch.testing.assert_close(ours.gamma.grad, theirs.gamma.grad)


def test_gdn_parameters_below_their_minimum_can_come_back() -> None:
    layer, x = GDN1(3), torch.randn(1, 3, 4, 4)
    with torch.no_grad():
        layer.gamma.fill_(2.0**-18 / 2)
    size = layer(x).abs().sum()
    (smaller_gamma,) = torch.autograd.grad(-size, [layer.gamma], retain_graph=True)
    (larger_gamma,) = torch.autograd.grad(size, [layer.gamma])
    assert not smaller_gamma.any()  # a larger output wants a smaller gamma: held at the minimum
    assert (larger_gamma < 0).all()  # a smaller output wants a larger one: descent raises it
