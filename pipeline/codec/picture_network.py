"""CompressAI's picture codecs, its own model classes, as baselines: pictures to real bytes and back.

    x -> g_a -> y -> symbols -> y_hat -> g_s -> x_hat      factorised prior
    y -> h_a -> z -> symbols -> z_hat -> h_s -> scales     hyperprior: of y's symbols, beside the path above

    coded picture: height and width uint16, then y's string (factorised prior)
                   height and width uint16, length of y's string uint32, y's string, z's string (hyperprior)

The strings are what CompressAI's coder makes, by tables that were built once, at export. It knows no bounds: bytes of
another hand are not for `decode`. Source: Balle et al. 2018 (arXiv 1802.01436); CompressAI is an extra (`[train]`).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.codec.compressai_import import import_compressai
from pipeline.errors import CorruptBitstreamError, TruncatedBitstreamError

PictureNetworkName = Literal["factorized", "hyperprior"]
STRIDES = {"factorized": 16, "hyperprior": 64}
"""Sides of what a network is given are multiples of these; right and lower edges are repeated up to there."""
SIDES, Y_LENGTH = struct.Struct("<HH"), struct.Struct("<I")
MAX_SIDE_PX = 8192
LATENT_STD = 2.0
"""At the start, against the noise's 0.3; as initialised it is 0.04 to 0.07, and a short run never gets going."""


@dataclass(frozen=True, slots=True)
class PictureShape:
    """Sizes of a network.

    Attributes:
        channels / latent_channels: N and M of the papers.
    """

    network: PictureNetworkName
    channels: int
    latent_channels: int


def build_picture_network(shape: PictureShape) -> nn.Module:
    """An untrained network of CompressAI.

    Raises:
        ModuleNotFoundError: compressai or torchvision is not installed.
    """
    models = import_compressai("compressai.models")
    kind = models.FactorizedPrior if shape.network == "factorized" else models.ScaleHyperprior
    network: nn.Module = kind(shape.channels, shape.latent_channels)
    # No gradient reaches them: they are fitted to the trained prior, by bisection.
    network.entropy_bottleneck.quantiles.requires_grad_(False)  # type: ignore[union-attr]
    return network


@torch.no_grad()
def fit_initial_scale(network: Any, x: Tensor) -> None:
    """Bring every layer's numbers to a fitting size, from the first to the last, on some pictures (B, 3, H, W), 0 to 1.

    Source: Mishkin and Matas 2015 (layer-sequential unit variance).
    """
    y = _scaled(network.g_a, x, 0.0, LATENT_STD)
    if is_hyperprior(network):
        _scaled(network.h_s, _scaled(network.h_a, y.abs(), 0.0, LATENT_STD), LATENT_STD, 1.0)
    _scaled(network.g_s, y, float(x.mean()), float(x.std()))


def _scaled(layers: nn.Sequential, x: Tensor, mean: float, std: float) -> Tensor:
    """Scale convolutions one after the other: outputs of the last get this mean and deviation, others 0 and 1."""
    convolutions = [layer for layer in layers if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)]
    for layer in layers:
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            wanted_mean, wanted_std = (mean, std) if layer is convolutions[-1] else (0.0, 1.0)
            assert layer.bias is not None
            layer.bias.zero_()
            layer.weight.mul_(wanted_std / layer(x).std())
            layer.bias.copy_(wanted_mean - layer(x).mean(dim=(0, 2, 3)))
        x = layer(x)
    return x


def fit_quantiles(network: Any) -> None:
    """Set the prior's medians and bounds to its distribution; the tables are built by `build_tables`."""
    fitted = deepcopy(network)
    fitted.update(force=True, update_quantiles=True)
    with torch.no_grad():
        network.entropy_bottleneck.quantiles.copy_(fitted.entropy_bottleneck.quantiles)


def build_tables(network: Any) -> None:
    """Integer tables of the prior as it is now; with them in its state a network codes the same everywhere."""
    network.update(force=True)


def reconstruct(network: Any, x: Tensor, autocast: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
    """Pictures through the network without bytes; in training mode with noise in place of rounding.

    Args:
        x: float32 (B, 3, H, W) RGB, 0 to 1.
        autocast: precision of transforms; the prior's numbers are always fp32.

    Returns:
        The pictures again, not clamped, and the bits (B,) that the prior gives them.
    """
    height, width = x.shape[-2:]
    with torch.autocast(x.device.type, autocast or torch.bfloat16, enabled=autocast is not None):
        y = network.g_a(_padded(x, network)).float()
        z = network.h_a(y.abs()).float() if is_hyperprior(network) else None
    if z is None:
        y_hat, likelihoods = network.entropy_bottleneck(y)
        bits = _bits(likelihoods)
    else:
        z_hat, z_likelihoods = network.entropy_bottleneck(z)
        with torch.autocast(x.device.type, autocast or torch.bfloat16, enabled=autocast is not None):
            scales = network.h_s(z_hat).float()
        y_hat, likelihoods = network.gaussian_conditional(y, scales)
        bits = _bits(likelihoods) + _bits(z_likelihoods)
    with torch.autocast(x.device.type, autocast or torch.bfloat16, enabled=autocast is not None):
        x_hat: Tensor = network.g_s(y_hat)
    return x_hat[..., :height, :width].float(), bits


def is_hyperprior(network: nn.Module) -> bool:
    """Whether a network of CompressAI's is the hyperprior."""
    return hasattr(network, "h_a")


def _bits(likelihoods: Tensor) -> Tensor:
    return -likelihoods.log2().flatten(1).sum(dim=1)


def padded_side(network: nn.Module, side: int) -> int:
    """Pixels of what the network is given for a side of a picture."""
    stride = _stride(network)
    return -(-side // stride) * stride


def _stride(network: nn.Module) -> int:
    return STRIDES["hyperprior" if is_hyperprior(network) else "factorized"]


def _padded(x: Tensor, network: nn.Module) -> Tensor:
    below, right = (padded_side(network, side) - side for side in x.shape[-2:])
    return F.pad(x, (0, right, 0, below), mode="replicate") if below or right else x


class PictureCoder:
    """Codes single pictures, uint8 (H, W, 3) BGR, with a network whose tables are built.

    Both directions run on one thread: which table codes a symbol of the hyperprior follows from floating-point numbers,
    and these must come out alike.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network: Any = network.eval().to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]

    @torch.no_grad()
    def encode(self, picture: NDArray[np.uint8]) -> bytes:
        """The coded picture with its header."""
        with _one_thread():
            coded = self.network.compress(_padded(unit_picture(picture), self.network))
        strings = [rows[0] for rows in coded["strings"]]
        header = SIDES.pack(*picture.shape[:2])
        return b"".join([header, *(Y_LENGTH.pack(len(string)) for string in strings[:-1]), *strings])

    @torch.no_grad()
    def decode(self, content: bytes) -> NDArray[np.uint8]:
        """The picture of bytes that `encode` made.

        Raises:
            TruncatedBitstreamError: they end before their header, or a string, does.
            CorruptBitstreamError: no picture has the sides that they name.
        """
        height, width, strings = self._parse(content)
        shape = [-(-side // _stride(self.network)) for side in (height, width)]
        with _one_thread():
            x_hat = self.network.decompress([[string] for string in strings], shape)["x_hat"]
        return byte_picture(x_hat[..., :height, :width])

    @torch.no_grad()
    def expected(self, picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """What `decode` has to give for a picture, computed without bytes."""
        with _one_thread():
            return byte_picture(reconstruct(self.network, unit_picture(picture))[0])

    def _parse(self, content: bytes) -> tuple[int, int, list[bytes]]:
        start = SIDES.size + (Y_LENGTH.size if is_hyperprior(self.network) else 0)
        if len(content) < start:
            raise TruncatedBitstreamError(f"coded picture of {len(content)} bytes: its header has {start}")
        height, width = SIDES.unpack_from(content)
        if not (0 < height <= MAX_SIDE_PX and 0 < width <= MAX_SIDE_PX):
            raise CorruptBitstreamError(f"coded picture of {height} x {width} pixels: sides are 1 to {MAX_SIDE_PX}")
        if not is_hyperprior(self.network):
            return height, width, [content[start:]]
        (length,) = Y_LENGTH.unpack_from(content, SIDES.size)
        if start + length > len(content):
            raise TruncatedBitstreamError(f"coded picture: a string of {length} bytes in {len(content) - start}")
        return height, width, [content[start : start + length], content[start + length :]]


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def unit_picture(picture: NDArray[np.uint8]) -> Tensor:
    """uint8 (H, W, 3) BGR to float32 (1, 3, H, W) RGB, 0 to 1."""
    return torch.from_numpy(picture[:, :, ::-1].copy()).permute(2, 0, 1)[None].to(torch.float32) / 255


def byte_picture(x: Tensor) -> NDArray[np.uint8]:
    """float32 (1, 3, H, W) RGB to uint8 (H, W, 3) BGR."""
    pixels = (x[0].clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    return np.ascontiguousarray(pixels[:, :, ::-1])
