"""The reader process of one camera: reads its source and hands the newest frame to the parent when asked.

    reader thread    source -> Slot          the only one that may block in a read
    main thread      Slot -> view -> socket  requests, heartbeats, and the watch over the reader thread

The slot lies between two threads of this process and nowhere else, so a killed process leaves no lock behind.
A live source overwrites it; a waiting source stands still until it is empty. The view is made when a frame is
taken: a frame that nobody wants costs no scaling.

The process ends when it is told to, when its parent is gone (the socket closes), or by the parent's kill.
What native libraries print goes to a file without a name; its last line is the best account of a failed open.
"""

from __future__ import annotations

import os
import re
import select
import socket
import tempfile
import threading
import time
from contextlib import suppress
from typing import Final

import cv2

from nodes.capture_link import (
    HEARTBEAT_S,
    REQUEST,
    STOP,
    CaptureOptions,
    Counters,
    DownReason,
    Message,
    MessageKind,
    pack_failure,
    pack_frame,
    pack_message,
    pack_size,
)
from nodes.capture_slot import End, Pace, Picture, Slot
from nodes.readers import MAX_BAD_IN_A_ROW, Reader, open_reader
from nodes.sources import Source
from pipeline.errors import CaptureError
from pipeline.frames import Frame
from pipeline.masking import mask_credentials
from pipeline.view import make_view

_S: Final = 1_000_000_000
# How long an ordered stop waits for the reader thread, so that the source can be closed properly.
_CLOSE_WAIT_S: Final = 0.3
_MAX_LOG_BYTES: Final = 65536
_MAX_LOG_LINE: Final = 200


class NativeLog:
    """Takes what this process prints, on both outputs, into a nameless file instead of the terminal."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115  open for the life of the process
        os.dup2(self._file.fileno(), 1)
        os.dup2(self._file.fileno(), 2)

    def last_line(self) -> str:
        """The last line that is not empty, without passwords; "" if nothing was printed."""
        size = os.fstat(self._file.fileno()).st_size
        tail = os.pread(self._file.fileno(), 4096, max(0, size - 4096)).decode(errors="replace")
        lines = [line.strip() for line in tail.splitlines() if line.strip()]
        # FFmpeg's lines begin with who says it: [OPENCV:FFMPEG:16] or [rtsp @ 0x55d0]
        words = re.sub(r"^(\[[^]]*\] *)+", "", lines[-1]) if lines else ""
        return mask_credentials(words)[:_MAX_LOG_LINE]

    def trim(self) -> None:
        """Forget everything once it is long: a broken stream can print for weeks."""
        if os.fstat(self._file.fileno()).st_size > _MAX_LOG_BYTES:
            os.ftruncate(self._file.fileno(), 0)
            os.lseek(self._file.fileno(), 0, os.SEEK_SET)


def run_reader(link: socket.socket, camera: str, source: Source, options: CaptureOptions, start: Counters) -> None:
    """Be the reader process of a camera; never returns.

    Args:
        link: this side of the socket pair.
        camera: name for the frames.
        source: what to read.
        options: how to read it.
        start: counters to go on from.
    """
    log = NativeLog()
    # Errors only; read by OpenCV when it first opens a source.
    os.environ["OPENCV_FFMPEG_LOGLEVEL"] = "16"
    cv2.setLogLevel(0)
    cv2.setNumThreads(1)
    wake_receiver, wake_sender = socket.socketpair()
    wake_sender.setblocking(False)
    slot = Slot(start, source=source, wake=wake_sender)
    reader = threading.Thread(target=read_source, args=(source, options, slot), daemon=True)
    reader.start()
    # A closed socket means that the parent is gone: nobody is left to tell.
    with suppress(ConnectionError):
        try:
            _serve(link, wake_receiver, camera, options, slot, log)
        except (ValueError, cv2.error) as error:
            body = pack_failure(DownReason.CRASHED, f"{type(error).__name__}: {error}")
            link.sendall(pack_message(Message(MessageKind.FAILED, slot.final_counters, body)))
            link.recv(1)
    slot.close()
    reader.join(_CLOSE_WAIT_S)
    # Not sys.exit: a reader thread that is stuck in a read would be waited for.
    os._exit(0)


def read_source(source: Source, options: CaptureOptions, slot: Slot) -> None:
    """Read a source into the slot until its end, a failure or a stop; the body of the reader thread."""
    end = End()
    try:
        with slot.blocking(options.open_timeout_s):
            reader = open_reader(source, options, slot.counters.position)
        try:
            _read_on(reader, source, options, slot)
        finally:
            reader.close()
    except CaptureError as error:
        end = End(DownReason(error.reason), str(error))
    except Exception as error:  # A bug of ours must reach the parent, not end a thread in silence.
        end = End(DownReason.CRASHED, f"{type(error).__name__}: {error}")
    slot.end(end)


def _read_on(reader: Reader, source: Source, options: CaptureOptions, slot: Slot) -> None:
    limit, pace = _find_rates(reader, source, options)
    bad_in_a_row = num_damaged = 0
    while not slot.is_closed:
        if pace is not None:
            slot.pause(pace.wait_ns(time.monotonic_ns()))
            pace.take(time.monotonic_ns())
        with slot.blocking(options.read_timeout_s):
            if not reader.grab():
                return
        captured_ns = time.monotonic_ns()
        if reader.num_damaged > num_damaged:
            slot.count_bad(reader.position - 1, reader.num_damaged - num_damaged)
            num_damaged = reader.num_damaged
        if limit is not None and limit.wait_ns(captured_ns) > 0:
            slot.count_rate_limited(reader.position)
            continue
        try:
            with slot.blocking(options.read_timeout_s):
                pixels, label = reader.retrieve()
        except CaptureError as error:
            bad_in_a_row += 1
            if error.reason != DownReason.BAD_FRAME or (source.is_live and bad_in_a_row > MAX_BAD_IN_A_ROW):
                raise
            slot.count_bad(reader.position)
            continue
        bad_in_a_row = 0
        if limit is not None:
            limit.take(captured_ns)
        slot.put(pixels, label, reader.position, captured_ns)


def _find_rates(reader: Reader, source: Source, options: CaptureOptions) -> tuple[Pace | None, Pace | None]:
    """The rate above which captured pictures are dropped, and the one at which pictures are grabbed."""
    own = reader.own_fps
    wanted = None if options.fps is None or options.fps == "max" else float(options.fps)
    if not source.is_live:
        own, wanted = (own if options.fps is None else wanted), None
    now_ns = time.monotonic_ns()
    return (
        None if wanted is None else Pace(wanted, now_ns),
        None if own is None else Pace(own, now_ns),
    )


def _serve(
    link: socket.socket,
    wake: socket.socket,
    camera: str,
    options: CaptureOptions,
    slot: Slot,
    log: NativeLog,
) -> None:
    """Answer requests until the parent says stop or is gone."""
    is_wanted = is_opened = is_over = False
    beat_ns = 0
    while True:
        wait_s = max(0, beat_ns - time.monotonic_ns()) / _S
        ready, _, _ = select.select([link, wake], [], [], wait_s)
        if wake in ready:
            wake.recv(4096)
        if link in ready:
            orders = link.recv(4096)
            if not orders or STOP in orders:
                return
            is_wanted = is_wanted or REQUEST in orders
        now_ns = time.monotonic_ns()
        if not is_opened and slot.size is not None:
            is_opened = True
            _send(link, MessageKind.OPENED, slot.counters, pack_size(*slot.size))
        picture = slot.take(now_ns) if is_wanted else None
        if picture is not None:
            is_wanted = False
            frame = _make_frame(camera, picture, options)
            _send(link, MessageKind.FRAME, picture.counters, pack_frame(frame))
        end = None if is_over else slot.find_end(now_ns)
        if end is not None:
            is_over = True
            _send_end(link, end, slot.final_counters, log)
        if now_ns >= beat_ns:
            _send(link, MessageKind.STATUS, slot.counters)
            log.trim()
            beat_ns = now_ns + round(HEARTBEAT_S * _S)


def _make_frame(camera: str, picture: Picture, options: CaptureOptions) -> Frame:
    began_ns = time.monotonic_ns()
    view = make_view(picture.pixels, options.view)
    took_ns = time.monotonic_ns() - began_ns
    sequence = picture.counters.captured - 1
    return Frame(camera, sequence, picture.captured_ns, view, took_ns, picture.label)


def _send_end(link: socket.socket, end: End, counters: Counters, log: NativeLog) -> None:
    if end.reason is None:
        _send(link, MessageKind.ENDED, counters)
        return
    # After a failed open the library's last words are the cause (refused, 401, no such file); later they are
    # as likely a harmless complaint about a picture.
    cause = log.last_line() if end.reason is DownReason.OPEN_FAILED else ""
    text = f"{end.text}: {cause}" if cause else end.text
    _send(link, MessageKind.FAILED, counters, pack_failure(end.reason, text))


def _send(link: socket.socket, kind: MessageKind, counters: Counters, body: bytes = b"") -> None:
    link.sendall(pack_message(Message(kind, counters, body)))
