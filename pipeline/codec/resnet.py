"""ResNet-50 in torchvision's layout, cut after `layer1` into a head and a tail; the paper's classifier.

    x 3 x 224 x 224 -> head: conv1, bn1, max-pool, layer1 -> features 256 x 56 x 56 (the cut `stride4`)
      -> tail: layer2, layer3, layer4, mean, fc -> logits

Source: He, Zhang, Ren and Sun 2016 (arXiv 1512.03385); the stride of a stage sits in its first 3x3
convolution, as in torchvision. Names and shapes of the tensors are torchvision's, so that its state dicts
load.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.errors import ConfigError

EXPANSION = 4
STAGE_BLOCKS = (3, 4, 6, 3)
STEM_CHANNELS = 64
NUM_CLASSES = 1000
CUT = "stride4"
CUT_CHANNELS = 256
INPUT_MEAN_RGB = (123.675, 116.28, 103.53)
"""ImageNet's mean colour on the scale of 0..255, as 0.485, 0.456 and 0.406 of 255."""
INPUT_STD_RGB = (58.395, 57.12, 57.375)
"""ImageNet's standard deviation on the scale of 0..255, as 0.229, 0.224 and 0.225 of 255."""


class Bottleneck(nn.Module):
    """Reduce 1x1, convolve 3x3, expand 1x1, each with batch norm; the input added before the last ReLU."""

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        out_channels = EXPANSION * width
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.downsample: nn.Sequential | None = None
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


def _build_stage(index: int) -> nn.Sequential:
    """Stage 1..4: width doubles and, from the second on, the side halves."""
    width = STEM_CHANNELS << (index - 1)
    in_channels = STEM_CHANNELS if index == 1 else EXPANSION * width // 2
    first = Bottleneck(in_channels, width, 1 if index == 1 else 2)
    others = (Bottleneck(EXPANSION * width, width, 1) for _ in range(STAGE_BLOCKS[index - 1] - 1))
    return nn.Sequential(first, *others)


class ResNet50(nn.Module):
    """The whole classifier: RGB (B, 3, 224, 224), normalised as stated above, to logits (B, 1000)."""

    name: ClassVar[str] = "resnet50"

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, STEM_CHANNELS, 7, 2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(STEM_CHANNELS)
        self.layer1 = _build_stage(1)
        self.layer2 = _build_stage(2)
        self.layer3 = _build_stage(3)
        self.layer4 = _build_stage(4)
        self.fc = nn.Linear(EXPANSION * STEM_CHANNELS << 3, NUM_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.features(x))

    def features(self, x: Tensor, cut: str = CUT) -> Tensor:
        """Features (B, 256, 56, 56) at the cut.

        Raises:
            ValueError: a cut that this classifier does not have.
        """
        _check_cut(cut)
        return _head(self, x)

    def stages(self, features: Tensor, cut: str = CUT) -> list[Tensor]:
        """Features behind the cut that training compares: ends of layer2, 3 and 4, pooled features, logits.

        Raises:
            ValueError: a cut that this classifier does not have.
        """
        _check_cut(cut)
        return _stages(self, features)

    def classify(self, features: Tensor, cut: str = CUT) -> Tensor:
        """Logits (B, 1000) from the features at the cut."""
        return self.stages(features, cut)[-1]


class ResNet50Head(nn.Module):
    """What runs before the cut without a codec; shares its tensors with the classifier it was made from."""

    def __init__(self, classifier: ResNet50) -> None:
        super().__init__()
        self.conv1, self.bn1, self.layer1 = classifier.conv1, classifier.bn1, classifier.layer1

    def forward(self, x: Tensor) -> Tensor:
        return _head(self, x)


class ResNet50Tail(nn.Module):
    """What the cloud runs behind the cut; shares its tensors with the classifier it was made from."""

    def __init__(self, classifier: ResNet50) -> None:
        super().__init__()
        self.layer2, self.layer3, self.layer4 = classifier.layer2, classifier.layer3, classifier.layer4
        self.fc = classifier.fc

    def forward(self, features: Tensor) -> Tensor:
        return _stages(self, features)[-1]


def _check_cut(cut: str) -> None:
    if cut != CUT:
        raise ValueError(f"ResNet-50 has no cut {cut!r}; known: {CUT}")


def _head(layers: ResNet50 | ResNet50Head, x: Tensor) -> Tensor:
    y = F.max_pool2d(F.relu(layers.bn1(layers.conv1(x))), 3, 2, padding=1)
    features: Tensor = layers.layer1(y)
    return features


def _stages(layers: ResNet50 | ResNet50Tail, features: Tensor) -> list[Tensor]:
    stage2 = layers.layer2(features)
    stage3 = layers.layer3(stage2)
    stage4 = layers.layer4(stage3)
    pooled = stage4.mean(dim=(2, 3))
    return [stage2, stage3, stage4, pooled, layers.fc(pooled)]


def batch_counters(module: nn.Module) -> dict[str, Tensor]:
    """The tensors in which batch normalisation counts its batches: the only ones that are no float32."""
    return {name: tensor for name, tensor in module.state_dict().items() if name.endswith("num_batches_tracked")}


def load_resnet50(weights: Path) -> ResNet50:
    """Read a state dict with torchvision's names, without running anything in it; evaluation mode, frozen.

    Raises:
        ConfigError: the file is missing, holds more than tensors, or is not a ResNet-50 of 1,000 classes.
    """
    try:
        state = torch.load(weights, map_location="cpu", weights_only=True)
        classifier = ResNet50()
        # Old files do not count batches; nothing that runs in evaluation mode asks for it.
        classifier.load_state_dict({**batch_counters(classifier), **state})
    except OSError as error:
        raise ConfigError(weights, "", f"weights cannot be read: {error.strerror or error}") from error
    except Exception as error:  # torch raises many kinds for damaged files and for what it refuses to run
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ConfigError(weights, "", f"not a state dict of torchvision's ResNet-50: {reason[0]}") from error
    return classifier.eval().requires_grad_(False)
