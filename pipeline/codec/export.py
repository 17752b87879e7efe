"""A trained codec becomes a bundle: graphs, integer tables, vectors, checks, seal.

    codec -> one graph an exit -> symbols of real pictures -> histograms -> integer tables -> round trip -> seal

Tables are fitted here, once, to the symbols that the exported graphs give, and never made again from floats.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from pipeline.bundle import (
    DECODER_FILE,
    ENTROPY_CODER,
    TABLES_FILE,
    Bundle,
    Manifest,
    Measured,
    check_target,
    encoder_file,
    load_bundle,
    pack_operating_points,
    seal_bundle,
)
from pipeline.codec.graphs import CONDITION, INVERSE_GAIN, EdgeGraph, export_edge_graph
from pipeline.codec.nested import NestedCodec
from pipeline.encoder import Encoder, OperatingPoint
from pipeline.entropy.rans import decode_symbols, encode_symbols
from pipeline.entropy.shared_tables import fit_shared_tables
from pipeline.entropy.tables import TableSet, fit_tables
from pipeline.errors import BundleFormatError
from pipeline.frames import VIEW_SIDE_PX

LEVEL_STEP16 = 4
"""Tables are made for every quarter of a level: a kilobyte each, and rate control needs no finer steps."""
HISTOGRAM_REACH = 500
"""Symbols beyond it are counted in the outermost bins; they are coded with the escape anyway."""
MIN_NONZERO_SHARE = 2e-5
"""A channel whose symbols are non-zero more rarely is left out: one symbol in sixty frames is not worth a table."""
MAX_SYMBOL_DIFFERENCES = 1e-3
"""Share of symbols that may differ between graph and torch, by 1: rounding at the very edge."""
MAX_OWN_TABLES, SHARED_TABLES = 96, 32
"""More channels than the first share as many tables as the second. For 512 channels 32 tables take 0.3 to 0.7 % more
bits (16 take 0.6 to 1.3 %), and a tenth of the space and of the node's switching between tables."""
CHECKED_PICTURES = 24


@dataclass(frozen=True, slots=True)
class BundleFacts:
    """What the manifest says beyond the networks."""

    name: str
    classifier: str
    classifier_sha256: str
    cut: str
    training: dict[str, str | int | float]


def level_grid(levels: int) -> list[int]:
    """The level16 values that get tables."""
    return list(range(0, 16 * (levels - 1) + 1, LEVEL_STEP16))


def export_bundle(
    codec: NestedCodec,
    facts: BundleFacts,
    views: NDArray[np.uint8],
    folder: Path,
    progress: Callable[[str], None] = lambda text: None,
    dead_zones: Sequence[float] | None = None,
) -> Bundle:
    """Write a bundle without measurements, and read it back.

    Args:
        views: uint8 (N, 224, 224, 3) BGR, training pictures as they are met in use; the tables are fitted to them.
        dead_zones: one for each whole level; none at all unless given.

    Raises:
        BundleFormatError: graphs differ from torch, a picture does not come back through the bitstream, or the
            folder holds something else.
    """
    check_target(folder)
    shape = codec.shape
    codec = codec.eval().requires_grad_(False)
    graphs = {depth: export_edge_graph(codec, depth, facts.classifier) for depth in shape.depths}
    levels = level_grid(shape.levels)
    gains = {level16: _gain(codec, level16) for level16 in levels}
    whole = np.zeros(shape.levels) if dead_zones is None else np.asarray(dead_zones, np.float64)
    zones = {level16: float(np.interp(level16 / 16, np.arange(shape.levels), whole)) for level16 in levels}
    tables: dict[tuple[int, int], TableSet] = {}
    for depth, graph in graphs.items():
        module = EdgeGraph(codec, depth, facts.classifier)
        check_graph(module, depth, graph, views[:CHECKED_PICTURES], gains[levels[-1]])
        tables |= fit_depth(depth, graph, views, gains, zones)
        progress(f"depth {depth}: graph checked, {len(levels)} table sets fitted")
    files = {encoder_file(depth): graph for depth, graph in graphs.items()}
    files[TABLES_FILE] = pack_operating_points(tables, gains, zones)
    files[DECODER_FILE] = _pack_decoder(codec, levels)
    network = {key: value for key, value in asdict(shape).items() if key != "depths"}
    manifest = Manifest(
        name=facts.name,
        family="nested",
        classifier=facts.classifier,
        classifier_sha256=facts.classifier_sha256,
        cut=facts.cut,
        entropy_coder=ENTROPY_CODER,
        depths=shape.depths,
        levels16=tuple(levels),
        latent_shape=(shape.symbol_channels, *(VIEW_SIDE_PX // shape.symbol_stride,) * 2),
        network=network,
        training=facts.training,
        files={},
    )
    seal_bundle(folder, manifest, files)
    bundle = load_bundle(str(folder))
    check_round_trip(bundle, views[:CHECKED_PICTURES])
    return bundle


def seal_measured(bundle: Bundle, measured: Measured, folder: Path) -> Bundle:
    """Seal a bundle again with its measurements; the id changes, the files do not."""
    seal_bundle(folder, bundle.manifest.model_copy(update={"measured": measured}), bundle.files)
    return load_bundle(str(folder))


def check_round_trip(bundle: Bundle, views: NDArray[np.uint8]) -> None:
    """Code and decode every operating point on real pictures.

    Raises:
        BundleFormatError: one does not come back.
    """
    encoder = Encoder(bundle)
    points = [OperatingPoint(depth, level16) for depth, level16 in bundle.tables]
    for index, point in enumerate(points):
        symbols = encoder.symbols(views[index % len(views)], point)
        table = bundle.tables[point.depth, point.level16]
        if not np.array_equal(decode_symbols(encode_symbols(symbols, table), table, symbols.shape), symbols):
            raise BundleFormatError(f"depth {point.depth}, level {point.level16}/16 does not round-trip")


@torch.no_grad()
def _gain(codec: NestedCodec, level16: int) -> NDArray[np.float32]:
    return np.asarray(codec.gain(torch.tensor([level16 / 16]))[0].numpy(), np.float32)


@torch.no_grad()
def check_graph(
    module: nn.Module, depth: int, graph: bytes, views: NDArray[np.uint8], gain: NDArray[np.float32]
) -> None:
    """Compare an exported graph's symbols with those of the module that it was made from.

    Raises:
        BundleFormatError: they differ by more than a rare rounding at the very edge.
    """
    module.eval()
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    different = total = 0
    for view in views:
        expected = module(torch.from_numpy(view[None]), torch.from_numpy(gain))[1].numpy()
        found = session.run(["symbols"], {"view": view[None], "gain": gain})[0]
        difference = np.abs(expected - found)
        if difference.max() > 1:
            raise BundleFormatError(f"depth {depth}: the graph's symbols differ from torch's by {difference.max()}")
        different += int((difference > 0).sum())
        total += difference.size
    if different > MAX_SYMBOL_DIFFERENCES * total:
        raise BundleFormatError(f"depth {depth}: {different} of {total} symbols differ between graph and torch")


def fit_depth(
    depth: int,
    graph: bytes,
    views: NDArray[np.uint8],
    gains: Mapping[int, NDArray[np.float32]],
    dead_zones: Mapping[int, float],
) -> dict[tuple[int, int], TableSet]:
    """Tables of one exit at every level, from the symbols of all views."""
    rows = _sorted_latents(graph, views, len(next(iter(gains.values()))))
    tables = {}
    for level16, gain in gains.items():
        counts = count_symbols(rows, gain, dead_zones[level16])
        nonzero = counts.sum(axis=1) - counts[:, HISTOGRAM_REACH]
        left_out = nonzero < MIN_NONZERO_SHARE * counts.sum(axis=1)
        if len(counts) <= MAX_OWN_TABLES:
            tables[depth, level16] = fit_tables(counts, -HISTOGRAM_REACH, left_out)
        else:
            tables[depth, level16] = fit_shared_tables(counts, -HISTOGRAM_REACH, left_out, SHARED_TABLES)
    return tables


def count_symbols(rows: NDArray[np.float32], gain: NDArray[np.float32], dead_zone: float = 0.0) -> NDArray[np.int64]:
    """Histograms (C, 2 * HISTOGRAM_REACH + 1) of the symbols that a gain makes of latents.

    Args:
        rows: (C, n), all values of each channel, rising: sorted once, they are only looked up at every level.
        gain: (C,).
        dead_zone: how much further from zero than a half the border between two symbols lies.
    """
    # Between two neighbouring symbols lies a half; beyond the outermost everything counts as one of them.
    halves = np.arange(-HISTOGRAM_REACH, HISTOGRAM_REACH, dtype=np.float32) + np.float32(0.5)
    halves += np.copysign(np.float32(dead_zone), halves)
    below = [np.searchsorted(row, halves / factor) for row, factor in zip(rows, gain, strict=True)]
    ends = np.full((len(rows), 1), rows.shape[1])
    counts: NDArray[np.int64] = np.diff(np.hstack([np.zeros_like(ends), np.stack(below), ends]), axis=1)
    return counts


def _sorted_latents(graph: bytes, views: NDArray[np.uint8], channels: int) -> NDArray[np.float32]:
    """All values (C, n) that each channel's latent takes on the views, rising."""
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    ones = np.ones(channels, np.float32)
    latents = [session.run(["scaled"], {"view": view[None], "gain": ones})[0][0] for view in views]
    rows: NDArray[np.float32] = np.stack(latents, axis=1).reshape(channels, -1)
    rows.sort(axis=1)
    return rows


@torch.no_grad()
def _pack_decoder(codec: NestedCodec, levels: list[int]) -> bytes:
    """The decoder's weights and its vectors for every depth and level."""
    tensors: dict[str, Tensor] = {name: tensor.contiguous() for name, tensor in codec.decoder.state_dict().items()}
    inverse_gains, conditions = [], []
    level = torch.tensor([level16 / 16 for level16 in levels])
    for exit_index in range(len(codec.shape.depths)):
        inverse_gain, condition = codec.decoder_inputs(torch.full((len(levels),), exit_index), level)
        inverse_gains.append(inverse_gain)
        conditions.append(condition)
    tensors[INVERSE_GAIN], tensors[CONDITION] = torch.stack(inverse_gains), torch.stack(conditions)
    return save_tensors(tensors)
