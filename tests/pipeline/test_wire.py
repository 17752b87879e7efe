"""Messages: what one side packs the other parses; anything else is a WireError and nothing else.

The golden messages under tests/golden/wire hold the bytes of version 1. They change only with WIRE_MAJOR or
by adding fields with WIRE_MINOR; then run the tests once with RAC_REGENERATE_GOLDEN=1.
"""

from __future__ import annotations

import os
import struct
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, get_args

import msgpack
import msgpack.fallback
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import wire
from pipeline.errors import WireError, WireFormatError, WireLimitError, WireVersionError
from pipeline.ledger import RESULT_OUTCOMES, Outcome
from pipeline.wire import (
    MESSAGE_TYPES,
    BundleChunk,
    BundleRequest,
    Bye,
    CameraEntry,
    Credit,
    FrameMessage,
    Hello,
    Message,
    Ping,
    Pong,
    Redirect,
    Reject,
    RejectCode,
    Result,
    Timings,
    TopClass,
    Welcome,
    pack,
    parse,
)
from pipeline.wire_fields import Record, clean_text, field_rules, is_endpoint, is_name

# The same examples every time, on a machine that may be busy.
steady = settings(derandomize=True, deadline=None)

GOLDEN = Path(__file__).parents[1] / "golden" / "wire"

HELLO = Hello(
    minor=0,
    node="dock-7",
    boot_id=bytes(range(16)),
    bundle_ids=(b"\x11" * 32, b"\x22" * 32),
    cameras=(CameraEntry(0, "gate"), CameraEntry(3, "belt.left")),
    capabilities=("reference",),
)
FRAME = FrameMessage(
    camera=3,
    sequence=41,
    captured_ns=(1 << 64) - 1,
    age_us=1_250,
    label=898,
    bitstream=b"\x01\x00" + bytes(range(30)),
)
EXAMPLES: dict[str, Message] = {
    "hello": HELLO,
    "welcome": Welcome(
        minor=0,
        session_id=b"sessions",
        bundle_id=b"\x22" * 32,
        credit=8,
        max_message_bytes=262_144,
        heartbeat_ms=2000,
        peer_timeout_ms=6000,
        capabilities=("reference",),
    ),
    "welcome-with-offer": Welcome(
        minor=1,
        session_id=b"sessions",
        bundle_id=b"\x22" * 32,
        credit=0,
        max_message_bytes=262_144,
        heartbeat_ms=2000,
        peer_timeout_ms=6000,
        capabilities=(wire.BUNDLE_DELIVERY,),
        offer=b"\x33" * 32,
    ),
    "hello-without-bundle": replace(HELLO, minor=1, bundle_ids=(), capabilities=(wire.BUNDLE_DELIVERY,)),
    "reject": Reject(RejectCode.UNKNOWN_BUNDLE, "this cloud decodes 2222222222222222"),
    "credit": Credit(3),
    "frame": FRAME,
    "frame-with-reference": FrameMessage(
        camera=0, sequence=7, captured_ns=5, age_us=0, label=None, bitstream=b"\x01", reference=b"zlib bytes"
    ),
    "frame-with-trace": replace(FRAME, trace=bytes(range(24))),
    "result": Result(
        camera=3,
        sequence=41,
        captured_ns=(1 << 64) - 1,
        outcome=Outcome.OK,
        classes=(TopClass(898, "water bottle", 0.75), TopClass(720, "pill bottle", 0.125)),
        reference_top1=898,
        timings=Timings(queue_us=900, decode_us=2_100, classify_us=3_300, cloud_us=7_000),
        batch_frames=4,
        credit=1,
        repeated=False,
        text="",
    ),
    "result-corrupt": Result(
        camera=0,
        sequence=8,
        captured_ns=5,
        outcome=Outcome.CORRUPT,
        credit=1,
        repeated=True,
        text="CRC differs",
    ),
    "ping": Ping(token=9, sent_ns=123_456_789),
    "pong": Pong(token=9, sent_ns=123_456_789),
    "redirect": Redirect("tcp://[2001:db8::1]:5570", "busy here"),
    "bundle-request": BundleRequest(b"\x22" * 32, 131_072, 131_072),
    "bundle-chunk": BundleChunk(b"\x22" * 32, 131_072, 131_080, b"the rest"),
    "bye": Bye("stopped by signal"),
}

names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", fullmatch=True)
texts = st.text(st.characters(exclude_categories=["C", "Z"], include_characters=" "), max_size=256)
counts = st.integers(0, wire.MAX_COUNT)
stamps = st.integers(0, wire.MAX_UINT64)
class_indices = st.integers(0, wire.MAX_UINT32)
bundle_ids = st.binary(min_size=32, max_size=32)
capabilities = st.lists(names, max_size=3).map(tuple)
cameras = st.dictionaries(st.integers(0, 255), names, min_size=1, max_size=5).filter(
    lambda numbered: len(set(numbered.values())) == len(numbered)
)
MESSAGES: dict[type[Message], st.SearchStrategy[Any]] = {
    Hello: st.builds(
        Hello,
        minor=st.integers(0, 255),
        node=names,
        boot_id=st.binary(min_size=16, max_size=16),
        bundle_ids=st.lists(bundle_ids, min_size=1, max_size=3).map(tuple),
        cameras=cameras.map(lambda numbered: tuple(CameraEntry(*entry) for entry in numbered.items())),
        capabilities=capabilities,
    ),
    Welcome: st.builds(
        Welcome,
        minor=st.integers(0, 255),
        session_id=st.binary(min_size=8, max_size=8),
        bundle_id=bundle_ids,
        credit=st.integers(0, wire.MAX_CREDIT_FRAMES),
        max_message_bytes=st.integers(1024, wire.MAX_UINT32),
        heartbeat_ms=st.integers(100, 60_000),
        peer_timeout_ms=st.integers(60_001, 600_000),
        capabilities=capabilities,
        offer=st.none() | bundle_ids,
    ),
    Reject: st.builds(Reject, code=st.sampled_from(RejectCode), text=texts),
    Credit: st.builds(Credit, frames=st.integers(1, wire.MAX_CREDIT_FRAMES)),
    FrameMessage: st.builds(
        FrameMessage,
        camera=st.integers(0, 255),
        sequence=counts,
        captured_ns=stamps,
        age_us=counts,
        label=st.none() | class_indices,
        bitstream=st.binary(min_size=1, max_size=2000),
        reference=st.none() | st.binary(min_size=1, max_size=2000),
        trace=st.none() | st.binary(min_size=24, max_size=24),
    ),
    Result: st.builds(
        Result,
        camera=st.integers(0, 255),
        sequence=counts,
        captured_ns=stamps,
        outcome=st.sampled_from(sorted(RESULT_OUTCOMES)),
        classes=st.lists(st.builds(TopClass, class_indices, texts, st.floats(0, 1)), max_size=5).map(tuple),
        reference_top1=st.none() | class_indices,
        timings=st.builds(Timings, counts, counts, counts, counts),
        batch_frames=st.integers(0, wire.MAX_CREDIT_FRAMES),
        credit=st.integers(0, wire.MAX_CREDIT_FRAMES),
        repeated=st.booleans(),
        text=texts,
    ),
    Ping: st.builds(Ping, stamps, stamps),
    Pong: st.builds(Pong, stamps, stamps),
    Redirect: st.builds(Redirect, st.integers(1, 65_535).map("tcp://cloud-2.example:{}".format), texts),
    BundleRequest: st.builds(
        BundleRequest, bundle_ids, st.integers(0, wire.MAX_BUNDLE_BYTES), st.integers(1, wire.MAX_CHUNK_BYTES)
    ),
    BundleChunk: st.builds(
        BundleChunk,
        bundle_ids,
        st.integers(0, 1000),
        st.integers(3000, wire.MAX_BUNDLE_BYTES),
        st.binary(min_size=1, max_size=2000),
    ),
    Bye: st.builds(Bye, texts),
}
any_message = st.one_of(*MESSAGES.values())


def parse_or_wire_error(parts: list[bytes]) -> Message | None:
    """Parse; None where the bytes were refused. Any other exception fails the test."""
    try:
        return parse(parts)
    except WireError as error:
        assert type(error) in (WireFormatError, WireVersionError, WireLimitError)
        assert len(str(error)) < 300  # what the peer sent must not fill our log
        return None


@steady
@given(any_message)
def test_round_trip_of_every_message(message: Message) -> None:
    parts = pack(message)
    assert parse(parts) == message
    assert sum(map(len, parts)) <= wire.MAX_MESSAGE_BYTES


def test_tables_name_every_message_once() -> None:
    assert set(MESSAGE_TYPES.values()) == set(get_args(Message)) == set(MESSAGES)
    assert {type(message) for message in EXAMPLES.values()} == set(MESSAGES)
    assert sorted(MESSAGE_TYPES) == list(range(1, len(MESSAGE_TYPES) + 1))


@pytest.mark.parametrize("name", EXAMPLES)
def test_golden_bytes(name: str) -> None:
    """One line of hex for each part."""
    path = GOLDEN / f"{name}.hex"
    if os.environ.get("RAC_REGENERATE_GOLDEN"):
        path.write_text("".join(f"{part.hex()}\n" for part in pack(EXAMPLES[name])), encoding="ascii")
    parts = [bytes.fromhex(line) for line in path.read_text(encoding="ascii").split()]
    assert pack(EXAMPLES[name]) == parts
    assert parse(parts) == EXAMPLES[name]


#: What older minor versions send, and the example that it means now.
OLDER = {"welcome-minor-0": "welcome"}


@pytest.mark.parametrize(("older", "name"), OLDER.items())
def test_message_of_an_older_minor_is_read(older: str, name: str) -> None:
    lines = (GOLDEN / f"{older}.hex").read_text(encoding="ascii").split()
    assert parse([bytes.fromhex(line) for line in lines]) == EXAMPLES[name]


def test_no_golden_file_is_left_over() -> None:
    assert {path.stem for path in GOLDEN.glob("*.hex")} == set(EXAMPLES) | set(OLDER)


@steady
@given(st.lists(st.binary(max_size=300), max_size=4))
def test_random_bytes_give_wire_error(parts: list[bytes]) -> None:
    parse_or_wire_error(parts)


# Random bytes rarely get past the header: these start right and go wrong inside.
msgpack_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.floats()
    | st.text(max_size=20)
    | st.binary(max_size=40),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=20,
)


@steady
@given(st.sampled_from([0, *MESSAGE_TYPES, 13, -1, True, None]), st.lists(msgpack_values, max_size=13))
def test_arrays_of_anything_give_message_or_wire_error(number: object, values: list[object]) -> None:
    parse_or_wire_error([msgpack.packb([wire.WIRE_MAJOR, number, *values])])


@steady
@given(any_message, st.data())
def test_field_replaced_by_anything_gives_message_or_wire_error(message: Message, data: st.DataObject) -> None:
    first, *rest = pack(message)
    values = msgpack.unpackb(first)
    values[data.draw(st.integers(0, len(values) - 1))] = data.draw(msgpack_values)
    parsed = parse_or_wire_error([msgpack.packb(values), *rest])
    if parsed is not None:
        assert parse(pack(parsed)) == parsed


@steady
@given(any_message, st.data())
def test_mutated_bytes_give_message_or_wire_error(message: Message, data: st.DataObject) -> None:
    first, *rest = pack(message)
    mutated = bytearray(first)
    for _ in range(data.draw(st.integers(1, 4))):
        mutated[data.draw(st.integers(0, min(len(mutated), 200) - 1))] = data.draw(st.integers(0, 255))
    parsed = parse_or_wire_error([bytes(mutated), *rest])
    if parsed is not None:
        assert parse(pack(parsed)) == parsed


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_truncation_is_refused(name: str) -> None:
    first, *rest = pack(EXAMPLES[name])
    for end in range(len(first)):
        with pytest.raises(WireFormatError):
            parse([first[:end], *rest])
    with pytest.raises(WireFormatError):
        parse([first + b"\x00", *rest])


HOSTILE = {
    "nothing": b"",
    "empty array": b"\x90",
    "no array": b"\x01",
    "array of 4 billion": b"\xdd\xff\xff\xff\xff",
    "array of 65,535": b"\xdc\xff\xff",
    "map of 4 billion": b"\xdf\xff\xff\xff\xff",
    "empty map as field": b"\x93\x01\x0c\x80",
    "map": b"\x81\x01\x01",
    "string of 4 billion": b"\x93\x01\x0c\xdb\xff\xff\xff\xff",
    "bytes of 4 billion": b"\x93\x01\x0c\xc6\xff\xff\xff\xff",
    "nested 100,000 deep": b"\x91" * 100_000,
    "nested 400 deep, closed": b"\x91" * 400 + b"\xc0",
    "nested maps": b"\x81\xc0" * 50_000,
    "bomb: arrays that each promise 60": b"\xdc\x00\x3c" * 80_000,
    "extension": b"\x93\x01\x0c\xc7\x01\x05\x00",
    "empty extension": b"\x93\x01\x0c\xc7\x00\x05",
    "extension of 4 billion": b"\x93\x01\x0c\xc9\xff\xff\xff\xff\x05",
    "timestamp": b"\x93\x01\x0c\xd6\xff\x00\x00\x00\x00",
    "empty timestamp": b"\x93\x01\x0c\xc7\x00\xff",
    "reserved byte": b"\x93\x01\x0c\xc1",
    "bad UTF-8": b"\x93\x01\x0c\xa2\xff\xfe",
    "UTF-8 surrogate": b"\x93\x01\x0c\xa3\xed\xa0\x80",
    "two messages in one part": b"\x93\x01\x0c\xa0" * 2,
    "version is text": b"\x93\xa11\x0c\xa0",
    "version is true": b"\x93\xc3\x0c\xa0",
    "number missing": b"\x91\x01",
    "number is an array": b"\x93\x01\x90\xa0",
    "number is true": b"\x93\x01\xc3\x01",
    "pickle": b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00\x8c\x02os\x94\x8c\x06system\x93",
}


@pytest.mark.parametrize("part", HOSTILE.values(), ids=HOSTILE)
def test_hostile_msgpack_gives_wire_format_error(part: bytes) -> None:
    with pytest.raises(WireFormatError):
        parse([part])


@pytest.mark.parametrize("part", HOSTILE.values(), ids=HOSTILE)
def test_hostile_msgpack_gives_wire_error_without_the_compiled_unpacker(
    part: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where msgpack has no wheel it falls back to Python, which fails in other ways."""
    monkeypatch.setattr(msgpack, "unpackb", msgpack.fallback.unpackb)
    with pytest.raises(WireError):
        parse([part])


def test_other_major_version_is_named() -> None:
    with pytest.raises(WireVersionError, match="version 2") as caught:
        parse([msgpack.packb([2, "whatever", None])])
    assert caught.value.major == 2


def test_parts_are_limited() -> None:
    bye, frame = pack(EXAMPLES["bye"]), pack(EXAMPLES["frame-with-reference"])
    for parts in ([], [*frame, b"x"], [*bye, b"", b""], [b"\x00" * (wire.MAX_MESSAGE_BYTES + 1)]):
        with pytest.raises(WireLimitError):
            parse(parts)
    with pytest.raises(WireFormatError, match="second part"):
        parse([*bye, b"x"])
    with pytest.raises(WireLimitError, match="reference"):
        parse([frame[0], b""])


def test_largest_frame_fits_a_message() -> None:
    frame = replace(
        FRAME,
        bitstream=bytes(wire.MAX_BITSTREAM_BYTES),
        reference=bytes(wire.MAX_REFERENCE_BYTES),
    )
    assert parse(pack(frame)) == frame


def test_largest_chunk_and_hello_fit_a_message() -> None:
    chunk = BundleChunk(b"\x00" * 32, 0, wire.MAX_BUNDLE_BYTES, bytes(wire.MAX_CHUNK_BYTES))
    hello = replace(
        HELLO,
        bundle_ids=tuple(bytes([index]) * 32 for index in range(wire.MAX_BUNDLES)),
        cameras=tuple(CameraEntry(index, f"{index:x}".rjust(64, "c")) for index in range(wire.MAX_CAMERAS)),
        capabilities=tuple(f"{index:x}".rjust(64, "c") for index in range(wire.MAX_CAPABILITIES)),
    )
    for message in (chunk, hello):
        assert parse(pack(message)) == message


@pytest.mark.parametrize("name", [name for name in EXAMPLES if name != "frame-with-reference"])
def test_fields_of_a_newer_minor_are_ignored(name: str) -> None:
    (first,) = pack(EXAMPLES[name])
    newer = msgpack.packb([*msgpack.unpackb(first), None, 7, ["x", [1.5]]])
    assert parse([newer]) == EXAMPLES[name]


def test_fields_of_a_newer_minor_are_ignored_inside_and_beside_a_reference() -> None:
    first, reference = pack(EXAMPLES["frame-with-reference"])
    newer = msgpack.packb([*msgpack.unpackb(first), None, "new"])
    assert parse([newer, reference]) == EXAMPLES["frame-with-reference"]
    traced = msgpack.packb([*msgpack.unpackb(pack(EXAMPLES["frame-with-trace"])[0]), "new"])
    assert parse([traced]) == EXAMPLES["frame-with-trace"]
    values = msgpack.unpackb(pack(EXAMPLES["result"])[0])
    values[6][0].append("new")
    assert parse([msgpack.packb(values)]) == EXAMPLES["result"]


@pytest.mark.parametrize("name", EXAMPLES)
def test_missing_field_is_refused(name: str) -> None:
    first, *rest = pack(EXAMPLES[name])
    values = msgpack.unpackb(first)
    missing = 1 + type(EXAMPLES[name]).added_later
    with pytest.raises(WireFormatError, match="needs"):
        parse([msgpack.packb(values[:-missing]), *rest])


def cases_of_wrong_values() -> list[tuple[str, str, object, type[WireError]]]:
    """(example, field, value, error)."""
    return [
        ("hello", "node", "", WireFormatError),
        ("hello", "node", "n" * 65, WireFormatError),
        ("hello", "node", "../etc", WireFormatError),
        ("hello", "node", "a\n", WireFormatError),
        ("hello", "boot_id", b"short", WireLimitError),
        ("hello", "boot_id", bytearray(16), WireFormatError),
        ("hello", "bundle_ids", (), WireLimitError),
        ("hello", "bundle_ids", (b"\x00" * 31,), WireLimitError),
        ("hello", "cameras", (), WireLimitError),
        ("hello", "cameras", (CameraEntry(0, "a"), CameraEntry(0, "b")), WireFormatError),
        ("hello", "cameras", (CameraEntry(0, "a"), CameraEntry(1, "a")), WireFormatError),
        ("hello", "cameras", [CameraEntry(0, "a")], WireFormatError),
        ("hello", "capabilities", ("x",) * 33, WireLimitError),
        ("welcome", "credit", 1025, WireLimitError),
        ("welcome", "credit", True, WireFormatError),
        ("welcome", "heartbeat_ms", 0, WireLimitError),
        ("welcome", "peer_timeout_ms", 2000, WireLimitError),
        ("reject", "code", "rude", WireFormatError),
        ("reject", "text", "\x1b[2J", WireFormatError),
        ("reject", "text", "x" * 257, WireLimitError),
        ("credit", "frames", 0, WireLimitError),
        ("credit", "frames", 1.0, WireFormatError),
        ("frame", "sequence", -1, WireLimitError),
        ("frame", "label", "cat", WireFormatError),
        ("frame", "bitstream", b"", WireLimitError),
        ("frame", "bitstream", bytes(wire.MAX_BITSTREAM_BYTES + 1), WireLimitError),
        ("frame", "reference", bytes(wire.MAX_REFERENCE_BYTES + 1), WireLimitError),
        ("frame", "trace", bytes(wire.TRACE_BYTES + 1), WireLimitError),
        ("frame", "trace", "text", WireFormatError),
        ("result", "outcome", Outcome.SUPERSEDED, WireFormatError),
        ("result", "outcome", Outcome.UNROUTABLE, WireFormatError),
        ("result", "classes", (TopClass(0, "a", 0.1),) * 6, WireLimitError),
        ("result", "repeated", 1, WireFormatError),
        ("redirect", "endpoint", "ipc:///tmp/x", WireFormatError),
        ("bundle-request", "length", 0, WireLimitError),
        ("bundle-chunk", "total", 131_079, WireLimitError),
    ]


@pytest.mark.parametrize(("name", "field", "value", "error"), cases_of_wrong_values())
def test_wrong_value_is_refused_when_built(name: str, field: str, value: object, error: type[WireError]) -> None:
    changed: dict[str, Any] = {field: value}
    with pytest.raises(error, match=rf"^{type(EXAMPLES[name]).__name__}\.{field}:"):
        replace(EXAMPLES[name], **changed)


@pytest.mark.parametrize("probability", [float("nan"), float("inf"), -0.1, 1.5, 1])
def test_probability_must_be_a_finite_share(probability: float) -> None:
    with pytest.raises(WireError):
        TopClass(0, "a", probability)
    values = msgpack.unpackb(pack(EXAMPLES["result"])[0])
    values[6][0][2] = probability
    with pytest.raises(WireError):
        parse([msgpack.packb(values)])
    # As the bytes of a float32, which packs differently.
    packed = msgpack.packb(values).replace(struct.pack(">Bd", 0xCB, probability), struct.pack(">Bf", 0xCA, probability))
    with pytest.raises(WireError):
        parse([packed])


def test_every_field_has_a_rule() -> None:
    for kind in (*MESSAGE_TYPES.values(), CameraEntry, TopClass, Timings):
        assert issubclass(kind, Record)
        assert [name for name, _ in field_rules(kind)] == [field.name for field in fields(kind)]


@steady
@given(st.text(max_size=600))
def test_clean_text_makes_any_text_fit(text: str) -> None:
    Bye(clean_text(text))


def test_names_and_endpoints() -> None:
    assert all(map(is_name, ["a", "dock-7", "10.0.0.1", "x" * 64]))
    assert not any(map(is_name, ["", "_other", ".hidden", "-x", "a/b", "a b", "caf\u00e9", "x" * 65, "a\n"]))
    assert all(map(is_endpoint, ["tcp://127.0.0.1:5570", "tcp://[::1]:1", "tcp://cloud.example:65535"]))
    bad = ["tcp://*:5570", "tcp://host", "tcp://host:0", "tcp://host:65536", "tcp://a;b:1", "ipc://x:1", ""]
    assert not any(map(is_endpoint, bad))
