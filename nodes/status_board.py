"""Where a main loop leaves its status for the threads that serve it; made only when somebody asks.

A reader says that it wants one and waits; the loop, which turns at least twice a second, sees that and publishes. So
nothing is locked on a frame's way, and a page that nobody looks at costs nothing.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, Final

NS_PER_S: Final = 1_000_000_000
# Several readers share one document for so long.
FRESH_NS: Final = NS_PER_S // 2
# Longer than a turn of the loop takes; a loop that hangs is shown with what it said last.
PATIENCE_S: Final = 2.0


class StatusBoard:
    """One document and how old it is.

    Args:
        clock: monotonic nanoseconds.
    """

    def __init__(self, clock: Callable[[], int] = time.monotonic_ns, patience_s: float = PATIENCE_S) -> None:
        self._clock = clock
        self._patience_s = patience_s
        self._changed = threading.Condition()
        self._document: dict[str, Any] = {}
        self._published_ns: int | None = None
        self.is_wanted = False

    def publish(self, document: dict[str, Any]) -> None:
        """Leave a document; it is the board's from now on. Called by the loop when one `is_wanted`."""
        with self._changed:
            self._document, self._published_ns = document, self._clock()
            self.is_wanted = False
            self._changed.notify_all()

    def read(self) -> tuple[dict[str, Any], float | None]:
        """The newest document and its age in seconds; (empty, None) before the first. Waits for a fresh one."""
        with self._changed:
            if not self._is_fresh():
                self.is_wanted = True
                self._changed.wait_for(self._is_fresh, self._patience_s)
            age_ns = None if self._published_ns is None else self._clock() - self._published_ns
            return self._document, None if age_ns is None else round(age_ns / NS_PER_S, 3)

    def _is_fresh(self) -> bool:
        return self._published_ns is not None and self._clock() - self._published_ns <= FRESH_NS
