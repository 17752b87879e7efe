"""Two network namespaces and a line between them that loses, delays, reorders and doubles real packets.

Each namespace has a TUN device, a network card whose cable ends in a file of this process: what one side's kernel
sends is read here, held, dropped or doubled, and given to the other side's kernel. So TCP itself meets what a bad line
does, without the kernel's netem. Needs root and /dev/net/tun; `probe` says whether it can be had.
"""

from __future__ import annotations

import fcntl
import heapq
import itertools
import os
import select
import struct
import subprocess
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from random import Random
from typing import Self

TUNSETIFF = 0x400454CA
IFF_TUN, IFF_NO_PI = 0x0001, 0x1000
PACKET_BYTES = 65_536
HELD_PACKETS = 2_000
"""On the line at a time; more are lost, as in a router whose queue is full."""


class Line:
    """Two namespaces, `left` and `right`, with one line between them.

    Attributes:
        loss: share of packets that vanish, 0 to 1.
        delay_s / jitter_s: every packet takes so long, and up to this much longer, each for itself: they overtake.
        doubling: share of packets that come twice.
        is_cut: nothing passes.
        passed / lost: packets so far.
    """

    left_address, right_address = "10.77.0.1", "10.77.0.2"

    def __init__(self, seed: int = 0) -> None:
        self.loss = self.doubling = self.delay_s = self.jitter_s = 0.0
        self.is_cut = False
        self.passed = self.lost = 0
        name = f"rac{os.getpid() % 100_000}"
        self.left, self.right = f"{name}l", f"{name}r"
        self._random = Random(seed)
        self._is_closed = False
        self._cards: list[int] = []

    def __enter__(self) -> Self:
        try:
            for namespace, address in ((self.left, self.left_address), (self.right, self.right_address)):
                _ip("netns", "add", namespace)
                self._cards.append(_open_card(namespace))
                _ip("link", "set", namespace, "netns", namespace)
                _ip("-n", namespace, "addr", "add", f"{address}/24", "dev", namespace)
                _ip("-n", namespace, "link", "set", namespace, "up")
                _ip("-n", namespace, "link", "set", "lo", "up")
        except BaseException:
            self._remove()
            raise
        self._thread = threading.Thread(target=self._carry, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._is_closed = True
        self._thread.join()
        self._remove()

    def inside(self, namespace: str) -> list[str]:
        """What a command line begins with to run in a namespace; the process keeps its id."""
        return ["ip", "netns", "exec", namespace]

    def _carry(self) -> None:
        held: list[tuple[float, int, int, bytes]] = []
        order = itertools.count()
        while not self._is_closed:
            wait_s = 0.05 if not held else max(0.0, min(0.05, held[0][0] - time.monotonic()))
            readable, _, _ = select.select(self._cards, [], [], wait_s)
            for card in readable:
                packet = os.read(card, PACKET_BYTES)
                other = self._cards[1 - self._cards.index(card)]
                for _ in range(2 if self._random.random() < self.doubling else 1):
                    if self.is_cut or self._random.random() < self.loss or len(held) >= HELD_PACKETS:
                        self.lost += 1
                        continue
                    due_s = time.monotonic() + self.delay_s + self.jitter_s * self._random.random()
                    heapq.heappush(held, (due_s, next(order), other, packet))
            while held and held[0][0] <= time.monotonic():
                _, _, other, packet = heapq.heappop(held)
                if not self.is_cut:
                    self.passed += 1
                    with suppress(OSError):  # the card is down, or its queue is full
                        os.write(other, packet)

    def _remove(self) -> None:
        for card in self._cards:
            os.close(card)
        self._cards.clear()
        for namespace in (self.left, self.right):
            subprocess.run(["ip", "netns", "del", namespace], check=False, capture_output=True)


def probe() -> str | None:
    """Why there are no namespaces and lines here; None when there are."""
    if os.geteuid() != 0:
        return "needs root"
    try:
        with Line():
            return None
    except (OSError, subprocess.CalledProcessError) as error:
        return f"no namespaces with a TUN device here: {error}"


def _open_card(name: str) -> int:
    """A TUN device of this name, in this process's own namespace; gone when the file is closed."""
    card = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    try:
        fcntl.ioctl(card, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TUN | IFF_NO_PI))
    except OSError:
        os.close(card)
        raise
    return card


def _ip(*words: str) -> None:
    command: Sequence[str] = ("ip", *words)
    subprocess.run(command, check=True, capture_output=True)
