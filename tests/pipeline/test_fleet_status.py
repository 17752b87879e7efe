"""What the cloud's page says: which cameras are bad, why, since when, and what they cost."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.cloud_actions import CloseReason
from pipeline.fleet_status import MAX_GAP, FleetStatus, SlotFacts
from pipeline.ledger import Outcome

S = 1_000_000_000
MS = 1_000_000


class Fleet:
    """A fleet whose clock the test moves; one frame a second of each camera, 1000 bytes each."""

    def __init__(self, max_cameras: int = 100) -> None:
        self.now_ns = 0
        self.status = FleetStatus(max_cameras, 0)
        self.sequences: dict[tuple[str, str], int] = {}
        self.status.sample(0)

    def open(self, node: str, *cameras: str, connection: bytes | None = None) -> None:
        self.status.open_session(connection or node.encode(), node, cameras, self.now_ns)

    def close(self, node: str, reason: CloseReason, connection: bytes | None = None) -> None:
        self.status.close_session(connection or node.encode(), reason, self.now_ns)

    def frame(self, node: str, camera: str, outcome: Outcome = Outcome.OK, skipped: int = 0, **facts: Any) -> None:
        sequence = self.sequences.get((node, camera), -1) + 1 + skipped
        self.sequences[node, camera] = sequence
        self.status.receive(node, camera, sequence, 1000, self.now_ns)
        facts = {"best": ("mug", 0.5), "depth": 4, "level": 2.5} | facts
        self.status.answer(node, camera, outcome, 40 * MS, **facts)

    def run(self, seconds: int, *cameras: tuple[str, str], outcome: Outcome = Outcome.OK, skipped: int = 0) -> None:
        for _ in range(seconds):
            self.now_ns += S
            for node, camera in cameras:
                self.frame(node, camera, outcome, skipped)
            if self.status.is_due(self.now_ns):
                self.status.sample(self.now_ns)

    def rows(self) -> dict[str, dict[str, Any]]:
        return {f"{row['node']}/{row['camera']}": row for row in self.status.cameras(self.now_ns)}


DOOR = ("dock", "door")


@pytest.fixture
def fleet() -> Fleet:
    return Fleet()


def test_good_camera_shows_its_figures(fleet: Fleet) -> None:
    fleet.open("dock", "door")
    fleet.run(120, DOOR)
    row = fleet.rows()["dock/door"]
    assert (row["state"], row["why"], row["since_s"]) == ("ok", "", 120)
    assert (row["class"], row["probability"], row["depth"], row["level"]) == ("mug", 0.5, 4, 2.5)
    assert (row["fps"], row["kbps"], row["latency_ms"]) == (1.0, 8.0, 40.0)
    assert (row["dropped_share"], row["dropped"]) == (0.0, {})
    assert row["bytes_per_hour"] == 3600 * 1000
    assert row["series"] == [1.0] * 24
    assert row["agreement"] is None


def test_connected_camera_waits_and_then_is_silent(fleet: Fleet) -> None:
    fleet.open("dock", "door")
    assert fleet.rows()["dock/door"]["state"] == "waiting"
    fleet.run(9)
    assert fleet.rows()["dock/door"]["state"] == "waiting"
    fleet.run(1)
    row = fleet.rows()["dock/door"]
    assert (row["state"], row["since_s"]) == ("silent", 10)


def test_silence_is_counted_from_the_last_frame(fleet: Fleet) -> None:
    fleet.open("dock", "door", "yard")
    fleet.run(60, DOOR, ("dock", "yard"))
    fleet.run(45, DOOR)
    rows = fleet.rows()
    assert rows["dock/door"]["state"] == "ok"
    assert (rows["dock/yard"]["state"], rows["dock/yard"]["since_s"]) == ("silent", 45)
    assert rows["dock/yard"]["frame_age_s"] == 45
    fleet.run(1, ("dock", "yard"))
    assert fleet.rows()["dock/yard"]["state"] == "ok"


@pytest.mark.parametrize("reason", CloseReason)
def test_lost_node_takes_its_cameras_down_and_a_goodbye_does_not(fleet: Fleet, reason: CloseReason) -> None:
    fleet.open("dock", "door")
    fleet.run(5, DOOR)
    fleet.close("dock", reason)
    fleet.run(70)
    row = fleet.rows()["dock/door"]
    assert row["state"] == ("ended" if reason in (CloseReason.BYE, CloseReason.SHUTDOWN) else "down")
    assert row["since_s"] == 70
    assert row["why"]
    assert (row["fps"], row["bytes_per_hour"]) == (0.0, 0.0), "it costs nothing now"


def test_node_that_comes_back_is_well_again(fleet: Fleet) -> None:
    fleet.open("dock", "door")
    fleet.run(5, DOOR)
    fleet.close("dock", CloseReason.LOST)
    fleet.run(30)
    fleet.open("dock", "door", connection=b"second")
    fleet.run(2, DOOR)
    row = fleet.rows()["dock/door"]
    assert (row["state"], row["since_s"]) == ("ok", 2)


def test_old_connection_of_a_restarted_node_ends_without_harm(fleet: Fleet) -> None:
    """It times out while the new one is in use."""
    fleet.open("dock", "door", connection=b"old")
    fleet.open("dock", "door", connection=b"new")
    fleet.run(5, DOOR)
    fleet.close("dock", CloseReason.TIMEOUT, connection=b"old")
    assert fleet.rows()["dock/door"]["state"] == "ok"
    fleet.close("dock", CloseReason.TIMEOUT, connection=b"new")
    assert fleet.rows()["dock/door"]["state"] == "down"


def test_losses_name_their_reason_and_their_beginning(fleet: Fleet) -> None:
    fleet.open("dock", "door")
    fleet.run(60, DOOR)
    fleet.run(30, DOOR, outcome=Outcome.STALE)
    row = fleet.rows()["dock/door"]
    assert (row["state"], row["since_s"]) == ("dropping", 30)
    assert row["why"] == "30 of 60 frames lost in a minute: stale 30"
    assert row["dropped"] == {"stale": 30}
    assert row["dropped_share"] == 0.5


def test_few_losses_are_no_trouble(fleet: Fleet) -> None:
    fleet.open("dock", "door")
    fleet.run(58, DOOR)
    fleet.run(2, DOOR, outcome=Outcome.CORRUPT)
    assert fleet.rows()["dock/door"]["state"] == "ok"
    fleet.run(2, DOOR, outcome=Outcome.CORRUPT)
    assert fleet.rows()["dock/door"]["state"] == "dropping"


def test_numbers_that_never_came_are_shown_and_not_judged(fleet: Fleet) -> None:
    """The node left them out; a live camera does so all the time."""
    fleet.open("dock", "door")
    fleet.run(60, DOOR, skipped=2)
    row = fleet.rows()["dock/door"]
    assert row["state"] == "ok"
    assert row["dropped"] == {"at_node": 118}, "before the first one nothing is known to be missing"
    assert row["dropped_share"] == pytest.approx(2 / 3, abs=0.01)


def test_jump_of_a_sequence_cannot_spoil_the_figures(fleet: Fleet) -> None:
    fleet.open("dock", "door")
    fleet.run(1, DOOR)
    fleet.frame(*DOOR, skipped=1 << 60)
    assert fleet.rows()["dock/door"]["dropped"] == {"at_node": MAX_GAP}


def test_agreement_is_over_frames_with_a_reference(fleet: Fleet) -> None:
    fleet.open("dock", "door")
    for agrees in (True, True, False, None):
        fleet.frame(*DOOR, agrees=agrees)
    row = fleet.rows()["dock/door"]
    assert (row["agreement"], row["references"]) == (0.6667, 3)


def test_document_sums_the_fleet_up(fleet: Fleet) -> None:
    fleet.open("dock", "door")
    fleet.open("gate", "barrier")
    fleet.run(30, DOOR, ("gate", "barrier"))
    for _ in range(10):
        fleet.run(1, DOOR, ("gate", "barrier"))
        fleet.status.form_batch(4, 6 * MS)
        fleet.status.finish_batch(0, S // 2, 4)
    fleet.close("gate", CloseReason.LOST)
    fleet.status.lose_worker(1)
    slots = [SlotFacts(0, "busy", 0, 600_000_000), SlotFacts(1, "dead", 34 * S, 0)]
    document = fleet.status.document(slots, fleet.now_ns)
    totals = document["totals"]
    assert (totals["cameras"], totals["bad"]) == (2, 1)
    assert totals["fps"] == 2.0
    assert document["series"]["kbps"] == [16.0] * 8
    assert document["batches"]["frames"] == 4.0
    assert document["batches"]["wait_ms"] == 6.0
    first, second = document["workers"]
    assert (first["busy_share"], first["fps"]) == (0.5, 4.0)
    assert (first["memory_bytes"], second["memory_bytes"]) == (600_000_000, None)
    assert (second["state"], second["since_s"], second["losses"]) == ("dead", 6, 1)


def test_cameras_are_bounded_and_those_gone_first_make_room(fleet: Fleet) -> None:
    fleet = Fleet(max_cameras=2)
    fleet.open("a", "one")
    fleet.open("b", "two")
    fleet.open("c", "three")
    assert set(fleet.rows()) == {"a/one", "b/two"}
    assert fleet.status.document([], 0)["left_out"] == 1
    fleet.frame("c", "three")
    assert fleet.status.document([], 0)["cameras"][0]["frames"] == 0
    fleet.close("c", CloseReason.BYE)
    fleet.now_ns = S
    fleet.close("b", CloseReason.BYE)
    fleet.now_ns = 2 * S
    fleet.close("a", CloseReason.BYE)
    fleet.open("d", "four")
    assert set(fleet.rows()) == {"a/one", "d/four"}
    assert fleet.status.document([], 0)["left_out"] == 0


def test_document_before_anything_happened_is_whole() -> None:
    document = FleetStatus(10, 0).document([], S)
    assert document["cameras"] == []
    assert document["totals"]["fps"] is None
    assert document["series"]["fps"] == []
