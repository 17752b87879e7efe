"""Weights with facts: what was written comes back, damage is told."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipeline.codec.weights_file import read_facts, read_weights, write_weights
from pipeline.errors import BundleError, BundleFormatError


def test_weights_and_facts_come_back(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(6.0).reshape(2, 3).t(), "b": torch.tensor([3], dtype=torch.int32)}
    write_weights(tmp_path / "w.safetensors", tensors, {"family": "tuned"})
    found, facts = read_weights(tmp_path / "w.safetensors")
    assert facts == read_facts(tmp_path / "w.safetensors") == {"family": "tuned"}
    assert set(found) == set(tensors)
    for name, tensor in tensors.items():
        torch.testing.assert_close(found[name], tensor)
    assert [path.name for path in tmp_path.iterdir()] == ["w.safetensors"]


def test_a_file_that_is_missing_or_torn_is_told(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    with pytest.raises(BundleFormatError, match=r"w\.safetensors"):
        read_weights(path)
    write_weights(path, {"a": torch.zeros(100)}, {})
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(BundleFormatError, match="no weights"):
        read_facts(path)


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="cannot be written"):
        write_weights(tmp_path / "missing" / "w.safetensors", {"a": torch.zeros(1)}, {})
