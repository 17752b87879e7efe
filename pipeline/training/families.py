"""From a recipe and its parts to a run that has not begun."""

from __future__ import annotations

import torch

from pipeline.codec.classifier import Classifier
from pipeline.training.datasets import CropSampler, Pictures
from pipeline.training.device_crops import DeviceCropSampler, fits
from pipeline.training.loop import Sampler, Training
from pipeline.training.nested_task import NestedTask
from pipeline.training.paper_task import PaperTask
from pipeline.training.picture_task import PictureTask
from pipeline.training.ranks import ALONE, Ranks
from pipeline.training.recipes import Recipe
from pipeline.training.task import Task
from pipeline.training.teacher import Teacher
from pipeline.training.tuned_task import TunedTask


def start_training(
    recipe: Recipe, classifier: Classifier, teacher: Teacher, pictures: Pictures, device: str, ranks: Ranks = ALONE
) -> Training:
    """A run of the recipe's family."""

    def make_task(x: torch.Tensor) -> Task:
        if recipe.family == "paper":
            return PaperTask(recipe, classifier, teacher, x, device)
        if recipe.family == "picture":
            return PictureTask(recipe, teacher, x, device)
        if recipe.family == "tuned":
            return TunedTask(recipe, classifier, teacher, device)
        return NestedTask(recipe, classifier, teacher, x, device, ranks)

    return Training(recipe, pictures, make_sampler(recipe, pictures, device), make_task, device, ranks)


def make_sampler(recipe: Recipe, pictures: Pictures, device: str) -> Sampler:
    """Crops made on the device where it is a GPU with memory to spare, else on the CPU."""
    if fits(pictures, torch.device(device)):
        return DeviceCropSampler(pictures.training, recipe.data, recipe.seed, device)
    return CropSampler(pictures.training, recipe.data, recipe.seed)
