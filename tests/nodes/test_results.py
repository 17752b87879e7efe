"""Result sinks: every result is written or counted, and nobody waits for a slow one."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import pytest

from nodes.results import QUEUED_RESULTS, LineSink, open_sink
from pipeline.errors import ConfigError

PATIENCE_S = 60.0


def test_file_gets_a_line_each_and_is_appended_to(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    for number in range(2):
        sink = open_sink(f"jsonl:{path}")
        sink.put({"sequence": number})
        sink.close(PATIENCE_S)
        sink.close(PATIENCE_S)
        assert sink.dropped == 0
    assert [json.loads(line)["sequence"] for line in path.read_text().splitlines()] == [0, 1]


def test_standard_output(capfd: pytest.CaptureFixture[str]) -> None:
    sink = open_sink("-")
    sink.put({"name": "\u00e9"})
    sink.close(PATIENCE_S)
    assert json.loads(capfd.readouterr().out) == {"name": "\u00e9"}


def test_file_that_cannot_be_written_is_an_error_of_the_configuration(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be written"):
        open_sink(f"jsonl:{tmp_path}/absent/results.jsonl")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_full_disk_loses_results_and_counts_them() -> None:
    sink = open_sink("jsonl:/dev/full")
    for number in range(10):
        sink.put({"sequence": number})
    sink.close(PATIENCE_S)
    assert sink.dropped == 10


def test_slow_reader_holds_up_nobody_and_what_it_misses_is_counted() -> None:
    """A pipe that nobody reads takes 64 KiB."""
    readable, writable = os.pipe()
    sink = LineSink("pipe", io.FileIO(writable, "w"))
    num_results = 4 * QUEUED_RESULTS
    line = {"text": "x" * 200}
    for _ in range(num_results):
        sink.put(line)
    sink.close(0.1)
    # The sink has given up: what is in the pipe now, and what the stuck thread writes on, is all that comes.
    with io.FileIO(readable) as pipe:
        written = pipe.readall().count(b"\n")
    assert sink.dropped + written == num_results
    assert sink.dropped >= num_results - QUEUED_RESULTS - 400


def test_line_that_was_torn_does_not_spoil_the_next() -> None:
    class Disk(io.RawIOBase):
        """Takes ten bytes, then is full once, then has room."""

        def __init__(self) -> None:
            self.content = b""
            self.writes = 0

        def write(self, content: object) -> int:
            self.writes += 1
            if self.writes == 2:
                raise OSError(28, "No space left on device")
            taken = bytes(content)[:10] if self.writes == 1 else bytes(content)  # type: ignore[call-overload]
            self.content += taken
            return len(taken)

    disk = Disk()
    sink = LineSink("disk", disk)
    sink.put({"sequence": 1, "name": "torn"})
    sink.put({"sequence": 2})
    sink.close(PATIENCE_S)
    lines = disk.content.split(b"\n")
    assert json.loads(lines[1]) == {"sequence": 2}
    assert sink.dropped == 1
