"""The whole way with real processes, sockets and pictures: what a user does, and what a bad day does to it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import cv2
import numpy as np
import pytest
import zmq

from nodes.lifecycle import EXIT_USAGE
from nodes.sources import find_photographs
from pipeline.bitstream import Bitstream, pack_bitstream
from pipeline.bundle import load_bundle, seal_bundle
from pipeline.entropy.rans import encode_symbols
from pipeline.wire import Bye, CameraEntry, FrameMessage, Hello, Reject, RejectCode, Result, Welcome, pack, parse
from tests.e2e.balance import wait_until
from tests.e2e.conftest import PATIENT, START_WITH, Start, start_cloud
from tests.e2e.programs import (
    PATIENCE_S,
    ROOT,
    Event,
    Program,
    Series,
    command,
    environment,
    node_metrics_balance,
    run,
    sum_of,
)

pytest.importorskip("skimage", reason="photographs are missing: pip install 'edge-cloud-rac[demo]'")
pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes in /proc")

# What may become of a frame of a live camera when nothing is wrong and the node waits for what is on its way.
ORDINARY = {"superseded", "no_credit", "link_down", "rate_limit"}
# So long a node waits that stops; by default for a second, which may be too short on a busy machine.
LONG_DRAIN_S = "50"


def node_arguments(cloud: Program, *cameras: str) -> list[str]:
    """Arguments of a node of this cloud."""
    named = [word for camera in cameras for word in ("--camera", camera)]
    return [*named, "--cloud", cloud.get("start")[0]["endpoint"], "--metrics-port", "0"]


def restarts(found: Mapping[Series, float], reason: str) -> float:
    return found["rac_cloud_worker_restarts_total", reason]


def referenced(node: Program) -> list[Event]:
    """Results of coffee that came with the uncompressed classifier's word."""
    return [line for line in node.get("result", label=967) if line["reference_top1"] is not None]


def test_two_nodes_get_classes_and_both_ends_agree_on_every_frame(start: Start) -> None:
    cloud = start_cloud(start)
    nodes = [
        start(
            "rac-node",
            *node_arguments(cloud, f"cam{number}=test:?seed={4 * number}&fps=15"),
            "--name",
            f"node{number}",
            "--reference-every",
            "3",
            RAC_DRAIN_S=LONG_DRAIN_S,
        )
        for number in range(2)
    ]
    for node in nodes:
        node.wait_event("result", 40)
    for node in nodes:
        # The photographs go round while a slow machine still starts: the coffee is first or comes again.
        node.wait_for(lambda node=node: bool(referenced(node)), "coffee with a reference")  # type: ignore[misc]
        first = node.get("result")[0]
        assert len(first["classes"]) == 5
        assert first["classes"][0]["name"]
        assert 0 < first["bytes"] < 20_000
        assert 0 < first["latency_ms"] < 60_000
        # The uncompressed classifier names it in every view.
        assert {line["reference_top1"] for line in referenced(node)} == {967}
    assert [program.loaded("libtorch") for program in (cloud, *nodes)] == [[], [], []]

    scrapes = [node.wait_metrics(lambda found: sum_of(found, "rac_node_results_total") > 30) for node in nodes]
    summaries = [node.end() for node in nodes]
    for scraped, summary in zip(scrapes, summaries, strict=True):
        assert node_metrics_balance(scraped)
        assert sum_of(scraped, "rac_node_frames_captured_total") <= summary["captured"]
        assert sum_of(scraped, "rac_node_results_total") <= summary["results"] + summary["late"]
        assert set(summary["dropped"]) <= ORDINARY
        assert summary["in_flight"] == 0
        assert summary["references"] >= summary["results"] // 3
        assert summary["bits_per_pixel"] == pytest.approx(8 * summary["bytes_per_frame"] / 224**2)

    results = sum(summary["results"] for summary in summaries)
    found = cloud.wait_metrics(lambda found: found["rac_cloud_results_total", "ok"] == results)
    labelled = sum(summary["labelled"] for summary in summaries)
    references = sum(summary["references"] for summary in summaries)
    agreements = sum(round(summary["agreement"] * summary["references"]) for summary in summaries)
    assert labelled > 0
    assert sum_of(found, "rac_cloud_labelled_frames_total") == labelled
    assert sum_of(found, "rac_cloud_camera_labelled_total") == labelled
    assert sum_of(found, "rac_cloud_reference_frames_total") == references
    assert sum_of(found, "rac_cloud_reference_agreements_total") == agreements
    assert sum_of(found, "rac_cloud_camera_agreements_total") == agreements
    assert found["rac_cloud_in_flight_frames",] == 0
    assert sum_of(found, "rac_cloud_frames_received_total") == results
    summary = cloud.end()
    assert summary["received"] == results
    assert summary["results"] == {"ok": results}


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A labelled folder: parts of two photographs whose classes the uncompressed classifier always finds."""
    source, folder = find_photographs(), tmp_path / "photos"
    for name, label in (("coffee.png", 967), ("camera.png", 872)):
        (folder / str(label)).mkdir(parents=True)
        picture = cv2.imread(str(source / name))
        assert picture is not None
        side = min(picture.shape[:2])
        for number in range(6):
            cut = picture[: side - 4 * number, : side - 4 * number]
            assert cv2.imwrite(str(folder / str(label) / f"{number}.png"), cut)
    return folder


def test_labelled_folder_runs_to_its_end_and_every_picture_is_answered(
    cloud: Program, start: Start, photos: Path
) -> None:
    node = start("rac-node", *node_arguments(cloud, str(photos)), "--fps", "max", "--reference-every", "1")
    summary = node.check_end()
    assert summary["captured"] == summary["results"] == summary["labelled"] == summary["references"] == 12
    assert summary["dropped"] == {}
    results = node.get("result")
    assert sorted(line["label"] for line in results) == [872] * 6 + [967] * 6
    assert all(line["reference_top1"] == line["label"] for line in results)
    assert node.get("camera", state="finished")


def test_video_goes_round_and_round(cloud: Program, start: Start, tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), 10.0, (320, 240))
    if not writer.isOpened():
        pytest.skip("this OpenCV writes no video")
    for number in range(8):
        writer.write(np.full((240, 320, 3), 30 * number, np.uint8))
    writer.release()
    node = start("rac-node", *node_arguments(cloud, str(path)), "--fps", "max", "--loop")
    node.wait_event("result", 50)
    summary = node.end()
    # A file waits: nothing is lost but what the stop cuts off.
    assert set(summary["dropped"]) <= {"shutdown"}


def test_node_comes_back_by_itself_when_the_cloud_is_killed_and_started_again(start: Start) -> None:
    often = {"RAC_LINK__HEARTBEAT_S": "0.5", "RAC_LINK__PEER_TIMEOUT_S": "2"}
    first = start_cloud(start, **often)
    endpoint = first.get("start")[0]["endpoint"]
    node = start("rac-node", *node_arguments(first, "test:?fps=20"), RAC_LINK__RECONNECT_MAX_S="1")
    node.wait_event("result", 20)
    first.kill()
    node.wait_event("link", state="down")
    second = start("rac-cloud", "--bind", endpoint, "--metrics-port", "0", "--workers", "1", **PATIENT | often)
    node.wait_event("link", 2, state="up")
    node.wait_more("result", 20)
    found = node.wait_metrics(lambda found: sum_of(found, "rac_node_link_up") == 1)
    assert node_metrics_balance(found)
    summary = node.end()
    assert summary["dropped"].get("lost_in_link", 0) + summary["dropped"].get("link_down", 0) > 0
    assert set(summary["dropped"]) <= ORDINARY | {"lost_in_link", "stale", "shutdown"}
    second.end()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_node_and_cloud_in_order(start: Start, number: signal.Signals) -> None:
    """To the whole group, as Ctrl-C in a terminal and a service manager do."""
    cloud = start_cloud(start)
    nodes = [start("rac-node", *node_arguments(cloud, "test:?fps=20")) for _ in range(2)]
    for node in nodes:
        node.wait_event("result", 5)
    summary = nodes[0].end(number, group=True)
    assert summary["results"] >= 5
    # The other one streams on while its cloud stops.
    summary = cloud.end(number, group=True)
    assert set(summary["results"]) <= {"ok", "shutdown", "unroutable"}
    # By the cloud's goodbye; should that have got lost with the connection, by its silence.
    assert nodes[1].wait_event("link", state="down")["reason"] in ("closed", "heartbeat")
    nodes[1].end(number, group=True)


def test_results_on_standard_output_are_alone_there(start: Start, tmp_path: Path) -> None:
    """`rac-cloud --results - | jq .`: what people read goes to standard error."""
    errors, lines = tmp_path / "errors", tmp_path / "lines"
    words = command("rac-cloud", *START_WITH, "--results", "-")
    with lines.open("w") as out, errors.open("w") as err:
        cloud = subprocess.Popen(words, cwd=ROOT, env=environment(**PATIENT), stdout=out, stderr=err)
    try:
        wait_until(lambda: "ready: the first worker" in errors.read_text(), PATIENCE_S, "the cloud is ready")
        endpoint = errors.read_text().partition("listening on ")[2].partition(",")[0]
        cameras = ("--camera", "test:", "--cloud", endpoint, "--metrics-port", "0")
        node = start("rac-node", *cameras, RAC_LINK__RECONNECT_MAX_S="0.5", RAC_DRAIN_S=LONG_DRAIN_S)
        node.wait_event("result", 5)
        results = node.end()["results"]
        cloud.terminate()
        assert cloud.wait(PATIENCE_S) == 0
    finally:
        cloud.kill()
        cloud.wait()
    found = [json.loads(line) for line in lines.read_text().splitlines()]
    assert [line["outcome"] for line in found].count("ok") == results
    assert {line["camera"] for line in found} == {"test"}
    assert f"received {len(found)} = ok {len(found)}" in errors.read_text()


def test_stop_before_anything_runs(start: Start) -> None:
    """Ctrl-C right after the start, in the middle of the imports."""
    for program in (start("rac-cloud", "--bind", "tcp://127.0.0.1:0"), start("rac-node", "--camera", "test:")):
        wait_until(lambda pid=program.pid: _handles(pid), PATIENCE_S, "signals are caught")  # type: ignore[misc]
        program.send_signal(signal.SIGINT)
        assert program.process.wait(PATIENCE_S) == 0, program.errors
        assert "Traceback" not in program.errors


def _handles(pid: int) -> bool:
    """Whether a process catches SIGTERM, which Python by itself does not."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("SigCgt:"):
            return bool(int(line.split()[1], 16) >> (signal.SIGTERM - 1) & 1)
    return False


@pytest.mark.skipif(Path("/dev/video0").exists(), reason="this machine has a camera")
def test_missing_camera_is_said_and_tried_again_while_the_other_goes_on(cloud: Program, start: Start) -> None:
    node = start("rac-node", *node_arguments(cloud, "0", "yard=test:"), "--budget-ms", "8")
    down = node.wait_event("camera", 3, camera="camera0", state="down")
    assert down["reason"] == "open_failed"
    assert "/dev/video0 is not there" in down["text"]
    node.wait_event("result", 5, camera="yard")
    found = node.metrics()
    assert found["rac_node_camera_up", "camera0"] == 0
    assert found["rac_node_camera_up", "yard"] == 1
    node.end()


@pytest.mark.skipif(Path("/dev/video0").exists(), reason="this machine has a camera")
def test_node_without_any_camera_waits_for_one(cloud: Program, start: Start) -> None:
    node = start("rac-node", *node_arguments(cloud, "0"), "--budget-ms", "8")
    node.wait_event("link", state="up")
    node.wait_event("camera", 2, state="down")
    summary = node.end()
    assert summary["captured"] == 0


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("rac-node --camera test: --bundle nowhere", "codec.bundle: nowhere: no such bundle"),
        ("rac-node --camera test: --depth 3", "codec.depth: 3 is not in the bundle"),
        ("rac-node --camera test: --rate 15", "codec.rate: 15 is above"),
        ("rac-node --camera test: --metrics-port PORT", "metrics.port"),
        ("rac-node --camera test: --cloud tcp://192.0.2.1:5570", "cloud.endpoints"),
        ("rac-cloud --bundle nowhere", "bundles: nowhere: no such bundle"),
        ("rac-cloud --bind tcp://127.0.0.1:PORT", "link.bind: tcp://127.0.0.1:PORT cannot be bound"),
        ("rac-cloud --bind tcp://0.0.0.0:5570", "link.bind: tcp://0.0.0.0:5570 can be reached"),
        ("rac-cloud --bind tcp://127.0.0.1:0 --metrics-port PORT", "metrics.port"),
        ("rac-cloud --bind tcp://127.0.0.1:0 --results jsonl:/absent/x", "results: /absent/x cannot be written"),
        (
            "rac-cloud --bind tcp://127.0.0.1:0 --classifier-weights /absent",
            "classifier_weights: /absent: no such file",
        ),
        ("rac demo --bundle nowhere", "--bundle: nowhere: no such bundle"),
    ],
)
def test_what_cannot_work_is_one_line_and_code_2(words: str, says: str, taken_port: int) -> None:
    program, *arguments = words.replace("PORT", str(taken_port)).split()
    done = run(program, *arguments)
    assert done.returncode == EXIT_USAGE, done
    lines = [line for line in done.stderr.splitlines() if line.startswith(f"{program}: ")]
    assert len(lines) == 1
    assert says.replace("PORT", str(taken_port)) in lines[0]
    assert "Traceback" not in done.stderr


def test_bundle_that_the_cloud_lacks_is_refused_and_not_asked_for_again_soon(
    cloud: Program, start: Start, tmp_path: Path
) -> None:
    bundle = load_bundle("default")
    seal_bundle(tmp_path / "other", bundle.manifest.model_copy(update={"name": "other"}), bundle.files)
    before = cloud.metrics()["rac_cloud_handshakes_total", "unknown_bundle"]
    node = start("rac-node", *node_arguments(cloud, "test:?fps=30"), "--bundle", str(tmp_path / "other"))
    assert node.wait_event("link", state="down")["code"] == "unknown_bundle"
    # Three seconds, in which it would have tried often.
    found = node.wait_metrics(lambda found: sum_of(found, "rac_node_frames_captured_total") >= 90)
    assert found["rac_node_frames_dropped_total", "test", "link_down"] > 0
    # One try, in which a cloud that is slow to answer may have been asked twice.
    assert len(node.get("link", state="down")) == 1
    cloud.wait_metrics(lambda found: found["rac_cloud_handshakes_total", "unknown_bundle"] > before)
    summary = node.end()
    assert summary["results"] == 0


class Stranger:
    """A raw connection to a cloud, for bytes that no node sends."""

    def __init__(self, cloud: Program) -> None:
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.socket: zmq.Socket[bytes] = self.context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.connect(cloud.get("start")[0]["endpoint"])

    def receive(self) -> object:
        assert self.socket.poll(round(1000 * PATIENCE_S)), "the cloud does not answer"
        return parse(self.socket.recv_multipart())

    def wait_for(self, kind: type) -> object:
        while not isinstance(message := self.receive(), kind):
            pass
        return message

    def close(self) -> None:
        self.socket.close()
        self.context.term()


@pytest.fixture
def stranger(cloud: Program) -> Iterator[Stranger]:
    made = Stranger(cloud)
    yield made
    made.close()


def test_garbage_from_a_stranger_harms_nobody(cloud: Program, start: Start, stranger: Stranger) -> None:
    node = start("rac-node", *node_arguments(cloud, "test:"))
    node.wait_event("result", 5)
    before = cloud.metrics()["rac_cloud_handshakes_total", "malformed"]
    random = np.random.default_rng(0)
    hello = pack(Hello(0, "x", bytes(16), (bytes(32),), (CameraEntry(0, "x"),)))[0]
    for number in range(300):
        noise = random.bytes(int(random.integers(1, 2000)))
        cut = bytearray(hello)
        cut[random.integers(1, len(cut))] ^= 0xFF
        stranger.socket.send_multipart([[noise], [b"", noise], [noise] * 5, [bytes(cut)]][number % 4])
    assert isinstance(stranger.receive(), Reject | Welcome)
    cloud.wait_metrics(lambda found: found["rac_cloud_handshakes_total", "malformed"] > before + 100)
    node.wait_more("result", 10)
    summary = node.end()
    assert set(summary["dropped"]) <= ORDINARY | {"shutdown"}


def test_hostile_frames_cost_themselves_and_no_worker(cloud: Program, stranger: Stranger) -> None:
    """A node that speaks the protocol and sends what no encoder makes."""
    bundle = load_bundle("default")
    point = (bundle.manifest.depths[-1], bundle.manifest.levels16[-1])

    def bitstream(words: bytes) -> bytes:
        return pack_bitstream(Bitstream(0, bundle.id8, *point, words))

    def symbols(value: int) -> bytes:
        array = np.zeros(bundle.manifest.latent_shape, np.int32)
        array[bundle.tables[point].coded, :2] = value
        return encode_symbols(array, bundle.tables[point])

    sound = bitstream(symbols(0))
    hostile = [
        ("corrupt", b"\0", None),
        ("corrupt", sound[:-4], None),
        ("corrupt", bitstream(np.random.default_rng(1).bytes(4000)), None),
        ("corrupt", pack_bitstream(Bitstream(0, bytes(8), *point, symbols(0))), None),
        ("corrupt", pack_bitstream(Bitstream(0, bundle.id8, 250, 250, b"")), None),
        ("corrupt", sound, b"no zlib"),
        ("corrupt", sound, zlib.compress(bytes(10_000_000))),
        ("ok", sound, None),
        ("any", bitstream(symbols(2**15)), None),
        ("any", bitstream(symbols(-(2**15))), None),
    ]
    before = cloud.metrics()
    hello = Hello(0, "hostile", os.urandom(16), (bundle.bundle_id,), (CameraEntry(0, "x"),))
    stranger.socket.send_multipart(pack(hello))
    assert isinstance(stranger.wait_for(Welcome), Welcome)
    for sequence, (expected, content, reference) in enumerate(hostile):
        message = FrameMessage(0, sequence, 0, 0, None, content, reference)
        stranger.socket.send_multipart(pack(message))
        result = stranger.wait_for(Result)
        assert isinstance(result, Result)
        assert result.sequence == sequence
        assert expected in (result.outcome.value, "any"), (sequence, result)
    stranger.socket.send_multipart(pack(Bye("over")))
    found = cloud.metrics()
    for reason in ("crash", "hang"):
        assert restarts(found, reason) == restarts(before, reason)


def test_frames_without_credit_are_refused(cloud: Program, stranger: Stranger) -> None:
    bundle = load_bundle("default")
    hello = Hello(0, "greedy", os.urandom(16), (bundle.bundle_id,), (CameraEntry(0, "x"),))
    stranger.socket.send_multipart(pack(hello))
    assert isinstance(stranger.wait_for(Welcome), Welcome)
    for sequence in range(500):
        stranger.socket.send_multipart(pack(FrameMessage(0, sequence, 0, 0, None, b"x")))
    reject = stranger.wait_for(Reject)
    assert isinstance(reject, Reject)
    assert reject.code is RejectCode.LIMITS
