"""CompressAI's picture codecs: real bytes bring back what the network makes of a picture without them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pipeline.codec.picture_network import (
    LATENT_STD,
    PictureCoder,
    PictureShape,
    build_picture_network,
    build_tables,
    fit_initial_scale,
    fit_quantiles,
    reconstruct,
    unit_picture,
)
from pipeline.errors import CorruptBitstreamError, TruncatedBitstreamError

NAMES = ("factorized", "hyperprior")
HEADER_BYTES = {"factorized": 4, "hyperprior": 8}


@pytest.fixture(scope="module", params=NAMES)
def shape(request: pytest.FixtureRequest) -> PictureShape:
    pytest.importorskip("PIL")  # of the same extra, and not in need of an import that only works with help
    return PictureShape(request.param, 8, 12)


def untrained(shape: PictureShape, views: NDArray[np.uint8], seed: int = 1) -> torch.nn.Module:
    torch.manual_seed(seed)
    try:
        network = build_picture_network(shape)
    except ModuleNotFoundError as error:
        pytest.skip(f"{error.name} is not installed: pip install 'edge-cloud-rac[train]'")
    fit_initial_scale(network, torch.cat([unit_picture(view) for view in views[:4]]))
    return network


@pytest.fixture(scope="module")
def coder(shape: PictureShape, views: NDArray[np.uint8]) -> PictureCoder:
    network = untrained(shape, views)
    fit_quantiles(network)
    build_tables(network)
    return PictureCoder(network)


def test_bytes_bring_back_what_the_network_makes_of_the_picture(coder: PictureCoder, views: NDArray[np.uint8]) -> None:
    """Also of sides that are no multiples of the latents' strides."""
    for picture in (*views[:3], views[3][:100, :130]):
        content = coder.encode(picture)
        decoded = coder.decode(content)
        assert decoded.shape == picture.shape
        assert np.abs(decoded.astype(int) - coder.expected(picture)).max() <= 1
    assert coder.encode(views[0]) != coder.encode(views[1])


def test_size_is_what_the_prior_says_and_the_header(
    coder: PictureCoder, shape: PictureShape, views: NDArray[np.uint8]
) -> None:
    with torch.no_grad():
        num_bytes = float(reconstruct(coder.network, unit_picture(views[0]))[1]) / 8
    size = len(coder.encode(views[0])) - HEADER_BYTES[shape.network]
    # The factorised prior's tables are the prior's; the hyperprior takes the nearest of 64 scales.
    slack = 0.02 if shape.network == "factorized" else 0.2
    assert size == pytest.approx(num_bytes, rel=slack, abs=16)


def test_tables_travel_with_the_weights(coder: PictureCoder, shape: PictureShape, views: NDArray[np.uint8]) -> None:
    other = untrained(shape, views, seed=2)
    other.load_state_dict(coder.network.state_dict())
    content = coder.encode(views[0])
    assert PictureCoder(other).encode(views[0]) == content
    np.testing.assert_array_equal(PictureCoder(other).decode(content), coder.decode(content))


def test_a_start_has_numbers_of_a_fitting_size(shape: PictureShape, views: NDArray[np.uint8]) -> None:
    """As initialised the latents lie far below the noise, and a picture's brightness is nowhere."""
    network = untrained(shape, views)
    x = torch.cat([unit_picture(view) for view in views[:4]])
    with torch.no_grad():
        y = network.g_a(x)  # type: ignore[operator]
        x_hat, _ = reconstruct(network, x)
    assert float(y.std()) == pytest.approx(LATENT_STD, rel=0.01)
    assert float(x_hat.mean()) == pytest.approx(float(x.mean()), abs=0.15)


def test_bytes_that_are_cut_short_or_name_no_picture_are_refused(
    coder: PictureCoder, shape: PictureShape, views: NDArray[np.uint8]
) -> None:
    content = coder.encode(views[0])
    for length in range(HEADER_BYTES[shape.network]):
        with pytest.raises(TruncatedBitstreamError):
            coder.decode(content[:length])
    with pytest.raises(CorruptBitstreamError):
        coder.decode(bytes(4) + content[4:])
    if shape.network == "hyperprior":
        with pytest.raises(TruncatedBitstreamError, match="string of"):
            coder.decode(content[:9])
