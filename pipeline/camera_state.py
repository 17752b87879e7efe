"""How a camera stands, since when and why: what the status pages of node and cloud say of it. No I/O.

Worst first:

    down      the node says that the source fails, or the cloud lost the node without a goodbye
    silent    connected, but no frame, or no result, for `SILENT_AFTER_NS`
    dropping  more than `DROPPING_SHARE` of the last minute's frames were lost for a reason that is nobody's choice
    waiting   connected and no frame yet
    ok        frames come and are answered
    ended     it said goodbye, or its file is through
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from pipeline.ledger import Outcome

NS_PER_S = 1_000_000_000
# Slower cameras than one frame in ten seconds are rare, and said to be silent between two frames.
SILENT_AFTER_NS = 10 * NS_PER_S
# The share that is worth a look; and so many frames at least, or one lost of three would count.
DROPPING_SHARE = 0.05
MIN_DROPPED = 3
#: Reasons that are somebody's choice: a live camera keeps its newest frame only, and --fps is obeyed.
CHOSEN = frozenset({Outcome.SUPERSEDED.value, Outcome.RATE_LIMIT.value})
#: The cloud's word for sequence numbers that never came: the node dropped them, and only it knows why.
AT_NODE = "at_node"


class CameraState(StrEnum):
    """See the module's head; in the order of badness."""

    DOWN = "down"
    SILENT = "silent"
    DROPPING = "dropping"
    WAITING = "waiting"
    OK = "ok"
    ENDED = "ended"


BAD = frozenset({CameraState.DOWN, CameraState.SILENT, CameraState.DROPPING})


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is to be said of a camera.

    Attributes:
        since_ns: when that began; None: not known.
        why: one sentence for people; empty when all is well.
    """

    state: CameraState
    since_ns: int | None = None
    why: str = ""


def is_dropping(frames: int, lost: int) -> bool:
    """Whether so many lost frames are worth a look.

    Args:
        lost: frames that ended without a result and by nobody's choice.
    """
    return lost >= MIN_DROPPED and lost > DROPPING_SHARE * frames


def is_loss(reason: str) -> bool:
    """Whether a dropped frame is a loss, not a choice; what the node left out is for the node to judge."""
    return reason not in CHOSEN and reason != AT_NODE


def judge_flow(
    began_ns: int,
    newest_ns: int | None,
    frames: int,
    lost: Mapping[str, int],
    dropping_since_ns: int | None,
    now_ns: int,
    what: str,
) -> Verdict:
    """Judge a connected camera by what came of it.

    Args:
        began_ns: when it was connected, or its source opened.
        newest_ns: when the newest frame (or result) came; None: none did.
        frames: of the last minute, dropped ones included.
        lost: of the last minute, losses by reason.
        dropping_since_ns: since when frames are lost without a pause.
        what: that is missing when nothing comes: "frame" or "result".
    """
    if newest_ns is None:
        if now_ns - began_ns < SILENT_AFTER_NS:
            return Verdict(CameraState.WAITING, began_ns, f"no {what} yet")
        return Verdict(CameraState.SILENT, began_ns, f"not one {what} since it is connected")
    if now_ns - newest_ns >= SILENT_AFTER_NS:
        return Verdict(CameraState.SILENT, newest_ns, f"no {what} comes, though it is connected")
    total = sum(lost.values())
    if is_dropping(frames, total):
        reasons = ", ".join(f"{reason} {count}" for reason, count in by_count(lost).items())
        return Verdict(
            CameraState.DROPPING,
            dropping_since_ns,
            f"{total} of {max(frames, total)} frames lost in a minute: {reasons}",
        )
    return Verdict(CameraState.OK, began_ns)


def by_count(counts: Mapping[str, int]) -> dict[str, int]:
    """The same, most frequent first."""
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
