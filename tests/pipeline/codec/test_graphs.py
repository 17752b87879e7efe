"""ONNX graphs of both ends: what nodes and workers run is what was trained."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from pipeline.bundle import DECODER_FILE, Bundle
from pipeline.codec.graphs import (
    CONDITION,
    INVERSE_GAIN,
    EdgeGraph,
    ReferenceGraph,
    decoder_shape,
    export_edge_graph,
    export_reference_graph,
    read_decoder,
)
from pipeline.codec.lite0 import Lite0
from pipeline.codec.nested import NestedCodec, NestedDecoder
from pipeline.errors import BundleFormatError


def open_graph(graph: bytes) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])


def with_decoder(bundle: Bundle, content: bytes) -> Bundle:
    return replace(bundle, files={**bundle.files, DECODER_FILE: content})


def with_network(bundle: Bundle, **sizes: int | float | str) -> Bundle:
    manifest = bundle.manifest.model_copy(update={"network": {**bundle.manifest.network, **sizes}})
    return replace(bundle, manifest=manifest)


# The node's graphs


@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize(
    ("classifier", "mean", "std"),
    [
        ("efficientnet_lite0", (127.0, 127.0, 127.0), (128.0, 128.0, 128.0)),
        ("resnet50", (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
    ],
)
@torch.no_grad()
def test_edge_graph_is_normalisation_and_encoder_folded(
    tiny_codec: NestedCodec,
    views: NDArray[np.uint8],
    depth: int,
    classifier: str,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> None:
    """Camera bytes BGR go in as they are; the encoder was trained on normalised RGB."""
    rgb = torch.from_numpy(views[:4, :, :, ::-1].copy()).permute(0, 3, 1, 2).to(torch.float32)
    normalised = (rgb - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    latent = tiny_codec.encoder(normalised, depth)
    gain = tiny_codec.gain(torch.tensor([0.75]))[0]
    scaled, symbols = EdgeGraph(tiny_codec, depth, classifier)(torch.from_numpy(views[:4]), gain)
    expected = latent * gain[:, None, None]
    assert expected.std() > 1
    assert (scaled - expected).abs().max() < 1e-4 * expected.abs().max()
    assert symbols.dtype == torch.int32
    assert torch.equal(symbols, scaled.round().int())


@pytest.mark.parametrize("depth", [0, 1])
@torch.no_grad()
def test_exported_edge_graph_gives_torchs_symbols(
    tiny_codec: NestedCodec, views: NDArray[np.uint8], depth: int
) -> None:
    session = open_graph(export_edge_graph(tiny_codec, depth))
    module = EdgeGraph(tiny_codec, depth)
    gain = np.linspace(0.5, 3.0, 6).astype(np.float32)
    different = total = 0
    for view in views:
        expected = module(torch.from_numpy(view[None]), torch.from_numpy(gain))[1].numpy()
        symbols = session.run(["symbols"], {"view": view[None], "gain": gain})[0]
        assert np.abs(symbols - expected).max() <= 1  # at the very edge between two symbols
        different += int((symbols != expected).sum())
        total += symbols.size
    assert different <= 1e-3 * total


def test_edge_graph_has_the_inputs_and_outputs_of_a_bundle(tiny_codec: NestedCodec) -> None:
    session = open_graph(export_edge_graph(tiny_codec, 1))
    assert [(each.name, each.type, each.shape) for each in session.get_inputs()] == [
        ("view", "tensor(uint8)", [1, 224, 224, 3]),
        ("gain", "tensor(float)", [6]),
    ]
    assert [(each.name, each.type, each.shape) for each in session.get_outputs()] == [
        ("scaled", "tensor(float)", [1, 6, 28, 28]),
        ("symbols", "tensor(int32)", [1, 6, 28, 28]),
    ]


# The cloud's


@torch.no_grad()
def test_reference_graph_takes_views_of_any_number(classifier: Lite0, views: NDArray[np.uint8]) -> None:
    session = open_graph(export_reference_graph(classifier))
    rgb = torch.from_numpy(views[:3, :, :, ::-1].copy()).permute(0, 3, 1, 2).to(torch.float32)
    expected = classifier((rgb - 127.0) / 128.0)
    torch.testing.assert_close(ReferenceGraph(classifier)(torch.from_numpy(views[:3])), expected)
    for number in (1, 3):
        logits = session.run(["logits"], {"view": views[:number]})[0]
        np.testing.assert_allclose(logits, expected[:number].numpy(), rtol=1e-3, atol=1e-3)


def test_decoder_of_a_bundle_is_the_codecs(tiny_bundle: Bundle, tiny_codec: NestedCodec) -> None:
    decoder, inverse_gain, condition = read_decoder(tiny_bundle)
    for name, tensor in tiny_codec.decoder.state_dict().items():
        assert torch.equal(decoder.state_dict()[name], tensor)
    depths, levels16 = tiny_bundle.manifest.depths, tiny_bundle.manifest.levels16
    for exit_index in range(len(depths)):
        for row, level16 in enumerate(levels16):
            expected = tiny_codec.decoder_inputs(torch.tensor([exit_index]), torch.tensor([level16 / 16]))
            torch.testing.assert_close(inverse_gain[exit_index, row], expected[0][0])
            torch.testing.assert_close(condition[exit_index, row], expected[1][0])


def test_decoder_with_the_papers_layers_comes_back_from_a_bundle(tiny_bundle: Bundle) -> None:
    bundle = with_network(tiny_bundle, cut_channels=24, cut_stride=4, decoder="paper")
    tensors = load_tensors(tiny_bundle.files[DECODER_FILE])
    own = NestedDecoder(decoder_shape(bundle))
    vectors = {name: tensors[name] for name in (INVERSE_GAIN, CONDITION)}
    decoder, _, _ = read_decoder(with_decoder(bundle, save_tensors(own.state_dict() | vectors)))
    symbols = torch.ones(1, 6, 28, 28)
    condition = vectors[CONDITION][0, :1]
    torch.testing.assert_close(decoder(symbols, torch.ones(1, 6), condition), own(symbols, torch.ones(1, 6), condition))


def test_bundle_from_before_there_was_a_choice_has_the_light_decoder_and_relus(default_bundle: Bundle) -> None:
    manifest = default_bundle.manifest
    sizes = {name: value for name, value in manifest.network.items() if name not in ("decoder", "activation")}
    before = decoder_shape(replace(default_bundle, manifest=manifest.model_copy(update={"network": sizes})))
    assert (before.decoder, before.activation) == ("light", "relu")
    assert before == replace(decoder_shape(default_bundle), activation="relu")


# Hostile bundles: their files passed the hashes, but who made them may be anybody


@pytest.mark.parametrize(
    "sizes",
    [
        {"decoder_channels": 4_000_000},
        {"decoder_blocks": 1_000},
        {"decoder_channels": -8},
        {"decoder_kernel": 2.5},
        {"latent_channels": 7},
        {"block_side": 2},
        {"block_side": -1},
        {"wings": 2},
    ],
    ids=lambda sizes: next(iter(sizes)),
)
def test_network_sizes_that_no_decoder_has_are_refused(tiny_bundle: Bundle, sizes: dict[str, int | float]) -> None:
    """Before any memory is taken for them."""
    with pytest.raises(BundleFormatError, match="network sizes"):
        decoder_shape(with_network(tiny_bundle, **sizes))


@pytest.mark.parametrize("choice", [{"decoder": "heavy"}, {"decoder": 3}, {"activation": "gelu"}, {"activation": 0}])
def test_choice_of_an_unknown_kind_is_refused(tiny_bundle: Bundle, choice: dict[str, str | int]) -> None:
    with pytest.raises(BundleFormatError, match=f"unknown {next(iter(choice))}"):
        decoder_shape(with_network(tiny_bundle, **choice))


def test_activation_comes_back_from_a_bundle(tiny_bundle: Bundle) -> None:
    symbols = torch.randn(1, 6, 28, 28, generator=torch.Generator().manual_seed(1))
    found = []
    for activation in ("relu", "leaky_relu"):
        decoder, inverse_gain, condition = read_decoder(with_network(tiny_bundle, activation=activation))
        found.append(decoder(symbols, inverse_gain[0, :1], condition[0, :1]))
    assert not torch.allclose(*found)
    for block in decoder.blocks:
        block.negative_slope = 0.0
    assert torch.equal(decoder(symbols, inverse_gain[0, :1], condition[0, :1]), found[0])


def test_decoder_of_other_sizes_than_the_manifests_is_refused(tiny_bundle: Bundle) -> None:
    with pytest.raises(BundleFormatError, match="does not fit the manifest"):
        read_decoder(with_network(tiny_bundle, decoder_channels=4096))


@pytest.mark.parametrize("content", [b"", b"\xff" * 40, b"\x80\x04K\x01."], ids=["empty", "noise", "pickle"])
def test_decoder_file_that_is_no_safetensors_is_refused(tiny_bundle: Bundle, content: bytes) -> None:
    with pytest.raises(BundleFormatError, match=r"decoder\.safetensors"):
        read_decoder(with_decoder(tiny_bundle, content))


@pytest.mark.parametrize("change", ["missing", "extra", "nan", "half", "rows"])
def test_decoder_tensors_that_do_not_fit_are_refused(tiny_bundle: Bundle, change: str) -> None:
    tensors = load_tensors(tiny_bundle.files[DECODER_FILE])
    if change == "missing":
        del tensors["enter.weight"]
    elif change == "extra":
        tensors["wing.weight"] = torch.zeros(1)
    elif change == "nan":
        tensors[INVERSE_GAIN][0, 0, 0] = torch.nan
    elif change == "half":
        tensors["enter.weight"] = tensors["enter.weight"].half()
    else:
        tensors[CONDITION] = tensors[CONDITION][:, 1:].clone()
    with pytest.raises(BundleFormatError, match=r"decoder\.safetensors"):
        read_decoder(with_decoder(tiny_bundle, save_tensors(tensors)))


def test_graph_holds_no_pickle_and_no_path(tiny_codec: NestedCodec) -> None:
    """Traces of the exporting machine must not travel with a bundle."""
    graph = io.BytesIO(export_edge_graph(tiny_codec, 1)).getvalue()
    assert b"/home" not in graph
    assert b".py" not in graph
