"""The folder of a run: what is in it, and whether its parts belong together.

    checkpoint.pt  written whole or not at all
    log.jsonl      one line after the other; a run that has reached its end closes it with a line that names the
                   checkpoint's hash

A process that is killed leaves a checkpoint with lines after it, the last one perhaps torn; `trim_log` takes those
away.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from pipeline.errors import TrainingError
from pipeline.inference import file_sha256
from pipeline.training.checkpoint import load_checkpoint
from pipeline.training.recipes import Recipe

CHECKPOINT_FILE, LOG_FILE = "checkpoint.pt", "log.jsonl"
SHA256 = "checkpoint_sha256"
"""Key of the closing line."""


class RunState(Enum):
    """How far a run is."""

    NEW = "new"
    BEGUN = "begun"
    DONE = "done"
    BROKEN = "broken"


@dataclass(frozen=True, slots=True)
class RunCheck:
    """What a look into a run's folder found.

    Attributes:
        reason: what does not fit together, of a broken run.
        ending: the closing line of a run that is done.
    """

    state: RunState
    reason: str = ""
    ending: dict[str, Any] | None = None


def check_run(folder: Path, recipe: Recipe) -> RunCheck:
    """Look whether a run of this recipe is in the folder, how far it is, and whether log and weights agree."""
    checkpoint, log = folder / CHECKPOINT_FILE, folder / LOG_FILE
    lines = read_log(log)
    ending = next((line for line in reversed(lines) if SHA256 in line), None)
    if not checkpoint.exists():
        if ending is None:
            return RunCheck(RunState.NEW)
        return RunCheck(RunState.BROKEN, f"{LOG_FILE} says that it was trained, but {CHECKPOINT_FILE} is missing")
    if ending is not None and ending[SHA256] != file_sha256(checkpoint):
        return RunCheck(
            RunState.BROKEN, f"{LOG_FILE} and {CHECKPOINT_FILE} disagree: its weights are not those of the log"
        )
    try:
        state = load_checkpoint(checkpoint, recipe.model_dump(mode="json"))
        step = int(state["step"])
    except (TrainingError, KeyError, TypeError, ValueError) as error:
        return RunCheck(RunState.BROKEN, str(error).removeprefix(f"{checkpoint}: "))
    if ending is not None:
        if ending.get("step") == step:
            return RunCheck(RunState.DONE, ending=ending)
        reason = f"{LOG_FILE} ends at step {ending.get('step')}, the weights are of step {step}"
        return RunCheck(RunState.BROKEN, reason)
    if step > 0 and not log.exists():
        return RunCheck(RunState.BROKEN, f"{LOG_FILE} is missing beside weights of step {step}")
    return RunCheck(RunState.BEGUN)


def read_log(path: Path) -> list[dict[str, Any]]:
    """The log's lines; one that is torn, or no object with a step, is left out."""
    lines = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []:
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and isinstance(line.get("step"), int):
            lines.append(line)
    return lines


def trim_log(path: Path, step: int) -> None:
    """Take away what came after a step, or was torn; a crash meanwhile leaves the log as it was.

    Raises:
        TrainingError: it cannot be written.
    """
    kept = "".join(json.dumps(line) + "\n" for line in read_log(path) if line["step"] <= step)
    try:
        if path.exists() and path.read_bytes() != kept.encode():
            temporary = path.with_suffix(".partial")
            temporary.write_text(kept, encoding="utf-8")
            temporary.replace(path)
    except OSError as error:
        raise TrainingError(f"{path}: cannot be written: {error.strerror}") from error
