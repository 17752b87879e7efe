"""A network camera of the tests: JPEG pictures over HTTP, which stall, end or refuse when a test says so."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from typing import Self

import cv2
import numpy as np

BOUNDARY = b"picture"
PATIENCE_S = 60.0


class StreamCamera:
    """Sends pictures to whoever connects, as cheap network cameras do (multipart/x-mixed-replace).

    Attributes:
        opened: connections so far.
    """

    def __init__(self, fps: float = 20.0) -> None:
        self.opened = 0
        self._pause_s = 1.0 / fps
        self._is_stalled = self._is_down = self._is_closed = False
        self._picture = _picture()
        self._threads: list[threading.Thread] = []
        self._connections: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    @property
    def url(self) -> str:
        """What `--camera` takes."""
        return f"http://127.0.0.1:{self.port}/stream.mjpg"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._is_closed = True
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._hang_up()
        for thread in (self._accepting, *self._threads):
            thread.join(PATIENCE_S)

    def stall(self) -> None:
        """Send nothing more, on open and new connections; they stay open."""
        self._is_stalled = True

    def disappear(self) -> None:
        """End every connection, and every new one at once."""
        self._is_down = True
        self._hang_up()

    def come_back(self) -> None:
        """Send pictures again."""
        self._is_stalled = self._is_down = False

    def _hang_up(self) -> None:
        for connection in self._connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while not self._is_closed:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.opened += 1
            if self._is_down:
                connection.close()
                continue
            self._connections.append(connection)
            thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
            thread.start()
            self._threads.append(thread)

    def _serve(self, connection: socket.socket) -> None:
        pause = threading.Event()
        head = b"HTTP/1.0 200 OK\r\nContent-Type: multipart/x-mixed-replace; boundary=" + BOUNDARY + b"\r\n\r\n"
        part = b"--%b\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n%b\r\n"
        with connection, suppress(OSError):
            connection.settimeout(PATIENCE_S)
            connection.recv(65_536)
            if not self._is_stalled:
                connection.sendall(head)
            while not self._is_closed and not self._is_down:
                if not self._is_stalled:
                    connection.sendall(part % (BOUNDARY, len(self._picture), self._picture))
                pause.wait(self._pause_s)


def _picture() -> bytes:
    rows, columns = np.mgrid[0:240, 0:320]
    pixels = np.stack([rows % 256, columns % 256, (rows + columns) % 256], axis=2).astype(np.uint8)
    is_made, content = cv2.imencode(".jpg", pixels)
    assert is_made
    return content.tobytes()
