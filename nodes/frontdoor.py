"""The cloud's ZeroMQ socket: one ROUTER that all nodes connect to, never blocking."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

import zmq

from nodes.authenticator import DOMAIN, FAILED_HANDSHAKES, MONITOR_ENDPOINT
from nodes.connections import ConnectionGuard
from nodes.uplink import framed_bytes
from pipeline.admission import connection_of, routing_id_of

logger = logging.getLogger("rac.security")

QUEUED_MESSAGES = 256
"""For each node and direction; credit keeps the real number far lower."""
MAX_PARTS = 3
"""Message, reference, and one that shows that there are too many; more is not ours."""
TCP_PING_MS, TCP_TIMEOUT_MS = 10_000, 30_000
"""By libzmq itself, below our own: frees the connection of a peer that lost its power, also one without a session."""
SPARE_MESSAGES = 8
"""Beside frames: heartbeats, a handshake, pieces of messages; far below what a machine notices."""
USER_ID = "User-Id"
"""Property of a message in which libzmq keeps what the handler called its sender: the public key."""


class FrontDoor:
    """The bound socket; belongs to one thread.

    Attributes:
        endpoint: what was really bound, with the port filled in.
        sent_bytes / received_bytes: totals on the wire with ZeroMQ's framing.
        unroutable: messages whose node was gone.
        connections: what ends those that would fill the memory.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        endpoint: str,
        max_message_bytes: int,
        secret_key: str | None = None,
        window_frames: int = 8,
    ) -> None:
        """Bind.

        Args:
            window_frames: messages of the largest size that an honest node may have on the way.
            secret_key: this cloud's, Z85; an `Authenticator` must run in the context before. None: no encryption.
        Raises:
            zmq.ZMQError: the endpoint cannot be bound.
        """
        router: zmq.Socket[bytes] = context.socket(zmq.ROUTER)
        router.setsockopt(zmq.LINGER, 0)
        router.setsockopt(zmq.ROUTER_MANDATORY, 1)  # without it a message to a lost node vanishes
        router.setsockopt(zmq.SNDTIMEO, 0)
        router.setsockopt(zmq.SNDHWM, QUEUED_MESSAGES)
        router.setsockopt(zmq.RCVHWM, QUEUED_MESSAGES)
        router.setsockopt(zmq.MAXMSGSIZE, max_message_bytes)  # of one part; a larger one ends the connection
        router.setsockopt(zmq.HANDSHAKE_IVL, 5_000)
        router.setsockopt(zmq.IPV6, int("[" in endpoint))
        router.setsockopt(zmq.HEARTBEAT_IVL, TCP_PING_MS)
        router.setsockopt(zmq.HEARTBEAT_TIMEOUT, TCP_TIMEOUT_MS)
        self._has_keys = secret_key is not None
        if secret_key is not None:
            router.setsockopt(zmq.CURVE_SERVER, 1)
            router.setsockopt(zmq.CURVE_SECRETKEY, secret_key.encode())
            # Both, or libzmq lets every key in while no handler answers.
            router.setsockopt(zmq.ZAP_DOMAIN, DOMAIN)
            router.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)
            router.monitor(MONITOR_ENDPOINT, FAILED_HANDSHAKES)
        try:
            router.bind(endpoint)
        except zmq.ZMQError:
            router.close()
            raise
        self.socket = router
        self.endpoint = router.getsockopt_string(zmq.LAST_ENDPOINT)
        self.sent_bytes = 0
        self.received_bytes = 0
        self.unroutable = 0
        port = int(self.endpoint.rpartition(":")[2]) if self.endpoint.startswith("tcp://") else 0
        self.connections = ConnectionGuard(port, (window_frames + SPARE_MESSAGES) * max_message_bytes)
        self._last_descriptor = -1
        if port:
            self.connections.start()

    def receive(self, limit: int) -> Iterator[tuple[bytes, list[bytes]]]:
        """Up to `limit` waiting messages: connection and parts. A limit keeps one node from starving the workers.

        A connection is called by its routing id; with keys, also by the key that its peer has proved.
        """
        self.connections.read()
        for _ in range(limit):
            try:
                frames = self.socket.recv_multipart(zmq.DONTWAIT, copy=False)
            except zmq.Again:
                return
            self._last_descriptor = int(frames[0].get(zmq.SRCFD))
            self.connections.hear(self._last_descriptor)
            routing_id, *parts = (frame.bytes for frame in frames)
            self.received_bytes += framed_bytes(parts)
            yield (
                connection_of(routing_id, str(frames[0].get(USER_ID))) if self._has_keys else routing_id,
                parts[:MAX_PARTS],
            )

    def send(self, routing_id: bytes, parts: Sequence[bytes]) -> bool:
        """Hand a message to ZeroMQ; False when the node is gone or does not read."""
        address = routing_id_of(routing_id) if self._has_keys else routing_id
        try:
            self.socket.send_multipart([address, *parts], zmq.DONTWAIT)
        except zmq.Again:
            self.unroutable += 1
            return False
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            self.unroutable += 1
            return False
        self.sent_bytes += framed_bytes(parts)
        return True

    def end_last_connection(self) -> None:
        """End the connection over which the message came that `receive` gave out last."""
        logger.warning("ended a connection: it is cut off and goes on sending")
        self.connections.end(self._last_descriptor)

    def close(self, linger_ms: int) -> None:
        """Unbind; queued messages get `linger_ms` to leave."""
        self.connections.close()
        self.socket.close(linger_ms)
