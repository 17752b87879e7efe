"""The cloud's front: sessions, batches, workers, answers. One thread, one loop.

    ROUTER --FRAME--> sessions --> batcher --batch--> worker pool --classes--> sessions --RESULT--> ROUTER

The loop polls the socket and the workers' links and does what is due. What to do is decided by
`pipeline.cloud_session` and `pipeline.batching`; that every accepted frame is answered exactly once is held by
`pipeline.cloud_ledger`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import zmq

from nodes.frontdoor import FrontDoor
from nodes.offers import BundleOffers
from nodes.pool import BatchDone, PoolEvent, SlotState, WorkerLost, WorkerPool, WorkerReady
from nodes.worker import BatchJob, Panic
from pipeline.admission import Admission, Refusal
from pipeline.attempts import Attempt, Attempts, Loss, PoisonMemory
from pipeline.batching import Batch, Batcher
from pipeline.cloud_actions import Answer, ChunkWanted, CloudAction, FrameArrived, SendTo, SessionClosed, SessionOpened
from pipeline.cloud_ledger import CloudLedger
from pipeline.cloud_session import CloudSessions
from pipeline.decoding import Classes, CodedFrame
from pipeline.errors import WireError
from pipeline.ledger import Outcome
from pipeline.wire import TopClass, pack, parse

NS_PER_US = 1_000
NS_PER_MS = 1_000_000
MESSAGES_A_TURN = 256
"""Taken from the socket before workers get their turn."""
SESSION_TICK_NS = 100 * NS_PER_MS
LONGEST_POLL_MS = 100
WORKER_STOP_NS = 200 * NS_PER_MS
"""Idle workers end by themselves sooner. At the drain deadline the busy ones are killed: nobody waits for them."""


@dataclass(frozen=True, slots=True)
class AnsweredFrame:
    """One frame with its answer, for whoever watches.

    Attributes:
        outcome: as in the cloud's ledger; `unroutable` where the node was gone.
    """

    frame: FrameArrived
    answer: Answer
    outcome: Outcome
    depth: int | None
    level16: int | None
    answered_ns: int


class CloudWatcher(Protocol):
    """Is told what happens; shows it, logs it, counts it, passes it on. Nothing it does changes the stream."""

    def answered(self, answered: AnsweredFrame) -> None: ...

    def batch_formed(self, batch: Batch[FrameArrived]) -> None: ...

    def batch_done(self, done: BatchDone, num_frames: int) -> None: ...

    def worker_ready(self, ready: WorkerReady) -> None: ...

    def worker_lost(self, lost: WorkerLost) -> None: ...

    def session_changed(self, action: SessionOpened | SessionClosed) -> None: ...

    def received(self, frame: FrameArrived, depth: int | None) -> None: ...

    def idle(self, now_ns: int) -> None: ...


class AnswerWatcher:
    """A watcher for which only answers count: whoever extends it adds `answered`."""

    def batch_formed(self, batch: Batch[FrameArrived]) -> None:
        """Nothing."""

    def batch_done(self, done: BatchDone, num_frames: int) -> None:
        """Nothing."""

    def worker_ready(self, ready: WorkerReady) -> None:
        """Nothing."""

    def worker_lost(self, lost: WorkerLost) -> None:
        """Nothing."""

    def session_changed(self, action: SessionOpened | SessionClosed) -> None:
        """Nothing."""

    def received(self, frame: FrameArrived, depth: int | None) -> None:
        """Nothing."""

    def idle(self, now_ns: int) -> None:
        """Nothing."""


class CloudFront:
    """The loop and what it owns: socket, sessions, queue, workers, ledger."""

    def __init__(
        self,
        door: FrontDoor,
        sessions: CloudSessions,
        batcher: Batcher[FrameArrived],
        pool: WorkerPool,
        class_names: Sequence[str],
        watcher: CloudWatcher,
        max_age_ns: int | None = None,
        clock: Callable[[], int] = time.monotonic_ns,
        admission: Admission | None = None,
        offers: BundleOffers | None = None,
    ) -> None:
        """Join the parts.

        Args:
            offers: bundles for nodes that fetch them; None: they bring their own.
            admission: who is heard, and how much; by default everybody, within wide limits.
            class_names: of every index that a worker may answer with.
            max_age_ns: beyond which a frame is not tried a second time; the batcher has the same for the first.
        """
        self.door, self.sessions, self.batcher, self.pool = door, sessions, batcher, pool
        self.ledger = CloudLedger()
        self._admission = admission or Admission()
        self._offers = offers
        self._class_names = class_names
        self._watcher = watcher
        self._max_age_ns = max_age_ns
        self._clock = clock
        self._attempts: Attempts[FrameArrived] = Attempts()
        self._poisons = PoisonMemory()
        self._next_tick_ns = 0

    def obstacles(self) -> list[str]:
        """What is in the way of serving; nothing means ready."""
        if self.sessions.is_draining:
            return ["stopping"]
        if self.pool.count(SlotState.READY) + self.pool.count(SlotState.BUSY) > 0:
            return []
        starting, dead = self.pool.count(SlotState.STARTING), self.pool.count(SlotState.DEAD)
        return [f"no worker can serve: {starting} starting, {dead} lost and waiting for their next start"]

    def run(self, should_stop: Callable[[], bool], stop_fd: int, drain_ns: int) -> None:
        """Serve until told to stop, then finish what was accepted, for at most `drain_ns`."""
        self._take_events(self.pool.start(self._clock()))
        while not should_stop():
            self._turn(stop_fd)
        self._drain(drain_ns)

    def _turn(self, stop_fd: int | None) -> None:
        self._wait(stop_fd)
        for routing_id, parts in self.door.receive(MESSAGES_A_TURN):
            self._receive(routing_id, parts)
        self._take_events(self.pool.poll(self._clock()))
        now_ns = self._clock()
        for stale in self.batcher.take_stale(now_ns):
            self._answer(stale, Answer(Outcome.STALE, text="older than max age"))
        self._hand_out()
        now_ns = self._clock()
        if now_ns >= self._next_tick_ns:
            self._next_tick_ns = now_ns + SESSION_TICK_NS
            for connection in self._admission.revoked():
                self._perform(self.sessions.revoke(connection, "the key of this node is no longer allowed"))
            if self._offers is not None:
                self._perform(self.sessions.change_offer(self._offers.current()))
            self._perform(self.sessions.tick(now_ns))
        self._watcher.idle(now_ns)

    def _take_events(self, events: Sequence[PoolEvent]) -> None:
        for event in events:
            match event:
                case BatchDone():
                    self._finish_batch(event)
                case WorkerLost():
                    self._lose_worker(event)
                case WorkerReady():
                    self._watcher.worker_ready(event)

    def _wait(self, stop_fd: int | None) -> None:
        poller = zmq.Poller()
        poller.register(self.door.socket, zmq.POLLIN)
        if stop_fd is not None:
            poller.register(stop_fd, zmq.POLLIN)
        for link in self.pool.links():
            poller.register(link.fileno(), zmq.POLLIN | (zmq.POLLOUT if link.has_unsent else 0))
        idle = self.pool.count(SlotState.READY)
        deadlines = (self.batcher.next_deadline_ns(idle), self.pool.next_deadline(), self._next_tick_ns)
        due_ns = min(deadline for deadline in deadlines if deadline is not None)
        timeout_ms = max(0, min(LONGEST_POLL_MS, -(-(due_ns - self._clock()) // NS_PER_MS)))
        poller.poll(timeout_ms)

    def _receive(self, routing_id: bytes, parts: list[bytes]) -> None:
        now_ns = self._clock()
        refusal = self._admission.weigh(routing_id, sum(map(len, parts)), now_ns)
        if refusal is not None:
            self._refuse(routing_id, refusal)
            return
        try:
            message = parse(parts)
        except WireError as error:
            self._perform(self.sessions.malformed(routing_id, error))
            return
        admitted = self._admission.admit(routing_id, message, now_ns)
        if isinstance(admitted, Refusal):
            self._refuse(routing_id, admitted)
        else:
            self._perform(self.sessions.receive(routing_id, admitted, now_ns))

    def _refuse(self, routing_id: bytes, refusal: Refusal) -> None:
        if refusal.code is not None:
            self._perform(self.sessions.turn_away(routing_id, refusal.code, refusal.text))
        if refusal.ends_connection:
            self.door.end_last_connection()

    def _perform(self, actions: Sequence[CloudAction]) -> None:
        for action in actions:
            match action:
                case SendTo():
                    self._send(action)
                case FrameArrived():
                    self._accept(action)
                case SessionOpened() | SessionClosed():
                    self._admission.note(action, self._clock())
                    self._watcher.session_changed(action)
                case ChunkWanted():
                    self._send_chunk(action)

    def _send_chunk(self, wanted: ChunkWanted) -> None:
        """Answer a request for a piece of a bundle; the node repeats one that cannot be answered."""
        chunk = None if self._offers is None else self._offers.chunk(wanted.request)
        if chunk is not None:
            self._send(SendTo(wanted.routing_id, chunk))

    def _send(self, action: SendTo) -> bool:
        if self.door.send(action.routing_id, pack(action.message)):
            return True
        self._perform(self.sessions.link_lost(action.routing_id))
        return False

    def _accept(self, frame: FrameArrived) -> None:
        self.ledger.receive(frame.ticket)
        self._watcher.received(frame, peek_operating_point(frame.frame.bitstream)[0])
        if self._poisons.knows(frame.frame.bitstream, frame.frame.reference, self._clock()):
            self._answer(frame, Answer(Outcome.POISON, text="the same bytes broke workers before"))
            return
        refusal = self.batcher.offer(
            frame,
            node=frame.node,
            camera=frame.camera,
            bundle_id=frame.bundle_id,
            now_ns=self._clock(),
            born_ns=frame.born_ns,
        )
        if refusal is not None:
            self._answer(frame, Answer(refusal.outcome, text=refusal.value))

    def _hand_out(self) -> None:
        """Give batches to idle workers, those that lost their worker first."""
        while (waiting := self._attempts.next_waiting()) is not None:
            attempt = self._without_stale(waiting)
            if attempt.items and not self._submit(attempt):
                break
        while (formed := self.batcher.next_batch(self._clock(), self.pool.count(SlotState.READY))) is not None:
            self._watcher.batch_formed(formed)
            self._submit(self._attempts.form(formed.bundle_id, formed.items, self._clock()))

    def _submit(self, attempt: Attempt[FrameArrived]) -> bool:
        job = BatchJob(attempt.number, attempt.bundle_id, _coded(attempt.items))
        is_taken = self.pool.submit(job, self._clock(), attempt.tried_slots) is not None
        if is_taken:
            self._attempts.open(attempt)
        else:
            self._attempts.wait(attempt)
        return is_taken

    def _without_stale(self, attempt: Attempt[FrameArrived]) -> Attempt[FrameArrived]:
        """The batch without frames that grew too old since their worker was lost; they are answered so."""
        if self._max_age_ns is None or attempt.is_suspect:
            return attempt
        oldest_ns = self._clock() - self._max_age_ns
        fresh = tuple(frame for frame in attempt.items if frame.born_ns > oldest_ns)
        for frame in attempt.items:
            if frame.born_ns <= oldest_ns:
                self._answer(frame, Answer(Outcome.STALE, text="older than max age after its worker was lost"))
        return replace(attempt, items=fresh)

    def _finish_batch(self, done: BatchDone) -> None:
        attempt = self._attempts.finish(done.answer.number)
        begun_ns = self._clock()
        timings = done.answer.timings
        for frame, answer in zip(attempt.items, done.answer.answers, strict=True):
            plain = Answer(
                Outcome.CORRUPT,
                queue_us=(attempt.begun_ns - frame.received_ns) // NS_PER_US,
                decode_us=timings.entropy_decode_ns // NS_PER_US,
                classify_us=timings.classify_ns // NS_PER_US,
                batch_frames=len(attempt.items),
            )
            if isinstance(answer, Classes):
                self._answer(frame, self._with_classes(plain, answer))
            elif isinstance(answer, Panic):
                self._answer_poison(frame, replace(plain, outcome=Outcome.POISON, text=answer.text))
            else:
                self._answer(frame, replace(plain, text=answer))
        self._watcher.batch_done(replace(done, reply_ns=self._clock() - begun_ns), len(attempt.items))

    def _with_classes(self, plain: Answer, classes: Classes) -> Answer:
        top = tuple(
            TopClass(index, self._class_names[index], probability)
            for index, probability in zip(classes.indices, classes.probabilities, strict=True)
        )
        return replace(plain, outcome=Outcome.OK, classes=top, reference_top1=classes.reference_top1)

    def _lose_worker(self, lost: WorkerLost) -> None:
        self._watcher.worker_lost(lost)
        if lost.job is None:
            return
        blame = self._attempts.lose(lost.job.number, Loss(lost.slot, lost.is_killed))
        if blame is None:
            return
        answer = Answer(blame.outcome, text=blame.text)
        if blame.outcome is Outcome.POISON:
            self._answer_poison(blame.item, answer)
        else:
            self._answer(blame.item, answer)

    def _answer_poison(self, frame: FrameArrived, answer: Answer) -> None:
        self._poisons.add(frame.frame.bitstream, frame.frame.reference, self._clock())
        self._answer(frame, answer)

    def _answer(self, frame: FrameArrived, answer: Answer) -> None:
        """Answer a frame and close its ledger entry, whether or not its node can still be reached."""
        now_ns = self._clock()
        action = self.sessions.answer(frame.ticket, answer, now_ns)
        is_routed = action is not None and self._send(action)
        outcome = answer.outcome if is_routed else Outcome.UNROUTABLE
        self.ledger.close(frame.ticket, outcome)
        depth, level16 = peek_operating_point(frame.frame.bitstream)
        self._watcher.answered(AnsweredFrame(frame, answer, outcome, depth, level16, now_ns))

    def _drain(self, drain_ns: int) -> None:
        """Finish what was accepted, then say goodbye; what is left at the deadline is answered `shutdown`."""
        deadline_ns = self._clock() + drain_ns
        self.sessions.drain()
        self.batcher.close()
        while self.ledger.in_flight and self._clock() < deadline_ns:
            self._turn(None)
        patience_ns = 0 if self.ledger.in_flight else WORKER_STOP_NS
        for frame in (*self.batcher.take_all(), *self._attempts.take_all()):
            self._answer(frame, Answer(Outcome.SHUTDOWN, text="the cloud stops"))
        self._perform(self.sessions.close("the cloud stops"))
        self.pool.stop(self._clock, self._clock() + patience_ns)
        self.ledger.check_balance()


def _coded(frames: Sequence[FrameArrived]) -> tuple[CodedFrame, ...]:
    return tuple(CodedFrame(item.frame.bitstream, item.frame.reference) for item in frames)


def peek_operating_point(bitstream: bytes) -> tuple[int | None, int | None]:
    """Depth and level16 from a bitstream's header without checking it; for labels, never for decisions."""
    return (bitstream[10], bitstream[11]) if len(bitstream) >= 12 else (None, None)
