"""The sessions of the cloud: admission, credit, repeated frames, silence, shutdown; no socket, no clock."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from pipeline.cloud_actions import (
    Answer,
    ChunkWanted,
    CloseReason,
    CloudAction,
    CloudSettings,
    FrameArrived,
    SendTo,
    SessionClosed,
    SessionOpened,
)
from pipeline.cloud_session import CloudSessions
from pipeline.errors import LocalSessionError, WireError, WireFormatError, WireLimitError, WireVersionError
from pipeline.ledger import Outcome
from pipeline.result_memory import FrameIdentity, ResultMemory
from pipeline.wire import (
    WIRE_MINOR,
    BundleRequest,
    Bye,
    CameraEntry,
    Credit,
    FrameMessage,
    Hello,
    Message,
    Ping,
    Pong,
    Reject,
    RejectCode,
    Result,
    TopClass,
    Welcome,
)

MS = 1_000_000
S = 1000 * MS
OLD, NEW, OTHER = b"\x01" * 32, b"\x02" * 32, b"\x03" * 32
OK = Answer(Outcome.OK, (TopClass(7, "bottle", 0.5),), queue_us=10, batch_frames=3)


def hello(node: str = "dock", boot: bytes = b"boot", **changes: object) -> Hello:
    cameras = (CameraEntry(0, "gate"), CameraEntry(1, "belt"))
    return replace(Hello(0, node, boot * 4, (OLD, NEW), cameras), **changes)  # type: ignore[arg-type]


def frame(sequence: int, camera: int = 0, age_us: int = 0) -> FrameMessage:
    return FrameMessage(camera, sequence, 1000 + sequence, age_us, None, b"bits", b"view")


def new_cloud(**changes: object) -> CloudSessions:
    settings = CloudSettings(bundle_ids=frozenset({OLD, NEW}), window_frames=4, capacity_frames=64)
    ids = itertools.count()
    return CloudSessions(
        replace(settings, **changes),  # type: ignore[arg-type]
        lambda: next(ids).to_bytes(8, "big"),
    )


def open_session(
    cloud: CloudSessions,
    routing_id: bytes = b"r1",
    node: str = "dock",
    now_ns: int = 0,
    boot: bytes = b"boot",
) -> Welcome:
    welcome = sent(cloud.receive(routing_id, hello(node, boot), now_ns))[-1]
    assert isinstance(welcome, Welcome)
    return welcome


def sent(actions: list[CloudAction]) -> list[Message]:
    return [action.message for action in actions if isinstance(action, SendTo)]


def closed(actions: list[CloudAction]) -> list[tuple[bytes, CloseReason]]:
    return [(action.routing_id, action.reason) for action in actions if isinstance(action, SessionClosed)]


def granted(actions: list[CloudAction]) -> list[tuple[bytes, int]]:
    return [
        (action.routing_id, action.message.frames)
        for action in actions
        if isinstance(action, SendTo) and isinstance(action.message, Credit)
    ]


def arrive(cloud: CloudSessions, message: FrameMessage, routing_id: bytes = b"r1", now_ns: int = 0) -> FrameArrived:
    (arrived,) = cloud.receive(routing_id, message, now_ns)
    assert isinstance(arrived, FrameArrived)
    return arrived


def answer(cloud: CloudSessions, arrived: FrameArrived, now_ns: int = 0) -> Result:
    send = cloud.answer(arrived.ticket, OK, now_ns)
    assert send is not None
    assert isinstance(send.message, Result)
    return send.message


def test_hello_opens_with_the_nodes_favourite_bundle_and_a_window_of_credit() -> None:
    cloud = new_cloud(capabilities=("reference", "spool"), heartbeat_ms=500, peer_timeout_ms=1500)
    first = hello(bundle_ids=(OTHER, NEW, OLD), capabilities=("dance", "reference"))
    opened, welcome = cloud.receive(b"r1", first, 0)
    assert opened == SessionOpened(b"r1", "dock", ("gate", "belt"))
    assert isinstance(welcome, SendTo)
    assert welcome.message == Welcome(WIRE_MINOR, bytes(8), NEW, 4, 262_144, 500, 1500, ("reference",))


def test_repeated_hello_gets_the_same_welcome_and_no_second_grant() -> None:
    cloud = new_cloud()
    welcome = open_session(cloud)
    arrive(cloud, frame(0))
    assert cloud.receive(b"r1", hello(), 1) == [SendTo(b"r1", welcome)]
    statistics = cloud.statistics()
    assert (statistics.credit, statistics.computing, statistics.handshakes["accepted"]) == (3, 1, 1)


def test_returning_node_replaces_its_dead_session() -> None:
    """Same boot, new connection: the node knows best that the old one is gone."""
    cloud = new_cloud()
    open_session(cloud, b"r1")
    arrived = arrive(cloud, frame(0))
    actions = cloud.receive(b"r2", hello(), 1)
    assert closed(actions) == [(b"r1", CloseReason.REPLACED)]
    assert cloud.num_sessions == 1
    assert cloud.answer(arrived.ticket, OK, 2) is None  # unroutable: its session is gone
    assert sent(cloud.receive(b"r1", frame(1), 3)) == [Reject(RejectCode.NO_SESSION, "say HELLO first")]


def test_changed_hello_on_the_same_connection_replaces_too() -> None:
    cloud = new_cloud()
    first = open_session(cloud)
    actions = cloud.receive(b"r1", hello(cameras=(CameraEntry(5, "roof"),)), 1)
    assert closed(actions) == [(b"r1", CloseReason.REPLACED)]
    (second,) = sent(actions)
    assert isinstance(second, Welcome)
    assert second.session_id != first.session_id
    assert arrive(cloud, frame(0, camera=5)).camera == "roof"


def test_two_machines_of_the_same_name_do_not_throw_each_other_out() -> None:
    cloud = new_cloud()
    open_session(cloud, b"r1", "dock", boot=b"aaaa")
    open_session(cloud, b"r2", "dock", boot=b"bbbb")
    assert cloud.num_sessions == 2


def test_unknown_bundle_is_refused_with_what_is_known() -> None:
    cloud = new_cloud()
    (reject,) = sent(cloud.receive(b"r1", hello(bundle_ids=(OTHER,)), 0))
    assert isinstance(reject, Reject)
    assert (reject.code, "0101010101010101" in reject.text) == (RejectCode.UNKNOWN_BUNDLE, True)
    assert cloud.statistics().handshakes["unknown_bundle"] == 1
    assert cloud.num_sessions == 0


def test_full_cloud_refuses_and_accepts_again() -> None:
    cloud = new_cloud(max_sessions=1)
    open_session(cloud, b"r1", "a")
    (reject,) = sent(cloud.receive(b"r2", hello("b"), 0))
    assert isinstance(reject, Reject)
    assert reject.code is RejectCode.FULL
    cloud.receive(b"r1", Bye(), 1)
    open_session(cloud, b"r2", "b")


@pytest.mark.parametrize("message", [frame(0), Ping(1, 2), Pong(1, 2), Credit(1)])
def test_without_session_everything_is_rejected(message: Message) -> None:
    cloud = new_cloud()
    assert cloud.receive(b"r1", message, 0) == [SendTo(b"r1", Reject(RejectCode.NO_SESSION, "say HELLO first"))]
    assert cloud.receive(b"r1", Bye("never mind"), 0) == []
    assert cloud.statistics().peak_sessions == 0


def test_frame_arrives_with_names_and_its_answer_carries_the_next_credit() -> None:
    cloud = new_cloud()
    open_session(cloud)
    arrived = arrive(cloud, frame(41, camera=1), now_ns=5 * S)
    assert (arrived.node, arrived.camera, arrived.bundle_id) == ("dock", "belt", OLD)
    assert arrived.frame == frame(41, camera=1)
    result = answer(cloud, arrived, now_ns=5 * S + 7 * MS)
    assert (result.camera, result.sequence, result.captured_ns) == (1, 41, 1041)
    assert (result.outcome, result.classes, result.batch_frames) == (Outcome.OK, OK.classes, 3)
    assert (result.credit, result.repeated, result.timings.cloud_us) == (1, False, 7000)


def test_answer_is_for_once() -> None:
    cloud = new_cloud()
    open_session(cloud)
    arrived = arrive(cloud, frame(0))
    answer(cloud, arrived)
    with pytest.raises(LocalSessionError, match="answered twice"):
        cloud.answer(arrived.ticket, OK, 0)


def test_frame_beyond_the_credit_costs_the_session() -> None:
    cloud = new_cloud(window_frames=2)
    open_session(cloud)
    arrive(cloud, frame(0))
    arrive(cloud, frame(1))
    actions = cloud.receive(b"r1", frame(2), 0)
    assert sent(actions) == [Reject(RejectCode.LIMITS, "frame without credit")]
    assert closed(actions) == [(b"r1", CloseReason.PROTOCOL_ERROR)]
    assert cloud.computing == 2


@pytest.mark.parametrize("message", [frame(0, camera=9), Credit(1), Reject(RejectCode.FULL)])
def test_message_that_no_node_may_send_costs_the_session(message: Message) -> None:
    cloud = new_cloud()
    open_session(cloud)
    actions = cloud.receive(b"r1", message, 0)
    (reject,) = sent(actions)
    assert isinstance(reject, Reject)
    assert reject.code is RejectCode.MALFORMED
    assert closed(actions) == [(b"r1", CloseReason.PROTOCOL_ERROR)]


@pytest.mark.parametrize("has_session", [False, True])
@pytest.mark.parametrize(
    ("error", "code"),
    [
        (WireFormatError("not\na message"), RejectCode.MALFORMED),
        (WireVersionError(2, 1), RejectCode.BAD_VERSION),
        (WireLimitError("too large"), RejectCode.LIMITS),
    ],
)
def test_malformed_bytes_are_answered_by_what_is_wrong(error: WireError, code: RejectCode, has_session: bool) -> None:
    cloud = new_cloud()
    if has_session:
        open_session(cloud)
    actions = cloud.malformed(b"r1", error)
    (reject,) = sent(actions)
    assert isinstance(reject, Reject)
    assert reject.code is code
    assert closed(actions) == ([(b"r1", CloseReason.PROTOCOL_ERROR)] if has_session else [])
    assert cloud.statistics().handshakes[code] == (not has_session)


def test_window_shrinks_when_many_share_and_grows_back() -> None:
    cloud = new_cloud(window_frames=8, capacity_frames=16)
    assert open_session(cloud, b"r1", "a").credit == 8
    assert open_session(cloud, b"r2", "b").credit == 8
    assert open_session(cloud, b"r3", "c").credit == 1  # nothing is left, but nobody gets nothing
    # a works, and is granted nothing until it holds no more than its share of 16 // 3; then c gets the rest.
    grants = [answer(cloud, arrive(cloud, frame(index), b"r1")).credit for index in range(5)]
    assert grants == [0, 0, 0, 1, 1]
    assert granted(cloud.tick(1)) == [(b"r3", 2)]
    assert cloud.statistics().credit == 5 + 8 + 3
    # The others leave: back to the window.
    cloud.receive(b"r2", Bye(), 2)
    cloud.receive(b"r3", Bye(), 2)
    assert granted(cloud.tick(3)) == [(b"r1", 3)]


def test_one_frame_for_everybody_has_an_end_too() -> None:
    """Sessions that come, leave a frame and go cannot fill more than the queue that was announced."""
    cloud = new_cloud(window_frames=2, capacity_frames=2, max_sessions=3)
    credits = []
    for index in range(8):
        routing_id = bytes([index])
        credits.append(open_session(cloud, routing_id, boot=routing_id * 4).credit)
        for sequence in range(credits[-1]):
            arrive(cloud, frame(sequence), routing_id)
        cloud.link_lost(routing_id)
    assert credits == [2, 1, 1, 1, 0, 0, 0, 0]
    assert cloud.computing == CloudSettings(frozenset(), capacity_frames=2, max_sessions=3).queue_frames
    assert open_session(cloud, b"last").credit == 0
    cloud.answer(0, OK, 1)
    assert granted(cloud.tick(1)) == [(b"last", 1)]


def test_frames_of_a_lost_session_count_until_they_are_answered() -> None:
    """They still take their place in the queue."""
    cloud = new_cloud(window_frames=8, capacity_frames=8)
    open_session(cloud, b"r1", "a")
    arrived = [arrive(cloud, frame(index), b"r1") for index in range(4)]
    assert closed(cloud.link_lost(b"r1")) == [(b"r1", CloseReason.LOST)]
    assert cloud.link_lost(b"r1") == []
    assert open_session(cloud, b"r2", "b").credit == 4
    assert (cloud.statistics().credit, cloud.computing) == (4, 4)
    assert [cloud.answer(each.ticket, OK, 0) for each in arrived] == [None] * 4
    assert (cloud.statistics().credit, cloud.computing) == (4, 0)


def test_frame_that_comes_again_gets_the_same_result_without_computing() -> None:
    cloud = new_cloud()
    open_session(cloud, b"r1")
    first = answer(cloud, arrive(cloud, frame(5)), now_ns=9 * MS)
    # Back with a new connection, where the camera has another number.
    cloud.receive(b"r2", hello(cameras=(CameraEntry(3, "gate"),)), 0)
    (again,) = sent(cloud.receive(b"r2", frame(5, camera=3), 0))
    assert again == replace(first, camera=3, repeated=True)
    statistics = cloud.statistics()
    assert (statistics.duplicates, statistics.computing, statistics.credit) == (1, 0, 4)


def test_frame_of_another_boot_or_camera_is_another_frame() -> None:
    cloud = new_cloud()
    open_session(cloud, b"r1", boot=b"aaaa")
    answer(cloud, arrive(cloud, frame(5)))
    arrive(cloud, frame(5, camera=1))
    open_session(cloud, b"r2", boot=b"bbbb")
    arrive(cloud, frame(5), b"r2")
    assert cloud.statistics().duplicates == 0


def test_frame_that_comes_again_while_it_is_computed_is_answered_once_to_who_asked_last() -> None:
    cloud = new_cloud()
    open_session(cloud, b"r1")
    arrived = arrive(cloud, frame(5))
    open_session(cloud, b"r2")
    assert cloud.receive(b"r2", frame(5), 1) == []
    assert cloud.computing == 1
    send = cloud.answer(arrived.ticket, OK, 2)
    assert send is not None
    assert send.routing_id == b"r2"
    assert isinstance(send.message, Result)
    assert (send.message.repeated, send.message.credit) == (False, 1)
    assert cloud.statistics().duplicates == 1


def test_credit_of_a_doubled_frame_comes_back_whole() -> None:
    """Two credits were spent on it in one session; one answer returns both."""
    cloud = new_cloud()
    open_session(cloud)
    arrived = arrive(cloud, frame(5))
    assert cloud.receive(b"r1", frame(5), 0) == []
    assert answer(cloud, arrived).credit == 2
    assert cloud.statistics().credit == 4


def test_gaps_in_a_cameras_sequence_are_counted() -> None:
    cloud = new_cloud(window_frames=16, capacity_frames=64)
    open_session(cloud)
    for sequence in (10, 11, 14, 12, 15, 20):
        arrive(cloud, frame(sequence))
    arrive(cloud, frame(3, camera=1))
    statistics = cloud.statistics()
    assert (statistics.gaps, statistics.missing) == (2, 2 + 4)


def test_age_is_what_the_node_says_plus_half_the_smallest_round_trip() -> None:
    cloud = new_cloud()
    open_session(cloud)
    for second, trip_ms in ((0, 30), (3, 20), (6, 50)):
        (ping,) = sent(cloud.tick(second * S))
        assert isinstance(ping, Ping)
        cloud.receive(b"r1", Pong(ping.token, 0), second * S + trip_ms * MS)
    arrived = arrive(cloud, frame(0, age_us=5000), now_ns=7 * S)
    assert arrived.born_ns == 7 * S - 5 * MS - 10 * MS
    assert arrived.received_ns == 7 * S
    assert cloud.statistics().sessions[0].round_trip_ns == 20 * MS


def test_silent_node_is_pinged_then_lost_and_told() -> None:
    cloud = new_cloud()
    open_session(cloud, b"r1", "quiet")
    open_session(cloud, b"r2", "alive")
    for tenth in range(100):
        now_ns = tenth * 100 * MS
        cloud.receive(b"r2", Ping(tenth, 0), now_ns)
        actions = cloud.tick(now_ns)
        if closed(actions):
            break
    assert now_ns == 6 * S
    assert closed(actions) == [(b"r1", CloseReason.TIMEOUT)]
    assert SendTo(b"r1", Bye("silent for too long")) in actions
    assert cloud.num_sessions == 1
    assert cloud.statistics().closed["timeout"] == 1


def test_ping_is_answered_and_chunk_wanted_passed_on() -> None:
    cloud = new_cloud()
    open_session(cloud)
    request = BundleRequest(OLD, 0, 100)
    assert cloud.receive(b"r1", Ping(7, 8), 0) == [SendTo(b"r1", Pong(7, 8))]
    assert cloud.receive(b"r1", request, 0) == [ChunkWanted(b"r1", request)]


def test_bye_ends_the_session_in_order() -> None:
    cloud = new_cloud()
    open_session(cloud)
    arrived = arrive(cloud, frame(0))
    assert cloud.receive(b"r1", Bye("stopped"), 0) == [SessionClosed(b"r1", "dock", CloseReason.BYE)]
    assert cloud.answer(arrived.ticket, OK, 0) is None


def test_revoked_node_is_told_and_gone() -> None:
    cloud = new_cloud()
    assert cloud.revoke(b"r1", "key removed") == []
    open_session(cloud)
    actions = cloud.revoke(b"r1", "key removed")
    assert sent(actions) == [Reject(RejectCode.NOT_AUTHORISED, "key removed")]
    assert closed(actions) == [(b"r1", CloseReason.REVOKED)]


def test_draining_cloud_finishes_what_it_has_and_grants_nothing() -> None:
    cloud = new_cloud()
    open_session(cloud)
    before = arrive(cloud, frame(0))
    cloud.drain()
    assert answer(cloud, before).credit == 0
    assert not any(isinstance(message, Credit) for message in sent(cloud.tick(1)))
    on_the_way = arrive(cloud, frame(1))  # its credit was out already: it arrives and wants an answer
    send = cloud.answer(on_the_way.ticket, Answer(Outcome.SHUTDOWN), 2)
    assert send is not None
    (reject,) = sent(cloud.receive(b"r2", hello("late"), 3))
    assert isinstance(reject, Reject)
    assert reject.code is RejectCode.SHUTTING_DOWN
    assert cloud.close("stopped\n") == [
        SendTo(b"r1", Bye("stopped ")),
        SessionClosed(b"r1", "dock", CloseReason.SHUTDOWN),
    ]
    assert (cloud.num_sessions, cloud.statistics().credit, cloud.close("again")) == (0, 0, [])


def test_thousands_of_sessions_leave_nothing_behind() -> None:
    cloud = new_cloud(capacity_frames=16)
    for index in range(3000):
        routing_id = index.to_bytes(4, "big")
        open_session(cloud, routing_id, now_ns=index, boot=routing_id)
        arrived = arrive(cloud, frame(0), routing_id)
        if index % 2:
            cloud.answer(arrived.ticket, replace(OK, outcome=Outcome.SHUTDOWN), index)
            cloud.receive(routing_id, Bye(), index)
        else:
            cloud.link_lost(routing_id)
            cloud.answer(arrived.ticket, replace(OK, outcome=Outcome.SHUTDOWN), index)
    statistics = cloud.statistics()
    assert (statistics.credit, statistics.computing, statistics.sessions) == (0, 0, ())
    assert (statistics.peak_sessions, statistics.remembered) == (1, 0)
    assert not (cloud._by_boot or cloud._tickets or cloud._computing)


def test_window_must_hold_a_frame() -> None:
    with pytest.raises(LocalSessionError, match="window"):
        new_cloud(window_frames=0)


def test_repr_states_the_condition() -> None:
    cloud = new_cloud()
    open_session(cloud)
    arrive(cloud, frame(0))
    assert repr(cloud) == "<CloudSessions open, 1 sessions, credit 3, 1 computing>"


def result(sequence: int) -> Result:
    return Result(0, sequence, 0, Outcome.OK)


def test_memory_keeps_the_newest_of_each_camera() -> None:
    memory = ResultMemory(per_camera=3, in_all=100)
    for sequence in range(5):
        memory.add(FrameIdentity("dock", b"b", "gate", sequence), result(sequence))
    memory.add(FrameIdentity("dock", b"b", "belt", 0), result(0))
    kept = [sequence for sequence in range(5) if memory.get(FrameIdentity("dock", b"b", "gate", sequence))]
    assert (kept, len(memory)) == ([2, 3, 4], 4)
    assert memory.get(FrameIdentity("dock", b"b", "belt", 0)) == result(0)


def test_memory_forgets_the_camera_that_was_silent_the_longest() -> None:
    memory = ResultMemory(per_camera=3, in_all=6)
    for camera in ("a", "b", "a", "b", "a", "b"):
        memory.add(FrameIdentity("dock", b"b", camera, len(memory)), result(0))
    memory.add(FrameIdentity("dock", b"b", "a", 100), result(0))
    memory.add(FrameIdentity("dock", b"b", "c", 0), result(0))
    assert len(memory) == 4
    assert memory.get(FrameIdentity("dock", b"b", "b", 1)) is None
    assert memory.get(FrameIdentity("dock", b"b", "a", 100)) == result(0)


def test_node_with_too_many_cameras_is_refused() -> None:
    cloud = new_cloud(max_cameras=1)
    (reject,) = sent(cloud.receive(b"r1", hello(), 0))
    assert reject == Reject(RejectCode.LIMITS, "2 cameras, and a node may have 1 here")
    assert cloud.num_sessions == 0
    assert cloud.statistics().handshakes["limits"] == 1


def test_sessions_of_one_node_leave_room_for_the_others() -> None:
    """Starts of one node after another, each before the one before it was found dead."""
    cloud = new_cloud(max_node_sessions=2, max_sessions=3)
    for number in range(2):
        open_session(cloud, b"r%d" % number, boot=b"boo%d" % number)
    (reject,) = sent(cloud.receive(b"r2", hello(boot=b"boo2"), 0))
    assert reject == Reject(RejectCode.LIMITS, "2 sessions of this node are open")
    open_session(cloud, b"r3", node="yard")
    # The same start by another connection takes the place of its own old session.
    open_session(cloud, b"r4", boot=b"boo1")
    assert cloud.num_sessions == 3


def test_node_that_is_turned_away_is_told_and_loses_its_session() -> None:
    cloud = new_cloud()
    open_session(cloud)
    arrived = arrive(cloud, frame(0))
    actions = cloud.turn_away(b"r1", RejectCode.LIMITS, "more than 5 frames a second")
    assert sent(actions) == [Reject(RejectCode.LIMITS, "more than 5 frames a second")]
    assert closed(actions) == [(b"r1", CloseReason.LIMITS)]
    assert cloud.answer(arrived.ticket, OK, 0) is None
    # Without a session it is a handshake that failed.
    assert closed(cloud.turn_away(b"r1", RejectCode.LIMITS, "again")) == []
    assert cloud.statistics().handshakes["limits"] == 1
    assert cloud.statistics().closed["limits"] == 1


def test_welcome_says_how_large_a_message_may_be() -> None:
    assert open_session(new_cloud(max_message_bytes=170_000)).max_message_bytes == 170_000
