"""One worker process: batches of bitstreams in, classes out, over a socket pair to the front.

The worker owns nothing but its end of the link; it ends when the link does. It may be killed at any time: the front
keeps what it has handed out until the answer is there.
"""

from __future__ import annotations

import gc
import socket
import time
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
class BatchAnswer:
    """A worker's answer to a batch, one entry a frame: its classes or why its bytes are bad."""

    number: int
    answers: tuple[Classes | str, ...]
    timings: BatchTimings


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
    try:
        answers, timings = decoder.decode(job.frames)
    except (Exception, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of native code derives from BaseException; the process goes on
        panic = f"native panic: {error}"
        return BatchAnswer(job.number, (panic,) * len(job.frames), BatchTimings(0, 0, 0))
    flat = tuple(str(answer) if isinstance(answer, BitstreamError) else answer for answer in answers)
    return BatchAnswer(job.number, flat, timings)


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
        frame = CodedFrame(pack_bitstream(Bitstream(0, bundle.id8, point.depth, point.level16, words)))
        for size in (1, spec.warm_up_frames):
            decoder.decode([frame] * size)
        decoders[served.bundle_id] = decoder
    return decoders
