"""A ResNet-50 without training, for tests: full size, and weights that let every layer be seen in the classes."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from pipeline.codec.resnet import ResNet50


def random_resnet50(seed: int = 1512) -> ResNet50:
    """Frozen, in evaluation mode; statistics and weights of a size that keeps differences visible to the end."""
    torch.manual_seed(seed)
    network = ResNet50()
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            assert layer.running_mean is not None and layer.running_var is not None
            nn.init.uniform_(layer.running_mean, -0.2, 0.2)
            nn.init.uniform_(layer.running_var, 0.5, 2.0)
            nn.init.uniform_(layer.weight, 0.5, 1.0)
            nn.init.uniform_(layer.bias, -0.2, 0.2)
    return network.eval().requires_grad_(False)


def write_weights(classifier: ResNet50, path: Path) -> Path:
    """A state dict as torchvision's files are; 102 MB, to be taken away at the end."""
    torch.save(classifier.state_dict(), path)
    return path
