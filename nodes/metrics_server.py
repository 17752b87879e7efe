"""Small HTTP server for the status page, /metrics, /healthz and /readyz, in threads beside the main loop.

Start it in the parent process after worker processes were started. It only reads: what the main loop last said about
itself (`Health`, `StatusBoard`), and what the exporter renders. Requests must name this machine in their Host header,
so that a web page elsewhere cannot reach it through a browser here. Where other machines can reach it, every request
also needs the token: as Bearer, or as the password that a browser asks for.
"""

from __future__ import annotations

import base64
import binascii
import errno
import hmac
import ipaddress
import json
import logging
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final, Protocol

from pydantic import SecretStr

from nodes.page_files import POLICY, STATUS_PATH, read_page_files
from nodes.status_board import StatusBoard
from pipeline.config_base import is_loopback
from pipeline.errors import ConfigError

NS_PER_S: Final = 1_000_000_000
# The loops turn at least twice a second; ten seconds without a turn is a loop that hangs.
LONGEST_SILENCE_NS: Final = 10 * NS_PER_S
# Some other program's range begins within a hundred ports: then somebody should choose.
PORTS_TRIED: Final = 100
REQUEST_TIMEOUT_S: Final = 5.0
SHUTDOWN_POLL_S: Final = 0.05

logger = logging.getLogger("rac.metrics")


class PageSource(Protocol):
    """What renders /metrics: `nodes.exporter.Exporter`."""

    def render(self, accept: str = "") -> tuple[bytes, str]: ...


class Health:
    """What the main loop says about itself; written by the loop, read by request threads.

    Args:
        clock: monotonic nanoseconds.
    """

    def __init__(self, clock: Callable[[], int] = time.monotonic_ns) -> None:
        self._clock = clock
        self._beat_ns = clock()
        self._reasons: tuple[str, ...] = ("starting",)

    def beat(self) -> None:
        """Say that the loop turns; call it once a turn."""
        self._beat_ns = self._clock()

    def set_reasons(self, reasons: Sequence[str]) -> None:
        """Say what is in the way of work; nothing means ready. Starts as "starting"."""
        self._reasons = tuple(reasons)

    def trouble(self) -> list[str]:
        """Why the program is not healthy; empty when it is."""
        silent_ns = self._clock() - self._beat_ns
        return [f"main loop silent for {silent_ns / NS_PER_S:.0f} s"] if silent_ns > LONGEST_SILENCE_NS else []

    def reasons(self) -> list[str]:
        """Why the program is not ready; empty when it is."""
        return [*self.trouble(), *self._reasons]


class MetricsServer:
    """The running server.

    Attributes:
        port: where it listens.
        url: address of /metrics.
        page_url: address of the status page.
    """

    def __init__(
        self,
        page: PageSource,
        health: Health,
        host: str,
        port: int,
        token: str | None = None,
        board: StatusBoard | None = None,
    ) -> None:
        """Bind and serve.

        Args:
            token: what every request must carry; None: nothing.
            board: what the status page shows; None: there is none.
        Raises:
            OSError: the address cannot be had.
        """
        self._http = _HttpServer(page, health, host, port, token, board)
        self.port: int = self._http.server_address[1]
        shown = f"[{host}]" if ":" in host else host
        self.page_url = f"http://{shown}:{self.port}/"
        self.url = f"{self.page_url}metrics"
        self._thread = threading.Thread(
            target=self._http.serve_forever, args=(SHUTDOWN_POLL_S,), name="rac-metrics", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Stop serving and free the port; a second call does nothing."""
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


def start_metrics_server(
    page: PageSource,
    health: Health,
    host: str,
    port: int,
    *,
    may_move: bool,
    token: SecretStr | None = None,
    board: StatusBoard | None = None,
) -> MetricsServer:
    """Serve on a port, or on the next free one.

    Args:
        token: what every request must carry; an address beyond this machine has one.
        port: 0 for any free one.
        board: what the status page shows; None: there is none.
        may_move: whether a port that is taken may be passed over: true unless it was set by hand.
    Raises:
        ConfigError: no port to be had.
    """
    last = port + PORTS_TRIED if may_move and port else port
    for candidate in range(port, min(last, 65_535) + 1):
        try:
            plain = token.get_secret_value() if token else None
            server = MetricsServer(page, health, host, candidate, plain, board)
        except OSError as error:
            if error.errno == errno.EADDRINUSE and candidate < last:
                continue
            reason = "is in use" if error.errno == errno.EADDRINUSE else error.strerror or str(error)
            raise ConfigError("configuration", "metrics.port", f"{host} port {candidate}: {reason}") from error
        moved = f" ({port} is in use)" if port not in (0, server.port) else ""
        logger.info("page and metrics on %s%s", server.page_url if board else server.url, moved)
        return server
    raise AssertionError("the last port either serves or raises")


class _HttpServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(
        self,
        page: PageSource,
        health: Health,
        host: str,
        port: int,
        token: str | None,
        board: StatusBoard | None,
    ) -> None:
        self.page = page
        self.health = health
        self.board = board
        self.files = {} if board is None else read_page_files()
        self.host = host
        self.token = token
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), _Handler)

    def server_bind(self) -> None:
        # The base class looks the host's full name up, which may take seconds without a name server.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = self.host, self.server_address[1]

    def handle_error(self, request: Any, client_address: Any) -> None:
        logger.debug("a request from %s failed", client_address, exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    server: _HttpServer
    timeout = REQUEST_TIMEOUT_S
    server_version = "rac"
    sys_version = ""

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def _refuse_method(self) -> None:
        """Everything here can be read only."""
        self._send(*_text(405, ["only GET and HEAD are answered"]))

    # Names that the base class looks for.
    do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = _refuse_method  # noqa: N815

    def _answer(self, *, with_body: bool) -> None:
        self._send(*self._find(), with_body=with_body)

    def _send(self, status: int, body: bytes, content_type: str, *, with_body: bool = True) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("Content-Security-Policy", POLICY if self._is_page(status) else "default-src 'none'")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Referrer-Policy", "no-referrer")
        if status == 401:
            # A browser can only ask for a name and a password; scrapers bring the token by themselves.
            self.send_header("WWW-Authenticate", 'Basic realm="rac", charset="UTF-8"')
            self.send_header("WWW-Authenticate", "Bearer")
        elif status == 405:
            self.send_header("Allow", "GET, HEAD")
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    @property
    def _path(self) -> str:
        return self.path.partition("?")[0]

    def _is_page(self, status: int) -> bool:
        return status == 200 and self._path in self.server.files

    def _find(self) -> tuple[int, bytes, str]:
        if not self._is_meant():
            return _text(403, ["the Host header names another machine"])
        if not self._has_token():
            return _text(401, ["this page wants Authorization: Bearer TOKEN, or the token as password"])
        server = self.server
        if self._path in server.files:
            return 200, *server.files[self._path]
        if self._path == STATUS_PATH and server.board is not None:
            return 200, _status(server.board, server.health), "application/json"
        if self._path == "/metrics":
            return 200, *server.page.render(self.headers.get("Accept", ""))
        if self._path == "/healthz":
            return _verdict(server.health.trouble())
        if self._path == "/readyz":
            return _verdict(server.health.reasons())
        return _text(404, ["here are the page at /, /metrics, /healthz and /readyz"])

    def _is_meant(self) -> bool:
        host = self.headers.get("Host")
        if host is None:
            return True
        name = host if host.endswith("]") else host.rpartition(":")[0] or host
        return is_loopback(name) or name == self.server.host or (self.server.token is not None and self._is_ours(name))

    @staticmethod
    def _is_ours(name: str) -> bool:
        """Beyond this machine: an address, which no foreign web page can make its own, or our own name."""
        try:
            ipaddress.ip_address(name.strip("[]"))
        except ValueError:
            return name.partition(".")[0].lower() == socket.gethostname().partition(".")[0].lower()
        return True

    def _has_token(self) -> bool:
        if self.server.token is None:
            return True
        scheme, _, given = self.headers.get("Authorization", "").partition(" ")
        token = given.strip().encode()
        if scheme.lower() == "basic":
            token = _password(token)
        # Compared in the same time whatever it is; bytes, since a header may hold anything.
        is_right = hmac.compare_digest(token, self.server.token.encode())
        return is_right and scheme.lower() in ("bearer", "basic")

    def log_message(self, format: str, *args: Any) -> None:
        logger.debug(format, *args)


def _password(credentials: bytes) -> bytes:
    """The password of a browser's NAME:PASSWORD in base64; the name may be anything."""
    try:
        return base64.b64decode(credentials, validate=True).partition(b":")[2]
    except binascii.Error:
        return b""


def _status(board: StatusBoard, health: Health) -> bytes:
    document, age_s = board.read()
    # What the loop said of itself is older than what is known of the loop.
    trouble = [*health.trouble(), *document.get("trouble", [] if document else ["starting"])]
    return json.dumps({**document, "age_s": age_s, "trouble": trouble}, separators=(",", ":")).encode()


def _verdict(reasons: Sequence[str]) -> tuple[int, bytes, str]:
    return _text(503, reasons) if reasons else _text(200, ["ok"])


def _text(status: int, lines: Sequence[str]) -> tuple[int, bytes, str]:
    return status, ("\n".join(lines) + "\n").encode(), "text/plain; charset=utf-8"
