"""The node's way back to a better endpoint: a second connection that looks whether it is there again."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from nodes.companions import SessionChange
from nodes.uplink import Socket, Uplink
from pipeline.errors import WireError
from pipeline.failover import CloseProbe, GoBack, OpenProbe, ProbeAction, ReturnWatch, SendProbe
from pipeline.ledger import ClosedFrame
from pipeline.session import Action, Lost, NodeSession, Opened
from pipeline.wire import pack, parse


class Returning:
    """A companion of the node's loop.

    Args:
        probe: a connection of its own, with the node's keys.
        endpoints: of the session, in the same order.
    """

    def __init__(
        self,
        session: NodeSession,
        probe: Uplink,
        endpoints: Sequence[str],
        interval_ns: int,
        clock: Callable[[], int],
    ) -> None:
        self._session, self._probe, self._endpoints = session, probe, tuple(endpoints)
        self._watch = ReturnWatch(interval_ns)
        self._clock = clock
        self._change: SessionChange | None = None

    def act(self, action: Action, now_ns: int) -> None:
        match action:
            # Where a cloud sent the node is that cloud's business.
            case Opened() if not self._session.is_redirected:
                self._perform(self._watch.session_opened(self._session.endpoint_index, now_ns))
            case Opened() | Lost():
                self._change = None
                self._perform(self._watch.session_lost())
            case _:
                pass

    def encode(self, camera: str, sequence: int) -> None:
        """Of no concern here."""

    def close_frame(self, closed: ClosedFrame, now_ns: int) -> None:
        """Of no concern here."""

    def turn(self, now_ns: int) -> list[Action]:
        for parts in self._probe.receive():
            try:
                self._perform(self._watch.receive(parse(parts), now_ns))
            except WireError:
                continue  # whatever speaks there is no cloud of ours: it times out
        self._perform(self._watch.tick(now_ns))
        return []

    def take_change(self) -> SessionChange | None:
        change, self._change = self._change, None
        return change

    def next_deadline_ns(self) -> int | None:
        return self._watch.next_deadline_ns()

    def socket(self) -> Socket | None:
        return self._probe.socket

    def stop(self) -> None:
        self._probe.close()

    def _perform(self, actions: Sequence[ProbeAction]) -> None:
        for action in actions:
            match action:
                case OpenProbe(index=index):
                    self._probe.open(self._endpoints[index], index)
                case SendProbe(message=message):
                    self._probe.send(pack(message))
                case CloseProbe():
                    self._probe.close()
                case GoBack(index=index):
                    self._change = self._go_back(index)

    def _go_back(self, index: int) -> SessionChange:
        return lambda now_ns: self._session.move_to(index, now_ns)
