"""`rac train RECIPE`: build the parts, train, show progress."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from pipeline.codec.classifier import load_classifier
from pipeline.errors import ConfigError, TrainingError
from pipeline.training.datasets import CropSampler, load_pictures
from pipeline.training.loop import CHECKPOINT_FILE, NestedTraining, now_s, resume, run_training
from pipeline.training.recipes import Recipe, load_recipe
from pipeline.training.teacher import Engine, OpenVinoEngine, Teacher, TorchEngine, normalise

TEACHER_SAMPLE = 256


def build_training(recipe: Recipe, device: str, threads: int) -> NestedTraining:
    """Read pictures and classifier and join them to a run that has not begun."""
    pictures = load_pictures(recipe.data.folders)
    classifier = load_classifier(recipe.classifier)
    engine: Engine
    if device == "cpu" and find_spec("openvino") is not None:
        engine = OpenVinoEngine(classifier, recipe.cut, threads)
    else:
        engine = TorchEngine(classifier.to(device), recipe.cut)
    sample = CropSampler(pictures.training, recipe.data, recipe.seed).batch(recipe.crops[0].size_px, TEACHER_SAMPLE)
    teacher = Teacher(engine, normalise(sample, torch.device(device)), recipe.cut)
    classifier = classifier.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return NestedTraining(recipe, classifier, teacher, pictures, device)


def run(args: argparse.Namespace) -> int:
    """Entry of the sub-command; returns the exit code.

    Args:
        args: recipe, out, minutes, resume, device, threads, json.
    """
    recipe = load_recipe(Path(args.recipe))
    if args.minutes is not None:
        recipe = recipe.model_copy(update={"minutes": args.minutes})
    folder = _prepare_folder(Path(args.out or f"runs/{recipe.name}"), args.resume)
    _check_device(args.device)
    torch.set_num_threads(args.threads or os.cpu_count() or 1)
    training = build_training(recipe, args.device, torch.get_num_threads())
    pictures = training.pictures
    print(
        f"{recipe.name}: {len(pictures.training)} pictures, {len(pictures.held_out)} held out, "
        f"{pictures.unreadable} unreadable; {recipe.minutes:g} minutes into {folder}",
        file=sys.stderr,
    )
    if args.resume and resume(training, folder):
        print(f"resumed at step {training.step}, {training.progress:.0%} done", file=sys.stderr)
    stop_asked: list[bool] = []
    before = {name: signal.signal(name, lambda *_: stop_asked.append(True)) for name in (signal.SIGINT, signal.SIGTERM)}
    try:
        show = _print_json if args.json else _print_line
        run_training(training, folder, show, lambda: bool(stop_asked), now_s)
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)
    return 0


def _prepare_folder(folder: Path, may_resume: bool) -> Path:
    """Make the run's folder; hours of another run are not written over."""
    if not may_resume and (folder / CHECKPOINT_FILE).exists():
        raise TrainingError(f"{folder}: holds a checkpoint; go on with --resume, or name another folder with --out")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainingError(f"{folder}: cannot be made: {error.strerror}") from error
    return folder


def _check_device(name: str) -> None:
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        raise ConfigError("command line", "--device", f"{name} cannot be used here; cpu always can") from error


def _print_json(line: dict[str, Any]) -> None:
    print(json.dumps(line), flush=True)


def _print_line(line: dict[str, Any]) -> None:
    if "validation" in line:
        for point in line["validation"]:
            print("  ".join(f"{name} {value:.3f}" for name, value in point.items()), flush=True)
        return
    numbers = "  ".join(f"{name} {value:.3f}" for name, value in line.items() if isinstance(value, float))
    print(f"step {line['step']}  {numbers}", flush=True)
