"""The spool on a real disk: bounded, found again, never twice; a full disk and damage are answers, not crashes."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from nodes.spool import RETRY_NS, RUN_SHIFT, Spool
from pipeline.errors import ConfigError, SpoolFullError, SpoolRecordError
from pipeline.spool_records import DONE, SpooledFrame, find_records

MB = 2**20
FRAME = SpooledFrame("gate", 0, 4, 48, bytes(32), 1_700_000_000_000, None, bytes(1000), None)


def boot_ids() -> Callable[[], bytes]:
    numbers = iter(range(1, 100))
    return lambda: next(numbers).to_bytes(16, "big")


@contextmanager
def opened(folder: Path, limit_bytes: int = 8 * MB, new_boot_id: Callable[[], bytes] | None = None) -> Iterator[Spool]:
    spool = Spool(folder, limit_bytes, new_boot_id or boot_ids())
    try:
        yield spool
    finally:
        spool.close()


def frame(sequence: int, **changes: object) -> SpooledFrame:
    return replace(FRAME, sequence=sequence, bitstream=sequence.to_bytes(8, "big") * 125, **changes)  # type: ignore[arg-type]


def send_next(spool: Spool) -> int | None:
    found = spool.oldest()
    if found is None:
        return None
    assert found == frame(found.sequence)
    spool.send((found.camera, found.sequence))
    return found.sequence


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("frames-*"))


def test_frames_come_back_oldest_first_with_their_bytes(tmp_path: Path) -> None:
    with opened(tmp_path) as spool:
        for sequence in range(5):
            spool.append(frame(sequence), 0)
        assert [send_next(spool) for _ in range(3)] == [0, 1, 2]
        spool.end(("gate", 1))
        spool.lose_link()
        assert [send_next(spool) for _ in range(5)] == [0, 2, 3, 4, None]
        assert (len(spool), spool.num_waiting) == (4, 0)
        assert spool.oldest_wall_s == 1_700_000_000.0


def test_next_start_finds_what_has_not_ended_and_nothing_else(tmp_path: Path) -> None:
    new_boot_id = boot_ids()
    with opened(tmp_path, new_boot_id=new_boot_id) as spool:
        first_boot = spool.boot_id
        assert (spool.first_sequence, spool.recovered) == (0, [])
        for sequence in range(6):
            spool.append(frame(sequence), 0)
        for sequence in (0, 3, 5):
            spool.end(("gate", sequence))
    with opened(tmp_path, new_boot_id=new_boot_id) as spool:
        assert [found.sequence for found in spool.recovered] == [1, 2, 4]
        # To the cloud it is the same boot; its own frames never meet the numbers of the run before.
        assert (spool.boot_id, spool.first_sequence) == (first_boot, 1 << RUN_SHIFT)
        spool.append(frame(spool.first_sequence), 0)
        assert [send_next(spool) for _ in range(4)] == [1, 2, 4, 1 << RUN_SHIFT]
        for sequence in (1, 2, 4):
            spool.end(("gate", sequence))
    with opened(tmp_path, new_boot_id=new_boot_id) as spool:
        assert [found.sequence for found in spool.recovered] == [1 << RUN_SHIFT]
        assert spool.first_sequence == 2 << RUN_SHIFT
        spool.end(("gate", 1 << RUN_SHIFT))
    # All ended: nothing stays, and the next start is a new boot.
    assert files(tmp_path) == []
    with opened(tmp_path, new_boot_id=new_boot_id) as spool:
        assert (spool.boot_id != first_boot, spool.first_sequence) == (True, 0)


def test_killed_run_leaves_its_number_behind_even_without_frames(tmp_path: Path) -> None:
    """Live cameras of that run used its numbers, and the cloud remembers their results."""
    Spool(tmp_path, MB, boot_ids())  # never closed, as after kill -9, but for the lock
    (tmp_path / "lock").unlink()
    with opened(tmp_path) as spool:
        assert spool.first_sequence == 1 << RUN_SHIFT


def test_room_is_bounded_and_comes_back(tmp_path: Path) -> None:
    with opened(tmp_path, MB) as spool:
        sequence = 0
        while spool.has_room(0):
            spool.append(frame(sequence), 0)
            sequence += 1
        assert MB - 64_000 < spool.num_bytes <= MB
        on_disk = sum(path.stat().st_size for path in files(tmp_path))
        assert on_disk == spool.num_bytes
        big = replace(FRAME, sequence=sequence, bitstream=bytes(60_000))
        with pytest.raises(SpoolFullError, match="full"):
            spool.append(big, 0)
        for ended in range(sequence):
            spool.end(("gate", ended))
        assert spool.has_room(0)
        spool.append(big, 0)
        assert len(files(tmp_path)) <= 2


def test_one_old_frame_holds_no_more_than_its_file(tmp_path: Path) -> None:
    with opened(tmp_path, MB) as spool:
        for sequence in range(5000):
            spool.append(frame(sequence), 0)
            if sequence:
                spool.end(("gate", sequence))
        assert spool.num_bytes < MB // 2
        assert send_next(spool) == 0


def test_damaged_records_are_counted_and_passed_over(tmp_path: Path) -> None:
    with opened(tmp_path) as spool:
        for sequence in range(6):
            spool.append(frame(sequence), 0)
    (path,) = files(tmp_path)
    content = bytearray(path.read_bytes())
    places = list(find_records(bytes(content)))
    content[places[1].offset + 200] ^= 1  # in its bitstream
    content[places[4].offset] ^= 1  # in its mark
    path.write_bytes(bytes(content[:-7]))  # and the last one is torn
    with opened(tmp_path) as spool:
        assert [found.sequence for found in spool.recovered] == [0, 2, 3]
        assert spool.corrupt == 2  # the torn one lies behind the damaged one: one stretch
        assert [send_next(spool) for _ in range(4)] == [0, 2, 3, None]


def test_damage_after_the_write_is_found_before_the_frame_is_sent(tmp_path: Path) -> None:
    with opened(tmp_path) as spool:
        spool.append(frame(0), 0)
        spool.append(frame(1), 0)
        (path,) = files(tmp_path)
        with path.open("r+b") as file:
            file.seek(100)
            file.write(b"\xff\xff")
        assert spool.oldest_key() == ("gate", 0)
        with pytest.raises(SpoolRecordError):
            spool.oldest()
        assert spool.corrupt == 1
        spool.end(("gate", 0))
        assert send_next(spool) == 1


@pytest.mark.parametrize("content", [b"", b"\0" * 5000, b"RACF" * 100, bytes(range(256)) * 40])
def test_foreign_files_are_harmless(tmp_path: Path, content: bytes) -> None:
    (tmp_path / f"frames-{'ab' * 16}-000007-000000.v1").write_bytes(content)
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / f"frames-{'ab' * 16}-000009-000000.v1").symlink_to("/etc/hostname")
    with opened(tmp_path) as spool:
        assert (spool.recovered, spool.first_sequence) == ([], 8 << RUN_SHIFT)
        spool.append(frame(spool.first_sequence), 0)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_record_that_stands_twice_is_taken_once(tmp_path: Path) -> None:
    with opened(tmp_path) as spool:
        spool.append(frame(0), 0)
        spool.append(frame(1), 0)
    (path,) = files(tmp_path)
    path.with_name(path.name.replace("000000.v1", "000005.v1")).write_bytes(path.read_bytes())
    with opened(tmp_path) as spool:
        assert [found.sequence for found in spool.recovered] == [0, 1]
        assert spool.corrupt == 2


def test_folder_is_for_one_node_and_must_be_usable(tmp_path: Path) -> None:
    with opened(tmp_path), pytest.raises(ConfigError, match="another node"):
        Spool(tmp_path, MB, boot_ids())
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"spool\.folder"):
        Spool(tmp_path / "file", MB, boot_ids())
    with opened(tmp_path / "new" / "folder"):
        assert (tmp_path / "new" / "folder").stat().st_mode & 0o777 == 0o700


def test_record_that_ended_before_a_kill_is_not_found_again(tmp_path: Path) -> None:
    """kill -9 between any two steps: what was ended stays ended, what was written is there."""
    script = f"""
import os, signal, sys
from pathlib import Path
from tests.nodes.test_spool import boot_ids, frame, Spool, MB
spool = Spool(Path({str(tmp_path)!r}), MB, boot_ids())
for sequence in range(200):
    spool.append(frame(sequence), 0)
    if sequence % 3 == 0:
        spool.end(("gate", sequence))
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", script], check=False, cwd=Path(__file__).parents[2])
    assert done.returncode == -signal.SIGKILL
    with opened(tmp_path) as spool:
        assert [found.sequence for found in spool.recovered] == [number for number in range(200) if number % 3]
        assert spool.corrupt == 0


@contextmanager
def file_size_limit(limit_bytes: int) -> Iterator[None]:
    """As on a disk with so much space for one file; Python ignores the signal and gets EFBIG."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_full_disk_refuses_frames_and_takes_them_again_later(tmp_path: Path) -> None:
    with opened(tmp_path) as spool:
        spool.append(frame(0), 0)
        with file_size_limit(100):
            with pytest.raises(SpoolFullError, match="disk"):
                spool.append(frame(1), 0)
            assert not spool.has_room(1)
            assert not spool.has_room(RETRY_NS)
            # What is there is sent and ended all the same.
            assert send_next(spool) == 0
            spool.end(("gate", 0))
        assert not spool.has_room(RETRY_NS + 1)
        assert spool.has_room(2 * RETRY_NS)
        spool.append(frame(2), 2 * RETRY_NS)
        assert not (tmp_path / "probe").exists()
    with opened(tmp_path) as spool:
        assert [found.sequence for found in spool.recovered] == [2]
        assert spool.corrupt == 0


def test_limit_on_one_file_only_makes_more_files(tmp_path: Path) -> None:
    with opened(tmp_path) as spool, file_size_limit(5_000):
        for sequence in range(20):
            spool.append(frame(sequence), 0)
        assert [send_next(spool) for _ in range(21)] == [*range(20), None]
    with opened(tmp_path) as spool:
        assert len(spool.recovered) == 20
        assert spool.corrupt == 0


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=448k", "tmpfs", str(folder)], check=False)
    if made.returncode:
        pytest.skip("only root may mount a small disk")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_disk_that_is_really_full(small_disk: Path) -> None:
    now_ns, dropped = 0, 0
    with opened(small_disk, 64 * MB) as spool:
        for sequence in range(1000):
            now_ns += 10_000_000
            if spool.has_room(now_ns):
                try:
                    spool.append(frame(sequence), now_ns)
                except SpoolFullError:
                    dropped += 1
        kept = len(spool)
        assert kept > 300
        # The disk is looked at now and then; frames are not thrown at it.
        assert dropped <= 2
        for sequence in range(0, 1000, 2):
            spool.end(("gate", sequence))
    with opened(small_disk, 64 * MB) as spool:
        assert 0 < len(spool.recovered) < kept
        assert all(found.sequence % 2 for found in spool.recovered)
        assert spool.corrupt == 0


def test_ended_frame_is_marked_on_the_disk_at_once(tmp_path: Path) -> None:
    with opened(tmp_path) as spool:
        spool.append(frame(0), 0)
        spool.append(frame(1), 0)
        spool.end(("gate", 0))
        assert files(tmp_path)[0].read_bytes()[4:8] == DONE
