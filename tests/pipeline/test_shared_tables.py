"""Tables that channels share: as good as their own, few, and the same on every machine."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.entropy.shared_tables import fit_shared_tables
from pipeline.entropy.tables import fit_tables
from pipeline.errors import TableMismatchError

REACH = 128


def laplace_symbols(seed: int, channels: int = 300) -> NDArray[np.int32]:
    """Symbols (frames, channels, 7, 7), from hardly ever to hardly ever not zero; every tenth channel is all zero."""
    random = np.random.default_rng(seed)
    scales = np.exp(np.linspace(-3.0, 2.5, channels))
    symbols = np.rint(random.laplace(0, scales[:, None, None], (40, channels, 7, 7))).astype(np.int32)
    symbols[:, ::10] = 0
    return symbols


def histogram(symbols: NDArray[np.int32]) -> NDArray[np.int64]:
    clipped = np.clip(symbols, -REACH, REACH) + REACH
    return np.stack([np.bincount(each.ravel(), minlength=2 * REACH + 1) for each in clipped.transpose(1, 0, 2, 3)])


def test_a_few_tables_code_hundreds_of_channels_nearly_as_well_as_their_own() -> None:
    counts, frames = histogram(laplace_symbols(1)), laplace_symbols(2)
    left_out = counts[:, REACH] == counts.sum(axis=1)
    frames[:, left_out] = 0
    own = fit_tables(counts, -REACH, left_out)
    bits = {num: sum(fit_shared_tables(counts, -REACH, left_out, num).ideal_bits(f) for f in frames) for num in (1, 24)}
    expected = sum(own.ideal_bits(frame) for frame in frames)
    assert bits[24] < 1.01 * expected
    assert bits[1] > 1.2 * expected


def test_shared_tables_have_the_rows_that_were_asked_for() -> None:
    """Sets of one bundle are packed side by side, so each has as many rows, needed or not."""
    counts = histogram(laplace_symbols(1, 5))
    left_out = np.array([True, False, False, True, False])
    for num_tables in (2, 9):
        tables = fit_shared_tables(counts, -REACH, left_out, num_tables)
        assert len(tables.sizes) == num_tables + 1
        assert tables.left_out.tolist() == [0, 3]
        assert len(np.unique(tables.coded_rows)) <= min(num_tables, 3)


def test_nothing_but_channels_left_out_needs_no_table() -> None:
    counts = histogram(laplace_symbols(1, 4))
    tables = fit_shared_tables(counts, -REACH, np.ones(4, np.bool_), 3)
    assert tables.left_out.tolist() == [0, 1, 2, 3]
    assert tables.sizes.tolist() == [0] * 4


def test_equal_counts_give_equal_tables() -> None:
    counts = histogram(laplace_symbols(1))
    left_out = np.zeros(len(counts), np.bool_)
    one, other = (fit_shared_tables(counts, -REACH, left_out, 16) for _ in range(2))
    assert np.array_equal(one.rows, other.rows)
    assert np.array_equal(one.cumulative, other.cumulative)


def test_histogram_that_is_too_narrow_raises() -> None:
    counts = histogram(100 * laplace_symbols(1))
    with pytest.raises(TableMismatchError, match="wider"):
        fit_shared_tables(counts, -REACH, np.zeros(len(counts), np.bool_), 4)
