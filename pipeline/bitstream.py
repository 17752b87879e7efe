"""The bitstream of one frame, version 1: a header that can be checked before anything is decoded, then words.

    offset  bytes  field
    0       1      version, 1
    1       1      kind: 0 intra; 1 conditional and 2 unchanged are reserved and refused
    2       8      first bytes of the bundle's id
    10      1      depth
    11      1      level, in sixteenths
    12      4      CRC-32 (zlib's), little-endian, of the 12 bytes before it and the words behind it
    16      4 n    words of the entropy coder

Conditional frames will carry a reference field between level and CRC; nothing that reads version 1 has to
skip it, because their kind is refused here.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

from pipeline.errors import CorruptBitstreamError, TruncatedBitstreamError

VERSION = 1
KIND_INTRA = 0
RESERVED_KINDS = {1: "conditional", 2: "unchanged"}
HEADER_BYTES = 16
WORD_BYTES = 4
MAX_BITSTREAM_BYTES = 65_536
"""Ten bits and more for every symbol of the largest latent; a useful frame has a few thousand bytes."""

_HEAD = struct.Struct("<BB8sBB")
_CRC = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class Bitstream:
    """One coded frame; valid once built.

    Attributes:
        kind: 0, intra.
        bundle_id8: first 8 bytes of the bundle's id.
        depth: exit that made the latent, 0..255.
        level16: rate level in sixteenths, 0..255.
        words: the entropy coder's, a multiple of four bytes.

    Raises:
        CorruptBitstreamError: a field is out of range, or all together are over 65,536 bytes.
    """

    kind: int
    bundle_id8: bytes
    depth: int
    level16: int
    words: bytes

    def __post_init__(self) -> None:
        if self.kind != KIND_INTRA:
            name = RESERVED_KINDS.get(self.kind, "unknown")
            raise CorruptBitstreamError(f"bitstream of kind {self.kind} ({name}): this version has intra only")
        if len(self.bundle_id8) != 8 or not 0 <= self.depth <= 255 or not 0 <= self.level16 <= 255:
            raise CorruptBitstreamError("bundle id, depth or level of a bitstream is out of range")
        if len(self.words) % WORD_BYTES:
            raise CorruptBitstreamError("words of a bitstream end in the middle of one")
        _check_size(HEADER_BYTES + len(self.words))


def pack_bitstream(bitstream: Bitstream) -> bytes:
    """Header and words in one piece."""
    head = _HEAD.pack(VERSION, bitstream.kind, bitstream.bundle_id8, bitstream.depth, bitstream.level16)
    crc = zlib.crc32(bitstream.words, zlib.crc32(head))
    return head + _CRC.pack(crc) + bitstream.words


def parse_bitstream(content: bytes | memoryview) -> Bitstream:
    """Check and take apart; the words are a copy.

    Raises:
        TruncatedBitstreamError: shorter than a header, or not whole words.
        CorruptBitstreamError: version, size, CRC or kind are wrong.
    """
    _check_size(len(content))
    content = bytes(content)
    if content and content[0] != VERSION:
        raise CorruptBitstreamError(f"bitstream version {content[0]}, this program reads {VERSION}")
    if len(content) < HEADER_BYTES or len(content) % WORD_BYTES:
        raise TruncatedBitstreamError(f"a bitstream of {len(content)} bytes is cut off")
    head, words = content[: _HEAD.size], content[HEADER_BYTES:]
    (crc,) = _CRC.unpack_from(content, _HEAD.size)
    if zlib.crc32(words, zlib.crc32(head)) != crc:
        raise CorruptBitstreamError("checksum differs: the bitstream was damaged or cut off")
    _, kind, bundle_id8, depth, level16 = _HEAD.unpack(head)
    return Bitstream(kind, bundle_id8, depth, level16, words)


def _check_size(num_bytes: int) -> None:
    if num_bytes > MAX_BITSTREAM_BYTES:
        raise CorruptBitstreamError(f"a bitstream of {num_bytes} bytes is over the {MAX_BITSTREAM_BYTES} allowed")
