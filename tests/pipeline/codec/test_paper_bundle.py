"""The paper's networks as bundles: graphs give torch's numbers, and a joint classifier's tail travels along."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from pipeline.bundle import DECODER_FILE, Bundle
from pipeline.codec.cache import prepare_graphs
from pipeline.codec.classifier import LITE0, classifier_sha256
from pipeline.codec.export import BundleFacts
from pipeline.codec.lite0 import Lite0
from pipeline.codec.paper import PaperCodec, PaperNetwork, PaperShape, build_paper_codec
from pipeline.codec.paper_bundle import depth_of, export_paper_bundle, paper_shape, read_paper_cloud
from pipeline.decoding import BatchDecoder, Classes, CodedFrame
from pipeline.encoder import Encoder, OperatingPoint
from pipeline.errors import BundleFormatError
from pipeline.inference import OnnxRuntimeEngine, read_vectors

NETWORKS: list[PaperNetwork] = ["paper", "entropic_student", "ablation_b"]


def normalised(views: NDArray[np.uint8]) -> torch.Tensor:
    return (torch.from_numpy(views[:, :, :, ::-1].copy()).permute(0, 3, 1, 2).float() - 127) / 128


def make(network: PaperNetwork, views: NDArray[np.uint8]) -> tuple[PaperCodec, PaperShape]:
    torch.manual_seed(4)
    shape = PaperShape(network, 1, 24)
    codec = build_paper_codec(shape)
    codec.fit_initial_scale(normalised(views[:4]))
    codec.feature_mean.copy_(torch.linspace(-1, 1, 24))
    codec.feature_std.copy_(torch.linspace(0.5, 2, 24))
    return codec, shape


def write(
    codec: PaperCodec, shape: PaperShape, views: NDArray[np.uint8], folder: Path, joint: Lite0 | None = None
) -> Bundle:
    facts = BundleFacts("made", LITE0, classifier_sha256(LITE0), "stride4", {"recipe": "none"})
    return export_paper_bundle(codec, shape, facts, views, folder, joint)


@pytest.mark.parametrize("network", NETWORKS)
def test_a_stream_of_bytes_gives_torchs_classes(
    network: PaperNetwork, views: NDArray[np.uint8], classifier: Lite0, tmp_path: Path
) -> None:
    """Encoder graph, tables, coder, decoder graph and tail together are the codec in front of the classifier."""
    codec, shape = make(network, views)
    bundle = write(codec, shape, views[:6], tmp_path / "bundle")
    assert (paper_shape(bundle).network, bundle.manifest.depths) == (network, (depth_of(shape),))
    graphs = prepare_graphs(bundle, tmp_path / "cache")
    decoder = BatchDecoder(bundle, OnnxRuntimeEngine(graphs, 1, "fp32"), read_vectors(graphs))
    encoder, point = Encoder(bundle), OperatingPoint(depth_of(shape), 0)
    answers, _ = decoder.decode([CodedFrame(encoder.encode(view, point)) for view in views[:3]])
    with torch.no_grad():
        symbols = torch.round(codec.edge()(normalised(views[:3])))
        expected = classifier.classify(codec.cloud()(symbols), "stride4").softmax(1)
    for row, answer in enumerate(answers):
        assert isinstance(answer, Classes)
        best = expected[row].topk(5)
        np.testing.assert_allclose(answer.probabilities, best.values.numpy(), rtol=0.05)
        assert answer.indices[0] == int(best.indices[0])


def test_a_joint_classifiers_tail_is_the_one_that_is_used(
    views: NDArray[np.uint8], classifier: Lite0, tmp_path: Path
) -> None:
    codec, shape = make("paper", views)
    joint = deepcopy(classifier)
    with torch.no_grad():
        joint.fc.bias[123] += 50
    bundle = write(codec, shape, views[:6], tmp_path / "bundle", joint)
    before = classifier.fc.bias.clone()
    graph, inverse_gain, condition = read_paper_cloud(bundle, classifier)
    logits = graph(torch.zeros(1, 64, 28, 28, dtype=torch.int32), inverse_gain[0], condition[0])
    assert int(logits.argmax()) == 123
    assert torch.equal(classifier.fc.bias, before)  # the uncompressed classifier stays what it is


@pytest.mark.parametrize("change", ["lost", "shape", "nan"])
def test_weights_that_do_not_fit_are_refused(
    views: NDArray[np.uint8], classifier: Lite0, tmp_path: Path, change: str
) -> None:
    bundle = write(*make("paper", views), views[:6], tmp_path / "bundle")
    tensors = load_tensors(bundle.files[DECODER_FILE])
    if change == "lost":
        del tensors["median"]
    elif change == "shape":
        tensors["feature_std"] = torch.ones(40)
    else:
        tensors["median"][0] = float("nan")
    broken = replace(bundle, files={**bundle.files, DECODER_FILE: save_tensors(tensors)})
    with pytest.raises(BundleFormatError, match=DECODER_FILE):
        read_paper_cloud(broken, classifier)


@pytest.mark.parametrize("network", [{"network": "nested"}, {"cut_channels": 10**6}, {"cut_channels": "24"}, {}])
def test_a_manifest_of_another_family_is_refused(
    network: dict[str, int | float | str | list[int]], tiny_bundle: Bundle, classifier: Lite0
) -> None:
    manifest = tiny_bundle.manifest.model_copy(update={"network": {"network": "paper", **network}})
    with pytest.raises(BundleFormatError, match="paper's family"):
        read_paper_cloud(replace(tiny_bundle, manifest=manifest), classifier)
