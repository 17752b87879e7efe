"""Picture codecs beside ours: same views, same classifier, their real bytes."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.errors import EvaluationError
from pipeline.evaluation.accuracy import RatePoint, classify_reference, make_point
from pipeline.evaluation.baselines import MissingCodec, find_codecs, measure_picture_codec, picture_codecs
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
        decoded = codec.decode(codec.encode(view, codec.qualities[-1]))
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


def test_the_papers_speed_settings_are_codecs_of_their_own() -> None:
    pytest.importorskip("PIL")
    pytest.importorskip("av")
    names = [codec.name for codec in find_codecs(all_speeds=True)]
    assert {f"webp m{method}" for method in range(7)} < set(names)
    assert {"hevc ultrafast", "hevc fast", "hevc veryslow"} < set(names)
    assert names.count("jpeg") == 1


def test_a_slower_setting_of_hevc_takes_fewer_bits(photographs: dict[str, NDArray[np.uint8]]) -> None:
    pytest.importorskip("av")
    view = np.ascontiguousarray(photographs["astronaut.png"][:224, :224])
    codecs = {codec.name: codec for codec in picture_codecs(("hevc",), all_speeds=True)}
    fast, slow = codecs["hevc ultrafast"].encode(view, 30), codecs["hevc veryslow"].encode(view, 30)
    assert len(slow) < len(fast)
    assert fast.startswith(b"\x00\x00")  # an elementary stream: parameter sets and picture, no container


def test_a_codec_that_is_not_installed_is_said_so_and_the_rest_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    features = pytest.importorskip("PIL.features")
    monkeypatch.setattr(features, "check", lambda name: name != "avif")
    monkeypatch.setitem(sys.modules, "av", None)
    found = {codec.name: codec for codec in find_codecs()}
    assert set(found) == {"jpeg", "webp", "avif", "hevc"}
    missing = {name: codec.reason for name, codec in found.items() if isinstance(codec, MissingCodec)}
    assert set(missing) == {"avif", "hevc"}
    assert all(reason.startswith("not installed") for reason in missing.values())
    assert "bpgenc" in missing["hevc"]


BPGENC = """#!/bin/sh
# As bpgenc -q QP -f 444 -m LEVEL -o OUT IN: a coded file that is the picture itself, behind its settings.
[ "$1 $3 $4 $5 $7" = "-q -f 444 -m -o" ] || { echo "usage: bpgenc" >&2; exit 1; }
cp "$9" "$8"
"""
BPGDEC = """#!/bin/sh
[ "$1" = "-o" ] || exit 1
cp "$3" "$2"
"""


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on PATH with programs that take BPG's arguments."""
    for name, text in (("bpgenc", BPGENC), ("bpgdec", BPGDEC)):
        (tmp_path / name).write_text(text, encoding="utf-8")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    return tmp_path


@pytest.mark.usefixtures("programs")
def test_bpg_stands_in_the_place_of_hevc_where_its_programs_are(photographs: dict[str, NDArray[np.uint8]]) -> None:
    view = np.ascontiguousarray(photographs["astronaut.png"][:224, :224])
    (codec,) = picture_codecs(("hevc",))
    assert codec.name == "bpg"
    assert [each.name for each in picture_codecs(("hevc",), all_speeds=True)] == ["bpg m4", "bpg m0", "bpg m8"]
    content = codec.encode(view, 30)
    assert content.startswith(b"\x89PNG")
    np.testing.assert_array_equal(codec.decode(content), view)


def test_a_program_that_fails_is_named(programs: Path, photographs: dict[str, NDArray[np.uint8]]) -> None:
    (programs / "bpgenc").write_text("#!/bin/sh\necho bad picture >&2\nexit 3\n", encoding="utf-8")
    (codec,) = picture_codecs(("hevc",))
    with pytest.raises(EvaluationError, match="bpgenc ended with code 3: bad picture"):
        codec.encode(np.ascontiguousarray(photographs["astronaut.png"][:224, :224]), 30)


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
