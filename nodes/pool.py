"""The worker processes: start, hand out batches, notice death, hanging and growth, start again.

One slot a worker. A slot is `starting` until its process says that it is ready, then `ready` or `busy`; it is `dead`
between the loss of a process and its next start. The pool is polled by the front's one loop and never blocks it: not
with a worker that is stopped and takes nothing, nor with one that cannot be started.
"""

from __future__ import annotations

import multiprocessing
import signal
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from multiprocessing.process import BaseProcess
from typing import Any

from nodes.spawning import start_shielded
from nodes.worker import READY, BatchAnswer, BatchJob, worker_main
from nodes.worker_link import FrontLink, worker_links

SECOND_NS = 1_000_000_000
START_TIMEOUT_NS = 120 * SECOND_NS
"""Loading an engine on a busy machine takes seconds; beyond this the process hangs."""
FIRST_BACK_OFF_NS = SECOND_NS // 2
MAX_BACK_OFF_NS = 30 * SECOND_NS
HEALTHY_AFTER_NS = 60 * SECOND_NS
"""A worker that lived this long starts again without back-off growing on."""
EXIT_LIMIT_S = 0.25
"""A worker that closed its link is about to end; it gets so long to do so with an exit code of its own."""
REAP_LIMIT_S = 0.5
"""A killed process is gone within milliseconds unless the kernel itself is stuck; then it is left behind."""


class SlotState(StrEnum):
    """State of a worker slot; the label of `rac_cloud_workers`."""

    STARTING = "starting"
    READY = "ready"
    BUSY = "busy"
    DEAD = "dead"


class LossReason(StrEnum):
    """Why a worker was lost; the label of `rac_cloud_worker_restarts_total`."""

    CRASH = "crash"
    HANG = "hang"
    MEMORY = "memory"


@dataclass(frozen=True, slots=True)
class BatchDone:
    """A worker answered.

    Attributes:
        busy_ns: from hand-out to answer.
        reply_ns: how long it took to send the frames' answers on; 0 while that is to come.
    """

    slot: int
    answer: BatchAnswer
    busy_ns: int
    reply_ns: int = 0


@dataclass(frozen=True, slots=True)
class WorkerLost:
    """A worker is gone; `job` is what it held."""

    slot: int
    reason: LossReason
    exit_code: int | None
    job: BatchJob | None

    @property
    def is_killed(self) -> bool:
        """Whether somebody else killed it: the operator, or the machine for want of memory."""
        return self.reason is LossReason.CRASH and self.exit_code == -signal.SIGKILL


@dataclass(frozen=True, slots=True)
class WorkerReady:
    """A worker can take batches."""

    slot: int
    start_ns: int


PoolEvent = BatchDone | WorkerLost | WorkerReady

WorkerTarget = Callable[[socket.socket, Any], None]
"""What a worker process runs: its end of the link, and the specification."""


@dataclass(slots=True)
class Slot:
    """One worker; its process changes over restarts."""

    number: int
    state: SlotState = SlotState.DEAD
    process: BaseProcess | None = None
    link: FrontLink | None = None
    job: BatchJob | None = None
    started_ns: int = 0
    since_ns: int = 0
    retry_at_ns: int = 0
    back_off_ns: int = FIRST_BACK_OFF_NS
    resident_bytes: int = 0
    lost_by: LossReason | None = None


class WorkerPool:
    """The slots. All calls come from one thread; times are monotonic nanoseconds."""

    def __init__(
        self,
        spec: Any,
        num_workers: int,
        batch_timeout_ns: int,
        target: WorkerTarget = worker_main,
        memory_limit_bytes: int = 0,
    ) -> None:
        """Set up; nothing is started.

        Args:
            spec: what `target` is started with, a `WorkerSpec` for the real one.
            memory_limit_bytes: a worker that says it has more is started anew, between batches; 0: none is.
        """
        self._spec = spec
        self._target = target
        self._batch_timeout_ns = batch_timeout_ns
        self._memory_limit_bytes = memory_limit_bytes
        self._context = multiprocessing.get_context("spawn")
        self.slots = [Slot(number) for number in range(num_workers)]

    def start(self, now_ns: int) -> list[PoolEvent]:
        """Start every worker."""
        return [event for slot in self.slots for event in self._start(slot, now_ns)]

    def links(self) -> list[FrontLink]:
        """What the front polls; readable when a worker answered or died."""
        return [slot.link for slot in self.slots if slot.link is not None]

    def count(self, state: SlotState) -> int:
        """Number of slots in a state."""
        return sum(slot.state is state for slot in self.slots)

    def submit(self, job: BatchJob, now_ns: int, avoid: Sequence[int] = ()) -> int | None:
        """Hand a batch to a ready worker, the one that waited longest; None when there is none.

        Args:
            avoid: slots that shall not get it while another one runs or starts (a batch is retried elsewhere).
        """
        ready = [slot for slot in self.slots if slot.state is SlotState.READY]
        preferred = [slot for slot in ready if slot.number not in avoid]
        elsewhere = any(slot.state is not SlotState.DEAD and slot.number not in avoid for slot in self.slots)
        if not ready or (elsewhere and not preferred):
            return None
        slot = min(preferred or ready, key=lambda slot: slot.since_ns)
        assert slot.link is not None
        slot.job, slot.state, slot.since_ns = job, SlotState.BUSY, now_ns
        slot.link.send(job)  # a worker that died just now is reported lost by the next poll, with this job
        return slot.number

    def poll(self, now_ns: int) -> list[PoolEvent]:
        """What happened since the last call; starts what is due to start."""
        events: list[PoolEvent] = []
        for slot in self.slots:
            if slot.state is SlotState.DEAD:
                if now_ns >= slot.retry_at_ns:
                    events += self._start(slot, now_ns)
                continue
            lost = self._receive(slot, now_ns, events) or self._overdue(slot, now_ns)
            if lost is not None:
                events.append(self._lose(slot, lost, now_ns))
        overgrown = self._overgrown()
        if overgrown is not None:
            events.append(self._lose(overgrown, LossReason.MEMORY, now_ns))
        return events

    def next_deadline(self) -> int | None:
        """When `poll` has something to do without a link becoming readable."""
        times = [slot.retry_at_ns for slot in self.slots if slot.state is SlotState.DEAD]
        times += [slot.since_ns + self._batch_timeout_ns for slot in self.slots if slot.state is SlotState.BUSY]
        return min(times, default=None)

    def stop(self, clock: Callable[[], int], deadline_ns: int) -> None:
        """End every worker; those that do not end by themselves by the deadline are killed."""
        for slot in self.slots:
            if slot.link is not None:
                slot.link.close()
                slot.link = None
        for slot in self.slots:
            if slot.process is not None:
                slot.process.join(max(0.0, (deadline_ns - clock()) / SECOND_NS))
        self.kill()

    def kill(self) -> None:
        """End every worker now, from any state."""
        running = [slot for slot in self.slots if slot.process is not None]
        for slot in running:
            assert slot.process is not None
            slot.process.kill()
        for slot in running:
            self._forget(slot)

    def _start(self, slot: Slot, now_ns: int) -> list[PoolEvent]:
        ours, theirs = worker_links()
        process = self._context.Process(
            target=self._target, args=(theirs, self._spec), name=f"rac-worker-{slot.number}", daemon=True
        )
        slot.started_ns = slot.since_ns = now_ns
        with theirs:
            try:
                start_shielded(process)
            except OSError:
                ours.close()
                return [self._lose(slot, LossReason.CRASH, now_ns)]
        slot.process, slot.link, slot.job, slot.state = process, ours, None, SlotState.STARTING
        return []

    def _receive(self, slot: Slot, now_ns: int, events: list[PoolEvent]) -> LossReason | None:
        assert slot.link is not None
        slot.link.flush()
        messages, is_open = slot.link.receive()
        for message in messages:
            if message == READY:
                slot.state, slot.since_ns = SlotState.READY, now_ns
                events.append(WorkerReady(slot.number, now_ns - slot.started_ns))
            elif isinstance(message, BatchAnswer) and slot.job is not None:
                events.append(BatchDone(slot.number, message, now_ns - slot.since_ns))
                slot.job, slot.state, slot.since_ns = None, SlotState.READY, now_ns
                slot.resident_bytes = message.resident_bytes
        return None if is_open else LossReason.CRASH

    def _overdue(self, slot: Slot, now_ns: int) -> LossReason | None:
        limits = {SlotState.STARTING: START_TIMEOUT_NS, SlotState.BUSY: self._batch_timeout_ns}
        limit = limits.get(slot.state)
        return LossReason.HANG if limit is not None and now_ns - slot.since_ns > limit else None

    def _overgrown(self) -> Slot | None:
        """An idle worker over the memory limit; not while another one comes back, so that they do not go all at once.

        A slot that cannot be started holds nobody up, or a machine without memory would never get any back.
        """
        if not self._memory_limit_bytes or self.count(SlotState.STARTING):
            return None
        if any(slot.state is SlotState.DEAD and slot.lost_by is LossReason.MEMORY for slot in self.slots):
            return None
        idle = [slot for slot in self.slots if slot.state is SlotState.READY]
        return next((slot for slot in idle if slot.resident_bytes > self._memory_limit_bytes), None)

    def _lose(self, slot: Slot, reason: LossReason, now_ns: int) -> WorkerLost:
        job = slot.job
        if slot.process is not None:
            if reason is LossReason.CRASH:
                slot.process.join(EXIT_LIMIT_S)
            slot.process.kill()
        lost = WorkerLost(slot.number, reason, self._forget(slot), job)
        slot.lost_by, slot.since_ns = reason, now_ns
        if now_ns - slot.started_ns > HEALTHY_AFTER_NS:
            slot.back_off_ns = FIRST_BACK_OFF_NS
        slot.retry_at_ns = now_ns + slot.back_off_ns
        slot.back_off_ns = min(2 * slot.back_off_ns, MAX_BACK_OFF_NS)
        return lost

    @staticmethod
    def _forget(slot: Slot) -> int | None:
        """Take leave of a slot's killed process; return its exit code."""
        exit_code = None
        if slot.process is not None:
            slot.process.join(REAP_LIMIT_S)
            exit_code = slot.process.exitcode
        if slot.link is not None:
            slot.link.close()
        slot.process, slot.link, slot.job, slot.state = None, None, None, SlotState.DEAD
        slot.resident_bytes = 0
        return exit_code
