"""What a camera's reader process and its parent say to each other over their socket pair.

    parent -> child   one byte each: REQUEST (send me the newest frame) or STOP
    child -> parent   length u32, then kind u8, counters, body (little-endian)

        STATUS   every half second            body: empty
        OPENED   the first picture is there   body: width u32, height u32
        FRAME    the answer to a REQUEST      body: sequence u64, captured u64, view took u64, label i32, view
        FAILED   the source cannot be read    body: reason, NUL, text; the parent ends the child
        ENDED    a finite source is through   body: empty

Plain structs instead of pickles, read without blocking on the parent's side: a child that is stopped or
killed in the middle of a message leaves a half that is never waited for. There is no shared memory and no
lock between the two, so either may be killed at any time.

Counters hold over restarts: the parent starts each child with the last ones it heard. Every captured frame
has a number; `captured` says below which all of them are settled: given out with a FRAME, dropped for the
rate limit (`rate_limited` of them) or superseded (the rest). A frame in the child's slot is not settled yet.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import Final, Literal

import numpy as np

from pipeline.frames import VIEW_BYTES, VIEW_SIDE_PX, Frame
from pipeline.view import DEFAULT_VIEW, ViewOptions

REQUEST: Final = b"r"
STOP: Final = b"s"
HEARTBEAT_S: Final = 0.5
# A FRAME, or a FAILED with a long text; anything longer is not from our child.
MAX_MESSAGE_BYTES: Final = VIEW_BYTES + 4096

_LENGTH: Final = struct.Struct("<I")
_HEAD: Final = struct.Struct("<BQQQQ")
_SIZE: Final = struct.Struct("<II")
_FRAME: Final = struct.Struct("<QQQi")
_NO_LABEL: Final = -1


class DownReason(StrEnum):
    """Why a camera is down; the label `reason` of rac_node_camera_reconnects_total."""

    OPEN_FAILED = "open_failed"
    READ_TIMEOUT = "read_timeout"
    END_OF_STREAM = "end_of_stream"
    BAD_FRAME = "bad_frame"
    CRASHED = "crashed"


class MessageKind(IntEnum):
    """Kind of a message from the child, as in the module's head."""

    STATUS = 1
    OPENED = 2
    FRAME = 3
    FAILED = 4
    ENDED = 5


@dataclass(frozen=True, slots=True)
class CaptureOptions:
    """How a source is read.

    Attributes:
        fps: highest rate of a live source, or the rate of a waiting one; None: as it comes, or its own rate;
            "max": a live source as it comes, a waiting one as fast as frames are taken.
        loop: whether a waiting source starts again at its end.
        read_timeout_s: longest that one read may take before the reader is ended and started again.
        open_timeout_s: the same for opening. RTSP takes over a second on a good day.
        view: what is shown of each picture.

    Raises:
        ValueError: a number that is not above 0.
    """

    fps: float | Literal["max"] | None = None
    loop: bool = False
    read_timeout_s: float = 5.0
    open_timeout_s: float = 10.0
    view: ViewOptions = DEFAULT_VIEW

    def __post_init__(self) -> None:
        rates = () if self.fps is None or self.fps == "max" else (self.fps,)
        for number in (*rates, self.read_timeout_s, self.open_timeout_s):
            if not 0 < float(number) < float("inf"):
                raise ValueError(f"must be a number above 0: {number!r}")


@dataclass(frozen=True, slots=True)
class Counters:
    """What became of a camera's pictures since the node started.

    Attributes:
        captured: every sequence number below is settled.
        rate_limited: of those, dropped because of --fps.
        bad: pictures that could not be read; they get no sequence number.
        position: pictures of the source's pass that are done with; where a restart goes on.
    """

    captured: int = 0
    rate_limited: int = 0
    bad: int = 0
    position: int = 0


@dataclass(frozen=True, slots=True)
class Message:
    """One message from the child."""

    kind: MessageKind
    counters: Counters
    body: bytes = b""


def pack_message(message: Message) -> bytes:
    """Make the bytes of a message, length first."""
    counters = message.counters
    head = _HEAD.pack(message.kind, counters.captured, counters.rate_limited, counters.bad, counters.position)
    return _LENGTH.pack(len(head) + len(message.body)) + head + message.body


def pack_frame(frame: Frame) -> bytes:
    """Make the body of a FRAME; the camera's name is left out, as the parent knows it."""
    label = _NO_LABEL if frame.label is None else frame.label
    return _FRAME.pack(frame.sequence, frame.captured_ns, frame.view_ns, label) + frame.view.tobytes()


def parse_frame(camera: str, body: bytes) -> Frame:
    """Turn the body of a FRAME into a frame whose view is read-only.

    Raises:
        ValueError: not a FRAME's body.
    """
    if len(body) != _FRAME.size + VIEW_BYTES:
        raise ValueError(f"a frame's body has {_FRAME.size + VIEW_BYTES} bytes, not {len(body)}")
    sequence, captured_ns, view_ns, label = _FRAME.unpack_from(body)
    view = np.frombuffer(body, np.uint8, offset=_FRAME.size).reshape(VIEW_SIDE_PX, VIEW_SIDE_PX, 3)
    return Frame(camera, sequence, captured_ns, view, view_ns, None if label == _NO_LABEL else label)


def pack_size(width: int, height: int) -> bytes:
    """Make the body of an OPENED."""
    return _SIZE.pack(width, height)


def parse_size(body: bytes) -> tuple[int, int]:
    """Turn the body of an OPENED into width and height in pixels."""
    width, height = _SIZE.unpack(body)
    return width, height


def pack_failure(reason: DownReason, text: str) -> bytes:
    """Make the body of a FAILED; a long text is cut."""
    return f"{reason}\0{text[:500]}".encode(errors="replace")


def parse_failure(body: bytes) -> tuple[DownReason, str]:
    """Turn the body of a FAILED into reason and text."""
    reason, _, text = body.decode(errors="replace").partition("\0")
    return DownReason(reason), text


class MessageBuffer:
    """Puts messages together from bytes that come in pieces of any size."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def feed(self, piece: bytes | memoryview) -> list[Message]:
        """Take a piece; return the messages that it completes.

        Raises:
            ValueError: a length or kind that no child of ours sends.
        """
        self._bytes += piece
        messages = []
        while len(self._bytes) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._bytes)
            if not _HEAD.size <= length <= MAX_MESSAGE_BYTES:
                raise ValueError(f"a message of {length} bytes")
            end = _LENGTH.size + length
            if len(self._bytes) < end:
                break
            kind, *numbers = _HEAD.unpack_from(self._bytes, _LENGTH.size)
            body = bytes(memoryview(self._bytes)[_LENGTH.size + _HEAD.size : end])
            messages.append(Message(MessageKind(kind), Counters(*numbers), body))
            del self._bytes[:end]
        return messages
