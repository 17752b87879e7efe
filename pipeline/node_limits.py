"""How much one node may send: token buckets for frames, bytes and messages. Time is passed in.

    within its limits --a bucket is empty--> cut off --cut_off_ns later--> within its limits

A peer that is cut off is not listened to, apart from one message a second, so that a node that comes back too
early can be told why. Every peer has buckets of its own: what one of them does takes nothing from the others.
Buckets hold two seconds' worth, and the credit window on top: what a stalled network delivers at once was sent
within the limits.

Who a peer is, is for the caller to say: a node's key where there are keys, else a connection.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

NS_PER_S = 1_000_000_000

BURST_S = 2.0
# Beside frames: heartbeats both ways, a handshake, and pieces of a bundle, of which 100 a second are 12 MB/s.
OTHER_MESSAGES_PER_SECOND = 100.0
HEARING_EVERY_NS = NS_PER_S
# What an honest node has on the way when it is told comes on top of it: its credit window.
IGNORED_MESSAGES = 100
# Ending a connection also ends what is still on its way to the peer: why it was cut off must have time to leave.
TELLING_NS = NS_PER_S
# Peers are nodes on the allow-list, or connections: those without a session are remembered up to here.
MAX_PEERS = 4096


@dataclass(frozen=True, slots=True)
class LimitSettings:
    """Limits of every peer.

    Attributes:
        window_frames: credit that one session may have: so many frames may come at once whatever the rate.
        message_bytes: largest sum of a message's parts.
    """

    frames_per_second: float = 1000.0
    bytes_per_second: float = 125e6
    message_bytes: int = 256 * 1024
    window_frames: int = 8
    cut_off_ns: int = 30 * NS_PER_S


class TokenBucket:
    """Fills at a rate up to a capacity; starts full."""

    __slots__ = ("_capacity", "_filled_ns", "_level", "_rate")

    def __init__(self, rate: float, capacity: float, now_ns: int) -> None:
        self._rate, self._capacity = rate, capacity
        self._level, self._filled_ns = capacity, now_ns

    def take(self, amount: float, now_ns: int) -> bool:
        """Take an amount; False, and nothing taken, where there is not so much."""
        elapsed_ns = max(0, now_ns - self._filled_ns)
        self._level = min(self._capacity, self._level + self._rate * elapsed_ns / NS_PER_S)
        self._filled_ns = max(self._filled_ns, now_ns)
        if amount > self._level:
            return False
        self._level -= amount
        return True


@dataclass(slots=True)
class _Peer:
    frames: TokenBucket
    num_bytes: TokenBucket
    messages: TokenBucket
    cut_until_ns: int | None = None
    broken: str = ""
    next_hearing_ns: int = 0
    ignored: int = 0


class NodeLimits:
    """Buckets and sentences of all peers."""

    def __init__(self, settings: LimitSettings) -> None:
        self._settings = settings
        self._peers: OrderedDict[bytes, _Peer] = OrderedDict()

    def __len__(self) -> int:
        return len(self._peers)

    def arrive(self, peer: bytes, num_bytes: int, now_ns: int) -> str | None:
        """Count a message of any kind.

        Returns:
            Which limit it breaks, in words; None where it breaks none. Breaking one cuts the peer off.
        """
        settings, entry = self._settings, self._entry(peer, now_ns)
        if num_bytes > settings.message_bytes:
            return self._cut_off(entry, f"a message of more than {settings.message_bytes} bytes", now_ns)
        if not entry.num_bytes.take(num_bytes, now_ns):
            return self._cut_off(entry, f"more than {settings.bytes_per_second:.0f} bytes a second", now_ns)
        if not entry.messages.take(1, now_ns):
            limit = settings.frames_per_second + OTHER_MESSAGES_PER_SECOND
            return self._cut_off(entry, f"more than {limit:g} messages a second", now_ns)
        return None

    def count_frame(self, peer: bytes, now_ns: int) -> str | None:
        """Count one of the messages as a frame; returns as `arrive`."""
        entry = self._entry(peer, now_ns)
        if entry.frames.take(1, now_ns):
            return None
        return self._cut_off(entry, f"more than {self._settings.frames_per_second:g} frames a second", now_ns)

    def cut_off_text(self, peer: bytes, now_ns: int) -> str | None:
        """Why a peer is cut off, and for how long; None when it is not."""
        entry = self._peers.get(peer)
        if entry is None or entry.cut_until_ns is None:
            return None
        if now_ns >= entry.cut_until_ns:
            entry.cut_until_ns = None
            return None
        left_s = -(-(entry.cut_until_ns - now_ns) // NS_PER_S)
        return f"{entry.broken}: not listened to for {left_s} s"

    def is_heard(self, peer: bytes, now_ns: int) -> bool:
        """Whether a message of a peer that is cut off should be looked at: one a second."""
        entry = self._entry(peer, now_ns)
        if now_ns < entry.next_hearing_ns:
            entry.ignored += 1
            return False
        entry.next_hearing_ns = now_ns + HEARING_EVERY_NS
        return True

    def is_flooding(self, peer: bytes, now_ns: int) -> bool:
        """Whether a peer that is cut off goes on sending more than it can have had on the way; starts anew if so."""
        entry = self._peers.get(peer)
        if entry is None or entry.ignored <= IGNORED_MESSAGES + self._settings.window_frames:
            return False
        if entry.cut_until_ns is not None and now_ns < entry.cut_until_ns - self._settings.cut_off_ns + TELLING_NS:
            return False
        entry.ignored = 0
        return True

    def forget(self, peer: bytes, now_ns: int) -> None:
        """Drop a peer that is gone, unless it is cut off."""
        if self.cut_off_text(peer, now_ns) is None:
            self._peers.pop(peer, None)

    def _entry(self, peer: bytes, now_ns: int) -> _Peer:
        entry = self._peers.get(peer)
        if entry is None:
            entry = self._peers[peer] = self._new_peer(now_ns)
            if len(self._peers) > MAX_PEERS:
                self._peers.popitem(last=False)
        else:
            self._peers.move_to_end(peer)
        return entry

    def _new_peer(self, now_ns: int) -> _Peer:
        settings = self._settings
        frames, window = settings.frames_per_second, settings.window_frames
        messages = frames + OTHER_MESSAGES_PER_SECOND
        return _Peer(
            frames=TokenBucket(frames, frames * BURST_S + window, now_ns),
            # A message of the largest size must fit, however low the rate.
            num_bytes=TokenBucket(
                settings.bytes_per_second, max(settings.bytes_per_second * BURST_S, settings.message_bytes), now_ns
            ),
            messages=TokenBucket(messages, messages * BURST_S + window, now_ns),
        )

    def _cut_off(self, entry: _Peer, broken: str, now_ns: int) -> str:
        entry.cut_until_ns = now_ns + self._settings.cut_off_ns
        entry.broken, entry.ignored = broken, 0
        entry.next_hearing_ns = now_ns + HEARING_EVERY_NS
        return broken
