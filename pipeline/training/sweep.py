"""A sweep: the networks of a plan, trained and exported one after the other, each in a folder of its own.

    OUT/sweep.json             what there is and what is missing, written anew after each network
    OUT/NAME/checkpoint.pt     and log.jsonl, as `rac train` leaves them
    OUT/NAME/bundle/           made of that checkpoint; its manifest names the checkpoint's hash
    OUT/NAME/weights.safetensors   in its place, of a picture codec or a tuned classifier

What is done is left alone, what was interrupted goes on, wherever it was. A network whose files do not belong together
is reported and not touched: whether it is worth anything is for a person to say.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.bundle import load_bundle
from pipeline.errors import BundleError, TrainingError
from pipeline.inference import file_sha256
from pipeline.training.baseline_weights import BASELINE_FAMILIES, WEIGHTS_FILE, export_baseline, is_of_checkpoint
from pipeline.training.datasets import Pictures
from pipeline.training.loop import Training, now_s, resume, run_training
from pipeline.training.progress import Watcher
from pipeline.training.run_folder import CHECKPOINT_FILE, LOG_FILE, SHA256, RunState, check_run
from pipeline.training.sweep_plan import PlannedNetwork, SweepPlan
from pipeline.training.trained import export_trained, read_trained

SWEEP_FILE, BUNDLE_FOLDER = "sweep.json", "bundle"
FORMAT_VERSION = 1
DONE, BEGUN, MISSING, BROKEN, FAILED = "done", "begun", "missing", "broken", "failed"


@dataclass
class Entry:
    """How a network stands.

    Attributes:
        status: done (trained and exported), begun, missing, broken or failed.
        reason: of the last two.
    """

    network: PlannedNetwork
    status: str
    reason: str = ""
    seen: int = 0
    elapsed_s: float = 0.0

    def as_json(self) -> dict[str, Any]:
        """The network's object in `sweep.json`."""
        recipe, entry = self.network.recipe, self.network.entry
        is_paper = recipe.family == "paper"
        networks = {"paper": recipe.paper.network, "picture": recipe.picture.network}
        return {
            "name": self.network.name,
            "system": entry.system,
            "family": recipe.family,
            "network": networks.get(recipe.family, recipe.family),
            "schedule": recipe.paper.schedule if is_paper else "single_stage",
            "classifier_training": recipe.paper.classifier_training if is_paper else "fixed",
            "lmbda": self.network.lmbda,
            "depths": list(entry.depths) or None,
            "note": entry.note,
            "status": self.status,
            "reason": self.reason,
            "bundle": f"{self.network.name}/{_product(self.network)}",
            "pictures_seen": self.seen,
            "training_s": round(self.elapsed_s, 1),
        }


@dataclass
class Sweep:
    """Runs a plan.

    Args:
        folder: of all networks.
        pictures: of the budget, read once.
        build: makes a run that has not begun, of a recipe.
        make_watchers: what shows a network's run, by its folder.
        should_stop: asked between two steps.
        say: told what happens, a line at a time.
    """

    plan: SweepPlan
    networks: Sequence[PlannedNetwork]
    folder: Path
    pictures: Pictures
    build: Callable[[PlannedNetwork], Training]
    make_watchers: Callable[[Path], list[Watcher]]
    should_stop: Callable[[], bool]
    say: Callable[[str], None]
    clock: Callable[[], float] = now_s
    entries: list[Entry] = field(default_factory=list)

    def run(self, chosen: Sequence[str] = ()) -> bool:
        """Do what is not done; says whether every network that was asked for is there.

        Args:
            chosen: names of networks or of entries; all unless given.
        """
        self.entries = [look(network, self.folder) for network in self.networks]
        self._write()
        asked = [entry for entry in self.entries if not chosen or _is_named(entry.network, chosen)]
        for number, entry in enumerate(asked):
            if self.should_stop():
                break
            if entry.status == DONE:
                self.say(f"{entry.network.name}: done before")
                continue
            if entry.status == BROKEN:
                self.say(f"{entry.network.name}: left out: {entry.reason}; remove {self.folder / entry.network.name}")
                continue
            self.say(f"{entry.network.name}: {number + 1} of {len(asked)}{self._time_left(asked[number:])}")
            self._make(entry)
            self._write()
        return all(entry.status == DONE for entry in asked)

    def _make(self, entry: Entry) -> None:
        folder = self.folder / entry.network.name
        try:
            if check_run(folder, entry.network.recipe).state is not RunState.DONE:
                self._train(entry.network, folder)
            entry.status, entry.reason = BEGUN, ""
            if check_run(folder, entry.network.recipe).state is RunState.DONE:  # and not stopped
                self._export(entry.network, folder)
            fresh = look(entry.network, self.folder)
            entry.status, entry.reason = fresh.status, fresh.reason
            entry.seen, entry.elapsed_s = fresh.seen, fresh.elapsed_s
        except (TrainingError, BundleError) as error:  # of this network; the others may do better
            entry.status, entry.reason = FAILED, str(error)
            self.say(f"{entry.network.name}: failed: {error}")
        except ModuleNotFoundError as error:  # what a baseline is made with comes with an extra
            package = str(error.name).partition(".")[0]
            entry.status, entry.reason = FAILED, f"{package} is not installed: pip install 'edge-cloud-rac[train]'"
            self.say(f"{entry.network.name}: failed: {entry.reason}")

    def _export(self, network: PlannedNetwork, folder: Path) -> None:
        if network.recipe.family in BASELINE_FAMILIES:
            export_baseline(folder / CHECKPOINT_FILE, self.pictures, folder / WEIGHTS_FILE)
        else:
            trained = read_trained(folder / CHECKPOINT_FILE)
            export_trained(trained, self.pictures, folder / BUNDLE_FOLDER, network.name, self.say)

    def _train(self, network: PlannedNetwork, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        training = self.build(network)
        if resume(training, folder):
            self.say(f"{network.name}: resumed at {training.progress:.0%}")
        else:
            (folder / LOG_FILE).unlink(missing_ok=True)  # of a run that was ended before its first checkpoint
        run_training(training, folder, self.make_watchers(folder), self.should_stop, self.clock)

    def _time_left(self, entries: Sequence[Entry]) -> str:
        """At the mean speed of all networks so far; nothing before the first."""
        seen, elapsed_s = sum(entry.seen for entry in self.entries), sum(entry.elapsed_s for entry in self.entries)
        left = sum(entry.network.recipe.pictures or 0 for entry in entries if entry.status not in (DONE, BROKEN))
        if not seen:
            return ""
        minutes = left * elapsed_s / seen / 60
        return f", about {minutes / 60:.1f} hours left" if minutes >= 90 else f", about {minutes:.0f} minutes left"

    def _write(self) -> None:
        content = {
            "format_version": FORMAT_VERSION,
            "name": self.plan.name,
            "budget": self.plan.budget,
            "training_pictures": len(self.pictures.training),
            "labelled": self.pictures.num_labelled,
            "networks": [entry.as_json() for entry in self.entries],
        }
        path = self.folder / SWEEP_FILE
        temporary = path.with_suffix(".partial")
        try:
            temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
            temporary.replace(path)
        except OSError as error:
            raise TrainingError(f"{path}: cannot be written: {error.strerror}") from error


def _is_named(network: PlannedNetwork, names: Sequence[str]) -> bool:
    return network.name in names or network.entry.name in names


def look(network: PlannedNetwork, folder: Path) -> Entry:
    """How a network stands by what is on the disk."""
    own = folder / network.name
    check = check_run(own, network.recipe)
    if check.state is RunState.BROKEN:
        return Entry(network, BROKEN, check.reason)
    if check.state is RunState.NEW:
        return Entry(network, MISSING)
    if check.ending is None or not _is_exported(network, own):
        return Entry(network, BEGUN)
    return Entry(network, DONE, "", int(check.ending["seen"]), float(check.ending["elapsed_s"]))


def _product(network: PlannedNetwork) -> str:
    return WEIGHTS_FILE if network.recipe.family in BASELINE_FAMILIES else BUNDLE_FOLDER


def _is_exported(network: PlannedNetwork, folder: Path) -> bool:
    """Whether there is a whole bundle, or weights file, of the very weights in the checkpoint."""
    if network.recipe.family in BASELINE_FAMILIES:
        return is_of_checkpoint(folder / WEIGHTS_FILE, folder / CHECKPOINT_FILE)
    try:
        bundle = load_bundle(str(folder / BUNDLE_FOLDER))
    except BundleError:
        return False
    return bundle.manifest.training.get(SHA256) == file_sha256(folder / CHECKPOINT_FILE)
