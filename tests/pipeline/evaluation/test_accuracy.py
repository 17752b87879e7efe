"""Rate and accuracy: numbers that can be worked out by hand, and real bytes through both ends."""

from __future__ import annotations

import json

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.bundle import Bundle
from pipeline.decoding import BatchDecoder, Classes
from pipeline.encoder import Encoder, OperatingPoint
from pipeline.errors import CorruptBitstreamError, EvaluationError
from pipeline.evaluation.accuracy import (
    BATCH,
    RatePoint,
    classify_reference,
    make_point,
    measure_bundle,
    whole_levels,
)
from pipeline.evaluation.report import as_json, as_markdown, share_of_top1
from pipeline.inference import Engine, Vectors

LABELS = np.array([1, 2, 3, 4], np.int64)
REFERENCE = np.array([1, 2, 3, 9], np.int64)
PREDICTIONS = np.array([1, 2, 7, 9], np.int64)
NUM_BYTES = np.array([1000, 2000, 3000, 2000], np.int64)


def by_hand(labels: NDArray[np.int64] | None = LABELS) -> RatePoint:
    point = OperatingPoint(4, 24)
    return make_point("ours", 1.5, PREDICTIONS, NUM_BYTES, REFERENCE, labels, point)


def test_point_by_hand() -> None:
    point = by_hand()
    assert point.bpp == pytest.approx(8 * 2000 / (224 * 224))
    assert point.top1 == 0.5  # the first two are right
    assert point.agreement == 0.75  # the last one is wrong, as it is uncompressed
    assert (point.depth, point.level16, point.rate) == (4, 24, 1.5)


def test_share_of_top1_is_over_the_uncompressed_classifiers() -> None:
    assert share_of_top1(by_hand(), 0.75) == pytest.approx(2 / 3)
    assert share_of_top1(by_hand(None), 0.75) is None
    assert share_of_top1(by_hand(), 0.0) is None
    assert by_hand(None).top1 is None


def test_json_of_a_measurement_has_the_fixed_keys() -> None:
    codec = make_point("jpeg", 10.0, PREDICTIONS, NUM_BYTES, REFERENCE, LABELS)
    document = json.loads(json.dumps(as_json([by_hand(), codec], 4, 0.75)))
    assert (document["images"], document["reference_top1"]) == (4, 0.75)
    ours, jpeg = document["points"]
    expected = {"codec": "ours", "depth": 4, "rate": 1.5, "bpp": 0.31888, "top1": 0.5, "agreement": 0.75}
    assert {key: ours[key] for key in expected} == expected
    assert (jpeg["codec"], jpeg["depth"], jpeg["rate"]) == ("jpeg", None, 10)


def test_table_has_a_row_a_point() -> None:
    rows = as_markdown([by_hand(), by_hand(None)], 0.75).splitlines()
    assert rows[2] == "| ours | 4 | 1.5 | 0.319 | 2000 | 0.500 | 0.667 | 0.750 |"
    assert rows[3] == "| ours | 4 | 1.5 | 0.319 | 2000 |  |  | 0.750 |"


def test_whole_levels_are_every_depth_at_every_whole_level(default_bundle: Bundle) -> None:
    points = whole_levels(default_bundle)
    assert len(points) == len(set(points)) >= 16
    assert {point.depth for point in points} == set(default_bundle.manifest.depths)
    assert all(point.level16 % 16 == 0 and (point.depth, point.level16) in default_bundle.tables for point in points)


def test_measured_point_is_that_of_the_stream(
    default_bundle: Bundle, engine: Engine, vectors: Vectors, many_views: NDArray[np.uint8]
) -> None:
    """More views than a batch, so that their order counts: every answer belongs to its own view."""
    views = many_views[: BATCH + 6]
    encoder, decoder = Encoder(default_bundle), BatchDecoder(default_bundle, engine, vectors)
    points = [OperatingPoint(0, 0), OperatingPoint(max(default_bundle.manifest.depths), 16)]
    reference = classify_reference(engine, views)
    assert reference.dtype == np.int64
    told: list[RatePoint] = []
    measured = measure_bundle(default_bundle, encoder, decoder, views, reference, None, points, told.append)
    assert told == measured
    for point, found in zip(points, measured, strict=True):
        bitstreams = [encoder.encode(view, point) for view in views]
        assert found.num_bytes.tolist() == [len(bitstream) for bitstream in bitstreams]
        for row in (0, BATCH - 1, BATCH, BATCH + 5):
            symbols = encoder.symbols(views[row], point)[None]
            logits = engine.classify_symbols(symbols, *vectors.gather([(point.depth, point.level16)]))
            assert found.predictions[row] == logits[0].argmax()
        assert found.agreement == pytest.approx((found.predictions == reference).mean())


def test_own_bitstream_that_does_not_decode_stops_the_measurement(
    default_bundle: Bundle, views: NDArray[np.uint8]
) -> None:
    """A picture left out silently would make the numbers better."""

    class Failing:
        def decode(self, frames: list[object]) -> tuple[list[Classes | CorruptBitstreamError], None]:
            good = Classes((1,), (1.0,), None)
            return [good, CorruptBitstreamError("damaged"), *[good] * (len(frames) - 2)], None

    with pytest.raises(EvaluationError, match="picture 1 does not decode"):
        measure_bundle(
            default_bundle,
            Encoder(default_bundle),
            Failing(),  # type: ignore[arg-type]
            views[:3],
            np.zeros(3, np.int64),
            None,
            [OperatingPoint(0, 0)],
        )
