"""Who is heard, under which name, and how much: asked for every message that comes to the cloud.

    bytes --weigh--> parse --admit--> sessions

`weigh` is asked before anything is parsed, so that a flood costs little; `admit` afterwards. With keys a
connection carries the public key of its peer, proved by CURVE: the node's name is the allow-list's for that key,
and whatever its HELLO says is overwritten. A key that leaves the list takes its sessions with it.

Without keys (on this machine, or with --insecure) a node is called what it says, and limits hold for each
connection.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from pipeline.authorisation import KEY_CHARS, AllowList
from pipeline.cloud_actions import SessionClosed, SessionOpened
from pipeline.node_limits import LimitSettings, NodeLimits
from pipeline.wire import FrameMessage, Hello, Message, RejectCode


@dataclass(frozen=True, slots=True)
class Refusal:
    """A message that goes no further.

    Attributes:
        code: what the peer is told, at the cost of its session; None: nothing, it has been told.
        ends_connection: it has been told and goes on sending.
    """

    code: RejectCode | None
    text: str = ""
    ends_connection: bool = False


def connection_of(routing_id: bytes, key: str) -> bytes:
    """Name of a connection whose peer has proved its key; the session machine takes it for a routing id.

    The key is part of it because routing ids are chosen by peers: somebody who takes over another's finds no
    session under his own key.
    """
    return key.encode() + routing_id


def routing_id_of(connection: bytes) -> bytes:
    """What ZeroMQ calls a connection that `connection_of` named."""
    return connection[KEY_CHARS:]


class Admission:
    """The door-keeper; one for all connections."""

    def __init__(self, settings: LimitSettings | None = None, allowed: Callable[[], AllowList] | None = None) -> None:
        """Join.

        Args:
            allowed: gives the list that is in force now; None: there are no keys.
        """
        self._limits = NodeLimits(settings or LimitSettings())
        self._allowed = allowed
        self._names: dict[bytes, str] = {}
        self._checked: AllowList | None = None

    def weigh(self, connection: bytes, num_bytes: int, now_ns: int) -> Refusal | None:
        """Look at a message's size and at who sends it, before it is parsed."""
        peer = self._peer(connection)
        if self._limits.cut_off_text(peer, now_ns) is not None:
            if self._limits.is_heard(peer, now_ns):
                return None
            return Refusal(None, ends_connection=self._limits.is_flooding(peer, now_ns))
        broken = self._limits.arrive(peer, num_bytes, now_ns)
        return None if broken is None else Refusal(RejectCode.LIMITS, broken)

    def admit(self, connection: bytes, message: Message, now_ns: int) -> Message | Refusal:
        """Let a message through, a HELLO with the name that belongs to the key."""
        peer = self._peer(connection)
        sentence = self._limits.cut_off_text(peer, now_ns)
        if sentence is not None:
            return Refusal(RejectCode.LIMITS, sentence) if isinstance(message, Hello) else Refusal(None)
        if isinstance(message, FrameMessage):
            broken = self._limits.count_frame(peer, now_ns)
            return message if broken is None else Refusal(RejectCode.LIMITS, broken)
        if not isinstance(message, Hello) or self._allowed is None:
            return message
        name = self._allowed().name_of(peer.decode())
        if name is None:
            return Refusal(RejectCode.NOT_AUTHORISED, "the key of this node is no longer allowed")
        return replace(message, node=name)

    def note(self, action: SessionOpened | SessionClosed, now_ns: int) -> None:
        """Remember who has a session."""
        if isinstance(action, SessionOpened):
            self._names[action.routing_id] = action.node
        else:
            self._names.pop(action.routing_id, None)
            if self._allowed is None:
                self._limits.forget(self._peer(action.routing_id), now_ns)

    def revoked(self) -> list[bytes]:
        """Connections with a session whose key has left the list, or has another name there, since it was asked."""
        if self._allowed is None:
            return []
        allowed = self._allowed()
        if allowed is self._checked:
            return []
        self._checked = allowed
        return [
            connection
            for connection, name in self._names.items()
            if allowed.name_of(self._peer(connection).decode()) != name
        ]

    def _peer(self, connection: bytes) -> bytes:
        return connection if self._allowed is None else connection[:KEY_CHARS]
