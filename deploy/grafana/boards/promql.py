"""Small PromQL expressions, each checked against the table of metrics while it is written.

A rate is taken of a counter or of a histogram only, a ratio never divides by zero, and a metric that no program has
raises `ValueError`: so no dashboard can be written that asks for one.
"""

from __future__ import annotations

import re
from typing import Final

from pipeline.ledger import Outcome
from pipeline.metrics import METRICS, Kind

#: What Prometheus itself and the client library add to our own metrics, by whether it is a counter.
FOREIGN: Final = {
    "up": False,
    "ALERTS": False,
    "process_cpu_seconds_total": True,
    "process_resident_memory_bytes": False,
    "process_open_fds": False,
}
#: A share over fewer frames than this says nothing; as in the summary of `rac demo`.
MIN_SAMPLE: Final = 50
#: Drops that somebody asked for: a live camera's newest frame is the one that counts, `--fps`, an ordered stop. As in
#: deploy/prometheus/rules/recording.yml.
EXPECTED_DROPS: Final = (Outcome.SUPERSEDED, Outcome.NO_CREDIT, Outcome.RATE_LIMIT, Outcome.SHUTDOWN)
LOST: Final = f'reason!~"{"|".join(EXPECTED_DROPS)}"'
ANSWERED: Final = 'outcome="ok"'
SENT: Final = 'direction="sent"'

# Names of the scrape jobs; metrics that every process has are asked for by them.
NODE_JOB: Final = 'job="rac-node"'
CLOUD_JOB: Final = 'job="rac-cloud"'

# Selectors of the dashboards' variables.
NODE: Final = 'node=~"$node"'
CAMERA: Final = 'node=~"$node", camera=~"$camera"'
CLOUD: Final = 'instance=~"$cloud"'

_SERIES: Final = re.compile(r"_(?:bucket|sum|count)$")


def select(metric: str, *matchers: str) -> str:
    """A metric with its matchers; raises ValueError when no program has such a series."""
    _is_counter(metric)
    return f"{metric}{{{', '.join(matchers)}}}" if matchers else metric


def rate(counter: str, *matchers: str) -> str:
    """Growth a second, over what suits the width of the picture."""
    return _growth("rate", counter, matchers, "$__rate_interval")


def grown(counter: str, *matchers: str) -> str:
    """Growth over the whole chosen time."""
    return _growth("increase", counter, matchers, "$__range")


def count(counter: str, labels: str, *matchers: str) -> str:
    """Whole events over the chosen time, without the fractions of an extrapolation."""
    return f"round({by(labels, grown(counter, *matchers))})"


def by(labels: str, expression: str, aggregate: str = "sum") -> str:
    """Aggregated, one series for each combination of these labels; without labels a single one."""
    return f"{aggregate} by ({labels}) ({expression})" if labels else f"{aggregate}({expression})"


def ratio(part: str, whole: str, at_least: int = 0) -> str:
    """A quotient where its divisor is above 0, or is a sample of at least so many."""
    return f"{part} / ({whole} {f'>= {at_least}' if at_least else '> 0'})"


def quantile(share: float, histogram: str, labels: str, *matchers: str) -> str:
    """Quantile of a histogram by these labels."""
    buckets = by(f"{labels}, le" if labels else "le", rate(f"{histogram}_bucket", *matchers))
    return f"histogram_quantile({share}, {buckets})"


def mean(histogram: str, labels: str, *matchers: str) -> str:
    """Mean of what a histogram saw."""
    return ratio(by(labels, rate(f"{histogram}_sum", *matchers)), by(labels, rate(f"{histogram}_count", *matchers)))


def heat(histogram: str, *matchers: str) -> str:
    """Observations a second by bucket, for a heatmap."""
    return by("le", rate(f"{histogram}_bucket", *matchers))


def age(moment: str, labels: str, aggregate: str, *matchers: str) -> str:
    """Seconds since a moment; nothing where it never came."""
    return f"time() - {by(labels, f'{select(moment, *matchers)} > 0', aggregate)}"


def _growth(function: str, counter: str, matchers: tuple[str, ...], over: str) -> str:
    if not _is_counter(counter):
        raise ValueError(f"{counter} is no counter: a rate of it means nothing")
    return f"{function}({select(counter, *matchers)}[{over}])"


def _is_counter(series: str) -> bool:
    if series in FOREIGN:
        return FOREIGN[series]
    if series in METRICS and METRICS[series].kind is not Kind.HISTOGRAM:
        return METRICS[series].kind is Kind.COUNTER
    base = _SERIES.sub("", series)
    if base != series and base in METRICS and METRICS[base].kind is Kind.HISTOGRAM:
        return True
    raise ValueError(f"no program has the series {series}")
