"""Closing figures of a node's run."""

from __future__ import annotations

from typing import Any

from nodes.edge import EdgeNode


def summary(node: EdgeNode) -> dict[str, Any]:
    """Closing figures of a run, for people and for `--json`."""
    snapshot = node.ledger.snapshot()
    total = snapshot.total
    return {
        "captured": total.captured,
        "recovered": total.recovered,
        "results": total.results,
        "dropped": dict(sorted(total.dropped.items())),
        "in_flight": total.in_flight,
        "late": total.late,
        "labelled": total.labelled,
        "top1": share(total.correct_top1, total.labelled),
        "references": total.references,
        "agreement": share(total.agreements, total.references),
        "bytes_per_frame": share(total.bitstream_bytes, total.sent),
        "bits_per_pixel": share(8 * total.bitstream_bytes, total.coded_pixels),
        "wire_sent_bytes": node.uplink.sent_bytes,
        "wire_received_bytes": node.uplink.received_bytes,
        "e2e_ms_p50": milliseconds(snapshot.latency_p50_ns),
        "e2e_ms_p99": milliseconds(snapshot.latency_p99_ns),
    }


def share(part: int, whole: int) -> float | None:
    """part / whole, None without any."""
    return part / whole if whole else None


def milliseconds(duration_ns: int | None) -> float | None:
    """Nanoseconds as milliseconds to a hundredth."""
    return None if duration_ns is None else round(duration_ns / 1e6, 2)
