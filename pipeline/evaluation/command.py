"""`rac eval`: rate and accuracy of a bundle for every depth and level, beside picture codecs when asked."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.bundle import load_bundle
from pipeline.codec.cache import prepare_graphs
from pipeline.codec.classifier import CLASSIFIERS
from pipeline.decoding import BatchDecoder
from pipeline.encoder import Encoder
from pipeline.errors import EvaluationError
from pipeline.evaluation.accuracy import RatePoint, classify_reference, measure_bundle, whole_levels
from pipeline.evaluation.baselines import MissingCodec, find_codecs, measure_picture_codec
from pipeline.evaluation.comparison_command import run_all
from pipeline.evaluation.pictures import load_labelled_views
from pipeline.evaluation.report import as_json, as_markdown, plot
from pipeline.inference import cache_root, choose_engine, open_engine, read_vectors


def run(args: argparse.Namespace) -> int:
    """Entry of the sub-command; returns the exit code.

    Args:
        args: bundle, data, labels, limit, baselines, engine, precision, markdown, plot, json; all, networks, out.
    """
    if args.all:
        return run_all(args)
    bundle = load_bundle(args.bundle)
    pictures = load_labelled_views(Path(args.data), Path(args.labels) if args.labels else None, args.limit)
    name, threads = choose_engine(args.engine), os.cpu_count() or 1
    graphs = prepare_graphs(bundle, cache_root(), Path(args.classifier_weights) if args.classifier_weights else None)
    engine = open_engine(graphs, name, threads, args.precision)
    reference = classify_reference(engine, pictures.views)
    reference_top1 = float((reference == pictures.labels).mean())
    print(
        f"{bundle.manifest.name} {bundle.short_id} on {len(pictures.views)} pictures "
        f"({pictures.unreadable} unreadable), engine {name} {args.precision}, uncompressed top-1 {reference_top1:.3f}",
        file=sys.stderr,
    )
    points = measure_bundle(
        bundle,
        Encoder(bundle, threads),
        BatchDecoder(bundle, engine, read_vectors(graphs)),
        pictures.views,
        reference,
        pictures.labels,
        whole_levels(bundle),
        _print_point,
    )
    if args.baselines:
        for codec in find_codecs():
            if isinstance(codec, MissingCodec):
                print(f"{codec.name}: {codec.reason}", file=sys.stderr)
                continue
            for quality in codec.qualities:
                points.append(measure_picture_codec(codec, quality, engine, pictures.views, reference, pictures.labels))
                _print_point(points[-1])
    _write(args, points, pictures.views, reference_top1, CLASSIFIERS[bundle.manifest.classifier].title)
    return 0


def _print_point(point: RatePoint) -> None:
    depth = "" if point.depth is None else f" depth {point.depth}"
    top1 = "" if point.top1 is None else f"  top-1 {point.top1:.3f}"
    print(
        f"{point.codec}{depth} rate {point.rate:g}: {point.bpp:.3f} bpp{top1}  agreement {point.agreement:.3f}",
        file=sys.stderr,
        flush=True,
    )


def _write(
    args: argparse.Namespace,
    points: list[RatePoint],
    views: NDArray[np.uint8],
    reference_top1: float,
    classifier: str,
) -> None:
    """Print first: what was measured for minutes is not to be lost to a path that cannot be written."""
    table = as_markdown(points, reference_top1)
    print(json.dumps(as_json(points, len(views), reference_top1)) if args.json else table, flush=True)
    title = f"{len(views)} pictures, {classifier}, top-1 {reference_top1:.3f} uncompressed"
    try:
        if args.markdown:
            Path(args.markdown).write_text(table, encoding="utf-8")
        if args.plot:
            plot(points, Path(args.plot), title)
    except OSError as error:
        raise EvaluationError(f"{error.filename}: cannot be written: {error.strerror}") from error
