"""`rac-cloud`: prepare the graphs, join the parts, serve, say how it ended."""

from __future__ import annotations

import json
import logging
import os
import secrets
import sys
import time
from pathlib import Path
from typing import Any

import zmq
from rich.console import Console

from nodes.cli import version
from nodes.cloud import CloudFront
from nodes.cloud_console import CloudConsole, SinkWatcher
from nodes.cloud_metrics import CloudMetrics
from nodes.exporter import Exporter
from nodes.frontdoor import FrontDoor
from nodes.lifecycle import EXIT_OK, RunOptions
from nodes.metrics_server import Health, start_metrics_server
from nodes.pool import WorkerPool
from nodes.preparation import prepare_in_process
from nodes.results import open_sink
from nodes.watchers import Watchers
from nodes.worker import ServedBundle, WorkerSpec
from pipeline.batching import Batcher, BatcherSettings
from pipeline.bundle import Bundle, find_bundle, load_bundle
from pipeline.classes import load_classes
from pipeline.cloud_actions import CloudSettings, FrameArrived
from pipeline.cloud_session import CloudSessions
from pipeline.config import CloudConfig
from pipeline.config_files import is_given
from pipeline.errors import ConfigError
from pipeline.inference import choose_engine

NS_PER_S = 1_000_000_000
NS_PER_MS = 1_000_000

logger = logging.getLogger("rac.cloud")


def run(config: CloudConfig, options: RunOptions) -> int:
    """Entry of the command; returns the exit code."""
    bundles = {name: load_bundle(name) for name in config.bundles}
    sinks = [open_sink(text) for text in config.results]
    spec = _worker_spec(config, bundles)
    exporter = Exporter("cloud", _known_labels(config, list(bundles.values())), max_cameras=config.metrics.max_cameras)
    health = Health()
    metrics = CloudMetrics(exporter, health, version(), sinks)
    for bundle in bundles.values():
        exporter.inform("rac_cloud_bundle_info", bundle.short_id, bundle.manifest.classifier)
        exporter.set("rac_cloud_bundle_loaded_timestamp_seconds", time.time(), bundle.short_id)
    options.log.set_counter(lambda level: exporter.add("rac_cloud_log_messages_total", level))
    # Lines for people go to standard error when standard output carries results.
    is_quiet = options.is_json or "-" in config.results
    lines = CloudConsole(None if is_quiet else Console(highlight=False, soft_wrap=True))
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    door = _open_door(context, config)
    session_settings = _session_settings(config, list(bundles.values()))
    front = CloudFront(
        door=door,
        sessions=CloudSessions(session_settings, lambda: secrets.token_bytes(8)),
        batcher=Batcher[FrameArrived](_batcher_settings(config, session_settings.queue_frames)),
        pool=WorkerPool(spec, config.pool.workers, round(config.pool.batch_timeout_s * NS_PER_S)),
        class_names=load_classes().names,
        watcher=Watchers([lines, metrics, SinkWatcher(sinks)]),
    )
    metrics.attach(front)
    lines.attach(front)
    options.stop.call_at_once(front.pool.kill)
    server = start_metrics_server(
        exporter,
        health,
        config.metrics.host,
        config.metrics.port,
        may_move=not is_given(config, "metrics.port"),
    )
    served = ", ".join(f"{bundle.manifest.name} {bundle.short_id}" for bundle in bundles.values())
    _say(
        options,
        "start",
        f"listening on {door.endpoint}, {config.pool.workers} workers on {spec.engine} {spec.precision} with "
        f"{spec.threads} threads each, bundles {served}, metrics on {server.url}",
        endpoint=door.endpoint,
        metrics=server.url,
        workers=config.pool.workers,
        engine=spec.engine,
        precision=spec.precision,
    )
    try:
        front.run(options.stop, options.stop.fileno(), round(config.drain_s * NS_PER_S))
    finally:
        front.pool.kill()
        server.close()
        for sink in sinks:
            sink.close(0.5)
        door.close(200)
        context.term()
    totals = front.ledger.snapshot()
    results = {outcome: count for outcome, count in totals.results.items() if count}
    text = f"received {totals.received} = " + " + ".join(f"{word} {count}" for word, count in results.items())
    text += f" + in flight {totals.in_flight}" if results else f"in flight {totals.in_flight}"
    _say(options, "summary", text, received=totals.received, results=results, in_flight=totals.in_flight)
    return EXIT_OK


def _say(options: RunOptions, event: str, text: str, **fields: Any) -> None:
    print(json.dumps({"event": event, **fields}) if options.is_json else text, file=sys.stdout, flush=True)


def _worker_spec(config: CloudConfig, bundles: dict[str, Bundle]) -> WorkerSpec:
    """Make the graphs that workers load; torch lives and ends in a process of its own."""
    cores = os.cpu_count() or 1
    if config.pool.workers > cores:
        logger.warning("%d workers on %d cores: every one of them is slowed down", config.pool.workers, cores)
    threads = config.engine.threads or max(1, cores // config.pool.workers)
    # Read by libraries when they load, in the workers that inherit it.
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ.setdefault(variable, str(threads))
    weights = Path(config.classifier_weights) if config.classifier_weights else None
    served = tuple(
        ServedBundle(bundle.bundle_id, str(find_bundle(name).resolve()), prepare_in_process(name, bundle, weights))
        for name, bundle in bundles.items()
    )
    return WorkerSpec(
        bundles=served,
        engine=choose_engine(config.engine.name),
        precision=config.engine.precision,
        threads=threads,
        warm_up_frames=config.pool.batch_frames,
    )


def _open_door(context: zmq.Context[zmq.Socket[bytes]], config: CloudConfig) -> FrontDoor:
    try:
        return FrontDoor(context, config.link.bind, config.link.max_message_bytes)
    except zmq.ZMQError as error:
        raise ConfigError("configuration", "link.bind", f"{config.link.bind} cannot be bound: {error}") from error


def _known_labels(config: CloudConfig, bundles: list[Bundle]) -> dict[str, list[object]]:
    return {
        "depth": sorted({depth for bundle in bundles for depth in bundle.manifest.depths}),
        "level": list(range(max(level16 for bundle in bundles for level16 in bundle.manifest.levels16) // 16 + 1)),
        "bundle": [bundle.short_id for bundle in bundles],
        "worker": list(range(config.pool.workers)),
        "sink": list(range(len(config.results))),
    }


def _session_settings(config: CloudConfig, bundles: list[Bundle]) -> CloudSettings:
    return CloudSettings(
        bundle_ids=frozenset(bundle.bundle_id for bundle in bundles),
        window_frames=config.link.credit,
        capacity_frames=config.pool.queue_frames,
        max_sessions=config.link.max_sessions,
        heartbeat_ms=round(config.link.heartbeat_s * 1000),
        peer_timeout_ms=round(config.link.peer_timeout_s * 1000),
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
