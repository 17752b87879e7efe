"""What a run shows: speed and means that are true, a bar, and curves that TensorBoard reads."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from pipeline.training import progress
from pipeline.training.progress import Bar, IntervalMeans, TensorBoard, choose_watchers, format_duration, format_line

POINT = {"depth": 4, "level": 1.0, "agreement": 0.5, "kl": 1.25, "bpp": 0.3}


def test_line_holds_means_over_the_interval_and_begins_the_next() -> None:
    means = IntervalMeans()
    means.add({"loss": 4.0}, images=8, seconds=1.0)
    means.add({"loss": 2.0, "kl": 1.0}, images=8, seconds=3.0)
    # kl came in at the second step: its mean is over the steps that had it.
    assert means.take() == {"images_per_s": 4.0, "loss": 3.0, "kl": 1.0}
    means.add({"loss": 1.0}, images=8, seconds=0.5)
    assert means.take() == {"images_per_s": 16.0, "loss": 1.0}


def test_time_of_a_validation_is_not_the_trainings() -> None:
    means = IntervalMeans()
    means.add({"loss": 4.0}, images=8, seconds=1.0)
    means.skip_time()
    means.add({"loss": 2.0}, images=8, seconds=60.0)
    means.add({"loss": 3.0}, images=8, seconds=1.0)
    assert means.take() == {"images_per_s": 8.0, "loss": 3.0}


def test_bar_shows_speed_time_left_and_running_losses() -> None:
    screen = io.StringIO()
    bar = Bar(Console(file=screen, force_terminal=True, width=120))
    bar.step(1, 0.25, 3723.0, 12.34, {"loss": 2.0})
    bar.step(2, 0.5, 3723.0, 12.34, {"loss": 1.0})
    bar.line({"step": 2, "validation": [POINT]})
    bar.line({"step": 2, "progress": 0.5, "loss": 77.0})  # what the bar shows anyway
    bar.close()
    shown = screen.getvalue()
    for text in ("step 2", "50%", "1:02:03 left", "12.3 images/s", "loss 1.950", "agreement 0.500"):
        assert text in shown
    assert "77" not in shown


@pytest.mark.parametrize(
    ("seconds", "text"), [(-3.0, "0:00"), (59.6, "1:00"), (754.0, "12:34"), (3600.0, "1:00:00"), (36_000.0, "10:00:00")]
)
def test_duration_reads_as_a_clock(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_text_line_has_each_validated_point() -> None:
    text = format_line({"step": 7, "elapsed_s": 3.0, "validation": [POINT, POINT]})
    assert text.splitlines()[0] == "step 7  elapsed_s 3.000"
    assert len(text.splitlines()) == 3
    assert format_line({"step": 7, "elapsed_s": 3.0, "stopped": True}).endswith("stopped")


def test_tensorboard_reads_the_curves(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    writer = TensorBoard(tmp_path)
    writer.line({"step": 50, "progress": 0.5, "loss": 2.5, "lmbda": [1.0, 2.0]})
    writer.line({"step": 60, "validation": [POINT]})
    writer.close()
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("training/loss")] == [(50, 2.5)]
    assert [(event.step, event.value) for event in events.Scalars("agreement/depth 4 level 1")] == [(60, 0.5)]


def test_without_tensorboard_nothing_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "find_spec", lambda _: None)
    (only,) = choose_watchers(tmp_path, as_json=True)
    only.line({"step": 1, "loss": 2.0})
    assert capsys.readouterr() == ('{"step": 1, "loss": 2.0}\n', "")
    assert list(tmp_path.iterdir()) == []
