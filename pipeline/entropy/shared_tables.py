"""Tables that channels share: hundreds of channels, few kinds of distribution.

Coding begins anew with each table, which takes a node some microseconds, and every table travels in the bundle; a
channel of few symbols is also counted better together with others like it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.entropy.tables import TableSet, fit_tables, join_tables

MAX_ROUNDS = 20
"""Of assigning channels anew; nothing moves after five or so."""
SMOOTHING = 0.5
"""Counted for every symbol that a table may hold, so that none costs an infinity of bits."""


def fit_shared_tables(
    counts: NDArray[np.int64], first_symbol: int, left_out: NDArray[np.bool_], num_tables: int
) -> TableSet:
    """Tables of `num_tables` rows and one more, the last, for channels that are left out.

    Channels go to the table that codes them in the fewest bits, tables are fitted to their channels, and again until
    nothing moves (k-means with code length for distance). Equal input, equal output.

    Args:
        counts / first_symbol / left_out: as `pipeline.entropy.tables.fit_tables` takes them.
        num_tables: rows that no channel needs stay empty.

    Raises:
        TableMismatchError: as `fit_tables`.
    """
    kept = np.flatnonzero(~left_out)
    groups, members = np.unique(_group(counts[kept].astype(np.float64), num_tables), return_inverse=True)
    summed = np.zeros((len(groups), counts.shape[1]), np.int64)
    np.add.at(summed, members, counts[kept])
    fitted = fit_tables(summed, first_symbol, np.zeros(len(groups), np.bool_))
    num_empty = num_tables + 1 - len(groups)
    frequencies = [fitted.frequencies(row) for row in range(len(groups))] + [np.empty(0, np.int64)] * num_empty
    rows = np.full(len(counts), num_tables)
    rows[kept] = members
    return join_tables([*fitted.offsets.tolist(), *[0] * num_empty], frequencies, rows)


def _group(counts: NDArray[np.float64], num_groups: int) -> NDArray[np.intp]:
    """Group of each row of counts (n, S), 0 to `num_groups` - 1, the least spread ones first."""
    if len(counts) == 0:
        return np.empty(0, np.intp)
    symbols = np.arange(counts.shape[1])
    centre = counts @ symbols / counts.sum(axis=1)
    spread = np.array([row @ np.abs(symbols - middle) for row, middle in zip(counts, centre, strict=True)])
    places = np.empty(len(counts), np.intp)
    places[np.argsort(spread, kind="stable")] = np.arange(len(counts)) * num_groups // len(counts)
    for _ in range(MAX_ROUNDS):
        member = (places == np.arange(num_groups)[:, None]).astype(np.float64)
        totals = member @ counts + SMOOTHING
        bits = -counts @ np.log2(totals / totals.sum(axis=1, keepdims=True)).T
        bits[:, member.sum(axis=1) == 0] = np.inf
        nearest = bits.argmin(axis=1)
        if np.array_equal(nearest, places):
            break
        places = nearest
    return places
