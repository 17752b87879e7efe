"""Records of the spool: what was written comes back; damage is found, counted once, and costs what it hit."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import SpoolRecordError
from pipeline.spool_records import (
    DONE,
    HEAD_BYTES,
    MARK,
    STATE_OFFSET,
    SpooledFrame,
    find_records,
    pack_record,
    parse_record,
)
from pipeline.wire import MAX_BITSTREAM_BYTES, MAX_REFERENCE_BYTES

FRAME = SpooledFrame("gate", 7, 4, 48, bytes(range(32)), 1_700_000_000_000, 967, b"bits" * 30, None)


def frames(count: int) -> list[SpooledFrame]:
    return [replace(FRAME, sequence=number, bitstream=bytes([number]) * (50 + number)) for number in range(count)]


def content_of(records: list[SpooledFrame]) -> bytes:
    return b"".join(map(pack_record, records))


@pytest.mark.parametrize(
    "frame",
    [
        FRAME,
        replace(FRAME, label=None, reference=b"view"),
        replace(FRAME, bitstream=bytes(MAX_BITSTREAM_BYTES), reference=bytes(MAX_REFERENCE_BYTES)),
        replace(FRAME, bitstream=MARK * 20),  # the mark inside a record is no record
    ],
)
def test_round_trip(frame: SpooledFrame) -> None:
    assert parse_record(pack_record(frame) + b"more") == (frame, False)
    assert [found.frame for found in find_records(pack_record(frame))] == [frame]


def test_layout_is_fixed() -> None:
    """A newer program reads what an older one left: these bytes change only with the name of the files."""
    frame = SpooledFrame("a", 1, 2, 3, bytes(32), 4, None, b"x", None)
    body = b"\x99\xa1a\x01\x02\x03\xc4\x20" + bytes(32) + b"\x04\xc0\xc4\x01x\xc0"
    record = pack_record(frame)
    assert record[:12] == b"RACFopen" + len(body).to_bytes(4, "little")
    assert record[HEAD_BYTES:] == body


def test_ended_frame_is_marked_in_its_place() -> None:
    content = bytearray(content_of(frames(3)))
    second = list(find_records(bytes(content)))[1]
    content[second.offset + STATE_OFFSET : second.offset + STATE_OFFSET + 4] = DONE
    assert [found.is_done for found in find_records(bytes(content))] == [False, True, False]


@pytest.mark.parametrize("cut", [1, 4, HEAD_BYTES - 1, HEAD_BYTES, 40])
def test_torn_end_costs_the_last_record(cut: int) -> None:
    whole = frames(3)
    found = list(find_records(content_of(whole)[:-cut]))
    assert [item.frame for item in found] == [whole[0], whole[1], None]


@given(st.data())
@settings(derandomize=True, deadline=None, max_examples=300)
def test_damage_costs_the_records_that_it_hit(data: st.DataObject) -> None:
    whole = frames(6)
    content = bytearray(content_of(whole))
    places = list(find_records(bytes(content)))
    hit = set()
    for offset in data.draw(st.sets(st.integers(0, len(content) - 1), min_size=1, max_size=3)):
        content[offset] ^= data.draw(st.integers(1, 255))
        hit |= {place.frame for place in places if place.offset <= offset < place.offset + place.num_bytes}
    found = list(find_records(bytes(content)))
    assert [item.frame for item in found if item.frame is not None] == [frame for frame in whole if frame not in hit]
    assert 1 <= sum(item.frame is None for item in found) <= len(hit)
    # Nothing is left out and nothing is counted twice.
    assert [item.offset for item in found[1:]] == [item.offset + item.num_bytes for item in found[:-1]]
    assert sum(item.num_bytes for item in found) == len(content)


@given(st.binary(max_size=300))
@settings(derandomize=True, deadline=None)
def test_any_bytes_are_survived(content: bytes) -> None:
    assert all(found.frame is None for found in find_records(content))


@pytest.mark.parametrize("size", [0, 3, HEAD_BYTES])
def test_short_bytes_are_refused(size: int) -> None:
    with pytest.raises(SpoolRecordError, match="cut off"):
        parse_record(pack_record(FRAME)[:size])
