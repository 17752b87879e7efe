"""Several watchers of one loop, told one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Generic, TypeVar

WatcherType = TypeVar("WatcherType")


class Watchers(Generic[WatcherType]):
    """Passes every call on to all of its watchers; stands in for any of their protocols.

    Each name that is asked for is resolved once, so that a frame costs no look-ups.
    """

    def __init__(self, watchers: Sequence[WatcherType]) -> None:
        self._watchers = tuple(watchers)

    def __getattr__(self, name: str) -> Any:
        methods = [getattr(watcher, name) for watcher in self._watchers]

        def tell_all(*arguments: Any) -> None:
            for method in methods:
                method(*arguments)

        setattr(self, name, tell_all)
        return tell_all
