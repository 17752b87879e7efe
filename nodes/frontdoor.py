"""The cloud's ZeroMQ socket: one ROUTER that all nodes connect to, never blocking."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import zmq

from nodes.uplink import framed_bytes

QUEUED_MESSAGES = 256
"""For each node and direction; credit keeps the real number far lower."""
MAX_PARTS = 3
"""Routing id, message, reference; more is not ours."""


class FrontDoor:
    """The bound socket; belongs to one thread.

    Attributes:
        endpoint: what was really bound, with the port filled in.
        sent_bytes / received_bytes: totals on the wire with ZeroMQ's framing.
        unroutable: messages whose node was gone.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], endpoint: str, max_message_bytes: int) -> None:
        """Bind.

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

    def receive(self, limit: int) -> Iterator[tuple[bytes, list[bytes]]]:
        """Up to `limit` waiting messages: routing id and parts. A limit keeps one node from starving the workers."""
        for _ in range(limit):
            try:
                routing_id, *parts = self.socket.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                return
            self.received_bytes += framed_bytes(parts)
            yield routing_id, parts[:MAX_PARTS]

    def send(self, routing_id: bytes, parts: Sequence[bytes]) -> bool:
        """Hand a message to ZeroMQ; False when the node is gone or does not read."""
        try:
            self.socket.send_multipart([routing_id, *parts], zmq.DONTWAIT)
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

    def close(self, linger_ms: int) -> None:
        """Unbind; queued messages get `linger_ms` to leave."""
        self.socket.close(linger_ms)
