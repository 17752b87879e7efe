"""A node's loop with everything around it as fakes, a clock that stands still, and real decisions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from nodes.capture_events import BadFrames, Down, Finished, Up
from nodes.edge import EdgeNode, EdgeOptions
from nodes.frame_encoder import EncodedFrame
from nodes.lanes import Lane
from pipeline.bundle_trial import BundleChange
from pipeline.frames import Frame
from pipeline.ledger import ClosedFrame, Outcome
from pipeline.rate_control import DepthChange, DepthController
from pipeline.session import Backoff, Lost, NodeSession, NodeSettings, Opened
from pipeline.wire import CameraEntry, Hello, Result
from tests.fakes import BUNDLE_ID, MS, FakeClock, FakeCloud, FakeEncoder, FakeReader, FakeUplink, S, Script

COST_NS = {0: MS, 4: 4 * MS, 8: 10 * MS}
BUDGET_NS = 8 * MS


@dataclass
class Notes:
    """A watcher that remembers."""

    closed_frames: list[tuple[ClosedFrame, Result | None]] = field(default_factory=list)
    encoded_frames: list[EncodedFrame] = field(default_factory=list)
    links: list[Opened | Lost | Backoff] = field(default_factory=list)
    cameras: list[Up | Down | Finished | BadFrames] = field(default_factory=list)
    depths: list[DepthChange] = field(default_factory=list)
    bundles: list[BundleChange] = field(default_factory=list)
    sendings_ns: list[int] = field(default_factory=list)
    turns: int = 0

    def encoded(self, encoded: EncodedFrame) -> None:
        self.encoded_frames.append(encoded)

    def sent(self, camera: str, duration_ns: int) -> None:
        self.sendings_ns.append(duration_ns)

    def closed(self, closed: ClosedFrame, result: Result | None) -> None:
        self.closed_frames.append((closed, result))

    def camera_changed(self, lane: Lane, event: Up | Down | Finished | BadFrames) -> None:
        self.cameras.append(event)

    def link_changed(self, action: Opened | Lost | Backoff) -> None:
        self.links.append(action)

    def depth_changed(self, change: DepthChange) -> None:
        self.depths.append(change)

    def bundle_changed(self, change: BundleChange) -> None:
        self.bundles.append(change)

    def idle(self, now_ns: int) -> None:
        self.turns += 1


class Bench:
    """A node with everything around it."""

    def __init__(self, *readers: FakeReader, cloud: FakeCloud | None = None, **options: object) -> None:
        self.clock = FakeClock()
        self.readers = readers or (FakeReader("door"),)
        self.cloud = cloud or FakeCloud()
        self.uplink = FakeUplink(self.cloud)
        self.encoder = FakeEncoder(self.clock, dict(COST_NS))
        self.notes = Notes()
        self.calibrated: list[Frame | None] = []
        self.budget_ns = BUDGET_NS
        cameras = tuple(CameraEntry(number, reader.name) for number, reader in enumerate(self.readers))
        hello = Hello(0, "box", bytes(16), (BUNDLE_ID,), cameras)
        settings = NodeSettings(hello, ("tcp://127.0.0.1:1", "tcp://127.0.0.1:2"))
        given = {
            "level16": 48,
            "reference_every": 0,
            "drops_over_budget": False,
            "result_timeout_ns": 10 * S,
            "drain_ns": S,
        } | {name: value for name, value in options.items() if name not in ("spool", "wall_clock")}
        parts = {name: value for name, value in options.items() if name in ("spool", "wall_clock")}
        self.node = EdgeNode(
            self.readers,
            NodeSession(settings, lambda: 0.0),
            self.uplink,  # type: ignore[arg-type]
            self.encoder,  # type: ignore[arg-type]
            self.calibrate,
            EdgeOptions(**given),  # type: ignore[arg-type]
            self.notes,
            self.clock,
            **parts,  # type: ignore[arg-type]
        )

    def calibrate(self, frame: Frame | None) -> DepthController:
        self.calibrated.append(frame)
        return DepthController(COST_NS, self.budget_ns)

    def run(self, *steps: Callable[[], object] | int) -> None:
        """Run the node to its end: the first frame of the first camera is given, then one step before each turn."""
        first = self.readers[0]
        script = Script(lambda: first.give(self.clock()), 1, 2, *steps)
        try:
            self.node.run(script, script.fd)
        finally:
            script.close()
        self.check()

    def check(self) -> None:
        """At the end nothing is in flight and nothing was counted twice."""
        total = self.node.ledger.snapshot().total
        assert total.in_flight == 0
        assert total.captured == sum(reader.captured for reader in self.readers)
        assert total.captured == total.results + sum(total.dropped.values())
        assert all(reader.is_killed for reader in self.readers)

    def give(self, number: int = 0, **facts: int) -> Callable[[], Frame]:
        return lambda: self.readers[number].give(self.clock(), **facts)

    def give_if_asked(self, number: int = 0) -> Callable[[], Frame | None]:
        return lambda: self.readers[number].give(self.clock()) if self.readers[number].is_wanted else None

    def wait(self, duration_ns: int) -> Callable[[], None]:
        return lambda: self.clock.advance(duration_ns)

    def dropped(self, camera: str = "door") -> dict[str, int]:
        return self.node.ledger.dropped(camera)

    def outcomes(self) -> list[Outcome]:
        return [closed.outcome for closed, _ in self.notes.closed_frames]
