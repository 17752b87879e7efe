"""Messages between node and cloud, to multipart bytes and back. No I/O.

A message is one part: the msgpack array [major, number of the message, field, field ...], fields in the order
of the class. Only FRAME may have a second part, the reference view. Arrays, not maps: field names are not
sent.

- Another major version is refused. Within one, fields are only ever added at the end of an array: a receiver
  ignores trailing fields that it does not know, takes the default for those that the sender does not know yet, and
  refuses an array that is shorter than the first minor version's. New kinds of messages
  are sent only to a peer whose minor version or capabilities say that it knows them.
- A message is valid once built: the constructor checks every field by the rule in its annotation, for our own
  messages as for the peer's. Nothing behind `parse` checks again.
- Whatever the bytes are, `parse` returns a message or raises a `WireError`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, ClassVar, NoReturn

import msgpack

from pipeline.errors import WireFormatError, WireLimitError, WireVersionError
from pipeline.ledger import RESULT_OUTCOMES, Outcome
from pipeline.wire_fields import (
    MAX_TEXT_CHARS,
    Endpoint,
    Flag,
    Many,
    Maybe,
    Name,
    Octets,
    OneOf,
    Part,
    Record,
    Share,
    Text,
    Whole,
    build,
    field_rules,
    pack_fields,
)

WIRE_MAJOR = 1
# 1: WELCOME.offer; HELLO without bundles from a node that fetches them.
# 2: FRAME.trace.
WIRE_MINOR = 2
# Capability: the node runs the bundle that the cloud offers, and fetches it where it lacks it.
BUNDLE_DELIVERY = "bundle-delivery"

# Largest sum of a message's parts: the largest reference and bitstream fit with room to spare, and a flood of
# these costs the cloud no more than a few frames of video would. ZMQ_MAXMSGSIZE is set to it too.
MAX_MESSAGE_BYTES = 256 * 1024
# FRAME has two parts, everything else one. libzmq limits bytes per part, not parts.
MAX_PARTS = 2
# A useful coded frame is under 5 kB; 64 KiB are 10 bits a symbol of a 64 x 28 x 28 latent.
MAX_BITSTREAM_BYTES = 64 * 1024
# zlib makes 150,528 incompressible bytes some 60 bytes longer; 148 KiB leave a margin of 1 kB.
MAX_REFERENCE_BYTES = 148 * 1024
# Half of a message, so that a chunk and its frame of fields always fit.
MAX_CHUNK_BYTES = 128 * 1024
# Bundles are some 10 MB; this keeps offsets sane and a hostile total from filling a disk.
MAX_BUNDLE_BYTES = 1 << 30
# One node is one machine with one link; beyond this it is better split. Numbers fit a byte, so that a camera
# that comes and goes with a reload need not take an old one's number.
MAX_CAMERAS = 64
MAX_CAMERA_NUMBER = 255
# Bytes of the bundle's id in every bitstream, behind version and kind (`pipeline.bitstream`).
BUNDLE_HEAD_BYTES = 8
# A trace's id and the id of the span that the cloud's go under, as W3C Trace Context has them.
TRACE_BYTES = 16 + 8
# Bundles that a node can hold ready, and words that say what it can do.
MAX_BUNDLES = 16
MAX_CAPABILITIES = 32
MAX_CLASSES = 5
# A frame in flight has a ledger entry at the node and a place in the cloud's queue: both are bounded by this.
MAX_CREDIT_FRAMES = 1024
# Longest array of the format (cameras); longer ones are not even unpacked.
MAX_ARRAY_ITEMS = 64
# A heartbeat under 0.1 s is a flood, one over a minute is none; no session outlives ten minutes of silence.
MIN_HEARTBEAT_MS, MAX_HEARTBEAT_MS = 100, 60_000
MAX_PEER_TIMEOUT_MS = 600_000

# Signed 64 bits hold every stamp and are safe in any language; captured_ns and tokens may use all 64.
MAX_COUNT = (1 << 63) - 1
MAX_UINT64 = (1 << 64) - 1
MAX_UINT32 = (1 << 32) - 1


class RejectCode(StrEnum):
    """Why the cloud refuses a session or ends it."""

    BAD_VERSION = "bad_version"
    UNKNOWN_BUNDLE = "unknown_bundle"
    MALFORMED = "malformed"
    FULL = "full"
    NOT_AUTHORISED = "not_authorised"
    LIMITS = "limits"
    NO_SESSION = "no_session"
    SHUTTING_DOWN = "shutting_down"


Count = Annotated[int, Whole(0, MAX_COUNT)]
UInt64 = Annotated[int, Whole(0, MAX_UINT64)]
Minor = Annotated[int, Whole(0, 255)]
CameraNumber = Annotated[int, Whole(0, MAX_CAMERA_NUMBER)]
ClassIndex = Annotated[int, Whole(0, MAX_UINT32)]
MaybeClassIndex = Annotated[int | None, Maybe(Whole(0, MAX_UINT32))]
Frames = Annotated[int, Whole(0, MAX_CREDIT_FRAMES)]
SafeName = Annotated[str, Name()]
PlainText = Annotated[str, Text()]
BundleId = Annotated[bytes, Octets(32, 32)]
Capabilities = Annotated[tuple[str, ...], Many(Name(), 0, MAX_CAPABILITIES)]


@dataclass(frozen=True, slots=True)
class CameraEntry(Record):
    """A camera of a node, with the number that stands for it in this session."""

    number: CameraNumber
    name: SafeName


@dataclass(frozen=True, slots=True)
class TopClass(Record):
    """One of the most probable classes."""

    index: ClassIndex
    name: PlainText
    probability: Annotated[float, Share()]


@dataclass(frozen=True, slots=True)
class Timings(Record):
    """Where the cloud's time went, in microseconds.

    Attributes:
        queue_us: receipt to the start of the batch.
        decode_us / classify_us: the batch's stages, whole: divide by the batch for a frame's share.
        cloud_us: receipt to this RESULT.
    """

    queue_us: Count = 0
    decode_us: Count = 0
    classify_us: Count = 0
    cloud_us: Count = 0


@dataclass(frozen=True, slots=True)
class Hello(Record):
    """Node: asks for a session.

    Attributes:
        minor: minor version that the node speaks.
        boot_id: random at every start of the node; with node, camera and sequence it names a frame for good.
        bundle_ids: the bundle that the node encodes with, then others that its older frames are coded with; none
            while it has yet to fetch its first one.
        cameras: numbers and names, each unique.
    """

    minor: Minor
    node: SafeName
    boot_id: Annotated[bytes, Octets(16, 16)]
    bundle_ids: Annotated[tuple[bytes, ...], Many(Octets(32, 32), 0, MAX_BUNDLES)]
    cameras: Annotated[tuple[CameraEntry, ...], Many(Part(CameraEntry), 1, MAX_CAMERAS)]
    capabilities: Capabilities = ()

    def _check_together(self) -> None:
        if not self.bundle_ids and BUNDLE_DELIVERY not in self.capabilities:
            raise WireLimitError("Hello.bundle_ids: must have at least 1 entry without bundle-delivery")
        for values in ({entry.number for entry in self.cameras}, {entry.name for entry in self.cameras}):
            if len(values) != len(self.cameras):
                raise WireFormatError("Hello.cameras: numbers and names must be unique")


@dataclass(frozen=True, slots=True)
class Welcome(Record):
    """Cloud: the session is open.

    Attributes:
        bundle_id: one of the node's, the first that the cloud has; with bundle-delivery it may be another, which the
            node has to fetch before it may send. Frames coded earlier may use any other of the node's.
        credit: frames that the node may send at once.
        max_message_bytes: largest message that the cloud accepts.
        heartbeat_ms: silence after which either side pings; peer_timeout_ms: after which the peer is lost.
        capabilities: those of the node's that the cloud has too.
        offer: the bundle that the node should run, for one with bundle-delivery; sent again when it changes.
    """

    added_later: ClassVar[int] = 1

    minor: Minor
    session_id: Annotated[bytes, Octets(8, 8)]
    bundle_id: BundleId
    credit: Frames
    max_message_bytes: Annotated[int, Whole(1024, MAX_UINT32)]
    heartbeat_ms: Annotated[int, Whole(MIN_HEARTBEAT_MS, MAX_HEARTBEAT_MS)]
    peer_timeout_ms: Annotated[int, Whole(MIN_HEARTBEAT_MS, MAX_PEER_TIMEOUT_MS)]
    capabilities: Capabilities = ()
    offer: Annotated[bytes | None, Maybe(Octets(32, 32))] = None

    def _check_together(self) -> None:
        if self.peer_timeout_ms <= self.heartbeat_ms:
            raise WireLimitError("Welcome.peer_timeout_ms: must exceed heartbeat_ms")


@dataclass(frozen=True, slots=True)
class Reject(Record):
    """Cloud: no session, or no longer one."""

    code: Annotated[RejectCode, OneOf(frozenset(RejectCode))]
    text: PlainText = ""


@dataclass(frozen=True, slots=True)
class Credit(Record):
    """Cloud: the node may send so many frames more."""

    frames: Annotated[int, Whole(1, MAX_CREDIT_FRAMES)]


@dataclass(frozen=True, slots=True)
class FrameMessage(Record):
    """Node: one coded frame. Costs one credit.

    Attributes:
        camera: number agreed in HELLO.
        captured_ns: the node's monotonic stamp; opaque to the cloud, which echoes it.
        age_us: capture to sending.
        label: class index of a labelled picture.
        reference: the view, uint8 224 x 224 x 3 BGR in zlib; the second part of the message. Not inflated
            here.
        trace: of a frame that is traced: ids of its trace and of the node's span. Left out of the array otherwise.
    """

    added_later: ClassVar[int] = 1

    camera: CameraNumber
    sequence: Count
    captured_ns: UInt64
    age_us: Count
    label: MaybeClassIndex
    bitstream: Annotated[bytes, Octets(1, MAX_BITSTREAM_BYTES)]
    reference: Annotated[bytes | None, Maybe(Octets(1, MAX_REFERENCE_BYTES))] = None
    trace: Annotated[bytes | None, Maybe(Octets(TRACE_BYTES, TRACE_BYTES))] = None

    @property
    def bundle_head(self) -> bytes:
        """What the bitstream's header says of its bundle, unchecked: to find the decoder, which checks it."""
        return self.bitstream[2 : 2 + BUNDLE_HEAD_BYTES]


@dataclass(frozen=True, slots=True)
class Result(Record):
    """Cloud: what became of one frame.

    Attributes:
        camera / sequence / captured_ns: the frame's, echoed.
        classes: most probable first; empty unless the outcome is ok.
        reference_top1: what the uncompressed classifier says; None without a reference.
        batch_frames: frames in its batch, 0 if it never was in one.
        credit: frames granted with this message.
        repeated: answered before; this is the same answer.
        text: why, for other outcomes than ok.
    """

    camera: CameraNumber
    sequence: Count
    captured_ns: UInt64
    outcome: Annotated[Outcome, OneOf(RESULT_OUTCOMES)]
    classes: Annotated[tuple[TopClass, ...], Many(Part(TopClass), 0, MAX_CLASSES)] = ()
    reference_top1: MaybeClassIndex = None
    timings: Annotated[Timings, Part(Timings)] = Timings()
    batch_frames: Annotated[int, Whole(0, MAX_CREDIT_FRAMES)] = 0
    credit: Frames = 0
    repeated: Annotated[bool, Flag()] = False
    text: PlainText = ""


@dataclass(frozen=True, slots=True)
class Ping(Record):
    """Either side: answer with a PONG of the same token."""

    token: UInt64
    sent_ns: UInt64


@dataclass(frozen=True, slots=True)
class Pong(Record):
    """Either side: a PING's fields, echoed."""

    token: UInt64
    sent_ns: UInt64


@dataclass(frozen=True, slots=True)
class Redirect(Record):
    """Cloud: open the session at another endpoint."""

    endpoint: Annotated[str, Endpoint()]
    text: PlainText = ""


@dataclass(frozen=True, slots=True)
class BundleRequest(Record):
    """Node: send a piece of a bundle."""

    bundle_id: BundleId
    offset: Annotated[int, Whole(0, MAX_BUNDLE_BYTES)]
    length: Annotated[int, Whole(1, MAX_CHUNK_BYTES)]


@dataclass(frozen=True, slots=True)
class BundleChunk(Record):
    """Cloud: a piece of a bundle of `total` bytes."""

    bundle_id: BundleId
    offset: Annotated[int, Whole(0, MAX_BUNDLE_BYTES)]
    total: Annotated[int, Whole(1, MAX_BUNDLE_BYTES)]
    chunk: Annotated[bytes, Octets(1, MAX_CHUNK_BYTES)]

    def _check_together(self) -> None:
        if self.offset + len(self.chunk) > self.total:
            raise WireLimitError("BundleChunk.total: must reach to the end of the chunk")


@dataclass(frozen=True, slots=True)
class Bye(Record):
    """Either side: the session ends here, in order."""

    reason: PlainText = ""


Message = (
    Hello
    | Welcome
    | Reject
    | Credit
    | FrameMessage
    | Result
    | Ping
    | Pong
    | Redirect
    | BundleRequest
    | BundleChunk
    | Bye
)

#: The numbers on the wire; a number is never used again for something else.
MESSAGE_TYPES: dict[int, type[Message]] = {
    1: Hello,
    2: Welcome,
    3: Reject,
    4: Credit,
    5: FrameMessage,
    6: Result,
    7: Ping,
    8: Pong,
    9: Redirect,
    10: BundleRequest,
    11: BundleChunk,
    12: Bye,
}
_NUMBERS: dict[type[Message], int] = {kind: number for number, kind in MESSAGE_TYPES.items()}


def pack(message: Message) -> list[bytes]:
    """Turn a message into its parts: one, or two for a FRAME with a reference. Valid messages never fail."""
    values = pack_fields(message)
    second = []
    if isinstance(message, FrameMessage):
        *values, reference, trace = values
        second = [reference]
        values += [] if trace is None else [trace]
    first: bytes = msgpack.packb([WIRE_MAJOR, _NUMBERS[type(message)], *values], use_bin_type=True)
    return [first, *(part for part in second if part is not None)]


def parse(parts: Sequence[bytes]) -> Message:
    """Turn a received multipart message into its value.

    Args:
        parts: without routing id or delimiter.
    Raises:
        WireFormatError: not a message.
        WireVersionError: another major version.
        WireLimitError: a message beyond a limit.
    """
    if not 1 <= len(parts) <= MAX_PARTS:
        raise WireLimitError(f"message has {len(parts)} parts: must be 1 to {MAX_PARTS}")
    if sum(len(part) for part in parts) > MAX_MESSAGE_BYTES:
        raise WireLimitError(f"message is larger than {MAX_MESSAGE_BYTES} bytes")
    kind, values = _parse_array(parts[0])
    if kind is FrameMessage:
        # The reference is a field of the class but never an element of the array; the trace may be one.
        num_values = len(field_rules(FrameMessage)) - 1 - FrameMessage.added_later
        if len(values) < num_values:
            raise WireFormatError(f"FrameMessage: has {len(values)} fields, needs {num_values}")
        reference = bytes(parts[1]) if len(parts) > 1 else None
        trace = values[num_values] if len(values) > num_values else None
        values = [*values[:num_values], reference, trace]
    elif len(parts) > 1:
        raise WireFormatError(f"{kind.__name__} has a second part")
    return build(kind, values)


def _parse_array(part: bytes) -> tuple[type[Message], list[Any]]:
    try:
        values = msgpack.unpackb(
            part,
            raw=False,
            max_str_len=4 * MAX_TEXT_CHARS,
            max_bin_len=MAX_CHUNK_BYTES,
            max_array_len=MAX_ARRAY_ITEMS,
            max_map_len=0,
            max_ext_len=0,
            ext_hook=_refuse_extension,
        )
    # What the unpacker raises for bytes that are not msgpack, for limits, bad UTF-8, depth (the compiled one:
    # ValueError; the pure one: RecursionError) and extension types.
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
        raise WireFormatError(f"not a msgpack array within limits: {type(error).__name__}") from error
    if not isinstance(values, list) or not values:
        raise WireFormatError("not a msgpack array with a version")
    major = values[0]
    if not isinstance(major, int) or isinstance(major, bool):
        raise WireFormatError("the version is no whole number")
    if major != WIRE_MAJOR:
        raise WireVersionError(major, WIRE_MAJOR)
    number = values[1] if len(values) > 1 else None
    kind = MESSAGE_TYPES.get(number) if isinstance(number, int) and not isinstance(number, bool) else None
    if kind is None:
        raise WireFormatError("unknown message number")
    return kind, values[2:]


def _refuse_extension(code: int, content: bytes) -> NoReturn:
    raise ValueError(f"extension type {code}")
