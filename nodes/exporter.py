"""Metrics table -> Prometheus series.

The series live in a registry of their own. Every combination of known label values exists from the start with
zero, so that a rate over the first event is right. Two ways in:

    add, set, observe, inform   events and states, by whoever sees them
    publish                     totals of a ledger's snapshot; a scrape sees all of one or all of the next

Scrapes come from other threads, so everything here may be called from any thread.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, TypeVar

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from pipeline.errors import LedgerError
from pipeline.metrics import OTHER, Kind, Metric, Origin, Side, metrics_of

#: Labels whose values come from outside where a metric is capped.
CAPPED_LABELS: Final = frozenset({"node", "camera"})

Series = tuple[str, ...]
Handle = TypeVar("Handle", Counter, Gauge, Histogram)


class Exporter:
    """All series of one program.

    Args:
        side: whose metrics.
        known: values of the labels that the table leaves to the program's start, by label: camera, endpoint,
            depth and level on the node; depth, level, bundle, worker and sink in the cloud.
        max_cameras: cameras with series of their own in capped metrics.
    Raises:
        ValueError: a label's values are missing.
    """

    def __init__(self, side: Side, known: Mapping[str, Sequence[object]], *, max_cameras: int = 256) -> None:
        # A second series with the creation time for each counter is of no use here.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = CollectorRegistry()
        self._metrics = {metric.name: metric for metric in metrics_of(side)}
        self._known = {name: tuple(map(str, values)) for name, values in known.items()}
        self._max_cameras = max_cameras
        self._lock = threading.Lock()
        self._admitted: dict[Series, set[Series]] = {}
        self._informed: dict[Series, Series] = {}
        self._counters: dict[str, Counter] = {}
        self._gauges: dict[str, Gauge] = {}
        self._histograms: dict[str, Histogram] = {}
        zeros: dict[Series, float] = {}
        for metric in self._metrics.values():
            if metric.origin is Origin.LEDGER:
                zeros |= {(metric.name, *labels): 0.0 for labels in self._combinations(metric)}
            else:
                self._create(metric)
        self._totals = _Totals(self._metrics, zeros)
        self._registry.register(self._totals)
        ProcessCollector(registry=self._registry)

    def add(self, name: str, *labels: object, amount: float = 1.0) -> None:
        """Count events. Labels are given in the table's order.

        Raises:
            KeyError: no such counter, or the ledger's.
            ValueError: a label value outside its enumeration, or too few of them.
        """
        self._child(name, self._counters[name], labels).inc(amount)

    def set(self, name: str, value: float, *labels: object) -> None:
        """Set a gauge; errors as for `add`."""
        self._child(name, self._gauges[name], labels).set(value)

    def observe(self, name: str, value: float, *labels: object) -> None:
        """Put a value into a histogram; errors as for `add`."""
        self._child(name, self._histograms[name], labels).observe(value)

    def inform(self, name: str, *labels: object) -> None:
        """Set an `_info` metric to 1, in place of what was said before about the same first label."""
        gauge = self._gauges[name]
        if not self._metrics[name].is_info:
            raise KeyError(name)
        values = tuple(map(str, labels))
        subject = (name, values[0])
        with self._lock:
            before = self._informed.get(subject)
            self._informed[subject] = values
        if before is not None and before != values:
            gauge.remove(*before)
        gauge.labels(*values).set(1)

    def forget(self, name: str, subject: object) -> None:
        """Take back what `inform` said about this first label."""
        with self._lock:
            before = self._informed.pop((name, str(subject)), None)
        if before is not None:
            self._gauges[name].remove(*before)

    def remove(self, name: str, *labels: object) -> None:
        """End the gauge's series of a node or camera and free its place under the cap; none: nothing happens."""
        metric, values = self._metrics[name], tuple(map(str, labels))
        if not metric.is_capped:
            raise KeyError(name)
        names = tuple(label.name for label in metric.labels)
        with self._lock:
            admitted = self._admitted.get(names, set())
            if values not in admitted:
                return
            admitted.remove(values)
        self._gauges[name].remove(*values)

    def publish(self, totals: Mapping[tuple[object, ...], float]) -> None:
        """Replace all the ledger's values by those of a snapshot.

        Args:
            totals: value by (metric, label values...); what is left out is zero.
        Raises:
            KeyError: a metric that is not the ledger's.
            ValueError: a label value outside its set.
            LedgerError: a counter went backwards.
        """
        checked: dict[Series, float] = {}
        for (name, *labels), value in totals.items():
            metric = self._metrics[str(name)]
            if metric.origin is not Origin.LEDGER:
                raise KeyError(name)
            checked[(metric.name, *self._label_values(metric, labels))] = value
        self._totals.replace(checked)

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """The page for a scrape, and its content type.

        Args:
            accept: the request's Accept header; says which text format.
        """
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type

    def _create(self, metric: Metric) -> None:
        names = [label.name for label in metric.labels]
        handle: Counter | Gauge | Histogram
        if metric.kind is Kind.COUNTER:
            handle = self._counters[metric.name] = Counter(metric.name, metric.help, names, registry=self._registry)
        elif metric.kind is Kind.GAUGE:
            handle = self._gauges[metric.name] = Gauge(metric.name, metric.help, names, registry=self._registry)
        else:
            handle = self._histograms[metric.name] = Histogram(
                metric.name, metric.help, names, registry=self._registry, buckets=metric.buckets
            )
        if names:
            for labels in self._combinations(metric):
                handle.labels(*labels)

    def _combinations(self, metric: Metric) -> Iterator[Series]:
        """Every combination of the known label values; none where values come from outside or few are in use."""
        if metric.is_capped or metric.is_info or metric.is_sparse:
            return iter(())
        return itertools.product(*(label.values or self._start_values(label.name) for label in metric.labels))

    def _start_values(self, label: str) -> Series:
        if label not in self._known:
            raise ValueError(f"values of the label {label} must be known when the exporter starts")
        return self._known[label]

    def _child(self, name: str, handle: Handle, labels: Sequence[object]) -> Handle:
        values = self._label_values(self._metrics[name], labels)
        return handle.labels(*values) if values else handle

    def _label_values(self, metric: Metric, labels: Sequence[object]) -> Series:
        if len(labels) != len(metric.labels):
            raise ValueError(f"{metric.name} has {len(metric.labels)} labels, not {len(labels)}")
        if metric.is_info:
            raise ValueError(f"{metric.name} is set by inform")
        values = []
        for label, given in zip(metric.labels, labels, strict=True):
            value = str(given)
            if label.values and value not in label.values:
                raise ValueError(f"{metric.name}: {label.name}={value} is not in {label.values}")
            open_set = metric.is_capped and label.name in CAPPED_LABELS
            if not label.values and not open_set and value not in self._known[label.name]:
                value = OTHER
            values.append(value)
        return self._admit(metric, tuple(values)) if metric.is_capped else tuple(values)

    def _admit(self, metric: Metric, values: Series) -> Series:
        """The values, or `_other` in place of node and camera names that came too late."""
        places = [index for index, label in enumerate(metric.labels) if label.name in CAPPED_LABELS]
        names = tuple(metric.labels[index].name for index in places)
        key = tuple(values[index] for index in places)
        with self._lock:
            admitted = self._admitted.setdefault(names, set())
            if key in admitted:
                return values
            if len(admitted) < self._max_cameras:
                admitted.add(key)
                return values
        return tuple(OTHER if index in places else value for index, value in enumerate(values))


class _Totals(Collector):
    """Series that come from a ledger: one mapping, replaced as a whole."""

    def __init__(self, metrics: Mapping[str, Metric], zeros: Mapping[Series, float]) -> None:
        self._metrics = metrics
        self._zeros = zeros
        self._values: Mapping[Series, float] = zeros

    def replace(self, totals: Mapping[Series, float]) -> None:
        values = {**self._zeros, **totals}
        for series, before in self._values.items():
            if self._metrics[series[0]].kind is Kind.COUNTER and values.get(series, 0.0) < before:
                raise LedgerError(f"{' '.join(series)} went from {before:g} to {values.get(series, 0.0):g}")
        self._values = values

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        families: dict[str, CounterMetricFamily | GaugeMetricFamily] = {}
        for (name, *labels), value in self._values.items():
            family = families.get(name)
            if family is None:
                metric = self._metrics[name]
                make = CounterMetricFamily if metric.kind is Kind.COUNTER else GaugeMetricFamily
                family = make(name, metric.help, labels=[label.name for label in metric.labels])
                families[name] = family
            family.add_metric(labels, value)
        yield from families.values()
