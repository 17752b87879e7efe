"""The node's way over the disk: frames of sources that wait are written down, sent from there, and end there first."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

from nodes.lanes import RESERVE_NS, Lane
from nodes.spool import Spool
from pipeline.encoder import OperatingPoint
from pipeline.errors import SpoolFullError, SpoolRecordError
from pipeline.ledger import ClosedFrame, Ledger, Outcome
from pipeline.session import NodeSession
from pipeline.spool_records import SpooledFrame
from pipeline.wire import FrameMessage

SendFrame = Callable[[str, FrameMessage, OperatingPoint], None]
DropFrame = Callable[[str, int, Outcome], None]

logger = logging.getLogger("rac.spool")


class SpoolSender:
    """What the node's loop does with its spool.

    Args:
        send: books a frame of a camera as sent and gives it to the session; there is credit.
        drop: closes a frame for a reason of the node's.
        wall_clock: written down to be shown, never decided by.
    """

    def __init__(
        self,
        spool: Spool,
        ledger: Ledger,
        session: NodeSession,
        lanes: Sequence[Lane],
        send: SendFrame,
        drop: DropFrame,
        clock: Callable[[], int],
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self.spool = spool
        self._ledger, self._session, self._lanes = ledger, session, lanes
        self._send, self._drop = send, drop
        self._clock, self._wall_clock = clock, wall_clock
        self._sent_ns = 0
        for frame in spool.recovered:
            ledger.recover(frame.camera, frame.sequence, frame.label)

    def may_ask(self, room: int, now_ns: int) -> bool:
        """Whether a source that waits goes on: as credit allows while there is a session, else while there is space.

        Args:
            room: credit that nobody has a claim on.
        """
        if self._session.is_up and (room <= 0 or self.spool.num_waiting):
            return False
        return self.spool.has_room(now_ns)

    def put(self, camera: str, message: FrameMessage, point: OperatingPoint, bundle_id: bytes) -> None:
        """Write a frame down and send what can be sent, or close its entry."""
        frame = SpooledFrame(
            camera=camera,
            sequence=message.sequence,
            depth=point.depth,
            level16=point.level16,
            bundle_id=bundle_id,
            wall_ms=max(0, round(1000 * self._wall_clock())),
            label=message.label,
            bitstream=message.bitstream,
            reference=message.reference,
        )
        try:
            self.spool.append(frame, self._clock())
        except SpoolFullError as error:
            logger.warning("frame dropped: %s", error, extra={"camera": camera})
            self._drop(camera, message.sequence, Outcome.SPOOL_FULL)
            return
        self._ledger.keep(camera, message.sequence)
        self.send_waiting()

    def send_waiting(self) -> None:
        """Send what credit allows, oldest first, beside the places of live cameras."""
        if not self._session.can_send:
            return
        now_ns = self._clock()
        room = self._session.credit - sum(lane.reserves(now_ns) for lane in self._lanes if not lane.is_spooled)
        if room <= 0 and now_ns - self._sent_ns >= RESERVE_NS:
            room = 1  # live cameras that use up all credit do not hold the spool up for good
        while room > 0 and self._session.can_send and (key := self.spool.oldest_key()) is not None:
            room -= 1
            self._sent_ns = now_ns
            try:
                frame = self.spool.oldest()
            except SpoolRecordError as error:
                logger.warning("frame lost in the spool: %s", error, extra={"camera": key[0]})
                self._drop(*key, Outcome.CORRUPT)
                continue
            assert frame is not None
            self.spool.send(key)
            # It stood still: its age begins now, and an earlier run's stamp would mean nothing.
            message = FrameMessage(
                camera=self._session.camera_number(frame.camera),
                sequence=frame.sequence,
                captured_ns=now_ns,
                age_us=0,
                label=frame.label,
                bitstream=frame.bitstream,
                reference=frame.reference,
            )
            self._send(frame.camera, message, OperatingPoint(frame.depth, frame.level16))

    def take_back(self, camera: str, sequence: int) -> bool:
        """The cloud did not get to a frame, which stops or was late: it is sent again if it is ours; False for others.

        A frame of a file that stands still does not grow old: the next sending counts its age anew.
        """
        if not self._ledger.is_kept_and_sent(camera, sequence):
            return False
        self._ledger.unsend(camera, sequence)
        self.spool.take_back((camera, sequence))
        return True

    def end(self, closed: ClosedFrame) -> None:
        """A frame has ended; does nothing about those that are not here."""
        self.spool.end((closed.camera, closed.sequence))
