"""The worker processes: start, hand out batches, notice death and hanging, start again.

One slot a worker. A slot is `starting` until its process says that it is ready, then `ready` or `busy`; it is `dead`
between the loss of a process and its next start. The pool is polled by the front's one loop and never blocks it.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from nodes.worker import READY, BatchAnswer, BatchJob, WorkerSpec, worker_main

SECOND_NS = 1_000_000_000
START_TIMEOUT_NS = 120 * SECOND_NS
"""Loading an engine on a busy machine takes seconds; beyond this the process hangs."""
FIRST_BACK_OFF_NS = SECOND_NS // 2
MAX_BACK_OFF_NS = 30 * SECOND_NS
HEALTHY_AFTER_NS = 60 * SECOND_NS
"""A worker that lived this long starts again without back-off growing on."""


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


@dataclass(frozen=True, slots=True)
class BatchDone:
    """A worker answered."""

    slot: int
    answer: BatchAnswer
    busy_ns: int


@dataclass(frozen=True, slots=True)
class WorkerLost:
    """A worker is gone; `job` is what it held."""

    slot: int
    reason: LossReason
    exit_code: int | None
    job: BatchJob | None


PoolEvent = BatchDone | WorkerLost


@dataclass(slots=True)
class Slot:
    """One worker; its process changes over restarts."""

    number: int
    state: SlotState = SlotState.DEAD
    process: BaseProcess | None = None
    pipe: Connection | None = None
    job: BatchJob | None = None
    started_ns: int = 0
    since_ns: int = 0
    retry_at_ns: int = 0
    back_off_ns: int = FIRST_BACK_OFF_NS


class WorkerPool:
    """The slots. All calls come from one thread; times are monotonic nanoseconds."""

    def __init__(self, spec: WorkerSpec, num_workers: int, batch_timeout_ns: int) -> None:
        self._spec = spec
        self._batch_timeout_ns = batch_timeout_ns
        self._context = multiprocessing.get_context("spawn")
        self.slots = [Slot(number) for number in range(num_workers)]

    def start(self, now_ns: int) -> None:
        """Start every worker."""
        for slot in self.slots:
            self._start(slot, now_ns)

    def _start(self, slot: Slot, now_ns: int) -> None:
        parent, child = self._context.Pipe()
        process = self._context.Process(
            target=worker_main, args=(child, self._spec), name=f"rac-worker-{slot.number}", daemon=True
        )
        process.start()
        child.close()
        slot.process, slot.pipe, slot.job = process, parent, None
        slot.state, slot.started_ns, slot.since_ns = SlotState.STARTING, now_ns, now_ns

    def pipes(self) -> list[Connection]:
        """What the front polls; readable when a worker answered or died."""
        return [slot.pipe for slot in self.slots if slot.pipe is not None]

    def count(self, state: SlotState) -> int:
        """Number of slots in a state."""
        return sum(slot.state is state for slot in self.slots)

    def submit(self, job: BatchJob, now_ns: int, avoid: Sequence[int] = ()) -> int | None:
        """Hand a batch to a ready worker, the one that waited longest; None when there is none.

        Args:
            avoid: slots that shall not get it unless no other exists at all (a batch is retried elsewhere).
        """
        ready = [slot for slot in self.slots if slot.state is SlotState.READY]
        preferred = [slot for slot in ready if slot.number not in avoid]
        if not preferred and len(self.slots) > len(avoid):
            return None
        for slot in sorted(preferred or ready, key=lambda slot: slot.since_ns):
            assert slot.pipe is not None
            slot.job, slot.state, slot.since_ns = job, SlotState.BUSY, now_ns
            try:
                slot.pipe.send(job)
            except (BrokenPipeError, ConnectionResetError):
                pass  # died just now: its loss is reported by the next poll, with this job
            return slot.number
        return None

    def poll(self, now_ns: int) -> list[PoolEvent]:
        """What happened since the last call; starts what is due to start."""
        events: list[PoolEvent] = []
        for slot in self.slots:
            if slot.state is SlotState.DEAD:
                if now_ns >= slot.retry_at_ns:
                    self._start(slot, now_ns)
                continue
            lost = self._receive(slot, now_ns, events) or self._overdue(slot, now_ns)
            if lost is not None:
                events.append(self._lose(slot, lost, now_ns))
        return events

    def _receive(self, slot: Slot, now_ns: int, events: list[PoolEvent]) -> LossReason | None:
        assert slot.pipe is not None
        try:
            while slot.pipe.poll():
                message = slot.pipe.recv()
                if message == READY:
                    slot.state, slot.since_ns = SlotState.READY, now_ns
                elif isinstance(message, BatchAnswer) and slot.job is not None:
                    events.append(BatchDone(slot.number, message, now_ns - slot.since_ns))
                    slot.job, slot.state, slot.since_ns = None, SlotState.READY, now_ns
        except (EOFError, OSError):
            return LossReason.CRASH
        return None

    def _overdue(self, slot: Slot, now_ns: int) -> LossReason | None:
        limits = {SlotState.STARTING: START_TIMEOUT_NS, SlotState.BUSY: self._batch_timeout_ns}
        limit = limits.get(slot.state)
        return LossReason.HANG if limit is not None and now_ns - slot.since_ns > limit else None

    def _lose(self, slot: Slot, reason: LossReason, now_ns: int) -> WorkerLost:
        assert slot.process is not None and slot.pipe is not None
        slot.process.kill()
        slot.process.join()
        slot.pipe.close()
        lost = WorkerLost(slot.number, reason, slot.process.exitcode, slot.job)
        if now_ns - slot.started_ns > HEALTHY_AFTER_NS:
            slot.back_off_ns = FIRST_BACK_OFF_NS
        slot.retry_at_ns = now_ns + slot.back_off_ns
        slot.back_off_ns = min(2 * slot.back_off_ns, MAX_BACK_OFF_NS)
        slot.process, slot.pipe, slot.job, slot.state = None, None, None, SlotState.DEAD
        return lost

    def next_deadline(self) -> int | None:
        """When `poll` has something to do without a pipe becoming readable."""
        times = [slot.retry_at_ns for slot in self.slots if slot.state is SlotState.DEAD]
        times += [slot.since_ns + self._batch_timeout_ns for slot in self.slots if slot.state is SlotState.BUSY]
        return min(times, default=None)

    def stop(self, clock: Callable[[], int], deadline_ns: int) -> None:
        """End every worker; those that do not end by themselves by the deadline are killed."""
        for slot in self.slots:
            if slot.pipe is not None:
                slot.pipe.close()
        for slot in self.slots:
            if slot.process is not None:
                slot.process.join(max(0.0, (deadline_ns - clock()) / SECOND_NS))
                if slot.process.is_alive():
                    slot.process.kill()
                    slot.process.join()
                slot.process, slot.pipe, slot.state = None, None, SlotState.DEAD

    def kill(self) -> None:
        """End every worker now, from any state."""
        for slot in self.slots:
            if slot.process is not None:
                slot.process.kill()
                slot.process.join()
                slot.process, slot.state = None, SlotState.DEAD
            if slot.pipe is not None:
                slot.pipe.close()
                slot.pipe = None
