"""The two entropy coders: equal bytes, exact symbols back, sizes near the ideal, and hostile words.

The golden words under tests/golden/entropy hold the word format of constriction 0.5.0. They change only with the
bitstream's version; then run the tests once with RAC_REGENERATE_GOLDEN=1.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.codec.compressai_import import import_compressai
from pipeline.entropy import plain_coder, rans
from pipeline.entropy.rans import Coder, decode_batch, decode_symbols, encode_symbols, warm_up
from pipeline.entropy.tables import (
    MAX_PIECES,
    MAX_SYMBOL,
    TOTAL,
    TableSet,
    fit_tables,
    join_tables,
    unpack_tables,
)
from pipeline.errors import (
    BitstreamError,
    CorruptBitstreamError,
    PipelineError,
    TableMismatchError,
    TruncatedBitstreamError,
)

steady = settings(derandomize=True, deadline=None)

GOLDEN = Path(__file__).parents[1] / "golden" / "entropy"
BUNDLES = sorted((Path(__file__).parents[2] / "pipeline" / "bundles").glob("*/tables.npz"))
# constriction has no wheel for Linux on arm64; there the golden words alone hold numba to its format.
HAS_CONSTRICTION = find_spec("constriction") is not None
CODERS: tuple[Coder, ...] = ("constriction", "numba") if HAS_CONSTRICTION else ("numba",)

Case = tuple[TableSet, NDArray[np.int32]]


@pytest.fixture(scope="module", autouse=True)
def _compiled() -> None:
    warm_up()


@contextmanager
def plain_functions() -> Iterator[None]:
    """The "numba" coder without numba: the same functions as they stand."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rans, "_encoder", lambda: plain_coder.encode_frame)
        patch.setattr(rans, "_decoder", lambda: plain_coder.decode_frames)
        yield


def random_tables(random: np.random.Generator, sizes: list[int], num_channels: int | None = None) -> TableSet:
    """Any tables: as likely a flat one as one with nearly all of its mass in a single entry.

    Args:
        num_channels: that share them at random; else each has its own.
    """
    rows = []
    for size in sizes:
        cuts = random.choice(np.arange(1, TOTAL), size, replace=False)
        if random.random() < 0.5:
            room = TOTAL - size
            cuts = 1 + np.sort(random.integers(0, max(1, room >> int(random.integers(0, 17))), size)) + np.arange(size)
        bounds = np.concatenate([[0], np.sort(cuts), [TOTAL]])
        frequencies = random.permutation(np.diff(bounds)) if size else np.empty(0, np.int64)
        rows.append(frequencies)
    of_channels = None if num_channels is None else random.integers(0, len(sizes), num_channels)
    return join_tables(random.integers(-300, 300, len(sizes)).tolist(), rows, of_channels)


def symbols_of(random: np.random.Generator, tables: TableSet, side: int, wild_share: float) -> NDArray[np.int32]:
    """Symbols int32 (C, side, side) that follow their tables; escapes stand for anything outside."""
    symbols = np.zeros((tables.num_channels, side * side), np.int64)
    for channel, row in zip(tables.coded, tables.coded_rows, strict=True):
        size, offset = int(tables.sizes[row]), int(tables.offsets[row])
        quantiles = random.integers(0, TOTAL, side * side)
        entries = np.searchsorted(tables.cumulative[row, : size + 2], quantiles, side="right") - 1
        reach = np.where(random.random(side * side) < 0.2, MAX_SYMBOL - 300 - size, 40)
        distance = (reach * random.random(side * side)).astype(np.int64)
        outside = np.where(random.random(side * side) < 0.5, offset + size + distance, offset - 1 - distance)
        is_escape = (entries == size) | (random.random(side * side) < wild_share)
        symbols[channel] = np.where(is_escape, outside, offset + entries)
    return symbols.reshape(-1, side, side).astype(np.int32)


@st.composite
def cases(draw: st.DrawFn, max_side: int = 14) -> Case:
    sizes = draw(st.lists(st.sampled_from([0, 1, 2, 3, 7, 40, 300]), min_size=1, max_size=5))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    tables = random_tables(random, sizes, draw(st.sampled_from([None, None, 1, 4, 9])))
    side = draw(st.integers(1, max_side))
    return tables, symbols_of(random, tables, side, draw(st.sampled_from([0.0, 0.02, 1.0])))


def realistic_case(channels: int = 48, seed: int = 3) -> Case:
    """Fitted tables as of a bundle, and a frame that they were not fitted to."""
    random = np.random.default_rng(seed)
    scales = np.exp(random.uniform(-2.5, 1.0, (1, channels, 1, 1)))
    symbols = np.rint(random.laplace(0, scales, (12, channels, 28, 28))).astype(np.int32)
    symbols[:, 1] = 0
    clipped = np.clip(symbols, -64, 64) + 64
    counts = np.stack([np.bincount(clipped[1:, c].ravel(), minlength=129) for c in range(channels)])
    return fit_tables(counts, -64), symbols[0]


def decode_or_error(words: bytes, tables: TableSet, shape: tuple[int, ...], coder: Coder) -> bytes | None:
    """Decoded symbols as bytes, None for a BitstreamError; any other error fails the test."""
    try:
        return decode_symbols(words, tables, shape, coder).tobytes()
    except BitstreamError:
        return None


# Both coders


@steady
@given(cases())
def test_both_coders_give_equal_words_and_the_symbols_back(case: Case) -> None:
    tables, symbols = case
    words = encode_symbols(symbols, tables, CODERS[0])
    assert encode_symbols(symbols, tables, "numba") == words
    for coder in CODERS:
        assert np.array_equal(decode_symbols(words, tables, symbols.shape, coder), symbols)


@steady
@given(cases())
def test_size_is_within_half_a_percent_and_eight_bytes_of_the_ideal(case: Case) -> None:
    tables, symbols = case
    assert len(encode_symbols(symbols, tables)) <= 1.005 * tables.ideal_bits(symbols) / 8 + 8


@settings(steady, max_examples=12)
@given(cases(max_side=5))
def test_functions_without_numba_give_the_same(case: Case) -> None:
    tables, symbols = case
    words = encode_symbols(symbols, tables, CODERS[0])
    with plain_functions():
        assert encode_symbols(symbols, tables, "numba") == words
        assert np.array_equal(decode_symbols(words, tables, symbols.shape, "numba"), symbols)
        if len(words) > 4:
            answers = [decode_or_error(words[4:], tables, symbols.shape, coder) for coder in CODERS]
            assert answers[0] == answers[-1]


@pytest.mark.parametrize("path", BUNDLES, ids=[path.parent.name for path in BUNDLES])
def test_both_coders_agree_on_every_shipped_table(path: Path) -> None:
    with np.load(path, allow_pickle=False) as arrays:
        sets = unpack_tables({name: arrays[name] for name in ("points", "offsets", "sizes", "frequencies")})
    random = np.random.default_rng(17)
    for tables in sets.values():
        symbols = symbols_of(random, tables, 8, wild_share=0.001)
        words = encode_symbols(symbols, tables, CODERS[0])
        assert encode_symbols(symbols, tables, "numba") == words
        assert len(words) <= 1.005 * tables.ideal_bits(symbols) / 8 + 8
        for coder in CODERS:
            assert np.array_equal(decode_symbols(words, tables, symbols.shape, coder), symbols)


@pytest.mark.parametrize("coder", CODERS)
def test_escapes_reach_to_the_bounds(coder: Coder) -> None:
    """One and two beyond the support on either side, where pieces begin, and the outermost symbols."""
    tables = join_tables([-3], [np.array([20, 40000, 25000, 516])])
    steps = [0, 1, 2, 3, 4, 31, 32, 255, 256, 2047, 2048, 16383, 16384, 32700]
    values = [-MAX_SYMBOL, MAX_SYMBOL, *(step for s in steps for step in (-4 - s, s))]
    symbols = np.array(values, np.int32).reshape(1, 1, -1)
    words = encode_symbols(symbols, tables, coder)
    assert np.array_equal(decode_symbols(words, tables, symbols.shape, coder), symbols)


@pytest.mark.parametrize("coder", CODERS)
def test_coder_takes_any_layout_and_leaves_the_symbols_alone(coder: Coder) -> None:
    tables, symbols = realistic_case(channels=8)
    strided = np.repeat(symbols, 2, axis=2)[:, :, ::2]
    strided.setflags(write=False)
    assert encode_symbols(strided, tables, coder) == encode_symbols(symbols, tables, coder)
    assert np.array_equal(strided, symbols)


@pytest.mark.parametrize("coder", CODERS)
def test_symbols_that_do_not_belong_to_the_tables_raise(coder: Coder) -> None:
    tables, symbols = realistic_case(channels=8)
    not_zero = symbols.copy()
    not_zero[1, 27, 27] = 1
    too_large = symbols.copy()
    too_large[0, 0, 0] = MAX_SYMBOL + 1
    other_type: Any = symbols.astype(np.int16)
    for bad in (not_zero, too_large, symbols[:7], other_type):
        with pytest.raises(TableMismatchError):
            encode_symbols(bad, tables, coder)
    for shape in ((7, 28, 28), (8, 784)):
        with pytest.raises(TableMismatchError):
            decode_symbols(b"", tables, shape, coder)
    with pytest.raises(TableMismatchError):
        decode_batch([b"", b""], [tables], (8, 28, 28), coder)


# Batches


@pytest.mark.parametrize("coder", CODERS)
def test_batch_of_mixed_tables_is_what_single_frames_are(coder: Coder) -> None:
    pairs = [realistic_case(channels=8, seed=seed) for seed in (1, 2, 3)]
    order = [0, 2, 1, 0, 2, 2]
    words = [encode_symbols(pairs[i][1], pairs[i][0]) for i in order]
    batch = decode_batch(words, [pairs[i][0] for i in order], (8, 28, 28), coder)
    assert batch.shape == (6, 8, 28, 28)
    assert batch.dtype == np.int32
    assert batch.flags.c_contiguous
    for row, i in enumerate(order):
        assert np.array_equal(batch[row], pairs[i][1])


@pytest.mark.parametrize("coder", CODERS)
def test_empty_batch_is_an_empty_array(coder: Coder) -> None:
    assert decode_batch([], [], (8, 28, 28), coder).shape == (0, 8, 28, 28)


@pytest.mark.parametrize("coder", CODERS)
def test_a_bad_frame_fails_its_batch_and_no_other_reads_its_words(coder: Coder) -> None:
    tables, symbols = realistic_case(channels=8)
    words = encode_symbols(symbols, tables)
    for bad in (words[4:], words[:-4], words + words):
        with pytest.raises(BitstreamError):
            decode_batch([words, bad, words], [tables] * 3, symbols.shape, coder)


def test_message_of_a_bad_frame_names_its_place() -> None:
    tables, symbols = realistic_case(channels=8)
    words = encode_symbols(symbols, tables)
    with pytest.raises(CorruptBitstreamError, match="frame 1 of 3"):
        decode_batch([words, words[4:], words], [tables] * 3, symbols.shape, "numba")


def test_dead_table_sets_leave_nothing_behind() -> None:
    """A cloud that changes its bundle a thousand times keeps the look-ups of one."""
    tables, symbols = realistic_case(channels=8)
    for coder in CODERS:
        decode_symbols(encode_symbols(symbols, tables, coder), tables, symbols.shape, coder)
    warm_up([tables])
    alive = weakref.ref(tables)
    num_rows = len(rans._SHARED[0].arrays[-1])
    del tables
    gc.collect()
    assert alive() is None
    warm_up([realistic_case(channels=8, seed=4)[0]])
    assert len(rans._SHARED[0].arrays[-1]) <= num_rows


# Hostile words


@pytest.mark.parametrize("coder", CODERS)
def test_words_cut_anywhere_raise(coder: Coder) -> None:
    """All words gone is no error here: that is the frame whose every symbol is the first of its table."""
    tables, symbols = realistic_case(channels=4)
    words = encode_symbols(symbols, tables)
    for length in [*range(1, 40), *range(40, len(words), 53)]:
        error = TruncatedBitstreamError if length % 4 else CorruptBitstreamError
        with pytest.raises(error):
            decode_symbols(words[:length], tables, symbols.shape, coder)
        if length % 4 == 0:
            with pytest.raises(CorruptBitstreamError):
                decode_symbols(words[length:], tables, symbols.shape, coder)


@pytest.mark.parametrize("coder", CODERS)
def test_words_that_end_in_zero_or_go_on_raise(coder: Coder) -> None:
    tables, symbols = realistic_case(channels=4)
    words = encode_symbols(symbols, tables)
    for bad in (words + bytes(4), bytes(4), b"\1\0\0\0" + words, words + b"\1\0\0\0"):
        with pytest.raises(CorruptBitstreamError):
            decode_symbols(bad, tables, symbols.shape, coder)


@steady
@given(cases(max_side=8), st.data())
def test_mutated_words_raise_bitstream_errors_only_and_both_coders_agree(case: Case, data: st.DataObject) -> None:
    tables, symbols = case
    words = bytearray(encode_symbols(symbols, tables))
    for _ in range(data.draw(st.integers(1, 4)) if words else 0):
        words[data.draw(st.integers(0, len(words) - 1))] = data.draw(st.integers(0, 255))
    answers = [decode_or_error(bytes(words), tables, symbols.shape, coder) for coder in CODERS]
    assert answers[0] == answers[-1]


@steady
@given(cases(max_side=8), st.binary(max_size=400))
def test_random_words_raise_bitstream_errors_only_and_both_coders_agree(case: Case, words: bytes) -> None:
    tables, symbols = case
    answers = [decode_or_error(words, tables, symbols.shape, coder) for coder in CODERS]
    assert answers[0] == answers[-1]


def words_of_pieces(pieces: list[int]) -> bytes:
    """Words of a single escape whose value has these pieces, as no encoder would write them."""
    tables = escape_tables()
    room = np.empty(len(pieces) + 3, np.uint32)
    count = rans._encoder()(
        np.ones((1, 1), np.int32), np.array(pieces, np.int32), tables.cumulative24, tables.coded_rows, room
    )
    return room[:count].astype("<u4").tobytes()


def escape_tables() -> TableSet:
    return join_tables([0], [np.array([TOTAL - 500, 500])])


@pytest.mark.parametrize("coder", CODERS)
@pytest.mark.parametrize(
    ("pieces", "problem"),
    [
        ([8 + 1] * MAX_PIECES, "malformed"),
        ([8 + 1] * 40, "malformed"),
        ([8 + 1, 0], "malformed"),
        ([8, 8, 0], "malformed"),
        ([8 + 7] * 5 + [7], "beyond"),
        ([8 + 1] + [8 + 0] * 4 + [2], "beyond"),
    ],
)
def test_escapes_that_no_encoder_writes_raise(coder: Coder, pieces: list[int], problem: str) -> None:
    """Each value has one form, of six pieces at most, within +-2^15: hostile words cannot keep a decoder busy."""
    with pytest.raises(CorruptBitstreamError, match=problem):
        decode_symbols(words_of_pieces(pieces), escape_tables(), (1, 1, 1), coder)


def test_decoder_reads_no_word_that_is_not_its_frames() -> None:
    """Checked on the plain functions, whose every access to the words can be watched."""

    class Watched:
        def __init__(self, words: NDArray[np.uint32]) -> None:
            self.words, self.read = words, list[int]()

        def __getitem__(self, index: int) -> np.uint32:
            self.read.append(int(index))
            value: np.uint32 = self.words[index]
            return value

    random = np.random.default_rng(23)
    tables = random_tables(random, [7, 0, 3])
    known = rans._decoder_tables([tables])
    begins, ends = np.array([known.spans[tables]]).T
    limits = (MAX_SYMBOL, MAX_PIECES)
    for _ in range(20):
        words: Any = Watched(random.integers(1, 2**32, 12, dtype=np.uint32))
        begin, end = sorted(random.integers(0, 13, 2).tolist())
        symbols, statuses = np.empty((1, 3, 60), np.int32), np.zeros(1, np.uint8)
        plain_coder.decode_frames(
            words,
            np.array([begin, end]),
            begins,
            ends,
            *known.arrays,
            *limits,
            symbols,
            statuses,
        )
        assert set(words.read) <= set(range(begin, end))
        assert words.read == sorted(words.read, reverse=True)


# The coders as parts that may be missing or fail


@pytest.mark.skipif(not HAS_CONSTRICTION, reason="constriction is not installed")
def test_encoding_node_never_loads_numba_and_imports_nothing_before_use() -> None:
    """A node pays for what it uses: numba takes half a second and 80 MB."""
    code = (
        "import sys, pipeline.entropy.rans as rans\n"
        "loaded = lambda: [name for name in ('constriction', 'numba') if name in sys.modules]\n"
        "before = loaded(); rans.warm_up(decoding=False); print(before, loaded())"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[] ['constriction']"


@pytest.mark.parametrize("coder", CODERS)
def test_missing_coder_is_named(coder: Coder, monkeypatch: pytest.MonkeyPatch) -> None:
    tables, symbols = realistic_case(channels=8)
    monkeypatch.setitem(sys.modules, coder, None)
    monkeypatch.setattr(rans, "_encoder", rans._encoder.__wrapped__)
    with pytest.raises(PipelineError, match=coder):
        encode_symbols(symbols, tables, coder)


@pytest.mark.skipif(not HAS_CONSTRICTION, reason="constriction is not installed")
def test_panic_of_native_code_is_a_bitstream_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class PanicException(BaseException):
        pass

    tables, symbols = realistic_case(channels=8)
    words = encode_symbols(symbols, tables, CODERS[0])
    raised: list[BaseException] = [PanicException("index out of bounds"), KeyboardInterrupt()]

    def make_coder(*_: object) -> None:
        raise raised.pop(0)

    stream = SimpleNamespace(stack=SimpleNamespace(AnsCoder=make_coder))
    monkeypatch.setattr(rans, "_import_coder", lambda name: SimpleNamespace(stream=stream))
    with pytest.raises(CorruptBitstreamError, match="index out of bounds"):
        decode_symbols(words, tables, symbols.shape, "constriction")
    with pytest.raises(KeyboardInterrupt):
        decode_symbols(words, tables, symbols.shape, "constriction")


def test_warm_up_refuses_a_coder_of_another_format(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another version of constriction codes and decodes its own words in peace, and nobody else's."""
    with monkeypatch.context() as patch:
        patch.setattr(rans, "encode_symbols", lambda *_: b"\1\2\3\4")
        with pytest.raises(PipelineError, match="writes other words"):
            warm_up(decoding=False)
    monkeypatch.setattr(rans, "decode_symbols", lambda *_: np.zeros((1, 1, 32), np.int32))
    warm_up(decoding=False)
    with pytest.raises(PipelineError, match="reads other words"):
        warm_up()


def test_compiler_without_a_place_for_its_cache_compiles_all_the_same() -> None:
    def njit(_: object, nogil: bool, cache: bool = False) -> Callable[[Any], Any]:
        assert nogil
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return lambda function: {"compiled": function}

    compiled: Any = rans._compile(SimpleNamespace(njit=njit), None, len)
    assert compiled == {"compiled": len}


# Against others


def test_size_is_that_of_compressai_and_of_the_ideal() -> None:
    """Same symbols, same 16-bit frequencies: within half a percent and 8 bytes of CompressAI's coder."""
    try:
        ans: Any = import_compressai("compressai.ans")
    except ModuleNotFoundError as error:
        pytest.skip(f"{error.name} is not installed: pip install 'edge-cloud-rac[train]'")
    tables, symbols = realistic_case()
    symbols = symbols.copy()
    symbols[40, 3, 3:9] = [90, -90, 400, -3000, 70, 71]
    coded = np.flatnonzero(tables.sizes)
    cumulative = [tables.cumulative[c, : tables.sizes[c] + 2].tolist() for c in coded]
    theirs = ans.RansEncoder().encode_with_indexes(
        symbols[coded].ravel().tolist(),
        np.repeat(np.arange(len(coded)), symbols[0].size).tolist(),
        cumulative,
        [len(row) for row in cumulative],
        tables.offsets[coded].tolist(),
    )
    ideal_bytes = tables.ideal_bits(symbols) / 8
    for coder in CODERS:
        num_bytes = len(encode_symbols(symbols, tables, coder))
        assert abs(num_bytes - len(theirs)) <= 0.005 * len(theirs) + 8
        assert ideal_bytes - 1 <= num_bytes <= 1.005 * ideal_bytes + 8


# Golden words


def golden_case(name: str) -> Case:
    """Symbols and tables from whole-number formulas, so that no generator's version matters."""
    position = np.arange(60, dtype=np.int64).reshape(1, 5, 12)
    wavy = (position * position * 7 + position // 3) % 9 - 4
    if name == "plain":
        frequencies = np.array([10, 990, 9000, 20000, 25000, 9000, 1500, 30, 3, 3])
        return join_tables([-4] * 2, [frequencies] * 2), np.concatenate([wavy, -wavy]).astype(np.int32)
    if name == "left-out":
        rows = [np.array([], int), np.array([30000, 30000, 5536]), np.array([], int)]
        symbols = np.concatenate([0 * wavy, wavy % 2 + 3, 0 * wavy])
        return join_tables([0, 3, 0], rows), symbols.astype(np.int32)
    if name == "escapes":
        values = wavy * np.where(position % 7 == 0, 8000, 1)
        return join_tables([-1], [np.array([20000, 25000, 20000, 536])]), values.astype(np.int32)
    if name == "shared":
        rows = [np.array([9000, 20000, 30000, 6536]), np.array([], int), np.array([60000, 5000, 536])]
        symbols = np.concatenate([wavy // 4, wavy // 3, 0 * wavy, wavy // 9, wavy // 2])
        return join_tables([-1, 0, -1], rows, np.array([2, 0, 1, 2, 0])), symbols.astype(np.int32)
    if name == "nothing":
        return join_tables([0], [np.array([65535, 1])]), (0 * wavy).astype(np.int32)
    frequencies = np.array([65536 - 300, *[1] * 300])
    return join_tables([-100], [frequencies]), (wavy * 40 + 60).astype(np.int32)


@pytest.mark.parametrize("name", ["plain", "left-out", "escapes", "shared", "nothing", "steep"])
def test_golden_words(name: str) -> None:
    """A file says everything that another implementation needs; frequencies end with the escape's.

    Without rows, each channel has its own.
    """
    tables, symbols = golden_case(name)
    path = GOLDEN / f"{name}.json"
    if os.environ.get("RAC_REGENERATE_GOLDEN"):
        content = {
            "offsets": tables.offsets.tolist(),
            "frequencies": [tables.frequencies(row).tolist() for row in range(len(tables.sizes))],
            **({"rows": tables.rows.tolist()} if name == "shared" else {}),
            "symbols": symbols.tolist(),
            "words": encode_symbols(symbols, tables, CODERS[0]).hex(),
        }
        path.write_text(json.dumps(content) + "\n", encoding="ascii")
    golden = json.loads(path.read_text(encoding="ascii"))
    frequencies = [np.array(row, np.int64) for row in golden["frequencies"]]
    tables = join_tables(golden["offsets"], frequencies, np.array(golden["rows"]) if "rows" in golden else None)
    stored, words = np.array(golden["symbols"], np.int32), bytes.fromhex(golden["words"])
    assert np.array_equal(stored, symbols)
    for coder in CODERS:
        assert encode_symbols(stored, tables, coder) == words
        assert np.array_equal(decode_symbols(words, tables, stored.shape, coder), stored)
