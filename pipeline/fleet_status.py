"""What a cloud knows of its cameras, for the status page: who is bad, since when, why, and what it costs. No I/O.

Counts here are of cameras, which the cloud's ledger does not tell apart; they are told by whoever tells the ledger.
What a node dropped before sending shows as numbers missing from the sequence: why, only the node's own page says.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipeline.camera_row import (
    MINUTE_NS,
    Amounts,
    Seen,
    Trend,
    age_s,
    drop_samples,
    fleet_figures,
    judge_recent,
    make_row,
    rate,
    rounded,
)
from pipeline.camera_state import AT_NODE, CameraState, Verdict, is_loss
from pipeline.cloud_actions import CloseReason
from pipeline.history import History, Totals
from pipeline.ledger import Outcome

_GOODBYES = frozenset({CloseReason.BYE, CloseReason.SHUTDOWN})
_LOSSES = {
    CloseReason.TIMEOUT: "its node went silent without a goodbye",
    CloseReason.LOST: "the connection to its node broke",
    CloseReason.REPLACED: "its node connected anew",
    CloseReason.PROTOCOL_ERROR: "its node sent what is no message",
    CloseReason.REVOKED: "its node's key is no longer allowed",
    CloseReason.LIMITS: "its node broke a limit",
}
# A jump beyond this is not frames that were left out: an hour of a fast camera.
MAX_GAP = 250_000
CameraKey = tuple[str, str]


@dataclass(slots=True)
class _Counts:
    """Totals that only rise."""

    frames: int = 0
    results: int = 0
    lost: int = 0
    wire_bytes: int = 0
    latency_ns: int = 0
    dropped: dict[str, int] = field(default_factory=dict)

    def drop(self, reason: str, count: int) -> None:
        self.dropped[reason] = self.dropped.get(reason, 0) + count
        self.lost += count if is_loss(reason) else 0

    def amounts(self) -> Amounts:
        dropped = sum(self.dropped.values())
        return Amounts(self.frames, self.results, dropped, self.lost, self.wire_bytes, self.latency_ns)


@dataclass(slots=True)
class _Camera:
    """One camera of a node.

    Attributes:
        connections: over which its node offers it now; a restarted node has two for a while.
        last_sequence: None at the start of a session, where a jump means nothing.
    """

    seen: Seen
    began_ns: int
    connections: set[bytes] = field(default_factory=set)
    closed_ns: int | None = None
    closed_by: CloseReason | None = None
    last_sequence: int | None = None
    counts: _Counts = field(default_factory=_Counts)
    trend: Trend = field(default_factory=Trend)


@dataclass(frozen=True, slots=True)
class SlotFacts:
    """One worker slot now; `resident_bytes` is 0 when unknown."""

    number: int
    state: str
    since_ns: int
    resident_bytes: int


class FleetStatus:
    """Cameras of all nodes and what the workers do. Owned by one thread.

    Args:
        max_cameras: kept and shown; of more, those that went first are forgotten, and beyond that none is added.
    """

    def __init__(self, max_cameras: int, now_ns: int) -> None:
        self._max_cameras = max_cameras
        self._began_ns = now_ns
        self._cameras: dict[CameraKey, _Camera] = {}
        self._sessions: dict[bytes, tuple[CameraKey, ...]] = {}
        self._total = _Counts()
        self._history = History()
        self._left_out: set[CameraKey] = set()
        self._busy: dict[int, int] = {}
        self._frames: dict[int, int] = {}
        self._losses: dict[int, int] = {}
        self._batches = (0, 0, 0)

    def open_session(self, connection: bytes, node: str, cameras: tuple[str, ...], now_ns: int) -> None:
        """A node is there with these cameras."""
        keys = tuple((node, camera) for camera in cameras)
        self._sessions[connection] = keys
        for key in keys:
            state = self._cameras.get(key) or self._add(key, now_ns)
            if state is None:
                continue
            if not state.connections:
                state.began_ns, state.seen.frame_ns = now_ns, None
            state.connections.add(connection)
            state.closed_ns = state.closed_by = state.last_sequence = None

    def close_session(self, connection: bytes, reason: CloseReason, now_ns: int) -> None:
        """A node's session ended."""
        for key in self._sessions.pop(connection, ()):
            self._left_out.discard(key)
            state = self._cameras.get(key)
            if state is None:
                continue
            state.connections.discard(connection)
            if not state.connections:
                state.closed_ns, state.closed_by = now_ns, reason

    def receive(self, node: str, camera: str, sequence: int, wire_bytes: int, now_ns: int) -> None:
        """A frame was accepted."""
        state = self._cameras.get((node, camera))
        missing = 0
        if state is not None:
            last = state.last_sequence
            missing = min(MAX_GAP, max(0, sequence - last - 1)) if last is not None else 0
            state.last_sequence = sequence if last is None else max(last, sequence)
            state.seen.frame_ns = now_ns
        for counts in self._counts_of(state):
            counts.frames += 1 + missing
            counts.wire_bytes += wire_bytes
            if missing:
                counts.drop(AT_NODE, missing)

    def answer(
        self,
        node: str,
        camera: str,
        outcome: Outcome,
        latency_ns: int,
        best: tuple[str, float] | None = None,
        depth: int | None = None,
        level: float | None = None,
        agrees: bool | None = None,
    ) -> None:
        """A frame was answered.

        Args:
            agrees: whether the uncompressed classifier said the same; None without a reference.
        """
        state = self._cameras.get((node, camera))
        for counts in self._counts_of(state):
            if outcome is Outcome.OK:
                counts.results += 1
                counts.latency_ns += max(0, latency_ns)
            else:
                counts.drop(outcome.value, 1)
        if state is not None and outcome is Outcome.OK:
            seen = state.seen
            seen.best, seen.depth, seen.level = best, depth, level
            seen.references += agrees is not None
            seen.agreeing += agrees is True

    def form_batch(self, frames: int, wait_ns: int) -> None:
        """A batch of so many frames was formed, the first of which had waited for so long."""
        batches, batched, waited_ns = self._batches
        self._batches = (batches + 1, batched + frames, waited_ns + wait_ns)

    def finish_batch(self, slot: int, busy_ns: int, frames: int) -> None:
        """A worker answered a batch."""
        self._busy[slot] = self._busy.get(slot, 0) + busy_ns
        self._frames[slot] = self._frames.get(slot, 0) + frames

    def lose_worker(self, slot: int) -> None:
        """A worker was lost."""
        self._losses[slot] = self._losses.get(slot, 0) + 1

    def is_due(self, now_ns: int) -> bool:
        """Whether `sample` is due."""
        return self._history.is_due(now_ns)

    def sample(self, now_ns: int) -> None:
        """Keep the totals of this moment."""
        totals: dict[Hashable, Totals] = {None: self._total.amounts()}
        for key, state in self._cameras.items():
            totals[key] = state.counts.amounts()
            totals |= drop_samples(key, state.counts.dropped)
        for slot, busy_ns in self._busy.items():
            totals["worker", slot] = (busy_ns, self._frames[slot])
        totals["batches"] = self._batches
        self._history.take(now_ns, totals)
        for key, state in self._cameras.items():
            state.trend.add(self._history.newest_step(key), now_ns)

    def cameras(self, now_ns: int) -> list[dict[str, Any]]:
        """A row for each camera, as the page takes it."""
        return [
            make_row(
                state.seen,
                self._judge(key, state, now_ns),
                state.trend,
                state.counts.amounts(),
                state.counts.dropped,
                self._history,
                key,
                now_ns,
            )
            for key, state in self._cameras.items()
        ]

    def document(self, slots: Sequence[SlotFacts], now_ns: int) -> dict[str, Any]:
        """Everything but the program's own facts, as the page takes it."""
        rows = self.cameras(now_ns)
        return {
            "uptime_s": age_s(self._began_ns, now_ns),
            "cameras": rows,
            "left_out": len(self._left_out),
            "batches": self._batch_figures(now_ns),
            "workers": [self._worker(slot, now_ns) for slot in slots],
            **fleet_figures(rows, self._total.amounts(), self._history, now_ns),
        }

    def _batch_figures(self, now_ns: int) -> dict[str, float | None]:
        minute = self._history.growth("batches", self._batches, now_ns, MINUTE_NS)
        batches, frames, waited_ns = minute.amounts if minute else (0, 0, 0)
        return {
            "per_second": rate(minute, batches) if minute else None,
            "frames": rounded(frames / batches) if batches else None,
            "wait_ms": rounded(waited_ns / batches / 1e6) if batches else None,
        }

    def _worker(self, slot: SlotFacts, now_ns: int) -> dict[str, Any]:
        totals = (self._busy.get(slot.number, 0), self._frames.get(slot.number, 0))
        minute = self._history.growth(("worker", slot.number), totals, now_ns, MINUTE_NS)
        return {
            "slot": slot.number,
            "state": slot.state,
            "since_s": age_s(slot.since_ns, now_ns),
            "busy_share": rounded(min(1.0, minute.amounts[0] / 1e9 / minute.seconds)) if minute else None,
            "fps": rate(minute, minute.amounts[1]) if minute else None,
            "memory_bytes": slot.resident_bytes or None,
            "losses": self._losses.get(slot.number, 0),
        }

    def _judge(self, key: CameraKey, state: _Camera, now_ns: int) -> Verdict:
        if state.closed_by in _GOODBYES:
            return Verdict(CameraState.ENDED, state.closed_ns, "its node said goodbye")
        if state.closed_by is not None:
            return Verdict(CameraState.DOWN, state.closed_ns, _LOSSES[state.closed_by])
        return judge_recent(
            state.began_ns,
            state.seen.frame_ns,
            state.trend,
            state.counts.amounts(),
            state.counts.dropped,
            self._history,
            key,
            now_ns,
            "frame",
        )

    def _counts_of(self, state: _Camera | None) -> tuple[_Counts, ...]:
        return (self._total,) if state is None else (self._total, state.counts)

    def _add(self, key: CameraKey, now_ns: int) -> _Camera | None:
        if len(self._cameras) >= self._max_cameras:
            gone = [(state.closed_ns, each) for each, state in self._cameras.items() if state.closed_ns is not None]
            if not gone:
                self._left_out.add(key)
                return None
            del self._cameras[min(gone)[1]]
        state = self._cameras[key] = _Camera(Seen(*key), now_ns)
        return state
