"""Every system of the comparison on the same views with the same classifier: points, costs and times.

What is not installed or not trained is a missing row with its reason; the rest is measured. Points are kept on the disk
as soon as a curve is whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pipeline.bundle import Bundle, load_bundle
from pipeline.codec.cache import prepare_graphs
from pipeline.codec.graphs import export_reference_graph
from pipeline.codec.lite0 import Lite0
from pipeline.codec.weights_file import read_weights
from pipeline.decoding import BatchDecoder, CodedFrame
from pipeline.encoder import Encoder, OperatingPoint
from pipeline.errors import BitstreamError, BundleError, BundleFormatError
from pipeline.evaluation.accuracy import BATCH, RatePoint, make_point, measure_bundle, whole_levels
from pipeline.evaluation.as_shipped import shipped_encoder
from pipeline.evaluation.baselines import MissingCodec, PictureCodec, find_codecs, measure_picture_codec
from pipeline.evaluation.costs import Cost, count_bundle, count_picture_network
from pipeline.evaluation.picture_networks import codec_of, not_installed, read_network
from pipeline.evaluation.point_store import PointStore
from pipeline.evaluation.sweep_file import Network
from pipeline.evaluation.timing import Times, camera_picture, time_interleaved
from pipeline.inference import (
    CLOUD_GRAPH,
    REFERENCE_GRAPH,
    Engine,
    EngineName,
    OnnxRuntimeEngine,
    Precision,
    Vectors,
    cache_root,
    file_sha256,
    open_engine,
    read_vectors,
)
from pipeline.view import make_view

Kind = Literal["local", "picture codec", "trained baseline", "ours", "paper"]
LOCAL = "local_classifier"
TIMED_PICTURES = 30
ANOTHER_CLASSIFIER = "is for another classifier"
AS_SHIPPED = ", as shipped"
CODER_VERSION = "1"
"""Of how picture codecs are called here; to be raised when that changes."""

Encode = Callable[[NDArray[np.uint8]], object]
"""From a camera's picture to bytes."""


@dataclass
class System:
    """One curve of the comparison.

    Attributes:
        points: in the order in which they were measured; empty of a system that could not be.
        encode: what is timed, at the middle of the curve, on one thread.
        decode: of one batch, with the rest of the classifier.
        encode_as_shipped: the same as the authors of a system have it, where that is something else.
    """

    name: str
    kind: Kind
    points: list[RatePoint]
    note: str = ""
    depth: int | None = None
    cost: Cost | None = None
    encode: Encode | None = None
    decode: Callable[[], object] | None = None
    encode_as_shipped: Encode | None = None
    encode_times: Times | None = None
    shipped_times: Times | None = None
    decode_times: Times | None = None
    networks: list[Network] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Missing:
    """A row without numbers."""

    system: str
    reason: str


@dataclass(frozen=True, slots=True)
class Bench:
    """What all systems share: views uint8 (N, 224, 224, 3) BGR, classes (N,), the uncompressed classifier.

    Attributes:
        graphs: folder of a bundle's graphs, from which `local_classifier` is opened.
        classifier_weights: state dict instead of the installed package's.
        threads: of measuring; times are taken on one.
        say: told each curve that is measured.
    """

    views: NDArray[np.uint8]
    labels: NDArray[np.int64]
    reference: NDArray[np.int64]
    engine: Engine
    graphs: Path
    engine_name: EngineName
    precision: Precision
    threads: int
    classifier_sha256: str
    store: PointStore
    say: Callable[[str], None]
    classifier_weights: Path | None = None


def local_system(bench: Bench) -> System:
    """The whole classifier on the node: no bits, all of its time."""
    local = OnnxRuntimeEngine(bench.graphs, 1, "fp32")
    point = make_point(LOCAL, 0, bench.reference, np.zeros(len(bench.views), np.int64), bench.reference, bench.labels)
    return System(
        LOCAL,
        "local",
        [point],
        "sends a class, no bits of the picture",
        encode=lambda picture: local.classify_views(make_view(picture)[None]),
    )


def codec_systems(bench: Bench, codecs: Iterable[PictureCodec | MissingCodec]) -> tuple[list[System], list[Missing]]:
    """Picture codecs at all their qualities."""
    systems, missing = [], []
    for codec in codecs:
        if isinstance(codec, MissingCodec):
            missing.append(Missing(codec.name, codec.reason))
            continue
        points = _codec_points(bench, codec, f"codec {CODER_VERSION} {codec.qualities}", lambda: bench.engine)
        system = System(codec.name, "picture codec", points, _NOTES.get(codec.name.split()[0], ""))
        system.encode = _codec_encode(codec)
        systems.append(system)
    return systems, missing


def _codec_points(
    bench: Bench, codec: PictureCodec, key: str, open_classifier: Callable[[], Engine]
) -> list[RatePoint]:
    """A codec at all its qualities, kept under a key; the classifier is opened only where something is measured."""
    points = bench.store.load(codec.name, key)
    if points is None:
        bench.say(codec.name)
        engine = open_classifier()
        points = [
            measure_picture_codec(codec, quality, engine, bench.views, bench.reference, bench.labels)
            for quality in codec.qualities
        ]
        bench.store.save(codec.name, key, points)
    return points


_NOTES = {
    "jpeg": "tables of its own",
    "hevc": "one intra picture by libx265, 4:4:4, in place of BPG; about 80 bytes a picture are parameter sets",
    "bpg": "time holds the start of a process",
    "factorised": "published weights, for squared error",
    "hyperprior": "published weights, for squared error",
}


def _codec_encode(codec: PictureCodec) -> Encode:
    middle = codec.qualities[len(codec.qualities) // 2]
    return lambda picture: codec.encode(make_view(picture), middle)


def bundle_systems(bench: Bench, bundle: Bundle, name: str, depths: Sequence[int] | None = None) -> list[System]:
    """A bundle as a curve for each depth.

    Raises:
        BundleError: it is for other weights of the classifier, or does not work.
        EvaluationError: a bitstream of its own does not decode.
    """
    kind: Kind = "paper" if bundle.manifest.family == "paper" else "ours"
    decoder = BatchDecoder(bundle, *open_bundle(bench, bundle))
    encoder, timed = Encoder(bundle, bench.threads), Encoder(bundle, 1)
    systems = []
    for depth in bundle.manifest.depths if depths is None else depths:
        curve = f"{name} N={depth}" if kind == "ours" and "N=" not in name else name
        chosen = [point for point in whole_levels(bundle) if point.depth == depth]
        points = bench.store.load(f"{bundle.manifest.name} depth {depth}", bundle.short_id)
        if points is None:
            bench.say(f"{curve} ({bundle.manifest.name})")
            points = measure_bundle(bundle, encoder, decoder, bench.views, bench.reference, bench.labels, chosen)
            bench.store.save(f"{bundle.manifest.name} depth {depth}", bundle.short_id, points)
        middle = chosen[len(chosen) // 2]
        batch = [CodedFrame(encoder.encode(view, middle)) for view in bench.views[:BATCH]]
        system = System(curve, kind, points, depth=depth, cost=count_bundle(bundle, depth))
        system.encode, system.decode = _bundle_encode(timed, middle), _bundle_decode(decoder, batch)
        if kind == "paper":
            system.encode_as_shipped = shipped_encoder(bundle, bench.views[:TIMED_PICTURES])
        systems.append(system)
    return systems


def open_bundle(bench: Bench, bundle: Bundle) -> tuple[Engine, Vectors]:
    """What decodes and classifies a bundle's symbols.

    Raises:
        BundleError: it is for other weights of the classifier, or does not work.
    """
    graphs = prepare_graphs(bundle, cache_root(), bench.classifier_weights)
    return open_engine(graphs, bench.engine_name, bench.threads, bench.precision), read_vectors(graphs)


def _bundle_encode(encoder: Encoder, point: OperatingPoint) -> Encode:
    return lambda picture: encoder.encode(make_view(picture), point)


def _bundle_decode(decoder: BatchDecoder, batch: list[CodedFrame]) -> Callable[[], object]:
    return lambda: decoder.decode(batch)


def network_systems(bench: Bench, networks: Sequence[Network]) -> tuple[list[System], list[Missing]]:
    """The networks of a sweep: those of one system and depth are one curve."""
    systems: dict[str, System] = {}
    alike: dict[str, list[tuple[float, System]]] = {}
    missing = []
    for network in networks:
        row = network.system if network.lmbda is None else f"{network.system}, lambda {network.lmbda:g}"
        if network.missing:
            missing.append(Missing(row, network.missing))
            continue
        found = _systems_of(bench, network)
        if isinstance(found, str):
            missing.append(Missing(row, found))
            continue
        for system in found:
            if network.lmbda is not None:
                system.points = [replace(point, rate=network.lmbda) for point in system.points]
            mean_bpp = sum(point.bpp for point in system.points) / len(system.points)
            alike.setdefault(system.name, []).append((mean_bpp, system))
            curve = systems.setdefault(system.name, system)
            if curve is not system:
                curve.points += system.points
            curve.note = network.note
            curve.networks.append(network)
    for name, curve in systems.items():  # a curve of several networks is timed as the one in its middle
        _, middle = sorted(alike[name], key=lambda each: each[0])[len(alike[name]) // 2]
        curve.encode, curve.decode, curve.encode_as_shipped = middle.encode, middle.decode, middle.encode_as_shipped
    return list(systems.values()), missing


def _systems_of(bench: Bench, network: Network) -> list[System] | str:
    """A network's curves, or why there are none."""
    try:
        if network.family == "picture":
            return [_picture_system(bench, network)]
        if network.family == "tuned":
            return _tuned_systems(bench, network)
        bundle = load_bundle(str(network.bundle))
        if bundle.manifest.classifier_sha256 != bench.classifier_sha256:
            return ANOTHER_CLASSIFIER
        return bundle_systems(bench, bundle, network.system, network.depths)
    except (BundleError, BitstreamError) as error:
        return f"its bundle does not work: {error}"
    except ModuleNotFoundError as error:
        return not_installed(error)


def _picture_system(bench: Bench, network: Network) -> System:
    """A picture codec that was trained, in front of the untouched classifier."""
    trained = read_network(network.bundle)
    codec = codec_of(network.name, {1: trained})
    points = _codec_points(bench, codec, file_sha256(network.bundle), lambda: bench.engine)
    system = System(network.system, "trained baseline", points, cost=count_picture_network(trained))
    system.encode = _codec_encode(codec)
    return system


def _tuned_systems(bench: Bench, network: Network) -> list[System] | str:
    """WebP over its whole range in front of a classifier that was trained on such pictures."""
    tensors, facts = read_weights(network.bundle)
    if facts.get("classifier_sha256") != bench.classifier_sha256:
        return ANOTHER_CLASSIFIER
    (webp,) = find_codecs(("webp",))
    if isinstance(webp, MissingCodec):
        return webp.reason
    key = f"{CODER_VERSION} {webp.qualities} {file_sha256(network.bundle)}"
    codec = replace(webp, name=network.name)
    points = _codec_points(bench, codec, key, lambda: _open_classifier(bench, tensors))
    system = System(network.system, "trained baseline", points)
    system.encode = _codec_encode(codec)
    return [system]


def _open_classifier(bench: Bench, tensors: Mapping[str, Tensor]) -> Engine:
    """A tuned classifier on the engine and with the precision of all others."""
    tuned = Lite0()
    try:
        tuned.load_state_dict(tensors)
    except RuntimeError as error:
        raise BundleFormatError(f"no weights of the classifier ({' '.join(str(error).split())[:200]})") from error
    graph = export_reference_graph(tuned)
    with TemporaryDirectory() as folder:
        for name in (CLOUD_GRAPH, REFERENCE_GRAPH):  # an engine opens two; of this one only the classifier is run
            (Path(folder) / name).write_bytes(graph)
        return open_engine(Path(folder), bench.engine_name, bench.threads, bench.precision)


def time_systems(systems: Sequence[System], views: NDArray[np.uint8]) -> None:
    """Fill in the times, all systems interleaved, from 1280 x 720 arrays that show some of the views, on one thread."""
    pictures = np.stack([camera_picture(view) for view in views[:TIMED_PICTURES]])
    encoders = {system.name: system.encode for system in systems if system.encode is not None}
    for system in systems:
        if system.encode_as_shipped is not None:
            encoders[system.name + AS_SHIPPED] = system.encode_as_shipped
    times = time_interleaved(encoders, pictures)
    decoders = {system.name: _ignoring_picture(system.decode) for system in systems if system.decode is not None}
    batch = min(BATCH, len(views))
    decoding = time_interleaved(decoders, pictures[: max(2, TIMED_PICTURES // 3)])
    for system in systems:
        system.encode_times = times.get(system.name)
        system.shipped_times = times.get(system.name + AS_SHIPPED)
        whole = decoding.get(system.name)
        system.decode_times = None if whole is None else Times(whole.median_ms / batch, whole.p90_ms / batch)


def _ignoring_picture(decode: Callable[[], object]) -> Encode:
    return lambda picture: decode()
