"""Real CURVE sockets: who gets in, under which key, and that nobody does when the handler is missing."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
import zmq
from zmq.utils import z85

from nodes.authenticator import DOMAIN, REMIND_EVERY_S, ZAP_ENDPOINT, AllowedNodes, Authenticator
from nodes.frontdoor import FrontDoor
from nodes.key_files import make_pair
from nodes.uplink import HandshakeFailure, LinkKeys, Uplink
from pipeline.admission import KEY_CHARS, routing_id_of
from pipeline.authorisation import NamedKey, render_public
from pipeline.errors import ConfigError, SecurityError

PATIENCE_S = 60.0
CLOUD, DOOR, STRANGER = (make_pair(name) for name in ("cloud", "door", "stranger"))
Context = zmq.Context  # of zmq.Socket[bytes]


def until(is_met: Callable[[], object], what: str) -> None:
    limit_s = time.monotonic() + PATIENCE_S
    pause = threading.Event()
    while not is_met():
        assert time.monotonic() < limit_s, what
        pause.wait(0.02)


@dataclass
class Site:
    """A cloud's door with its handler, and uplinks that knock."""

    door: FrontDoor
    guard: Authenticator | None
    allowed: Path
    reloads: list[int]
    opened: ExitStack

    def uplink(self, pair: tuple[NamedKey, NamedKey] | None, cloud: NamedKey = CLOUD[0]) -> Uplink:
        keys = LinkKeys(pair[0].key, pair[1].key, (cloud.key,)) if pair else None
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        uplink = Uplink(context, keys)
        self.opened.callback(context.term)
        self.opened.callback(uplink.close)
        uplink.open(self.door.endpoint)
        return uplink

    def receive(self) -> list[tuple[bytes, list[bytes]]]:
        found: list[tuple[bytes, list[bytes]]] = []
        until(lambda: found.extend(self.door.receive(10)) or found, "nothing came")
        return found


def fail(uplink: Uplink) -> HandshakeFailure:
    """Wait for the handshake to fail."""
    found: list[HandshakeFailure] = []

    def look() -> bool:
        failure = uplink.take_failure()
        found.extend([failure] if failure else [])
        return bool(found)

    until(look, "the handshake does not fail")
    return found[0]


def knock(uplink: Uplink, *parts: bytes) -> None:
    until(lambda: uplink.send(parts), "not connected")


@pytest.fixture
def allowed(tmp_path: Path) -> Path:
    path = tmp_path / "nodes"
    path.mkdir()
    (path / "door.pub").write_text(render_public(DOOR[0]))
    return path


@pytest.fixture
def make_site(allowed: Path) -> Iterator[Callable[..., Site]]:
    with ExitStack() as opened:

        def make(*, has_handler: bool = True, has_keys: bool = True) -> Site:
            context = opened.enter_context(zmq.Context())
            reloads = [0]
            guard = None
            if has_handler:
                guard = Authenticator(context, AllowedNodes(allowed), lambda: reloads[0])
                opened.callback(guard.close)
            door = FrontDoor(context, "tcp://127.0.0.1:*", 100_000, CLOUD[1].key if has_keys else None)
            opened.callback(door.close, 0)
            return Site(door, guard, allowed, reloads, opened)

        yield make


@pytest.fixture
def site(make_site: Callable[..., Site]) -> Site:
    return make_site()


def test_allowed_node_is_known_by_its_key_and_gets_answers(site: Site) -> None:
    uplink = site.uplink(DOOR)
    knock(uplink, b"hello", b"reference")
    ((connection, parts),) = site.receive()
    assert connection[:KEY_CHARS].decode() == DOOR[0].key
    assert parts == [b"hello", b"reference"]
    assert site.door.send(connection, [b"welcome"])
    answers: list[list[bytes]] = []
    until(lambda: answers.extend(uplink.receive()) or answers, "no answer")
    assert answers == [[b"welcome"]]
    assert uplink.take_failure() is None
    assert site.guard is not None
    assert (site.guard.unknown_keys, site.guard.failed_handshakes) == (0, 0)


def test_address_of_version_6_works_as_well() -> None:
    if not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    with zmq.Context() as context:
        try:
            door = FrontDoor(context, "tcp://[::1]:*", 100_000)
        except zmq.ZMQError:
            pytest.skip("this machine has no ::1")
        uplink = Uplink(context)
        uplink.open(door.endpoint)
        knock(uplink, b"hello")
        until(lambda: list(door.receive(10)), "nothing came")
        uplink.close()
        door.close(0)


def test_node_that_is_gone_is_unroutable(site: Site) -> None:
    uplink = site.uplink(DOOR)
    knock(uplink, b"hello")
    ((connection, _),) = site.receive()
    uplink.close()
    until(lambda: not site.door.send(connection, [b"x"]), "still routable")
    assert len(routing_id_of(connection)) == len(connection) - KEY_CHARS


def test_unknown_key_is_refused_and_both_sides_say_so(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "rac.security"):
        failure = fail(site.uplink(STRANGER))
    assert failure.is_lasting
    assert STRANGER[0].key in failure.text
    assert site.guard is not None
    # It goes on trying meanwhile.
    assert site.guard.unknown_keys >= 1
    assert f"refused a node at 127.0.0.1: its key {STRANGER[0].key} is not allowed" in caplog.text
    assert list(site.door.receive(10)) == []


def test_node_without_keys_is_refused(site: Site) -> None:
    assert fail(site.uplink(None)) == HandshakeFailure(True, "the cloud wants keys, and this node has none")
    assert site.guard is not None
    guard = site.guard
    until(lambda: guard.failed_handshakes > 0, "not counted")
    assert list(site.door.receive(10)) == []


def test_cloud_without_keys_is_refused_by_a_node_that_has_them(make_site: Callable[..., Site]) -> None:
    site = make_site(has_handler=False, has_keys=False)
    uplink = site.uplink(DOOR)
    # The first try ends without a word in ZMTP, the second names the mechanism.
    failures = [fail(uplink)]
    until(lambda: failures[-1].is_lasting or failures.append(fail(uplink)), "never said")
    assert failures[-1] == HandshakeFailure(True, "the cloud has no keys, and this node wants them")
    assert list(site.door.receive(10)) == []


def test_cloud_with_another_key_than_the_pinned_one_gets_nothing(site: Site) -> None:
    """Somebody who took the cloud's address over; or the cloud was given new keys, so a node goes on asking."""
    failure = fail(site.uplink(DOOR, cloud=STRANGER[0]))
    assert not failure.is_lasting
    assert "is this the cloud's public key?" in failure.text
    assert list(site.door.receive(10)) == []


def test_every_endpoint_has_the_key_that_was_given_for_it(site: Site) -> None:
    """Also when the first one was tried before: a cloud that took over has another key."""
    keys = LinkKeys(DOOR[0].key, DOOR[1].key, (STRANGER[0].key, CLOUD[0].key))
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    uplink = Uplink(context, keys)
    site.opened.callback(context.term)
    site.opened.callback(uplink.close)
    uplink.open(site.door.endpoint, 0)
    assert "is this the cloud's public key?" in fail(uplink).text
    uplink.open(site.door.endpoint, 1)
    knock(uplink, b"hello")
    assert site.receive()[0][1] == [b"hello"]


def test_without_a_handler_nobody_gets_in(make_site: Callable[..., Site]) -> None:
    """libzmq alone would let every key in; the domain that is enforced turns that round."""
    site = make_site(has_handler=False)
    uplink = site.uplink(DOOR)
    assert fail(uplink).text
    assert not uplink.send([b"hello"])
    assert list(site.door.receive(10)) == []


def test_handler_that_has_ended_lets_nobody_in(site: Site) -> None:
    assert site.guard is not None
    site.guard.close()
    uplink = site.uplink(DOOR)
    assert fail(uplink).text
    assert not uplink.send([b"hello"])
    with pytest.raises(SecurityError, match="does not run"):
        site.guard.allow_list()


def test_handler_that_cannot_start_is_an_error(allowed: Path) -> None:
    with zmq.Context() as context, context.socket(zmq.REP) as other:
        other.bind(ZAP_ENDPOINT)
        with pytest.raises(SecurityError, match="does not run: Address already in use"):
            Authenticator(context, AllowedNodes(allowed))


def test_handler_that_breaks_is_noticed(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that dies in silence would leave a cloud that nobody can enter."""

    def judge(request: object) -> list[bytes]:
        raise ZeroDivisionError("broken")

    assert site.guard is not None
    monkeypatch.setattr(site.guard, "judge", judge)
    site.uplink(DOOR)
    guard = site.guard
    until(lambda: not guard._thread.is_alive(), "still there")
    with pytest.raises(SecurityError, match="does not run: broken"):
        guard.check()


def test_key_that_leaves_the_list_opens_no_connection_any_more(site: Site) -> None:
    assert site.guard is not None
    guard = site.guard
    first = site.uplink(DOOR)
    knock(first, b"hello")
    site.receive()
    (site.allowed / "door.pub").unlink()
    until(lambda: len(guard.allow_list()) == 0, "the change was not seen")
    assert fail(site.uplink(DOOR)).is_lasting
    (site.allowed / "door.pub").write_text(render_public(DOOR[0]))
    until(lambda: len(guard.allow_list()) == 1, "the change was not seen")
    knock(site.uplink(DOOR), b"hello")


def test_list_is_read_again_when_asked(site: Site) -> None:
    assert site.guard is not None
    guard = site.guard
    before = guard.allow_list()
    site.reloads[0] += 1
    until(lambda: guard.allow_list() is not before, "not read again")


@pytest.mark.parametrize(
    "request_parts",
    [
        [],
        [b"1.0"],
        [b"1.0", b"7", DOMAIN, b"", b""],
        [b"2.0", b"7", DOMAIN, b"", b"", b"CURVE", z85.decode(DOOR[0].key)],
        [b"1.0", b"7", b"other", b"", b"", b"CURVE", z85.decode(DOOR[0].key)],
        [b"1.0", b"7", DOMAIN, b"", b"", b"NULL"],
        [b"1.0", b"7", DOMAIN, b"", b"", b"PLAIN", b"door", b"password"],
        [b"1.0", b"7", DOMAIN, b"", b"", b"CURVE", b"short"],
        [b"1.0", b"7", DOMAIN, b"", b"", b"CURVE"],
    ],
)
def test_request_that_is_not_ours_is_refused(site: Site, request_parts: list[bytes]) -> None:
    assert site.guard is not None
    answer = site.guard.judge(request_parts)
    assert len(answer) == 6
    assert answer[2] in (b"400", b"500")
    assert answer[4] == b""


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def test_list_that_cannot_be_used_is_an_error_at_the_start_and_none_later(
    allowed: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A typing error must not cut a whole fleet off; it is said, and said again."""
    clock = Clock()
    nodes = AllowedNodes(allowed, clock)
    (allowed / "yard.pub").write_text("yard")
    nodes.refresh()
    nodes.refresh()
    assert nodes.is_outdated
    assert nodes.current.name_of(DOOR[0].key) == "door"
    assert "yard.pub: line 1: must be a name and a key" in caplog.text
    caplog.clear()
    nodes.refresh()
    assert caplog.text == ""
    clock.now_s += REMIND_EVERY_S
    nodes.refresh()
    assert "the allow-list stays as it was, keys: 1; it is still wrong" in caplog.text
    with pytest.raises(ConfigError, match=r"yard\.pub"):
        AllowedNodes(allowed)
    (allowed / "yard.pub").unlink()
    nodes.refresh(is_asked=True)
    assert not nodes.is_outdated


def test_list_that_is_being_written_is_read_when_it_stands_still(allowed: Path) -> None:
    nodes = AllowedNodes(allowed)
    (allowed / "door.pub").unlink()
    nodes.refresh()
    (allowed / "new.pub").write_text(render_public(STRANGER[0]))
    nodes.refresh()
    assert len(nodes.current) == 1
    assert nodes.current.name_of(DOOR[0].key) == "door"
    nodes.refresh()
    assert nodes.current.name_of(STRANGER[0].key) == "stranger"
    assert nodes.current.name_of(DOOR[0].key) is None


def test_list_that_is_gone_stays_in_force(allowed: Path) -> None:
    """A folder that is not mounted for a moment is no order to cut everybody off; an empty one is."""
    nodes = AllowedNodes(allowed)
    (allowed / "door.pub").unlink()
    allowed.rmdir()
    nodes.refresh(is_asked=True)
    assert nodes.is_outdated
    assert len(nodes.current) == 1
    allowed.mkdir()
    nodes.refresh(is_asked=True)
    assert not nodes.is_outdated
    assert len(nodes.current) == 0


def test_empty_list_is_said_at_the_start(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    AllowedNodes(tmp_path)
    assert "names no node yet: nobody can connect" in caplog.text
