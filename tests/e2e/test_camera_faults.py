"""A camera disappears and comes back: the node says so, opens it again, and its other cameras go on meanwhile."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from tests.cameras import StreamCamera
from tests.e2e.balance import RECOVERIES, Watched, check_pages
from tests.e2e.conftest import Start
from tests.e2e.programs import Program

pytest.importorskip("skimage", reason="photographs are missing: pip install 'edge-cloud-rac[demo]'")

READ_TIMEOUT_S = 1.0
ENDS = {"superseded", "no_credit", "link_down", "rate_limit", "stale", "shutdown"}


@pytest.fixture
def camera() -> Iterator[StreamCamera]:
    with StreamCamera() as made:
        yield made


def stream(start: Start, cloud: Program, source: str, *arguments: str) -> Program:
    """A node with this camera, `gate`, and one that never fails, whose results are coming."""
    words = ["--camera", f"gate={source}", "--camera", "sound=test:?fps=10", *arguments]
    endpoint = cloud.get("start")[0]["endpoint"]
    timeouts = {"RAC_CAPTURE__READ_TIMEOUT_S": str(READ_TIMEOUT_S), "RAC_CAPTURE__OPEN_TIMEOUT_S": "5"}
    node = start("rac-node", *words, "--cloud", endpoint, "--metrics-port", "0", **timeouts)
    for name in ("gate", "sound"):
        node.wait_event("result", 5, camera=name)
    return node


def check_end(node: Program, watched: Watched) -> None:
    watched.check_growth()
    check_pages([node], [])
    assert set(node.end()["dropped"]) <= ENDS


@pytest.mark.parametrize("fault", ["stall", "disappear"])
def test_network_camera_that_fails_comes_back_by_itself(
    cloud: Program, start: Start, camera: StreamCamera, fault: str
) -> None:
    node = stream(start, cloud, camera.url)
    watched = Watched(cloud, node)
    # On a busy machine a picture may have been late before.
    before = len(node.get("camera", camera="gate", state="down"))
    began_s = time.monotonic()
    camera.stall() if fault == "stall" else camera.disappear()
    down = node.wait_event("camera", before + 1, camera="gate", state="down")
    RECOVERIES.note(
        f"camera: {fault}, noticed", time.monotonic() - began_s, f"capture.read_timeout_s {READ_TIMEOUT_S:g}"
    )
    assert down["reason"] == ("read_timeout" if fault == "stall" else "end_of_stream")
    node.wait_metrics(lambda found: found["rac_node_camera_up", "gate"] == 0)
    # While it is away it is tried again and again, and the other one goes on.
    node.wait_event("camera", before + 2, camera="gate", state="down")
    node.wait_more("result", 5, camera="sound")
    ended_s = time.monotonic()
    camera.come_back()
    RECOVERIES.until_result(f"camera: back after {fault}", node, ended_s, camera="gate")
    node.wait_metrics(lambda found: found["rac_node_camera_up", "gate"] == 1)
    node.wait_more("result", 5, camera="gate")
    check_end(node, watched)


def write_clip(path: Path) -> None:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 20.0, (320, 240))
    if not writer.isOpened():
        pytest.skip("this OpenCV writes no video")
    for number in range(20):
        writer.write(np.full((240, 320, 3), 10 * number, np.uint8))
    writer.release()


def test_file_that_is_truncated_and_written_again(cloud: Program, start: Start, tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    write_clip(path)
    content = path.read_bytes()
    node = stream(start, cloud, str(path), "--loop")
    watched = Watched(cloud, node)
    path.write_bytes(content[: len(content) // 2])
    node.wait_event("camera", 2, camera="gate", state="down")
    node.wait_more("result", 5, camera="sound")
    ended_s = time.monotonic()
    path.write_bytes(content)
    RECOVERIES.until_result("file truncated, then whole again", node, ended_s, camera="gate")
    node.wait_more("result", 20, camera="gate")
    check_end(node, watched)
