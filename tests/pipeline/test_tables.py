"""Integer tables: what a set refuses, how one is fitted, and how many travel in a bundle."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.entropy.tables import (
    MAX_ENTRIES,
    MAX_SYMBOL,
    TOTAL,
    TableSet,
    find_entries,
    fit_tables,
    join_tables,
    make_table,
    pack_tables,
    quantise_frequencies,
    unpack_tables,
)
from pipeline.errors import BundleFormatError, TableMismatchError

steady = settings(derandomize=True, deadline=None)

REACH = 128


def small_set() -> TableSet:
    """Three channels: symbols -1..1, one left out, symbols 5..6."""
    return join_tables(
        [-1, 0, 5], [np.array([1000, 60000, 4000, 536]), np.array([], int), np.array([60000, 5000, 536])]
    )


def histogram(symbols: NDArray[np.int32]) -> NDArray[np.int64]:
    """Counts (C, 257) of symbols (N, C, H, W), with open ends at +-128."""
    clipped = np.clip(symbols, -REACH, REACH) + REACH
    rows = [np.bincount(clipped[:, c].ravel(), minlength=2 * REACH + 1) for c in range(symbols.shape[1])]
    return np.stack(rows)


# The set


def test_set_is_a_copy_that_cannot_be_changed() -> None:
    """The coders build look-ups from a set once; a set that changed afterwards would decode wrongly."""
    offsets, sizes, cumulative = np.array([0]), np.array([1]), np.array([[0, 60000, TOTAL]])
    tables = TableSet(offsets, sizes, cumulative, np.array([0]))
    cumulative[0, 1] = 1
    assert tables.frequencies(0).tolist() == [60000, 5536]
    dtypes = [array.dtype.name for array in (tables.offsets, tables.sizes, tables.cumulative)]
    assert dtypes == ["int32", "int32", "uint32"]
    with pytest.raises(ValueError, match="read-only"):
        tables.cumulative[0, 1] = 1


@pytest.mark.parametrize(
    ("change", "value"),
    [
        ("offsets", [[0, 0, 0]]),
        ("offsets", [0, 0]),
        ("offsets", [0.0, 0.0, 0.0]),
        ("offsets", [-MAX_SYMBOL - 1, 0, 0]),
        ("offsets", [0, 0, MAX_SYMBOL]),
        ("sizes", [3, 0, -1]),
        ("sizes", [3, 0, 3]),
        ("sizes", [2, 0, 2]),
        ("cumulative", [0, 1, TOTAL]),
        ("cumulative", [[0, 10, 20, 30, TOTAL]] * 2),
        ("cumulative", [[1, 10, 20, 30, TOTAL]] * 3),
        ("cumulative", [[0, 10, 10, 30, TOTAL]] * 3),
        ("cumulative", [[0, 20, 10, 30, TOTAL]] * 3),
        ("cumulative", [[0, 10, 20, 30, TOTAL - 1]] * 3),
        ("cumulative", [[0, 10, 20, 30, TOTAL + 1]] * 3),
        ("rows", [0, 1, 3]),
        ("rows", [0, 1, -1]),
        ("rows", [0.0, 1.0, 2.0]),
        ("rows", [[0, 1, 2]]),
    ],
)
def test_set_that_is_no_table_raises(change: str, value: Any) -> None:
    tables = small_set()
    arrays = {name: getattr(tables, name) for name in ("offsets", "sizes", "cumulative", "rows")}
    with pytest.raises(BundleFormatError):
        TableSet(**(arrays | {change: np.array(value)}))


def test_set_with_too_many_entries_raises() -> None:
    for size, is_good in ((MAX_ENTRIES, True), (MAX_ENTRIES + 1, False)):
        frequencies = np.ones(size + 1, np.int64)
        frequencies[0] = TOTAL - size
        if is_good:
            assert join_tables([0], [frequencies]).sizes.tolist() == [size]
        else:
            with pytest.raises(BundleFormatError):
                join_tables([0], [frequencies])


def test_frequencies_and_channels_of_a_set() -> None:
    tables = small_set()
    assert [tables.frequencies(c).tolist() for c in range(3)] == [[1000, 60000, 4000, 536], [], [60000, 5000, 536]]
    assert tables.num_channels == 3
    assert tables.left_out.tolist() == [1]


@steady
@given(st.integers(0, 2**32), st.integers(1, 300))
def test_cumulative24_is_the_float_formula_of_the_coder(seed: int, size: int) -> None:
    """constriction: floor(cumsum(p) x (2^24 - n) / sum(p)) + i, in float64. Ours is exact in whole numbers."""
    cuts = np.random.default_rng(seed).choice(np.arange(1, TOTAL), size, replace=False)
    cumulative = np.array([[0, *sorted(cuts.tolist()), TOTAL]])
    tables = TableSet(np.array([0]), np.array([size]), cumulative, np.array([0]))
    probabilities = np.diff(cumulative[0]) / TOTAL
    entries = size + 1
    scaled = np.cumsum(np.append(0.0, probabilities)) * ((2**24 - entries) / probabilities.sum())
    assert np.array_equal(tables.cumulative24[0], np.floor(scaled) + np.arange(entries + 1))


def test_ideal_bits_of_a_few_symbols_by_hand() -> None:
    symbols = np.array([[[0, -1, 1, 9]], [[0, 0, 0, 0]], [[5, 6, 4, 5 + 2 + 100]]], np.int32)
    table_bits = -np.log2(np.array([60000, 1000, 4000, 536, 60000, 5000, 536, 536]) / TOTAL).sum()
    # 9 is 7 behind the support: folded 14, two pieces. 4 is 0 before it: folded 1, one. 107: folded 200, three.
    assert small_set().ideal_bits(symbols) == pytest.approx(table_bits + 4 * (2 + 1 + 3), rel=1e-12)


def test_entries_and_pieces_of_a_few_symbols_by_hand() -> None:
    symbols = np.array([[[0, -1, 1, 9]], [[0, 0, 0, 0]], [[5, 6, 4, 107]]], np.int32)
    entries, pieces = find_entries(symbols, small_set())
    assert entries.tolist() == [[1, 0, 2, 3], [0, 1, 2, 2]]
    assert pieces.tolist() == [8 + 6, 1, 1, 8 + 0, 8 + 1, 3]


def test_channels_that_share_a_table_are_coded_side_by_side() -> None:
    """Channels 0 and 3 have row 1, channel 1 row 0, channel 2 the row that leaves it out."""
    rows = [np.array([60000, 5536]), np.array([1000, 60000, 4000, 536]), np.array([], int)]
    tables = join_tables([5, -1, 0], rows, np.array([1, 0, 2, 1]))
    assert (tables.num_channels, tables.left_out.tolist()) == (4, [2])
    assert (tables.coded.tolist(), tables.coded_rows.tolist()) == ([1, 0, 3], [0, 1, 1])
    symbols = np.array([[[0, -1]], [[5, 6]], [[0, 0]], [[1, 9]]], np.int32)
    entries, pieces = find_entries(symbols, tables)
    assert entries.tolist() == [[0, 1], [1, 0], [2, 3]]
    assert pieces.tolist() == [1 - 1, 8 + 6, 1]
    bits = -np.log2(np.array([60000, 5536, 60000, 1000, 4000, 536]) / TOTAL).sum() + 4 * 3
    assert tables.ideal_bits(symbols) == pytest.approx(bits, rel=1e-12)


@pytest.mark.parametrize(
    ("symbols", "problem"),
    [
        (np.zeros((2, 2, 2), np.int32), "3 channels"),
        (np.zeros((3, 4), np.int32), "3 channels"),
        (np.zeros((3, 2, 2), np.int64), "int64"),
        (np.ones((3, 2, 2), np.int32), "leave out"),
        (np.array([[[MAX_SYMBOL + 1]], [[0]], [[5]]], np.int32), "beyond"),
        (np.array([[[-(2**31)]], [[0]], [[5]]], np.int32), "beyond"),
        (np.array([[[0]], [[0]], [[2**31 - 1]]], np.int32), "beyond"),
        (np.array([[[0]], [[0]], [[-(2**31)]]], np.int32), "beyond"),
    ],
)
def test_entries_of_symbols_that_do_not_belong_raise(symbols: NDArray[np.int32], problem: str) -> None:
    with pytest.raises(TableMismatchError, match=problem):
        find_entries(symbols, small_set())


# Making tables

weights = st.lists(st.floats(0, 1e6, allow_subnormal=False), min_size=1, max_size=60).filter(lambda w: sum(w) > 1e-3)


@steady
@given(weights)
def test_quantised_frequencies_are_a_table_and_repeatable(raw: list[float]) -> None:
    frequencies = quantise_frequencies(np.array(raw))
    assert frequencies.sum() == TOTAL
    assert frequencies.min() >= 1
    assert np.array_equal(frequencies, quantise_frequencies(np.array(raw)))


@steady
@given(weights)
def test_no_unit_of_a_quantised_table_would_be_better_elsewhere(raw: list[float]) -> None:
    """Up to the rounding of the rule itself: a tenth of a unit's worth."""
    shares = np.array(raw) / np.sum(raw)
    frequencies = quantise_frequencies(np.array(raw))
    gain = (shares * np.log2((frequencies + 1) / frequencies)).max()
    losses = shares[frequencies > 1] * np.log2(frequencies[frequencies > 1] / (frequencies[frequencies > 1] - 1))
    if len(losses) and len(raw) > 1:
        assert gain <= losses.min() + 0.4 / TOTAL * 1.4427


def test_quantised_frequencies_of_exact_shares_are_exact() -> None:
    shares = np.array([1, 2, 65533 - 65000, 65000]) / TOTAL
    assert quantise_frequencies(shares).tolist() == [1, 2, 533, 65000]


@pytest.mark.parametrize("raw", [[], [0.0, 0.0], [1.0, -0.1], [1.0, float("nan")], [1.0, float("inf")], [1.0] * 65537])
def test_quantising_what_is_no_distribution_raises(raw: list[float]) -> None:
    with pytest.raises(TableMismatchError):
        quantise_frequencies(np.array(raw))


def test_made_table_leaves_rare_ends_to_the_escape() -> None:
    probabilities = np.array([1e-7, 1e-6, 0.2, 1e-7, 0.7, 0.0999, 1e-6])
    offset, frequencies = make_table(-2, probabilities)
    assert offset == 0
    assert len(frequencies) == 4 + 1
    assert frequencies[1] == 1  # a gap inside keeps an entry
    assert frequencies[-1] == pytest.approx((1 - probabilities[2:6].sum()) * TOTAL, abs=1)


def test_made_table_of_almost_nothing_keeps_the_likeliest_symbol() -> None:
    offset, frequencies = make_table(10, np.array([1e-9, 3e-9, 1e-9]))
    assert (offset, len(frequencies)) == (11, 2)


def draw_laplace(random: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float64]:
    return random.laplace(0.3, 1.0, shape)


def draw_normal(random: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float64]:
    return random.normal(-0.4, 1.2, shape)


def draw_two_peaks(random: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float64]:
    return np.asarray(random.normal(0, 0.3, shape) + np.where(random.random(shape) < 0.3, 4.0, -1.0))


def draw_lopsided(random: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float64]:
    return np.asarray(random.exponential(1.5, shape) - 0.4)


@pytest.mark.parametrize("scale", [0.3, 1.0, 8.0])
@pytest.mark.parametrize("draw", [draw_laplace, draw_normal, draw_two_peaks, draw_lopsided])
def test_fitted_tables_code_held_out_symbols_within_half_a_percent(draw: Any, scale: float) -> None:
    """Of the entropy of the distribution itself, which no table could beat, plus 8 bytes a frame."""
    random = np.random.default_rng(5)
    fitted = np.rint(scale * draw(random, (40, 2, 28, 28))).astype(np.int32)
    held_out = np.rint(scale * draw(random, (40, 2, 28, 28))).astype(np.int32)
    many = histogram(np.rint(scale * draw(random, (2000, 1, 28, 28))).astype(np.int32))[0]
    shares = many[many > 0] / many.sum()
    entropy = -float(shares @ np.log2(shares)) * held_out.size
    bits = sum(fit_tables(histogram(fitted), -REACH).ideal_bits(frame) for frame in held_out)
    # Held-out symbols are themselves a sample: their own surprise differs from the entropy by its error.
    lengths = -np.log2(np.maximum(many, 1) / many.sum())[np.clip(held_out, -REACH, REACH) + REACH]
    sampling = 3 * float(lengths.std()) * held_out.size**0.5
    assert bits <= 1.005 * entropy + 64 * len(held_out) + sampling


def test_fitted_tables_of_few_symbols_cost_little_more_than_those_of_many() -> None:
    """A single frame's histogram has gaps; smoothing closes them. Without it this is 2.8 percent, not 1."""
    random = np.random.default_rng(8)
    symbols = np.rint(6 * random.laplace(size=(60, 1, 28, 28))).astype(np.int32)
    few, many = (fit_tables(histogram(part), -REACH) for part in (symbols[:1], symbols[:50]))
    few_bits, many_bits = (sum(tables.ideal_bits(frame) for frame in symbols[50:]) for tables in (few, many))
    assert few_bits < 1.015 * many_bits


def test_fitted_support_is_trimmed_and_open_ends_go_to_the_escape() -> None:
    counts = np.zeros((1, 2 * REACH + 1), np.int64)
    counts[0, REACH - 2 : REACH + 3] = [10_000, 200_000, 500_000, 200_000, 10_000]
    counts[0, 0], counts[0, -1] = 3_000, 3_000
    tables = fit_tables(counts, -REACH)
    assert -6 <= tables.offsets[0] <= -2
    assert tables.sizes[0] <= 10
    assert tables.frequencies(0)[-1] == pytest.approx(6_000 / counts.sum() * TOTAL, rel=0.02)


def test_fit_leaves_out_only_channels_that_were_always_zero_unless_told() -> None:
    counts = np.zeros((4, 7), np.int64)
    counts[:, 3] = 100_000  # zero
    counts[1, 4] = 1
    counts[2] = 0
    counts[2, 5] = 1_000  # always 2: to be coded, it is not zero
    assert fit_tables(counts, -3).left_out.tolist() == [0, 3]
    told = np.array([False, True, False, True])
    assert fit_tables(counts, -3, told).left_out.tolist() == [1, 3]
    assert fit_tables(counts, -3).offsets[2] <= 2


def test_channel_that_is_almost_always_zero_costs_under_a_quarter_of_a_bit() -> None:
    """Why such a channel is kept: there is nothing to gain by leaving it out."""
    counts = np.zeros((1, 9), np.int64)
    counts[0, 4], counts[0, 5] = 10_000_000, 100
    symbols = np.zeros((1, 28, 28), np.int32)
    tables = fit_tables(counts, -4)
    usual = tables.ideal_bits(symbols)
    symbols[0, 0, 0] = 1
    rare = tables.ideal_bits(symbols)
    assert usual + 784e-5 * rare < 0.25


@pytest.mark.parametrize(
    ("counts", "left_out"),
    [
        (np.ones((2, 2), np.int64), None),
        (np.ones(5, np.int64), None),
        (np.ones((2, 5)), None),
        (np.array([[1, 5, -1, 5, 1]]), None),
        (np.array([[60, 500, 500]]), None),
        (np.array([[0, 500, 60]]), None),
        (np.array([[0, 500, 0]]), np.array([False, False])),
        (np.array([[0, 0, 0]]), np.array([False])),
    ],
    ids=["narrow", "flat", "float", "negative", "cut-left", "cut-right", "mask", "empty"],
)
def test_fit_of_unfit_histograms_raises(counts: Any, left_out: NDArray[np.bool_] | None) -> None:
    with pytest.raises(TableMismatchError):
        fit_tables(counts, -1, left_out)


# Many sets in a bundle


def many_sets() -> dict[tuple[int, int], TableSet]:
    random = np.random.default_rng(11)
    sets = {}
    for depth in (8, 0):
        for level16 in (64, 0, 4):
            scales = np.exp(random.uniform(-4, 2, (1, 5, 1, 1))) * (level16 + 8) / 32
            symbols = np.rint(random.laplace(0, scales, (4, 5, 28, 28))).astype(np.int32)
            symbols[:, 2] = 0
            sets[depth, level16] = fit_tables(histogram(symbols), -REACH)
    return sets


def test_packed_sets_come_back_through_a_file() -> None:
    sets = many_sets()
    file = io.BytesIO()
    np.savez_compressed(file, **pack_tables(sets))
    file.seek(0)
    with np.load(file, allow_pickle=False) as arrays:
        restored = unpack_tables(dict(arrays))
    assert set(restored) == set(sets)
    for point, tables in sets.items():
        for name in ("offsets", "sizes", "cumulative", "rows"):
            assert np.array_equal(getattr(restored[point], name), getattr(tables, name))


def test_packed_sets_are_small() -> None:
    """Two bytes for each frequency, and nothing for the padding."""
    sets = many_sets()
    num_frequencies = sum(len(tables.frequencies(c)) for tables in sets.values() for c in range(5))
    num_bytes = sum(array.nbytes for array in pack_tables(sets).values())
    assert num_bytes == 2 * num_frequencies + len(sets) * (2 + 4 * 5)


def shared_sets() -> dict[tuple[int, int], TableSet]:
    """Six channels of three rows each."""
    rows = [np.array([60000, 5536]), np.array([1000, 60000, 4000, 536]), np.array([], int)]
    return {(0, level16): join_tables([5, -1, 0], rows, np.array([1, 0, 2, 1, 1, level16])) for level16 in (0, 1)}


def test_packed_sets_of_shared_tables_come_back_and_take_two_bytes_a_channel_more() -> None:
    sets = shared_sets()
    arrays = pack_tables(sets)
    assert arrays["rows"].nbytes == 2 * 2 * 6
    restored = unpack_tables(arrays)
    for point, tables in sets.items():
        for name in ("offsets", "sizes", "cumulative", "rows"):
            assert np.array_equal(getattr(restored[point], name), getattr(tables, name))


@pytest.mark.parametrize(
    "change",
    [lambda a: a[:-1], lambda a: a[0], lambda a: a + np.uint16(1), lambda a: a.astype(np.int64), lambda a: a[:, None]],
)
def test_unpacking_damaged_rows_raises(change: Any) -> None:
    arrays = pack_tables(shared_sets())
    with pytest.raises(BundleFormatError):
        unpack_tables(arrays | {"rows": change(arrays["rows"])})


def test_packing_nothing_or_unlike_sets_raises() -> None:
    with pytest.raises(BundleFormatError):
        pack_tables({})
    with pytest.raises(BundleFormatError):
        pack_tables(many_sets() | {(1, 1): small_set()})


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("points", lambda a: a.astype(np.int64)),
        ("points", lambda a: a[:-1]),
        ("points", lambda a: a[:, :1]),
        ("points", lambda a: a * 0),
        ("offsets", lambda a: a[0]),
        ("offsets", lambda a: a[:, 1:]),
        ("offsets", lambda a: a * 0 + np.int16(32_767)),
        ("sizes", lambda a: a + np.uint16(1)),
        ("sizes", lambda a: np.roll(a, 1)),
        ("sizes", lambda a: a * 0 + np.uint16(60_000)),
        ("frequencies", lambda a: a[:-1]),
        ("frequencies", lambda a: a[None]),
        ("frequencies", lambda a: a + np.uint16(1)),
        ("frequencies", lambda a: a * 0),
        ("frequencies", lambda a: a.astype(np.float32)),
        ("more", lambda a: np.zeros(1)),
    ],
)
def test_unpacking_damaged_arrays_raises(name: str, change: Any) -> None:
    arrays = pack_tables(many_sets())
    with pytest.raises(BundleFormatError):
        unpack_tables(arrays | {name: change(arrays.get(name))})


@pytest.mark.parametrize("name", ["points", "offsets", "sizes", "frequencies"])
def test_unpacking_without_an_array_raises(name: str) -> None:
    arrays = pack_tables(many_sets())
    del arrays[name]
    with pytest.raises(BundleFormatError):
        unpack_tables(arrays)


def test_unpacking_what_would_fill_the_memory_raises() -> None:
    """One wide table in a set makes every row of it as wide; thousands of sets would do it."""
    sizes = np.zeros((256, 128), np.uint16)
    sizes[0, 0] = 1000
    points = np.stack([np.zeros(256), np.arange(256)], axis=1)
    arrays: dict[str, NDArray[Any]] = {
        "points": points.astype(np.uint8),
        "offsets": np.zeros(sizes.shape, np.int16),
        "sizes": sizes,
        "frequencies": np.ones(1001, np.uint16),
    }
    with pytest.raises(BundleFormatError, match="too large"):
        unpack_tables(arrays)


@steady
@given(st.data())
def test_random_changes_of_packed_sets_raise_or_give_sound_sets(data: st.DataObject) -> None:
    arrays: dict[str, Any] = {name: array.copy() for name, array in pack_tables({(0, 0): small_set()}).items()}
    for _ in range(data.draw(st.integers(1, 3))):
        array = arrays[data.draw(st.sampled_from(sorted(arrays)))].reshape(-1)
        index = data.draw(st.integers(0, array.size - 1))
        array[index] = data.draw(st.integers(np.iinfo(array.dtype).min, np.iinfo(array.dtype).max))
    try:
        for tables in unpack_tables(arrays).values():
            tables.check()
    except BundleFormatError:
        pass
