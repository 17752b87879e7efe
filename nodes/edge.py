"""The edge node: cameras in, bitstreams out, results back. One thread, one loop.

    cameras (own processes) --frame--> encode --FRAME--> uplink (DEALER) --> cloud
                                                 <--RESULT--

The loop polls the cameras' links and the socket, and does what is due. A frame is asked for only when there is credit
to send it, so nothing is encoded in vain and no queue exists here; but with a spool, frames of files and folders go to
the disk first, are asked for while there is no session too, and are sent from there. Decisions are made by
`pipeline.session`, `pipeline.rate_control` and `pipeline.ledger`; this file carries out what they say.
"""

from __future__ import annotations

import logging
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import zmq

from nodes.capture import stop_readers
from nodes.capture_events import BadFrames, CaptureEvent, Down, Finished, FrameArrived, Settled, Up
from nodes.companions import Companion, SessionChange
from nodes.frame_encoder import EncodedFrame, FrameEncoder
from nodes.lanes import Lane, Reader
from nodes.spool import MAX_FRAMES, Spool
from nodes.spool_sender import SpoolSender
from nodes.uplink import Uplink, framed_bytes
from pipeline.bundle import Bundle
from pipeline.bundle_trial import BundleChange
from pipeline.encoder import Encoder, OperatingPoint
from pipeline.errors import WireError
from pipeline.frames import VIEW_SIDE_PX, Frame
from pipeline.ledger import MAX_OPEN_FRAMES, ClosedFrame, Ledger, Outcome
from pipeline.rate_control import DepthChange, DepthController
from pipeline.session import (
    Action,
    Backoff,
    CloseLink,
    LossReason,
    Lost,
    NodeSession,
    Opened,
    OpenLink,
    ResultArrived,
    Send,
)
from pipeline.wire import FrameMessage, Hello, Result, pack, parse

NS_PER_S = 1_000_000_000
GOODBYE_LINGER_MS = 200
LONGEST_POLL_MS = 500
CHANGE_LIMIT_NS = 2 * NS_PER_S
"""How long a change of the session waits for what is on the way; what is not answered by then is lost in the link."""
FIRST_FRAME_LIMIT_NS = 2 * NS_PER_S
"""How long the start waits for a real frame to time the depths on."""
REFERENCE_ZLIB_LEVEL = 1
"""A view is sent once in a while; higher levels save 3 % and take three times as long."""

logger = logging.getLogger("rac.edge")


class EdgeWatcher(Protocol):
    """Is told what happens; shows it, logs it, counts it. Nothing it does changes the stream."""

    def encoded(self, encoded: EncodedFrame) -> None: ...

    def sent(self, camera: str, duration_ns: int) -> None: ...

    def closed(self, closed: ClosedFrame, result: Result | None) -> None: ...

    def camera_changed(self, lane: Lane, event: Up | Down | Finished | BadFrames) -> None: ...

    def link_changed(self, action: Opened | Lost | Backoff) -> None: ...

    def depth_changed(self, change: DepthChange) -> None: ...

    def bundle_changed(self, change: BundleChange) -> None: ...

    def idle(self, now_ns: int) -> None: ...


@dataclass(frozen=True, slots=True)
class EdgeOptions:
    """What the loop needs of the configuration.

    Attributes:
        reference_every: send the view too with every so many frames of a camera; 0: never.
        drops_over_budget: give frames up while not even the shallowest depth fits.
    """

    level16: int
    reference_every: int
    drops_over_budget: bool
    result_timeout_ns: int
    drain_ns: int


class EdgeNode:
    """The loop and what it owns: cameras, session, socket, encoder, ledger."""

    def __init__(
        self,
        readers: Sequence[Reader],
        session: NodeSession,
        uplink: Uplink,
        encoder: Encoder,
        calibrate: Callable[[Frame | None], DepthController],
        options: EdgeOptions,
        watcher: EdgeWatcher,
        clock: Callable[[], int] = time.monotonic_ns,
        spool: Spool | None = None,
        wall_clock: Callable[[], float] = time.time,
        trace: Callable[[EncodedFrame], bytes | None] | None = None,
    ) -> None:
        """Join the parts.

        Args:
            trace: asked of each frame that is sent at once for what its message carries when it is traced.
            calibrate: times every depth on the first frame, or on a made-up one when no camera gave any in time.
            spool: for the frames of sources that wait; the readers' numbers begin at its `first_sequence`.
            wall_clock: shown, never decided by.
        """
        first = 0 if spool is None else spool.first_sequence
        self.lanes = [
            Lane(number, reader, settled=first, is_spooled=spool is not None and not reader.is_live)
            for number, reader in enumerate(readers)
        ]
        max_open = MAX_OPEN_FRAMES + (0 if spool is None else MAX_FRAMES)
        self.ledger = Ledger((lane.name for lane in self.lanes), max_open=max_open)
        self.session = session
        self.spool = spool
        self._spooled = (
            None
            if spool is None
            else SpoolSender(spool, self.ledger, session, self.lanes, self._send_frame, self._drop, clock, wall_clock)
        )
        self.uplink = uplink
        self._calibrate = calibrate
        self._frames = FrameEncoder(
            encoder, options.level16, drops_over_budget=options.drops_over_budget, watcher=watcher, clock=clock
        )
        self.companions: list[Companion] = []
        self._changes: list[SessionChange] = []
        self._change_by_ns = 0
        self._options = options
        self._trace = trace
        self._watcher = watcher
        self._clock = clock
        self._next_lane = 0
        self._link_index = 0

    @property
    def link_index(self) -> int:
        """Place in the list of the endpoint that was connected to last."""
        return self._link_index

    @property
    def bundle(self) -> Bundle:
        """What frames are encoded with now."""
        return self._frames.encoder.bundle

    @property
    def controller(self) -> DepthController:
        """What chooses the depth; there once `run` has timed the depths."""
        assert self._frames.controller is not None
        return self._frames.controller

    def use(self, encoder: Encoder, level16: int, controller: DepthController) -> None:
        """Encode with this from the next frame on."""
        self._frames.use(encoder, level16, controller)

    def run(self, should_stop: Callable[[], bool], stop_fd: int) -> None:
        """Stream until told to stop or until every finite camera is through and answered; then stop in order.

        Args:
            stop_fd: becomes readable when `should_stop` may have changed.
        """
        now_ns = self._clock()
        for lane in self.lanes:
            self._apply_capture(lane, lane.reader.start(now_ns))
            lane.ask(now_ns)
        first = self._wait_for_first_frame(should_stop, stop_fd)
        if not should_stop():
            self._frames.use(self._frames.encoder, self._options.level16, self._calibrate(first))
            self._give_up_live_frames()
            self._perform(self.session.start(self._clock()))
        while not should_stop() and not self._is_through():
            self._turn(stop_fd)
        self._drain()

    def _wait_for_first_frame(self, should_stop: Callable[[], bool], stop_fd: int) -> Frame | None:
        """The first frame of any camera; None when none comes in time. Frames stay in their lanes to be sent."""
        deadline_ns = self._clock() + FIRST_FRAME_LIMIT_NS
        while not should_stop() and self._clock() < deadline_ns and not self._is_through():
            self._wait(stop_fd)
            self._read_cameras()
            for lane in self.lanes:
                if lane.frame is not None:
                    return lane.frame
        return None

    def _give_up_live_frames(self) -> None:
        """By the time there is a session these would be old; and a lane that keeps one asks for no other."""
        for lane in self.lanes:
            if lane.frame is not None and lane.reader.is_live:
                self._drop(lane.name, lane.frame.sequence, Outcome.LINK_DOWN)
                lane.frame = None

    def _read_cameras(self) -> None:
        for lane in self.lanes:
            now_ns = self._clock()
            self._apply_capture(lane, lane.reader.receive(now_ns))
            self._apply_capture(lane, lane.reader.tick(now_ns))

    def _turn(self, stop_fd: int) -> None:
        """One pass: wait, take in, do what is due."""
        self._ask_cameras()
        self._wait(stop_fd)
        self.uplink.flush()
        for parts in self.uplink.receive():
            self._receive(parts)
        self._take_link_failure()
        self._read_cameras()
        for lane in self.lanes:
            if lane.frame is not None and (self.session.can_send or lane.is_spooled):
                frame, lane.frame = lane.frame, None
                # What stood still while it waited is as old as the moment when the wait ended.
                self._encode_and_send(lane, frame, born_ns=self._clock())
        if self._spooled is not None and not self._changes:
            self._spooled.send_waiting()
        now_ns = self._clock()
        self._perform(self.session.tick(now_ns))
        self._turn_companions(now_ns)
        for closed in self.ledger.expire(now_ns, self._options.result_timeout_ns):
            self._tell_closed(closed)
        self._watcher.idle(now_ns)

    def _turn_companions(self, now_ns: int) -> None:
        """Let them do what is due; a change of the session waits until nothing is on the way, but not for long."""
        for companion in self.companions:
            self._perform(companion.turn(now_ns))
            change = companion.take_change()
            if change is not None:
                self._changes.append(change)
                self._change_by_ns = now_ns + CHANGE_LIMIT_NS
        if self._changes and (not self.ledger.unanswered or now_ns >= self._change_by_ns):
            changes, self._changes = self._changes, []
            for change in changes:
                self._perform(change(now_ns))

    def _wait(self, stop_fd: int) -> None:
        poller = zmq.Poller()
        poller.register(stop_fd, zmq.POLLIN)
        if self.uplink.socket is not None:
            poller.register(self.uplink.socket, self.uplink.events)
        for lane in self.lanes:
            if lane.reader.fileno() >= 0:
                poller.register(lane.reader.fileno(), zmq.POLLIN)
        for socket in (companion.socket() for companion in self.companions):
            if socket is not None:
                poller.register(socket, zmq.POLLIN)
        now_ns = self._clock()
        deadlines = [lane.reader.next_deadline() for lane in self.lanes]
        deadlines += [companion.next_deadline_ns() for companion in self.companions]
        deadlines += [self._change_by_ns] if self._changes else []
        deadlines += [lane.reserved_until_ns() for lane in self.lanes if lane.reserves(now_ns)]
        deadlines += [
            self.session.next_deadline_ns(),
            self.ledger.next_expiry_ns(self._options.result_timeout_ns),
        ]
        due_ns = min((deadline for deadline in deadlines if deadline is not None), default=None)
        timeout_ms = LONGEST_POLL_MS
        if due_ns is not None:
            timeout_ms = max(0, min(timeout_ms, -(-(due_ns - now_ns) // 1_000_000)))
        poller.poll(timeout_ms)

    def _ask_cameras(self) -> None:
        """Ask as many cameras as there is credit for, in turn; note for the others why they are not asked."""
        now_ns = self._clock()
        room = 0
        if self.session.is_up and not self._changes:
            room = self.session.credit - sum(lane.reserves(now_ns) for lane in self.lanes)
        count = len(self.lanes)
        for lane in (self.lanes[(self._next_lane + offset) % count] for offset in range(count)):
            if not lane.can_ask:
                continue
            if self._spooled is not None and lane.is_spooled and not self._spooled.may_ask(room, now_ns):
                continue
            if room > 0 or lane.is_spooled:
                lane.ask(now_ns)
                room -= 1
                self._next_lane = (lane.number + 1) % count
            else:
                lane.block(Outcome.NO_CREDIT if self.session.is_up else Outcome.LINK_DOWN)

    def _apply_capture(self, lane: Lane, events: Sequence[CaptureEvent]) -> None:
        for event in events:
            match event:
                case FrameArrived(frame=frame):
                    lane.accept(self.ledger, frame, event.rate_limited_total)
                    self._take_frame(lane, frame)
                case Settled():
                    lane.settle(self.ledger, event.captured_total, event.rate_limited_total)
                case Down() | Finished():
                    lane.settle(self.ledger, event.captured_total, event.rate_limited_total)
                    if isinstance(event, Finished):
                        lane.asked_ns = None
                    self._watcher.camera_changed(lane, event)
                case Up() | BadFrames():
                    self._watcher.camera_changed(lane, event)

    def _take_frame(self, lane: Lane, frame: Frame) -> None:
        is_timed = self._frames.controller is not None
        if self.session.can_send or (lane.is_spooled and is_timed):
            self._encode_and_send(lane, frame, born_ns=frame.captured_ns)
        elif lane.reader.is_live and is_timed:
            # The credit it was asked for is gone; by the time there is credit again it would be old.
            reason = Outcome.NO_CREDIT if self.session.is_up else Outcome.LINK_DOWN
            self._drop(lane.name, frame.sequence, reason)
        else:
            lane.frame = frame

    def _drop(self, camera: str, sequence: int, outcome: Outcome) -> None:
        self._tell_closed(self.ledger.drop(camera, sequence, outcome, self._clock()))

    def _tell_closed(self, closed: ClosedFrame, result: Result | None = None) -> None:
        """A frame has ended: first in the spool, so that it is told of once at most, whatever happens next."""
        if self._spooled is not None:
            self._spooled.end(closed)
        for companion in self.companions:
            companion.close_frame(closed, self._clock())
        self._watcher.closed(closed, result)

    def _encode_and_send(self, lane: Lane, frame: Frame, born_ns: int) -> None:
        """Encode a frame and send it, or close its entry.

        Args:
            born_ns: from when on its age counts for the cloud.
        """
        coded = self._frames.encode(frame)
        if isinstance(coded, Outcome):
            self._drop(lane.name, frame.sequence, coded)
            return
        encoded, bitstream = coded
        every = self._options.reference_every
        wants_reference = every > 0 and lane.encoded % every == 0
        reference = zlib.compress(frame.view.tobytes(), REFERENCE_ZLIB_LEVEL) if wants_reference else None
        now_ns = self._clock()
        message = FrameMessage(
            camera=lane.number,
            sequence=frame.sequence,
            captured_ns=frame.captured_ns,
            age_us=max(0, now_ns - born_ns) // 1000,
            label=frame.label,
            bitstream=bitstream,
            reference=reference,
            trace=None if self._trace is None or lane.is_spooled else self._trace(encoded),
        )
        if sum(map(len, pack(message))) > self.session.max_message_bytes:
            self._drop(lane.name, frame.sequence, Outcome.OVERSIZE)
            return
        lane.encoded += 1
        self._watcher.encoded(encoded)
        for companion in self.companions:
            companion.encode(lane.name, frame.sequence)
        if lane.is_spooled:
            assert self._spooled is not None
            self._spooled.put(lane.name, message, encoded.point, self._frames.encoder.bundle.bundle_id)
        else:
            self._send_frame(lane.name, message, encoded.point)

    def _send_frame(self, camera: str, message: FrameMessage, point: OperatingPoint) -> None:
        now_ns = self._clock()
        self.ledger.send(
            camera,
            message.sequence,
            now_ns,
            depth=point.depth,
            level16=point.level16,
            bitstream_bytes=len(message.bitstream),
            coded_pixels=VIEW_SIDE_PX**2,
            wire_bytes=framed_bytes(pack(message)),
        )
        self._perform(self.session.send_frame(message, now_ns))
        self._watcher.sent(camera, self._clock() - now_ns)

    def _take_link_failure(self) -> None:
        failure = self.uplink.take_failure()
        if failure is not None:
            reason = LossReason.AUTH if failure.is_lasting else LossReason.REFUSED
            self._perform(self.session.link_failed(reason, failure.text, self._clock()))

    def _receive(self, parts: list[bytes]) -> None:
        now_ns = self._clock()
        try:
            message = parse(parts)
        except WireError as error:
            self._perform(self.session.malformed(error, now_ns))
            return
        self._perform(self.session.receive(message, now_ns), framed_bytes(parts))

    def _perform(self, actions: Sequence[Action], received_bytes: int = 0) -> None:
        for action in actions:
            match action:
                case OpenLink():
                    self._link_index = action.index
                    self.uplink.open(action.endpoint, action.index)
                case CloseLink():
                    self.uplink.close(GOODBYE_LINGER_MS if action.is_orderly else 0)
                case Send(message=Hello() as hello):
                    self.uplink.send_when_connected(pack(hello))
                case Send(message=message):
                    taken = self.uplink.send(pack(message))
                    if not taken and isinstance(message, FrameMessage):
                        lost = self.session.link_failed(LossReason.CLOSED, "the connection broke", self._clock())
                        self._perform(lost)
                        return
                case ResultArrived():
                    self._take_result(action.camera, action.result, received_bytes)
                case Lost():
                    if action.reason is LossReason.AUTH:
                        logger.error("not authorised: %s; trying again slowly", action.text)
                    for closed in self.ledger.lose_link(self._clock()):
                        self._tell_closed(closed)
                    if self.spool is not None:
                        self.spool.lose_link()
                    self._watcher.link_changed(action)
                case Opened() | Backoff():
                    self._watcher.link_changed(action)
                case _:
                    pass  # credit is read from the session; the rest is for the companions
            for companion in self.companions:
                companion.act(action, self._clock())

    def _take_result(self, camera: str, result: Result, wire_bytes: int) -> None:
        is_left_out = result.outcome in (Outcome.SHUTDOWN, Outcome.STALE)
        if is_left_out and self._spooled is not None and self._spooled.take_back(camera, result.sequence):
            return
        closed = self.ledger.answer(
            camera,
            result.sequence,
            Outcome(result.outcome),
            self._clock(),
            classes=[entry.index for entry in result.classes],
            reference_top1=result.reference_top1,
            wire_bytes=wire_bytes,
        )
        if closed is not None:
            self._tell_closed(closed, result)

    def _is_through(self) -> bool:
        """Whether every camera has ended and every frame is closed."""
        return all(lane.reader.has_ended for lane in self.lanes) and self.ledger.in_flight == 0

    def _drain(self) -> None:
        """Stop the cameras, wait for results of what was sent, say goodbye, close what is left.

        What is in the spool stays open: the next start goes on with it.
        """
        now_ns = self._clock()
        deadline_ns = now_ns + self._options.drain_ns
        for lane in self.lanes:
            lane.reader.stop(now_ns)
            if lane.frame is not None:
                self._drop(lane.name, lane.frame.sequence, Outcome.SHUTDOWN)
                lane.frame = None
        while self.session.is_up and self.ledger.unanswered and self._clock() < deadline_ns:
            self._turn_drain(deadline_ns)
        self._perform(self.session.stop("node stops"))
        for companion in self.companions:
            companion.stop()
        for closed in self.ledger.close_all(Outcome.SHUTDOWN, self._clock()):
            self._tell_closed(closed)
        stop_readers([lane.reader for lane in self.lanes])
        self.ledger.check_balance()

    def _turn_drain(self, deadline_ns: int) -> None:
        """One pass of the drain: the stop descriptor stays readable, so only the socket is polled."""
        if self.uplink.socket is not None:
            left_ms = max(0, (deadline_ns - self._clock()) // 1_000_000)
            self.uplink.socket.poll(min(left_ms, 50))
        for parts in self.uplink.receive():
            self._receive(parts)
        for lane in self.lanes:
            lane.reader.receive(self._clock())
            lane.reader.tick(self._clock())
        self._perform(self.session.tick(self._clock()))
