"""`rac-node`: join the parts that the configuration asks for, run, say how it ended."""

from __future__ import annotations

import logging
import random
import secrets
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import zmq
from rich.console import Console

from nodes.bundle_bootstrap import Bootstrap
from nodes.bundle_cache import BundleCache
from nodes.bundle_updates import BundleUpdates, PreparedBundle
from nodes.bundles import load_configured
from nodes.calibration import NodeStart, made_up_frame, measure_depths
from nodes.capture import CameraReader
from nodes.capture_link import CaptureOptions
from nodes.edge import EdgeNode, EdgeOptions, EdgeWatcher
from nodes.exporter import Exporter
from nodes.lifecycle import EXIT_OK, RunOptions
from nodes.metrics_server import Health, start_metrics_server
from nodes.node_console import NodeConsole
from nodes.node_json import NodeJson
from nodes.node_log import NodeLog
from nodes.node_metrics import NodeMetrics
from nodes.node_status import NodeStatus
from nodes.node_summary import summary
from nodes.node_tracing import NodeTracing
from nodes.returning import Returning
from nodes.security import load_link_keys, load_metrics_token, may_open, node_reminder
from nodes.sources import Camera, parse_cameras
from nodes.spool import Spool
from nodes.status_board import StatusBoard
from nodes.tracing import open_provider, wall_offset_ns
from nodes.uplink import Uplink
from nodes.version import version
from nodes.watchers import Watchers
from pipeline.bundle import Bundle
from pipeline.config import AUTO_BUNDLE, CameraConfig, NodeConfig
from pipeline.config_files import is_given
from pipeline.encoder import Encoder
from pipeline.entropy.rans import warm_up
from pipeline.errors import ConfigError
from pipeline.frames import Frame
from pipeline.inference import cache_root
from pipeline.rate_control import DepthController
from pipeline.session import NodeSession, NodeSettings
from pipeline.view import Roi, ViewOptions
from pipeline.wire import BUNDLE_DELIVERY, MAX_BUNDLES, WIRE_MINOR, CameraEntry, Hello

NS_PER_MS = 1_000_000
NS_PER_S = 1_000_000_000

logger = logging.getLogger("rac.node")


class Shown(EdgeWatcher, Protocol):
    """A watcher that also shows the start and the end of a run."""

    def attach(self, node: EdgeNode) -> None: ...

    def started(self, start: NodeStart) -> None: ...

    def ended(self, figures: Mapping[str, Any]) -> None: ...


def run(config: NodeConfig, options: RunOptions) -> int:
    """Entry of the command; returns the exit code."""
    named_keys = load_link_keys(config)
    if named_keys is not None:  # the cloud goes by the key, so what this node calls itself should be the same
        config = config.model_copy(update={"name": named_keys[0]})
    bundle = None
    if config.codec.bundle != AUTO_BUNDLE:
        bundle = load_configured(config.codec.bundle, "configuration", "codec.bundle")
        _check_choices(bundle, config)
    cameras = parse_cameras([camera.argument for camera in config.cameras])
    with ExitStack() as opened:
        context = opened.enter_context(zmq.Context())
        spool = open_spool(config)
        if spool is not None:
            opened.callback(spool.close)
        names = _camera_names(cameras, spool)
        shown: Shown = (
            NodeJson(lambda line: print(line, flush=True))
            if options.is_json
            else NodeConsole(Console(highlight=False, soft_wrap=True), names)
        )
        options.log.set_facts({"node": config.name})
        if config.log.format == "json":
            shown = Watchers([shown, NodeLog()])
        hello = _hello(config, names, spool, bundle)
        uplink = Uplink(context, named_keys[1] if named_keys else None)
        opened.callback(uplink.close)
        if bundle is None:
            bundle = _first_bundle(config, hello, uplink, options, shown)
            if bundle is None:
                return EXIT_OK
            _check_choices(bundle, config)
            hello = replace(hello, bundle_ids=tuple(dict.fromkeys([bundle.bundle_id, *hello.bundle_ids])))
        probe = Uplink(context, named_keys[1] if named_keys else None)
        opened.callback(probe.close)
        node = _stream(config, options, bundle, cameras, spool, hello, uplink, probe, shown)
    shown.ended(summary(node))
    return EXIT_OK


def _stream(
    config: NodeConfig,
    options: RunOptions,
    bundle: Bundle,
    cameras: Sequence[Camera],
    spool: Spool | None,
    hello: Hello,
    uplink: Uplink,
    probe: Uplink,
    shown: Shown,
) -> EdgeNode:
    """Join the parts and run; returns the node as it ended."""
    level16 = choose_level16(bundle, config.codec.rate)
    encoder = Encoder(bundle, config.codec.threads)
    warm_up(bundle.tables.values(), decoding=False)
    names = [entry.name for entry in hello.cameras]
    exporter, health = _exporter(config, options, bundle, names), Health()
    reminder = node_reminder(config)
    reminder.look()
    exporter.set("rac_node_insecure", float(reminder.is_insecure))

    def every_second() -> None:
        options.log.flush_repeats()
        reminder.look()

    metrics = NodeMetrics(exporter, health, version(), len(config.cloud.endpoints), every_second=every_second)
    board = StatusBoard()
    status = NodeStatus(board, _page_facts(config), names, config.cloud.endpoints)
    provider = open_provider("rac-node", config.name, config.tracing.endpoint)
    tracing = None if provider is None else NodeTracing(provider, config.name, config.tracing.every, wall_offset_ns())
    watcher: EdgeWatcher = Watchers([shown, metrics, status, *([] if tracing is None else [tracing])])
    session = NodeSession(_session_settings(config, hello), random.random)

    def time_depths(own: Encoder, level16: int, frame: Frame | None) -> PreparedBundle:
        controller, start = _calibrate(frame, own, level16, config, server.url)
        shown.started(start)
        return PreparedBundle(own.bundle, own, level16, controller)

    def calibrate(frame: Frame | None) -> DepthController:
        prepared = time_depths(encoder, level16, frame)
        if updates is not None:
            updates.started(prepared)
        return prepared.controller

    def prepare(other: Bundle) -> PreparedBundle:
        _check_choices(other, config)
        own = Encoder(other, config.codec.threads)
        warm_up(other.tables.values(), decoding=False)
        return time_depths(own, choose_level16(other, config.codec.rate), made_up_frame())

    node = EdgeNode(
        readers=[
            CameraReader(
                camera.name,
                camera.source,
                _capture_options(config, own),
                random.random,
                0 if spool is None else spool.first_sequence,
            )
            for camera, own in zip(cameras, config.cameras, strict=True)
        ],
        session=session,
        uplink=uplink,
        encoder=encoder,
        calibrate=calibrate,
        options=_edge_options(config, level16),
        watcher=watcher,
        spool=spool,
        trace=None if tracing is None else tracing.begin,
    )
    updates = None
    if config.codec.bundle == AUTO_BUNDLE:
        updates = BundleUpdates(
            session,
            hello,
            _bundle_cache(config),
            bundle,
            prepare,
            lambda ready: node.use(ready.encoder, ready.level16, ready.controller),
            watcher.bundle_changed,
        )
        node.companions.append(updates)
    if len(config.cloud.endpoints) > 1:
        interval_ns = round(config.link.return_s * NS_PER_S)
        node.companions.append(Returning(session, probe, config.cloud.endpoints, interval_ns, time.monotonic_ns))
    metrics.attach(node)
    shown.attach(node)
    status.attach(node)
    options.stop.call_at_once(lambda: _kill_readers(node))
    server = start_metrics_server(
        exporter,
        health,
        config.metrics.host,
        config.metrics.port,
        may_move=not is_given(config, "metrics.port"),
        token=load_metrics_token(config),
        board=board,
    )
    try:
        node.run(options.stop, options.stop.fileno())
    finally:
        _kill_readers(node)
        server.close()
        if provider is not None:
            provider.shutdown()
    return node


def _page_facts(config: NodeConfig) -> dict[str, Any]:
    """What the status page says of the program itself."""
    return {
        "program": "rac-node",
        "name": config.name,
        "version": version(),
        "wire_note": "frames and results",
        "hint": "Every camera of the configuration is shown once it is there.",
    }


def _first_bundle(config: NodeConfig, hello: Hello, uplink: Uplink, options: RunOptions, shown: Shown) -> Bundle | None:
    """The bundle that worked last, or the cloud's; None when a stop was asked for meanwhile."""
    cache = _bundle_cache(config)
    known = cache.current()
    if known is not None:
        return known
    logger.info("no bundle yet: asking the cloud for one")
    session = NodeSession(_session_settings(config, replace(hello, bundle_ids=())), random.random)
    bootstrap = Bootstrap(session, uplink, cache, shown.bundle_changed, shown.link_changed)
    return bootstrap.run(options.stop, options.stop.fileno())


def _bundle_cache(config: NodeConfig) -> BundleCache:
    return BundleCache(cache_root(), [bytes.fromhex(key) for key in config.bundle.trusted_keys])


def _check_choices(bundle: Bundle, config: NodeConfig) -> None:
    """Make sure that the configured depth and rate are in the bundle; raises ConfigError."""
    choose_level16(bundle, config.codec.rate)
    check_depth(bundle, config.codec.depth)


def open_spool(config: NodeConfig) -> Spool | None:
    """The spool that the configuration asks for, if any.

    Raises:
        ConfigError: its folder cannot be used.
    """
    if config.spool.folder is None:
        return None
    return Spool(Path(config.spool.folder), config.spool.mb * 2**20, lambda: secrets.token_bytes(16))


def _camera_names(cameras: Sequence[Camera], spool: Spool | None) -> list[str]:
    """The cameras in the order of their numbers; behind them those that an earlier run left frames of."""
    names = [camera.name for camera in cameras]
    recovered = [] if spool is None else [frame.camera for frame in spool.recovered]
    return names + sorted(set(recovered) - set(names))


def check_depth(bundle: Bundle, depth: int | str) -> None:
    """Make sure that a configured depth is in the bundle.

    Raises:
        ConfigError: it is not.
    """
    if depth != "auto" and depth not in bundle.manifest.depths:
        known = ", ".join(map(str, bundle.manifest.depths))
        raise ConfigError("command line", "codec.depth", f"{depth} is not in the bundle: {known}")


def choose_level16(bundle: Bundle, rate: float | str) -> int:
    """The level with tables that is nearest to the configured rate."""
    if rate == "auto":
        return bundle.default_level16
    if rate == "best":
        return max(bundle.manifest.levels16)
    highest = max(bundle.manifest.levels16) / 16
    if float(rate) > highest:
        raise ConfigError("command line", "codec.rate", f"{rate:g} is above the bundle's highest level, {highest:g}")
    return bundle.nearest_level16(float(rate))


def _calibrate(
    frame: Frame | None, encoder: Encoder, level16: int, config: NodeConfig, metrics_url: str
) -> tuple[DepthController, NodeStart]:
    """Time the depths and choose one."""
    costs = measure_depths(encoder, frame or made_up_frame(), level16)
    budget_ns = round(config.codec.budget_ms * NS_PER_MS)
    manual = None if config.codec.depth == "auto" else config.codec.depth
    controller = DepthController({cost.depth: cost.p90_ns for cost in costs}, budget_ns, manual_depth=manual)
    start = NodeStart(
        bundle=encoder.bundle,
        level16=level16,
        costs=tuple(costs),
        is_made_up=frame is None,
        budget_ns=budget_ns,
        depth=controller.decide(),
        metrics_url=metrics_url,
    )
    return controller, start


def _exporter(config: NodeConfig, options: RunOptions, bundle: Bundle, names: Sequence[str]) -> Exporter:
    """The exporter with what holds for the whole run."""
    exporter = Exporter("node", _known_labels(bundle, names, config), max_cameras=config.metrics.max_cameras)
    exporter.set("rac_node_reference_every_frames", config.accuracy.reference_every)
    options.log.set_counter(lambda level: exporter.add("rac_node_log_messages_total", level))
    return exporter


def _edge_options(config: NodeConfig, level16: int) -> EdgeOptions:
    return EdgeOptions(
        level16=level16,
        reference_every=config.accuracy.reference_every,
        drops_over_budget=config.codec.when_over_budget == "drop",
        result_timeout_ns=round(config.link.result_timeout_s * NS_PER_S),
        drain_ns=round(config.drain_s * NS_PER_S),
    )


def _known_labels(bundle: Bundle, names: Sequence[str], config: NodeConfig) -> dict[str, Sequence[object]]:
    return {
        "camera": names,
        "endpoint": range(len(config.cloud.endpoints)),
        "depth": bundle.manifest.depths,
        "level": range(max(bundle.manifest.levels16) // 16 + 1),
    }


def _hello(config: NodeConfig, names: Sequence[str], spool: Spool | None, bundle: Bundle | None) -> Hello:
    """What the node says of itself; its own bundle goes before those that frames in the spool are coded with."""
    bundle_ids = [] if bundle is None else [bundle.bundle_id]
    bundle_ids += [] if spool is None else [frame.bundle_id for frame in spool.recovered]
    return Hello(
        minor=WIRE_MINOR,
        node=config.name,
        boot_id=secrets.token_bytes(16) if spool is None else spool.boot_id,
        bundle_ids=tuple(dict.fromkeys(bundle_ids))[: MAX_BUNDLES - 1],
        cameras=tuple(CameraEntry(number, name) for number, name in enumerate(names)),
        capabilities=(BUNDLE_DELIVERY,) if config.codec.bundle == AUTO_BUNDLE else (),
    )


def _session_settings(config: NodeConfig, hello: Hello) -> NodeSettings:
    return NodeSettings(
        hello=hello,
        endpoints=config.cloud.endpoints,
        backoff_first_ns=round(config.link.reconnect_min_s * NS_PER_S),
        backoff_last_ns=round(config.link.reconnect_max_s * NS_PER_S),
        may_open=may_open(config),
    )


def _capture_options(config: NodeConfig, own: CameraConfig) -> CaptureOptions:
    """A camera's own settings before those of all cameras."""
    capture = config.capture
    view = ViewOptions(fit=own.fit or capture.fit)
    if own.roi is not None:
        view = replace(view, roi=Roi(*own.roi))
    return CaptureOptions(
        fps=own.fps if own.fps is not None else capture.fps,
        loop=own.loop if own.loop is not None else capture.loop,
        read_timeout_s=capture.read_timeout_s,
        open_timeout_s=capture.open_timeout_s,
        view=view,
    )


def _kill_readers(node: EdgeNode) -> None:
    """No reader outlives the node, not even one that failed or was stopped at once."""
    for lane in node.lanes:
        lane.reader.kill()
