"""What changes about a node's session: another bundle, another endpoint, another version of the peer."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pipeline.errors import WireVersionError
from pipeline.session import (
    BACKOFF_LAST_NS,
    Action,
    Backoff,
    BundleOffered,
    CloseLink,
    CreditChanged,
    LossReason,
    Lost,
    NodeSession,
    NodeSettings,
    NodeState,
    Opened,
    OpenLink,
    Send,
)
from pipeline.wire import (
    BUNDLE_DELIVERY,
    BundleRequest,
    Bye,
    CameraEntry,
    Hello,
    Redirect,
    RejectCode,
    Welcome,
)

S = 1_000_000_000
OLD, NEW = b"\x11" * 32, b"\x22" * 32
FIRST, SECOND = "tcp://first:5570", "tcp://second:5570"
HELLO = Hello(1, "dock", b"boot" * 4, (OLD,), (CameraEntry(0, "gate"),), (BUNDLE_DELIVERY,))
WELCOME = Welcome(1, b"session1", OLD, 4, 200_000, 2000, 6000, (BUNDLE_DELIVERY,), OLD)


def up_session(welcome: Welcome = WELCOME, hello: Hello = HELLO) -> NodeSession:
    session = NodeSession(NodeSettings(hello, (FIRST, SECOND)), lambda: 0.5)
    session.start(0)
    session.receive(welcome, 0)
    return session


def lost(actions: list[Action]) -> Lost:
    (found,) = [action for action in actions if isinstance(action, Lost)]
    return found


def test_offer_is_told_at_the_start_and_when_it_changes() -> None:
    session = NodeSession(NodeSettings(HELLO, (FIRST,)), lambda: 0.5)
    session.start(0)
    assert session.receive(WELCOME, 0) == [Opened(WELCOME), CreditChanged(4), BundleOffered(OLD)]
    assert session.receive(WELCOME, 1) == []
    assert session.receive(replace(WELCOME, offer=NEW), 2) == [BundleOffered(NEW)]
    assert session.receive(replace(WELCOME, offer=NEW), 3) == []
    # Nothing else of the session is touched by it.
    assert (session.credit, session.is_up) == (4, True)


def test_without_a_common_bundle_frames_wait_and_pieces_are_asked_for() -> None:
    session = up_session(replace(WELCOME, bundle_id=NEW, offer=NEW))
    assert (session.is_up, session.needs_bundle, session.can_send, session.credit) == (True, True, False, 0)
    request = BundleRequest(NEW, 0, 100)
    assert session.request_chunk(request) == [Send(request)]


def test_first_start_has_no_bundle_at_all() -> None:
    session = up_session(replace(WELCOME, bundle_id=NEW, offer=NEW), replace(HELLO, bundle_ids=()))
    assert (session.is_up, session.can_send) == (True, False)


def test_cloud_without_delivery_must_decode_what_the_node_encodes() -> None:
    """It has only the bundle that older frames in the spool are coded with: that is no session."""
    hello = replace(HELLO, bundle_ids=(NEW, OLD), capabilities=())
    session = NodeSession(NodeSettings(hello, (FIRST,)), lambda: 0.5)
    session.start(0)
    actions = session.receive(replace(WELCOME, bundle_id=OLD, capabilities=(), offer=None), 0)
    assert (lost(actions).reason, lost(actions).code) == (LossReason.REFUSED, RejectCode.UNKNOWN_BUNDLE)
    assert Send(Bye("refused")) in actions
    (backoff,) = [action for action in actions if isinstance(action, Backoff)]
    assert backoff.until_ns >= BACKOFF_LAST_NS // 2


def test_renewed_session_says_goodbye_and_opens_at_once() -> None:
    session = up_session()
    hello = replace(HELLO, bundle_ids=(NEW, OLD))
    actions = session.renew(hello, 5)
    assert actions[0] == Send(Bye("renewed"))
    assert lost(actions) == Lost(LossReason.RENEWED, "opened anew with another bundle", None, was_up=True)
    assert actions[2:] == [CloseLink(is_orderly=True), CreditChanged(0), OpenLink(FIRST, 0), Send(hello)]
    session.receive(replace(WELCOME, session_id=b"session2", bundle_id=NEW, offer=NEW), 6)
    assert (session.can_send, session.needs_bundle) == (True, False)


@pytest.mark.parametrize("state", [NodeState.IDLE, NodeState.DOWN, NodeState.CLOSED])
def test_renewal_without_a_link_is_for_the_next_one(state: NodeState) -> None:
    session = NodeSession(NodeSettings(HELLO, (FIRST,)), lambda: 0.5)
    if state is not NodeState.IDLE:
        session.start(0)
        session.link_failed(LossReason.CLOSED, "cut", 0)
    if state is NodeState.CLOSED:
        session.stop("over")
    hello = replace(HELLO, bundle_ids=(NEW,))
    assert session.renew(hello, 1) == []
    assert session.state is state
    if state is NodeState.DOWN:
        assert session.tick(60 * S) == [OpenLink(FIRST, 0), Send(hello)]


def test_session_moves_to_a_better_endpoint_without_a_pause() -> None:
    session = NodeSession(NodeSettings(HELLO, (FIRST, SECOND)), lambda: 0.5)
    session.start(0)
    session.link_failed(LossReason.CLOSED, "cut", 0)
    assert session.tick(60 * S) == [OpenLink(SECOND, 1), Send(HELLO)]
    session.receive(WELCOME, 60 * S)
    actions = session.move_to(0, 61 * S)
    assert lost(actions) == Lost(LossReason.FAILOVER, f"back to {FIRST}", None, was_up=True)
    assert OpenLink(FIRST, 0) in actions
    assert not [action for action in actions if isinstance(action, Backoff)]
    # In vain: the other one is next, as ever.
    session.link_failed(LossReason.CLOSED, "cut", 62 * S)
    assert OpenLink(SECOND, 1) in session.tick(120 * S)


def test_session_moves_only_when_it_is_up() -> None:
    session = NodeSession(NodeSettings(HELLO, (FIRST, SECOND)), lambda: 0.5)
    session.start(0)
    assert session.move_to(1, 0) == []
    assert session.endpoint_index == 0


def test_redirected_session_is_known_as_such() -> None:
    session = up_session()
    assert not session.is_redirected
    session.receive(Redirect("tcp://127.0.0.1:9"), 0)
    assert session.is_redirected


def test_peer_of_another_major_version_is_a_named_refusal_that_is_waited_out() -> None:
    session = NodeSession(NodeSettings(HELLO, (FIRST,)), lambda: 0.5)
    session.start(0)
    actions = session.malformed(WireVersionError(2, 1), 0)
    assert (lost(actions).reason, lost(actions).code) == (LossReason.REFUSED, RejectCode.BAD_VERSION)
    assert "version 2" in lost(actions).text
    (backoff,) = [action for action in actions if isinstance(action, Backoff)]
    assert backoff.until_ns >= BACKOFF_LAST_NS // 2
