"""The depth follows budget and load: down at once, up with patience, and it does not flap."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest

from pipeline.rate_control import (
    MIN_SAMPLES,
    ChangeCause,
    DepthChange,
    DepthController,
    DepthSettings,
)

MS = 1_000_000
S = 1000 * MS
COSTS = {0: 1 * MS, 1: 2 * MS, 2: 3 * MS, 4: 5 * MS, 8: 9 * MS}


class Simulation:
    """A camera of 30 frames a second on a machine whose load we choose."""

    def __init__(self, controller: DepthController, seed: int = 0, noise: float = 0.1) -> None:
        self.controller = controller
        self.random = Random(seed)
        self.noise = noise
        self.now_ns = 0
        self.changes: list[tuple[float, DepthChange]] = []
        self.frames_over = 0

    def run(self, seconds: float, load: float | Callable[[int], float]) -> None:
        """Encode for so long; `load` multiplies the cost of every depth, or of each by itself."""
        for _ in range(int(seconds * 30)):
            self.now_ns += S // 30
            depth = self.controller.decide()
            factor = load(depth) if callable(load) else load
            # Costs as timed are p90: most frames take less, a tail takes more.
            jitter = 1 + self.noise * (self.random.random() ** 2 * 2 - 1)
            elapsed_ns = int(COSTS[depth] * factor * jitter)
            self.frames_over += elapsed_ns > self.controller.budget_ns
            change = self.controller.observe(depth, elapsed_ns, self.now_ns)
            if change is not None:
                self.changes.append((self.now_ns / S, change))

    @property
    def path(self) -> list[int]:
        return [change.after for _, change in self.changes]


def observe(controller: DepthController, elapsed_ns: int, times: int, now_ns: int = 0) -> list[DepthChange | None]:
    return [controller.observe(controller.decide(), elapsed_ns, now_ns) for _ in range(times)]


@pytest.mark.parametrize(("budget_ms", "depth"), [(100, 8), (9, 8), (8.9, 4), (5, 4), (2.5, 1), (1, 0), (0.5, 0)])
def test_deepest_depth_that_fits_at_the_start(budget_ms: float, depth: int) -> None:
    controller = DepthController(COSTS, int(budget_ms * MS))
    assert controller.decide() == depth
    assert controller.is_over_budget == (budget_ms < 1)


def test_goes_down_as_soon_as_p90_of_enough_samples_is_over() -> None:
    """To the deepest depth that the load lets expect to fit, over several if need be."""
    controller = DepthController(COSTS, 9 * MS)
    changes = observe(controller, 27 * MS, MIN_SAMPLES)
    assert changes == [None] * (MIN_SAMPLES - 1) + [DepthChange(8, 2, ChangeCause.OVERRUN, 27 * MS)]
    assert (controller.load, controller.cost_ns(2), controller.cost_ns(4)) == (3.0, 9 * MS, 15 * MS)


def test_single_hiccups_change_nothing_but_count_as_overruns() -> None:
    controller = DepthController(COSTS, 10 * MS)
    for index in range(300):
        assert controller.observe(8, 50 * MS if index % 20 == 5 else 8 * MS, index * S) is None
    assert (controller.decide(), controller.overruns[8]) == (8, 15)


def test_goes_up_one_depth_after_the_hold_and_no_further() -> None:
    controller = DepthController(COSTS, 7 * MS, settings=DepthSettings(hold_ns=3 * S, headroom=0.85))
    observe(controller, 15 * MS, MIN_SAMPLES)  # three times the load: down to 1
    assert controller.decide() == 1
    simulation = Simulation(controller, noise=0.0)
    simulation.run(20, load=1.0)
    assert simulation.path == [2, 4]
    first, second = (when for when, _ in simulation.changes)
    assert 3.0 < first < 3.6
    assert 3.0 < second - first < 3.6
    assert all(change.cause is ChangeCause.HEADROOM for _, change in simulation.changes)


def test_hold_starts_anew_when_the_headroom_is_gone_for_a_moment() -> None:
    controller = DepthController(COSTS, 7 * MS)
    observe(controller, 15 * MS, MIN_SAMPLES)
    simulation = Simulation(controller, noise=0.0)
    simulation.run(2.5, load=1.0)
    simulation.run(1.5, load=2.2)  # fits, with no room for the next one
    simulation.run(2.5, load=1.0)
    assert simulation.path == []


def test_next_depth_must_fit_with_headroom() -> None:
    """A depth that just fits is left alone from below: it would be left again soon."""
    tight, roomy = DepthController(COSTS, int(5.5 * MS)), DepthController(COSTS, 6 * MS)
    for controller, deepest in ((tight, 2), (roomy, 4)):
        observe(controller, 12 * MS, MIN_SAMPLES)
        simulation = Simulation(controller, noise=0.0)
        simulation.run(60, load=1.0)
        assert controller.decide() == deepest


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("load", [0.6, 0.95, 1.05, 1.3, 1.7, 2.4])
def test_steady_load_settles_without_flapping(load: float, seed: int) -> None:
    """Whatever the load is to the budget, after the first seconds the depth stays for ten minutes."""
    simulation = Simulation(DepthController(COSTS, 10 * MS), seed)
    simulation.run(30, load)
    settled = len(simulation.changes)
    simulation.run(600, load)
    assert len(simulation.changes) - settled <= 1
    assert COSTS[simulation.controller.decide()] * load <= 10.5 * MS


@pytest.mark.parametrize("seed", range(5))
def test_load_that_comes_and_goes_is_followed(seed: int) -> None:
    simulation = Simulation(DepthController(COSTS, 10 * MS), seed)
    simulation.run(20, load=1.0)
    assert simulation.controller.decide() == 8
    simulation.run(2, load=3.0)
    assert simulation.controller.decide() == 2
    over = simulation.frames_over
    simulation.run(18, load=3.0)
    assert simulation.frames_over - over < 0.1 * 18 * 30
    simulation.run(30, load=0.8)
    assert simulation.controller.decide() == 8
    assert len(simulation.changes) == 3


def test_depth_that_scales_worse_than_expected_is_tried_ever_more_rarely() -> None:
    """Its cost grows with a load that the lower depth does not feel: every climb fails."""
    simulation = Simulation(DepthController(COSTS, 10 * MS), noise=0.0)
    simulation.run(600, load=lambda depth: 1.5 if depth == 8 else 0.9)
    climbs = [when for when, change in simulation.changes if change.after == 8]
    waits = [after - before for before, after in zip(climbs, climbs[1:], strict=False)]
    assert len(climbs) <= 9
    assert all(later > 1.5 * earlier for earlier, later in zip(waits[:4], waits[1:5], strict=True))
    # The load goes: it comes back within the longest hold, and stays.
    simulation.run(130, load=0.9)
    settled = len(simulation.changes)
    simulation.run(60, load=0.9)
    assert (simulation.controller.decide(), len(simulation.changes)) == (8, settled)


def test_climb_that_lasted_clears_the_failures() -> None:
    controller = DepthController(COSTS, 10 * MS)
    simulation = Simulation(controller, noise=0.0)
    simulation.run(40, load=lambda depth: 1.5 if depth == 8 else 0.9)
    assert controller._failed_climbs[8] >= 2
    simulation.run(120, load=0.9)
    assert (controller.decide(), controller._failed_climbs[8]) == (8, 0)


def test_lowest_depth_over_budget_stays_counts_and_warns_once() -> None:
    controller = DepthController(COSTS, 9 * MS)
    assert not controller.take_warning()
    simulation = Simulation(controller)
    simulation.run(10, load=20.0)
    assert (controller.decide(), controller.is_over_budget) == (0, True)
    assert controller.overruns[0] > 200
    assert [controller.take_warning() for _ in range(3)] == [True, False, False]
    simulation.run(10, load=1.0)
    assert not controller.is_over_budget
    simulation.run(10, load=20.0)
    assert (controller.is_over_budget, controller.take_warning()) == (True, False)


def test_budget_below_the_lowest_depth_warns_at_the_start() -> None:
    controller = DepthController(COSTS, MS // 2)
    assert (controller.decide(), controller.take_warning(), controller.take_warning()) == (0, True, False)


def test_manual_depth_stays_and_overruns_are_counted() -> None:
    controller = DepthController(COSTS, 2 * MS, manual_depth=4)
    assert (controller.decide(), controller.take_warning()) == (4, True)
    simulation = Simulation(controller)
    simulation.run(10, load=1.0)
    assert (simulation.changes, controller.decide(), controller.overruns[4]) == ([], 4, 300)
    roomy = Simulation(DepthController(COSTS, 100 * MS, manual_depth=0))
    roomy.run(60, load=1.0)
    assert (roomy.changes, roomy.controller.is_over_budget) == ([], False)


def test_straggler_of_another_depth_moves_nothing() -> None:
    controller = DepthController(COSTS, 10 * MS)
    for _ in range(50):
        assert controller.observe(4, 99 * MS, 0) is None
    assert (controller.decide(), controller.load, controller.overruns[4]) == (8, 1.0, 50)


def test_samples_of_before_a_change_do_not_count_after_it() -> None:
    controller = DepthController(COSTS, 9 * MS)
    observe(controller, 27 * MS, MIN_SAMPLES)
    assert observe(controller, 20 * MS, MIN_SAMPLES - 1) == [None] * (MIN_SAMPLES - 1)
    assert observe(controller, 20 * MS, 1) != [None]


def test_new_budget_is_met_at_once_with_the_load_as_known() -> None:
    controller = DepthController(COSTS, 20 * MS)
    observe(controller, 18 * MS, MIN_SAMPLES)  # twice the cost at the start
    assert controller.set_budget(11 * MS) == DepthChange(8, 4, ChangeCause.MANUAL, None)
    assert controller.set_budget(11 * MS) is None
    assert controller.set_budget(11 * MS, manual_depth=0) == DepthChange(4, 0, ChangeCause.MANUAL, None)
    assert controller.set_budget(100 * MS) == DepthChange(0, 8, ChangeCause.MANUAL, None)
    assert controller.changes == {"overrun": 0, "headroom": 0, "manual": 3}
    controller.set_budget(1 * MS)
    assert (controller.decide(), controller.is_over_budget, controller.take_warning()) == (0, True, True)


def test_single_depth_has_nowhere_to_go() -> None:
    simulation = Simulation(DepthController({0: 1 * MS}, 2 * MS))
    simulation.run(5, load=5.0)
    simulation.run(5, load=0.1)
    assert (simulation.changes, simulation.controller.depths) == ([], (0,))


@pytest.mark.parametrize(
    "arguments",
    [({}, MS, None), ({0: 0}, MS, None), (COSTS, 0, None), (COSTS, MS, 3)],
)
def test_unusable_arguments_are_refused(arguments: tuple[dict[int, int], int, int | None]) -> None:
    costs, budget_ns, manual_depth = arguments
    with pytest.raises(ValueError, match="depth"):
        DepthController(costs, budget_ns, manual_depth=manual_depth)


def test_unusable_new_budget_changes_nothing() -> None:
    controller = DepthController(COSTS, 10 * MS)
    for budget_ns, manual_depth in ((0, None), (MS, 3)):
        with pytest.raises(ValueError, match="cannot be used"):
            controller.set_budget(budget_ns, manual_depth)
    assert (controller.decide(), controller.budget_ns) == (8, 10 * MS)
    assert repr(controller) == "<DepthController depth 8, load 1.00>"
