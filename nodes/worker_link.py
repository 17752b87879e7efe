"""The socket pair between the front and a worker process: pickled objects, each behind its length.

A batch with references is far larger than what a socket takes at once, and a worker that is stopped or hangs takes
nothing at all. So the front's end keeps what was not taken yet, reads what is there, and never blocks. The worker's
end is plain and blocks. Both ends are our own programs on one machine: what comes is trusted.
"""

from __future__ import annotations

import pickle
import socket
import struct
from typing import Any, Final

_LENGTH: Final = struct.Struct("<I")
_PIECE_BYTES: Final = 262_144


class FrontLink:
    """The front's end."""

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(False)
        self._socket = end
        self._unsent = memoryview(b"")
        self._received = bytearray()

    def fileno(self) -> int:
        """What to poll: always for reading, while `has_unsent` also for writing."""
        return self._socket.fileno()

    @property
    def has_unsent(self) -> bool:
        """Whether a part of what was sent waits here for the worker to take it."""
        return len(self._unsent) > 0

    def send(self, message: object) -> None:
        """Send an object, behind what still waits; a worker that is gone shows at `receive`."""
        packed = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
        self._unsent = memoryview(bytes(self._unsent) + _LENGTH.pack(len(packed)) + packed)
        self.flush()

    def flush(self) -> None:
        """Send on what waits, as far as it is taken now."""
        try:
            while self.has_unsent:
                self._unsent = self._unsent[self._socket.send(self._unsent) :]
        except BlockingIOError:
            return
        except OSError:
            self._unsent = memoryview(b"")

    def receive(self) -> tuple[list[Any], bool]:
        """Objects that have come, and whether the worker is still there."""
        is_open = True
        try:
            while piece := self._socket.recv(_PIECE_BYTES):
                self._received += piece
            is_open = False
        except BlockingIOError:
            pass
        except OSError:
            is_open = False
        return self._take_messages(), is_open

    def close(self) -> None:
        """End the link: the worker ends when it notices."""
        self._socket.close()

    def _take_messages(self) -> list[Any]:
        messages = []
        while len(self._received) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._received)
            end = _LENGTH.size + length
            if len(self._received) < end:
                break
            messages.append(pickle.loads(memoryview(self._received)[_LENGTH.size : end]))
            del self._received[:end]
        return messages


class WorkerLink:
    """The worker's end; every call blocks until it is done."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end

    def send(self, message: object) -> None:
        """Send an object.

        Raises:
            OSError: the front is gone.
        """
        packed = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
        self._socket.sendall(_LENGTH.pack(len(packed)) + packed)

    def receive(self) -> Any:
        """Wait for an object.

        Raises:
            EOFError: the front is gone.
        """
        (length,) = _LENGTH.unpack(self._read(_LENGTH.size))
        return pickle.loads(self._read(length))

    def _read(self, num_bytes: int) -> bytearray:
        content = bytearray(num_bytes)
        place = memoryview(content)
        while place:
            count = self._socket.recv_into(place)
            if count == 0:
                raise EOFError("the front is gone")
            place = place[count:]
        return content


def worker_links() -> tuple[FrontLink, socket.socket]:
    """Both ends; the second one is for the worker process, which makes a `WorkerLink` of it."""
    ours, theirs = socket.socketpair()
    return FrontLink(ours), theirs
