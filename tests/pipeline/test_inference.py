"""The cloud's engines: all of them give what torch gives in fp32, on real photographs through the shipped bundle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pipeline.bundle import Bundle
from pipeline.codec.graphs import CloudGraph, ReferenceGraph, read_decoder
from pipeline.codec.lite0 import Lite0
from pipeline.encoder import Encoder, OperatingPoint
from pipeline.errors import BundleFormatError
from pipeline.inference import (
    Engine,
    OnnxRuntimeEngine,
    OpenVinoEngine,
    Vectors,
    cache_root,
    choose_engine,
    find_graphs,
    open_engine,
)

LEAST_SHARE = 0.995
Batch = tuple[NDArray[np.int32], NDArray[np.float32], NDArray[np.float32]]


@pytest.fixture(scope="module")
def batch(default_bundle: Bundle, vectors: Vectors, many_views: NDArray[np.uint8]) -> Batch:
    """Symbols and vectors of 64 frames, depths and levels mixed."""
    encoder = Encoder(default_bundle)
    points = sorted(default_bundle.tables)
    chosen = [points[(17 * index) % len(points)] for index in range(len(many_views))]
    symbols = [encoder.symbols(view, OperatingPoint(*point)) for view, point in zip(many_views, chosen, strict=True)]
    return np.stack(symbols), *vectors.gather(chosen)


@pytest.fixture(scope="module")
def torch_logits(default_bundle: Bundle, classifier: Lite0, batch: Batch) -> NDArray[np.float32]:
    """What torch gives for the batch in fp32."""
    graph = CloudGraph(read_decoder(default_bundle)[0], classifier, default_bundle.manifest.cut)
    with torch.no_grad():
        return np.asarray(graph(*map(torch.from_numpy, batch)).numpy(), np.float32)


@pytest.fixture(scope="module")
def torch_references(classifier: Lite0, many_views: NDArray[np.uint8]) -> NDArray[np.float32]:
    """What torch gives for the uncompressed views in fp32."""
    with torch.no_grad():
        return np.asarray(ReferenceGraph(classifier)(torch.from_numpy(many_views)).numpy(), np.float32)


def some(batch: Batch, rows: slice) -> Batch:
    symbols, inverse_gain, condition = batch
    return symbols[rows], inverse_gain[rows], condition[rows]


def share_of_equal_top1(logits: NDArray[np.float32], expected: NDArray[np.float32]) -> float:
    return float((logits.argmax(axis=1) == expected.argmax(axis=1)).mean())


def test_engine_gives_torchs_classes_of_decoded_frames(
    engine: Engine, batch: Batch, torch_logits: NDArray[np.float32]
) -> None:
    assert share_of_equal_top1(engine.classify_symbols(*batch), torch_logits) >= LEAST_SHARE


def test_engine_gives_torchs_classes_of_uncompressed_views(
    engine: Engine, many_views: NDArray[np.uint8], torch_references: NDArray[np.float32]
) -> None:
    assert share_of_equal_top1(engine.classify_views(many_views), torch_references) >= LEAST_SHARE
    assert len(set(torch_references.argmax(axis=1))) > 5  # else equal classes would say little


def test_fp32_is_fp32(
    engine: Engine,
    batch: Batch,
    many_views: NDArray[np.uint8],
    torch_logits: NDArray[np.float32],
    torch_references: NDArray[np.float32],
) -> None:
    """On CPUs with bf16 OpenVINO takes it by itself: logits then are off in the second digit."""
    for found, expected in (
        (engine.classify_symbols(*some(batch, slice(8))), torch_logits[:8]),
        (engine.classify_views(many_views[:8]), torch_references[:8]),
    ):
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-3 * np.abs(expected).max())


def test_answer_does_not_depend_on_the_batch(engine: Engine, batch: Batch) -> None:
    """A frame's class must not change with who shares its batch."""
    together = engine.classify_symbols(*some(batch, slice(5)))
    for row in range(5):
        alone = engine.classify_symbols(*some(batch, slice(row, row + 1)))
        np.testing.assert_allclose(alone[0], together[row], rtol=0, atol=1e-3)


def test_answers_are_the_callers_own(engine: Engine, batch: Batch) -> None:
    """An engine that gives its own buffer would change the first answer with the second."""
    first = engine.classify_symbols(*some(batch, slice(2)))
    kept = first.copy()
    engine.classify_symbols(*some(batch, slice(2, 4)))
    np.testing.assert_array_equal(first, kept)


def test_openvino_pins_no_cores(graphs: Path) -> None:
    """It counts cores from 0 in every process: all workers of a machine would share the first one."""
    pytest.importorskip("openvino")
    engine = OpenVinoEngine(graphs, 1, "fp32")
    for model in (engine._cloud, engine._reference):
        assert model.get_property("ENABLE_CPU_PINNING") is False
        assert model.get_property("INFERENCE_NUM_THREADS") == 1
        assert model.get_property("INFERENCE_PRECISION_HINT").get_type_name() == "f32"


def test_onnxruntime_refuses_bf16(graphs: Path) -> None:
    with pytest.raises(BundleFormatError, match="openvino"):
        open_engine(graphs, "onnxruntime", 1, "bf16")


def test_named_engine_is_taken(graphs: Path) -> None:
    assert isinstance(open_engine(graphs, "onnxruntime", 1, "fp32"), OnnxRuntimeEngine)
    assert choose_engine("onnxruntime") == "onnxruntime"
    assert choose_engine("auto") in ("openvino", "onnxruntime")


def test_vectors_are_gathered_frame_by_frame(vectors: Vectors, default_bundle: Bundle) -> None:
    depths, levels16 = default_bundle.manifest.depths, default_bundle.manifest.levels16
    points = [(depths[-1], levels16[0]), (depths[0], levels16[-1]), (depths[-1], levels16[0])]
    inverse_gain, condition = vectors.gather(points)
    assert len(inverse_gain) == len(condition) == 3
    np.testing.assert_array_equal(inverse_gain[0], vectors.inverse_gain[-1, 0])
    np.testing.assert_array_equal(inverse_gain[1], vectors.inverse_gain[0, -1])
    np.testing.assert_array_equal(condition[2], vectors.condition[-1, 0])


def test_inverse_gain_brings_the_latent_back_to_its_size(vectors: Vectors, default_bundle: Bundle) -> None:
    """Gain and inverse gain come from different files; they must be of one codec."""
    depth = max(default_bundle.manifest.depths)
    for level16, gain in default_bundle.gains.items():
        product = gain * vectors.gather([(depth, level16)])[0][0]
        # What is sent at no picture of this level says nothing.
        assert 0.1 < np.median(product[default_bundle.tables[depth, level16].coded]) < 10


def test_no_graphs_in_an_empty_cache(default_bundle: Bundle, tmp_path: Path) -> None:
    assert find_graphs(tmp_path / "none", default_bundle.bundle_id, None) is None


def test_cache_root_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("RAC_CACHE", raising=False)
    assert cache_root() == tmp_path / "edge-cloud-rac"
    monkeypatch.setenv("RAC_CACHE", str(tmp_path / "own"))
    assert cache_root() == tmp_path / "own"
