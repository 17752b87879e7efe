"""`rac eval --all`: every system of the comparison that is there, as one JSON, a Markdown page and plots."""

from __future__ import annotations

import argparse
import json
import os
import sys
from importlib.util import find_spec
from pathlib import Path

from pipeline.bundle import load_bundle
from pipeline.codec.cache import prepare_graphs
from pipeline.errors import EvaluationError
from pipeline.evaluation.accuracy import classify_reference
from pipeline.evaluation.baselines import find_codecs
from pipeline.evaluation.comparison import (
    Bench,
    bundle_systems,
    codec_systems,
    local_system,
    network_systems,
    time_systems,
)
from pipeline.evaluation.comparison_plots import plot_all
from pipeline.evaluation.comparison_report import Facts, as_json, as_markdown
from pipeline.evaluation.picture_networks import find_pretrained
from pipeline.evaluation.pictures import load_labelled_views
from pipeline.evaluation.point_store import PointStore, digest
from pipeline.evaluation.rounding import measure_rounding
from pipeline.evaluation.sweep_file import read_sweep
from pipeline.inference import cache_root, choose_engine, open_engine

JSON_FILE, PAGE_FILE, POINTS_FOLDER = "comparison.json", "comparison.md", "points"


def run_all(args: argparse.Namespace) -> int:
    """Measure, write and print; returns the exit code.

    Args:
        args: bundle, data, labels, limit, networks, out, engine, precision, classifier_weights, json.
    """
    folder = Path(args.out)
    sweep = None if args.networks is None else read_sweep(Path(args.networks))
    bundle = load_bundle(args.bundle)
    pictures = load_labelled_views(Path(args.data), Path(args.labels) if args.labels else None, args.limit)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EvaluationError(f"{folder}: cannot be made: {error.strerror}") from error
    name, threads = choose_engine(args.engine), os.cpu_count() or 1
    weights = Path(args.classifier_weights) if args.classifier_weights else None
    graphs = prepare_graphs(bundle, cache_root(), weights)
    engine = open_engine(graphs, name, threads, args.precision)
    reference = classify_reference(engine, pictures.views)
    key = [digest([pictures.views, pictures.labels, reference]), name, args.precision]
    bench = Bench(
        views=pictures.views,
        labels=pictures.labels,
        reference=reference,
        engine=engine,
        graphs=graphs,
        engine_name=name,
        precision=args.precision,
        threads=threads,
        classifier_weights=weights,
        classifier_sha256=bundle.manifest.classifier_sha256,
        store=PointStore(folder / POINTS_FOLDER, key),
        say=lambda text: print(f"measuring {text}", file=sys.stderr, flush=True),
    )
    pretrained = find_pretrained(lambda text: print(text, file=sys.stderr, flush=True))
    codecs, missing = codec_systems(bench, [*find_codecs(all_speeds=True), *pretrained])
    name_of_own = f"bundle {bundle.manifest.name}"
    trained, untrained = network_systems(bench, sweep.networks if sweep is not None else ())
    own = bundle_systems(bench, bundle, name_of_own)
    systems = [local_system(bench), *codecs, *own, *trained]
    rounding = measure_rounding(bench, bundle)
    bench.say("times")
    time_systems(systems, pictures.views)
    facts = Facts(
        source=Path(args.data).name,
        images=len(pictures.views),
        unreadable=pictures.unreadable,
        classifier=bundle.manifest.classifier,
        engine=name,
        precision=args.precision,
        threads=threads,
    )
    bench.say("intervals")
    content = as_json(
        systems, [*missing, *untrained], bench, facts, sweep, {} if rounding is None else {name_of_own: rounding}
    )
    page = as_markdown(content)
    print(json.dumps(content) if args.json else page, flush=True)
    try:
        (folder / JSON_FILE).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        (folder / PAGE_FILE).write_text(page, encoding="utf-8")
        if find_spec("matplotlib") is None:
            print("no plots: matplotlib is not installed (extra [train])", file=sys.stderr)
        else:
            plot_all(content, folder)
    except OSError as error:
        raise EvaluationError(f"{error.filename}: cannot be written: {error.strerror}") from error
    print(f"{folder}: {JSON_FILE}, {PAGE_FILE} and plots", file=sys.stderr)
    return 0
