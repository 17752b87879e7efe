"""Ends TCP connections that libzmq itself would let fill the memory; Linux only, elsewhere it does nothing.

libzmq gives a message out when its last part has come. It limits the bytes of a part and the messages that wait, but
not the parts of a message: what a peer sends that never sends the last part is kept for as long as there is memory. So
a thread looks at every connection of the port ten times a second: what has come over it since it last gave a message
out must not be more than an honest peer may have on the way, nor may all together be more than `TOTAL_BYTES`.

A connection that has not said anything yet costs a descriptor, and strangers can open many. Only `MAX_SILENT` of them
are kept, the newest: a node says HELLO as soon as it is connected.

libzmq has no way to end one connection. Its descriptor is known, though: from the messages that came over it, and
from the kernel. Shutting that down looks to libzmq like a peer that went away.
"""

from __future__ import annotations

import itertools
import logging
import socket
import struct
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

DESCRIPTORS: Final = Path("/proc/self/fd")
LOOK_EVERY_S: Final = 0.1
TOTAL_BYTES: Final = 256 * 2**20
"""Of all connections together, however many somebody opens. Honest ones hold a few frames each."""
MAX_SILENT: Final = 128
"""Connections without a message so far; a fleet that comes back at once shakes hands within moments."""
# struct tcp_info of linux/tcp.h: tcpi_bytes_received, there since Linux 4.1.
TCP_INFO_BYTES: Final = 136
BYTES_RECEIVED_OFFSET: Final = 128
IS_LINUX: Final = sys.platform == "linux"

logger = logging.getLogger("rac.security")


@dataclass(slots=True)
class _Seen:
    """What is known of a connection.

    Attributes:
        counted_bytes: received when it last gave a message out.
        open_bytes: received since.
        number: rises with every new connection.
    """

    number: int
    counted_bytes: int = 0
    open_bytes: int = 0
    has_spoken: bool = False


class ConnectionGuard:
    """The thread that looks.

    Attributes:
        ended: connections that were ended.
    """

    def __init__(self, port: int, limit_bytes: int, total_bytes: int = TOTAL_BYTES) -> None:
        """Join; `start` begins.

        Args:
            port: of the socket whose connections are looked at.
            limit_bytes: that may come over a connection without a message being given out.
            total_bytes: the same for all of them together.
        """
        self._port, self._limit_bytes, self._total_bytes = port, limit_bytes, total_bytes
        self._heard: set[int] = set()
        self._is_read = False
        self._seen: dict[int, _Seen] = {}
        self._numbers = itertools.count()
        self._is_stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="rac-connections", daemon=True)
        self.ended = 0

    def start(self) -> None:
        """Look from now on."""
        if IS_LINUX:
            self._thread.start()

    def read(self) -> None:
        """Messages are being taken from the socket; while nobody does, silence is nobody's fault."""
        self._is_read = True

    def hear(self, descriptor: int) -> None:
        """A message was given out that came over this connection."""
        self._heard.add(descriptor)

    def look(self) -> None:
        """One pass over all connections."""
        heard, self._heard = self._heard, set()
        seen: dict[int, _Seen] = {}
        for descriptor in [int(path.name) for path in DESCRIPTORS.iterdir()]:
            received = received_bytes(descriptor, self._port)
            if received is None:
                continue
            entry = self._seen.get(descriptor)
            if entry is None or received < entry.counted_bytes:  # the number stands for another connection by now
                entry = _Seen(next(self._numbers))
            if descriptor in heard:
                entry.counted_bytes, entry.has_spoken = received, True
            entry.open_bytes = received - entry.counted_bytes
            seen[descriptor] = entry
        self._seen = seen
        self._end_the_largest()
        if self._is_read:
            self._is_read = False
            self._end_the_silent()

    def _end_the_largest(self) -> None:
        total_bytes = sum(entry.open_bytes for entry in self._seen.values())
        for descriptor, entry in sorted(self._seen.items(), key=lambda item: -item[1].open_bytes):
            if entry.open_bytes <= self._limit_bytes and total_bytes <= self._total_bytes:
                break
            logger.warning("ended a connection: %d bytes without a whole message", entry.open_bytes)
            total_bytes -= entry.open_bytes
            self.end(descriptor)

    def _end_the_silent(self) -> None:
        silent = [descriptor for descriptor, entry in self._seen.items() if not entry.has_spoken]
        silent.sort(key=lambda descriptor: self._seen[descriptor].number)
        for descriptor in silent[: max(0, len(silent) - MAX_SILENT)]:
            logger.warning("ended a connection: more than %d have not said anything yet", MAX_SILENT)
            self.end(descriptor)

    def end(self, descriptor: int) -> None:
        """End a connection, if the descriptor is one of this port."""
        if IS_LINUX and received_bytes(descriptor, self._port) is not None:
            self.ended += 1
            _shut_down(descriptor)

    def close(self) -> None:
        """Stop looking; a second call does nothing."""
        self._is_stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._is_stopping.wait(LOOK_EVERY_S):
            self.look()


def received_bytes(descriptor: int, port: int) -> int | None:
    """Bytes that a TCP connection of a local port has received so far; None for any other descriptor."""
    try:
        link = socket.socket(fileno=descriptor)
    except (OSError, ValueError):  # closed meanwhile, no socket, or no descriptor
        return None
    try:
        if link.type != socket.SOCK_STREAM or link.family not in (socket.AF_INET, socket.AF_INET6):
            return None
        if link.getsockname()[1] != port:
            return None
        link.getpeername()  # a listening socket has none
        facts = link.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO_BYTES)
    except OSError:
        return None
    finally:
        link.detach()  # it is libzmq's to close
    return struct.unpack_from("=Q", facts, BYTES_RECEIVED_OFFSET)[0] if len(facts) >= TCP_INFO_BYTES else None


def _shut_down(descriptor: int) -> None:
    link = socket.socket(fileno=descriptor)
    try:
        with suppress(OSError):  # its peer was faster
            link.shutdown(socket.SHUT_RDWR)
    finally:
        link.detach()
