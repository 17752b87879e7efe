"""The credit window follows the link: driven through a simulated link with a known rate and delay."""

from __future__ import annotations

import heapq
import random

import pytest

from pipeline.credit_window import CreditWindow

MS = 1_000_000
S = 1000 * MS


def drive(
    window: CreditWindow, *, round_trip_ns: int, service_ns: int, seconds: int, frame_ns: int = 0, base_ns: int = 5 * MS
) -> int:
    """A node that sends whenever the window lets it, a cloud that takes `service_ns` a frame; frames answered.

    Args:
        frame_ns: time between two frames of the node's camera; 0: as fast as it may.
        base_ns: what a frame takes in the cloud besides waiting.
    """
    now_ns, free_ns, next_frame_ns, answered = 0, 0, 0, 0
    on_the_way: list[int] = []  # when their answers are back
    while now_ns < seconds * S:
        if len(on_the_way) < window.frames and now_ns >= next_frame_ns:
            received_ns = now_ns + round_trip_ns // 2
            done_ns = max(received_ns, free_ns) + service_ns
            free_ns = done_ns
            heapq.heappush(on_the_way, done_ns + base_ns + round_trip_ns // 2)
            next_frame_ns = now_ns + frame_ns
            continue
        waits = [on_the_way[0]] if on_the_way else []
        if len(on_the_way) < window.frames:
            waits.append(next_frame_ns)
        now_ns = min(waits)
        while on_the_way and on_the_way[0] <= now_ns:
            heapq.heappop(on_the_way)
            window.answer(service_ns + base_ns, round_trip_ns, now_ns)
            answered += 1
    return answered


def test_short_link_keeps_the_floor() -> None:
    window = CreditWindow(8, 64, 0)
    drive(window, round_trip_ns=MS, service_ns=10 * MS, seconds=10)
    assert window.frames == 8


def test_long_link_is_filled() -> None:
    """200 ms there and back, 5 ms a frame: 8 frames on the way would leave the cloud idle most of the time."""
    fixed, window = CreditWindow(8, 8, 0), CreditWindow(8, 256, 0)
    few = drive(fixed, round_trip_ns=200 * MS, service_ns=5 * MS, seconds=20)
    many = drive(window, round_trip_ns=200 * MS, service_ns=5 * MS, seconds=20)
    assert few < 0.25 * 20 * S / (5 * MS)
    assert many > 0.8 * 20 * S / (5 * MS)
    # About twice what fills the link, 210 ms / 5 ms; queueing that it causes itself does not make it grow on.
    assert 70 <= window.frames <= 100


def test_camera_needs_no_more_than_it_sends() -> None:
    window = CreditWindow(4, 256, 0)
    drive(window, round_trip_ns=200 * MS, service_ns=2 * MS, seconds=20, frame_ns=50 * MS)
    assert window.frames == pytest.approx(2 * 20 * 0.207, abs=2)


def test_window_shrinks_when_the_node_becomes_slow() -> None:
    window = CreditWindow(4, 256, 0)
    drive(window, round_trip_ns=200 * MS, service_ns=5 * MS, seconds=20)
    grown, start_ns = window.frames, 20 * S
    for number in range(40):
        window.answer(5 * MS, 200 * MS, start_ns + number * S // 2)
    assert window.frames == 4 < grown


@pytest.mark.parametrize("seed", range(20))
def test_window_stays_between_floor_and_ceiling(seed: int) -> None:
    chance = random.Random(seed)
    floor = chance.randint(1, 20)
    ceiling = chance.randint(1, 60)
    window, now_ns = CreditWindow(floor, ceiling, 0), 0
    for _ in range(2000):
        now_ns += chance.choice((0, 1, MS, 300 * MS, 10 * S))
        window.answer(chance.randint(0, S), chance.choice((0, S)), now_ns)
        assert floor <= window.frames <= max(floor, ceiling)
