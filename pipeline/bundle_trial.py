"""Whether a bundle that a node has just begun to use works; until it does, the one before is kept. Also its words."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, StrEnum

from pipeline.ledger import Outcome

# One bad frame may be chance; so many before the first good one are the bundle's.
BAD_FRAMES = 3
# What a bundle can be to blame for; everything else is the link's, the cloud's or the camera's.
BLAMED = frozenset({Outcome.CORRUPT, Outcome.POISON, Outcome.ENCODE_ERROR, Outcome.OVERSIZE})
# Whose fate is followed: those coded since the change, and no more than may be on the way at once.
MAX_FOLLOWED = 4096


class UpdateOutcome(StrEnum):
    """How a change of the bundle ended; the words of the metric.

    Attributes:
        OK: it works: a frame that was coded with it got its class.
        BAD_HASH: what came is not what the id stands for.
        BAD_SIGNATURE: nobody that this node trusts has signed it.
        ROLLED_BACK: it did not work, and the one before is used again.
        ERROR: it could not be kept, read or run here.
    """

    OK = "ok"
    BAD_HASH = "bad_hash"
    BAD_SIGNATURE = "bad_signature"
    ROLLED_BACK = "rolled_back"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class BundleChange:
    """One change that ended, for whoever watches.

    Attributes:
        bundle: head of the id that it was about.
        classifier: of the bundle in use now; empty where it stayed the same.
    """

    outcome: UpdateOutcome
    bundle: str
    text: str
    classifier: str = ""


class Verdict(Enum):
    """What a trial came to."""

    WORKS = "works"
    FAILS = "fails"


class BundleTrial:
    """Follows the first frames of a bundle."""

    def __init__(self) -> None:
        self._followed: set[tuple[str, int]] = set()
        self._num_bad = 0

    def follow(self, camera: str, sequence: int) -> None:
        """A frame is coded with it."""
        if len(self._followed) < MAX_FOLLOWED:
            self._followed.add((camera, sequence))

    def end(self, camera: str, sequence: int, outcome: Outcome) -> Verdict | None:
        """A frame ended; the verdict, once there is one."""
        is_followed = (camera, sequence) in self._followed
        self._followed.discard((camera, sequence))
        # A frame that could not even be encoded was never followed: it is the bundle's all the same.
        if outcome is Outcome.OK and is_followed:
            return Verdict.WORKS
        if outcome in BLAMED and (is_followed or outcome in (Outcome.ENCODE_ERROR, Outcome.OVERSIZE)):
            self._num_bad += 1
        return Verdict.FAILS if self._num_bad >= BAD_FRAMES else None
