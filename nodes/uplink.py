"""The node's ZeroMQ socket: one DEALER for each attempt at an endpoint, never blocking.

A socket that lost its peer is thrown away with what was queued in it; the session counts those frames as lost. ZeroMQ's
own reconnect is left for the moments before a session exists: a cloud that is not there yet.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import zmq
from zmq.utils.monitor import recv_monitor_message

Socket = zmq.Socket[bytes]

RECONNECT_MS = 250
RECONNECT_MAX_MS = 4_000
QUEUED_MESSAGES = 64
"""Last guard behind the credit window, for each direction."""
MAX_MESSAGE_BYTES = 256 * 1024
FAILED_HANDSHAKES = (
    zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
)


@dataclass(frozen=True, slots=True)
class HandshakeFailure:
    """Why there is no connection.

    Attributes:
        is_lasting: whether the same would happen again until somebody changes a key.
    """

    is_lasting: bool
    text: str


def framed_bytes(parts: Sequence[bytes]) -> int:
    """Bytes of a multipart message on the wire in ZMTP 3: two bytes of frame head a part, nine for long parts."""
    return sum(len(part) + (2 if len(part) < 256 else 9) for part in parts)


@dataclass(frozen=True, slots=True)
class LinkKeys:
    """Who this node is, and whom it talks to; Z85.

    Attributes:
        cloud: public keys of the clouds: one for all endpoints, or one for each in their order.
    """

    public: str
    secret: str = field(repr=False)
    cloud: tuple[str, ...]


class Uplink:
    """One connection at a time; belongs to one thread.

    Attributes:
        sent_bytes / received_bytes: totals on the wire with ZeroMQ's framing, over all connections.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], keys: LinkKeys | None = None) -> None:
        self._context = context
        self._keys = keys
        self._monitor: zmq.Socket[bytes] | None = None
        self._socket: zmq.Socket[bytes] | None = None
        self._waiting: list[bytes] | None = None
        self.sent_bytes = 0
        self.received_bytes = 0

    @property
    def socket(self) -> zmq.Socket[bytes] | None:
        """For polling; None while closed."""
        return self._socket

    @property
    def events(self) -> int:
        """What to poll the socket for."""
        return zmq.POLLIN if self._waiting is None else zmq.POLLIN | zmq.POLLOUT

    def open(self, endpoint: str, index: int = 0) -> None:
        """Connect to an endpoint with a fresh socket.

        Args:
            index: its place in the list, which says whose key is expected there.
        """
        self.close()
        dealer: zmq.Socket[bytes] = self._context.socket(zmq.DEALER)
        dealer.setsockopt(zmq.LINGER, 0)
        dealer.setsockopt(zmq.IMMEDIATE, 1)  # without it messages pile up for a peer that is not there
        dealer.setsockopt(zmq.SNDTIMEO, 0)
        dealer.setsockopt(zmq.SNDHWM, QUEUED_MESSAGES)
        dealer.setsockopt(zmq.RCVHWM, QUEUED_MESSAGES)
        dealer.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE_BYTES)
        dealer.setsockopt(zmq.RECONNECT_IVL, RECONNECT_MS)
        dealer.setsockopt(zmq.RECONNECT_IVL_MAX, RECONNECT_MAX_MS)
        dealer.setsockopt(zmq.HANDSHAKE_IVL, 5_000)
        dealer.setsockopt(zmq.IPV6, int("[" in endpoint))
        if self._keys is not None:
            dealer.setsockopt(zmq.CURVE_PUBLICKEY, self._keys.public.encode())
            dealer.setsockopt(zmq.CURVE_SECRETKEY, self._keys.secret.encode())
            dealer.setsockopt(zmq.CURVE_SERVERKEY, self._keys.cloud[index if len(self._keys.cloud) > 1 else 0].encode())
        self._monitor = dealer.get_monitor_socket(FAILED_HANDSHAKES)
        dealer.connect(endpoint)
        self._socket = dealer

    def take_failure(self) -> HandshakeFailure | None:
        """How the handshake failed since the last call; None while it goes on or has succeeded."""
        failure = None
        while self._monitor is not None and self._monitor.poll(0):
            message = recv_monitor_message(self._monitor)
            event, value = message["event"], message["value"]
            if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
                key = f" {self._keys.public}" if self._keys else ""
                failure = HandshakeFailure(True, f"the cloud does not allow this node's key{key}")
            elif value == zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH:
                wants = "has no keys, and this node wants them" if self._keys else "wants keys, and this node has none"
                failure = HandshakeFailure(True, f"the cloud {wants}")
            elif self._keys is not None and failure is None:
                # The cloud says no more than that: it cannot read what was encrypted for somebody else.
                failure = HandshakeFailure(False, "closed during the exchange of keys: is this the cloud's public key?")
        return failure

    def send(self, parts: Sequence[bytes]) -> bool:
        """Hand a message to ZeroMQ; False when there is no peer or no room."""
        if self._socket is None:
            return False
        try:
            self._socket.send_multipart(parts, zmq.DONTWAIT)
        except zmq.Again:
            return False
        self.sent_bytes += framed_bytes(parts)
        return True

    def send_when_connected(self, parts: Sequence[bytes]) -> None:
        """Send now, or at a `flush` once there is a peer; a newer message takes the place of one that waits."""
        self._waiting = None if self.send(parts) else list(parts)

    def flush(self) -> None:
        """Send what waits for a peer, if there is one now."""
        if self._waiting is not None:
            self.send_when_connected(self._waiting)

    def receive(self) -> list[list[bytes]]:
        """All messages that are there."""
        messages: list[list[bytes]] = []
        while self._socket is not None:
            try:
                parts = self._socket.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                break
            self.received_bytes += framed_bytes(parts)
            messages.append(parts)
        return messages

    def close(self, linger_ms: int = 0) -> None:
        """Drop the connection; what is queued gets `linger_ms` to leave."""
        if self._socket is not None:
            if self._monitor is not None:
                self._socket.disable_monitor()
                self._monitor.close(0)
                self._monitor = None
            self._socket.close(linger_ms)
            self._socket = None
        self._waiting = None
