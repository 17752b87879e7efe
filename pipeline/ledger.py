"""What became of every frame: one entry each, closed exactly once.

At any time, per camera and in total: captured + recovered = results + dropped + in flight, where recovered are
the frames that an earlier run left in the node's spool. Metrics and summaries are read from here and never
counted a second time. Only open entries are stored; closed ones live on as totals, and
the last `RECENT_SENT` sent ones of a camera as bare sequence numbers, so that a late or repeated RESULT is
told from one that the cloud made up.

This is the node's; `pipeline.cloud_ledger` is the cloud's for what it received, with the same words.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from pipeline.errors import LedgerError
from pipeline.percentiles import SampleWindow
from pipeline.totals import CameraTotals, CodedTotals, LedgerSnapshot, add_totals

# Late RESULTs come within seconds of their frame's end; 1,024 is what the cloud remembers too.
RECENT_SENT = 1024
# Open entries are bounded by credit and spool; more than this is a leak of ours, to be found before memory is
# gone.
MAX_OPEN_FRAMES = 65_536
# Percentiles are over the newest samples: deterministic, and 4,096 cover over a minute at 60 frames a second.
LATENCY_SAMPLES = 4096
CAMERA_LATENCY_SAMPLES = 1024
# Levels travel in steps of 1/16; totals are kept by whole level so that their number stays small.
LEVEL_STEPS = 16


class Outcome(StrEnum):
    """How a frame ended. The values are the words of metrics, JSON and RESULT messages."""

    OK = "ok"
    # Closed by the node.
    SUPERSEDED = "superseded"
    NO_CREDIT = "no_credit"
    LINK_DOWN = "link_down"
    RATE_LIMIT = "rate_limit"
    OVER_BUDGET = "over_budget"
    OVERSIZE = "oversize"
    ENCODE_ERROR = "encode_error"
    SPOOL_FULL = "spool_full"
    EXPIRED = "expired"
    LOST_IN_LINK = "lost_in_link"
    # Closed by the cloud, by RESULT.
    REJECTED = "rejected"
    CORRUPT = "corrupt"
    POISON = "poison"
    STALE = "stale"
    WORKER_LOST = "worker_lost"
    REFERENCE_LOST = "reference_lost"
    # Closed by either, at the drain deadline.
    SHUTDOWN = "shutdown"
    # The cloud's own: the session was gone when the answer was ready. Never travels.
    UNROUTABLE = "unroutable"


#: What a RESULT may carry.
RESULT_OUTCOMES = frozenset(
    {
        Outcome.OK,
        Outcome.REJECTED,
        Outcome.CORRUPT,
        Outcome.POISON,
        Outcome.STALE,
        Outcome.WORKER_LOST,
        Outcome.REFERENCE_LOST,
        Outcome.SHUTDOWN,
    }
)
#: How a frame may end in the cloud's ledger.
CLOUD_OUTCOMES = RESULT_OUTCOMES | {Outcome.UNROUTABLE}
#: What a node may close a frame with by itself; corrupt: its bytes were damaged in the node's spool.
NODE_DROPS = (frozenset(Outcome) - CLOUD_OUTCOMES) | {Outcome.SHUTDOWN, Outcome.CORRUPT}


@dataclass(frozen=True, slots=True)
class ClosedFrame:
    """A frame that has just ended, as histograms want it.

    Attributes:
        depth: exit it was coded at; None when it was never sent.
        latency_ns: capture to end; None when an earlier run captured it, on a clock that means nothing now.
        round_trip_ns: sending to end; None when it was never sent.
    """

    camera: str
    sequence: int
    outcome: Outcome
    label: int | None
    depth: int | None
    level: int | None
    latency_ns: int | None
    round_trip_ns: int | None


@dataclass(slots=True)
class _Entry:
    camera: str
    sequence: int
    captured_ns: int | None
    label: int | None
    is_kept: bool = False
    sent_ns: int | None = None
    depth: int | None = None
    level: int | None = None


@dataclass(slots=True)
class _Camera:
    """One camera's counts and open entries.

    Attributes:
        open: by sequence.
        recent: ended frames that had been sent, oldest first, with whether a RESULT ended them.
        coded: [frames, bitstream bytes, coded pixels] by (depth, level).
    """

    totals: CameraTotals = field(default_factory=CameraTotals)
    last_sequence: int = -1
    open: dict[int, _Entry] = field(default_factory=dict)
    recent: OrderedDict[int, bool] = field(default_factory=OrderedDict)
    coded: dict[tuple[int, int], list[int]] = field(default_factory=dict)
    latency: SampleWindow = field(default_factory=lambda: SampleWindow(CAMERA_LATENCY_SAMPLES))

    def drop(self, outcome: Outcome, frames: int) -> None:
        self.totals.dropped[outcome.value] = self.totals.dropped.get(outcome.value, 0) + frames

    def snapshot(self) -> CameraTotals:
        return replace(
            self.totals,
            dropped=dict(self.totals.dropped),
            in_flight=len(self.open),
            unanswered=sum(entry.sent_ns is not None for entry in self.open.values()),
        )


class Ledger:
    """The node's ledger. Owned by one thread; every call either does all of its change or raises.

    Args:
        cameras: names known from the start, so that their totals show zero before the first frame.
        max_open: open entries above which `capture` raises.
    """

    def __init__(self, cameras: Iterable[str] = (), *, max_open: int = MAX_OPEN_FRAMES) -> None:
        self._cameras: dict[str, _Camera] = {name: _Camera() for name in cameras}
        self._max_open = max_open
        self._num_open = 0
        self._peak_open = 0
        # Sent and unanswered entries in the order of sending, which is the order in which they expire.
        self._sent: OrderedDict[tuple[str, int], _Entry] = OrderedDict()
        self._latency = SampleWindow(LATENCY_SAMPLES)

    def __repr__(self) -> str:
        captured = sum(state.totals.captured for state in self._cameras.values())
        return f"<Ledger {captured} captured, {self._num_open} in flight, {len(self._sent)} unanswered>"

    def add_camera(self, camera: str) -> None:
        """Show a camera in the totals before its first frame; a known one stays as it is."""
        self._cameras.setdefault(camera, _Camera())

    def capture(self, camera: str, sequence: int, captured_ns: int, label: int | None = None) -> None:
        """Open the entry of a captured frame.

        Raises:
            LedgerError: the sequence does not rise, or too many entries are open.
        """
        self._open(camera, sequence, _Entry(camera, sequence, captured_ns, label))
        self._cameras[camera].totals.captured += 1

    def recover(self, camera: str, sequence: int, label: int | None = None) -> None:
        """Open the entry of a frame that an earlier run left in the spool; it is kept.

        Raises:
            LedgerError: as for `capture`.
        """
        self._open(camera, sequence, _Entry(camera, sequence, None, label, is_kept=True))
        self._cameras[camera].totals.recovered += 1

    def keep(self, camera: str, sequence: int) -> None:
        """Note that an open frame is in the spool: neither a session's end nor the run's end ends it.

        Raises:
            LedgerError: the frame is not open.
        """
        self._open_entry(camera, sequence).is_kept = True

    def skip(self, camera: str, first: int, last: int, outcome: Outcome) -> None:
        """Open and close the frames first..last, of which only the numbers are known; none if last < first.

        Raises:
            LedgerError: the sequences do not rise, or the outcome is not the node's to give.
        """
        check_outcome(outcome, NODE_DROPS)
        if last < first:
            return
        state = self._rising(camera, first)
        state.last_sequence = last
        state.totals.captured += last - first + 1
        state.drop(outcome, last - first + 1)

    def send(
        self,
        camera: str,
        sequence: int,
        now_ns: int,
        *,
        depth: int,
        level16: int,
        bitstream_bytes: int,
        coded_pixels: int,
        wire_bytes: int = 0,
    ) -> None:
        """Note that an open frame went to the link: from now on it can expire, be lost or be answered.

        Raises:
            LedgerError: the frame is not open or was sent before.
        """
        entry = self._open_entry(camera, sequence)
        if entry.sent_ns is not None:
            raise LedgerError(f"frame {sequence} of {camera} was sent twice")
        state = self._cameras[camera]
        entry.sent_ns, entry.depth, entry.level = now_ns, depth, round(level16 / LEVEL_STEPS)
        self._sent[camera, sequence] = entry
        state.totals.sent += 1
        state.totals.bitstream_bytes += bitstream_bytes
        state.totals.coded_pixels += coded_pixels
        state.totals.wire_sent_bytes += wire_bytes
        coded = state.coded.setdefault((entry.depth, entry.level), [0, 0, 0])
        coded[0] += 1
        coded[1] += bitstream_bytes
        coded[2] += coded_pixels

    def drop(self, camera: str, sequence: int, outcome: Outcome, now_ns: int) -> ClosedFrame:
        """Close an open frame for a reason of the node's own.

        Raises:
            LedgerError: the frame is not open, or the outcome is not the node's to give.
        """
        check_outcome(outcome, NODE_DROPS)
        return self._close(self._open_entry(camera, sequence), outcome, now_ns, by_result=False)

    def answer(
        self,
        camera: str,
        sequence: int,
        outcome: Outcome,
        now_ns: int,
        *,
        classes: Sequence[int] = (),
        reference_top1: int | None = None,
        wire_bytes: int = 0,
    ) -> ClosedFrame | None:
        """Close a sent frame by its RESULT; one that no frame waits for is counted outside the balance.

        Args:
            camera: a known camera (`session` checks the peer's number).
            classes: class indices, best first.
            reference_top1: what the uncompressed classifier said about the same view.
        Returns:
            The closed frame, or None for a late, repeated or unknown RESULT.
        Raises:
            LedgerError: unknown camera, or an outcome that a RESULT cannot carry.
        """
        check_outcome(outcome, RESULT_OUTCOMES)
        state = self._known(camera)
        state.totals.wire_received_bytes += wire_bytes
        entry = self._sent.get((camera, sequence))
        if entry is None:
            self._count_stray(state, sequence)
            return None
        if outcome is Outcome.OK:
            self._count_accuracy(state.totals, entry.label, classes, reference_top1)
        return self._close(entry, outcome, now_ns, by_result=True)

    def expire(self, now_ns: int, timeout_ns: int) -> list[ClosedFrame]:
        """Close frames that were sent at least `timeout_ns` ago and have no RESULT, as expired."""
        expired = []
        while self._sent:
            entry = next(iter(self._sent.values()))
            assert entry.sent_ns is not None
            if now_ns - entry.sent_ns < timeout_ns:
                break
            expired.append(self._close(entry, Outcome.EXPIRED, now_ns, by_result=False))
        return expired

    def next_expiry_ns(self, timeout_ns: int) -> int | None:
        """When `expire` has something to close at the earliest; None while nothing is unanswered."""
        entry = next(iter(self._sent.values()), None)
        return None if entry is None or entry.sent_ns is None else entry.sent_ns + timeout_ns

    def unsend(self, camera: str, sequence: int) -> None:
        """Take back a kept frame that was sent: it waits to be sent again.

        Raises:
            LedgerError: the frame is not kept, or was not sent.
        """
        entry = self._open_entry(camera, sequence)
        if not entry.is_kept or entry.sent_ns is None:
            raise LedgerError(f"frame {sequence} of {camera} is not to be sent again: {entry}")
        entry.sent_ns = None
        del self._sent[camera, sequence]

    def is_kept_and_sent(self, camera: str, sequence: int) -> bool:
        """Whether a frame is in the spool and waits for its RESULT, so that `unsend` may take it back."""
        entry = self._sent.get((camera, sequence))
        return entry is not None and entry.is_kept

    def lose_link(self, now_ns: int) -> list[ClosedFrame]:
        """Close every sent frame as lost in the link, but for kept ones, which wait to be sent again: call it
        whenever a session ends."""
        closed = []
        for entry in list(self._sent.values()):
            if entry.is_kept:
                self.unsend(entry.camera, entry.sequence)
            else:
                closed.append(self._close(entry, Outcome.LOST_IN_LINK, now_ns, by_result=False))
        return closed

    def close_all(self, outcome: Outcome, now_ns: int) -> list[ClosedFrame]:
        """Close every open frame that is not kept, sent or not: the end of a run, or of a camera's time.

        Raises:
            LedgerError: the outcome is not the node's to give.
        """
        check_outcome(outcome, NODE_DROPS)
        entries = [entry for state in self._cameras.values() for entry in state.open.values() if not entry.is_kept]
        return [self._close(entry, outcome, now_ns, by_result=False) for entry in entries]

    @property
    def in_flight(self) -> int:
        return self._num_open

    @property
    def unanswered(self) -> int:
        return len(self._sent)

    def latency_samples_ns(self) -> list[int]:
        """Capture to result of the newest results, for whoever joins several ledgers."""
        return self._latency.samples()

    def dropped(self, camera: str) -> dict[str, int]:
        """Dropped frames of a camera by reason, as in a snapshot but for much less work."""
        return dict(self._known(camera).totals.dropped)

    def snapshot(self) -> LedgerSnapshot:
        """Totals of this moment; the balance is checked first.

        Raises:
            LedgerError: the balance does not hold.
        """
        self.check_balance()
        cameras = {name: state.snapshot() for name, state in self._cameras.items()}
        medians = {name: state.latency.percentile(50) for name, state in self._cameras.items()}
        return LedgerSnapshot(
            total=add_totals(cameras.values()),
            cameras=cameras,
            coded={
                (name, depth, level): CodedTotals(*coded)
                for name, state in self._cameras.items()
                for (depth, level), coded in state.coded.items()
            },
            latency_p50_ns=self._latency.percentile(50),
            latency_p99_ns=self._latency.percentile(99),
            camera_latency_p50_ns={name: median for name, median in medians.items() if median is not None},
            peak_in_flight=self._peak_open,
        )

    def check_balance(self) -> None:
        """Compare the counts with the entries that are really open.

        Raises:
            LedgerError: captured + recovered = results + dropped + in flight does not hold for some camera.
        """
        for name, state in self._cameras.items():
            totals, dropped, num_open = state.totals, sum(state.totals.dropped.values()), len(state.open)
            if totals.captured + totals.recovered != totals.results + dropped + num_open:
                raise LedgerError(
                    f"{name}: {totals.captured} captured and {totals.recovered} recovered, but {totals.results} results"
                    f" + {dropped} dropped + {num_open} in flight"
                )
        if self._num_open != sum(len(state.open) for state in self._cameras.values()):
            raise LedgerError(f"{self._num_open} frames counted in flight, but another number is open")

    def _known(self, camera: str) -> _Camera:
        state = self._cameras.get(camera)
        if state is None:
            raise LedgerError(f"camera {camera} has no frames here")
        return state

    def _rising(self, camera: str, sequence: int) -> _Camera:
        state = self._cameras.setdefault(camera, _Camera())
        if sequence <= state.last_sequence:
            raise LedgerError(f"frame {sequence} of {camera} was opened after frame {state.last_sequence}")
        return state

    def _open(self, camera: str, sequence: int, entry: _Entry) -> None:
        state = self._rising(camera, sequence)
        if self._num_open >= self._max_open:
            raise LedgerError(f"{self._num_open} frames are open at once: entries are not being closed")
        state.last_sequence = sequence
        state.open[sequence] = entry
        self._num_open += 1
        self._peak_open = max(self._peak_open, self._num_open)

    def _open_entry(self, camera: str, sequence: int) -> _Entry:
        entry = self._known(camera).open.get(sequence)
        if entry is None:
            raise LedgerError(f"frame {sequence} of {camera} is not open: never captured, or closed before")
        return entry

    def _close(self, entry: _Entry, outcome: Outcome, now_ns: int, *, by_result: bool) -> ClosedFrame:
        state = self._cameras[entry.camera]
        del state.open[entry.sequence]
        self._num_open -= 1
        latency_ns = None if entry.captured_ns is None else now_ns - entry.captured_ns
        if entry.sent_ns is not None:
            del self._sent[entry.camera, entry.sequence]
            state.recent[entry.sequence] = by_result
            if len(state.recent) > RECENT_SENT:
                state.recent.popitem(last=False)
        if outcome is Outcome.OK:
            totals = state.totals
            totals.results += 1
            totals.first_result_ns = now_ns if totals.first_result_ns is None else totals.first_result_ns
            totals.last_result_ns = now_ns
            if latency_ns is not None:
                state.latency.add(latency_ns)
                self._latency.add(latency_ns)
        else:
            state.drop(outcome, 1)
        return ClosedFrame(
            camera=entry.camera,
            sequence=entry.sequence,
            outcome=outcome,
            label=entry.label,
            depth=entry.depth,
            level=entry.level,
            latency_ns=latency_ns,
            round_trip_ns=None if entry.sent_ns is None else now_ns - entry.sent_ns,
        )

    @staticmethod
    def _count_stray(state: _Camera, sequence: int) -> None:
        # Remembered: ended by a RESULT (repeated) or without one (late). Older than the memory: late, as far
        # as can be known. In the future, still at the node, or never sent: the cloud cannot have seen it.
        answered = state.recent.get(sequence)
        if answered is not None:
            state.totals.repeated += answered
            state.totals.late += not answered
        elif sequence not in state.open and sequence < next(iter(state.recent), 0):
            state.totals.late += 1
        else:
            state.totals.unknown += 1

    @staticmethod
    def _count_accuracy(
        totals: CameraTotals, label: int | None, classes: Sequence[int], reference_top1: int | None
    ) -> None:
        top1 = classes[0] if classes else None
        if label is not None:
            totals.labelled += 1
            totals.correct_top1 += top1 == label
            totals.correct_top5 += label in classes[:5]
        if reference_top1 is not None:
            totals.references += 1
            totals.agreements += top1 == reference_top1
            if label is not None:
                totals.labelled_references += 1
                totals.reference_correct += reference_top1 == label


def check_outcome(outcome: Outcome, allowed: frozenset[Outcome]) -> None:
    """Raise LedgerError unless the outcome is one of the allowed."""
    if outcome not in allowed:
        raise LedgerError(f"outcome {outcome.value} cannot be given here")
