"""The demo's closing figures, from the lines that its nodes print."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from nodes import demo
from nodes.arguments import rac_parser
from nodes.demo import MIN_LABELLED, CameraFigures, closing_figures
from pipeline.errors import ConfigError

#: Fixed by issue 2; more keys may come.
KEYS = {
    *("seconds", "cameras", "captured", "results", "dropped", "in_flight", "labelled", "top1", "reference_top1"),
    *("agreement", "bytes_per_frame", "bits_per_pixel", "e2e_ms_p50", "e2e_ms_p99", "depth"),
}


def result(best: int = 967, *, label: int | None = 967, reference: int | None = 967, **facts: Any) -> dict[str, Any]:
    classes = [{"index": best, "name": "espresso", "probability": 0.9}]
    line = {"event": "result", "classes": classes, "label": label, "reference_top1": reference}
    return line | {"depth": 4, "bytes": 1500, "latency_ms": 40.0} | facts


def summary(**facts: Any) -> dict[str, Any]:
    line = {"event": "summary", "captured": 0, "results": 0, "dropped": {}, "in_flight": 0, "bytes_per_frame": 1500.0}
    return line | facts


def make_camera(*lines: dict[str, Any], **facts: Any) -> CameraFigures:
    figures = CameraFigures()
    for number, line in enumerate(lines):
        figures.take(line, 10.0 + number)
    figures.take(summary(results=len(lines), captured=len(lines), **facts), 99.0)
    return figures


def test_figures_are_of_all_nodes() -> None:
    one = make_camera(*[result()] * 30, dropped={"superseded": 2})
    one.summary = one.summary and one.summary | {"captured": 32}
    two = make_camera(*[result(label=872, reference=872, depth=8, latency_ms=60.0)] * 40, dropped={})
    figures = closing_figures([one, two], 5.017)
    assert set(figures) >= KEYS
    assert (figures["seconds"], figures["cameras"], figures["captured"], figures["results"]) == (5.02, 2, 72, 70)
    assert figures["dropped"] == {"superseded": 2}
    assert figures["captured"] == figures["results"] + sum(figures["dropped"].values()) + figures["in_flight"]
    assert (figures["labelled"], figures["references"]) == (70, 70)
    assert figures["top1"] == 30 / 70
    assert figures["reference_top1"] == 1.0
    assert figures["agreement"] == 30 / 70
    assert figures["bytes_per_frame"] == 1500.0
    assert figures["bits_per_pixel"] == 8 * 1500 / 224**2
    assert (figures["e2e_ms_p50"], figures["e2e_ms_p99"], figures["depth"]) == (60.0, 60.0, 8)


def test_fewer_labelled_frames_than_fifty_give_no_shares() -> None:
    few = closing_figures([make_camera(*[result()] * (MIN_LABELLED - 1))], 5.0)
    assert (few["labelled"], few["top1"], few["reference_top1"], few["agreement"]) == (49, None, None, None)
    enough = closing_figures([make_camera(*[result()] * MIN_LABELLED)], 5.0)
    assert (enough["labelled"], enough["top1"], enough["reference_top1"], enough["agreement"]) == (50, 1.0, 1.0, 1.0)


def test_unlabelled_frames_count_for_agreement_only() -> None:
    camera = make_camera(*[result(label=None)] * 50, *[result(1, label=None)] * 50)
    figures = closing_figures([camera], 5.0)
    assert (figures["labelled"], figures["top1"], figures["agreement"]) == (0, None, 0.5)


def test_nothing_seen_gives_nulls_not_errors() -> None:
    figures = closing_figures([make_camera(bytes_per_frame=None)], 0.0)
    assert [figures[key] for key in ("bytes_per_frame", "bits_per_pixel", "e2e_ms_p50", "depth")] == [None] * 4
    demo._print_closing(Console(file=io.StringIO()), figures)


def test_time_of_the_first_result_is_kept() -> None:
    camera = make_camera(result(), result())
    assert camera.first_result_s == 10.0


def test_table_shows_cameras_with_and_without_results() -> None:
    shown = io.StringIO()
    table = demo._table([make_camera(result()), CameraFigures()], 1.0, 5.0)
    Console(file=shown, width=80).print(table)
    assert "espresso" in shown.getvalue()
    assert "camera1" in shown.getvalue()


def test_unknown_bundle_is_refused_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "_child", lambda *arguments: pytest.fail("something was started"))
    with pytest.raises(ConfigError, match="no such bundle"):
        demo.run(rac_parser().parse(["demo", "--bundle", "nowhere"]))
