"""`rac-cloud`: prepare the graphs, join the parts, serve, say how it ended."""

from __future__ import annotations

import json
import logging
import os
import secrets
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import zmq
from rich.console import Console

from nodes.authenticator import Authenticator
from nodes.bundles import load_configured
from nodes.cloud import CloudFront
from nodes.cloud_console import CloudConsole, SinkWatcher
from nodes.cloud_log import CloudLog
from nodes.cloud_metrics import CloudMetrics
from nodes.cloud_status import CloudStatus
from nodes.cloud_tracing import CloudTracing
from nodes.exporter import Exporter
from nodes.frontdoor import FrontDoor
from nodes.lifecycle import EXIT_OK, RunOptions
from nodes.metrics_server import Health, start_metrics_server
from nodes.offers import BundleOffers
from nodes.pool import WorkerPool
from nodes.preparation import prepare_in_process
from nodes.quarantine import Quarantine
from nodes.results import ResultSink, open_sink
from nodes.security import authenticator, cloud_reminder, load_cloud_key, load_metrics_token
from nodes.security_metrics import SecurityMetrics
from nodes.status_board import StatusBoard
from nodes.tracing import open_provider, wall_offset_ns
from nodes.version import version
from nodes.watchers import Watchers
from nodes.worker import ServedBundle, WorkerSpec
from pipeline.admission import Admission
from pipeline.authorisation import NamedKey
from pipeline.batching import Batcher, BatcherSettings
from pipeline.bundle import Bundle, find_bundle
from pipeline.bundle_delivery import read_node_part
from pipeline.classes import load_classes
from pipeline.cloud_actions import CloudSettings, FrameArrived
from pipeline.cloud_session import CloudSessions
from pipeline.config import CloudConfig
from pipeline.config_files import is_given
from pipeline.errors import ConfigError
from pipeline.inference import cache_root, choose_engine
from pipeline.node_limits import LimitSettings
from pipeline.wire import BUNDLE_DELIVERY, MAX_MESSAGE_BYTES

NS_PER_S = 1_000_000_000
NS_PER_MS = 1_000_000
MIB = 2**20
GOODBYE_LINGER_MS = 200
SINK_CLOSE_S = 0.5

logger = logging.getLogger("rac.cloud")


def run(config: CloudConfig, options: RunOptions) -> int:
    """Entry of the command; returns the exit code."""
    secret = load_cloud_key(config)
    load_metrics_token(config)  # a bad file is said before the graphs are made
    bundles = {name: load_configured(name, "configuration", "bundles") for name in config.bundles}
    if config.offer is not None and config.offer not in bundles:
        raise ConfigError("configuration", "offer", f"{config.offer} is not among bundles: {', '.join(bundles)}")
    weights = _find_weights(config)
    with ExitStack() as opened:
        sinks = [opened.enter_context(_sink(text)) for text in config.results]
        context = opened.enter_context(zmq.Context())
        guard = opened.enter_context(authenticator(config, context, lambda: options.stop.reloads))
        door = opened.enter_context(_door(config, context, secret))
        spec = _worker_spec(config, bundles, weights, options)
        if spec is None:  # stopped while the graphs were made
            return EXIT_OK
        return _serve(config, options, bundles, spec, sinks, door, guard)


def _serve(
    config: CloudConfig,
    options: RunOptions,
    named_bundles: dict[str, Bundle],
    spec: WorkerSpec,
    sinks: list[ResultSink],
    door: FrontDoor,
    guard: Authenticator | None,
) -> int:
    """Join the parts, serve, say how it ended."""
    bundles = list(named_bundles.values())
    exporter = Exporter("cloud", _known_labels(config, bundles), max_cameras=config.metrics.max_cameras)
    health = Health()
    security = SecurityMetrics(exporter, cloud_reminder(config), guard)

    def every_second() -> None:
        options.log.flush_repeats()
        security.publish()

    metrics = CloudMetrics(exporter, health, version(), sinks, every_second=every_second)
    for bundle in bundles:
        metrics.show_bundle(bundle)
    options.log.set_counter(lambda level: exporter.add("rac_cloud_log_messages_total", level))
    # Where standard output carries results, what people read goes to standard error.
    people = sys.stderr if "-" in config.results else sys.stdout

    def say(event: str, text: str, **fields: Any) -> None:
        if options.is_json:
            print(json.dumps({"event": event, **fields}), flush=True)
        else:
            print(text, file=people, flush=True)

    lines = CloudConsole(
        None if options.is_json else Console(file=people, highlight=False, soft_wrap=True),
        first_ready=lambda: say("ready", "ready: the first worker can serve"),
    )
    log = CloudLog(sinks, is_for_machines=config.log.format == "json")
    provider = open_provider("rac-cloud", socket.gethostname(), config.tracing.endpoint)
    tracing = [] if provider is None else [CloudTracing(provider, wall_offset_ns())]
    board = StatusBoard()
    status = CloudStatus(board, _page_facts(bundles, door.endpoint, spec), config.metrics.max_cameras)
    session_settings = _session_settings(config, named_bundles)
    batcher_settings = _batcher_settings(config, session_settings.queue_frames)
    front = CloudFront(
        door=door,
        sessions=CloudSessions(session_settings, lambda: secrets.token_bytes(8)),
        batcher=Batcher[FrameArrived](batcher_settings),
        pool=WorkerPool(
            spec,
            config.pool.workers,
            round(config.pool.batch_timeout_s * NS_PER_S),
            memory_limit_bytes=config.pool.worker_memory_mb * MIB,
        ),
        class_names=load_classes().names,
        watcher=Watchers([lines, log, metrics, status, *tracing, SinkWatcher(sinks), _quarantine(config)]),
        max_age_ns=batcher_settings.max_age_ns,
        offers=_offers(config, options, named_bundles, exporter),
        admission=Admission(_limit_settings(config), guard.allow_list if guard else None),
    )
    metrics.attach(front)
    lines.attach(front)
    log.attach(front)
    status.attach(front)
    options.stop.call_at_once(front.pool.kill)
    server = start_metrics_server(
        exporter,
        health,
        config.metrics.host,
        config.metrics.port,
        may_move=not is_given(config, "metrics.port"),
        token=load_metrics_token(config),
        board=board,
    )
    served = ", ".join(f"{bundle.manifest.name} {bundle.short_id}" for bundle in bundles)
    say(
        "start",
        f"listening on {door.endpoint}, {config.pool.workers} workers on {spec.engine} {spec.precision} with "
        f"{spec.threads} threads each, bundles {served}, page on {server.page_url}, {security.summary()}",
        endpoint=door.endpoint,
        security=security.mode,
        metrics=server.url,
        page=server.page_url,
        workers=config.pool.workers,
        engine=spec.engine,
        precision=spec.precision,
    )
    log.started(door.endpoint, config.pool.workers)
    try:
        front.run(options.stop, options.stop.fileno(), round(config.drain_s * NS_PER_S))
    finally:
        front.pool.kill()
        server.close()
        if provider is not None:
            provider.shutdown()
    totals = front.ledger.snapshot()
    log.ended(totals)
    results = {outcome: count for outcome, count in totals.results.items() if count}
    parts = [*(f"{word} {count}" for word, count in results.items()), f"in flight {totals.in_flight}"]
    say(
        "summary",
        f"received {totals.received} = {' + '.join(parts)}",
        received=totals.received,
        results=results,
        in_flight=totals.in_flight,
    )
    return EXIT_OK


def _page_facts(bundles: list[Bundle], endpoint: str, spec: WorkerSpec) -> dict[str, Any]:
    """What the status page says of the program itself."""
    return {
        "program": "rac-cloud",
        "name": socket.gethostname(),
        "version": version(),
        "bundles": ", ".join(f"{bundle.manifest.name} {bundle.short_id}" for bundle in bundles),
        "engine": f"{spec.engine} {spec.precision}, threads a worker: {spec.threads}",
        "wire_note": "frames, without results",
        "hint": f"Nodes connect to {endpoint}: rac-node --camera test: --cloud {endpoint}",
    }


def _quarantine(config: CloudConfig) -> Quarantine:
    folder = Path(config.pool.quarantine) if config.pool.quarantine else cache_root() / "quarantine"
    return Quarantine(folder, config.pool.quarantine_files)


def _offers(
    config: CloudConfig, options: RunOptions, named_bundles: dict[str, Bundle], exporter: Exporter
) -> BundleOffers:
    """What nodes that fetch their bundle are told to run."""
    ids = {name: bundle.bundle_id for name, bundle in named_bundles.items()}

    def show(offered: bytes) -> None:
        for bundle in named_bundles.values():
            exporter.set("rac_cloud_bundle_offered", float(bundle.bundle_id == offered), bundle.short_id)

    def read_name() -> str:
        return _offered_name(options.read_config())

    parts = {bundle_id: read_node_part(name) for name, bundle_id in ids.items()}
    return BundleOffers(parts, ids, _offered_name(config), read_name, lambda: options.stop.reloads, show)


def _offered_name(config: CloudConfig) -> str:
    return config.bundles[0] if config.offer is None else config.offer


@contextmanager
def _sink(text: str) -> Iterator[ResultSink]:
    """A sink that is open for the time of the program; at its end what it lost is said."""
    sink = open_sink(text)
    try:
        yield sink
    finally:
        sink.close(SINK_CLOSE_S)
        if sink.dropped:
            logger.warning("%d results did not reach %s", sink.dropped, sink.name)


@contextmanager
def _door(config: CloudConfig, context: zmq.Context[zmq.Socket[bytes]], secret: NamedKey | None) -> Iterator[FrontDoor]:
    """The bound socket; bound before anything takes time, so that a port that is taken shows at once."""
    try:
        door = FrontDoor(
            context,
            config.link.bind,
            config.link.max_message_bytes,
            secret_key=secret.key if secret else None,
            window_frames=max(config.link.credit, config.link.max_credit),
        )
    except zmq.ZMQError as error:
        text = f"{config.link.bind} cannot be bound: {error.strerror}"
        raise ConfigError("configuration", "link.bind", text) from error
    try:
        yield door
    finally:
        door.close(GOODBYE_LINGER_MS)


def _find_weights(config: CloudConfig) -> Path | None:
    if config.classifier_weights is None:
        return None
    weights = Path(config.classifier_weights)
    if not weights.is_file():
        raise ConfigError("configuration", "classifier_weights", f"{weights}: no such file")
    return weights


def _worker_spec(
    config: CloudConfig, bundles: dict[str, Bundle], weights: Path | None, options: RunOptions
) -> WorkerSpec | None:
    """Make the graphs that workers load; torch lives and ends in a process of its own.

    Returns:
        None when a stop was asked for meanwhile.
    """
    cores = os.cpu_count() or 1
    if config.pool.workers > cores:
        logger.warning("%d workers on %d cores: every one of them is slowed down", config.pool.workers, cores)
    threads = config.engine.threads or max(1, cores // config.pool.workers)
    # Read by libraries when they load, in the workers that inherit it.
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ.setdefault(variable, str(threads))
    served = []
    for name, bundle in bundles.items():
        graphs = prepare_in_process(name, bundle, weights, options.stop)
        if graphs is None:
            return None
        served.append(ServedBundle(bundle.bundle_id, str(find_bundle(name).resolve()), graphs))
    return WorkerSpec(
        bundles=tuple(served),
        engine=choose_engine(config.engine.name),
        precision=config.engine.precision,
        threads=threads,
        warm_up_frames=config.pool.batch_frames,
    )


def _known_labels(config: CloudConfig, bundles: list[Bundle]) -> dict[str, Sequence[object]]:
    return {
        "depth": sorted({depth for bundle in bundles for depth in bundle.manifest.depths}),
        "level": list(range(max(level16 for bundle in bundles for level16 in bundle.manifest.levels16) // 16 + 1)),
        "bundle": [bundle.short_id for bundle in bundles],
        "worker": list(range(config.pool.workers)),
        "sink": list(range(len(config.results))),
    }


def _session_settings(config: CloudConfig, named_bundles: dict[str, Bundle]) -> CloudSettings:
    return CloudSettings(
        bundle_ids=frozenset(bundle.bundle_id for bundle in named_bundles.values()),
        offer=named_bundles[_offered_name(config)].bundle_id,
        capabilities=(BUNDLE_DELIVERY,),
        window_frames=config.link.credit,
        max_window_frames=max(config.link.credit, config.link.max_credit),
        capacity_frames=config.pool.queue_frames,
        max_sessions=config.link.max_sessions,
        max_node_sessions=config.limits.node_sessions,
        max_cameras=config.limits.node_cameras,
        max_message_bytes=min(config.link.max_message_bytes, MAX_MESSAGE_BYTES),
        heartbeat_ms=round(config.link.heartbeat_s * 1000),
        peer_timeout_ms=round(config.link.peer_timeout_s * 1000),
    )


def _limit_settings(config: CloudConfig) -> LimitSettings:
    return LimitSettings(
        frames_per_second=config.limits.frames_per_second,
        bytes_per_second=config.limits.bytes_per_second,
        message_bytes=min(config.link.max_message_bytes, MAX_MESSAGE_BYTES),
        window_frames=max(config.link.credit, config.link.max_credit),
        cut_off_ns=round(config.limits.cut_off_s * NS_PER_S),
    )


def _batcher_settings(config: CloudConfig, queue_frames: int) -> BatcherSettings:
    """The queue holds whatever the sessions may grant, so no honest frame is refused; turns keep nodes apart."""
    return BatcherSettings(
        max_frames=config.pool.batch_frames,
        max_wait_ns=round(config.pool.batch_wait_ms * NS_PER_MS),
        capacity=queue_frames,
        node_share=1.0,
        max_age_ns=round(config.pool.max_age_s * NS_PER_S),
    )
