"""Picture codecs beside ours: same views, same classifier, their real bytes."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.evaluation.accuracy import RatePoint, classify_reference, make_point
from pipeline.evaluation.baselines import measure_picture_codec, picture_codecs
from pipeline.evaluation.report import plot
from pipeline.inference import Engine


@pytest.fixture(params=["pillow", "opencv"])
def _library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "pillow":
        pytest.importorskip("PIL")
    else:
        monkeypatch.setitem(sys.modules, "PIL", None)


@pytest.mark.usefixtures("_library")
def test_codecs_bring_the_picture_back_in_its_colours(photographs: dict[str, NDArray[np.uint8]]) -> None:
    """A swap of red and blue would cost accuracy and look like compression."""
    view = np.ascontiguousarray(photographs["astronaut.png"][:224, :224])
    codecs = {codec.name: codec for codec in picture_codecs()}
    assert {"jpeg", "webp"} <= set(codecs)
    for codec in codecs.values():
        decoded = codec.decode(codec.encode(view, max(codec.qualities)))
        assert decoded.shape == view.shape
        error = np.abs(decoded.astype(int) - view).mean()
        swapped = np.abs(decoded[:, :, ::-1].astype(int) - view).mean()
        assert error < 6
        assert swapped > 2 * error


@pytest.mark.usefixtures("_library")
def test_higher_quality_takes_more_bytes(photographs: dict[str, NDArray[np.uint8]]) -> None:
    view = np.ascontiguousarray(photographs["chelsea.png"][:224, :224])
    for codec in picture_codecs():
        sizes = [len(codec.encode(view, quality)) for quality in codec.qualities]
        assert sizes == sorted(sizes)
        assert sizes[0] < sizes[-1]


def test_only_the_named_codecs_are_measured() -> None:
    assert [codec.name for codec in picture_codecs(("webp",))] == ["webp"]


def test_measured_codec_is_over_its_own_bytes(engine: Engine, views: NDArray[np.uint8]) -> None:
    codec = next(picture_codecs(("jpeg",)))
    chosen = views[:4]
    reference = classify_reference(engine, chosen)
    point = measure_picture_codec(codec, 50, engine, chosen, reference, reference)
    sizes = [len(codec.encode(view, 50)) for view in chosen]
    assert point.num_bytes.tolist() == sizes
    assert point.bpp == pytest.approx(8 * np.mean(sizes) / 224**2)
    assert (point.codec, point.depth, point.rate) == ("jpeg", None, 50)
    assert point.top1 == point.agreement
    decoded = np.stack([codec.decode(codec.encode(view, 50)) for view in chosen])
    assert point.predictions.tolist() == classify_reference(engine, decoded).tolist()


def test_plot_is_a_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    ones = np.ones(2, np.int64)
    points: list[RatePoint] = [make_point("jpeg", quality, ones, 1000 * ones, ones, None) for quality in (5, 10)]
    plot(points, tmp_path / "plot.png", "made up")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
