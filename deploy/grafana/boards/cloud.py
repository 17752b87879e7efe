"""Cloud: sessions, queue, batches, workers, and the time of each stage."""

from __future__ import annotations

from typing import Final

from deploy.grafana.boards.model import CLOUDS, Board, Query, Row
from deploy.grafana.boards.panels import BAD, GOOD, WARN, heatmap, lines, number, table
from deploy.grafana.boards.promql import (
    ANSWERED,
    CLOUD,
    CLOUD_JOB,
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
from pipeline.metrics import CLOUD_STAGE

WORKING: Final = 'state=~"ready|busy"'
STAGES: Final = {
    "entropy_decode": "Bytes to symbols of a whole batch, by rANS.",
    "reference": "The whole classifier, over those frames of a batch that carry a reference.",
    "classify": "Symbols to classes, by the bundle's decoder and the classifier's tail.",
    "reply": "From a batch's answer to its results on their way.",
}
assert set(STAGES) == set(CLOUD_STAGE.values)
BUNDLES: Final = (
    f"{select('rac_cloud_bundle_info', CLOUD)} * on (instance) group_left (version, revision, python)"
    f" {by('instance, version, revision, python', select('rac_cloud_build_info', CLOUD), 'max')}"
)

STATE: Final = Row(
    "Is it well",
    (
        number(
            "Workers",
            "Worker slots that can serve, of all. The rest is starting or lost.",
            "percentunit",
            Query(
                ratio(
                    by("", select("rac_cloud_workers", CLOUD, WORKING)),
                    by("", select("rac_cloud_workers", CLOUD)),
                ),
                "serving",
            ),
            thresholds=((None, BAD), (0.75, WARN), (1, GOOD)),
        ),
        number(
            "Sessions",
            "Nodes with an open session.",
            "short",
            Query(by("", select("rac_cloud_sessions", CLOUD)), "sessions"),
        ),
        number(
            "Frames classified",
            "Over the chosen time: results, of all accepted frames that ended.",
            "percentunit",
            Query(
                ratio(
                    by("", grown("rac_cloud_results_total", CLOUD, ANSWERED)),
                    by("", grown("rac_cloud_results_total", CLOUD)),
                ),
                "ok",
            ),
            thresholds=((None, BAD), (0.95, WARN), (0.99, GOOD)),
            decimals=1,
        ),
        number(
            "Queue",
            "How full the queue is: at its limit, frames are rejected. Add workers before that.",
            "percentunit",
            Query(
                ratio(
                    by("", select("rac_cloud_queue_frames", CLOUD)),
                    by("", select("rac_cloud_queue_limit_frames", CLOUD)),
                ),
                "full",
            ),
            thresholds=((None, GOOD), (0.5, WARN), (0.8, BAD)),
        ),
        number(
            "Workers lost",
            "Over the chosen time: workers that crashed, hung or grew too large, and were started again.",
            "short",
            Query(by("", grown("rac_cloud_worker_restarts_total", CLOUD)), "lost"),
            thresholds=((None, GOOD), (1, BAD)),
            decimals=0,
        ),
        number(
            "Doors",
            "Open: other machines can connect without keys (--insecure). Old list: the allow-list on disk is unusable"
            " and the one before it holds.",
            "bool_yes_no",
            Query(by("", select("rac_cloud_insecure", CLOUD), "max"), "open"),
            Query(by("", select("rac_cloud_allow_list_outdated", CLOUD), "max"), "old list"),
            thresholds=((None, GOOD), (1, BAD)),
        ),
    ),
)
WORK: Final = Row(
    "Frames, queue and batches",
    (
        lines(
            "Results by outcome",
            "How accepted frames ended. Anything but ok is a frame that a camera lost; the README says what each word"
            " means.",
            "fps",
            Query(by("outcome", rate("rac_cloud_results_total", CLOUD)), "{{outcome}}"),
            stacked=True,
            many=True,
        ),
        lines(
            "Queue",
            "Frames that wait for a worker, frames accepted and not yet answered, and how many may wait.",
            "suffix: frames",
            Query(by("", select("rac_cloud_queue_frames", CLOUD)), "waiting"),
            Query(by("", select("rac_cloud_in_flight_frames", CLOUD)), "in flight"),
            Query(by("", select("rac_cloud_queue_limit_frames", CLOUD)), "limit", is_limit=True),
        ),
        lines(
            "Waiting",
            "From arrival to a batch, and how long a batch's first frame waited for company. The second is bought"
            " throughput, the first is overload once it grows.",
            "s",
            Query(quantile(0.5, "rac_cloud_queue_wait_seconds", "", CLOUD), "queue p50"),
            Query(quantile(0.95, "rac_cloud_queue_wait_seconds", "", CLOUD), "queue p95"),
            Query(quantile(0.95, "rac_cloud_batch_wait_seconds", "", CLOUD), "for company p95"),
        ),
        heatmap(
            "Frames of a batch",
            "Sizes of the batches. Batches of one under load: frames come one at a time, and workers cost more than"
            " they need.",
            "suffix: frames",
            heat("rac_cloud_batch_frames", CLOUD),
        ),
        lines(
            "Batches",
            "Batches a second, and the mean number of their frames.",
            "suffix:/s",
            Query(by("", rate("rac_cloud_batch_frames_count", CLOUD)), "batches"),
            Query(mean("rac_cloud_batch_frames", "", CLOUD), "frames of a batch", "suffix: frames"),
        ),
        lines(
            "Frames that came twice or not at all",
            "Missing: gaps in a camera's numbers, dropped at the node. Duplicate: sent again and answered from memory.",
            "fps",
            Query(by("", rate("rac_cloud_frames_missing_total", CLOUD)), "missing"),
            Query(by("", rate("rac_cloud_frames_duplicate_total", CLOUD)), "duplicate"),
        ),
    ),
)
LATENCY: Final = Row(
    "Where the time goes",
    (
        *(
            heatmap(stage.replace("_", " ").capitalize(), text, "s", expression, width=6, height=7)
            for stage, text in STAGES.items()
            for expression in [heat("rac_cloud_stage_duration_seconds", CLOUD, f'stage="{stage}"')]
        ),
        heatmap(
            "Capture to reply",
            "As far as the cloud can tell: the age that the node states, half a round trip, and its own time.",
            "s",
            heat("rac_cloud_end_to_end_seconds", CLOUD),
            width=12,
        ),
        lines(
            "Capture to reply by depth",
            "The same, 95th percentile for each encoder depth.",
            "s",
            Query(quantile(0.95, "rac_cloud_end_to_end_seconds", "depth", CLOUD), "depth {{depth}}"),
            width=12,
        ),
    ),
)
WORKERS: Final = Row(
    "Workers",
    (
        lines(
            "Workers by state",
            "Worker slots. Starting takes some seconds; dead ones wait for their next try.",
            "suffix: workers",
            Query(by("state", select("rac_cloud_workers", CLOUD)), "{{state}}"),
            stacked=True,
            steps=True,
        ),
        lines(
            "Busy",
            "Share of the time that each slot's worker had a batch. All near 100 %: add workers.",
            "percentunit",
            Query(rate("rac_cloud_worker_busy_seconds_total", CLOUD), "{{instance}} {{worker}}"),
            maximum=1,
        ),
        lines(
            "Frames of each worker",
            "Frames answered by each slot.",
            "fps",
            Query(rate("rac_cloud_worker_frames_total", CLOUD), "{{instance}} {{worker}}"),
        ),
        lines(
            "Memory of each worker",
            "After its last batch. One that grows is started again at pool.worker_memory_mb.",
            "bytes",
            Query(select("rac_cloud_worker_resident_bytes", CLOUD), "{{instance}} {{worker}}"),
        ),
        lines(
            "Workers lost by reason",
            "Workers that were started again, each minute. crash and hang: look for poison among the results.",
            "cpm",
            Query(f"60 * {by('reason', rate('rac_cloud_worker_restarts_total', CLOUD))}", "{{reason}}"),
        ),
        lines(
            "Since the last batch",
            "How long ago each slot's worker last answered. A line that climbs while others do not: that one is stuck.",
            "s",
            Query(
                age("rac_cloud_worker_last_batch_timestamp_seconds", "instance, worker", "max", CLOUD),
                "{{instance}} {{worker}}",
            ),
        ),
    ),
)
NETWORK: Final = Row(
    "Sessions and network",
    (
        lines(
            "Handshakes",
            "Nodes that asked for a session, by outcome. unknown_key and bad_handshake: a stranger or a wrong key;"
            " unknown_bundle and bad_version: a rollout that is half done.",
            "cpm",
            Query(f"60 * {by('outcome', rate('rac_cloud_handshakes_total', CLOUD))}", "{{outcome}}"),
            many=True,
        ),
        lines(
            "Sessions that ended",
            "By cause. bye is an ordered stop.",
            "cpm",
            Query(f"60 * {by('reason', rate('rac_cloud_sessions_closed_total', CLOUD))}", "{{reason}}"),
            many=True,
        ),
        lines(
            "Credit",
            "Frames that nodes may still send, and the largest window of a session, which follows its round trip.",
            "suffix: frames",
            Query(by("", select("rac_cloud_credit_outstanding_frames", CLOUD)), "outstanding"),
            Query(by("", select("rac_cloud_credit_window_frames", CLOUD), "max"), "largest window"),
        ),
        lines(
            "Traffic",
            "Bits of all messages with framing.",
            "bps",
            Query(f"8 * {by('direction', rate('rac_cloud_network_bytes_total', CLOUD))}", "{{direction}}"),
        ),
        lines(
            "Bits a pixel by depth",
            "Of the bitstreams that arrived, over the pixels of the coded 224 x 224 views.",
            "suffix: bpp",
            Query(
                "8 * "
                + ratio(
                    by("depth", rate("rac_cloud_bitstream_bytes_total", CLOUD)),
                    by("depth", rate("rac_cloud_coded_pixels_total", CLOUD)),
                ),
                "depth {{depth}}",
            ),
        ),
        lines(
            "Since each node's last frame",
            "Or since its session was opened. A line that climbs is a node that went silent without a word.",
            "s",
            Query(age("rac_cloud_session_last_frame_timestamp_seconds", "node", "max", CLOUD), "{{node}}"),
        ),
        lines(
            "Log messages",
            "By level, repeats included.",
            "cpm",
            Query(f"60 * {by('level', rate('rac_cloud_log_messages_total', CLOUD))}", "{{level}}"),
            width=12,
        ),
        lines(
            "Memory and CPU of the front",
            "The process that holds the sockets. It should stay well under one core.",
            "bytes",
            Query(by("instance", select("process_resident_memory_bytes", CLOUD_JOB, CLOUD)), "memory {{instance}}"),
            Query(
                by("instance", rate("process_cpu_seconds_total", CLOUD_JOB, CLOUD)), "CPU {{instance}}", "percentunit"
            ),
            width=12,
        ),
        table(
            "Clouds and bundles",
            "What runs, which bundles it serves, since when, and which of them nodes with --bundle auto are offered.",
            Query(
                by("instance, bundle, classifier, version, revision, python", BUNDLES, "max"),
                "Served",
                "bool_yes_no",
            ),
            Query(by("instance, bundle", select("rac_cloud_bundle_offered", CLOUD), "max"), "Offered", "bool_yes_no"),
            Query(
                f"1000 * {by('instance, bundle', select('rac_cloud_bundle_loaded_timestamp_seconds', CLOUD), 'max')}",
                "Loaded",
                "dateTimeAsIso",
            ),
            headings=(
                ("instance", "Cloud"),
                ("bundle", "Bundle"),
                ("classifier", "Classifier"),
                ("version", "Version"),
                ("revision", "Revision"),
                ("python", "Python"),
            ),
            height=6,
        ),
    ),
)

BOARD: Final = Board(
    "rac-cloud",
    "Cloud",
    "Sessions, queue, batches and workers of the cloud, and where its time goes.",
    (CLOUDS,),
    (STATE, WORK, LATENCY, WORKERS, NETWORK),
)
