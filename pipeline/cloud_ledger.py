"""The cloud's ledger: every frame that it accepted ends once, in the words of `pipeline.ledger.Outcome`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.errors import LedgerError
from pipeline.ledger import CLOUD_OUTCOMES, MAX_OPEN_FRAMES, Outcome, check_outcome


@dataclass(frozen=True, slots=True)
class CloudLedgerSnapshot:
    """The cloud's ledger at one moment; `results` holds every outcome, with zeros."""

    received: int
    results: Mapping[str, int]
    in_flight: int
    peak_in_flight: int


class CloudLedger:
    """Fate of every frame that the cloud accepted: received = results by outcome + in flight.

    A repeated frame that is answered from memory, or joins one that is being computed, is not received a
    second time.
    """

    def __init__(self, *, max_open: int = MAX_OPEN_FRAMES) -> None:
        self._open: set[int] = set()
        self._max_open = max_open
        self._peak_open = 0
        self._received = 0
        self._results = {outcome.value: 0 for outcome in Outcome if outcome in CLOUD_OUTCOMES}

    def __repr__(self) -> str:
        return f"<CloudLedger {self._received} received, {len(self._open)} in flight>"

    @property
    def in_flight(self) -> int:
        return len(self._open)

    def receive(self, ticket: int) -> None:
        """Open the entry of an accepted frame.

        Raises:
            LedgerError: the ticket is open already, or too many are.
        """
        if ticket in self._open or len(self._open) >= self._max_open:
            raise LedgerError(f"ticket {ticket}: opened twice, or {len(self._open)} frames are open and none closes")
        self._open.add(ticket)
        self._received += 1
        self._peak_open = max(self._peak_open, len(self._open))

    def close(self, ticket: int, outcome: Outcome) -> None:
        """Close an entry, after its RESULT was handed to the link or found unroutable.

        Raises:
            LedgerError: not open, or an outcome that the cloud cannot give.
        """
        check_outcome(outcome, CLOUD_OUTCOMES)
        if ticket not in self._open:
            raise LedgerError(f"ticket {ticket} is not open: never received, or closed before")
        self._open.remove(ticket)
        self._results[outcome.value] += 1

    def open_tickets(self) -> list[int]:
        """Open tickets, for closing them at the drain deadline."""
        return sorted(self._open)

    def check_balance(self) -> None:
        """Raise LedgerError unless received = results + in flight."""
        if self._received != sum(self._results.values()) + len(self._open):
            raise LedgerError(f"{self._received} received, but {self._results} + {len(self._open)} in flight")

    def snapshot(self) -> CloudLedgerSnapshot:
        """Totals of this moment; the balance is checked first."""
        self.check_balance()
        return CloudLedgerSnapshot(self._received, dict(self._results), len(self._open), self._peak_open)
