"""Rate, accuracy, complexity: what the depths and levels in use give, and what they cost."""

from __future__ import annotations

from typing import Final

from deploy.grafana.boards.model import CAMERAS, CLOUDS, NODES, Board, Panel, Query, Row
from deploy.grafana.boards.panels import SLOW, heatmap, lines, table
from deploy.grafana.boards.promql import (
    CAMERA,
    CLOUD,
    MIN_SAMPLE,
    NODE,
    by,
    count,
    grown,
    heat,
    quantile,
    rate,
    ratio,
    select,
)

POINT: Final = "depth, level"


def _bpp(labels: str) -> str:
    bytes_s = by(labels, rate("rac_node_bitstream_bytes_sum", NODE))
    return f"8 * {ratio(bytes_s, by(labels, rate('rac_node_coded_pixels_total', NODE)))}"


def _agreement(labels: str) -> str:
    agreed = by(labels, rate("rac_cloud_reference_agreements_total", CLOUD))
    return ratio(agreed, by(labels, rate("rac_cloud_reference_frames_total", CLOUD)))


def _top1(labels: str) -> str:
    correct = by(labels, rate("rac_cloud_labelled_correct_total", CLOUD, 'top="1"'))
    return ratio(correct, by(labels, rate("rac_cloud_labelled_frames_total", CLOUD)))


def _shares(title: str, description: str, expression: str, legend: str) -> Panel:
    return lines(
        title, description, "percentunit", Query(expression, legend), width=6, height=7, maximum=1, interval=SLOW
    )


def _top_of_table(top: int) -> str:
    return ratio(
        by(POINT, grown("rac_cloud_labelled_correct_total", CLOUD, f'top="{top}"')),
        by(POINT, grown("rac_cloud_labelled_frames_total", CLOUD)),
        MIN_SAMPLE,
    )


#: Frames of each pair that was in use.
USED: Final = f"{count('rac_node_bitstream_bytes_count', POINT, NODE)} > 0"


def _measured(what: str) -> str:
    """What a bundle was measured with when it was made, of the pairs in use."""
    return f"{by(POINT, select(f'rac_cloud_bundle_measured_{what}', CLOUD), 'max')} and on (depth, level) ({USED})"


COMPLEXITY: Final = Row(
    "Complexity: what the nodes spend",
    (
        lines(
            "Depth mix",
            "Frames coded and sent at each encoder depth. The controller takes the deepest that fits the budget; a mix"
            " that sinks says that the nodes have less time.",
            "fps",
            Query(by("depth", rate("rac_node_frames_encoded_total", CAMERA)), "depth {{depth}}"),
            stacked=True,
        ),
        lines(
            "Time of a frame by depth",
            "Camera array to bytes, 95th percentile, and the smallest budget among the chosen nodes.",
            "s",
            Query(quantile(0.95, "rac_node_encode_duration_seconds", "depth", NODE), "depth {{depth}}"),
            Query(by("", select("rac_node_budget_seconds", NODE), "min"), "budget", is_limit=True),
        ),
        lines(
            "Budget overruns",
            "Share of the frames of each depth that took longer than the budget. More than a few at the lowest depth:"
            " the budget does not fit this machine.",
            "percentunit",
            Query(
                ratio(
                    by("depth", rate("rac_node_budget_overruns_total", CAMERA)),
                    by("depth", rate("rac_node_frames_encoded_total", CAMERA)),
                ),
                "depth {{depth}}",
            ),
            maximum=1,
        ),
        lines(
            "Changes of depth",
            "Moves of the depth controller by cause. Many of both kinds: the load swings about a border between two"
            " depths.",
            "cpm",
            Query(f"60 * {by('cause', rate('rac_node_depth_changes_total', CAMERA))}", "{{cause}}"),
            width=12,
            height=7,
        ),
        lines(
            "Expected cost of each depth",
            "The controller's 90th percentile of a frame's time at each depth, the largest among the chosen nodes.",
            "s",
            Query(by("depth", select("rac_node_depth_cost_seconds", NODE), "max"), "depth {{depth}}"),
            width=12,
            height=7,
        ),
    ),
)
RATE: Final = Row(
    "Rate: what is sent",
    (
        lines(
            "Level mix",
            "Frames at each rate level, rounded to whole ones. Higher levels take more bits and keep more classes.",
            "fps",
            Query(by("level", rate("rac_node_bitstream_bytes_count", NODE)), "level {{level}}"),
            stacked=True,
        ),
        lines(
            "Bits a pixel by depth",
            "8 x bytes of the bitstreams with their header, over the pixels of the coded 224 x 224 views.",
            "suffix: bpp",
            Query(_bpp("depth"), "depth {{depth}}"),
            interval=SLOW,
        ),
        lines(
            "Bits a pixel by level",
            "The same by rate level.",
            "suffix: bpp",
            Query(_bpp("level"), "level {{level}}"),
            interval=SLOW,
        ),
    ),
)
ACCURACY: Final = Row(
    "Accuracy: what the classifier still sees",
    (
        _shares(
            "Agreement by depth",
            "Frames with the uncompressed classifier's class, of those that carried a reference (--reference-every).",
            _agreement("depth"),
            "depth {{depth}}",
        ),
        _shares(
            "Agreement by level",
            "The same by rate level: it should rise with the level.",
            _agreement("level"),
            "level {{level}}",
        ),
        _shares(
            "Top-1 by depth",
            "Labelled frames that are right. Only labelled folders and the test camera have labels.",
            _top1("depth"),
            "depth {{depth}}",
        ),
        _shares("Top-1 by level", "The same by rate level.", _top1("level"), "level {{level}}"),
        table(
            "Depths and levels of the chosen time",
            "One row for each pair that had frames. Shares over fewer than 50 frames are left empty. Measured: when"
            " the bundle was made, on other pictures; the best, where several bundles are served.",
            Query(USED, "Frames", "short"),
            Query(
                "8 * "
                + ratio(
                    by(POINT, grown("rac_node_bitstream_bytes_sum", NODE)),
                    by(POINT, grown("rac_node_coded_pixels_total", NODE)),
                ),
                "Rate",
                "suffix: bpp",
            ),
            Query(_measured("bits_per_pixel"), "Offline rate", "suffix: bpp"),
            Query(f"{count('rac_cloud_reference_frames_total', POINT, CLOUD)} > 0", "References", "short"),
            Query(
                ratio(
                    by(POINT, grown("rac_cloud_reference_agreements_total", CLOUD)),
                    by(POINT, grown("rac_cloud_reference_frames_total", CLOUD)),
                    MIN_SAMPLE,
                ),
                "Agreement",
                "percentunit",
            ),
            Query(_measured("agreement"), "Offline agreement", "percentunit"),
            Query(f"{count('rac_cloud_labelled_frames_total', POINT, CLOUD)} > 0", "Labelled", "short"),
            Query(_top_of_table(1), "Top-1", "percentunit"),
            Query(_top_of_table(5), "Top-5", "percentunit"),
            sort="Frames",
            descending=True,
            headings=(("depth", "Depth"), ("level", "Level")),
            width=16,
        ),
        heatmap(
            "Probability of the best class",
            "How sure the classifier is of what it saw, all depths. A drift towards the bottom says that the pictures"
            " have changed, even where nothing is labelled.",
            "percentunit",
            heat("rac_cloud_top1_probability", CLOUD),
        ),
    ),
)

BOARD: Final = Board(
    "rac-accuracy",
    "Rate, accuracy, complexity",
    "What the encoder depths and rate levels in use cost and give.",
    (CLOUDS, NODES, CAMERAS),
    (COMPLEXITY, RATE, ACCURACY),
)
