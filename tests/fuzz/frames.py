"""Mutated frames into the decoder.

Half of them keep the checksum of the sound frame, as damage on the way does: none of these may be answered with a
class. The other half get a new one, as an attacker would make it: whatever is decoded from these has to be a frame
that some encoder could have sent, with exactly these bytes, and both coders have to agree. Sound frames stand in every
batch, and their answers may not change.
"""

from __future__ import annotations

import struct
import time
import zlib
from collections import Counter
from dataclasses import dataclass, field
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.bitstream import HEADER_BYTES, Bitstream, pack_bitstream, parse_bitstream
from pipeline.bundle import Bundle, load_bundle
from pipeline.decoding import BatchDecoder, Classes, CodedFrame
from pipeline.entropy.rans import decode_symbols, encode_symbols, warm_up
from pipeline.entropy.tables import TOTAL
from pipeline.errors import BitstreamError
from pipeline.inference import Vectors
from tests.fuzz.mutations import mutate

BATCH_FRAMES = 32
SOUND_FRAMES = 4
"""Of each batch."""
CLASSES = 1000
CRC_AT = 12
OTHER_CODER_EVERY = 16
"""constriction is slower, and decodes one frame at a time."""


@dataclass(frozen=True)
class Frame:
    """One frame for the decoder.

    Attributes:
        expected: the class of a sound one.
        is_forged: spoiled, with a checksum that fits.
    """

    bitstream: bytes
    expected: int | None = None
    is_forged: bool = False


@dataclass
class FrameReport:
    """What a run found."""

    frames: int = 0
    answered: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    compared: int = 0
    slowest_batch_s: float = 0.0
    violations: list[str] = field(default_factory=list)


class HashingEngine:
    """Stands in for the networks, which see symbols only: its class is a hash of them."""

    def classify_symbols(self, symbols: NDArray[np.int32], *vectors: object) -> NDArray[np.float32]:
        logits = np.zeros((len(symbols), CLASSES), np.float32)
        for row, frame in enumerate(symbols):
            logits[row, class_of(frame)] = 1.0
        return logits

    def classify_views(self, views: NDArray[np.uint8]) -> NDArray[np.float32]:
        raise AssertionError("no frame has a reference")


def class_of(symbols: NDArray[np.int32]) -> int:
    """The stand-in's class of one frame's symbols."""
    return zlib.crc32(np.ascontiguousarray(symbols).tobytes()) % CLASSES


def fuzz_frames(num_frames: int, seed: int = 0) -> FrameReport:
    """Decode so many mutated frames.

    Returns:
        Counts, and every violation of the rules above; a crash of native code ends the process instead.
    """
    random, bundle = Random(seed), load_bundle("default")
    warm_up(bundle.tables.values())
    sound = sound_frames(bundle, random)
    channels = bundle.manifest.latent_shape[0]
    rows = dict.fromkeys(bundle.tables, (0, 0))
    vectors = Vectors(rows, np.zeros((1, 1, channels), np.float32), np.zeros((1, 1, 1), np.float32))
    engine: Any = HashingEngine()
    decoder = BatchDecoder(bundle, engine, vectors)
    report = FrameReport()
    while report.frames < num_frames:
        batch = [Frame(*random.choice(sound)) for _ in range(SOUND_FRAMES)]
        batch += [_spoil(random.choice(sound)[0], random) for _ in range(BATCH_FRAMES - SOUND_FRAMES)]
        random.shuffle(batch)
        _decode(decoder, bundle, batch, report)
    return report


def sound_frames(bundle: Bundle, random: Random, number: int = 100) -> list[tuple[bytes, int]]:
    """Bitstreams of frames as probable as the tables say, at all points in turn, each with its class."""
    frames = []
    points = sorted(bundle.tables)
    generator = np.random.default_rng(random.randrange(2**32))
    for index in range(number):
        depth, level16 = points[(7 * index) % len(points)]
        tables = bundle.tables[depth, level16]
        symbols = np.zeros(bundle.manifest.latent_shape, np.int32)
        for channel, row in zip(tables.coded, tables.coded_rows, strict=True):
            frequencies = tables.frequencies(int(row)) / TOTAL
            entries = generator.choice(len(frequencies), size=symbols[channel].shape, p=frequencies / frequencies.sum())
            # The last entry is the escape, which here stands for values just beyond the table.
            symbols[channel] = entries + tables.offsets[row]
        words = encode_symbols(symbols, tables)
        frames.append((pack_bitstream(Bitstream(0, bundle.id8, depth, level16, words)), class_of(symbols)))
    return frames


def _spoil(bitstream: bytes, random: Random) -> Frame:
    spoiled = mutate(bitstream, random)
    if spoiled == bitstream or (random.random() < 0.5 and len(spoiled) >= HEADER_BYTES):
        if random.random() < 0.9:  # else the header's own fields are refused, which is soon told
            spoiled = bitstream[:CRC_AT] + spoiled[CRC_AT:]
        return Frame(repair_checksum(spoiled), is_forged=True)
    return Frame(spoiled)


def repair_checksum(bitstream: bytes) -> bytes:
    """The bitstream with the checksum that its bytes have."""
    crc = zlib.crc32(bitstream[HEADER_BYTES:], zlib.crc32(bitstream[:CRC_AT]))
    return bitstream[:CRC_AT] + struct.pack("<I", crc) + bitstream[HEADER_BYTES:]


def _decode(decoder: BatchDecoder, bundle: Bundle, batch: list[Frame], report: FrameReport) -> None:
    begun_s = time.perf_counter()
    answers, _ = decoder.decode([CodedFrame(frame.bitstream) for frame in batch])
    report.slowest_batch_s = max(report.slowest_batch_s, time.perf_counter() - begun_s)
    for frame, answer in zip(batch, answers, strict=True):
        if frame.expected is not None:
            if not isinstance(answer, Classes) or answer.indices[0] != frame.expected:
                report.violations.append(f"sound frame {frame.bitstream.hex()} answered {answer}, not {frame.expected}")
            continue
        report.frames += 1
        if not isinstance(answer, Classes):
            report.refused[type(answer).__name__] += 1
            if report.frames % OTHER_CODER_EVERY == 0:
                _compare_refusal(bundle, frame.bitstream, report)
        elif frame.is_forged:
            report.answered += 1
            _check_answered(bundle, frame.bitstream, answer, report)
        else:
            report.violations.append(f"damage was not seen: {frame.bitstream.hex()}")


def is_made_by_an_encoder(bundle: Bundle, bitstream: bytes) -> bool:
    """Whether both coders decode it, to the same symbols, and an encoder makes just these bytes of them."""
    try:
        parsed = parse_bitstream(bitstream)
        tables = bundle.tables[parsed.depth, parsed.level16]
        symbols = decode_symbols(parsed.words, tables, bundle.manifest.latent_shape)
        other = decode_symbols(parsed.words, tables, bundle.manifest.latent_shape, "constriction")
    except (BitstreamError, KeyError):
        return False
    is_same = encode_symbols(symbols, tables) == parsed.words and np.array_equal(symbols, other)
    return is_same and parsed.bundle_id8 == bundle.id8


def _check_answered(bundle: Bundle, bitstream: bytes, answer: Classes, report: FrameReport) -> None:
    report.compared += 1
    if not is_made_by_an_encoder(bundle, bitstream):
        report.violations.append(f"no encoder makes {bitstream.hex()}")
        return
    parsed = parse_bitstream(bitstream)
    tables = bundle.tables[parsed.depth, parsed.level16]
    if answer.indices[0] != class_of(decode_symbols(parsed.words, tables, bundle.manifest.latent_shape)):
        report.violations.append(f"wrong class for {bitstream.hex()}")


def _compare_refusal(bundle: Bundle, bitstream: bytes, report: FrameReport) -> None:
    """What one coder refuses the other one refuses too."""
    try:
        parsed = parse_bitstream(bitstream)
        tables = bundle.tables[parsed.depth, parsed.level16]
    except (BitstreamError, KeyError):
        return
    if parsed.bundle_id8 != bundle.id8:
        return
    report.compared += 1
    try:
        decode_symbols(parsed.words, tables, bundle.manifest.latent_shape, "constriction")
    except BitstreamError:
        return
    report.violations.append(f"constriction decodes what numba refuses: {bitstream.hex()}")
