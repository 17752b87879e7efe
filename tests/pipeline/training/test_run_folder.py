"""A run's folder: what fits together goes on or is done, what does not is told with its reason."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest
import torch

from pipeline.training.checkpoint import load_checkpoint, save_checkpoint
from pipeline.training.loop import Training, resume, run_training
from pipeline.training.recipes import Recipe
from pipeline.training.run_folder import CHECKPOINT_FILE, LOG_FILE, RunState, check_run, read_log, trim_log

MakeTraining = Callable[[], Training]


def train(training: Training, folder: Path, steps: int = 100) -> None:
    ticks = count()
    run_training(training, folder, (), lambda: training.step >= steps, lambda: next(ticks) / 64)


@pytest.fixture
def done(make_training: MakeTraining, tmp_path: Path) -> Path:
    """A folder with a run that reached its end."""
    train(make_training(), tmp_path)
    return tmp_path


def test_a_run_is_new_begun_and_done(make_training: MakeTraining, recipe: Recipe, tmp_path: Path) -> None:
    assert check_run(tmp_path, recipe).state is RunState.NEW
    train(make_training(), tmp_path, steps=3)
    assert check_run(tmp_path, recipe).state is RunState.BEGUN
    again = make_training()
    assert resume(again, tmp_path)
    train(again, tmp_path)
    check = check_run(tmp_path, recipe)
    assert check.state is RunState.DONE
    assert check.ending is not None
    assert check.ending["step"] == again.step
    assert check.ending["seen"] == again.seen


def test_killed_between_the_last_checkpoint_and_the_last_line_it_is_finished_without_a_step(
    make_training: MakeTraining, recipe: Recipe, done: Path
) -> None:
    log = done / LOG_FILE
    log.write_text("".join(log.read_text(encoding="utf-8").splitlines(keepends=True)[:-1]), encoding="utf-8")
    assert check_run(done, recipe).state is RunState.BEGUN
    training = make_training()
    assert resume(training, done)
    step = training.step
    train(training, done)
    assert training.step == step
    assert check_run(done, recipe).state is RunState.DONE


def test_weights_that_are_not_the_logs_are_found(recipe: Recipe, done: Path) -> None:
    state = load_checkpoint(done / CHECKPOINT_FILE)
    state["average"] = {name: torch.zeros_like(value) for name, value in state["average"].items()}
    save_checkpoint(state, done / CHECKPOINT_FILE)
    check = check_run(done, recipe)
    assert check.state is RunState.BROKEN
    assert "disagree" in check.reason


def test_a_log_of_another_run_is_found(recipe: Recipe, done: Path) -> None:
    lines = read_log(done / LOG_FILE)
    lines[-1]["step"] += 1
    (done / LOG_FILE).write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    assert "ends at step" in check_run(done, recipe).reason


def test_missing_and_damaged_parts_are_named(recipe: Recipe, done: Path) -> None:
    content = (done / CHECKPOINT_FILE).read_bytes()
    (done / CHECKPOINT_FILE).unlink()
    assert f"{CHECKPOINT_FILE} is missing" in check_run(done, recipe).reason
    (done / CHECKPOINT_FILE).write_bytes(content)
    (done / LOG_FILE).unlink()
    assert f"{LOG_FILE} is missing" in check_run(done, recipe).reason
    (done / CHECKPOINT_FILE).write_bytes(content[: len(content) // 2])
    assert "not a checkpoint" in check_run(done, recipe).reason


def test_a_run_of_another_recipe_is_found(recipe: Recipe, done: Path) -> None:
    other = recipe.model_copy(update={"seed": 99})
    check = check_run(done, other)
    assert check.state is RunState.BROKEN
    assert "another recipe (differs in seed)" in check.reason


def test_resuming_takes_away_what_came_after_the_checkpoint(make_training: MakeTraining, tmp_path: Path) -> None:
    """A killed process has written lines of steps that are made again, and half of one."""
    train(make_training(), tmp_path, steps=3)
    log = tmp_path / LOG_FILE
    before = log.read_text(encoding="utf-8")
    log.write_text(before + '{"step": 4, "loss": 1.0}\n{"step": 5, "lo', encoding="utf-8")
    training = make_training()
    assert resume(training, tmp_path)
    assert log.read_text(encoding="utf-8") == before


def test_a_torn_line_is_no_line(tmp_path: Path) -> None:
    log = tmp_path / LOG_FILE
    log.write_bytes(b'{"step": 1}\n[2]\n\xff\xfe\n{"step": 2, "loss": 0.5}\n{"step": 3')
    assert read_log(log) == [{"step": 1}, {"step": 2, "loss": 0.5}]
    trim_log(log, 1)
    assert log.read_text(encoding="utf-8") == '{"step": 1}\n'
    assert [path.name for path in tmp_path.iterdir()] == [LOG_FILE]
