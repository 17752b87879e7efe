"""How many frames one node may have on the way: as many as fill its link, about doubled, and no more.

What is on the way when a link is just full is rate x delay. The rate is the fastest at which answers lately went to
this node. The delay is the smallest round trip plus the smallest time that a frame lately took here without waiting for
its turn, so that a queue, ours or the network's, never asks for more of itself. Twice that, because answers come in
batches, and because a node that the window holds back can show by a higher rate that there is more room: the window
then doubles with each round, until the rate stops rising.

Source: the model of BBR (Cardwell and others, 2016), with credit in the place of a congestion window.
"""

from __future__ import annotations

from collections import deque

NS_PER_S = 1_000_000_000
GAIN = 2
# A rate over less than this is chance; sixteen of them are four seconds, after which a burst is forgotten.
MIN_EPOCH_NS = NS_PER_S // 4
RATE_SAMPLES = 16
# The smallest of so many answers: a few batches.
DELAY_SAMPLES = 64


class CreditWindow:
    """The window of one session.

    Args:
        floor: frames it never goes below, whatever was measured.
        ceiling: frames it never goes above.
        now_ns: the session's start.
    """

    def __init__(self, floor: int, ceiling: int, now_ns: int) -> None:
        self._floor = floor
        self._ceiling = max(floor, ceiling)
        self._epoch_ns = now_ns
        self._num_answers = 0
        self._rates: deque[float] = deque(maxlen=RATE_SAMPLES)
        self._delays: deque[int] = deque(maxlen=DELAY_SAMPLES)
        self._frames = floor

    @property
    def frames(self) -> int:
        """The window now."""
        return self._frames

    def answer(self, busy_ns: int, round_trip_ns: int, now_ns: int) -> None:
        """Note an answer.

        Args:
            busy_ns: receipt of the frame to its answer, without the time that it waited for its turn.
            round_trip_ns: smallest recent round trip; 0 while it is not known.
        """
        self._num_answers += 1
        self._delays.append(busy_ns)
        delay_ns = round_trip_ns + min(self._delays)
        elapsed_ns = now_ns - self._epoch_ns
        if elapsed_ns < max(MIN_EPOCH_NS, delay_ns):
            return
        self._rates.append(self._num_answers / elapsed_ns)
        self._epoch_ns, self._num_answers = now_ns, 0
        wanted = round(GAIN * max(self._rates) * delay_ns)
        self._frames = max(self._floor, min(self._ceiling, wanted))
