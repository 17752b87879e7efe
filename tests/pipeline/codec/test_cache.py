"""The cache of the cloud's graphs: made once, checked always, and only for the right classifier."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.bundle import Bundle
from pipeline.codec import cache
from pipeline.codec.cache import prepare_graphs
from pipeline.codec.classifier import lite0_weights_file
from pipeline.codec.lite0 import Lite0
from pipeline.errors import BundleError, BundleMismatchError
from pipeline.inference import (
    CLOUD_GRAPH,
    FACTS_FILE,
    REFERENCE_GRAPH,
    VECTORS_FILE,
    find_graphs,
    open_engine,
    read_vectors,
)


@pytest.fixture(scope="module")
def made(tiny_bundle: Bundle, classifier: Lite0, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache root with the tiny bundle's graphs; read only."""
    root = tmp_path_factory.mktemp("cache")
    prepare_graphs(tiny_bundle, root)
    return root


@pytest.fixture
def root(made: Path, tmp_path: Path) -> Path:
    """A copy of it to spoil."""
    return Path(shutil.copytree(made, tmp_path / "cache"))


@pytest.fixture
def no_export(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> bytes:
        raise AssertionError("made again")

    monkeypatch.setattr(cache, "export_cloud_graph", fail)


@pytest.fixture
def quick_export(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "export_cloud_graph", lambda *_: b"cloud")
    monkeypatch.setattr(cache, "export_reference_graph", lambda *_: b"reference")


@pytest.mark.usefixtures("no_export")
def test_graphs_are_made_once(tiny_bundle: Bundle, root: Path) -> None:
    folder = prepare_graphs(tiny_bundle, root)
    assert folder == find_graphs(root, tiny_bundle.bundle_id, None)
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        (CLOUD_GRAPH, REFERENCE_GRAPH, VECTORS_FILE, FACTS_FILE)
    )
    assert [path for path in root.iterdir() if path != folder] == []


@pytest.mark.usefixtures("no_export")
def test_another_bundle_does_not_get_these_graphs(tiny_bundle: Bundle, root: Path) -> None:
    other = replace(tiny_bundle, bundle_id=bytes(32))
    assert find_graphs(root, other.bundle_id, None) is None
    with pytest.raises(AssertionError, match="made again"):
        prepare_graphs(other, root)


@pytest.mark.parametrize("name", [CLOUD_GRAPH, REFERENCE_GRAPH, VECTORS_FILE, FACTS_FILE])
@pytest.mark.parametrize("damage", ["changed", "gone"])
def test_damaged_cache_is_not_found(tiny_bundle: Bundle, root: Path, name: str, damage: str) -> None:
    """A disk that filled up, a copy that was cut off: the graphs must never be run."""
    folder = find_graphs(root, tiny_bundle.bundle_id, None)
    assert folder is not None
    if damage == "gone":
        (folder / name).unlink()
    else:
        content = bytearray((folder / name).read_bytes())
        content[len(content) // 2] ^= 0xFF
        (folder / name).write_bytes(content)
    assert find_graphs(root, tiny_bundle.bundle_id, None) is None


@pytest.mark.parametrize("facts", ["{}", "[]", "null", '{"sha256": {}, "depths": [0], "levels16": [0]}'])
def test_cache_whose_facts_prove_nothing_is_not_found(tiny_bundle: Bundle, root: Path, facts: str) -> None:
    folder = find_graphs(root, tiny_bundle.bundle_id, None)
    assert folder is not None
    (folder / FACTS_FILE).write_text(facts, encoding="utf-8")
    assert find_graphs(root, tiny_bundle.bundle_id, None) is None


def test_damaged_cache_is_made_again(tiny_bundle: Bundle, root: Path) -> None:
    folder = find_graphs(root, tiny_bundle.bundle_id, None)
    assert folder is not None
    sound = json.loads((folder / FACTS_FILE).read_text(encoding="utf-8"))["sha256"][CLOUD_GRAPH]
    (folder / CLOUD_GRAPH).write_bytes(b"")
    (folder / REFERENCE_GRAPH).unlink()
    assert prepare_graphs(tiny_bundle, root) == folder
    assert find_graphs(root, tiny_bundle.bundle_id, None) == folder
    assert json.loads((folder / FACTS_FILE).read_text(encoding="utf-8"))["sha256"][CLOUD_GRAPH] == sound
    vectors = read_vectors(folder)
    assert set(vectors.rows) == set(tiny_bundle.tables)
    engine = open_engine(folder, "onnxruntime", 1, "fp32")
    logits = engine.classify_symbols(np.zeros((2, 6, 28, 28), np.int32), *vectors.gather([(0, 0), (1, 16)]))
    assert logits.shape == (2, 1000)


def test_classifier_of_other_weights_is_refused(tiny_bundle: Bundle, tmp_path: Path) -> None:
    """A tail with other weights would give classes, only wrong ones."""
    state = torch.load(lite0_weights_file(), weights_only=True)
    state["_fc.bias"][0] += 0.5
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(BundleMismatchError, match="trained with other efficientnet_lite0 weights"):
        prepare_graphs(tiny_bundle, tmp_path / "cache", tmp_path / "other.pth")
    assert not (tmp_path / "cache").exists()


def test_weights_file_that_is_missing_is_one_line(tiny_bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(BundleMismatchError, match=r"none\.pth"):
        prepare_graphs(tiny_bundle, tmp_path, tmp_path / "none.pth")


@pytest.mark.usefixtures("quick_export")
def test_cache_that_cannot_be_written_names_the_way_out(tiny_bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(BundleError, match="RAC_CACHE"):
        prepare_graphs(tiny_bundle, tmp_path / "file")


def test_process_that_was_faster_is_believed(
    tiny_bundle: Bundle, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two clouds start at once: the second takes the first one's folder, which may be in use already."""
    root = tmp_path / "cache"

    def overtaken(*_: object) -> bytes:
        shutil.copytree(made, root)
        return b"slower"

    monkeypatch.setattr(cache, "export_cloud_graph", overtaken)
    folder = prepare_graphs(tiny_bundle, root)
    assert folder == find_graphs(root, tiny_bundle.bundle_id, None)
    assert (folder / CLOUD_GRAPH).read_bytes() != b"slower"
    assert list(root.iterdir()) == [folder]


@pytest.mark.usefixtures("quick_export")
def test_failed_export_leaves_nothing_behind(
    tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", fail)
    with pytest.raises(BundleError, match="No space left on device"):
        prepare_graphs(tiny_bundle, tmp_path)
    assert list(tmp_path.iterdir()) == []
