"""A bounded run of what `make fuzz` does by the million, and every single bit of a frame."""

from __future__ import annotations

import zlib
from pathlib import Path
from random import Random

import pytest

from pipeline.bitstream import parse_bitstream
from pipeline.bundle import load_bundle
from pipeline.decoding import inflate_reference
from pipeline.errors import BitstreamError
from pipeline.frames import VIEW_BYTES
from tests.e2e.conftest import Start, start_cloud
from tests.fuzz.frames import fuzz_frames, sound_frames
from tests.fuzz.messages import MESSAGES_OF_A_CONNECTION, SENDERS, fuzz_messages

FRAMES = 3_000
MESSAGES = 3 * SENDERS * MESSAGES_OF_A_CONNECTION


def test_mutated_frames_are_refused_or_are_frames() -> None:
    report = fuzz_frames(FRAMES, seed=5)
    assert report.violations == []
    assert report.frames >= FRAMES
    # Both ways are gone: bytes that are refused at sight, and such that the coders had to read.
    assert report.refused["CorruptBitstreamError"] > report.refused["TruncatedBitstreamError"] > 0
    assert report.compared > 0


def test_every_flipped_bit_of_a_bitstream_is_detected() -> None:
    bundle = load_bundle("default")
    frames = sorted((bitstream for bitstream, _ in sound_frames(bundle, Random(1), 20)), key=len)
    for bitstream in (frames[0], frames[-1]):
        assert parse_bitstream(bitstream)
        spoiled = bytearray(bitstream)
        for bit in range(8 * len(spoiled)):
            spoiled[bit // 8] ^= 1 << bit % 8
            with pytest.raises(BitstreamError):
                parse_bitstream(bytes(spoiled))
            spoiled[bit // 8] ^= 1 << bit % 8


def test_flipped_bit_of_a_reference_is_detected_or_changes_nothing() -> None:
    """Some bits of zlib's form mean nothing, as those that fill up its last byte."""
    view = Random(2).randbytes(2_000) * (VIEW_BYTES // 2_000 + 1)
    packed = zlib.compress(view[:VIEW_BYTES], 1)
    whole = inflate_reference(packed)
    spoiled = bytearray(packed)
    num_harmless = 0
    for bit in range(0, 8 * len(spoiled), 7):
        spoiled[bit // 8] ^= 1 << bit % 8
        try:
            assert (inflate_reference(bytes(spoiled)) == whole).all(), f"bit {bit}"
            num_harmless += 1
        except BitstreamError:
            pass
        spoiled[bit // 8] ^= 1 << bit % 8
    assert num_harmless < 8


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes in /proc")
@pytest.mark.timeout(300)
def test_mutated_messages_disturb_neither_the_cloud_nor_the_node_beside(start: Start) -> None:
    pytest.importorskip("skimage", reason="photographs are missing: pip install 'edge-cloud-rac[demo]'")
    cloud = start_cloud(start)
    endpoint = cloud.get("start")[0]["endpoint"]
    node = start("rac-node", "--camera", "test:?fps=10", "--cloud", endpoint, "--metrics-port", "0")
    node.wait_event("result", 10)
    report = fuzz_messages(cloud, node, MESSAGES, seed=6)
    assert report.violations == []
    assert report.answers["Reject"] > 0
    assert report.answers["Result corrupt"] > 0
    node.end()
    summary = cloud.end()
    assert "poison" not in summary["results"]
