"""The cloud's part of model delivery: which bundle nodes should run, and its pieces for those that lack it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

from pipeline.bundle_delivery import cut_chunk
from pipeline.errors import ConfigError
from pipeline.wire import BundleChunk, BundleRequest

logger = logging.getLogger("rac.bundles")


class BundleOffers:
    """What is offered now; read again from the configuration when SIGHUP came.

    Args:
        parts: what travels of each bundle that is served, by id.
        ids: their ids by the names that the configuration has for them.
        name: the one that is offered first.
        read_name: reads the configuration again; raises ConfigError.
        count_reloads: how often SIGHUP came.
        watch: is told every id that is offered.
    """

    def __init__(
        self,
        parts: Mapping[bytes, bytes],
        ids: Mapping[str, bytes],
        name: str,
        read_name: Callable[[], str],
        count_reloads: Callable[[], int],
        watch: Callable[[bytes], None] = lambda bundle_id: None,
    ) -> None:
        self._parts, self._ids = parts, ids
        self._read_name, self._count_reloads, self._watch = read_name, count_reloads, watch
        self._num_reloads = count_reloads()
        self._bundle_id = ids[name]
        watch(self._bundle_id)

    def current(self) -> bytes:
        """Id of the bundle that nodes should run."""
        num_reloads = self._count_reloads()
        if num_reloads != self._num_reloads:
            self._num_reloads = num_reloads
            self._read_again()
        return self._bundle_id

    def chunk(self, request: BundleRequest) -> BundleChunk | None:
        """The piece that a node asks for; None for a bundle that is not served, or beyond its end."""
        part = self._parts.get(request.bundle_id)
        return None if part is None else cut_chunk(part, request)

    def _read_again(self) -> None:
        try:
            name = self._read_name()
        except ConfigError as error:
            logger.error("the offer stays as it is: %s", error)
            return
        bundle_id = self._ids.get(name)
        if bundle_id is None:
            logger.error("the offer stays as it is: %s is not among the bundles that this cloud was started with", name)
        elif bundle_id != self._bundle_id:
            facts = {"event": "offer_changed", "bundle": bundle_id.hex()[:12]}
            logger.info("nodes are offered bundle %s (%s) from now on", bundle_id.hex()[:12], name, extra=facts)
            self._bundle_id = bundle_id
            self._watch(bundle_id)
