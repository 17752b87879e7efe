"""From a checkpoint to the networks in it, and from those to a bundle that is not measured yet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.bundle import Bundle
from pipeline.codec.classifier import Classifier, classifier_sha256, load_classifier
from pipeline.codec.export import BundleFacts, export_bundle
from pipeline.codec.nested import NestedCodec
from pipeline.codec.paper import PaperCodec
from pipeline.codec.paper_bundle import export_paper_bundle
from pipeline.errors import TrainingError
from pipeline.inference import file_sha256
from pipeline.training.checkpoint import load_checkpoint
from pipeline.training.datasets import Pictures, use_views
from pipeline.training.dead_zone import choose_dead_zones, try_dead_zones
from pipeline.training.nested_task import build_codec
from pipeline.training.paper_task import build_paper, paper_shape_of
from pipeline.training.recipes import Recipe
from pipeline.training.run_folder import SHA256
from pipeline.training.teacher import normalise

FITTED_PICTURES = 750
"""About 600,000 symbols for each channel of a table; twice as many made held-out pictures 0.01 % smaller."""
DEAD_ZONE_PICTURES = 96
"""Of the held-out ones, to choose a rounding by; 40 passes of the classifier over each."""


@dataclass(frozen=True, slots=True)
class Trained:
    """What a checkpoint holds: the recipe and the averaged networks, on the CPU.

    Attributes:
        weights: the uncompressed classifier's state dict; None for that of its package.
        joint: the classifier that was trained with a codec of the paper's family, if one was.
    """

    recipe: Recipe
    codec: NestedCodec | PaperCodec
    weights: Path | None
    joint: Classifier | None
    steps: int
    minutes: float
    checkpoint_sha256: str


def read_trained(checkpoint: Path, weights: Path | None = None) -> Trained:
    """Recipe and networks of a checkpoint.

    Args:
        weights: the classifier's state dict, instead of the recipe's.

    Raises:
        BundleMismatchError: the classifier's weights are not there.
        TrainingError: it cannot be read, or is none of this program.
    """
    state = load_checkpoint(checkpoint)
    try:
        recipe = Recipe.model_validate(state["recipe"])
        if recipe.family in ("picture", "tuned"):
            raise TrainingError(f"{checkpoint}: family {recipe.family} is measured by rac eval --all, it has no bundle")
        if weights is None and recipe.classifier_weights is not None:
            weights = Path(recipe.classifier_weights)
        codec = build_paper(recipe) if recipe.family == "paper" else build_codec(recipe)
        codec.load_state_dict(state["average"])
        joint = None
        if "average_classifier" in state:
            joint = load_classifier(recipe.classifier, weights)
            joint.load_state_dict(state["average_classifier"])
        steps, minutes = int(state["step"]), round(float(state["elapsed_s"]) / 60, 1)
        return Trained(recipe, codec.eval(), weights, joint, steps, minutes, file_sha256(checkpoint))
    except (KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        text = " ".join(str(error).split())[:200]
        raise TrainingError(f"{checkpoint}: not a checkpoint of this program ({text})") from error


def export_trained(
    trained: Trained,
    pictures: Pictures,
    folder: Path,
    name: str,
    progress: Callable[[str], None] = lambda text: None,
) -> Bundle:
    """A bundle without measurements, its tables fitted to training pictures as they are met in use.

    Raises:
        BundleFormatError: it does not code what it should, or the folder holds something else.
        TrainingError: the prior has diverged.
    """
    recipe = trained.recipe
    random = np.random.default_rng(recipe.seed)
    chosen = random.choice(len(pictures.training), min(FITTED_PICTURES, len(pictures.training)), replace=False)
    found = [picture for index in chosen if (picture := pictures.training[index]).size]
    views = use_views(found, side_px=recipe.data.side_px)
    facts = BundleFacts(
        name=name,
        classifier=recipe.classifier,
        classifier_sha256=classifier_sha256(recipe.classifier, trained.weights),
        cut=recipe.cut,
        training={
            "recipe": recipe.name,
            "steps": trained.steps,
            "minutes": trained.minutes,
            "pictures": len(pictures.training),
            "torch": str(torch.__version__),
            SHA256: trained.checkpoint_sha256,
        },
    )
    if isinstance(trained.codec, PaperCodec):
        shape = paper_shape_of(recipe)
        return export_paper_bundle(trained.codec, shape, facts, views, folder, trained.joint, progress)
    held_out = use_views(pictures.held_out, DEAD_ZONE_PICTURES, recipe.data.side_px)
    dead_zones = _fit_dead_zones(trained.codec, trained, held_out, progress)
    return export_bundle(trained.codec, facts, views, folder, progress, dead_zones)


def _fit_dead_zones(
    codec: NestedCodec, trained: Trained, views: NDArray[np.uint8], progress: Callable[[str], None]
) -> list[float]:
    """A dead zone for each whole level, with what it brings."""
    recipe = trained.recipe
    x = normalise(views[:, :, :, ::-1].copy(), torch.device("cpu"), recipe.classifier)
    fits = try_dead_zones(codec, load_classifier(recipe.classifier, trained.weights), recipe.cut, x)
    chosen = choose_dead_zones(fits)
    for fit in fits:
        if fit.dead_zone in (0.0, chosen[fit.level]):
            progress(f"level {fit.level}, dead zone {fit.dead_zone:g}: {fit.bpp:.3f} bpp, KL {fit.divergence:.3f}")
    return chosen
