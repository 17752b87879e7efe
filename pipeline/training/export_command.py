"""`rac export CHECKPOINT`: from a training run's checkpoint to a sealed bundle with its measured table."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import numpy as np
import torch

from pipeline.bundle import Bundle, Measured, MeasuredPoint
from pipeline.codec.cache import classifier_sha256, prepare_graphs
from pipeline.codec.classifier import load_classifier
from pipeline.codec.export import BundleFacts, export_bundle, seal_measured
from pipeline.decoding import BatchDecoder
from pipeline.encoder import Encoder
from pipeline.errors import TrainingError
from pipeline.evaluation.accuracy import classify_reference, measure_bundle, whole_levels
from pipeline.evaluation.pictures import load_labelled_views
from pipeline.inference import cache_root, choose_engine, open_engine, read_vectors
from pipeline.training.checkpoint import load_checkpoint
from pipeline.training.datasets import load_pictures, use_views
from pipeline.training.loop import build_codec
from pipeline.training.recipes import Recipe

FITTED_PICTURES = 1500
"""About 1.2 million symbols for each table; doubling them moved no size by 0.1 %."""


def run(args: argparse.Namespace) -> int:
    """Entry of the sub-command; returns the exit code.

    Args:
        args: checkpoint, out, name, measure, labels.
    """
    state = load_checkpoint(Path(args.checkpoint))
    try:
        recipe = Recipe.model_validate(state["recipe"])
        codec = build_codec(recipe)
        codec.load_state_dict(state["average"])
    except (KeyError, ValueError, RuntimeError) as error:
        raise TrainingError(f"{args.checkpoint}: not a checkpoint of this program ({error})") from error
    pictures = load_pictures(recipe.data.folders)
    random = np.random.default_rng(recipe.seed)
    chosen = random.choice(len(pictures.training), min(FITTED_PICTURES, len(pictures.training)), replace=False)
    views = use_views([pictures.training[index] for index in chosen])
    facts = BundleFacts(
        name=args.name,
        classifier=recipe.classifier,
        classifier_sha256=classifier_sha256(load_classifier(recipe.classifier)),
        cut=recipe.cut,
        training={
            "recipe": recipe.name,
            "steps": int(state["step"]),
            "minutes": round(float(state["elapsed_s"]) / 60, 1),
            "pictures": len(pictures.training),
            "torch": str(torch.__version__),
        },
    )
    folder = Path(args.out)
    bundle = export_bundle(codec, facts, views, folder, lambda text: print(text, file=sys.stderr))
    measured = _measure(bundle, args, use_views(pictures.held_out))
    bundle = seal_measured(bundle, measured, folder)
    size_bytes = sum(len(content) for content in bundle.files.values())
    print(f"{folder}: bundle {bundle.manifest.name} {bundle.short_id}, {size_bytes / 1e6:.2f} MB")
    return 0


def _measure(bundle: Bundle, args: argparse.Namespace, held_out: np.ndarray) -> Measured:
    """Every depth at every whole level, on labelled pictures when named, else on the held-out ones."""
    graphs = prepare_graphs(bundle, cache_root())
    threads = os.cpu_count() or 1
    engine = open_engine(graphs, choose_engine("auto"), threads, "fp32")
    labels, source, views = None, "held-out training pictures", held_out
    if args.measure:
        pictures = load_labelled_views(Path(args.measure), Path(args.labels) if args.labels else None)
        views, labels, source = pictures.views, pictures.labels, Path(args.measure).name
    reference = classify_reference(engine, views)
    reference_top1 = None if labels is None else float((reference == labels).mean())
    points = measure_bundle(
        bundle,
        Encoder(bundle, threads),
        BatchDecoder(bundle, engine, read_vectors(graphs)),
        views,
        reference,
        labels,
        whole_levels(bundle),
        lambda point: print(
            f"depth {point.depth} level {point.rate:g}: {point.bpp:.3f} bpp, agreement {point.agreement:.3f}",
            file=sys.stderr,
        ),
    )
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
