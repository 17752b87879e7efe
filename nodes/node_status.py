"""A watcher of the node's loop that keeps what the node's status page shows."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nodes.capture_events import BadFrames, Down, Finished, Up
from nodes.edge import EdgeNode
from nodes.frame_encoder import EncodedFrame
from nodes.lanes import Lane
from nodes.node_metrics import readiness
from nodes.status_board import StatusBoard
from pipeline.bundle_trial import BundleChange
from pipeline.ledger import ClosedFrame, Outcome
from pipeline.masking import mask_credentials
from pipeline.node_cameras import NodeCameras, SourceState
from pipeline.rate_control import DepthChange
from pipeline.session import Backoff, Lost, Opened
from pipeline.wire import Result


class NodeStatus:
    """Fills the status of the node's cameras and publishes it when a page asks."""

    def __init__(
        self,
        board: StatusBoard,
        facts: Mapping[str, Any],
        cameras: Sequence[str],
        endpoints: Sequence[str],
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        """Join.

        Args:
            facts: of the program, that never change: they go into every document.
        """
        self._board, self._facts, self._endpoints, self._clock = board, dict(facts), tuple(endpoints), clock
        self._cameras = NodeCameras(str(facts["name"]), cameras, clock())
        self._node: EdgeNode | None = None

    def attach(self, node: EdgeNode) -> None:
        """Name the node whose ledger is shown."""
        self._node = node

    def encoded(self, encoded: EncodedFrame) -> None:
        point = encoded.point
        self._cameras.encode(encoded.frame.camera, point.depth, point.level16 / 16, self._clock())

    def sent(self, camera: str, duration_ns: int) -> None:
        """Bytes are read from the ledger."""

    def closed(self, closed: ClosedFrame, result: Result | None) -> None:
        if closed.outcome is not Outcome.OK or result is None:
            return
        best = result.classes[0] if result.classes else None
        is_compared = best is not None and result.reference_top1 is not None
        agrees = best.index == result.reference_top1 if best is not None and is_compared else None
        named = None if best is None else (best.name, best.probability)
        self._cameras.answer(closed.camera, named, closed.latency_ns, agrees, self._clock())

    def camera_changed(self, lane: Lane, event: Up | Down | Finished | BadFrames) -> None:
        now_ns = self._clock()
        match event:
            case Up():
                self._cameras.change_source(lane.name, SourceState.UP, "", now_ns)
            case Down():
                why = mask_credentials(f"{event.reason}: {event.text}")
                self._cameras.change_source(lane.name, SourceState.DOWN, why, now_ns)
            case Finished():
                self._cameras.change_source(lane.name, SourceState.FINISHED, "", now_ns)
            case BadFrames():
                pass  # the camera goes on

    def link_changed(self, action: Opened | Lost | Backoff) -> None:
        match action:
            case Opened():
                self._cameras.change_link("", self._clock())
            case Lost():
                self._cameras.change_link(f"{action.reason}: {action.text}", self._clock())
            case Backoff():
                pass  # the loss before it was told

    def depth_changed(self, change: DepthChange) -> None:
        """Each frame brings its depth."""

    def bundle_changed(self, change: BundleChange) -> None:
        """The bundle in use is read from the node."""

    def idle(self, now_ns: int) -> None:
        """Take a sample when one is due; publish when a page asks."""
        node = self._node
        assert node is not None
        is_due = self._cameras.is_due(now_ns)
        if not is_due and not self._board.is_wanted:
            return
        ledger = node.ledger.snapshot()
        if is_due:
            self._cameras.sample(ledger, now_ns)
        if self._board.is_wanted:
            own = {"bundles": f"{node.bundle.manifest.name} {node.bundle.short_id}", "trouble": readiness(node)}
            figures = self._cameras.document(ledger, now_ns)
            self._board.publish({**self._facts, **own, "facts": self._describe(node), **figures})

    def _describe(self, node: EdgeNode) -> dict[str, str]:
        endpoint = self._endpoints[min(node.link_index, len(self._endpoints) - 1)]
        controller = node.controller
        costs = ", ".join(f"{depth}: {controller.cost_ns(depth) / 1e6:.1f}" for depth in controller.depths)
        facts = {
            "Cloud": endpoint if node.session.is_up else f"none: {self._cameras.link_down}",
            "Credit": f"{node.session.credit} frames",
            "In flight": f"{node.ledger.in_flight} frames",
            "Budget of a frame": f"{controller.budget_ns / 1e6:g} ms",
            "Depths and their ms": costs,
        }
        if node.spool is not None:
            facts["Spool"] = f"{len(node.spool)} frames, {node.spool.num_bytes / 1e6:.1f} MB"
        return facts
