"""Node drill-down: one node, or one camera of it, from picture to result."""

from __future__ import annotations

from typing import Final

from deploy.grafana.boards.model import CAMERAS, NODES, Board, Query, Row
from deploy.grafana.boards.panels import BAD, GOOD, SLOW, WARN, heatmap, lines, number, table, timeline
from deploy.grafana.boards.promql import (
    ANSWERED,
    CAMERA,
    LOST,
    NODE,
    NODE_JOB,
    SENT,
    age,
    by,
    grown,
    heat,
    mean,
    quantile,
    rate,
    ratio,
    select,
)

KEY: Final = "node, camera"
SERIES: Final = "{{node}} {{camera}}"
#: Stages that the budget covers, and those that it does not.
CODED: Final = 'stage=~"preprocess|encode|entropy"'
AROUND: Final = 'stage!~"preprocess|encode|entropy"'
BUDGET: Final = by("", select("rac_node_budget_seconds", NODE), "min")
_ANSWERED: Final = by("", grown("rac_node_results_total", CAMERA, ANSWERED))
_LOST: Final = by("", grown("rac_node_frames_dropped_total", CAMERA, LOST))


def _camera_share(part: str, whole: str) -> str:
    return ratio(
        by(KEY, rate(f"rac_cloud_camera_{part}_total", CAMERA)),
        by(KEY, rate(f"rac_cloud_camera_{whole}_total", CAMERA)),
    )


SOURCES: Final = (
    f"{select('rac_node_camera_up', CAMERA)} * on (node, camera) group_left (kind, width, height)"
    f" {by('node, camera, kind, width, height', select('rac_node_camera_info', CAMERA), 'max')}"
)

STATE: Final = Row(
    "Now",
    (
        number(
            "Cameras up",
            "Share of the chosen cameras that gave a frame within their timeout.",
            "percentunit",
            Query(by("", select("rac_node_camera_up", CAMERA), "avg"), "cameras"),
            thresholds=((None, BAD), (1, GOOD)),
        ),
        number(
            "Link",
            "Whether the chosen nodes have a session with a cloud; no: at least one has none.",
            "bool_yes_no",
            Query(by("", by("node", select("rac_node_link_up", NODE), "max"), "min"), "link"),
            thresholds=((None, BAD), (1, GOOD)),
        ),
        number(
            "Frames answered",
            "Over the chosen time: results, of the frames that were worth one. Superseded frames, those that waited for"
            " credit and those over --fps do not count.",
            "percentunit",
            Query(ratio(_ANSWERED, f"{_ANSWERED} + {_LOST}"), "answered"),
            thresholds=((None, BAD), (0.95, WARN), (0.99, GOOD)),
            decimals=1,
        ),
        number(
            "Depth and level",
            "Means over the chosen cameras, now.",
            "none",
            Query(by("", select("rac_node_encoder_depth", CAMERA), "avg"), "depth"),
            Query(by("", select("rac_node_level", CAMERA), "avg"), "level"),
            decimals=1,
        ),
        number(
            "Last frame, last result",
            "How long ago, of the camera that has waited longest. Frames without results: look at the link and the"
            " drops.",
            "s",
            Query(age("rac_node_last_frame_timestamp_seconds", "", "min", CAMERA), "frame"),
            Query(age("rac_node_last_result_timestamp_seconds", "", "min", CAMERA), "result"),
            thresholds=((None, GOOD), (10, WARN), (60, BAD)),
            decimals=1,
        ),
        number(
            "References, keys",
            "Every so many frames carry a reference (0: none), and whether frames leave for other machines without"
            " keys.",
            "none",
            Query(by("", select("rac_node_reference_every_frames", NODE), "max"), "reference every"),
            Query(by("", select("rac_node_insecure", NODE), "max"), "insecure", "bool_yes_no"),
            decimals=0,
        ),
        table(
            "Sources",
            "What each camera is, and whether it is up; facts are missing of one that was never open.",
            Query(by(KEY, select("rac_node_camera_up", CAMERA), "min"), "Up", "bool_yes_no", ((None, BAD), (1, GOOD))),
            Query(by("node, camera, kind, width, height", SOURCES, "max"), "Known", "none"),
            hidden=("Value #B",),
            headings=(
                ("node", "Node"),
                ("camera", "Camera"),
                ("kind", "Kind"),
                ("width", "Width"),
                ("height", "Height"),
            ),
            width=12,
            height=6,
        ),
        timeline(
            "Since when",
            "Cameras that gave frames, and nodes that had a session.",
            Query(by(KEY, select("rac_node_camera_up", CAMERA), "min"), SERIES),
            Query(by("node", select("rac_node_link_up", NODE), "max"), "{{node}} link"),
            height=6,
        ),
    ),
)
FRAMES: Final = Row(
    "Frames",
    (
        lines(
            "Frames",
            "Captured, answered and dropped.",
            "fps",
            Query(by("", rate("rac_node_frames_captured_total", CAMERA)), "captured"),
            Query(by("", rate("rac_node_results_total", CAMERA, ANSWERED)), "answered"),
            Query(by("", rate("rac_node_frames_dropped_total", CAMERA)), "dropped"),
        ),
        lines(
            "Drops by reason",
            "Frames without a result, by the ledger's reason; the README says what each means.",
            "fps",
            Query(by("reason", rate("rac_node_frames_dropped_total", CAMERA)), "{{reason}}"),
            stacked=True,
            many=True,
        ),
        lines(
            "Cameras opened again",
            "By reason, each minute. open_failed and read_timeout: network or camera; bad_frame: what it sends.",
            "cpm",
            Query(f"60 * {by('reason', rate('rac_node_camera_reconnects_total', CAMERA))}", "{{reason}}"),
        ),
    ),
)
CODING: Final = Row(
    "From picture to bytes",
    (
        lines(
            "Stages of a frame, and the budget",
            "Mean time of the stages that the budget covers, on top of one another, against the smallest budget."
            " Stages are those of the whole node.",
            "s",
            Query(mean("rac_node_stage_duration_seconds", "stage", NODE, CODED), "{{stage}}"),
            Query(BUDGET, "budget", is_limit=True),
            stacked=True,
        ),
        lines(
            "Time of a frame",
            "Camera array to bytes, all depths, against the budget.",
            "s",
            Query(quantile(0.5, "rac_node_encode_duration_seconds", "", NODE), "p50"),
            Query(quantile(0.95, "rac_node_encode_duration_seconds", "", NODE), "p95"),
            Query(BUDGET, "budget", is_limit=True),
        ),
        lines(
            "Depth",
            "Encoder depth of each camera.",
            "suffix: blocks",
            Query(by(KEY, select("rac_node_encoder_depth", CAMERA), "max"), SERIES),
            steps=True,
        ),
        lines(
            "Over the budget",
            "Share of the coded frames of each camera that took longer than the budget.",
            "percentunit",
            Query(
                ratio(
                    by(KEY, rate("rac_node_budget_overruns_total", CAMERA)),
                    by(KEY, rate("rac_node_frames_encoded_total", CAMERA)),
                ),
                SERIES,
            ),
            maximum=1,
        ),
        lines(
            "Before and after coding",
            "Mean time of the other stages: from the picture to the node's loop, and from the bytes to the socket.",
            "s",
            Query(mean("rac_node_stage_duration_seconds", "stage", NODE, AROUND), "{{stage}}"),
        ),
        heatmap(
            "Size of a frame",
            "Bytes of the bitstreams, of the whole node.",
            "bytes",
            heat("rac_node_bitstream_bytes", NODE),
        ),
    ),
)
LINK: Final = Row(
    "Over the link",
    (
        lines(
            "Bitrate",
            "Bitstreams, and messages with their framing.",
            "bps",
            Query(f"8 * {by(KEY, rate('rac_node_camera_bitstream_bytes_total', CAMERA))}", f"{SERIES} bitstreams"),
            Query(f"8 * {by(KEY, rate('rac_node_wire_bytes_total', CAMERA, SENT))}", f"{SERIES} on the wire"),
        ),
        heatmap(
            "Capture to result",
            "Latency on the node's own clock.",
            "s",
            heat("rac_node_capture_to_result_seconds", NODE),
        ),
        lines(
            "Latency",
            "Capture to result and sending to result. The gap between them is spent on the node.",
            "s",
            Query(quantile(0.5, "rac_node_capture_to_result_seconds", "", NODE), "capture to result p50"),
            Query(quantile(0.95, "rac_node_capture_to_result_seconds", "", NODE), "capture to result p95"),
            Query(quantile(0.95, "rac_node_round_trip_seconds", "", NODE), "round trip p95"),
        ),
        lines(
            "Credit, and frames on their way",
            "Credit at 0: the cloud is the slow part. In flight counts the spool too.",
            "suffix: frames",
            Query(by("", select("rac_node_credit_frames", NODE)), "credit"),
            Query(by("", select("rac_node_in_flight_frames", NODE)), "in flight"),
        ),
        lines(
            "Sessions that ended",
            "By cause, each minute.",
            "cpm",
            Query(f"60 * {by('reason', rate('rac_node_reconnects_total', NODE))}", "{{reason}}"),
        ),
        lines(
            "Spool",
            "Frames that wait on the disk (--spool). It should drain once the link is back.",
            "suffix: frames",
            Query(by("", select("rac_node_spool_frames", NODE)), "frames"),
            Query(by("", select("rac_node_spool_bytes", NODE)), "on the disk", "bytes"),
        ),
    ),
)
ACCURACY: Final = Row(
    "What the classifier still sees",
    (
        lines(
            "Agreement of each camera",
            "Frames with the uncompressed classifier's class, of those that carried a reference, as the cloud counts"
            " them.",
            "percentunit",
            Query(_camera_share("agreements", "references"), SERIES),
            width=12,
            maximum=1,
            interval=SLOW,
        ),
        lines(
            "Top-1 of each camera",
            "Labelled frames that are right, as the cloud counts them.",
            "percentunit",
            Query(_camera_share("correct", "labelled"), SERIES),
            width=12,
            maximum=1,
            interval=SLOW,
        ),
    ),
)
MACHINE: Final = Row(
    "The machine",
    (
        lines(
            "CPU",
            "Cores that the node's main process uses; readers of cameras are processes of their own.",
            "suffix: cores",
            Query(by("node", rate("process_cpu_seconds_total", NODE_JOB, NODE)), "{{node}}"),
        ),
        lines(
            "Memory",
            "Of the node's main process.",
            "bytes",
            Query(by("node", select("process_resident_memory_bytes", NODE_JOB, NODE)), "{{node}}"),
        ),
        lines(
            "Log messages",
            "By level, repeats included.",
            "cpm",
            Query(f"60 * {by('level', rate('rac_node_log_messages_total', NODE))}", "{{level}}"),
        ),
    ),
)

BOARD: Final = Board(
    "rac-node",
    "Node drill-down",
    "One node, or one camera of it, from picture to result.",
    (NODES, CAMERAS),
    (STATE, FRAMES, CODING, LINK, ACCURACY, MACHINE),
)
