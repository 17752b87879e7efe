"""The training loop: batches in, checkpoints and a log out. What is trained and how is its task's (`task.py`)."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pipeline.errors import TrainingError
from pipeline.inference import file_sha256
from pipeline.training.checkpoint import load_checkpoint, save_checkpoint
from pipeline.training.datasets import CropSampler, Pictures
from pipeline.training.device_crops import DeviceCropSampler
from pipeline.training.progress import IntervalMeans, Watcher
from pipeline.training.ranks import ALONE, Ranks
from pipeline.training.recipes import CropRecipe, Recipe
from pipeline.training.run_folder import CHECKPOINT_FILE, LOG_FILE, SHA256, trim_log
from pipeline.training.task import LossParts, Task, labels_of
from pipeline.training.teacher import normalise

LINE_STEPS = 50
"""Steps between two lines of the log."""
START_PICTURES = 64
"""On which a task sets its numbers before the first step."""
MAX_SKIPPED_STEPS = 20
"""Steps with a gradient that is not finite are left out; more of them than this is divergence, not bad luck."""

MakeTask = Callable[[Tensor], Task]
Sampler = CropSampler | DeviceCropSampler


class Training:
    """State of one run: its task's networks and optimisers, progress, random numbers.

    Attributes:
        step / seen: steps of the optimiser and pictures, of all ranks together, that the run has made.

    Args:
        sampler: of the training pictures, seeded by the recipe, equal on all ranks.
        make_task: called once with some normalised training crops.
    """

    def __init__(
        self,
        recipe: Recipe,
        pictures: Pictures,
        sampler: Sampler,
        make_task: MakeTask,
        device: str,
        ranks: Ranks = ALONE,
    ) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe, self.pictures, self.sampler, self.ranks = recipe, pictures, sampler, ranks
        self.device = torch.device(device)
        start = sampler.batch(recipe.crops[0].size_px, START_PICTURES)
        self.task = make_task(normalise(start, self.device, recipe.classifier))
        self.step = 0
        self.seen = 0
        self.elapsed_s = 0.0
        self.skipped_steps = 0
        if not ranks.is_first:
            self._draw_apart()
        self._loss = ranks.wrap(_Loss(self.task))

    @property
    def progress(self) -> float:
        """Share of the run that is done: of its pictures where the recipe counts them, else of its time."""
        if self.recipe.pictures is not None:
            return min(1.0, self.seen / self.recipe.pictures)
        return min(1.0, self.elapsed_s / (60 * self.recipe.minutes))

    @property
    def left_s(self) -> float:
        """Seconds that are left, at the speed so far where the recipe counts pictures."""
        if self.recipe.pictures is None:
            return 60 * self.recipe.minutes - self.elapsed_s
        return self.elapsed_s * (self.recipe.pictures / self.seen - 1) if self.seen else 0.0

    @property
    def crop(self) -> CropRecipe:
        """Size and number of the crops at this progress."""
        return next(crop for crop in self.recipe.crops if self.progress <= crop.until)

    def train_step(self) -> dict[str, float]:
        """One step of the optimiser; returns the named parts of its loss."""
        task, crop, recipe = self.task, self.crop, self.recipe
        if task.advance(self.progress):
            self._loss = self.ranks.wrap(_Loss(task))
        share = task.learning_rate_share(self.step, self.progress)
        for group in (group for optimiser in task.optimisers for group in optimiser.param_groups):
            group["lr"] = share * group["peak_lr"]
        x = normalise(self.sampler.batch(crop.size_px, crop.batch), self.device, recipe.classifier)
        labels = labels_of(self.pictures, self.sampler.drawn).to(self.device)
        loss, parts = self._loss(x, task.targets(x, labels, self.progress), self.progress)
        task.network.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(task.network.parameters(), recipe.optimiser.clip_norm or math.inf)
        if not torch.isfinite(norm):
            self.skipped_steps += 1
            if self.skipped_steps > MAX_SKIPPED_STEPS:
                raise TrainingError(f"step {self.step}: the loss is not finite; last parts {_numbers(parts)}")
        else:
            for optimiser in task.optimisers:
                optimiser.step()
        self.step += 1
        self.seen += crop.batch * self.ranks.count
        self._update_average()
        return {**_numbers(parts), "loss": float(loss.detach()), "gradient_norm": float(norm)}

    @torch.no_grad()
    def _update_average(self) -> None:
        decay = min(self.recipe.optimiser.ema_decay, (1 + self.step) / (10 + self.step))
        network, average = self.task.network, self.task.average
        torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), 1 - decay)
        for kept, current in zip(average.buffers(), network.buffers(), strict=True):
            kept.copy_(current)

    # Saving and taking up

    def state(self) -> dict[str, Any]:
        """Everything that a checkpoint needs to go on exactly; all ranks must ask for it together."""
        task = self.task
        networks = {name: module.state_dict() for name, module in task.network.items()}
        averages = {_average_key(name): module.state_dict() for name, module in task.average.items()}
        random, *others = self.ranks.gather(self._random_state())
        return {
            "recipe": self.recipe.model_dump(mode="json"),
            **networks,
            **averages,
            "optimisers": [optimiser.state_dict() for optimiser in task.optimisers],
            **task.state(),
            "step": self.step,
            "seen": self.seen,
            "elapsed_s": self.elapsed_s,
            "skipped_steps": self.skipped_steps,
            **random,
            "other_ranks": others,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to a state that `state` gave."""
        task = self.task
        for name, module in task.network.items():
            module.load_state_dict(state[name])
        for name, module in task.average.items():
            module.load_state_dict(state[_average_key(name)])
        for optimiser, saved in zip(task.optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        task.restore(state)
        self.step, self.elapsed_s = state["step"], state["elapsed_s"]
        self.seen, self.skipped_steps = state.get("seen", 0), state.get("skipped_steps", 0)
        others = state.get("other_ranks", [])
        if self.ranks.is_first:
            self._set_random_state(state)
        elif self.ranks.rank <= len(others):
            self._set_random_state(others[self.ranks.rank - 1])
        else:  # there are more ranks than before
            self._draw_apart()
        self._loss = self.ranks.wrap(_Loss(task))

    def start_from(self, state: dict[str, Any], path: Path) -> list[str]:
        """Begin with the averaged weights of another run; optimiser, schedule and random numbers stay new.

        Weights that the other run did not have, or had in another size, stay as they began: a decoder for another cut,
        more blocks.

        Returns:
            The names of those.

        Raises:
            TrainingError: less than half of a network's weights fit.
        """
        task = self.task
        left: list[str] = []
        for name, module in task.network.items():
            found = state.get(_average_key(name))
            own = module.state_dict()
            fitting = {key: value for key, value in found.items() if _fits(own.get(key), value)} if found else {}
            if sum(own[key].numel() for key in fitting) * 2 < sum(value.numel() for value in own.values()):
                raise TrainingError(f"{path}: its {name} is not of this recipe's sizes")
            module.load_state_dict({**own, **fitting})
            left += [f"{name}.{key}" for key in own if key not in fitting]
            task.average[name].load_state_dict(module.state_dict())
        task.take_over()
        self._loss = self.ranks.wrap(_Loss(task))
        return left

    def _random_state(self) -> dict[str, Any]:
        is_cuda = self.device.type == "cuda"
        return {
            "torch_random": torch.get_rng_state(),
            "cuda_random": torch.cuda.get_rng_state(self.device) if is_cuda else None,
            "crop_random": self.sampler.random.bit_generator.state,
        }

    def _set_random_state(self, state: dict[str, Any]) -> None:
        torch.set_rng_state(state["torch_random"])
        if self.device.type == "cuda" and state.get("cuda_random") is not None:
            torch.cuda.set_rng_state(state["cuda_random"], self.device)
        self.sampler.random.bit_generator.state = state["crop_random"]

    def _draw_apart(self) -> None:
        """Crops and noise of this rank's own from here on."""
        own = np.random.SeedSequence((self.recipe.seed, self.ranks.rank, self.step))
        torch.manual_seed(int(own.generate_state(1)[0]))
        self.sampler.random = np.random.default_rng(own)


class _Loss(nn.Module):
    """A task's loss as a module's forward pass: what DistributedDataParallel wraps."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.network = task.network
        self._task = task

    def forward(self, x: Tensor, targets: Any, progress: float) -> tuple[Tensor, LossParts]:
        return self._task.loss(x, targets, progress)


def _numbers(parts: LossParts) -> dict[str, float]:
    return {name: float(value) for name, value in parts.items()}


def _fits(own: Tensor | None, value: object) -> bool:
    return own is not None and isinstance(value, Tensor) and value.shape == own.shape


def _average_key(name: str) -> str:
    return "average" if name == "codec" else f"average_{name}"


class _RunLog:
    """The run's `log.jsonl`, with watchers that see every line; ranks but the first write nothing."""

    def __init__(self, path: Path, watchers: Sequence[Watcher], is_writing: bool) -> None:
        self._file = path.open("a", encoding="utf-8") if is_writing else None
        self._watchers = watchers if is_writing else ()

    def step(self, training: Training, parts: dict[str, float], images_per_s: float) -> None:
        for watcher in self._watchers:
            watcher.step(training.step, training.progress, training.left_s, images_per_s, parts)

    def line(self, line: dict[str, Any]) -> None:
        if self._file is not None:
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
        for watcher in self._watchers:
            watcher.line(line)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        for watcher in self._watchers:
            watcher.close()


def run_training(
    training: Training,
    folder: Path,
    watchers: Sequence[Watcher],
    should_stop: Callable[[], bool],
    clock: Callable[[], float],
) -> None:
    """Train until the recipe's length is reached or a stop is asked for; the state is saved either way.

    At its end the run is finished and validated, and the log's last line names the hash of the weights that it belongs
    to; a stop does not wait for that.

    Args:
        folder: gets `checkpoint.pt` and `log.jsonl`.
        watchers: told of each step and of each line of the log.
        clock: seconds, monotonic; the time of pauses between two runs does not count.
    """
    recipe, ranks = training.recipe, training.ranks
    log = _RunLog(folder / LOG_FILE, watchers, ranks.is_first)
    begun = clock() - training.elapsed_s
    saved_s = validated_s = training.elapsed_s
    means = IntervalMeans()

    def save() -> None:
        state = training.state()
        if ranks.is_first:
            save_checkpoint(state, folder / CHECKPOINT_FILE)

    try:
        stops = ranks.agree(0.0, should_stop())[1]
        while training.progress < 1 and not stops:
            images, before_s = training.crop.batch * ranks.count, training.elapsed_s
            parts = training.train_step()
            training.elapsed_s, stops = ranks.agree(clock() - begun, should_stop())
            means.add(parts, images, training.elapsed_s - before_s)
            log.step(training, parts, means.images_per_s)
            if training.step % LINE_STEPS == 0:
                facts = training.task.facts()
                log.line({"step": training.step, "progress": training.progress, **facts, **means.take()})
            if training.elapsed_s - saved_s > 60 * recipe.checkpoint_minutes:
                save()
                saved_s = training.elapsed_s
                means.skip_time()
            if training.elapsed_s - validated_s > 60 * recipe.validate_minutes:
                if ranks.is_first:
                    points = training.task.validate(training.pictures)
                    log.line({"step": training.step, **training.task.facts(), "validation": points})
                validated_s = training.elapsed_s
                means.skip_time()
        ending: dict[str, Any] = {"stopped": True}
        try:
            if training.progress >= 1:
                ending = training.task.finish(training.pictures)
        finally:  # what was trained is kept even where the end finds fault with it
            save()
        if training.progress >= 1 and ranks.is_first:
            ending["validation"] = training.task.validate(training.pictures)
            ending |= training.task.facts() | {"seen": training.seen, SHA256: file_sha256(folder / CHECKPOINT_FILE)}
        log.line({"step": training.step, "elapsed_s": training.elapsed_s, **ending})
    finally:
        log.close()


def resume(training: Training, folder: Path) -> bool:
    """Take up the folder's checkpoint if there is one; says whether there was.

    Lines of the log that came after it are taken away: their steps are made again.
    """
    checkpoint = folder / CHECKPOINT_FILE
    if not checkpoint.exists():
        return False
    training.restore(load_checkpoint(checkpoint, training.recipe.model_dump(mode="json")))
    if training.ranks.is_first:
        trim_log(folder / LOG_FILE, training.step)
    return True


def now_s() -> float:
    """The clock of real runs."""
    return time.monotonic()
