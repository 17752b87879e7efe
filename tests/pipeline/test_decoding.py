"""From bitstreams to classes: one bad frame harms no other, and hostile bytes are never taken for a class."""

from __future__ import annotations

import gc
import tracemalloc
import zlib
from itertools import count

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.bitstream import Bitstream, pack_bitstream
from pipeline.bundle import Bundle
from pipeline.decoding import (
    NUM_TOP_CLASSES,
    BatchDecoder,
    Classes,
    CodedFrame,
    inflate_reference,
    top_classes,
)
from pipeline.encoder import Encoder, OperatingPoint
from pipeline.errors import BitstreamError, CorruptBitstreamError, TruncatedBitstreamError
from pipeline.frames import VIEW_BYTES
from pipeline.inference import Vectors

NUM_CLASSES = 10


class FakeEngine:
    """Says which frame it saw: logits from the mean of the symbols, or of the view."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.gains: list[NDArray[np.float32]] = []

    def classify_symbols(
        self, symbols: NDArray[np.int32], inverse_gain: NDArray[np.float32], condition: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        assert symbols.dtype == np.int32
        assert symbols.flags.c_contiguous
        assert len(symbols) == len(inverse_gain) == len(condition)
        self.batches.append(len(symbols))
        self.gains.extend(inverse_gain)
        return self._logits(np.abs(symbols).sum(axis=(1, 2, 3)))

    def classify_views(self, views: NDArray[np.uint8]) -> NDArray[np.float32]:
        return self._logits(views.astype(np.int64).sum(axis=(1, 2, 3)))

    @staticmethod
    def _logits(sums: NDArray[np.int64]) -> NDArray[np.float32]:
        logits = np.zeros((len(sums), NUM_CLASSES), np.float32)
        logits[np.arange(len(sums)), sums % NUM_CLASSES] = 3.0
        return logits


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture(scope="module")
def encoder(tiny_bundle: Bundle) -> Encoder:
    return Encoder(tiny_bundle)


@pytest.fixture(scope="module")
def tiny_vectors(tiny_bundle: Bundle) -> Vectors:
    """Inverse gains that tell the operating point: depth + level16 / 100."""
    depths, levels16 = tiny_bundle.manifest.depths, tiny_bundle.manifest.levels16
    rows = {(d, level): (i, j) for i, d in enumerate(depths) for j, level in enumerate(levels16)}
    marks = np.array([[[d + level / 100] * 6 for level in levels16] for d in depths], np.float32)
    return Vectors(rows, marks, np.zeros((*marks.shape[:2], 8), np.float32))


@pytest.fixture
def decoder(tiny_bundle: Bundle, engine: FakeEngine, tiny_vectors: Vectors) -> BatchDecoder:
    ticks = count(step=10)
    return BatchDecoder(tiny_bundle, engine, tiny_vectors, lambda: next(ticks))


@pytest.fixture(scope="module")
def frames(encoder: Encoder, views: NDArray[np.uint8]) -> list[CodedFrame]:
    """Eight frames, every one of another operating point than the one before."""
    points = [OperatingPoint(depth, level16) for depth, level16 in encoder.bundle.tables]
    return [CodedFrame(encoder.encode(view, points[index])) for index, view in enumerate(views[:8])]


def resealed(frame: CodedFrame, bundle: Bundle, **changes: int | bytes) -> CodedFrame:
    """The frame with another header, whose checksum is right."""
    fields = {"kind": 0, "bundle_id8": bundle.id8, "depth": 0, "level16": 0, "words": frame.bitstream[16:]}
    return CodedFrame(pack_bitstream(Bitstream(**{**fields, **changes})))  # type: ignore[arg-type]


def expected_class(encoder: Encoder, view: NDArray[np.uint8], frame: CodedFrame) -> int:
    depth, level16 = frame.bitstream[10], frame.bitstream[11]
    return int(np.abs(encoder.symbols(view, OperatingPoint(depth, level16))).sum() % NUM_CLASSES)


# Batches


def test_mixed_depths_and_levels_share_a_batch(
    decoder: BatchDecoder,
    engine: FakeEngine,
    encoder: Encoder,
    frames: list[CodedFrame],
    views: NDArray[np.uint8],
) -> None:
    answers, _ = decoder.decode(frames)
    assert engine.batches == [8]
    for frame, view, answer, gain in zip(frames, views, answers, engine.gains, strict=False):
        assert isinstance(answer, Classes)
        assert answer.indices[0] == expected_class(encoder, view, frame)
        assert gain[0] == pytest.approx(frame.bitstream[10] + frame.bitstream[11] / 100)


def test_no_frames_give_no_answers(decoder: BatchDecoder, engine: FakeEngine) -> None:
    assert decoder.decode([])[0] == []
    assert engine.batches == []


def test_timings_are_those_of_the_stages(decoder: BatchDecoder, frames: list[CodedFrame]) -> None:
    _, timings = decoder.decode(frames)
    assert (timings.entropy_decode_ns, timings.reference_ns, timings.classify_ns) == (10, 10, 10)


@pytest.mark.parametrize("kind", ["flipped", "resealed", "cut", "empty", "noise"])
@pytest.mark.parametrize("position", [0, 3, 7])
def test_corrupt_frame_harms_no_other_of_its_batch(
    decoder: BatchDecoder, tiny_bundle: Bundle, frames: list[CodedFrame], kind: str, position: int
) -> None:
    sound, _ = decoder.decode(frames)
    bitstream = bytearray(frames[position].bitstream)
    if kind == "flipped":
        bitstream[40] ^= 0x10
    elif kind == "cut":
        del bitstream[-7:]
    elif kind == "empty":
        bitstream.clear()
    elif kind == "noise":
        bitstream = bytearray(np.random.default_rng(2).bytes(len(bitstream)))
    bad = CodedFrame(bytes(bitstream))
    if kind == "resealed":  # the checksum is right, the words are not: only the entropy decoder can tell
        bad = resealed(CodedFrame(bytes(16) + np.random.default_rng(5).bytes(400)), tiny_bundle)
    answers, _ = decoder.decode([*frames[:position], bad, *frames[position + 1 :]])
    assert isinstance(answers[position], BitstreamError)
    assert [*answers[:position], *answers[position + 1 :]] == [*sound[:position], *sound[position + 1 :]]


def test_bad_frames_leave_nothing_behind_for_the_garbage_collector(
    decoder: BatchDecoder, tiny_bundle: Bundle, frames: list[CodedFrame]
) -> None:
    """An error that holds its traceback holds the batch's arrays, and a stream of them lets a worker grow."""
    damaged = resealed(frames[0], tiny_bundle, words=frames[0].bitstream[16:-4] + b"\x01\x02\x03\x04")
    gc.collect()
    gc.disable()
    try:
        answers, _ = decoder.decode([frames[0], damaged, CodedFrame(b"no bitstream")])
        assert [isinstance(answer, BitstreamError) for answer in answers] == [False, True, True]
        del answers
        assert not [each for each in gc.get_objects() if issubclass(type(each), BitstreamError)]
    finally:
        gc.enable()


def test_batch_of_nothing_but_bad_frames_is_answered(decoder: BatchDecoder, engine: FakeEngine) -> None:
    answers, _ = decoder.decode([CodedFrame(b""), CodedFrame(b"\x01" * 20)])
    assert all(isinstance(answer, BitstreamError) for answer in answers)
    assert engine.batches == []


def test_frame_of_another_bundle_is_refused(
    decoder: BatchDecoder, tiny_bundle: Bundle, frames: list[CodedFrame]
) -> None:
    other = bytes(reversed(tiny_bundle.id8))
    (answer,), _ = decoder.decode([resealed(frames[0], tiny_bundle, bundle_id8=other)])
    assert isinstance(answer, CorruptBitstreamError)
    assert "another bundle" in str(answer)


@pytest.mark.parametrize(("depth", "level16"), [(2, 0), (255, 0), (0, 1), (1, 255)])
def test_depth_or_level_without_tables_is_refused(
    decoder: BatchDecoder, tiny_bundle: Bundle, frames: list[CodedFrame], depth: int, level16: int
) -> None:
    (answer,), _ = decoder.decode([resealed(frames[0], tiny_bundle, depth=depth, level16=level16)])
    assert isinstance(answer, CorruptBitstreamError)
    assert f"depth {depth}, level {level16}/16" in str(answer)


def test_every_cut_of_a_frame_is_an_error(decoder: BatchDecoder, frames: list[CodedFrame]) -> None:
    bitstream = frames[0].bitstream
    answers, _ = decoder.decode([CodedFrame(bitstream[:length]) for length in range(0, len(bitstream), 5)])
    assert all(isinstance(answer, TruncatedBitstreamError | CorruptBitstreamError) for answer in answers)


# References


def pack_view(view: NDArray[np.uint8]) -> bytes:
    return zlib.compress(view.tobytes(), 1)


def test_reference_is_classified_beside_its_frame(
    decoder: BatchDecoder, frames: list[CodedFrame], views: NDArray[np.uint8]
) -> None:
    batch = [*frames[:3], CodedFrame(frames[3].bitstream, pack_view(views[3])), *frames[4:]]
    answers, _ = decoder.decode(batch)
    references = [answer.reference_top1 for answer in answers if isinstance(answer, Classes)]
    expected = int(views[3].astype(np.int64).sum() % NUM_CLASSES)
    assert references == [None, None, None, expected, None, None, None, None]


def test_reference_of_a_corrupt_frame_goes_to_no_other(
    decoder: BatchDecoder, frames: list[CodedFrame], views: NDArray[np.uint8]
) -> None:
    batch = [CodedFrame(b"\x01" * 40, pack_view(views[0])), CodedFrame(frames[1].bitstream, pack_view(views[1]))]
    answers, _ = decoder.decode(batch)
    assert isinstance(answers[0], BitstreamError)
    assert isinstance(answers[1], Classes)
    assert answers[1].reference_top1 == int(views[1].astype(np.int64).sum() % NUM_CLASSES)


def test_bad_reference_costs_its_frame_alone(
    decoder: BatchDecoder, frames: list[CodedFrame], views: NDArray[np.uint8]
) -> None:
    """An agreement over another view than the frame's would be a lie."""
    batch = [CodedFrame(frames[0].bitstream, pack_view(views[0])[:-9]), frames[1]]
    answers, _ = decoder.decode(batch)
    assert isinstance(answers[0], CorruptBitstreamError)
    assert isinstance(answers[1], Classes)


def test_inflated_reference_is_the_view(views: NDArray[np.uint8]) -> None:
    np.testing.assert_array_equal(inflate_reference(pack_view(views[0])), views[0])


def test_reference_bomb_is_not_inflated() -> None:
    """A quarter of a gigabyte of zeros takes 260 kB; no more than a view of it is ever made."""
    deflater = zlib.compressobj(9)
    bomb = b"".join(deflater.compress(bytes(2**20)) for _ in range(256)) + deflater.flush()
    assert len(bomb) < 300_000
    tracemalloc.start()
    with pytest.raises(CorruptBitstreamError, match="wrong size"):
        inflate_reference(bomb)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


@pytest.mark.parametrize("number", [0, VIEW_BYTES - 1, VIEW_BYTES + 1])
def test_reference_of_another_size_is_refused(number: int) -> None:
    with pytest.raises(CorruptBitstreamError, match="wrong size"):
        inflate_reference(zlib.compress(bytes(number)))


def test_truncated_reference_is_refused_wherever_it_is_cut(views: NDArray[np.uint8]) -> None:
    """Also within the checksum at its end, when all the pixels are there."""
    packed = pack_view(views[0])
    for length in (0, 1, 2, len(packed) // 2, len(packed) - 4, len(packed) - 1):
        with pytest.raises(CorruptBitstreamError):
            inflate_reference(packed[:length])


def test_reference_with_something_behind_or_damaged_is_refused(views: NDArray[np.uint8]) -> None:
    packed = bytearray(pack_view(views[0]))
    with pytest.raises(CorruptBitstreamError):
        inflate_reference(bytes(packed) + b"x")
    packed[len(packed) // 2] ^= 0xFF
    with pytest.raises(CorruptBitstreamError):
        inflate_reference(bytes(packed))


# Classes


def test_top_classes_are_sorted_probabilities() -> None:
    logits = np.zeros(1000, np.float32)
    logits[[7, 900, 3]] = [5.0, 9.0, 7.0]
    classes = top_classes(logits, 900)
    assert classes.indices[:3] == (900, 3, 7)
    assert len(classes.indices) == len(classes.probabilities) == NUM_TOP_CLASSES
    exact = np.exp(logits.astype(np.float64)) / np.exp(logits.astype(np.float64)).sum()
    assert classes.probabilities == pytest.approx(exact[list(classes.indices)])
    assert classes.reference_top1 == 900


def test_top_classes_of_huge_logits_do_not_overflow() -> None:
    logits = np.full(1000, -3e38, np.float32)
    logits[12] = 3e38
    classes = top_classes(logits, None)
    assert classes.indices[0] == 12
    assert classes.probabilities[0] == 1.0
