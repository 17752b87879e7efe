"""A real Prometheus with the configuration that `deploy/` ships, over programs on any ports of this machine."""

from __future__ import annotations

import json
import shutil
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit

import yaml

from tests.e2e.programs import PATIENCE_S, ROOT, Program

SHIPPED = ROOT / "deploy/prometheus"
SCRAPE_INTERVAL = "1s"
#: A sample as a query gives it: labels and value.
Sample = tuple[Mapping[str, str], float]
Found = TypeVar("Found")


class Prometheus:
    """One running server on loopback, with a storage folder of its own; it ends with the `with` block.

    Attributes:
        url: where it listens, without a slash at the end.
    """

    def __init__(self, folder: Path, targets: Mapping[str, Sequence[tuple[Program, Mapping[str, str]]]]) -> None:
        """Start it on `deploy/prometheus/prometheus.yml`, with these targets, quick intervals and no token.

        Args:
            folder: for configuration, storage and log; empty.
            targets: programs of each job with the labels that their targets file gives them.
        """
        binary = shutil.which("prometheus")
        assert binary is not None
        self._log = folder / "prometheus.log"
        config = folder / "prometheus.yml"
        config.write_text(yaml.safe_dump(_configuration(folder, targets)))
        with self._log.open("w") as errors:
            # Port 0: the log says which one it got. With a port that was free a moment ago, another server may answer.
            self._process = subprocess.Popen(
                [
                    binary,
                    f"--config.file={config}",
                    f"--storage.tsdb.path={folder / 'tsdb'}",
                    "--storage.tsdb.wal-segment-size=10MB",
                    "--web.listen-address=127.0.0.1:0",
                    "--log.format=json",
                ],
                env={"GOMAXPROCS": "1"},
                cwd=folder,
                stdout=errors,
                stderr=errors,
            )
        self.url = ""

    def __enter__(self) -> Self:
        self.url = f"http://{_poll(self._address, 'Prometheus listens', self._fail)}"
        _poll(self._is_ready, "Prometheus is ready", self._fail)
        return self

    def __exit__(self, *error: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(PATIENCE_S)
        finally:
            self._process.kill()
            self._process.wait()

    def query(self, promql: str) -> list[Sample]:
        """Labels (with `__name__`, where the expression keeps it) and value of each series of an instant query.

        Raises:
            AssertionError: Prometheus does not take the expression; says why.
        """
        found = self._get("query", query=promql)
        if found["resultType"] == "scalar":
            return [({}, float(found["result"][1]))]
        return [(entry["metric"], float(entry["value"][1])) for entry in found["result"]]

    def query_range(
        self, promql: str, seconds: float, step_s: float = 1.0
    ) -> list[tuple[Mapping[str, str], list[Any]]]:
        """Labels and [unix s, "value"] pairs of each series over the last seconds."""
        end_s = time.time()
        found = self._get("query_range", query=promql, start=end_s - seconds, end=end_s, step=step_s)
        return [(entry["metric"], entry["values"]) for entry in found["result"]]

    def wait_for(self, promql: str, is_met: Callable[[list[Sample]], bool] = bool) -> list[Sample]:
        """Ask again until the answer is as wanted (by default: not empty), and return it."""

        def ask() -> list[Sample] | None:
            samples = self.query(promql)
            return samples if is_met(samples) else None

        return _poll(ask, promql, self._fail)

    def get(self, what: str) -> Any:
        """`targets`, `rules`, `alerts` and the like of the HTTP interface."""
        return self._get(what)

    def _get(self, what: str, **arguments: object) -> Any:
        url = f"{self.url}/api/v1/{what}?{urllib.parse.urlencode(arguments)}"
        try:
            with urllib.request.urlopen(url, timeout=PATIENCE_S) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            with error:
                raise AssertionError(f"{arguments}: {json.load(error)['error']}") from error

    def _is_ready(self) -> bool | None:
        """It listens before it can answer: until then, everything is 503."""
        try:
            with urllib.request.urlopen(f"{self.url}/-/ready", timeout=PATIENCE_S):
                return True
        except urllib.error.HTTPError as error:
            with error:
                return None

    def _address(self) -> str | None:
        for line in self._log.read_text().splitlines():
            entry = json.loads(line) if line.startswith("{") else {}
            if entry.get("msg") == "Listening on":
                address: str = entry["address"]
                return address
        return None

    def _fail(self) -> str | None:
        """Why there is no use in waiting on."""
        return None if self._process.poll() is None else self._log.read_text()


def _configuration(folder: Path, targets: Mapping[str, Sequence[tuple[Program, Mapping[str, str]]]]) -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load((SHIPPED / "prometheus.yml").read_text())
    config["global"] |= {"scrape_interval": SCRAPE_INTERVAL, "scrape_timeout": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(SHIPPED / pattern) for pattern in config["rule_files"]]
    assert {job["job_name"] for job in config["scrape_configs"]} == targets.keys()
    for job in config["scrape_configs"]:
        entries = [
            {"targets": [urlsplit(program.get("start")[0]["metrics"]).netloc], "labels": dict(labels)}
            for program, labels in targets[job["job_name"]]
        ]
        path = folder / f"{job['job_name']}.yml"
        path.write_text(yaml.safe_dump(entries))
        job["file_sd_configs"] = [{"files": [str(path)]}]
        del job["authorization"]  # on loopback there is none
    return config


def _poll(ask: Callable[[], Found | None], what: str, fail: Callable[[], str | None]) -> Found:
    limit_s = time.monotonic() + PATIENCE_S
    pause = threading.Event()
    while (found := ask()) is None:
        reason = fail() or ("it took too long" if time.monotonic() > limit_s else None)
        assert reason is None, f"{what}: {reason}"
        pause.wait(0.2)
    return found
