"""From a codec to a bundle: tables that fit the symbols, vectors of every level, checks before it is sealed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray

from pipeline.bundle import Bundle, Measured, MeasuredPoint, load_bundle
from pipeline.codec import export
from pipeline.codec.classifier import LITE0
from pipeline.codec.export import (
    HISTOGRAM_REACH,
    BundleFacts,
    check_round_trip,
    count_symbols,
    export_bundle,
    level_grid,
    seal_measured,
)
from pipeline.codec.graphs import export_cloud_graph, export_edge_graph
from pipeline.codec.lite0 import Lite0
from pipeline.codec.nested import NestedCodec
from pipeline.encoder import Encoder, OperatingPoint
from pipeline.entropy.rans import decode_symbols, encode_symbols
from pipeline.errors import BundleFormatError

FACTS = BundleFacts("tiny", LITE0, "0" * 64, "stride8", {})


def test_exported_bundle_says_what_it_is(tiny_bundle: Bundle) -> None:
    manifest = tiny_bundle.manifest
    assert (manifest.name, manifest.family, manifest.classifier) == ("tiny", "nested", LITE0)
    assert (manifest.depths, manifest.levels16, manifest.latent_shape) == ((0, 1), (0, 4, 8, 12, 16), (6, 28, 28))
    assert set(tiny_bundle.tables) == {(depth, level16) for depth in (0, 1) for level16 in (0, 4, 8, 12, 16)}
    assert manifest.measured is None


def test_gains_of_a_bundle_are_the_codecs(tiny_bundle: Bundle, tiny_codec: NestedCodec) -> None:
    for level16, gain in tiny_bundle.gains.items():
        expected = tiny_codec.gain(torch.tensor([level16 / 16]))[0].numpy()
        np.testing.assert_allclose(gain, expected, rtol=1e-6)


def test_channel_that_is_always_zero_takes_no_bits(tiny_bundle: Bundle, views: NDArray[np.uint8]) -> None:
    assert all(table.left_out.tolist() == [5] for table in tiny_bundle.tables.values())
    assert not Encoder(tiny_bundle).symbols(views[0], OperatingPoint(1, 16))[5].any()


def test_bundle_of_coefficients_shares_tables_and_gives_the_codecs_features(
    tiny_codec: NestedCodec, classifier: Lite0, views: NDArray[np.uint8], tmp_path: Path
) -> None:
    """More channels than may have tables of their own: node, coder and cloud have to agree on them."""
    torch.manual_seed(6)
    codec = NestedCodec(replace(tiny_codec.shape, block_side=4, latent_channels=7))
    codec.fit_initial_gain((torch.from_numpy(views[:4, :, :, ::-1].copy()).permute(0, 3, 1, 2).float() - 127) / 128)
    bundle = export_bundle(codec, FACTS, views, tmp_path / "bundle")
    assert bundle.manifest.latent_shape == (112, 7, 7)
    assert {len(np.unique(table.coded_rows)) <= export.SHARED_TABLES for table in bundle.tables.values()} == {True}
    assert {len(table.sizes) for table in bundle.tables.values()} == {export.SHARED_TABLES + 1}
    symbols = Encoder(bundle).symbols(views[0], OperatingPoint(1, 16))
    table = bundle.tables[1, 16]
    words = encode_symbols(symbols, table)
    assert len(words) * 8 < 1.01 * table.ideal_bits(symbols) + 64
    graph = export_cloud_graph(bundle, classifier)
    cloud = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    inputs = {
        "symbols": np.stack([decode_symbols(words, table, symbols.shape)] * 2),
        "inverse_gain": np.ones((2, 112), np.float32),
        "condition": np.zeros((2, 8), np.float32),
    }
    features = codec.decoder(torch.from_numpy(symbols[None]).float(), torch.ones(1, 112), torch.zeros(1, 8))
    expected = classifier.classify(features, "stride8")[0].numpy()
    np.testing.assert_allclose(cloud.run(["logits"], inputs)[0][1], expected, rtol=1e-3, atol=1e-3)


def test_level_grid_ends_at_the_last_level() -> None:
    assert level_grid(2) == [0, 4, 8, 12, 16]
    assert level_grid(16)[-1] == 240


def test_counts_of_sorted_latents_are_those_of_their_symbols() -> None:
    random = np.random.default_rng(1)
    latents = (random.laplace(size=(3, 4000)) * [[0.3], [5.0], [2000.0]]).astype(np.float32)
    gain = np.array([1.5, 0.7, 1.0], np.float32)
    counts = count_symbols(np.sort(latents, axis=1), gain)
    symbols = np.rint(latents * gain[:, None]).astype(int).clip(-HISTOGRAM_REACH, HISTOGRAM_REACH) + HISTOGRAM_REACH
    expected = np.stack([np.bincount(row, minlength=2 * HISTOGRAM_REACH + 1) for row in symbols])
    # A value at the very edge may round either way.
    assert np.abs(counts - expected).sum() <= 4
    assert counts.sum(axis=1).tolist() == [4000] * 3


def test_tables_are_fitted_to_the_symbols_of_use(tiny_bundle: Bundle, views: NDArray[np.uint8]) -> None:
    """Their ideal length is near the entropy of each channel's symbols."""
    encoder = Encoder(tiny_bundle)
    for depth, level16 in ((0, 0), (1, 16)):
        point = OperatingPoint(depth, level16)
        symbols = np.stack([encoder.symbols(view, point) for view in views])
        bits = sum(tiny_bundle.tables[depth, level16].ideal_bits(each) for each in symbols)
        entropy = 0.0
        for channel in range(symbols.shape[1]):
            counts = np.unique(symbols[:, channel], return_counts=True)[1]
            entropy -= float(counts @ np.log2(counts / counts.sum()))
        assert entropy <= bits <= 1.02 * entropy


def test_graph_that_differs_from_torch_is_refused(
    tiny_codec: NestedCodec, views: NDArray[np.uint8], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def of_other_depth(codec: NestedCodec, depth: int, classifier: str) -> bytes:
        return export_edge_graph(codec, 1 - depth, classifier)

    monkeypatch.setattr(export, "export_edge_graph", of_other_depth)
    with pytest.raises(BundleFormatError, match="depth 0"):
        export_bundle(tiny_codec, FACTS, views, tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()


def test_bundle_that_does_not_round_trip_is_refused(
    tiny_bundle: Bundle, views: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(*args: object) -> NDArray[np.int32]:
        symbols = decode_symbols(*args)  # type: ignore[arg-type]
        symbols[0, 27, 27] += 1
        return symbols

    check_round_trip(tiny_bundle, views)
    monkeypatch.setattr(export, "decode_symbols", wrong)
    with pytest.raises(BundleFormatError, match="does not round-trip"):
        check_round_trip(tiny_bundle, views)


def test_export_into_a_folder_with_other_things_takes_nothing_away(
    tiny_codec: NestedCodec, views: NDArray[np.uint8], tmp_path: Path
) -> None:
    """As with --out of the home folder."""
    (tmp_path / "thesis.txt").write_text("years of work", encoding="utf-8")
    with pytest.raises(BundleFormatError, match=r"thesis\.txt"):
        export_bundle(tiny_codec, FACTS, views, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_sealing_with_measurements_changes_the_id_and_no_file(tiny_bundle: Bundle, tmp_path: Path) -> None:
    points = (MeasuredPoint(depth=1, level16=16, bpp=0.25, agreement=0.5),)
    measured = Measured(pictures=7, source="made up", points=points)
    sealed = seal_measured(tiny_bundle, measured, tmp_path / "measured")
    assert sealed.bundle_id != tiny_bundle.bundle_id
    assert sealed.files == tiny_bundle.files
    assert load_bundle(str(tmp_path / "measured")).measured_point(1, 16) == points[0]
    assert sealed.measured_point(0, 0) is None
