"""The first bundle of a node that has none: asked of the cloud, for as long as it takes, before the cameras start."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import zmq

from nodes.bundle_cache import BundleCache
from nodes.bundle_fetcher import BundleFetcher
from nodes.uplink import Uplink
from pipeline.bundle import Bundle
from pipeline.bundle_trial import BundleChange
from pipeline.errors import WireError
from pipeline.session import Action, BundleOffered, CloseLink, LossReason, Lost, NodeSession, OpenLink, Send
from pipeline.wire import Hello, pack, parse

GOODBYE_LINGER_MS = 200
LONGEST_POLL_MS = 500


class Bootstrap:
    """A session that does nothing but fetch.

    Args:
        watch: is told of deliveries that went wrong.
        lost: is told why there is no session yet.
    """

    def __init__(
        self,
        session: NodeSession,
        uplink: Uplink,
        cache: BundleCache,
        watch: Callable[[BundleChange], None],
        lost: Callable[[Lost], None],
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._session, self._uplink = session, uplink
        self._fetcher = BundleFetcher(session, cache, watch)
        self._lost = lost
        self._clock = clock
        self._bundle: Bundle | None = None

    def run(self, should_stop: Callable[[], bool], stop_fd: int) -> Bundle | None:
        """Fetch what the cloud offers; None when a stop was asked for before it was there."""
        self._perform(self._session.start(self._clock()))
        while self._bundle is None and not should_stop():
            self._wait(stop_fd)
            self._uplink.flush()
            for parts in self._uplink.receive():
                self._receive(parts)
            failure = self._uplink.take_failure()
            if failure is not None:
                reason = LossReason.AUTH if failure.is_lasting else LossReason.REFUSED
                self._perform(self._session.link_failed(reason, failure.text, self._clock()))
            now_ns = self._clock()
            self._perform(self._session.tick(now_ns))
            self._perform(self._fetcher.turn(now_ns))
        self._perform(self._session.stop("bundle fetched" if self._bundle else "node stops"))
        return self._bundle

    def _wait(self, stop_fd: int) -> None:
        poller = zmq.Poller()
        poller.register(stop_fd, zmq.POLLIN)
        if self._uplink.socket is not None:
            poller.register(self._uplink.socket, self._uplink.events)
        deadlines = [self._session.next_deadline_ns(), self._fetcher.next_deadline_ns()]
        due_ns = min((deadline for deadline in deadlines if deadline is not None), default=None)
        timeout_ms = LONGEST_POLL_MS if due_ns is None else -(-(due_ns - self._clock()) // 1_000_000)
        poller.poll(max(0, min(LONGEST_POLL_MS, timeout_ms)))

    def _receive(self, parts: list[bytes]) -> None:
        try:
            message = parse(parts)
        except WireError as error:
            self._perform(self._session.malformed(error, self._clock()))
            return
        self._perform(self._session.receive(message, self._clock()))

    def _perform(self, actions: Sequence[Action]) -> None:
        for action in actions:
            match action:
                case OpenLink():
                    self._uplink.open(action.endpoint, action.index)
                case CloseLink():
                    self._uplink.close(GOODBYE_LINGER_MS if action.is_orderly else 0)
                case Send(message=Hello() as hello):
                    self._uplink.send_when_connected(pack(hello))
                case Send(message=message):
                    self._uplink.send(pack(message))
                case Lost():
                    self._lost(action)
                case _:
                    pass
            arrived = self._fetcher.act(action, self._clock())
            if isinstance(action, BundleOffered):
                arrived = self._fetcher.want(action.bundle_id)
            self._bundle = arrived or self._bundle
