"""Worker processes, real ones with nothing to compute: death, hanging, restart, and never a wait in the front."""

from __future__ import annotations

import os
import select
import signal
import socket
import time
from collections.abc import Callable, Iterator

import pytest

from nodes import pool as pool_module
from nodes.pool import (
    FIRST_BACK_OFF_NS,
    HEALTHY_AFTER_NS,
    MAX_BACK_OFF_NS,
    SECOND_NS,
    START_TIMEOUT_NS,
    BatchDone,
    LossReason,
    PoolEvent,
    SlotState,
    WorkerLost,
    WorkerPool,
    WorkerReady,
)
from nodes.worker import BatchJob
from nodes.worker_link import FrontLink, WorkerLink, worker_links
from pipeline.decoding import CodedFrame
from tests.trivial_worker import ANSWER, CRASH, GROW, GROWN_BYTES, HANG, PID, STILLBORN, make_job, trivial_worker

PATIENCE_S = 60.0
BATCH_TIMEOUT_NS = 5 * SECOND_NS


class Owner:
    """Polls a pool as the front does; time is the test's, but for how long it waits for the machine."""

    def __init__(self, num_workers: int = 1, spec: str = "", memory_limit_bytes: int = 0) -> None:
        self.pool = WorkerPool(spec, num_workers, BATCH_TIMEOUT_NS, trivial_worker, memory_limit_bytes)
        self.now_ns = 0
        self.events: list[PoolEvent] = self.pool.start(self.now_ns)

    def poll(self) -> None:
        self.events += self.pool.poll(self.now_ns)

    def wait(self, is_met: Callable[[], bool]) -> None:
        limit_s = time.monotonic() + PATIENCE_S
        while not is_met():
            assert time.monotonic() < limit_s, (self.pool.slots, self.events)
            writing = [link for link in self.pool.links() if link.has_unsent]
            select.select(self.pool.links(), writing, [], 0.2)
            self.poll()

    def wait_ready(self, num_workers: int = 1) -> None:
        self.wait(lambda: self.pool.count(SlotState.READY) == num_workers)

    def lost(self) -> list[WorkerLost]:
        return [event for event in self.events if isinstance(event, WorkerLost)]

    def answers(self) -> list[BatchDone]:
        return [event for event in self.events if isinstance(event, BatchDone)]

    def pid(self, slot: int = 0) -> int:
        process = self.pool.slots[slot].process
        assert process is not None
        assert process.pid is not None
        return process.pid


@pytest.fixture
def owner() -> Iterator[Owner]:
    made = Owner()
    yield made
    pids = [slot.process.pid for slot in made.pool.slots if slot.process is not None]
    made.pool.kill()
    made.pool.kill()
    assert not any(is_running(pid) for pid in pids if pid is not None)


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that is to end by itself, or was killed, is waited for however busy the machine is; a front is not so
    patient, and tells no exit code then."""
    monkeypatch.setattr(pool_module, "EXIT_LIMIT_S", PATIENCE_S)
    monkeypatch.setattr(pool_module, "REAP_LIMIT_S", PATIENCE_S)


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_worker_says_that_it_is_ready_and_answers(owner: Owner) -> None:
    assert owner.pool.count(SlotState.STARTING) == 1
    assert owner.pool.submit(make_job(), 0) is None
    owner.now_ns = 2 * SECOND_NS
    owner.wait_ready()
    assert owner.events == [WorkerReady(0, 2 * SECOND_NS)]
    assert owner.pool.submit(make_job(number=4, frames=3), owner.now_ns) == 0
    assert owner.pool.count(SlotState.BUSY) == 1
    assert owner.pool.submit(make_job(), owner.now_ns) is None
    owner.now_ns += 7
    owner.wait(lambda: len(owner.answers()) == 1)
    (done,) = owner.answers()
    assert (done.slot, done.answer.number, len(done.answer.answers), done.busy_ns) == (0, 4, 3, 7)
    assert owner.pool.count(SlotState.READY) == 1


def test_crash_is_reported_with_the_job_and_the_worker_comes_back_after_a_while(owner: Owner) -> None:
    owner.wait_ready()
    job = make_job(CRASH, number=9)
    owner.pool.submit(job, owner.now_ns)
    owner.wait(lambda: len(owner.lost()) == 1)
    assert owner.lost() == [WorkerLost(0, LossReason.CRASH, 7, job)]
    assert owner.pool.count(SlotState.DEAD) == 1
    assert owner.pool.next_deadline() == FIRST_BACK_OFF_NS
    assert owner.pool.links() == []
    owner.now_ns = FIRST_BACK_OFF_NS - 1
    owner.poll()
    assert owner.pool.count(SlotState.DEAD) == 1
    owner.now_ns += 1
    owner.poll()
    assert owner.pool.count(SlotState.STARTING) == 1
    owner.wait_ready()
    owner.pool.submit(make_job(), owner.now_ns)
    owner.wait(lambda: len(owner.answers()) == 1)


def test_worker_that_grew_is_started_anew_after_its_answer() -> None:
    owner = Owner(memory_limit_bytes=GROWN_BYTES - 1)
    try:
        owner.wait_ready()
        owner.pool.submit(make_job(), owner.now_ns)
        owner.wait(lambda: len(owner.answers()) == 1)
        assert owner.lost() == []
        owner.pool.submit(make_job(GROW), owner.now_ns)
        owner.wait(lambda: len(owner.lost()) == 1)
        assert len(owner.answers()) == 2, "nothing is lost with it"
        assert owner.lost() == [WorkerLost(0, LossReason.MEMORY, -signal.SIGKILL, None)]
        owner.now_ns += FIRST_BACK_OFF_NS
        owner.poll()
        owner.wait_ready()
        assert len(owner.lost()) == 1, "its memory is not the next one's"
    finally:
        owner.pool.kill()


def test_workers_that_grew_together_go_one_after_the_other() -> None:
    owner = Owner(num_workers=2, memory_limit_bytes=GROWN_BYTES - 1)
    try:
        owner.wait_ready(2)
        for _ in range(2):
            owner.pool.submit(make_job(GROW), owner.now_ns)
        owner.wait(lambda: len(owner.answers()) == 2)
        owner.wait(lambda: len(owner.lost()) == 1)
        owner.now_ns += FIRST_BACK_OFF_NS
        owner.poll()
        assert len(owner.lost()) == 1
        assert owner.pool.count(SlotState.READY) == owner.pool.count(SlotState.STARTING) == 1
        owner.wait(lambda: len(owner.lost()) == 2)
    finally:
        owner.pool.kill()


@pytest.mark.parametrize(("number", "is_killed"), [(signal.SIGKILL, True), (signal.SIGSEGV, False)])
def test_kill_from_outside_is_told_apart_from_a_crash(owner: Owner, number: signal.Signals, is_killed: bool) -> None:
    owner.wait_ready()
    os.kill(owner.pid(), number)
    owner.wait(lambda: len(owner.lost()) == 1)
    assert owner.lost()[0].is_killed is is_killed
    assert not WorkerLost(0, LossReason.HANG, -signal.SIGKILL, None).is_killed


def test_kill_of_an_idle_worker_is_noticed(owner: Owner) -> None:
    owner.wait_ready()
    os.kill(owner.pid(), signal.SIGKILL)
    owner.wait(lambda: len(owner.lost()) == 1)
    assert owner.lost() == [WorkerLost(0, LossReason.CRASH, -signal.SIGKILL, None)]


def test_batch_that_takes_too_long_ends_its_worker(owner: Owner) -> None:
    owner.wait_ready()
    job = make_job(HANG)
    owner.pool.submit(job, owner.now_ns)
    assert owner.pool.next_deadline() == BATCH_TIMEOUT_NS
    owner.now_ns = BATCH_TIMEOUT_NS
    owner.poll()
    assert owner.lost() == []
    owner.now_ns += 1
    owner.poll()
    assert owner.lost() == [WorkerLost(0, LossReason.HANG, -signal.SIGKILL, job)]


def test_worker_that_is_stopped_takes_a_large_batch_without_holding_up_the_front(owner: Owner) -> None:
    """Sixteen frames with references are ten times what a socket takes; a send that waits would stop the cloud."""
    owner.wait_ready()
    pid = owner.pid()
    os.kill(pid, signal.SIGSTOP)
    # One object sixteen times would be pickled once; these are sixteen.
    frames = tuple(CodedFrame(ANSWER, os.urandom(150_000)) for _ in range(16))
    job = BatchJob(0, bytes(32), frames)
    assert owner.pool.submit(job, owner.now_ns) == 0
    owner.poll()
    assert owner.pool.links()[0].has_unsent
    os.kill(pid, signal.SIGCONT)
    owner.wait(lambda: len(owner.answers()) == 1)
    assert len(owner.answers()[0].answer.answers) == 16
    assert not owner.pool.links()[0].has_unsent


def test_stopped_worker_is_replaced(owner: Owner) -> None:
    owner.wait_ready()
    os.kill(owner.pid(), signal.SIGSTOP)
    owner.pool.submit(make_job(), owner.now_ns)
    owner.now_ns = BATCH_TIMEOUT_NS + 1
    owner.poll()
    assert [lost.reason for lost in owner.lost()] == [LossReason.HANG]
    owner.now_ns += FIRST_BACK_OFF_NS
    owner.poll()
    owner.wait_ready()


def test_back_off_grows_while_workers_die_young(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without processes: a machine that starts none."""

    def fail(process: object) -> None:
        raise OSError("too many processes")

    monkeypatch.setattr(pool_module, "start_shielded", fail)
    owner = Owner()
    waits_ns = []
    for _ in range(9):
        retry_ns = owner.pool.next_deadline()
        assert retry_ns is not None
        waits_ns.append(retry_ns - owner.now_ns)
        owner.now_ns = retry_ns
        owner.poll()
    assert waits_ns[:4] == [FIRST_BACK_OFF_NS, 2 * FIRST_BACK_OFF_NS, 4 * FIRST_BACK_OFF_NS, 8 * FIRST_BACK_OFF_NS]
    assert max(waits_ns) == MAX_BACK_OFF_NS
    assert {lost.reason for lost in owner.lost()} == {LossReason.CRASH}


def test_worker_that_lived_long_comes_back_soon(owner: Owner) -> None:
    for born_ns in (0, 10 * SECOND_NS):
        owner.now_ns = born_ns
        owner.poll()
        owner.wait_ready()
        owner.now_ns += HEALTHY_AFTER_NS + 1 if born_ns else 0
        os.kill(owner.pid(), signal.SIGKILL)
        owner.wait(lambda: owner.pool.count(SlotState.DEAD) == 1)
    assert owner.pool.next_deadline() == owner.now_ns + FIRST_BACK_OFF_NS


def test_worker_that_dies_before_it_is_ready_is_lost() -> None:
    owner = Owner(spec=STILLBORN)
    owner.wait(lambda: len(owner.lost()) == 1)
    assert owner.lost() == [WorkerLost(0, LossReason.CRASH, 3, None)]


def test_worker_that_never_gets_ready_hangs(owner: Owner) -> None:
    os.kill(owner.pid(), signal.SIGSTOP)
    owner.now_ns = START_TIMEOUT_NS + 1
    owner.poll()
    assert [lost.reason for lost in owner.lost()] == [LossReason.HANG]


def test_signals_to_the_whole_group_leave_workers_to_the_front(owner: Owner) -> None:
    """Ctrl-C and a service manager's SIGTERM reach them too; the front still wants its batches answered."""
    owner.wait_ready()
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(owner.pid(), number)
    owner.pool.submit(make_job(PID), owner.now_ns)
    owner.wait(lambda: len(owner.answers()) == 1)
    assert owner.answers()[0].answer.answers == (str(owner.pid()),)


def test_batch_is_tried_elsewhere_where_there_is_an_elsewhere() -> None:
    owner = Owner(num_workers=2)
    try:
        owner.wait_ready(2)
        assert owner.pool.submit(make_job(HANG), 0, avoid=[0]) == 1
        assert owner.pool.submit(make_job(), 0, avoid=[0]) is None, "worker 1 will be free again"
        os.kill(owner.pid(1), signal.SIGKILL)
        owner.wait(lambda: owner.pool.count(SlotState.DEAD) == 1)
        assert owner.pool.submit(make_job(), 0, avoid=[0]) == 0, "nobody else is left"
    finally:
        owner.pool.kill()


def test_stop_ends_idle_workers_by_themselves_and_kills_the_rest() -> None:
    owner = Owner(num_workers=2)
    owner.wait_ready(2)
    pids = [owner.pid(0), owner.pid(1)]
    owner.pool.submit(make_job(HANG), 0)
    owner.pool.stop(time.monotonic_ns, time.monotonic_ns() + SECOND_NS // 2)
    assert not any(is_running(pid) for pid in pids)
    assert owner.pool.count(SlotState.DEAD) == 2


def test_worker_ends_with_its_link(owner: Owner) -> None:
    """However the front dies, no worker outlives it."""
    owner.wait_ready()
    process = owner.pool.slots[0].process
    assert process is not None
    owner.pool.links()[0].close()
    process.join(PATIENCE_S)
    assert process.exitcode == 0


@pytest.fixture
def links() -> Iterator[tuple[FrontLink, WorkerLink, socket.socket]]:
    front, end = worker_links()
    yield front, WorkerLink(end), end
    front.close()
    end.close()


def test_link_puts_messages_together_from_any_pieces(links: tuple[FrontLink, WorkerLink, socket.socket]) -> None:
    front, worker, end = links
    sent: list[bytes] = []

    class Recorder:
        def sendall(self, content: bytes) -> None:
            sent.append(content)

    WorkerLink(Recorder()).send({"a": 1})  # type: ignore[arg-type]
    got = []
    for byte in sent[0] + sent[0]:
        end.sendall(bytes([byte]))
        messages, is_open = front.receive()
        assert is_open
        got += messages
    assert got == [{"a": 1}, {"a": 1}]


def test_link_delivers_what_came_before_the_end(links: tuple[FrontLink, WorkerLink, socket.socket]) -> None:
    front, worker, end = links
    worker.send("last words")
    end.close()
    assert front.receive() == (["last words"], False)
    assert front.receive() == ([], False)
    front.send("too late")
    assert not front.has_unsent


def test_worker_end_says_that_the_front_is_gone(links: tuple[FrontLink, WorkerLink, socket.socket]) -> None:
    front, worker, _ = links
    front.send("job")
    front.close()
    assert worker.receive() == "job"
    with pytest.raises(EOFError):
        worker.receive()
