"""Reading, in this process: what each kind of source gives, where it goes on, what FFmpeg must not reach."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from nodes.capture_link import CaptureOptions
from nodes.readers import Reader, is_cut_jpeg, open_reader, read_picture
from nodes.sources import PictureEntry, parse_source
from pipeline.errors import CaptureError

NUM_FRAMES = 12
HLS = "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{}\n#EXT-X-ENDLIST\n"


def _picture(value: int, side: int = 64) -> NDArray[np.uint8]:
    return np.full((side, side, 3), value, np.uint8)


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """Twelve grey frames, ten steps brighter each, 20 a second."""
    path = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 20.0, (64, 64))
    for index in range(NUM_FRAMES):
        writer.write(_picture(index * 10))
    writer.release()
    return path


class _Web(ThreadingHTTPServer):
    """A web server on this machine that knows one playlist and remembers what was asked for."""

    daemon_threads = False
    playlist = b""

    def __init__(self) -> None:
        self.paths: list[str] = []
        super().__init__(("127.0.0.1", 0), _WebHandler)
        self.address = f"http://127.0.0.1:{self.server_port}"


class _WebHandler(BaseHTTPRequestHandler):
    server: _Web

    def do_GET(self) -> None:
        self.server.paths.append(self.path)
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.server.playlist)))
        self.end_headers()
        self.wfile.write(self.server.playlist)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def web() -> Iterator[_Web]:
    with _Web() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def _read_values(reader: Reader, limit: int = 100) -> list[int]:
    values = []
    while len(values) < limit and reader.grab():
        values.append(round(float(reader.retrieve()[0].mean()) / 10))
    reader.close()
    return values


def test_clip_is_read_to_its_end_at_its_own_rate(clip: Path) -> None:
    reader = open_reader(parse_source(str(clip)), CaptureOptions(), 0)
    assert reader.own_fps == pytest.approx(20.0)
    assert _read_values(reader) == list(range(NUM_FRAMES))
    assert reader.position == NUM_FRAMES


@pytest.mark.parametrize("position", [1, NUM_FRAMES - 1, NUM_FRAMES])
def test_clip_goes_on_where_the_last_reader_stopped(clip: Path, position: int) -> None:
    """After a crash no frame is shown twice, even right before the end."""
    reader = open_reader(parse_source(str(clip)), CaptureOptions(), position)
    assert _read_values(reader) == list(range(position, NUM_FRAMES))


def test_looped_clip_starts_again(clip: Path) -> None:
    reader = open_reader(parse_source(str(clip)), CaptureOptions(loop=True), NUM_FRAMES - 1)
    assert _read_values(reader, 14) == [NUM_FRAMES - 1, *range(NUM_FRAMES), 0]
    assert reader.position == 1


def test_cut_clip_gives_what_is_left(clip: Path) -> None:
    """A recording that was broken off ends; it is no camera that failed."""
    content = clip.read_bytes()
    clip.write_bytes(content[: len(content) * 4 // 5])
    values = _read_values(open_reader(parse_source(str(clip)), CaptureOptions(), 0))
    assert 0 < len(values) < NUM_FRAMES
    assert values == list(range(len(values)))


def test_clip_without_a_frame_is_an_open_failure(tmp_path: Path) -> None:
    path = tmp_path / "empty.mp4"
    path.write_bytes(b"")
    with pytest.raises(CaptureError, match=r"empty\.mp4") as caught:
        open_reader(parse_source(str(path)), CaptureOptions(), 0)
    assert caught.value.reason == "open_failed"


def test_labels_come_with_their_pictures(tmp_path: Path) -> None:
    for name, value in (("a.png", 10), ("b.png", 20)):
        cv2.imwrite(str(tmp_path / name), _picture(value))
    (tmp_path / "labels.csv").write_text("file,label\nb.png,898\na.png,\n")
    reader = open_reader(parse_source(str(tmp_path)), CaptureOptions(), 0)
    found = []
    while reader.grab():
        pixels, label = reader.retrieve()
        found.append((int(pixels.mean()), label))
    assert found == [(20, 898), (10, None)]


def test_folder_with_no_good_picture_fails_when_looped(tmp_path: Path) -> None:
    """It would spin for ever otherwise."""
    (tmp_path / "a.png").write_bytes(b"no picture")
    reader = open_reader(parse_source(str(tmp_path)), CaptureOptions(loop=True), 0)
    assert reader.grab()
    with pytest.raises(CaptureError, match="not a picture"):
        reader.retrieve()
    with pytest.raises(CaptureError, match="no picture in it") as caught:
        reader.grab()
    assert caught.value.reason == "bad_frame"


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "bmp", "tiff"])
def test_cut_picture_is_a_bad_frame(tmp_path: Path, suffix: str) -> None:
    """A half written file must not be classified with a grey rest."""
    path = tmp_path / f"a.{suffix}"
    noise = np.random.default_rng(1).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    cv2.imwrite(str(path), noise)
    assert read_picture(PictureEntry(path, None)).shape == (90, 120, 3)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(CaptureError) as caught:
        read_picture(PictureEntry(path, None))
    assert caught.value.reason == "bad_frame"


def test_picture_that_is_not_there_is_a_bad_frame(tmp_path: Path) -> None:
    with pytest.raises(CaptureError, match="cannot be read") as caught:
        read_picture(PictureEntry(tmp_path / "gone.png", None))
    assert caught.value.reason == "bad_frame"


def test_every_cut_of_a_jpeg_is_found_but_not_its_thumbnail_or_trailer() -> None:
    """The end mark counts only after the scan began; cameras put a whole small JPEG before it."""
    encoded = cv2.imencode(".jpg", _picture(99))[1].tobytes()
    thumbnail = b"\xff\xe1" + (2 + len(encoded)).to_bytes(2, "big") + encoded
    whole = encoded[:2] + thumbnail + encoded[2:]
    assert not is_cut_jpeg(whole)
    assert not is_cut_jpeg(whole + b"a clip that a telephone put behind it")
    assert all(is_cut_jpeg(whole[:length]) for length in range(2, len(whole)))
    assert not is_cut_jpeg(b"\x89PNG")
    assert not is_cut_jpeg(b"")


def test_grey_and_transparent_pictures_become_bgr(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    for pixels in (
        np.full((8, 9), 77, np.uint8),
        np.full((8, 9, 4), 77, np.uint8),
        np.full((8, 9), 19900, np.uint16),
    ):
        cv2.imwrite(str(path), pixels)
        picture = read_picture(PictureEntry(path, None))
        assert picture.dtype == np.uint8
        assert np.array_equal(np.unique(picture), [77])
        assert picture.shape == (8, 9, 3)


@pytest.mark.parametrize("playlist", [HLS, "ffconcat version 1.0\nfile {}\n"])
def test_clip_must_not_reach_the_network(tmp_path: Path, web: _Web, playlist: str) -> None:
    """A playlist from somebody else, played as a file, must not make the node ask inside its network."""
    path = tmp_path / "list.m3u8"
    path.write_text(playlist.format(f"{web.address}/x.ts"))
    with pytest.raises(CaptureError):
        open_reader(parse_source(str(path)), CaptureOptions(), 0)
    assert web.paths == []


def test_url_must_not_reach_files(clip: Path, web: _Web) -> None:
    """A camera that was taken over must not make the node show its own disk; the clip itself is sound."""
    local = clip.with_suffix(".m3u8")
    local.write_text(HLS.format(clip.as_uri()))
    assert open_reader(parse_source(str(local)), CaptureOptions(), 0).grab()
    web.playlist = local.read_bytes()
    with pytest.raises(CaptureError):
        open_reader(parse_source(f"{web.address}/list.m3u8"), CaptureOptions(open_timeout_s=2.0), 0)
    assert "/list.m3u8" in web.paths


def test_missing_device_is_an_open_failure() -> None:
    with pytest.raises(CaptureError, match="camera 97: /dev/video97 is not there") as caught:
        open_reader(parse_source("97"), CaptureOptions(), 0)
    assert caught.value.reason == "open_failed"


def test_moving_view_moves_is_repeatable_and_differs_by_seed() -> None:
    """The demo's camera: a restart goes on with the same pictures, another seed shows others."""
    pytest.importorskip("skimage")
    first = open_reader(parse_source("test:?seed=1"), CaptureOptions(), 0)
    again = open_reader(parse_source("test:?seed=1"), CaptureOptions(), 3)
    other = open_reader(parse_source("test:?seed=9"), CaptureOptions(), 0)
    assert first.own_fps == 10.0
    pictures = [(first.grab(), first.retrieve())[1][0] for _ in range(4)]
    assert all(not np.array_equal(a, b) for a, b in zip(pictures, pictures[1:], strict=False))
    assert again.grab()
    assert np.array_equal(again.retrieve()[0], pictures[3])
    assert other.grab()
    assert not np.array_equal(other.retrieve()[0], pictures[0])


def test_moving_view_shows_labelled_and_unlabelled_photographs() -> None:
    """Half a minute of it has labels enough for an accuracy, and variety enough for agreement."""
    pytest.importorskip("skimage")
    reader = open_reader(parse_source("test:?fps=1"), CaptureOptions(), 0)
    labels = [(reader.grab(), reader.retrieve())[1][1] for _ in range(30)]
    assert set(labels) == {967, 872, None}
    assert 10 <= sum(label is not None for label in labels) <= 20
