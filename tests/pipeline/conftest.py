"""What tests of the codec share: real photographs, a tiny bundle made once, and the bundle that ships.

What is heavy (torch, graphs) is imported and made when a test first asks for it.
"""

from __future__ import annotations

import contextlib
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.bundle import Bundle, load_bundle
from pipeline.inference import Engine, EngineName, Vectors, open_engine, read_vectors
from pipeline.view import make_view

if TYPE_CHECKING:
    from pipeline.codec.lite0 import Lite0
    from pipeline.codec.nested import NestedCodec

# Photographs of scikit-image's wheel that show a scene, not a texture or a drawing.
PHOTOGRAPHS = (
    "astronaut.png",
    "camera.png",
    "chelsea.png",
    "coffee.png",
    "coins.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "motorcycle_left.png",
    "retina.jpg",
    "rocket.jpg",
)


@pytest.fixture(scope="session")
def photographs() -> dict[str, NDArray[np.uint8]]:
    """Ten photographs by file name, uint8 (H, W, 3) BGR."""
    spec = find_spec("skimage")
    if spec is None or spec.origin is None:
        pytest.skip("scikit-image is not installed: pip install 'edge-cloud-rac[demo]'")
    folder = Path(spec.origin).parent / "data"
    return {name: np.asarray(cv2.imread(str(folder / name)), np.uint8) for name in PHOTOGRAPHS}


def _crops(photographs: dict[str, NDArray[np.uint8]], number: int) -> NDArray[np.uint8]:
    """Views of random windows, the photographs in turn."""
    random = np.random.default_rng(7)
    names, views = sorted(photographs), []
    for index in range(number):
        picture = photographs[names[index % len(names)]]
        side = int(min(picture.shape[:2]) * random.uniform(0.5, 1.0))
        top, left = (int(random.integers(extent - side + 1)) for extent in picture.shape[:2])
        views.append(make_view(picture[top : top + side, left : left + side]))
    return np.stack(views)


@pytest.fixture(scope="session")
def views(photographs: dict[str, NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Twenty views, uint8 (20, 224, 224, 3) BGR; not to be changed."""
    return _crops(photographs, 20)


@pytest.fixture(scope="session")
def many_views(photographs: dict[str, NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Sixty-four views, uint8 (64, 224, 224, 3) BGR; not to be changed."""
    return _crops(photographs, 64)


@pytest.fixture(scope="session")
def classifier() -> Lite0:
    """The whole frozen classifier."""
    torch = pytest.importorskip("torch")
    # On a busy machine two threads wait for one another: steps of 0.05 s then take 2 s.
    torch.set_num_threads(1)
    from pipeline.codec.classifier import LITE0, load_classifier
    from pipeline.errors import BundleMismatchError

    with contextlib.suppress(BundleMismatchError):
        return load_classifier(LITE0)
    pytest.skip("the classifier is not installed: pip install 'edge-cloud-rac[cloud]'")


@pytest.fixture(scope="session")
def tiny_codec(views: NDArray[np.uint8]) -> NestedCodec:
    """An untrained codec of few channels, depths 0 and 1, two levels; read only."""
    torch = pytest.importorskip("torch")
    from pipeline.codec.nested import NestedCodec, NestedShape

    torch.manual_seed(5)
    shape = NestedShape(
        cut_channels=40,
        cut_stride=8,
        depths=(0, 1),
        levels=2,
        channels=8,
        expansion=2,
        kernel=3,
        latent_channels=6,
        decoder_channels=8,
        decoder_blocks=1,
        decoder_expansion=1,
        decoder_kernel=3,
    )
    codec = NestedCodec(shape)
    x = (torch.from_numpy(views[:4, :, :, ::-1].copy()).permute(0, 3, 1, 2).float() - 127) / 128
    codec.fit_initial_gain(x)
    with torch.no_grad():  # a channel that is always zero, as trained codecs have
        codec.log_gain[:, 5] = -20.0
    return codec.eval().requires_grad_(False)


@pytest.fixture(scope="session")
def tiny_folder(
    tiny_codec: NestedCodec,
    classifier: Lite0,
    views: NDArray[np.uint8],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """The tiny codec's bundle; read only, to be copied before it is changed."""
    from pipeline.codec.classifier import LITE0, classifier_sha256
    from pipeline.codec.export import BundleFacts, export_bundle

    folder = tmp_path_factory.mktemp("bundles") / "tiny"
    facts = BundleFacts("tiny", LITE0, classifier_sha256(LITE0), "stride8", {"recipe": "none", "steps": 0})
    export_bundle(tiny_codec, facts, views, folder)
    return folder


@pytest.fixture(scope="session")
def tiny_bundle(tiny_folder: Path) -> Bundle:
    """The tiny bundle in memory."""
    return load_bundle(str(tiny_folder))


@pytest.fixture(scope="session")
def default_bundle() -> Bundle:
    """The bundle that ships."""
    return load_bundle("default")


@pytest.fixture(scope="session")
def graphs(default_bundle: Bundle, classifier: Lite0, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the shipped bundle's cloud graphs, made once, away from the user's cache."""
    from pipeline.codec.cache import prepare_graphs

    return prepare_graphs(default_bundle, tmp_path_factory.mktemp("graphs"))


@pytest.fixture(scope="session")
def vectors(graphs: Path) -> Vectors:
    """The decoder's vectors of the shipped bundle."""
    return read_vectors(graphs)


@pytest.fixture(scope="session", params=["onnxruntime", "openvino"])
def engine(request: pytest.FixtureRequest, graphs: Path) -> Engine:
    """Each engine that is installed, on the shipped bundle's graphs, in fp32."""
    name: EngineName = request.param
    pytest.importorskip(name)
    return open_engine(graphs, name, 1, "fp32")
