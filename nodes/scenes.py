"""The pictures of `test:`: a slow pan and zoom over real photographs, with known classes.

Every `SHOT_S` seconds another photograph is shown; within a shot the camera travels from one random window to
another. Picture i depends on seed and i alone, so a restarted reader goes on where the last one stopped.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

from nodes.sources import TestOptions
from pipeline.errors import CaptureError

SIDE_PX: Final = 480
SHOT_S: Final = 3.0
# Least side of the window, as a share of the photograph's shorter side.
LEAST_WINDOW: Final = 0.75


@dataclass(frozen=True, slots=True)
class Photograph:
    """A photograph of the scikit-image wheel.

    Attributes:
        file: name in the wheel's data folder.
        label: ImageNet-1k class of what it shows, or None where none of the thousand fits or a
            plain EfficientNet-Lite0 does not name it in most views.
    """

    file: str
    label: int | None


# Labelled and unlabelled ones alternate, so that even a run of ten seconds has labelled frames.
# Plain Lite0 names both labelled ones rightly in 128 of 128 views each (8 seeds). It calls Chelsea, a tabby,
# an Egyptian cat, the motorcycle a moped and the rocket a missile nearly always: near, but not what they are.
PHOTOGRAPHS: Final = (
    Photograph("coffee.png", 967),  # espresso
    Photograph("chelsea.png", None),
    Photograph("camera.png", 872),  # tripod
    Photograph("motorcycle_left.png", None),
    Photograph("coffee.png", 967),
    Photograph("astronaut.png", None),
    Photograph("camera.png", 872),
    Photograph("rocket.jpg", None),
)


def render_picture(folder: Path, options: TestOptions, index: int) -> tuple[NDArray[np.uint8], int | None]:
    """Make picture `index` of a `test:` source.

    Args:
        folder: where the photographs are.
        options: seed and rate of the source.
        index: number of the picture, from 0.

    Returns:
        uint8 (480, 480, 3) BGR, owned by the caller, and its class index or None.

    Raises:
        CaptureError: a photograph is not in this version of scikit-image.
    """
    shot, progress = divmod(index / options.fps / SHOT_S, 1.0)
    # Seeds start at different photographs; each shot has a generator of its own, so that any picture can be
    # made without those before it.
    photograph = PHOTOGRAPHS[(int(shot) + options.seed) % len(PHOTOGRAPHS)]
    random = np.random.default_rng((options.seed, int(shot)))
    start, end = random.random(3), random.random(3)
    # Slow at both ends, as a hand or a motor moves.
    eased = progress * progress * (3.0 - 2.0 * progress)
    across, down, zoom = start + (end - start) * eased
    pixels = _load_photograph(folder / photograph.file)
    height, width = pixels.shape[:2]
    side = min(height, width) * (1.0 - (1.0 - LEAST_WINDOW) * zoom)
    scale = side / SIDE_PX
    # To the photograph from the picture: sub-pixel steps, so that a slow pan does not jerk.
    transform = np.array([[scale, 0.0, across * (width - side)], [0.0, scale, down * (height - side)]])
    picture = cv2.warpAffine(
        pixels,
        transform,
        (SIDE_PX, SIDE_PX),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )
    return picture, photograph.label  # type: ignore[return-value]


@lru_cache(maxsize=len(PHOTOGRAPHS))
def _load_photograph(path: Path) -> NDArray[np.uint8]:
    pixels = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if pixels is None:
        raise CaptureError("open_failed", f"test: this version of scikit-image has no {path.name}")
    return pixels  # type: ignore[return-value]
