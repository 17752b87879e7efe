"""Opens a source and reads its pictures: the only place that opens cameras, clips and picture files.

Everything here may block and is meant for the reader process (`nodes/capture_child.py`), where a blocked call
can be ended from outside. What OpenCV cannot do is made up for here: its False has several meanings, and a
capture that said False once is never used again (after a timeout it answers False for ever, while isOpened()
stays True).
"""

from __future__ import annotations

import math
import os
import sys
import time
from pathlib import Path
from typing import Any, Final, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from nodes.capture_link import CaptureOptions, DownReason
from nodes.scenes import render_picture
from nodes.sources import PictureEntry, Source, SourceKind, find_photographs, list_pictures
from pipeline.errors import CaptureError, SourceError

PICTURES_PER_S: Final = 5.0
# For clips whose header states no believable rate.
DEFAULT_CLIP_FPS: Final = 25.0
BELIEVABLE_FPS: Final = 240.0
# So many undecodable pictures in a row are the end of a stream: it is opened again.
MAX_BAD_IN_A_ROW: Final = 10

# What FFmpeg may open, playlists and redirects included: a clip must not reach the network, a URL no files.
_FILE_PROTOCOLS: Final = "file,crypto,data"
_URL_PROTOCOLS: Final = {
    "rtsp": "rtsp,rtp,rtcp,udp,tcp",
    "rtsps": "rtsp,rtsps,rtp,srtp,rtcp,udp,tcp,tls",
    "http": "http,https,httpproxy,tcp,tls,crypto",
    "https": "https,httpproxy,tcp,tls,crypto",
}

Pixels = NDArray[np.uint8]


class Reader(Protocol):
    """An open source. Not thread-safe; every method may block and raise `CaptureError`.

    Attributes:
        own_fps: rate at which grab is to be called, or None: without pause, grab itself waits for a picture.
        position: pictures of this pass that were grabbed; a new reader can start there.
        num_damaged: pictures that grab passed over because nothing could be made of them.
    """

    own_fps: float | None
    position: int
    num_damaged: int

    def grab(self) -> bool:
        """Go to the next picture; False at the end of a finite source."""
        ...

    def retrieve(self) -> tuple[Pixels, int | None]:
        """Decode the picture that was grabbed: uint8 (H, W, 3) BGR, the caller's, and its class or None.

        Raises:
            CaptureError: reason bad_frame; the next picture may be sound.
        """
        ...

    def close(self) -> None:
        """Let go of the source; may be called twice."""
        ...


def open_reader(source: Source, options: CaptureOptions, position: int) -> Reader:
    """Open a source at a position of its pass (a `test:` at that picture; other live sources have none).

    Raises:
        CaptureError: reason open_failed; the text names the source without passwords.
    """
    try:
        if source.kind is SourceKind.TEST:
            return TestReader(source, position)
        if source.kind in (SourceKind.DEVICE, SourceKind.URL, SourceKind.FILE):
            return VideoReader(source, options, position)
        return PictureReader(source, options, position)
    except SourceError as error:
        # It was sound when the node started: a folder that went away may come back.
        raise CaptureError(DownReason.OPEN_FAILED, str(error)) from error


class TestReader:
    """Reads the moving view of `test:`; never ends."""

    __test__ = False

    def __init__(self, source: Source, position: int) -> None:
        self.own_fps: float | None = source.test.fps
        self.position = position
        self.num_damaged = 0
        self._options = source.test
        self._folder = find_photographs()

    def grab(self) -> bool:
        self.position += 1
        return True

    def retrieve(self) -> tuple[Pixels, int | None]:
        return render_picture(self._folder, self._options, self.position - 1)

    def close(self) -> None:
        pass


class PictureReader:
    """Reads the pictures of a folder, labelled folder or label file."""

    def __init__(self, source: Source, options: CaptureOptions, position: int) -> None:
        self.own_fps: float | None = PICTURES_PER_S
        self.position = position
        self.num_damaged = 0
        self._source = source
        self._loop = options.loop
        self._entries = list_pictures(source)
        self._has_good = False

    def grab(self) -> bool:
        if self.position >= len(self._entries):
            if not self._loop:
                return False
            if not self._has_good:
                raise CaptureError(DownReason.BAD_FRAME, f"{self._source.text}: no picture in it can be read")
            self.position, self._has_good = 0, False
        self.position += 1
        return True

    def retrieve(self) -> tuple[Pixels, int | None]:
        entry = self._entries[self.position - 1]
        pixels = read_picture(entry)
        self._has_good = True
        return pixels, entry.label

    def close(self) -> None:
        pass


class VideoReader:
    """Reads a device, a URL or a clip through OpenCV."""

    def __init__(self, source: Source, options: CaptureOptions, position: int) -> None:
        self._source = source
        self._options = options
        self._read_any = False
        self._capture = _open_capture(source, options)
        self.position = 0
        self.num_damaged = 0
        self.own_fps: float | None = self._find_own_fps()
        if source.kind is SourceKind.FILE and position > 0:
            # Sought, not skipped: hours into a clip, decoding up to there would take minutes.
            self._capture.set(cv2.CAP_PROP_POS_FRAMES, position)
            self.position = position

    def grab(self) -> bool:
        if self._try_grab():
            return True
        if self._source.is_live:
            raise CaptureError(DownReason.END_OF_STREAM, f"{self._source.text}: the stream ended")
        if not self._read_any and self.position == 0:
            raise CaptureError(DownReason.OPEN_FAILED, f"{self._source.text}: not one frame can be read")
        if not self._options.loop:
            return False
        # Opened again instead of sought to 0, which not every container can do.
        self._capture.release()
        self._capture = _open_capture(self._source, self._options)
        self.position = 0
        if not self._try_grab():
            raise CaptureError(DownReason.OPEN_FAILED, f"{self._source.text}: not one frame can be read")
        return True

    def retrieve(self) -> tuple[Pixels, int | None]:
        found, pixels = self._capture.retrieve()
        if not found or pixels is None:
            raise CaptureError(DownReason.BAD_FRAME, f"{self._source.text}: a frame cannot be decoded")
        return _as_bgr(pixels), None

    def close(self) -> None:
        self._capture.release()

    def _try_grab(self) -> bool:
        """Grab, passing over damaged pictures: they are False like the end, but a True follows."""
        for num_damaged in range(MAX_BAD_IN_A_ROW):
            began = time.monotonic()
            is_grabbed = self._capture.grab()
            took_s = time.monotonic() - began
            # FFmpeg's timer has fired if it took that long. The answer is then False, or True with what was
            # half received, and the next read would wait as long again.
            if self._source.is_live and took_s >= 0.95 * self._options.read_timeout_s:
                text = f"{self._source.text}: no picture for {took_s:.1f} s"
                raise CaptureError(DownReason.READ_TIMEOUT, text)
            if is_grabbed:
                self.num_damaged += num_damaged
                self.position += num_damaged + 1
                self._read_any = True
                return True
        return False

    def _find_own_fps(self) -> float | None:
        """The rate in a clip's header. A camera delivers at its own pace, whatever it announces."""
        is_clip = self._source.kind is SourceKind.FILE or (
            # A clip on a web server comes as fast as the network, unlike a camera, whose length nobody knows.
            self._source.kind is SourceKind.URL and self._capture.get(cv2.CAP_PROP_FRAME_COUNT) > 0
        )
        if not is_clip:
            return None
        fps = self._capture.get(cv2.CAP_PROP_FPS)
        return fps if math.isfinite(fps) and 0 < fps <= BELIEVABLE_FPS else DEFAULT_CLIP_FPS


def read_picture(entry: PictureEntry) -> Pixels:
    """Read one picture file: uint8 (H, W, 3) BGR, turned as its EXIF says.

    Raises:
        CaptureError: reason bad_frame: missing, not a picture, or a JPEG that ends early.
    """
    try:
        content = Path(entry.path).read_bytes()
        if is_cut_jpeg(content):
            # OpenCV would return it with a grey rest.
            raise CaptureError(DownReason.BAD_FRAME, f"{entry.path}: the picture ends early")
        pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR) if content else None
    except (OSError, ValueError, cv2.error) as error:
        raise CaptureError(DownReason.BAD_FRAME, f"{entry.path}: cannot be read: {error}") from error
    if pixels is None:
        raise CaptureError(DownReason.BAD_FRAME, f"{entry.path}: not a picture that OpenCV can read")
    return pixels  # type: ignore[return-value]


def is_cut_jpeg(content: bytes) -> bool:
    """Whether this is a JPEG without its end; False for every other format."""
    if not content.startswith(b"\xff\xd8"):
        return False
    # A thumbnail in the head has an end mark of its own, so the segments are stepped over up to the scan.
    # In the scan FF is followed by 00 or a restart mark, and what follows its end does not matter.
    offset = 2
    while content[offset : offset + 1] == b"\xff":
        marker = content[offset + 1 : offset + 2]
        if marker == b"\xda":
            return b"\xff\xd9" not in content[offset:]
        offset += 2 + int.from_bytes(content[offset + 2 : offset + 4], "big")
    return True


def _open_capture(source: Source, options: CaptureOptions) -> cv2.VideoCapture:
    if source.kind is SourceKind.DEVICE:
        return _open_device(source)
    settings = f"protocol_whitelist;{_protocols(source)}"
    if source.kind is SourceKind.URL:
        # Over UDP a lost packet is a torn picture; over TCP it is a late one, and the newest frame is kept.
        settings += "|rtsp_transport;tcp"
    # Read by OpenCV at every open. The Linux wheel of 4.11.0 tests it the wrong way round (opencv#27091): any
    # text gives RTSP over TCP and FFmpeg's own lists, which keep clips off the network and URLs off files as
    # well (test_readers.py holds that); without one RTSP would take UDP. So it is always set, and the lists
    # above count from 4.12 on.
    os.environ["OPENCV_FFMPEG_CAPTURE_OPTIONS"] = settings
    # They count only when given here; set() later is refused, and unset they are 30 s.
    timeouts = [
        cv2.CAP_PROP_OPEN_TIMEOUT_MSEC,
        int(options.open_timeout_s * 1000),
        cv2.CAP_PROP_READ_TIMEOUT_MSEC,
        int(options.read_timeout_s * 1000),
        cv2.CAP_PROP_N_THREADS,
        1,
    ]
    capture = cv2.VideoCapture(source.location, cv2.CAP_FFMPEG, timeouts)
    if not capture.isOpened():
        raise CaptureError(DownReason.OPEN_FAILED, f"{source.text}: cannot be opened")
    return capture


def _open_device(source: Source) -> cv2.VideoCapture:
    device = int(source.location) if source.location.isdigit() else source.location
    backend = cv2.CAP_V4L2 if sys.platform == "linux" else cv2.CAP_ANY
    capture = cv2.VideoCapture(device, backend)
    if not capture.isOpened():
        path = f"/dev/video{device}" if isinstance(device, int) else device
        problem = "is busy or no camera" if Path(path).exists() else "is not there"
        raise CaptureError(DownReason.OPEN_FAILED, f"camera {source.text}: {path} {problem}")
    # Not every driver takes it; grabbing without pause does the rest.
    capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)
    return capture


def _protocols(source: Source) -> str:
    if source.kind is SourceKind.FILE:
        return _FILE_PROTOCOLS
    return _URL_PROTOCOLS[source.location.partition(":")[0].lower()]


def _as_bgr(pixels: NDArray[Any]) -> Pixels:
    """Grey pictures of some devices have no third axis."""
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3):
        raise CaptureError(DownReason.BAD_FRAME, f"unusable pixel format {pixels.dtype} {pixels.shape}")
    return pixels if pixels.ndim == 3 else np.repeat(pixels[:, :, np.newaxis], 3, axis=2)
