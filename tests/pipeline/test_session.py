"""The node's session: every way in and out of `up`, without a socket or a clock."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from pipeline.errors import LocalSessionError, WireFormatError
from pipeline.failover import MAX_REDIRECTS
from pipeline.heartbeat import BUSY_INTERVALS, MAX_OPEN_PINGS, ROUND_TRIP_SAMPLES, Heartbeat
from pipeline.ledger import Outcome
from pipeline.session import (
    BACKOFF_FIRST_NS,
    BACKOFF_LAST_NS,
    HELLO_RETRY_NS,
    HELLO_TIMEOUT_NS,
    STABLE_SESSION_NS,
    Action,
    Backoff,
    ChunkArrived,
    CloseLink,
    CreditChanged,
    LossReason,
    Lost,
    NodeSession,
    NodeSettings,
    NodeState,
    Opened,
    OpenLink,
    ResultArrived,
    Send,
)
from pipeline.wire import (
    MAX_CREDIT_FRAMES,
    BundleChunk,
    BundleRequest,
    Bye,
    CameraEntry,
    Credit,
    FrameMessage,
    Hello,
    Message,
    Ping,
    Pong,
    Redirect,
    Reject,
    RejectCode,
    Result,
    Welcome,
)

MS = 1_000_000
S = 1000 * MS
BUNDLE = b"\x22" * 32
FIRST, SECOND, THIRD = "tcp://first:5570", "tcp://second:5570", "tcp://third:5570"
HELLO = Hello(0, "dock", b"boot" * 4, (BUNDLE,), (CameraEntry(0, "gate"), CameraEntry(1, "belt")))
WELCOME = Welcome(0, b"session1", BUNDLE, 2, 200_000, heartbeat_ms=2000, peer_timeout_ms=6000)


def frame(sequence: int = 0, camera: int = 0) -> FrameMessage:
    return FrameMessage(camera, sequence, 0, 0, None, b"bits")


def result(sequence: int = 0, camera: int = 0, credit: int = 1) -> Result:
    return Result(camera, sequence, 0, Outcome.OK, credit=credit)


def new_session(*endpoints: str, random: Callable[[], float] = lambda: 0.5) -> NodeSession:
    return NodeSession(NodeSettings(HELLO, endpoints or (FIRST,)), random)


def up_session(*endpoints: str, random: Callable[[], float] = lambda: 0.5, now_ns: int = 0) -> NodeSession:
    session = new_session(*endpoints, random=random)
    session.start(now_ns)
    session.receive(WELCOME, now_ns)
    assert session.is_up
    return session


def only(actions: list[Action], kind: type) -> Action:
    (found,) = [action for action in actions if isinstance(action, kind)]
    return found


def backoff_ns(actions: list[Action], now_ns: int) -> int:
    found = only(actions, Backoff)
    assert isinstance(found, Backoff)
    return found.until_ns - now_ns


def test_hello_then_welcome_opens_with_its_credit() -> None:
    session = new_session()
    assert (session.state, session.next_deadline_ns(), session.tick(0)) == (NodeState.IDLE, None, [])
    assert session.start(0) == [OpenLink(FIRST, 0), Send(HELLO)]
    assert (session.state, session.can_send, session.credit) == (NodeState.CONNECTING, False, 0)
    assert session.receive(WELCOME, 5) == [Opened(WELCOME), CreditChanged(2)]
    assert (session.state, session.can_send, session.welcome) == (NodeState.UP, True, WELCOME)
    assert session.max_message_bytes == 200_000


def test_start_is_for_once_and_endpoints_are_needed() -> None:
    session = new_session()
    session.start(0)
    with pytest.raises(LocalSessionError, match="connecting"):
        session.start(1)
    with pytest.raises(LocalSessionError, match="endpoint"):
        NodeSession(NodeSettings(HELLO, ()), lambda: 0.0)


def test_hello_is_repeated_until_the_timeout_ends_the_attempt() -> None:
    """A socket that is not connected yet drops what is sent, so one HELLO is not enough."""
    session = new_session()
    session.start(0)
    now_ns, hellos = 0, 0
    while session.state is NodeState.CONNECTING:
        deadline_ns = session.next_deadline_ns()
        assert deadline_ns is not None
        assert session.tick(deadline_ns - 1) == []
        now_ns = deadline_ns
        actions = session.tick(now_ns)
        hellos += actions == [Send(HELLO)]
    assert (now_ns, hellos) == (HELLO_TIMEOUT_NS, HELLO_TIMEOUT_NS // HELLO_RETRY_NS - 1)
    assert actions == [
        Lost(LossReason.NO_ANSWER, "no answer to HELLO", None, was_up=False),
        CloseLink(is_orderly=False),
        Backoff(now_ns + BACKOFF_FIRST_NS // 2),
    ]


def test_repeated_welcome_changes_nothing_and_another_one_ends_the_session() -> None:
    session = up_session()
    session.send_frame(frame(), 1)
    assert session.receive(WELCOME, 2) == []
    assert session.credit == 1
    other = Welcome(0, b"session2", BUNDLE, 2, 200_000, 2000, 6000)
    assert isinstance(only(session.receive(other, 3), Lost), Lost)


def test_credit_is_spent_by_frames_and_granted_by_results_and_credit() -> None:
    session = up_session()
    assert session.send_frame(frame(0), 1) == [Send(frame(0)), CreditChanged(1)]
    assert session.send_frame(frame(1), 1) == [Send(frame(1)), CreditChanged(0)]
    assert not session.can_send
    with pytest.raises(LocalSessionError, match="credit"):
        session.send_frame(frame(2), 1)
    assert session.receive(result(0, camera=1), 2) == [ResultArrived("belt", result(0, 1)), CreditChanged(1)]
    assert session.receive(result(1, credit=0), 2) == [ResultArrived("gate", result(1, credit=0))]
    assert session.receive(Credit(3), 2) == [CreditChanged(4)]
    assert session.credit == 4


def test_frame_of_a_camera_that_hello_does_not_name_is_our_bug() -> None:
    session = up_session()
    with pytest.raises(LocalSessionError, match="camera 2"):
        session.send_frame(frame(camera=2), 0)
    assert session.credit == 2


def test_no_frame_without_a_session() -> None:
    for session in (new_session(), up_session()):
        session.stop("done")
        with pytest.raises(LocalSessionError):
            session.send_frame(frame(), 0)


def test_ping_is_answered_and_chunk_passed_on() -> None:
    session = up_session()
    chunk = BundleChunk(BUNDLE, 0, 4, b"abcd")
    assert session.receive(Ping(7, 8), 1) == [Send(Pong(7, 8))]
    assert session.receive(chunk, 1) == [ChunkArrived(chunk)]


def test_silent_cloud_is_pinged_then_lost() -> None:
    session = up_session()
    pings = []
    now_ns = 0
    while session.is_up:
        actions = session.tick(now_ns)
        pings += [now_ns for action in actions if isinstance(action, Send)]
        now_ns = session.next_deadline_ns() or now_ns
        assert now_ns < 10 * S
    assert pings == [0, 2 * S, 4 * S]
    lost = only(actions, Lost)
    assert lost == Lost(LossReason.HEARTBEAT, "cloud is silent", None, was_up=True)
    assert session.credit == 0
    assert only(actions, CreditChanged) == CreditChanged(0)


def test_any_message_keeps_the_session() -> None:
    session = up_session()
    for second in range(0, 60, 5):
        session.receive(Credit(1), second * S)
        session.tick(second * S + 4 * S)
    assert session.is_up


def test_round_trip_is_the_smallest_recent_one_and_survives_the_session() -> None:
    session = up_session()
    assert session.round_trip_ns is None
    for second, trip_ms in ((0, 30), (3, 12), (6, 40)):
        (sent,) = session.tick(second * S)
        assert isinstance(sent, Send)
        assert isinstance(sent.message, Ping)
        session.receive(Pong(sent.message.token, 0), second * S + trip_ms * MS)
    assert session.round_trip_ns == 12 * MS
    session.link_failed(LossReason.CLOSED, "gone", 7 * S)
    assert session.round_trip_ns == 12 * MS


def test_lost_session_gets_a_fresh_link_after_the_backoff() -> None:
    """Credit of the old session is gone, and nothing happens until then."""
    session = up_session()
    actions = session.link_failed(LossReason.CLOSED, "disconnected", 100)
    until_ns = 100 + BACKOFF_FIRST_NS // 2
    assert actions == [
        Lost(LossReason.CLOSED, "disconnected", None, was_up=True),
        CloseLink(is_orderly=False),
        CreditChanged(0),
        Backoff(until_ns),
    ]
    assert (session.state, session.welcome, session.next_deadline_ns()) == (NodeState.DOWN, None, until_ns)
    assert session.receive(result(), 101) == []
    assert session.link_failed(LossReason.CLOSED, "again", 102) == []
    assert session.tick(until_ns - 1) == []
    assert session.tick(until_ns) == [OpenLink(FIRST, 0), Send(HELLO)]


def test_backoff_doubles_to_its_ceiling_with_full_jitter() -> None:
    for share in (0.0, 0.25, 0.999):
        session = new_session(random=lambda share=share: share)
        session.start(0)
        now_ns, waits = 0, []
        for _ in range(12):
            waits.append(backoff_ns(session.link_failed(LossReason.CLOSED, "refused", now_ns), now_ns))
            now_ns += waits[-1]
            session.tick(now_ns)
        ceilings = [min(BACKOFF_LAST_NS, BACKOFF_FIRST_NS << attempt) for attempt in range(12)]
        assert waits == [int(share * ceiling_ns) for ceiling_ns in ceilings]


def test_backoff_starts_anew_after_a_session_that_worked_only() -> None:
    """A cloud that takes the session and falls over at once is not asked ever faster."""

    def wait_after(prepare: Callable[[NodeSession, int], int]) -> int:
        session = new_session(random=lambda: 0.5)
        session.start(0)
        now_ns = 0
        for _ in range(6):
            now_ns += backoff_ns(session.link_failed(LossReason.CLOSED, "refused", now_ns), now_ns)
            session.tick(now_ns)
        session.receive(WELCOME, now_ns)
        now_ns = prepare(session, now_ns)
        return backoff_ns(session.link_failed(LossReason.CLOSED, "gone", now_ns), now_ns)

    def with_result(session: NodeSession, now_ns: int) -> int:
        session.receive(result(), now_ns)
        return now_ns

    assert wait_after(lambda session, now_ns: now_ns) == BACKOFF_LAST_NS // 2
    assert wait_after(with_result) == BACKOFF_FIRST_NS // 2
    assert wait_after(lambda session, now_ns: now_ns + STABLE_SESSION_NS) == BACKOFF_FIRST_NS // 2


def opened_endpoints(session: NodeSession, losses: int, code: RejectCode | None = None) -> Iterator[tuple[str, int]]:
    """(endpoint, wait before it) of the attempts after each loss."""
    now_ns = 0
    for _ in range(losses):
        if code is None:
            actions = session.link_failed(LossReason.CLOSED, "refused", now_ns)
        else:
            actions = session.receive(Reject(code), now_ns)
        wait_ns = backoff_ns(actions, now_ns)
        now_ns += wait_ns
        opened = session.tick(now_ns)[0]
        assert isinstance(opened, OpenLink)
        yield opened.endpoint, wait_ns


def test_each_endpoint_in_turn_and_the_ceiling_rises_once_all_have_failed() -> None:
    session = new_session(FIRST, SECOND, THIRD, random=lambda: 0.5)
    session.start(0)
    half_ns = BACKOFF_FIRST_NS // 2
    assert list(opened_endpoints(session, 6)) == [
        (SECOND, half_ns),
        (THIRD, half_ns),
        (FIRST, half_ns),
        (SECOND, 2 * half_ns),
        (THIRD, 2 * half_ns),
        (FIRST, 2 * half_ns),
    ]
    assert session.endpoint_index == 0


@pytest.mark.parametrize("code", RejectCode)
def test_reject_is_named_and_lasting_ones_wait_longer(code: RejectCode) -> None:
    session = new_session()
    session.start(0)
    actions = session.receive(Reject(code, "because"), 0)
    reason = LossReason.AUTH if code is RejectCode.NOT_AUTHORISED else LossReason.REFUSED
    assert only(actions, Lost) == Lost(reason, "because", code, was_up=False)
    is_passing = code in (RejectCode.NO_SESSION, RejectCode.SHUTTING_DOWN)
    assert backoff_ns(actions, 0) == (BACKOFF_FIRST_NS // 2 if is_passing else BACKOFF_LAST_NS * 3 // 4)


def test_reject_without_text_still_says_why() -> None:
    session = up_session()
    lost = only(session.receive(Reject(RejectCode.NO_SESSION), 0), Lost)
    assert lost == Lost(LossReason.REFUSED, "no_session", RejectCode.NO_SESSION, was_up=True)


def test_refused_handshake_of_the_link_waits_longer_too() -> None:
    session = new_session()
    session.start(0)
    assert backoff_ns(session.link_failed(LossReason.AUTH, "key refused", 0), 0) == BACKOFF_LAST_NS * 3 // 4


def test_lasting_refusal_tries_the_other_endpoints_first() -> None:
    session = new_session(FIRST, SECOND, random=lambda: 0.5)
    session.start(0)
    assert list(opened_endpoints(session, 2, RejectCode.FULL)) == [
        (SECOND, BACKOFF_FIRST_NS // 2),
        (FIRST, BACKOFF_LAST_NS * 3 // 4),
    ]


@pytest.mark.parametrize("is_up", [False, True])
def test_bye_of_the_cloud_ends_the_session(is_up: bool) -> None:
    session = up_session() if is_up else new_session()
    if not is_up:
        session.start(0)
    actions = session.receive(Bye("restart"), 1)
    assert only(actions, Lost) == Lost(LossReason.CLOSED, "restart", None, was_up=is_up)
    assert not any(isinstance(action, Send) for action in actions)


@pytest.mark.parametrize("is_up", [False, True])
def test_redirect_opens_the_named_endpoint_next(is_up: bool) -> None:
    session = up_session(FIRST, SECOND)
    if not is_up:
        session = new_session(FIRST, SECOND)
        session.start(0)
    actions = session.receive(Redirect("tcp://other:5570"), 0)
    assert only(actions, Lost) == Lost(LossReason.REDIRECTED, "tcp://other:5570", None, was_up=is_up)
    # It still holds our session, so it is told.
    assert actions[:1] == ([Send(Bye("redirected"))] if is_up else [only(actions, Lost)])
    assert only(actions, CloseLink) == CloseLink(is_orderly=is_up)
    now_ns = backoff_ns(actions, 0)
    assert session.tick(now_ns) == [OpenLink("tcp://other:5570", 0), Send(HELLO)]
    # Where it was sent to fails: back to the list, from its start.
    actions = session.link_failed(LossReason.CLOSED, "refused", now_ns)
    assert session.tick(now_ns + backoff_ns(actions, now_ns))[0] == OpenLink(FIRST, 0)


def test_redirect_to_where_the_node_may_not_go_ends_the_session() -> None:
    """Without keys nobody may send its frames to another machine."""
    settings = NodeSettings(HELLO, (FIRST,), may_open=lambda endpoint: endpoint == FIRST)
    session = NodeSession(settings, lambda: 0.0)
    session.start(0)
    lost = only(session.receive(Redirect("tcp://other:5570"), 0), Lost)
    assert isinstance(lost, Lost)
    assert lost.reason is LossReason.PROTOCOL
    assert "tcp://other:5570" in lost.text
    assert session.tick(0)[0] == OpenLink(FIRST, 0)


def test_redirects_in_circles_end() -> None:
    session = new_session(random=lambda: 0.0)
    session.start(0)
    reasons = []
    for _ in range(MAX_REDIRECTS + 1):
        lost = only(session.receive(Redirect("tcp://other:5570"), 0), Lost)
        assert isinstance(lost, Lost)
        reasons.append(lost.reason)
        opened = session.tick(0)[0]
    assert reasons == [LossReason.REDIRECTED] * MAX_REDIRECTS + [LossReason.PROTOCOL]
    assert opened == OpenLink(FIRST, 0)


def test_results_show_that_redirects_lead_somewhere() -> None:
    session = new_session(random=lambda: 0.0)
    session.start(0)
    for _ in range(3 * MAX_REDIRECTS):
        session.receive(WELCOME, 0)
        session.receive(result(), 0)
        lost = only(session.receive(Redirect("tcp://other:5570"), 0), Lost)
        assert isinstance(lost, Lost)
        assert lost.reason is LossReason.REDIRECTED
        session.tick(0)


NEVER_FROM_A_CLOUD: list[Message] = [HELLO, frame(), BundleRequest(BUNDLE, 0, 1)]


@pytest.mark.parametrize("message", NEVER_FROM_A_CLOUD)
def test_message_that_no_cloud_sends_costs_the_session(message: Message) -> None:
    actions = up_session().receive(message, 1)
    lost = only(actions, Lost)
    assert isinstance(lost, Lost)
    assert lost.reason is LossReason.PROTOCOL
    assert actions[0] == Send(Bye("protocol"))


@pytest.mark.parametrize("message", [result(), Credit(1), Ping(0, 0), Pong(0, 0), *NEVER_FROM_A_CLOUD])
def test_message_before_welcome_costs_the_attempt(message: Message) -> None:
    session = new_session()
    session.start(0)
    lost = only(session.receive(message, 1), Lost)
    assert isinstance(lost, Lost)
    assert (lost.reason, lost.was_up) == (LossReason.PROTOCOL, False)


def test_malformed_bytes_cost_the_session() -> None:
    lost = only(up_session().malformed(WireFormatError("not a message"), 1), Lost)
    assert lost == Lost(LossReason.PROTOCOL, "not a message", None, was_up=True)


def test_cloud_that_breaks_its_own_terms_loses_the_session() -> None:
    unoffered = Welcome(0, b"session1", b"\x33" * 32, 2, 200_000, 2000, 6000)
    session = new_session()
    session.start(0)
    assert only(session.receive(unoffered, 0), Lost)
    assert session.state is NodeState.DOWN
    assert only(up_session().receive(result(camera=9), 0), Lost)
    assert only(up_session().receive(Credit(MAX_CREDIT_FRAMES), 0), Lost)


@pytest.mark.parametrize("prepare", ["idle", "connecting", "up", "down", "closed"])
def test_stop_works_from_every_state_and_twice(prepare: str) -> None:
    session = new_session()
    if prepare != "idle":
        session.start(0)
    if prepare in ("up", "down"):
        session.receive(WELCOME, 0)
    if prepare == "down":
        session.link_failed(LossReason.CLOSED, "gone", 0)
    if prepare == "closed":
        session.stop("first")
    expected = [Send(Bye("ctrl c")), CloseLink(is_orderly=True)] if prepare in ("connecting", "up") else []
    assert session.stop("ctrl\nc") == expected
    assert session.stop("ctrl\nc") == []
    assert (session.state, session.next_deadline_ns(), session.tick(10**15)) == (NodeState.CLOSED, None, [])
    assert session.receive(WELCOME, 10**15) == []


def test_repr_states_the_condition() -> None:
    assert repr(up_session()) == "<NodeSession up, endpoint 0, credit 2>"


def test_heartbeat_pings_busy_links_now_and_then() -> None:
    """Round trips are measured with PINGs only, also when results keep the link alive."""
    heartbeat = Heartbeat(2 * S, 6 * S, 0)
    pings = []
    for tenth in range(600):
        heartbeat.hear(tenth * 100 * MS)
        if heartbeat.due_ping(tenth * 100 * MS):
            pings.append(tenth / 10)
    assert pings == [BUSY_INTERVALS * 2.0 * index for index in range(6)]


def test_heartbeat_measures_round_trips_longer_than_its_interval() -> None:
    heartbeat = Heartbeat(1 * S, 100 * S, 0)
    pings = [heartbeat.due_ping(second * S) for second in range(4)]
    assert pings[1] is not None
    heartbeat.take_pong(Pong(pings[1].token, 0), 4 * S)
    assert heartbeat.round_trip_ns == 3 * S


def test_heartbeat_ignores_invented_and_repeated_pongs() -> None:
    heartbeat = Heartbeat(1 * S, 10**6 * S, 0)
    ping = heartbeat.due_ping(0)
    assert ping is not None
    heartbeat.take_pong(Pong(ping.token + 1, 0), 1)
    assert heartbeat.round_trip_ns is None
    heartbeat.take_pong(Pong(ping.token, 10**9), 20)
    heartbeat.take_pong(Pong(ping.token, 10**9), 21)
    assert heartbeat.round_trip_ns == 20


def test_heartbeat_forgets_old_round_trips_and_unanswered_pings() -> None:
    heartbeat = Heartbeat(1 * S, 10**6 * S, 0)
    tokens = []
    for second in range(ROUND_TRIP_SAMPLES + 1):
        ping = heartbeat.due_ping(second * S)
        assert ping is not None
        tokens.append(ping.token)
        if second == 0:
            heartbeat.take_pong(Pong(ping.token, 0), 5)
        elif second % 2:
            heartbeat.take_pong(Pong(ping.token, 0), second * S + 50)
    assert heartbeat.round_trip_ns == 5
    for second in range(20, 60):
        heartbeat.due_ping(second * S)
    assert len(heartbeat._pinged_ns) == MAX_OPEN_PINGS
    for second in range(100, 100 + ROUND_TRIP_SAMPLES):
        ping = heartbeat.due_ping(second * S)
        assert ping is not None
        heartbeat.take_pong(Pong(ping.token, 0), second * S + 70)
    assert heartbeat.round_trip_ns == 70
