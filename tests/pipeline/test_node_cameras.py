"""What a node's page says of its cameras; counts are those of the ledger."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.ledger import Ledger, Outcome
from pipeline.node_cameras import NodeCameras, SourceState

S = 1_000_000_000
MS = 1_000_000


class Node:
    """A node with the camera `door`, one frame a second."""

    def __init__(self) -> None:
        self.now_ns = 0
        self.ledger = Ledger(["door"])
        self.cameras = NodeCameras("dock", ["door"], 0)
        self.sequence = 0
        self.cameras.sample(self.ledger.snapshot(), 0)

    def up(self) -> None:
        self.cameras.change_source("door", SourceState.UP, "", self.now_ns)
        self.cameras.change_link("", self.now_ns)

    def run(self, seconds: int, outcome: Outcome | None = Outcome.OK) -> None:
        for _ in range(seconds):
            self.now_ns += S
            if outcome is not None:
                self._frame(outcome)
            if self.cameras.is_due(self.now_ns):
                self.cameras.sample(self.ledger.snapshot(), self.now_ns)

    def _frame(self, outcome: Outcome) -> None:
        self.ledger.capture("door", self.sequence, self.now_ns - 50 * MS)
        if outcome is Outcome.OK:
            self.ledger.send(
                "door",
                self.sequence,
                self.now_ns,
                depth=4,
                level16=40,
                bitstream_bytes=900,
                coded_pixels=1,
                wire_bytes=950,
            )
            self.cameras.encode("door", 4, 2.5, self.now_ns)
            self.ledger.answer("door", self.sequence, outcome, self.now_ns, wire_bytes=50)
            self.cameras.answer("door", ("mug", 0.5), 50 * MS, None, self.now_ns)
        else:
            self.ledger.drop("door", self.sequence, outcome, self.now_ns)
        self.sequence += 1

    def row(self) -> dict[str, Any]:
        (row,) = self.cameras.document(self.ledger.snapshot(), self.now_ns)["cameras"]
        return row


@pytest.fixture
def node() -> Node:
    return Node()


def test_good_camera_shows_its_figures(node: Node) -> None:
    node.up()
    node.run(60)
    row = node.row()
    assert (row["node"], row["camera"], row["state"], row["why"]) == ("dock", "door", "ok", "")
    assert (row["fps"], row["kbps"], row["latency_ms"], row["depth"]) == (1.0, 8.0, 50.0, 4)
    assert (row["frames"], row["results"]) == (60, 60)
    totals = node.cameras.document(node.ledger.snapshot(), node.now_ns)["totals"]
    assert (totals["bytes_per_hour"], totals["bad"]) == (3600 * 1000, 0)


def test_source_that_fails_says_why_and_since_when(node: Node) -> None:
    node.up()
    node.run(5)
    node.cameras.change_source("door", SourceState.DOWN, "read_timeout: no picture comes", node.now_ns)
    node.run(20, None)
    node.cameras.change_source("door", SourceState.DOWN, "open_failed: refused", node.now_ns)
    node.run(10, None)
    row = node.row()
    assert (row["state"], row["since_s"]) == ("down", 30)
    assert row["why"] == "open_failed: refused; trying again"


def test_source_that_does_not_open_is_silent_after_a_while(node: Node) -> None:
    assert node.row()["state"] == "waiting"
    node.run(10, None)
    assert node.row()["state"] == "silent"


def test_source_that_is_through_has_ended(node: Node) -> None:
    node.up()
    node.cameras.change_source("door", SourceState.FINISHED, "", node.now_ns)
    node.run(60, None)
    assert (node.row()["state"], node.row()["since_s"]) == ("ended", 60)


def test_without_a_session_every_camera_is_silent_since_then(node: Node) -> None:
    node.up()
    node.run(20)
    node.cameras.change_link("heartbeat: cloud is silent", node.now_ns)
    node.run(5, Outcome.LINK_DOWN)
    node.cameras.change_link("no_answer: nobody there", node.now_ns)
    row = node.row()
    assert (row["state"], row["since_s"]) == ("silent", 5)
    assert row["why"] == "no session with a cloud: no_answer: nobody there"
    assert row["dropped"] == {"link_down": 5}
    node.cameras.change_link("", node.now_ns)
    node.run(1)
    assert node.row()["state"] in ("ok", "dropping")


def test_results_that_stay_away_are_noticed(node: Node) -> None:
    node.up()
    node.run(20)
    node.run(12, Outcome.EXPIRED)
    row = node.row()
    assert (row["state"], row["since_s"]) == ("silent", 12)


@pytest.mark.parametrize(
    ("outcome", "state"),
    [
        (Outcome.SUPERSEDED, "ok"),
        (Outcome.RATE_LIMIT, "ok"),
        (Outcome.NO_CREDIT, "dropping"),
        (Outcome.ENCODE_ERROR, "dropping"),
    ],
)
def test_only_losses_that_nobody_chose_are_trouble(node: Node, outcome: Outcome, state: str) -> None:
    node.up()
    node.run(40)
    node.run(8, outcome)
    row = node.row()
    assert row["state"] == state
    assert row["dropped"] == {outcome.value: 8}
