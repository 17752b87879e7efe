"""Fleet overview: is all well, which cameras are not, since when, and what it costs."""

from __future__ import annotations

from typing import Final

from deploy.grafana.boards.jpeg import jpeg_bpp_by_level
from deploy.grafana.boards.model import CAMERAS, CLOUDS, NODES, Board, Query, Row, Variable
from deploy.grafana.boards.panels import BAD, GOOD, WARN, lines, number, table, timeline
from deploy.grafana.boards.promql import (
    ANSWERED,
    CAMERA,
    CLOUD,
    CLOUD_JOB,
    LOST,
    MIN_SAMPLE,
    NODE,
    NODE_JOB,
    SENT,
    age,
    by,
    count,
    grown,
    quantile,
    rate,
    ratio,
    select,
)

DRILL_DOWN: Final = (
    "/d/rac-node/?${__url_time_range}&var-datasource=${datasource}"
    "&var-node=${__data.fields.Node}&var-camera=${__data.fields.Camera}"
)
KEY: Final = "node, camera"
#: What a result may take, as in the latency alerts.
OBJECTIVE_S: Final = 0.5
JPEG: Final = jpeg_bpp_by_level()


def _answered_share(growth: str, labels: str) -> str:
    """Answered of those frames that were worth an answer, by these labels."""
    of = {"grown": grown, "rate": rate}[growth]
    answered = by(labels, of("rac_node_results_total", CAMERA, ANSWERED))
    lost = by(labels, of("rac_node_frames_dropped_total", CAMERA, LOST))
    return ratio(answered, f"{answered} + {lost}")


def _camera_share(part: str, whole: str) -> str:
    """Share of a camera's frames, as the cloud counts them under the name of its node."""
    return ratio(
        by(KEY, grown(f"rac_cloud_camera_{part}_total", CLOUD, CAMERA)),
        by(KEY, grown(f"rac_cloud_camera_{whole}_total", CLOUD, CAMERA)),
        MIN_SAMPLE,
    )


def _jpeg_bits() -> str:
    """Bits a second of JPEG for the pixels that are sent, each level with its own rate."""
    pixels = {level: rate("rac_node_coded_pixels_total", CAMERA, f'level="{level}"') for level in JPEG}
    return " + ".join(f"{by('', sent)} * $jpeg_bpp_{level}" for level, sent in pixels.items())


IN_TIME: Final = ratio(
    by("", grown("rac_node_camera_capture_to_result_seconds_bucket", CAMERA, f'le="{OBJECTIVE_S}"')),
    by("", grown("rac_node_camera_capture_to_result_seconds_count", CAMERA)),
)
AGREEMENT: Final = ratio(
    by("", grown("rac_cloud_reference_agreements_total", CLOUD)),
    by("", grown("rac_cloud_reference_frames_total", CLOUD)),
    MIN_SAMPLE,
)
TOP1: Final = ratio(
    by("", grown("rac_cloud_labelled_correct_total", CLOUD, 'top="1"')),
    by("", grown("rac_cloud_labelled_frames_total", CLOUD)),
    MIN_SAMPLE,
)
BITSTREAM_BITS: Final = f"8 * {by('', rate('rac_node_camera_bitstream_bytes_total', CAMERA))}"
UP: Final = by(KEY, select("rac_node_camera_up", CAMERA), "min")
NODE_FACTS: Final = (
    f"{select('rac_node_build_info', NODE)} * on (node) group_left (bundle, classifier)"
    f" {by('node, bundle, classifier', select('rac_node_bundle_info', NODE), 'max')}"
)

OBJECTIVES: Final = Row(
    "Is all well",
    (
        number(
            "Targets up",
            "Nodes and clouds that Prometheus reaches, of those it knows. One that is missing is switched off, cut off"
            " or has crashed: its cameras are blind or their frames unseen here.",
            "percentunit",
            Query(by("", select("up", NODE_JOB), "avg"), "nodes"),
            Query(by("", select("up", CLOUD_JOB), "avg"), "clouds"),
            thresholds=((None, BAD), (0.99, GOOD)),
        ),
        number(
            "Cameras up",
            "Share of the cameras that gave a frame within their timeout. The rows below say which do not.",
            "percentunit",
            Query(by("", select("rac_node_camera_up", CAMERA), "avg"), "cameras"),
            thresholds=((None, BAD), (0.9, WARN), (1, GOOD)),
        ),
        number(
            "Frames answered",
            "Over the chosen time: results, of the frames that were worth one. Superseded frames, those that waited for"
            " credit and those over --fps do not count: every healthy live camera has them.",
            "percentunit",
            Query(_answered_share("grown", ""), "answered"),
            thresholds=((None, BAD), (0.95, WARN), (0.99, GOOD)),
            decimals=1,
        ),
        number(
            f"Within {OBJECTIVE_S} s",
            f"Over the chosen time: results that came within {OBJECTIVE_S} s of their capture, on the node's one clock."
            " The latency alerts hold the fleet to 99 %.",
            "percentunit",
            Query(IN_TIME, "in time"),
            thresholds=((None, BAD), (0.9, WARN), (0.99, GOOD)),
            decimals=1,
        ),
        number(
            "Accuracy",
            "Over the chosen time: agreement is the share of frames with a reference that have the uncompressed"
            " classifier's class, top-1 the share of labelled frames that are right. Empty under 50 frames.",
            "percentunit",
            Query(AGREEMENT, "agreement"),
            Query(TOP1, "top-1"),
            decimals=1,
        ),
        number(
            "Alerts",
            "Alerts that are firing now. The table below names them.",
            "short",
            Query('count(ALERTS{alertstate="firing"}) or vector(0)', "firing"),
            thresholds=((None, GOOD), (1, BAD)),
        ),
    ),
)
WHICH: Final = Row(
    "Which cameras are bad",
    (
        table(
            "Worst ten cameras",
            "The lowest health first: over the chosen time, the share of frames answered, or 0 for a camera that is"
            " down. Agreement too is of the chosen time, the rest of now; Lost leaves out what every healthy live"
            " camera drops. Latency is read from five buckets, and 2 s stands for more too. A click on the node leads"
            " to its own dashboard.",
            Query(
                f"{_answered_share('grown', KEY)} * {UP} or {UP} * 0",
                "Health",
                "percentunit",
                ((None, BAD), (0.95, WARN), (0.99, GOOD)),
            ),
            Query(UP, "Up", "bool_yes_no", ((None, BAD), (1, GOOD))),
            Query(by(KEY, rate("rac_node_results_total", CAMERA, ANSWERED)), "Answered", "fps"),
            Query(by(KEY, rate("rac_node_frames_dropped_total", CAMERA, LOST)), "Lost", "fps"),
            Query(quantile(0.95, "rac_node_camera_capture_to_result_seconds", KEY, CAMERA), "Latency p95", "s"),
            Query(f"8 * {by(KEY, rate('rac_node_wire_bytes_total', CAMERA, SENT))}", "On the wire", "bps"),
            Query(by(KEY, select("rac_node_encoder_depth", CAMERA), "max"), "Depth", "none"),
            Query(age("rac_node_last_result_timestamp_seconds", KEY, "max", CAMERA), "Last result", "s"),
            Query(_camera_share("agreements", "references"), "Agreement", "percentunit"),
            Query(by(f"{KEY}, kind, width, height", select("rac_node_camera_info", CAMERA), "max"), "Known", "none"),
            sort="Health",
            limit=10,
            hidden=("Value #J",),
            headings=(
                ("node", "Node"),
                ("camera", "Camera"),
                ("kind", "Kind"),
                ("width", "Width"),
                ("height", "Height"),
            ),
            link=DRILL_DOWN,
            height=11,
        ),
        table(
            "Least in agreement",
            "Over the chosen time: the ten cameras whose frames differ most often from the uncompressed classifier,"
            " where at least 50 carried a reference.",
            Query(_camera_share("agreements", "references"), "Agreement", "percentunit"),
            Query(count("rac_cloud_camera_references_total", KEY, CLOUD, CAMERA), "References", "short"),
            Query(_camera_share("correct", "labelled"), "Top-1", "percentunit"),
            Query(count("rac_cloud_camera_labelled_total", KEY, CLOUD, CAMERA), "Labelled", "short"),
            sort="Agreement",
            limit=10,
            headings=(("node", "Node"), ("camera", "Camera")),
            link=DRILL_DOWN,
            width=12,
        ),
        table(
            "Firing alerts",
            "What Prometheus calls for now; deploy/RUNBOOK.md says what to do. Empty when all is well.",
            Query(
                by("alertname, severity, instance, node, camera", 'ALERTS{alertstate="firing"}', "max"),
                "Firing",
                "none",
            ),
            hidden=("Value",),
            headings=(
                ("alertname", "Alert"),
                ("severity", "Severity"),
                ("instance", "Target"),
                ("node", "Node"),
                ("camera", "Camera"),
            ),
            width=12,
        ),
        timeline(
            "Since when: cameras",
            "Whether each camera gave frames. Red: none within its timeout.",
            Query(UP, "{{node}} {{camera}}"),
        ),
        timeline(
            "Since when: links",
            "Whether each node had a session with a cloud. Red: it looks for one, and its frames wait or are dropped.",
            Query(by("node", select("rac_node_link_up", NODE), "max"), "{{node}}"),
        ),
    ),
)
LOSSES: Final = Row(
    "What is lost, and what is late",
    (
        lines(
            "Frames",
            "Captured, answered and dropped, of all chosen cameras. Captured less the other two is on its way.",
            "fps",
            Query(by("", rate("rac_node_frames_captured_total", CAMERA)), "captured"),
            Query(by("", rate("rac_node_results_total", CAMERA, ANSWERED)), "answered"),
            Query(by("", rate("rac_node_frames_dropped_total", CAMERA)), "dropped"),
        ),
        lines(
            "Drops by reason",
            "Frames without a result, by the ledger's reason. superseded, no_credit and rate_limit belong to healthy"
            " live cameras; the README says what the others mean.",
            "fps",
            Query(by("reason", rate("rac_node_frames_dropped_total", CAMERA)), "{{reason}}"),
            stacked=True,
            many=True,
        ),
        lines(
            "Capture to result",
            "Latency of all chosen cameras on the nodes' own clocks, as quantiles.",
            "s",
            *(
                Query(quantile(share, "rac_node_capture_to_result_seconds", "", NODE), f"p{100 * share:g}")
                for share in (0.5, 0.95, 0.99)
            ),
        ),
    ),
)
COST: Final = Row(
    "What it costs",
    (
        lines(
            "Bitrate, and JPEG's for the same accuracy",
            "Features are the bitstreams that are sent, without framing and references. JPEG is what the same views"
            " would take in JPEG at the rate at which it kept as many classes right: for each level, rounded to a"
            " whole one, the README's JPEG rows interpolated at the share of top-1 of the default bundle. These rates"
            " are constants of this dashboard; they hold for no other bundle.",
            "bps",
            Query(BITSTREAM_BITS, "features"),
            Query(_jpeg_bits(), "JPEG, equal share of top-1"),
            width=12,
        ),
        number(
            "Bits saved",
            "Of what JPEG would take for the same share of top-1, as in the panel beside this one; below 0 JPEG would"
            " be cheaper.",
            "percentunit",
            Query(f"1 - {ratio(BITSTREAM_BITS, _jpeg_bits())}", "saved"),
            thresholds=((None, BAD), (0, GOOD)),
            width=4,
            height=8,
            decimals=0,
        ),
        lines(
            "On the wire, each camera",
            "What each camera sends: messages with their framing, and references where frames carry them.",
            "bps",
            Query(f"8 * {by(KEY, rate('rac_node_wire_bytes_total', CAMERA, SENT))}", "{{node}} {{camera}}"),
        ),
        table(
            "Nodes",
            "What runs where. A node of another version or bundle than the rest is half of a rollout.",
            Query(by("node", select("up", NODE_JOB, NODE)), "Up", "bool_yes_no", ((None, BAD), (1, GOOD))),
            Query(by("node", select("rac_node_link_up", NODE), "max"), "Link", "bool_yes_no", ((None, BAD), (1, GOOD))),
            Query(by("node", rate("process_cpu_seconds_total", NODE_JOB, NODE)), "CPU", "percentunit"),
            Query(by("node", select("process_resident_memory_bytes", NODE_JOB, NODE)), "Memory", "bytes"),
            Query(by("node, version, revision, bundle, classifier", NODE_FACTS, "max"), "Known", "none"),
            hidden=("Value #E",),
            height=5,
            headings=(
                ("node", "Node"),
                ("version", "Version"),
                ("revision", "Revision"),
                ("bundle", "Bundle"),
                ("classifier", "Classifier"),
            ),
        ),
    ),
)
BOARD: Final = Board(
    "rac-fleet",
    "Fleet overview",
    "Which cameras are bad, why, since when, and what it costs.",
    (
        CLOUDS,
        NODES,
        CAMERAS,
        *(
            Variable(
                f"jpeg_bpp_{level}",
                f"JPEG at level {level}",
                f"Bits a pixel at which JPEG keeps as many classes right as the default bundle at level {level}.",
                constant=str(bpp),
            )
            for level, bpp in JPEG.items()
        ),
    ),
    (OBJECTIVES, WHICH, LOSSES, COST),
)
