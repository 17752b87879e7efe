"""Numbers as Grafana writes them, for the units that our dashboards use."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence


def _scaled(steps: Sequence[tuple[float, str]]) -> Callable[[float], str]:
    """A writer that takes the largest step which the number reaches; steps rise."""

    def write(value: float) -> str:
        # Nothing is nothing of the plain unit.
        factor, name = next(step for step in steps if step[0] == 1) if value == 0 else steps[0]
        for step, word in steps:
            if abs(value) >= step:
                factor, name = step, word
        return f"{_plain(value / factor)}{name}"

    return write


def _plain(value: float) -> str:
    """Three digits, without zeros at the end."""
    if abs(value) >= 100 or value == int(value):
        return f"{value:.0f}"
    return f"{value:.{2 if abs(value) < 10 else 1}f}".rstrip("0").rstrip(".")


WRITERS: Mapping[str, Callable[[float], str]] = {
    "short": _scaled([(1, ""), (1e3, " K"), (1e6, " Mil")]),
    "none": _plain,
    "percentunit": lambda value: f"{_plain(100 * value)} %",
    "s": _scaled([(1e-6, " us"), (1e-3, " ms"), (1, " s"), (60, " min"), (3600, " h")]),
    "bps": _scaled([(1, " b/s"), (1e3, " kb/s"), (1e6, " Mb/s")]),
    "bytes": _scaled([(1, " B"), (2**10, " KiB"), (2**20, " MiB"), (2**30, " GiB")]),
    "fps": lambda value: f"{_plain(value)} fps",
    "cpm": lambda value: f"{_plain(value)} c/m",
    "bool": lambda value: "up" if value else "down",
    "bool_yes_no": lambda value: "Yes" if value else "No",
    "dateTimeAsIso": lambda value: time.strftime("%Y-%m-%d %H:%M", time.gmtime(value / 1000)),
}


def write(value: float | None, unit: str) -> str:
    """A value with its unit; "-" where there is none.

    Raises:
        KeyError: a unit that is not in the list.
    """
    if value is None or not math.isfinite(value):
        return "-"
    if unit.startswith("suffix:"):
        return f"{_plain(value)}{unit.removeprefix('suffix:')}"
    return WRITERS[unit](value)
