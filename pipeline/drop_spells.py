"""Spells of dropped frames: a log tells when dropping began and when it was over, and not each frame. No I/O."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

NS_PER_S = 1_000_000_000
# A spell is over when nothing was dropped for so long: longer than the pauses of one that goes on.
QUIET_NS = 10 * NS_PER_S
# Cameras times reasons; beyond that, frames of further ones are counted elsewhere and not told.
MAX_SPELLS = 4096


@dataclass(slots=True)
class Spell:
    """Frames that were dropped for one reason, one after the other.

    Attributes:
        key: whose, and why.
        first / last: sequences of the first and the newest frame; None: not known.
        count: of frames.
        began_ns / newest_ns: when the first and the newest were dropped.
    """

    key: Hashable
    first: int | None
    last: int | None
    count: int
    began_ns: int
    newest_ns: int


class DropSpells:
    """All spells that go on. Owned by one thread."""

    def __init__(self, quiet_ns: int = QUIET_NS, max_spells: int = MAX_SPELLS) -> None:
        self._quiet_ns = quiet_ns
        self._max_spells = max_spells
        self._open: dict[Hashable, Spell] = {}

    def drop(self, key: Hashable, sequence: int | None, now_ns: int, count: int = 1) -> Spell | None:
        """Frames were dropped; the spell when this begins it.

        Args:
            sequence: of the newest of them.
        """
        spell = self._open.get(key)
        if spell is not None:
            spell.last, spell.newest_ns = sequence, now_ns
            spell.count += count
            return None
        if len(self._open) >= self._max_spells:
            return None
        spell = self._open[key] = Spell(key, sequence, sequence, count, now_ns, now_ns)
        return spell

    def take_over(self, now_ns: int) -> list[Spell]:
        """Spells that are over: nothing was dropped for `quiet_ns`."""
        over = [spell for spell in self._open.values() if now_ns - spell.newest_ns >= self._quiet_ns]
        for spell in over:
            del self._open[spell.key]
        return over
