"""Checkpoints: whole or not at all, of the same recipe, and nothing in them is run."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.errors import TrainingError
from pipeline.training.checkpoint import load_checkpoint, save_checkpoint

STATE = {"recipe": {"name": "tiny", "minutes": 2.0}, "weights": torch.arange(5.0), "step": 7}


def test_saved_state_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(STATE, path)
    state = load_checkpoint(path, {"name": "tiny", "minutes": 2.0})
    assert state["step"] == 7
    assert torch.equal(state["weights"], torch.arange(5.0))
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint.pt"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("unexpected pos 64 vs 0")])
def test_full_disk_leaves_the_checkpoint_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(STATE, path)

    def fail(_: object, file: Any) -> None:
        file.write(b"half of the new")
        raise error

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(TrainingError, match="the one before is untouched"):
        save_checkpoint({**STATE, "step": 8}, path)
    assert load_checkpoint(path)["step"] == 7
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_content_is_on_the_disk_before_it_takes_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A power cut after the rename must not leave an empty file."""
    path, order = tmp_path / "checkpoint.pt", []
    replace, sync = Path.replace, os.fsync

    def watched_replace(self: Path, target: Path) -> Path:
        order.append("replace")
        return replace(self, target)

    def watched_sync(file: int) -> None:
        order.append("sync")
        sync(file)

    monkeypatch.setattr(Path, "replace", watched_replace)
    monkeypatch.setattr(os, "fsync", watched_sync)
    save_checkpoint(STATE, path)
    assert order == ["sync", "replace"]


def test_folder_that_is_gone_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="checkpoint not written"):
        save_checkpoint(STATE, tmp_path / "gone" / "checkpoint.pt")


def test_checkpoint_of_another_recipe_names_the_difference(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(STATE, path)
    with pytest.raises(TrainingError, match=r"another recipe \(differs in minutes, seed\)"):
        load_checkpoint(path, {"name": "tiny", "minutes": 3.0, "seed": 1})


@pytest.mark.parametrize("content", [None, b"", b"no checkpoint", b"PK\x03\x04" + bytes(60)])
def test_file_that_is_no_checkpoint_is_one_line(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "checkpoint.pt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(TrainingError, match="not a checkpoint"):
        load_checkpoint(path)


def test_truncated_checkpoint_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(STATE, path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(TrainingError, match="not a checkpoint"):
        load_checkpoint(path)


@pytest.mark.parametrize("state", [torch.zeros(3), [1, 2]])
def test_file_that_holds_something_else_is_one_line(tmp_path: Path, state: object) -> None:
    torch.save(state, tmp_path / "checkpoint.pt")
    with pytest.raises(TrainingError, match="not a checkpoint"):
        load_checkpoint(tmp_path / "checkpoint.pt", {"name": "tiny"})


def test_nothing_in_a_checkpoint_is_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
            return os.mkdir, (str(tmp_path / "sprung"),)

    torch.save({**STATE, "trap": Trap()}, tmp_path / "checkpoint.pt")
    with pytest.raises(TrainingError, match="not a checkpoint"):
        load_checkpoint(tmp_path / "checkpoint.pt")
    assert not (tmp_path / "sprung").exists()
