"""The front's loop with a clock that stands still: socket and workers are fakes, all decisions are real.

Whatever happens to a worker, a node or the queue, every accepted frame is answered exactly once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest

from nodes.cloud import peek_operating_point
from nodes.pool import SlotState
from nodes.worker import Panic
from pipeline.cloud_actions import SessionClosed
from pipeline.ledger import Outcome
from pipeline.wire import Bye, Reject, RejectCode, Welcome, pack
from tests.cloud_bench import MAX_AGE_NS, Bench
from tests.fakes import MS, S, make_bitstream, make_classes, make_frame_message


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_frames_are_batched_and_come_back_as_classes(bench: Bench) -> None:
    bench.run(bench.hello(), bench.frames(0, 3), 1, bench.wait(2 * MS), lambda: bench.pool.finish(0), 1)
    assert bench.outcomes() == {"ok": 4}
    (batch,) = bench.notes.batches
    assert len(batch.items) == 4
    results = bench.door.results()
    assert [result.sequence for result in results] == [0, 1, 2, 3]
    assert [(top.index, top.name) for top in results[0].classes][:2] == [(967, "class 967"), (1, "class 1")]
    assert results[0].timings.decode_us == 2000
    assert results[0].timings.classify_us == 3000
    assert results[0].timings.cloud_us == 2000
    assert results[0].batch_frames == 4
    # Work that is done is what grants credit.
    assert sum(result.credit for result in results) == 4
    assert bench.notes.depths == [4, 4, 4, 4]


def test_batch_that_is_not_full_goes_when_it_is_due(bench: Bench) -> None:
    bench.run(
        bench.hello(),
        bench.frames(0, 0),
        lambda: bench.pool.jobs == [] or pytest.fail("too early"),
        bench.wait(5 * MS),
        lambda: bench.pool.finish(0),
        1,
    )
    assert bench.outcomes() == {"ok": 1}


def test_bad_frame_harms_no_other_of_its_batch(bench: Bench) -> None:
    answers = [make_classes(), "checksum differs", make_classes(reference_top1=3), make_classes()]
    bench.run(bench.hello(), bench.frames(0, 3), 1, lambda: bench.pool.finish(0, answers), 1)
    assert bench.outcomes() == {"ok": 3, "corrupt": 1}
    corrupt = bench.door.results()[1]
    assert (corrupt.outcome, corrupt.text, corrupt.classes) == (Outcome.CORRUPT, "checksum differs", ())
    assert bench.door.results()[2].reference_top1 == 3


def test_batch_of_a_lost_worker_is_tried_once_more(bench: Bench) -> None:
    bench = Bench(workers=2)
    bench.run(bench.hello(), bench.frames(0, 3), 1, lambda: bench.pool.lose(0), 1, lambda: bench.pool.finish(1), 1)
    assert bench.outcomes() == {"ok": 4}
    assert [number for number, _ in bench.pool.jobs] == [0, 1]


def lose_with(bench: Bench, sequence: int, exit_code: int = -11) -> Callable[[], None]:
    """Workers answer what they have, but for those with one certain frame: they are lost."""

    def work() -> None:
        for slot in bench.pool.busy():
            assert slot.job is not None
            if any(frame.bitstream == make_frame_message(sequence).bitstream for frame in slot.job.frames):
                bench.pool.lose(slot.number, exit_code=exit_code)
            else:
                bench.pool.finish(slot.number)

    return work


def test_frame_that_breaks_its_workers_is_found_and_costs_no_other(bench: Bench) -> None:
    bench = Bench(workers=2)
    step = lose_with(bench, 2)
    bench.run(bench.hello(), bench.frames(0, 3), 1, *[step, 1] * 8)
    assert bench.outcomes() == {"ok": 3, "poison": 1}
    (poison,) = [result for result in bench.door.results() if result.outcome is Outcome.POISON]
    assert (poison.sequence, poison.text) == (2, "3 workers were lost with it, the last one with it alone")
    assert sum(result.credit for result in bench.door.results()) == 4
    # Whole, whole again elsewhere, then alone one after the other.
    assert [len(job.frames) for _, job in bench.pool.jobs] == [4, 4, 1, 1, 1, 1]
    assert [number for number, _ in bench.pool.jobs][:2] == [0, 1]
    assert len(bench.notes.lost) == 3


def test_bytes_that_broke_workers_are_known_when_they_come_again(bench: Bench) -> None:
    """A scene that stands still gives the same bytes with every picture; it must not go on killing workers."""
    step = lose_with(bench, 0)
    bench.run(
        bench.hello(),
        bench.frames(0, 0),
        bench.wait(5 * MS),
        *[1, step] * 4,
        bench.hello("yard"),
        bench.frames(0, 0, "yard"),
        2,
    )
    assert bench.outcomes() == {"poison": 2}
    assert len(bench.notes.lost) == 2
    assert bench.door.results(b"yard")[0].text == "the same bytes broke workers before"


def test_frame_whose_workers_were_killed_from_outside_is_not_accused(bench: Bench) -> None:
    step = lose_with(bench, 0, exit_code=-9)
    bench.run(bench.hello(), bench.frames(0, 1), bench.wait(5 * MS), *[1, step] * 8)
    assert bench.outcomes() == {"ok": 1, "worker_lost": 1}
    assert len(bench.front._poisons) == 0


def test_frames_that_broke_two_workers_are_tried_however_old_they_are(bench: Bench) -> None:
    """Else a frame that hangs its workers would be stale before it is found."""
    bench.run(
        bench.hello(),
        bench.frames(0, 3),
        1,
        lambda: bench.pool.lose(0),
        1,
        bench.wait(MAX_AGE_NS),
        lambda: bench.pool.lose(0),
        1,
        *[lambda: bench.pool.finish(0), 1] * 4,
    )
    assert bench.outcomes() == {"ok": 4}


def test_panic_of_native_code_is_poison(bench: Bench) -> None:
    answers = [make_classes(), Panic("native panic: index"), make_classes(), make_classes()]
    bench.run(bench.hello(), bench.frames(0, 3), 1, lambda: bench.pool.finish(0, answers), 1)
    assert bench.outcomes() == {"ok": 3, "poison": 1}
    assert bench.notes.lost == []


def test_cloud_says_why_it_is_not_ready(bench: Bench) -> None:
    said: list[list[str]] = []

    def say() -> None:
        said.append(bench.front.obstacles())

    def set_state(state: SlotState) -> Callable[[], None]:
        return lambda: setattr(bench.pool.slots[0], "state", state)

    bench.run(say, set_state(SlotState.STARTING), say, set_state(SlotState.DEAD), say, set_state(SlotState.BUSY), say)
    say()
    reason = "no worker can serve: {} starting, {} lost and waiting for their next start"
    assert said == [[], [reason.format(1, 0)], [reason.format(0, 1)], [], ["stopping"]]


def test_second_try_goes_before_newer_frames(bench: Bench) -> None:
    bench.run(
        bench.hello(),
        bench.frames(0, 3),
        1,
        bench.frames(4, 7),
        lambda: bench.pool.lose(0),
        1,
        lambda: bench.pool.finish(0),
        lambda: bench.pool.finish(0),
        1,
    )
    assert [job.number for _, job in bench.pool.jobs] == [0, 0, 1]
    assert bench.outcomes() == {"ok": 8}


def test_frames_too_old_for_a_second_try_are_stale(bench: Bench) -> None:
    """After a worker hung for the batch timeout, computing for nobody would delay the live ones."""
    bench.run(
        bench.hello(),
        bench.frames(0, 3),
        1,
        bench.wait(MAX_AGE_NS),
        lambda: bench.pool.lose(0),
        2,
    )
    assert bench.outcomes() == {"stale": 4}
    assert len(bench.pool.jobs) == 1


def test_only_the_fresh_frames_of_a_lost_batch_are_tried_again(bench: Bench) -> None:
    old_us = (MAX_AGE_NS - S) // 1000
    bench.run(
        bench.hello(),
        bench.frames(0, 1, age_us=old_us),
        bench.frames(2, 3),
        1,
        bench.wait(2 * S),
        lambda: bench.pool.lose(0),
        1,
        lambda: bench.pool.finish(0),
        1,
    )
    assert bench.outcomes() == {"stale": 2, "ok": 2}
    assert len(bench.pool.jobs[-1][1].frames) == 2
    assert {(result.sequence, result.outcome) for result in bench.door.results()} == {
        (0, Outcome.STALE),
        (1, Outcome.STALE),
        (2, Outcome.OK),
        (3, Outcome.OK),
    }


def test_frame_that_grows_old_in_the_queue_is_stale(bench: Bench) -> None:
    bench.pool.slots[0].state = SlotState.DEAD
    bench.run(bench.hello(), bench.frames(0, 2), 1, bench.wait(MAX_AGE_NS), 1)
    assert bench.outcomes() == {"stale": 3}


def test_frame_that_is_old_on_arrival_is_stale(bench: Bench) -> None:
    bench.run(bench.hello(), bench.frames(0, 0, age_us=MAX_AGE_NS // 1000), 1)
    assert bench.outcomes() == {"stale": 1}


def test_full_queue_refuses(bench: Bench) -> None:
    """Credit keeps honest nodes below it; what is refused is answered all the same."""
    bench = Bench(queue=3)
    bench.pool.slots[0].state = SlotState.DEAD
    bench.run(bench.hello(), bench.frames(0, 4), 1, lambda: setattr(bench.pool.slots[0], "state", SlotState.READY))
    assert bench.outcomes()["rejected"] == 2
    rejected = [result for result in bench.door.results() if result.outcome is Outcome.REJECTED]
    assert {result.text for result in rejected} == {"queue full"}


def test_frame_without_credit_costs_the_session(bench: Bench) -> None:
    bench.run(bench.hello(), bench.frames(0, 8), 1, lambda: bench.pool.finish(0), 1)
    assert any(isinstance(message, Reject) and message.code is RejectCode.LIMITS for _, message in bench.door.sent)
    assert bench.outcomes()["unroutable"] == 8


@pytest.mark.parametrize("how", ["bye", "gone"])
def test_answers_of_a_vanished_node_are_unroutable(bench: Bench, how: str) -> None:
    def vanish() -> None:
        if how == "bye":
            bench.door.put(b"dock", Bye("over"))
        else:
            bench.door.gone.add(b"dock")

    bench.run(bench.hello(), bench.frames(0, 3), vanish, 1, lambda: bench.pool.finish(0), 1)
    assert bench.outcomes() == {"unroutable": 4}
    assert bench.front.sessions.num_sessions == 0


def test_frame_that_comes_again_is_computed_once(bench: Bench) -> None:
    bench.run(bench.hello(), bench.frames(0, 3), bench.frames(0, 3), 1, lambda: bench.pool.finish(0), 1)
    assert bench.outcomes() == {"ok": 4}
    assert len(bench.pool.jobs) == 1


def test_stop_finishes_what_was_accepted_and_says_goodbye(bench: Bench) -> None:
    finish, poll = bench.pool.finish, bench.pool.poll

    def finish_then_poll(now_ns: int) -> list[object]:
        if bench.pool.busy():
            finish(0)
        return poll(now_ns)  # type: ignore[return-value]

    def stop() -> None:
        bench.pool.poll = finish_then_poll  # type: ignore[method-assign,assignment]

    bench.run(bench.hello(), bench.frames(0, 5), stop, drain_ns=S)
    assert bench.outcomes() == {"ok": 6}
    assert bench.door.sent[-1][1] == Bye("the cloud stops")


def test_drain_deadline_answers_what_waits_what_is_computed_and_what_is_retried() -> None:
    bench = Bench(workers=2)

    def lose_and_keep_both_busy() -> None:
        bench.pool.lose(0, comes_back=False)

    bench.run(
        bench.hello(),
        bench.hello("yard"),
        bench.frames(0, 3),
        bench.frames(0, 6, "yard"),
        1,
        lose_and_keep_both_busy,
        1,
    )
    assert bench.outcomes() == {"shutdown": 11}
    assert {result.outcome for result in bench.door.results()} == {Outcome.SHUTDOWN}


def test_frame_that_comes_during_the_drain_is_answered(bench: Bench) -> None:
    receive = bench.door.receive
    is_late = [False]

    def receive_one_more(limit: int) -> object:
        if bench.front.sessions.is_draining and not is_late[0]:
            is_late[0] = True
            bench.frames(4, 4)()
        return receive(limit)

    bench.door.receive = receive_one_more  # type: ignore[method-assign,assignment]
    bench.front._clock = lambda: bench.clock.advance(MS) or bench.clock()  # type: ignore[func-returns-value]
    bench.run(bench.hello(), bench.frames(0, 3), 1, drain_ns=100 * MS)
    assert bench.outcomes() == {"shutdown": 5}


@pytest.mark.parametrize(
    "parts",
    [
        [],
        [b""],
        [b"GET / HTTP/1.1"],
        [b"\x93\x63\x01\x01"],
        [pack(Bye("x"))[0], b"a second part"],
        [b"x", b"y", b"z"],
        [b"\xff" * 300_000],
    ],
)
def test_garbage_harms_nobody_else(bench: Bench, parts: list[bytes]) -> None:
    bench.run(
        bench.hello(),
        bench.frames(0, 1),
        lambda: bench.door.put(b"stranger", parts),
        bench.frames(2, 3),
        1,
        lambda: bench.pool.finish(0),
        1,
    )
    assert bench.outcomes() == {"ok": 4}
    assert [type(message) for to, message in bench.door.sent if to == b"stranger"] == [Reject]


def test_garbage_within_a_session_ends_it(bench: Bench) -> None:
    bench.run(
        bench.hello(),
        bench.frames(0, 3),
        lambda: bench.door.put(b"dock", [b"junk"]),
        1,
        lambda: bench.pool.finish(0),
        1,
    )
    assert [action.reason for action in bench.notes.sessions if isinstance(action, SessionClosed)] == ["protocol_error"]
    assert bench.outcomes() == {"unroutable": 4}


def test_message_without_session_is_told_so(bench: Bench) -> None:
    bench.run(bench.frames(0, 0, "nobody"), 1)
    assert [message for _, message in bench.door.sent] == [Reject(RejectCode.NO_SESSION, "say HELLO first")]


def test_operating_point_is_read_from_whole_bitstreams_only() -> None:
    assert peek_operating_point(make_bitstream(8, 33)) == (8, 33)
    assert peek_operating_point(b"short") == (None, None)


@pytest.mark.parametrize("seed", range(8))
def test_storm_answers_every_frame_once(seed: int) -> None:
    """Random nodes that come and go, workers that die, time that jumps."""
    random = np.random.default_rng(seed)
    bench = Bench(workers=3, capacity=24)
    nodes = ("a", "b", "c", "d")
    sequences = dict.fromkeys(nodes, 0)
    incarnation = dict.fromkeys(nodes, 0)

    def credit(routing_id: bytes) -> int:
        granted = 0
        for to, message in bench.door.sent:
            if to == routing_id:
                if isinstance(message, Welcome):
                    granted = message.credit
                elif not isinstance(message, Reject | Bye):
                    granted += getattr(message, "credit", 0) + getattr(message, "frames", 0)
        return granted

    spent: Counter[bytes] = Counter()

    def identity(node: str) -> str:
        return f"{node}{incarnation[node]}"

    def send() -> None:
        node = nodes[random.integers(len(nodes))]
        name = identity(node)
        routing_id = name.encode()
        if spent[routing_id] < credit(routing_id):
            spent[routing_id] += 1
            first = sequences[node] = sequences[node] + 1
            bench.frames(first, first, name, age_us=int(random.integers(2_000_000)))()

    def come() -> None:
        bench.hello(identity(nodes[random.integers(len(nodes))]))()

    def go() -> None:
        node = nodes[random.integers(len(nodes))]
        if random.integers(2):
            bench.door.put(identity(node).encode(), Bye("over"))
        else:
            bench.door.gone.add(identity(node).encode())
        incarnation[node] += 1

    def work() -> None:
        for slot in bench.pool.busy()[:1]:
            fate = random.integers(8)
            if fate == 0:
                bench.pool.lose(slot.number, comes_back=False, exit_code=-9)
            elif fate == 1:
                bench.pool.lose(slot.number, exit_code=-9)
            else:
                bench.pool.finish(slot.number)

    def revive() -> None:
        for slot in bench.pool.slots:
            if slot.state is SlotState.DEAD:
                slot.state = SlotState.READY

    choices = [*[send] * 12, *[work] * 6, come, come, bench.wait(20 * MS), bench.wait(10 * MS), revive]
    steps: list[Callable[[], object]] = []
    for index in random.integers(len(choices), size=1500):
        steps.append(choices[index])
        if random.integers(100) == 0:
            steps.append(go)
        if random.integers(300) == 0:
            steps.append(bench.wait(4 * S))
    bench.run(*steps)
    outcomes = bench.outcomes()
    assert outcomes["ok"] > 50, outcomes
    assert {"ok", "unroutable"} <= set(outcomes)
