"""Which of a node's endpoints is used, how long to wait before it is tried, and when to go back to a better one.

Endpoints stand in the order of preference. Each that fails makes way for the next, then the first again; the wait
doubles once all have failed. A node stays with the one that works. While that is not the first, it looks at the
better ones now and then, over a connection of its own that opens no session: a cloud answers a PING without a
session by saying so. Only one that answered for a while is gone back to, in order, when nothing is on the way; and one
that was gone back to in vain is left alone for twice as long.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pipeline.errors import LocalSessionError
from pipeline.wire import Message, Ping, Reject, RejectCode

NS_PER_S = 1_000_000_000
# Two clouds that point at each other would keep a node busy for good.
MAX_REDIRECTS = 3
# A look: so many answers in a row, so far apart, and not later than so much after they were asked for.
PROBE_ANSWERS = 3
PROBE_INTERVAL_NS = NS_PER_S
PROBE_TIMEOUT_NS = 5 * NS_PER_S
# However often it was in vain: a cloud that was repaired is found within this time.
LONGEST_RETURN_NS = 600 * NS_PER_S


class EndpointChoice:
    """The endpoint to use, and the back-off with full jitter.

    Args:
        random: uniform in [0, 1).
    """

    def __init__(
        self, endpoints: Sequence[str], backoff_first_ns: int, backoff_last_ns: int, random: Callable[[], float]
    ) -> None:
        if not endpoints:
            raise LocalSessionError("a node session needs at least one endpoint")
        self._endpoints = tuple(endpoints)
        self._first_ns, self._last_ns = backoff_first_ns, backoff_last_ns
        self._random = random
        self._index = 0
        self._redirect: str | None = None
        self._num_redirects = 0
        self._num_failures = 0

    @property
    def endpoint(self) -> str:
        """What to connect to."""
        return self._redirect or self._endpoints[self._index]

    @property
    def index(self) -> int:
        """Its place in the list, or the place of what redirected to it."""
        return self._index

    @property
    def is_redirected(self) -> bool:
        return self._redirect is not None

    def fail(self, *, is_lasting: bool) -> int:
        """Choose the next endpoint; return how long to wait for it.

        Args:
            is_lasting: asking again soon cannot help: waited out, but only once no other endpoint is left to try.
        """
        ceiling_ns = self._ceiling_ns()
        self._num_failures += 1
        if self._redirect is not None:
            # Where it was sent to has failed: back to the list.
            self._redirect, self._index, self._num_redirects = None, 0, 0
        else:
            self._index = (self._index + 1) % len(self._endpoints)
        if is_lasting and self._index == 0:
            return int((0.5 + 0.5 * self._random()) * self._last_ns)
        return int(self._random() * ceiling_ns)

    def redirect(self, endpoint: str) -> int:
        """Follow a redirection; return how long to wait for it."""
        self._redirect = endpoint
        return int(self._random() * self._ceiling_ns())

    def count_redirect(self) -> bool:
        """Count a redirection; False when they lead in circles."""
        self._num_redirects += 1
        return self._num_redirects <= MAX_REDIRECTS

    def arrive(self) -> None:
        """A result came: redirections led somewhere."""
        self._num_redirects = 0

    def forgive(self) -> None:
        """The session worked: the back-off starts anew."""
        self._num_failures = 0

    def move_to(self, index: int) -> None:
        """Use a certain endpoint of the list."""
        self._index, self._redirect, self._num_redirects = index, None, 0

    def _ceiling_ns(self) -> int:
        rounds = min(self._num_failures // len(self._endpoints), 32)
        return min(self._last_ns, self._first_ns << rounds)


@dataclass(frozen=True, slots=True)
class OpenProbe:
    """Open the connection for looking, to the endpoint at this place of the list."""

    index: int


@dataclass(frozen=True, slots=True)
class SendProbe:
    """Send this over it; what is not taken is sent again later."""

    message: Message


@dataclass(frozen=True, slots=True)
class CloseProbe:
    """Close it."""


@dataclass(frozen=True, slots=True)
class GoBack:
    """Move the session to the endpoint at this place."""

    index: int


ProbeAction = OpenProbe | SendProbe | CloseProbe | GoBack


class ReturnWatch:
    """Looks at better endpoints while a worse one is used.

    Args:
        interval_ns: between two looks, and how long a session that was gone back to has to last.
    """

    def __init__(self, interval_ns: int) -> None:
        self._first_ns = self._interval_ns = interval_ns
        # The place of the session that is up; None: none, or one that is no concern of ours.
        self._index: int | None = None
        self._next_look_ns = 0
        self._candidate = 0
        self._is_open = False
        self._answers = 0
        self._token = 0
        self._send_ns = 0
        self._give_up_ns = 0
        self._returned_ns: int | None = None

    def session_opened(self, index: int, now_ns: int) -> list[ProbeAction]:
        """A session is up at this place of the list."""
        if self._returned_ns is not None and index > 0 and now_ns - self._returned_ns < self._first_ns:
            self._interval_ns = min(2 * self._interval_ns, LONGEST_RETURN_NS)
        self._returned_ns = None
        self._index = index
        self._candidate = 0
        self._next_look_ns = now_ns + self._interval_ns
        return self._close()

    def session_lost(self) -> list[ProbeAction]:
        """No session is up: the next attempts go through all endpoints anyway."""
        self._index = None
        return self._close()

    def tick(self, now_ns: int) -> list[ProbeAction]:
        """Do what is due."""
        if not self._index:
            return []
        if not self._is_open:
            return self._open(now_ns) if now_ns >= self._next_look_ns else []
        if now_ns >= self._give_up_ns:
            return self._end_look(now_ns)
        if now_ns >= self._send_ns:
            self._token += 1
            self._send_ns = now_ns + PROBE_INTERVAL_NS
            return [SendProbe(Ping(self._token, now_ns))]
        return []

    def receive(self, message: Message, now_ns: int) -> list[ProbeAction]:
        """Take an answer of the endpoint that is looked at."""
        if not self._is_open or self._index is None:
            return []
        if not (isinstance(message, Reject) and message.code is RejectCode.NO_SESSION):
            return self._end_look(now_ns)
        self._answers += 1
        self._give_up_ns = now_ns + PROBE_TIMEOUT_NS
        if self._answers < PROBE_ANSWERS:
            return []
        candidate, self._returned_ns = self._candidate, now_ns
        self._next_look_ns = now_ns + self._interval_ns
        return [*self._close(), GoBack(candidate)]

    def next_deadline_ns(self) -> int | None:
        """When `tick` has something to do at the earliest."""
        if not self._index:
            return None
        return min(self._send_ns, self._give_up_ns) if self._is_open else self._next_look_ns

    def _open(self, now_ns: int) -> list[ProbeAction]:
        self._is_open, self._answers = True, 0
        self._send_ns, self._give_up_ns = now_ns, now_ns + PROBE_TIMEOUT_NS
        return [OpenProbe(self._candidate)]

    def _end_look(self, now_ns: int) -> list[ProbeAction]:
        """In vain: the next better one is looked at next, the best again after a whole interval."""
        assert self._index is not None
        self._candidate = (self._candidate + 1) % self._index
        self._next_look_ns = now_ns + (0 if self._candidate else self._interval_ns)
        return self._close()

    def _close(self) -> list[ProbeAction]:
        was_open, self._is_open = self._is_open, False
        return [CloseProbe()] if was_open else []
