"""The order in which spooled frames are sent: oldest first, and again after a session that lost them."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field

from pipeline.errors import LocalSessionError

FrameKey = tuple[str, int]
"""Camera and sequence."""


@dataclass(slots=True)
class ReplayQueue:
    """Frames without a result, each either waiting to be sent or sent in the session that is up.

    Attributes:
        _orders: place in the spool by key, of all of them.
        _waiting: (place, key) of those to send, a heap; ended ones are passed over when they come up.
        _sent: keys that went out in this session.
    """

    _orders: dict[FrameKey, int] = field(default_factory=dict)
    _waiting: list[tuple[int, FrameKey]] = field(default_factory=list)
    _sent: set[FrameKey] = field(default_factory=set)
    _next_order: int = 0

    def __len__(self) -> int:
        return len(self._orders)

    @property
    def num_waiting(self) -> int:
        """Frames that are not sent."""
        return len(self._orders) - len(self._sent)

    def add(self, key: FrameKey) -> None:
        """Put a frame behind all others.

        Raises:
            LocalSessionError: it is there already.
        """
        if key in self._orders:
            raise LocalSessionError(f"frame {key[1]} of {key[0]} is in the spool twice")
        self._orders[key] = self._next_order
        heapq.heappush(self._waiting, (self._next_order, key))
        self._next_order += 1

    def oldest(self) -> FrameKey | None:
        """The frame to send next; None when all are sent."""
        while self._waiting:
            key = self._waiting[0][1]
            if key in self._orders and key not in self._sent:
                return key
            heapq.heappop(self._waiting)
        return None

    def first(self) -> FrameKey | None:
        """The oldest frame, sent or not."""
        return next(iter(self._orders), None)

    def send(self, key: FrameKey) -> None:
        """Note that a frame went out."""
        self._sent.add(key)

    def take_back(self, key: FrameKey) -> None:
        """A frame that went out is to be sent again, at its old place."""
        if key in self._sent:
            self._sent.remove(key)
            heapq.heappush(self._waiting, (self._orders[key], key))

    def lose_link(self) -> None:
        """The session ended: all that went out in it is to be sent again."""
        for key in list(self._sent):
            self.take_back(key)

    def end(self, key: FrameKey) -> bool:
        """Forget a frame that ended; False when it is not here."""
        self._sent.discard(key)
        return self._orders.pop(key, None) is not None
