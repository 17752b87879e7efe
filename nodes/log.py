"""Log on standard error: lines for people or JSON objects, passwords masked, repeats counted.

    12:30:01 WARNING capture: read timeout camera=door
    {"time": "2026-11-23T12:30:01.250Z", "level": "warning", "logger": "capture", "message": "..." ...

What happens with every frame would drown all else: of messages with the same logger, level, template and identity
(camera, node ...) one a second is written, with the number that was held back. Every message counts in the metric.

Facts are given as `extra={"camera": name}`; each becomes a field of its own. A change of state has the fact `event`,
its name (nodes/README.md lists them); lines for people leave it out, and facts that their text has already.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Literal, TextIO

from pipeline.masking import mask_credentials

#: All our loggers are below it: rac.edge, rac.cloud ...
ROOT_LOGGER: Final = "rac"
REPEAT_S: Final = 1.0
# Kinds of messages that are remembered; far more than there are in the code, times cameras.
MAX_KINDS: Final = 4096
# Facts that say whose message it is: one of another node, camera or worker is no repeat.
IDENTITY: Final = ("event", "node", "camera", "worker", "reason")

_STANDARD_FIELDS: Final = frozenset(vars(logging.makeLogRecord({}))) | {
    "message",
    "asctime",
    "taskName",
    "repeats",
}


def configure_log(
    level: str,
    style: Literal["text", "json"],
    *,
    stream: TextIO | None = None,
    count: Callable[[str], None] | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> LogHandler:
    """Send our log, and warnings of libraries' loggers, to one handler in place of any before.

    Args:
        level: debug, info, warning or error.
        stream: where to; standard error by default.
        count: called with the level of every message, also of those held back.
        clock: monotonic seconds, for the repeats.
    Returns:
        The handler: call its `flush_repeats` now and then and at the end.
    """
    handler = LogHandler(stream or sys.stderr, count, clock)
    handler.setFormatter(JsonFormatter() if style == "json" else TextFormatter())
    root = logging.getLogger()
    for old in [old for old in root.handlers if isinstance(old, LogHandler)]:
        root.removeHandler(old)
        old.close()
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    logging.getLogger(ROOT_LOGGER).setLevel(level.upper())
    return handler


class TextFormatter(logging.Formatter):
    """One line for people; the clock is local time."""

    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.fromtimestamp(record.created).strftime("%H:%M:%S")
        text = " ".join(record.getMessage().split("\n"))
        told = [(name, value) for name, value in _facts(record).items() if name != "event" and str(value) not in text]
        facts = "".join(f" {name}={value}" for name, value in told)
        line = f"{moment} {record.levelname} {_short_name(record)}: {text}{facts}{_repeats(record)}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return mask_credentials(line)


class JsonFormatter(logging.Formatter):
    """One JSON object a line; the time is UTC.

    Attributes:
        always: facts that every line has.
    """

    def __init__(self) -> None:
        super().__init__()
        self.always: dict[str, object] = {}

    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.fromtimestamp(record.created, UTC)
        line: dict[str, Any] = {
            "time": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": _short_name(record),
            "message": mask_credentials(record.getMessage()),
        }
        for name, value in (self.always | _facts(record)).items():
            plain = value is None or isinstance(value, bool | int | float)
            line.setdefault(name, value if plain else mask_credentials(str(value)))
        if held_back := getattr(record, "repeats", 0):
            line["repeats"] = held_back
        if record.exc_info:
            line["exception"] = mask_credentials(self.formatException(record.exc_info))
        return json.dumps(line)


@dataclass(slots=True)
class _Kind:
    """One kind of message: when it was last written, what was held back since."""

    written_s: float
    held_back: int = 0
    latest: logging.LogRecord | None = None


class LogHandler(logging.StreamHandler[TextIO]):
    """Writes each kind of message once a second, with the number held back before it."""

    def __init__(self, stream: TextIO, count: Callable[[str], None] | None, clock: Callable[[], float]) -> None:
        super().__init__(stream)
        self._count = count
        self._clock = clock
        self._kinds: dict[Hashable, _Kind] = {}

    def set_facts(self, facts: Mapping[str, object]) -> None:
        """Facts that every JSON line has from now on, unless the message has its own."""
        if isinstance(self.formatter, JsonFormatter):
            self.formatter.always = dict(facts)

    def set_counter(self, count: Callable[[str], None]) -> None:
        """Count messages from now on: the exporter is there later than the log."""
        self._count = count

    def emit(self, record: logging.LogRecord) -> None:
        if self._count is not None:
            self._count(record.levelname.lower())
        now_s = self._clock()
        # The template, not the text: it is the same message whatever number it carries.
        identity = tuple(getattr(record, name, None) for name in IDENTITY)
        key = (record.name, record.levelno, str(record.msg), identity)
        kind = self._kinds.get(key)
        if kind is not None and now_s - kind.written_s < REPEAT_S:
            kind.held_back += 1
            kind.latest = record
            return
        if kind is not None:
            record.repeats = kind.held_back
        elif len(self._kinds) >= MAX_KINDS:
            self._forget_oldest(now_s)
        self._kinds[key] = _Kind(now_s)
        super().emit(record)

    def flush_repeats(self, *, at_end: bool = False) -> None:
        """Write the latest of each kind that was held back for a second; at the end, of all."""
        now_s = self._clock()
        self.acquire()
        try:
            for kind in self._kinds.values():
                if at_end or now_s - kind.written_s >= REPEAT_S:
                    self._write_latest(kind, now_s)
        finally:
            self.release()

    def close(self) -> None:
        self.flush_repeats(at_end=True)
        super().close()

    def _write_latest(self, kind: _Kind, now_s: float) -> None:
        if kind.latest is not None:
            # The latest is written itself; the others are its repeats.
            kind.latest.repeats = kind.held_back - 1
            super().emit(kind.latest)
            kind.written_s, kind.held_back, kind.latest = now_s, 0, None

    def _forget_oldest(self, now_s: float) -> None:
        key = min(self._kinds, key=lambda kind: self._kinds[kind].written_s)
        self._write_latest(self._kinds.pop(key), now_s)


def _facts(record: logging.LogRecord) -> dict[str, Any]:
    return {name: value for name, value in vars(record).items() if name not in _STANDARD_FIELDS}


def _short_name(record: logging.LogRecord) -> str:
    return record.name.removeprefix(f"{ROOT_LOGGER}.")


def _repeats(record: logging.LogRecord) -> str:
    held_back = getattr(record, "repeats", 0)
    return f" (and {held_back} more like it)" if held_back else ""
