"""The slot between the reader's threads, the pace, and the messages to the parent: without any process."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from nodes.capture_link import (
    CaptureOptions,
    Counters,
    DownReason,
    Message,
    MessageBuffer,
    MessageKind,
    pack_failure,
    pack_frame,
    pack_message,
    parse_failure,
    parse_frame,
)
from nodes.capture_slot import End, Pace, Slot
from nodes.sources import Source, SourceKind
from pipeline.frames import Frame

S = 1_000_000_000
PATIENCE_S = 60.0
LIVE = Source(SourceKind.DEVICE, "0", "0")
WAITING = Source(SourceKind.FOLDER, "/photos", "photos")


def _picture(value: int = 0) -> NDArray[np.uint8]:
    return np.full((4, 6, 3), value, np.uint8)


@pytest.fixture
def wake() -> Iterator[socket.socket]:
    receiver, sender = socket.socketpair()
    sender.setblocking(False)
    with receiver, sender:
        yield sender


def test_live_slot_keeps_the_newest_and_counts_the_rest(wake: socket.socket) -> None:
    slot = Slot(Counters(captured=7), source=LIVE, wake=wake)
    for value in range(3):
        slot.put(_picture(value), None, 0, 100 + value)
    # The newest may still be taken, so it is not settled; the two before it are.
    assert slot.counters.captured == 9
    picture = slot.take(999)
    assert picture is not None
    assert (picture.pixels[0, 0, 0], picture.captured_ns, picture.counters.captured) == (2, 102, 10)
    assert slot.take(999) is None
    assert slot.counters.captured == 10
    assert slot.size == (6, 4)


def test_rate_limited_pictures_after_the_waiting_one_are_told_later(wake: socket.socket) -> None:
    """Totals up to a frame hold what came before it, so that the ledger closes sequence numbers in order."""
    slot = Slot(Counters(), source=LIVE, wake=wake)
    slot.count_rate_limited(0)
    slot.put(_picture(), None, 0, 1)
    slot.count_rate_limited(0)
    slot.count_rate_limited(0)
    assert slot.counters == Counters(captured=1, rate_limited=1)
    picture = slot.take(2)
    assert picture is not None
    assert picture.counters == Counters(captured=2, rate_limited=1)
    assert slot.counters == Counters(captured=4, rate_limited=3)


def test_waiting_slot_holds_the_reader_until_its_picture_is_taken(wake: socket.socket) -> None:
    """A picture that nobody asked for is not captured: it gets its number and its time when it is taken."""
    slot = Slot(Counters(captured=5, position=2), source=WAITING, wake=wake)
    thread = threading.Thread(target=slot.put, args=(_picture(), 898, 3, 111))
    thread.start()
    picture = None
    while picture is None:
        assert slot.counters == Counters(captured=5, position=2)
        picture = slot.take(222)
    thread.join(PATIENCE_S)
    assert not thread.is_alive()
    assert (picture.label, picture.captured_ns) == (898, 222)
    assert picture.counters == slot.counters == Counters(captured=6, position=3)


def test_closed_slot_lets_the_reader_go(wake: socket.socket) -> None:
    slot = Slot(Counters(), source=WAITING, wake=wake)
    threads = [
        threading.Thread(target=slot.put, args=(_picture(), None, 1, 0)),
        threading.Thread(target=slot.pause, args=(3600 * S,)),
    ]
    for thread in threads:
        thread.start()
    slot.close()
    for thread in threads:
        thread.join(PATIENCE_S)
        assert not thread.is_alive()
    assert slot.is_closed


def test_end_waits_for_the_last_picture_of_a_waiting_source_only(wake: socket.socket) -> None:
    failure = End(DownReason.END_OF_STREAM, "gone")
    live = Slot(Counters(), source=LIVE, wake=wake)
    live.put(_picture(), None, 0, 1)
    live.end(failure)
    assert live.find_end(2) == failure
    assert live.final_counters.captured == 1
    waiting = Slot(Counters(), source=WAITING, wake=wake)
    thread = threading.Thread(target=waiting.put, args=(_picture(), None, 1, 1))
    thread.start()
    while waiting.size is None:
        pass
    waiting.end(End())
    assert waiting.find_end(2) is None
    assert waiting.take(3) is not None
    assert waiting.find_end(4) == End()
    thread.join(PATIENCE_S)


def test_read_that_takes_too_long_is_found_while_it_lasts(wake: socket.socket) -> None:
    """Before the first picture that is a failed open, later a read timeout."""
    never_ns = 2**62
    slot = Slot(Counters(), source=LIVE, wake=wake)
    with slot.blocking(5.0):
        assert slot.find_end(0) is None
        assert slot.find_end(never_ns) == End(DownReason.OPEN_FAILED, "0: does not open in time")
    assert slot.find_end(never_ns) is None
    slot.put(_picture(), None, 0, 1)
    with slot.blocking(5.0):
        assert slot.find_end(never_ns) == End(DownReason.READ_TIMEOUT, "0: no picture comes")


def test_pace_keeps_the_rate_despite_jitter_and_makes_no_burst_after_a_pause() -> None:
    pace = Pace(10.0, 0)
    taken = []
    for now_ns in range(0, 10 * S, S // 30):
        if pace.wait_ns(now_ns) == 0:
            pace.take(now_ns)
            taken.append(now_ns)
    assert 99 <= len(taken) <= 101
    later_ns = 60 * S
    burst = 0
    while pace.wait_ns(later_ns) == 0:
        pace.take(later_ns)
        burst += 1
    assert burst == 2


def test_messages_survive_being_cut_anywhere() -> None:
    """The parent reads what is there; a message may come a byte at a time."""
    view = np.random.default_rng(3).integers(0, 256, (224, 224, 3), dtype=np.uint8)
    frame = Frame("door", 41, 123456789, view, 777, 898)
    messages = [
        Message(MessageKind.STATUS, Counters(1, 2, 3, 4)),
        Message(MessageKind.FRAME, Counters(42, 2, 3, 4), pack_frame(frame)),
        Message(MessageKind.FAILED, Counters(), pack_failure(DownReason.BAD_FRAME, "text")),
    ]
    stream = b"".join(pack_message(message) for message in messages)
    edges = [*range(0, 300), *range(300, len(stream) - 300, 9973), *range(len(stream) - 300, len(stream) + 1)]
    buffer = MessageBuffer()
    received = []
    for start, end in zip(edges, edges[1:], strict=False):
        received += buffer.feed(stream[start:end])
    assert received == messages
    parsed = parse_frame("door", received[1].body)
    assert np.array_equal(parsed.view, view)
    assert not parsed.view.flags.writeable
    assert (parsed.sequence, parsed.captured_ns, parsed.view_ns, parsed.label) == (41, 123456789, 777, 898)
    assert parse_failure(received[2].body) == (DownReason.BAD_FRAME, "text")


@pytest.mark.parametrize("start", [b"\xff\xff\xff\xff", b"\x00\x00\x00\x00", b"\x21\x00\x00\x00" + b"\xee" * 33])
def test_message_of_no_child_of_ours_raises(start: bytes) -> None:
    with pytest.raises(ValueError, match="message|MessageKind"):
        MessageBuffer().feed(start)


@pytest.mark.parametrize(
    "options", [{"fps": 0}, {"fps": -1.0}, {"read_timeout_s": float("nan")}, {"open_timeout_s": 0}]
)
def test_option_that_is_no_positive_number_raises(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="above 0"):
        CaptureOptions(**options)  # type: ignore[arg-type]
