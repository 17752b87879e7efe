"""`rac bench`: time the stages of node and cloud on this machine, beside the whole classifier on the node."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from pipeline.bench.stages import build_stages, time_stages
from pipeline.bundle import load_bundle
from pipeline.codec.cache import prepare_graphs
from pipeline.inference import cache_root, choose_engine


def run(args: argparse.Namespace) -> int:
    """Entry of the sub-command; returns the exit code.

    Args:
        args: bundle, engine, precision, threads, rounds, classifier_weights, json.
    """
    bundle = load_bundle(args.bundle)
    engine = choose_engine(args.engine)
    graphs = prepare_graphs(bundle, cache_root(), Path(args.classifier_weights) if args.classifier_weights else None)
    level16 = bundle.default_level16
    print(f"timing, {args.rounds} rounds; other work on this machine makes all of it slower", file=sys.stderr)
    stages = build_stages(bundle, graphs, engine, args.precision, args.threads, level16)
    times = time_stages(stages, args.rounds)
    if args.json:
        facts = {"bundle": bundle.short_id, "level": level16 / 16, "threads": args.threads, "engine": engine}
        print(json.dumps(facts | {"precision": args.precision, "stages": [asdict(entry) for entry in times]}))
        return 0
    table = Table(title=f"{args.threads} thread(s), level {level16 / 16:g}, cloud on {engine} {args.precision}")
    for heading in ("stage", "median ms a frame", "p90 ms", "over local_classifier"):
        table.add_column(heading, justify="left" if heading == "stage" else "right")
    for entry in times:
        table.add_row(entry.name, f"{entry.median_ms:.3f}", f"{entry.p90_ms:.3f}", f"{entry.ratio:.3f}")
    Console(soft_wrap=True).print(table)
    return 0
