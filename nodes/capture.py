"""The parent's side of a camera: starts its reader process, asks it for frames, restarts it when it fails.

    IDLE --start--> STARTING --OPENED--> UP --ENDED--> FINISHED
                       |                  |
                       +----failure-------+--> DOWN --back-off over--> STARTING
    every state --stop--> STOPPING --process gone or killed--> STOPPED

No threads, and nothing here blocks (but reaping a dead process, for milliseconds): the owner polls `fileno`,
calls `receive` when it is readable and `tick` at `next_deadline`, and gets events. One request is out at a
time, and it survives restarts. A camera that fails is the normal case: it is tried again for ever, at first
after half a second, then ever more rarely, while the other cameras go on.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from enum import StrEnum
from multiprocessing.connection import wait
from multiprocessing.context import SpawnProcess
from typing import Final, Protocol

from nodes.capture_child import run_reader
from nodes.capture_events import BadFrames, CaptureEvent, Down, Finished, FrameArrived, Settled, Up
from nodes.capture_link import (
    HEARTBEAT_S,
    REQUEST,
    STOP,
    CaptureOptions,
    Counters,
    DownReason,
    Message,
    MessageBuffer,
    MessageKind,
    parse_failure,
    parse_frame,
    parse_size,
)
from nodes.sources import Source, SourceKind
from nodes.spawning import start_shielded

_S: Final = 1_000_000_000
FIRST_RETRY_S: Final = 0.5
LONGEST_RETRY_S: Final = 30.0
# A camera that was up for so long is sound, and its next failure a new one.
SOUND_AFTER_S: Final = 10.0
# Importing OpenCV takes a tenth of a second on a desk and many times that on a busy small board.
STARTUP_LIMIT_S: Final = 30.0
# Heartbeats come every half second; a process that misses this many is stopped or starved.
MISSED_HEARTBEATS: Final = 10
STOP_LIMIT_S: Final = 0.5
# A killed process is gone within milliseconds unless the kernel itself is stuck in the device.
_REAP_LIMIT_S: Final = 0.2
# So many crashes in a row at the same picture of a waiting source: the picture is to blame, and left out.
_CRASHES_BEFORE_SKIP: Final = 2
_RECEIVE_BYTES: Final = 262144


class CaptureState(StrEnum):
    """Where a camera stands, as drawn in the module's head."""

    IDLE = "idle"
    STARTING = "starting"
    UP = "up"
    DOWN = "down"
    FINISHED = "finished"
    STOPPING = "stopping"
    STOPPED = "stopped"


class CameraReader:
    """One camera of a node.

    Args:
        name: of the camera, as in frames and metrics.
        source: what to read.
        options: how to read it.
        random: uniform in [0, 1); spreads the retries of a fleet.
        first_sequence: number of the first picture.

    Attributes:
        name, source: as given.
        state: where the camera stands.
        width, height: of the newest opened source's pictures in pixels, 0 before the first.
    """

    def __init__(
        self,
        name: str,
        source: Source,
        options: CaptureOptions,
        random: Callable[[], float],
        first_sequence: int = 0,
    ) -> None:
        self.name = name
        self.source = source
        self.state = CaptureState.IDLE
        self.width = 0
        self.height = 0
        self._options = options
        self._random = random
        self._process: SpawnProcess | None = None
        self._link: socket.socket | None = None
        self._buffer = MessageBuffer()
        self._killed: list[SpawnProcess] = []
        self._counters = Counters(captured=first_sequence)
        self._is_wanted = False
        self._deadline_ns: int | None = None
        self._up_since_ns: int | None = None
        self._num_failures = 0
        self._started_at = Counters()
        self._num_crashes_here = 0

    def __repr__(self) -> str:
        size = f", {self.width}x{self.height}" if self.width else ""
        return f"<CameraReader {self.name} ({self.source.text}), {self.state}{size}>"

    @property
    def kind(self) -> SourceKind:
        """How the source is read."""
        return self.source.kind

    @property
    def is_live(self) -> bool:
        """Whether only the newest frame is kept; else the source waits for every request."""
        return self.source.is_live

    @property
    def is_up(self) -> bool:
        """Whether pictures come."""
        return self.state is CaptureState.UP

    @property
    def has_ended(self) -> bool:
        """Whether nothing more comes: finished or stopped, and the process gone."""
        return self.state in (CaptureState.FINISHED, CaptureState.STOPPED)

    @property
    def pid(self) -> int | None:
        """Process id of the reader, if one runs."""
        return None if self._process is None else self._process.pid

    def start(self, now_ns: int) -> list[CaptureEvent]:
        """Start the reader process; returns events (a `Down` when even that fails).

        Raises:
            ValueError: started before.
        """
        if self.state is not CaptureState.IDLE:
            raise ValueError(f"camera {self.name} was started before")
        return self._spawn(now_ns)

    def fileno(self) -> int:
        """What to poll for reading, -1 for nothing; changes with every restart, so ask before each poll."""
        return -1 if self._link is None else self._link.fileno()

    def request(self) -> None:
        """Ask for the newest frame not given out yet; `FrameArrived` comes once, however often asked."""
        if not self._is_wanted and self.state not in (CaptureState.FINISHED, CaptureState.STOPPED):
            self._is_wanted = True
            self._send(REQUEST)

    def receive(self, now_ns: int) -> list[CaptureEvent]:
        """Take in what the reader sent; never blocks, and may be called when there is nothing."""
        if self._link is None:
            return []
        events: list[CaptureEvent] = []
        try:
            piece = self._link.recv(_RECEIVE_BYTES, socket.MSG_DONTWAIT)
            messages = self._buffer.feed(piece)
        except BlockingIOError:
            return []
        except OSError:
            piece, messages = b"", []
        except ValueError as error:
            return self._fail(DownReason.CRASHED, f"{self.source.text}: unreadable message: {error}", now_ns)
        for message in messages:
            if self._link is not None:
                events += self._apply(message, now_ns)
        if not piece and self._link is not None:
            events += self._lose_process(now_ns)
        return events

    def tick(self, now_ns: int) -> list[CaptureEvent]:
        """Do what is due: restart after the back-off, end a reader that is silent or does not stop."""
        self._reap()
        if self._deadline_ns is None or now_ns < self._deadline_ns:
            return []
        if self.state is CaptureState.STOPPING:
            self.kill()
            return []
        if self.state is CaptureState.DOWN:
            return self._spawn(now_ns)
        # The owner may have been held up itself; what the reader sent meanwhile counts.
        events = self.receive(now_ns)
        if self._deadline_ns is not None and now_ns >= self._deadline_ns and self._link is not None:
            text = f"{self.source.text}: the reader process does not answer"
            events += self._fail(DownReason.READ_TIMEOUT, text, now_ns)
        return events

    def next_deadline(self) -> int | None:
        """When `tick` has something to do, in monotonic nanoseconds; None: nothing to wait for."""
        return self._deadline_ns

    def stop(self, now_ns: int) -> None:
        """Tell the reader to end; goes on in the background, `tick` kills it after half a second."""
        if self.state in (CaptureState.STOPPING, CaptureState.STOPPED):
            return
        self._is_wanted = False
        if self._link is None:
            self.kill()
            return
        self.state = CaptureState.STOPPING
        self._deadline_ns = now_ns + round(STOP_LIMIT_S * _S)
        self._send(STOP)

    def kill(self) -> None:
        """End the reader now and wait until it is gone; from every state, any number of times."""
        self._end_process()
        for process in self._killed:
            process.join(_REAP_LIMIT_S)
        self._reap()
        self._deadline_ns = None
        self._is_wanted = False
        self.state = CaptureState.STOPPED

    def _spawn(self, now_ns: int) -> list[CaptureEvent]:
        mine, theirs = socket.socketpair()
        with theirs:
            process = multiprocessing.get_context("spawn").Process(
                target=run_reader,
                args=(theirs, self.name, self.source, self._options, self._counters),
                name=f"rac-camera-{self.name}",
                daemon=True,
            )
            try:
                start_shielded(process, (signal.SIGINT,))
            except OSError as error:
                mine.close()
                text = f"{self.source.text}: no reader process: {error}"
                return self._fail(DownReason.CRASHED, text, now_ns)
        self._process, self._link, self._buffer = process, mine, MessageBuffer()
        self._started_at = self._counters
        self._up_since_ns = None
        self.state = CaptureState.STARTING
        self._deadline_ns = now_ns + round(STARTUP_LIMIT_S * _S)
        if self._is_wanted:
            self._send(REQUEST)
        return []

    def _apply(self, message: Message, now_ns: int) -> list[CaptureEvent]:
        before, self._counters = self._counters, message.counters
        if self.state is CaptureState.STOPPING:
            return []
        self._deadline_ns = now_ns + round(MISSED_HEARTBEATS * HEARTBEAT_S * _S)
        if self._up_since_ns is not None and now_ns - self._up_since_ns >= SOUND_AFTER_S * _S:
            self._num_failures = 0
        events: list[CaptureEvent] = []
        if message.counters.bad > before.bad:
            events.append(BadFrames(message.counters.bad - before.bad))
        captured, rate_limited = message.counters.captured, message.counters.rate_limited
        if message.kind is MessageKind.FRAME:
            self._is_wanted = False
            events.append(FrameArrived(parse_frame(self.name, message.body), captured, rate_limited))
        elif message.kind is MessageKind.OPENED:
            self.state, self._up_since_ns = CaptureState.UP, now_ns
            self.width, self.height = parse_size(message.body)
            events.append(Up(self.width, self.height))
        elif message.kind is MessageKind.FAILED:
            events += self._fail(*parse_failure(message.body), now_ns)
        elif message.kind is MessageKind.ENDED:
            self._end_process()
            self._deadline_ns, self._is_wanted = None, False
            self.state = CaptureState.FINISHED
            events.append(Finished(captured, rate_limited))
        elif captured > before.captured:
            events.append(Settled(captured, rate_limited))
        return events

    def _lose_process(self, now_ns: int) -> list[CaptureEvent]:
        """The reader closed its side of the link: it is dead or dying."""
        if self.state is CaptureState.STOPPING:
            self.kill()
            return []
        process = self._process
        assert process is not None
        process.join(_REAP_LIMIT_S)
        code = process.exitcode
        how = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
        return self._fail(DownReason.CRASHED, f"{self.source.text}: the reader process ended ({how})", now_ns)

    def _fail(self, reason: DownReason, text: str, now_ns: int) -> list[CaptureEvent]:
        self._end_process()
        self.state = CaptureState.DOWN
        events: list[CaptureEvent] = []
        if reason is DownReason.CRASHED and self._is_poisoned():
            self._counters = replace(self._counters, position=self._counters.position + 1, bad=self._counters.bad + 1)
            events.append(BadFrames(1))
        delay_s = min(LONGEST_RETRY_S, FIRST_RETRY_S * 2.0 ** min(self._num_failures, 16))
        self._num_failures += 1
        # Half of it at random: a fleet that lost its switch does not come back in step.
        self._deadline_ns = now_ns + round(delay_s * (0.5 + 0.5 * self._random()) * _S)
        counters = self._counters
        events.append(Down(reason, text, self._deadline_ns, counters.captured, counters.rate_limited))
        return events

    def _is_poisoned(self) -> bool:
        """Whether the next picture of a waiting source crashed the reader often enough to be left out."""
        if self.is_live or self._counters.position != self._started_at.position:
            self._num_crashes_here = 0
        self._num_crashes_here += 1
        if self.is_live or self._num_crashes_here < _CRASHES_BEFORE_SKIP:
            return False
        self._num_crashes_here = 0
        return True

    def _end_process(self) -> None:
        if self._link is not None:
            self._link.close()
            self._link = None
        if self._process is not None:
            self._process.kill()
            self._killed.append(self._process)
            self._process = None

    def _reap(self) -> None:
        """Take leave of killed processes, without waiting for those that are not gone yet."""
        for process in list(self._killed):
            if process.exitcode is not None:
                process.close()
                self._killed.remove(process)

    def _send(self, order: bytes) -> None:
        if self._link is not None:
            # A reader that is gone or stopped: receive and tick find out.
            with contextlib.suppress(OSError):
                self._link.send(order, socket.MSG_DONTWAIT)


class StoppableReader(Protocol):
    """What stopping needs of a `CameraReader`."""

    def fileno(self) -> int: ...

    def receive(self, now_ns: int) -> list[CaptureEvent]: ...

    def stop(self, now_ns: int) -> None: ...

    def kill(self) -> None: ...


def stop_readers(readers: Sequence[StoppableReader]) -> None:
    """Stop cameras from any state, all at once; returns within a second, and then no process is left."""
    for reader in readers:
        reader.stop(time.monotonic_ns())
    limit_ns = time.monotonic_ns() + round(STOP_LIMIT_S * _S)
    while running := [reader for reader in readers if reader.fileno() >= 0]:
        left_s = (limit_ns - time.monotonic_ns()) / _S
        if not wait([reader.fileno() for reader in running], max(0.0, left_s)):
            break
        for reader in running:
            reader.receive(time.monotonic_ns())
    for reader in readers:
        reader.kill()
