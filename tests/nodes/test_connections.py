"""What libzmq would keep for ever is noticed and its connection cut; with raw sockets that speak ZMTP."""

from __future__ import annotations

import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import zmq

from nodes.connections import MAX_SILENT, ConnectionGuard, received_bytes
from nodes.frontdoor import FrontDoor

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks at descriptors in /proc")

PATIENCE_S = 60.0
MAX_MESSAGE_BYTES = 100_000
# Greeting of ZMTP 3.0 with the mechanism NULL, READY of a DEALER, and the head of a part that is not the last.
GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
READY = b"\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER"
PART = b"\x03" + struct.pack(">Q", 50_000) + bytes(50_000)
LAST_PART = b"\x00\x01x"


def until(is_met: Callable[[], object], what: str) -> None:
    limit_s = time.monotonic() + PATIENCE_S
    pause = threading.Event()
    while not is_met():
        assert time.monotonic() < limit_s, what
        pause.wait(0.02)


@pytest.fixture
def context() -> Iterator[zmq.Context[zmq.Socket[bytes]]]:
    made: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    yield made
    made.term()


@pytest.fixture
def door(context: zmq.Context[zmq.Socket[bytes]]) -> Iterator[FrontDoor]:
    made = FrontDoor(context, "tcp://127.0.0.1:*", MAX_MESSAGE_BYTES, window_frames=2)
    yield made
    made.close(0)


def port_of(door: FrontDoor) -> int:
    return int(door.endpoint.rpartition(":")[2])


def connect(door: FrontDoor) -> socket.socket:
    """A connection that has shaken hands as a DEALER."""
    link = socket.create_connection(("127.0.0.1", port_of(door)), PATIENCE_S)
    link.sendall(GREETING)
    read = 0
    while read < len(GREETING):
        read += len(link.recv(len(GREETING) - read))
    link.sendall(b"\x04" + bytes([len(READY)]) + READY)
    assert link.recv(200)
    return link


def is_open(link: socket.socket) -> bool:
    link.setblocking(False)
    try:
        while link.recv(1000):
            pass
    except BlockingIOError:
        return True
    except ConnectionError:
        return False
    finally:
        link.settimeout(PATIENCE_S)
    return False


def test_message_that_never_ends_costs_its_connection_and_no_other(door: FrontDoor) -> None:
    honest, endless = connect(door), connect(door)
    with honest, endless:
        # A window that is full when the end comes stays so: then the sender waits instead of being reset.
        endless.settimeout(2.0)
        with suppress(ConnectionError, TimeoutError):
            for _ in range(2000):  # 100 MB
                endless.sendall(PART)
        until(lambda: not is_open(endless), "still connected")
        assert door.connections.ended == 1
        honest.sendall(LAST_PART)
        found: list[tuple[bytes, list[bytes]]] = []
        until(lambda: found.extend(door.receive(10)) or found, "nothing came")
        assert [parts for _, parts in found] == [[b"x"]]
        assert is_open(honest)


def test_honest_traffic_is_never_cut_however_much_it_is(door: FrontDoor) -> None:
    """Far more in all than may be on the way at once."""
    with connect(door) as link:
        for _ in range(100):
            link.sendall(PART + LAST_PART)
            until(lambda: list(door.receive(10)), "nothing came")
        door.connections.look()
        assert is_open(link)
    assert door.connections.ended == 0


def test_connection_of_the_last_message_can_be_ended(door: FrontDoor) -> None:
    first, second = connect(door), connect(door)
    with first, second:
        for link in (second, first):
            link.sendall(LAST_PART)
            until(lambda: list(door.receive(10)), "nothing came")
        door.end_last_connection()
        until(lambda: not is_open(first), "still connected")
        assert is_open(second)


def test_many_connections_together_are_bounded_too(door: FrontDoor) -> None:
    guard = ConnectionGuard(port_of(door), limit_bytes=1_000_000, total_bytes=1_500_000)
    links = [connect(door) for _ in range(3)]
    # Below what the door's own guard allows each of them.
    for link, parts in zip(links, (10, 14, 12), strict=True):
        link.sendall(PART * parts)
    until(lambda: sum(_received(door)) > 1_800_000, "not received")
    guard.look()
    until(lambda: not is_open(links[1]), "the largest is still connected")
    assert [is_open(link) for link in links] == [True, False, True]
    assert guard.ended == 1
    for link in links:
        link.close()


def test_strangers_that_say_nothing_cannot_use_up_the_descriptors(door: FrontDoor) -> None:
    """The oldest of them go; who has spoken stays, and so does who has just come."""
    speaker = connect(door)
    speaker.sendall(LAST_PART)
    until(lambda: list(door.receive(10)), "nothing came")
    until(lambda: not door.connections._is_read, "the guard does not look")
    strangers = [socket.create_connection(("127.0.0.1", port_of(door))) for _ in range(MAX_SILENT + 20)]
    until(lambda: len(_received(door)) == MAX_SILENT + 21, "not all are there")
    # While the cloud starts, a whole fleet may wait to be heard.
    for _ in range(2):
        door.connections.look()
    assert door.connections.ended == 0
    until(lambda: list(door.receive(10)) or door.connections.ended >= 20, "nobody was ended")
    newcomer = connect(door)
    assert is_open(speaker)
    assert is_open(newcomer)
    until(lambda: len(_received(door)) <= MAX_SILENT + 2, "too many are left")
    for link in (speaker, newcomer, *strangers):
        link.close()


def _received(door: FrontDoor) -> list[int]:
    found = [received_bytes(int(path.name), port_of(door)) for path in Path("/proc/self/fd").iterdir()]
    return [number for number in found if number is not None]


def test_only_connections_of_the_port_are_ever_ended(door: FrontDoor, tmp_path: Path) -> None:
    """Descriptors are numbers that the next file gets again."""
    guard = ConnectionGuard(port_of(door), 0)
    left, right = socket.socketpair()
    with left, right, (tmp_path / "file").open("w") as file, socket.create_server(("127.0.0.1", 0)) as other:
        with socket.create_connection(other.getsockname()) as link, other.accept()[0] as accepted:
            for each in (left, file, other, link, accepted, door.socket.fd):
                guard.end(each if isinstance(each, int) else each.fileno())
            accepted.sendall(b"x")
            assert link.recv(1) == b"x"
        left.sendall(b"x")
        assert right.recv(1) == b"x"
    guard.end(-1)
    assert guard.ended == 0


def test_local_socket_has_no_such_connections(context: zmq.Context[zmq.Socket[bytes]], tmp_path: Path) -> None:
    door = FrontDoor(context, f"ipc://{tmp_path}/rac", MAX_MESSAGE_BYTES)
    with context.socket(zmq.DEALER) as dealer:
        dealer.setsockopt(zmq.LINGER, 0)
        dealer.connect(door.endpoint)
        dealer.send(b"x")
        until(lambda: list(door.receive(10)), "nothing came")
        door.end_last_connection()
        dealer.send(b"y")
        until(lambda: list(door.receive(10)), "nothing came")
    door.close(0)
