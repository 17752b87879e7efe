"""ResNet-50 against torchvision's, its cut, and the loading of weights."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from pipeline.codec.counts import count, count_parameters
from pipeline.codec.resnet import CUT_CHANNELS, ResNet50, ResNet50Head, ResNet50Tail, load_resnet50
from pipeline.errors import ConfigError
from tests.resnet import random_resnet50


@pytest.fixture(scope="module")
def classifier() -> ResNet50:
    return random_resnet50()


def test_classifier_has_the_published_size(classifier: ResNet50) -> None:
    whole = count(classifier, (3, 224, 224))
    head = count(ResNet50Head(classifier), (3, 224, 224))
    tail = count(ResNet50Tail(classifier), (CUT_CHANNELS, 56, 56))
    assert (whole.parameters, head.parameters, tail.parameters) == (25_557_032, 225_344, 25_331_688)
    assert whole.macs == pytest.approx(4.089e9, abs=0.0005e9)
    assert head.macs == pytest.approx(0.786e9, abs=0.0005e9)
    assert tail.macs == pytest.approx(3.303e9, abs=0.0005e9)


def test_head_and_tail_are_the_classifier_cut_in_two(classifier: ResNet50) -> None:
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    features = ResNet50Head(classifier)(x)
    assert features.shape == (1, CUT_CHANNELS, 16, 16)
    assert torch.equal(features, classifier.features(x, "stride4"))
    assert torch.equal(ResNet50Tail(classifier)(features), classifier(x))
    stages = classifier.stages(features, "stride4")
    assert [tuple(stage.shape[1:]) for stage in stages] == [
        (512, 8, 8),
        (1024, 4, 4),
        (2048, 2, 2),
        (2048,),
        (1000,),
    ]
    assert torch.equal(stages[-1], classifier.classify(features))


def test_head_and_tail_keep_torchvisions_names(classifier: ResNet50) -> None:
    head, tail = ResNet50Head(classifier).state_dict(), ResNet50Tail(classifier).state_dict()
    assert not head.keys() & tail.keys()
    assert head.keys() | tail.keys() == classifier.state_dict().keys()


def test_unknown_cut_raises(classifier: ResNet50) -> None:
    with pytest.raises(ValueError, match="stride8"):
        classifier.features(torch.zeros(1, 3, 32, 32), "stride8")
    with pytest.raises(ValueError, match="stride8"):
        classifier.classify(torch.zeros(1, CUT_CHANNELS, 8, 8), "stride8")


def test_equals_torchvision_layer_by_layer(classifier: ResNet50, torchvision_models: ModuleType) -> None:
    reference = torchvision_models.resnet50(weights=None)
    reference.load_state_dict(classifier.state_dict())  # strict: every name and shape is the same
    reference.eval()
    names = [name for name, _ in classifier.named_modules() if name]
    assert set(names) <= {name for name, _ in reference.named_modules()}
    x = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    ours, theirs = _outputs(classifier, names, x), _outputs(reference, names, x)
    for name in names:
        error = (ours[name] - theirs[name]).abs().max()
        assert error <= 1e-5 * theirs[name].abs().max(), name


def _outputs(network: nn.Module, names: list[str], x: Tensor) -> dict[str, Tensor]:
    """Output of every named layer, the input of a ReLU in place included as it was before the ReLU."""
    outputs: dict[str, Tensor] = {}

    def register(name: str) -> torch.utils.hooks.RemovableHandle:
        def hook(_: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> None:
            outputs[name] = output.clone()

        return network.get_submodule(name).register_forward_hook(hook)

    handles = [register(name) for name in names]
    with torch.no_grad():
        outputs["logits"] = network(x)
    for handle in handles:
        handle.remove()
    return outputs


def test_load_reads_a_state_dict_frozen(classifier: ResNet50, tmp_path: Path) -> None:
    torch.save(classifier.state_dict(), tmp_path / "weights.pth")
    loaded = load_resnet50(tmp_path / "weights.pth")
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    name = "layer3.2.conv2.weight"
    assert torch.equal(loaded.get_parameter(name), classifier.get_parameter(name))
    assert count_parameters(loaded) == 25_557_032


def _write_other_classes(path: Path) -> None:
    state = ResNet50().state_dict()
    state["fc.weight"] = state["fc.weight"][:10]
    torch.save(state, path)


class _Hostile:
    def __reduce__(self) -> tuple[object, ...]:
        return (print, ("run by a weights file",))


@pytest.mark.parametrize(
    "write",
    [
        lambda path: path.write_bytes(b"no weights at all"),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(pickle.dumps(_Hostile(), protocol=2)),
        lambda path: torch.save({"fc.weight": _Hostile()}, path),
        lambda path: torch.save({"fc.weight": torch.zeros(1000, 2048)}, path),
        lambda path: torch.save([1, 2, 3], path),
        _write_other_classes,
        lambda path: None,
    ],
    ids=["text", "empty", "pickle", "object", "one tensor", "list", "ten classes", "missing"],
)
def test_load_of_anything_else_raises(
    write: Callable[[Path], object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "weights.pth"
    write(path)
    with pytest.raises(ConfigError, match=r"weights\.pth"):
        load_resnet50(path)
    assert "run by" not in capsys.readouterr().out
