"""One worker's answers, without its process: good frames, bad ones, and native code that panics."""

from __future__ import annotations

from typing import Any

import pytest

from nodes.worker import BatchJob, _answer
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


class Panic(BaseException):
    """As pyo3's PanicException."""


def test_errors_of_frames_travel_as_text() -> None:
    answer = _answer(Decoder([make_classes(), CorruptBitstreamError("checksum differs")]), JOB)  # type: ignore[arg-type]
    assert (answer.number, answer.answers, answer.timings) == (7, (make_classes(), "checksum differs"), TIMINGS)


def test_native_panic_is_the_batches_not_the_workers() -> None:
    answer = _answer(Decoder(Panic("index out of bounds")), JOB)  # type: ignore[arg-type]
    assert answer.answers == ("native panic: index out of bounds",) * 2


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), SystemExit(1), KeyboardInterrupt()])
def test_what_no_frame_is_to_blame_for_ends_the_worker(error: BaseException) -> None:
    with pytest.raises(type(error)):
        _answer(Decoder(error), JOB)  # type: ignore[arg-type]
