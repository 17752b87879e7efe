"""A camera's lane on its node: which frames are asked for, and what became of those that were not.

Live sources overwrite their newest frame while nobody asks. Why nobody asked is known here only: the encoder was busy,
credit was missing, or there was no session. The lane books such frames under that reason.
"""

from __future__ import annotations

from dataclasses import dataclass

from nodes.capture import CameraReader
from pipeline.frames import Frame
from pipeline.ledger import Ledger, Outcome


@dataclass(slots=True)
class Lane:
    """One camera between its reader and the encoder.

    Attributes:
        number: stands for the camera in this node's messages.
        frame: arrived and waiting for credit (waiting sources only).
        is_asked: a request is out.
        settled / rate_limited: the reader's totals that are in the ledger.
        missed_because: the reason for frames that are overwritten now.
        encoded: frames sent, for `--reference-every`.
    """

    number: int
    reader: CameraReader
    frame: Frame | None = None
    is_asked: bool = False
    settled: int = 0
    rate_limited: int = 0
    missed_because: Outcome = Outcome.SUPERSEDED
    encoded: int = 0

    @property
    def name(self) -> str:
        """Name of the camera."""
        return self.reader.name

    def ask(self) -> None:
        """Request the next frame."""
        self.is_asked = True
        self.reader.request()

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
        self.is_asked = False
        self.settle(ledger, frame.sequence, rate_limited_total)
        ledger.capture(self.name, frame.sequence, frame.captured_ns, frame.label)
        self.settled = frame.sequence + 1
        self.missed_because = Outcome.SUPERSEDED
