"""`rac sweep PLAN`: train and export every network of a comparison under one budget."""

from __future__ import annotations

import argparse
import difflib
import json
import os
import sys
from pathlib import Path

import torch

from pipeline.errors import ConfigError, TrainingError
from pipeline.training.command import build_training, check_device, stop_requests
from pipeline.training.datasets import load_pictures
from pipeline.training.progress import choose_watchers
from pipeline.training.sweep import DONE, Sweep, look
from pipeline.training.sweep_plan import PlannedNetwork, load_plan


def run(args: argparse.Namespace) -> int:
    """Entry of the sub-command; returns the exit code: 1 where a network failed or is broken.

    Args:
        args: plan, out, only, list, device, threads, json.
    """
    plan, networks = load_plan(Path(args.plan))
    folder = Path(args.out or f"runs/{plan.name}")
    _check_names(args.only, networks)
    if args.list:
        return _list(networks, folder, args.json)
    check_device(args.device)
    torch.set_num_threads(args.threads or os.cpu_count() or 1)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainingError(f"{folder}: cannot be made: {error.strerror}") from error
    data = networks[0].recipe.data
    pictures = load_pictures(data.folders, data.labels, in_memory=data.in_memory)
    budget = networks[0].recipe.pictures or 0
    labels = f"{pictures.num_labelled} labelled" if pictures.num_labelled else "no labels: CE is left out for all"
    print(
        f"{plan.name}: {len(networks)} networks, {budget:,} pictures seen each, of {len(pictures.training)} "
        f"({pictures.unreadable} unreadable, {labels}), into {folder}",
        file=sys.stderr,
    )
    with stop_requests() as should_stop:
        sweep = Sweep(
            plan,
            networks,
            folder,
            pictures,
            lambda network: build_training(network.recipe, args.device, torch.get_num_threads(), pictures=pictures),
            lambda own: choose_watchers(own, args.json),
            should_stop,
            lambda text: print(text, file=sys.stderr, flush=True),
        )
        is_whole = sweep.run(args.only)
        is_stopped = should_stop()
    num_done = sum(entry.status == DONE for entry in sweep.entries)
    ending = "; stopped, the same command goes on" if is_stopped else ""
    print(f"{num_done} of {len(networks)} networks done{ending}", file=sys.stderr)
    return 0 if is_whole or is_stopped else 1


def _check_names(only: list[str], networks: list[PlannedNetwork]) -> None:
    known = sorted({name for network in networks for name in (network.name, network.entry.name)})
    for name in only:
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {nearest[0]}?" if nearest else f"there are {', '.join(known)}"
            raise ConfigError("command line", "--only", f"no network {name}; {hint}")


def _list(networks: list[PlannedNetwork], folder: Path, as_json: bool) -> int:
    """What stands where, without doing anything."""
    entries = [look(network, folder) for network in networks]
    if as_json:
        print(json.dumps([entry.as_json() for entry in entries]))
        return 0
    for entry in entries:
        reason = f": {entry.reason}" if entry.reason else ""
        print(f"{entry.network.name}  {entry.network.entry.system}  {entry.status}{reason}")
    return 0
