"""A real cloud whose workers do to themselves what a frame's reference orders: no sound frame is known that does."""

from __future__ import annotations

import functools
import os
import signal
import socket
import zlib
from collections.abc import Sequence
from typing import Any

import nodes.cloud_command
import nodes.worker
from nodes.cli import cloud_main as real_cloud_main
from nodes.pool import WorkerPool
from nodes.worker import WorkerSpec, worker_main
from pipeline.decoding import BatchDecoder, CodedFrame
from pipeline.frames import VIEW_BYTES

LEAK_BYTES = 512 * 2**20
LEAKED: list[bytearray] = []


class PanicException(BaseException):
    """As that of native code."""


def order(word: str) -> bytes:
    """The reference that orders something: "crash", "hang", "leak" or "panic"."""
    return zlib.compress(word.encode().ljust(VIEW_BYTES, b"\0"))


class FragileDecoder(BatchDecoder):
    """Obeys, then decodes."""

    def decode(self, frames: Sequence[CodedFrame]) -> Any:
        for frame in frames:
            word = zlib.decompress(frame.reference)[:8].rstrip(b"\0") if frame.reference else b""
            if word == b"crash":
                os.kill(os.getpid(), signal.SIGSEGV)
            elif word == b"hang":
                signal.pause()
            elif word == b"leak":
                LEAKED.append(bytearray(b"x") * LEAK_BYTES)
            elif word == b"panic":
                raise PanicException("index out of bounds")
        return super().decode(frames)


def fragile_worker(end: socket.socket, spec: WorkerSpec) -> None:
    """Target of the worker processes."""
    nodes.worker.BatchDecoder = FragileDecoder  # type: ignore[misc]
    worker_main(end, spec)


def cloud_main() -> int:
    """`rac-cloud` with fragile workers."""
    nodes.cloud_command.WorkerPool = functools.partial(WorkerPool, target=fragile_worker)  # type: ignore[misc,assignment]
    return real_cloud_main()
