"""The paper's own classifier the whole way, with a user's commands: train, export, a cloud, a node, and its results."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import cv2
import pytest
import yaml

from nodes.sources import find_photographs
from pipeline.bundle import load_bundle
from pipeline.codec.cache import prepare_graphs
from pipeline.decoding import BatchDecoder, Classes, CodedFrame
from pipeline.encoder import Encoder, OperatingPoint
from pipeline.inference import choose_engine, open_engine, read_vectors
from pipeline.view import make_view
from tests.e2e.conftest import Start, start_cloud
from tests.e2e.programs import run
from tests.resnet import random_resnet50, write_weights

pytest.importorskip("skimage", reason="photographs are missing: pip install 'edge-cloud-rac[demo]'")

NAMES = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg")


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Weights, runs and graphs, half a gigabyte together; gone at the end."""
    folder = tmp_path / "resnet"
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)


def write_pictures(folder: Path, count: int) -> None:
    """Parts of photographs under names of which some are held out."""
    folder.mkdir()
    for number in range(count):
        picture = cv2.imread(str(find_photographs() / NAMES[number % len(NAMES)]))
        assert picture is not None
        side = min(picture.shape[:2]) - 8 * number
        assert cv2.imwrite(str(folder / f"{number:03}.png"), cv2.resize(picture[:side, :side], (256, 256)))


def check_run(*arguments: str) -> str:
    """A command of `rac` that must succeed; what it said to people."""
    ended = run("rac", *arguments)
    assert ended.returncode == 0, ended.stderr
    return ended.stderr


@pytest.mark.timeout(600)
def test_resnet50_from_training_to_results_over_sockets(start: Start, folder: Path) -> None:
    weights = str(write_weights(random_resnet50(), folder / "resnet50.pth"))
    write_pictures(folder / "pictures", 24)
    recipe = {
        "name": "resnet",
        "family": "paper",
        "classifier": "resnet50",
        "cut": "stride4",
        "pictures": 1000,
        "paper": {"depth": 1},
        "data": {"folders": ["nowhere"]},
        "crops": [{"until": 1.0, "size_px": 64, "batch": 96}],
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    given = ["--classifier-weights", weights]
    shorter = ["--pictures", "6", "--batch", "2", "--data", str(folder / "pictures"), "--threads", "1"]
    said = check_run("train", str(folder / "recipe.yaml"), "--out", str(folder / "run"), *shorter, *given)
    assert "resnet in full: 1,000 pictures seen" in said
    check_run("export", str(folder / "run" / "checkpoint.pt"), "--out", str(folder / "bundle"), "--name", "r50", *given)

    # Small batches and no haste: a frame takes thirty times that of the other classifier, and the machine may be busy.
    slow = {"RAC_POOL__BATCH_FRAMES": "2", "RAC_POOL__BATCH_TIMEOUT_S": "600", "RAC_POOL__MAX_AGE_S": "600"}
    # Bundles for two classifiers in one cloud: the file is ResNet-50's, the other's weights come from their package.
    bundles = ["--bundle", str(folder / "bundle"), "--bundle", "default"]
    cloud = start_cloud(start, *bundles, *given, "--workers", "1", RAC_CACHE=str(folder / "cache"), **slow)
    shown = sorted((folder / "pictures").iterdir())[:4]
    (folder / "shown").mkdir()
    for path in shown:
        shutil.copy(path, folder / "shown")
    node = start(
        "rac-node",
        *("--camera", str(folder / "shown"), "--fps", "max", "--reference-every", "1", "--budget-ms", "1000"),
        *("--bundle", str(folder / "bundle"), "--cloud", cloud.get("start")[0]["endpoint"], "--metrics-port", "0"),
        RAC_LINK__RESULT_TIMEOUT_S="600",
    )
    summary = node.check_end()
    assert summary["results"] == summary["references"] == 4
    assert [node.loaded("libtorch"), cloud.loaded("libtorch")] == [[], []]

    bundle = load_bundle(str(folder / "bundle"))
    assert (bundle.manifest.classifier, bundle.manifest.network["cut_channels"]) == ("resnet50", 256)
    graphs = prepare_graphs(bundle, folder / "cache", Path(weights))
    engine = open_engine(graphs, choose_engine("auto"), 1, "fp32")
    encoder, decoder = Encoder(bundle), BatchDecoder(bundle, engine, read_vectors(graphs))
    results = node.get("result")
    for path, result in zip(shown, results, strict=True):
        picture = cv2.imread(str(path))
        assert picture is not None
        view = make_view(picture)
        bitstream = encoder.encode(view, OperatingPoint(1, 0))
        (answer,), _ = decoder.decode([CodedFrame(bitstream)])
        assert isinstance(answer, Classes)
        assert result["bytes"] == len(bitstream)
        assert [each["index"] for each in result["classes"]] == list(answer.indices)
        found = [each["probability"] for each in result["classes"]]
        assert found == pytest.approx(answer.probabilities, rel=0.01, abs=1e-4)
        assert result["reference_top1"] == int(engine.classify_views(view[None]).argmax())
    assert (
        len({result["bytes"] for result in results}) > 1
    )  # an untrained decoder's classes hardly differ; their frames do

    # The bundle that ships, in the same cloud.
    other = start(
        "rac-node",
        *("--camera", str(folder / "shown"), "--fps", "max"),
        *("--cloud", cloud.get("start")[0]["endpoint"], "--metrics-port", "0"),
    )
    assert other.check_end()["results"] == 4
    cloud.end()
