"""Trained picture codecs and the tuned classifier as rows; CompressAI's own weights where they can be had."""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.errors import CorruptBitstreamError
from pipeline.evaluation import picture_networks
from pipeline.evaluation.accuracy import classify_reference
from pipeline.evaluation.baselines import WEBP_QUALITIES, MissingCodec, PictureCodec, picture_codecs
from pipeline.evaluation.comparison import Bench, network_systems
from pipeline.evaluation.costs import count_picture_network
from pipeline.evaluation.picture_networks import find_pretrained
from pipeline.evaluation.point_store import PointStore
from pipeline.evaluation.sweep_file import Network
from pipeline.inference import open_engine

ALWAYS = 5
"""Class that the tuned classifier of these tests gives to every picture."""


def network_of(path: Path, **changes: Any) -> Network:
    network = Network("x", "x", "picture", "factorized", "fixed", 0.02, None, "of a test", path, 40, 1.0, "")
    return replace(network, **changes)


@pytest.fixture
def bench(graphs: Path, views: NDArray[np.uint8], tmp_path: Path) -> Bench:
    from pipeline.codec.classifier import LITE0, classifier_sha256

    engine = open_engine(graphs, "onnxruntime", 1, "fp32")
    chosen = views[:4]
    reference = classify_reference(engine, chosen)
    return Bench(
        views=chosen,
        labels=reference,
        reference=reference,
        engine=engine,
        graphs=graphs,
        engine_name="onnxruntime",
        precision="fp32",
        threads=1,
        classifier_sha256=classifier_sha256(LITE0),
        store=PointStore(tmp_path / "points", []),
        say=lambda text: None,
    )


@pytest.fixture(scope="module")
def trained(views: NDArray[np.uint8]) -> dict[str, Any]:
    """An untrained network of each kind with tables, by CompressAI's names."""
    import torch

    from pipeline.codec.picture_network import (
        PictureShape,
        build_picture_network,
        build_tables,
        fit_initial_scale,
        fit_quantiles,
        unit_picture,
    )

    torch.manual_seed(4)
    networks = {}
    for architecture, name in (("bmshj2018-factorized", "factorized"), ("bmshj2018-hyperprior", "hyperprior")):
        try:
            network = build_picture_network(PictureShape(name, 8, 12))  # type: ignore[arg-type]
        except ModuleNotFoundError as error:
            pytest.skip(f"{error.name} is not installed: pip install 'edge-cloud-rac[train]'")
        fit_initial_scale(network, torch.cat([unit_picture(view) for view in views[:2]]))
        fit_quantiles(network)
        build_tables(network)
        networks[architecture] = network
    return networks


def write_picture_network(network: Any, name: str, path: Path) -> Path:
    from pipeline.codec.picture_network import PictureShape
    from pipeline.codec.weights_file import write_weights

    facts = {key: str(value) for key, value in asdict(PictureShape(name, 8, 12)).items()}  # type: ignore[arg-type]
    write_weights(path, network.state_dict(), facts)
    return path


def test_a_trained_picture_codec_is_a_row_of_its_real_bytes(
    trained: dict[str, Any], bench: Bench, tmp_path: Path
) -> None:
    from pipeline.codec.picture_network import PictureCoder

    path = write_picture_network(trained["bmshj2018-hyperprior"], "hyperprior", tmp_path / "w.safetensors")
    (system,), missing = network_systems(bench, [network_of(path, system="hyperprior, trained small")])
    assert missing == []
    coder = PictureCoder(trained["bmshj2018-hyperprior"])
    (point,) = system.points
    assert point.num_bytes.tolist() == [1 + len(coder.encode(view)) for view in bench.views]  # 1: the quality
    decoded = np.stack([coder.decode(coder.encode(view)) for view in bench.views])
    assert point.predictions.tolist() == classify_reference(bench.engine, decoded).tolist()
    assert (point.rate, system.kind, system.note) == (0.02, "trained baseline", "of a test")
    assert system.cost is not None and system.cost.encoder_macs > system.cost.encoder_macs_without_gdn
    assert system.encode is not None
    assert system.encode(np.zeros((720, 1280, 3), np.uint8))


def test_a_tuned_classifier_is_measured_on_webp_over_its_whole_range(
    classifier: Any, bench: Bench, tmp_path: Path
) -> None:
    import torch

    from pipeline.codec.weights_file import write_weights

    tensors = {name: tensor.clone() for name, tensor in classifier.state_dict().items()}
    tensors["fc.bias"][ALWAYS] += 1e4
    path = tmp_path / "w.safetensors"
    write_weights(path, tensors, {"classifier_sha256": bench.classifier_sha256})
    network = network_of(path, family="tuned", system="WebP, classifier tuned", lmbda=None)
    (system,), missing = network_systems(bench, [network])
    assert missing == []
    assert [point.rate for point in system.points] == list(WEBP_QUALITIES)
    assert {int(answer) for point in system.points for answer in point.predictions} == {ALWAYS}
    webp = next(picture_codecs(("webp",)))
    assert system.points[0].num_bytes.tolist() == [len(webp.encode(view, WEBP_QUALITIES[0])) for view in bench.views]
    # Other weights of the same name are measured anew.
    tensors["fc.bias"] = torch.zeros(1000)
    tensors["fc.bias"][ALWAYS + 1] = 1e4
    write_weights(path, tensors, {"classifier_sha256": bench.classifier_sha256})
    (system,), _ = network_systems(bench, [network])
    assert set(system.points[0].predictions.tolist()) == {ALWAYS + 1}
    write_weights(path, tensors, {"classifier_sha256": "another"})
    assert network_systems(bench, [network])[1][0].reason == "is for another classifier"
    write_weights(path, {"fc.bias": tensors["fc.bias"]}, {"classifier_sha256": bench.classifier_sha256})
    assert "does not work" in network_systems(bench, [replace(network, name="y")])[1][0].reason


def test_weights_that_are_gone_or_none_are_a_missing_row(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no weights", encoding="utf-8")
    networks = [network_of(tmp_path / name) for name in ("missing", "text")]
    systems, missing = network_systems(bench, networks)
    assert systems == []
    assert all("does not work" in row.reason for row in missing)


@pytest.fixture
def _without_compressai(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [name for name in sys.modules if name.partition(".")[0] == "compressai"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "compressai", None)


@pytest.mark.usefixtures("_without_compressai")
def test_without_the_package_rows_say_not_installed(bench: Bench, tmp_path: Path) -> None:
    import torch

    from pipeline.codec.weights_file import write_weights

    facts = {"network": "factorized", "channels": "8", "latent_channels": "12"}
    write_weights(tmp_path / "w", {"a": torch.zeros(1)}, facts)
    systems, missing = network_systems(bench, [network_of(tmp_path / "w")])
    assert systems == []
    assert missing[0].reason == "not installed (compressai, of the extra [train])"
    found = list(find_pretrained(lambda text: None))
    assert [codec.reason for codec in found if isinstance(codec, MissingCodec)] == [missing[0].reason] * 2


# CompressAI's own weights


@pytest.fixture
def zoo(trained: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """CompressAI's list of addresses, and torch's folder of downloads, empty; two qualities."""
    from pipeline.codec.compressai_import import import_compressai

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(picture_networks, "QUALITIES", (1, 2))
    return import_compressai("compressai.zoo.image")


def test_weights_that_were_downloaded_once_are_codecs(
    zoo: Any, trained: dict[str, Any], views: NDArray[np.uint8], tmp_path: Path
) -> None:
    import torch

    folder = tmp_path / "torch/hub/checkpoints"
    folder.mkdir(parents=True)
    for architecture, network in trained.items():
        for quality in (1, 2):
            torch.save(network.state_dict(), folder / Path(zoo.model_urls[architecture]["mse"][quality]).name)
    said: list[str] = []
    found = list(find_pretrained(said.append))
    assert said == []
    assert [codec.name.partition(",")[0] for codec in found] == ["factorised prior", "hyperprior"]
    for codec in found:
        assert isinstance(codec, PictureCodec)
        assert codec.qualities == (1, 2)
        content = codec.encode(views[0], 2)
        assert codec.decode(content).shape == views[0].shape
        assert content[0] == 2
        for bad in (b"", bytes([7]) + content[1:]):
            with pytest.raises(CorruptBitstreamError):
                codec.decode(bad)


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port on which connections are made and nobody ever says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_where_there_is_no_way_to_the_weights_rows_say_so_at_once(
    zoo: Any, silent_port: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(picture_networks, "DOWNLOAD_TIMEOUT_S", 0.2)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    for architecture in picture_networks.PRETRAINED:
        addresses = {quality: f"http://127.0.0.1:{silent_port}/{architecture}-{quality}.pth" for quality in (1, 2)}
        monkeypatch.setitem(zoo.model_urls[architecture], "mse", addresses)
    before = socket.getdefaulttimeout()
    said: list[str] = []
    found = list(find_pretrained(said.append))
    assert all(isinstance(codec, MissingCodec) and "cannot be downloaded" in codec.reason for codec in found)
    assert len(said) == 1  # the second is not waited for
    assert socket.getdefaulttimeout() == before
    assert capsys.readouterr().out == ""  # which is for the JSON object


def test_counted_cost_of_the_published_size(trained: dict[str, Any]) -> None:
    """N = 128, M = 192 on 224 x 224, by hand; the hyperprior on 256 x 256 with its small transforms on both sides."""
    from pipeline.codec.picture_network import PictureShape, build_picture_network

    cost = count_picture_network(build_picture_network(PictureShape("factorized", 128, 192)))
    convolutions = 25 * (3 * 128 * 112**2 + 128 * 128 * (56**2 + 28**2) + 128 * 192 * 14**2)
    assert cost.encoder_macs_without_gdn == convolutions
    assert cost.encoder_macs == convolutions + 128**2 * (112**2 + 56**2 + 28**2)
    assert cost.decoder_macs == cost.encoder_macs
    hyper = count_picture_network(build_picture_network(PictureShape("hyperprior", 128, 192)))
    assert hyper.encoder_macs > 256**2 / 224**2 * cost.encoder_macs
