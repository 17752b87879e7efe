"""What a recipe needs in full, by what a shortened run of it took here."""

from __future__ import annotations

import ctypes
import resource
import sys
from contextlib import suppress
from pathlib import Path

import torch

from pipeline.training.loop import Training
from pipeline.training.recipes import Recipe
from pipeline.training.run_folder import CHECKPOINT_FILE

GB = 1e9
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
CLEAR_PEAK = "5"
"""Sets the peak of a process back to what it has now (proc(5))."""


class StepMemory:
    """Memory of the steps from here on: the GPU's where one trains, else this process's.

    Attributes:
        before_bytes: in use already: networks, pictures, the program itself.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            self.before_bytes = torch.cuda.memory_allocated(device)
        else:
            with suppress(OSError, AttributeError):  # not Linux, or not allowed: the peak is then that of the whole run
                ctypes.CDLL(None).malloc_trim(0)  # what was freed is not in use
                CLEAR.write_text(CLEAR_PEAK)
            self.before_bytes = min(_status_bytes("VmRSS"), self.peak_bytes())

    def peak_bytes(self) -> int:
        """The most that was in use since."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        unit = 1 if sys.platform == "darwin" else 1024
        return _status_bytes("VmHWM") or unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _status_bytes(field: str) -> int:
    """A field of this process's status; 0 where there is none."""
    with suppress(OSError):
        for line in STATUS.read_text().splitlines():
            name, _, value = line.partition(":")
            if name == field:
                return 1024 * int(value.split()[0])
    return 0


def describe_needs(full: Recipe, training: Training, folder: Path, memory: StepMemory) -> str:
    """What a recipe's whole length would take, at the speed of a shortened run of it; a line for each kind.

    Args:
        training: the run that has ended, with pictures, batches or a length of its own.
    """
    speed = training.seen / training.elapsed_s if training.elapsed_s > 0 else 0.0
    if speed == 0:
        return f"{full.name} in full: no speed was measured"
    ranks = training.ranks.count
    pictures = full.pictures or round(60 * full.minutes * speed)
    hours = pictures / speed / 3600
    epochs = pictures / len(training.pictures.training)
    place = f"{ranks} x {training.device.type}" if ranks > 1 else training.device.type
    if training.device.type == "cpu":
        place += f", threads: {torch.get_num_threads()}"
    fixed = memory.before_bytes
    of_batch = max(0, memory.peak_bytes() - fixed) * _largest_batch(full) / _largest_batch(training.recipe)
    checkpoint = (folder / CHECKPOINT_FILE).stat().st_size / GB
    batches = " and ".join(dict.fromkeys(f"{crop.batch} x {crop.size_px} px" for crop in full.crops))
    return "\n".join(
        [
            f"{full.name} in full: {pictures:,} pictures seen, {epochs:,.1f} epochs of the "
            f"{len(training.pictures.training):,} here, {_steps(full, pictures, ranks):,} steps",
            f"  time: about {hours:,.1f} hours at the {speed:.3g} pictures/s measured here ({place})",
            f"  memory: about {(fixed + of_batch) / GB:.1f} GB with batches of {batches}, {fixed / GB:.1f} GB of it "
            "whatever their size",
            f"  disk: {2 * checkpoint:.2f} GB beside the pictures, for a checkpoint and the one before",
        ]
    )


def _largest_batch(recipe: Recipe) -> int:
    """Pixels of the largest batch; what a step's memory grows with."""
    return max(crop.batch * crop.size_px**2 for crop in recipe.crops)


def _steps(recipe: Recipe, pictures: int, ranks: int) -> int:
    begun, steps = 0.0, 0.0
    for crop in recipe.crops:
        steps += (crop.until - begun) * pictures / (crop.batch * ranks)
        begun = crop.until
    return round(steps)
