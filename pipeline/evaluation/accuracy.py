"""Rate and accuracy of a bundle on real bytes: every view is encoded as on a node and decoded as in the cloud."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.bundle import Bundle
from pipeline.decoding import BatchDecoder, Classes, CodedFrame
from pipeline.encoder import Encoder, OperatingPoint
from pipeline.errors import EvaluationError
from pipeline.inference import Engine

VIEW_PIXELS = 224 * 224
BATCH = 32


@dataclass(frozen=True, slots=True)
class RatePoint:
    """One operating point over all views.

    Attributes:
        codec: name of the bundle or picture codec.
        depth / level16: None for picture codecs.
        rate: the codec's own name of its rate: level or quality.
        bpp: 8 x bytes of the bitstream with its header / (224 x 224), mean over the views.
        top1: share of correct classes; None without labels.
        agreement: share of views with the uncompressed classifier's class.
        predictions: int64 (N,), for paired comparisons.
        num_bytes: int64 (N,), bitstream length of each view.
    """

    codec: str
    depth: int | None
    level16: int | None
    rate: float
    bpp: float
    top1: float | None
    agreement: float
    predictions: NDArray[np.int64]
    num_bytes: NDArray[np.int64]


def make_point(
    codec: str,
    rate: float,
    predictions: NDArray[np.int64],
    num_bytes: NDArray[np.int64],
    reference: NDArray[np.int64],
    labels: NDArray[np.int64] | None,
    point: OperatingPoint | None = None,
) -> RatePoint:
    """Join predictions and sizes to a point."""
    return RatePoint(
        codec=codec,
        depth=point.depth if point else None,
        level16=point.level16 if point else None,
        rate=rate,
        bpp=float(8 * num_bytes.mean() / VIEW_PIXELS),
        top1=None if labels is None else float((predictions == labels).mean()),
        agreement=float((predictions == reference).mean()),
        predictions=predictions,
        num_bytes=num_bytes,
    )


def whole_levels(bundle: Bundle) -> list[OperatingPoint]:
    """Every depth at every whole level: what a bundle is measured at."""
    return [
        OperatingPoint(depth, level16)
        for depth in bundle.manifest.depths
        for level16 in bundle.manifest.levels16
        if level16 % 16 == 0
    ]


def classify_reference(engine: Engine, views: NDArray[np.uint8]) -> NDArray[np.int64]:
    """The uncompressed classifier's class (N,) of each view."""
    best = [engine.classify_views(views[start : start + BATCH]).argmax(axis=1) for start in range(0, len(views), BATCH)]
    return np.concatenate([np.asarray(rows, np.int64) for rows in best])


def measure_bundle(
    bundle: Bundle,
    encoder: Encoder,
    decoder: BatchDecoder,
    views: NDArray[np.uint8],
    reference: NDArray[np.int64],
    labels: NDArray[np.int64] | None,
    points: Iterable[OperatingPoint],
    progress: Callable[[RatePoint], None] = lambda point: None,
) -> list[RatePoint]:
    """Measure operating points, one after the other.

    Args:
        views: uint8 (N, 224, 224, 3) BGR.
        reference: the uncompressed classifier's classes (N,).
        progress: told every point when it is done.

    Raises:
        EvaluationError: a bitstream of our own does not decode.
    """
    results = []
    for point in points:
        bitstreams = [encoder.encode(view, point) for view in views]
        predictions = np.empty(len(views), np.int64)
        for start in range(0, len(views), BATCH):
            batch = [CodedFrame(bitstream) for bitstream in bitstreams[start : start + BATCH]]
            answers, _ = decoder.decode(batch)
            for row, answer in enumerate(answers):
                if not isinstance(answer, Classes):
                    raise EvaluationError(f"picture {start + row} does not decode at {point}: {answer}")
                predictions[start + row] = answer.indices[0]
        num_bytes = np.array([len(bitstream) for bitstream in bitstreams], np.int64)
        results.append(
            make_point(bundle.manifest.name, point.level16 / 16, predictions, num_bytes, reference, labels, point)
        )
        progress(results[-1])
    return results
