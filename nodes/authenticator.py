"""The cloud's answer to "may this key connect?": a ZAP handler in a thread of its own, and the list that it asks.

    libzmq --handshake with a public key--> ZAP request (inproc) --> Authenticator --allow-list--> 200 or 400

The handler is there before the socket is bound, and the socket has a domain and ZAP_ENFORCE_DOMAIN: libzmq lets
every key in when there is no handler, unless both are set. With both, a handler that is gone means that nobody
gets in, and the front stops the program.

A thread, so that handshakes neither wait for the front nor hold it up; once a second it looks whether the list on
disk has changed. A list that cannot be read leaves the old one in force, loudly: a typing error must not cut a whole
fleet off. At the start it is an error.

Source: ZeroMQ RFC 27 (ZAP) for the parts of request and answer.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import zmq
from zmq.utils import z85
from zmq.utils.monitor import recv_monitor_message

from nodes.key_files import load_allow_list, signature
from pipeline.authorisation import AllowList
from pipeline.errors import ConfigError, SecurityError

ZAP_ENDPOINT: Final = "inproc://zeromq.zap.01"
ZAP_VERSION: Final = b"1.0"
DOMAIN: Final = b"rac"
MONITOR_ENDPOINT: Final = "inproc://rac-handshakes"
"""Where the front's socket tells of handshakes that failed before there was a key to ask about."""
FAILED_HANDSHAKES: Final = zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
KEY_BYTES: Final = 32
POLL_MS: Final = 100
LOOK_EVERY_S: Final = 1.0
REMIND_EVERY_S: Final = 60.0
START_LIMIT_S: Final = 10.0

logger = logging.getLogger("rac.security")


class AllowedNodes:
    """The allow-list on disk and the one in force.

    Attributes:
        current: in force; replaced whole, so that any thread may read it.
        is_outdated: the one on disk cannot be used, and an older one is in force.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        """Read it.

        Raises:
            ConfigError: it cannot be used.
        """
        self._path = path
        self._clock = clock
        self._signature = self._sighted = signature(path)
        self.current = load_allow_list(path)
        self.is_outdated = False
        self._reminded_s = 0.0
        if not len(self.current):
            logger.warning("%s names no node yet: nobody can connect", path)

    def refresh(self, *, is_asked: bool = False) -> None:
        """Read the list again if it has changed and stands still since the last look, or if somebody asks.

        A file that is being written would else be read by half, and the nodes of its other half cut off.
        """
        found = signature(self._path)
        is_still, self._sighted = found == self._sighted, found
        if not is_asked and (found == self._signature or not is_still):
            if self.is_outdated and self._clock() - self._reminded_s >= REMIND_EVERY_S:
                self._say_outdated("it is still wrong")
            return
        self._signature = found
        try:
            self.current = load_allow_list(self._path)
        except ConfigError as error:
            self._say_outdated(str(error))
            return
        self.is_outdated = False
        logger.info("allow-list read again, keys: %d", len(self.current), extra={"event": "allow_list_changed"})

    def _say_outdated(self, problem: str) -> None:
        self.is_outdated = True
        self._reminded_s = self._clock()
        facts = {"event": "allow_list_outdated"}
        logger.error("the allow-list stays as it was, keys: %d; %s", len(self.current), problem, extra=facts)


class Authenticator:
    """The running handler.

    Attributes:
        unknown_keys: handshakes refused because of their key.
        failed_handshakes: connections that never showed a key: none used, the wrong key of ours, or no ZeroMQ.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        allowed: AllowedNodes,
        reloads: Callable[[], int] = lambda: 0,
    ) -> None:
        """Start, and return when the handler answers.

        Args:
            context: of the socket that is to be protected; one handler a context.
            reloads: how often somebody asked to read the list again.
        Raises:
            SecurityError: the handler cannot start.
        """
        self._context, self._allowed, self._reloads = context, allowed, reloads
        self._seen_reloads = reloads()
        self._failure: BaseException | None = None
        self._has_started = threading.Event()
        self._is_stopping = threading.Event()
        self.unknown_keys = 0
        self.failed_handshakes = 0
        self._thread = threading.Thread(target=self._run, name="rac-zap", daemon=True)
        self._thread.start()
        self._has_started.wait(START_LIMIT_S)
        self.check()

    @property
    def is_outdated(self) -> bool:
        """Whether an older allow-list than the one on disk is in force."""
        return self._allowed.is_outdated

    def allow_list(self) -> AllowList:
        """The list in force.

        Raises:
            SecurityError: the handler has ended; nobody could be authorised any more.
        """
        self.check()
        return self._allowed.current

    def check(self) -> None:
        """Raise SecurityError if the handler does not run."""
        if self._failure is not None or not self._has_started.is_set() or not self._thread.is_alive():
            reason = f": {self._failure}" if self._failure is not None else ""
            raise SecurityError(f"the handler that authorises nodes does not run{reason}") from self._failure

    def close(self) -> None:
        """Stop answering; a second call does nothing. Close the protected socket first, the context after."""
        self._is_stopping.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            with self._context.socket(zmq.REP) as handler, self._context.socket(zmq.PAIR) as monitor:
                for owned in (handler, monitor):
                    owned.setsockopt(zmq.LINGER, 0)
                handler.bind(ZAP_ENDPOINT)
                monitor.connect(MONITOR_ENDPOINT)
                self._has_started.set()
                self._serve(handler, monitor)
        except Exception as error:
            self._failure = error
            if self._has_started.is_set():
                logger.exception("authorising nodes has failed")
            self._has_started.set()

    def _serve(self, handler: zmq.Socket[bytes], monitor: zmq.Socket[bytes]) -> None:
        poller = zmq.Poller()
        poller.register(handler, zmq.POLLIN)
        poller.register(monitor, zmq.POLLIN)
        look_s = time.monotonic() + LOOK_EVERY_S
        while not self._is_stopping.is_set():
            ready = dict(poller.poll(POLL_MS))
            if handler in ready:
                handler.send_multipart(self.judge(handler.recv_multipart()))
            if monitor in ready:
                self._count_failure(monitor)
            reloads = self._reloads()
            if reloads != self._seen_reloads or time.monotonic() >= look_s:
                self._allowed.refresh(is_asked=reloads != self._seen_reloads)
                self._seen_reloads = reloads
                look_s = time.monotonic() + LOOK_EVERY_S

    def judge(self, request: Sequence[bytes]) -> list[bytes]:
        """The answer to a ZAP request: 200 with the key as User-Id, or why not."""
        if len(request) < 6 or request[0] != ZAP_VERSION:
            return [ZAP_VERSION, request[1] if len(request) > 1 else b"", b"500", b"no ZAP 1.0 request", b"", b""]
        request_id, domain, address, _, mechanism, *credentials = request[1:]
        if domain != DOMAIN or mechanism != b"CURVE" or [len(part) for part in credentials] != [KEY_BYTES]:
            return [ZAP_VERSION, request_id, b"400", b"only CURVE", b"", b""]
        key = z85.encode(credentials[0]).decode()
        if self._allowed.current.name_of(key) is None:
            self.unknown_keys += 1
            logger.warning("refused a node at %s: its key %s is not allowed", address.decode("ascii", "replace"), key)
            return [ZAP_VERSION, request_id, b"400", b"unknown key", b"", b""]
        return [ZAP_VERSION, request_id, b"200", b"OK", key.encode(), b""]

    def _count_failure(self, monitor: zmq.Socket[bytes]) -> None:
        event = recv_monitor_message(monitor)
        if event["event"] & FAILED_HANDSHAKES:
            self.failed_handshakes += 1
            logger.warning("a connection failed before it showed a key: no key, or not the key of this cloud")
