"""EfficientNet-Lite0 folded and cut, against the network of the package that its weights come from."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.codec.classifier import (
    LITE0,
    classifier_sha256,
    lite0_weights_file,
    load_classifier,
    tensors_sha256,
)
from pipeline.codec.lite0 import CUTS, Lite0, Lite0Tail, same_padding
from pipeline.errors import BundleMismatchError


@pytest.fixture(scope="module")
def original() -> nn.Module:
    """The package's own network with its batch normalisations."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        package = pytest.importorskip("efficientnet_lite_pytorch")
    network: nn.Module = package.EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(lite0_weights_file(), weights_only=True))
    return network.eval()


@pytest.fixture(scope="module")
def x(views: NDArray[np.uint8]) -> Tensor:
    """Four normalised RGB pictures (4, 3, 224, 224)."""
    return (torch.from_numpy(views[:4, :, :, ::-1].copy()).permute(0, 3, 1, 2).float() - 127) / 128


@torch.no_grad()
def test_folded_network_gives_the_packages_logits(classifier: Lite0, original: nn.Module, x: Tensor) -> None:
    expected = original(x)
    assert expected.abs().max() > 1
    torch.testing.assert_close(classifier(x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("cut", "shape"), [("stride8", (40, 28, 28)), ("stride4", (24, 56, 56))])
@torch.no_grad()
def test_features_at_a_cut_are_those_of_the_packages_blocks(
    classifier: Lite0, original: nn.Module, x: Tensor, cut: str, shape: tuple[int, ...]
) -> None:
    expected = original._swish(original._bn0(original._conv_stem(x)))  # type: ignore[operator]
    for block in original._blocks[: CUTS[cut].blocks]:  # type: ignore[index]
        expected = block(expected)
    features = classifier.features(x, cut)
    assert features.shape[1:] == shape
    # Folding rounds once more; features reach some tens.
    assert (features - expected).abs().max() < 1e-4 * expected.abs().max()


@pytest.mark.parametrize("cut", sorted(CUTS))
@torch.no_grad()
def test_head_and_tail_of_a_cut_are_the_whole(classifier: Lite0, x: Tensor, cut: str) -> None:
    features = classifier.features(x, cut)
    torch.testing.assert_close(Lite0Tail(classifier, cut)(features), classifier(x), rtol=1e-5, atol=1e-5)
    *stages, pooled, logits = classifier.stages(features, cut)
    assert [tuple(stage.shape[1:]) for stage in stages] == [(80, 14, 14), (112, 14, 14), (320, 7, 7)]
    assert (pooled.shape[1:], logits.shape[1:]) == ((1280,), (1000,))


@pytest.mark.parametrize(("size", "kernel", "stride"), [(224, 3, 2), (56, 5, 2), (28, 3, 2), (28, 5, 1), (7, 3, 1)])
def test_same_padding_puts_the_odd_pixel_behind(size: int, kernel: int, stride: int) -> None:
    before, after = same_padding(size, kernel, stride)
    assert 0 <= after - before <= 1
    assert (size + before + after - kernel) // stride + 1 == -(-size // stride)


def test_classifier_is_frozen(classifier: Lite0) -> None:
    assert not classifier.training
    assert not any(parameter.requires_grad for parameter in classifier.parameters())


def test_hash_is_of_the_file_and_not_of_what_a_cpu_makes_of_it() -> None:
    """It is what a bundle pins its classifier by, on every machine: the package's file has this one."""
    assert classifier_sha256(LITE0).startswith("91516307c8a76177")


def test_hash_changes_with_one_weight_and_not_with_order_or_layout() -> None:
    state = {"a": torch.randn(4, 3, 2, 2), "b": torch.zeros(2)}
    expected = tensors_sha256(state)
    other = {"b": state["b"], "a": state["a"].contiguous(memory_format=torch.channels_last)}
    assert tensors_sha256(other) == expected
    other["a"] = state["a"] + 1e-6
    assert tensors_sha256(other) != expected


def test_unknown_classifier_is_named() -> None:
    with pytest.raises(BundleMismatchError, match="resnet1"):
        load_classifier("resnet1")


@pytest.mark.parametrize("content", [None, b"not a state dict"])
def test_weights_that_are_none_are_one_line(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "weights.pth"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(BundleMismatchError, match=r"weights\.pth"):
        load_classifier(LITE0, file)


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(3)}, tmp_path / "weights.pth")
    with pytest.raises(BundleMismatchError, match="no weights of efficientnet_lite0"):
        load_classifier(LITE0, tmp_path / "weights.pth")
