"""Totals over the last minutes: a ring of samples, from which growth and rates are read. Time is passed in.

Whoever counts keeps totals that only rise, by key; every `step_ns` a sample of all of them is taken. Memory is
bounded by the number of samples times the number of keys, and the owner bounds the keys.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Mapping
from dataclasses import dataclass

NS_PER_S = 1_000_000_000
# Five minutes in steps that a chart of a hand's width can show.
STEP_NS = 5 * NS_PER_S
NUM_STEPS = 60

Totals = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Growth:
    """What was added to the totals of a key in a time, in their order."""

    seconds: float
    amounts: Totals


@dataclass(frozen=True, slots=True)
class _Sample:
    taken_ns: int
    totals: Mapping[Hashable, Totals]


class History:
    """The newest samples, one a step; owned by one thread."""

    def __init__(self, step_ns: int = STEP_NS, num_steps: int = NUM_STEPS) -> None:
        self._step_ns = step_ns
        self._samples: deque[_Sample] = deque(maxlen=num_steps + 1)

    @property
    def step_ns(self) -> int:
        return self._step_ns

    def is_due(self, now_ns: int) -> bool:
        """Whether the next sample is to be taken."""
        return not self._samples or now_ns - self._samples[-1].taken_ns >= self._step_ns

    def take(self, now_ns: int, totals: Mapping[Hashable, Totals]) -> None:
        """Keep a sample; the mapping is the history's from now on."""
        self._samples.append(_Sample(now_ns, totals))

    def growth(self, key: Hashable, totals: Totals, now_ns: int, span_ns: int) -> Growth | None:
        """What was added within a span up to now, or since the first sample that is younger than the span.

        Args:
            totals: of the key, now.
        Returns:
            None while no sample is old enough to compare with.
        """
        oldest: _Sample | None = None
        for sample in reversed(self._samples):
            if now_ns - sample.taken_ns > span_ns:
                break
            oldest = sample
            if key not in sample.totals:  # it appeared after this sample
                break
        return None if oldest is None else self._since(oldest, key, totals, now_ns)

    def growth_of_all(self, key: Hashable, totals: Totals, now_ns: int) -> Growth | None:
        """What was added in all the time that is remembered; None while nothing is."""
        oldest: _Sample | None = None
        for sample in self._samples:
            if key in sample.totals:
                return self._since(oldest or sample, key, totals, now_ns)
            oldest = sample
        return None if oldest is None else self._since(oldest, key, totals, now_ns)

    def newest_step(self, key: Hashable) -> Growth | None:
        """What was added between the two newest samples; None without two, or where the key is unknown."""
        return self._step(self._samples[-2], self._samples[-1], key) if len(self._samples) > 1 else None

    def steps(self, key: Hashable) -> list[Growth | None]:
        """What was added between one sample and the next, oldest first; None where the key was not known."""
        samples = list(self._samples)
        return [self._step(first, second, key) for first, second in zip(samples, samples[1:], strict=False)]

    def _step(self, first: _Sample, second: _Sample, key: Hashable) -> Growth | None:
        totals = second.totals.get(key)
        return None if totals is None else self._since(first, key, totals, second.taken_ns)

    @staticmethod
    def _since(sample: _Sample, key: Hashable, totals: Totals, now_ns: int) -> Growth | None:
        """Growth from a sample on; a key that it does not have began with nothing."""
        if sample.taken_ns >= now_ns:
            return None
        before = sample.totals.get(key)
        amounts = totals if before is None else _difference(before, totals)
        return Growth((now_ns - sample.taken_ns) / NS_PER_S, amounts)


def _difference(before: Totals, after: Totals) -> Totals:
    # A key that was forgotten and came back begins again.
    return tuple(max(0, new - old) for old, new in zip(before, after, strict=True))
