"""What becomes of frames whose worker was lost."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.attempts import (
    POISON_MEMORY_NS,
    REMEMBERED_POISONS,
    Attempt,
    Attempts,
    Loss,
    PoisonMemory,
    longest_answer_s,
)
from pipeline.config import NodeConfig, PoolSection
from pipeline.ledger import Outcome

BUNDLE = bytes(32)
CRASH, KILL = Loss(0, is_killed=False), Loss(1, is_killed=True)


@pytest.fixture
def attempts() -> Attempts[str]:
    return Attempts()


def opened(attempts: Attempts[str], items: str) -> Attempt[str]:
    attempt = attempts.form(BUNDLE, tuple(items), 5)
    attempts.open(attempt)
    return attempt


def take(attempts: Attempts[str]) -> Attempt[str]:
    attempt = attempts.next_waiting()
    assert attempt is not None
    attempts.open(attempt)
    return attempt


def test_batch_is_tried_again_whole_once(attempts: Attempts[str]) -> None:
    first = opened(attempts, "abc")
    assert attempts.lose(first.number, CRASH) is None
    again = take(attempts)
    assert (again.number, again.items, again.begun_ns, again.tried_slots) == (first.number, first.items, 5, (0,))
    assert attempts.finish(again.number) == again
    assert attempts.next_waiting() is None


def test_second_loss_makes_suspects_that_go_one_at_a_time(attempts: Attempts[str]) -> None:
    attempt = opened(attempts, "abc")
    attempts.lose(attempt.number, CRASH)
    attempts.lose(take(attempts).number, KILL)
    other = opened(attempts, "xy")
    attempts.lose(other.number, CRASH)
    first = take(attempts)
    assert (first.items, first.is_suspect, first.tried_slots) == (("a",), True, (0, 1))
    # A batch that lost only one worker does not wait behind suspects.
    assert take(attempts).items == ("x", "y")
    assert attempts.next_waiting() is None
    attempts.finish(first.number)
    assert take(attempts).items == ("b",)


def test_frame_that_is_alone_with_a_lost_worker_is_to_blame(attempts: Attempts[str]) -> None:
    attempt = opened(attempts, "ab")
    attempts.lose(attempt.number, CRASH)
    attempts.lose(take(attempts).number, CRASH)
    blame = attempts.lose(take(attempts).number, CRASH)
    assert blame is not None
    assert (blame.item, blame.outcome) == ("a", Outcome.POISON)
    assert attempts.finish(take(attempts).number).items == ("b",)


def test_batch_of_one_is_to_blame_after_two_losses(attempts: Attempts[str]) -> None:
    attempts.lose(opened(attempts, "a").number, CRASH)
    blame = attempts.lose(take(attempts).number, CRASH)
    assert blame is not None
    assert blame.outcome is Outcome.POISON


def test_kill_from_outside_accuses_nobody(attempts: Attempts[str]) -> None:
    attempts.lose(opened(attempts, "a").number, CRASH)
    blame = attempts.lose(take(attempts).number, KILL)
    assert blame is not None
    assert blame.outcome is Outcome.WORKER_LOST


def test_what_no_worker_takes_goes_first_when_one_does(attempts: Attempts[str]) -> None:
    attempts.lose(opened(attempts, "a").number, CRASH)
    late = attempts.form(BUNDLE, ("b",), 6)
    attempts.wait(late)
    assert take(attempts) == late
    assert repr(attempts) == "<Attempts 1 with workers, 1 waiting>"


def test_at_the_deadline_everything_is_given_back_once(attempts: Attempts[str]) -> None:
    opened(attempts, "ab")
    attempts.lose(opened(attempts, "cd").number, CRASH)
    assert sorted(attempts.take_all()) == ["a", "b", "c", "d"]
    assert attempts.take_all() == []


@pytest.mark.parametrize("seed", range(10))
def test_any_poison_among_any_frames_is_found_and_nobody_else_accused(seed: int) -> None:
    random = np.random.default_rng(seed)
    attempts: Attempts[int] = Attempts()
    poisons = set(random.choice(64, size=3, replace=False).tolist())
    ended: dict[int, Outcome] = {}
    losses = 0
    for start in range(0, 64, 16):
        attempts.open(attempts.form(BUNDLE, tuple(range(start, start + 16)), 0))
    open_attempts = list(attempts._open.values())
    while open_attempts:
        attempt = open_attempts.pop(int(random.integers(len(open_attempts))))
        if poisons & set(attempt.items):
            losses += 1
            blame = attempts.lose(attempt.number, CRASH)
            if blame is not None:
                assert blame.item not in ended
                ended[blame.item] = blame.outcome
        else:
            for item in attempts.finish(attempt.number).items:
                assert item not in ended
                ended[item] = Outcome.OK
        while (waiting := attempts.next_waiting()) is not None:
            attempts.open(waiting)
            open_attempts.append(waiting)
        assert sum(attempt.is_suspect for attempt in open_attempts) <= 1
    assert {item for item, outcome in ended.items() if outcome is Outcome.POISON} == poisons
    assert set(ended) == set(range(64))
    assert losses <= 3 * len(poisons)


def test_poison_is_known_by_its_bytes_for_a_while() -> None:
    memory = PoisonMemory()
    assert not memory.knows(b"a", None, 0)
    memory.add(b"a", b"r", 0)
    assert memory.knows(b"a", b"r", POISON_MEMORY_NS - 1)
    assert not memory.knows(b"a", None, 0)
    assert not memory.knows(b"ar", None, 0), "bitstream and reference are told apart"
    assert not memory.knows(b"a", b"r", POISON_MEMORY_NS)
    assert len(memory) == 0


def test_poison_memory_is_bounded() -> None:
    memory = PoisonMemory()
    for number in range(REMEMBERED_POISONS + 1):
        memory.add(bytes([number % 256, number // 256]), None, 0)
    assert len(memory) == REMEMBERED_POISONS
    assert not memory.knows(b"\0\0", None, 0)


def test_answer_of_hanging_workers_comes_before_the_node_gives_up() -> None:
    """By default: three tries, two back-offs and two starts of four seconds, which a loaded machine takes."""
    worst_s = longest_answer_s(PoolSection().batch_timeout_s, worker_start_s=4.0, back_offs_s=(0.5, 1.0))
    assert worst_s <= NodeConfig().link.result_timeout_s
