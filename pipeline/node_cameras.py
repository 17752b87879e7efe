"""What a node knows of its own cameras, for its status page. No I/O; counts are read from the ledger."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from pipeline.camera_row import Amounts, Seen, Trend, age_s, drop_samples, fleet_figures, judge_recent, make_row
from pipeline.camera_state import SILENT_AFTER_NS, CameraState, Verdict, is_loss
from pipeline.history import History, Totals
from pipeline.totals import CameraTotals, LedgerSnapshot


class SourceState(StrEnum):
    """Where a camera's source stands."""

    OPENING = "opening"
    UP = "up"
    DOWN = "down"
    FINISHED = "finished"


@dataclass(slots=True)
class _Camera:
    """One camera: what its source does, and what was last seen of it."""

    seen: Seen
    since_ns: int
    source: SourceState = SourceState.OPENING
    why: str = ""
    result_ns: int | None = None
    latency_ns: int = 0
    trend: Trend = field(default_factory=Trend)


class NodeCameras:
    """Cameras of one node and its link. Owned by one thread.

    Args:
        cameras: all that the ledger may name.
    """

    def __init__(self, node: str, cameras: Iterable[str], now_ns: int) -> None:
        self._began_ns = now_ns
        self._cameras = {camera: _Camera(Seen(node, camera), now_ns) for camera in cameras}
        self._history = History()
        self._link_down = "the node is starting"
        self._link_since_ns = now_ns

    @property
    def link_down(self) -> str:
        """Why there is no session; empty with one."""
        return self._link_down

    def change_source(self, camera: str, source: SourceState, why: str, now_ns: int) -> None:
        """A camera's source opened, failed or is through; a second failure does not begin anew."""
        state = self._cameras[camera]
        if state.source is not source:
            state.source, state.since_ns = source, now_ns
            state.result_ns = None
        state.why = why

    def change_link(self, why_down: str, now_ns: int) -> None:
        """There is a session (no reason), or none."""
        if bool(self._link_down) != bool(why_down):
            self._link_since_ns = now_ns
        self._link_down = why_down

    def encode(self, camera: str, depth: int, level: float, now_ns: int) -> None:
        """A frame was coded."""
        seen = self._cameras[camera].seen
        seen.depth, seen.level, seen.frame_ns = depth, level, now_ns

    def answer(
        self, camera: str, best: tuple[str, float] | None, latency_ns: int | None, agrees: bool | None, now_ns: int
    ) -> None:
        """A frame was classified.

        Args:
            latency_ns: capture to result; None where it means nothing (a recovered frame).
            agrees: whether the uncompressed classifier said the same; None without a reference.
        """
        state = self._cameras[camera]
        state.result_ns, state.seen.best = now_ns, best
        state.latency_ns += latency_ns or 0
        state.seen.references += agrees is not None
        state.seen.agreeing += agrees is True

    def is_due(self, now_ns: int) -> bool:
        """Whether `sample` is due."""
        return self._history.is_due(now_ns)

    def sample(self, ledger: LedgerSnapshot, now_ns: int) -> None:
        """Keep the totals of this moment."""
        totals: dict[Hashable, Totals] = {None: self._sum(ledger)}
        for camera, own in ledger.cameras.items():
            totals[camera] = self._amounts(camera, own)
            totals |= drop_samples(camera, own.dropped)
        self._history.take(now_ns, totals)
        for camera, state in self._cameras.items():
            state.trend.add(self._history.newest_step(camera), now_ns)

    def document(self, ledger: LedgerSnapshot, now_ns: int) -> dict[str, Any]:
        """Everything but the program's own facts, as the page takes it."""
        rows = [self._row(camera, own, now_ns) for camera, own in ledger.cameras.items()]
        return {
            "uptime_s": age_s(self._began_ns, now_ns),
            "cameras": rows,
            "left_out": 0,
            "workers": [],
            **fleet_figures(rows, self._sum(ledger), self._history, now_ns),
        }

    def _row(self, camera: str, own: CameraTotals, now_ns: int) -> dict[str, Any]:
        state, totals = self._cameras[camera], self._amounts(camera, own)
        verdict = self._judge(camera, state, totals, own, now_ns)
        return make_row(state.seen, verdict, state.trend, totals, own.dropped, self._history, camera, now_ns)

    def _judge(self, camera: str, state: _Camera, totals: Amounts, own: CameraTotals, now_ns: int) -> Verdict:
        if state.source is SourceState.FINISHED:
            return Verdict(CameraState.ENDED, state.since_ns, "its source is through")
        if state.source is SourceState.DOWN:
            return Verdict(CameraState.DOWN, state.since_ns, f"{state.why}; trying again")
        if state.source is SourceState.OPENING:
            is_new = now_ns - state.since_ns < SILENT_AFTER_NS
            return Verdict(CameraState.WAITING if is_new else CameraState.SILENT, state.since_ns, "its source opens")
        if self._link_down:
            return Verdict(CameraState.SILENT, self._link_since_ns, f"no session with a cloud: {self._link_down}")
        began_ns = max(state.since_ns, self._link_since_ns)
        return judge_recent(
            began_ns, state.result_ns, state.trend, totals, own.dropped, self._history, camera, now_ns, "result"
        )

    def _amounts(self, camera: str, own: CameraTotals) -> Amounts:
        return Amounts(
            frames=own.captured + own.recovered,
            results=own.results,
            dropped=sum(own.dropped.values()),
            lost=sum(count for reason, count in own.dropped.items() if is_loss(reason)),
            wire_bytes=own.wire_sent_bytes + own.wire_received_bytes,
            latency_ns=self._cameras[camera].latency_ns,
        )

    def _sum(self, ledger: LedgerSnapshot) -> Amounts:
        every = [self._amounts(camera, own) for camera, own in ledger.cameras.items()]
        return Amounts(*map(sum, zip(*every, strict=True)))
