"""Counts that the node's ledger keeps and hands out: data, and how to add it up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace


@dataclass(slots=True)
class CameraTotals:
    """Counts of one camera, or of all together. The ledger counts in these; a snapshot holds copies.

    Attributes:
        recovered: frames that an earlier run of the node left in its spool; not among `captured`.
        dropped: frames by reason; reasons without frames are absent.
        in_flight: open entries; `unanswered` of them were sent.
        late / repeated / unknown: RESULTs outside the balance: for a frame that the node had already given
            up, that already had its RESULT, or that was never sent.
        labelled: results with a label; `correct_top1`, `correct_top5` of them right.
        references: results with a reference class; `agreements` of them with the same top-1.
        labelled_references: results with both; in `reference_correct` of them the reference class was right.
        first_result_ns / last_result_ns: monotonic time of the first and newest outcome `ok`.
    """

    captured: int = 0
    recovered: int = 0
    sent: int = 0
    results: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    in_flight: int = 0
    unanswered: int = 0
    late: int = 0
    repeated: int = 0
    unknown: int = 0
    labelled: int = 0
    correct_top1: int = 0
    correct_top5: int = 0
    references: int = 0
    agreements: int = 0
    labelled_references: int = 0
    reference_correct: int = 0
    bitstream_bytes: int = 0
    coded_pixels: int = 0
    wire_sent_bytes: int = 0
    wire_received_bytes: int = 0
    first_result_ns: int | None = None
    last_result_ns: int | None = None


@dataclass(frozen=True, slots=True)
class CodedTotals:
    """Sent frames of one camera, depth and whole level."""

    frames: int
    bitstream_bytes: int
    coded_pixels: int


@dataclass(frozen=True, slots=True)
class LedgerSnapshot:
    """The node's ledger at one moment.

    Attributes:
        coded: sent frames by (camera, depth, level).
        latency_p50_ns / latency_p99_ns: capture to result over the newest `LATENCY_SAMPLES` results; None
            without any.
        camera_latency_p50_ns: the same by camera, over fewer samples; cameras without results are absent.
        peak_in_flight: most entries ever open at once.
    """

    total: CameraTotals
    cameras: Mapping[str, CameraTotals]
    coded: Mapping[tuple[str, int, int], CodedTotals]
    latency_p50_ns: int | None
    latency_p99_ns: int | None
    camera_latency_p50_ns: Mapping[str, int]
    peak_in_flight: int


def add_totals(parts: Iterable[CameraTotals]) -> CameraTotals:
    """Totals over several cameras or nodes; times are the earliest first and the newest last result."""
    total = CameraTotals()
    for part in parts:
        sums = {
            entry.name: getattr(total, entry.name) + getattr(part, entry.name)
            for entry in fields(CameraTotals)
            if entry.name not in ("dropped", "first_result_ns", "last_result_ns")
        }
        total = replace(
            total,
            **sums,
            dropped=dict(Counter(total.dropped) + Counter(part.dropped)),
            first_result_ns=min(_present(total.first_result_ns, part.first_result_ns), default=None),
            last_result_ns=max(_present(total.last_result_ns, part.last_result_ns), default=None),
        )
    return total


def _present(*values: int | None) -> list[int]:
    return [value for value in values if value is not None]
