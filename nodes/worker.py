"""One worker process: batches of bitstreams in, classes out, over a socket pair to the front.

The worker owns nothing but its end of the link; it ends when the link does. It may be killed at any time: the front
keeps what it has handed out until the answer is there.
"""

from __future__ import annotations

import gc
import os
import resource
import socket
import sys
import time
import zlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nodes.worker_link import WorkerLink
from pipeline.bitstream import Bitstream, pack_bitstream
from pipeline.bundle import load_bundle
from pipeline.decoding import BatchDecoder, BatchTimings, Classes, CodedFrame
from pipeline.encoder import OperatingPoint
from pipeline.entropy.rans import encode_symbols, warm_up
from pipeline.errors import BitstreamError
from pipeline.frames import VIEW_BYTES
from pipeline.inference import EngineName, Precision, open_engine, read_vectors


@dataclass(frozen=True, slots=True)
class ServedBundle:
    """Where one bundle and its graphs are on this machine."""

    bundle_id: bytes
    source: str
    graphs: Path


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """What a worker needs to start."""

    bundles: tuple[ServedBundle, ...]
    engine: EngineName
    precision: Precision
    threads: int
    warm_up_frames: int


@dataclass(frozen=True, slots=True)
class BatchJob:
    """One batch for a worker."""

    number: int
    bundle_id: bytes
    frames: tuple[CodedFrame, ...]


@dataclass(frozen=True, slots=True)
class Panic:
    """A frame at which native code panicked; the worker survived it."""

    text: str


FrameAnswer = Classes | str | Panic
"""One frame's classes, or why its bytes are bad, or what they did."""


@dataclass(frozen=True, slots=True)
class BatchAnswer:
    """A worker's answer to a batch.

    Attributes:
        answers: one a frame, in the job's order.
        resident_bytes: memory that the worker has in use after it; 0: unknown.
    """

    number: int
    answers: tuple[FrameAnswer, ...]
    timings: BatchTimings
    resident_bytes: int = 0


READY = "ready"


def worker_main(end: socket.socket, spec: WorkerSpec) -> None:
    """Serve batches until the link ends. Runs as the target of a spawned process."""
    link = WorkerLink(end)
    decoders = _open_decoders(spec)
    gc.freeze()
    with suppress(EOFError, OSError):  # the front is gone: nobody is left to work for
        link.send(READY)
        while True:
            job: BatchJob = link.receive()
            link.send(_answer(decoders[job.bundle_id], job))


def _answer(decoder: BatchDecoder, job: BatchJob) -> BatchAnswer:
    """Decode a batch; an error that no frame is to blame for ends the process, and the front tries elsewhere."""
    answers, timings = _decode(decoder, job.frames)
    if any(isinstance(answer, Panic) for answer in answers) and len(job.frames) > 1:
        # A panic ends the whole call: one by one, so that it costs its own frame only.
        alone = [_decode(decoder, (frame,)) for frame in job.frames]
        answers = [answer for part, _ in alone for answer in part]
        timings = BatchTimings(
            sum(timings.entropy_decode_ns for _, timings in alone),
            sum(timings.classify_ns for _, timings in alone),
            sum(timings.reference_ns for _, timings in alone),
        )
    return BatchAnswer(job.number, tuple(answers), timings, resident_bytes())


def _decode(decoder: BatchDecoder, frames: Sequence[CodedFrame]) -> tuple[list[FrameAnswer], BatchTimings]:
    try:
        answers, timings = decoder.decode(frames)
    except (Exception, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of native code derives from BaseException; the process goes on
        return [Panic(f"native panic: {error}")] * len(frames), BatchTimings(0, 0, 0)
    return [str(answer) if isinstance(answer, BitstreamError) else answer for answer in answers], timings


def resident_bytes() -> int:
    """Memory of this process that is in RAM: now on Linux, elsewhere the most it ever was."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else 1024 * peak
    return pages * os.sysconf("SC_PAGE_SIZE")


def _open_decoders(spec: WorkerSpec) -> dict[bytes, BatchDecoder]:
    """Load every bundle and run each once, so that the first frame is not the slow one."""
    decoders = {}
    for served in spec.bundles:
        bundle = load_bundle(served.source)
        warm_up(bundle.tables.values())
        engine = open_engine(served.graphs, spec.engine, spec.threads, spec.precision)
        decoder = BatchDecoder(bundle, engine, read_vectors(served.graphs), time.perf_counter_ns)
        point = OperatingPoint(bundle.manifest.depths[0], bundle.manifest.levels16[0])
        words = encode_symbols(
            np.zeros(bundle.manifest.latent_shape, np.int32), bundle.tables[point.depth, point.level16]
        )
        frame = CodedFrame(
            pack_bitstream(Bitstream(0, bundle.id8, point.depth, point.level16, words)),
            zlib.compress(bytes(VIEW_BYTES)),
        )
        for size in (1, spec.warm_up_frames):
            decoder.decode([frame] * size)
        decoders[served.bundle_id] = decoder
    return decoders
