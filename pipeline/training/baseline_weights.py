"""From the checkpoint of a baseline to the weights file that is measured: families `picture` and `tuned`.

They are no bundles: nothing of them runs on a node.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
from torch import nn

from pipeline.codec.classifier import classifier_sha256
from pipeline.codec.lite0 import Lite0
from pipeline.codec.picture_network import PictureCoder, build_picture_network, build_tables
from pipeline.codec.weights_file import read_facts, write_weights
from pipeline.errors import BundleFormatError, TrainingError
from pipeline.inference import file_sha256
from pipeline.training.checkpoint import load_checkpoint
from pipeline.training.datasets import Pictures, use_views
from pipeline.training.picture_task import picture_shape_of
from pipeline.training.recipes import Recipe
from pipeline.training.run_folder import SHA256

WEIGHTS_FILE = "weights.safetensors"
BASELINE_FAMILIES = ("picture", "tuned")
TRIED_PICTURES = 4
"""Held-out ones, whose bytes must give what the network gives without bytes."""
MAX_PIXEL_ERROR = 1
"""Of rounding alone."""


def export_baseline(checkpoint: Path, pictures: Pictures, path: Path) -> None:
    """Write the averaged weights, of a picture codec with its tables, and the hash of the checkpoint.

    Raises:
        TrainingError: the checkpoint cannot be read, or is of another family.
        BundleFormatError: the codec does not bring back what it codes.
        BundleError: the file cannot be written.
        ModuleNotFoundError: compressai is not installed.
    """
    state = load_checkpoint(checkpoint)
    try:
        recipe = Recipe.model_validate(state["recipe"])
        facts = {"family": recipe.family, SHA256: file_sha256(checkpoint)}
        network: nn.Module
        if recipe.family == "picture":
            shape = picture_shape_of(recipe)
            facts |= {name: str(value) for name, value in asdict(shape).items()}
            network = build_picture_network(shape)
            network.load_state_dict(state["average"])
            build_tables(network)
        else:
            facts["classifier_sha256"] = classifier_sha256(recipe.classifier)
            network = Lite0()
            network.load_state_dict(state["average_classifier"])
    except (KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        text = " ".join(str(error).split())[:200]
        raise TrainingError(f"{checkpoint}: not a checkpoint of a baseline ({text})") from error
    if recipe.family == "picture":
        _try_coding(PictureCoder(network), pictures, recipe)
    write_weights(path, network.state_dict(), facts)


def _try_coding(coder: PictureCoder, pictures: Pictures, recipe: Recipe) -> None:
    for view in use_views(pictures.held_out, TRIED_PICTURES, recipe.data.side_px):
        decoded = coder.decode(coder.encode(view)).astype(np.int64)
        error = np.abs(decoded - coder.expected(view)).max()
        if error > MAX_PIXEL_ERROR:
            raise BundleFormatError(f"{recipe.name}: a picture comes out of its bytes with an error of {error}")


def is_of_checkpoint(path: Path, checkpoint: Path) -> bool:
    """Whether there is a whole weights file of the very weights in the checkpoint."""
    try:
        return read_facts(path).get(SHA256) == file_sha256(checkpoint)
    except BundleFormatError:
        return False
