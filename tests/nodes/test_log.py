"""The log: one line a message, passwords masked, repeats counted."""

from __future__ import annotations

import io
import json
import logging
from collections import Counter
from collections.abc import Iterator

import pytest

from nodes.log import MAX_KINDS, LogHandler, configure_log

LOGGER = logging.getLogger("rac.capture")


class FakeClock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture(autouse=True)
def _restore_root() -> Iterator[None]:
    root, ours = logging.getLogger(), logging.getLogger("rac")
    before = root.level, ours.level, list(root.handlers)
    yield
    for handler in [handler for handler in root.handlers if handler not in before[2]]:
        root.removeHandler(handler)
        handler.close()
    root.setLevel(before[0])
    ours.setLevel(before[1])


@pytest.fixture
def stream() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def text_log(stream: io.StringIO, clock: FakeClock) -> LogHandler:
    return configure_log("info", "text", stream=stream, clock=clock)


@pytest.fixture
def json_log(stream: io.StringIO, clock: FakeClock) -> LogHandler:
    return configure_log("info", "json", stream=stream, clock=clock)


def test_text_line_has_level_logger_and_facts(text_log: LogHandler, stream: io.StringIO) -> None:
    LOGGER.warning("read timeout after %d s", 5, extra={"camera": "door"})
    line = stream.getvalue()
    assert line.endswith(" WARNING capture: read timeout after 5 s camera=door\n")
    assert line[2] == line[5] == ":"


def test_json_line_has_every_fact_as_a_field(json_log: LogHandler, stream: io.StringIO) -> None:
    LOGGER.info("up", extra={"camera": "door", "width": 640, "level": "made up"})
    line = json.loads(stream.getvalue())
    assert line["message"] == "up"
    assert (line["camera"], line["width"], line["logger"]) == ("door", 640, "capture")
    assert line["level"] == "info", "a fact never hides a field of ours"
    assert line["time"].endswith("Z")


@pytest.mark.parametrize("style", ["text", "json"])
def test_passwords_are_masked_wherever_they_stand(stream: io.StringIO, style: str) -> None:
    configure_log("info", "json" if style == "json" else "text", stream=stream)
    url = "rtsp://admin:s3cret@cam.local/stream"
    try:
        raise ValueError(f"cannot open {url}")
    except ValueError:
        LOGGER.exception("open %s failed", url, extra={"source": url})
    assert "s3cret" not in stream.getvalue()
    assert "cam.local/stream" in stream.getvalue()


def test_message_with_line_ends_stays_one_line(text_log: LogHandler, stream: io.StringIO) -> None:
    """A peer's text cannot forge a line of the log."""
    LOGGER.info("peer said %s", "x\n12:00:00 ERROR edge: forged")
    assert stream.getvalue().count("\n") == 1


def test_less_serious_messages_are_left_out(text_log: LogHandler, stream: io.StringIO) -> None:
    LOGGER.debug("noise")
    logging.getLogger("some.library").info("chatter")
    logging.getLogger("some.library").warning("trouble")
    assert "noise" not in stream.getvalue()
    assert "chatter" not in stream.getvalue()
    assert "WARNING some.library: trouble" in stream.getvalue()


def test_repeats_are_written_once_a_second_with_their_number(
    text_log: LogHandler, stream: io.StringIO, clock: FakeClock
) -> None:
    for number in range(50):
        LOGGER.warning("frame %d is bad", number)
    assert stream.getvalue().count("\n") == 1
    clock.now_s += 1.0
    LOGGER.warning("frame %d is bad", 50)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 2
    assert lines[1].endswith("frame 50 is bad (and 49 more like it)")


def test_repeats_of_another_camera_or_message_are_not_held_back(text_log: LogHandler, stream: io.StringIO) -> None:
    for camera in ("door", "yard"):
        LOGGER.warning("down", extra={"camera": camera})
    LOGGER.warning("up", extra={"camera": "door"})
    LOGGER.error("down", extra={"camera": "door"})
    assert stream.getvalue().count("\n") == 4


def test_the_same_change_of_another_node_or_worker_is_no_repeat(text_log: LogHandler, stream: io.StringIO) -> None:
    """Fifty nodes that come within a second are fifty events."""
    for number in range(50):
        LOGGER.info("node %s is there", f"n{number}", extra={"event": "session_opened", "node": f"n{number}"})
        LOGGER.warning("worker %d lost", number, extra={"event": "worker_lost", "worker": number})
    assert stream.getvalue().count("\n") == 100


def test_lines_for_people_say_nothing_twice(text_log: LogHandler, stream: io.StringIO) -> None:
    LOGGER.info("node %s is there", "dock", extra={"event": "session_opened", "node": "dock", "camera": "door"})
    assert stream.getvalue().endswith(" INFO capture: node dock is there camera=door\n")


def test_facts_of_the_program_are_on_every_json_line(json_log: LogHandler, stream: io.StringIO) -> None:
    json_log.set_facts({"node": "dock"})
    LOGGER.info("up", extra={"event": "camera_up"})
    LOGGER.info("of another", extra={"node": "gate"})
    first, second = map(json.loads, stream.getvalue().splitlines())
    assert (first["node"], first["event"]) == ("dock", "camera_up")
    assert second["node"] == "gate"


def test_repeats_that_stop_are_written_by_the_loop(text_log: LogHandler, stream: io.StringIO, clock: FakeClock) -> None:
    for number in range(3):
        LOGGER.warning("frame %d is bad", number)
    text_log.flush_repeats()
    assert stream.getvalue().count("\n") == 1, "not before a second has passed"
    clock.now_s += 1.0
    text_log.flush_repeats()
    text_log.flush_repeats()
    lines = stream.getvalue().splitlines()
    assert len(lines) == 2
    assert lines[1].endswith("frame 2 is bad (and 1 more like it)")


def test_nothing_is_lost_at_the_end(json_log: LogHandler, stream: io.StringIO) -> None:
    for number in range(3):
        LOGGER.warning("frame %d is bad", number)
    json_log.close()
    assert [json.loads(line)["message"] for line in stream.getvalue().splitlines()] == [
        "frame 0 is bad",
        "frame 2 is bad",
    ]
    assert json.loads(stream.getvalue().splitlines()[1])["repeats"] == 1


def test_every_message_counts_also_those_held_back(stream: io.StringIO, clock: FakeClock) -> None:
    counted: Counter[str] = Counter()
    configure_log("info", "text", stream=stream, count=lambda level: counted.update([level]), clock=clock)
    for _ in range(10):
        LOGGER.warning("again")
    LOGGER.error("once")
    assert counted == {"warning": 10, "error": 1}


def test_kinds_of_messages_are_bounded(text_log: LogHandler, stream: io.StringIO, clock: FakeClock) -> None:
    for number in range(MAX_KINDS + 10):
        clock.now_s += 0.0001
        LOGGER.warning(f"message {number}")
    assert len(text_log._kinds) == MAX_KINDS
    LOGGER.warning("message 0")
    assert stream.getvalue().count("message 0\n") == 2, "the oldest kind was forgotten"


def test_configuring_again_replaces_the_handler(stream: io.StringIO, clock: FakeClock) -> None:
    configure_log("info", "text", stream=io.StringIO(), clock=clock)
    configure_log("error", "text", stream=stream, clock=clock)
    LOGGER.warning("left out")
    LOGGER.error("once")
    assert stream.getvalue().count("\n") == 1
