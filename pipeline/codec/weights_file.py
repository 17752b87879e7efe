"""Weights of a network that is no bundle, with what they are: one safetensors file, written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pipeline.errors import BundleError, BundleFormatError


def write_weights(path: Path, tensors: Mapping[str, Tensor], facts: Mapping[str, str]) -> None:
    """Write tensors and facts.

    Raises:
        BundleError: it cannot be written; what was there before is untouched.
    """
    temporary = path.with_suffix(".partial")
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary, dict(facts))
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        temporary.unlink(missing_ok=True)
        raise BundleError(f"{path}: cannot be written ({error})") from error


def read_facts(path: Path) -> dict[str, str]:
    """What the file says of its weights.

    Raises:
        BundleFormatError: it is none, or damaged.
    """
    return _read(path, with_tensors=False)[1]


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and facts of a file.

    Raises:
        BundleFormatError: it is none, or damaged.
    """
    return _read(path, with_tensors=True)


def _read(path: Path, *, with_tensors: bool) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()} if with_tensors else {}  # noqa: SIM118
            return tensors, dict(file.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise BundleFormatError(f"{path}: no weights ({' '.join(str(error).split())})") from error
