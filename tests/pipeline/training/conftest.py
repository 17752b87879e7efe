"""A folder of small photographs and a recipe that trains in seconds."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pipeline.codec.lite0 import Lite0
from pipeline.training.datasets import HELD_OUT_ONE_IN, CropSampler, Pictures, load_pictures
from pipeline.training.families import start_training
from pipeline.training.loop import Training
from pipeline.training.recipes import Recipe
from pipeline.training.teacher import Teacher, TorchEngine, normalise

NUM_PICTURES = 24


@pytest.fixture(scope="session")
def picture_folder(photographs: dict[str, NDArray[np.uint8]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Windows of photographs, 96 x 128, as PNG; four of them are held out by their names."""
    folder = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(11)
    names = [f"{number:03}.png" for number in range(200)]
    is_held_out = {name: zlib.crc32(name.encode()) % HELD_OUT_ONE_IN == 0 for name in names}
    chosen = [name for name in names if is_held_out[name]][:4]
    chosen += [name for name in names if not is_held_out[name]][: NUM_PICTURES - 4]
    for index, name in enumerate(sorted(chosen)):
        picture = sorted(photographs.items())[index % len(photographs)][1]
        top, left = (
            int(random.integers(extent - size)) for extent, size in zip(picture.shape, (96, 128), strict=False)
        )
        cv2.imwrite(str(folder / name), picture[top : top + 96, left : left + 128])
    return folder


@pytest.fixture(scope="session")
def pictures(picture_folder: Path) -> Pictures:
    """The same, decoded."""
    return load_pictures((str(picture_folder),))


@pytest.fixture
def recipe_fields(picture_folder: Path) -> dict[str, Any]:
    """A recipe of twelve steps at 64 steps a second, as YAML would give it."""
    return {
        "name": "tiny",
        "minutes": 12 / 64 / 60,
        "cut": "stride8",
        "start": "random",
        "seed": 3,
        "network": {
            "depths": [0, 1],
            "channels": 8,
            "expansion": 1,
            "kernel": 3,
            "latent_channels": 4,
            "decoder_channels": 8,
            "decoder_blocks": 1,
            "decoder_expansion": 1,
            "decoder_kernel": 3,
        },
        "rates": {"target_bpp": [0.1, 0.4], "initial_lmbda": [2.0, 0.5], "adaptation": 0.01},
        "loss": {"warmup_share": 0.25, "ramp_share": 0.25},
        "crops": [{"until": 0.5, "size_px": 32, "batch": 4}, {"until": 1.0, "size_px": 64, "batch": 2}],
        "data": {"folders": [str(picture_folder)], "side_px": 96},
        "optimiser": {"warmup_steps": 2},
    }


@pytest.fixture
def recipe(recipe_fields: dict[str, Any]) -> Recipe:
    """The same, checked."""
    return Recipe.model_validate(recipe_fields)


@pytest.fixture(scope="session")
def teacher(classifier: Lite0, pictures: Pictures) -> Teacher:
    """The uncompressed classifier on torch."""
    recipe = Recipe.model_validate({"name": "any", "data": {"folders": ["none"], "side_px": 96}})
    sample = CropSampler(pictures.training, recipe.data, 1).batch(64, 8)
    return Teacher(TorchEngine(classifier, "stride8"), normalise(sample, torch.device("cpu")), "stride8")


@pytest.fixture
def make_training(recipe: Recipe, classifier: Lite0, teacher: Teacher, pictures: Pictures) -> Callable[[], Training]:
    """Runs that have not begun, all alike."""
    return lambda: start_training(recipe, classifier, teacher, pictures, "cpu")
