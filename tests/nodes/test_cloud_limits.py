"""The front puts nodes out that ask for too much or are no longer allowed, and every frame of theirs has an end."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pipeline.admission import Admission, connection_of
from pipeline.authorisation import KEY_CHARS, AllowList, NamedKey
from pipeline.cloud_actions import SessionClosed, SessionOpened
from pipeline.errors import SecurityError
from pipeline.node_limits import LimitSettings
from pipeline.wire import CameraEntry, Hello, Message, Reject, RejectCode
from tests.cloud_bench import Bench
from tests.fakes import BUNDLE_ID, MS, S, make_frame_message


def lost_sessions(bench: Bench) -> list[tuple[str, str]]:
    return [(action.node, action.reason) for action in bench.notes.sessions if isinstance(action, SessionClosed)]


def test_node_that_breaks_a_limit_is_told_and_cut_off_and_others_do_not_notice() -> None:
    bench = Bench(admission=Admission(LimitSettings(frames_per_second=1, window_frames=1)))
    bench.run(
        bench.hello("yard"),
        bench.frames(0, 1, "yard"),
        bench.hello("greedy"),
        bench.frames(0, 3, "greedy"),
        1,
        bench.frames(4, 5, "greedy"),
        bench.wait(5 * MS),
        lambda: bench.pool.finish(0),
        bench.wait(5 * MS),
        lambda: bench.pool.finish(0),
        bench.wait(2 * S),
        bench.hello("greedy"),
        bench.frames(2, 2, "yard"),
        bench.wait(5 * MS),
        lambda: bench.pool.finish(0),
        1,
    )
    assert lost_sessions(bench)[0] == ("greedy", "limits")
    rejects = [(to, message.code, message.text) for to, message in bench.door.sent if isinstance(message, Reject)]
    assert rejects == [
        (b"greedy", RejectCode.LIMITS, "more than 1 frames a second"),
        (b"greedy", RejectCode.LIMITS, "more than 1 frames a second: not listened to for 28 s"),
    ]
    # Three frames were within the limit and had been accepted: their answers find no way.
    assert bench.outcomes() == {"ok": 3, "unroutable": 3}


def test_flood_of_a_node_that_was_told_ends_its_connection() -> None:
    bench = Bench(admission=Admission(LimitSettings(frames_per_second=1, window_frames=1)))
    bench.run(
        bench.hello("greedy"),
        bench.frames(0, 110, "greedy"),
        lambda: bench.door.ended_connections == 0 or pytest.fail("before it can have been told"),
        bench.wait(S),
        bench.frames(111, 250, "greedy"),
        1,
    )
    assert lost_sessions(bench)[0] == ("greedy", "limits")
    assert bench.door.ended_connections == 2
    assert [message.code for _, message in bench.door.sent if isinstance(message, Reject)] == [RejectCode.LIMITS]


def test_session_of_a_revoked_key_ends_while_it_streams_and_its_frames_have_an_end() -> None:
    keys = {name: name.ljust(KEY_CHARS, "-") for name in ("door", "yard")}
    lists = [AllowList(NamedKey(name, key) for name, key in keys.items())]
    bench = Bench(admission=Admission(allowed=lambda: lists[0]))
    door, yard = (connection_of(b"abcde", key) for key in keys.values())

    def put(connection: bytes, *messages: Message) -> Callable[[], None]:
        return lambda: [bench.door.put(connection, message) for message in messages] and None

    # Both call themselves the same; their keys do not.
    hello = Hello(0, "yard", bytes(16), (BUNDLE_ID,), (CameraEntry(0, "gate"),))
    bench.run(
        put(door, hello, make_frame_message(0), make_frame_message(1)),
        put(yard, hello, make_frame_message(0)),
        lambda: lists.insert(0, AllowList([NamedKey("yard", keys["yard"])])),
        bench.wait(S),
        put(door, make_frame_message(2)),
        lambda: bench.pool.finish(0),
        put(door, hello),
        1,
    )
    opened = [action.node for action in bench.notes.sessions if isinstance(action, SessionOpened)]
    assert opened == ["door", "yard"]
    assert lost_sessions(bench)[0] == ("door", "revoked")
    codes = [message.code for to, message in bench.door.sent if isinstance(message, Reject) and to == door]
    assert codes == [RejectCode.NOT_AUTHORISED, RejectCode.NO_SESSION, RejectCode.NOT_AUTHORISED]
    assert bench.outcomes() == {"ok": 1, "unroutable": 2}


def test_front_stops_when_nobody_can_be_authorised_any_more() -> None:
    def allowed() -> AllowList:
        raise SecurityError("the handler that authorises nodes does not run")

    bench = Bench(admission=Admission(allowed=allowed))
    with pytest.raises(SecurityError):
        bench.run(1, 1)
