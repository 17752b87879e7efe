"""Cameras with their real reader processes: every kind of end, restart and stop, and totals that add up."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
import pytest

from nodes import capture
from nodes.capture import CameraReader, CaptureState, stop_readers
from nodes.capture_events import BadFrames, CaptureEvent, Down, Finished, FrameArrived, Settled, Up
from nodes.capture_link import CaptureOptions, DownReason
from nodes.sources import parse_source

S = 1_000_000_000
# Far beyond what any step takes; a test that waits so long has failed.
PATIENCE_S = 60.0
NUM_PICTURES = 6

Event = TypeVar("Event", bound=CaptureEvent)


class MjpegServer(ThreadingHTTPServer):
    """A network camera on this machine that can stall, cut the connection and send damaged pictures.

    Every connection gets an endless stream of noise, about 80 pictures a second.
    """

    def __init__(self) -> None:
        self.flowing = threading.Event()
        self.flowing.set()
        self.is_cut = False
        # Share of each picture's bytes that is sent.
        self.share_sent = 1.0
        # So many of the next pictures are sent with hardly more than their head.
        self.num_empty = 0
        self.num_connections = 0
        self.closing = threading.Event()
        super().__init__(("127.0.0.1", 0), MjpegHandler)
        self.url = f"http://127.0.0.1:{self.server_port}/video.mjpg"

    def close(self) -> None:
        """End every stream and the server."""
        self.closing.set()
        self.flowing.set()
        self.shutdown()
        self.server_close()


class MjpegHandler(BaseHTTPRequestHandler):
    """Sends one stream."""

    server: MjpegServer

    def do_GET(self) -> None:
        self.server.num_connections += 1
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=f")
        self.end_headers()
        random = np.random.default_rng(5)
        try:
            while not self.server.closing.is_set() and not self.server.is_cut:
                self.server.flowing.wait()
                picture = random.integers(0, 256, (120, 160, 3), dtype=np.uint8)
                jpeg = cv2.imencode(".jpg", picture)[1].tobytes()
                jpeg = jpeg[: int(len(jpeg) * self.server.share_sent)]
                if self.server.num_empty > 0:
                    self.server.num_empty -= 1
                    jpeg = jpeg[:100]
                head = f"--f\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n"
                self.wfile.write(head.encode() + jpeg + b"\r\n")
                self.server.closing.wait(0.01)
        except OSError:
            pass

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def camera() -> Iterator[MjpegServer]:
    server = MjpegServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.close()
    thread.join()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A labelled folder in the order of its labels."""
    folder = tmp_path / "photos"
    folder.mkdir()
    lines = ["file,label"]
    for index in range(NUM_PICTURES):
        cv2.imwrite(str(folder / f"{index}.png"), np.full((300, 400, 3), index * 20, np.uint8))
        lines.append(f"{index}.png,{index}")
    (folder / "labels.csv").write_text("\n".join(lines))
    return folder


class Owner:
    """Does what the edge node does with its cameras, and keeps the books."""

    def __init__(self) -> None:
        self.readers: list[CameraReader] = []
        self.events: dict[str, list[CaptureEvent]] = {}

    def start(self, source: str, name: str = "cam", **options: object) -> CameraReader:
        reader = CameraReader(
            name,
            parse_source(source),
            CaptureOptions(**options),  # type: ignore[arg-type]
            random=lambda: 0.0,
        )
        self.readers.append(reader)
        self.events[name] = reader.start(time.monotonic_ns())
        return reader

    def wait(self, is_met: Callable[[], bool], *, requesting: bool = True) -> None:
        """Poll the cameras, asking each for frames, until a condition is met."""
        limit_s = time.monotonic() + PATIENCE_S
        while not is_met():
            assert time.monotonic() < limit_s, (self.readers, self.events)
            for reader in self.readers:
                if requesting:
                    reader.request()
            deadlines = [reader.next_deadline() for reader in self.readers]
            due_ns = min((deadline for deadline in deadlines if deadline is not None), default=None)
            left_s = PATIENCE_S if due_ns is None else max(0.0, (due_ns - time.monotonic_ns()) / S)
            polled = [reader for reader in self.readers if reader.fileno() >= 0]
            select.select(polled, [], [], min(left_s, 1.0))
            for reader in self.readers:
                events = self.events[reader.name]
                events += reader.receive(time.monotonic_ns())
                events += reader.tick(time.monotonic_ns())

    def skip_back_off(self, reader: CameraReader) -> None:
        """Let the time until the next try pass at once."""
        self.wait(lambda: reader.state is CaptureState.DOWN, requesting=False)
        retry_ns = reader.next_deadline()
        assert retry_ns is not None
        self.events[reader.name] += reader.tick(retry_ns)

    def get(self, kind: type[Event], name: str = "cam") -> list[Event]:
        """Events of one kind, in order."""
        return [event for event in self.events[name] if isinstance(event, kind)]

    def sequences(self, name: str = "cam") -> list[int]:
        """Sequence numbers of the frames that came."""
        return [event.frame.sequence for event in self.get(FrameArrived, name)]

    def check_totals(self, name: str = "cam") -> None:
        """Totals only rise, each frame is new and the last of its total, drops are never more than fit."""
        captured = rate_limited = delivered = 0
        for event in self.events[name]:
            if not isinstance(event, FrameArrived | Settled | Down | Finished):
                continue
            assert event.captured_total >= captured
            assert event.rate_limited_total >= rate_limited
            if isinstance(event, FrameArrived):
                assert event.frame.sequence == event.captured_total - 1 >= captured
                delivered += 1
            captured, rate_limited = event.captured_total, event.rate_limited_total
            assert captured >= delivered + rate_limited


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """However busy the machine is: readers may start late, and killed ones are waited for, so that they are gone."""
    monkeypatch.setattr(capture, "STARTUP_LIMIT_S", PATIENCE_S)
    monkeypatch.setattr(capture, "_REAP_LIMIT_S", PATIENCE_S)


@pytest.fixture
def owner() -> Iterator[Owner]:
    owner = Owner()
    yield owner
    stop_readers(owner.readers)
    assert all(reader.state is CaptureState.STOPPED and reader.pid is None for reader in owner.readers)


def _is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_folder_gives_every_picture_once_with_its_label_then_finishes(owner: Owner, photos: Path) -> None:
    """A waiting source loses nothing; a picture that cannot be read is counted and left out."""
    (photos / "3.png").write_bytes(b"no picture")
    reader = owner.start(str(photos), fps="max")
    owner.wait(lambda: reader.has_ended)
    frames = [event.frame for event in owner.get(FrameArrived)]
    assert [frame.label for frame in frames] == [0, 1, 2, 4, 5]
    assert [frame.sequence for frame in frames] == list(range(5))
    assert [int(frame.view[0, 0, 0]) for frame in frames] == [0, 20, 40, 80, 100]
    assert all(frame.camera == "cam" and not frame.view.flags.writeable for frame in frames)
    assert sum(event.count for event in owner.get(BadFrames)) == 1
    assert owner.get(Up) == [Up(400, 300)]
    assert owner.get(Finished) == [Finished(captured_total=5, rate_limited_total=0)]
    assert owner.get(Down) == []
    owner.check_totals()


def test_folder_loops_until_stopped(owner: Owner, photos: Path) -> None:
    owner.start(str(photos), fps="max", loop=True)
    owner.wait(lambda: len(owner.sequences()) == 2 * NUM_PICTURES + 1)
    labels = [event.frame.label for event in owner.get(FrameArrived)]
    assert labels == [*range(NUM_PICTURES), *range(NUM_PICTURES), 0]
    assert owner.sequences() == list(range(2 * NUM_PICTURES + 1))


def test_waiting_source_stands_still_while_nobody_asks(owner: Owner, photos: Path) -> None:
    """After a pause it goes on with the next picture, with a fresh time of capture."""
    reader = owner.start(str(photos), fps="max")
    owner.wait(lambda: len(owner.sequences()) == 1)
    beats = []
    owner.wait(lambda: beats.append(reader.next_deadline()) or len(set(beats)) == 3, requesting=False)
    assert owner.get(Settled) == []
    before_ns = time.monotonic_ns()
    owner.wait(lambda: len(owner.sequences()) == 2)
    last = owner.get(FrameArrived)[-1].frame
    assert (last.sequence, last.label) == (1, 1)
    assert last.captured_ns > before_ns


def test_clip_plays_at_its_own_rate(owner: Owner, tmp_path: Path) -> None:
    path = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 40.0, (64, 64))
    for index in range(12):
        writer.write(np.full((64, 64, 3), index * 10, np.uint8))
    writer.release()
    reader = owner.start(str(path))
    owner.wait(lambda: reader.has_ended)
    frames = [event.frame for event in owner.get(FrameArrived)]
    assert [round(float(frame.view.mean()) / 10) for frame in frames] == list(range(12))
    # Eleven intervals of 25 ms; one may be made up for.
    assert frames[-1].captured_ns - frames[0].captured_ns >= 10 * S // 40


def test_network_camera_keeps_the_newest_and_counts_the_rest(owner: Owner, camera: MjpegServer) -> None:
    """What came while nobody asked is superseded, not kept for later."""
    reader = owner.start(camera.url)
    owner.wait(lambda: bool(owner.get(Settled)), requesting=False)
    missed = owner.get(Settled)[-1].captured_total
    assert missed > 0
    owner.wait(lambda: len(owner.sequences()) == 5)
    assert owner.sequences()[0] >= missed
    assert (reader.width, reader.height, reader.is_live) == (160, 120, True)
    owner.check_totals()


def test_rate_limit_drops_what_is_above_it_and_says_so(owner: Owner, camera: MjpegServer) -> None:
    owner.start(camera.url, fps=20.0)
    owner.wait(lambda: len(owner.sequences()) >= 10 and owner.get(FrameArrived)[-1].rate_limited_total >= 10)
    frames = owner.get(FrameArrived)
    spent_s = (frames[-1].frame.captured_ns - frames[0].frame.captured_ns) / S
    assert len(frames) - 1 <= 20 * spent_s + 2
    owner.check_totals()


def test_stalled_camera_is_restarted_and_comes_back(owner: Owner, camera: MjpegServer, photos: Path) -> None:
    """Users' first complaint: the camera came back, the program did not. The others never notice."""
    owner.start(camera.url, read_timeout_s=0.5)
    owner.start(str(photos), "other", fps="max", loop=True)
    owner.wait(lambda: len(owner.sequences()) >= 3)
    camera.flowing.clear()
    owner.wait(lambda: bool(owner.get(Down)))
    down = owner.get(Down)[0]
    assert down.reason is DownReason.READ_TIMEOUT
    assert "no picture" in down.text
    before = len(owner.sequences("other"))
    camera.flowing.set()
    owner.wait(lambda: len(owner.get(Up)) >= 2 and len(owner.sequences("other")) > before)
    last = owner.sequences()[-1]
    owner.wait(lambda: owner.sequences()[-1] > last)
    assert owner.sequences() == sorted(set(owner.sequences()))
    assert owner.get(Down, "other") == []
    owner.check_totals()


def test_cut_connection_is_opened_again(owner: Owner, camera: MjpegServer) -> None:
    owner.start(camera.url)
    owner.wait(lambda: len(owner.sequences()) >= 3)
    camera.is_cut = True
    owner.wait(lambda: bool(owner.get(Down)))
    assert owner.get(Down)[0].reason is DownReason.END_OF_STREAM
    camera.is_cut = False
    num_frames = len(owner.sequences())
    owner.wait(lambda: len(owner.sequences()) > num_frames)
    assert camera.num_connections >= 2
    owner.check_totals()


def test_half_pictures_flow_on(owner: Owner, camera: MjpegServer) -> None:
    """FFmpeg makes a grey rest of them and says nothing; that is what a lossy network looks like."""
    owner.start(camera.url)
    owner.wait(lambda: len(owner.sequences()) >= 3)
    camera.share_sent = 0.5
    owner.wait(lambda: len(owner.sequences()) >= 20)
    assert camera.num_connections == 1
    assert owner.get(Down) == []


def test_pictures_without_content_are_counted_and_passed_over(owner: Owner, camera: MjpegServer) -> None:
    """A few of them must not cost a new connection, which takes a second with a real camera."""
    owner.start(camera.url)
    owner.wait(lambda: len(owner.sequences()) >= 3)
    camera.num_empty = 3
    owner.wait(lambda: sum(event.count for event in owner.get(BadFrames)) >= 3 or bool(owner.get(Down)))
    last = owner.sequences()[-1]
    owner.wait(lambda: owner.sequences()[-1] > last)
    assert sum(event.count for event in owner.get(BadFrames)) == 3
    assert camera.num_connections == 1
    assert owner.get(Down) == []
    owner.check_totals()


def test_missing_device_is_tried_ever_more_rarely(owner: Owner) -> None:
    """With a clock of the test's: half a second, doubling to half a minute, and half of that at random."""
    reader = owner.start("97")
    now_ns = 0
    delays = []
    for _ in range(9):
        owner.events["cam"].clear()
        while not owner.get(Down):
            select.select([reader], [], [], PATIENCE_S)
            owner.events["cam"] += reader.receive(now_ns)
        down = owner.get(Down)[0]
        assert down.reason is DownReason.OPEN_FAILED
        assert down.text == "camera 97: /dev/video97 is not there"
        assert reader.fileno() == -1
        assert reader.next_deadline() == down.retry_at_ns
        delays.append((down.retry_at_ns - now_ns) / S)
        assert reader.tick(down.retry_at_ns - 1) == []
        assert reader.state is CaptureState.DOWN
        now_ns = down.retry_at_ns
        reader.tick(now_ns)
        assert reader.state is CaptureState.STARTING
    assert delays == [0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 15.0, 15.0]


def test_refused_connection_names_the_cause_but_no_password(
    owner: Owner, camera: MjpegServer, capfd: pytest.CaptureFixture[str]
) -> None:
    """The text goes to logs and pages, and FFmpeg's own words do not go past it to the terminal."""
    url = camera.url.replace("http://", "rtsp://admin:hunter2@").replace(str(camera.server_port), "9")
    reader = owner.start(url)
    owner.wait(lambda: bool(owner.get(Down)))
    down = owner.get(Down)[0]
    assert down.reason is DownReason.OPEN_FAILED
    assert down.text.startswith("rtsp://***@127.0.0.1:9/video.mjpg: cannot be opened: ")
    assert "Connection refused" in down.text
    assert "hunter2" not in f"{reader!r} {down} {owner.events}"
    assert capfd.readouterr() == ("", "")


def test_killed_reader_is_restarted_where_it_was(owner: Owner, photos: Path) -> None:
    """kill -9 between two frames: no picture twice, none lost, numbers go on, the request is still out."""
    reader = owner.start(str(photos), fps="max")
    owner.wait(lambda: len(owner.sequences()) == 2)
    assert reader.pid is not None
    os.kill(reader.pid, signal.SIGKILL)
    owner.wait(lambda: reader.has_ended)
    down = owner.get(Down)[0]
    assert down.reason is DownReason.CRASHED
    assert "signal 9" in down.text
    assert [event.frame.label for event in owner.get(FrameArrived)] == list(range(NUM_PICTURES))
    assert owner.sequences() == list(range(NUM_PICTURES))
    assert owner.get(BadFrames) == []
    owner.check_totals()


def test_killed_reader_of_a_live_source_counts_on(owner: Owner, camera: MjpegServer) -> None:
    reader = owner.start(camera.url, fps=30.0)
    owner.wait(lambda: len(owner.sequences()) == 3)
    assert reader.pid is not None
    os.kill(reader.pid, signal.SIGKILL)
    owner.wait(lambda: len(owner.get(Up)) >= 2 and len(owner.sequences()) >= 6)
    assert owner.sequences() == sorted(set(owner.sequences()))
    owner.check_totals()


def test_picture_that_crashes_the_reader_twice_is_left_out(owner: Owner, photos: Path) -> None:
    """A file that brings down a native decoder must not stop its folder for good."""
    reader = owner.start(str(photos), fps="max")
    owner.wait(lambda: len(owner.sequences()) == 2)
    for _ in range(3):
        pid = reader.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        owner.skip_back_off(reader)
    owner.wait(lambda: reader.has_ended)
    assert [event.frame.label for event in owner.get(FrameArrived)] == [0, 1, 3, 4, 5]
    assert [event.count for event in owner.get(BadFrames)] == [1]
    assert owner.sequences() == list(range(NUM_PICTURES - 1))


def test_stopped_process_is_noticed_without_waiting_for_it(owner: Owner, photos: Path) -> None:
    """A process that hangs as a whole (here: SIGSTOP) sends no heartbeat; the parent never blocks on it."""
    reader = owner.start(str(photos), fps="max")
    owner.wait(lambda: len(owner.sequences()) == 1)
    assert reader.pid is not None
    os.kill(reader.pid, signal.SIGSTOP)
    reader.request()
    reader.receive(time.monotonic_ns())
    deadline_ns = reader.next_deadline()
    assert deadline_ns is not None
    (down,) = reader.tick(deadline_ns)
    assert isinstance(down, Down)
    assert down.reason is DownReason.READ_TIMEOUT
    assert "does not answer" in down.text
    owner.skip_back_off(reader)
    owner.wait(lambda: reader.has_ended)
    assert [event.frame.label for event in owner.get(FrameArrived)] == list(range(NUM_PICTURES))


def test_late_owner_takes_what_came_before_it_blames_the_reader(owner: Owner, photos: Path) -> None:
    """An owner that was held up itself (a laptop that slept) finds heartbeats, not silence."""
    reader = owner.start(str(photos), fps="max")
    owner.wait(lambda: len(owner.sequences()) == 1)
    reader.request()
    select.select([reader], [], [], PATIENCE_S)
    events = reader.tick(time.monotonic_ns() + 3600 * S)
    # The frame, or a heartbeat before it.
    assert not [event for event in events if isinstance(event, Down)]
    assert reader.state is CaptureState.UP


def test_interrupt_from_the_terminal_does_not_reach_the_reader(owner: Owner, photos: Path) -> None:
    """Ctrl-C goes to the whole group; the node decides when its cameras stop."""
    reader = owner.start(str(photos), fps="max")
    assert reader.pid is not None
    os.kill(reader.pid, signal.SIGINT)
    owner.wait(lambda: reader.has_ended)
    assert owner.sequences() == list(range(NUM_PICTURES))
    assert owner.get(Down) == []


def _bring_up(owner: Owner, photos: Path, camera: MjpegServer) -> None:
    owner.start(str(photos), fps="max")
    owner.wait(lambda: len(owner.sequences()) == 1)


def _bring_down(owner: Owner, photos: Path, camera: MjpegServer) -> None:
    owner.start("97")
    owner.wait(lambda: bool(owner.get(Down)))


def _finish(owner: Owner, photos: Path, camera: MjpegServer) -> None:
    reader = owner.start(str(photos), fps="max")
    owner.wait(lambda: reader.has_ended)


def _stall(owner: Owner, photos: Path, camera: MjpegServer) -> None:
    owner.start(camera.url, read_timeout_s=60.0)
    owner.wait(lambda: len(owner.sequences()) == 1)
    camera.flowing.clear()


def _stall_at_opening(owner: Owner, photos: Path, camera: MjpegServer) -> None:
    camera.flowing.clear()
    owner.start(camera.url, open_timeout_s=60.0)
    owner.wait(lambda: camera.num_connections == 1)


def _freeze(owner: Owner, photos: Path, camera: MjpegServer) -> None:
    _bring_up(owner, photos, camera)
    pid = owner.readers[0].pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)


def _start_only(owner: Owner, photos: Path, camera: MjpegServer) -> None:
    owner.start(str(photos))


@pytest.mark.parametrize("bring", [_start_only, _bring_up, _bring_down, _finish, _stall, _stall_at_opening, _freeze])
def test_camera_stops_from_every_state(
    owner: Owner, photos: Path, camera: MjpegServer, bring: Callable[[Owner, Path, MjpegServer], None]
) -> None:
    """Without waiting for the source, no process left, and once more does no harm."""
    bring(owner, photos, camera)
    pids = [reader.pid for reader in owner.readers if reader.pid is not None]
    stop_readers(owner.readers)
    assert all(_is_gone(pid) for pid in pids)
    for reader in owner.readers:
        assert reader.has_ended
        assert reader.next_deadline() is None
        assert reader.fileno() == -1
        reader.request()
        assert reader.receive(time.monotonic_ns()) == reader.tick(time.monotonic_ns()) == []
        reader.stop(time.monotonic_ns())
        reader.kill()


def test_camera_that_was_never_started_stops_too(photos: Path) -> None:
    reader = CameraReader("cam", parse_source(str(photos)), CaptureOptions(), random=lambda: 0.0)
    stop_readers([reader])
    assert reader.has_ended
    with pytest.raises(ValueError, match="was started before"):
        reader.start(0)


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="needs Linux to wait for another's child")
def test_readers_end_with_a_parent_that_was_killed(photos: Path) -> None:
    """kill -9 of the node leaves no camera open: the socket closes, and that is the reader's sign."""
    code = (
        "import sys, time\n"
        "from nodes.capture import CameraReader\n"
        "from nodes.capture_link import CaptureOptions\n"
        "from nodes.sources import parse_source\n"
        "if __name__ == '__main__':\n"
        "    reader = CameraReader('cam', parse_source(sys.argv[1]), CaptureOptions(), random=lambda: 0.0)\n"
        "    reader.start(time.monotonic_ns())\n"
        "    print(reader.pid, flush=True)\n"
        "    sys.stdin.read()\n"
    )
    command = [sys.executable, "-c", code, str(photos)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        watched = os.pidfd_open(int(parent.stdout.readline()))
        try:
            parent.kill()
            assert select.select([watched], [], [], PATIENCE_S)[0]
        finally:
            os.close(watched)
