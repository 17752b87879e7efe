"""The cloud's side of all sessions: a state machine without I/O.

A session is known by the routing id of its connection and ends with it; a node that comes back gets a new
one. What must outlive a session is kept by frame identity (node, boot id, camera name, sequence): frames
being computed, and the last answers of each camera. So a frame that is sent again is answered again, with the
same RESULT and without computing.

Credit. For every session, held = credit that it may still spend + its frames being computed. Whenever an
answer leaves, the machine grants up to a target: the session's window, which follows the measured round trip
and rate (`credit_window`), or an equal share of the capacity when that is less. So busy sessions shrink as
others come. Credit cannot be taken back from an idle one; but a session that holds nothing gets one frame even
when the capacity is used up, so nobody starves. All together never hold more than
`CloudSettings.queue_frames`: a queue of that size cannot overflow.

Age. A frame's age at receipt is what FRAME says plus half the smallest recent round trip, measured by our own
PINGs: a node's word is taken for the time on its own clock only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from pipeline.cloud_actions import (
    Answer,
    ChunkWanted,
    CloseReason,
    CloudAction,
    CloudSettings,
    CloudStatistics,
    FrameArrived,
    SendTo,
    SessionClosed,
    SessionOpened,
    SessionStatistics,
)
from pipeline.credit_window import CreditWindow
from pipeline.errors import LocalSessionError, WireError, WireLimitError, WireVersionError
from pipeline.heartbeat import Heartbeat
from pipeline.ledger import Outcome
from pipeline.result_memory import FrameIdentity, ResultMemory
from pipeline.wire import (
    BUNDLE_DELIVERY,
    BUNDLE_HEAD_BYTES,
    MAX_CREDIT_FRAMES,
    WIRE_MINOR,
    BundleRequest,
    Bye,
    Credit,
    FrameMessage,
    Hello,
    Message,
    Ping,
    Pong,
    Reject,
    RejectCode,
    Result,
    Timings,
    Welcome,
)
from pipeline.wire_fields import clean_text

NS_PER_MS = 1_000_000
NS_PER_US = 1_000


@dataclass(slots=True)
class _Session:
    """One session; `bundles` are those that it may use, by the head of their id that bitstreams carry."""

    routing_id: bytes
    hello: Hello
    welcome: Welcome
    credit: int
    heartbeat: Heartbeat
    opened_ns: int
    camera_names: dict[int, str]
    bundles: dict[bytes, bytes]
    window: CreditWindow
    computing: int = 0
    last_frame_ns: int | None = None
    last_sequence: dict[str, int] = field(default_factory=dict)

    @property
    def held(self) -> int:
        return self.credit + self.computing


@dataclass(slots=True)
class _Computing:
    """A frame being computed, and the session that waits for it."""

    identity: FrameIdentity
    session: _Session
    camera_number: int
    captured_ns: int
    received_ns: int


class CloudSessions:
    """Sessions of all nodes.

    Args:
        new_session_id: 8 random bytes a call.
    """

    def __init__(self, settings: CloudSettings, new_session_id: Callable[[], bytes]) -> None:
        largest = max(settings.window_frames, settings.max_window_frames)
        if settings.window_frames < 1 or largest > MAX_CREDIT_FRAMES:
            raise LocalSessionError(f"window of {largest} frames: 1 to {MAX_CREDIT_FRAMES}")
        self._settings = settings
        self._new_session_id = new_session_id
        self._sessions: dict[bytes, _Session] = {}
        self._by_boot: dict[tuple[str, bytes], _Session] = {}
        self._computing: dict[int, _Computing] = {}
        self._tickets: dict[FrameIdentity, int] = {}
        self._memory = ResultMemory()
        self._next_ticket = 0
        # Credit that sessions may still spend; with `_computing` this is what they all hold.
        self._credit = 0
        self._is_draining = False
        self._offer = settings.offer
        self._peak_sessions = 0
        self._credit_granted = 0
        self._handshakes: Counter[str] = Counter({"accepted": 0, **dict.fromkeys(map(str, RejectCode), 0)})
        self._closed: Counter[str] = Counter(dict.fromkeys(map(str, CloseReason), 0))
        self._gaps = 0
        self._missing = 0
        self._duplicates = 0

    def __repr__(self) -> str:
        state = "draining" if self._is_draining else "open"
        return (
            f"<CloudSessions {state}, {len(self._sessions)} sessions, credit {self._credit},"
            f" {len(self._computing)} computing>"
        )

    @property
    def is_draining(self) -> bool:
        return self._is_draining

    @property
    def computing(self) -> int:
        """Frames accepted and not yet answered."""
        return len(self._computing)

    @property
    def num_sessions(self) -> int:
        return len(self._sessions)

    def receive(self, routing_id: bytes, message: Message, now_ns: int) -> list[CloudAction]:
        """Take one message of the connection."""
        if isinstance(message, Hello):
            return self._receive_hello(routing_id, message, now_ns)
        session = self._sessions.get(routing_id)
        if session is None:
            # A node that missed our restart learns it from this; whoever says goodbye need not be told.
            no_session = Reject(RejectCode.NO_SESSION, "say HELLO first")
            if self._is_draining:
                no_session = Reject(RejectCode.SHUTTING_DOWN, "the cloud is stopping")
            return [] if isinstance(message, Bye) else [SendTo(routing_id, no_session)]
        session.heartbeat.hear(now_ns)
        match message:
            case FrameMessage():
                return self._receive_frame(session, message, now_ns)
            case Ping():
                return [SendTo(routing_id, Pong(message.token, message.sent_ns))]
            case Pong():
                session.heartbeat.take_pong(message, now_ns)
                return []
            case BundleRequest():
                return [ChunkWanted(routing_id, message)]
            case Bye():
                return [self._close(session, CloseReason.BYE)]
            case _:
                return self._expel(session, RejectCode.MALFORMED, f"a node sends no {type(message).__name__}")

    def malformed(self, routing_id: bytes, error: WireError) -> list[CloudAction]:
        """The connection sent bytes that `wire.parse` refused: it costs its session, if it has one."""
        code = RejectCode.MALFORMED
        if isinstance(error, WireVersionError):
            code = RejectCode.BAD_VERSION
        elif isinstance(error, WireLimitError):
            code = RejectCode.LIMITS
        session = self._sessions.get(routing_id)
        if session is None:
            return self.refuse(routing_id, code, str(error))
        return self._expel(session, code, str(error))

    def refuse(self, routing_id: bytes, code: RejectCode, text: str) -> list[CloudAction]:
        """Refuse a connection without a session, and count it; also for reasons of the owner's, as a key."""
        self._handshakes[code] += 1
        return [SendTo(routing_id, Reject(code, clean_text(text)))]

    def link_lost(self, routing_id: bytes) -> list[CloudAction]:
        """The owner found the connection gone; without a session nothing happens."""
        session = self._sessions.get(routing_id)
        return [] if session is None else [self._close(session, CloseReason.LOST)]

    def revoke(self, routing_id: bytes, text: str) -> list[CloudAction]:
        """End a session whose node is no longer welcome."""
        session = self._sessions.get(routing_id)
        if session is None:
            return []
        return self._expel(session, RejectCode.NOT_AUTHORISED, text, CloseReason.REVOKED)

    def turn_away(self, routing_id: bytes, code: RejectCode, text: str) -> list[CloudAction]:
        """Tell a connection why it is not heard, at the cost of its session if it has one."""
        session = self._sessions.get(routing_id)
        if session is None:
            return self.refuse(routing_id, code, text)
        is_limit = code is RejectCode.LIMITS
        return self._expel(session, code, text, CloseReason.LIMITS if is_limit else CloseReason.REVOKED)

    def answer(self, ticket: int, answer: Answer, now_ns: int) -> SendTo | None:
        """End the computing of a frame: remember its RESULT and grant what there is to grant.

        Returns:
            The RESULT to send, or None when its session is gone: the frame is unroutable.
        Raises:
            LocalSessionError: answered before, or never arrived.
        """
        entry = self._computing.pop(ticket, None)
        if entry is None:
            raise LocalSessionError(f"ticket {ticket} is not being computed: answered twice?")
        del self._tickets[entry.identity]
        session = entry.session
        session.computing -= 1
        busy_ns = max(0, now_ns - entry.received_ns - answer.queue_us * NS_PER_US)
        session.window.answer(busy_ns, session.heartbeat.round_trip_ns or 0, now_ns)
        result = Result(
            camera=entry.camera_number,
            sequence=entry.identity.sequence,
            captured_ns=entry.captured_ns,
            outcome=answer.outcome,
            classes=answer.classes,
            reference_top1=answer.reference_top1,
            timings=Timings(
                queue_us=answer.queue_us,
                decode_us=answer.decode_us,
                classify_us=answer.classify_us,
                cloud_us=(now_ns - entry.received_ns) // NS_PER_US,
            ),
            batch_frames=answer.batch_frames,
            text=clean_text(answer.text),
        )
        # Nobody got to it: a node that keeps its frames may send it again and have it computed then.
        if answer.outcome not in (Outcome.SHUTDOWN, Outcome.STALE):
            self._memory.add(entry.identity, result)
        if self._sessions.get(session.routing_id) is not session:
            return None
        return SendTo(session.routing_id, replace(result, credit=self._grant(session)))

    def tick(self, now_ns: int) -> list[CloudAction]:
        """Do what is due: lose the silent, ping the quiet, grant what has become free.

        It looks at every session: call it every 100 ms or so, not for every message; and receive everything
        that waits first, because silence is judged by what was received.
        """
        actions: list[CloudAction] = []
        for session in list(self._sessions.values()):
            if session.heartbeat.is_lost(now_ns):
                # Should it only have slept, it learns from this that it must start anew.
                actions.append(SendTo(session.routing_id, Bye("silent for too long")))
                actions.append(self._close(session, CloseReason.TIMEOUT))
                continue
            ping = session.heartbeat.due_ping(now_ns)
            if ping is not None:
                actions.append(SendTo(session.routing_id, ping))
        for session in sorted(self._sessions.values(), key=lambda session: session.held):
            frames = self._grant(session)
            if frames:
                actions.append(SendTo(session.routing_id, Credit(frames)))
        return actions

    def change_offer(self, bundle_id: bytes) -> list[CloudAction]:
        """Offer another bundle to nodes that fetch them: those of open sessions are told now."""
        if bundle_id == self._offer:
            return []
        if bundle_id not in self._settings.bundle_ids:
            raise LocalSessionError(f"bundle {bundle_id.hex()[:16]} is not served here")
        self._offer = bundle_id
        actions: list[CloudAction] = []
        for session in self._sessions.values():
            if self._offer_to(session.hello) is not None and session.welcome.offer != bundle_id:
                session.welcome = replace(session.welcome, offer=bundle_id)
                actions.append(SendTo(session.routing_id, session.welcome))
        return actions

    def _offer_to(self, hello: Hello) -> bytes | None:
        return self._offer if BUNDLE_DELIVERY in hello.capabilities else None

    def drain(self) -> None:
        """Grant nothing from now on, accept no session; frames on the way still arrive and want an answer."""
        self._is_draining = True

    def close(self, reason: str) -> list[CloudAction]:
        """End all sessions with a BYE; frames that are not answered by now are unroutable."""
        self.drain()
        actions: list[CloudAction] = []
        for session in list(self._sessions.values()):
            actions.append(SendTo(session.routing_id, Bye(clean_text(reason))))
            actions.append(self._close(session, CloseReason.SHUTDOWN))
        return actions

    def statistics(self) -> CloudStatistics:
        """Everything that metrics and the status page show."""
        return CloudStatistics(
            sessions=tuple(
                SessionStatistics(
                    node=session.hello.node,
                    cameras=tuple(session.camera_names.values()),
                    bundle_id=session.welcome.bundle_id,
                    window=session.window.frames,
                    credit=session.credit,
                    computing=session.computing,
                    opened_ns=session.opened_ns,
                    heard_ns=session.heartbeat.heard_ns,
                    last_frame_ns=session.last_frame_ns,
                    round_trip_ns=session.heartbeat.round_trip_ns,
                )
                for session in self._sessions.values()
            ),
            peak_sessions=self._peak_sessions,
            credit=self._credit,
            computing=len(self._computing),
            credit_granted=self._credit_granted,
            handshakes=dict(self._handshakes),
            closed=dict(self._closed),
            gaps=self._gaps,
            missing=self._missing,
            duplicates=self._duplicates,
            remembered=len(self._memory),
        )

    def _receive_hello(self, routing_id: bytes, hello: Hello, now_ns: int) -> list[CloudAction]:
        known = self._sessions.get(routing_id)
        if known is not None and known.hello == hello:
            # The node asked twice before it saw the answer: the same answer, and no second grant.
            known.heartbeat.hear(now_ns)
            return [SendTo(routing_id, known.welcome)]
        if self._is_draining:
            return self.refuse(routing_id, RejectCode.SHUTTING_DOWN, "the cloud is stopping")
        # In the node's order of preference; a node that fetches bundles may come with none that fits.
        served = (each for each in hello.bundle_ids if each in self._settings.bundle_ids)
        bundle_id = next(served, self._offer_to(hello))
        if bundle_id is None:
            ids = ", ".join(sorted(each.hex()[:16] for each in self._settings.bundle_ids)[:4])
            return self.refuse(routing_id, RejectCode.UNKNOWN_BUNDLE, f"this cloud decodes {ids}")
        if len(hello.cameras) > self._settings.max_cameras:
            text = f"{len(hello.cameras)} cameras, and a node may have {self._settings.max_cameras} here"
            return self.refuse(routing_id, RejectCode.LIMITS, text)
        # The same boot of the same node: its older connection is dead, whether we noticed or not.
        replaced = {id(old): old for old in (known, self._by_boot.get((hello.node, hello.boot_id))) if old}
        actions: list[CloudAction] = [self._close(old, CloseReason.REPLACED) for old in replaced.values()]
        if len(self._sessions) >= self._settings.max_sessions:
            return actions + self.refuse(routing_id, RejectCode.FULL, f"{len(self._sessions)} sessions are open")
        num_own = sum(session.hello.node == hello.node for session in self._sessions.values())
        if num_own >= self._settings.max_node_sessions:
            return actions + self.refuse(routing_id, RejectCode.LIMITS, f"{num_own} sessions of this node are open")
        return actions + self._open(routing_id, hello, bundle_id, now_ns)

    def _open(self, routing_id: bytes, hello: Hello, bundle_id: bytes, now_ns: int) -> list[CloudAction]:
        settings = self._settings
        welcome = Welcome(
            minor=WIRE_MINOR,
            session_id=self._new_session_id(),
            bundle_id=bundle_id,
            credit=0,
            max_message_bytes=settings.max_message_bytes,
            heartbeat_ms=settings.heartbeat_ms,
            peer_timeout_ms=settings.peer_timeout_ms,
            capabilities=tuple(word for word in hello.capabilities if word in settings.capabilities),
            offer=self._offer_to(hello),
        )
        session = _Session(
            routing_id=routing_id,
            hello=hello,
            welcome=welcome,
            credit=0,
            heartbeat=Heartbeat(settings.heartbeat_ms * NS_PER_MS, settings.peer_timeout_ms * NS_PER_MS, now_ns),
            opened_ns=now_ns,
            camera_names={entry.number: entry.name for entry in hello.cameras},
            bundles={own[:BUNDLE_HEAD_BYTES]: own for own in hello.bundle_ids if own in settings.bundle_ids},
            window=CreditWindow(settings.window_frames, settings.max_window_frames, now_ns),
        )
        self._sessions[routing_id] = self._by_boot[hello.node, hello.boot_id] = session
        self._peak_sessions = max(self._peak_sessions, len(self._sessions))
        self._handshakes["accepted"] += 1
        session.welcome = replace(welcome, credit=self._grant(session))
        cameras = tuple(session.camera_names.values())
        return [SessionOpened(routing_id, hello.node, cameras), SendTo(routing_id, session.welcome)]

    def _receive_frame(self, session: _Session, frame: FrameMessage, now_ns: int) -> list[CloudAction]:
        camera = session.camera_names.get(frame.camera)
        if camera is None:
            return self._expel(session, RejectCode.MALFORMED, f"camera {frame.camera} is not in HELLO")
        if session.credit <= 0:
            return self._expel(session, RejectCode.LIMITS, "frame without credit")
        session.credit -= 1
        self._credit -= 1
        session.last_frame_ns = now_ns
        self._count_gap(session, camera, frame.sequence)
        identity = FrameIdentity(session.hello.node, session.hello.boot_id, camera, frame.sequence)
        remembered = self._memory.get(identity)
        if remembered is not None:
            self._duplicates += 1
            # The camera may have another number now, and its credit is today's.
            repeated = replace(remembered, camera=frame.camera, credit=self._grant(session), repeated=True)
            return [SendTo(session.routing_id, repeated)]
        ticket = self._tickets.get(identity)
        if ticket is not None:
            self._duplicates += 1
            self._join(self._computing[ticket], session, frame)
            return []
        return [self._accept(session, camera, identity, frame, now_ns)]

    def _accept(
        self, session: _Session, camera: str, identity: FrameIdentity, frame: FrameMessage, now_ns: int
    ) -> FrameArrived:
        ticket = self._next_ticket
        self._next_ticket += 1
        self._tickets[identity] = ticket
        self._computing[ticket] = _Computing(identity, session, frame.camera, frame.captured_ns, now_ns)
        session.computing += 1
        half_trip_ns = (session.heartbeat.round_trip_ns or 0) // 2
        return FrameArrived(
            ticket=ticket,
            node=session.hello.node,
            camera=camera,
            # A frame from the node's spool may be coded with an older bundle than the session's.
            bundle_id=session.bundles.get(frame.bundle_head, session.welcome.bundle_id),
            frame=frame,
            received_ns=now_ns,
            born_ns=now_ns - half_trip_ns - frame.age_us * NS_PER_US,
        )

    @staticmethod
    def _join(entry: _Computing, session: _Session, frame: FrameMessage) -> None:
        """A frame came again while its first copy is computed: the answer goes to who asked last."""
        entry.session.computing -= 1
        session.computing += 1
        entry.session = session
        entry.camera_number = frame.camera

    def _count_gap(self, session: _Session, camera: str, sequence: int) -> None:
        last = session.last_sequence.get(camera)
        if last is not None and sequence > last + 1:
            self._gaps += 1
            self._missing += sequence - last - 1
        session.last_sequence[camera] = sequence if last is None else max(last, sequence)

    def _grant(self, session: _Session) -> int:
        """Grant an open session what it lacks to its target, as far as there is; return how much."""
        # Without a common bundle the node can only fetch one.
        if self._is_draining or not session.bundles:
            return 0
        settings = self._settings
        all_held = self._credit + len(self._computing)
        target = min(session.window.frames, settings.capacity_frames // len(self._sessions))
        frames = max(0, min(target - session.held, settings.capacity_frames - all_held))
        if session.held == 0 and frames == 0 and all_held < settings.queue_frames:
            frames = 1
        session.credit += frames
        self._credit += frames
        self._credit_granted += frames
        return frames

    def _expel(
        self,
        session: _Session,
        code: RejectCode,
        text: str,
        reason: CloseReason = CloseReason.PROTOCOL_ERROR,
    ) -> list[CloudAction]:
        reject = SendTo(session.routing_id, Reject(code, clean_text(text)))
        return [reject, self._close(session, reason)]

    def _close(self, session: _Session, reason: CloseReason) -> SessionClosed:
        """Forget the session; its frames go on computing and count against the capacity until answered."""
        del self._sessions[session.routing_id]
        del self._by_boot[session.hello.node, session.hello.boot_id]
        self._credit -= session.credit
        session.credit = 0
        self._closed[reason] += 1
        return SessionClosed(session.routing_id, session.hello.node, reason)
