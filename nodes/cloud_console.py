"""What a person sees of the cloud: one line a second while frames flow; changes of state are in the log."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from rich.console import Console

from nodes.cloud import AnsweredFrame, AnswerWatcher, CloudFront
from nodes.pool import BatchDone, SlotState, WorkerLost, WorkerReady
from nodes.results import ResultSink
from pipeline.batching import Batch
from pipeline.cloud_actions import FrameArrived, SessionClosed, SessionOpened
from pipeline.ledger import Outcome

LINE_EVERY_NS = 1_000_000_000


class CloudConsole:
    """Prints a line a second while there is something to say."""

    def __init__(self, console: Console | None, first_ready: Callable[[], None] = lambda: None) -> None:
        """Join.

        Args:
            console: None: no lines, only the log.
            first_ready: called once, when the first worker can serve.
        """
        self._console = console
        self._first_ready: Callable[[], None] | None = first_ready
        self._front: CloudFront | None = None
        self._last_ns = 0
        self._outcomes: Counter[str] = Counter()
        self._batches = 0
        self._latency_ns = 0
        self._num_bytes = 0

    def attach(self, front: CloudFront) -> None:
        """Name the front whose state the lines tell."""
        self._front = front

    def received(self, frame: FrameArrived, depth: int | None) -> None:
        self._num_bytes += len(frame.frame.bitstream)

    def batch_formed(self, batch: Batch[FrameArrived]) -> None:
        self._batches += 1

    def batch_done(self, done: BatchDone, num_frames: int) -> None:
        """Counted with its frames."""

    def answered(self, answered: AnsweredFrame) -> None:
        self._outcomes[answered.outcome.value] += 1
        self._latency_ns += answered.answered_ns - answered.frame.received_ns

    def worker_ready(self, ready: WorkerReady) -> None:
        if self._first_ready is not None:
            self._first_ready()
            self._first_ready = None

    def worker_lost(self, lost: WorkerLost) -> None:
        """The log tells it."""

    def session_changed(self, action: SessionOpened | SessionClosed) -> None:
        """The log tells it."""

    def idle(self, now_ns: int) -> None:
        if self._last_ns == 0:
            self._last_ns = now_ns
        elapsed_s = (now_ns - self._last_ns) / 1e9
        if now_ns - self._last_ns < LINE_EVERY_NS:
            return
        self._last_ns = now_ns
        total = sum(self._outcomes.values())
        if total and self._console is not None and self._front is not None:
            workers = f"{self._front.pool.count(SlotState.BUSY)} of {len(self._front.pool.slots)} workers busy"
            others = {word: count for word, count in self._outcomes.items() if word != Outcome.OK.value}
            trouble = (
                f"  [yellow]{', '.join(f'{word} {count}' for word, count in others.items())}[/yellow]" if others else ""
            )
            self._console.print(
                f"{total / elapsed_s:6.1f} frames/s  batch {total / max(self._batches, 1):4.1f}"
                f"  {self._latency_ns / total / 1e6:5.1f} ms  {8 * self._num_bytes / elapsed_s / 1e3:6.0f} kbit/s"
                f"  {self._front.sessions.num_sessions} nodes  {workers}{trouble}",
                highlight=False,
            )
        self._outcomes.clear()
        self._batches = self._latency_ns = self._num_bytes = 0


class SinkWatcher(AnswerWatcher):
    """Passes every answered frame on to the result sinks."""

    def __init__(self, sinks: list[ResultSink]) -> None:
        self._sinks = sinks

    def answered(self, answered: AnsweredFrame) -> None:
        frame, answer = answered.frame, answered.answer
        line = {
            "node": frame.node,
            "camera": frame.camera,
            "sequence": frame.frame.sequence,
            "outcome": answered.outcome.value,
            "label": frame.frame.label,
            "classes": [
                {"index": top.index, "name": top.name, "probability": round(top.probability, 4)}
                for top in answer.classes
            ],
            "reference_top1": answer.reference_top1,
            "depth": answered.depth,
            "level": None if answered.level16 is None else answered.level16 / 16,
            "bytes": len(frame.frame.bitstream),
            "age_ms": round((answered.answered_ns - frame.born_ns) / 1e6, 2),
            "text": answer.text,
        }
        for sink in self._sinks:
            sink.put(line)
