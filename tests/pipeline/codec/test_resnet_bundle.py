"""Bundles for ResNet-50: the bytes of both families give torch's classes, and a joint tail travels along."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.bundle import DECODER_FILE, MAX_FILE_BYTES, Bundle
from pipeline.codec.cache import prepare_graphs
from pipeline.codec.classifier import CLASSIFIERS, RESNET50, classifier_sha256, lite0_weights_file
from pipeline.codec.export import BundleFacts, export_bundle
from pipeline.codec.nested import NestedCodec, NestedShape
from pipeline.codec.paper import PaperCodec, PaperNetwork, PaperShape, build_paper_codec
from pipeline.codec.paper_bundle import depth_of, export_paper_bundle, read_paper_cloud
from pipeline.codec.resnet import CUT_CHANNELS, ResNet50
from pipeline.decoding import BatchDecoder, Classes, CodedFrame
from pipeline.encoder import Encoder, OperatingPoint
from pipeline.errors import BundleFormatError, BundleMismatchError
from pipeline.inference import CLOUD_GRAPH, OnnxRuntimeEngine, read_vectors
from tests.resnet import random_resnet50, write_weights

CODED = 2
"""Views that are coded; each costs both engines 11 GMAC."""


@pytest.fixture(scope="module")
def resnet50() -> ResNet50:
    return random_resnet50()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder for weights and graphs, which are hundreds of megabytes; gone at the end."""
    folder = tmp_path_factory.mktemp("resnet")
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def weights(resnet50: ResNet50, folder: Path) -> Path:
    return write_weights(resnet50, folder / "resnet50.pth")


@pytest.fixture(scope="module")
def facts(weights: Path) -> BundleFacts:
    return BundleFacts("made", RESNET50, classifier_sha256(RESNET50, weights), "stride4", {"recipe": "none"})


def normalised(views: NDArray[np.uint8]) -> Tensor:
    pixels = torch.from_numpy(views[:, :, :, ::-1].copy()).permute(0, 3, 1, 2).float()
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return (pixels / 255 - mean[:, None, None]) / std[:, None, None]


def make_paper(network: PaperNetwork, views: NDArray[np.uint8], resnet50: ResNet50) -> tuple[PaperCodec, PaperShape]:
    torch.manual_seed(4)
    shape = PaperShape(network, 0, CUT_CHANNELS)
    codec = build_paper_codec(shape)
    x = normalised(views[:CODED])
    codec.fit_initial_scale(x)
    features = resnet50.features(x)
    codec.feature_mean.copy_(features.mean(dim=(0, 2, 3)))
    codec.feature_std.copy_(5 * features.std(dim=(0, 2, 3)))  # an untrained decoder's numbers are small
    return codec, shape


def classes_of(bundle: Bundle, graphs: Path, views: NDArray[np.uint8], point: OperatingPoint) -> list[Classes]:
    """By bytes, ONNX Runtime on both sides."""
    decoder = BatchDecoder(bundle, OnnxRuntimeEngine(graphs, 1, "fp32"), read_vectors(graphs))
    encoder = Encoder(bundle)
    answers, _ = decoder.decode([CodedFrame(encoder.encode(view, point)) for view in views])
    return [answer for answer in answers if isinstance(answer, Classes)]


def assert_same(found: list[Classes], logits: Tensor) -> None:
    expected = logits.softmax(1)
    assert len(found) == len(expected)
    for answer, row in zip(found, expected, strict=True):
        best = row.topk(5)
        np.testing.assert_allclose(answer.probabilities, best.values.numpy(), rtol=0.05)
        assert answer.indices[0] == int(best.indices[0])
    assert len({answer.probabilities for answer in found}) == len(found)  # the pictures are told apart


@pytest.mark.parametrize("network", ["paper", pytest.param("entropic_student", marks=pytest.mark.slow)])
def test_a_stream_of_bytes_gives_torchs_classes(
    network: PaperNetwork,
    views: NDArray[np.uint8],
    resnet50: ResNet50,
    weights: Path,
    facts: BundleFacts,
    folder: Path,
) -> None:
    """Normalisation of ResNet-50's own, decoder to 256 x 56 x 56 and the tail behind it, from the bytes of a frame."""
    codec, shape = make_paper(network, views, resnet50)
    bundle = export_paper_bundle(codec, shape, facts, views[:4], folder / network)
    assert (bundle.manifest.classifier, bundle.manifest.network["cut_channels"]) == (RESNET50, 256)
    graphs = prepare_graphs(bundle, folder / "cache", weights)
    found = classes_of(bundle, graphs, views[:CODED], OperatingPoint(depth_of(shape), 0))
    with torch.no_grad():
        symbols = torch.round(codec.edge()(normalised(views[:CODED])))
        assert_same(found, resnet50.classify(codec.cloud()(symbols)))
        reference = OnnxRuntimeEngine(graphs, 1, "fp32").classify_views(views[:CODED])
        expected = resnet50(normalised(views[:CODED]))
    np.testing.assert_allclose(reference, expected, atol=1e-3 * float(expected.abs().max()))


def test_the_nested_family_is_cut_there_too(
    views: NDArray[np.uint8], resnet50: ResNet50, weights: Path, facts: BundleFacts, folder: Path
) -> None:
    torch.manual_seed(5)
    cut = CLASSIFIERS[RESNET50].cuts["stride4"]
    sizes = {"channels": 8, "expansion": 1, "kernel": 3, "latent_channels": 6}
    decoder = {"decoder_channels": 8, "decoder_blocks": 1, "decoder_expansion": 1, "decoder_kernel": 3}
    shape = NestedShape(cut.channels, cut.stride, depths=(0, 1), levels=2, **sizes, **decoder)
    codec = NestedCodec(shape)
    codec.fit_initial_gain(normalised(views[:CODED]))
    codec.decoder.feature_std.fill_(3.0)
    bundle = export_bundle(codec, facts, views[:4], folder / "nested")
    graphs = prepare_graphs(bundle, folder / "cache", weights)
    found = classes_of(bundle, graphs, views[:CODED], OperatingPoint(1, 16))
    with torch.no_grad():
        exits, levels = torch.ones(CODED, dtype=torch.int64), torch.ones(CODED)
        latent = codec.encoder(normalised(views[:CODED]), 1)
        symbols = torch.round(latent * codec.gain(levels)[:, :, None, None])
        features = codec.decoder(symbols, *codec.decoder_inputs(exits, levels))
        assert_same(found, resnet50.classify(features))


def test_a_joint_tail_travels_in_the_bundle(
    views: NDArray[np.uint8], resnet50: ResNet50, facts: BundleFacts, folder: Path
) -> None:
    """113 MB of decoder, with the running statistics of its own batch normalisation."""
    codec, shape = make_paper("paper", views, resnet50)
    joint = deepcopy(resnet50)
    norm = joint.layer3[1].bn2
    assert isinstance(norm, nn.BatchNorm2d) and norm.running_mean is not None
    with torch.no_grad():
        joint.fc.bias[123] += 1000
        norm.running_mean += 0.5
    bundle = export_paper_bundle(codec, shape, facts, views[:4], folder / "joint", joint)
    assert len(bundle.files[DECODER_FILE]) > MAX_FILE_BYTES
    graph, inverse_gain, condition = read_paper_cloud(bundle, resnet50)
    own = graph.tail.state_dict()["layer3.1.bn2.running_mean"]
    assert torch.equal(own, norm.running_mean)
    logits = graph(torch.zeros(1, *bundle.manifest.latent_shape, dtype=torch.int32), inverse_gain[0], condition[0])
    assert int(logits.argmax()) == 123
    assert int(resnet50.fc.bias.argmax()) != 123  # the uncompressed classifier stays what it is


def test_weights_of_another_training_are_refused(weights: Path, facts: BundleFacts, folder: Path) -> None:
    codec = build_paper_codec(PaperShape("paper", 0, CUT_CHANNELS))
    views = np.zeros((2, 224, 224, 3), np.uint8)
    other = replace(facts, classifier_sha256=64 * "0")
    bundle = export_paper_bundle(codec, PaperShape("paper", 0, CUT_CHANNELS), other, views, folder / "other")
    with pytest.raises(BundleMismatchError, match=r"trained with other resnet50 weights than .*resnet50\.pth"):
        prepare_graphs(bundle, folder / "none", weights)
    manifest = bundle.manifest.model_copy(update={"cut": "stride8"})
    with pytest.raises(BundleFormatError, match="resnet50 has no cut stride8"):
        prepare_graphs(replace(bundle, manifest=manifest), folder / "none", weights)


def test_a_file_of_resnet50_leaves_other_bundles_alone(tiny_bundle: Bundle, weights: Path, tmp_path: Path) -> None:
    """One cloud, bundles for two classifiers, one file of weights."""
    found = prepare_graphs(tiny_bundle, tmp_path, weights)
    own = prepare_graphs(tiny_bundle, tmp_path, lite0_weights_file())
    assert (found / CLOUD_GRAPH).read_bytes() == (own / CLOUD_GRAPH).read_bytes()
