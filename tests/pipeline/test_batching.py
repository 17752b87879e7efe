"""The queue before the workers: full or due, fair, bounded, and never a frame that is too old."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.batching import BatchCause, Batcher, BatcherSettings, Refusal
from pipeline.ledger import Outcome

MS = 1_000_000
A, B = b"a" * 32, b"b" * 32
SETTINGS = BatcherSettings(max_frames=4, max_wait_ns=10 * MS, capacity=20, node_share=1.0, max_age_ns=1000 * MS)


def new_batcher(**changes: object) -> Batcher[str]:
    return Batcher(replace(SETTINGS, **changes))  # type: ignore[arg-type]


def offer(
    batcher: Batcher[str],
    item: str,
    now_ns: int = 0,
    *,
    node: str = "dock",
    camera: str = "gate",
    bundle_id: bytes = A,
    age_ns: int = 0,
) -> Refusal | None:
    return batcher.offer(item, node=node, camera=camera, bundle_id=bundle_id, now_ns=now_ns, born_ns=now_ns - age_ns)


def next_items(batcher: Batcher[str], now_ns: int = 10**12) -> str:
    batch = batcher.next_batch(now_ns, 1)
    return "" if batch is None else "".join(batch.items)


def test_batch_waits_for_company_until_its_deadline() -> None:
    batcher = new_batcher()
    assert batcher.next_deadline_ns(1) is None
    offer(batcher, "x", 5 * MS)
    offer(batcher, "y", 9 * MS)
    assert batcher.next_deadline_ns(1) == 15 * MS
    assert batcher.next_batch(15 * MS - 1, 1) is None
    batch = batcher.next_batch(15 * MS, 1)
    assert batch is not None
    assert (batch.items, batch.waits_ns, batch.cause) == (("x", "y"), (10 * MS, 6 * MS), BatchCause.DUE)
    assert (batch.bundle_id, batcher.num_waiting) == (A, 0)


def test_full_batch_goes_at_once_and_the_rest_waits_on() -> None:
    batcher = new_batcher()
    for item in "abcdef":
        offer(batcher, item, 3)
    assert batcher.next_deadline_ns(1) == 3
    batch = batcher.next_batch(3, 1)
    assert batch is not None
    assert (batch.items, batch.cause) == (tuple("abcd"), BatchCause.FULL)
    assert batcher.next_batch(3, 1) is None
    assert batcher.next_deadline_ns(1) == 3 + 10 * MS


def test_nobody_idle_gets_no_batch_and_no_wake_up_for_one() -> None:
    """Else the loop would spin until a worker is done."""
    batcher = new_batcher(max_age_ns=None)
    for item in "abcdef":
        offer(batcher, item)
    assert batcher.next_batch(10**12, 0) is None
    assert batcher.next_deadline_ns(0) is None
    assert new_batcher().next_deadline_ns(0) is None


def test_a_batch_has_one_bundle_and_the_longest_wait_goes_first() -> None:
    batcher = new_batcher()
    offer(batcher, "a", 1, bundle_id=A)
    for item in "bcde":
        offer(batcher, item, 2, bundle_id=B)
    assert next_items(batcher, 3) == "bcde"  # full; a is not due yet
    for item in "fghi":
        offer(batcher, item, 4, bundle_id=B)
    assert next_items(batcher, 1 + 10 * MS) == "a"  # now due, and waiting for longer
    assert next_items(batcher, 1 + 10 * MS) == "fghi"


def test_nodes_take_turns_however_much_one_sends() -> None:
    batcher = new_batcher(max_frames=6)
    for item in "aaaaaaaaaa":
        offer(batcher, item, node="greedy")
    for node in ("b", "c"):
        offer(batcher, node, node=node)
        offer(batcher, node, node=node)
    assert Counter(next_items(batcher)) == {"a": 2, "b": 2, "c": 2}


def test_cameras_of_a_node_take_turns_and_share_its_turn() -> None:
    batcher = new_batcher(max_frames=6)
    for item in "abc":
        for _ in range(3):
            offer(batcher, item, node="many", camera=item)
    for _ in range(3):
        offer(batcher, "x", node="one")
    assert Counter(next_items(batcher)) == {"a": 1, "b": 1, "c": 1, "x": 3}


def test_turns_go_on_over_batches() -> None:
    """Who was last in one batch is not first in the next."""
    batcher = new_batcher(max_frames=1)
    for node in "abc":
        for _ in range(3):
            offer(batcher, node, node=node)
    assert [next_items(batcher) for _ in range(9)] == list("abcabcabc")


def test_frames_of_a_camera_keep_their_order() -> None:
    batcher = new_batcher(max_frames=2)
    for item in "abcde":
        offer(batcher, item)
    assert [next_items(batcher) for _ in range(3)] == ["ab", "cd", "e"]


def test_queue_and_node_share_are_bounded() -> None:
    batcher = new_batcher(capacity=10, node_share=0.4)
    assert [offer(batcher, "x") for _ in range(5)] == [None] * 4 + [Refusal.NODE_SHARE]
    assert [offer(batcher, "y", node=f"node-{index}") for index in range(7)] == [None] * 6 + [Refusal.QUEUE_FULL]
    assert offer(batcher, "x") is Refusal.QUEUE_FULL
    next_items(batcher)
    assert offer(batcher, "x") is None
    statistics = batcher.statistics()
    assert (statistics.peak_waiting, statistics.refused["queue full"]) == (10, 2)


def test_share_holds_over_all_bundles_and_is_at_least_one_frame() -> None:
    batcher = new_batcher(capacity=10, node_share=0.01)
    assert offer(batcher, "x", bundle_id=A) is None
    assert offer(batcher, "x", bundle_id=B) is Refusal.NODE_SHARE


def test_refusals_have_the_ledgers_words() -> None:
    assert {refusal: refusal.outcome for refusal in Refusal} == {
        Refusal.QUEUE_FULL: Outcome.REJECTED,
        Refusal.NODE_SHARE: Outcome.REJECTED,
        Refusal.TOO_OLD: Outcome.STALE,
        Refusal.CLOSED: Outcome.SHUTDOWN,
    }


def test_frame_that_grows_too_old_leaves_as_stale() -> None:
    """Also when no worker is idle: then above all."""
    batcher = new_batcher()
    offer(batcher, "young", 0, age_ns=0)
    offer(batcher, "old", 0, age_ns=900 * MS)
    assert batcher.next_deadline_ns(0) == 100 * MS
    assert batcher.take_stale(100 * MS - 1) == []
    assert batcher.take_stale(100 * MS) == ["old"]
    assert batcher.take_stale(100 * MS) == []
    assert next_items(batcher, 200 * MS) == "young"
    assert (batcher.next_deadline_ns(0), batcher.statistics().stale) == (None, 1)


def test_frame_too_old_on_arrival_is_refused() -> None:
    batcher = new_batcher()
    assert offer(batcher, "x", age_ns=1000 * MS) is Refusal.TOO_OLD
    assert (
        new_batcher(max_age_ns=None).offer("x", node="n", camera="c", bundle_id=A, now_ns=0, born_ns=-(10**18)) is None
    )


def test_stuck_workers_do_not_make_the_queue_grow() -> None:
    """Frames come for an hour and none is computed: all leave as stale, nothing stays behind."""
    batcher = new_batcher(capacity=40)
    stale = 0
    for tick in range(36_000):
        now_ns = tick * 100 * MS
        stale += len(batcher.take_stale(now_ns))
        assert offer(batcher, "x", now_ns, node=f"node-{tick % 3}") is None
    assert stale == 36_000 - 10
    (queue,) = batcher._queues.values()
    assert sum(len(frames) for cameras in queue.nodes.values() for frames in cameras.values()) == 10
    assert len(batcher._by_age) <= 2 * batcher.num_waiting + 64


def test_frames_that_left_in_time_do_not_pile_up_by_age() -> None:
    batcher = new_batcher(max_age_ns=10**18)
    for tick in range(10_000):
        offer(batcher, "x", tick)
        assert next_items(batcher) == "x"
        batcher.take_stale(tick)
    assert len(batcher._by_age) <= 65
    assert not (batcher._queues or batcher._of_node or batcher._waiting)


def test_frames_that_left_do_not_pile_up_behind_one_that_waits() -> None:
    """And what waits still grows old in order after the clean-up."""
    random = Random(1)
    batcher = new_batcher(max_wait_ns=10**15, max_frames=2, capacity=100)
    ages_ms = random.sample(range(100, 900), 40)
    for age_ms in ages_ms:
        offer(batcher, str(age_ms), bundle_id=age_ms.to_bytes(32, "big"), age_ns=age_ms * MS)
        for _ in range(20):
            offer(batcher, "x", age_ns=random.randrange(990) * MS)
            offer(batcher, "y", age_ns=random.randrange(990) * MS)
            assert next_items(batcher, 0) == "xy"
            batcher.take_stale(0)
            assert len(batcher._by_age) <= 2 * batcher.num_waiting + 66
    for age_ms in sorted(ages_ms, reverse=True):
        assert batcher.next_deadline_ns(0) == (1000 - age_ms) * MS
        assert batcher.take_stale((1000 - age_ms) * MS) == [str(age_ms)]


def test_closed_batcher_empties_at_once_and_takes_nothing() -> None:
    batcher = new_batcher()
    offer(batcher, "a", 5)
    batcher.close()
    assert offer(batcher, "b", 5) is Refusal.CLOSED
    assert batcher.next_deadline_ns(1) == 5
    batch = batcher.next_batch(5, 1)
    assert batch is not None
    assert (batch.items, batch.cause) == (("a",), BatchCause.CLOSING)


def test_take_all_empties_it_at_the_drain_deadline() -> None:
    batcher = new_batcher()
    for index, item in enumerate("abcdef"):
        offer(batcher, item, node=f"node-{index % 2}", bundle_id=(A, B)[index % 2])
    assert sorted(batcher.take_all()) == list("abcdef")
    assert (batcher.num_waiting, batcher.take_all(), batcher.next_batch(10**12, 1)) == (0, [], None)
    assert repr(batcher) == "<Batcher open, 0 of 20 waiting>"


@pytest.mark.parametrize("changes", [{"max_frames": 0}, {"capacity": 0}, {"node_share": 0.0}, {"node_share": 1.1}])
def test_sizes_without_room_are_refused(changes: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="room"):
        new_batcher(**changes)


steps = st.lists(
    st.one_of(
        st.tuples(st.just("offer"), st.sampled_from("abc"), st.sampled_from("xy"), st.integers(0, 1200)),
        st.tuples(st.just("wait"), st.integers(0, 300)),
        st.tuples(st.just("batch"), st.integers(0, 2)),
        st.tuples(st.just("stale")),
    ),
    max_size=80,
)


@settings(derandomize=True, deadline=None)
@given(steps)
def test_every_offered_frame_leaves_once_by_one_way(sequence: list[tuple[object, ...]]) -> None:
    batcher: Batcher[int] = Batcher(replace(SETTINGS, capacity=12, node_share=0.5))
    now_ns, offered = 0, 0
    refused: list[int] = []
    left: list[int] = []
    born: dict[int, int] = {}
    for step in sequence:
        match step:
            case ("offer", str(node), str(bundle), int(age_ms)):
                born[offered] = now_ns - age_ms * MS
                refusal = batcher.offer(
                    offered,
                    node=node,
                    camera="c",
                    bundle_id=bundle.encode() * 32,
                    now_ns=now_ns,
                    born_ns=born[offered],
                )
                if refusal is not None:
                    refused.append(offered)
                offered += 1
            case ("wait", int(wait_ms)):
                now_ns += wait_ms * MS
            case ("batch", int(idle)):
                left += batcher.take_stale(now_ns)
                deadline_ns = batcher.next_deadline_ns(idle)
                batch = batcher.next_batch(now_ns, idle)
                assert (batch is not None) == (idle > 0 and deadline_ns is not None and deadline_ns <= now_ns)
                if batch is not None:
                    assert 1 <= len(batch.items) <= SETTINGS.max_frames
                    assert all(now_ns - born[item] < 1000 * MS for item in batch.items)
                    left += batch.items
            case _:
                left += batcher.take_stale(now_ns)
        assert batcher.num_waiting == offered - len(refused) - len(left) <= 12
    left += batcher.take_all()
    assert sorted(left + refused) == list(range(offered))
