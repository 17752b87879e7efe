"""`rac train RECIPE`: build the parts, train, show progress."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import torch

from pipeline.codec.classifier import LITE0, load_classifier
from pipeline.errors import ConfigError, TrainingError
from pipeline.training.checkpoint import load_checkpoint
from pipeline.training.datasets import CropSampler, Pictures, load_pictures
from pipeline.training.families import start_training
from pipeline.training.loop import Training, now_s, resume, run_training
from pipeline.training.needs import StepMemory, describe_needs
from pipeline.training.progress import choose_watchers
from pipeline.training.ranks import ALONE, Ranks, joined_ranks
from pipeline.training.recipes import Recipe, load_recipe
from pipeline.training.run_folder import CHECKPOINT_FILE
from pipeline.training.teacher import Engine, OpenVinoEngine, Teacher, TorchEngine, normalise

TEACHER_SAMPLE = 256
"""Crops that the features' statistics are taken from."""
HEAVY_SAMPLE = 64
"""The same of ResNet-50: a gigabyte at 224 px, and each of its 256 channels has 200,000 values."""


def build_training(
    recipe: Recipe, device: str, threads: int, ranks: Ranks = ALONE, pictures: Pictures | None = None
) -> Training:
    """Read the classifier, and pictures unless they are given, and join them to a run that has not begun."""
    weights = None if recipe.classifier_weights is None else Path(recipe.classifier_weights)
    classifier = load_classifier(recipe.classifier, weights)
    pictures = pictures or load_pictures(recipe.data.folders, recipe.data.labels, in_memory=recipe.data.in_memory)
    engine: Engine
    is_light = recipe.classifier == LITE0
    # At ResNet-50's dense convolutions OpenVINO is hardly faster, and the graph of each crop size takes ten seconds.
    if device == "cpu" and is_light and find_spec("openvino") is not None:
        engine = OpenVinoEngine(classifier, recipe.cut, threads)
    else:
        engine = TorchEngine(classifier.to(device), recipe.cut)
    num_sample = TEACHER_SAMPLE if is_light else min(TEACHER_SAMPLE, HEAVY_SAMPLE)
    sample = CropSampler(pictures.training, recipe.data, recipe.seed).batch(recipe.crops[0].size_px, num_sample)
    teacher = Teacher(engine, normalise(sample, torch.device(device), recipe.classifier), recipe.cut)
    classifier = classifier.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return start_training(recipe, classifier, teacher, pictures, device, ranks)


def run(args: argparse.Namespace) -> int:
    """Entry of the sub-command; returns the exit code.

    Args:
        args: recipe, out, minutes, pictures, batch, data, classifier_weights, resume, warm_start, device, threads,
            json.
    """
    recipe = load_recipe(Path(args.recipe))
    if args.classifier_weights is not None:
        recipe = recipe.model_copy(update={"classifier_weights": args.classifier_weights})
    if recipe.classifier_weights is not None and not Path(recipe.classifier_weights).is_file():
        raise ConfigError(args.recipe, "classifier_weights", f"{recipe.classifier_weights}: no such file")
    full = recipe
    if args.minutes is not None and args.pictures is not None:
        raise ConfigError("command line", "--pictures", "a run's length is its pictures or its --minutes: give one")
    if args.minutes is not None:
        recipe = recipe.model_copy(update={"minutes": args.minutes, "pictures": None})
    if args.pictures is not None:
        recipe = recipe.model_copy(update={"pictures": args.pictures})
    if args.batch is not None:
        crops = tuple(crop.model_copy(update={"batch": args.batch}) for crop in recipe.crops)
        recipe = recipe.model_copy(update={"crops": crops})
    if args.data:
        data = recipe.data.model_copy(update={"folders": tuple(args.data)})
        recipe = recipe.model_copy(update={"data": data})
    if args.resume and args.warm_start is not None:
        raise ConfigError("command line", "--from", "begins a run, --resume goes on with one: give one of them")
    warm = None if args.warm_start is None else load_checkpoint(Path(args.warm_start))
    check_device(args.device)
    with joined_ranks(args.device) as ranks:
        return _run(args, recipe, full, warm, ranks)


def _run(args: argparse.Namespace, recipe: Recipe, full: Recipe, warm: dict[str, object] | None, ranks: Ranks) -> int:
    folder = Path(args.out or f"runs/{recipe.name}")
    if ranks.is_first:
        _prepare_folder(folder, args.resume)
    device = f"cuda:{ranks.local}" if args.device == "cuda" and ranks.count > 1 else args.device
    if device.startswith("cuda:"):
        torch.cuda.set_device(device)
    torch.backends.cudnn.benchmark = True  # of GPUs alone; batches are of one size, so the search pays
    torch.set_num_threads(args.threads or max(1, (os.cpu_count() or 1) // ranks.count))
    training = build_training(recipe, device, torch.get_num_threads(), ranks)
    _say(ranks, _describe(recipe, training.pictures, folder))
    if warm is not None:
        left = training.start_from(warm, Path(args.warm_start))
        _say(ranks, f"starts from the weights of {args.warm_start}" + (f", without {', '.join(left)}" if left else ""))
    if args.resume and resume(training, folder):
        _say(ranks, f"resumed at step {training.step}, {training.progress:.0%} done")
    with stop_requests() as should_stop:
        watchers = choose_watchers(folder, args.json) if ranks.is_first else []
        memory = StepMemory(training.device)
        run_training(training, folder, watchers, should_stop, now_s)
    if recipe != full and ranks.is_first:
        print(describe_needs(full, training, folder, memory), file=sys.stderr)
    return 0


@contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """Whether SIGINT or SIGTERM came meanwhile; afterwards they are handled as before."""
    asked: list[bool] = []
    before = {name: signal.signal(name, lambda *_: asked.append(True)) for name in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(asked)
    finally:
        for name, handler in before.items():
            signal.signal(name, handler)


def _say(ranks: Ranks, text: str) -> None:
    if ranks.is_first:
        print(text, file=sys.stderr)


def _describe(recipe: Recipe, pictures: Pictures, folder: Path) -> str:
    """What begins, in a line; for the paper's family with what its loss has to do without."""
    counts = (
        f"{recipe.name}: {len(pictures.training)} pictures, {len(pictures.held_out)} held out, "
        f"{pictures.unreadable} unreadable"
    )
    if recipe.family == "paper":
        counts += f", {pictures.num_labelled} labelled" if pictures.num_labelled else ", no labels: CE is left out"
    length = f"{recipe.minutes:g} minutes" if recipe.pictures is None else f"{recipe.pictures:,} pictures seen"
    return f"{counts}; {length} into {folder}"


def _prepare_folder(folder: Path, may_resume: bool) -> Path:
    """Make the run's folder; hours of another run are not written over."""
    if not may_resume and (folder / CHECKPOINT_FILE).exists():
        raise TrainingError(f"{folder}: holds a checkpoint; go on with --resume, or name another folder with --out")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainingError(f"{folder}: cannot be made: {error.strerror}") from error
    return folder


def check_device(name: str) -> None:
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        raise ConfigError("command line", "--device", f"{name} cannot be used here; cpu always can") from error
