"""The rANS coder as plain functions over arrays: `pipeline.entropy.rans` has numba compile them.

They run as they are, too, thousands of times slower, so that they can be tested and stepped through without
numba. Hence the style: no objects, and every number that meets the 64-bit state is an explicit uint64,
because numba and numpy alike make a float of uint64 with int64. Limits of the format come as arguments:
numba's cache notices changes of this file only, not of constants imported into it.

The decoder's table rows stand one behind the other, those of many table sets together, and so do the channels
that each set codes, in coded order, with their rows: those of a frame are begins[frame] to ends[frame] - 1. A row
begins at `row_starts`. An entry, here an index into all rows, covers the quantiles cumulative[entry] to
cumulative[entry + 1] - 1.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

GUESS_BITS = 10
"""The first guess of an entry comes from the top 10 of a quantile's 24 bits; then it walks, mostly no
step."""

GOOD, LEFT_OVER, BAD_ESCAPE, WILD_ESCAPE = 0, 1, 2, 3
"""Status of a decoded frame: good; not back at the initial state; an escape value malformed; one out of
range."""

_MASK_20 = np.uint64((1 << 20) - 1)
_MASK_24 = np.uint64((1 << 24) - 1)
_MASK_32 = np.uint64((1 << 32) - 1)
_LEAST_FULL = np.uint64(1 << 32)
_PIECE_FREQUENCY = np.uint64(1 << 20)
_GUESS_SHIFT = np.uint64(24 - GUESS_BITS)
_ZERO, _ONE, _20, _24, _32, _40 = (np.uint64(number) for number in (0, 1, 20, 24, 32, 40))


def encode_frame(
    entries: NDArray[np.int32],
    pieces: NDArray[np.int32],
    cumulative: NDArray[np.uint32],
    rows: NDArray[np.int32],
    words: NDArray[np.uint32],
) -> int:
    """Push escape pieces and entries (coded channels, H * W), the last one first; return the number of words written.

    Channel k of the entries uses row `rows[k]` of the tables.

    A symbol pushes one word at most: `words` needs room for entries, pieces and the two words of the state.
    """
    state = _ZERO
    count = 0
    for index in range(len(pieces) - 1, -1, -1):
        if (state >> _40) >= _PIECE_FREQUENCY:
            words[count] = state & _MASK_32
            count += 1
            state = state >> _32
        state = ((state >> _20) << _24) | (np.uint64(pieces[index]) << _20) | (state & _MASK_20)
    for channel in range(len(rows) - 1, -1, -1):
        row = rows[channel]
        for position in range(entries.shape[1] - 1, -1, -1):
            entry = entries[channel, position]
            low = np.uint64(cumulative[row, entry])
            frequency = np.uint64(cumulative[row, entry + 1]) - low
            if (state >> _40) >= frequency:
                words[count] = state & _MASK_32
                count += 1
                state = state >> _32
            quotient = state // frequency
            state = (quotient << _24) + (state - quotient * frequency) + low
    while state != _ZERO:
        words[count] = state & _MASK_32
        count += 1
        state = state >> _32
    return count


def decode_frames(
    words: NDArray[np.uint32],
    word_starts: NDArray[np.int64],
    begins: NDArray[np.int64],
    ends: NDArray[np.int64],
    cumulative: NDArray[np.uint32],
    row_starts: NDArray[np.int64],
    guesses: NDArray[np.uint16],
    offsets: NDArray[np.int32],
    sizes: NDArray[np.int32],
    channels: NDArray[np.int32],
    rows: NDArray[np.int32],
    max_symbol: int,
    max_pieces: int,
    symbols: NDArray[np.int32],
    statuses: NDArray[np.uint8],
) -> None:
    """Pop the symbols (B, C, H * W) of every frame, and say in `statuses` (B,) how each one went.

    Frame b owns words[word_starts[b] : word_starts[b + 1]] and reads no others: when they are used up its
    state gets no more bits and runs down, and the check at the end finds it.
    """
    for frame in range(len(statuses)):
        begin, left = word_starts[frame], word_starts[frame + 1]
        state = _ZERO
        for _ in range(2):
            if left > begin:
                left -= 1
                state = (state << _32) | np.uint64(words[left])
        num_escapes = 0
        symbols[frame, :, :] = 0
        for index in range(begins[frame], ends[frame]):
            channel, row = channels[index], rows[index]
            # Unsigned, because a signed index is tested for being negative: a sixth of the whole time.
            start = np.uint64(row_starts[row])
            escape = start + np.uint64(sizes[row])
            symbol_of_0 = np.int64(offsets[row]) - row_starts[row]
            for position in range(symbols.shape[2]):
                quantile = state & _MASK_24
                entry = start + np.uint64(guesses[row, quantile >> _GUESS_SHIFT])
                low = np.uint64(cumulative[entry])
                high = np.uint64(cumulative[entry + _ONE])
                while high <= quantile:
                    entry += _ONE
                    low = high
                    high = np.uint64(cumulative[entry + _ONE])
                state = (state >> _24) * (high - low) + (quantile - low)
                if state < _LEAST_FULL and left > begin:
                    left -= 1
                    state = (state << _32) | np.uint64(words[left])
                num_escapes += entry == escape
                symbols[frame, channel, position] = symbol_of_0 + np.int64(entry)
        status = GOOD
        for index in range(begins[frame], ends[frame] if num_escapes > 0 else begins[frame]):
            channel, row = channels[index], rows[index]
            first = np.int64(offsets[row])
            behind = first + sizes[row]
            for position in range(symbols.shape[2]):
                if symbols[frame, channel, position] != behind:
                    continue
                folded, num_pieces, piece = np.int64(0), 0, np.int64(8)
                while piece >= 8 and num_pieces < max_pieces:
                    piece = np.int64((state & _MASK_24) >> _20)
                    state = ((state >> _24) << _20) | (state & _MASK_20)
                    if state < _LEAST_FULL and left > begin:
                        left -= 1
                        state = (state << _32) | np.uint64(words[left])
                    folded |= (piece & 7) << (3 * num_pieces)
                    num_pieces += 1
                value = first - 1 - (folded >> 1) if folded & 1 else behind + (folded >> 1)
                # The last piece of a longer value is never zero: a value has one form only.
                if piece >= 8 or (piece == 0 and num_pieces > 1):
                    status = BAD_ESCAPE
                elif value > max_symbol or value < -max_symbol:
                    status = WILD_ESCAPE
                else:
                    symbols[frame, channel, position] = value
                if status != GOOD:
                    break
            if status != GOOD:
                break
        if status == GOOD and (state != _ZERO or left != begin):
            status = LEFT_OVER
        statuses[frame] = status
