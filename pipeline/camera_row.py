"""One camera on a status page: the figures of its row, from totals and their history. No I/O.

Node and cloud fill the same rows, so that one page shows both.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pipeline.camera_state import BAD, CameraState, Verdict, by_count, is_dropping, is_loss, judge_flow
from pipeline.history import NS_PER_S, NUM_STEPS, Growth, History, Totals

# Rates of now: long enough to be steady, short enough to follow.
NOW_NS = 10 * NS_PER_S
MINUTE_NS = 60 * NS_PER_S
S_PER_HOUR = 3600
HOURS_PER_MONTH = 730


class Amounts(NamedTuple):
    """Totals of a camera since the start.

    Attributes:
        frames: that there were: captured at the node; in the cloud, received and missing ones.
        results: frames that were classified.
        dropped: for whatever reason; lost: of those, by nobody's choice (`camera_state.is_loss`).
        wire_bytes: of messages with their framing, both ways as far as the side knows them.
        latency_ns: sum of capture to result over `results`.
    """

    frames: int = 0
    results: int = 0
    dropped: int = 0
    lost: int = 0
    wire_bytes: int = 0
    latency_ns: int = 0


@dataclass(slots=True)
class Seen:
    """What was last seen of a camera.

    Attributes:
        best: name and probability of the newest frame's class.
        frame_ns: when the newest frame came.
        agreeing: frames whose class was the uncompressed classifier's, of `references` that it saw.
    """

    node: str
    camera: str
    best: tuple[str, float] | None = None
    depth: int | None = None
    level: float | None = None
    frame_ns: int | None = None
    agreeing: int = 0
    references: int = 0


@dataclass(slots=True)
class Trend:
    """What each step of the history said of a camera; so that a page need not go through all of them.

    Attributes:
        fps: results a second of each step, the newest last; None where nothing is known.
        dropping_since_ns: when the newest steps began to lose frames, to a step; None: the newest lost none.
    """

    fps: deque[float | None] = field(default_factory=lambda: deque(maxlen=NUM_STEPS))
    dropping_since_ns: int | None = None

    def add(self, step: Growth | None, now_ns: int) -> None:
        """Take what was added since the sample before."""
        amounts = Amounts() if step is None else Amounts(*step.amounts)
        self.fps.append(None if step is None else rate(step, amounts.results))
        if step is None or not is_dropping(amounts.frames, amounts.lost):
            self.dropping_since_ns = None
        elif self.dropping_since_ns is None:
            self.dropping_since_ns = now_ns - round(step.seconds * NS_PER_S)


def make_row(
    seen: Seen,
    verdict: Verdict,
    trend: Trend,
    totals: Amounts,
    dropped: Mapping[str, int],
    history: History,
    key: Hashable,
    now_ns: int,
) -> dict[str, Any]:
    """The row as it goes into JSON; figures that are not known are None.

    Args:
        dropped: since the start by reason; each reason's history is kept under (key, reason).
        key: of the camera's totals in the history.
    """
    now = history.growth(key, totals, now_ns, NOW_NS)
    minute = history.growth(key, totals, now_ns, MINUTE_NS)
    recent = Amounts() if minute is None else Amounts(*minute.amounts)
    return {
        "node": seen.node,
        "camera": seen.camera,
        "state": verdict.state.value,
        "since_s": age_s(verdict.since_ns, now_ns),
        "why": verdict.why,
        "class": None if seen.best is None else seen.best[0],
        "probability": None if seen.best is None else rounded(seen.best[1]),
        "agreement": rounded(seen.agreeing / seen.references) if seen.references else None,
        "references": seen.references,
        "depth": seen.depth,
        "level": seen.level,
        "fps": rate(now, Amounts(*now.amounts).results) if now else None,
        "kbps": rate(now, 8 * Amounts(*now.amounts).wire_bytes / 1000) if now else None,
        "latency_ms": latency_ms(Amounts(*now.amounts)) if now else None,
        "dropped_share": dropped_share(recent),
        "dropped": recent_drops(dropped, history, key, now_ns, None),
        "frames": totals.frames,
        "results": totals.results,
        "bytes_per_hour": rate(minute, S_PER_HOUR * recent.wire_bytes) if minute else None,
        "frame_age_s": age_s(seen.frame_ns, now_ns),
        "series": list(trend.fps),
    }


def judge_recent(
    began_ns: int,
    newest_ns: int | None,
    trend: Trend,
    totals: Amounts,
    dropped: Mapping[str, int],
    history: History,
    key: Hashable,
    now_ns: int,
    what: str,
) -> Verdict:
    """`judge_flow` by the last minute of the history."""
    minute = history.growth(key, totals, now_ns, MINUTE_NS)
    losses = {reason: count for reason, count in dropped.items() if is_loss(reason)}
    return judge_flow(
        began_ns,
        newest_ns,
        Amounts(*minute.amounts).frames if minute else 0,
        recent_drops(losses, history, key, now_ns, MINUTE_NS),
        trend.dropping_since_ns,
        now_ns,
        what,
    )


def recent_drops(
    dropped: Mapping[str, int], history: History, key: Hashable, now_ns: int, span_ns: int | None
) -> dict[str, int]:
    """Frames dropped within a span (None: all that is remembered) by reason, most frequent first."""
    grown = {
        reason: history.growth_of_all((key, reason), (count,), now_ns)
        if span_ns is None
        else history.growth((key, reason), (count,), now_ns, span_ns)
        for reason, count in dropped.items()
    }
    return by_count({reason: growth.amounts[0] for reason, growth in grown.items() if growth and growth.amounts[0]})


def drop_samples(key: Hashable, dropped: Mapping[str, int]) -> dict[Hashable, Totals]:
    """What goes into a sample for `recent_drops`."""
    return {(key, reason): (count,) for reason, count in dropped.items()}


def fleet_figures(rows: Iterable[Mapping[str, Any]], total: Amounts, history: History, now_ns: int) -> dict[str, Any]:
    """The figures above the table and the charts; the history keeps the sum of all cameras under None."""
    rows = list(rows)
    now = history.growth(None, total, now_ns, NOW_NS)
    minute = history.growth(None, total, now_ns, MINUTE_NS)
    recent = Amounts() if minute is None else Amounts(*minute.amounts)
    steps = [None if step is None else (step, Amounts(*step.amounts)) for step in history.steps(None)]
    return {
        "totals": {
            "cameras": len(rows),
            "bad": sum(CameraState(row["state"]) in BAD for row in rows),
            "fps": rate(now, Amounts(*now.amounts).results) if now else None,
            "kbps": rate(now, 8 * Amounts(*now.amounts).wire_bytes / 1000) if now else None,
            "latency_ms": latency_ms(Amounts(*now.amounts)) if now else None,
            "dropped_share": dropped_share(recent),
            "bytes_per_hour": rate(minute, S_PER_HOUR * recent.wire_bytes) if minute else None,
        },
        "hours_per_month": HOURS_PER_MONTH,
        "step_s": history.step_ns / NS_PER_S,
        "series": {
            "fps": [None if step is None else rate(step[0], step[1].results) for step in steps],
            "kbps": [None if step is None else rate(step[0], 8 * step[1].wire_bytes / 1000) for step in steps],
            "latency_ms": [None if step is None else latency_ms(step[1]) for step in steps],
            "dropped": [None if step is None else rate(step[0], step[1].dropped) for step in steps],
        },
    }


def dropped_share(amounts: Amounts) -> float | None:
    """Dropped frames among all; those that came before the time and ended within it make no more than all."""
    return rounded(min(1.0, amounts.dropped / amounts.frames)) if amounts.frames else None


def rate(growth: Growth, amount: float) -> float:
    """An amount of that growth, a second."""
    return rounded(amount / growth.seconds)


def latency_ms(amounts: Amounts) -> float | None:
    """Mean of capture to result; None without results."""
    return rounded(amounts.latency_ns / amounts.results / 1e6) if amounts.results else None


def age_s(moment_ns: int | None, now_ns: int) -> float | None:
    """Seconds since a moment."""
    return None if moment_ns is None else round(max(0, now_ns - moment_ns) / NS_PER_S, 1)


def rounded(value: float) -> float:
    """Four digits are more than a page shows; the rest is only bytes."""
    return float(f"{value:.4g}")
