"""Targets of the uncompressed classifier: standardised, in fp32, the same from every engine."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.codec.lite0 import Lite0
from pipeline.training.datasets import CropSampler, Pictures
from pipeline.training.recipes import DataRecipe
from pipeline.training.teacher import OpenVinoEngine, Teacher, TorchEngine, normalise

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def x(pictures: Pictures) -> Tensor:
    return normalise(CropSampler(pictures.training, DataRecipe(folders=("none",), side_px=96), 4).batch(64, 6), CPU)


def test_normalise_is_what_the_classifier_expects() -> None:
    crops = np.zeros((1, 2, 2, 3), np.uint8)
    crops[0, 0, 1] = [255, 127, 0]
    x = normalise(crops, CPU)
    assert x.shape == (1, 3, 2, 2)
    assert x[0, :, 0, 1].tolist() == [1.0, 0.0, -127 / 128]


def test_cut_features_of_the_sample_are_standardised(classifier: Lite0, x: Tensor) -> None:
    teacher = Teacher(TorchEngine(classifier, "stride8"), x, "stride8")
    cut = teacher.targets(x).cut
    assert cut.shape == (6, 40, 8, 8)
    assert cut.mean(dim=(0, 2, 3)).abs().max() < 1e-4
    spread = cut.std(dim=(0, 2, 3))
    torch.testing.assert_close(spread, torch.ones(40), rtol=1e-3, atol=1e-3)


def test_targets_are_the_classifiers_own_stages(classifier: Lite0, x: Tensor) -> None:
    teacher = Teacher(TorchEngine(classifier, "stride8"), x, "stride8")
    targets = teacher.targets(x)
    raw = targets.cut * teacher.feature_std[:, None, None] + teacher.feature_mean[:, None, None]
    torch.testing.assert_close(classifier.classify(raw, "stride8"), targets.logits, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(classifier(x), targets.logits, rtol=1e-4, atol=1e-4)
    assert len(targets.stages) == len(targets.stage_variances) == 4
    for stage, variance in zip(targets.stages, targets.stage_variances, strict=True):
        assert variance == pytest.approx(float(stage.var()))
    assert not targets.logits.requires_grad


def test_openvino_gives_torchs_targets(classifier: Lite0, x: Tensor) -> None:
    """In bf16 where the CPU has it, so off in the third digit."""
    pytest.importorskip("openvino")
    features, stages = TorchEngine(classifier, "stride8")(x)
    engine = OpenVinoEngine(classifier, "stride8", 1)
    found, found_stages = engine(x)
    for expected, other in zip([features, *stages], [found, *found_stages], strict=True):
        assert (expected - other).norm() < 0.1 * expected.norm()
    assert engine(x[:2])[0].shape == (2, 40, 8, 8)
