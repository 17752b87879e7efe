"""Limits of one node, with a clock that stands still: who keeps them is never cut off, who breaks them is."""

from __future__ import annotations

import pytest

from pipeline.node_limits import MAX_PEERS, NS_PER_S, LimitSettings, NodeLimits, TokenBucket

MS = 1_000_000
START = 50 * NS_PER_S
SETTINGS = LimitSettings(
    frames_per_second=10,
    bytes_per_second=100_000,
    message_bytes=50_000,
    window_frames=8,
    cut_off_ns=30 * NS_PER_S,
)


@pytest.fixture
def limits() -> NodeLimits:
    return NodeLimits(SETTINGS)


def send(limits: NodeLimits, peer: bytes, num_bytes: int, now_ns: int) -> str | None:
    """One frame."""
    return limits.arrive(peer, num_bytes, now_ns) or limits.count_frame(peer, now_ns)


def test_bucket_fills_at_its_rate_and_not_beyond() -> None:
    bucket = TokenBucket(rate=10, capacity=20, now_ns=START)
    assert bucket.take(20, START)
    assert not bucket.take(1, START)
    assert not bucket.take(2, START + 199 * MS)
    assert bucket.take(2, START + 200 * MS)
    assert bucket.take(20, START + 3600 * NS_PER_S)
    assert not bucket.take(1, START + 3600 * NS_PER_S)


def test_clock_that_goes_back_gives_nothing_and_takes_nothing() -> None:
    bucket = TokenBucket(rate=10, capacity=20, now_ns=START)
    assert bucket.take(20, START)
    assert not bucket.take(1, START - NS_PER_S)
    assert not bucket.take(1, START)
    assert bucket.take(1, START + 100 * MS)


def test_node_at_its_limit_is_heard_for_ever(limits: NodeLimits) -> None:
    for number in range(10_000):
        assert send(limits, b"a", 10_000, START + number * 100 * MS) is None


def test_what_a_stalled_network_delivers_at_once_is_forgiven(limits: NodeLimits) -> None:
    """Two seconds of frames and the credit window, twice in a row with two seconds between."""
    for _ in range(28):
        assert send(limits, b"a", 100, START) is None
    for _ in range(20):
        assert send(limits, b"a", 100, START + 2 * NS_PER_S) is None


@pytest.mark.parametrize(
    ("num_bytes", "count", "says"),
    [
        (100, 29, "more than 10 frames a second"),
        (49_000, 5, "more than 100000 bytes a second"),
        (50_001, 1, "a message of more than 50000 bytes"),
    ],
)
def test_node_that_breaks_a_limit_is_cut_off_with_its_name(
    limits: NodeLimits, num_bytes: int, count: int, says: str
) -> None:
    told = [send(limits, b"a", num_bytes, START) for _ in range(count)]
    assert told == [None] * (count - 1) + [says]
    assert limits.cut_off_text(b"a", START) == f"{says}: not listened to for 30 s"
    assert limits.cut_off_text(b"a", START + 29 * NS_PER_S) == f"{says}: not listened to for 1 s"
    assert limits.cut_off_text(b"a", START + 30 * NS_PER_S) is None


def test_flood_of_other_messages_is_cut_off_too(limits: NodeLimits) -> None:
    told = [limits.arrive(b"a", 20, START) for _ in range(229)]
    assert told == [None] * 228 + ["more than 110 messages a second"]


def test_others_have_limits_of_their_own(limits: NodeLimits) -> None:
    while send(limits, b"a", 49_000, START) is None:
        pass
    assert limits.cut_off_text(b"a", START) is not None
    assert limits.cut_off_text(b"b", START) is None
    assert [send(limits, b"b", 100, START) for _ in range(28)] == [None] * 28


def test_peer_that_is_cut_off_is_heard_once_a_second(limits: NodeLimits) -> None:
    """So that a node which comes back too early can be told why, and a flood costs no more than that."""
    limits.arrive(b"a", 60_000, START)
    heard = [limits.is_heard(b"a", START + number * 10 * MS) for number in range(250)]
    assert [number for number, was in enumerate(heard) if was] == [100, 200]


def test_peer_that_goes_on_although_it_was_told_is_flooding(limits: NodeLimits) -> None:
    """What an honest one may have had on the way is forgiven: its credit window and some more."""
    limits.arrive(b"a", 60_000, START)
    told_ns = START + NS_PER_S
    assert limits.is_heard(b"a", told_ns)
    flooding = []
    for _ in range(250):
        assert not limits.is_heard(b"a", told_ns)
        flooding.append(limits.is_flooding(b"a", told_ns))
    assert [number for number, is_flooding in enumerate(flooding, 1) if is_flooding] == [109, 218]
    assert not limits.is_flooding(b"b", told_ns)


def test_flood_is_not_ended_before_its_sender_can_have_been_told(limits: NodeLimits) -> None:
    """A connection that is shut down takes with it what has not been read."""
    limits.arrive(b"a", 60_000, START)
    for _ in range(250):
        limits.is_heard(b"a", START)
    assert not limits.is_flooding(b"a", START + NS_PER_S - 1)
    assert limits.is_flooding(b"a", START + NS_PER_S)


def test_peer_that_leaves_cannot_shake_off_its_sentence(limits: NodeLimits) -> None:
    limits.arrive(b"a", 60_000, START)
    limits.arrive(b"b", 10, START)
    for peer in (b"a", b"b"):
        limits.forget(peer, START)
    assert limits.cut_off_text(b"a", START) is not None
    assert len(limits) == 1
    limits.forget(b"a", START + 31 * NS_PER_S)
    assert len(limits) == 0


def test_memory_is_bounded_whoever_comes(limits: NodeLimits) -> None:
    for number in range(2 * MAX_PEERS):
        limits.arrive(b"old", 10, START)
        limits.arrive(number.to_bytes(4, "big"), 10, START)
    assert len(limits) == MAX_PEERS
    # Who speaks is kept; those that fell silent are forgotten.
    assert limits.arrive(b"old", 10, START) == "more than 110 messages a second" or limits.cut_off_text(b"old", START)


def test_largest_message_fits_however_low_the_rate() -> None:
    limits = NodeLimits(LimitSettings(bytes_per_second=65_536, message_bytes=262_144))
    assert limits.arrive(b"a", 262_144, START) is None
