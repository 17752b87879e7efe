"""Fetches one bundle at a time over the session, into the cache; what goes wrong is tried again, ever more rarely."""

from __future__ import annotations

import logging
from collections.abc import Callable

from nodes.bundle_cache import BundleCache
from pipeline.bundle import Bundle
from pipeline.bundle_delivery import BundleFetch
from pipeline.bundle_trial import BundleChange, UpdateOutcome
from pipeline.errors import BundleMismatchError, BundleSignatureError, PipelineError
from pipeline.session import Action, ChunkArrived, Lost, NodeSession

NS_PER_S = 1_000_000_000
FIRST_RETRY_NS, LAST_RETRY_NS = 10 * NS_PER_S, 600 * NS_PER_S
"""After a delivery that went wrong; doubled each time."""

logger = logging.getLogger("rac.bundles")


class BundleFetcher:
    """What is wanted, what of it is there, and when to try again.

    Args:
        watch: is told of every delivery that went wrong.
    """

    def __init__(self, session: NodeSession, cache: BundleCache, watch: Callable[[BundleChange], None]) -> None:
        self._session, self._cache, self._watch = session, cache, watch
        self._wanted: bytes | None = None
        self._fetch: BundleFetch | None = None
        self._retry_ns: int | None = None
        self._retry_wait_ns = FIRST_RETRY_NS

    def want(self, bundle_id: bytes) -> Bundle | None:
        """Say which bundle is wanted now: comes back at once from the cache, else later from `act`."""
        if bundle_id == self._wanted:
            return None
        self._wanted, self._fetch = bundle_id, None
        self._retry_ns, self._retry_wait_ns = None, FIRST_RETRY_NS
        cached = self._cache.load(bundle_id)
        if cached is None:
            self._begin(bundle_id)
        return cached

    def forget(self) -> None:
        """Nothing is wanted any more."""
        self._wanted, self._fetch, self._retry_ns = None, None, None

    def act(self, action: Action, now_ns: int) -> Bundle | None:
        """Look at what the session did; the bundle, once it is whole and kept."""
        fetch = self._fetch
        if fetch is None:
            return None
        if isinstance(action, Lost):
            fetch.lose_link()
        if not isinstance(action, ChunkArrived):
            return None
        try:
            fetch.take(action.chunk)
            if not fetch.is_complete:
                return None
            self._fetch = None
            return self._cache.store(fetch.bundle_id, fetch.files())
        except PipelineError as error:
            self.fail(fetch.bundle_id, error, now_ns)
            return None

    def turn(self, now_ns: int) -> list[Action]:
        """Ask for what is missing."""
        if self._retry_ns is not None and now_ns >= self._retry_ns and self._wanted is not None:
            self._retry_ns = None
            self._begin(self._wanted)
        if self._fetch is None or not self._session.is_up:
            return []
        requests = self._fetch.requests(now_ns)
        return [action for request in requests for action in self._session.request_chunk(request)]

    def fail(self, bundle_id: bytes, error: PipelineError, now_ns: int) -> None:
        """A bundle came and cannot be used: throw it away, and fetch it anew later."""
        outcome = UpdateOutcome.ERROR
        if isinstance(error, BundleSignatureError):
            outcome = UpdateOutcome.BAD_SIGNATURE
        elif isinstance(error, BundleMismatchError):
            outcome = UpdateOutcome.BAD_HASH
        self._fetch = None
        self._retry_ns = now_ns + self._retry_wait_ns
        self._retry_wait_ns = min(2 * self._retry_wait_ns, LAST_RETRY_NS)
        self._watch(BundleChange(outcome, bundle_id.hex()[:12], str(error)))

    def next_deadline_ns(self) -> int | None:
        """When `turn` has something to do at the earliest."""
        waits = [self._retry_ns, None if self._fetch is None else self._fetch.next_deadline_ns()]
        return min((wait for wait in waits if wait is not None), default=None)

    def _begin(self, bundle_id: bytes) -> None:
        logger.info("fetching bundle %s", bundle_id.hex()[:12])
        self._fetch = BundleFetch(bundle_id)
