"""Times of many systems from one interleaved run: a slow moment of the machine hits all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

CAMERA_SHAPE = (720, 1280, 3)
WARM_UP_ROUNDS = 2


@dataclass(frozen=True, slots=True)
class Times:
    """Of one system, in milliseconds a picture."""

    median_ms: float
    p90_ms: float


def camera_picture(view: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A 1280 x 720 BGR array whose centre square shows a view (224, 224, 3): content as it is met in use."""
    height, width = CAMERA_SHAPE[:2]
    picture = cv2.resize(view, (height, height), interpolation=cv2.INTER_LINEAR)
    beside = (width - height) // 2
    return np.asarray(cv2.copyMakeBorder(picture, 0, 0, beside, beside, cv2.BORDER_REFLECT_101), np.uint8)


def time_interleaved(
    systems: Mapping[str, Callable[[NDArray[np.uint8]], object]],
    pictures: NDArray[np.uint8],
    clock: Callable[[], int] = time.perf_counter_ns,
) -> dict[str, Times]:
    """Time every system once on each picture (N, H, W, 3), in turn; the first pictures warm up beforehand."""
    samples: dict[str, list[int]] = {name: [] for name in systems}
    for number, picture in enumerate([*pictures[:WARM_UP_ROUNDS], *pictures]):
        for name, system in systems.items():
            begun = clock()
            system(picture)
            if number >= min(WARM_UP_ROUNDS, len(pictures)):
                samples[name].append(clock() - begun)
    return {
        name: Times(float(np.median(values)) / 1e6, float(np.percentile(values, 90)) / 1e6)
        for name, values in samples.items()
    }
