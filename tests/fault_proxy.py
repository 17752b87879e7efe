"""A TCP proxy that does to a connection what a bad network does: delays, stalls, cuts, splits, truncates, corrupts.

ZeroMQ runs on TCP, so packets that are lost or come in another order reach a program only as delay and as pieces of
any size; what TCP itself does about them is tested in network namespaces (`tests/netns.py`).

    with FaultProxy(port_of_the_cloud) as proxy:
        ... a node connects to proxy.endpoint ...
        proxy.stall()       # nothing passes, connections stay open: an unplugged cable
        proxy.resume()
        proxy.reset()       # every connection ends with RST: a firewall or a router that was restarted
        proxy.refuse()      # the same, and new ones too, until resume
        proxy.up.delay_s = 0.1

Settings may be changed at any time from any thread; they hold for what comes afterwards.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
import time
from collections.abc import Coroutine
from dataclasses import dataclass
from random import Random
from typing import Any, Self

READ_BYTES = 65_536
PATIENCE_S = 60.0
QUEUED_PIECES = 64
"""On the way in one direction; then the proxy stops reading and TCP holds the sender up, as a slow line does."""
TURN_S = 0.005


@dataclass
class Direction:
    """What happens to the bytes of one direction.

    Attributes:
        delay_s: every piece is held for so long.
        jitter_s: and for up to this much longer, drawn at random; TCP keeps the order.
        bytes_per_s: speed of the line; None: as fast as it goes.
        piece_bytes: what arrives comes in pieces of at most so many bytes; None: as sent.
        corrupt_every: one bit is flipped in about every so many bytes; None: none.
        is_stalled: nothing passes.
        bytes_left: the connection is cut after so many more bytes; None: it is not.
        passed_bytes: so many went through, over all connections.
    """

    delay_s: float = 0.0
    jitter_s: float = 0.0
    bytes_per_s: float | None = None
    piece_bytes: int | None = None
    corrupt_every: int | None = None
    is_stalled: bool = False
    bytes_left: int | None = None
    passed_bytes: int = 0


class FaultProxy:
    """Listens on a port of this machine and passes everything on to another one.

    Attributes:
        up: from who connects to the target; down: back.
        accepted: connections so far.
    """

    def __init__(self, target_port: int, *, target_host: str = "127.0.0.1", seed: int = 0) -> None:
        """Listen; bytes pass from `with` on.

        Args:
            seed: of jitter and corruption.
        """
        self.up, self.down = Direction(), Direction()
        self.accepted = 0
        self._target = (target_host, target_port)
        self._random = Random(seed)
        self._is_refusing = False
        self._writers: set[asyncio.StreamWriter] = set()
        self._loop = asyncio.new_event_loop()
        self._server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.port: int = self._server.sockets[0].getsockname()[1]
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    @property
    def endpoint(self) -> str:
        """Where to connect instead of the target, as ZeroMQ writes it."""
        return f"tcp://127.0.0.1:{self.port}"

    @property
    def connections(self) -> int:
        """Connections that are open now."""
        return len(self._writers) // 2

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._run(self._shut())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def stall(self) -> None:
        """Let nothing pass in either direction; who connects anew is heard no more either."""
        self.up.is_stalled = self.down.is_stalled = True

    def resume(self) -> None:
        """End a stall or a refusal; what was held up goes on its way."""
        self._is_refusing = self.up.is_stalled = self.down.is_stalled = False

    def reset(self) -> None:
        """End every connection at once, without a goodbye; what was on its way is lost."""
        self._run(self._reset())

    def refuse(self) -> None:
        """End every connection and every new one."""
        self._is_refusing = True
        self.reset()

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(PATIENCE_S)

    async def _shut(self) -> None:
        self._server.close()
        await self._reset()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._server.wait_closed()
        await asyncio.sleep(TURN_S)  # transports close in the turn after their abort

    async def _reset(self) -> None:
        for writer in list(self._writers):
            _abort(writer)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        if self._is_refusing:
            _abort(writer)
            return
        try:
            far_reader, far_writer = await asyncio.open_connection(*self._target)
        except OSError:  # nobody listens there now
            _abort(writer)
            return
        self._writers |= {writer, far_writer}
        try:
            async with asyncio.TaskGroup() as ways:
                ways.create_task(self._pass_on(self.up, reader, far_writer))
                ways.create_task(self._pass_on(self.down, far_reader, writer))
        except* (OSError, asyncio.CancelledError):  # one side went away, which takes the other one along; or the end
            pass
        finally:
            self._writers -= {writer, far_writer}
            _abort(writer)
            _abort(far_writer)

    async def _pass_on(self, way: Direction, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One direction of a connection; its end raises ConnectionResetError."""
        pieces: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(QUEUED_PIECES)

        async def take() -> None:
            while content := await reader.read(READ_BYTES):
                due_s = time.monotonic() + way.delay_s + way.jitter_s * self._random.random()
                await pieces.put((due_s, content))
            await pieces.put((0.0, b""))

        async def give() -> None:
            while True:
                due_s, content = await pieces.get()
                while way.is_stalled or time.monotonic() < due_s:
                    await asyncio.sleep(TURN_S)
                if not content:
                    raise ConnectionResetError("the other side ended")
                await self._write(way, writer, content)

        async with asyncio.TaskGroup() as both:
            both.create_task(take())
            both.create_task(give())

    async def _write(self, way: Direction, writer: asyncio.StreamWriter, content: bytes) -> None:
        size = way.piece_bytes or len(content)
        for start in range(0, len(content), size):
            piece = self._spoil(way, content[start : start + size])
            if way.bytes_left is not None:
                piece = piece[: way.bytes_left]
                way.bytes_left -= len(piece)
            way.passed_bytes += len(piece)
            writer.write(piece)
            await writer.drain()
            if way.bytes_left == 0:
                way.bytes_left = None
                raise ConnectionResetError("cut where the test said")
            if way.bytes_per_s is not None:
                await asyncio.sleep(len(piece) / way.bytes_per_s)
            elif way.piece_bytes is not None:
                await asyncio.sleep(0)

    def _spoil(self, way: Direction, piece: bytes) -> bytes:
        if way.corrupt_every is None:
            return piece
        spoiled = bytearray(piece)
        # Exponential distances: pieces of any size get their share.
        position = int(self._random.expovariate(1 / way.corrupt_every))
        while position < len(spoiled):
            spoiled[position] ^= 1 << self._random.randrange(8)
            position += 1 + int(self._random.expovariate(1 / way.corrupt_every))
        return bytes(spoiled)


def _abort(writer: asyncio.StreamWriter) -> None:
    """End a connection with RST, so that the peer sees a broken one and not an orderly end."""
    raw = writer.get_extra_info("socket")
    if raw is not None and raw.fileno() >= 0:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
