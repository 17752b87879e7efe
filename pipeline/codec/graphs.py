"""ONNX graphs for both ends, made from torch modules: one an exit for nodes, two for the cloud.

The cloud's graphs depend on the classifier's weights and so are not in the bundle; they are made once into a cache.
"""

from __future__ import annotations

import io
import warnings

import torch
from safetensors.torch import load as load_tensors
from torch import Tensor, nn

from pipeline.bundle import DECODER_FILE, Bundle
from pipeline.codec.classifier import CLASSIFIERS, LITE0, Classifier, build_tail
from pipeline.codec.nested import NestedCodec, NestedDecoder, NestedShape
from pipeline.codec.paper import fold_normalisation
from pipeline.errors import BundleFormatError
from pipeline.frames import VIEW_SIDE_PX

OPSET = 17
INVERSE_GAIN, CONDITION = "inverse_gain", "condition"
"""Names of the arrays (E, L, channels) beside the decoder's weights: one vector for each depth and level16."""
CHOICES = {"decoder": ("light", "paper"), "activation": ("relu", "leaky_relu")}
"""Words among the manifest's network sizes."""
MAX_NETWORK_SIZE, MAX_DECODER_BLOCKS = 4096, 64
"""Of what a manifest may ask for; a decoder of that size would be too slow for any cloud."""


class Normalisation(nn.Module):
    """RGB pixels float (B, 3, H, W), 0..255, to what a classifier takes."""

    mean: Tensor
    std: Tensor

    def __init__(self, classifier: str) -> None:
        super().__init__()
        facts = CLASSIFIERS[classifier]
        self.register_buffer("mean", torch.tensor(facts.mean_rgb)[:, None, None])
        self.register_buffer("std", torch.tensor(facts.std_rgb)[:, None, None])

    def forward(self, pixels: Tensor) -> Tensor:
        return (pixels - self.mean) / self.std


class EdgeGraph(nn.Module):
    """One exit as the node runs it: camera bytes in, scaled latent and symbols out.

    The patch embedding has no padding, so the normalisation of the classifier's input and the order of its colours fold
    into its weights.
    """

    def __init__(self, codec: NestedCodec, depth: int, classifier: str = LITE0) -> None:
        super().__init__()
        encoder, facts = codec.encoder, CLASSIFIERS[classifier]
        self.patch = fold_normalisation(encoder.patch, facts.mean_rgb, facts.std_rgb, reverse_channels=True)
        self.blocks = nn.Sequential(*encoder.blocks[:depth])
        self.exit = encoder.exits[str(depth)]
        self.transform = encoder.transform

    def forward(self, view: Tensor, gain: Tensor) -> tuple[Tensor, Tensor]:
        x = view.permute(0, 3, 1, 2).to(torch.float32)
        scaled = self.transform(self.exit(self.blocks(self.patch(x)))) * gain[:, None, None]
        return scaled, torch.round(scaled).to(torch.int32)


class CloudGraph(nn.Module):
    """Decoder and tail of the classifier in one: symbols of a batch in, logits out."""

    def __init__(self, decoder: NestedDecoder, classifier: Classifier, cut: str) -> None:
        super().__init__()
        self.decoder = decoder
        self.tail = build_tail(classifier, cut)

    def forward(self, symbols: Tensor, inverse_gain: Tensor, condition: Tensor) -> Tensor:
        logits: Tensor = self.tail(self.decoder(symbols.to(torch.float32), inverse_gain, condition))
        return logits


class ReferenceGraph(nn.Module):
    """The uncompressed classifier on views as the node makes them: uint8 (B, 224, 224, 3) BGR in, logits out."""

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.normalisation = Normalisation(classifier.name)
        self.classifier = classifier

    def forward(self, view: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.normalisation(view.permute(0, 3, 1, 2).flip(1).to(torch.float32)))
        return logits


def export_onnx(
    module: nn.Module, inputs: tuple[Tensor, ...], names: list[str], outputs: list[str], batch: bool
) -> bytes:
    """ONNX bytes of a module; with `batch`, the first axis of every input is free."""
    buffer = io.BytesIO()
    axes = {name: {0: "batch"} for name in [*names, *outputs]} if batch else {}
    with warnings.catch_warnings():
        # The TorchScript exporter is announced as ending; the new one needs onnxscript and gives the same graphs.
        # Its tracer also warns of padding computed from shapes, which are fixed here.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module.eval(),
            inputs,
            buffer,  # type: ignore[arg-type]  # says "a path"; the TorchScript exporter takes files too
            input_names=names,
            output_names=outputs,
            dynamic_axes=axes,
            opset_version=OPSET,
            dynamo=False,
        )
    return buffer.getvalue()


def export_edge_graph(codec: NestedCodec, depth: int, classifier: str = LITE0) -> bytes:
    """The node's graph of one exit."""
    view = torch.zeros(1, 224, 224, 3, dtype=torch.uint8)
    gain = torch.ones(codec.shape.symbol_channels)
    graph = EdgeGraph(codec, depth, classifier)
    return export_onnx(graph, (view, gain), ["view", "gain"], ["scaled", "symbols"], batch=False)


def export_cloud_graph(bundle: Bundle, classifier: Classifier) -> bytes:
    """Decoder and tail of a bundle."""
    decoder, _, _ = read_decoder(bundle)
    shape = decoder_shape(bundle)
    channels, height, width = bundle.manifest.latent_shape
    inputs = (
        torch.zeros(2, channels, height, width, dtype=torch.int32),
        torch.ones(2, channels),
        torch.zeros(2, shape.decoder_channels),
    )
    graph = CloudGraph(decoder, classifier, bundle.manifest.cut)
    return export_onnx(graph, inputs, ["symbols", INVERSE_GAIN, CONDITION], ["logits"], batch=True)


def export_reference_graph(classifier: Classifier) -> bytes:
    """The whole classifier."""
    view = torch.zeros(2, 224, 224, 3, dtype=torch.uint8)
    return export_onnx(ReferenceGraph(classifier), (view,), ["view"], ["logits"], batch=True)


def decoder_shape(bundle: Bundle) -> NestedShape:
    """Sizes of the bundle's networks.

    Raises:
        BundleFormatError: the manifest's sizes are not those of a nested codec.
    """
    sizes = {key: value for key, value in bundle.manifest.network.items() if key not in CHOICES}
    # Bundles from before there was a choice have the first one.
    chosen = {key: bundle.manifest.network.get(key, known[0]) for key, known in CHOICES.items()}
    try:
        shape = NestedShape(**{**sizes, "depths": bundle.manifest.depths, **chosen})  # type: ignore[arg-type]
    except TypeError as error:
        raise BundleFormatError(f"manifest: network sizes are not those of a nested codec ({error})") from error
    for key, known in CHOICES.items():
        if chosen[key] not in known:
            raise BundleFormatError(f"manifest: unknown {key} {chosen[key]}; known: {', '.join(known)}")
    if not all(isinstance(size, int) and 0 <= size <= MAX_NETWORK_SIZE for size in sizes.values()):
        raise BundleFormatError(f"manifest: network sizes must be whole numbers up to {MAX_NETWORK_SIZE}")
    channels, height, width = bundle.manifest.latent_shape
    is_fitting = (
        shape.symbol_channels == channels
        and height * shape.symbol_stride == width * shape.symbol_stride == VIEW_SIDE_PX
    )
    if shape.decoder_blocks > MAX_DECODER_BLOCKS or not is_fitting:
        raise BundleFormatError("manifest: network sizes are too large or do not fit the latent's shape")
    return shape


def read_decoder(bundle: Bundle) -> tuple[NestedDecoder, Tensor, Tensor]:
    """Decoder, inverse gains (E, L, C) and conditions (E, L, decoder channels) of a bundle.

    Raises:
        BundleFormatError: the weights do not fit the manifest.
    """
    shape = decoder_shape(bundle)
    try:
        tensors = load_tensors(bundle.files[DECODER_FILE])
        if not all(tensor.dtype == torch.float32 and tensor.isfinite().all() for tensor in tensors.values()):
            raise ValueError("numbers are not all float32 and finite")
        inverse_gain, condition = tensors.pop(INVERSE_GAIN), tensors.pop(CONDITION)
        with torch.device("meta"):  # takes no memory, whatever sizes the manifest names
            decoder = NestedDecoder(shape)
        decoder.load_state_dict(tensors, assign=True)
    except Exception as error:  # safetensors and torch raise many kinds for damaged files
        text = " ".join(str(error).split())[:200]
        raise BundleFormatError(f"{DECODER_FILE} does not fit the manifest: {text}") from error
    points = (len(bundle.manifest.depths), len(bundle.manifest.levels16))
    vectors = ((*points, shape.symbol_channels), (*points, shape.decoder_channels))
    if (tuple(inverse_gain.shape), tuple(condition.shape)) != vectors:
        raise BundleFormatError(f"{DECODER_FILE} does not cover the manifest's depths and levels")
    return decoder.eval().requires_grad_(False), inverse_gain, condition
