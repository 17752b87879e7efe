"""The project's programs as a user starts them: own processes, JSON lines, signals, metrics over HTTP.

Nothing here sleeps for a time that is hoped to be long enough: everything waits for an event, with a deadline that a
loaded machine keeps too.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

from prometheus_client.parser import text_string_to_metric_families

ROOT = Path(__file__).parents[2]
# A program that has not done what it is waited for by then has failed; a busy machine needs longer. (No RAC_: those are
# keys of the configuration.)
PATIENCE_S = float(os.environ.get("TEST_PATIENCE_S", "120"))
# Ledgers and gauges are published once a second; on a busy machine a little later.
PUBLISHED_S = 1.5
#: Module and function of each program; the last one is a cloud whose workers break when they are told to.
ENTRIES = {
    "rac-node": ("nodes.cli", "node_main"),
    "rac-cloud": ("nodes.cli", "cloud_main"),
    "rac": ("nodes.cli", "main"),
    "fragile-cloud": ("tests.e2e.fragile", "cloud_main"),
}

Event = dict[str, Any]
Series = tuple[str, ...]


def command(program: str, *arguments: str) -> list[str]:
    """Command line of a program of this source tree."""
    module, entry = ENTRIES[program]
    return [sys.executable, "-c", f"import sys; from {module} import {entry}; sys.exit({entry}())", *arguments]


def environment(**settings: str) -> dict[str, str]:
    """The environment without configuration of ours, but for the cache and what is given."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAC_") or name == "RAC_CACHE"}
    return kept | settings


class Program:
    """One running program with `--json`, in a group of its own, as a terminal starts it.

    Attributes:
        name: of the program.
        events: every line of standard output so far.
    """

    def __init__(self, program: str, *arguments: str, log: Path, prefix: Sequence[str] = (), **settings: str) -> None:
        """Start.

        Args:
            log: file for standard error.
            prefix: a command that turns into the program, as `ip netns exec NAME`.
            settings: environment of the program, such as RAC_DRAIN_S.
        """
        self.events: list[Event] = []
        self.name = program
        self._moments_s: list[float] = []
        self._log = log
        self._changed = threading.Condition()
        self._has_ended = False
        with log.open("w") as errors:
            self.process = subprocess.Popen(
                [*prefix, *command(program, *arguments, "--json")],
                cwd=ROOT,
                env=environment(**settings),
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                start_new_session=True,
            )
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """Leave nothing behind, whatever the test did."""
        if self.process.poll() is None:
            for pid in [self.process.pid, *self.children()]:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        self.process.wait()
        self._thread.join()
        assert self.process.stdout is not None
        self.process.stdout.close()

    @property
    def errors(self) -> str:
        """Standard error so far."""
        return self._log.read_text()

    @property
    def pid(self) -> int:
        return self.process.pid

    def get(self, event: str, **facts: object) -> list[Event]:
        """Events of one kind with these facts."""
        with self._changed:
            events = list(self.events)
        return [line for line in events if line["event"] == event and facts.items() <= line.items()]

    def moments_of(self, event: str, since_s: float = 0.0, **facts: object) -> list[float]:
        """When events of a kind were read, after a moment; both as `time.monotonic` has it."""
        with self._changed:
            pairs = list(zip(self.events, self._moments_s, strict=True))
        return [
            moment
            for line, moment in pairs
            if moment > since_s and line["event"] == event and facts.items() <= line.items()
        ]

    def wait_for(self, is_met: Callable[[], bool], what: str = "") -> None:
        """Wait for a condition on the events; it is looked at whenever one came."""
        limit_s = time.monotonic() + PATIENCE_S
        with self._changed:
            while not is_met():
                left_s = limit_s - time.monotonic()
                if self._has_ended or left_s <= 0:
                    raise AssertionError(f"{self.name}: not {what or is_met}: {self.events[-5:]} {self.errors}")
                self._changed.wait(min(left_s, 0.2))

    def wait_event(self, event: str, count: int = 1, **facts: object) -> Event:
        """Wait until so many events of a kind have come in all; return the last of them."""
        self.wait_for(lambda: len(self.get(event, **facts)) >= count, f"{count} x {event} {facts}")
        return self.get(event, **facts)[count - 1]

    def wait_said(self, text: str) -> None:
        """Wait until standard error has this."""
        self.wait_for(lambda: text in self.errors, f"said: {text}")

    def wait_more(self, event: str, count: int, **facts: object) -> None:
        """Wait for so many more events of a kind than there are now."""
        self.wait_event(event, len(self.get(event, **facts)) + count, **facts)

    def metrics(self) -> dict[Series, float]:
        """All samples by name and label values, these in the order of the label names."""
        text = urllib.request.urlopen(self.get("start")[0]["metrics"], timeout=PATIENCE_S).read().decode()
        return {
            (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def readiness(self) -> tuple[int, str]:
        """Status and text of /readyz."""
        url = self.get("start")[0]["metrics"].removesuffix("/metrics") + "/readyz"
        try:
            with urllib.request.urlopen(url, timeout=PATIENCE_S) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def wait_metrics(
        self, is_met: Callable[[Mapping[Series, float]], bool], *, for_s: float = 0.0
    ) -> Mapping[Series, float]:
        """Scrape, ten times a second, until a condition is met.

        Args:
            for_s: it has to be met for so long; PUBLISHED_S where what is published once a second may still be of the
                time before what the test did.
        """
        since_s = time.monotonic()
        limit_s = since_s + PATIENCE_S
        pause = threading.Event()
        while True:
            found = self.metrics()
            now_s = time.monotonic()
            if not is_met(found):
                since_s = now_s
            elif now_s - since_s >= for_s:
                return found
            if now_s > limit_s:
                shown = {key: value for key, value in found.items() if value and not key[0].endswith("_bucket")}
                raise AssertionError(f"{self.name}: the metrics did not come to it: {shown} {self.errors}")
            pause.wait(0.1)

    def children(self) -> list[int]:
        """Processes under this one, at any depth."""
        return descendants(self.process.pid)

    def workers(self) -> list[int]:
        """Children that `multiprocessing` spawned: workers of a cloud, readers of a node."""
        return [pid for pid in self.children() if "spawn_main" in _command_line(pid)]

    def loaded(self, library: str) -> list[int]:
        """This process and those under it that have a shared library mapped whose path has this in it."""
        return [pid for pid in [self.pid, *self.children()] if library in _maps(pid)]

    def send_signal(self, number: signal.Signals, *, group: bool = False) -> None:
        """Send a signal; to the whole group, as Ctrl-C does."""
        if group:
            os.killpg(self.process.pid, number)
        else:
            self.process.send_signal(number)

    def end(self, number: signal.Signals = signal.SIGTERM, *, group: bool = False) -> Event:
        """Stop in order and check that it was one; return the summary."""
        children = self.children()
        self.send_signal(number, group=group)
        return self.check_end(children)

    def kill(self) -> None:
        """End it with -9, and see its children end by themselves; all that it printed has been read then."""
        children = self.children()
        self.send_signal(signal.SIGKILL)
        self.process.wait()
        assert_gone(children)
        self._thread.join(PATIENCE_S)

    def check_end(self, children: list[int] | None = None) -> Event:
        """The program has ended, or does so by itself: exit code 0, a summary that balances, nothing left."""
        assert self.process.wait(PATIENCE_S) == 0, self.errors
        self._thread.join(PATIENCE_S)
        assert "Traceback" not in self.errors, self.errors
        assert_gone(children or [])
        summary = self.events[-1]
        assert summary["event"] == "summary", summary
        check_balance(summary)
        return summary

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._changed:
                self.events.append(json.loads(line))
                self._moments_s.append(time.monotonic())
                self._changed.notify_all()
        with self._changed:
            self._has_ended = True
            self._changed.notify_all()


def check_balance(summary: Event) -> None:
    """A node: captured = results + dropped + in flight; a cloud: received = results by outcome + in flight."""
    if "captured" in summary:
        total = summary["results"] + sum(summary["dropped"].values()) + summary["in_flight"]
        assert summary["captured"] + summary["recovered"] == total, summary
    else:
        assert summary["received"] == sum(summary["results"].values()) + summary["in_flight"], summary


def node_metrics_balance(found: Mapping[Series, float]) -> bool:
    """Whether a node's page balances; all of it is of one moment."""
    captured = sum_of(found, "rac_node_frames_captured_total")
    results = sum(value for key, value in found.items() if key[0] == "rac_node_results_total" and key[2] == "ok")
    dropped = sum_of(found, "rac_node_frames_dropped_total")
    recovered = sum_of(found, "rac_node_frames_recovered_total")
    return captured + recovered == results + dropped + found["rac_node_in_flight_frames",]


def sum_of(found: Mapping[Series, float], name: str) -> float:
    """Sum over all series of a metric."""
    return sum(value for key, value in found.items() if key[0] == name)


def assert_gone(pids: list[int]) -> None:
    """Every one of these processes has ended, or does so by itself; one that is still starting notices late."""
    limit_s = time.monotonic() + PATIENCE_S
    pause = threading.Event()
    while left := [pid for pid in pids if _is_running(pid)]:
        assert time.monotonic() < limit_s, [(pid, _command_line(pid)) for pid in left]
        pause.wait(0.02)


def run(program: str, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run a program to its end."""
    return subprocess.run(
        command(program, *arguments),
        cwd=ROOT,
        env=environment(**settings),
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE_S,
        check=False,
    )


def descendants(pid: int) -> list[int]:
    """Processes under one, at any depth."""
    parents = _parents()
    found: list[int] = []
    new = [pid]
    while new:
        new = [child for child, parent in parents.items() if parent in new]
        found += new
    return found


def _parents() -> dict[int, int]:
    """Parent by process id, of all processes."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            # The name stands in parentheses and may hold anything.
            found[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError):
            continue
    return found


def _is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return re.fullmatch("[ZX]", state) is None


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def _maps(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/maps").read_text()
    except OSError:
        return ""
