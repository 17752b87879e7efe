"""Timing every encoder depth at start: what a frame costs on this machine, now."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.bundle import Bundle
from pipeline.encoder import Encoder, OperatingPoint
from pipeline.frames import VIEW_SIDE_PX, Frame

WARM_UP_RUNS = 2
"""The first runs of a graph allocate and would spoil the timing."""
RUNS = 15


@dataclass(frozen=True, slots=True)
class DepthCost:
    """Time from camera array to bytes at one depth, in nanoseconds."""

    depth: int
    median_ns: int
    p90_ns: int


@dataclass(frozen=True, slots=True)
class NodeStart:
    """What a node knows of itself when it begins to stream.

    Attributes:
        is_made_up: no camera gave a frame in time, and the depths were timed on a made-up one.
        metrics_url: where its metrics are.
    """

    bundle: Bundle
    level16: int
    costs: tuple[DepthCost, ...]
    is_made_up: bool
    budget_ns: int
    depth: int
    metrics_url: str


def measure_depths(
    encoder: Encoder, frame: Frame, level16: int, clock: Callable[[], int] = time.perf_counter_ns
) -> list[DepthCost]:
    """Time every exit on one frame, the exits in turn so that a slow moment hits all of them."""
    points = [OperatingPoint(depth, level16) for depth in encoder.bundle.manifest.depths]
    samples: dict[int, list[int]] = {point.depth: [] for point in points}
    for run in range(WARM_UP_RUNS + RUNS):
        for point in points:
            begun = clock()
            encoder.encode(frame.view, point)
            if run >= WARM_UP_RUNS:
                samples[point.depth].append(clock() - begun + frame.view_ns)
    return [
        DepthCost(depth, int(np.percentile(times, 50)), int(np.percentile(times, 90)))
        for depth, times in samples.items()
    ]


def made_up_frame() -> Frame:
    """A frame with picture-like content, for machines whose cameras gave none yet."""
    random = np.random.default_rng(0)
    coarse = random.integers(0, 256, (14, 14, 3)).astype(np.uint8)
    smooth: NDArray[np.uint8] = np.asarray(
        cv2.resize(coarse, (VIEW_SIDE_PX, VIEW_SIDE_PX), interpolation=cv2.INTER_CUBIC), np.uint8
    )
    return Frame("", 0, 0, smooth, view_ns=0)
