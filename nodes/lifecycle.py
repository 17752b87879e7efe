"""Start and end of a program: signals, exit codes, what a program is told when it starts.

The first SIGINT or SIGTERM asks for an ordered stop: it sets a flag and makes a descriptor readable, for
good, that the program's loop polls. The second one stops at once: children are killed, nothing is finished.
SIGHUP asks a program that has something to read again to do so.

Only the standard library is used here, so that signals are in good hands before anything heavy is imported.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, Final, Self

from pipeline.errors import ConfigError, PipelineError, SourceError

if TYPE_CHECKING:
    from nodes.log import LogHandler

EXIT_OK: Final = 0
EXIT_FAILURE: Final = 1
EXIT_USAGE: Final = 2

STOP_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
RELOAD_SIGNAL: Final = signal.SIGHUP
WAKEUP_BYTES: Final = 4096


class StopRequest:
    """Turns signals into a flag and a readable descriptor; used as a context in the main thread.

    Signals that came before a program was ready are not lost: enter it first, import afterwards.

    Attributes:
        reloads: how often SIGHUP came; whoever can read something again compares it with what it saw last.
    """

    def __init__(self, *, takes_reloads: bool = False) -> None:
        """Take hold of nothing yet.

        Args:
            takes_reloads: whether SIGHUP counts in `reloads` instead of ending the program.
        """
        self.reloads = 0
        self._takes_reloads = takes_reloads
        self._signal: signal.Signals | None = None
        self._at_once: list[Callable[[], None]] = []
        self._before: dict[int, Any] = {}
        self._before_fd = -1
        self._readable, self._writable = os.pipe()
        os.set_blocking(self._readable, False)
        os.set_blocking(self._writable, False)

    def __enter__(self) -> Self:
        # Written by the C handler: a signal just before a poll begins would else go unseen until it ends.
        self._before_fd = signal.set_wakeup_fd(self._writable, warn_on_full_buffer=False)
        for number in STOP_SIGNALS:
            self._before[number] = signal.signal(number, self._handle)
        if self._takes_reloads:
            self._before[RELOAD_SIGNAL] = signal.signal(RELOAD_SIGNAL, self._count_reload)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)
        self._before.clear()
        signal.set_wakeup_fd(self._before_fd)
        os.close(self._readable)
        os.close(self._writable)

    def __call__(self) -> bool:
        """Whether a stop was asked for: a StopRequest is the `should_stop` of the loops."""
        return self._signal is not None

    def fileno(self) -> int:
        """Descriptor that is readable from the first request on."""
        return self._readable

    @property
    def reason(self) -> str:
        """Name of the signal that asked, or why `request` did; empty before."""
        return "" if self._signal is None else self._signal.name

    def request(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Ask for an ordered stop from inside the program; more requests change nothing."""
        if self._signal is None:
            self._signal = number
            os.write(self._writable, b"\0")

    def call_at_once(self, action: Callable[[], None]) -> None:
        """Run an action when the second signal comes, before the process ends: killing its children."""
        self._at_once.append(action)

    def _count_reload(self, number: int, frame: FrameType | None) -> None:
        self.reloads += 1
        if self._signal is None:
            # What the C handler wrote would keep the descriptor readable. A stop that comes meanwhile writes anew.
            with suppress(BlockingIOError):
                os.read(self._readable, WAKEUP_BYTES)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._signal is None:
            self.request(signal.Signals(number))
            return
        # No exception: it could be caught on its way by whatever the loop is waiting in.
        for action in self._at_once:
            try:
                action()
            except Exception:  # the next child still has to go
                continue
        os._exit(EXIT_FAILURE)


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What a program is told besides its configuration.

    Attributes:
        stop: asks for its end.
        is_json: whether standard output is JSON lines, for machines.
        log: the configured log: give it the exporter's counter, flush its repeats in the loop.
        read_config: reads the configuration again, as at the start; raises ConfigError.
    """

    stop: StopRequest
    is_json: bool
    log: LogHandler
    read_config: Callable[[], Any]


def exit_code_of(error: PipelineError) -> int:
    """2 for what the user wrote, 1 for what happened."""
    return EXIT_USAGE if isinstance(error, ConfigError | SourceError) else EXIT_FAILURE
