"""Timing the depths at start, and choosing the rate level."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from nodes.calibration import RUNS, WARM_UP_RUNS, made_up_frame, measure_depths
from nodes.node_command import choose_level16
from pipeline.errors import ConfigError
from pipeline.frames import Frame
from tests.fakes import MS, VIEW, FakeClock, FakeEncoder


def make_encoder(clock: FakeClock) -> Any:
    encoder = FakeEncoder(clock, {0: MS, 4: 4 * MS})
    encoder.bundle = SimpleNamespace(manifest=SimpleNamespace(depths=(0, 4)))  # type: ignore[attr-defined]
    return encoder


def test_cost_is_of_view_network_and_coder() -> None:
    clock = FakeClock()
    frame = Frame("door", 0, 0, VIEW, view_ns=MS // 2)
    costs = measure_depths(make_encoder(clock), frame, 48, clock)
    assert [(cost.depth, cost.median_ns, cost.p90_ns) for cost in costs] == [
        (0, 3 * MS // 2, 3 * MS // 2),
        (4, 9 * MS // 2, 9 * MS // 2),
    ]


def test_depths_are_timed_in_turn_after_warming_up() -> None:
    clock = FakeClock()
    encoder = make_encoder(clock)
    encode, slow_runs = encoder.encode, 2 * WARM_UP_RUNS

    def encode_slow_at_first(view: object, point: object) -> bytes:
        if len(encoder.points) < slow_runs:
            clock.advance(1000 * MS)
        return bytes(encode(view, point))

    encoder.encode = encode_slow_at_first
    costs = measure_depths(encoder, made_up_frame(), 48, clock)
    assert max(cost.p90_ns for cost in costs) == 4 * MS
    assert [point.depth for point in encoder.points] == [0, 4] * (WARM_UP_RUNS + RUNS)


def test_made_up_frame_is_a_view_with_content() -> None:
    frame = made_up_frame()
    assert frame.view.shape == (224, 224, 3)
    assert frame.view.std() > 20


BUNDLE: Any = SimpleNamespace(
    manifest=SimpleNamespace(levels16=(0, 16, 32, 48)),
    default_level16=32,
    nearest_level16=lambda level: min((0, 16, 32, 48), key=lambda level16: abs(level16 - 16 * level)),
)


@pytest.mark.parametrize(("rate", "level16"), [("auto", 32), ("best", 48), (0, 0), (1.9, 32), (3, 48)])
def test_rate_becomes_the_nearest_level_with_tables(rate: Any, level16: int) -> None:
    assert choose_level16(BUNDLE, rate) == level16


def test_rate_above_the_bundles_highest_is_refused() -> None:
    with pytest.raises(ConfigError, match="highest level, 3"):
        choose_level16(BUNDLE, 3.5)
