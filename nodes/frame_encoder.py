"""From a captured frame to its bitstream: depth by the controller, what does not work by its name."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from pipeline.encoder import Encoder, OperatingPoint
from pipeline.errors import CorruptBitstreamError
from pipeline.frames import Frame
from pipeline.ledger import Outcome
from pipeline.rate_control import DepthChange, DepthController

NS_PER_MS = 1_000_000
OVER_BUDGET_PROBE_NS = 1_000_000_000
"""While frames are dropped over budget, one a second is still encoded, or the end of the overload went unseen."""

logger = logging.getLogger("rac.edge")


@dataclass(frozen=True, slots=True)
class EncodedFrame:
    """A frame on its way, for whoever watches.

    Attributes:
        hand_over_ns: capture to here, without making the view.
        network_ns / entropy_ns: the encoder's two parts.
        elapsed_ns: camera array to bytes, what the budget covers.
    """

    frame: Frame
    point: OperatingPoint
    bitstream_bytes: int
    hand_over_ns: int
    network_ns: int
    entropy_ns: int
    elapsed_ns: int
    is_over_budget: bool


class DepthWatcher(Protocol):
    """Is told when another depth is used."""

    def depth_changed(self, change: DepthChange) -> None: ...


class FrameEncoder:
    """The encoder in use and what chooses its depth.

    Attributes:
        encoder, controller, level16: of the bundle in use; the controller is there once the depths were timed.
    """

    def __init__(
        self,
        encoder: Encoder,
        level16: int,
        *,
        drops_over_budget: bool,
        watcher: DepthWatcher,
        clock: Callable[[], int],
    ) -> None:
        """Join the parts.

        Args:
            drops_over_budget: give frames up while not even the shallowest depth fits.
        """
        self.encoder = encoder
        self.level16 = level16
        self.controller: DepthController | None = None
        self._drops_over_budget = drops_over_budget
        self._watcher = watcher
        self._clock = clock
        self._probed_ns = 0

    def use(self, encoder: Encoder, level16: int, controller: DepthController) -> None:
        """Encode with this from the next frame on."""
        self.encoder, self.level16, self.controller = encoder, level16, controller
        self._warn_once_over_budget(controller)

    def encode(self, frame: Frame) -> tuple[EncodedFrame, bytes] | Outcome:
        """The frame's bitstream, or why there is none."""
        controller = self.controller
        assert controller is not None
        begun_ns = self._clock()
        if self._drops_over_budget and controller.is_over_budget:
            if begun_ns - self._probed_ns < OVER_BUDGET_PROBE_NS:
                return Outcome.OVER_BUDGET
            self._probed_ns = begun_ns
        point = OperatingPoint(controller.decide(), self.level16)
        try:
            symbols = self.encoder.symbols(frame.view, point)
            coded_ns = self._clock()
            bitstream = self.encoder.pack(symbols, point)
        except CorruptBitstreamError as error:  # larger than any bitstream may be
            logger.warning("frame not sent: %s", error, extra={"camera": frame.camera})
            return Outcome.OVERSIZE
        except Exception as error:  # onnxruntime's exceptions share no base of their own; one frame, not the stream
            logger.warning("frame not encoded: %s", error, extra={"camera": frame.camera})
            return Outcome.ENCODE_ERROR
        now_ns = self._clock()
        elapsed_ns = frame.view_ns + now_ns - begun_ns
        change = controller.observe(point.depth, elapsed_ns, now_ns)
        if change is not None:
            self._watcher.depth_changed(change)
        self._warn_once_over_budget(controller)
        encoded = EncodedFrame(
            frame=frame,
            point=point,
            bitstream_bytes=len(bitstream),
            hand_over_ns=max(0, begun_ns - frame.captured_ns - frame.view_ns),
            network_ns=coded_ns - begun_ns,
            entropy_ns=now_ns - coded_ns,
            elapsed_ns=elapsed_ns,
            is_over_budget=elapsed_ns > controller.budget_ns,
        )
        return encoded, bitstream

    def _warn_once_over_budget(self, controller: DepthController) -> None:
        if controller.take_warning():
            what = "dropped" if self._drops_over_budget else "sent over budget"
            budget_ms = controller.budget_ns / NS_PER_MS
            text = "not even depth %d fits %g ms now: frames are %s"
            logger.warning(text, controller.decide(), budget_ms, what, extra={"event": "over_budget"})
