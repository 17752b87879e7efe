"""Every metric of node and cloud, once: data only. `nodes.exporter` makes Prometheus series of it.

Base units; `_total` for counters; moments, not ages; no rate and no ratio where two counters do. Labels take
their values from closed sets: an enumeration of ours (given here), or what the program knows at its start
(depths and levels of its bundles, its cameras and endpoints, its worker slots). Only node and camera names on
the cloud's side come from outside: metrics with them are capped.

Counts that a ledger keeps are marked `Origin.LEDGER`: they are published from its totals, and the exporter
refuses to count them a second time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Literal

from pipeline.bundle_trial import UpdateOutcome
from pipeline.cloud_actions import CloseReason
from pipeline.ledger import CLOUD_OUTCOMES, Outcome
from pipeline.rate_control import ChangeCause
from pipeline.session import LossReason
from pipeline.wire import RejectCode

Side = Literal["node", "cloud"]


class Kind(StrEnum):
    """Prometheus type of a metric."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


class Origin(StrEnum):
    """Who fills a metric.

    Attributes:
        COUNTED: whoever sees the event, at the exporter's handles.
        LEDGER: published as a total from a ledger's snapshot, all of one moment.
    """

    COUNTED = "counted"
    LEDGER = "ledger"


@dataclass(frozen=True, slots=True)
class Label:
    """One label.

    Attributes:
        name: as in Prometheus.
        values: the closed set of its values; empty: known only when the program starts.
    """

    name: str
    values: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric.

    Attributes:
        name: full name, with `_total` for a counter.
        kind: counter, gauge or histogram.
        help: what it counts or shows, one sentence.
        unit: of its value, for people; the name ends in it where Prometheus has a base unit.
        labels: in the order in which values are given to the exporter.
        buckets: upper bounds of a histogram, rising; empty for other kinds.
        origin: who fills it.
        is_capped: whether node and camera names beyond `metrics.max_cameras` share `_other`.
        is_info: whether it is 1 with facts in labels; their values are free and few.
        is_sparse: whether only those combinations of its labels exist that were given a value.
    """

    name: str
    kind: Kind
    help: str
    unit: str = ""
    labels: tuple[Label, ...] = ()
    buckets: tuple[float, ...] = ()
    origin: Origin = Origin.COUNTED
    is_capped: bool = False
    is_info: bool = False
    is_sparse: bool = False

    @property
    def side(self) -> Side:
        """The program that has it."""
        return "node" if self.name.startswith("rac_node_") else "cloud"


#: Value of a label that found no place in its set.
OTHER: Final = "_other"

# fmt: off
# Bounds around what each quantity is judged by: the stages of a frame against budgets of 1 to 50 ms,
FAST_S: Final = (
    0.0005, 0.001, 0.002, 0.003, 0.004, 0.006, 0.008, 0.01, 0.012, 0.016, 0.025, 0.05, 0.1, 0.25, 1.0
)
# latency against what a person or a machine notices,
LATENCY_S: Final = (0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0, 10.0)
# the same for every camera, where series are many,
CAMERA_LATENCY_S: Final = (0.05, 0.1, 0.2, 0.5, 2.0)
# bitstreams of 0.5 to 3 kB, up to the largest allowed,
BITSTREAM_BYTES: Final = (
    100.0, 200.0, 400.0, 600.0, 800.0, 1200.0, 1600.0, 2400.0, 4000.0, 8000.0, 16000.0, 64000.0
)
BATCH_FRAMES: Final = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
# and probabilities, which crowd near 1.
PROBABILITY: Final = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
# fmt: on

# What the program knows at its start.
CAMERA: Final = Label("camera")
NODE: Final = Label("node")
DEPTH: Final = Label("depth")
LEVEL: Final = Label("level")
ENDPOINT: Final = Label("endpoint")
BUNDLE: Final = Label("bundle")
WORKER: Final = Label("worker")
SINK: Final = Label("sink")

# Enumerations. Those of the cameras and of the workers repeat `nodes.capture_link` and `nodes.pool`: a test
# compares them.
DIRECTION: Final = Label("direction", ("sent", "received"))
DROP_REASON: Final = Label(
    "reason", tuple(word.value for word in Outcome if word not in (Outcome.OK, Outcome.UNROUTABLE))
)
CLOUD_OUTCOME: Final = Label("outcome", tuple(word.value for word in Outcome if word in CLOUD_OUTCOMES))
RESULT: Final = Label("outcome", ("ok", "repeated", "late"))
CAMERA_DOWN: Final = Label("reason", ("open_failed", "read_timeout", "end_of_stream", "bad_frame", "crashed"))
BUNDLE_UPDATE: Final = Label("outcome", tuple(outcome.value for outcome in UpdateOutcome))
LINK_DOWN: Final = Label("reason", tuple(reason.value for reason in LossReason))
NODE_STAGE: Final = Label("stage", ("capture", "preprocess", "encode", "entropy", "send"))
# Feature decoder and classifier are one graph: `classify`. `reference` is the whole classifier on lossless views.
CLOUD_STAGE: Final = Label("stage", ("entropy_decode", "reference", "classify", "reply"))
DEPTH_CAUSE: Final = Label("cause", tuple(cause.value for cause in ChangeCause))
# NO_SESSION answers a frame, never a handshake.
# The last two never reach the sessions: the handler of keys has refused them, or there was no key to look at.
HANDSHAKE: Final = Label(
    "outcome",
    (
        "accepted",
        *(code.value for code in RejectCode if code is not RejectCode.NO_SESSION),
        "unknown_key",
        "bad_handshake",
    ),
)
SESSION_END: Final = Label("reason", tuple(reason.value for reason in CloseReason))
WORKER_STATE: Final = Label("state", ("starting", "ready", "busy", "dead"))
WORKER_LOSS: Final = Label("reason", ("crash", "hang", "memory"))
TOP: Final = Label("top", ("1", "5"))
LOG_LEVEL: Final = Label("level", ("debug", "info", "warning", "error", "critical"))


def _counter(name: str, text: str, unit: str, *labels: Label, origin: Origin = Origin.COUNTED) -> Metric:
    return Metric(name, Kind.COUNTER, text, unit, labels, origin=origin)


def _ledger(name: str, text: str, unit: str, *labels: Label) -> Metric:
    kind = Kind.COUNTER if name.endswith("_total") else Kind.GAUGE
    return Metric(name, kind, text, unit, labels, origin=Origin.LEDGER)


def _gauge(name: str, text: str, unit: str, *labels: Label) -> Metric:
    return Metric(name, Kind.GAUGE, text, unit, labels)


def _histogram(name: str, text: str, unit: str, buckets: tuple[float, ...], *labels: Label) -> Metric:
    return Metric(name, Kind.HISTOGRAM, text, unit, labels, buckets)


def _info(name: str, text: str, *labels: str) -> Metric:
    return Metric(name, Kind.GAUGE, text, "", tuple(Label(label) for label in labels), is_info=True)


def _capped(name: str, text: str) -> Metric:
    return Metric(name, Kind.COUNTER, text, "frames", (NODE, CAMERA), is_capped=True)


def _measured(name: str, text: str, unit: str) -> Metric:
    return Metric(name, Kind.GAUGE, text, unit, (BUNDLE, DEPTH, LEVEL), is_sparse=True)


NODE_METRICS: Final = (
    _info("rac_node_build_info", "Always 1: what runs; revision is the commit.", "version", "revision", "python"),
    _info("rac_node_bundle_info", "Always 1: bundle in use, by the head of its id.", "bundle", "classifier"),
    _counter("rac_node_bundle_updates_total", "Bundles that the cloud delivered, by outcome.", "", BUNDLE_UPDATE),
    _info("rac_node_camera_info", "Always 1: facts about an open source.", "camera", "kind", "width", "height"),
    _gauge("rac_node_camera_up", "Whether a frame was read within the timeout.", "0 or 1", CAMERA),
    _counter("rac_node_camera_reconnects_total", "Times that a source was opened again.", "", CAMERA, CAMERA_DOWN),
    _ledger("rac_node_frames_captured_total", "Frames taken from the source.", "frames", CAMERA),
    _ledger("rac_node_frames_recovered_total", "Frames that an earlier run left in the spool.", "frames", CAMERA),
    _ledger("rac_node_frames_dropped_total", "Frames without a result, by cause.", "frames", CAMERA, DROP_REASON),
    _gauge("rac_node_last_frame_timestamp_seconds", "When the last good frame was captured.", "unix s", CAMERA),
    _gauge("rac_node_last_result_timestamp_seconds", "When the last result came.", "unix s", CAMERA),
    _histogram("rac_node_stage_duration_seconds", "Time of each stage of a frame.", "s", FAST_S, NODE_STAGE),
    _histogram(
        "rac_node_encode_duration_seconds",
        "Camera array to bytes: what the budget covers.",
        "s",
        FAST_S,
        DEPTH,
    ),
    _ledger("rac_node_frames_encoded_total", "Frames coded and sent, by depth.", "frames", CAMERA, DEPTH),
    _gauge("rac_node_encoder_depth", "Encoder depth now.", "blocks", CAMERA),
    _gauge("rac_node_level", "Rate level now.", "levels", CAMERA),
    _counter("rac_node_depth_changes_total", "Changes of the encoder depth, by cause.", "", CAMERA, DEPTH_CAUSE),
    _gauge("rac_node_depth_cost_seconds", "Estimated 90th percentile of a frame's cost at a depth.", "s", DEPTH),
    _gauge("rac_node_budget_seconds", "Configured budget of a frame.", "s"),
    _counter("rac_node_budget_overruns_total", "Frames that took longer than the budget.", "frames", CAMERA, DEPTH),
    _histogram("rac_node_bitstream_bytes", "Size of a frame's bitstream.", "bytes", BITSTREAM_BYTES, DEPTH, LEVEL),
    _ledger("rac_node_camera_bitstream_bytes_total", "Bytes of bitstreams sent.", "bytes", CAMERA),
    _ledger(
        "rac_node_coded_pixels_total",
        "Pixels of the views sent: bpp is 8 x bytes / pixels.",
        "pixels",
        CAMERA,
        DEPTH,
        LEVEL,
    ),
    _ledger("rac_node_wire_bytes_total", "Bytes of frames and results with framing.", "bytes", CAMERA, DIRECTION),
    _counter("rac_node_network_bytes_total", "Bytes of all messages with framing.", "bytes", DIRECTION),
    _gauge("rac_node_credit_frames", "Frames that the cloud still allows.", "frames"),
    _ledger("rac_node_in_flight_frames", "Captured frames whose fate is open.", "frames"),
    _gauge("rac_node_spool_frames", "Frames in the spool: not ended.", "frames"),
    _gauge("rac_node_spool_bytes", "Bytes of the spool on the disk.", "bytes"),
    _gauge("rac_node_spool_oldest_timestamp_seconds", "Capture of the oldest frame there; 0: none.", "unix s"),
    _counter("rac_node_spool_corrupt_total", "Damaged records found in the spool and passed over.", "records"),
    _gauge("rac_node_link_up", "Whether a session is established, by place in the list.", "0 or 1", ENDPOINT),
    _counter("rac_node_reconnects_total", "Sessions that ended, by cause.", "", ENDPOINT, LINK_DOWN),
    _ledger("rac_node_results_total", "Results: ok, or outside the balance.", "frames", CAMERA, RESULT),
    _histogram("rac_node_round_trip_seconds", "Sending to result.", "s", LATENCY_S, DEPTH),
    _histogram("rac_node_capture_to_result_seconds", "Capture to result, on one clock.", "s", LATENCY_S, DEPTH),
    Metric(
        "rac_node_camera_capture_to_result_seconds",
        Kind.HISTOGRAM,
        "Capture to result of each camera.",
        "s",
        (CAMERA,),
        CAMERA_LATENCY_S,
        is_capped=True,
    ),
    _gauge("rac_node_insecure", "Whether frames go to other machines without keys (--insecure).", "0 or 1"),
    _gauge("rac_node_reference_every_frames", "Every so many frames carry a reference; 0: none.", "frames"),
    _counter("rac_node_log_messages_total", "Log messages, repeats included.", "", LOG_LEVEL),
)

CLOUD_METRICS: Final = (
    _info("rac_cloud_build_info", "Always 1: what runs; revision is the commit.", "version", "revision", "python"),
    _info("rac_cloud_bundle_info", "Always 1: a bundle that is served.", "bundle", "classifier"),
    _gauge("rac_cloud_bundle_loaded_timestamp_seconds", "When a bundle was loaded.", "unix s", BUNDLE),
    _gauge("rac_cloud_bundle_offered", "Whether nodes that fetch their bundle should run it.", "0 or 1", BUNDLE),
    _measured("rac_cloud_bundle_measured_bits_per_pixel", "Bits per pixel measured when the bundle was made.", "bits"),
    _measured("rac_cloud_bundle_measured_agreement", "Agreement measured then.", "share"),
    _measured("rac_cloud_bundle_measured_top1_share", "Top-1 over the uncompressed one's, measured then.", "share"),
    _gauge("rac_cloud_sessions", "Open sessions.", "sessions"),
    _counter("rac_cloud_handshakes_total", "Handshakes, by outcome.", "", HANDSHAKE),
    _gauge("rac_cloud_insecure", "Whether other machines can connect without keys (--insecure).", "0 or 1"),
    _gauge("rac_cloud_allowed_keys", "Public keys that may connect; 0 without keys.", "keys"),
    _gauge("rac_cloud_allow_list_outdated", "Whether the list on disk is unusable and an older one holds.", "0 or 1"),
    _counter("rac_cloud_sessions_closed_total", "Sessions that ended, by cause.", "", SESSION_END),
    Metric(
        "rac_cloud_session_last_frame_timestamp_seconds",
        Kind.GAUGE,
        "When a node last sent a frame or opened its session; gone after an ordered end.",
        "unix s",
        (NODE,),
        is_capped=True,
    ),
    _counter("rac_cloud_connections_ended_total", "Connections cut because of what came over them.", ""),
    _counter("rac_cloud_frames_received_total", "Accepted frames.", "frames", DEPTH),
    _counter("rac_cloud_network_bytes_total", "Bytes of all messages with framing.", "bytes", DIRECTION),
    _counter("rac_cloud_bitstream_bytes_total", "Bytes of bitstreams received.", "bytes", DEPTH),
    _counter("rac_cloud_coded_pixels_total", "Pixels of the views received.", "pixels", DEPTH),
    _counter("rac_cloud_sequence_gaps_total", "Gaps in the sequence of a camera's frames.", ""),
    _counter("rac_cloud_frames_missing_total", "Frames in those gaps: dropped at the node.", "frames"),
    _counter("rac_cloud_frames_duplicate_total", "Frames that came again.", "frames"),
    _ledger("rac_cloud_results_total", "How accepted frames ended: each once.", "frames", CLOUD_OUTCOME),
    _ledger("rac_cloud_in_flight_frames", "Accepted frames whose fate is open.", "frames"),
    _counter("rac_cloud_credit_granted_total", "Credit granted to nodes.", "frames"),
    _gauge("rac_cloud_credit_outstanding_frames", "Credit granted and not yet used.", "frames"),
    _gauge("rac_cloud_credit_window_frames", "Largest credit window of any session.", "frames"),
    _gauge("rac_cloud_queue_frames", "Frames that wait for a worker.", "frames"),
    _gauge("rac_cloud_queue_limit_frames", "Frames that may wait.", "frames"),
    _histogram("rac_cloud_queue_wait_seconds", "Arrival to batch.", "s", LATENCY_S),
    _histogram("rac_cloud_batch_frames", "Frames of a batch.", "frames", BATCH_FRAMES),
    _histogram("rac_cloud_batch_wait_seconds", "How long a batch's first frame waited for company.", "s", FAST_S),
    _histogram("rac_cloud_stage_duration_seconds", "Time of each stage of a batch.", "s", FAST_S, CLOUD_STAGE),
    _histogram(
        "rac_cloud_end_to_end_seconds",
        "Capture to reply, as far as the cloud can tell.",
        "s",
        LATENCY_S,
        DEPTH,
    ),
    _gauge("rac_cloud_workers", "Worker slots, by state.", "workers", WORKER_STATE),
    _counter("rac_cloud_worker_restarts_total", "Workers that were lost, by cause.", "", WORKER_LOSS),
    _counter("rac_cloud_worker_busy_seconds_total", "Time that a slot's worker had a batch.", "s", WORKER),
    _counter("rac_cloud_worker_frames_total", "Frames that a slot's worker answered.", "frames", WORKER),
    _gauge("rac_cloud_worker_resident_bytes", "Memory of a slot's worker after its last batch.", "bytes", WORKER),
    _gauge(
        "rac_cloud_worker_last_batch_timestamp_seconds",
        "When a slot's worker last answered.",
        "unix s",
        WORKER,
    ),
    _counter("rac_cloud_labelled_frames_total", "Classified frames with a label.", "frames", DEPTH, LEVEL),
    _counter("rac_cloud_labelled_correct_total", "Of those, right in the top 1 or 5.", "frames", DEPTH, LEVEL, TOP),
    _counter("rac_cloud_reference_frames_total", "Classified frames with a reference.", "frames", DEPTH, LEVEL),
    _counter("rac_cloud_reference_agreements_total", "Of those, same top 1.", "frames", DEPTH, LEVEL),
    _capped("rac_cloud_camera_labelled_total", "Classified frames of a camera with a label."),
    _capped("rac_cloud_camera_correct_total", "Of those, right in the top 1."),
    _capped("rac_cloud_camera_references_total", "Classified frames of a camera with a reference."),
    _capped("rac_cloud_camera_agreements_total", "Of those, same top 1."),
    _histogram("rac_cloud_top1_probability", "Probability of the best class.", "share", PROBABILITY, DEPTH),
    _counter(
        "rac_cloud_sink_dropped_total",
        "Results that a sink was too slow for, by place in the list.",
        "",
        SINK,
    ),
    _counter("rac_cloud_log_messages_total", "Log messages, repeats included.", "", LOG_LEVEL),
)

METRICS: Final[Mapping[str, Metric]] = {metric.name: metric for metric in (*NODE_METRICS, *CLOUD_METRICS)}


def metrics_of(side: Side) -> tuple[Metric, ...]:
    """All metrics of one program, in the order of the table."""
    return NODE_METRICS if side == "node" else CLOUD_METRICS


def render_metrics_page() -> str:
    """`nodes/METRICS.md`: the table for people, in Markdown."""
    lines = [
        "# Metrics",
        "",
        "`rac-node` serves them on port 9570, `rac-cloud` on 9580, at `/metrics`; beside them `/healthz`",
        "(200 while the main loop is alive) and `/readyz` (200 when work can be done, else 503 and why).",
        "This page is written from `pipeline/metrics.py`. A metric marked L is read from the ledger. Values",
        "of labels without a list are known when the program starts; in metrics marked C, node and camera",
        "names beyond `metrics.max_cameras` share `_other`.",
    ]
    for title, metrics in (("rac-node", NODE_METRICS), ("rac-cloud", CLOUD_METRICS)):
        lines += ["", f"## {title}", "", "| name | type | labels | unit | meaning |", "|---|---|---|---|---|"]
        lines += [_page_row(metric) for metric in metrics]
    return "\n".join(lines) + "\n"


def _page_row(metric: Metric) -> str:
    labels = ", ".join(
        f"{label.name}={'/'.join(label.values)}" if label.values else label.name for label in metric.labels
    )
    mark = " L" if metric.origin is Origin.LEDGER else " C" if metric.is_capped else ""
    return f"| {metric.name} | {metric.kind.value}{mark} | {labels} | {metric.unit} | {metric.help} |"
