"""One worker's answers, without its process: good frames, bad ones, and native code that panics."""

from __future__ import annotations

from typing import Any

import pytest

from nodes.worker import BatchJob, Panic, _answer, resident_bytes
from pipeline.decoding import BatchTimings, CodedFrame
from pipeline.errors import CorruptBitstreamError
from tests.fakes import make_classes

JOB = BatchJob(7, bytes(32), (CodedFrame(b"a"), CodedFrame(b"b")))
TIMINGS = BatchTimings(1, 2, 3)


class Decoder:
    """Answers with what it was made with, or raises it."""

    def __init__(self, outcome: Any) -> None:
        self.outcome = outcome

    def decode(self, frames: object) -> Any:
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        return self.outcome, TIMINGS


class PanicException(BaseException):
    """As pyo3's."""


def test_errors_of_frames_travel_as_text() -> None:
    answer = _answer(Decoder([make_classes(), CorruptBitstreamError("checksum differs")]), JOB)  # type: ignore[arg-type]
    assert (answer.number, answer.answers, answer.timings) == (7, (make_classes(), "checksum differs"), TIMINGS)


class PanickingDecoder:
    """Panics at one frame, and so at every batch with it."""

    def decode(self, frames: Any) -> Any:
        if CodedFrame(b"b") in frames:
            raise PanicException("index out of bounds")
        return [make_classes()] * len(frames), TIMINGS


def test_native_panic_costs_its_own_frame_and_not_the_worker() -> None:
    job = BatchJob(7, bytes(32), (CodedFrame(b"a"), CodedFrame(b"b"), CodedFrame(b"c")))
    answer = _answer(PanickingDecoder(), job)  # type: ignore[arg-type]
    assert answer.answers == (make_classes(), Panic("native panic: index out of bounds"), make_classes())
    assert answer.timings == BatchTimings(2, 4, 6)


def test_worker_says_how_much_memory_it_has() -> None:
    before = resident_bytes()
    ballast = bytearray(b"x") * 50_000_000
    assert _answer(Decoder([make_classes()]), JOB).resident_bytes > before + 40_000_000  # type: ignore[arg-type]
    del ballast


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), SystemExit(1), KeyboardInterrupt()])
def test_what_no_frame_is_to_blame_for_ends_the_worker(error: BaseException) -> None:
    with pytest.raises(type(error)):
        _answer(Decoder(error), JOB)  # type: ignore[arg-type]
