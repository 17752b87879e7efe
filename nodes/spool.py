"""Coded frames on the disk until they have their result: bounded, and found again by the next start.

    frames-<boot id>-<run>-<number>.v1     records (`pipeline.spool_records`), a few MB each, appended to
    lock                                   held by the one node that uses the folder

A file is removed once every frame in it has ended. The boot id stands in the names, and a node that finds such
files takes it on: to the cloud it is the same boot, so that a frame that is sent again is known there and answered
from memory. Sequences of each run begin where no earlier run can have come.

Nothing is flushed to the medium by force: what was written survives the end of the process, not every power cut; a
torn record is found and counted.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.errors import ConfigError, SpoolFullError, SpoolRecordError
from pipeline.replay import FrameKey, ReplayQueue
from pipeline.spool_records import DONE, STATE_OFFSET, SpooledFrame, find_records, pack_record, parse_record

MAX_FRAMES = 200_000
"""Each has an entry in the ledger: some 80 MB at this number."""
LARGEST_FILE, SMALLEST_FILE = 4 * 2**20, 64 * 2**10
FILES = 8
"""A file goes only as a whole, so an eighth of the room may be held by ended frames."""
RETRY_NS = 2_000_000_000
"""After a write that failed: how long until the disk is looked at again."""
BLOCK_BYTES = 4096
"""What a disk gives at least; a look asks for so much beyond the largest record so far."""
RUN_SHIFT = 32
"""Sequences of run k start at k << 32: a camera with 100 frames a second needs a year to get that far."""

_FILE = re.compile(r"frames-([0-9a-f]{32})-([0-9]{6})-([0-9]{6})\.v1")

logger = logging.getLogger("rac.spool")


@dataclass(slots=True)
class _File:
    path: Path
    descriptor: int
    size_bytes: int = 0
    num_open: int = 0


@dataclass(frozen=True, slots=True)
class _Place:
    file: _File
    offset: int
    num_bytes: int
    wall_ms: int


class Spool:
    """The spool of one node; belongs to one thread.

    Attributes:
        boot_id: the node's identity; of the files found, else new.
        first_sequence: where the numbers of this run's frames begin, of every camera.
        recovered: frames of earlier runs without a result, oldest first, without their bytes.
        corrupt: damaged records found so far.
    """

    def __init__(self, folder: Path, limit_bytes: int, new_boot_id: Callable[[], bytes]) -> None:
        """Open the folder, making it if need be, and find what earlier runs left.

        Raises:
            ConfigError: it cannot be used, or another node uses it.
        """
        self._folder = folder
        self._limit_bytes = limit_bytes
        self._file_bytes = min(LARGEST_FILE, max(SMALLEST_FILE, limit_bytes // FILES))
        self._queue = ReplayQueue()
        self._places: dict[FrameKey, _Place] = {}
        self._files: list[_File] = []
        self._current: _File | None = None
        self._num_files = 0
        self._largest_bytes = SMALLEST_FILE // 4
        self._retry_ns: int | None = None
        self.corrupt = 0
        self._lock = _lock(folder)
        self.recovered: list[SpooledFrame] = []
        self.boot_id, self._run = self._find(new_boot_id)
        self.first_sequence = self._run << RUN_SHIFT
        # The run's number is taken by its first file; where even that fails, nobody may meet our numbers later.
        if self._open_file() is None:
            self.boot_id = new_boot_id()

    def __len__(self) -> int:
        return len(self._queue)

    @property
    def num_waiting(self) -> int:
        """Frames that are not sent in this session."""
        return self._queue.num_waiting

    @property
    def num_bytes(self) -> int:
        """Bytes on the disk, ended frames that are not removed yet included."""
        return sum(file.size_bytes for file in self._files)

    @property
    def oldest_wall_s(self) -> float:
        """Wall time of the oldest frame's capture; 0 when there is none."""
        key = self._queue.first()
        return 0.0 if key is None else self._places[key].wall_ms / 1000

    def has_room(self, now_ns: int) -> bool:
        """Whether one more frame will most probably find its place."""
        if self._retry_ns is not None and now_ns >= self._retry_ns:
            self._retry_ns = None if self._can_write() else now_ns + RETRY_NS
        if self._retry_ns is not None or len(self._queue) >= MAX_FRAMES:
            return False
        return self.num_bytes + self._largest_bytes <= self._limit_bytes

    def append(self, frame: SpooledFrame, now_ns: int) -> None:
        """Write a frame behind all others.

        Raises:
            SpoolFullError: there is no room left for it, or the disk does not take it.
        """
        record = pack_record(frame)
        self._largest_bytes = max(self._largest_bytes, len(record))
        if self.num_bytes + len(record) > self._limit_bytes or len(self._queue) >= MAX_FRAMES:
            raise SpoolFullError("the spool is full")
        place = self._write(record, frame.wall_ms)
        if place is None:
            self._retry_ns = now_ns + RETRY_NS
            raise SpoolFullError("the disk under the spool takes nothing")
        self._keep(frame, place)

    def oldest(self) -> SpooledFrame | None:
        """The frame to send next; None when all are sent.

        Raises:
            SpoolRecordError: its bytes are damaged; `oldest_key` tells whose they are.
        """
        key = self._queue.oldest()
        if key is None:
            return None
        place = self._places[key]
        try:
            content = os.pread(place.file.descriptor, place.num_bytes, place.offset)
            frame, _ = parse_record(content)
        except OSError as error:
            self.corrupt += 1
            raise SpoolRecordError(f"spool cannot be read: {error.strerror}") from error
        except SpoolRecordError:
            self.corrupt += 1
            raise
        if (frame.camera, frame.sequence) != key:
            self.corrupt += 1
            raise SpoolRecordError("another record stands in its place")
        return frame

    def oldest_key(self) -> FrameKey | None:
        """Camera and sequence of the frame to send next."""
        return self._queue.oldest()

    def send(self, key: FrameKey) -> None:
        """Note that a frame went out in this session."""
        self._queue.send(key)

    def take_back(self, key: FrameKey) -> None:
        """A frame that went out is to be sent again."""
        self._queue.take_back(key)

    def lose_link(self) -> None:
        """The session ended: all that went out in it is to be sent again."""
        self._queue.lose_link()

    def end(self, key: FrameKey) -> None:
        """A frame has ended: it never comes back. Does nothing about frames that are not here."""
        if not self._queue.end(key):
            return
        place = self._places.pop(key)
        try:
            os.pwrite(place.file.descriptor, DONE, place.offset + STATE_OFFSET)
        except OSError as error:
            logger.warning("a frame that ended stays in the spool: %s", error.strerror)
        place.file.num_open -= 1
        self._remove_if_done(place.file)

    def close(self) -> None:
        """Let go of the folder; what has not ended stays for the next start."""
        current, self._current = self._current, None
        if current is not None:
            self._remove_if_done(current)
        for file in self._files:
            os.close(file.descriptor)
        self._files.clear()
        os.close(self._lock)

    def _find(self, new_boot_id: Callable[[], bytes]) -> tuple[bytes, int]:
        """Take in the files of earlier runs; the boot id to go on with, and the number of this run."""
        boot_id, run = new_boot_id(), 0
        newest: dict[str, int] = {}
        for path, own_boot_id, own_run in _files_in(self._folder):
            boot_id, run = own_boot_id, own_run + 1
            try:
                self._recover(path, newest)
            except OSError as error:
                self.corrupt += 1
                logger.warning("spool file %s cannot be read: %s", path.name, error.strerror)
        return boot_id, run

    def _recover(self, path: Path, newest: dict[str, int]) -> None:
        file = _File(path, os.open(path, os.O_RDWR | os.O_CLOEXEC))
        self._files.append(file)
        # Never more than a file's worth is read, whatever lies there.
        content = os.pread(file.descriptor, 2 * LARGEST_FILE, 0)
        file.size_bytes = os.fstat(file.descriptor).st_size
        for found in find_records(content):
            if found.frame is None:
                self.corrupt += 1
                continue
            if found.is_done or len(self._queue) >= MAX_FRAMES:
                continue
            # Within a camera numbers rise, over all runs; what does not is not of this spool.
            if found.frame.sequence <= newest.get(found.frame.camera, -1):
                self.corrupt += 1
                continue
            newest[found.frame.camera] = found.frame.sequence
            self.recovered.append(_without_bytes(found.frame))
            self._keep(found.frame, _Place(file, found.offset, found.num_bytes, found.frame.wall_ms))
        self._remove_if_done(file)

    def _keep(self, frame: SpooledFrame, place: _Place) -> None:
        key = (frame.camera, frame.sequence)
        self._queue.add(key)
        self._places[key] = place
        place.file.num_open += 1

    def _write(self, record: bytes, wall_ms: int) -> _Place | None:
        """Append to the current file, or to a new one when it is full or fails; None when that fails too."""
        for _ in range(2):
            file = self._current
            if file is None or file.size_bytes >= self._file_bytes:
                file = self._open_file()
            if file is None:
                return None
            offset = file.size_bytes
            try:
                written = os.pwrite(file.descriptor, record, offset)
            except OSError:
                written = 0
            if written == len(record):
                file.size_bytes += written
                return _Place(file, offset, written, wall_ms)
            self._give_up_file(file, offset)
        return None

    def _open_file(self) -> _File | None:
        """Begin a new file; None when the disk takes none."""
        before, self._current = self._current, None
        if before is not None:
            self._remove_if_done(before)
        name = f"frames-{self.boot_id.hex()}-{self._run:06}-{self._num_files:06}.v1"
        path = self._folder / name
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except OSError:
            return None
        self._num_files += 1
        self._current = _File(path, descriptor)
        self._files.append(self._current)
        return self._current

    def _give_up_file(self, file: _File, offset: int) -> None:
        """A write failed: cut off what may have got through and write no more to this file."""
        try:
            os.ftruncate(file.descriptor, offset)
        except OSError:
            logger.warning("half a record stays in the spool")
        self._current = None
        self._remove_if_done(file)

    def _can_write(self) -> bool:
        """Whether the disk takes something again."""
        path = self._folder / "probe"
        try:
            path.write_bytes(bytes(self._largest_bytes + BLOCK_BYTES))
        except OSError:
            return False
        finally:
            path.unlink(missing_ok=True)
        return True

    def _remove_if_done(self, file: _File) -> None:
        if file.num_open or file is self._current:
            return
        self._files.remove(file)
        os.close(file.descriptor)
        file.path.unlink(missing_ok=True)


def _lock(folder: Path) -> int:
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigError("configuration", "spool.folder", f"{folder} cannot be used: {error.strerror}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise ConfigError("configuration", "spool.folder", f"{folder} is used by another node") from error
    return descriptor


def _files_in(folder: Path) -> Iterator[tuple[Path, bytes, int]]:
    """Files of earlier runs, oldest first, with boot id and run."""
    found = []
    for path in folder.iterdir():
        match = _FILE.fullmatch(path.name)
        if match is not None and path.is_file() and not path.is_symlink():
            found.append((int(match[2]), int(match[3]), path, bytes.fromhex(match[1])))
    for run, _, path, boot_id in sorted(found):
        yield path, boot_id, run


def _without_bytes(frame: SpooledFrame) -> SpooledFrame:
    return replace(frame, bitstream=b"", reference=None)
