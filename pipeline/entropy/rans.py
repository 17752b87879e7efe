"""rANS: symbols to words and back, with two coders of equal bytes.

The word format is that of constriction 0.5.0 (AnsCoder: 32-bit words, 64-bit state, 24-bit frequencies): the
state starts at 0; before a symbol of frequency f is pushed, the low 32 bits of the state leave as a word
while state >> 40 >= f; at the end the state's own words follow, low first, without leading zeros. Decoding
runs backwards from the last word, and has to end at state 0 with every word used.

Coded order, as the decoder meets it: rows of the tables rising, channels of one row rising, raster order
within a channel, channels left out skipped; then the values of all escapes in the order met, in flat 4-bit pieces
(`pipeline.entropy.tables.find_entries`).

constriction codes on x86 nodes. The cloud and arm64 nodes use `pipeline.entropy.plain_coder` compiled by
numba, a whole batch in one call without the GIL: constriction holds the GIL while it decodes, and has no
wheel for Linux on arm64. Either is imported when first used, and tests hold the two together.

Source of the method: Duda 2013, "Asymmetric numeral systems" (arXiv 1311.2540).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from importlib import import_module
from importlib.util import find_spec
from itertools import pairwise
from typing import Any, Literal
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from pipeline.entropy import plain_coder
from pipeline.entropy.tables import (
    CODER_BITS,
    MAX_PIECES,
    MAX_SYMBOL,
    PIECE_BITS,
    TOTAL,
    TableSet,
    find_entries,
    join_tables,
)
from pipeline.errors import CorruptBitstreamError, PipelineError, TableMismatchError, TruncatedBitstreamError

Coder = Literal["constriction", "numba"]

WORD = np.dtype("<u4")
STATE_WORDS = 2
NUM_BUCKETS = 1 << plain_coder.GUESS_BITS
_PROBLEMS = {
    plain_coder.LEFT_OVER: "they do not end where the encoder began",
    plain_coder.BAD_ESCAPE: "an escape value is malformed",
    plain_coder.WILD_ESCAPE: f"an escape value is beyond +-{MAX_SYMBOL}",
}

# Tried by `warm_up`: both entries, escapes on either side, and enough bits for words to leave the state.
_TRIAL_TABLES = join_tables([0], [np.array([40_000, 20_000, 5_536])])
_TRIAL_SYMBOLS = np.array([[[0, 1, 1, 500, 0, 0, -3, 1] * 4]], np.int32)
_TRIAL_WORDS = bytes.fromhex("000050cc1fc5cc1f3e1f19cbaa800589c7b1bb0f")

# What is built from a set lives as long as the set.
_MODELS: WeakKeyDictionary[TableSet, list[tuple[slice, Any]]] = WeakKeyDictionary()
_LOOKUPS: WeakKeyDictionary[TableSet, tuple[NDArray[np.uint32], NDArray[np.uint16]]] = WeakKeyDictionary()


def encode_symbols(symbols: NDArray[np.int32], tables: TableSet, coder: Coder | None = None) -> bytes:
    """Code symbols into words that `decode_symbols` turns back exactly.

    Args:
        symbols: int32 (C, H, W); read only. Symbols outside a channel's table use its escape.
        coder: force one; default constriction where it is installed.

    Returns:
        Little-endian 32-bit words. Equal input gives equal bytes on every machine and with either coder.

    Raises:
        TableMismatchError: the symbols do not belong to these tables: another number of channels, a channel
            that is left out and not zero, a symbol beyond +-2^15.
        PipelineError: the coder is not installed.
    """
    entries, pieces = find_entries(symbols, tables)
    is_native = (coder or _default_encoder()) == "constriction"
    encode = _encode_with_constriction if is_native else _encode_with_numba
    return encode(entries, pieces, tables).astype(WORD, copy=False).tobytes()


def decode_symbols(
    words: bytes, tables: TableSet, shape: tuple[int, ...], coder: Coder | None = None
) -> NDArray[np.int32]:
    """Symbols int32 of the given shape (C, H, W).

    Args:
        coder: force one; default numba where it is installed.

    Raises:
        TableMismatchError: channel counts differ.
        BitstreamError: the words are not what `encode_symbols` made with these tables.
        PipelineError: the coder is not installed.
    """
    symbols: NDArray[np.int32] = decode_batch([words], [tables], shape, coder)[0]
    return symbols


def decode_batch(
    words: Sequence[bytes],
    tables: Sequence[TableSet],
    shape: tuple[int, ...],
    coder: Coder | None = None,
) -> NDArray[np.int32]:
    """Symbols int32 (B, C, H, W) of a batch, each frame with its own tables.

    Args:
        shape: (C, H, W) of every frame.
        coder: force one; default numba where it is installed.

    Raises:
        TableMismatchError: channel counts differ.
        BitstreamError: one of the frames is bad; decode them one by one to find all that are.
        PipelineError: the coder is not installed.
    """
    if len(words) != len(tables) or len(shape) != 3 or any(shape[0] != table.num_channels for table in tables):
        raise TableMismatchError(f"{len(tables)} table sets do not fit {len(words)} frames of shape {shape}")
    for frame in words:
        _check_words(frame)
    symbols = np.empty((len(words), shape[0], shape[1] * shape[2]), np.int32)
    if (coder or _default_decoder()) == "constriction":
        for row, frame in enumerate(words):
            _decode_with_constriction(frame, tables[row], symbols[row])
    else:
        _decode_with_numba(words, tables, symbols)
    return symbols.reshape(len(words), *shape)


def warm_up(tables: Iterable[TableSet] = (), *, decoding: bool = True) -> None:
    """Compile and build what this machine's coders need, so that no frame waits for it, and try them.

    Compiling takes a few seconds the first time, and a fraction of one from numba's cache.

    Args:
        tables: sets that frames will use, such as a bundle's.
        decoding: False on a node, which only encodes: numba is then left alone where constriction is
            installed.

    Raises:
        PipelineError: no coder is installed, or one has another word format.
    """
    if encode_symbols(_TRIAL_SYMBOLS, _TRIAL_TABLES) != _TRIAL_WORDS:
        raise PipelineError(f"{_default_encoder()} writes other words than constriction 0.5.0 does: install that")
    coders = {_default_encoder()}
    if decoding:
        if not np.array_equal(decode_symbols(_TRIAL_WORDS, _TRIAL_TABLES, _TRIAL_SYMBOLS.shape), _TRIAL_SYMBOLS):
            raise PipelineError(f"{_default_decoder()} reads other words than constriction 0.5.0 writes")
        coders.add(_default_decoder())
    sets = list(tables)
    if "constriction" in coders:
        for table in sets:
            _models(table)
    if decoding and _default_decoder() == "numba":
        _decoder_tables(sets)


def _check_words(words: bytes) -> None:
    if len(words) % WORD.itemsize:
        raise TruncatedBitstreamError("coded words end in the middle of one")
    if words[-WORD.itemsize :] == bytes(WORD.itemsize):
        raise CorruptBitstreamError("coded words end in a zero word")


@cache
def _default_encoder() -> Coder:
    return "constriction" if find_spec("constriction") else "numba"


@cache
def _default_decoder() -> Coder:
    return "numba" if find_spec("numba") else "constriction"


def _import_coder(name: Coder) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise PipelineError(
            f"{name} cannot be imported ({error}): pip install 'edge-cloud-rac[numba]', "
            "or constriction==0.5.0 where it has a wheel"
        ) from error


def _corrupt(status: int, frame: str = "") -> CorruptBitstreamError:
    return CorruptBitstreamError(f"{frame}coded words are damaged or of other tables: {_PROBLEMS[status]}")


@contextmanager
def _mapped_panics(error: type[PipelineError]) -> Iterator[None]:
    """Raise a panic of native code, which derives from BaseException alone, as an error of ours."""
    try:
        yield
    except BaseException as panic:
        if type(panic).__name__ != "PanicException":
            raise
        raise error(f"constriction panicked: {panic}") from panic


def _models(tables: TableSet) -> list[tuple[slice, Any]]:
    """Places in coded order of the channels of each row, rising, with constriction's model; built once for a set."""
    models = _MODELS.get(tables)
    if models is None:
        # perfect and lazy are stated: their defaults change with the version, and other models give other
        # bytes.
        categorical = partial(_import_coder("constriction").stream.model.Categorical, perfect=False, lazy=False)
        rows, counts = np.unique(tables.coded_rows, return_counts=True)
        ends = np.cumsum([0, *counts]).tolist()
        models = _MODELS[tables] = [
            (slice(begin, end), categorical(tables.frequencies(int(row)) / TOTAL))
            for row, (begin, end) in zip(rows, pairwise(ends), strict=True)
        ]
    return models


def _encode_with_constriction(
    entries: NDArray[np.int32], pieces: NDArray[np.int32], tables: TableSet
) -> NDArray[np.uint32]:
    stream = _import_coder("constriction").stream
    with _mapped_panics(TableMismatchError):
        coder = stream.stack.AnsCoder()
        if len(pieces):
            coder.encode_reverse(pieces, stream.model.Uniform(1 << PIECE_BITS))
        for places, model in reversed(_models(tables)):
            coder.encode_reverse(entries[places].reshape(-1), model)
        words: NDArray[np.uint32] = coder.get_compressed()
    return words


def _decode_with_constriction(words: bytes, tables: TableSet, symbols: NDArray[np.int32]) -> None:
    """Decode one frame into symbols (C, H * W)."""
    stream = _import_coder("constriction").stream
    with _mapped_panics(CorruptBitstreamError):
        coder = stream.stack.AnsCoder(np.frombuffer(words, WORD).astype(np.uint32))
        entries = np.empty((len(tables.coded), symbols.shape[1]), np.int32)
        for places, model in _models(tables):
            part = entries[places]
            part[:] = coder.decode(model, part.size).reshape(part.shape)
        piece_model = stream.model.Uniform(1 << PIECE_BITS)
        values = entries + tables.coded_offsets
        for channel, position in np.argwhere(entries == tables.coded_sizes):
            folded = _pop_escape(lambda: int(coder.decode(piece_model)))
            first = int(tables.coded_offsets[channel, 0])
            behind = first + int(tables.coded_sizes[channel, 0])
            value = first - 1 - (folded >> 1) if folded & 1 else behind + (folded >> 1)
            if abs(value) > MAX_SYMBOL:
                raise _corrupt(plain_coder.WILD_ESCAPE)
            values[channel, position] = value
        symbols[tables.left_out] = 0
        symbols[tables.coded] = values
        if not coder.is_empty():
            raise _corrupt(plain_coder.LEFT_OVER)


def _pop_escape(pop_piece: Callable[[], int]) -> int:
    folded = 0
    for number in range(MAX_PIECES):
        piece = pop_piece()
        folded |= (piece & 7) << (3 * number)
        if piece < 8:
            # The last piece of a longer value is never zero: a value has one form only.
            if number > 0 and piece == 0:
                break
            return folded
    raise _corrupt(plain_coder.BAD_ESCAPE)


class _DecoderTables:
    """What the compiled decoder looks up, of many sets side by side, so that one call decodes any mix of
    them.

    Never changed once built; holds its sets weakly.

    Attributes:
        spans: begin and end of each set's coded channels.
        arrays: cumulative, row_starts, guesses, offsets, sizes, channels and rows as `plain_coder.decode_frames`
            takes them.
    """

    def __init__(self, sets: Sequence[TableSet]) -> None:
        ends = np.cumsum([0, *(len(table.coded) for table in sets)]).tolist()
        self.spans = WeakKeyDictionary(zip(sets, pairwise(ends), strict=True))
        first_rows = np.cumsum([0, *(len(table.sizes) for table in sets)])
        nothing = np.empty(0, np.int32)
        parts = [_lookups(table) for table in sets]
        offsets = np.concatenate([*(table.offsets for table in sets), nothing])
        sizes = np.concatenate([*(table.sizes for table in sets), nothing])
        channels = np.concatenate([*(table.coded for table in sets), nothing])
        rows = np.concatenate(
            [*(row + table.coded_rows for row, table in zip(first_rows, sets, strict=False)), nothing]
        )
        lengths = _row_lengths(sizes)
        self.arrays = (
            np.concatenate([*(cumulative for cumulative, _ in parts), np.empty(0, np.uint32)]),
            np.cumsum(lengths) - lengths,
            np.concatenate([*(guesses for _, guesses in parts), np.empty((0, NUM_BUCKETS), np.uint16)]),
            offsets,
            sizes,
            channels.astype(np.int32),
            rows.astype(np.int32),
        )
        for array in self.arrays:
            array.setflags(write=False)


def _lookups(tables: TableSet) -> tuple[NDArray[np.uint32], NDArray[np.uint16]]:
    """Cumulative rows of a set one behind the other, without padding, and first guesses (R, 1024); built
    once.

    The first guess is the entry that holds a bucket's least quantile: as many as begin at or before it, less
    one.
    """
    lookups = _LOOKUPS.get(tables)
    if lookups is None:
        lengths = _row_lengths(tables.sizes)
        rows, columns = np.nonzero(np.arange(tables.cumulative24.shape[1]) < lengths[:, None])
        cumulative = tables.cumulative24[rows, columns]
        width = (1 << CODER_BITS) // NUM_BUCKETS
        first_buckets = (cumulative.astype(np.int64) + width - 1) // width
        begun = np.zeros((len(tables.sizes), NUM_BUCKETS + 1), np.int64)
        np.add.at(begun, (rows, first_buckets), 1)
        guesses = np.cumsum(begun[:, :NUM_BUCKETS], axis=1) - 1
        lookups = _LOOKUPS[tables] = (cumulative, np.maximum(guesses, 0).astype(np.uint16))
    return lookups


def _row_lengths(sizes: NDArray[np.int32]) -> NDArray[np.int64]:
    """Numbers in each row of cumulative frequencies; none for a channel left out."""
    return np.where(sizes == 0, 0, sizes + 2).astype(np.int64)


_SHARED = [_DecoderTables([])]


def _decoder_tables(sets: Sequence[TableSet]) -> _DecoderTables:
    """Look-ups that hold all of these sets, and those of before that are still in use."""
    known = _SHARED[0]
    missing = [table for table in dict.fromkeys(sets) if table not in known.spans]
    if missing:
        # Replaced as a whole: another thread goes on with what it has.
        known = _SHARED[0] = _DecoderTables([*known.spans, *missing])
    return known


def _encode_with_numba(entries: NDArray[np.int32], pieces: NDArray[np.int32], tables: TableSet) -> NDArray[np.uint32]:
    words = np.empty(entries.size + len(pieces) + STATE_WORDS, np.uint32)
    return words[: _encoder()(entries, pieces, tables.cumulative24, tables.coded_rows, words)]


def _decode_with_numba(words: Sequence[bytes], tables: Sequence[TableSet], symbols: NDArray[np.int32]) -> None:
    """Decode all frames into symbols (B, C, H * W)."""
    known = _decoder_tables(tables)
    spans = np.array([known.spans[table] for table in tables], np.int64).reshape(-1, 2)
    begins, ends = np.ascontiguousarray(spans.T)
    word_starts = np.cumsum([0, *map(len, words)], dtype=np.int64) // WORD.itemsize
    joined = np.frombuffer(b"".join(words), WORD).astype(np.uint32)
    statuses = np.empty(len(words), np.uint8)
    _decoder()(joined, word_starts, begins, ends, *known.arrays, MAX_SYMBOL, MAX_PIECES, symbols, statuses)
    if statuses.any():
        bad = int(np.flatnonzero(statuses)[0])
        raise _corrupt(int(statuses[bad]), f"frame {bad} of {len(words)}: " if len(words) > 1 else "")


@cache
def _encoder() -> Callable[..., Any]:
    numba = _import_coder("numba")
    fixed, own = _array_types(numba)
    arguments = (own("i4", 2), own("i4", 1), fixed("u4", 2), fixed("i4", 1), own("u4", 1))
    return _compile(numba, numba.int64(*arguments), plain_coder.encode_frame)


@cache
def _decoder() -> Callable[..., Any]:
    numba = _import_coder("numba")
    fixed, own = _array_types(numba)
    frames = (own("u4", 1), own("i8", 1), own("i8", 1), own("i8", 1))
    looked_up = (fixed("u4", 1), fixed("i8", 1), fixed("u2", 2), *[fixed("i4", 1)] * 4)
    limits = (numba.int64, numba.int64)
    signature = numba.void(*frames, *looked_up, *limits, own("i4", 3), own("u1", 1))
    return _compile(numba, signature, plain_coder.decode_frames)


def _array_types(numba: Any) -> tuple[Callable[[str, int], Any], Callable[[str, int], Any]]:
    """Makers of numba's types of contiguous arrays, read-only and writable, from a dtype and a number of
    axes."""

    def make(is_fixed: bool, dtype: str, axes: int) -> Any:
        return numba.types.Array(numba.from_dtype(np.dtype(dtype)), axes, "C", readonly=is_fixed)

    return partial(make, True), partial(make, False)


def _compile(numba: Any, signature: Any, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function compiled for one signature, from numba's cache where that can be kept.

    The cache lies beside the source or in the user's own cache folder: to be trusted no less than the code.
    """
    compiled: Callable[..., Any]
    try:
        compiled = numba.njit(signature, nogil=True, cache=True)(function)
    except Exception:  # neither folder can be written, or what lies there cannot be read
        compiled = numba.njit(signature, nogil=True)(function)
    return compiled
