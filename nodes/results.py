"""Where results go beside the node: JSON lines to standard output or a file, never in the stream's way."""

from __future__ import annotations

import io
import json
import os
import queue
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Protocol

from pipeline.errors import ConfigError

QUEUED_RESULTS: Final = 1024
"""Some ten seconds of a busy cloud; a sink that is slower than that for longer loses results, and says how many."""


class ResultSink(Protocol):
    """Takes results; `put` never blocks."""

    name: str

    @property
    def dropped(self) -> int: ...

    def put(self, result: Mapping[str, Any]) -> None: ...

    def close(self, timeout_s: float) -> None: ...


class LineSink:
    """Writes one JSON object a line from a thread of its own."""

    def __init__(self, name: str, file: io.RawIOBase) -> None:
        """Start writing.

        Args:
            file: without a buffer, so that what could not be written is lost and counted, and does not come later;
                from now on the sink's, which closes it.
        """
        self.name = name
        # One counter for each thread.
        self._refused = self._unwritten = 0
        self._file = file
        self._is_torn = False
        self._queue: queue.Queue[Mapping[str, Any] | None] = queue.Queue(QUEUED_RESULTS)
        self._thread = threading.Thread(target=self._write, name=f"rac-results-{name}", daemon=True)
        self._thread.start()

    @property
    def dropped(self) -> int:
        """Results that found the queue full, could not be written, or were left when the sink was closed."""
        return self._refused + self._unwritten

    def put(self, result: Mapping[str, Any]) -> None:
        """Queue a result, or count it as dropped."""
        try:
            self._queue.put_nowait(result)
        except queue.Full:
            self._refused += 1

    def close(self, timeout_s: float) -> None:
        """Write what is queued, for at most so long; a second call does nothing."""
        deadline_s = time.monotonic() + timeout_s
        with suppress(queue.Full):
            self._queue.put(None, timeout=timeout_s)
        self._thread.join(max(0.0, deadline_s - time.monotonic()))
        # A thread that is stuck in a write is left behind, with what it would have written.
        with suppress(queue.Empty):
            while True:
                self._refused += self._queue.get_nowait() is not None
        with suppress(queue.Full):
            self._queue.put_nowait(None)

    def _write(self) -> None:
        while (result := self._queue.get()) is not None:
            try:
                self._write_line(json.dumps(result).encode() + b"\n")
            except OSError:  # full disk, closed pipe; the next line may fit again
                self._unwritten += 1
        with suppress(OSError):  # counted above, where it happened
            self._file.close()

    def _write_line(self, line: bytes) -> None:
        left = memoryview(b"\n" + line if self._is_torn else line)
        while left:
            left = left[self._file.write(left) or 0 :]
            self._is_torn = len(left) > 0


def open_sink(text: str) -> ResultSink:
    """A sink from its `--results` text: `-` or `jsonl:PATH` (appended to).

    Raises:
        ConfigError: the file cannot be opened.
    """
    if text == "-":
        # A file of its own: a reader that stands still would hold the lock of ours, and the program with it.
        return LineSink("-", io.FileIO(os.dup(sys.stdout.fileno()), "w"))
    path = Path(text.removeprefix("jsonl:"))
    try:
        return LineSink(text, io.FileIO(path, "a"))
    except OSError as error:
        raise ConfigError("command line", "results", f"{path} cannot be written: {error.strerror}") from error
