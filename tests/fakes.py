"""Stand-ins for clock, cameras, encoder, link, cloud, socket and workers; `tests/nodes/test_fakes.py` holds them to
the rules of the real ones. Nothing here sleeps: time passes when a test says so."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np

from nodes.capture_events import CaptureEvent, Down, Finished, FrameArrived, Settled, Up
from nodes.capture_link import DownReason
from nodes.pool import BatchDone, PoolEvent, SlotState, WorkerLost
from nodes.pool import LossReason as WorkerLoss
from nodes.sources import Source, SourceKind
from nodes.uplink import HandshakeFailure, framed_bytes
from nodes.worker import BatchAnswer, BatchJob, FrameAnswer
from pipeline.bitstream import Bitstream, pack_bitstream
from pipeline.decoding import BatchTimings, Classes
from pipeline.encoder import OperatingPoint
from pipeline.errors import CorruptBitstreamError
from pipeline.frames import VIEW_SIDE_PX, Frame
from pipeline.ledger import Outcome
from pipeline.wire import (
    FrameMessage,
    Hello,
    Message,
    Ping,
    Pong,
    Result,
    TopClass,
    Welcome,
    pack,
    parse,
)

MS = 1_000_000
S = 1_000_000_000
BUNDLE_ID = bytes(range(32))
VIEW = np.zeros((VIEW_SIDE_PX, VIEW_SIDE_PX, 3), np.uint8)


class FakeClock:
    """Monotonic nanoseconds that stand still until told otherwise."""

    def __init__(self, now_ns: int = 100 * S) -> None:
        self.now_ns = now_ns

    def __call__(self) -> int:
        return self.now_ns

    def advance(self, duration_ns: int) -> None:
        self.now_ns += duration_ns


class Script:
    """A loop's `should_stop` that does one step before each turn, and says stop after the last.

    `fd` is always readable, so that no turn waits.
    """

    def __init__(self, *steps: Callable[[], object] | int) -> None:
        """Take the steps; a number stands for so many turns without one."""
        self._steps: deque[Callable[[], object]] = deque()
        for step in steps:
            self._steps.extend([lambda: None] * step if isinstance(step, int) else [step])
        self.fd, self._writable = os.pipe()
        os.write(self._writable, b"\0")

    def __call__(self) -> bool:
        if not self._steps:
            return True
        self._steps.popleft()()
        return False

    def close(self) -> None:
        os.close(self.fd)
        os.close(self._writable)


@dataclass
class FakeReader:
    """A camera that gives what a test puts into it."""

    name: str
    is_live: bool = True
    is_up: bool = True
    has_ended: bool = False
    is_wanted: bool = False
    is_killed: bool = False
    requests: int = 0
    events: list[CaptureEvent] = field(default_factory=list)
    captured: int = 0
    rate_limited: int = 0

    @property
    def kind(self) -> SourceKind:
        return self.source.kind

    @property
    def source(self) -> Source:
        kind = SourceKind.TEST if self.is_live else SourceKind.FOLDER
        return Source(kind, "fake", f"fake {self.name}")

    def start(self, now_ns: int) -> list[CaptureEvent]:
        return [Up(640, 480)] if self.is_up else []

    def fileno(self) -> int:
        return -1

    def request(self) -> None:
        self.is_wanted = True
        self.requests += 1

    def receive(self, now_ns: int) -> list[CaptureEvent]:
        events, self.events = self.events, []
        return events

    def tick(self, now_ns: int) -> list[CaptureEvent]:
        return []

    def next_deadline(self) -> int | None:
        return None

    def stop(self, now_ns: int) -> None:
        self.has_ended = True

    def kill(self) -> None:
        self.has_ended = self.is_killed = True

    def give(self, captured_ns: int, *, missed: int = 0, rate_limited: int = 0, label: int | None = None) -> Frame:
        """Answer the request with a frame, after so many that were not given out and so many for the rate limit."""
        assert self.is_wanted, f"{self.name} was not asked"
        self.is_wanted = False
        self.captured += missed + rate_limited + 1
        self.rate_limited += rate_limited
        frame = Frame(self.name, self.captured - 1, captured_ns, VIEW, view_ns=MS, label=label)
        self.events.append(FrameArrived(frame, self.captured, self.rate_limited))
        return frame

    def miss(self, frames: int, *, rate_limited: int = 0) -> None:
        """Capture frames that nobody gets, as a heartbeat tells them."""
        self.captured += frames + rate_limited
        self.rate_limited += rate_limited
        self.events.append(Settled(self.captured, self.rate_limited))

    def fail(self) -> None:
        """The source is gone for now."""
        self.is_up = False
        self.events.append(Down(DownReason.READ_TIMEOUT, "no picture comes", 0, self.captured, self.rate_limited))

    def finish(self) -> None:
        """A finite source is through."""
        self.has_ended = True
        self.events.append(Finished(self.captured, self.rate_limited))


class FakeEncoder:
    """An encoder whose every depth takes a known time of a fake clock."""

    def __init__(self, clock: FakeClock, cost_ns: dict[int, int]) -> None:
        self.clock = clock
        self.cost_ns = cost_ns
        self.points: list[OperatingPoint] = []
        self.error: Exception | None = None
        self.is_oversize = False
        self.bundle = SimpleNamespace(bundle_id=BUNDLE_ID)

    def symbols(self, view: object, point: OperatingPoint) -> Any:
        if self.error is not None:
            raise self.error
        self.points.append(point)
        self.clock.advance(self.cost_ns[point.depth])
        return np.zeros((1, 28, 28), np.int32)

    def pack(self, symbols: object, point: OperatingPoint) -> bytes:
        if self.is_oversize:
            raise CorruptBitstreamError("a bitstream of 99999 bytes is over the 65536 allowed")
        return make_bitstream(point.depth, point.level16)

    def encode(self, view: object, point: OperatingPoint) -> bytes:
        return self.pack(self.symbols(view, point), point)


def make_bitstream(depth: int = 4, level16: int = 48, words: bytes = bytes(100)) -> bytes:
    """A whole and well-formed bitstream of the fake bundle."""
    return pack_bitstream(Bitstream(0, BUNDLE_ID[:8], depth, level16, words))


class FakeUplink:
    """The node's connection; whoever is behind it answers at once, or later by `deliver`.

    Attributes:
        peer: takes each message and returns the answers; None: nobody is there.
    """

    def __init__(self, peer: Callable[[Message], Sequence[Message]] | None = None) -> None:
        self.peer = peer
        self.socket = None
        self.events = 1
        self.endpoint: str | None = None
        self.opened: list[str] = []
        self.sent: list[Message] = []
        self.inbox: list[list[bytes]] = []
        self.sent_bytes = self.received_bytes = 0
        self.failure: HandshakeFailure | None = None
        self._waiting: list[bytes] | None = None

    def open(self, endpoint: str, index: int = 0) -> None:
        self.close()
        self.endpoint = endpoint
        self.opened.append(endpoint)

    def take_failure(self) -> HandshakeFailure | None:
        failure, self.failure = self.failure, None
        return failure

    def send(self, parts: Sequence[bytes]) -> bool:
        if self.endpoint is None or self.peer is None:
            return False
        message = parse(list(parts))
        self.sent.append(message)
        self.sent_bytes += framed_bytes(parts)
        self.deliver(*self.peer(message))
        return True

    def send_when_connected(self, parts: Sequence[bytes]) -> None:
        self._waiting = None if self.send(parts) else list(parts)

    def flush(self) -> None:
        if self._waiting is not None:
            self.send_when_connected(self._waiting)

    def deliver(self, *messages: Message) -> None:
        """Let messages of the cloud arrive."""
        self.inbox += [pack(message) for message in messages]

    def receive(self) -> list[list[bytes]]:
        if self.endpoint is None:
            return []
        inbox, self.inbox = self.inbox, []
        self.received_bytes += sum(map(framed_bytes, inbox))
        return inbox

    def close(self, linger_ms: int = 0) -> None:
        self.endpoint = None
        self.inbox = []
        self._waiting = None

    def frames(self) -> list[FrameMessage]:
        """FRAMEs that were sent."""
        return [message for message in self.sent if isinstance(message, FrameMessage)]


@dataclass
class FakeCloud:
    """What a node finds behind its link: grants credit, answers frames.

    Attributes:
        credit: of WELCOME.
        outcome: of every RESULT; None: frames stay unanswered.
        returns_credit: whether each RESULT grants a frame.
    """

    credit: int = 8
    outcome: Outcome | None = Outcome.OK
    returns_credit: bool = True
    unanswered: list[FrameMessage] = field(default_factory=list)
    sessions: int = 0

    def __call__(self, message: Message) -> list[Message]:
        match message:
            case Hello():
                self.sessions += 1
                return [
                    Welcome(
                        minor=0,
                        session_id=self.sessions.to_bytes(8, "little"),
                        bundle_id=message.bundle_ids[0],
                        credit=self.credit,
                        max_message_bytes=256 * 1024,
                        heartbeat_ms=2000,
                        peer_timeout_ms=6000,
                    )
                ]
            case Ping():
                return [Pong(message.token, message.sent_ns)]
            case FrameMessage():
                self.unanswered.append(message)
                return [] if self.outcome is None else self.answers()
            case _:
                return []

    def answers(self, outcome: Outcome | None = None) -> list[Message]:
        """RESULTs for all that is unanswered."""
        frames, self.unanswered = self.unanswered, []
        return [self.answer(frame, outcome or self.outcome or Outcome.OK) for frame in frames]

    def answer(self, frame: FrameMessage, outcome: Outcome) -> Result:
        return Result(
            camera=frame.camera,
            sequence=frame.sequence,
            captured_ns=frame.captured_ns,
            outcome=outcome,
            classes=(TopClass(967, "espresso", 0.75),) if outcome is Outcome.OK else (),
            reference_top1=None if frame.reference is None or outcome is not Outcome.OK else 967,
            credit=1 if self.returns_credit else 0,
        )


class FakeDoor:
    """The cloud's socket; messages are put in and taken out as objects."""

    def __init__(self) -> None:
        self.socket, self._writable = os.pipe()  # readable for good, so that no turn waits
        os.write(self._writable, b"\0")
        self.inbox: list[tuple[bytes, list[bytes]]] = []
        self.sent: list[tuple[bytes, Message]] = []
        self.gone: set[bytes] = set()
        self.sent_bytes = self.received_bytes = self.ended_connections = 0

    def put(self, routing_id: bytes, message: Message | list[bytes]) -> None:
        """Let a message of a node arrive."""
        self.inbox.append((routing_id, message if isinstance(message, list) else pack(message)))

    def receive(self, limit: int) -> Iterator[tuple[bytes, list[bytes]]]:
        for _ in range(min(limit, len(self.inbox))):
            yield self.inbox.pop(0)

    def send(self, routing_id: bytes, parts: Sequence[bytes]) -> bool:
        if routing_id in self.gone:
            return False
        self.sent.append((routing_id, parse(list(parts))))
        self.sent_bytes += framed_bytes(parts)
        return True

    def end_last_connection(self) -> None:
        self.ended_connections += 1

    def results(self, routing_id: bytes | None = None) -> list[Result]:
        """RESULTs that were sent, to one node or to all."""
        return [
            message
            for to, message in self.sent
            if isinstance(message, Result) and (routing_id is None or to == routing_id)
        ]

    def close(self) -> None:
        os.close(self.socket)
        os.close(self._writable)


@dataclass
class FakeSlot:
    number: int
    state: SlotState = SlotState.READY
    job: BatchJob | None = None
    since_ns: int = 0
    resident_bytes: int = 0


class FakePool:
    """Workers that answer, or are lost, when a test says so."""

    def __init__(self, num_workers: int = 1) -> None:
        self.slots = [FakeSlot(number) for number in range(num_workers)]
        self.events: list[PoolEvent] = []
        self.jobs: list[tuple[int, BatchJob]] = []
        self.is_stopped = False

    def start(self, now_ns: int) -> list[PoolEvent]:
        return []

    def links(self) -> list[Any]:
        return []

    def count(self, state: SlotState) -> int:
        return sum(slot.state is state for slot in self.slots)

    def submit(self, job: BatchJob, now_ns: int, avoid: Sequence[int] = ()) -> int | None:
        ready = [slot for slot in self.slots if slot.state is SlotState.READY]
        preferred = [slot for slot in ready if slot.number not in avoid]
        elsewhere = any(slot.state is not SlotState.DEAD and slot.number not in avoid for slot in self.slots)
        if not ready or (elsewhere and not preferred):
            return None
        slot = (preferred or ready)[0]
        slot.job, slot.state = job, SlotState.BUSY
        self.jobs.append((slot.number, job))
        return slot.number

    def poll(self, now_ns: int) -> list[PoolEvent]:
        events, self.events = self.events, []
        return events

    def next_deadline(self) -> int | None:
        return None

    def stop(self, clock: Callable[[], int], deadline_ns: int) -> None:
        self.is_stopped = True

    def kill(self) -> None:
        self.is_stopped = True

    def busy(self) -> list[FakeSlot]:
        return [slot for slot in self.slots if slot.state is SlotState.BUSY]

    def finish(self, number: int, answers: Sequence[FrameAnswer] | None = None) -> None:
        """A worker answers its batch: the same class for every frame, unless told otherwise."""
        slot = self.slots[number]
        assert slot.job is not None
        given: tuple[FrameAnswer, ...] = (
            tuple(answers) if answers is not None else (make_classes(),) * len(slot.job.frames)
        )
        answer = BatchAnswer(slot.job.number, given, BatchTimings(2 * MS, 3 * MS, 0))
        self.events.append(BatchDone(number, answer, busy_ns=5 * MS))
        slot.job, slot.state = None, SlotState.READY

    def lose(self, number: int, *, comes_back: bool = True, exit_code: int = -11) -> None:
        """A worker dies with what it has."""
        slot = self.slots[number]
        self.events.append(WorkerLost(number, WorkerLoss.CRASH, exit_code, slot.job))
        slot.job, slot.state = None, SlotState.READY if comes_back else SlotState.DEAD


def make_classes(reference_top1: int | None = None) -> Classes:
    """A worker's answer for one frame: espresso, most probably."""
    return Classes((967, 1, 2, 3, 4), (0.75, 0.1, 0.05, 0.05, 0.05), reference_top1)


def make_frame_message(sequence: int, *, camera: int = 0, age_us: int = 0, label: int | None = None) -> FrameMessage:
    """A FRAME of the fake bundle; each has bytes of its own."""
    bitstream = make_bitstream(words=sequence.to_bytes(100, "little"))
    return FrameMessage(camera, sequence, 1000 + sequence, age_us, label, bitstream)
