"""From a view to a bitstream on the node: ONNX Runtime and integer tables, never torch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from pipeline.bitstream import Bitstream, pack_bitstream
from pipeline.bundle import Bundle
from pipeline.entropy.rans import encode_symbols
from pipeline.errors import BundleFormatError

WARM_UP_RUNS = 3
"""The first runs of a graph allocate; they would spoil the timing."""


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """How one frame is encoded.

    Attributes:
        depth: encoder blocks that run.
        level16: rate level in sixteenths.
    """

    depth: int
    level16: int


class Encoder:
    """All exits of one bundle, each its own graph, ready to run.

    Not thread-safe: one encoder belongs to one thread.
    """

    def __init__(self, bundle: Bundle, threads: int = 1) -> None:
        """Load every exit.

        Args:
            threads: intra-op threads; they sleep rather than spin between frames.

        Raises:
            BundleFormatError: a graph cannot be loaded.
        """
        self.bundle = bundle
        self._sessions = {depth: _open_session(bundle, depth, threads) for depth in bundle.manifest.depths}
        self._left_out = {point: table.left_out for point, table in bundle.tables.items()}

    def symbols(self, view: NDArray[np.uint8], point: OperatingPoint) -> NDArray[np.int32]:
        """Rounded latent int32 (C, h, w) of a view uint8 (224, 224, 3) BGR; channels left out are zero."""
        inputs = {"view": view[None], "gain": self.bundle.gains[point.level16]}
        scaled = self._sessions[point.depth].run(["scaled"], inputs)[0][0]
        symbols = round_with_dead_zone(scaled, self.bundle.dead_zones[point.level16])
        left_out = self._left_out[point.depth, point.level16]
        if len(left_out):
            symbols[left_out] = 0
        return symbols

    def encode(self, view: NDArray[np.uint8], point: OperatingPoint) -> bytes:
        """Bitstream of a view uint8 (224, 224, 3) BGR, C-contiguous."""
        return self.pack(self.symbols(view, point), point)

    def pack(self, symbols: NDArray[np.int32], point: OperatingPoint) -> bytes:
        """Bitstream of symbols int32 (C, h, w)."""
        words = encode_symbols(symbols, self.bundle.tables[point.depth, point.level16])
        return pack_bitstream(
            Bitstream(kind=0, bundle_id8=self.bundle.id8, depth=point.depth, level16=point.level16, words=words)
        )


def round_with_dead_zone(scaled: NDArray[np.float32], dead_zone: float) -> NDArray[np.int32]:
    """Nearest whole numbers, but for values less than `dead_zone` beyond a half, which go towards zero.

    A symbol nearer to zero is cheaper; where the value lies about half way, the error hardly grows.

    Args:
        scaled: latent in units of one step.
        dead_zone: 0, the nearest, to below 0.5.
    """
    symbols: NDArray[np.int32] = (scaled + np.copysign(np.float32(0.5 - dead_zone), scaled)).astype(np.int32)
    return symbols


def _open_session(bundle: Bundle, depth: int, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(bundle.encoder_graph(depth), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions share no base of their own
        raise BundleFormatError(f"encoder graph of depth {depth} cannot be loaded: {error}") from error
