"""What a node writes into a log for machines: one event for each change of state, never one for each frame."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from nodes.calibration import NodeStart
from nodes.capture_events import BadFrames, Down, Finished, Up
from nodes.edge import EdgeNode
from nodes.frame_encoder import EncodedFrame
from nodes.lanes import Lane
from nodes.node_metrics import readiness
from pipeline.bundle_trial import BundleChange, UpdateOutcome
from pipeline.camera_state import is_loss
from pipeline.drop_spells import DropSpells
from pipeline.ledger import ClosedFrame, Outcome
from pipeline.rate_control import DepthChange
from pipeline.session import Backoff, LossReason, Lost, Opened
from pipeline.wire import Result

LOOK_EVERY_NS = 1_000_000_000

logger = logging.getLogger("rac.node")


class NodeLog:
    """A watcher of the node's loop; the events are listed in nodes/README.md. People read the console instead."""

    def __init__(self) -> None:
        self._node: EdgeNode | None = None
        self._spells = DropSpells()
        self._looked_ns = 0
        self._dropped: dict[str, Mapping[str, int]] = {}
        self._sequences: dict[tuple[str, str], int] = {}
        self._lost: tuple[object, ...] | None = None
        self._is_ready: bool | None = None

    def attach(self, node: EdgeNode) -> None:
        """Name the node whose ledger and readiness are told."""
        self._node = node

    def started(self, start: NodeStart) -> None:
        """The depths are timed, of the bundle that is used from now on."""
        facts = {"bundle": start.bundle.short_id, "depth": start.depth, "rate_level": start.level16 / 16}
        text = "bundle %s, depth %d, budget %g ms"
        budget_ms = start.budget_ns / 1e6
        logger.info(text, start.bundle.short_id, start.depth, budget_ms, extra={"event": "node_started", **facts})

    def ended(self, figures: Mapping[str, Any]) -> None:
        """The run is over."""
        facts = {name: figures[name] for name in ("captured", "recovered", "results", "in_flight")}
        dropped = sum(figures["dropped"].values())
        text = "captured %d, results %d, dropped %d, in flight %d"
        counts = (figures["captured"], figures["results"], dropped, figures["in_flight"])
        logger.info(text, *counts, extra={"event": "node_stopped", **facts, "dropped": dropped})

    def encoded(self, encoded: EncodedFrame) -> None:
        """No event: it happens with every frame."""

    def sent(self, camera: str, duration_ns: int) -> None:
        """No event: it happens with every frame."""

    def closed(self, closed: ClosedFrame, result: Result | None) -> None:
        if closed.outcome is not Outcome.OK:
            self._sequences[closed.camera, closed.outcome.value] = closed.sequence

    def camera_changed(self, lane: Lane, event: Up | Down | Finished | BadFrames) -> None:
        facts: dict[str, Any] = {"camera": lane.name, "sequence": lane.settled}
        match event:
            case Up():
                facts |= {"event": "camera_up", "width": event.width, "height": event.height}
                logger.info("%s is up", lane.reader.source.text, extra=facts)
            case Down():
                facts |= {"event": "camera_down", "reason": event.reason.value}
                logger.warning("%s; trying again", event.text, extra=facts)
            case Finished():
                logger.info("%s is through", lane.reader.source.text, extra={"event": "camera_finished", **facts})
            case BadFrames():
                facts |= {"event": "bad_frames", "count": event.count}
                logger.warning("%d pictures cannot be decoded", event.count, extra=facts)

    def link_changed(self, action: Opened | Lost | Backoff) -> None:
        match action:
            case Opened():
                self._lost = None
                facts = {"event": "link_up", "bundle": action.welcome.bundle_id.hex()[:12]}
                logger.info("session open, credit %d", action.welcome.credit, extra=facts)
            case Lost():
                self._tell_lost(action)
            case Backoff():
                pass  # the loss before it was told

    def _tell_lost(self, action: Lost) -> None:
        """A session ended, or none comes about; each further try that ends the same way is no change."""
        what = (action.reason, action.code)
        if not action.was_up and what == self._lost:
            return
        self._lost = what
        code = None if action.code is None else action.code.value
        facts = {"event": "link_down", "reason": action.reason.value, "code": code, "was_up": action.was_up}
        is_planned = action.reason in (LossReason.FAILOVER, LossReason.RENEWED)
        level = logging.INFO if is_planned else logging.WARNING
        logger.log(level, "%s: %s", "session lost" if action.was_up else "no session", action.text, extra=facts)

    def depth_changed(self, change: DepthChange) -> None:
        facts = {"event": "depth_changed", "depth": change.after, "reason": change.cause.value}
        logger.info("depth %d -> %d", change.before, change.after, extra=facts)

    def bundle_changed(self, change: BundleChange) -> None:
        facts = {"event": "bundle_changed", "bundle": change.bundle, "outcome": change.outcome.value}
        level = logging.INFO if change.outcome is UpdateOutcome.OK else logging.WARNING
        logger.log(level, "bundle %s: %s", change.bundle, change.text, extra=facts)

    def idle(self, now_ns: int) -> None:
        """Once a second, look for what changed without being told."""
        if self._node is None or now_ns - self._looked_ns < LOOK_EVERY_NS:
            return
        self._looked_ns = now_ns
        self._look_at_readiness(readiness(self._node))
        for lane in self._node.lanes:
            self._look_at_drops(lane, self._node.ledger.dropped(lane.name), now_ns)
        for spell in self._spells.take_over(now_ns):
            assert isinstance(spell.key, tuple)
            camera, reason = spell.key
            facts = {"camera": camera, "reason": reason, "sequence": spell.last, "count": spell.count}
            text = "no more frames are lost (%s): %d"
            logger.info(text, reason, spell.count, extra={"event": "drops_ended", **facts})

    def _look_at_readiness(self, reasons: list[str]) -> None:
        before, self._is_ready = self._is_ready, not reasons
        if before is not self._is_ready:
            event = "not_ready" if reasons else "ready"
            logger.info("%s", "; ".join(reasons) or "ready", extra={"event": event})

    def _look_at_drops(self, lane: Lane, dropped: dict[str, int], now_ns: int) -> None:
        before, self._dropped[lane.name] = self._dropped.get(lane.name, {}), dropped
        for reason, count in dropped.items():
            grown = count - before.get(reason, 0)
            if not grown or not is_loss(reason):
                continue
            # Frames that were never given out are booked by number up to here.
            sequence = self._sequences.pop((lane.name, reason), lane.settled - 1)
            if self._spells.drop((lane.name, reason), sequence, now_ns, grown) is not None:
                facts = {"event": "drops_began", "camera": lane.name, "reason": reason, "sequence": sequence}
                logger.warning("frames are lost (%s)", reason, extra=facts)
