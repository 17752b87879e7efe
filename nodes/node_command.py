"""`rac-node`: join the parts that the configuration asks for, run, say how it ended."""

from __future__ import annotations

import random
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import zmq
from rich.console import Console

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
from nodes.node_metrics import NodeMetrics
from nodes.node_summary import summary
from nodes.security import load_link_keys, may_open, node_reminder
from nodes.sources import Camera, parse_cameras
from nodes.spool import Spool
from nodes.uplink import Uplink
from nodes.version import version
from nodes.watchers import Watchers
from pipeline.bundle import Bundle
from pipeline.config import CameraConfig, NodeConfig
from pipeline.config_files import is_given
from pipeline.encoder import Encoder
from pipeline.entropy.rans import warm_up
from pipeline.errors import ConfigError
from pipeline.frames import Frame
from pipeline.rate_control import DepthController
from pipeline.session import NodeSession, NodeSettings
from pipeline.view import Roi, ViewOptions
from pipeline.wire import MAX_BUNDLES, WIRE_MINOR, CameraEntry, Hello

NS_PER_MS = 1_000_000
NS_PER_S = 1_000_000_000


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
    bundle = load_configured(config.codec.bundle, "configuration", "codec.bundle")
    level16 = choose_level16(bundle, config.codec.rate)
    check_depth(bundle, config.codec.depth)
    cameras = parse_cameras([camera.argument for camera in config.cameras])
    spool = open_spool(config)
    encoder = Encoder(bundle, config.codec.threads)
    warm_up(bundle.tables.values(), decoding=False)
    names = _camera_names(cameras, spool)
    exporter, health = _exporter(config, options, bundle, names), Health()
    reminder = node_reminder(config)
    reminder.look()
    exporter.set("rac_node_insecure", float(reminder.is_insecure))

    def every_second() -> None:
        options.log.flush_repeats()
        reminder.look()

    metrics = NodeMetrics(exporter, health, version(), len(config.cloud.endpoints), every_second=every_second)
    shown: Shown = (
        NodeJson(lambda line: print(line, flush=True))
        if options.is_json
        else NodeConsole(Console(highlight=False, soft_wrap=True), names)
    )

    def calibrate(frame: Frame | None) -> DepthController:
        controller, start = _calibrate(frame, encoder, level16, config, server.url)
        shown.started(start)
        return controller

    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
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
        session=NodeSession(_session_settings(config, bundle, names, spool), random.random),
        uplink=Uplink(context, named_keys[1] if named_keys else None),
        encoder=encoder,
        calibrate=calibrate,
        options=_edge_options(config, level16),
        watcher=Watchers([shown, metrics]),
        spool=spool,
    )
    metrics.attach(node)
    shown.attach(node)
    options.stop.call_at_once(lambda: _kill_readers(node))
    server = start_metrics_server(
        exporter,
        health,
        config.metrics.host,
        config.metrics.port,
        may_move=not is_given(config, "metrics.port"),
        token=config.metrics.token,
    )
    try:
        node.run(options.stop, options.stop.fileno())
    finally:
        _kill_readers(node)
        server.close()
        node.uplink.close()
        context.term()
        if spool is not None:
            spool.close()
    shown.ended(summary(node))
    return EXIT_OK


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
    exporter.inform("rac_node_bundle_info", bundle.short_id, bundle.manifest.classifier)
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


def _session_settings(config: NodeConfig, bundle: Bundle, names: Sequence[str], spool: Spool | None) -> NodeSettings:
    # What waits in the spool may be coded with an older bundle.
    spooled = () if spool is None else (frame.bundle_id for frame in spool.recovered)
    bundle_ids = tuple(dict.fromkeys([bundle.bundle_id, *spooled]))
    hello = Hello(
        minor=WIRE_MINOR,
        node=config.name,
        boot_id=secrets.token_bytes(16) if spool is None else spool.boot_id,
        bundle_ids=bundle_ids[:MAX_BUNDLES],
        cameras=tuple(CameraEntry(number, name) for number, name in enumerate(names)),
    )
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
