"""Signals, in a process of their own as they come in life."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nodes.lifecycle import EXIT_FAILURE, EXIT_USAGE, StopRequest, exit_code_of
from pipeline.errors import BundleFormatError, ConfigError, LedgerError, SourceError

ROOT = Path(__file__).parents[2]
LIMIT_S = 60

ORDERED = """
import select, sys
from nodes.lifecycle import StopRequest
with StopRequest() as stop:
    print("ready", flush=True)
    select.select([stop.fileno()], [], [])
    select.select([stop.fileno()], [], [], 0)
    print("stopping", stop.reason, stop(), flush=True)
sys.exit(0)
"""

STUCK = """
import select, sys
from nodes.lifecycle import StopRequest
with StopRequest() as stop:
    stop.call_at_once(lambda: 1 / 0)
    stop.call_at_once(lambda: print("killing children", flush=True))
    print("ready", flush=True)
    while True:
        try:
            select.select([stop.fileno()], [], [])
            if stop():
                print("stopping", flush=True)
                while True:
                    select.select([], [], [], 60)
        except BaseException as error:
            print("caught", type(error).__name__, flush=True)
"""


Start = Callable[[str], "subprocess.Popen[str]"]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a program and waits until it is ready; kills what is left at the end."""
    started: list[subprocess.Popen[str]] = []

    def run(program: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", program],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert read_line(process) == "ready"
        return process

    yield run
    for process in started:
        process.kill()
        process.communicate()


def read_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_first_signal_asks_for_an_ordered_stop(start: Start, number: signal.Signals) -> None:
    process = start(ORDERED)
    process.send_signal(number)
    out, err = process.communicate(timeout=LIMIT_S)
    assert (out.strip(), err, process.returncode) == (f"stopping {number.name} True", "", 0)


def test_second_signal_stops_at_once(start: Start) -> None:
    """Whatever the program is stuck in and catches; a child that cannot be killed is passed over."""
    process = start(STUCK)
    process.send_signal(signal.SIGTERM)
    assert read_line(process) == "stopping"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=LIMIT_S)
    assert out.strip() == "killing children"
    assert (err, process.returncode) == ("", EXIT_FAILURE)


def test_request_from_inside_wakes_the_loop_once_and_for_good() -> None:
    with StopRequest() as stop:
        assert not stop()
        assert stop.reason == ""
        assert select.select([stop.fileno()], [], [], 0)[0] == []
        stop.request()
        stop.request()
        assert stop()
        for _ in range(2):
            assert select.select([stop.fileno()], [], [], 0)[0] == [stop.fileno()]


def test_signal_to_this_process_is_seen_and_handlers_are_restored() -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert select.select([stop.fileno()], [], [], LIMIT_S)[0]
        assert stop()
        assert stop.reason == "SIGTERM"
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before
    assert signal.set_wakeup_fd(-1) == -1


def test_hangup_is_counted_and_does_not_keep_the_loop_awake() -> None:
    """Left in the descriptor, what the signal wrote would turn every poll of the loop into a busy one."""
    with StopRequest(takes_reloads=True) as stop:
        for count in (1, 2):
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.reloads == count
            assert not stop()
            assert select.select([stop.fileno()], [], [], 0)[0] == []
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGHUP)
        assert stop()
        assert select.select([stop.fileno()], [], [], 0)[0] == [stop.fileno()]


def test_stop_that_comes_with_a_hangup_is_not_lost() -> None:
    """Both are delivered before Python handles either, the stop's wake-up is read away and has to be written anew."""
    with StopRequest(takes_reloads=True) as stop:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP, signal.SIGTERM})
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP, signal.SIGTERM})
        assert (stop(), stop.reloads) == (True, 1)
        assert select.select([stop.fileno()], [], [], 0)[0] == [stop.fileno()]


def test_hangup_ends_a_program_that_has_nothing_to_reload() -> None:
    before = signal.getsignal(signal.SIGHUP)
    with StopRequest():
        assert signal.getsignal(signal.SIGHUP) == before


def test_exit_codes_tell_what_the_user_wrote_from_what_happened() -> None:
    assert exit_code_of(ConfigError("file", "key", "wrong")) == EXIT_USAGE
    assert exit_code_of(SourceError("no such kind")) == EXIT_USAGE
    assert exit_code_of(BundleFormatError("damaged")) == EXIT_FAILURE
    assert exit_code_of(LedgerError("ours")) == EXIT_FAILURE
