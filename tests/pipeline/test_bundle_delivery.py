"""A bundle in pieces: the right one comes through whatever the order, a wrong byte never does."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.bundle import DECODER_FILE, MANIFEST_FILE, SIGNATURE_FILE, find_bundle, load_bundle, read_contents
from pipeline.bundle_delivery import (
    CHUNK_BYTES,
    LENGTH_BYTES,
    MAX_PART_BYTES,
    OPEN_REQUESTS,
    REPEAT_NS,
    BundleFetch,
    cut_chunk,
    pack_node_part,
    parse_node_part,
    read_node_part,
)
from pipeline.errors import BundleError, BundleFormatError, BundleMismatchError
from pipeline.wire import BundleChunk, BundleRequest, pack, parse

CONTENTS = read_contents(find_bundle("default"))
PART = pack_node_part(CONTENTS)
ID = hashlib.sha256(CONTENTS[MANIFEST_FILE]).digest()
NODE_FILES = {name: content for name, content in CONTENTS.items() if name != DECODER_FILE}


def chunk(request: BundleRequest, part: bytes = PART) -> BundleChunk:
    """The piece as it comes over the wire."""
    cut = cut_chunk(part, request)
    assert cut is not None
    parsed = parse(pack(cut))
    assert isinstance(parsed, BundleChunk)
    return parsed


def fetch_all(part: bytes, bundle_id: bytes = ID) -> dict[str, bytes]:
    fetch = BundleFetch(bundle_id)
    while not fetch.is_complete:
        for request in fetch.requests(0):
            fetch.take(chunk(request, part))
    return fetch.files()


def test_node_gets_everything_but_the_decoder() -> None:
    assert read_node_part("default") == PART
    assert fetch_all(PART) == NODE_FILES
    assert len(PART) < sum(map(len, CONTENTS.values())) - len(CONTENTS[DECODER_FILE]) + 10


def test_what_was_fetched_loads_under_the_same_id(tmp_path: Path) -> None:
    folder = tmp_path / "bundle"
    folder.mkdir()
    for name, content in fetch_all(PART).items():
        (folder / name).write_bytes(content)
    whole, part = load_bundle("default"), load_bundle(str(folder), is_node_part=True)
    assert (part.bundle_id, part.manifest) == (whole.bundle_id, whole.manifest)
    assert part.tables.keys() == whole.tables.keys()
    # A cloud that is given such a folder says what is missing.
    with pytest.raises(BundleFormatError, match=r"missing.*decoder"):
        load_bundle(str(folder))


def test_first_piece_goes_alone_and_then_a_few_at_a_time() -> None:
    fetch = BundleFetch(ID)
    (first,) = fetch.requests(0)
    assert (first.offset, first.length) == (0, CHUNK_BYTES)
    assert fetch.requests(0) == []
    fetch.take(chunk(first))
    assert [request.offset for request in fetch.requests(0)] == [n * CHUNK_BYTES for n in range(1, OPEN_REQUESTS + 1)]
    assert fetch.requests(0) == []


def test_lost_request_is_made_again() -> None:
    fetch = BundleFetch(ID)
    (first,) = fetch.requests(0)
    assert fetch.next_deadline_ns() == REPEAT_NS
    assert fetch.requests(REPEAT_NS - 1) == []
    assert fetch.requests(REPEAT_NS) == [first]


def test_what_is_there_survives_the_session() -> None:
    fetch = BundleFetch(ID)
    fetch.take(chunk(fetch.requests(0)[0]))
    second, *others = fetch.requests(0)
    fetch.take(chunk(others[0]))
    fetch.lose_link()
    again = fetch.requests(0)
    assert second in again
    assert others[0] not in again


@pytest.mark.parametrize("seed", range(5))
def test_any_order_loss_and_repetition_come_to_the_same(seed: int) -> None:
    chance, fetch, now_ns = random.Random(seed), BundleFetch(ID), 0
    waiting: list[BundleRequest] = []
    while not fetch.is_complete:
        now_ns += REPEAT_NS // 3
        waiting += fetch.requests(now_ns)
        chance.shuffle(waiting)
        for request in waiting[: chance.randint(0, 3)]:
            if chance.random() < 0.8:
                fetch.take(chunk(request))
        waiting = waiting[-6:]
        if chance.random() < 0.05:
            fetch.lose_link()
    assert fetch.files() == NODE_FILES


def test_piece_of_another_bundle_or_one_not_asked_for_changes_nothing() -> None:
    fetch = BundleFetch(ID)
    (first,) = fetch.requests(0)
    fetch.take(replace(chunk(first), bundle_id=bytes(32)))
    fetch.take(chunk(BundleRequest(ID, CHUNK_BYTES, CHUNK_BYTES)))
    assert not fetch.is_complete
    fetch.take(chunk(first))
    fetch.take(chunk(first))


@pytest.mark.parametrize("place", [0, 5, LENGTH_BYTES + 100, CHUNK_BYTES, len(PART) // 2, len(PART) - 1])
def test_flipped_bit_anywhere_is_found(place: int) -> None:
    damaged = bytearray(PART)
    damaged[place] ^= 0x10
    with pytest.raises(BundleMismatchError):
        fetch_all(bytes(damaged))


def test_wrong_manifest_is_found_before_the_rest_is_fetched() -> None:
    fetch = BundleFetch(bytes(32))
    (first,) = fetch.requests(0)
    with pytest.raises(BundleMismatchError, match="what comes"):
        fetch.take(replace(chunk(first), bundle_id=bytes(32)))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda piece: replace(piece, total=piece.total - 1),
        lambda piece: replace(piece, chunk=piece.chunk[:-1]),
    ],
    ids=["another total", "too short"],
)
def test_pieces_that_do_not_fit_are_refused(spoil: Callable[[BundleChunk], BundleChunk]) -> None:
    fetch = BundleFetch(ID)
    fetch.take(chunk(fetch.requests(0)[0]))
    with pytest.raises(BundleMismatchError, match="do not fit"):
        fetch.take(spoil(chunk(fetch.requests(0)[0])))


def test_bundle_beyond_what_a_node_takes_is_refused_by_its_first_piece() -> None:
    fetch = BundleFetch(ID)
    (first,) = fetch.requests(0)
    with pytest.raises(BundleFormatError, match="a node takes"):
        fetch.take(replace(chunk(first), total=MAX_PART_BYTES + 1))


@pytest.mark.parametrize(
    "content", [b"", b"\0\0\0\0", b"\xff\xff\xff\x7f", b"\2\0\0\0{}", PART[:-1], PART + b"x" * 300]
)
def test_bytes_that_are_no_part_are_refused(content: bytes) -> None:
    with pytest.raises(BundleError):
        parse_node_part(ID, content)


def test_right_hash_of_something_that_is_no_manifest_is_refused() -> None:
    manifest = b'{"format_version": 9}'
    part = len(manifest).to_bytes(4, "little") + manifest
    with pytest.raises(BundleFormatError, match="another version"):
        parse_node_part(hashlib.sha256(manifest).digest(), part)


def test_signature_travels_with_the_node_part() -> None:
    signed = {**CONTENTS, SIGNATURE_FILE: b"ab" * 64 + b"\n"}
    assert fetch_all(pack_node_part(signed)) == {**NODE_FILES, SIGNATURE_FILE: b"ab" * 64 + b"\n"}


def test_nothing_is_cut_beyond_the_end() -> None:
    assert cut_chunk(PART, BundleRequest(ID, len(PART), 10)) is None
    last = cut_chunk(PART, BundleRequest(ID, len(PART) - 4, 10))
    assert last is not None
    assert last.chunk == PART[-4:]
