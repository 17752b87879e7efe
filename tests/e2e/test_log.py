"""`--log-format json` over a real run: every change of state is one line, and no frame is."""

from __future__ import annotations

import json
import os
import signal
from typing import Any

from tests.e2e.conftest import Start, start_cloud
from tests.e2e.programs import Program


def events(program: Program) -> list[dict[str, Any]]:
    """Every line of the log that is whole; anything but JSON fails."""
    text = program.errors
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def wait_logged(program: Program, event: str, **facts: object) -> dict[str, Any]:
    """Wait for an event of the log with these facts; return the first."""

    def found() -> list[dict[str, Any]]:
        return [line for line in events(program) if line.get("event") == event and facts.items() <= line.items()]

    program.wait_for(lambda: bool(found()), f"{event} {facts}")
    return found()[0]


def test_every_change_is_one_event(start: Start) -> None:
    cloud = start_cloud(start, "--log-format", "json")
    endpoint = cloud.get("start")[0]["endpoint"]
    cameras = ("--camera", "door=test:?seed=1&fps=8", "--camera", "yard=test:?seed=2&fps=8")
    node = start(
        "rac-node", "--name", "dock", *cameras, "--cloud", endpoint, "--metrics-port", "0", "--log-format", "json"
    )
    for camera in ("door", "yard"):
        node.wait_event("result", 20, camera=camera)
    assert wait_logged(cloud, "cloud_started")["endpoint"] == endpoint
    for number in range(2):
        wait_logged(cloud, "worker_ready", worker=number)
    wait_logged(cloud, "ready")
    assert wait_logged(cloud, "session_opened")["node"] == "dock"
    wait_logged(node, "link_up", node="dock")
    wait_logged(node, "node_started")
    up = wait_logged(node, "camera_up", camera="door")
    assert up["width"] > 0

    os.kill(node.workers()[0], signal.SIGKILL)
    down = wait_logged(node, "camera_down")
    assert down["reason"] == "crashed"
    assert down["sequence"] > 0
    assert down["level"] == "warning"

    workers = cloud.workers()
    for pid in workers:
        os.kill(pid, signal.SIGKILL)
    lost = [wait_logged(cloud, "worker_lost", worker=number) for number in range(len(workers))]
    assert {(line["reason"], line["exit_code"]) for line in lost} == {("crash", -signal.SIGKILL)}
    wait_logged(cloud, "not_ready", level="warning")

    cloud.send_signal(signal.SIGKILL, group=True)
    # Silence, or a frame that met a broken connection before that: whichever the node notices first.
    assert wait_logged(node, "link_down", was_up=True)["reason"] in ("heartbeat", "closed")
    began = wait_logged(node, "drops_began", reason="link_down")
    assert began["camera"] in ("door", "yard")
    assert began["sequence"] >= 0
    wait_logged(node, "not_ready")

    node.end()
    stopped = wait_logged(node, "node_stopped")
    summary = node.get("summary")[0]
    assert (stopped["captured"], stopped["results"]) == (summary["captured"], summary["results"])
    told = [line for line in events(node) if "event" in line]
    assert len(told) < 40 < summary["captured"], "changes, not frames"
    assert all(line["node"] == "dock" for line in told)
    times = [line["time"] for line in events(node)]
    assert times == sorted(times)
