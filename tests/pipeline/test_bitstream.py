"""The bitstream's header: what is packed is parsed; anything else is a BitstreamError and nothing else.

The golden bitstream under tests/golden/bitstream holds the bytes of version 1. They change only with the version;
then run the tests once with RAC_REGENERATE_GOLDEN=1.
"""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.bitstream import (
    HEADER_BYTES,
    MAX_BITSTREAM_BYTES,
    VERSION,
    Bitstream,
    pack_bitstream,
    parse_bitstream,
)
from pipeline.errors import BitstreamError, CorruptBitstreamError, TruncatedBitstreamError

steady = settings(derandomize=True, deadline=None)

GOLDEN = Path(__file__).parents[1] / "golden" / "bitstream" / "version-1.hex"
EXAMPLE = Bitstream(kind=0, bundle_id8=bytes(range(0xA0, 0xA8)), depth=4, level16=36, words=bytes(range(1, 13)))

any_bitstream = st.builds(
    Bitstream,
    kind=st.just(0),
    bundle_id8=st.binary(min_size=8, max_size=8),
    depth=st.integers(0, 255),
    level16=st.integers(0, 255),
    words=st.binary(max_size=200).map(lambda words: words[: len(words) // 4 * 4]),
)


def reseal(content: bytes) -> bytes:
    """The same with a CRC that fits, as somebody would who knows the format."""
    crc = zlib.crc32(content[HEADER_BYTES:], zlib.crc32(content[:12]))
    return content[:12] + struct.pack("<I", crc) + content[HEADER_BYTES:]


@steady
@given(any_bitstream)
def test_round_trip(bitstream: Bitstream) -> None:
    packed = pack_bitstream(bitstream)
    assert len(packed) == HEADER_BYTES + len(bitstream.words)
    assert parse_bitstream(packed) == bitstream
    assert parse_bitstream(memoryview(packed)) == bitstream


def test_golden_bytes() -> None:
    if os.environ.get("RAC_REGENERATE_GOLDEN"):
        GOLDEN.write_text(pack_bitstream(EXAMPLE).hex() + "\n", encoding="ascii")
    golden = bytes.fromhex(GOLDEN.read_text(encoding="ascii"))
    assert pack_bitstream(EXAMPLE) == golden
    assert parse_bitstream(golden) == EXAMPLE


def test_largest_bitstream_passes_and_a_word_more_does_not() -> None:
    words = bytes(MAX_BITSTREAM_BYTES - HEADER_BYTES)
    packed = pack_bitstream(Bitstream(0, bytes(8), 0, 0, words))
    assert parse_bitstream(packed).words == words
    with pytest.raises(CorruptBitstreamError, match="65540"):
        Bitstream(0, bytes(8), 0, 0, words + bytes(4))
    with pytest.raises(CorruptBitstreamError, match="65540"):
        parse_bitstream(reseal(packed + bytes(4)))


@pytest.mark.parametrize(
    "change",
    [
        {"kind": 1},
        {"kind": 2},
        {"kind": 77},
        {"bundle_id8": bytes(7)},
        {"bundle_id8": bytes(32)},
        {"depth": 256},
        {"depth": -1},
        {"level16": 256},
        {"words": bytes(6)},
    ],
)
def test_bitstream_of_wrong_fields_cannot_be_built(change: dict[str, Any]) -> None:
    fields = {name: getattr(EXAMPLE, name) for name in ("kind", "bundle_id8", "depth", "level16", "words")}
    with pytest.raises(CorruptBitstreamError):
        Bitstream(**(fields | change))


def test_every_cut_raises() -> None:
    """There is no length field: a cut within the words is seen by the CRC, any other by the length."""
    packed = pack_bitstream(EXAMPLE)
    for length in range(len(packed)):
        whole_words = length >= HEADER_BYTES and length % 4 == 0
        with pytest.raises(CorruptBitstreamError if whole_words else TruncatedBitstreamError):
            parse_bitstream(packed[:length])


def test_every_changed_bit_raises() -> None:
    packed = pack_bitstream(EXAMPLE)
    for bit in range(8 * len(packed)):
        changed = bytearray(packed)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CorruptBitstreamError):
            parse_bitstream(bytes(changed))


@pytest.mark.parametrize(("kind", "name"), [(1, "conditional"), (2, "unchanged"), (9, "unknown")])
def test_reserved_kinds_are_refused_by_name(kind: int, name: str) -> None:
    packed = bytearray(pack_bitstream(EXAMPLE))
    packed[1] = kind
    with pytest.raises(CorruptBitstreamError, match=name):
        parse_bitstream(reseal(bytes(packed)))


def test_other_version_is_refused_before_anything_else() -> None:
    """A later header may be laid out otherwise, even shorter: only its first byte is known."""
    with pytest.raises(CorruptBitstreamError, match="version 2, this program reads 1"):
        parse_bitstream(bytes([VERSION + 1, 5, 5]))


@steady
@given(st.binary(max_size=120), st.booleans())
def test_random_bytes_raise_bitstream_errors_only(content: bytes, is_sealed: bool) -> None:
    if is_sealed and len(content) >= HEADER_BYTES:
        content = reseal(bytes([VERSION]) + content[1:])
    try:
        assert pack_bitstream(parse_bitstream(content)) == content
    except BitstreamError as error:
        assert len(str(error)) < 200
