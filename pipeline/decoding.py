"""From bitstreams to classes: what a worker does with a batch, free of processes and sockets."""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.bitstream import Bitstream, parse_bitstream
from pipeline.bundle import Bundle
from pipeline.entropy.rans import decode_batch, decode_symbols
from pipeline.errors import BitstreamError, CorruptBitstreamError
from pipeline.frames import VIEW_BYTES, VIEW_SIDE_PX
from pipeline.inference import Engine, Vectors

NUM_TOP_CLASSES = 5


@dataclass(frozen=True, slots=True)
class CodedFrame:
    """One frame as it reaches a worker: bitstream and, for some, the zlib-packed uncompressed view."""

    bitstream: bytes
    reference: bytes | None = None


@dataclass(frozen=True, slots=True)
class Classes:
    """Answer for one frame.

    Attributes:
        indices / probabilities: the best classes, most probable first.
        reference_top1: the uncompressed classifier's class where a reference came along.
    """

    indices: tuple[int, ...]
    probabilities: tuple[float, ...]
    reference_top1: int | None


@dataclass(frozen=True, slots=True)
class BatchTimings:
    """Durations of one batch in nanoseconds; `feature_decode` and the tail are one graph."""

    entropy_decode_ns: int
    classify_ns: int
    reference_ns: int


def inflate_reference(packed: bytes) -> NDArray[np.uint8]:
    """Uncompressed view (224, 224, 3) from its zlib form.

    Raises:
        CorruptBitstreamError: damaged, or not exactly one view; never more than a view is inflated.
    """
    inflater = zlib.decompressobj()
    try:
        raw = inflater.decompress(packed, VIEW_BYTES + 1)
    except zlib.error as error:
        raise CorruptBitstreamError(f"reference view is damaged: {error}") from error
    if len(raw) != VIEW_BYTES or not inflater.eof or inflater.unused_data:
        raise CorruptBitstreamError("reference view has the wrong size")
    return np.frombuffer(raw, np.uint8).reshape(VIEW_SIDE_PX, VIEW_SIDE_PX, 3)


class BatchDecoder:
    """Decodes and classifies batches of one bundle, depths and levels mixed freely."""

    def __init__(
        self,
        bundle: Bundle,
        engine: Engine,
        vectors: Vectors,
        clock: Callable[[], int] = time.perf_counter_ns,
    ) -> None:
        self._bundle, self._engine, self._vectors, self._clock = bundle, engine, vectors, clock

    def decode(self, frames: Sequence[CodedFrame]) -> tuple[list[Classes | BitstreamError], BatchTimings]:
        """One answer a frame, in order; a frame whose bytes are bad gets its error and harms no other."""
        begun = self._clock()
        answers: list[Classes | BitstreamError | None] = [None] * len(frames)
        good: list[int] = []
        bitstreams: list[Bitstream] = []
        references: dict[int, NDArray[np.uint8]] = {}
        for row, frame in enumerate(frames):
            try:
                bitstream = self._parse(frame.bitstream)
                if frame.reference is not None:
                    references[row] = inflate_reference(frame.reference)
            except BitstreamError as error:
                answers[row] = _without_frames(error)
                continue
            good.append(row)
            bitstreams.append(bitstream)
        symbols, errors = self._decode_symbols(bitstreams)
        for row, problem in zip(good, errors, strict=True):
            answers[row] = problem
        kept = [position for position, problem in enumerate(errors) if problem is None]
        decoded = self._clock()
        reference_top1 = self._classify_references(
            {row: view for row, view in references.items() if answers[row] is None}
        )
        referenced = self._clock()
        if kept:
            points = [(bitstreams[position].depth, bitstreams[position].level16) for position in kept]
            logits = self._engine.classify_symbols(np.ascontiguousarray(symbols[kept]), *self._vectors.gather(points))
            for position, row_logits in zip(kept, logits, strict=True):
                answers[good[position]] = top_classes(row_logits, reference_top1.get(good[position]))
        ended = self._clock()
        timings = BatchTimings(decoded - begun, ended - referenced, referenced - decoded)
        return [answer for answer in answers if answer is not None], timings

    def _parse(self, content: bytes) -> Bitstream:
        bitstream = parse_bitstream(content)
        if bitstream.bundle_id8 != self._bundle.id8:
            raise CorruptBitstreamError("bitstream was made with another bundle")
        if (bitstream.depth, bitstream.level16) not in self._bundle.tables:
            raise CorruptBitstreamError(f"no tables for depth {bitstream.depth}, level {bitstream.level16}/16")
        return bitstream

    def _decode_symbols(self, bitstreams: Sequence[Bitstream]) -> tuple[NDArray[np.int32], list[BitstreamError | None]]:
        """All symbols in one call; when any frame is bad, one by one to find which."""
        shape = self._bundle.manifest.latent_shape
        tables = [self._bundle.tables[bitstream.depth, bitstream.level16] for bitstream in bitstreams]
        words = [bitstream.words for bitstream in bitstreams]
        errors: list[BitstreamError | None] = [None] * len(bitstreams)
        try:
            return decode_batch(words, tables, shape), errors
        except BitstreamError:
            symbols = np.zeros((len(bitstreams), *shape), np.int32)
        for row, (frame_words, table) in enumerate(zip(words, tables, strict=True)):
            try:
                symbols[row] = decode_symbols(frame_words, table, shape)
            except BitstreamError as error:
                errors[row] = _without_frames(error)
        return symbols, errors

    def _classify_references(self, views: Mapping[int, NDArray[np.uint8]]) -> dict[int, int]:
        if not views:
            return {}
        logits = self._engine.classify_views(np.stack(list(views.values())))
        return dict(zip(views, (int(best) for best in logits.argmax(axis=1)), strict=True))


def _without_frames(error: BitstreamError) -> BitstreamError:
    """The error without its traceback, which holds on to a batch's arrays, and through them to itself.

    Only the garbage collector ends such a ring, and it counts objects, not the megabyte that each of these holds: a
    stream of bad frames would let a worker grow by hundreds of them.
    """
    return error.with_traceback(None)


def top_classes(logits: NDArray[np.float32], reference_top1: int | None) -> Classes:
    """The five most probable classes of one frame."""
    exact = logits.astype(np.float64)
    exponentials = np.exp(exact - exact.max())
    probabilities = exponentials / exponentials.sum()
    best = np.argsort(-probabilities, kind="stable")[:NUM_TOP_CLASSES]
    return Classes(
        tuple(int(index) for index in best),
        tuple(float(probabilities[index]) for index in best),
        reference_top1,
    )
