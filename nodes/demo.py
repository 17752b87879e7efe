"""`rac demo`: one cloud and some nodes on this machine, over real sockets, with a live table and a closing summary.

The demo starts the same programs that a user starts, reads the JSON lines that they print, and stops them as a user
does. Every frame carries its lossless reference, so that the uncompressed classifier judges the same frames.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from rich.console import Console
from rich.live import Live
from rich.table import Table

from nodes.bundles import load_configured
from nodes.lifecycle import EXIT_FAILURE, EXIT_OK, StopRequest
from nodes.node_summary import share
from nodes.scenes import PHOTOGRAPHS
from nodes.sources import find_photographs
from pipeline.errors import PipelineError
from pipeline.frames import VIEW_SIDE_PX

START_LIMIT_S = 180.0
"""The first start makes the cloud's graphs; on a small machine under load that takes a minute."""
STOP_LIMIT_S = 30.0
"""A program that has not ended by then is killed; on a small machine under load the drain and the exit take long."""
MIN_LABELLED = 50
"""Shares over fewer frames would say nothing."""
TABLE_EVERY_S = 0.25

_PROGRAMS = {"node": "node_main", "cloud": "cloud_main"}


@dataclass(slots=True)
class CameraFigures:
    """What one node has printed so far."""

    results: int = 0
    latencies_ms: list[float] = field(default_factory=list)
    depths: Counter[int] = field(default_factory=Counter)
    labelled: int = 0
    correct: int = 0
    reference_correct: int = 0
    references: int = 0
    agreements: int = 0
    last: dict[str, Any] = field(default_factory=dict)
    first_result_s: float | None = None
    summary: dict[str, Any] | None = None

    def take(self, event: dict[str, Any], now_s: float) -> None:
        """Take one line of the node."""
        if event["event"] == "summary":
            self.summary = event
        if event["event"] != "result":
            return
        self.results += 1
        self.first_result_s = self.first_result_s or now_s
        self.last = event
        self.latencies_ms.append(event["latency_ms"])
        self.depths[event["depth"]] += 1
        best, label, reference = event["classes"][0]["index"], event["label"], event["reference_top1"]
        if reference is not None:
            self.references += 1
            self.agreements += best == reference
        if label is not None and reference is not None:
            self.labelled += 1
            self.correct += best == label
            self.reference_correct += reference == label


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a child; `text` is None when its output ended."""

    source: int
    text: str | None


CLOUD = -1


def run(args: argparse.Namespace) -> int:
    """Entry of the sub-command; returns the exit code.

    Args:
        args: seconds, cameras, workers, bundle, budget_ms, json.
    """
    find_photographs()
    load_configured(args.bundle, "command line", "--bundle")
    console = Console(stderr=args.json, highlight=False)
    cameras = [CameraFigures() for _ in range(args.cameras)]
    with StopRequest() as stop, ExitStack() as children:
        running: list[subprocess.Popen[str]] = []
        stop.call_at_once(lambda: _kill_groups(running))
        lines: queue.Queue[Line] = queue.Queue()
        console.print(f"starting a cloud with {args.workers} workers; the first start takes a while")
        cloud = children.enter_context(_child("cloud", CLOUD, lines, _cloud_arguments(args), running))
        started = _await_ready(cloud, lines, stop)
        if started is None:
            return EXIT_OK
        console.print(f"the cloud's page: {started['page']}")
        endpoint = str(started["endpoint"])
        nodes = [
            children.enter_context(_child("node", number, lines, _node_arguments(args, number, endpoint), running))
            for number in range(args.cameras)
        ]
        seconds = _watch(args, cameras, lines, nodes, cloud, stop, console)
        for node in nodes:
            node.send_signal(signal.SIGINT)
        _collect(lines, cameras, nodes)
        is_stopped = stop()
    missing = [number for number, figures in enumerate(cameras) if figures.summary is None]
    if missing:
        raise PipelineError(f"node {missing[0]} of the demo ended without a summary")
    figures = closing_figures(cameras, seconds)
    if args.json:
        print(json.dumps(figures))
    else:
        _print_closing(console, figures)
    return EXIT_OK if figures["results"] or is_stopped else EXIT_FAILURE


def closing_figures(cameras: list[CameraFigures], seconds: float) -> dict[str, Any]:
    """The demo's last line: totals of all nodes; shares are 0..1, null over fewer than 50 labelled frames."""
    summaries = [figures.summary or {} for figures in cameras]
    dropped: Counter[str] = Counter()
    for entry in summaries:
        dropped.update(entry["dropped"])
    sent = sum(
        round((entry["bytes_per_frame"] or 0) * figures.results)
        for entry, figures in zip(summaries, cameras, strict=True)
    )
    results = sum(entry["results"] for entry in summaries)
    latencies = [latency for figures in cameras for latency in figures.latencies_ms]
    labelled = sum(figures.labelled for figures in cameras)
    references = sum(figures.references for figures in cameras)
    depths = sum((figures.depths for figures in cameras), Counter[int]())
    bytes_per_frame = share(sent, results)

    def over(part: int, whole: int) -> float | None:
        return part / whole if whole >= MIN_LABELLED else None

    return {
        "seconds": round(seconds, 2),
        "cameras": len(cameras),
        "captured": sum(entry["captured"] for entry in summaries),
        "results": results,
        "dropped": dict(sorted(dropped.items())),
        "in_flight": sum(entry["in_flight"] for entry in summaries),
        "labelled": labelled,
        "top1": over(sum(figures.correct for figures in cameras), labelled),
        "reference_top1": over(sum(figures.reference_correct for figures in cameras), labelled),
        "agreement": over(sum(figures.agreements for figures in cameras), references),
        "references": references,
        "pictures": len({photograph.file for photograph in PHOTOGRAPHS}),
        "bytes_per_frame": bytes_per_frame,
        "bits_per_pixel": None if bytes_per_frame is None else 8 * bytes_per_frame / VIEW_SIDE_PX**2,
        "e2e_ms_p50": round(float(np.percentile(latencies, 50)), 2) if latencies else None,
        "e2e_ms_p99": round(float(np.percentile(latencies, 99)), 2) if latencies else None,
        "depth": depths.most_common(1)[0][0] if depths else None,
    }


def _cloud_arguments(args: argparse.Namespace) -> list[str]:
    return [
        "--bind",
        "tcp://127.0.0.1:0",
        "--workers",
        str(args.workers),
        "--bundle",
        args.bundle,
        "--metrics-port",
        "0",
    ]


def _node_arguments(args: argparse.Namespace, number: int, endpoint: str) -> list[str]:
    camera = f"camera{number}=test:?seed={number}"
    node = ["--name", f"demo-{number}", "--camera", camera, "--cloud", endpoint, "--metrics-port", "0"]
    return [*node, "--bundle", args.bundle, "--budget-ms", str(args.budget_ms), "--reference-every", "1"]


@contextmanager
def _child(
    program: str,
    number: int,
    lines: queue.Queue[Line],
    arguments: list[str],
    running: list[subprocess.Popen[str]],
) -> Iterator[subprocess.Popen[str]]:
    """One of our programs as a process of its own group; gone when the context ends, whatever happened."""
    # Our own search path: the child shall find the same packages, and nothing of the same name in this folder.
    find = f"import sys; sys.path[:] = {sys.path!r}"
    start = f"from nodes.cli import {_PROGRAMS[program]} as main; sys.exit(main())"
    process = subprocess.Popen(
        [sys.executable, "-c", f"{find}; {start}", *arguments, "--json", "--log-level", "warning"],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C reaches the demo alone, which stops its children in order
    )
    running.append(process)
    reader = threading.Thread(target=_read_lines, args=(process, number, lines), daemon=True)
    reader.start()
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(STOP_LIMIT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        reader.join()
        assert process.stdout is not None
        process.stdout.close()


def _read_lines(process: subprocess.Popen[str], number: int, lines: queue.Queue[Line]) -> None:
    assert process.stdout is not None
    for text in process.stdout:
        lines.put(Line(number, text))
    lines.put(Line(number, None))


def _kill_groups(running: Sequence[subprocess.Popen[str]]) -> None:
    """At the second signal: programs and their own children."""
    for process in running:
        if process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def _await_ready(cloud: subprocess.Popen[str], lines: queue.Queue[Line], stop: StopRequest) -> dict[str, Any] | None:
    """What the cloud said of its start, once a worker can serve; None when a stop was asked for."""
    deadline_s = time.monotonic() + START_LIMIT_S
    started: dict[str, Any] = {}
    while not stop() and time.monotonic() < deadline_s:
        line = _next_line(lines)
        if line is None:
            continue
        if line.text is None:
            raise PipelineError(f"the cloud of the demo ended at once, with exit code {cloud.wait()}")
        event = json.loads(line.text)
        if event["event"] == "start":
            started = event
        elif event["event"] == "ready":
            return started
    if stop():
        return None
    raise PipelineError(f"the cloud of the demo did not start within {START_LIMIT_S:g} s")


def _next_line(lines: queue.Queue[Line]) -> Line | None:
    try:
        return lines.get(timeout=TABLE_EVERY_S)
    except queue.Empty:
        return None


def _watch(
    args: argparse.Namespace,
    cameras: list[CameraFigures],
    lines: queue.Queue[Line],
    nodes: list[subprocess.Popen[str]],
    cloud: subprocess.Popen[str],
    stop: StopRequest,
    console: Console,
) -> float:
    """Show what comes until the time is up; returns the seconds since every camera had its first result."""
    begun_s: float | None = None
    limit_s = time.monotonic() + START_LIMIT_S
    with Live(console=console, refresh_per_second=4, transient=False) as live:
        while not stop():
            line = _next_line(lines)
            now_s = time.monotonic()
            if line is not None:
                if line.text is None:
                    child = cloud if line.source == CLOUD else nodes[line.source]
                    raise PipelineError(f"a program of the demo ended early, with exit code {child.wait()}")
                if line.source != CLOUD:
                    cameras[line.source].take(json.loads(line.text), now_s)
            if begun_s is None and all(figures.first_result_s for figures in cameras):
                begun_s = now_s
            elapsed_s = 0.0 if begun_s is None else now_s - begun_s
            live.update(_table(cameras, elapsed_s, args.seconds))
            if elapsed_s >= args.seconds:
                return elapsed_s
            if begun_s is None and now_s > limit_s:
                raise PipelineError(f"not every camera had a result within {START_LIMIT_S:g} s")
    return 0.0 if begun_s is None else time.monotonic() - begun_s


def _collect(lines: queue.Queue[Line], cameras: list[CameraFigures], nodes: list[subprocess.Popen[str]]) -> None:
    """Take what the nodes still print until each has ended."""
    open_nodes = set(range(len(nodes)))
    deadline_s = time.monotonic() + STOP_LIMIT_S
    while open_nodes and time.monotonic() < deadline_s:
        line = _next_line(lines)
        if line is None or line.source == CLOUD:
            continue
        if line.text is None:
            open_nodes.discard(line.source)
        else:
            cameras[line.source].take(json.loads(line.text), time.monotonic())


def _table(cameras: list[CameraFigures], elapsed_s: float, seconds: float) -> Table:
    table = Table(title=f"{elapsed_s:.0f} of {seconds:g} s" if elapsed_s else "waiting for the first results")
    for heading in (
        "camera",
        "class",
        "p",
        "original",
        "depth",
        "bytes",
        "ms",
        "results",
    ):
        table.add_column(heading, justify="left" if heading in ("camera", "class") else "right")
    for number, figures in enumerate(cameras):
        last = figures.last
        if not last:
            table.add_row(f"camera{number}", "-")
            continue
        best = last["classes"][0]
        table.add_row(
            f"camera{number}",
            best["name"].replace("_", " "),
            f"{best['probability']:.2f}",
            "the same" if last["reference_top1"] == best["index"] else "another class",
            str(last["depth"]),
            str(last["bytes"]),
            f"{last['latency_ms']:.1f}",
            str(figures.results),
        )
    return table


def _print_closing(console: Console, figures: dict[str, Any]) -> None:
    if not console.is_terminal:
        console.print()  # in a file the table's last line is left open
    dropped = figures["dropped"]
    reasons = ", ".join(f"{reason} {count}" for reason, count in dropped.items()) or "none"
    console.print(
        f"captured {figures['captured']} = results {figures['results']} + dropped {sum(dropped.values())} ({reasons})"
        f" + in flight {figures['in_flight']}"
    )
    if figures["bytes_per_frame"] is not None:
        console.print(
            f"{figures['bytes_per_frame']:.0f} bytes a frame, {figures['bits_per_pixel']:.3f} bits a pixel; "
            f"capture to result {figures['e2e_ms_p50']} ms (median), {figures['e2e_ms_p99']} ms (p99)"
        )
    if figures["agreement"] is not None:
        console.print(
            f"agrees with the uncompressed classifier on {figures['agreement']:.1%} of {figures['references']} frames"
        )
    if figures["top1"] is not None:
        console.print(
            f"right on {figures['top1']:.1%} of {figures['labelled']} labelled frames, "
            f"the uncompressed classifier on {figures['reference_top1']:.1%}"
        )
    console.print(f"views over {figures['pictures']} photographs: a demonstration, no benchmark")
