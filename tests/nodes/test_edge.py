"""The node's loop with a clock that stands still: cameras, encoder and cloud are fakes, all decisions are real."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from nodes.capture_events import Down
from nodes.lanes import RESERVE_NS
from nodes.node_summary import summary
from nodes.uplink import HandshakeFailure
from pipeline.ledger import Outcome
from pipeline.session import Backoff, LossReason, Lost, Opened
from pipeline.wire import Bye
from tests.edge_bench import Bench
from tests.fakes import MS, VIEW, FakeCloud, FakeReader, S, Script


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_frame_comes_back_as_class(bench: Bench) -> None:
    bench.run(bench.give(label=967), 1)
    (closed, result), *_ = [pair for pair in bench.notes.closed_frames if pair[1] is not None]
    assert result is not None
    assert (closed.outcome, closed.depth, closed.level, closed.label) == (Outcome.OK, 4, 3, 967)
    assert result.classes[0].name == "espresso"
    figures = summary(bench.node)
    assert (figures["captured"], figures["results"], figures["labelled"], figures["top1"]) == (2, 1, 1, 1.0)
    assert figures["bytes_per_frame"] == 116.0
    assert figures["bits_per_pixel"] == 8 * 116 / 224**2
    (encoded,) = bench.notes.encoded_frames
    assert (encoded.network_ns, encoded.elapsed_ns, encoded.is_over_budget) == (4 * MS, 5 * MS, False)
    assert encoded.bitstream_bytes == 116
    assert len(bench.notes.sendings_ns) == 1


def test_first_live_frame_times_the_depths_and_is_given_up(bench: Bench) -> None:
    """Kept until there is a session it would be old when sent, and the lane would ask for no other."""
    bench.uplink.peer = None
    bench.run(lambda: bench.readers[0].miss(5), 1)
    assert [frame.sequence for frame in bench.calibrated if frame is not None] == [0]
    assert bench.dropped() == {"link_down": 6}
    assert bench.node.lanes[0].frame is None


def test_depths_are_timed_without_a_frame_when_no_camera_gives_one(bench: Bench) -> None:
    bench.readers[0].is_up = False
    script = Script(bench.wait(3 * S), 3)
    bench.node.run(script, script.fd)
    script.close()
    assert bench.calibrated == [None]
    bench.check()


def test_stop_while_the_first_frame_is_awaited(bench: Bench) -> None:
    bench.readers[0].is_up = False
    script = Script(1)
    bench.node.run(script, script.fd)
    script.close()
    assert bench.calibrated == []
    assert bench.uplink.opened == []
    bench.check()


def test_frame_of_a_waiting_source_waits_for_the_link_and_is_not_called_old(bench: Bench) -> None:
    """A file stands still while there is no cloud: nothing of it may be lost or come back as stale."""
    bench = Bench(FakeReader("clip", is_live=False))
    bench.uplink.peer = None
    bench.run(3, bench.wait(60 * S), lambda: setattr(bench.uplink, "peer", bench.cloud), 2, bench.give(), 2)
    assert [frame.sequence for frame in bench.uplink.frames()] == [0, 1]
    assert bench.uplink.frames()[0].age_us < S // 1000
    assert bench.node.ledger.snapshot().total.results == 2


def test_live_frames_are_missed_for_want_of_credit(bench: Bench) -> None:
    bench = Bench(cloud=FakeCloud(credit=1, outcome=None))
    bench.run(
        bench.give(),
        1,
        lambda: bench.readers[0].miss(3),
        1,
        lambda: bench.uplink.deliver(*bench.cloud.answers(Outcome.OK)),
        2,
        bench.give(missed=2),
        1,
        lambda: bench.uplink.deliver(*bench.cloud.answers(Outcome.OK)),
        1,
    )
    assert bench.dropped() == {"link_down": 1, "no_credit": 5}
    assert bench.node.ledger.snapshot().total.results == 2


def test_live_frame_that_comes_when_its_credit_is_gone_is_dropped() -> None:
    yard, door = FakeReader("yard"), FakeReader("door")
    bench = Bench(yard, door, cloud=FakeCloud(credit=1, outcome=None))

    def give_both() -> None:
        yard.give(bench.clock())
        door.give(bench.clock())

    # The door was asked at the start, and no longer keeps a place when the yard is asked too.
    bench.run(
        bench.wait(RESERVE_NS), 1, give_both, 1, lambda: bench.uplink.deliver(*bench.cloud.answers(Outcome.OK)), 1
    )
    assert bench.dropped("yard") == {"link_down": 1}
    assert bench.dropped("door") == {"no_credit": 1}
    assert bench.node.ledger.snapshot().total.results == 1


def test_cameras_that_are_down_or_slow_do_not_keep_credit_from_the_others() -> None:
    dead = [FakeReader(f"dead{number}", is_up=False) for number in range(4)]
    bench = Bench(FakeReader("door"), *dead, cloud=FakeCloud(credit=2))
    bench.run(bench.wait(RESERVE_NS), 1, *[step for _ in range(5) for step in (bench.give(), 1)])
    assert bench.node.ledger.snapshot().total.results == 5


def test_cameras_take_turns_for_scarce_credit() -> None:
    readers = [FakeReader(f"cam{number}") for number in range(3)]
    bench = Bench(*readers, cloud=FakeCloud(credit=1))

    def give_whoever_was_asked() -> None:
        for reader in readers:
            if reader.is_wanted:
                reader.give(bench.clock())
                return

    bench.run(bench.wait(RESERVE_NS), *[give_whoever_was_asked] * 12)
    results = [bench.node.ledger.snapshot().cameras[reader.name].results for reader in readers]
    assert max(results) - min(results) <= 1, results


def test_link_that_breaks_loses_what_is_in_flight_and_comes_back(bench: Bench) -> None:
    bench = Bench(cloud=FakeCloud(outcome=None))

    def come_back() -> None:
        bench.cloud.unanswered.clear()
        bench.cloud.outcome = Outcome.OK
        bench.uplink.peer = bench.cloud

    bench.run(
        bench.give(),
        1,
        lambda: setattr(bench.uplink, "peer", None),
        bench.give(),
        1,
        lambda: bench.readers[0].miss(4),
        1,
        come_back,
        bench.wait(S),
        2,
        bench.give(),
        1,
    )
    assert bench.dropped() == {"link_down": 5, "lost_in_link": 2}
    assert bench.node.ledger.snapshot().total.results == 1
    assert bench.cloud.sessions == 2
    lost = [link for link in bench.notes.links if isinstance(link, Lost)]
    assert [link.reason for link in lost] == [LossReason.CLOSED]
    assert lost[0].was_up


def test_second_endpoint_is_tried_and_named(bench: Bench) -> None:
    bench.uplink.peer = None
    bench.run(bench.wait(6 * S), 1, bench.wait(S), lambda: setattr(bench.uplink, "peer", bench.cloud), 1)
    assert bench.uplink.opened == ["tcp://127.0.0.1:1", "tcp://127.0.0.1:2"]
    assert bench.node.link_index == 1
    assert isinstance(bench.notes.links[-1], Opened)


def test_silent_cloud_is_given_up(bench: Bench) -> None:
    bench = Bench(cloud=FakeCloud(outcome=None))
    silent: list[object] = []
    bench.run(
        bench.give(),
        1,
        lambda: setattr(bench.uplink, "peer", lambda message: silent.append(message) or []),
        bench.wait(7 * S),
        1,
    )
    assert bench.dropped() == {"link_down": 1, "lost_in_link": 1}
    assert [link.reason for link in bench.notes.links if isinstance(link, Lost)] == [LossReason.HEARTBEAT]


def test_frame_without_result_expires_and_its_result_is_late(bench: Bench) -> None:
    bench = Bench(cloud=FakeCloud(outcome=None), result_timeout_ns=S)
    bench.run(bench.give(), 1, bench.wait(S), 1, lambda: bench.uplink.deliver(*bench.cloud.answers(Outcome.OK)), 1)
    assert bench.dropped() == {"link_down": 1, "expired": 1}
    total = bench.node.ledger.snapshot().total
    assert (total.results, total.late) == (0, 1)


@pytest.mark.parametrize("outcome", [Outcome.STALE, Outcome.CORRUPT, Outcome.WORKER_LOST, Outcome.REJECTED])
def test_refusal_of_the_cloud_is_the_reason(bench: Bench, outcome: Outcome) -> None:
    bench.cloud.outcome = outcome
    bench.run(bench.give(), 1)
    assert bench.dropped() == {"link_down": 1, outcome.value: 1}


def test_frame_that_cannot_be_encoded_costs_only_itself(bench: Bench) -> None:
    def fail() -> None:
        bench.encoder.error = RuntimeError("graph is out of memory")

    bench.run(fail, bench.give(), lambda: setattr(bench.encoder, "error", None), bench.give(), 1)
    assert bench.dropped() == {"link_down": 1, "encode_error": 1}
    assert bench.node.ledger.snapshot().total.results == 1


def test_frame_too_large_for_a_message_is_dropped(bench: Bench) -> None:
    bench.encoder.is_oversize = True
    bench.run(bench.give(), 1)
    assert bench.dropped() == {"link_down": 1, "oversize": 1}


def test_every_third_frame_carries_its_view() -> None:
    bench = Bench(reference_every=3)
    bench.run(*[step for _ in range(7) for step in (bench.give(), 1)])
    carried = [frame.reference is not None for frame in bench.uplink.frames()]
    assert carried == [True, False, False, True, False, False, True]
    reference = bench.uplink.frames()[0].reference
    assert reference is not None
    assert np.frombuffer(zlib.decompress(reference), np.uint8).tobytes() == VIEW.tobytes()
    total = bench.node.ledger.snapshot().total
    assert (total.references, total.agreements) == (3, 3)


def test_depth_goes_down_under_load_and_the_change_is_told(bench: Bench) -> None:
    bench.run(
        lambda: bench.encoder.cost_ns.update({4: 12 * MS}), *[step for _ in range(12) for step in (bench.give(), 1)]
    )
    assert [(change.before, change.after) for change in bench.notes.depths] == [(4, 0)]
    assert bench.encoder.points[-1].depth == 0
    assert sum(encoded.is_over_budget for encoded in bench.notes.encoded_frames) == 10


def test_budget_that_cannot_be_kept_is_said_once(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """At the start it fits; what comes later would else be seen in a metric only."""
    slow = {0: 9 * MS, 4: 12 * MS}
    bench.run(lambda: bench.encoder.cost_ns.update(slow), *[step for _ in range(40) for step in (bench.give(), 1)])
    assert caplog.messages == ["not even depth 0 fits 8 ms now: frames are sent over budget"]
    assert bench.node.ledger.snapshot().total.results == 40


def test_over_budget_frames_are_dropped_but_for_a_probe_a_second() -> None:
    bench = Bench(drops_over_budget=True)
    bench.budget_ns = MS // 2
    bench.run(*[step for _ in range(30) for step in (bench.give(), bench.wait(100 * MS))])
    total = bench.node.ledger.snapshot().total
    assert total.dropped["over_budget"] == 30 - total.results
    assert 3 <= total.results <= 14  # ten to be sure, then one a second


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ([b"garbage"], LossReason.PROTOCOL),
        ([b""], LossReason.PROTOCOL),
        ([b"\x93\x63\x01\x01"], LossReason.REFUSED),  # another major version
    ],
)
def test_malformed_message_costs_the_session_not_the_node(bench: Bench, parts: list[bytes], reason: LossReason) -> None:
    bench.run(lambda: bench.uplink.inbox.append(parts), 1, bench.wait(S), 2, bench.give(), 1)
    lost = [link for link in bench.notes.links if isinstance(link, Lost)]
    assert [link.reason for link in lost] == [reason]
    assert bench.node.ledger.snapshot().total.results == 1


@pytest.mark.parametrize(
    ("is_lasting", "reason", "pause_ns"), [(True, LossReason.AUTH, 15 * S), (False, LossReason.REFUSED, 0)]
)
def test_handshake_that_fails_is_said_and_tried_again(
    bench: Bench, caplog: pytest.LogCaptureFixture, is_lasting: bool, reason: LossReason, pause_ns: int
) -> None:
    """Loudly, and slowly where only a person can change it; the frames of the dead link have an end."""

    def fail() -> None:
        bench.uplink.failure = HandshakeFailure(is_lasting, "the cloud does not allow this node's key")

    bench.cloud.outcome = None
    # Twice, for the second endpoint is tried at once.
    bench.run(bench.give(), 1, fail, 1, 1, fail, 1)
    lost = [action for action in bench.notes.links if isinstance(action, Lost)]
    assert [(action.reason, action.was_up) for action in lost] == [(reason, True), (reason, True)]
    assert bench.dropped()["lost_in_link"] == 1
    backoffs = [action.until_ns - bench.clock() for action in bench.notes.links if isinstance(action, Backoff)]
    assert backoffs[-1] == pytest.approx(pause_ns, abs=S)
    said = "not authorised: the cloud does not allow this node's key; trying again slowly" in caplog.text
    assert said is is_lasting


def test_goodbye_of_the_cloud_is_followed_by_a_new_session(bench: Bench) -> None:
    bench.run(lambda: bench.uplink.deliver(Bye("the cloud stops")), 1, bench.wait(S), 2, bench.give(), 1)
    assert bench.cloud.sessions == 2
    assert bench.node.ledger.snapshot().total.results == 1


def test_stop_waits_for_what_was_sent(bench: Bench) -> None:
    bench = Bench(cloud=FakeCloud(outcome=None))

    def stop_then_answer() -> None:
        bench.readers[0].give(bench.clock())
        stop = bench.readers[0].stop

        def answer_then_stop(now_ns: int) -> None:
            bench.uplink.deliver(*bench.cloud.answers(Outcome.OK))
            stop(now_ns)

        bench.readers[0].stop = answer_then_stop  # type: ignore[method-assign]

    bench.run(stop_then_answer)
    assert bench.node.ledger.snapshot().total.results == 1
    assert isinstance(bench.uplink.sent[-1], Bye)


def test_stop_gives_up_at_the_drain_deadline() -> None:
    bench = Bench(cloud=FakeCloud(outcome=None))
    # Time passes only where the loop asks for it: each look at the clock takes a millisecond.
    bench.node._clock = lambda: bench.clock.advance(MS) or bench.clock()  # type: ignore[func-returns-value]
    bench.run(bench.give())
    assert bench.dropped() == {"link_down": 1, "shutdown": 1}
    assert bench.clock() < 100 * S + 2 * S


def test_end_of_every_finite_camera_ends_the_node() -> None:
    clips = [FakeReader("one", is_live=False), FakeReader("two", is_live=False)]
    bench = Bench(*clips)

    def finish() -> None:
        for clip in clips:
            clip.finish()

    never: list[Callable[[], object] | int] = [lambda: pytest.fail("the node goes on")]
    bench.run(bench.give(1), 1, finish, 1, *never)
    assert bench.node.ledger.snapshot().total.results == 2


def test_camera_that_fails_is_told_and_the_other_goes_on() -> None:
    door, yard = FakeReader("door"), FakeReader("yard")
    bench = Bench(door, yard)
    bench.run(yard.fail, bench.give(), 1, bench.give(), 1)
    assert any(isinstance(event, Down) for event in bench.notes.cameras)
    assert bench.node.ledger.snapshot().cameras["door"].results == 2


def run_storm(seed: int) -> Bench:
    """Random frames, misses, outages and answers."""
    random = np.random.default_rng(seed)
    live = [FakeReader("a"), FakeReader("b"), FakeReader("clip", is_live=False)]
    bench = Bench(*live, cloud=FakeCloud(credit=3, outcome=None), result_timeout_ns=2 * S)

    def frame(reader: FakeReader) -> None:
        if reader.is_wanted:
            reader.give(
                bench.clock(), missed=int(random.integers(3)) if reader.is_live else 0, label=int(random.integers(9))
            )
        elif reader.is_live:
            reader.miss(int(random.integers(4)), rate_limited=int(random.integers(2)))

    def link() -> None:
        bench.cloud.unanswered.clear()
        bench.uplink.peer = None if bench.uplink.peer is not None else bench.cloud

    def answer() -> None:
        if bench.uplink.peer is not None:
            outcomes: Sequence[Outcome] = (Outcome.OK, Outcome.OK, Outcome.STALE, Outcome.CORRUPT)
            bench.uplink.deliver(*bench.cloud.answers(outcomes[random.integers(4)]))

    choices: list[Callable[[], object]] = [
        *[lambda reader=reader: frame(reader) for reader in live for _ in range(3)],
        answer,
        answer,
        answer,
        link,
        bench.wait(300 * MS),
        bench.wait(50 * MS),
    ]
    bench.run(*[choices[index] for index in random.integers(len(choices), size=400)])
    return bench


@pytest.mark.parametrize("seed", range(8))
def test_storm_leaves_every_frame_with_one_end(seed: int) -> None:
    bench = run_storm(seed)
    told = [(closed.camera, closed.sequence) for closed, _ in bench.notes.closed_frames]
    assert len(told) == len(set(told)), "a frame was closed twice"
    total = bench.node.ledger.snapshot().total
    assert total.unknown == 0
    assert total.results > 0
    assert {"link_down", "lost_in_link", "rate_limit"} <= set(total.dropped)
