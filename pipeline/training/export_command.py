"""`rac export CHECKPOINT`: from a training run's checkpoint to a sealed bundle with its measured table."""

from __future__ import annotations

import argparse
import os
import re
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.bundle import BUNDLE_NAME, Bundle, Measured, MeasuredPoint, check_target
from pipeline.codec.cache import prepare_graphs
from pipeline.codec.classifier import classifier_sha256, load_classifier
from pipeline.codec.export import BundleFacts, export_bundle, seal_measured
from pipeline.codec.nested import NestedCodec
from pipeline.decoding import BatchDecoder
from pipeline.encoder import Encoder
from pipeline.errors import ConfigError, TrainingError
from pipeline.evaluation.accuracy import classify_reference, measure_bundle, whole_levels
from pipeline.evaluation.pictures import load_labelled_views
from pipeline.inference import choose_engine, open_engine, read_vectors
from pipeline.training.checkpoint import load_checkpoint
from pipeline.training.datasets import load_pictures, use_views
from pipeline.training.dead_zone import choose_dead_zones, try_dead_zones
from pipeline.training.nested_task import build_codec
from pipeline.training.recipes import Recipe
from pipeline.training.teacher import normalise

FITTED_PICTURES = 750
"""About 600,000 symbols for each channel of a table; twice as many made held-out pictures 0.01 % smaller."""
DEAD_ZONE_PICTURES = 96
"""Of the held-out ones, to choose a rounding by; 40 passes of the classifier over each."""
MEASURED_PICTURES = 500
"""Of the held-out ones: every one of them costs 25 points x 7 ms, and a share of 500 is known to 2 points."""


def run(args: argparse.Namespace) -> int:
    """Entry of the sub-command; returns the exit code.

    Args:
        args: checkpoint, out, name, measure, labels.
    """
    # What can be wrong is looked at first: the work takes minutes.
    folder = Path(args.out)
    check_target(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainingError(f"{folder}: cannot be made: {error.strerror}") from error
    if not re.fullmatch(BUNDLE_NAME, args.name):
        raise ConfigError("command line", "--name", "must be 1 to 64 letters, digits, dots, dashes or underscores")
    state = load_checkpoint(Path(args.checkpoint))
    try:
        recipe = Recipe.model_validate(state["recipe"])
        if recipe.family != "nested":
            raise TrainingError(f"{args.checkpoint}: family {recipe.family} cannot be exported yet, only nested can")
        steps, minutes = int(state["step"]), round(float(state["elapsed_s"]) / 60, 1)
        codec = build_codec(recipe)
        codec.load_state_dict(state["average"])
    except (KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
        text = " ".join(str(error).split())[:200]
        raise TrainingError(f"{args.checkpoint}: not a checkpoint of this program ({text})") from error
    labelled = None
    if args.measure:
        labelled = load_labelled_views(Path(args.measure), Path(args.labels) if args.labels else None)
    pictures = load_pictures(recipe.data.folders)
    random = np.random.default_rng(recipe.seed)
    chosen = random.choice(len(pictures.training), min(FITTED_PICTURES, len(pictures.training)), replace=False)
    side_px = recipe.data.side_px
    views = use_views([pictures.training[index] for index in chosen], side_px=side_px)
    dead_zones = _fit_dead_zones(codec.eval(), recipe, use_views(pictures.held_out, DEAD_ZONE_PICTURES, side_px))
    facts = BundleFacts(
        name=args.name,
        classifier=recipe.classifier,
        classifier_sha256=classifier_sha256(recipe.classifier),
        cut=recipe.cut,
        training={
            "recipe": recipe.name,
            "steps": steps,
            "minutes": minutes,
            "pictures": len(pictures.training),
            "torch": str(torch.__version__),
        },
    )
    bundle = export_bundle(codec, facts, views, folder, lambda text: print(text, file=sys.stderr), dead_zones)
    if labelled is None:
        held_out = use_views(pictures.held_out, MEASURED_PICTURES, side_px)
        measured = _measure(bundle, held_out, None, "held-out training pictures")
    else:
        measured = _measure(bundle, labelled.views, labelled.labels, Path(args.measure).name)
    bundle = seal_measured(bundle, measured, folder)
    size_bytes = sum(len(content) for content in bundle.files.values())
    print(f"{folder}: bundle {bundle.manifest.name} {bundle.short_id}, {size_bytes / 1e6:.2f} MB")
    return 0


def _fit_dead_zones(codec: NestedCodec, recipe: Recipe, views: NDArray[np.uint8]) -> list[float]:
    """A dead zone for each whole level, with what it brings."""
    x = normalise(views[:, :, :, ::-1].copy(), torch.device("cpu"))
    fits = try_dead_zones(codec, load_classifier(recipe.classifier), recipe.cut, x)
    chosen = choose_dead_zones(fits)
    for fit in fits:
        if fit.dead_zone in (0.0, chosen[fit.level]):
            print(
                f"level {fit.level}, dead zone {fit.dead_zone:g}: {fit.bpp:.3f} bpp, KL {fit.divergence:.3f}",
                file=sys.stderr,
            )
    return chosen


def _measure(bundle: Bundle, views: NDArray[np.uint8], labels: NDArray[np.int64] | None, source: str) -> Measured:
    """Every depth at every whole level."""
    threads = os.cpu_count() or 1
    # Not in the user's cache: the bundle gets another id when it is sealed with what is measured here.
    with TemporaryDirectory() as root:
        graphs = prepare_graphs(bundle, Path(root))
        engine = open_engine(graphs, choose_engine("auto"), threads, "fp32")
        decoder = BatchDecoder(bundle, engine, read_vectors(graphs))
        reference = classify_reference(engine, views)
        points = measure_bundle(
            bundle,
            Encoder(bundle, threads),
            decoder,
            views,
            reference,
            labels,
            whole_levels(bundle),
            lambda point: print(
                f"depth {point.depth} level {point.rate:g}: {point.bpp:.3f} bpp, agreement {point.agreement:.3f}",
                file=sys.stderr,
            ),
        )
    reference_top1 = None if labels is None else float((reference == labels).mean())
    return Measured(
        pictures=len(views),
        source=source,
        points=tuple(
            MeasuredPoint(
                depth=point.depth or 0,
                level16=point.level16 or 0,
                bpp=round(point.bpp, 4),
                agreement=round(point.agreement, 4),
                share_of_top1=round(point.top1 / reference_top1, 4)
                if point.top1 is not None and reference_top1
                else None,
            )
            for point in points
        ),
    )
