"""Batches that workers have, and what becomes of those whose worker was lost. Pure: no processes, time is passed in.

    formed --worker lost--> tried again whole, on another worker
                            --lost again--> split: every frame tried alone, one at a time
                                            --lost again--> this frame is to blame: `poison`

One loss says nothing about the frames: memory ran out, somebody killed the wrong process. A second one, elsewhere,
makes all of them suspects. They are split at once into single frames and not into halves: a frame alone takes a worker
milliseconds, while each halving that finds the poison costs another worker and the seconds of its start. So a batch of
any size costs three workers for its first poisonous frame, and one at a time, because only one suspect is out at any
moment: the other workers go on with everybody else's frames.

A worker that was killed with SIGKILL, and not by us, was killed by the operator or for want of memory: a frame that was
alone with such a one is `worker_lost`, and not accused.

Suspects are tried however old they are. Their result may come late, but a poisonous frame that is not found comes again
with the next picture of a scene that stands still: `PoisonMemory` knows it then by its bytes.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import Final, Generic, TypeVar

from pipeline.ledger import Outcome

ItemType = TypeVar("ItemType")

WHOLE_TRIES: Final = 2
"""So many workers may be lost with a batch before its frames are tried alone."""
REMEMBERED_POISONS: Final = 256
POISON_MEMORY_NS: Final = 600_000_000_000
"""Then the bytes are tried again: what broke the workers may have been something else, or be repaired."""


@dataclass(frozen=True, slots=True)
class Loss:
    """A worker that was lost with a batch.

    Attributes:
        slot: which one.
        is_killed: by a SIGKILL from outside.
    """

    slot: int
    is_killed: bool


@dataclass(frozen=True, slots=True)
class Attempt(Generic[ItemType]):
    """Frames that go to a worker together.

    Attributes:
        number: of the job; the same when it is tried again whole.
        begun_ns: when the batch was formed.
        losses: workers lost with it, with these frames among others before a split.
    """

    number: int
    bundle_id: bytes
    items: tuple[ItemType, ...]
    begun_ns: int
    losses: tuple[Loss, ...] = ()

    @property
    def is_suspect(self) -> bool:
        """Whether enough workers were lost with it to try its frames alone."""
        return len(self.losses) >= WHOLE_TRIES

    @property
    def tried_slots(self) -> tuple[int, ...]:
        """Slots that shall not get it again while there are others."""
        return tuple(loss.slot for loss in self.losses)


@dataclass(frozen=True, slots=True)
class Blame(Generic[ItemType]):
    """The end of a frame that was alone with a lost worker: answer it so."""

    item: ItemType
    outcome: Outcome
    text: str


class Attempts(Generic[ItemType]):
    """All batches between the queue and their answers. Owned by one thread."""

    def __init__(self) -> None:
        self._open: dict[int, Attempt[ItemType]] = {}
        self._waiting: list[Attempt[ItemType]] = []
        self._next_number = 0

    def __repr__(self) -> str:
        return f"<Attempts {len(self._open)} with workers, {len(self._waiting)} waiting>"

    def form(self, bundle_id: bytes, items: tuple[ItemType, ...], now_ns: int) -> Attempt[ItemType]:
        """A new batch; `open` it when a worker has it, or let it `wait`."""
        self._next_number += 1
        return Attempt(self._next_number - 1, bundle_id, items, now_ns)

    def open(self, attempt: Attempt[ItemType]) -> None:
        """A worker has it now."""
        self._open[attempt.number] = attempt

    def wait(self, attempt: Attempt[ItemType]) -> None:
        """No worker takes it now: it goes before all others."""
        self._waiting.insert(0, attempt)

    def next_waiting(self) -> Attempt[ItemType] | None:
        """Remove and return what shall be tried next, in the order of the losses; of suspects one is out at a time."""
        has_suspect_out = any(attempt.is_suspect for attempt in self._open.values())
        for place, attempt in enumerate(self._waiting):
            if not (attempt.is_suspect and has_suspect_out):
                return self._waiting.pop(place)
        return None

    def finish(self, number: int) -> Attempt[ItemType]:
        """A worker answered: the attempt it had."""
        return self._open.pop(number)

    def lose(self, number: int, loss: Loss) -> Blame[ItemType] | None:
        """The worker was lost: its frames wait for their next try, or the one that was alone with it is to blame."""
        attempt = self._open.pop(number)
        attempt = replace(attempt, losses=(*attempt.losses, loss))
        if not attempt.is_suspect:
            self._waiting.append(attempt)
            return None
        if len(attempt.items) == 1:
            return _blame(attempt)
        alone = [
            replace(self.form(attempt.bundle_id, (item,), attempt.begun_ns), losses=attempt.losses)
            for item in attempt.items
        ]
        self._waiting += alone
        return None

    def take_all(self) -> list[ItemType]:
        """Every frame that a worker has or that waits for another try, at the drain deadline: answer each."""
        items = [item for attempt in (*self._waiting, *self._open.values()) for item in attempt.items]
        self._waiting.clear()
        self._open.clear()
        return items


def _blame(attempt: Attempt[ItemType]) -> Blame[ItemType]:
    count = len(attempt.losses)
    if attempt.losses[-1].is_killed:
        return Blame(attempt.items[0], Outcome.WORKER_LOST, f"{count} workers were lost with it, the last one killed")
    return Blame(attempt.items[0], Outcome.POISON, f"{count} workers were lost with it, the last one with it alone")


class PoisonMemory:
    """Frames that broke workers, by the hash of their bytes: a scene that stands still makes the same ones again."""

    def __init__(self) -> None:
        self._until_ns: OrderedDict[bytes, int] = OrderedDict()

    def __len__(self) -> int:
        return len(self._until_ns)

    def add(self, bitstream: bytes, reference: bytes | None, now_ns: int) -> None:
        """Remember a frame for ten minutes; of too many the oldest is forgotten."""
        self._until_ns[frame_digest(bitstream, reference)] = now_ns + POISON_MEMORY_NS
        if len(self._until_ns) > REMEMBERED_POISONS:
            self._until_ns.popitem(last=False)

    def knows(self, bitstream: bytes, reference: bytes | None, now_ns: int) -> bool:
        """Whether these bytes broke workers not long ago; costs nothing while nothing is remembered."""
        if not self._until_ns:
            return False
        digest = frame_digest(bitstream, reference)
        until_ns = self._until_ns.get(digest)
        if until_ns is not None and until_ns <= now_ns:
            del self._until_ns[digest]
            return False
        return until_ns is not None


def frame_digest(bitstream: bytes, reference: bytes | None) -> bytes:
    """SHA-256 of what a worker gets of a frame."""
    digest = hashlib.sha256(len(bitstream).to_bytes(8, "little"))
    digest.update(bitstream)
    digest.update(reference or b"")
    return digest.digest()


def longest_answer_s(batch_timeout_s: float, worker_start_s: float, back_offs_s: tuple[float, float]) -> float:
    """How long the answer to a frame may take whose workers hang, with one worker only: the worst of all cases.

    Three workers hang for the whole timeout (batch, second try, alone), and before the second and the third there is a
    back-off and a start. A node's `result_timeout_s` has to be above it, or the answer finds the frame expired.
    """
    return 3 * batch_timeout_s + sum(back_offs_s) + 2 * worker_start_s
