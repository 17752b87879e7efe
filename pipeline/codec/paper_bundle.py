"""Networks of the paper's family as bundles: one depth and one level, otherwise like any other bundle.

    view -> folded or explicit normalisation -> encoder -> z - median = scaled -> symbols
    symbols * inverse_gain + median = z_hat -> decoder -> * std + condition = features at the cut -> tail -> logits

The gain is one and the condition is the features' mean, so that nodes and clouds run these graphs as they run ours.
Tables are fitted to the symbols of real pictures, as ours are: both families are coded on equal terms. A classifier
that was trained with its codec (joint) brings its tail along, among the decoder's tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from pipeline.bundle import (
    DECODER_FILE,
    ENTROPY_CODER,
    TABLES_FILE,
    Bundle,
    Manifest,
    check_target,
    encoder_file,
    load_bundle,
    pack_operating_points,
    seal_bundle,
)
from pipeline.codec.classifier import CLASSIFIERS, LITE0, Classifier, build_tail
from pipeline.codec.export import CHECKED_PICTURES, BundleFacts, check_graph, check_round_trip, fit_depth
from pipeline.codec.graphs import (
    CONDITION,
    INVERSE_GAIN,
    MAX_NETWORK_SIZE,
    Normalisation,
    export_onnx,
)
from pipeline.codec.paper import (
    PaperCodec,
    PaperEncoder,
    PaperNetwork,
    PaperShape,
    build_paper_codec,
    fold_normalisation,
)
from pipeline.codec.resnet import batch_counters
from pipeline.errors import BundleFormatError

LEVEL16 = 0
"""A network has one rate; it stands at level 0."""
FIXED_DEPTHS: Mapping[str, int] = {"ablation_c": 4, "ablation_b": 3, "ablation_a": 0, "entropic_student": 0}
"""What the header says of networks that have no choice of N: their blocks; the Entropic Student has none."""
TAIL = "tail."
"""Before the names of a joint classifier's tensors."""


def depth_of(shape: PaperShape) -> int:
    """The depth that stands in manifest and bitstreams."""
    return FIXED_DEPTHS.get(shape.network, shape.depth)


class PaperEdgeGraph(nn.Module):
    """The encoder as the node runs it: camera bytes and a gain in, scaled latent and symbols out.

    Normalisation folds into a patch embedding, which does not pad. The Entropic Student's first layer does, with zeros
    that stand for the mean colour: there it stays a step of its own.
    """

    median: Tensor

    def __init__(self, codec: PaperCodec, classifier: str = LITE0) -> None:
        super().__init__()
        self.encoder, facts = deepcopy(codec.encoder), CLASSIFIERS[classifier]
        self.normalisation: Normalisation | None = None
        if isinstance(self.encoder, PaperEncoder):
            patch = self.encoder.patch
            self.encoder.patch = fold_normalisation(patch, facts.mean_rgb, facts.std_rgb, reverse_channels=True)
        else:
            self.normalisation = Normalisation(classifier)
        self.register_buffer("median", codec.prior.medians.clone())

    def forward(self, view: Tensor, gain: Tensor) -> tuple[Tensor, Tensor]:
        x = view.permute(0, 3, 1, 2).to(torch.float32)
        if self.normalisation is not None:
            x = self.normalisation(x.flip(1))
        scaled = (self.encoder(x) - self.median[:, None, None]) * gain[:, None, None]
        return scaled, torch.round(scaled).to(torch.int32)


class PaperCloudGraph(nn.Module):
    """Decoder and classifier's tail in one: symbols of a batch in, logits out."""

    median: Tensor
    feature_std: Tensor

    def __init__(self, decoder: nn.Module, median: Tensor, feature_std: Tensor, tail: nn.Module) -> None:
        super().__init__()
        self.decoder, self.tail = decoder, tail
        self.register_buffer("median", median.clone())
        self.register_buffer("feature_std", feature_std.clone())

    def forward(self, symbols: Tensor, inverse_gain: Tensor, condition: Tensor) -> Tensor:
        z_hat = symbols.to(torch.float32) * inverse_gain[:, :, None, None] + self.median[:, None, None]
        features = self.decoder(z_hat) * self.feature_std[:, None, None] + condition[:, :, None, None]
        logits: Tensor = self.tail(features)
        return logits


def export_paper_bundle(
    codec: PaperCodec,
    shape: PaperShape,
    facts: BundleFacts,
    views: NDArray[np.uint8],
    folder: Path,
    joint: Classifier | None = None,
    progress: Callable[[str], None] = lambda text: None,
) -> Bundle:
    """Write a bundle without measurements, and read it back.

    Args:
        codec: on the CPU; its prior's quantiles are fitted here, from its parameters as they are.
        views: uint8 (N, 224, 224, 3) BGR, training pictures as they are met in use; the tables are fitted to them.
        joint: the classifier that was trained with the codec; without it, the fixed one is used.

    Raises:
        BundleFormatError: the graph differs from torch, a picture does not come back through the bitstream, or the
            folder holds something else.
        TrainingError: the prior has diverged.
    """
    check_target(folder)
    codec = codec.eval().requires_grad_(False)
    codec.prior.fit_quantiles()
    module, depth = PaperEdgeGraph(codec, facts.classifier).eval(), depth_of(shape)
    gain = np.ones(codec.prior.channels, np.float32)
    inputs = (torch.zeros(1, *views.shape[1:], dtype=torch.uint8), torch.from_numpy(gain))
    with torch.no_grad():
        latent_shape = module(*inputs)[0].shape[1:]
    graph = export_onnx(module, inputs, ["view", "gain"], ["scaled", "symbols"], batch=False)
    check_graph(module, depth, graph, views[:CHECKED_PICTURES], gain)
    tables = fit_depth(depth, graph, views, {LEVEL16: gain}, {LEVEL16: 0.0})
    progress(f"{shape.network}: graph checked, tables fitted")
    files = {
        encoder_file(depth): graph,
        TABLES_FILE: pack_operating_points(tables, {LEVEL16: gain}),
        DECODER_FILE: _pack_decoder(codec, joint, facts.cut),
    }
    manifest = Manifest(
        name=facts.name,
        family="paper",
        classifier=facts.classifier,
        classifier_sha256=facts.classifier_sha256,
        cut=facts.cut,
        entropy_coder=ENTROPY_CODER,
        depths=(depth,),
        levels16=(LEVEL16,),
        latent_shape=(latent_shape[0], latent_shape[1], latent_shape[2]),
        network={"network": shape.network, "cut_channels": shape.cut_channels},
        training=facts.training,
        files={},
    )
    seal_bundle(folder, manifest, files)
    bundle = load_bundle(str(folder))
    check_round_trip(bundle, views[:CHECKED_PICTURES])
    return bundle


def _pack_decoder(codec: PaperCodec, joint: Classifier | None, cut: str) -> bytes:
    tensors = {name: tensor.contiguous() for name, tensor in codec.decoder.state_dict().items()}
    tensors |= {"median": codec.prior.medians.clone(), "feature_std": codec.feature_std.clone()}
    tensors[INVERSE_GAIN] = torch.ones(1, 1, codec.prior.channels)
    tensors[CONDITION] = codec.feature_mean.clone()[None, None]
    if joint is not None:
        tail = build_tail(joint, cut)
        left_out = batch_counters(tail)
        for name, tensor in tail.state_dict().items():
            if name not in left_out:
                tensors[TAIL + name] = tensor.contiguous()
    return save_tensors(tensors)


def paper_shape(bundle: Bundle) -> PaperShape:
    """What a bundle of the paper's family was built as.

    Raises:
        BundleFormatError: the manifest's words are not those of that family.
    """
    manifest = bundle.manifest
    network, cut_channels = manifest.network.get("network"), manifest.network.get("cut_channels")
    known: tuple[PaperNetwork, ...] = get_args(PaperNetwork)
    name = next((each for each in known if each == network), None)
    if name is None or not isinstance(cut_channels, int) or not 0 < cut_channels <= MAX_NETWORK_SIZE:
        raise BundleFormatError("manifest: network is not one of the paper's family")
    shape = PaperShape(name, manifest.depths[0], cut_channels)
    if manifest.depths != (depth_of(shape),) or manifest.levels16 != (LEVEL16,):
        raise BundleFormatError("manifest: a network of the paper's family has one depth and one level")
    return shape


def read_paper_cloud(bundle: Bundle, classifier: Classifier) -> tuple[PaperCloudGraph, Tensor, Tensor]:
    """Decoder with tail, inverse gains (1, 1, C) and conditions (1, 1, cut channels) of a bundle.

    Args:
        classifier: whose tail is used where the bundle brings none along; it is not changed.

    Raises:
        BundleFormatError: the weights do not fit the manifest.
    """
    shape = paper_shape(bundle)
    try:
        tensors = load_tensors(bundle.files[DECODER_FILE])
        if not all(tensor.dtype == torch.float32 and tensor.isfinite().all() for tensor in tensors.values()):
            raise ValueError("numbers are not all float32 and finite")
        inverse_gain, condition = tensors.pop(INVERSE_GAIN), tensors.pop(CONDITION)
        median, feature_std = tensors.pop("median"), tensors.pop("feature_std")
        own_tail = {name.removeprefix(TAIL): tensors.pop(name) for name in list(tensors) if name.startswith(TAIL)}
        with torch.device("meta"):
            decoder = build_paper_codec(shape).decoder
        decoder.load_state_dict(tensors, assign=True)
        tail = build_tail(deepcopy(classifier) if own_tail else classifier, bundle.manifest.cut)
        if own_tail:
            tail.load_state_dict({**batch_counters(tail), **own_tail})
        channels = bundle.manifest.latent_shape[0]
        found = [tuple(tensor.shape) for tensor in (inverse_gain, condition, median, feature_std)]
        wanted = [(1, 1, channels), (1, 1, shape.cut_channels), (channels,), (shape.cut_channels,)]
        if found != wanted:
            raise ValueError(f"vectors have the shapes {found}, not {wanted}")
    except Exception as error:  # safetensors and torch raise many kinds for damaged files
        text = " ".join(str(error).split())[:200]
        raise BundleFormatError(f"{DECODER_FILE} does not fit the manifest: {text}") from error
    graph = PaperCloudGraph(decoder, median, feature_std, tail).eval().requires_grad_(False)
    return graph, inverse_gain, condition


def export_paper_cloud_graph(bundle: Bundle, classifier: Classifier) -> bytes:
    """ONNX graph of a bundle's decoder and tail.

    Raises:
        BundleFormatError: the weights do not fit the manifest.
    """
    graph, inverse_gain, condition = read_paper_cloud(bundle, classifier)
    inputs = (
        torch.zeros(2, *bundle.manifest.latent_shape, dtype=torch.int32),
        inverse_gain[0].repeat(2, 1),
        condition[0].repeat(2, 1),
    )
    return export_onnx(graph, inputs, ["symbols", INVERSE_GAIN, CONDITION], ["logits"], batch=True)
