"""Integer tables: how often each symbol of a channel occurs, in 65,536ths, fixed when a bundle is exported.

A channel has a table of its own, or channels that are distributed alike share one. A table has one entry
for each symbol of a contiguous support and one more, the last, for the escape: a symbol outside the support.
Floats occur in `fit_tables` and what it calls, once, at export; at run time there are
only the whole numbers of the bundle, so two machines cannot come to disagree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import BundleFormatError, TableMismatchError

TOTAL = 1 << 16
"""Sum of a table's frequencies."""
CODER_BITS = 24
"""Precision of the coder; see `TableSet.cumulative24`."""
MAX_SYMBOL = 1 << 15
"""Largest absolute value of a symbol; a latent has some tens."""
MAX_ENTRIES = 1 << 10
"""Plain symbols of one table; trained tables have some tens, and 1,024 still leave a share of 64 to each."""
MAX_CELLS = 1 << 24
"""Numbers in all cumulative tables of a bundle together: 64 MiB, several times what 5 depths x 64 levels
take."""
PIECE_BITS = 4
"""An escape value travels in pieces of 4 flat bits: three of the value, low ones first, and "more"."""
MAX_PIECES = 6
"""Enough for the folded distance between the outermost symbols, below 2^17."""

MIN_SHARE = 1 / TOTAL
"""A rarer symbol at an end of the support goes to the escape: its entry would take more than it saves."""
MAX_OPEN_SHARE = 0.05
"""Symbols in a histogram's open ends; with more, escapes would cost half a bit for every symbol."""
PRIOR_WEIGHT = 256.0
"""Symbols that the smooth distribution counts for beside the counted ones. Tried from 1 to 256 on held-out
symbols: the best from two frames (a quarter of a percent and more) to two hundred (no difference)."""

_PIECE_SHIFTS = np.arange(0, 3 * MAX_PIECES, 3)
_ARRAYS = {"points": np.uint8, "offsets": np.int16, "sizes": np.uint16, "frequencies": np.uint16}
_ROWS = "rows"
"""Beside those where channels share tables: uint16 (T, C), the row of each channel."""


@dataclass(frozen=True, eq=False)
class TableSet:
    """Tables of every channel at one depth and level.

    Checked and copied when built, read-only afterwards. Compared by identity: the coders keep what they build
    from a set for as long as the set lives.

    Letters: R rows, one a table; C channels.

    Attributes:
        offsets: int32 (R,), the symbol of entry 0.
        sizes: int32 (R,), entries without the escape; 0: channels of this row are left out of the bitstream,
            always zero.
        cumulative: uint32 (R, max entries + 2), cumulative frequencies; row r rises from 0 to 65,536 over
            `sizes[r] + 2` numbers and stays there.
        rows: int32 (C,), the row of each channel.

    Raises:
        BundleFormatError: a row is not a table, or a channel has no row.
    """

    offsets: NDArray[np.int32]
    sizes: NDArray[np.int32]
    cumulative: NDArray[np.uint32]
    rows: NDArray[np.int32]

    def __post_init__(self) -> None:
        self.check()
        dtypes = (("offsets", np.int32), ("sizes", np.int32), ("cumulative", np.uint32), ("rows", np.int32))
        for name, dtype in dtypes:
            own = np.array(getattr(self, name), dtype, order="C")
            own.setflags(write=False)
            object.__setattr__(self, name, own)

    @property
    def num_channels(self) -> int:
        """Number of channels, those left out included."""
        return len(self.rows)

    @cached_property
    def left_out(self) -> NDArray[np.intp]:
        """Channels without a table, rising."""
        return np.flatnonzero(self.sizes[self.rows] == 0)

    @cached_property
    def coded(self) -> NDArray[np.intp]:
        """The other channels in coded order: by row, those of one row rising."""
        order = np.argsort(self.rows, kind="stable")
        coded: NDArray[np.intp] = order[self.sizes[self.rows[order]] > 0]
        return coded

    @cached_property
    def coded_rows(self) -> NDArray[np.int32]:
        """Row of each coded channel; rises."""
        return self.rows[self.coded]

    @cached_property
    def coded_offsets(self) -> NDArray[np.int32]:
        """Symbol of entry 0 of each coded channel, (coded channels, 1)."""
        return self.offsets[self.coded_rows, None]

    @cached_property
    def coded_sizes(self) -> NDArray[np.int32]:
        """Plain entries of each coded channel, (coded channels, 1)."""
        return self.sizes[self.coded_rows, None]

    @cached_property
    def cumulative24(self) -> NDArray[np.uint32]:
        """Cumulative frequencies of the coder, uint32, shape of `cumulative`.

        floor(k * (2^24 - n) / 2^16) + i for the i-th of n entries: what constriction makes of the float64
        probabilities k / 65536, in whole numbers.
        """
        index = np.arange(self.cumulative.shape[1], dtype=np.uint64)[None]
        num_entries = (self.sizes.astype(np.uint64) + np.uint64(1))[:, None]
        room = np.uint64(1 << CODER_BITS) - num_entries
        scaled = (self.cumulative.astype(np.uint64) * room) >> np.uint64(16)
        precise: NDArray[np.uint32] = (scaled + np.minimum(index, num_entries)).astype(np.uint32)
        precise.setflags(write=False)
        return precise

    def frequencies(self, row: int) -> NDArray[np.int64]:
        """Frequencies of a row, escape last, summing to 65,536; none for one that leaves its channels out."""
        size = int(self.sizes[row])
        return np.diff(self.cumulative[row, : size + 2 if size else 1].astype(np.int64))

    def check(self) -> None:
        """Raise BundleFormatError unless every row is a table and every channel has one."""
        if self.offsets.ndim != 1 or self.offsets.shape != self.sizes.shape or self.cumulative.ndim != 2:
            raise BundleFormatError("tables: arrays have the wrong number of axes")
        num_rows, width = self.cumulative.shape
        if num_rows != len(self.sizes) or width < 2 or self.rows.ndim != 1:
            raise BundleFormatError("tables: arrays do not fit each other")
        if any(array.dtype.kind not in "iu" for array in (self.offsets, self.sizes, self.cumulative, self.rows)):
            raise BundleFormatError("tables: arrays hold other things than whole numbers")
        if len(self.rows) and not 0 <= int(self.rows.min()) <= int(self.rows.max()) < num_rows:
            raise BundleFormatError(f"tables: a channel has a row beyond the {num_rows} there are")
        offsets, sizes, rows = (a.astype(np.int64) for a in (self.offsets, self.sizes, self.cumulative))
        if sizes.min(initial=0) < 0 or sizes.max(initial=0) > min(MAX_ENTRIES, width - 2):
            raise BundleFormatError(f"tables: a size is below 0 or over {min(MAX_ENTRIES, width - 2)}")
        kept = sizes > 0
        is_within = (offsets >= -MAX_SYMBOL) & (offsets < MAX_SYMBOL) & (offsets + sizes <= MAX_SYMBOL + 1)
        column = np.arange(width)[None]
        is_rising = (np.diff(rows, axis=1) > 0) | (column[:, 1:] > sizes[:, None] + 1)
        is_full = (rows == TOTAL) | (column <= sizes[:, None])
        is_table = is_within & (rows[:, 0] == 0) & is_rising.all(axis=1) & is_full.all(axis=1)
        if not is_table[kept].all():
            raise BundleFormatError(f"tables: row {int(np.argmin(is_table | ~kept))} is damaged")

    def ideal_bits(self, symbols: NDArray[np.int32]) -> float:
        """Code length of symbols (C, H, W) under the tables, escapes included, without a coder's overhead.

        Raises:
            TableMismatchError: the symbols do not belong to these tables.
        """
        entries, pieces = find_entries(symbols, self)
        bits = float(PIECE_BITS * len(pieces))
        for row in np.unique(self.coded_rows):
            lengths = -np.log2(self.frequencies(row) / TOTAL)
            bits += float(np.bincount(entries[self.coded_rows == row].ravel(), minlength=len(lengths)) @ lengths)
        return bits


def find_entries(symbols: NDArray[np.int32], tables: TableSet) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """What is coded for symbols int32 (C, H, W).

    Returns:
        Table entries int32 (coded channels, H * W) and the pieces of all escape values int32 (n,), both in
        coded order.

    Raises:
        TableMismatchError: channel counts differ, a left-out channel is not zero, or a symbol is beyond
            +-2^15.
    """
    if symbols.ndim != 3 or len(symbols) != tables.num_channels or symbols.dtype != np.int32:
        raise TableMismatchError(
            f"symbols {symbols.dtype} {symbols.shape} do not fit tables of {tables.num_channels} channels"
        )
    flat = symbols.reshape(len(symbols), -1)
    if len(tables.left_out) and flat[tables.left_out].any():
        raise TableMismatchError("a channel that the tables leave out is not zero: mask it before coding")
    flat = flat[tables.coded]
    # A symbol below the support becomes huge as unsigned, so one comparison finds both sides.
    entries = (flat - tables.coded_offsets).view(np.uint32)
    limits = tables.coded_sizes.view(np.uint32)
    is_outside = entries >= limits
    if not is_outside.any():
        return entries.view(np.int32), np.empty(0, np.int32)
    channel = np.nonzero(is_outside)[0]
    values = flat[is_outside].astype(np.int64)
    if np.abs(values).max() > MAX_SYMBOL:
        raise TableMismatchError(f"a symbol is beyond +-{MAX_SYMBOL}")
    first = tables.coded_offsets[channel, 0].astype(np.int64)
    behind = first + tables.coded_sizes[channel, 0]
    folded = np.where(values >= behind, 2 * (values - behind), 2 * (first - 1 - values) + 1)
    np.minimum(entries, limits, out=entries)
    return entries.view(np.int32), _pieces(folded)


def _pieces(folded: NDArray[np.int64]) -> NDArray[np.int32]:
    """Folded values as 4-bit pieces, one value after the other."""
    rest = folded[:, None] >> _PIECE_SHIFTS
    is_used = rest > 0
    is_used[:, 0] = True
    has_more = np.zeros_like(is_used)
    has_more[:, :-1] = is_used[:, 1:]
    pieces: NDArray[np.int32] = ((rest & 7) + 8 * has_more)[is_used].astype(np.int32)
    return pieces


def join_tables(
    offsets: Sequence[int], frequencies: Sequence[NDArray[np.int64]], rows: NDArray[Any] | None = None
) -> TableSet:
    """Set from each row's first symbol and frequencies, escape last; none where channels are left out.

    Args:
        rows: whole numbers (C,), the row of each channel; each has its own unless given.

    Raises:
        BundleFormatError: frequencies of a row are not positive or do not sum to 65,536.
    """
    sizes = np.array([max(len(row) - 1, 0) for row in frequencies], np.int32)
    cumulative = np.full((len(frequencies), int(sizes.max(initial=0)) + 2), TOTAL, np.int64)
    cumulative[:, 0] = 0
    for index, row in enumerate(frequencies):
        if len(row):
            cumulative[index, 1 : len(row) + 1] = np.cumsum(row)
    if cumulative.min(initial=0) < 0 or cumulative.max(initial=0) > TOTAL:
        raise BundleFormatError(f"tables: frequencies are negative or sum to over {TOTAL}")
    own = np.arange(len(sizes)) if rows is None else rows
    return TableSet(np.array(offsets, np.int32), sizes, cumulative.astype(np.uint32), own)


def fit_tables(counts: NDArray[np.int64], first_symbol: int, left_out: NDArray[np.bool_] | None = None) -> TableSet:
    """Tables from histograms; used once, at export.

    A channel's counts are blended with a two-sided geometric distribution (a discretised Laplace, with a
    decay of its own on either side), which fills gaps and tails and moves nothing that was seen often. Then
    the support is trimmed and what remains is rounded to 65,536ths.

    Only channels that were zero throughout should be left out, and are by default: one that is zero but for
    one symbol in 100,000 costs 0.2 bits a frame, and leaving it out would save 5 microseconds and lose those
    symbols.

    Args:
        counts: (C, S), how often symbol `first_symbol + i` occurred in column i. The first and the last
            column are open: they count everything at and beyond them, and are coded with the escape. Put a
            column of zeros at either end where yours are exact.
        first_symbol: of column 0.
        left_out: (C,), True for channels without a table: their symbols must be forced to zero before coding.

    Raises:
        TableMismatchError: counts are negative, none, or too many lie in the open ends.
    """
    if counts.ndim != 2 or counts.shape[1] < 3 or counts.dtype.kind not in "iu" or counts.min(initial=0) < 0:
        raise TableMismatchError("histograms must be whole, not negative, and have two open ends")
    if left_out is None:
        left_out = ~counts[:, np.arange(counts.shape[1]) != -first_symbol].any(axis=1)
    if left_out.shape != counts.shape[:1]:
        raise TableMismatchError(f"left_out {left_out.shape} does not fit histograms of {len(counts)} channels")
    offsets, rows = [], []
    for channel, row in enumerate(counts):
        if left_out[channel]:
            offsets.append(0)
            rows.append(np.empty(0, np.int64))
            continue
        total = int(row.sum())
        if total == 0 or row[0] + row[-1] > MAX_OPEN_SHARE * total:
            raise TableMismatchError(
                f"channel {channel}: {row[0] + row[-1]} of {total} symbols are at or beyond the ends of the "
                f"histogram, {first_symbol} and {first_symbol + len(row) - 1}: make it wider"
            )
        offset, frequencies = make_table(first_symbol + 1, _smooth(row.astype(np.float64)))
        offsets.append(offset)
        rows.append(frequencies)
    return join_tables(offsets, rows)


def make_table(first_symbol: int, probabilities: NDArray[np.float64]) -> tuple[int, NDArray[np.int64]]:
    """First symbol and frequencies, escape last, from the probabilities of consecutive symbols.

    Args:
        probabilities: float64 (n,), of `first_symbol`, `first_symbol + 1` ...; what is missing to 1 is the
            escape's.
    """
    kept = np.flatnonzero(probabilities >= MIN_SHARE)
    low, high = (int(kept[0]), int(kept[-1])) if len(kept) else (int(probabilities.argmax()),) * 2
    inside = probabilities[low : high + 1]
    escape = max(1.0 - float(inside.sum()), 0.0)
    return first_symbol + low, quantise_frequencies(np.append(inside, escape))


def quantise_frequencies(probabilities: NDArray[np.float64], total: int = TOTAL) -> NDArray[np.int64]:
    """Whole frequencies, each at least 1, that sum to `total` and code the probabilities at the least length.

    A unit more for frequency k shortens the code by about p / (k + 1/2): rounding to the nearest balances
    that up to a few units, which then go where they gain most or come from where they cost least. Equal
    input, equal output.

    Raises:
        TableMismatchError: probabilities are negative, not finite, all zero, or more in number than `total`.
    """
    mass = float(probabilities.sum()) if len(probabilities) else 0.0
    if not np.isfinite(mass) or mass <= 0 or probabilities.min() < 0 or len(probabilities) > total:
        raise TableMismatchError(f"probabilities must be finite, not negative, and at most {total}")
    nearest = np.rint(probabilities / mass * total).astype(np.int64)
    frequencies: NDArray[np.int64] = np.maximum(nearest, 1)
    while int(frequencies.sum()) < total:
        frequencies[np.argmax(probabilities / (frequencies + 0.5))] += 1
    while int(frequencies.sum()) > total:
        loss = np.where(frequencies > 1, probabilities / (frequencies - 0.5), np.inf)
        frequencies[np.argmin(loss)] -= 1
    return frequencies


def _smooth(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Probabilities of the inner columns of a histogram; the rest to 1 is outside."""
    inner = counts[1:-1]
    blended = inner + PRIOR_WEIGHT * _two_sided_geometric(inner)
    smoothed: NDArray[np.float64] = blended / (float(counts.sum()) + PRIOR_WEIGHT)
    return smoothed


def _two_sided_geometric(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Most likely two-sided geometric distribution around the median; the rest to 1 is outside."""
    cumulative = np.cumsum(counts)
    centre = int(np.searchsorted(cumulative, cumulative[-1] / 2))
    distance = np.arange(len(counts)) - centre
    density = np.where(distance == 0, counts[centre] + 1.0, 0.0)
    for side in (-1, 1):
        steps = side * distance
        is_side = steps > 0
        # One symbol more, at distance 1, so that a side without any still has a tail.
        number = float(counts[is_side].sum()) + 1.0
        mean = (float(counts[is_side] @ steps[is_side]) + 1.0) / number
        decay = 1.0 - 1.0 / (mean + 0.05)
        density[is_side] = number * (1.0 - decay) * decay ** (steps[is_side] - 1)
    normalised: NDArray[np.float64] = density / (float(counts.sum()) + 3.0)
    return normalised


def pack_tables(tables: Mapping[tuple[int, int], TableSet]) -> dict[str, NDArray[np.generic]]:
    """Arrays of many sets by (depth, level16), for an npz, which `unpack_tables` turns back.

    points uint8 (T, 2), offsets int16 (T, R), sizes uint16 (T, R), and the frequencies uint16 of all tables
    one after the other; rows uint16 (T, C) where channels share tables.

    Raises:
        BundleFormatError: there are none, or they differ in their number of channels or rows.
    """
    points = sorted(tables)
    sets = [tables[point] for point in points]
    if len({(table.num_channels, len(table.sizes)) for table in sets}) != 1:
        raise BundleFormatError("tables: there are none, or they differ in their number of channels or rows")
    frequencies = [table.frequencies(row) for table in sets for row in range(len(table.sizes))]
    columns = {
        "points": np.array(points),
        "offsets": np.stack([table.offsets for table in sets]),
        "sizes": np.stack([table.sizes for table in sets]),
        "frequencies": np.concatenate([*frequencies, np.empty(0, np.int64)]),
    }
    arrays: dict[str, NDArray[np.generic]] = {name: columns[name].astype(dtype) for name, dtype in _ARRAYS.items()}
    if any(not np.array_equal(table.rows, np.arange(len(table.sizes))) for table in sets):
        arrays[_ROWS] = np.stack([table.rows for table in sets]).astype(np.uint16)
    return arrays


def unpack_tables(arrays: Mapping[str, NDArray[np.generic]]) -> dict[tuple[int, int], TableSet]:
    """Sets by (depth, level16) from the arrays of `pack_tables`.

    Raises:
        BundleFormatError: anything is missing, unknown, out of range or does not add up.
    """
    expected = _ARRAYS | ({_ROWS: np.uint16} if _ROWS in arrays else {})
    if set(arrays) != set(expected) or any(arrays[name].dtype != dtype for name, dtype in expected.items()):
        raise BundleFormatError(f"tables: not exactly the arrays {', '.join(_ARRAYS)} with their types")
    points, offsets, sizes, frequencies = (arrays[name].astype(np.int64) for name in _ARRAYS)
    if points.ndim != 2 or points.shape[1] != 2 or offsets.ndim != 2 or frequencies.ndim != 1:
        raise BundleFormatError("tables: arrays have the wrong number of axes")
    if (
        offsets.shape != sizes.shape
        or len(offsets) != len(points)
        or sizes.size * (sizes.max(initial=0) + 2) > MAX_CELLS
    ):
        raise BundleFormatError("tables: arrays do not fit each other, or are too large")
    rows: Sequence[NDArray[np.generic] | None] = [None] * len(points)
    if _ROWS in arrays:
        if arrays[_ROWS].ndim != 2 or len(arrays[_ROWS]) != len(points):
            raise BundleFormatError("tables: rows do not fit the points")
        rows = list(arrays[_ROWS])
    lengths = sizes + (sizes > 0)
    if int(lengths.sum()) != len(frequencies):
        raise BundleFormatError("tables: number of frequencies does not fit the sizes")
    parts = np.split(frequencies, np.cumsum(lengths.ravel())[:-1]) if lengths.size else []
    num_rows = sizes.shape[1]
    sets = {
        (depth, level16): join_tables(offsets[t].tolist(), parts[t * num_rows : (t + 1) * num_rows], rows[t])
        for t, (depth, level16) in enumerate(points.tolist())
    }
    if len(sets) != len(points):
        raise BundleFormatError("tables: an operating point occurs twice")
    return sets
