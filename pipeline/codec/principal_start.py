"""Starts a nested codec as a transform codec: principal components of 8 x 8 patches, rounded, and turned back.

A random start has to find out first that pictures have edges. Here the patch embedding already computes the principal
components of patches, every exit passes them on, every block is the identity, and the decoder is the transform's
inverse; quantised, that is about JPEG without its tables. Training then bends all of it towards what the classifier
looks at. At a cut other than `input` the decoder's last layer stays random: the features there are no linear function
of patches; of a decoder with the paper's layers all stay random.

Letters: K components, D = 192 values of a patch (3, 8, 8).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.codec.nested import LATENT_STRIDE, Block, NestedCodec

WHITENING = 0.7
"""Inside the networks a component of standard deviation s is divided by s to this power: at 1 the finest components
would be as loud as the mean colour, at 0 hardly heard."""
SMALLEST_STD = 0.02
"""About the rounding noise of 8-bit pixels; components below it are not blown up."""


def principal_components(x: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mean (D,), components (K, D), orthonormal, and their standard deviations (K,), loudest first.

    Args:
        x: normalised RGB pictures (B, 3, H, W), H and W multiples of 8.
    """
    patches = F.unfold(x, LATENT_STRIDE, stride=LATENT_STRIDE).transpose(1, 2).reshape(-1, 3 * LATENT_STRIDE**2)
    mean = patches.mean(dim=0)
    centred = patches - mean
    variance, vectors = torch.linalg.eigh(centred.T @ centred / len(centred))
    std = variance.flip(0)[:count].clamp_min(0).sqrt()
    return mean, vectors.flip(1)[:, :count].T.contiguous(), std


@torch.no_grad()
def start_from_principal_components(codec: NestedCodec, x: Tensor, coarsest_step: float, level_ratio: float) -> None:
    """Set every weight of an untrained codec so that it codes the principal components of patches.

    Args:
        x: normalised pictures (B, 3, H, W), some thousands of patches.
        coarsest_step: quantisation step of level 0, in units of normalised pixels.
        level_ratio: how much finer the step of each next level is.
    """
    shape, encoder, decoder = codec.shape, codec.encoder, codec.decoder
    kept = min(shape.latent_channels, shape.channels, shape.decoder_channels)
    mean, components, std = principal_components(x, shape.channels)
    loudness = std.clamp_min(SMALLEST_STD) ** WHITENING
    side = LATENT_STRIDE
    encoder.patch.weight.zero_()
    encoder.patch.weight[: len(components)] = (components / loudness[:, None]).reshape(-1, 3, side, side)
    _bias(encoder.patch).zero_()
    _bias(encoder.patch)[: len(components)] = -(components @ mean) / loudness
    for module in codec.modules():
        if isinstance(module, Block):
            module.project.weight.zero_()
    restore = torch.zeros(shape.latent_channels, shape.channels)
    restore[range(kept), range(kept)] = loudness[:kept]
    for exit_module in encoder.exits.values():
        _set_linear(exit_module, restore)
    if isinstance(decoder.enter, nn.Conv2d):
        decoder.enter.weight.zero_()
        decoder.enter.weight[range(kept), range(kept), 0, 0] = 1 / loudness[:kept]
        _bias(decoder.enter).zero_()
    else:  # the paper's: its layers stay random, and hear every component as loud
        decoder.enter.weight[:kept] /= loudness[:kept, None, None, None]
    if shape.cut_stride == 1:
        # Features are standardised: (pixels - mean) / std of each colour.
        colour_std = decoder.feature_std.repeat_interleave(side**2)
        colour_mean = decoder.feature_mean.repeat_interleave(side**2)
        decoder.leave.weight.zero_()
        decoder.leave.weight[:, :kept, 0, 0] = (components[:kept] * loudness[:kept, None]).T / colour_std[:, None]
        _bias(decoder.leave).copy_((mean - colour_mean) / colour_std)
    steps = torch.log(torch.tensor(level_ratio)) * torch.arange(shape.levels) - torch.log(torch.tensor(coarsest_step))
    codec.log_gain.copy_(steps[:, None].expand_as(codec.log_gain))
    codec.log_inverse_gain.copy_(-steps[None, :, None].expand_as(codec.log_inverse_gain))
    # Of a Laplace distribution the scale is the standard deviation over the square root of two. The coefficients of a
    # block are not as wide as each other, so they are looked at; channels without a component stay at 1.
    spread = encoder(x, 0).std(dim=(0, 2, 3))
    log_std = torch.where(spread > 0, torch.log(spread.clamp_min(SMALLEST_STD) / 2**0.5), torch.zeros_like(spread))
    codec.log_scale.copy_((steps[:, None] + log_std)[None].expand_as(codec.log_scale))


def _set_linear(exit_module: nn.Module, weight: Tensor) -> None:
    """Make an exit compute weight (C, channels) @ x: a perceptron does it as w relu(x) - w relu(-x)."""
    if isinstance(exit_module, nn.Conv2d):
        exit_module.weight.copy_(weight[:, :, None, None])
        _bias(exit_module).zero_()
        return
    assert isinstance(exit_module, nn.Sequential)
    first, last = exit_module[0], exit_module[-1]
    assert isinstance(first, nn.Conv2d)
    assert isinstance(last, nn.Conv2d)
    identity = torch.eye(weight.shape[1])
    first.weight.copy_(torch.cat([identity, -identity])[:, :, None, None])
    last.weight.copy_(torch.cat([weight, -weight], dim=1)[:, :, None, None])
    _bias(first).zero_()
    _bias(last).zero_()


def _bias(layer: nn.Conv2d) -> Tensor:
    assert layer.bias is not None
    return layer.bias
