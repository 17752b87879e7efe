"""Where results go beside the node: JSON lines to standard output or a file, never in the stream's way."""

from __future__ import annotations

import json
import queue
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, TextIO

from pipeline.errors import ConfigError

QUEUED_RESULTS = 1024
"""Some ten seconds of a busy cloud; a sink that is slower than that for longer loses results, and says how many."""


class ResultSink(Protocol):
    """Takes results; `put` never blocks."""

    name: str
    dropped: int

    def put(self, result: Mapping[str, Any]) -> None: ...

    def close(self, timeout_s: float) -> None: ...


class LineSink:
    """Writes one JSON object a line from a thread of its own.

    Attributes:
        dropped: results that found the queue full or could not be written.
    """

    def __init__(self, name: str, stream: TextIO, owns_stream: bool) -> None:
        self.name = name
        self.dropped = 0
        self._stream, self._owns_stream = stream, owns_stream
        self._queue: queue.Queue[Mapping[str, Any] | None] = queue.Queue(QUEUED_RESULTS)
        self._thread = threading.Thread(target=self._write, name=f"rac-results-{name}", daemon=True)
        self._thread.start()

    def put(self, result: Mapping[str, Any]) -> None:
        """Queue a result, or count it as dropped."""
        try:
            self._queue.put_nowait(result)
        except queue.Full:
            self.dropped += 1

    def close(self, timeout_s: float) -> None:
        """Write what is queued, for at most so long."""
        try:
            self._queue.put(None, timeout=timeout_s)
        except queue.Full:
            return
        self._thread.join(timeout_s)

    def _write(self) -> None:
        while (result := self._queue.get()) is not None:
            try:
                self._stream.write(json.dumps(result) + "\n")
                self._stream.flush()
            except (OSError, ValueError):  # full disk, closed pipe; the next line may fit again
                self.dropped += 1
        if self._owns_stream:
            self._stream.close()


def open_sink(text: str) -> ResultSink:
    """A sink from its `--results` text: `-` or `jsonl:PATH` (appended to).

    Raises:
        ConfigError: the file cannot be opened.
    """
    if text == "-":
        return LineSink("-", sys.stdout, owns_stream=False)
    path = Path(text.removeprefix("jsonl:"))
    try:
        return LineSink(text, path.open("a", encoding="utf-8"), owns_stream=True)
    except OSError as error:
        raise ConfigError("command line", "results", f"{path} cannot be written: {error.strerror}") from error
