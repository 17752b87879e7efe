"""Starting child processes that leave signals to their parent."""

from __future__ import annotations

import signal
from collections.abc import Iterable
from multiprocessing import resource_tracker
from multiprocessing.process import BaseProcess

#: Ctrl-C reaches every process of a terminal's group, and a service manager's SIGTERM all of a service.
STOPS = (signal.SIGINT, signal.SIGTERM)


def start_shielded(process: BaseProcess, signals: Iterable[signal.Signals] = STOPS) -> None:
    """Start a process that never sees the given signals.

    The parent decides what they mean, and the child ends when told, with its pipe, or by SIGKILL. The mask is
    inherited before the new interpreter could print a traceback, and the parent loses no signal.

    Raises:
        OSError: the machine gives no process.
    """
    # Started apart, because starting it takes the mask off again.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
