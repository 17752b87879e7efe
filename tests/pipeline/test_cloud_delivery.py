"""The cloud's sessions with several bundles: which one a node gets, what it is offered, what its old frames are."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pipeline.cloud_actions import Answer, ChunkWanted, CloudAction, CloudSettings, FrameArrived, SendTo
from pipeline.cloud_session import CloudSessions
from pipeline.errors import LocalSessionError
from pipeline.ledger import Outcome
from pipeline.wire import (
    BUNDLE_DELIVERY,
    BundleRequest,
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
    Welcome,
)

OLD, NEW, OTHER = b"\x01" * 32, b"\x02" * 32, b"\x03" * 32


def new_cloud(offer: bytes | None = NEW) -> CloudSessions:
    settings = CloudSettings(frozenset({OLD, NEW}), window_frames=4, capabilities=(BUNDLE_DELIVERY,), offer=offer)
    return CloudSessions(settings, lambda: bytes(8))


def hello(*bundle_ids: bytes, fetches: bool = True) -> Hello:
    capabilities = (BUNDLE_DELIVERY,) if fetches else ()
    return Hello(1, "dock", b"boot" * 4, bundle_ids, (CameraEntry(0, "gate"),), capabilities)


def sent(actions: list[CloudAction]) -> list[Message]:
    return [action.message for action in actions if isinstance(action, SendTo)]


def open_session(cloud: CloudSessions, message: Hello, routing_id: bytes = b"r") -> Welcome:
    (welcome,) = sent(cloud.receive(routing_id, message, 0))
    assert isinstance(welcome, Welcome)
    return welcome


def frame(bundle_id: bytes, sequence: int = 0) -> FrameMessage:
    return FrameMessage(0, sequence, 0, 0, None, b"\x01\x00" + bundle_id[:8] + b"rest")


@pytest.mark.parametrize("own", [(), (OTHER,)], ids=["none", "unknown"])
def test_node_without_a_fitting_bundle_may_fetch_and_nothing_else(own: tuple[bytes, ...]) -> None:
    cloud = new_cloud()
    welcome = open_session(cloud, hello(*own))
    assert (welcome.bundle_id, welcome.offer, welcome.credit) == (NEW, NEW, 0)
    assert [message for message in sent(cloud.tick(10**9)) if isinstance(message, Credit)] == []
    assert cloud.statistics().credit == 0
    wanted = BundleRequest(NEW, 0, 100)
    assert cloud.receive(b"r", wanted, 0) == [ChunkWanted(b"r", wanted)]
    (reject,) = sent(cloud.receive(b"r", frame(OTHER), 0))
    assert isinstance(reject, Reject)
    assert reject.code is RejectCode.LIMITS


def test_node_that_brings_its_own_is_not_told_of_offers() -> None:
    cloud = new_cloud()
    assert open_session(cloud, hello(OLD, fetches=False)).offer is None
    assert cloud.change_offer(OLD) == []
    (reject,) = sent(cloud.receive(b"s", hello(OTHER, fetches=False), 0))
    assert isinstance(reject, Reject)
    assert reject.code is RejectCode.UNKNOWN_BUNDLE


def test_node_streams_on_with_what_it_has_while_it_is_offered_another() -> None:
    cloud = new_cloud()
    welcome = open_session(cloud, hello(OLD))
    assert (welcome.bundle_id, welcome.offer, welcome.credit) == (OLD, NEW, 4)


def test_changed_offer_is_told_to_open_sessions_once() -> None:
    cloud = new_cloud(offer=OLD)
    first = open_session(cloud, hello(OLD), b"a")
    open_session(cloud, replace(hello(OLD, fetches=False), node="other"), b"b")
    assert cloud.change_offer(NEW) == [SendTo(b"a", replace(first, offer=NEW))]
    assert cloud.change_offer(NEW) == []
    # A repeated HELLO gets the WELCOME of today.
    assert sent(cloud.receive(b"a", hello(OLD), 1)) == [replace(first, offer=NEW)]
    with pytest.raises(LocalSessionError, match="not served"):
        cloud.change_offer(OTHER)


def test_frame_finds_its_decoder_by_its_own_header_among_those_of_the_node() -> None:
    cloud = new_cloud()
    open_session(cloud, hello(NEW, OLD))
    found = [cloud.receive(b"r", frame(bundle_id, number), 0)[0] for number, bundle_id in enumerate((NEW, OLD, OTHER))]
    # The third is nobody's: it goes to the session's decoder, which says that it is corrupt.
    assert [each.bundle_id for each in found if isinstance(each, FrameArrived)] == [NEW, OLD, NEW]


def test_bundle_that_the_node_did_not_name_is_not_its_to_use() -> None:
    cloud = new_cloud()
    open_session(cloud, hello(NEW))
    (arrived,) = cloud.receive(b"r", frame(OLD), 0)
    assert isinstance(arrived, FrameArrived)
    assert arrived.bundle_id == NEW


def test_node_that_only_looks_whether_the_cloud_is_there_is_told_and_opens_nothing() -> None:
    cloud = new_cloud()
    (reject,) = sent(cloud.receive(b"r", Ping(1, 2), 0))
    assert isinstance(reject, Reject)
    assert (reject.code, cloud.num_sessions) == (RejectCode.NO_SESSION, 0)
    cloud.drain()
    (reject,) = sent(cloud.receive(b"r", Ping(1, 2), 0))
    assert isinstance(reject, Reject)
    assert reject.code is RejectCode.SHUTTING_DOWN


def test_session_on_a_long_link_gets_a_longer_window() -> None:
    settings = CloudSettings(frozenset({NEW}), window_frames=2, max_window_frames=64)
    cloud = CloudSessions(settings, lambda: bytes(8))
    open_session(cloud, hello(NEW, fetches=False))
    ms, now_ns, credit, sequence = 10**6, 0, 2, 0
    pings = [message for message in sent(cloud.tick(0)) if isinstance(message, Ping)]
    cloud.receive(b"r", Pong(pings[0].token, 0), 200 * ms)
    for _ in range(100):
        now_ns += 210 * ms
        arrived = []
        while credit:
            (each,) = cloud.receive(b"r", frame(NEW, sequence), now_ns)
            assert isinstance(each, FrameArrived)
            arrived.append(each)
            sequence, credit = sequence + 1, credit - 1
        for each in arrived:
            answered = cloud.answer(each.ticket, Answer(Outcome.OK), now_ns + 10 * ms)
            assert answered is not None
            assert isinstance(answered.message, Result)
            credit += answered.message.credit
        credit += sum(message.frames for message in sent(cloud.tick(now_ns)) if isinstance(message, Credit))
        for ping in sent(cloud.tick(now_ns)):
            if isinstance(ping, Ping):
                cloud.receive(b"r", Pong(ping.token, 0), now_ns)
    (session,) = cloud.statistics().sessions
    assert session.window > 30
    assert cloud.statistics().credit <= session.window


@pytest.mark.parametrize("outcome", [Outcome.STALE, Outcome.SHUTDOWN])
def test_frame_that_nobody_got_to_is_computed_when_it_comes_again(outcome: Outcome) -> None:
    cloud = new_cloud()
    open_session(cloud, hello(NEW, fetches=False))
    for _ in range(2):
        (arrived,) = cloud.receive(b"r", frame(NEW), 0)
        assert isinstance(arrived, FrameArrived)
        cloud.answer(arrived.ticket, Answer(outcome), 0)
    assert cloud.statistics().duplicates == 0
