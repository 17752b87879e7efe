"""What the node's spool holds: one record for each coded frame that has no result yet. No I/O.

    offset  bytes  field
    0       4      mark, "RACF"
    4       4      state, "open" or "done"; the only bytes that change once they are written
    8       4      length of the body, little-endian
    12      4      CRC-32 (zlib's), little-endian, of length and body
    16             body: msgpack array of the fields of `SpooledFrame`, in their order

A frame that ended is marked in its place, which takes no new space: a full disk never keeps a frame from
ending, and so never brings it back at the next start. Damage is found by the CRC; reading goes on at the next
mark, so that it costs the records that it hit and no others.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import msgpack

from pipeline.errors import SpoolRecordError, WireError
from pipeline.wire import MAX_BITSTREAM_BYTES, MAX_COUNT, MAX_REFERENCE_BYTES, MAX_UINT32
from pipeline.wire_fields import Maybe, Name, Octets, Record, Whole, build, pack_fields

MARK = b"RACF"
OPEN, DONE = b"open", b"done"
STATE_OFFSET = 4
HEAD_BYTES = 16
# A bitstream, a reference, and names and numbers in front of them.
MAX_BODY_BYTES = MAX_BITSTREAM_BYTES + MAX_REFERENCE_BYTES + 1024

_HEAD = struct.Struct("<4s4sII")
_LENGTH = struct.Struct("<I")


@dataclass(frozen=True, slots=True)
class SpooledFrame(Record):
    """A coded frame as it waits on the disk.

    Attributes:
        depth, level16, bundle_id: how it is coded.
        wall_ms: wall time of its capture, unix milliseconds; only ever shown.
        label: class index of a labelled picture.
        bitstream, reference: as in a FRAME; empty where only the record's place is of interest.
    """

    camera: Annotated[str, Name()]
    sequence: Annotated[int, Whole(0, MAX_COUNT)]
    depth: Annotated[int, Whole(0, 255)]
    level16: Annotated[int, Whole(0, 255)]
    bundle_id: Annotated[bytes, Octets(32, 32)]
    wall_ms: Annotated[int, Whole(0, MAX_COUNT)]
    label: Annotated[int | None, Maybe(Whole(0, MAX_UINT32))]
    bitstream: Annotated[bytes, Octets(0, MAX_BITSTREAM_BYTES)]
    reference: Annotated[bytes | None, Maybe(Octets(1, MAX_REFERENCE_BYTES))]


@dataclass(frozen=True, slots=True)
class FoundRecord:
    """One stretch of a file.

    Attributes:
        offset / num_bytes: where it is.
        frame: what it holds; None: damaged.
        is_done: its frame has ended.
    """

    offset: int
    num_bytes: int
    frame: SpooledFrame | None
    is_done: bool


def pack_record(frame: SpooledFrame) -> bytes:
    """An open record."""
    body: bytes = msgpack.packb(pack_fields(frame), use_bin_type=True)
    crc = zlib.crc32(body, zlib.crc32(_LENGTH.pack(len(body))))
    return _HEAD.pack(MARK, OPEN, len(body), crc) + body


def parse_record(content: bytes) -> tuple[SpooledFrame, bool]:
    """The frame at the start of some bytes, and whether it has ended.

    Raises:
        SpoolRecordError: damaged or cut off.
    """
    if len(content) < HEAD_BYTES:
        raise SpoolRecordError("record is cut off")
    mark, state, length, crc = _HEAD.unpack_from(content)
    body = content[HEAD_BYTES : HEAD_BYTES + length]
    if mark != MARK or length > MAX_BODY_BYTES or len(body) != length:
        raise SpoolRecordError("record has no head or is cut off")
    if zlib.crc32(body, zlib.crc32(_LENGTH.pack(length))) != crc:
        raise SpoolRecordError("checksum of a record differs")
    if state not in (OPEN, DONE):
        raise SpoolRecordError("record is neither open nor done")
    return _parse_body(body), state == DONE


def find_records(content: bytes) -> Iterator[FoundRecord]:
    """Every record of a file, and every damaged stretch once."""
    offset, damaged_from = 0, None
    while offset < len(content):
        try:
            frame, is_done = parse_record(content[offset : offset + HEAD_BYTES + MAX_BODY_BYTES])
        except SpoolRecordError:
            damaged_from = offset if damaged_from is None else damaged_from
            following = content.find(MARK, offset + 1)
            offset = len(content) if following < 0 else following
            continue
        if damaged_from is not None:
            yield FoundRecord(damaged_from, offset - damaged_from, None, is_done=False)
            damaged_from = None
        (length,) = _LENGTH.unpack_from(content, offset + 8)
        yield FoundRecord(offset, HEAD_BYTES + length, frame, is_done)
        offset += HEAD_BYTES + length
    if damaged_from is not None:
        yield FoundRecord(damaged_from, len(content) - damaged_from, None, is_done=False)


def _parse_body(body: bytes) -> SpooledFrame:
    try:
        values = msgpack.unpackb(body, raw=False, max_ext_len=0)
        if not isinstance(values, list):
            raise SpoolRecordError("body is not an array")
        return build(SpooledFrame, values)
    # As in `wire`: whatever the unpacker raises, and what the fields' rules do.
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException, WireError) as error:
        raise SpoolRecordError(f"body is not a frame: {type(error).__name__}") from error
