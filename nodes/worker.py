"""One worker process: batches of bitstreams in, classes out, over a pipe to the front.

The worker owns nothing but its pipe; it ends when the pipe does. It may be killed at any time: the front keeps what it
has handed out until the answer is there.
"""

from __future__ import annotations

import gc
import signal
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from pipeline.bundle import load_bundle
from pipeline.decoding import BatchDecoder, BatchTimings, Classes, CodedFrame
from pipeline.encoder import OperatingPoint
from pipeline.entropy.rans import encode_symbols, warm_up
from pipeline.bitstream import Bitstream, pack_bitstream
from pipeline.errors import BitstreamError, CorruptBitstreamError
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


def worker_main(pipe: Connection, spec: WorkerSpec) -> None:
    """Serve batches until the pipe ends. Runs as the target of a spawned process."""
    # Ctrl-C reaches the whole group; the front decides when workers end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    decoders = _open_decoders(spec)
    gc.freeze()
    try:
        pipe.send(READY)
        while True:
            job: BatchJob = pipe.recv()
            pipe.send(_answer(decoders[job.bundle_id], job))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return


def _answer(decoder: BatchDecoder, job: BatchJob) -> BatchAnswer:
    try:
        answers, timings = decoder.decode(job.frames)
    except Exception as error:
        raise error
    except BaseException as error:  # a panic of native code derives from BaseException; the process goes on
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            raise
        panic = CorruptBitstreamError(f"native panic: {error}")
        return BatchAnswer(job.number, (str(panic),) * len(job.frames), BatchTimings(0, 0, 0))
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
