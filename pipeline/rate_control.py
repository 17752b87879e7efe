"""How deep to encode: follows the measured cost of a frame and keeps it within the budget. Pure.

At the start the cost (p90) of every depth is known from timing them on real frames. From then on only the
depth in use is observed. Its p90 over its cost at the start is the load; a depth not in use is expected to
cost what it did at the start, times the load.

- Down at once, when the p90 of the newest samples is over the budget: to the deepest depth that is expected
  to fit, or the lowest.
- Up by one depth, when that one is expected to take at most `headroom` of the budget, for `hold_ns` on end.
- A depth that had to be left soon after it was climbed to was expected wrongly (its cost does not grow with
  the load as the others' do): each time the hold for climbing to it doubles, so that the depth does not flap.

The p90 of ten samples leaves out the slowest: one hiccup changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from pipeline.percentiles import SampleWindow

NS_PER_S = 1_000_000_000

PERCENT = 90
# At 30 frames a second the window is just over a second; below ten samples p90 would be the maximum.
WINDOW_SAMPLES = 40
MIN_SAMPLES = 10


class ChangeCause(StrEnum):
    """Why the depth changed; the words of the metric."""

    OVERRUN = "overrun"
    HEADROOM = "headroom"
    MANUAL = "manual"


@dataclass(frozen=True, slots=True)
class DepthChange:
    """The controller moved.

    Attributes:
        p90_ns: of the depth that was left, None if it had no samples.
    """

    before: int
    after: int
    cause: ChangeCause
    p90_ns: int | None


@dataclass(frozen=True, slots=True)
class DepthSettings:
    """How eager the controller is.

    Attributes:
        headroom: share of the budget that the next depth may be expected to take.
        hold_ns: for how long that must hold; max_hold_ns: the most it grows to after failed climbs.
        trial_ns: a depth left within this time of climbing to it counts as failed.
    """

    headroom: float = 0.85
    hold_ns: int = 3 * NS_PER_S
    max_hold_ns: int = 120 * NS_PER_S
    trial_ns: int = 10 * NS_PER_S
    window_samples: int = WINDOW_SAMPLES
    min_samples: int = MIN_SAMPLES


class DepthController:
    """Chooses the depth of the next frame.

    Args:
        start_costs_ns: p90 by depth, as timed at the start.
        budget_ns: of one frame, camera array to bytes.
        manual_depth: always use this one; overruns are still counted.
    Raises:
        ValueError: no depths, a cost or budget that is not positive, or an unknown manual depth.
    """

    def __init__(
        self,
        start_costs_ns: Mapping[int, int],
        budget_ns: int,
        *,
        manual_depth: int | None = None,
        settings: DepthSettings | None = None,
    ) -> None:
        if not start_costs_ns or min(start_costs_ns.values()) <= 0 or budget_ns <= 0:
            raise ValueError("depths with costs and a budget are needed, all of them positive")
        if manual_depth is not None and manual_depth not in start_costs_ns:
            raise ValueError(f"depth {manual_depth} is not one of {sorted(start_costs_ns)}")
        self._settings = settings or DepthSettings()
        self._start_costs_ns = dict(start_costs_ns)
        self._depths = tuple(sorted(start_costs_ns))
        self._budget_ns = budget_ns
        self._manual_depth = manual_depth
        self._load = 1.0
        self._depth = self._deepest_within(self._depths) if manual_depth is None else manual_depth
        self._window = SampleWindow(self._settings.window_samples)
        self._fits_since_ns: int | None = None
        self._climbed_ns: int | None = None
        self._failed_climbs = dict.fromkeys(self._depths, 0)
        self._overruns = dict.fromkeys(self._depths, 0)
        self._changes = dict.fromkeys((cause.value for cause in ChangeCause), 0)
        self._is_over_budget = self.cost_ns(self._depth) > budget_ns
        self._has_warned = False

    def __repr__(self) -> str:
        over = ", over budget" if self._is_over_budget else ""
        return f"<DepthController depth {self._depth}, load {self._load:.2f}{over}>"

    @property
    def depths(self) -> tuple[int, ...]:
        """All depths, lowest first."""
        return self._depths

    @property
    def budget_ns(self) -> int:
        return self._budget_ns

    @property
    def load(self) -> float:
        """p90 of the depth in use over its cost at the start; 1 until there are enough samples."""
        return self._load

    @property
    def is_over_budget(self) -> bool:
        """Whether even the depth in use, from which it cannot go down, does not fit."""
        return self._is_over_budget

    @property
    def overruns(self) -> Mapping[int, int]:
        """Frames over budget by depth, since the start."""
        return self._overruns

    @property
    def changes(self) -> Mapping[str, int]:
        """Moves by cause, since the start."""
        return self._changes

    def decide(self) -> int:
        """The depth of the next frame."""
        return self._depth

    def cost_ns(self, depth: int) -> int:
        """p90 of a depth: measured for the one in use, expected for the others."""
        return round(self._start_costs_ns[depth] * self._load)

    def observe(self, depth: int, elapsed_ns: int, now_ns: int) -> DepthChange | None:
        """Take the cost of one frame.

        Args:
            depth: that it was encoded at. A straggler of another depth than the one in use may count as an
                overrun, and moves nothing.
        Returns:
            The change that follows from it, if any.
        """
        self._overruns[depth] += elapsed_ns > self._budget_ns
        if depth != self._depth:
            return None
        self._window.add(elapsed_ns)
        p90_ns = self._window.percentile(PERCENT)
        if p90_ns is None or len(self._window) < self._settings.min_samples:
            return None
        self._load = p90_ns / self._start_costs_ns[depth]
        is_over = p90_ns > self._budget_ns
        can_descend = self._manual_depth is None and depth != self._depths[0]
        self._is_over_budget = is_over and not can_descend
        if is_over:
            self._fits_since_ns = None
            return self._descend(p90_ns, now_ns) if can_descend else None
        return self._climb_if_held(p90_ns, now_ns) if self._manual_depth is None else None

    def take_warning(self) -> bool:
        """True once, when the budget cannot be kept at any depth: the moment to say so."""
        if self._is_over_budget and not self._has_warned:
            self._has_warned = True
            return True
        return False

    def set_budget(self, budget_ns: int, manual_depth: int | None = None) -> DepthChange | None:
        """Take new settings of a reload; the depth is chosen anew with what is known of the load.

        Raises:
            ValueError: as the constructor.
        """
        if budget_ns <= 0 or (manual_depth is not None and manual_depth not in self._start_costs_ns):
            raise ValueError(f"budget of {budget_ns} ns or depth {manual_depth} cannot be used")
        self._budget_ns = budget_ns
        self._manual_depth = manual_depth
        self._has_warned = False
        self._failed_climbs = dict.fromkeys(self._depths, 0)
        depth = self._deepest_within(self._depths) if manual_depth is None else manual_depth
        self._is_over_budget = self.cost_ns(depth) > budget_ns
        self._fits_since_ns = None
        self._climbed_ns = None
        return None if depth == self._depth else self._change(depth, ChangeCause.MANUAL)

    def _deepest_within(self, depths: tuple[int, ...]) -> int:
        """The deepest of these that is expected to fit, else the lowest of all."""
        fitting = [depth for depth in depths if self.cost_ns(depth) <= self._budget_ns]
        return max(fitting, default=self._depths[0])

    def _descend(self, p90_ns: int, now_ns: int) -> DepthChange:
        if self._climbed_ns is not None and now_ns - self._climbed_ns < self._settings.trial_ns:
            self._failed_climbs[self._depth] += 1
        self._climbed_ns = None
        lower = tuple(depth for depth in self._depths if depth < self._depth)
        return self._change(self._deepest_within(lower), ChangeCause.OVERRUN, p90_ns)

    def _climb_if_held(self, p90_ns: int, now_ns: int) -> DepthChange | None:
        if self._climbed_ns is not None and now_ns - self._climbed_ns >= self._settings.trial_ns:
            # It stayed: what made earlier climbs fail is over.
            self._failed_climbs[self._depth] = 0
            self._climbed_ns = None
        if self._depth == self._depths[-1]:
            return None
        above = self._depths[self._depths.index(self._depth) + 1]
        if self.cost_ns(above) > self._settings.headroom * self._budget_ns:
            self._fits_since_ns = None
            return None
        if self._fits_since_ns is None:
            self._fits_since_ns = now_ns
        hold_ns = min(self._settings.max_hold_ns, self._settings.hold_ns << min(self._failed_climbs[above], 16))
        if now_ns - self._fits_since_ns < hold_ns:
            return None
        self._climbed_ns = now_ns
        return self._change(above, ChangeCause.HEADROOM, p90_ns)

    def _change(self, depth: int, cause: ChangeCause, p90_ns: int | None = None) -> DepthChange:
        change = DepthChange(self._depth, depth, cause, p90_ns)
        self._depth = depth
        self._window.clear()
        self._fits_since_ns = None
        self._changes[cause.value] += 1
        return change
