"""What a camera tells its owner; see `nodes/capture.py`.

The ledger's side: totals count since the node started. Every sequence number below `captured_total` is
settled: each FrameArrived delivered one of them, `rate_limited_total` fell to --fps, and the rest were
superseded by a newer frame. What a reader captured and had not told when it was killed was never captured.
"""

from __future__ import annotations

from dataclasses import dataclass

from nodes.capture_link import DownReason
from pipeline.frames import Frame


@dataclass(frozen=True, slots=True)
class Up:
    """The first picture after a start or restart was captured."""

    width: int
    height: int


@dataclass(frozen=True, slots=True)
class FrameArrived:
    """A requested frame, with the totals up to and including it: captured_total is its sequence + 1."""

    frame: Frame
    captured_total: int
    rate_limited_total: int


@dataclass(frozen=True, slots=True)
class Settled:
    """Frames were captured and dropped since the last totals, without one being given out."""

    captured_total: int
    rate_limited_total: int


@dataclass(frozen=True, slots=True)
class BadFrames:
    """So many more pictures could not be decoded; they have no sequence number."""

    count: int


@dataclass(frozen=True, slots=True)
class Down:
    """The source failed; it is tried again at `retry_at_ns`."""

    reason: DownReason
    text: str
    retry_at_ns: int
    captured_total: int
    rate_limited_total: int


@dataclass(frozen=True, slots=True)
class Finished:
    """A finite source is through; nothing more comes."""

    captured_total: int
    rate_limited_total: int


CaptureEvent = Up | FrameArrived | Settled | BadFrames | Down | Finished
