"""A node's bundle while it streams: the one that the cloud offers is fetched, tried, and kept or given up again."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from nodes.bundle_cache import BundleCache
from nodes.bundle_fetcher import BundleFetcher
from nodes.companions import SessionChange
from nodes.uplink import Socket
from pipeline.bundle import Bundle
from pipeline.bundle_trial import BundleChange, BundleTrial, UpdateOutcome, Verdict
from pipeline.encoder import Encoder
from pipeline.errors import PipelineError
from pipeline.ledger import ClosedFrame
from pipeline.rate_control import DepthController
from pipeline.session import Action, BundleOffered, NodeSession
from pipeline.wire import MAX_BUNDLES, Hello

logger = logging.getLogger("rac.bundles")


@dataclass(frozen=True, slots=True)
class PreparedBundle:
    """A bundle ready to encode with."""

    bundle: Bundle
    encoder: Encoder
    level16: int
    controller: DepthController


class BundleUpdates:
    """A companion of the node's loop.

    Args:
        hello: the session's.
        bundle: what the node begins with.
        prepare: makes a bundle ready, timing its depths; raises PipelineError where that cannot be.
        use: encode with this from the next frame on.
        watch: is told of every change that ended.
    """

    def __init__(
        self,
        session: NodeSession,
        hello: Hello,
        cache: BundleCache,
        bundle: Bundle,
        prepare: Callable[[Bundle], PreparedBundle],
        use: Callable[[PreparedBundle], None],
        watch: Callable[[BundleChange], None],
    ) -> None:
        self._session, self._hello, self._cache = session, hello, cache
        self._fetcher = BundleFetcher(session, cache, watch)
        self._bundle = bundle
        self._current: PreparedBundle | None = None
        self._prepare, self._use, self._watch = prepare, use, watch
        # What is gone back to when the current one fails; there while the current one is on trial.
        self._previous: PreparedBundle | None = None
        self._trial: BundleTrial | None = BundleTrial()
        self._change: SessionChange | None = None
        self._offered: bytes | None = None
        self._refused: set[bytes] = set()

    @property
    def bundle(self) -> Bundle:
        """The bundle in use."""
        return self._bundle if self._current is None else self._current.bundle

    def started(self, current: PreparedBundle) -> None:
        """The first bundle's depths are timed: from now on it can be gone back to."""
        self._current = current

    def act(self, action: Action, now_ns: int) -> None:
        arrived = self._fetcher.act(action, now_ns)
        if isinstance(action, BundleOffered):
            arrived = self._take_offer(action.bundle_id)
        if arrived is not None:
            self._begin(arrived, now_ns)

    def encode(self, camera: str, sequence: int) -> None:
        if self._trial is not None:
            self._trial.follow(camera, sequence)

    def close_frame(self, closed: ClosedFrame, now_ns: int) -> None:
        verdict = None if self._trial is None else self._trial.end(closed.camera, closed.sequence, closed.outcome)
        if verdict is Verdict.WORKS:
            self._confirm()
        elif verdict is Verdict.FAILS and self._previous is not None:
            self._roll_back(f"frames end as {closed.outcome.value}", self._previous)

    def turn(self, now_ns: int) -> list[Action]:
        return self._fetcher.turn(now_ns)

    def take_change(self) -> SessionChange | None:
        change, self._change = self._change, None
        return change

    def next_deadline_ns(self) -> int | None:
        return self._fetcher.next_deadline_ns()

    def socket(self) -> Socket | None:
        return None

    def stop(self) -> None:
        """What was fetched by half is fetched again by the next start."""

    def _take_offer(self, bundle_id: bytes) -> Bundle | None:
        if bundle_id != self._offered:
            # Another mind: what failed before may be meant again later.
            self._refused.clear()
        self._offered = bundle_id
        if bundle_id == self.bundle.bundle_id or bundle_id in self._refused:
            self._fetcher.forget()
            return None
        return self._fetcher.want(bundle_id)

    def _begin(self, bundle: Bundle, now_ns: int) -> None:
        """Make a bundle ready and ask for the change to it."""
        try:
            prepared = self._prepare(bundle)
        except PipelineError as error:
            self._fetcher.fail(bundle.bundle_id, error, now_ns)
            return
        self._fetcher.forget()

        def change(now_ns: int) -> Sequence[Action]:
            self._previous, self._current = self._current, prepared
            self._trial = BundleTrial()
            return self._open(prepared, now_ns)

        self._change = change

    def _open(self, prepared: PreparedBundle, now_ns: int) -> Sequence[Action]:
        """Encode with a bundle from now on, in a session that says so."""
        logger.info("bundle %s is used from now on", prepared.bundle.short_id)
        self._use(prepared)
        bundle_ids = tuple(dict.fromkeys([prepared.bundle.bundle_id, *self._hello.bundle_ids]))[:MAX_BUNDLES]
        self._hello = replace(self._hello, bundle_ids=bundle_ids)
        return self._session.renew(self._hello, now_ns)

    def _confirm(self) -> None:
        previous, self._previous, self._trial = self._previous, None, None
        bundle = self.bundle
        self._cache.confirm(bundle.bundle_id, None if previous is None else previous.bundle.bundle_id)
        if previous is not None:
            self._watch(BundleChange(UpdateOutcome.OK, bundle.short_id, "it works"))

    def _roll_back(self, why: str, previous: PreparedBundle) -> None:
        failed = self.bundle
        self._refused.add(failed.bundle_id)
        self._trial = self._previous = None

        def change(now_ns: int) -> Sequence[Action]:
            self._current = previous
            text = f"{why}: back to {previous.bundle.short_id}"
            self._watch(BundleChange(UpdateOutcome.ROLLED_BACK, failed.short_id, text))
            return self._open(previous, now_ns)

        self._change = change
