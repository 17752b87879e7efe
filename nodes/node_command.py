"""`rac-node`: join the parts that the configuration asks for, run, say how it ended."""

from __future__ import annotations

import random
import secrets
import sys
from collections.abc import Sequence
from dataclasses import replace

import zmq
from rich.console import Console

from nodes.bundles import load_configured
from nodes.calibration import DepthCost, made_up_frame, measure_depths
from nodes.capture import CameraReader
from nodes.capture_link import CaptureOptions
from nodes.cli import version
from nodes.edge import EdgeNode, EdgeOptions, EdgeWatcher, summary
from nodes.exporter import Exporter
from nodes.lifecycle import EXIT_OK, RunOptions
from nodes.metrics_server import Health, start_metrics_server
from nodes.node_console import NodeConsole, depth_table, print_summary
from nodes.node_json import NodeJson
from nodes.node_metrics import NodeMetrics
from nodes.sources import Camera, parse_cameras
from nodes.uplink import Uplink
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
from pipeline.wire import WIRE_MINOR, CameraEntry, Hello

NS_PER_MS = 1_000_000
NS_PER_S = 1_000_000_000


def run(config: NodeConfig, options: RunOptions) -> int:
    """Entry of the command; returns the exit code."""
    bundle = load_configured(config.codec.bundle, "configuration", "codec.bundle")
    level16 = choose_level16(bundle, config.codec.rate)
    cameras = parse_cameras([camera.argument for camera in config.cameras])
    encoder = Encoder(bundle, config.codec.threads)
    warm_up(bundle.tables.values(), decoding=False)
    if config.codec.depth != "auto" and config.codec.depth not in bundle.manifest.depths:
        known = ", ".join(map(str, bundle.manifest.depths))
        raise ConfigError("command line", "codec.depth", f"{config.codec.depth} is not in the bundle: {known}")
    # Results go to standard output; where nobody reads them there, the console still has the terminal's width.
    console = Console(file=sys.stderr if options.is_json else sys.stdout, highlight=False, soft_wrap=True)
    exporter = Exporter("node", _known_labels(bundle, cameras, config), max_cameras=config.metrics.max_cameras)
    health = Health()
    metrics = NodeMetrics(
        exporter, health, version(), len(config.cloud.endpoints), every_second=options.log.flush_repeats
    )
    exporter.inform("rac_node_bundle_info", bundle.short_id, bundle.manifest.classifier)
    exporter.set("rac_node_reference_every_frames", config.accuracy.reference_every)
    options.log.set_counter(lambda level: exporter.add("rac_node_log_messages_total", level))
    machine = NodeJson(lambda line: print(line, flush=True))
    lines = NodeConsole(console, [camera.name for camera in cameras])
    shown: EdgeWatcher = machine if options.is_json else lines

    def calibrate(frame: Frame | None) -> DepthController:
        controller, costs = _calibrate(frame, encoder, level16, config, console)
        if options.is_json:
            machine.emit(
                "start",
                bundle=bundle.short_id,
                level=level16 / 16,
                budget_ms=config.codec.budget_ms,
                depth=controller.decide(),
                costs=[{"depth": c.depth, "median_ms": c.median_ns / 1e6, "p90_ms": c.p90_ns / 1e6} for c in costs],
                metrics=server.url,
            )
        else:
            console.print(depth_table(costs, bundle, level16, controller.budget_ns, controller.decide()))
        return controller

    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    node = EdgeNode(
        readers=[
            CameraReader(camera.name, camera.source, _capture_options(config, own), random.random)
            for camera, own in zip(cameras, config.cameras, strict=True)
        ],
        session=NodeSession(_session_settings(config, bundle, cameras), random.random),
        uplink=Uplink(context),
        encoder=encoder,
        calibrate=calibrate,
        options=EdgeOptions(
            level16=level16,
            reference_every=config.accuracy.reference_every,
            drops_over_budget=config.codec.when_over_budget == "drop",
            result_timeout_ns=round(config.link.result_timeout_s * NS_PER_S),
            drain_ns=round(config.drain_s * NS_PER_S),
        ),
        watcher=Watchers([shown, metrics]),
    )
    metrics.attach(node)
    lines.attach(node)
    options.stop.call_at_once(lambda: _kill_readers(node))
    server = start_metrics_server(
        exporter,
        health,
        config.metrics.host,
        config.metrics.port,
        may_move=not is_given(config, "metrics.port"),
    )
    try:
        node.run(options.stop, options.stop.fileno())
    finally:
        _kill_readers(node)
        server.close()
        node.uplink.close()
        context.term()
    figures = summary(node)
    if options.is_json:
        machine.emit("summary", **figures)
    else:
        print_summary(console, figures)
    return EXIT_OK


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
    frame: Frame | None,
    encoder: Encoder,
    level16: int,
    config: NodeConfig,
    console: Console,
) -> tuple[DepthController, list[DepthCost]]:
    """Time the depths and choose; what is unusual is said."""
    if frame is None:
        console.print("no camera gave a frame yet: depths are timed on a made-up picture")
    costs = measure_depths(encoder, frame or made_up_frame(), level16)
    budget_ns = round(config.codec.budget_ms * NS_PER_MS)
    manual = None if config.codec.depth == "auto" else config.codec.depth
    controller = DepthController({cost.depth: cost.p90_ns for cost in costs}, budget_ns, manual_depth=manual)
    if controller.take_warning():
        console.print(
            f"[yellow]not even depth {controller.decide()} fits {config.codec.budget_ms:g} ms here: "
            f"frames are {'dropped' if config.codec.when_over_budget == 'drop' else 'sent'} over budget[/yellow]"
        )
    return controller, costs


def _known_labels(bundle: Bundle, cameras: Sequence[Camera], config: NodeConfig) -> dict[str, Sequence[object]]:
    return {
        "camera": [camera.name for camera in cameras],
        "endpoint": range(len(config.cloud.endpoints)),
        "depth": bundle.manifest.depths,
        "level": range(max(bundle.manifest.levels16) // 16 + 1),
    }


def _session_settings(config: NodeConfig, bundle: Bundle, cameras: Sequence[Camera]) -> NodeSettings:
    hello = Hello(
        minor=WIRE_MINOR,
        node=config.name,
        boot_id=secrets.token_bytes(16),
        bundle_ids=(bundle.bundle_id,),
        cameras=tuple(CameraEntry(number, camera.name) for number, camera in enumerate(cameras)),
    )
    return NodeSettings(
        hello=hello,
        endpoints=config.cloud.endpoints,
        backoff_first_ns=round(config.link.reconnect_min_s * NS_PER_S),
        backoff_last_ns=round(config.link.reconnect_max_s * NS_PER_S),
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
