"""Nearest-rank percentiles over the newest samples: deterministic, bounded, always a measured value."""

from __future__ import annotations

from array import array
from collections.abc import Sequence


def percentile(samples: Sequence[int], percent: int) -> int:
    """Nearest-rank percentile (1..100) of at least one sample."""
    return sorted(samples)[max(0, -(-len(samples) * percent // 100) - 1)]


class SampleWindow:
    """The newest `size` integer samples, in a ring."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._ring = array("q")
        self._next = 0

    def __len__(self) -> int:
        return len(self._ring)

    def add(self, sample: int) -> None:
        if len(self._ring) < self._size:
            self._ring.append(sample)
        else:
            self._ring[self._next] = sample
        self._next = (self._next + 1) % self._size

    def clear(self) -> None:
        del self._ring[:]
        self._next = 0

    def samples(self) -> list[int]:
        """The stored samples, in no particular order."""
        return self._ring.tolist()

    def percentile(self, percent: int) -> int | None:
        """Nearest-rank percentile of the stored samples; None without any."""
        return percentile(self._ring, percent) if self._ring else None
