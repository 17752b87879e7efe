"""Several processes train as one: real ones, over gloo, as `torchrun` starts them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pipeline.training.checkpoint import load_checkpoint
from pipeline.training.loop import CHECKPOINT_FILE, LOG_FILE
from pipeline.training.recipes import Recipe

ROOT = Path(__file__).parents[3]
STEPS, FIRST_PART = 8, 3

RANK_PROGRAM = """
import sys
from itertools import count
from pathlib import Path
import torch
from pipeline.codec.classifier import load_classifier
from pipeline.training.datasets import CropSampler, load_pictures
from pipeline.training.families import start_training
from pipeline.training.loop import resume, run_training
from pipeline.training.ranks import joined_ranks
from pipeline.training.recipes import Recipe
from pipeline.training.teacher import Teacher, TorchEngine, normalise

torch.set_num_threads(1)
here = Path(sys.argv[1])
recipe = Recipe.model_validate_json((here / "recipe.json").read_text())
pictures = load_pictures(recipe.data.folders)
classifier = load_classifier(recipe.classifier)
sample = normalise(CropSampler(pictures.training, recipe.data, 1).batch(64, 8), torch.device("cpu"))
teacher = Teacher(TorchEngine(classifier, recipe.cut), sample, recipe.cut)
with joined_ranks("cpu") as ranks:
    for name, steps, parts in (("whole", 99, 1), ("parts", int(sys.argv[2]), 2)):
        folder = here / name
        folder.mkdir(exist_ok=True)
        for part in range(parts):
            training = start_training(recipe, classifier, teacher, pictures, "cpu", ranks)
            resume(training, folder)
            crops = []
            batch = training.sampler.batch
            training.sampler.batch = lambda *size: crops.append(batch(*size)) or crops[-1]
            ticks = count(part * 999)
            # Only the first rank is asked to stop.
            stop = lambda: ranks.is_first and part < parts - 1 and training.step >= steps
            run_training(training, folder, (), stop, lambda: next(ticks) / 64)
        torch.save(
            {"codec": training.task.network["codec"].state_dict(), "step": training.step,
             "log_lmbda": training.task.log_lmbda, "crops": torch.from_numpy(crops[0].copy())},
            here / f"{name}{ranks.rank}.pt",
        )
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_processes_train_one_network(recipe: Recipe, tmp_path: Path) -> None:
    """Same weights on both ranks, from crops of their own; one log, one checkpoint; resumed exactly."""
    recipe = recipe.model_copy(update={"minutes": STEPS / 64 / 60})
    (tmp_path / "recipe.json").write_text(recipe.model_dump_json(), encoding="utf-8")
    (tmp_path / "program.py").write_text(RANK_PROGRAM, encoding="utf-8")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    program = [str(tmp_path / "program.py"), str(tmp_path), str(FIRST_PART)]
    done = subprocess.run([*launcher, *program], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    whole, parts = (
        [torch.load(tmp_path / f"{name}{rank}.pt", weights_only=True) for rank in range(2)]
        for name in ("whole", "parts")
    )
    for ends in (whole, parts):
        assert [end["step"] for end in ends] == [STEPS, STEPS]
        assert all(torch.equal(ends[0]["codec"][name], value) for name, value in ends[1]["codec"].items())
        assert torch.equal(ends[0]["log_lmbda"], ends[1]["log_lmbda"])
        assert not torch.equal(ends[0]["crops"], ends[1]["crops"])
    for first, second in zip(whole, parts, strict=True):
        assert all(torch.equal(first["codec"][name], value) for name, value in second["codec"].items())
    lines = [json.loads(line) for line in (tmp_path / "whole" / LOG_FILE).read_text(encoding="utf-8").splitlines()]
    assert [line["step"] for line in lines] == [STEPS]
    assert sorted(path.name for path in (tmp_path / "whole").iterdir()) == [CHECKPOINT_FILE, LOG_FILE]
    saved = load_checkpoint(tmp_path / "whole" / CHECKPOINT_FILE)["codec"]
    assert all(torch.equal(saved[name], value) for name, value in whole[1]["codec"].items())
