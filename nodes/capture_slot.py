"""The place between the two threads of a reader process: the newest picture, and what became of the rest.

Nothing here blocks longer than its name says, and nothing is shared with another process.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Final

from nodes.capture_link import Counters, DownReason
from nodes.readers import Pixels
from nodes.sources import Source

_S: Final = 1_000_000_000
# FFmpeg keeps its time limits itself and tells more about the failure, so it goes first.
_GRACE_S: Final = 0.5


@dataclass(frozen=True, slots=True)
class Picture:
    """A captured picture on its way through the slot.

    Attributes:
        pixels: uint8 (H, W, 3) BGR.
        label: class index, or None.
        position: of the source's pass, after this picture.
        captured_ns: when it was captured; for a waiting source when it was taken.
        counters: up to and including this picture; its sequence number is counters.captured - 1.
    """

    pixels: Pixels
    label: int | None
    position: int
    captured_ns: int
    counters: Counters


@dataclass(frozen=True, slots=True)
class End:
    """Why nothing more comes: the source is through (no reason), or failed."""

    reason: DownReason | None = None
    text: str = ""


class Pace:
    """A steady rate that forgives one interval: jitter costs nothing, and a pause makes no burst."""

    def __init__(self, fps: float, now_ns: int) -> None:
        self._interval_ns = round(_S / fps)
        self._due_ns = now_ns

    def wait_ns(self, now_ns: int) -> int:
        """Time until the next picture is due, 0 if it is."""
        return max(0, self._due_ns - now_ns)

    def take(self, now_ns: int) -> None:
        """Count one picture."""
        self._due_ns = max(self._due_ns, now_ns - self._interval_ns) + self._interval_ns


class Slot:
    """Where the reader thread leaves pictures and the main thread finds the newest.

    A picture of a live source gets its number when it is captured, one of a waiting source when it is taken:
    a picture that was read ahead and never asked for is not captured, and a restart reads it again.

    Args:
        counters: the parent's, to count on from.
        source: what is read; if it is live, a new picture takes the place of one that was not taken.
        wake: where a byte is sent when there is something new for the main thread; must not block.
    """

    def __init__(self, counters: Counters, *, source: Source, wake: socket.socket) -> None:
        self._changed = threading.Condition()
        self._source = source
        self._is_live = source.is_live
        self._wake = wake
        # Of every picture that was captured, the waiting one included.
        self._counters = counters
        self._waiting: Picture | None = None
        self._is_closed = False
        self._size: tuple[int, int] | None = None
        self._end: End | None = None
        self._blocked_until_ns = 0

    # For the reader thread

    @property
    def is_closed(self) -> bool:
        """Whether the reader thread is to end."""
        return self._is_closed

    def pause(self, duration_ns: int) -> None:
        """Wait, at most until the slot is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_closed, duration_ns / _S)

    @contextmanager
    def blocking(self, limit_s: float) -> Iterator[None]:
        """Mark a call that may block, and for how long it may."""
        self._blocked_until_ns = time.monotonic_ns() + round((limit_s + _GRACE_S) * _S)
        try:
            yield
        finally:
            self._blocked_until_ns = 0

    def put(self, pixels: Pixels, label: int | None, position: int, captured_ns: int) -> None:
        """Leave a picture; of a waiting source, return when it was taken or the slot is closed."""
        with self._changed:
            self._size = (pixels.shape[1], pixels.shape[0])
            if self._is_live:
                self._counters = _count(self._counters, position, captured=1)
            self._waiting = Picture(pixels, label, position, captured_ns, self._counters)
            self._notify()
            if not self._is_live:
                self._changed.wait_for(lambda: self._waiting is None or self._is_closed)

    def count_rate_limited(self, position: int) -> None:
        """Count a picture of a live source that is dropped for the rate limit."""
        with self._changed:
            self._counters = _count(self._counters, position, captured=1, rate_limited=1)

    def count_bad(self, position: int, count: int = 1) -> None:
        """Count pictures that could not be decoded."""
        with self._changed:
            self._counters = _count(self._counters, position, bad=count)

    def end(self, end: End) -> None:
        """Say that nothing more comes."""
        with self._changed:
            self._end = end
            self._notify()

    # For the main thread

    @property
    def size(self) -> tuple[int, int] | None:
        """Width and height of the newest picture, None before the first."""
        return self._size

    @property
    def counters(self) -> Counters:
        """What is settled: without the waiting picture and what was dropped after it."""
        with self._changed:
            if self._waiting is None or not self._is_live:
                return self._counters
            counters = self._waiting.counters
            return replace(counters, captured=counters.captured - 1)

    @property
    def final_counters(self) -> Counters:
        """What is settled when a waiting picture is never going to be taken."""
        return self._counters

    def take(self, now_ns: int) -> Picture | None:
        """Take the newest picture out, if there is one."""
        with self._changed:
            picture, self._waiting = self._waiting, None
            if picture is None or self._is_live:
                return picture
            self._counters = _count(self._counters, picture.position, captured=1)
            self._changed.notify_all()
            return replace(picture, captured_ns=now_ns, counters=self._counters)

    def find_end(self, now_ns: int) -> End | None:
        """Tell how the source ended, or that a read takes too long; None while it goes on."""
        with self._changed:
            if self._end is not None and (self._is_live or self._waiting is None):
                return self._end
            if 0 < self._blocked_until_ns < now_ns:
                if self._size is None:
                    return End(DownReason.OPEN_FAILED, f"{self._source.text}: does not open in time")
                return End(DownReason.READ_TIMEOUT, f"{self._source.text}: no picture comes")
            return None

    def close(self) -> None:
        """Let the reader thread end as soon as it is not blocked in a read."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def _notify(self) -> None:
        # A full buffer means that the main thread is to be woken anyway.
        with suppress(BlockingIOError):
            self._wake.send(b"w")


def _count(counters: Counters, position: int, *, captured: int = 0, rate_limited: int = 0, bad: int = 0) -> Counters:
    return Counters(
        captured=counters.captured + captured,
        rate_limited=counters.rate_limited + rate_limited,
        bad=counters.bad + bad,
        position=position,
    )
