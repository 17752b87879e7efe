"""CompressAI's picture codecs among the others: those that a sweep trained, and its own weights where they can be had.

    coded picture: quality uint8, then as `codec.picture_network` has it: 5 bytes of header (hyperprior: 9), all counted

Its own weights are downloaded once, into torch's folder for such files (TORCH_HOME). Where there is no way to them, the
first one says so.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pipeline.codec.compressai_import import import_compressai
from pipeline.codec.picture_network import (
    PictureCoder,
    PictureNetworkName,
    PictureShape,
    build_picture_network,
    build_tables,
)
from pipeline.codec.weights_file import read_weights
from pipeline.errors import BundleFormatError, CorruptBitstreamError
from pipeline.evaluation.baselines import MissingCodec, PictureCodec

PRETRAINED = {"bmshj2018-factorized": "factorised prior", "bmshj2018-hyperprior": "hyperprior"}
"""CompressAI's names of the two, and ours."""
QUALITIES = tuple(range(1, 9))
DOWNLOAD_TIMEOUT_S = 5.0
"""Without a byte; torch's own download waits for ever."""


def find_pretrained(say: Callable[[str], None]) -> Iterator[PictureCodec | MissingCodec]:
    """Both codecs with CompressAI's own weights for squared error, or why they are not there.

    Args:
        say: told before anything is downloaded.
    """
    reason = ""
    for architecture, name in PRETRAINED.items():
        row = f"{name}, CompressAI's weights"
        networks: dict[int, nn.Module] = {}
        try:
            for quality in QUALITIES if not reason else ():  # what failed once is not waited for again
                networks[quality] = _load_pretrained(architecture, quality, say)
        except ModuleNotFoundError as error:
            reason = not_installed(error)
        except Exception as error:  # urllib and torch raise many kinds
            reason = f"the weights cannot be downloaded ({' '.join(str(error).split())[:120]})"
        yield MissingCodec(row, reason) if reason else codec_of(row, networks)


def not_installed(error: ModuleNotFoundError) -> str:
    """What the row of a missing package says."""
    return f"not installed ({str(error.name).partition('.')[0]}, of the extra [train])"


def codec_of(name: str, networks: Mapping[int, nn.Module]) -> PictureCodec:
    """A picture codec of networks whose tables are built, one for each quality."""
    coders = {quality: PictureCoder(network) for quality, network in networks.items()}

    def encode(view: NDArray[np.uint8], quality: int) -> bytes:
        return bytes([quality]) + coders[quality].encode(view)

    def decode(content: bytes) -> NDArray[np.uint8]:
        if not content or content[0] not in coders:
            raise CorruptBitstreamError(f"{name}: coded picture of no quality that there is")
        return coders[content[0]].decode(content[1:])

    return PictureCodec(name, tuple(coders), encode, decode)


def read_network(file: Path) -> nn.Module:
    """A network that a sweep trained, with the tables that were built at its export.

    Raises:
        BundleFormatError: the file is none of such a network.
        ModuleNotFoundError: compressai is not installed.
    """
    tensors, facts = read_weights(file)
    try:
        name, sizes = facts["network"], (int(facts["channels"]), int(facts["latent_channels"]))
        network = build_picture_network(PictureShape(cast(PictureNetworkName, name), *sizes))
        network.load_state_dict(tensors)
    except (KeyError, ValueError, RuntimeError) as error:
        raise BundleFormatError(f"{file}: no weights of a picture codec ({' '.join(str(error).split())})") from error
    return network


def _load_pretrained(architecture: str, quality: int, say: Callable[[str], None]) -> nn.Module:
    zoo: Any = import_compressai("compressai.zoo.image")
    address = zoo.model_urls[architecture]["mse"][quality]
    if not (Path(torch.hub.get_dir()) / "checkpoints" / Path(urlsplit(address).path).name).exists():
        say(f"{architecture} {quality}: its weights are looked for on the net")
    with _impatient(), redirect_stdout(sys.stderr):
        state = torch.hub.load_state_dict_from_url(address, progress=False, check_hash=True, weights_only=True)
    network: nn.Module = zoo.model_architectures[architecture].from_state_dict(zoo.load_pretrained(state))
    build_tables(network)
    return network


@contextmanager
def _impatient() -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT_S)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
