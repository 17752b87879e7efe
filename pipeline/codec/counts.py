"""How many parameters and multiply-accumulates a network has, layer by layer.

A MAC is one multiply-accumulate; additions of biases, activations and batch normalisation (which folds away)
are not counted. Of GDN (ours and CompressAI's) the product with gamma is counted, and told apart, because the papers
leave it out.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.codec.entropic_student import GDN1

COUNTED = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
GDN_KINDS = (GDN1.__name__, "GDN")
"""Classes by their names: CompressAI, whose GDN is the second, need not be installed."""


@dataclass(frozen=True, slots=True)
class LayerCount:
    """One call of one counted layer, in the order of the calls.

    Attributes:
        name: path in the module, "" for the module itself.
        kind: name of the layer's class.
        output_shape: without the batch.
        parameters: of this layer, biases included.
        macs: for one picture.
    """

    name: str
    kind: str
    output_shape: tuple[int, ...]
    parameters: int
    macs: int


@dataclass(frozen=True, slots=True)
class Counts:
    """Totals of a module.

    Attributes:
        parameters: every parameter of the module, each once, used or not.
        layers: what a forward pass calls.
    """

    parameters: int
    layers: tuple[LayerCount, ...]

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one forward pass."""
        return sum(layer.macs for layer in self.layers)

    @property
    def macs_without_gdn(self) -> int:
        """The same without GDN, as the papers count."""
        return sum(layer.macs for layer in self.layers if layer.kind not in GDN_KINDS)


def count_parameters(module: nn.Module) -> int:
    """Every parameter of a module, trained or not, each once."""
    return sum(parameter.numel() for parameter in module.parameters())


def count(
    module: nn.Module,
    input_shape: tuple[int, ...],
    call: Callable[[Any, Tensor], object] | None = None,
) -> Counts:
    """Count a module at an input shape; it is not changed and nothing is computed.

    Args:
        input_shape: of one input without the batch, such as (3, 224, 224).
        call: how to run the module where `module(x)` is not all, such as `lambda encoder, x: encoder(x, 4)`.
    """
    # On the meta device tensors have shapes only: a decoder of 8 GMAC is counted in milliseconds.
    shadow = deepcopy(module).to("meta").eval()
    layers: list[LayerCount] = []

    def register(name: str, layer: nn.Module) -> None:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            input_shape, output_shape = tuple(inputs[0].shape[1:]), tuple(output.shape[1:])
            macs = layer_macs(layer, input_shape, output_shape)
            layers.append(LayerCount(name, type(layer).__name__, output_shape, count_parameters(layer), macs))

        layer.register_forward_hook(hook)

    for name, layer in shadow.named_modules():
        if isinstance(layer, COUNTED) or _is_gdn(layer):
            register(name, layer)
    x = torch.zeros(1, *input_shape, device="meta")
    with torch.no_grad():
        if call is None:
            shadow(x)
        else:
            call(shadow, x)
    return Counts(count_parameters(module), tuple(layers))


def layer_macs(layer: nn.Module, input_shape: tuple[int, ...], output_shape: tuple[int, ...]) -> int:
    """Multiply-accumulates of one layer for one picture; shapes without the batch.

    Raises:
        ValueError: a kind of layer that is not counted.
    """
    if isinstance(layer, nn.ConvTranspose2d):  # every input value meets every weight of its group once
        return prod(input_shape) * layer.out_channels // layer.groups * prod(layer.kernel_size)
    if isinstance(layer, nn.Conv2d):
        return prod(output_shape) * layer.in_channels // layer.groups * prod(layer.kernel_size)
    if isinstance(layer, nn.Linear):
        return prod(output_shape) * layer.in_features
    if _is_gdn(layer):
        return prod(output_shape) * output_shape[0]
    raise ValueError(f"{type(layer).__name__} is not counted")


def _is_gdn(layer: nn.Module) -> bool:
    return type(layer).__name__ in GDN_KINDS
