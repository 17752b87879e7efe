"""`rac export CHECKPOINT`: from a training run's checkpoint to a sealed bundle with its measured table."""

from __future__ import annotations

import argparse
import os
import re
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from pipeline.bundle import BUNDLE_NAME, Bundle, Measured, MeasuredPoint, check_target
from pipeline.codec.cache import prepare_graphs
from pipeline.codec.export import seal_measured
from pipeline.decoding import BatchDecoder
from pipeline.encoder import Encoder
from pipeline.errors import ConfigError, TrainingError
from pipeline.evaluation.accuracy import classify_reference, measure_bundle, whole_levels
from pipeline.evaluation.pictures import load_labelled_views
from pipeline.inference import choose_engine, open_engine, read_vectors
from pipeline.training.datasets import load_pictures, use_views
from pipeline.training.trained import export_trained, read_trained

MEASURED_PICTURES = 500
"""Of the held-out ones: every one of them costs 25 points x 7 ms, and a share of 500 is known to 2 points."""


def run(args: argparse.Namespace) -> int:
    """Entry of the sub-command; returns the exit code.

    Args:
        args: checkpoint, out, name, measure, labels, classifier_weights.
    """
    # What can be wrong is looked at first: the work takes minutes.
    folder = Path(args.out)
    _make_target(folder)
    if not re.fullmatch(BUNDLE_NAME, args.name):
        raise ConfigError("command line", "--name", "must be 1 to 64 letters, digits, dots, dashes or underscores")
    weights = Path(args.classifier_weights) if args.classifier_weights else None
    trained = read_trained(Path(args.checkpoint), weights)
    labelled = None
    if args.measure:
        labelled = load_labelled_views(Path(args.measure), Path(args.labels) if args.labels else None)
    pictures = load_pictures(trained.recipe.data.folders, in_memory=trained.recipe.data.in_memory)
    bundle = export_trained(trained, pictures, folder, args.name, _say)
    if labelled is None:
        held_out = use_views(pictures.held_out, MEASURED_PICTURES, trained.recipe.data.side_px)
        measured = _measure(bundle, held_out, None, "held-out training pictures", trained.weights)
    else:
        source = Path(args.measure).name
        measured = _measure(bundle, labelled.views, labelled.labels, source, trained.weights)
    bundle = seal_measured(bundle, measured, folder)
    size_bytes = sum(len(content) for content in bundle.files.values())
    print(f"{folder}: bundle {bundle.manifest.name} {bundle.short_id}, {size_bytes / 1e6:.2f} MB")
    return 0


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _make_target(folder: Path) -> None:
    check_target(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainingError(f"{folder}: cannot be made: {error.strerror}") from error


def _measure(
    bundle: Bundle, views: NDArray[np.uint8], labels: NDArray[np.int64] | None, source: str, weights: Path | None
) -> Measured:
    """Every depth at every whole level."""
    threads = os.cpu_count() or 1
    # Not in the user's cache: the bundle gets another id when it is sealed with what is measured here.
    with TemporaryDirectory() as root:
        graphs = prepare_graphs(bundle, Path(root), weights)
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
