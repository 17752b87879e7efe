"""The proxy of the fault tests does what it says, or those tests would prove nothing."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from tests.fault_proxy import FaultProxy

PATIENCE_S = 20.0
CONTENT = bytes(range(256)) * 400


class Echo:
    """A server that sends back what it gets, to any number of connections."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.listener.getsockname()[1]
        self.received: list[int] = []
        self._threads: list[threading.Thread] = []
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for thread in (self._accepting, *self._threads):
            thread.join(PATIENCE_S)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
            thread.start()
            self._threads.append(thread)

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            try:
                while content := connection.recv(65_536):
                    self.received.append(len(content))
                    connection.sendall(content)
            except OSError:
                return


@pytest.fixture
def echo() -> Iterator[Echo]:
    made = Echo()
    yield made
    made.close()


@pytest.fixture
def proxy(echo: Echo) -> Iterator[FaultProxy]:
    with FaultProxy(echo.port, seed=1) as made:
        yield made


@pytest.fixture
def client(proxy: FaultProxy) -> Iterator[socket.socket]:
    with connect(proxy) as made:
        yield made


def connect(proxy: FaultProxy) -> socket.socket:
    return socket.create_connection(("127.0.0.1", proxy.port), PATIENCE_S)


def receive(client: socket.socket, num_bytes: int) -> bytes:
    """So many bytes, or fewer when the connection ends before."""
    content = b""
    try:
        while len(content) < num_bytes and (piece := client.recv(num_bytes - len(content))):
            content += piece
    except ConnectionError:
        pass
    return content


def wait_until(is_met: Callable[[], bool]) -> None:
    limit_s = time.monotonic() + PATIENCE_S
    pause = threading.Event()
    while not is_met():
        assert time.monotonic() < limit_s
        pause.wait(0.01)


def test_bytes_pass_unharmed(client: socket.socket, proxy: FaultProxy) -> None:
    client.sendall(CONTENT)
    assert receive(client, len(CONTENT)) == CONTENT
    assert proxy.up.passed_bytes == proxy.down.passed_bytes == len(CONTENT)
    assert proxy.connections == proxy.accepted == 1


def test_delay_holds_every_piece_and_keeps_the_order(client: socket.socket, proxy: FaultProxy) -> None:
    proxy.up.delay_s, proxy.down.delay_s, proxy.up.jitter_s = 0.1, 0.1, 0.05
    begun_s = time.monotonic()
    for start in range(0, len(CONTENT), 10_000):
        client.sendall(CONTENT[start : start + 10_000])
    assert receive(client, len(CONTENT)) == CONTENT
    assert time.monotonic() - begun_s >= 0.2


def test_stall_holds_everything_up_and_loses_nothing(client: socket.socket, proxy: FaultProxy) -> None:
    proxy.stall()
    client.sendall(CONTENT)
    with connect(proxy) as second:
        second.sendall(b"x")
        client.settimeout(0.3)
        with pytest.raises(TimeoutError):
            client.recv(1)
        client.settimeout(PATIENCE_S)
        assert proxy.up.passed_bytes == 0
        proxy.resume()
        assert receive(client, len(CONTENT)) == CONTENT
        assert receive(second, 1) == b"x"


def test_reset_ends_every_connection_and_lets_new_ones_in(client: socket.socket, proxy: FaultProxy) -> None:
    client.sendall(b"x")
    assert receive(client, 1) == b"x"
    proxy.reset()
    with pytest.raises(ConnectionResetError):
        client.recv(1)
    wait_until(lambda: proxy.connections == 0)
    with connect(proxy) as second:
        second.sendall(b"y")
        assert receive(second, 1) == b"y"


def test_refusal_lasts_until_resume(client: socket.socket, proxy: FaultProxy) -> None:
    proxy.refuse()
    try:
        with connect(proxy) as second:
            assert receive(second, 1) == b""
    except ConnectionResetError:
        pass  # it was faster than this side could say that it is connected
    proxy.resume()
    with connect(proxy) as third:
        third.sendall(b"z")
        assert receive(third, 1) == b"z"


def test_target_that_is_not_there_is_a_broken_connection() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with FaultProxy(port) as proxy:
        try:
            with connect(proxy) as client:
                assert receive(client, 1) == b""
        except ConnectionResetError:
            pass  # as above


def test_split_makes_small_pieces(client: socket.socket, proxy: FaultProxy, echo: Echo) -> None:
    proxy.up.piece_bytes, proxy.up.bytes_per_s = 7, 7_000.0
    client.sendall(CONTENT[:700])
    assert receive(client, 700) == CONTENT[:700]
    assert len(echo.received) > 20


def test_truncation_cuts_after_so_many_bytes(client: socket.socket, proxy: FaultProxy) -> None:
    proxy.down.bytes_left = 1000
    client.sendall(CONTENT)
    assert receive(client, len(CONTENT)) == CONTENT[:1000]
    assert proxy.down.bytes_left is None


def test_corruption_flips_about_one_bit_in_so_many_bytes(client: socket.socket, proxy: FaultProxy) -> None:
    proxy.down.corrupt_every = 1000
    client.sendall(CONTENT)
    got = receive(client, len(CONTENT))
    assert len(got) == len(CONTENT)
    flipped = [one ^ other for one, other in zip(CONTENT, got, strict=True) if one != other]
    assert len(CONTENT) / 2000 < len(flipped) < len(CONTENT) / 500
    assert all(bits.bit_count() == 1 for bits in flipped)


def test_slow_line_holds_the_sender_up(client: socket.socket, proxy: FaultProxy) -> None:
    """Its queue is short: a proxy that took everything in would hide what a slow line does."""
    proxy.up.bytes_per_s = 10_000.0
    client.settimeout(0.5)
    with pytest.raises(TimeoutError):
        client.sendall(bytes(64_000_000))
