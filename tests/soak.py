"""`make soak`: a cloud and three nodes as fast as they go, for minutes; memory and open files have to stay flat.

Every process is looked at every few seconds: node, its readers, cloud, its workers. What is compared is the median of
the first fifth after a fifth of warming up with the median of the last fifth, so that neither a cache that fills nor a
moment that is sampled badly decides.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.e2e.balance import MIB, check_ends_agree, check_pages, num_descriptors, resident_bytes
from tests.e2e.conftest import start_cloud, starter
from tests.e2e.programs import Program

SAMPLES = 100
# A tenth of a percent a minute would be half a gigabyte in a month; below it lies the noise of allocators.
GROWTH_SHARE = 0.03
GROWTH_BYTES = 12 * MIB
MORE_DESCRIPTORS = 2


@dataclass
class Trace:
    """One process over time."""

    resident: list[int] = field(default_factory=list)
    descriptors: list[int] = field(default_factory=list)

    def add(self, pid: int) -> None:
        self.resident.append(resident_bytes(pid))
        self.descriptors.append(num_descriptors(pid))

    def ends(self, values: list[int]) -> tuple[float, float]:
        """Medians of the second and of the last fifth."""
        fifth = max(1, len(values) // 5)
        return statistics.median(values[fifth : 2 * fifth]), statistics.median(values[-fifth:])

    def is_flat(self) -> bool:
        before, after = self.ends(self.resident)
        files_before, files_after = self.ends(self.descriptors)
        return (
            after <= before * (1 + GROWTH_SHARE) + GROWTH_BYTES
            and files_after <= files_before + MORE_DESCRIPTORS
            and min(self.resident) > 0
        )


def soak(minutes: float, folder: Path) -> dict[str, Any]:
    """Run the programs for so long.

    Returns:
        Figures of every process and of both ledgers; `trouble` names what was not flat or did not balance.
    """
    with ExitStack() as programs:
        start = starter(folder, programs)
        cloud = start_cloud(start)
        endpoint = cloud.get("start")[0]["endpoint"]
        nodes = [
            start("rac-node", "--camera", camera, "--cloud", endpoint, "--metrics-port", "0", *more)
            for camera, *more in (
                ("a=test:?fps=60",),
                ("b=test:?fps=60&seed=3", "--reference-every", "5"),
                ("c=test:?fps=60&seed=5", "--depth", "0"),
            )
        ]
        for node in nodes:
            node.wait_event("result", 10)
        cloud.wait_metrics(lambda found: found["rac_cloud_workers", "starting"] == 0)
        traces = _watch([cloud, *nodes], 60.0 * minutes)
        check_pages(nodes, [cloud])
        ledgers = [node.end() for node in nodes], [cloud.end()]
    check_ends_agree(*ledgers)
    return {
        "minutes": minutes,
        "processes": {name: _figures(trace) for name, trace in traces.items()},
        "captured": sum(summary["captured"] for summary in ledgers[0]),
        "results": sum(summary["results"] for summary in ledgers[0]),
        "cloud": ledgers[1][0]["results"],
        "trouble": [name for name, trace in traces.items() if not trace.is_flat()],
    }


def _watch(running: list[Program], seconds: float) -> dict[str, Trace]:
    pause, began_s = threading.Event(), time.monotonic()
    pids = {f"{program.name} {program.pid}": program.pid for program in running}
    pids |= {f"{program.name} {program.pid} child {pid}": pid for program in running for pid in program.workers()}
    traces = {name: Trace() for name in pids}
    while time.monotonic() - began_s < seconds:
        for name, pid in pids.items():
            traces[name].add(pid)
        pause.wait(seconds / SAMPLES)
    return traces


def _figures(trace: Trace) -> dict[str, float]:
    before, after = trace.ends(trace.resident)
    files_before, files_after = trace.ends(trace.descriptors)
    return {
        "mib_at_start": round(trace.resident[0] / MIB, 1),
        "mib_after_warming_up": round(before / MIB, 1),
        "mib_at_end": round(after / MIB, 1),
        "files_after_warming_up": files_before,
        "files_at_end": files_after,
    }


def main() -> int:
    """Run and print; 1 when something grew."""
    parser = argparse.ArgumentParser(prog="soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="length (10)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = soak(args.minutes, Path(folder))
    print(json.dumps(report, indent=1))
    for name in report["trouble"]:
        print(f"soak: {name} grew", file=sys.stderr)
    return 1 if report["trouble"] else 0


if __name__ == "__main__":
    sys.exit(main())
