"""What is kept of frames that broke workers."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from nodes.cloud import AnsweredFrame
from nodes.quarantine import Quarantine
from pipeline.cloud_actions import Answer, FrameArrived
from pipeline.ledger import Outcome
from pipeline.wire import FrameMessage
from tests.fakes import BUNDLE_ID, make_bitstream


def answered(number: int, outcome: Outcome = Outcome.POISON, in_ledger: Outcome | None = None) -> AnsweredFrame:
    message = FrameMessage(0, number, 0, 0, None, make_bitstream(words=number.to_bytes(4, "little")), b"a picture")
    frame = FrameArrived(number, "dock", "gate", BUNDLE_ID, message, received_ns=0, born_ns=0)
    return AnsweredFrame(frame, Answer(outcome, text="why"), in_ledger or outcome, 4, 48, 0)


def test_bitstream_alone_is_kept_and_nobody_else_may_read_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "cache/quarantine"
    quarantine = Quarantine(folder, 4)
    assert not folder.exists()
    before = os.umask(0)
    try:
        with caplog.at_level(logging.WARNING):
            quarantine.answered(answered(1))
    finally:
        os.umask(before)
    (file,) = folder.iterdir()
    assert file.read_bytes() == answered(1).frame.frame.bitstream
    assert folder.stat().st_mode & 0o777 == 0o700
    assert file.stat().st_mode & 0o777 == 0o600
    assert str(file) in caplog.text


def test_newest_are_kept_and_each_once(tmp_path: Path) -> None:
    quarantine = Quarantine(tmp_path, 3)
    (tmp_path / "note.txt").write_text("not ours")
    for number in (0, 1, 1, 2, 3, 4):
        quarantine.answered(answered(number))
        for place, file in enumerate(sorted(tmp_path.glob("*.bitstream"), key=lambda file: file.stat().st_mtime_ns)):
            os.utime(file, ns=(place, place))
    kept = {file.read_bytes() for file in tmp_path.glob("*.bitstream")}
    assert kept == {answered(number).frame.frame.bitstream for number in (2, 3, 4)}
    assert (tmp_path / "note.txt").exists()


def test_only_poison_is_kept_also_when_its_node_is_gone(tmp_path: Path) -> None:
    quarantine = Quarantine(tmp_path, 3)
    for outcome in (Outcome.OK, Outcome.CORRUPT, Outcome.WORKER_LOST):
        quarantine.answered(answered(1, outcome))
    assert list(tmp_path.iterdir()) == []
    quarantine.answered(answered(2, Outcome.POISON, in_ledger=Outcome.UNROUTABLE))
    assert len(list(tmp_path.iterdir())) == 1


def test_none_is_kept_when_none_may_be(tmp_path: Path) -> None:
    Quarantine(tmp_path / "absent", 0).answered(answered(1))
    assert not (tmp_path / "absent").exists()


def test_folder_that_cannot_be_written_is_said_and_harms_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    Quarantine(tmp_path / "file", 3).answered(answered(1))
    assert "poisonous frame not kept" in caplog.text
