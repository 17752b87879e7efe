"""A new bundle works once one of its frames got its class, and fails by frames that only it can be to blame for."""

from __future__ import annotations

import pytest

from pipeline.bundle_trial import BAD_FRAMES, MAX_FOLLOWED, BundleTrial, Verdict
from pipeline.ledger import Outcome


def test_first_class_is_the_proof() -> None:
    trial = BundleTrial()
    trial.follow("gate", 7)
    assert trial.end("gate", 6, Outcome.OK) is None  # coded before the change
    assert trial.end("gate", 7, Outcome.OK) is Verdict.WORKS


@pytest.mark.parametrize("outcome", [Outcome.CORRUPT, Outcome.POISON])
def test_frames_that_do_not_decode_are_its_fault(outcome: Outcome) -> None:
    trial = BundleTrial()
    for sequence in range(BAD_FRAMES):
        trial.follow("gate", sequence)
    verdicts = [trial.end("gate", sequence, outcome) for sequence in range(BAD_FRAMES)]
    assert verdicts == [*[None] * (BAD_FRAMES - 1), Verdict.FAILS]


def test_frames_that_cannot_be_encoded_are_its_fault_though_they_never_got_away() -> None:
    trial = BundleTrial()
    assert [trial.end("gate", number, Outcome.ENCODE_ERROR) for number in range(3)][-1] is Verdict.FAILS


@pytest.mark.parametrize("outcome", [Outcome.LOST_IN_LINK, Outcome.EXPIRED, Outcome.STALE, Outcome.WORKER_LOST])
def test_link_and_cloud_are_not_its_fault(outcome: Outcome) -> None:
    trial = BundleTrial()
    for sequence in range(100):
        trial.follow("gate", sequence)
        assert trial.end("gate", sequence, outcome) is None


def test_old_frames_that_do_not_decode_are_not_its_fault() -> None:
    trial = BundleTrial()
    assert [trial.end("gate", number, Outcome.CORRUPT) for number in range(9)] == [None] * 9


def test_memory_is_bounded() -> None:
    trial = BundleTrial()
    for sequence in range(3 * MAX_FOLLOWED):
        trial.follow("gate", sequence)
    assert trial.end("gate", MAX_FOLLOWED, Outcome.OK) is None
