"""Spooled frames are sent oldest first, again after a lost session, and never after their end."""

from __future__ import annotations

import random

import pytest

from pipeline.errors import LocalSessionError
from pipeline.replay import FrameKey, ReplayQueue


def keys(count: int) -> list[FrameKey]:
    return [("gate" if number % 2 else "belt", number) for number in range(count)]


def filled(count: int) -> ReplayQueue:
    queue = ReplayQueue()
    for key in keys(count):
        queue.add(key)
    return queue


def send_next(queue: ReplayQueue) -> FrameKey | None:
    key = queue.oldest()
    if key is not None:
        queue.send(key)
    return key


def test_oldest_goes_first_and_lost_ones_go_again_before_the_others() -> None:
    queue = filled(5)
    assert [send_next(queue) for _ in range(3)] == keys(5)[:3]
    queue.end(keys(5)[1])
    queue.lose_link()
    assert [send_next(queue) for _ in range(5)] == [keys(5)[0], *keys(5)[2:], None]


def test_frame_taken_back_keeps_its_place() -> None:
    queue = filled(3)
    for _ in range(3):
        send_next(queue)
    queue.take_back(keys(3)[1])
    queue.add(("gate", 9))
    assert [send_next(queue), send_next(queue)] == [keys(3)[1], ("gate", 9)]


def test_ended_frame_never_comes_again() -> None:
    queue = filled(2)
    assert queue.end(keys(2)[0])
    assert not queue.end(keys(2)[0])
    assert [send_next(queue), send_next(queue)] == [keys(2)[1], None]


def test_frame_is_there_once() -> None:
    with pytest.raises(LocalSessionError, match="twice"):
        filled(1).add(keys(1)[0])


@pytest.mark.parametrize("seed", range(10))
def test_any_order_of_calls_agrees_with_a_list(seed: int) -> None:
    chance, queue = random.Random(seed), ReplayQueue()
    waiting: list[FrameKey] = []
    sent: list[FrameKey] = []
    for number in range(600):
        match chance.choice(("add", "send", "send", "end", "lose", "back")):
            case "add":
                queue.add(("a", number))
                waiting.append(("a", number))
            case "send":
                key = send_next(queue)
                assert key == (waiting[0] if waiting else None)
                sent += waiting[:1]
                del waiting[:1]
            case "end" if sent:
                key = sent.pop(chance.randrange(len(sent)))
                assert queue.end(key)
            case "lose" if number % 7 == 0:
                queue.lose_link()
                waiting, sent = sorted(waiting + sent), []
            case "back" if sent:
                key = sent.pop(chance.randrange(len(sent)))
                queue.take_back(key)
                waiting = sorted([*waiting, key])
        assert (len(queue), queue.num_waiting) == (len(waiting) + len(sent), len(waiting))
        assert queue.first() == min(waiting + sent, default=None)
