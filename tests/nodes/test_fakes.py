"""The fakes keep the rules of what they stand for: each check runs on both."""

from __future__ import annotations

import select
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import zmq

from nodes.capture import CameraReader
from nodes.capture_events import CaptureEvent, Finished, FrameArrived
from nodes.capture_link import CaptureOptions
from nodes.frontdoor import FrontDoor
from nodes.sources import parse_source
from nodes.uplink import Uplink
from pipeline.bitstream import parse_bitstream
from pipeline.bundle import load_bundle
from pipeline.encoder import Encoder, OperatingPoint
from pipeline.wire import Bye, Ping, pack, parse
from tests.fakes import VIEW, FakeClock, FakeDoor, FakeEncoder, FakeReader, FakeUplink

PATIENCE_MS = 60_000


class FakePeer:
    """The other end of a FakeUplink, as `RealPeer` is of a real one."""

    def __init__(self) -> None:
        self.uplink = FakeUplink(lambda message: [])

    def wait_for_connection(self) -> None:
        pass

    def answer(self) -> None:
        self.uplink.deliver(Bye("over"))

    def wait_for_answer(self) -> None:
        pass

    def received(self) -> int:
        return len(self.uplink.sent)

    def close(self) -> None:
        pass


class RealPeer:
    """A ROUTER on this machine and the Uplink to it."""

    endpoint = ""

    def __init__(self) -> None:
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.door = FrontDoor(self.context, "tcp://127.0.0.1:*", 262_144)
        self.endpoint = self.door.endpoint
        self.uplink = Uplink(self.context)
        self._routing_id = b""
        self._received = 0

    def wait_for_connection(self) -> None:
        assert self.uplink.socket is not None
        assert self.uplink.socket.poll(PATIENCE_MS, zmq.POLLOUT)

    def answer(self) -> None:
        assert self.door.send(self._routing_id, pack(Bye("over")))

    def wait_for_answer(self) -> None:
        assert self.uplink.socket is not None
        assert self.uplink.socket.poll(PATIENCE_MS)

    def received(self) -> int:
        if self.door.socket.poll(PATIENCE_MS):
            for routing_id, _ in self.door.receive(10):
                self._routing_id = routing_id
                self._received += 1
        return self._received

    def close(self) -> None:
        self.uplink.close()
        self.door.close(0)
        self.context.term()


@pytest.fixture(params=[FakePeer, RealPeer])
def peer(request: pytest.FixtureRequest) -> Iterator[Any]:
    made = request.param()
    yield made
    made.close()


def test_uplink_takes_nothing_while_closed(peer: Any) -> None:
    assert not peer.uplink.send(pack(Ping(1, 2)))
    assert peer.uplink.receive() == []
    peer.uplink.close()
    peer.uplink.close()


def test_uplink_carries_messages_both_ways(peer: Any) -> None:
    peer.uplink.open(getattr(peer, "endpoint", ""))
    peer.wait_for_connection()
    assert peer.uplink.send(pack(Ping(1, 2)))
    assert peer.received() == 1
    peer.answer()
    peer.wait_for_answer()
    assert [parse(parts) for parts in peer.uplink.receive()] == [Bye("over")]
    assert peer.uplink.receive() == []
    assert peer.uplink.sent_bytes > 0
    assert peer.uplink.received_bytes > 0


def test_uplink_keeps_a_greeting_until_somebody_is_there(peer: Any) -> None:
    peer.uplink.open(getattr(peer, "endpoint", ""))
    peer.uplink.send_when_connected(pack(Ping(1, 2)))
    peer.wait_for_connection()
    peer.uplink.flush()
    peer.uplink.flush()
    assert peer.received() == 1


def test_uplink_forgets_what_came_for_the_session_before(peer: Any) -> None:
    peer.uplink.open(getattr(peer, "endpoint", ""))
    peer.wait_for_connection()
    assert peer.uplink.send(pack(Ping(1, 2)))
    assert peer.received() == 1
    peer.answer()
    peer.wait_for_answer()
    peer.uplink.close()
    assert peer.uplink.receive() == []


def test_uplink_without_a_peer_takes_nothing_and_does_not_wait() -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    real, fake = Uplink(context), FakeUplink(peer=None)
    real.open("tcp://127.0.0.1:9")
    fake.open("tcp://127.0.0.1:9")
    assert not real.send(pack(Ping(1, 2)))
    assert not fake.send(pack(Ping(1, 2)))
    real.close()
    context.term()


def test_door_says_that_a_node_is_gone() -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    real, fake = FrontDoor(context, "tcp://127.0.0.1:*", 262_144), FakeDoor()
    fake.gone.add(b"who")
    assert not real.send(b"who", pack(Bye("")))
    assert not fake.send(b"who", pack(Bye("")))
    assert list(real.receive(5)) == list(fake.receive(5)) == []
    real.close(0)
    fake.close()
    context.term()


@pytest.fixture(params=["fake", "real"])
def encoder(request: pytest.FixtureRequest) -> Any:
    if request.param == "fake":
        return FakeEncoder(FakeClock(), {0: 1})
    return Encoder(load_bundle("default"))


def test_encoder_makes_whole_bitstreams_of_its_point(encoder: Any) -> None:
    point = OperatingPoint(0, encoder.bundle.manifest.levels16[0] if isinstance(encoder, Encoder) else 16)
    bitstream = parse_bitstream(encoder.encode(VIEW, point))
    assert (bitstream.depth, bitstream.level16) == (point.depth, point.level16)
    assert encoder.pack(encoder.symbols(VIEW, point), point) == encoder.encode(VIEW, point)


@pytest.fixture(params=["fake", "real"])
def reader(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    """A folder of two pictures."""
    if request.param == "fake":
        yield FakeReader("photos", is_live=False)
        return
    for number in range(2):
        assert cv2.imwrite(str(tmp_path / f"{number}.png"), np.full((300, 300, 3), 90 * number, np.uint8))
    made = CameraReader("photos", parse_source(str(tmp_path)), CaptureOptions(fps="max"), lambda: 0.0)
    yield made
    made.kill()


def next_event(reader: Any, kind: type[CaptureEvent], waiting: list[CaptureEvent]) -> Any:
    """The next event of a kind; a fake is told to make it.

    Args:
        waiting: what came together with an event that was asked for.
    """
    if isinstance(reader, FakeReader):
        if kind is FrameArrived:
            reader.give(time.monotonic_ns())
        else:
            reader.finish()
        return reader.receive(0)[-1]
    while True:
        while waiting:
            if isinstance(event := waiting.pop(0), kind):
                return event
        assert select.select([reader.fileno()], [], [], PATIENCE_MS / 1000)[0]
        waiting += reader.receive(time.monotonic_ns())


def test_reader_gives_one_frame_for_a_request_and_ends(reader: Any) -> None:
    reader.start(time.monotonic_ns())
    assert not reader.has_ended
    waiting: list[CaptureEvent] = []
    for sequence in range(2):
        reader.request()
        reader.request()
        event = next_event(reader, FrameArrived, waiting)
        assert (event.frame.camera, event.frame.sequence, event.captured_total) == ("photos", sequence, sequence + 1)
        assert event.frame.view.shape == VIEW.shape
    reader.request()
    assert next_event(reader, Finished, waiting).captured_total == 2
    assert reader.has_ended
    reader.kill()
    reader.kill()
    assert reader.has_ended
    assert reader.fileno() == -1
