"""The metrics' table against what a real Prometheus got from real programs."""

from __future__ import annotations

import pytest

from pipeline.metrics import METRICS, Kind, Metric
from tests.deploy.conftest import Fleet

#: What such a run has no series of, and why.
ABSENT = {
    "rac_cloud_sink_dropped_total": "the cloud has no --results",
}

#: What is there and stays zero while nothing is wrong, and why.
ZERO = {
    "rac_node_bundle_updates_total": "the nodes have the bundle",
    "rac_node_camera_reconnects_total": "the test camera never fails",
    "rac_node_frames_recovered_total": "no --spool",
    "rac_node_spool_frames": "no --spool",
    "rac_node_spool_bytes": "no --spool",
    "rac_node_spool_oldest_timestamp_seconds": "no --spool",
    "rac_node_spool_corrupt_total": "no --spool",
    "rac_node_insecure": "the cloud is on this machine",
    "rac_cloud_insecure": "only this machine can connect",
    "rac_cloud_allowed_keys": "no keys",
    "rac_cloud_allow_list_outdated": "no keys",
    "rac_cloud_connections_ended_total": "nobody floods",
    "rac_cloud_frames_duplicate_total": "no session was lost",
    "rac_cloud_worker_restarts_total": "no worker was lost",
}

#: What depends on the moment or on the machine's load.
EITHER = {
    "rac_node_depth_changes_total": "load",
    "rac_node_budget_overruns_total": "load",
    "rac_node_reconnects_total": "a node may ask before the cloud is there",
    "rac_node_credit_frames": "all of it may be on the way",
    "rac_node_in_flight_frames": "the moment",
    "rac_cloud_in_flight_frames": "the moment",
    "rac_cloud_credit_outstanding_frames": "the moment",
    "rac_cloud_queue_frames": "the moment",
    "rac_cloud_sessions_closed_total": "only when a session was lost to load",
    "rac_cloud_sequence_gaps_total": "load: superseded frames leave gaps",
    "rac_cloud_frames_missing_total": "load",
}


def series_of(metric: Metric) -> str:
    """The name of one series that tells whether a metric is there."""
    return f"{metric.name}_count" if metric.kind is Kind.HISTOGRAM else metric.name


def test_lists_name_metrics_once() -> None:
    assert not (ABSENT.keys() & ZERO.keys() or ABSENT.keys() & EITHER.keys() or ZERO.keys() & EITHER.keys())
    assert {*ABSENT, *ZERO, *EITHER} <= METRICS.keys()


@pytest.mark.parametrize("name", METRICS)
def test_prometheus_has_what_the_table_promises(fleet: Fleet, name: str) -> None:
    """Each metric of both programs, with its labels; with values where the run should give some."""
    metric = METRICS[name]
    if name in ABSENT:
        assert fleet.prometheus.query(series_of(metric)) == []
        return
    # A scrape that took too long leaves no series for a second, and first values may be of the next one.
    expected = {"dock", "yard"} if metric.side == "node" else set()
    has_values = name not in ZERO and name not in EITHER
    samples = fleet.prometheus.wait_for(
        series_of(metric),
        lambda samples: (
            {labels.get("node") for labels, _ in samples} >= expected
            and (not has_values or sum(value for _, value in samples) > 0)
        ),
    )
    nodes = {labels.get("node") for labels, _ in samples}
    assert metric.side == "cloud" or nodes == {"dock", "yard"}
    given_by_prometheus = {"__name__", "job", "instance"} | ({"node"} if metric.side == "node" else set())
    for labels, _ in samples:
        lacking = {label.name for label in metric.labels} | given_by_prometheus
        # An empty value is no label for Prometheus: a copy of the source without git has no revision.
        assert lacking ^ labels.keys() <= {"revision"}
        for label in metric.labels:
            assert not label.values or labels[label.name] in label.values
    total = sum(value for _, value in samples)
    assert name not in ZERO or total == 0, samples


def test_every_target_is_up_and_named(fleet: Fleet) -> None:
    expected = {("rac-cloud", None): 1, ("rac-node", "dock"): 1, ("rac-node", "yard"): 1}
    fleet.prometheus.wait_for(
        "up", lambda samples: {(labels["job"], labels.get("node")): value for labels, value in samples} == expected
    )


def test_fleet_balances_in_prometheus(fleet: Fleet) -> None:
    """Every scrape is of one moment, so that the ledger's balance holds in the stored series too."""
    balance = (
        "sum by (node) (rac_node_frames_captured_total) + sum by (node) (rac_node_frames_recovered_total)"
        " - sum by (node) (rac_node_frames_dropped_total)"
        ' - sum by (node) (rac_node_results_total{outcome="ok"}) - sum by (node) (rac_node_in_flight_frames)'
    )
    samples = fleet.prometheus.wait_for(balance, lambda samples: len(samples) == 2)
    assert [value for _, value in samples] == [0, 0]
