"""The metrics table keeps Prometheus' conventions and the words of the code that fills it."""

from __future__ import annotations

import re

import pytest

from nodes.capture_link import DownReason
from nodes.pool import LossReason, SlotState
from pipeline.ledger import CLOUD_OUTCOMES, NODE_DROPS, RESULT_OUTCOMES, Outcome
from pipeline.metrics import (
    CLOUD_METRICS,
    METRICS,
    NODE_METRICS,
    Kind,
    Metric,
    Origin,
    metrics_of,
    render_metrics_page,
)

EVERY = pytest.mark.parametrize("metric", METRICS.values(), ids=lambda metric: str(metric.name))


def label_values(name: str, label: str) -> set[str]:
    return {value for each in METRICS[name].labels if each.name == label for value in each.values}


def test_names_are_unique_and_carry_their_side() -> None:
    assert len(METRICS) == len(NODE_METRICS) + len(CLOUD_METRICS)
    assert all(metric.name.startswith("rac_node_") for metric in metrics_of("node"))
    assert all(metric.name.startswith("rac_cloud_") for metric in metrics_of("cloud"))


@EVERY
def test_name_and_help_keep_the_conventions(metric: Metric) -> None:
    assert re.fullmatch(r"[a-z][a-z0-9_]*", metric.name)
    assert (metric.kind is Kind.COUNTER) == metric.name.endswith("_total")
    assert metric.help.endswith(".")
    if metric.unit in ("s", "unix s"):
        assert "_seconds" in metric.name
    if metric.unit == "bytes":
        assert "_bytes" in metric.name


@EVERY
def test_buckets_rise_and_belong_to_histograms(metric: Metric) -> None:
    assert bool(metric.buckets) == (metric.kind is Kind.HISTOGRAM)
    assert list(metric.buckets) == sorted(set(metric.buckets))


@EVERY
def test_labels_are_bounded(metric: Metric) -> None:
    """No frame, session or process is a label, and names from outside are capped."""
    names = [label.name for label in metric.labels]
    assert len(names) == len(set(names))
    assert not {"frame", "sequence", "session", "pid", "le"} & set(names)
    if "node" in names:
        assert metric.is_capped


def test_histogram_has_no_counter_of_the_same_name() -> None:
    """A histogram's _sum and _count are its counters."""
    for metric in METRICS.values():
        if metric.kind is Kind.HISTOGRAM:
            assert f"{metric.name}_total" not in METRICS


def test_drop_reasons_are_the_ledgers() -> None:
    every_drop = {outcome.value for outcome in (NODE_DROPS | RESULT_OUTCOMES) - {Outcome.OK}}
    assert label_values("rac_node_frames_dropped_total", "reason") == every_drop
    assert label_values("rac_cloud_results_total", "outcome") == {word.value for word in CLOUD_OUTCOMES}


def test_words_of_cameras_and_workers_are_theirs() -> None:
    """They are declared above this layer, so the table repeats them."""
    assert label_values("rac_node_camera_reconnects_total", "reason") == {word.value for word in DownReason}
    assert label_values("rac_cloud_workers", "state") == {word.value for word in SlotState}
    assert label_values("rac_cloud_worker_restarts_total", "reason") == {word.value for word in LossReason}


def test_frames_of_the_balance_come_from_the_ledger_alone() -> None:
    balance = [
        "rac_node_frames_captured_total",
        "rac_node_frames_dropped_total",
        "rac_node_results_total",
        "rac_node_in_flight_frames",
        "rac_cloud_results_total",
        "rac_cloud_in_flight_frames",
    ]
    assert all(METRICS[name].origin is Origin.LEDGER for name in balance)


def test_page_has_a_row_for_every_metric() -> None:
    page = render_metrics_page()
    assert all(f"| {name} |" in page for name in METRICS)
