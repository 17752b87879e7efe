"""Encoding as the papers' authors shipped it: a network in eager PyTorch, Python lists of symbols, CompressAI's coder.

    camera's picture -> view -> normalised tensor -> encoder (eager, fp32) -> symbols -> lists -> rANS

On equal terms a network runs as a graph in ONNX Runtime and its symbols go to our coder as arrays, like ours do; that
is `encode` of its system. What is timed here stands for the reference programs on this machine: our rebuilt network,
not their own. Weights change nothing about its time, so they are not those that were trained; the symbols, on which the
coder's time depends, are the bundle's own of the same pictures.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from itertools import cycle
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.bundle import Bundle
from pipeline.codec.compressai_import import import_compressai
from pipeline.codec.lite0 import INPUT_MEAN, INPUT_SCALE
from pipeline.codec.paper import build_paper_codec
from pipeline.codec.paper_bundle import LEVEL16, paper_shape
from pipeline.encoder import Encoder, OperatingPoint
from pipeline.entropy.rans import encode_symbols
from pipeline.entropy.tables import TableSet
from pipeline.view import make_view

Code = Callable[[Tensor], object]
"""From symbols int32 (C, H, W) to bytes."""


def shipped_encoder(bundle: Bundle, views: NDArray[np.uint8]) -> Callable[[NDArray[np.uint8]], object]:
    """What encodes a camera's picture as the authors' program would, on one thread of torch.

    Args:
        bundle: of the paper's family.
        views: uint8 (N, 224, 224, 3) BGR, of the pictures that it will be called with, in turn.
    """
    point = OperatingPoint(bundle.manifest.depths[0], LEVEL16)
    encoder = Encoder(bundle)
    symbols = cycle([torch.from_numpy(encoder.symbols(view, point)) for view in views])
    tables = bundle.tables[point.depth, point.level16]
    code = _compressai_coder(tables) if has_compressai() else _own_coder(tables)
    network = build_paper_codec(paper_shape(bundle)).encoder.eval()

    @torch.no_grad()
    def encode(picture: NDArray[np.uint8]) -> object:
        torch.set_num_threads(1)
        rgb = torch.from_numpy(np.ascontiguousarray(make_view(picture)[:, :, ::-1])).permute(2, 0, 1)[None]
        torch.round(network((rgb.to(torch.float32) - INPUT_MEAN) / INPUT_SCALE)).to(torch.int32)
        return code(next(symbols))

    return encode


def has_compressai() -> bool:
    """Whether its coder is installed (extra [train]); else ours stands in for it."""
    return find_spec("compressai") is not None


def _compressai_coder(tables: TableSet) -> Code:
    """Its coder, fed as its entropy model does: symbols and tables as lists, made anew for each picture."""
    ans: Any = import_compressai("compressai.ans")
    coder = ans.RansEncoder()
    kept, of_kept = tables.coded, tables.coded_rows
    rows = [torch.from_numpy(tables.cumulative[row].astype(np.int32)) for row in of_kept]
    lengths, offsets = torch.from_numpy(tables.sizes[of_kept] + 2), torch.from_numpy(tables.offsets[of_kept])

    def code(symbols: Tensor) -> object:
        coded = symbols[torch.from_numpy(kept)]
        indexes = torch.arange(len(kept), dtype=torch.int32)[:, None, None].expand_as(coded)
        return coder.encode_with_indexes(
            coded.reshape(-1).tolist(),
            indexes.reshape(-1).tolist(),
            [row.tolist() for row in rows],
            lengths.tolist(),
            offsets.tolist(),
        )

    return code


def _own_coder(tables: TableSet) -> Code:
    return lambda symbols: encode_symbols(symbols.numpy(), tables)
