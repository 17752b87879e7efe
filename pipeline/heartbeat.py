"""Whether the peer is alive, and how far away it is: one for each session, on either side.

Any message counts as a sign of life. A PING goes out at the start, when the peer was silent for an interval,
and now and then on a busy link too, because round trips are measured with nothing else.
"""

from __future__ import annotations

from collections import deque

from pipeline.wire import Ping, Pong

# On a busy link a round trip is measured every so many intervals (10 s at the default of 2 s).
BUSY_INTERVALS = 5
# The smallest of the newest samples: queues only ever add to a round trip, so it tells the path's best.
ROUND_TRIP_SAMPLES = 16
# PINGs remembered until their PONG: enough for a round trip of several intervals.
MAX_OPEN_PINGS = 8


class Heartbeat:
    """Liveness and round trip of one session.

    Args:
        interval_ns: silence after which a PING is due.
        timeout_ns: silence after which the peer is lost.
        now_ns: the session's start.
    """

    def __init__(self, interval_ns: int, timeout_ns: int, now_ns: int) -> None:
        self._interval_ns = interval_ns
        self._timeout_ns = timeout_ns
        self._heard_ns = now_ns
        self._next_ping_ns = now_ns
        self._token = 0
        self._pinged_ns: dict[int, int] = {}
        self._round_trips: deque[int] = deque(maxlen=ROUND_TRIP_SAMPLES)

    @property
    def round_trip_ns(self) -> int | None:
        """Smallest recent round trip; None before the first."""
        return min(self._round_trips, default=None)

    @property
    def heard_ns(self) -> int:
        """When the peer was last heard of."""
        return self._heard_ns

    def hear(self, now_ns: int) -> None:
        """Something arrived."""
        self._heard_ns = now_ns

    def take_pong(self, pong: Pong, now_ns: int) -> None:
        """Measure, if this answers a PING of ours; by our own stamp, since the echo is the peer's word."""
        pinged_ns = self._pinged_ns.pop(pong.token, None)
        if pinged_ns is not None:
            self._round_trips.append(now_ns - pinged_ns)

    def due_ping(self, now_ns: int) -> Ping | None:
        """The PING to send now, if one is due."""
        if now_ns < self._ping_due_ns():
            return None
        self._token += 1
        self._pinged_ns[self._token] = now_ns
        self._pinged_ns.pop(self._token - MAX_OPEN_PINGS, None)
        self._next_ping_ns = now_ns + self._interval_ns
        return Ping(self._token, now_ns)

    def is_lost(self, now_ns: int) -> bool:
        """Whether the peer was silent for too long."""
        return now_ns - self._heard_ns >= self._timeout_ns

    def next_deadline_ns(self) -> int:
        """When a PING is due or the peer lost, whichever is first."""
        return min(self._ping_due_ns(), self._heard_ns + self._timeout_ns)

    def _ping_due_ns(self) -> int:
        # Never two within an interval; else an interval after the last sign of life, or when the last PING is
        # long ago.
        busy_ns = self._next_ping_ns + (BUSY_INTERVALS - 1) * self._interval_ns
        idle_ns = max(self._next_ping_ns, self._heard_ns + self._interval_ns)
        return self._next_ping_ns if self._token == 0 else min(busy_ns, idle_ns)
