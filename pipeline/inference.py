"""The cloud's two graphs on a CPU engine: symbols to logits, and the uncompressed classifier on reference views.

Graphs and vectors come ready from the cache (`pipeline.codec.cache` makes them), so a worker starts without torch.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import BundleFormatError, BundleMismatchError

EngineName = Literal["openvino", "onnxruntime"]
Precision = Literal["fp32", "bf16"]
CACHE_VERSION = 1
"""To be raised when what is exported changes."""
CLOUD_GRAPH, REFERENCE_GRAPH, VECTORS_FILE, FACTS_FILE = (
    "cloud.onnx",
    "reference.onnx",
    "vectors.npz",
    "facts.json",
)


class Engine(Protocol):
    """Runs one bundle's graphs; batches of any size."""

    def classify_symbols(
        self, symbols: NDArray[np.int32], inverse_gain: NDArray[np.float32], condition: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """Logits (B, 1000) of symbols (B, C, h, w) with one vector a frame."""
        ...

    def classify_views(self, views: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Logits (B, 1000) of the uncompressed classifier on views (B, 224, 224, 3) BGR."""
        ...


@dataclass(frozen=True, slots=True)
class Vectors:
    """The decoder's vectors of one bundle: (depth, level16) -> row of each array."""

    rows: dict[tuple[int, int], tuple[int, int]]
    inverse_gain: NDArray[np.float32]
    condition: NDArray[np.float32]

    def gather(self, points: list[tuple[int, int]]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Inverse gains (B, C) and conditions (B, decoder channels) of the frames' operating points."""
        rows = [self.rows[point] for point in points]
        exits, levels = [row[0] for row in rows], [row[1] for row in rows]
        return self.inverse_gain[exits, levels], self.condition[exits, levels]


class OpenVinoEngine:
    """Intel's engine; on CPUs with AMX or AVX-512 the fastest."""

    def __init__(self, folder: Path, threads: int, precision: Precision) -> None:
        import openvino

        settings = {
            "INFERENCE_NUM_THREADS": threads,
            # Stated, because OpenVINO takes bf16 by itself on CPUs that have it.
            "INFERENCE_PRECISION_HINT": "f32" if precision == "fp32" else "bf16",
            "PERFORMANCE_HINT": "LATENCY",
            # On by default, and every process then takes the first cores: all workers would share one.
            "ENABLE_CPU_PINNING": False,
        }
        core = openvino.Core()
        self._cloud = core.compile_model(str(folder / CLOUD_GRAPH), "CPU", settings)
        self._reference = core.compile_model(str(folder / REFERENCE_GRAPH), "CPU", settings)

    def classify_symbols(
        self, symbols: NDArray[np.int32], inverse_gain: NDArray[np.float32], condition: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        return np.array(self._cloud([symbols, inverse_gain, condition])[0])

    def classify_views(self, views: NDArray[np.uint8]) -> NDArray[np.float32]:
        return np.array(self._reference([views])[0])


class OnnxRuntimeEngine:
    """The engine that every installation has; fp32 only."""

    def __init__(self, folder: Path, threads: int, precision: Precision) -> None:
        import onnxruntime

        if precision != "fp32":
            raise BundleFormatError("engine onnxruntime runs fp32 only; use openvino for bf16")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3

        def open_session(name: str) -> onnxruntime.InferenceSession:
            return onnxruntime.InferenceSession(str(folder / name), options, providers=["CPUExecutionProvider"])

        self._cloud, self._reference = open_session(CLOUD_GRAPH), open_session(REFERENCE_GRAPH)

    def classify_symbols(
        self, symbols: NDArray[np.int32], inverse_gain: NDArray[np.float32], condition: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        inputs = {"symbols": symbols, "inverse_gain": inverse_gain, "condition": condition}
        logits: NDArray[np.float32] = self._cloud.run(["logits"], inputs)[0]
        return logits

    def classify_views(self, views: NDArray[np.uint8]) -> NDArray[np.float32]:
        logits: NDArray[np.float32] = self._reference.run(["logits"], {"view": views})[0]
        return logits


def open_engine(folder: Path, name: EngineName, threads: int, precision: Precision) -> Engine:
    """Engine on the cached graphs in `folder`."""
    if name == "openvino":
        return OpenVinoEngine(folder, threads, precision)
    return OnnxRuntimeEngine(folder, threads, precision)


def choose_engine(asked: Literal["auto", "openvino", "onnxruntime"]) -> EngineName:
    """The engine to use: OpenVINO where it is installed, unless told otherwise."""
    if asked != "auto":
        return asked
    from importlib.util import find_spec

    return "openvino" if find_spec("openvino") is not None else "onnxruntime"


def read_vectors(folder: Path) -> Vectors:
    """The decoder's vectors from the cache."""
    facts = json.loads((folder / FACTS_FILE).read_text(encoding="utf-8"))
    rows = {
        (depth, level16): (exit_row, level_row)
        for exit_row, depth in enumerate(facts["depths"])
        for level_row, level16 in enumerate(facts["levels16"])
    }
    with np.load(folder / VECTORS_FILE, allow_pickle=False) as arrays:
        return Vectors(rows, arrays["inverse_gain"], arrays["condition"])


def graphs_folder(root: Path, bundle_id: bytes, weights: Path | None) -> Path:
    """Where the cache keeps the graphs of a bundle, by its id and by the weights file that was given.

    Raises:
        BundleMismatchError: the weights file cannot be read.
    """
    try:
        own = "" if weights is None else "-" + file_sha256(weights)[:16]
    except OSError as error:
        raise BundleMismatchError(f"{weights}: classifier weights cannot be read: {error.strerror}") from error
    return root / f"{bundle_id.hex()[:32]}{own}-v{CACHE_VERSION}"


def find_graphs(root: Path, bundle_id: bytes, weights: Path | None) -> Path | None:
    """The cached folder when it is there, complete and undamaged."""
    folder = graphs_folder(root, bundle_id, weights)
    try:
        facts = json.loads((folder / FACTS_FILE).read_text(encoding="utf-8"))
        digests = {name: file_sha256(folder / name) for name in (CLOUD_GRAPH, REFERENCE_GRAPH, VECTORS_FILE)}
        is_whole = facts["sha256"] == digests and {"depths", "levels16"} <= set(facts)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return folder if is_whole else None


def file_sha256(path: Path) -> str:
    """Hash of a file's content."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def cache_root() -> Path:
    """Where made graphs are kept: RAC_CACHE, else the user's cache folder."""
    if "RAC_CACHE" in os.environ:
        return Path(os.environ["RAC_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "edge-cloud-rac"
