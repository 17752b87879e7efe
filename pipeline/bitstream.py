"""The bitstream of one frame, version 1: a header that can be checked before anything is decoded, then words.

    offset  bytes  field
    0       1      version, 1
    1       1      kind: 0 intra; 1 conditional and 2 unchanged are reserved and refused
    2       8      first bytes of the bundle's id
    10      1      depth
    11      1      level, in sixteenths
    12      4      CRC-32 (zlib's), little-endian, of the 12 bytes before it and the words behind it
    16      4 n    words of the entropy coder

Conditional frames will carry a reference field between level and CRC; nothing that reads version 1 has to skip it,
because their kind is refused here.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

from pipeline.errors import CorruptBitstreamError, TruncatedBitstreamError

VERSION = 1
KIND_INTRA = 0
HEADER_BYTES = 16
MAX_BITSTREAM_BYTES = 65_536
"""Ten bits for every symbol of the largest latent; a useful frame has a few thousand bytes."""

_HEAD = struct.Struct("<BB8sBB")
_CRC = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class Bitstream:
    """One coded frame.

    Attributes:
        kind: 0, intra.
        bundle_id8: first 8 bytes of the bundle's id.
        depth: exit that made the latent.
        level16: rate level in sixteenths.
        words: the entropy coder's, a multiple of four bytes.
    """

    kind: int
    bundle_id8: bytes
    depth: int
    level16: int
    words: bytes


def pack_bitstream(bitstream: Bitstream) -> bytes:
    """Header and words in one piece."""
    head = _HEAD.pack(VERSION, bitstream.kind, bitstream.bundle_id8, bitstream.depth, bitstream.level16)
    crc = zlib.crc32(bitstream.words, zlib.crc32(head))
    return head + _CRC.pack(crc) + bitstream.words


def parse_bitstream(content: bytes | memoryview) -> Bitstream:
    """Check and take apart.

    Raises:
        TruncatedBitstreamError: shorter than a header, or not whole words.
        CorruptBitstreamError: CRC, version, kind or size are wrong.
    """
    content = bytes(content)
    if len(content) < HEADER_BYTES or len(content) % 4:
        raise TruncatedBitstreamError(f"a bitstream of {len(content)} bytes is cut off")
    if len(content) > MAX_BITSTREAM_BYTES:
        raise CorruptBitstreamError(f"a bitstream of {len(content)} bytes is larger than {MAX_BITSTREAM_BYTES}")
    head, words = content[: _HEAD.size], content[HEADER_BYTES:]
    (crc,) = _CRC.unpack_from(content, _HEAD.size)
    if zlib.crc32(words, zlib.crc32(head)) != crc:
        raise CorruptBitstreamError("checksum differs: the bitstream was damaged")
    version, kind, bundle_id8, depth, level16 = _HEAD.unpack(head)
    if version != VERSION or kind != KIND_INTRA:
        raise CorruptBitstreamError(f"bitstream version {version}, kind {kind} is not known here")
    return Bitstream(kind, bundle_id8, depth, level16, words)
