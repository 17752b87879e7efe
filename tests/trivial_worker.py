"""A worker process without networks: what it does with a batch stands in the batch's first bitstream."""

from __future__ import annotations

import os
import signal
import socket

from nodes.worker import READY, BatchAnswer, BatchJob
from nodes.worker_link import WorkerLink
from pipeline.decoding import BatchTimings, Classes, CodedFrame

ANSWER, CRASH, HANG, PID, GROW = b"answer", b"crash", b"hang", b"pid", b"grow"
GROWN_BYTES = 1 << 30
#: The specification that lets a worker die before it is ready.
STILLBORN = "stillborn"


def trivial_worker(end: socket.socket, spec: str) -> None:
    """Target of the process."""
    if spec == STILLBORN:
        os._exit(3)
    link = WorkerLink(end)
    link.send(READY)
    while True:
        try:
            job: BatchJob = link.receive()
        except (EOFError, OSError):
            return
        order = job.frames[0].bitstream
        if order == CRASH:
            os._exit(7)
        if order == HANG:
            signal.pause()
        text = str(os.getpid()) if order == PID else ""
        answers = tuple(text or Classes((index,), (1.0,), None) for index in range(len(job.frames)))
        grown = GROWN_BYTES if order == GROW else 1
        link.send(BatchAnswer(job.number, answers, BatchTimings(1, 2, 0), grown))


def make_job(order: bytes = ANSWER, number: int = 0, *, frames: int = 1) -> BatchJob:
    """A batch for it."""
    return BatchJob(number, bytes(32), (CodedFrame(order),) * frames)
