"""How a run is going: means for the log, a bar for people, JSON lines for machines, event files for TensorBoard."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

SMOOTHING = 0.95
"""Share of the mean before in a running loss: about the last twenty steps."""
BAR_WIDTH = 20
FIXED_WIDTH, LOSS_WIDTH = 66, 18
"""Characters of a line: step, bar, share, time left and speed; and one loss."""


class IntervalMeans:
    """Means of the loss's parts and images/s between two lines of the log."""

    def __init__(self) -> None:
        self._parts: dict[str, list[float]] = {}
        self._images, self._seconds = 0, 0.0
        self._is_skipping = False

    def add(self, parts: dict[str, float], images: int, seconds: float) -> None:
        """One step of so many images and seconds."""
        for name, value in parts.items():
            self._parts.setdefault(name, []).append(value)
        if not self._is_skipping:
            self._images += images
            self._seconds += seconds
        self._is_skipping = False

    def skip_time(self) -> None:
        """The next step's time holds a validation or a checkpoint: it says nothing of the speed."""
        self._is_skipping = True

    @property
    def images_per_s(self) -> float:
        """Speed since the last line."""
        return self._images / self._seconds if self._seconds > 0 else 0.0

    def take(self) -> dict[str, float]:
        """Speed and mean of each part over the steps that had it; begins the next interval."""
        line = {"images_per_s": round(self.images_per_s, 2)}
        line |= {name: round(sum(values) / len(values), 5) for name, values in self._parts.items()}
        self._parts, self._images, self._seconds = {}, 0, 0.0
        return line


class Watcher:
    """Is told how a run goes; nothing that it does changes the run."""

    def step(self, step: int, progress: float, left_s: float, images_per_s: float, parts: dict[str, float]) -> None:
        """After each step: share done, seconds left, speed since the last line, parts of this step's loss."""

    def line(self, line: dict[str, Any]) -> None:
        """Each line of the log."""

    def close(self) -> None:
        """The run is over."""


class JsonLines(Watcher):
    """The log's lines on standard output, for machines."""

    def line(self, line: dict[str, Any]) -> None:
        """One line, at once."""
        print(json.dumps(line), flush=True)


class PlainLines(Watcher):
    """The log's lines as text, where there is no terminal to draw on."""

    def line(self, line: dict[str, Any]) -> None:
        """One line, or one for each validated point."""
        print(format_line(line), flush=True)


class Bar(Watcher):
    """A bar with images/s, time left and running losses; validations appear above it."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("step {task.fields[step]}"),
            BarColumn(BAR_WIDTH),
            TaskProgressColumn(),
            TextColumn("{task.fields[left]} left  {task.fields[images_per_s]:.1f} images/s  {task.fields[losses]}"),
            console=console,
        )
        self._bar = self._progress.add_task("", total=1.0, step=0, left="?", images_per_s=0.0, losses="")
        self._running: dict[str, float] = {"loss": 0.0}
        self._begun = False
        self._shown = max(1, (console.width - FIXED_WIDTH) // LOSS_WIDTH)
        self._progress.start()

    def step(self, step: int, progress: float, left_s: float, images_per_s: float, parts: dict[str, float]) -> None:
        """Move the bar."""
        for name, value in parts.items():
            before = self._running.get(name, value) if self._begun else value
            self._running[name] = before + (1 - SMOOTHING) * (value - before)
        self._begun = True
        losses = _format_numbers(dict(list(self._running.items())[: self._shown]))  # the whole loss first
        fields = {"step": step, "left": format_duration(left_s), "losses": losses}
        if images_per_s > 0:
            fields["images_per_s"] = images_per_s
        self._progress.update(self._bar, completed=progress, **fields)  # type: ignore[arg-type]

    def line(self, line: dict[str, Any]) -> None:
        """Lines about losses are what the bar shows; the others stay on the screen."""
        if "progress" not in line:
            self._progress.console.print(format_line(line), highlight=False, markup=False)

    def close(self) -> None:
        """Leave the bar as it stands."""
        self._progress.stop()


class TensorBoard(Watcher):
    """Event files in the run's folder: losses and speed over steps, each point of a validation as a curve."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder))

    def line(self, line: dict[str, Any]) -> None:
        """Every number of the line."""
        step = line["step"]
        for point in line.get("validation", ()):
            place = " ".join(f"{key} {point[key]:g}" for key in ("depth", "level") if key in point)
            for name, value in point.items():
                if name not in ("depth", "level"):
                    self._writer.add_scalar(f"{name}/{place}", value, step)
        for name, value in line.items():
            if isinstance(value, float):
                self._writer.add_scalar(f"training/{name}", value, step)
        if "progress" not in line:
            self._writer.flush()

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()


def choose_watchers(folder: Path, as_json: bool) -> list[Watcher]:
    """What shows a run: lines of JSON, or a bar on a terminal, or text; and TensorBoard where it is installed."""
    watchers: list[Watcher] = [TensorBoard(folder)] if find_spec("tensorboard") is not None else []
    console = Console()
    if as_json:
        return [JsonLines(), *watchers]
    return [Bar(console) if console.is_terminal else PlainLines(), *watchers]


def format_line(line: dict[str, Any]) -> str:
    """A line of the log for people."""
    numbers = {name: value for name, value in line.items() if isinstance(value, float)}
    text = f"step {line['step']}  " + _format_numbers(numbers)
    points = [_format_numbers(point) for point in line.get("validation", ())]
    found = line.get("silent_channels", {}) if points else {}  # the lines between two validations only repeat it
    silent = [f"{name}: {count} hidden channels never fire" for name, count in found.items()]
    return "\n".join([text.rstrip() + ("  stopped" if line.get("stopped") else ""), *points, *silent])


def _format_numbers(numbers: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.3f}" for name, value in numbers.items())


def format_duration(seconds: float) -> str:
    """Hours, minutes and seconds as 1:02:03, or 2:03 below an hour."""
    whole = max(0, round(seconds))
    minutes = f"{whole // 60 % 60}:{whole % 60:02}" if whole < 3600 else f"{whole // 60 % 60:02}:{whole % 60:02}"
    return minutes if whole < 3600 else f"{whole // 3600}:{minutes}"
