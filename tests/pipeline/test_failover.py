"""Which endpoint is used, and the way back to a better one; time is passed in."""

from __future__ import annotations

import pytest

from pipeline.errors import LocalSessionError
from pipeline.failover import (
    LONGEST_RETURN_NS,
    PROBE_ANSWERS,
    PROBE_INTERVAL_NS,
    PROBE_TIMEOUT_NS,
    CloseProbe,
    EndpointChoice,
    GoBack,
    OpenProbe,
    ProbeAction,
    ReturnWatch,
    SendProbe,
)
from pipeline.wire import Bye, Message, Reject, RejectCode

S = 1_000_000_000
EVERY = 30 * S
ALIVE = Reject(RejectCode.NO_SESSION, "say HELLO first")


def test_endpoint_is_needed() -> None:
    with pytest.raises(LocalSessionError):
        EndpointChoice((), S, 30 * S, lambda: 0.5)


def test_moving_to_an_endpoint_leaves_redirections_behind() -> None:
    choice = EndpointChoice(("a", "b", "c"), S, 30 * S, lambda: 0.5)
    choice.fail(is_lasting=False)
    choice.redirect("elsewhere")
    assert (choice.endpoint, choice.index, choice.is_redirected) == ("elsewhere", 1, True)
    choice.move_to(2)
    assert (choice.endpoint, choice.index, choice.is_redirected) == ("c", 2, False)


class Look:
    """A watch with its time."""

    def __init__(self, index: int, now_ns: int = 0) -> None:
        self.watch, self.now_ns = ReturnWatch(EVERY), now_ns
        self.watch.session_opened(index, now_ns)

    def wait(self, duration_ns: int) -> list[ProbeAction]:
        """Let time pass in small steps; all that was done."""
        actions: list[ProbeAction] = []
        end_ns = self.now_ns + duration_ns
        while self.now_ns < end_ns:
            self.now_ns = min(end_ns, self.now_ns + S // 4)
            actions += self.watch.tick(self.now_ns)
        return actions

    def answer(self, message: Message = ALIVE) -> list[ProbeAction]:
        return self.watch.receive(message, self.now_ns)


def kinds(actions: list[ProbeAction]) -> list[type[ProbeAction]]:
    return [type(action) for action in actions]


def test_best_endpoint_is_never_left() -> None:
    look = Look(0)
    assert look.wait(10 * EVERY) == []
    assert look.watch.next_deadline_ns() is None


def test_better_endpoint_is_gone_back_to_after_some_answers() -> None:
    look = Look(1)
    assert look.wait(EVERY - S) == []
    assert look.wait(S) == [OpenProbe(0)]
    for number in range(PROBE_ANSWERS - 1):
        assert kinds(look.wait(PROBE_INTERVAL_NS)) == [SendProbe]
        assert look.answer() == [], number
    look.wait(PROBE_INTERVAL_NS)
    assert look.answer() == [CloseProbe(), GoBack(0)]


def test_silent_endpoint_is_looked_at_again_later() -> None:
    look = Look(1)
    actions = look.wait(EVERY + PROBE_TIMEOUT_NS + S)
    assert kinds(actions)[0] is OpenProbe
    assert kinds(actions)[-1] is CloseProbe
    assert look.wait(EVERY)[0] == OpenProbe(0)


@pytest.mark.parametrize("message", [Reject(RejectCode.SHUTTING_DOWN), Reject(RejectCode.NOT_AUTHORISED), Bye("no")])
def test_endpoint_that_would_refuse_is_not_gone_back_to(message: Message) -> None:
    look = Look(1)
    look.wait(EVERY + S)
    assert look.answer(message) == [CloseProbe()]


def test_all_better_endpoints_are_looked_at_the_best_first() -> None:
    look = Look(2)
    actions = look.wait(EVERY + 2 * PROBE_TIMEOUT_NS + 2 * S)
    assert [action for action in actions if isinstance(action, OpenProbe)] == [OpenProbe(0), OpenProbe(1)]


def test_lost_session_ends_the_look() -> None:
    look = Look(1)
    look.wait(EVERY + S)
    assert look.watch.session_lost() == [CloseProbe()]
    assert look.wait(10 * EVERY) == []
    assert look.answer() == []


def test_going_back_in_vain_doubles_the_wait_up_to_an_end() -> None:
    look = Look(1)
    waits = []
    for _ in range(8):
        begun_ns = look.now_ns
        while not any(isinstance(action, OpenProbe) for action in look.wait(S)):
            pass
        waits.append(round((look.now_ns - begun_ns) / S))
        for _ in range(PROBE_ANSWERS):
            look.wait(PROBE_INTERVAL_NS)
            found = look.answer()
        assert GoBack(0) in found
        # It answers PINGs and refuses sessions: the node is back at the other one.
        look.watch.session_lost()
        look.watch.session_opened(1, look.now_ns)
    assert waits[:5] == [30, 60, 120, 240, 480]
    assert waits[-1] == LONGEST_RETURN_NS // S


def test_better_endpoint_that_held_for_a_while_is_trusted_again() -> None:
    look = Look(1)
    look.wait(EVERY + S)
    for _ in range(PROBE_ANSWERS):
        look.wait(PROBE_INTERVAL_NS)
        look.answer()
    look.watch.session_opened(0, look.now_ns)
    look.wait(2 * EVERY)
    look.watch.session_lost()
    look.watch.session_opened(1, look.now_ns)
    assert look.wait(EVERY) == [OpenProbe(0)]
