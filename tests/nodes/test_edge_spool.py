"""The node's loop with a spool on a real disk: nothing of a folder is lost, and nothing ends twice."""

from __future__ import annotations

import errno
from collections import Counter
from pathlib import Path

import pytest

from nodes.node_summary import summary
from nodes.spool import Spool
from pipeline.ledger import Outcome
from tests.edge_bench import Bench
from tests.fakes import MS, FakeCloud, FakeReader, S


class SpoolBench(Bench):
    """A node with one folder, one live camera, and a spool on the disk."""

    def __init__(self, spool: Spool, *, cloud: FakeCloud | None = None, **options: object) -> None:
        first = spool.first_sequence
        clip, yard = FakeReader("clip", is_live=False), FakeReader("yard")
        clip.captured = yard.captured = first
        self.first = first
        super().__init__(clip, yard, cloud=cloud, spool=spool, **options)

    def check(self) -> None:
        """The balance with a spool: what is in flight at the end is on the disk, and nothing else."""
        total = self.node.ledger.snapshot().total
        assert self.node.spool is not None
        assert total.in_flight == len(self.node.spool)
        assert total.captured == sum(reader.captured - self.first for reader in self.readers)
        assert total.captured + total.recovered == total.results + sum(total.dropped.values()) + total.in_flight
        self.node.spool.close()


def make_spool(folder: Path, limit_bytes: int = 2**20) -> Spool:
    return Spool(folder, limit_bytes, lambda: b"boot" * 4)


def sequences(bench: Bench) -> list[int]:
    return [frame.sequence for frame in bench.uplink.frames() if frame.camera == 0]


def test_spool_takes_a_folder_while_there_is_no_cloud_and_sends_it_oldest_first(tmp_path: Path) -> None:
    bench = SpoolBench(make_spool(tmp_path), cloud=FakeCloud(credit=4))
    bench.uplink.peer = None
    bench.run(
        *[step for _ in range(5) for step in (bench.give(label=967), 1)],
        bench.wait(60 * S),
        lambda: setattr(bench.uplink, "peer", bench.cloud),
        4,
        bench.give(),
        2,
    )
    assert sequences(bench) == [0, 1, 2, 3, 4, 5, 6]
    # A minute on the disk makes no frame old: it stood still.
    assert max(frame.age_us for frame in bench.uplink.frames()) == 0
    total = bench.node.ledger.snapshot().total
    assert (total.results, total.labelled, total.in_flight) == (7, 5, 0)


def test_frames_lost_with_the_link_are_sent_again_and_live_ones_are_lost(tmp_path: Path) -> None:
    bench = SpoolBench(make_spool(tmp_path), cloud=FakeCloud(outcome=None))

    def come_back() -> None:
        bench.cloud.unanswered.clear()
        bench.cloud.outcome = Outcome.OK
        bench.uplink.peer = bench.cloud

    bench.run(
        bench.give(),
        bench.give(1),
        1,
        lambda: setattr(bench.uplink, "peer", None),
        bench.give(),
        2,
        come_back,
        bench.wait(S),
        3,
    )
    assert bench.dropped("clip") == {}
    assert bench.dropped("yard") == {"lost_in_link": 1}
    assert sequences(bench) == [0, 1, 0, 1, 2]
    assert bench.node.ledger.snapshot().cameras["clip"].results == 3


def test_next_start_recovers_and_closes_every_frame_once(tmp_path: Path) -> None:
    spool = make_spool(tmp_path)
    first = SpoolBench(spool)
    first.uplink.peer = None
    first.run(*[step for _ in range(3) for step in (first.give(), 1)])
    assert first.node.ledger.snapshot().total.in_flight == 4
    assert summary(first.node)["in_flight"] == 4
    second = SpoolBench(make_spool(tmp_path))
    second.run(2, second.give(), 2)
    total = second.node.ledger.snapshot().total
    assert (total.recovered, total.captured, total.results, total.in_flight) == (4, 2, 6, 0)
    assert sequences(second) == [0, 1, 2, 3, second.first, second.first + 1]
    # An earlier run's clock says nothing: no latency is made up.
    assert [closed.latency_ns is None for closed, _ in second.notes.closed_frames[:4]] == [True] * 4
    third = make_spool(tmp_path)
    assert third.recovered == []
    third.close()


def test_result_of_a_stopping_cloud_leaves_the_frame_in_the_spool(tmp_path: Path) -> None:
    bench = SpoolBench(make_spool(tmp_path), cloud=FakeCloud(outcome=Outcome.SHUTDOWN, returns_credit=False))
    bench.run(bench.give(1), 1)
    total = bench.node.ledger.snapshot().total
    assert total.dropped == {"shutdown": 1}  # the live camera's
    assert total.in_flight == 1


def test_frame_that_the_cloud_was_too_late_for_is_sent_again(tmp_path: Path) -> None:
    """Its workers were still starting: that costs a live camera its frame, and a folder nothing."""
    bench = SpoolBench(make_spool(tmp_path), cloud=FakeCloud(outcome=Outcome.STALE))
    bench.run(bench.give(1), 2, lambda: setattr(bench.cloud, "outcome", Outcome.OK), 2, bench.give(), 2)
    assert bench.dropped("yard") == {"stale": 1}
    assert bench.dropped("clip") == {}
    assert bench.node.ledger.snapshot().cameras["clip"].results == 2
    assert len(sequences(bench)) > 2


def test_full_spool_lets_the_folder_wait(tmp_path: Path) -> None:
    bench = SpoolBench(make_spool(tmp_path, 64 * 1024))
    bench.uplink.peer = None

    def give_if_asked() -> None:
        if bench.readers[0].is_wanted:
            bench.readers[0].give(bench.clock())

    bench.run(*[give_if_asked] * 600)
    total = bench.node.ledger.snapshot().total
    assert 100 < total.captured < 500
    assert total.in_flight == total.captured
    assert total.dropped == {}


def test_disk_that_takes_nothing_is_a_drop_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bench = SpoolBench(make_spool(tmp_path))

    def refuse(descriptor: int, content: bytes, offset: int) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("nodes.spool.os.pwrite", refuse)
    bench.run(bench.wait(S), 3)
    assert bench.dropped("clip") == {"spool_full": 1}
    # It waits for the disk instead of throwing one frame after the other away.
    assert not bench.readers[0].is_wanted


def test_frame_that_is_damaged_on_the_disk_ends_as_corrupt(tmp_path: Path) -> None:
    bench = SpoolBench(make_spool(tmp_path))
    bench.uplink.peer = None

    def damage() -> None:
        (path,) = tmp_path.glob("frames-*")
        with path.open("r+b") as file:
            file.seek(60)
            file.write(b"\xff\xff\xff")

    bench.run(bench.give(), 1, damage, lambda: setattr(bench.uplink, "peer", bench.cloud), 2)
    assert bench.dropped("clip") == {"corrupt": 1}
    assert sequences(bench) == [1]


def test_live_cameras_and_the_spool_share_the_credit(tmp_path: Path) -> None:
    bench = SpoolBench(make_spool(tmp_path), cloud=FakeCloud(credit=1))
    bench.uplink.peer = None

    def give_all_that_are_asked() -> None:
        bench.clock.advance(20 * MS)
        for reader in bench.readers:
            if reader.is_wanted:
                reader.give(bench.clock())

    bench.run(
        *[give_all_that_are_asked] * 40,
        lambda: setattr(bench.uplink, "peer", bench.cloud),
        *[give_all_that_are_asked] * 60,
    )
    counts = Counter(frame.camera for frame in bench.uplink.frames())
    assert min(counts[0], counts[1]) > 3, counts


@pytest.mark.parametrize("jump_s", [-3600.0, 3600.0])
def test_wall_clock_that_jumps_changes_nothing(tmp_path: Path, jump_s: float) -> None:
    """Set back an hour, or on: decisions are made by the monotonic clock."""
    wall = [1_700_000_000.0]
    bench = SpoolBench(make_spool(tmp_path), wall_clock=lambda: wall[0])
    bench.uplink.peer = None

    def jump() -> None:
        wall[0] += jump_s

    bench.run(
        bench.give(), 1, jump, bench.give(), 1, lambda: setattr(bench.uplink, "peer", bench.cloud), 2, bench.give(), 1
    )
    assert sequences(bench) == [0, 1, 2, 3]
    assert bench.dropped("clip") == {}
    assert bench.node.ledger.snapshot().cameras["clip"].results == 4
