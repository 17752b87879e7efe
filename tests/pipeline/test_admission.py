"""Who is heard under which name: names come from keys, keys that leave the list take their sessions along."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pipeline.admission import Admission, Refusal, connection_of, routing_id_of
from pipeline.authorisation import AllowList, NamedKey
from pipeline.cloud_actions import CloseReason, SessionClosed, SessionOpened
from pipeline.node_limits import LimitSettings
from pipeline.wire import CameraEntry, FrameMessage, Hello, Ping, RejectCode

S = 1_000_000_000
DOOR_KEY = "rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7"
YARD_KEY = "Yne@$w-vo<fVvi]a<NY6T1ed:M$fCG*[IaLV{hID"
HELLO = Hello(0, "whoever", bytes(16), (bytes(32),), (CameraEntry(0, "gate"),))
FRAME = FrameMessage(0, 0, 0, 0, None, b"x")
DOOR, YARD = connection_of(b"\0abcd", DOOR_KEY), connection_of(b"\0efgh", YARD_KEY)


class Lists:
    """An allow-list that a test changes."""

    def __init__(self, **keys: str) -> None:
        self.set(**keys)

    def set(self, **keys: str) -> None:
        self.now = AllowList(NamedKey(name, key) for name, key in keys.items())

    def __call__(self) -> AllowList:
        return self.now


@pytest.fixture
def lists() -> Lists:
    return Lists(door=DOOR_KEY, yard=YARD_KEY)


@pytest.fixture
def admission(lists: Lists) -> Admission:
    return Admission(LimitSettings(frames_per_second=1, window_frames=1), lists)


def test_connection_is_routing_id_and_key() -> None:
    assert routing_id_of(DOOR) == b"\0abcd"
    assert connection_of(b"\0abcd", YARD_KEY) != DOOR


def test_name_comes_from_the_key_whatever_the_node_says(admission: Admission) -> None:
    assert admission.admit(DOOR, HELLO, 0) == replace(HELLO, node="door")
    assert admission.admit(DOOR, replace(HELLO, node="yard"), 0) == replace(HELLO, node="door")
    assert admission.admit(YARD, replace(HELLO, node="door"), 0) == replace(HELLO, node="yard")


def test_without_keys_a_node_is_called_what_it_says() -> None:
    admission = Admission()
    assert admission.admit(b"abcde", HELLO, 0) is HELLO
    assert admission.revoked() == []


def test_key_that_left_the_list_since_the_handshake_opens_no_session(admission: Admission, lists: Lists) -> None:
    lists.set(yard=YARD_KEY)
    refused = admission.admit(DOOR, HELLO, 0)
    assert isinstance(refused, Refusal)
    assert refused.code is RejectCode.NOT_AUTHORISED


def open_sessions(admission: Admission) -> None:
    for connection, name in ((DOOR, "door"), (YARD, "yard")):
        admission.note(SessionOpened(connection, name, ("gate",)), 0)


def test_session_of_a_revoked_key_is_named_once(admission: Admission, lists: Lists) -> None:
    open_sessions(admission)
    assert admission.revoked() == []
    lists.set(yard=YARD_KEY)
    assert admission.revoked() == [DOOR]
    assert admission.revoked() == []


def test_session_whose_key_has_another_name_now_is_revoked(admission: Admission, lists: Lists) -> None:
    """Its results would go on under the old name."""
    open_sessions(admission)
    lists.set(gate=DOOR_KEY, yard=YARD_KEY)
    assert admission.revoked() == [DOOR]


def test_session_that_is_over_is_not_revoked(admission: Admission, lists: Lists) -> None:
    open_sessions(admission)
    admission.note(SessionClosed(DOOR, "door", CloseReason.BYE), 0)
    lists.set()
    assert admission.revoked() == [YARD]


def test_list_that_is_read_again_without_a_change_revokes_nobody(admission: Admission, lists: Lists) -> None:
    open_sessions(admission)
    lists.set(door=DOOR_KEY, yard=YARD_KEY)
    assert admission.revoked() == []


def test_limits_hold_for_all_connections_of_a_node_together(admission: Admission) -> None:
    other = connection_of(b"\0wxyz", DOOR_KEY)
    assert [admission.admit(each, FRAME, 0) for each in (DOOR, other, DOOR)] == [FRAME] * 3
    assert admission.admit(other, FRAME, 0) == Refusal(RejectCode.LIMITS, "more than 1 frames a second")
    assert admission.admit(YARD, FRAME, 0) is FRAME


def test_node_that_is_cut_off_is_told_when_it_says_hello(admission: Admission) -> None:
    while admission.admit(DOOR, FRAME, 0) is FRAME:
        pass
    assert admission.weigh(DOOR, 100, 0) == Refusal(None)
    assert admission.weigh(DOOR, 100, 2 * S) is None
    assert admission.admit(DOOR, FRAME, 2 * S) == Refusal(None)
    assert admission.weigh(DOOR, 100, 4 * S) is None
    told = admission.admit(DOOR, HELLO, 4 * S)
    assert told == Refusal(RejectCode.LIMITS, "more than 1 frames a second: not listened to for 26 s")
    assert admission.weigh(DOOR, 100, 31 * S) is None
    assert admission.admit(DOOR, HELLO, 31 * S) == replace(HELLO, node="door")


def test_message_that_is_too_large_is_not_even_parsed() -> None:
    admission = Admission(LimitSettings(message_bytes=1000))
    refused = admission.weigh(b"abcde", 1001, 0)
    assert refused == Refusal(RejectCode.LIMITS, "a message of more than 1000 bytes")


def test_other_messages_pass_as_they_are(admission: Admission) -> None:
    ping = Ping(1, 2)
    assert admission.admit(DOOR, ping, 0) is ping
