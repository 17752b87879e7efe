"""The node's encoder: symbols of the graphs, and every shipped table on symbols of real photographs."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray

from pipeline.bitstream import parse_bitstream
from pipeline.bundle import Bundle, encoder_file
from pipeline.encoder import Encoder, OperatingPoint, round_with_dead_zone
from pipeline.entropy.rans import decode_symbols, encode_symbols
from pipeline.errors import BundleFormatError

HEADER_BYTES = 16


@pytest.fixture(scope="module")
def encoder(default_bundle: Bundle) -> Encoder:
    return Encoder(default_bundle)


@pytest.fixture(scope="module")
def symbols(encoder: Encoder, views: NDArray[np.uint8]) -> dict[tuple[int, int], list[NDArray[np.int32]]]:
    """Symbols of every view at every operating point of the shipped bundle."""
    return {
        (depth, level16): [encoder.symbols(view, OperatingPoint(depth, level16)) for view in views]
        for depth, level16 in encoder.bundle.tables
    }


def test_symbols_are_the_latent_rounded_with_the_levels_dead_zone(encoder: Encoder, views: NDArray[np.uint8]) -> None:
    bundle = encoder.bundle
    for depth, level16 in ((0, bundle.manifest.levels16[1]), (max(bundle.manifest.depths), bundle.default_level16)):
        session = onnxruntime.InferenceSession(bundle.encoder_graph(depth), providers=["CPUExecutionProvider"])
        inputs = {"view": views[:1], "gain": bundle.gains[level16]}
        scaled = session.run(["scaled"], inputs)[0][0]
        magnitude = np.floor(np.abs(scaled) + np.float32(0.5 - bundle.dead_zones[level16]))
        expected = (np.sign(scaled) * magnitude).astype(np.int32)
        expected[bundle.tables[depth, level16].left_out] = 0
        found = encoder.symbols(views[0], OperatingPoint(depth, level16))
        assert found.dtype == np.int32
        assert found.shape == bundle.manifest.latent_shape
        assert found.any()
        np.testing.assert_array_equal(found, expected)


def test_channels_that_the_tables_leave_out_are_zero(
    symbols: dict[tuple[int, int], list[NDArray[np.int32]]], default_bundle: Bundle
) -> None:
    """Else the frame could not be coded."""
    for point, frames in symbols.items():
        left_out = default_bundle.tables[point].left_out
        assert not any(frame[left_out].any() for frame in frames)


def test_encode_writes_the_frames_own_header(encoder: Encoder, views: NDArray[np.uint8]) -> None:
    point = OperatingPoint(1, encoder.bundle.manifest.levels16[-1])
    bitstream = encoder.encode(views[0], point)
    parsed = parse_bitstream(bitstream)
    assert (parsed.kind, parsed.depth, parsed.level16) == (0, 1, point.level16)
    assert parsed.bundle_id8 == encoder.bundle.bundle_id[:8]
    assert bitstream == encoder.pack(encoder.symbols(views[0], point), point)
    assert len(bitstream) == HEADER_BYTES + len(parsed.words)


def test_encode_takes_a_view_of_any_stride_and_leaves_it_alone(encoder: Encoder, views: NDArray[np.uint8]) -> None:
    point = OperatingPoint(0, encoder.bundle.default_level16)
    mirrored = views[0][:, ::-1]
    before = mirrored.copy()
    assert encoder.encode(mirrored, point) == encoder.encode(before, point)
    np.testing.assert_array_equal(mirrored, before)


def test_every_shipped_table_brings_real_symbols_back(
    symbols: dict[tuple[int, int], list[NDArray[np.int32]]], default_bundle: Bundle
) -> None:
    for point, frames in symbols.items():
        table = default_bundle.tables[point]
        for frame in frames[::4]:
            back = decode_symbols(encode_symbols(frame, table), table, default_bundle.manifest.latent_shape)
            assert np.array_equal(back, frame), f"depth {point[0]}, level {point[1]}/16"


def test_both_coders_write_the_same_bytes_on_every_shipped_table(
    symbols: dict[tuple[int, int], list[NDArray[np.int32]]], default_bundle: Bundle
) -> None:
    """A node on arm64 and one on x86 are the same to the cloud."""
    pytest.importorskip("numba")
    pytest.importorskip("constriction")
    for number, (point, frames) in enumerate(symbols.items()):
        frame, table = frames[number % len(frames)], default_bundle.tables[point]
        words = encode_symbols(frame, table, "constriction")
        assert encode_symbols(frame, table, "numba") == words
        assert np.array_equal(decode_symbols(words, table, frame.shape, "constriction"), frame)
        assert np.array_equal(decode_symbols(words, table, frame.shape, "numba"), frame)


def test_coded_size_is_the_tables_ideal_length(
    symbols: dict[tuple[int, int], list[NDArray[np.int32]]], default_bundle: Bundle
) -> None:
    """Within 0.5 % and 8 bytes a frame, at every operating point."""
    for point, frames in symbols.items():
        table = default_bundle.tables[point]
        ideal_bytes = sum(table.ideal_bits(frame) for frame in frames) / 8
        coded_bytes = sum(len(encode_symbols(frame, table)) for frame in frames)
        assert ideal_bytes <= coded_bytes <= 1.005 * ideal_bytes + 8 * len(frames), point


def test_higher_level_takes_more_bytes_at_every_depth(
    symbols: dict[tuple[int, int], list[NDArray[np.int32]]], default_bundle: Bundle
) -> None:
    """Rate control steps along the levels and relies on it."""
    for depth in default_bundle.manifest.depths:
        bits = [
            sum(default_bundle.tables[depth, level16].ideal_bits(frame) for frame in symbols[depth, level16])
            for level16 in default_bundle.manifest.levels16
        ]
        assert bits == sorted(bits), f"depth {depth}"


def test_frames_at_the_default_level_are_within_what_it_promises(encoder: Encoder, views: NDArray[np.uint8]) -> None:
    """0.5 to 3 kB a frame; photographs differ, their mean does not leave that range far behind."""
    deepest = OperatingPoint(max(encoder.bundle.manifest.depths), encoder.bundle.default_level16)
    assert 300 < np.mean([len(encoder.encode(view, deepest)) for view in views]) < 4500


def test_damaged_graph_is_named_by_its_depth(tiny_bundle: Bundle) -> None:
    files = {**tiny_bundle.files, encoder_file(1): tiny_bundle.files[encoder_file(1)][:-200]}
    with pytest.raises(BundleFormatError, match="depth 1"):
        Encoder(replace(tiny_bundle, files=files))


def test_encoding_needs_no_torch(tiny_bundle: Bundle) -> None:
    program = "import sys, pipeline.encoder; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False, timeout=60).returncode == 0


@pytest.mark.parametrize(("dead_zone", "expected"), [(0.0, [0, 0, 1, -1, 2, -3]), (0.2, [0, 0, 0, -1, 2, -2])])
def test_dead_zone_leans_towards_zero(dead_zone: float, expected: list[int]) -> None:
    scaled = np.array([0.0, -0.49, 0.6, -0.8, 1.9, -2.65], np.float32)
    np.testing.assert_array_equal(round_with_dead_zone(scaled, dead_zone), expected)


def test_bundle_with_a_dead_zone_sends_fewer_symbols(tiny_bundle: Bundle, views: NDArray[np.uint8]) -> None:
    level16 = tiny_bundle.manifest.levels16[-1]
    leaning = replace(tiny_bundle, dead_zones={**tiny_bundle.dead_zones, level16: 0.25})
    point = OperatingPoint(1, level16)
    nearest, leant = (Encoder(bundle).symbols(views[0], point) for bundle in (tiny_bundle, leaning))
    assert np.count_nonzero(leant) < np.count_nonzero(nearest)
    assert ((np.abs(nearest) - np.abs(leant)).clip(0, 1) == np.abs(nearest) - np.abs(leant)).all()


def test_bundle_without_dead_zones_rounds_as_its_graph(tiny_bundle: Bundle, views: NDArray[np.uint8]) -> None:
    """Bundles from before there were any."""
    session = onnxruntime.InferenceSession(tiny_bundle.encoder_graph(1), providers=["CPUExecutionProvider"])
    level16 = tiny_bundle.manifest.levels16[0]
    expected = session.run(["symbols"], {"view": views[:1], "gain": tiny_bundle.gains[level16]})[0][0]
    expected[tiny_bundle.tables[1, level16].left_out] = 0
    np.testing.assert_array_equal(Encoder(tiny_bundle).symbols(views[0], OperatingPoint(1, level16)), expected)
