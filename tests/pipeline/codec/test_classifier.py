"""What is known of the classifiers without their weights, and where their weights come from."""

from __future__ import annotations

import urllib.error
from pathlib import Path
from types import ModuleType

import pytest
import torch

from pipeline.codec.classifier import (
    CLASSIFIERS,
    LITE0,
    RESNET50,
    build_tail,
    classifier_sha256,
    lite0_weights_file,
    load_classifier,
    resnet50_weights_file,
    tensors_sha256,
    weights_for,
)
from pipeline.codec.lite0 import Lite0
from pipeline.codec.resnet import ResNet50
from pipeline.errors import BundleMismatchError

PUBLISHED = "resnet50-0676ba61.pth"
"""IMAGENET1K_V1 as torchvision's downloads call it."""


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, torchvision_models: ModuleType) -> Path:
    """Torch's folder of downloads, empty, on a machine that reaches nothing."""

    def refuse(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


def test_cuts_have_the_shapes_that_the_classifiers_give(classifier: Lite0) -> None:
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    resnet50 = ResNet50().eval().requires_grad_(False)
    for network in (classifier, resnet50):
        for name, cut in CLASSIFIERS[network.name].cuts.items():
            features = network.features(x, name)
            assert features.shape == (1, cut.channels, 64 // cut.stride, 64 // cut.stride)
            assert torch.equal(build_tail(network, name)(features), network.classify(features, name))


def test_a_file_goes_to_the_classifier_that_it_is_of(tmp_path: Path) -> None:
    """A cloud with bundles of two classifiers is given one file."""
    other = tmp_path / "resnet50.pth"
    torch.save({"layer1.0.conv1.weight": torch.zeros(1)}, other)
    assert weights_for(RESNET50, other) == other
    assert weights_for(LITE0, other) is None
    assert weights_for(LITE0, lite0_weights_file()) == lite0_weights_file()
    assert weights_for(RESNET50, lite0_weights_file()) is None
    assert weights_for(LITE0, None) is None


@pytest.mark.parametrize("content", [None, b"no weights at all"])
def test_a_file_of_nothing_known_is_left_to_whoever_loads_it(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "weights.pth"
    if content is not None:
        file.write_bytes(content)
    assert weights_for(LITE0, file) == file
    for name in (LITE0, RESNET50):
        with pytest.raises(BundleMismatchError, match=r"weights\.pth"):
            load_classifier(name, file)


def test_resnet50_without_a_file_is_torchvisions(hub: Path) -> None:
    """What torchvision has downloaded before is taken, and its hash is that of the tensors."""
    state = ResNet50().state_dict()
    torch.save(state, hub / PUBLISHED)
    assert resnet50_weights_file() == hub / PUBLISHED
    loaded = load_classifier(RESNET50)
    assert isinstance(loaded, ResNet50)
    assert torch.equal(loaded.fc.weight, state["fc.weight"])
    assert classifier_sha256(RESNET50) == tensors_sha256(state)
    (hub / PUBLISHED).unlink()  # 102 MB


def test_a_download_that_fails_names_the_way_out(hub: Path) -> None:
    with pytest.raises(BundleMismatchError, match=r"no route to host.*--classifier-weights"):
        load_classifier(RESNET50)


def test_resnet50_of_an_old_file_has_counters_of_its_own(tmp_path: Path) -> None:
    state = {name: tensor for name, tensor in ResNet50().state_dict().items() if "num_batches" not in name}
    torch.save(state, tmp_path / "old.pth")
    loaded = load_classifier(RESNET50, tmp_path / "old.pth")
    (tmp_path / "old.pth").unlink()
    assert torch.equal(loaded.state_dict()["layer4.2.bn3.running_var"], state["layer4.2.bn3.running_var"])
