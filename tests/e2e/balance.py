"""The bar of every fault test: each frame ends once at both ends, memory stays bounded, nothing is restarted by hand.

watched = Watched(cloud, *nodes)          # notes memory and descriptors of every process
... the fault, and the stream coming back by itself ...
watched.check_growth()
check_ends_agree([node.end() for node in nodes], [cloud.end()])
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.e2e.programs import Event, Program, check_balance, node_metrics_balance, sum_of

MIB = 2**20
# A process that leaks a frame's buffers or a connection's queue passes this within seconds of a fault.
GROWTH_LIMIT_BYTES = 150 * MIB
# Files of a few connections that are being closed; a leak of one a reconnect is found by the soak.
DESCRIPTOR_LIMIT = 40
#: How a frame may end at the node without the cloud's word.
NODE_ENDS = ("lost_in_link", "expired", "shutdown")


def check_ends_agree(nodes: Sequence[Event], clouds: Sequence[Event]) -> None:
    """Compare the summaries of nodes with those of the clouds that they spoke to.

    A node has no result that no cloud gave; what a cloud gave and no node has is a late one or got lost on the way;
    and every word of a cloud in a node's ledger stands in that cloud's ledger at least as often.
    """
    for summary in (*nodes, *clouds):
        check_balance(summary)
        assert summary["in_flight"] == 0, summary
    given: Counter[str] = Counter()
    for summary in clouds:
        given.update(summary["results"])
    results = sum(summary["results"] for summary in nodes)
    late = sum(summary["late"] for summary in nodes)
    dropped: Counter[str] = Counter()
    for summary in nodes:
        dropped.update(summary["dropped"])
    lost = sum(dropped[reason] for reason in NODE_ENDS)
    assert results <= given["ok"] <= results + late + lost, (nodes, clouds)
    for reason in ("rejected", "corrupt", "poison", "stale", "worker_lost", "reference_lost"):
        assert dropped[reason] <= given[reason] <= dropped[reason] + late + lost, (reason, nodes, clouds)


def check_pages(nodes: Sequence[Program], clouds: Sequence[Program]) -> None:
    """The metrics of running programs balance: a node's page is of one moment.

    A cloud counts received frames as they come and publishes their ends once a second, and a page is not rendered at
    once: what one page says has ended, the next one says was received.
    """
    for node in nodes:
        assert node_metrics_balance(node.metrics()), node.errors
    for cloud in clouds:
        first, second = cloud.metrics(), cloud.metrics()
        ended = sum_of(first, "rac_cloud_results_total") + first["rac_cloud_in_flight_frames",]
        assert ended <= sum_of(second, "rac_cloud_frames_received_total"), (first, second)


def resident_bytes(pid: int | str) -> int:
    """Memory of a process (or of "self") that is in RAM; 0 when it is gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def num_descriptors(pid: int) -> int:
    """Open files of a process; 0 when it is gone."""
    try:
        return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return 0


class Watched:
    """Memory and descriptors of programs, from now on. Their children come and go: workers are started again."""

    def __init__(self, *programs: Program) -> None:
        self._before = {
            program.pid: (program, resident_bytes(program.pid), num_descriptors(program.pid)) for program in programs
        }

    def growth(self) -> dict[str, tuple[int, int]]:
        """Bytes and descriptors more than at the start, by program and process id."""
        return {
            f"{program.name} {pid}": (resident_bytes(pid) - memory, num_descriptors(pid) - descriptors)
            for pid, (program, memory, descriptors) in self._before.items()
        }

    def check_growth(self) -> None:
        """No program has grown by more than a fault may leave behind."""
        for name, (memory, descriptors) in self.growth().items():
            assert memory < GROWTH_LIMIT_BYTES, f"{name} grew by {memory / MIB:.0f} MiB"
            assert descriptors < DESCRIPTOR_LIMIT, f"{name} has {descriptors} more open files"


class Recoveries:
    """How long recovery took, for the table of the README; printed at the end of a run."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, fault: str, seconds: float, remark: str = "") -> None:
        """Remember one figure."""
        self.lines.append(f"{fault}: {seconds:.2f} s{f' ({remark})' if remark else ''}")

    def until_result(self, fault: str, node: Program, since_s: float, **facts: object) -> float:
        """Wait for the node's first result that came after a moment of `time.monotonic`, and note how long it took."""
        node.wait_for(lambda: bool(node.moments_of("result", since_s, **facts)), f"a result after {fault}")
        took_s = node.moments_of("result", since_s, **facts)[0] - since_s
        self.note(fault, took_s)
        return took_s


#: All of a run.
RECOVERIES = Recoveries()


def longest_gap_s(node: Program, since_s: float, until_s: float | None = None) -> float:
    """Longest time between two results of a node within a span of `time.monotonic`."""
    until_s = until_s or time.monotonic()
    moments = [since_s, *(moment for moment in node.moments_of("result", since_s) if moment < until_s), until_s]
    return max(after - before for before, after in zip(moments, moments[1:], strict=False))


def wait_until(is_met: Callable[[], bool], patience_s: float, what: str) -> float:
    """Look ten times a second until a condition is met; return how long it took."""
    begun_s = time.monotonic()
    while not is_met():
        assert time.monotonic() - begun_s < patience_s, f"not within {patience_s:g} s: {what}"
        time.sleep(0.1)
    return time.monotonic() - begun_s
