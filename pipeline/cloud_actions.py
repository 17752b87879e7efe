"""What goes in and out of the cloud's sessions (`pipeline.cloud_session`) beside messages: data only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from pipeline.ledger import Outcome
from pipeline.wire import MAX_CAMERAS, MAX_MESSAGE_BYTES, BundleRequest, FrameMessage, Message, TopClass


class CloseReason(StrEnum):
    """Why a session ended; the words of the metric."""

    BYE = "bye"
    TIMEOUT = "timeout"
    REPLACED = "replaced"
    PROTOCOL_ERROR = "protocol_error"
    REVOKED = "revoked"
    LIMITS = "limits"
    SHUTDOWN = "shutdown"
    LOST = "lost"


@dataclass(frozen=True, slots=True)
class SendTo:
    """Give the message to the connection, without blocking.

    A connection that is gone or does not take it is reported with `link_lost`.
    """

    routing_id: bytes
    message: Message


@dataclass(frozen=True, slots=True)
class SessionOpened:
    """A node is there."""

    routing_id: bytes
    node: str
    cameras: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SessionClosed:
    """A node is gone; answers to its frames will find no way."""

    routing_id: bytes
    node: str
    reason: CloseReason


@dataclass(frozen=True, slots=True)
class FrameArrived:
    """A frame to compute and to `answer`, exactly once, under its ticket.

    Attributes:
        born_ns: capture on this machine's clock, as near as can be known.
    """

    ticket: int
    node: str
    camera: str
    bundle_id: bytes
    frame: FrameMessage
    received_ns: int
    born_ns: int


@dataclass(frozen=True, slots=True)
class ChunkWanted:
    """A node asks for a piece of a bundle."""

    routing_id: bytes
    request: BundleRequest


CloudAction = SendTo | SessionOpened | SessionClosed | FrameArrived | ChunkWanted


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of a frame, as far as the computing side knows.

    Attributes:
        queue_us / decode_us / classify_us: see `wire.Timings`.
    """

    outcome: Outcome
    classes: tuple[TopClass, ...] = ()
    reference_top1: int | None = None
    queue_us: int = 0
    decode_us: int = 0
    classify_us: int = 0
    batch_frames: int = 0
    text: str = ""


@dataclass(frozen=True, slots=True)
class CloudSettings:
    """Limits and times of all sessions.

    Attributes:
        bundle_ids: bundles that the workers can decode.
        offer: the one of them that nodes with bundle-delivery should run; None: nothing is delivered.
        window_frames: credit of one session at its start and at least, when there is room for all.
        max_window_frames: what it may grow to where the round trip is long (`credit_window`); at least as much.
        capacity_frames: what the windows of all sessions together may have on the way, waiting and computing.
        max_sessions: beyond which a HELLO is refused with `full`; each may have a frame beyond the capacity.
        max_node_sessions / max_cameras: of one node, beyond which its HELLO is refused with `limits`.
        max_message_bytes: largest message that is accepted, as nodes are told.
    """

    bundle_ids: frozenset[bytes]
    window_frames: int = 8
    max_window_frames: int = 8
    capacity_frames: int = 256
    max_sessions: int = 1024
    max_node_sessions: int = 4
    max_cameras: int = MAX_CAMERAS
    max_message_bytes: int = MAX_MESSAGE_BYTES
    heartbeat_ms: int = 2000
    peer_timeout_ms: int = 6000
    capabilities: tuple[str, ...] = ()
    offer: bytes | None = None

    @property
    def queue_frames(self) -> int:
        """Frames accepted and not answered, at the very most: the size that the queue behind must have."""
        return self.capacity_frames + self.max_sessions


@dataclass(frozen=True, slots=True)
class SessionStatistics:
    """One session at one moment; times are monotonic nanoseconds."""

    node: str
    cameras: tuple[str, ...]
    bundle_id: bytes
    window: int
    credit: int
    computing: int
    opened_ns: int
    heard_ns: int
    last_frame_ns: int | None
    round_trip_ns: int | None


@dataclass(frozen=True, slots=True)
class CloudStatistics:
    """All sessions at one moment; counts are since the start.

    Attributes:
        credit: granted and not yet spent; computing: accepted and not yet answered.
        handshakes: by `accepted` or code of refusal; closed: sessions by reason.
        gaps: times that a camera's sequence jumped; missing: numbers jumped over (dropped at the node, or
            lost).
        duplicates: frames that came again.
        remembered: answers kept for frames that come again.
    """

    sessions: tuple[SessionStatistics, ...]
    peak_sessions: int
    credit: int
    computing: int
    credit_granted: int
    handshakes: Mapping[str, int]
    closed: Mapping[str, int]
    gaps: int
    missing: int
    duplicates: int
    remembered: int
