"""The node's side of a session: a state machine without I/O.

          start                WELCOME
    IDLE ------> CONNECTING -----------> UP
                  |    ^                  |
                  |    | tick, when due   |    anything that ends the session: silence, REJECT, BYE, REDIRECT,
                  v    |                  v    a malformed message, a broken link
                   DOWN <-----------------+    (from CONNECTING also: no WELCOME in time)

    stop leads from every state to CLOSED, which is the end.

Two rules make loss easy to reason about. Each attempt gets a fresh socket, so nothing of an older session can
arrive in a newer one. And credit belongs to the session: it starts with WELCOME's and ends with the session.

The owner performs the actions in their order. A HELLO or PING that the socket does not take is simply dropped
(they are repeated); a FRAME that it does not take means that the link is broken: `link_failed`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum, StrEnum

from pipeline.errors import LocalSessionError, WireError, WireVersionError
from pipeline.failover import EndpointChoice
from pipeline.heartbeat import Heartbeat
from pipeline.wire import (
    BUNDLE_DELIVERY,
    MAX_CREDIT_FRAMES,
    MAX_MESSAGE_BYTES,
    BundleChunk,
    BundleRequest,
    Bye,
    Credit,
    FrameMessage,
    Hello,
    Message,
    Ping,
    Pong,
    Redirect,
    Reject,
    RejectCode,
    Result,
    Welcome,
)
from pipeline.wire_fields import clean_text

NS_PER_MS = 1_000_000
NS_PER_S = 1_000_000_000

# HELLO is repeated because a socket that is not connected yet takes no message; ten tries are five seconds.
HELLO_RETRY_NS = NS_PER_S // 2
HELLO_TIMEOUT_NS = 5 * NS_PER_S
# Full jitter: a uniform draw up to a ceiling that doubles, so that a fleet does not come back in step.
BACKOFF_FIRST_NS = NS_PER_S // 2
BACKOFF_LAST_NS = 30 * NS_PER_S
# A session this old, or one that brought a RESULT, shows that the endpoint works: the back-off starts anew.
STABLE_SESSION_NS = 10 * NS_PER_S

# Refusals that asking again soon cannot change.
_LASTING_REFUSALS = frozenset(
    {
        RejectCode.BAD_VERSION,
        RejectCode.UNKNOWN_BUNDLE,
        RejectCode.MALFORMED,
        RejectCode.FULL,
        RejectCode.NOT_AUTHORISED,
        RejectCode.LIMITS,
    }
)


class NodeState(Enum):
    """See the drawing above."""

    IDLE = "idle"
    CONNECTING = "connecting"
    UP = "up"
    DOWN = "down"
    CLOSED = "closed"


class LossReason(StrEnum):
    """Why an attempt or a session ended; the words of the reconnect metric.

    Attributes:
        FAILOVER: ended by the node, for a better endpoint that is back.
        RENEWED: ended by the node, to begin with another bundle.
    """

    REFUSED = "refused"
    NO_ANSWER = "no_answer"
    HEARTBEAT = "heartbeat"
    CLOSED = "closed"
    AUTH = "auth"
    PROTOCOL = "protocol"
    REDIRECTED = "redirected"
    FAILOVER = "failover"
    RENEWED = "renewed"


@dataclass(frozen=True, slots=True)
class OpenLink:
    """Open a fresh socket to this endpoint; `index` is its place in the list, or of what redirected to it."""

    endpoint: str
    index: int


@dataclass(frozen=True, slots=True)
class CloseLink:
    """Close the socket; with `is_orderly` give what was just sent (BYE) a moment to leave."""

    is_orderly: bool


@dataclass(frozen=True, slots=True)
class Send:
    """Give the message to the socket, without blocking."""

    message: Message


@dataclass(frozen=True, slots=True)
class Opened:
    """The session is up."""

    welcome: Welcome


@dataclass(frozen=True, slots=True)
class Lost:
    """The attempt or session ended: close the ledger's sent entries as lost in the link.

    Attributes:
        code: the cloud's code where it refused.
        was_up: a session ended, not only an attempt.
    """

    reason: LossReason
    text: str
    code: RejectCode | None
    was_up: bool


@dataclass(frozen=True, slots=True)
class Backoff:
    """Nothing happens before `until_ns`; then `tick` opens the next link."""

    until_ns: int


@dataclass(frozen=True, slots=True)
class CreditChanged:
    """The node may now send so many frames."""

    credit: int


@dataclass(frozen=True, slots=True)
class ResultArrived:
    """A RESULT for `camera`, the name behind its number."""

    camera: str
    result: Result


@dataclass(frozen=True, slots=True)
class ChunkArrived:
    """A piece of a bundle that was asked for."""

    chunk: BundleChunk


@dataclass(frozen=True, slots=True)
class BundleOffered:
    """The cloud says which bundle this node should run; it may be the one in use."""

    bundle_id: bytes


Action = (
    OpenLink | CloseLink | Send | Opened | Lost | Backoff | CreditChanged | ResultArrived | ChunkArrived | BundleOffered
)


@dataclass(frozen=True, slots=True)
class NodeSettings:
    """What the session machine needs to know.

    Attributes:
        hello: sent as it is on every attempt.
        endpoints: in order of preference; at least one.
        may_open: whether a cloud may send the node to an endpoint: without keys, not to another machine.
    """

    hello: Hello
    endpoints: tuple[str, ...]
    hello_retry_ns: int = HELLO_RETRY_NS
    hello_timeout_ns: int = HELLO_TIMEOUT_NS
    backoff_first_ns: int = BACKOFF_FIRST_NS
    backoff_last_ns: int = BACKOFF_LAST_NS
    may_open: Callable[[str], bool] = lambda endpoint: True


class NodeSession:
    """The node's session with whichever of its endpoints answers.

    Args:
        random: uniform in [0, 1), for the back-off.
    """

    def __init__(self, settings: NodeSettings, random: Callable[[], float]) -> None:
        self._settings = settings
        self._choice = EndpointChoice(settings.endpoints, settings.backoff_first_ns, settings.backoff_last_ns, random)
        self._camera_names = {entry.number: entry.name for entry in settings.hello.cameras}
        self._state = NodeState.IDLE
        self._credit = 0
        self._welcome: Welcome | None = None
        self._heartbeat: Heartbeat | None = None
        self._opened_ns = 0
        self._has_result = False
        self._round_trip_ns: int | None = None
        # DOWN: when to try again. CONNECTING: when to give up, and when to repeat HELLO.
        self._retry_ns = 0
        self._give_up_ns = 0
        self._next_hello_ns = 0

    def __repr__(self) -> str:
        return f"<NodeSession {self._state.value}, endpoint {self._choice.index}, credit {self._credit}>"

    @property
    def state(self) -> NodeState:
        return self._state

    @property
    def is_up(self) -> bool:
        return self._state is NodeState.UP

    @property
    def can_send(self) -> bool:
        """Whether a frame may be sent now; without it, do not even encode."""
        return self.credit > 0

    @property
    def credit(self) -> int:
        """Frames that may be sent now; 0 unless up, and while the cloud has no decoder for the bundle in use."""
        return self._credit if self._has_decoder else 0

    @property
    def needs_bundle(self) -> bool:
        """Whether the session is up and frames wait all the same, for a bundle that the cloud can decode."""
        return self.is_up and not self._has_decoder

    @property
    def welcome(self) -> Welcome | None:
        """The cloud's terms; None unless up."""
        return self._welcome

    @property
    def max_message_bytes(self) -> int:
        """Largest message that both sides take."""
        return min(MAX_MESSAGE_BYTES, self._welcome.max_message_bytes if self._welcome else MAX_MESSAGE_BYTES)

    @property
    def endpoint_index(self) -> int:
        return self._choice.index

    @property
    def is_redirected(self) -> bool:
        """Whether the endpoint is not of the list: a cloud sent the node there."""
        return self._choice.is_redirected

    @property
    def round_trip_ns(self) -> int | None:
        """Smallest recent round trip of the newest session; None before its first PONG."""
        return self._heartbeat.round_trip_ns if self._heartbeat else self._round_trip_ns

    def camera_number(self, name: str) -> int:
        """The number that stands for a camera in HELLO.

        Raises:
            LocalSessionError: it is not in HELLO.
        """
        for number, known in self._camera_names.items():
            if known == name:
                return number
        raise LocalSessionError(f"camera {name} is not in HELLO")

    def start(self, now_ns: int) -> list[Action]:
        """Leave IDLE for the first attempt.

        Raises:
            LocalSessionError: started before.
        """
        if self._state is not NodeState.IDLE:
            raise LocalSessionError(f"session was started before: it is {self._state.value}")
        return self._connect(now_ns)

    def receive(self, message: Message, now_ns: int) -> list[Action]:
        """Take one message of the cloud; without a link there is nothing to take one from, and no action."""
        if self._state is NodeState.CONNECTING:
            return self._receive_connecting(message, now_ns)
        if self._state is NodeState.UP:
            return self._receive_up(message, now_ns)
        return []

    def malformed(self, error: WireError, now_ns: int) -> list[Action]:
        """The cloud sent bytes that `wire.parse` refused: it costs the session.

        Bytes of another major version are its refusal in a language that is not ours: waited out like one.
        """
        if isinstance(error, WireVersionError):
            return self._lose(LossReason.REFUSED, str(error), now_ns, RejectCode.BAD_VERSION)
        return self._lose(LossReason.PROTOCOL, str(error), now_ns)

    def link_failed(self, reason: LossReason, text: str, now_ns: int) -> list[Action]:
        """The owner found the link broken: disconnected, handshake refused (AUTH), a FRAME not taken."""
        return self._lose(reason, text, now_ns)

    def send_frame(self, frame: FrameMessage, now_ns: int) -> list[Action]:
        """Spend one credit on a frame.

        Raises:
            LocalSessionError: not up, or no credit: ask `can_send` first.
        """
        if not self.can_send:
            raise LocalSessionError(f"frame without session or credit: {self!r}")
        if frame.camera not in self._camera_names:
            raise LocalSessionError(f"camera {frame.camera} is not in HELLO")
        self._credit -= 1
        return [Send(frame), CreditChanged(self._credit)]

    def request_chunk(self, request: BundleRequest) -> list[Action]:
        """Ask for a piece of a bundle; nothing happens without a session."""
        return [Send(request)] if self.is_up else []

    def renew(self, hello: Hello, now_ns: int) -> list[Action]:
        """Use another HELLO from now on; a session that is up is ended in order and opened anew at once."""
        self._settings = replace(self._settings, hello=hello)
        self._camera_names = {entry.number: entry.name for entry in hello.cameras}
        return self._open_anew(LossReason.RENEWED, "opened anew with another bundle", now_ns)

    def move_to(self, index: int, now_ns: int) -> list[Action]:
        """Go to another endpoint of the list at once; nothing happens without a session."""
        if not self.is_up:
            return []
        self._choice.move_to(index)
        return self._open_anew(LossReason.FAILOVER, f"back to {self._choice.endpoint}", now_ns)

    def _open_anew(self, reason: LossReason, text: str, now_ns: int) -> list[Action]:
        if self._state not in (NodeState.CONNECTING, NodeState.UP):
            return []
        was_up = self.is_up
        self._drop_session()
        return [
            *([Send(Bye(reason.value))] if was_up else []),
            Lost(reason, text, None, was_up),
            CloseLink(is_orderly=was_up),
            *([CreditChanged(0)] if was_up else []),
            *self._connect(now_ns),
        ]

    def tick(self, now_ns: int) -> list[Action]:
        """Do what is due. Receive everything that waits first: silence is judged by what was received."""
        if self._state is NodeState.DOWN and now_ns >= self._retry_ns:
            return self._connect(now_ns)
        if self._state is NodeState.CONNECTING:
            if now_ns >= self._give_up_ns:
                return self._lose(LossReason.NO_ANSWER, "no answer to HELLO", now_ns)
            if now_ns >= self._next_hello_ns:
                self._next_hello_ns = now_ns + self._settings.hello_retry_ns
                return [Send(self._settings.hello)]
        if self._heartbeat is not None:
            if self._heartbeat.is_lost(now_ns):
                return self._lose(LossReason.HEARTBEAT, "cloud is silent", now_ns)
            ping = self._heartbeat.due_ping(now_ns)
            return [] if ping is None else [Send(ping)]
        return []

    def next_deadline_ns(self) -> int | None:
        """When `tick` has something to do at the earliest; None in IDLE and CLOSED."""
        if self._state is NodeState.DOWN:
            return self._retry_ns
        if self._state is NodeState.CONNECTING:
            return min(self._give_up_ns, self._next_hello_ns)
        return None if self._heartbeat is None else self._heartbeat.next_deadline_ns()

    def stop(self, reason: str) -> list[Action]:
        """End for good, with a BYE where there is somebody to tell. A second call does nothing."""
        state, self._state = self._state, NodeState.CLOSED
        self._drop_session()
        if state in (NodeState.CONNECTING, NodeState.UP):
            return [Send(Bye(clean_text(reason))), CloseLink(is_orderly=True)]
        return []

    def _connect(self, now_ns: int) -> list[Action]:
        self._state = NodeState.CONNECTING
        self._give_up_ns = now_ns + self._settings.hello_timeout_ns
        self._next_hello_ns = now_ns + self._settings.hello_retry_ns
        return [OpenLink(self._choice.endpoint, self._choice.index), Send(self._settings.hello)]

    def _receive_connecting(self, message: Message, now_ns: int) -> list[Action]:
        match message:
            case Welcome():
                return self._open(message, now_ns)
            case Reject() | Redirect() | Bye():
                return self._receive_end(message, now_ns)
            case _:
                return self._lose(LossReason.PROTOCOL, f"{type(message).__name__} before WELCOME", now_ns)

    def _open(self, welcome: Welcome, now_ns: int) -> list[Action]:
        own_ids = self._settings.hello.bundle_ids
        is_fetching = BUNDLE_DELIVERY in welcome.capabilities
        if welcome.bundle_id not in own_ids and not is_fetching:
            return self._lose(LossReason.PROTOCOL, "WELCOME names a bundle that was not offered", now_ns)
        if not is_fetching and welcome.bundle_id != own_ids[0]:
            # It has one that our spool was coded with, and not the one in use.
            text = f"the cloud has no decoder for bundle {own_ids[0].hex()[:16]}"
            return self._lose(LossReason.REFUSED, text, now_ns, RejectCode.UNKNOWN_BUNDLE, tells=True)
        self._state = NodeState.UP
        self._welcome = welcome
        self._credit = welcome.credit
        self._opened_ns = now_ns
        self._has_result = False
        self._heartbeat = Heartbeat(welcome.heartbeat_ms * NS_PER_MS, welcome.peer_timeout_ms * NS_PER_MS, now_ns)
        return [Opened(welcome), CreditChanged(self._credit), *_offers(welcome)]

    def _receive_up(self, message: Message, now_ns: int) -> list[Action]:
        assert self._heartbeat is not None
        assert self._welcome is not None
        self._heartbeat.hear(now_ns)
        match message:
            case Result():
                return self._take_result(message, now_ns)
            case Credit():
                return self._take_credit(message.frames, now_ns)
            case Ping():
                return [Send(Pong(message.token, message.sent_ns))]
            case Pong():
                self._heartbeat.take_pong(message, now_ns)
                return []
            case BundleChunk():
                return [ChunkArrived(message)]
            # The answer to a repeated HELLO, its credit the one we started with; or another offer.
            case Welcome() if message.session_id == self._welcome.session_id:
                changed = message.offer != self._welcome.offer
                self._welcome = message
                return _offers(message) if changed else []
            case Reject() | Redirect() | Bye():
                return self._receive_end(message, now_ns)
            case _:
                return self._lose(LossReason.PROTOCOL, f"unexpected {type(message).__name__}", now_ns)

    def _receive_end(self, message: Reject | Redirect | Bye, now_ns: int) -> list[Action]:
        match message:
            case Reject(code=RejectCode.NOT_AUTHORISED as code):
                return self._lose(LossReason.AUTH, message.text or code.value, now_ns, code)
            case Reject(code=code):
                return self._lose(LossReason.REFUSED, message.text or code.value, now_ns, code)
            case Bye():
                return self._lose(LossReason.CLOSED, message.reason or "cloud said goodbye", now_ns)
            case Redirect():
                if not self._choice.count_redirect():
                    return self._lose(LossReason.PROTOCOL, "redirected in circles", now_ns)
                if not self._settings.may_open(message.endpoint):
                    text = f"redirected to {message.endpoint}, another machine, and there are no keys"
                    return self._lose(LossReason.PROTOCOL, text, now_ns)
                return self._lose(
                    LossReason.REDIRECTED, message.text or message.endpoint, now_ns, redirect=message.endpoint
                )

    def _take_result(self, result: Result, now_ns: int) -> list[Action]:
        camera = self._camera_names.get(result.camera)
        if camera is None:
            return self._lose(LossReason.PROTOCOL, f"RESULT for unknown camera {result.camera}", now_ns)
        self._has_result = True
        self._choice.arrive()
        arrived: list[Action] = [ResultArrived(camera, result)]
        return arrived + (self._take_credit(result.credit, now_ns) if result.credit else [])

    def _take_credit(self, frames: int, now_ns: int) -> list[Action]:
        if self._credit + frames > MAX_CREDIT_FRAMES:
            return self._lose(LossReason.PROTOCOL, f"credit beyond {MAX_CREDIT_FRAMES} frames", now_ns)
        self._credit += frames
        return [CreditChanged(self._credit)]

    def _lose(
        self,
        reason: LossReason,
        text: str,
        now_ns: int,
        code: RejectCode | None = None,
        redirect: str | None = None,
        *,
        tells: bool = False,
    ) -> list[Action]:
        """End the attempt or session, choose the next endpoint and when to try it."""
        if self._state not in (NodeState.CONNECTING, NodeState.UP):
            return []
        was_up = self.is_up
        if was_up and (self._has_result or now_ns - self._opened_ns >= STABLE_SESSION_NS):
            self._choice.forgive()
        self._state = NodeState.DOWN
        self._drop_session()
        is_lasting = reason is LossReason.AUTH or code in _LASTING_REFUSALS
        wait_ns = self._choice.fail(is_lasting=is_lasting) if redirect is None else self._choice.redirect(redirect)
        self._retry_ns = now_ns + wait_ns
        # A BYE only where the cloud may still hold the session: it did not end it, and it is not silent.
        tells = tells or (was_up and reason in (LossReason.PROTOCOL, LossReason.REDIRECTED))
        actions: list[Action] = [Send(Bye(reason.value))] if tells else []
        return [
            *actions,
            Lost(reason, text, code, was_up),
            CloseLink(is_orderly=tells),
            *([CreditChanged(0)] if was_up else []),
            Backoff(self._retry_ns),
        ]

    @property
    def _has_decoder(self) -> bool:
        """Whether the cloud can decode what this node encodes now."""
        return self._welcome is not None and self._welcome.bundle_id == next(
            iter(self._settings.hello.bundle_ids), None
        )

    def _drop_session(self) -> None:
        if self._heartbeat is not None:
            self._round_trip_ns = self._heartbeat.round_trip_ns
        self._heartbeat = None
        self._welcome = None
        self._credit = 0


def _offers(welcome: Welcome) -> list[Action]:
    return [] if welcome.offer is None else [BundleOffered(welcome.offer)]
