"""The place between a main loop and those who look at it."""

from __future__ import annotations

import threading

from nodes.status_board import StatusBoard
from tests.fakes import MS, FakeClock


def test_nothing_is_wanted_until_somebody_looks() -> None:
    board = StatusBoard(FakeClock(), patience_s=0.0)
    assert not board.is_wanted
    assert board.read() == ({}, None)
    assert board.is_wanted


def test_reader_gets_what_the_loop_publishes_for_it() -> None:
    board = StatusBoard()
    found: list[object] = []
    reader = threading.Thread(target=lambda: found.append(board.read()[0]))
    reader.start()
    while reader.is_alive():
        if board.is_wanted:
            board.publish({"a": 1})
        reader.join(0.01)
    assert found == [{"a": 1}]
    assert not board.is_wanted


def test_fresh_document_is_shared_and_an_old_one_is_asked_for_anew() -> None:
    clock = FakeClock()
    board = StatusBoard(clock, patience_s=0.0)
    board.publish({"a": 1})
    clock.advance(400 * MS)
    assert board.read() == ({"a": 1}, 0.4)
    assert not board.is_wanted
    clock.advance(5000 * MS)
    assert board.read() == ({"a": 1}, 5.4), "of a loop that hangs, what it said last, and how old that is"
    assert board.is_wanted
