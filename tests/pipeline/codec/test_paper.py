"""The paper's networks against the numbers that the paper and its code give for them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pipeline.codec.counts import count, count_parameters
from pipeline.codec.entropic_student import EntropicStudentEncoder
from pipeline.codec.paper import (
    AblationBDecoder,
    AblationBEncoder,
    PaperDecoder,
    PaperEncoder,
    PaperNetwork,
    PaperShape,
    ResBlock,
    build_paper_codec,
    fold_normalisation,
)
from pipeline.codec.resnet import INPUT_MEAN_RGB, INPUT_STD_RGB

VIEW = (3, 224, 224)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(20221207)


@pytest.mark.parametrize(
    ("depth", "parameters", "macs"),
    [
        (0, 32_960, 25_690_112),
        (1, 180_608, 141_295_616),
        (2, 328_256, 256_901_120),
        (4, 623_552, 488_112_128),
        (8, 1_214_144, 950_534_144),
    ],
)
def test_encoder_has_the_papers_size(depth: int, parameters: int, macs: int) -> None:
    counts = count(PaperEncoder(depth), VIEW)
    assert (counts.parameters, counts.macs) == (parameters, macs)
    assert counts.layers[-1].output_shape == (64, 28, 28)


def test_decoder_has_the_papers_size() -> None:
    counts = count(PaperDecoder(), (64, 28, 28))
    assert counts.parameters == 2_835_712
    assert counts.macs == 7_925_399_552
    assert [(layer.output_shape, layer.parameters, layer.macs) for layer in counts.layers] == [
        ((256, 56, 56), 409_856, 321_126_400),
        ((512, 56, 56), 1_180_160, 3_699_376_128),
        ((256, 56, 56), 1_179_904, 3_699_376_128),
        ((256, 56, 56), 65_792, 205_520_896),
    ]


def test_ablation_b_has_the_papers_size() -> None:
    encoder, decoder = count(AblationBEncoder(), VIEW), count(AblationBDecoder(), (24, 56, 56))
    assert encoder.parameters == 145_572
    assert encoder.macs == pytest.approx(455.2e6, abs=0.05e6)
    assert encoder.layers[-1].output_shape == (24, 56, 56)
    assert decoder.parameters == 1_356_800
    assert decoder.macs == pytest.approx(4.25e9, abs=0.005e9)
    assert decoder.layers[-1].output_shape == (256, 56, 56)


@pytest.mark.parametrize("decoder", [PaperDecoder, AblationBDecoder])
def test_decoder_of_a_narrow_cut_keeps_64_and_128_hidden_channels(decoder: type[nn.Module]) -> None:
    widths = {layer.weight.shape[0] for layer in decoder(24).modules() if type(layer) is nn.Conv2d}
    assert widths == {128, 64, 24}


def test_encoder_without_blocks_has_one_gelu_between_patch_and_head() -> None:
    encoder, x = PaperEncoder(0), torch.randn(1, 3, 16, 16)
    expected = encoder.head(nn.functional.gelu(encoder.patch(x), approximate="none"))
    torch.testing.assert_close(encoder(x), expected)


def test_encoder_with_a_block_has_no_gelu_outside_it() -> None:
    """A block whose second convolution is silent passes its input through unchanged."""
    encoder, x = PaperEncoder(1), torch.randn(1, 3, 16, 16)
    (block,) = encoder.blocks
    assert isinstance(block, ResBlock)
    for parameter in block.conv2.parameters():
        nn.init.zeros_(parameter)
    torch.testing.assert_close(encoder(x), encoder.head(encoder.patch(x)))


def test_encoder_of_negative_depth_raises() -> None:
    with pytest.raises(ValueError, match="-1"):
        PaperEncoder(-1)


@pytest.mark.parametrize("encoder", [PaperEncoder(0), PaperEncoder(2), AblationBEncoder()])
@pytest.mark.parametrize("reverse_channels", [False, True], ids=["rgb", "bgr"])
def test_folded_normalisation_gives_the_same_latent(encoder: PaperEncoder, reverse_channels: bool) -> None:
    pixels = torch.randint(0, 256, (2, 3, 32, 32)).float()
    mean, std = torch.tensor(INPUT_MEAN_RGB)[:, None, None], torch.tensor(INPUT_STD_RGB)[:, None, None]
    raw = pixels.flip(1) if reverse_channels else pixels
    with torch.no_grad():
        expected = encoder((pixels - mean) / std)
        patch = fold_normalisation(encoder.patch, INPUT_MEAN_RGB, INPUT_STD_RGB, reverse_channels=reverse_channels)
        folded = encoder.head(encoder.blocks(patch(raw)))
    torch.testing.assert_close(folded, expected, rtol=1e-4, atol=1e-5)


def test_folding_normalisation_into_a_padded_convolution_raises() -> None:
    first = EntropicStudentEncoder().layers[0]
    assert isinstance(first, nn.Conv2d)
    with pytest.raises(ValueError, match="padded"):
        fold_normalisation(first, INPUT_MEAN_RGB, INPUT_STD_RGB)


@pytest.mark.parametrize(
    ("network", "latent_shape"),
    [
        ("paper", (64, 28, 28)),
        ("entropic_student", (24, 55, 55)),
        ("ablation_a", (24, 55, 55)),
        ("ablation_b", (24, 56, 56)),
        ("ablation_c", (64, 28, 28)),
    ],
)
def test_codec_ends_at_the_cut(network: PaperNetwork, latent_shape: tuple[int, int, int]) -> None:
    codec = build_paper_codec(PaperShape(network, depth=0, cut_channels=24)).eval()
    with torch.no_grad():
        symbols = codec.edge()(torch.randn(1, *VIEW)).round().int()
        features = codec.cloud()(symbols)
    assert symbols.shape == (1, *latent_shape)
    assert features.shape == (1, 24, 56, 56)


def test_ablations_a_and_c_are_the_networks_they_are_named_after() -> None:
    sizes = {
        network: count_parameters(build_paper_codec(PaperShape(network)))
        for network in ("paper", "entropic_student", "ablation_a", "ablation_b", "ablation_c")
    }
    assert sizes["paper"] == sizes["ablation_c"] == 623_552 + 2_835_712 + 3_904
    assert sizes["entropic_student"] == sizes["ablation_a"] == 138_672 + 1_164_032 + 1_464
    assert sizes["ablation_b"] == 145_572 + 1_356_800 + 1_464


def test_codec_of_an_unknown_network_raises() -> None:
    with pytest.raises(ValueError, match="ablation_d"):
        build_paper_codec(PaperShape("ablation_d"))  # type: ignore[arg-type]


def test_halves_give_what_the_codec_gives_with_real_rounding() -> None:
    """Medians, mean and deviation of the features travel with the halves."""
    codec = build_paper_codec(PaperShape(depth=1, cut_channels=24)).eval()
    codec.feature_mean.uniform_(-1, 1)
    codec.feature_std.uniform_(0.5, 2)
    codec.prior.quantiles.copy_(torch.rand_like(codec.prior.quantiles))
    x = 10 * torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        features, bits = codec(x, "straight_through")
        halves = codec.cloud()(codec.edge()(x).round().int())
    torch.testing.assert_close(halves, features, rtol=1e-4, atol=1e-4)
    assert bits.shape == (2,)


def test_codec_passes_gradients_to_encoder_decoder_and_prior() -> None:
    codec = build_paper_codec(PaperShape(depth=1, cut_channels=24))
    features, bits = codec(torch.randn(1, 3, 16, 16))
    (features.square().mean() + bits.mean()).backward()
    trained = {name for name, tensor in codec.named_parameters() if tensor.grad is not None and tensor.grad.any()}
    assert {name for name, _ in codec.named_parameters()} - trained == {"prior.quantiles"}


def test_codec_refuses_to_train_on_symbols() -> None:
    with pytest.raises(ValueError, match="edge"):
        build_paper_codec(PaperShape(depth=0))(torch.randn(1, 3, 16, 16), "symbols")


@pytest.mark.parametrize("network", ["paper", "entropic_student", "ablation_b"])
def test_initial_scale_spreads_the_latent(network: PaperNetwork) -> None:
    codec, x = build_paper_codec(PaperShape(network, depth=0)), torch.randn(4, 3, 32, 32)
    codec.fit_initial_scale(x)
    with torch.no_grad():
        latent = codec.encoder(x)
    expected = torch.full((latent.shape[1],), 2.0)
    torch.testing.assert_close(latent.std(dim=(0, 2, 3)), expected, rtol=1e-3, atol=0)
    if network != "entropic_student":
        assert latent.mean(dim=(0, 2, 3)).abs().max() < 1e-3
