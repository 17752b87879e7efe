"""What a person sees of a node: the table of depths, one line a second for each camera, a closing summary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from nodes.calibration import NodeStart
from nodes.capture_events import BadFrames, Down, Finished, Up
from nodes.edge import EdgeNode
from nodes.frame_encoder import EncodedFrame
from nodes.lanes import Lane
from pipeline.bundle_trial import BundleChange, UpdateOutcome
from pipeline.ledger import ClosedFrame, Outcome
from pipeline.rate_control import DepthChange
from pipeline.session import Backoff, LossReason, Lost, Opened
from pipeline.wire import Result

LINE_EVERY_NS = 1_000_000_000


@dataclass(slots=True)
class Second:
    """What one camera did since its last line."""

    encoded: int = 0
    num_bytes: int = 0
    results: int = 0
    latencies: int = 0
    latency_ns: int = 0
    depth: int | None = None
    level16: int | None = None
    best: str = ""
    bad_pictures: int = 0


class NodeConsole:
    """Prints lines for people. Drops and trouble are named, never only counted.

    What was dropped is read from the ledger: most frames that are dropped never reach the node's loop. The node is
    attached after it is built, because it is built with its watchers.
    """

    def __init__(self, console: Console, cameras: Sequence[str]) -> None:
        self._console = console
        self._node: EdgeNode | None = None
        self._seconds = {camera: Second() for camera in cameras}
        self._dropped: dict[str, Mapping[str, int]] = {camera: {} for camera in cameras}
        self._last_ns = 0
        self._width = max((len(camera) for camera in cameras), default=0)

    def attach(self, node: EdgeNode) -> None:
        """Name the node whose ledger is shown."""
        self._node = node

    def started(self, start: NodeStart) -> None:
        """Show what each depth costs here, and which is used."""
        if start.is_made_up:
            self._console.print("no camera gave a frame yet: depths are timed on a made-up picture")
        self._console.print(depth_table(start))

    def ended(self, figures: Mapping[str, Any]) -> None:
        """Show how the run went."""
        print_summary(self._console, figures)

    def encoded(self, encoded: EncodedFrame) -> None:
        second = self._seconds[encoded.frame.camera]
        second.encoded += 1
        second.num_bytes += encoded.bitstream_bytes
        second.depth, second.level16 = encoded.point.depth, encoded.point.level16

    def sent(self, camera: str, duration_ns: int) -> None:
        """A frame is told of once it has ended."""

    def closed(self, closed: ClosedFrame, result: Result | None) -> None:
        if closed.outcome is not Outcome.OK or result is None:
            return
        second = self._seconds[closed.camera]
        second.results += 1
        if closed.latency_ns is not None:
            second.latencies += 1
            second.latency_ns += closed.latency_ns
        for best in result.classes[:1]:
            second.best = f"{best.name.replace('_', ' ')} {best.probability:.2f}"

    def camera_changed(self, lane: Lane, event: Up | Down | Finished | BadFrames) -> None:
        match event:
            case Up():
                self._say(lane.name, f"{lane.reader.source.text} is up, {event.width} x {event.height}", "green")
            case Down():
                self._say(lane.name, f"down ({event.reason}): {event.text}; trying again", "yellow")
            case Finished():
                self._say(lane.name, f"{lane.reader.source.text} is through", "green")
            case BadFrames():
                self._seconds[lane.name].bad_pictures += event.count

    def link_changed(self, action: Opened | Lost | Backoff) -> None:
        match action:
            case Opened():
                self._say("link", f"session open, credit {action.welcome.credit}", "green")
            case Lost():
                if action.reason in (LossReason.FAILOVER, LossReason.RENEWED):
                    self._say("link", action.text, "cyan")
                    return
                what = "lost" if action.was_up else "no session"
                self._say("link", f"{what} ({action.reason}): {action.text}; trying again", "yellow")
            case Backoff():
                pass

    def depth_changed(self, change: DepthChange) -> None:
        self._say("depth", f"{change.before} -> {change.after} ({change.cause})", "cyan")

    def bundle_changed(self, change: BundleChange) -> None:
        colour = "green" if change.outcome is UpdateOutcome.OK else "yellow"
        self._say("bundle", f"{change.bundle} ({change.outcome}): {change.text}", colour)

    def idle(self, now_ns: int) -> None:
        """Print the lines when a second has passed."""
        if self._last_ns == 0:
            self._last_ns = now_ns
        elapsed_ns = now_ns - self._last_ns
        if elapsed_ns < LINE_EVERY_NS:
            return
        self._last_ns = now_ns
        for camera, second in self._seconds.items():
            dropped = self._newly_dropped(camera)
            if second != Second() or dropped:
                self._console.print(self._line(camera, second, dropped, elapsed_ns / 1e9), highlight=False)
                self._seconds[camera] = Second()

    def _newly_dropped(self, camera: str) -> dict[str, int]:
        """Frames of a camera by reason that were dropped since the last line."""
        assert self._node is not None
        before, now = self._dropped[camera], self._node.ledger.dropped(camera)
        self._dropped[camera] = now
        return {reason: grown for reason, count in sorted(now.items()) if (grown := count - before.get(reason, 0))}

    def _line(self, camera: str, second: Second, dropped: Mapping[str, int], elapsed_s: float) -> str:
        parts = [f"[bold]{camera:<{self._width}}[/bold]"]
        if second.encoded:
            level = (second.level16 or 0) / 16
            kilobytes = second.num_bytes / second.encoded / 1000
            rate = 8 * second.num_bytes / elapsed_s / 1000
            parts.append(f"N={second.depth} level {level:g}  {second.encoded / elapsed_s:5.1f} fps")
            parts.append(f"{kilobytes:5.2f} kB/frame  {rate:6.0f} kbit/s")
        if second.results:
            latency = f"{second.latency_ns / second.latencies / 1e6:5.1f} ms" if second.latencies else "recovered"
            parts.append(f"{latency}  {escape(second.best)}")
        if dropped:
            reasons = ", ".join(f"{reason} {count}" for reason, count in dropped.items())
            parts.append(f"[yellow]dropped: {reasons}[/yellow]")
        if second.bad_pictures:
            parts.append(f"[yellow]{second.bad_pictures} pictures unreadable[/yellow]")
        return "  ".join(parts)

    def _say(self, subject: str, text: str, colour: str) -> None:
        self._console.print(f"[{colour}]{subject}[/{colour}]: ", end="", highlight=False)
        self._console.print(text, markup=False, highlight=False)


def depth_table(start: NodeStart) -> Table:
    """The small table that a node prints at start."""
    bundle = start.bundle
    table = Table(title=f"bundle {bundle.manifest.name} {bundle.short_id}, level {start.level16 / 16:g}")
    for heading in ("depth", "median ms", "p90 ms", "fps", "bpp", "agreement", ""):
        table.add_column(heading, justify="right")
    for cost in start.costs:
        measured = bundle.measured_point(cost.depth, start.level16)
        is_used = cost.depth == start.depth
        table.add_row(
            str(cost.depth),
            f"{cost.median_ns / 1e6:.2f}",
            f"{cost.p90_ns / 1e6:.2f}",
            f"{1e9 / cost.median_ns:.0f}",
            f"{measured.bpp:.2f}" if measured else "-",
            f"{measured.agreement:.2f}" if measured else "-",
            ", ".join(["used"] * is_used + ["over budget"] * (cost.p90_ns > start.budget_ns)),
            style="bold" if is_used else None,
        )
    return table


def print_summary(console: Console, figures: Mapping[str, Any]) -> None:
    """The closing lines of a run: the balance first."""
    dropped = figures["dropped"]
    reasons = ", ".join(f"{reason} {count}" for reason, count in dropped.items()) or "none"
    recovered = f" + recovered {figures['recovered']}" if figures.get("recovered") else ""
    console.print(
        f"captured {figures['captured']}{recovered} = results {figures['results']} + dropped {sum(dropped.values())}"
        f" + in flight {figures['in_flight']}",
        highlight=False,
    )
    console.print(f"dropped by reason: {reasons}", highlight=False)
    for name in (
        "bytes_per_frame",
        "bits_per_pixel",
        "e2e_ms_p50",
        "e2e_ms_p99",
        "labelled",
        "top1",
        "agreement",
    ):
        value = figures.get(name)
        if value is not None:
            console.print(f"{name}: {value:.4g}", highlight=False)
