"""The view: what of a picture it shows, that it is close to the reference protocol, and what it refuses."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.view import EVALUATION_VIEW, Roi, ViewOptions, make_view, shown_rectangle

SIZES = ((1, 1), (1, 900), (223, 225), (360, 640), (449, 448), (1081, 97))
SIDES = (1, 2, 223, 224, 225, 447, 448, 449, 672, 895, 896, 897, 1080, 1920, 3000)


def _noise(height: int, width: int) -> NDArray[np.uint8]:
    return np.random.default_rng(7).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("fit", ["crop", "squash", "evaluation"])
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_view_of_any_size_is_224_square(fit: str, height: int, width: int) -> None:
    """Every picture, however odd its size, gives a view of its own in the one layout that encoders take."""
    picture = _noise(height, width)
    view = make_view(picture, ViewOptions(fit=fit))  # type: ignore[arg-type]
    assert view.shape == (224, 224, 3)
    assert view.dtype == np.uint8
    assert view.flags.c_contiguous
    assert view.flags.owndata
    assert not np.shares_memory(view, picture)


@pytest.mark.parametrize("fit", ["crop", "squash", "evaluation"])
def test_shown_rectangle_stays_inside_and_loses_under_half_a_percent(fit: str) -> None:
    """The trim to a multiple of k takes less than 1/224 of a side, whatever the side."""
    options = ViewOptions(fit=fit)  # type: ignore[arg-type]
    for width in SIDES:
        for height in SIDES:
            left, top, across, down = shown_rectangle(width, height, options)
            assert 0 <= left <= left + across <= width
            assert 0 <= top <= top + down <= height
            asked = (width, height) if fit == "squash" else (min(width, height),) * 2
            if fit == "evaluation":
                asked = (max(1, round(asked[0] * 0.875)),) * 2
            assert asked[0] * (1 - 1 / 224) < across <= asked[0]
            assert asked[1] * (1 - 1 / 224) < down <= asked[1]


def test_evaluation_view_of_256_square_is_its_centre_unchanged() -> None:
    """Short side 256, centre 224: of a picture of that size, no pixel is touched."""
    picture = _noise(256, 256)
    assert np.array_equal(make_view(picture, EVALUATION_VIEW), picture[16:240, 16:240])


def test_crop_shows_the_centre_square_only() -> None:
    picture = np.zeros((360, 640, 3), np.uint8)
    picture[:, 140:500] = 255
    assert make_view(picture).min() == 255


def test_squash_shows_every_corner() -> None:
    picture = np.zeros((720, 1280, 3), np.uint8)
    for value, (y, x) in enumerate(((0, 0), (0, 1), (1, 0), (1, 1)), start=1):
        picture[y * 360 : y * 360 + 360, x * 640 : x * 640 + 640] = value * 50
    view = make_view(picture, ViewOptions(fit="squash"))
    assert [int(view[y, x, 0]) for y in (5, 218) for x in (5, 218)] == [50, 100, 150, 200]


def test_roi_is_cut_before_the_fit() -> None:
    """A region in shares shows the same at every resolution."""
    for scale in (1, 2, 3):
        picture = np.zeros((300 * scale, 400 * scale, 3), np.uint8)
        picture[150 * scale :, 200 * scale :] = (10, 20, 30)
        view = make_view(picture, ViewOptions(roi=Roi(left=0.5, top=0.5, width=0.5, height=0.5)))
        assert np.array_equal(np.unique(view.reshape(-1, 3), axis=0), [[10, 20, 30]])


def test_halving_is_an_exact_average() -> None:
    """A 4 x 4 checkerboard of 0 and 200 becomes its mean, not one of its pixels."""
    picture = np.zeros((896, 896, 3), np.uint8)
    picture[::2, ::2] = picture[1::2, 1::2] = 200
    assert np.array_equal(np.unique(make_view(picture)), [100])


def test_strided_picture_gives_the_same_bytes() -> None:
    """A cut of a larger array (a region of a camera buffer) needs no copy by the caller."""
    whole = _noise(500, 700)
    cut = whole[20:480, 10:690]
    assert np.array_equal(make_view(cut), make_view(np.ascontiguousarray(cut)))


@pytest.mark.parametrize(
    "roi",
    [(0, 0, 0, 1), (-0.1, 0, 1, 1), (0.5, 0, 0.6, 1), (1, 0, 0.1, 1), (0, 0, 1, float("nan"))],
)
def test_roi_outside_the_picture_raises(roi: tuple[float, float, float, float]) -> None:
    with pytest.raises(ValueError, match="roi must lie inside"):
        Roi(*roi)


def test_unknown_fit_raises() -> None:
    with pytest.raises(ValueError, match="crop, squash, evaluation"):
        ViewOptions(fit="stretch")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "picture",
    [
        np.zeros((10, 10), np.uint8),
        np.zeros((10, 10, 4), np.uint8),
        np.zeros((10, 10, 3), np.float32),
        np.zeros((0, 10, 3), np.uint8),
    ],
)
def test_other_than_bgr_bytes_raises(picture: NDArray[np.uint8]) -> None:
    with pytest.raises(ValueError, match="picture must be uint8"):
        make_view(picture)


@pytest.mark.parametrize("name", ["astronaut.png", "camera.png", "hubble_deep_field.jpg", "retina.jpg"])
def test_evaluation_view_is_close_to_pillow(name: str) -> None:
    """On photographs of at least 512 px it differs from the antialiased reference by about a step of 255."""
    image = pytest.importorskip("PIL.Image")
    spec = importlib.util.find_spec("skimage")
    if spec is None or spec.origin is None:
        pytest.skip("scikit-image is not installed")
    picture = cv2.imread(str(Path(spec.origin).parent / "data" / name))
    height, width = picture.shape[:2]
    short = min(height, width)
    resized = image.fromarray(picture).resize(
        (round(width * 256 / short), round(height * 256 / short)), image.Resampling.BICUBIC
    )
    left, top = (resized.width - 224) // 2, (resized.height - 224) // 2
    reference = np.asarray(resized.crop((left, top, left + 224, top + 224)))
    difference = make_view(picture, EVALUATION_VIEW).astype(int) - reference
    assert np.abs(difference).mean() < 2.2
    # Each halving rounds halves up, an eighth of a step.
    assert abs(difference.mean()) < 0.5
