"""Which waiting frames form the next batch. Pure: time is passed in.

Frames wait by bundle, because a batch is decoded with one bundle; depths and levels mix freely. A batch is
ready when `max_frames` wait, when the first of them has waited for `max_wait_ns`, or when the batcher is
closed and only empties. Of several ready bundles the one whose first frame has waited longest goes first.

Who gets into a batch goes in turns: nodes first, then the cameras of a node, so that a node with many or fast
cameras takes no more of a batch than its neighbour. Two bounds keep the queue short, since a long one only
adds latency: `capacity` for all and `node_share` of it for one node. (Credit keeps nodes below both.)

A frame that becomes too old while it waits is never computed: it leaves by `take_stale`.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Generic, TypeVar

from pipeline.ledger import Outcome

ItemType = TypeVar("ItemType")


class Refusal(StrEnum):
    """Why a frame was not taken; the text of its RESULT."""

    QUEUE_FULL = "queue full"
    NODE_SHARE = "node has its share of the queue"
    TOO_OLD = "older than max age on arrival"
    CLOSED = "cloud is stopping"

    @property
    def outcome(self) -> Outcome:
        """What to answer."""
        match self:
            case Refusal.TOO_OLD:
                return Outcome.STALE
            case Refusal.CLOSED:
                return Outcome.SHUTDOWN
            case _:
                return Outcome.REJECTED


class BatchCause(StrEnum):
    """What made a batch ready."""

    FULL = "full"
    DUE = "due"
    CLOSING = "closing"


@dataclass(frozen=True, slots=True)
class Batch(Generic[ItemType]):
    """Frames to be computed together.

    Attributes:
        waits_ns: how long each item waited here, in the order of `items`.
    """

    bundle_id: bytes
    items: tuple[ItemType, ...]
    waits_ns: tuple[int, ...]
    cause: BatchCause


@dataclass(frozen=True, slots=True)
class BatcherStatistics:
    """The queue at one moment; counts are since the start."""

    waiting: int
    peak_waiting: int
    capacity: int
    batches: int
    frames_batched: int
    stale: int
    refused: dict[str, int]


@dataclass(frozen=True, slots=True)
class BatcherSettings:
    """Sizes and times of the queue.

    Attributes:
        max_frames: of a batch.
        max_wait_ns: how long a frame waits for company.
        capacity: frames waiting at most.
        node_share: of the capacity that one node may fill, 0 to 1; always at least one frame.
        max_age_ns: since capture, beyond which a frame is not worth computing; None: none is too old.
    """

    max_frames: int = 16
    max_wait_ns: int = 10_000_000
    capacity: int = 256
    node_share: float = 0.5
    max_age_ns: int | None = 2_000_000_000


@dataclass(frozen=True, slots=True, eq=False)
class _Waiting(Generic[ItemType]):
    item: ItemType
    order: int
    node: str
    camera: str
    bundle_id: bytes
    arrived_ns: int


@dataclass(slots=True)
class _Queue(Generic[ItemType]):
    """Frames waiting for one bundle.

    Attributes:
        arrivals: all of them, by `order`, which is the order of arrival.
        nodes: the same by node and camera; the first node's first camera gives the next frame.
    """

    arrivals: OrderedDict[int, _Waiting[ItemType]] = field(default_factory=OrderedDict)
    nodes: OrderedDict[str, OrderedDict[str, deque[_Waiting[ItemType]]]] = field(default_factory=OrderedDict)

    def add(self, waiting: _Waiting[ItemType]) -> None:
        self.arrivals[waiting.order] = waiting
        cameras = self.nodes.setdefault(waiting.node, OrderedDict())
        cameras.setdefault(waiting.camera, deque()).append(waiting)

    def first_arrived_ns(self) -> int:
        return next(iter(self.arrivals.values())).arrived_ns

    def next_in_turn(self) -> _Waiting[ItemType]:
        """Remove and return a frame; its camera and node go to the end of their lines."""
        cameras = next(iter(self.nodes.values()))
        waiting = next(iter(cameras.values()))[0]
        cameras.move_to_end(waiting.camera)
        self.nodes.move_to_end(waiting.node)
        self.remove(waiting)
        return waiting

    def remove(self, waiting: _Waiting[ItemType]) -> None:
        del self.arrivals[waiting.order]
        cameras = self.nodes[waiting.node]
        frames = cameras[waiting.camera]
        # Nearly always the first one: a camera's frames arrive, and grow old, in order.
        frames.remove(waiting)
        if not frames:
            del cameras[waiting.camera]
        if not cameras:
            del self.nodes[waiting.node]


class Batcher(Generic[ItemType]):
    """The queue between sessions and workers. Owned by one thread."""

    def __init__(self, settings: BatcherSettings) -> None:
        if settings.max_frames < 1 or settings.capacity < 1 or not 0.0 < settings.node_share <= 1.0:
            raise ValueError(f"batches and queue need room for a frame, shares 0 to 1: {settings}")
        self._settings = settings
        self._node_limit = max(1, int(settings.capacity * settings.node_share))
        self._queues: dict[bytes, _Queue[ItemType]] = {}
        self._waiting: dict[int, _Waiting[ItemType]] = {}
        # (when it is too old, order) of each waiting frame, and of some that have left.
        self._by_age: list[tuple[int, int]] = []
        self._of_node: dict[str, int] = {}
        self._next_order = 0
        self._is_closed = False
        self._peak_waiting = 0
        self._num_batches = 0
        self._num_batched = 0
        self._num_stale = 0
        self._refused = {refusal.value: 0 for refusal in Refusal}

    def __repr__(self) -> str:
        state = "closed" if self._is_closed else "open"
        return f"<Batcher {state}, {len(self._waiting)} of {self._settings.capacity} waiting>"

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    def offer(
        self, item: ItemType, *, node: str, camera: str, bundle_id: bytes, now_ns: int, born_ns: int
    ) -> Refusal | None:
        """Queue a frame, or say why not: then answer it at once with the refusal's outcome.

        Args:
            born_ns: capture on this machine's clock.
        Returns:
            None when taken.
        """
        refusal = self._refusal(node, now_ns, born_ns)
        if refusal is not None:
            self._refused[refusal.value] += 1
            return refusal
        waiting = _Waiting(item, self._next_order, node, camera, bundle_id, now_ns)
        self._next_order += 1
        self._waiting[waiting.order] = waiting
        self._queues.setdefault(bundle_id, _Queue()).add(waiting)
        self._of_node[node] = self._of_node.get(node, 0) + 1
        self._peak_waiting = max(self._peak_waiting, len(self._waiting))
        if self._settings.max_age_ns is not None:
            heapq.heappush(self._by_age, (born_ns + self._settings.max_age_ns, waiting.order))
        return None

    def take_stale(self, now_ns: int) -> list[ItemType]:
        """Frames that became too old while waiting: answer each `stale`. Call it before `next_batch`."""
        stale = []
        self._forget_gone()
        while self._by_age and self._by_age[0][0] <= now_ns:
            waiting = self._waiting[heapq.heappop(self._by_age)[1]]
            self._queues[waiting.bundle_id].remove(waiting)
            self._leave(waiting)
            stale.append(waiting.item)
            self._forget_gone()
        self._num_stale += len(stale)
        return stale

    def next_batch(self, now_ns: int, idle_workers: int) -> Batch[ItemType] | None:
        """The batch that a worker shall compute now; None if none is ready or nobody is idle."""
        if idle_workers <= 0:
            return None
        ready = [
            (queue.first_arrived_ns(), bundle_id, cause)
            for bundle_id, queue in self._queues.items()
            if (cause := self._cause(queue, now_ns)) is not None
        ]
        if not ready:
            return None
        _, bundle_id, cause = min(ready)
        queue = self._queues[bundle_id]
        num_frames = min(self._settings.max_frames, len(queue.arrivals))
        taken = [queue.next_in_turn() for _ in range(num_frames)]
        for waiting in taken:
            self._leave(waiting)
        self._num_batches += 1
        self._num_batched += len(taken)
        return Batch(
            bundle_id=bundle_id,
            items=tuple(waiting.item for waiting in taken),
            waits_ns=tuple(now_ns - waiting.arrived_ns for waiting in taken),
            cause=cause,
        )

    def next_deadline_ns(self, idle_workers: int) -> int | None:
        """When to come back at the latest: a batch is due (if somebody is idle), or a frame gets too old."""
        self._forget_gone()
        deadlines = [self._by_age[0][0]] if self._by_age else []
        if idle_workers > 0:
            for queue in self._queues.values():
                is_ready = self._is_closed or len(queue.arrivals) >= self._settings.max_frames
                deadlines.append(queue.first_arrived_ns() + (0 if is_ready else self._settings.max_wait_ns))
        return min(deadlines, default=None)

    def close(self) -> None:
        """Take nothing more; what waits is ready at once."""
        self._is_closed = True

    def take_all(self) -> list[ItemType]:
        """Everything that still waits, at the drain deadline: answer each `shutdown`."""
        taken = list(self._waiting.values())
        for waiting in taken:
            self._queues[waiting.bundle_id].remove(waiting)
            self._leave(waiting)
        return [waiting.item for waiting in taken]

    def statistics(self) -> BatcherStatistics:
        return BatcherStatistics(
            waiting=len(self._waiting),
            peak_waiting=self._peak_waiting,
            capacity=self._settings.capacity,
            batches=self._num_batches,
            frames_batched=self._num_batched,
            stale=self._num_stale,
            refused=dict(self._refused),
        )

    def _refusal(self, node: str, now_ns: int, born_ns: int) -> Refusal | None:
        if self._is_closed:
            return Refusal.CLOSED
        max_age_ns = self._settings.max_age_ns
        if max_age_ns is not None and now_ns - born_ns >= max_age_ns:
            return Refusal.TOO_OLD
        if len(self._waiting) >= self._settings.capacity:
            return Refusal.QUEUE_FULL
        if self._of_node.get(node, 0) >= self._node_limit:
            return Refusal.NODE_SHARE
        return None

    def _cause(self, queue: _Queue[ItemType], now_ns: int) -> BatchCause | None:
        if len(queue.arrivals) >= self._settings.max_frames:
            return BatchCause.FULL
        if self._is_closed:
            return BatchCause.CLOSING
        is_due = now_ns - queue.first_arrived_ns() >= self._settings.max_wait_ns
        return BatchCause.DUE if is_due else None

    def _leave(self, waiting: _Waiting[ItemType]) -> None:
        """Count a frame out; queues of bundles and nodes without frames are forgotten with it."""
        del self._waiting[waiting.order]
        left = self._of_node[waiting.node] - 1
        if left:
            self._of_node[waiting.node] = left
        else:
            del self._of_node[waiting.node]
        queue = self._queues.get(waiting.bundle_id)
        if queue is not None and not queue.arrivals:
            del self._queues[waiting.bundle_id]

    def _forget_gone(self) -> None:
        """Drop what has left from the top of the heap; and everywhere, once it is most of the heap."""
        if len(self._by_age) > 2 * len(self._waiting) + 64:
            self._by_age = [entry for entry in self._by_age if entry[1] in self._waiting]
            heapq.heapify(self._by_age)
        while self._by_age and self._by_age[0][1] not in self._waiting:
            heapq.heappop(self._by_age)
