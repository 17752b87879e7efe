"""What each stage costs on this machine, as ratios from one interleaved run.

Every stage is timed once a round, in turn, so that a slow moment of the machine hits all of them alike. Node stages
start from a 1280 x 720 BGR array; `local_classifier` is the whole classifier on the node from the same array: what a
node would spend if it sent no features at all.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.bundle import Bundle
from pipeline.decoding import BatchDecoder, CodedFrame
from pipeline.encoder import Encoder, OperatingPoint
from pipeline.entropy.rans import warm_up
from pipeline.inference import EngineName, OnnxRuntimeEngine, Precision, open_engine, read_vectors
from pipeline.view import make_view

CAMERA_SHAPE = (720, 1280, 3)
WARM_UP_ROUNDS = 3
CLOUD_BATCH = 32
YARDSTICK = "local_classifier"


@dataclass(frozen=True, slots=True)
class StageTime:
    """One stage over all rounds.

    Attributes:
        median_ms / p90_ms: for a frame, also where a batch was timed.
        ratio: median over that of `local_classifier` in the same run.
    """

    name: str
    median_ms: float
    p90_ms: float
    ratio: float


def camera_picture(seed: int = 0) -> NDArray[np.uint8]:
    """A made-up 1280 x 720 picture with edges and smooth parts, so that nothing needs to be installed."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (24, 40, 3)).astype(np.uint8)
    picture = np.asarray(cv2.resize(coarse, CAMERA_SHAPE[1::-1], interpolation=cv2.INTER_CUBIC), np.uint8)
    for left, top in random.integers(0, 600, (12, 2)).tolist():
        colour = tuple(random.integers(0, 256, 3).tolist())
        cv2.rectangle(picture, (left, top), (left + 180, top + 110), colour, thickness=3)
    return picture


def build_stages(
    bundle: Bundle, graphs: Path, engine: EngineName, precision: Precision, threads: int, level16: int
) -> dict[str, Callable[[], object]]:
    """The stages by name; each call does a stage once.

    Args:
        graphs: the cloud's graphs of the bundle.
        threads: of the encoder and of `local_classifier`, which run in the same engine, ONNX Runtime; and of the
            cloud's stages, which run in `engine`.
    """
    picture = camera_picture()
    view = make_view(picture)
    encoder = Encoder(bundle, threads)
    local = OnnxRuntimeEngine(graphs, threads, "fp32")
    cloud = open_engine(graphs, engine, threads, precision)
    decoder = BatchDecoder(bundle, cloud, read_vectors(graphs))
    warm_up(bundle.tables.values())
    stages: dict[str, Callable[[], object]] = {
        YARDSTICK: lambda: local.classify_views(make_view(picture)[None]),
        "view": lambda: make_view(picture),
    }
    for depth in bundle.manifest.depths:
        point = OperatingPoint(depth, level16)
        symbols = encoder.symbols(view, point)
        stages[f"node depth {depth}"] = partial(_encode_picture, encoder, picture, point)
        stages[f"  network {depth}"] = partial(encoder.symbols, view, point)
        stages[f"  entropy coding {depth}"] = partial(encoder.pack, symbols, point)
    deepest = OperatingPoint(max(bundle.manifest.depths), level16)
    batch = [CodedFrame(encoder.encode(view, deepest))] * CLOUD_BATCH
    views = np.repeat(view[None], CLOUD_BATCH, axis=0)
    stages[f"cloud, whole (batch {CLOUD_BATCH})"] = lambda: decoder.decode(batch)
    stages[f"cloud, uncompressed classifier (batch {CLOUD_BATCH})"] = lambda: cloud.classify_views(views)
    return stages


def _encode_picture(encoder: Encoder, picture: NDArray[np.uint8], point: OperatingPoint) -> bytes:
    return encoder.encode(make_view(picture), point)


def time_stages(
    stages: Mapping[str, Callable[[], object]], rounds: int, clock: Callable[[], int] = time.perf_counter_ns
) -> list[StageTime]:
    """Time every stage `rounds` times, in turn."""
    samples: dict[str, list[int]] = {name: [] for name in stages}
    for number in range(WARM_UP_ROUNDS + rounds):
        for name, stage in stages.items():
            begun = clock()
            stage()
            if number >= WARM_UP_ROUNDS:
                samples[name].append(clock() - begun)
    frames = {name: CLOUD_BATCH if name.startswith("cloud") else 1 for name in stages}
    medians = {name: float(np.median(times)) / frames[name] / 1e6 for name, times in samples.items()}
    return [
        StageTime(
            name,
            medians[name],
            float(np.percentile(times, 90)) / frames[name] / 1e6,
            medians[name] / medians[YARDSTICK],
        )
        for name, times in samples.items()
    ]
