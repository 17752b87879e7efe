"""What lives beside the stream in the node's loop: it sees what the session does, and may ask for a change of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from nodes.uplink import Socket
from pipeline.ledger import ClosedFrame
from pipeline.session import Action

SessionChange = Callable[[int], Sequence[Action]]
"""Given the time, changes the session and returns what is to be done."""


class Companion(Protocol):
    """One such part. Everything is called by the loop's thread; nothing may block for long."""

    def act(self, action: Action, now_ns: int) -> None:
        """The session did something."""

    def encode(self, camera: str, sequence: int) -> None:
        """A frame was encoded."""

    def close_frame(self, closed: ClosedFrame, now_ns: int) -> None:
        """A frame ended."""

    def turn(self, now_ns: int) -> list[Action]:
        """Do what is due; returns what the session is to send."""

    def take_change(self) -> SessionChange | None:
        """A change that waits for the moment when nothing is on the way; it is taken once."""

    def next_deadline_ns(self) -> int | None:
        """When `turn` has something to do at the earliest."""

    def socket(self) -> Socket | None:
        """What to poll for reading besides the loop's own."""

    def stop(self) -> None:
        """The stream ends."""
