"""Checkpoints: written whole or not at all, read back without running anything from them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from pipeline.errors import TrainingError
from pipeline.training.recipes import complete_fields


def save_checkpoint(state: dict[str, Any], path: Path) -> None:
    """Write a checkpoint so that a crash or a full disk leaves the one before untouched.

    Raises:
        TrainingError: it cannot be written.
    """
    temporary = path.with_suffix(".partial")
    try:
        with temporary.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, RuntimeError) as error:  # torch turns a short write into RuntimeError
        temporary.unlink(missing_ok=True)
        raise TrainingError(f"{path}: checkpoint not written ({error}); the one before is untouched") from error


def load_checkpoint(path: Path, recipe: dict[str, Any] | None = None) -> dict[str, Any]:
    """Read a checkpoint; with `recipe`, refuse one that belongs to another.

    Raises:
        TrainingError: unreadable, or of another recipe.
    """
    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch.load raises many kinds for damaged files
        raise TrainingError(f"{path}: not a checkpoint ({type(error).__name__})") from error
    if not isinstance(state, dict):
        raise TrainingError(f"{path}: not a checkpoint (holds no state)")
    known = complete_fields(state.get("recipe"))
    if recipe is not None and known != recipe:
        known = known if isinstance(known, dict) else {}
        differing = sorted(key for key in {*known, *recipe} if known.get(key) != recipe.get(key))
        raise TrainingError(f"{path}: belongs to another recipe (differs in {', '.join(differing)})")
    return dict(state)
