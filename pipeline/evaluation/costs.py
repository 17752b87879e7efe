"""What a bundle's networks cost: parameters and multiply-accumulates, counted layer by layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pipeline.bundle import Bundle
from pipeline.codec.counts import Counts, count
from pipeline.codec.graphs import decoder_shape
from pipeline.codec.nested import NestedCodec
from pipeline.codec.paper import build_paper_codec
from pipeline.codec.paper_bundle import paper_shape
from pipeline.codec.picture_network import is_hyperprior, padded_side
from pipeline.frames import VIEW_SIDE_PX


@dataclass(frozen=True, slots=True)
class Cost:
    """Of one picture of 224 x 224.

    Attributes:
        encoder_macs_without_gdn: as the papers count; the same where there is no GDN.
        decoder_macs: up to the classifier's cut, or to the picture; what lies behind it is not counted.
    """

    encoder_parameters: int
    encoder_macs: int
    encoder_macs_without_gdn: int
    decoder_parameters: int
    decoder_macs: int


def count_bundle(bundle: Bundle, depth: int) -> Cost:
    """Cost of one depth of a bundle.

    Raises:
        BundleFormatError: the manifest's sizes are not those of its family.
    """
    view = (3, VIEW_SIDE_PX, VIEW_SIDE_PX)
    latent_shape = bundle.manifest.latent_shape
    if bundle.manifest.family == "paper":
        codec = build_paper_codec(paper_shape(bundle))
        edge, cloud = count(codec.encoder, view), count(codec.decoder, latent_shape)
    else:
        nested = NestedCodec(decoder_shape(bundle))
        encoder = nested.encoder
        edge = count(nn.Sequential(encoder.patch, *encoder.blocks[:depth], encoder.exits[str(depth)]), view)
        condition = torch.zeros(1, nested.shape.decoder_channels, device="meta")
        cloud = count(nested.decoder, latent_shape, lambda decoder, y: decoder.standardised(y, condition))
    return _sum([edge], [cloud])


def count_picture_network(network: Any) -> Cost:
    """Cost of a picture codec of CompressAI's; both of its sides run the hyperprior's `h_s`."""
    side = padded_side(network, VIEW_SIDE_PX)
    latent_side = side // 16
    edge = [count(network.g_a, (3, side, side))]
    cloud = [count(network.g_s, (network.M, latent_side, latent_side))]
    if is_hyperprior(network):
        scales = count(network.h_s, (network.N, latent_side // 4, latent_side // 4))
        edge += [count(network.h_a, (network.M, latent_side, latent_side)), scales]
        cloud.append(scales)
    return _sum(edge, cloud)


def _sum(edge: list[Counts], cloud: list[Counts]) -> Cost:
    return Cost(
        encoder_parameters=sum(part.parameters for part in edge),
        encoder_macs=sum(part.macs for part in edge),
        encoder_macs_without_gdn=sum(part.macs_without_gdn for part in edge),
        decoder_parameters=sum(part.parameters for part in cloud),
        decoder_macs=sum(part.macs for part in cloud),
    )
