"""A camera's lane on its node: which frames are asked for, and what became of those that were not.

Live sources overwrite their newest frame while nobody asks. Why nobody asked is known here only: the encoder was busy,
credit was missing, or there was no session. The lane books such frames under that reason.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from nodes.capture_events import CaptureEvent
from nodes.sources import Source, SourceKind
from pipeline.frames import Frame
from pipeline.ledger import Ledger, Outcome

RESERVE_NS = 100_000_000
"""How long a camera that was asked keeps a place in the credit. One that is slower, or down, must not keep the others
waiting; when its frame comes at last it takes its chance."""


class Reader(Protocol):
    """What the node needs of a camera: `nodes.capture.CameraReader`, or a fake of it."""

    @property
    def name(self) -> str: ...

    @property
    def source(self) -> Source: ...

    @property
    def kind(self) -> SourceKind: ...

    @property
    def is_live(self) -> bool: ...

    @property
    def is_up(self) -> bool: ...

    @property
    def has_ended(self) -> bool: ...

    def start(self, now_ns: int) -> list[CaptureEvent]: ...

    def fileno(self) -> int: ...

    def request(self) -> None: ...

    def receive(self, now_ns: int) -> list[CaptureEvent]: ...

    def tick(self, now_ns: int) -> list[CaptureEvent]: ...

    def next_deadline(self) -> int | None: ...

    def stop(self, now_ns: int) -> None: ...

    def kill(self) -> None: ...


@dataclass(slots=True)
class Lane:
    """One camera between its reader and the encoder.

    Attributes:
        number: stands for the camera in this node's messages.
        frame: arrived and waiting for credit (waiting sources only, but for the very first frame).
        asked_ns: when the request that is out was made; None: none is out.
        settled / rate_limited: the reader's totals that are in the ledger.
        missed_because: the reason for frames that are overwritten now.
        encoded: frames coded to be sent, for `--reference-every`.
        is_spooled: whether its frames go to the disk first.
    """

    number: int
    reader: Reader
    frame: Frame | None = None
    asked_ns: int | None = None
    settled: int = 0
    rate_limited: int = 0
    missed_because: Outcome = Outcome.SUPERSEDED
    encoded: int = 0
    is_spooled: bool = False

    @property
    def name(self) -> str:
        """Name of the camera."""
        return self.reader.name

    @property
    def can_ask(self) -> bool:
        """Whether the next frame may be asked for: nothing is out, nothing waits, more may come."""
        return self.asked_ns is None and self.frame is None and not self.reader.has_ended

    def ask(self, now_ns: int) -> None:
        """Request the next frame."""
        self.asked_ns = now_ns
        self.reader.request()

    def reserved_until_ns(self) -> int | None:
        """Until when this lane keeps a place in the credit for a frame it was asked for; None: not at all."""
        return None if self.asked_ns is None else self.asked_ns + RESERVE_NS

    def reserves(self, now_ns: int) -> bool:
        """Whether this lane keeps a place in the credit: a frame waits, or was asked for just now."""
        until_ns = self.reserved_until_ns()
        return self.frame is not None or (until_ns is not None and now_ns < until_ns)

    def block(self, reason: Outcome) -> None:
        """Note why no frame can be asked for now; of several reasons the heavier is kept until frames are booked."""
        if self.missed_because is not Outcome.LINK_DOWN:
            self.missed_because = reason

    def settle(self, ledger: Ledger, captured_total: int, rate_limited_total: int) -> None:
        """Book all frames below `captured_total` that were not given out."""
        rate_limited = min(rate_limited_total - self.rate_limited, captured_total - self.settled)
        if rate_limited > 0:
            ledger.skip(self.name, self.settled, self.settled + rate_limited - 1, Outcome.RATE_LIMIT)
            self.settled += rate_limited
        self.rate_limited = rate_limited_total
        if captured_total > self.settled:
            ledger.skip(self.name, self.settled, captured_total - 1, self.missed_because)
            self.settled = captured_total
            self.missed_because = Outcome.SUPERSEDED

    def accept(self, ledger: Ledger, frame: Frame, rate_limited_total: int) -> None:
        """Open the ledger entry of an arrived frame, after booking those before it."""
        self.asked_ns = None
        self.settle(ledger, frame.sequence, rate_limited_total)
        ledger.capture(self.name, frame.sequence, frame.captured_ns, frame.label)
        self.settled = frame.sequence + 1
        self.missed_because = Outcome.SUPERSEDED
