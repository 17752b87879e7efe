"""Real programs with real keys: who gets in, who is put out, and that a stranger's bytes do nothing."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import zmq

from nodes.key_files import write_pair
from nodes.lifecycle import EXIT_USAGE
from pipeline.bundle import load_bundle
from pipeline.wire import Bye, CameraEntry, Hello, Pong, Reject, RejectCode, Welcome, pack, parse
from tests.e2e.balance import RECOVERIES, check_ends_agree, wait_until
from tests.e2e.conftest import START_WITH, Start, start_cloud, starter
from tests.e2e.programs import PATIENCE_S, Program, Series, node_metrics_balance, run, sum_of

pytest.importorskip("skimage", reason="photographs are missing: pip install 'edge-cloud-rac[demo]'")

# Refusals are lasting: a node waits for half of it at least before it asks again.
SOON = {"RAC_LINK__RECONNECT_MAX_S": "1"}
PASSWORD = "hunter2"


@dataclass
class Keys:
    """A folder of pairs; those in `allowed` may connect."""

    folder: Path
    allowed: Path = field(init=False)

    def __post_init__(self) -> None:
        self.allowed = self.folder / "allowed"
        self.allowed.mkdir(parents=True)
        self.make("cloud")

    def make(self, name: str) -> None:
        write_pair(self.folder, name, may_replace=False)

    def allow(self, name: str) -> None:
        public = (self.folder / f"{name}.pub").read_text()
        (self.allowed / f"{name}.pub").write_text(public)

    def revoke(self, name: str) -> None:
        (self.allowed / f"{name}.pub").unlink()

    def of_cloud(self) -> list[str]:
        return ["--key", str(self.folder / "cloud.key"), "--allowed", str(self.allowed)]

    def of_node(self, name: str, cloud: str = "cloud") -> list[str]:
        return ["--key", str(self.folder / f"{name}.key"), "--cloud-key", str(self.folder / f"{cloud}.pub")]


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return Keys(tmp_path_factory.mktemp("keys") / "keys")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("results") / "results.jsonl"


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory, keys: Keys, results: Path) -> Iterator[Program]:
    """One cloud with keys for the module; at its end it has to balance, whatever strangers did to it."""
    with ExitStack() as programs:
        start = starter(tmp_path_factory.mktemp("cloud"), programs)
        made = start_cloud(start, *keys.of_cloud(), "--results", f"jsonl:{results}")
        yield made
        made.end()


def camera_of(cloud: Program, camera: str = "test:?fps=20") -> list[str]:
    return ["--camera", camera, "--cloud", cloud.get("start")[0]["endpoint"], "--metrics-port", "0"]


def handshakes(found: Mapping[Series, float], outcome: str) -> float:
    return found["rac_cloud_handshakes_total", outcome]


def test_node_streams_under_the_name_of_its_key(cloud: Program, start: Start, keys: Keys, results: Path) -> None:
    keys.make("door")
    keys.allow("door")
    node = start("rac-node", *camera_of(cloud), *keys.of_node("door"), "--name", "somebody-else", **SOON)
    node.wait_event("result", 10)
    found = cloud.wait_metrics(lambda found: found["rac_cloud_allowed_keys",] == 1)
    assert found["rac_cloud_insecure",] == 0
    assert cloud.get("start")[0]["security"] == "keys"
    summary = node.end()
    assert summary["results"] >= 10
    wait_until(lambda: results.read_bytes().count(b"\n") >= 10, PATIENCE_S, "results are written")
    written = [json.loads(line) for line in results.read_bytes().split(b"\n")[:10]]
    assert {line["node"] for line in written} == {"door"}


def test_who_lacks_the_right_key_gets_nothing_and_says_why(cloud: Program, start: Start, keys: Keys) -> None:
    """An unknown key, no key, and a key of the cloud that is not the cloud's; a node that is allowed goes on."""
    for name in ("honest", "unknown", "impostor"):
        keys.make(name)
    keys.allow("honest")
    honest = start("rac-node", *camera_of(cloud), *keys.of_node("honest"), **SOON)
    honest.wait_event("link", state="up")
    before = cloud.wait_metrics(lambda found: found["rac_cloud_sessions",] == 1)
    unknown = start("rac-node", *camera_of(cloud), *keys.of_node("unknown"), **SOON)
    keyless = start("rac-node", *camera_of(cloud), **SOON)
    fooled = start("rac-node", *camera_of(cloud), *keys.of_node("honest", cloud="impostor"), **SOON)
    assert "does not allow this node's key" in unknown.wait_event("link", state="down", reason="auth")["text"]
    assert "wants keys" in keyless.wait_event("link", state="down", reason="auth")["text"]
    assert "is this the cloud's public key?" in fooled.wait_event("link", state="down", reason="refused")["text"]
    # They ask again, slowly, and are refused again.
    unknown.wait_event("link", 2, state="down", reason="auth")
    found = cloud.wait_metrics(
        lambda found: all(
            handshakes(found, word) >= handshakes(before, word) + 2 for word in ("unknown_key", "bad_handshake")
        )
    )
    assert handshakes(found, "accepted") == handshakes(before, "accepted")
    for node in (unknown, keyless, fooled):
        assert node_metrics_balance(node.metrics())
        summary = node.end()
        assert summary["results"] == 0
        assert summary["captured"] == sum(summary["dropped"].values()) > 0
        assert set(summary["dropped"]) <= {"superseded", "link_down", "shutdown"}
    assert "not authorised" in unknown.errors
    assert "not authorised" in keyless.errors
    honest.wait_more("result", 10)
    summary = honest.end()
    assert set(summary["dropped"]) <= {"superseded", "no_credit", "link_down", "shutdown"}


@pytest.mark.parametrize("way", ["change", "hangup"])
def test_revoked_key_ends_its_session_while_it_streams_and_no_other(
    cloud: Program, start: Start, keys: Keys, way: str
) -> None:
    names = [f"{way}-revoked", f"{way}-kept"]
    for name in names:
        keys.make(name)
        keys.allow(name)
    cloud.send_signal(signal.SIGHUP)
    revoked, kept = (start("rac-node", *camera_of(cloud), *keys.of_node(name), **SOON) for name in names)
    for node in (revoked, kept):
        node.wait_event("result", 10)
    before = cloud.metrics()
    began_s = time.monotonic()
    keys.revoke(names[0])
    if way == "hangup":
        cloud.send_signal(signal.SIGHUP)
    down = revoked.wait_event("link", state="down", reason="auth")
    RECOVERIES.note(f"key revoked ({way}): its session has ended", time.monotonic() - began_s)
    assert (down["code"], down["text"]) == ("not_authorised", "the key of this node is no longer allowed")
    assert "not authorised: the key of this node is no longer allowed" in revoked.errors
    # Not even a connection is to be had from now on.
    assert revoked.wait_event("link", 2, state="down", reason="auth")["code"] is None
    assert node_metrics_balance(revoked.metrics())
    answered = len(revoked.get("result"))
    kept.wait_more("result", 20)
    assert len(revoked.get("result")) == answered
    ended = ("rac_cloud_sessions_closed_total", "revoked")
    cloud.wait_metrics(lambda found: found[ended] == before[ended] + 1)
    # Welcome again: nobody has to touch the node.
    began_s = time.monotonic()
    keys.allow(names[0])
    RECOVERIES.until_result("key allowed again", revoked, began_s)
    assert len(revoked.get("link", state="up")) == 2
    for node in (revoked, kept):
        node.end()
    assert len(kept.get("link", state="up")) == 1


def test_bad_allow_list_changes_nothing_and_is_said(cloud: Program, start: Start, keys: Keys) -> None:
    keys.make("steady")
    keys.allow("steady")
    node = start("rac-node", *camera_of(cloud), *keys.of_node("steady"), **SOON)
    node.wait_event("result", 5)
    bad = keys.allowed / "bad.pub"
    bad.write_text("bad")
    cloud.wait_metrics(lambda found: found["rac_cloud_allow_list_outdated",] == 1)
    cloud.wait_said("bad.pub: line 1: must be a name and a key")
    node.wait_more("result", 5)
    bad.unlink()
    cloud.wait_metrics(lambda found: found["rac_cloud_allow_list_outdated",] == 0)
    node.end()
    assert len(node.get("link", state="up")) == 1


class Recorder:
    """Passes TCP connections on, one after the other, and keeps what went in either direction."""

    def __init__(self, target: str) -> None:
        host, _, port = target.removeprefix("tcp://").rpartition(":")
        self.target = (host, int(port))
        self.up, self.down = bytearray(), bytearray()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        self._stop, self._stopped = socket.socketpair()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while self._stopped not in select.select([self._listener, self._stopped], [], [])[0]:
            near, _ = self._listener.accept()
            with near, socket.create_connection(self.target) as far, suppress(ConnectionError):
                self._pass(near, far)

    def _pass(self, near: socket.socket, far: socket.socket) -> None:
        ways = {near: (far, self.up), far: (near, self.down)}
        while True:
            for source in select.select([near, far, self._stopped], [], [])[0]:
                piece = b"" if source is self._stopped else source.recv(65_536)
                if not piece:
                    return
                sink, kept = ways[source]
                kept += piece
                sink.sendall(piece)

    def close(self) -> None:
        self._stop.close()
        self._thread.join()
        self._stopped.close()
        self._listener.close()


@pytest.fixture
def recorder(request: pytest.FixtureRequest) -> Iterator[Recorder]:
    made = Recorder(request.getfixturevalue("cloud").get("start")[0]["endpoint"])
    yield made
    made.close()


def test_recorded_session_that_is_played_again_does_nothing(
    cloud: Program, start: Start, keys: Keys, recorder: Recorder
) -> None:
    """Every handshake has fresh keys: bytes of another connection are noise. Nothing readable was on the way either."""
    keys.make("recorded")
    keys.allow("recorded")
    arguments = ["--camera", "secretcam=test:?fps=20", "--cloud", recorder.endpoint, "--metrics-port", "0"]
    node = start("rac-node", *arguments, *keys.of_node("recorded"), **SOON)
    node.wait_event("result", 20)
    node.end()
    assert len(recorder.up) > 10_000
    assert b"secretcam" not in recorder.up
    assert load_bundle("default").id8 not in recorder.up
    before = cloud.wait_metrics(lambda found: found["rac_cloud_sessions",] == 0)
    for whole in (True, False):
        with socket.create_connection(recorder.target) as replay:
            replay.settimeout(PATIENCE_S)
            # At once, or in the steps of the handshake with the cloud's answers awaited.
            pieces = [bytes(recorder.up)] if whole else [bytes(recorder.up[:64]), bytes(recorder.up[64:])]
            with suppress(ConnectionError):
                for piece in pieces:
                    replay.sendall(piece)
                while replay.recv(65_536):
                    pass
    after = cloud.wait_metrics(
        lambda found: handshakes(found, "bad_handshake") > handshakes(before, "bad_handshake") + 1
    )
    for name in ("rac_cloud_frames_received_total", "rac_cloud_results_total", "rac_cloud_sessions_closed_total"):
        assert sum_of(after, name) == sum_of(before, name)
    assert handshakes(after, "accepted") == handshakes(before, "accepted")
    assert after["rac_cloud_sessions",] == 0


def test_node_over_its_limits_is_told_and_cut_off_and_the_other_does_not_notice(start: Start, keys: Keys) -> None:
    names = ("greedy", "modest")
    for name in names:
        keys.make(name)
        keys.allow(name)
    # So few that a node on a busy machine breaks it too.
    limits = {"RAC_LIMITS__FRAMES_PER_SECOND": "2", "RAC_LIMITS__CUT_OFF_S": "8", "RAC_LIMITS__NODE_CAMERAS": "1"}
    cloud = start_cloud(start, *keys.of_cloud(), RAC_LINK__MAX_CREDIT="8", **limits)
    greedy = start("rac-node", *camera_of(cloud, "test:?fps=40"), *keys.of_node("greedy"), **SOON)
    modest = start("rac-node", *camera_of(cloud, "test:?fps=1"), *keys.of_node("modest"), **SOON)
    down = greedy.wait_event("link", state="down", reason="refused")
    assert (down["code"], down["text"]) == ("limits", "more than 2 frames a second")
    again = greedy.wait_event("link", 2, state="down", reason="refused")
    assert again["text"].startswith("more than 2 frames a second: not listened to for ")
    # After its time it is heard again, and breaks the limit again.
    greedy.wait_event("link", 2, state="up")
    modest.wait_event("result", 8)
    found = cloud.wait_metrics(lambda found: found["rac_cloud_sessions_closed_total", "limits"] >= 1)
    assert handshakes(found, "limits") >= 1
    wide = start("rac-node", *camera_of(cloud, "test:"), "--camera", "second=test:", *keys.of_node("greedy"), **SOON)
    wide.wait_event("link", state="down", code="limits")
    summaries = [node.end() for node in (greedy, modest, wide)]
    assert len(modest.get("link", state="up")) == 1
    assert set(summaries[1]["dropped"]) <= {"superseded", "no_credit", "link_down", "shutdown"}
    assert summaries[0]["dropped"].get("lost_in_link", 0) + summaries[0]["dropped"].get("link_down", 0) > 0
    check_ends_agree(summaries, [cloud.end()])


@dataclass
class Stranger:
    """A raw connection with whatever keys, for bytes that no node sends."""

    endpoint: str

    def __post_init__(self) -> None:
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.socket: zmq.Socket[bytes] = self.context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.connect(self.endpoint)

    def wait_for(self, kind: type) -> object:
        while self.socket.poll(round(1000 * PATIENCE_S)):
            message = parse(self.socket.recv_multipart())
            if isinstance(message, kind):
                return message
        raise AssertionError(f"no {kind.__name__}")

    def close(self) -> None:
        self.socket.close()
        self.context.term()


def test_flood_is_cut_off_and_a_node_streams_on_beside_it(start: Start) -> None:
    """Without keys, as on one machine: a session that sends nothing but PONGs, thousands of them."""
    cloud = start_cloud(start, RAC_LIMITS__CUT_OFF_S="600")
    node = start("rac-node", *camera_of(cloud), **SOON)
    node.wait_event("result", 10)
    stranger = Stranger(cloud.get("start")[0]["endpoint"])
    try:
        bundle = load_bundle("default")
        hello = Hello(0, "flood", os.urandom(16), (bundle.bundle_id,), (CameraEntry(0, "x"),))
        stranger.socket.send_multipart(pack(hello))
        assert isinstance(stranger.wait_for(Welcome), Welcome)
        for number in range(10_000):
            stranger.socket.send_multipart(pack(Pong(number, 0)))
        reject = stranger.wait_for(Reject)
        assert reject == Reject(RejectCode.LIMITS, "more than 1100 messages a second")
        cloud.wait_metrics(lambda found: found["rac_cloud_sessions_closed_total", "limits"] == 1)

        def is_ended(found: Mapping[Series, float]) -> bool:
            """Who has been told and goes on loses the connection."""
            for number in range(1000):
                with suppress(zmq.Again):
                    stranger.socket.send_multipart(pack(Pong(number, 0)), zmq.DONTWAIT)
            return found["rac_cloud_connections_ended_total",] > 0

        cloud.wait_metrics(is_ended)
        # A part that is larger than any: libzmq drops the connection and nothing else.
        stranger.socket.send_multipart([bytes(300_000)])
        stranger.socket.send_multipart(pack(Bye("over")))
    finally:
        stranger.close()
    node.wait_more("result", 20)
    summary = node.end()
    assert len(node.get("link", state="up")) == 1
    check_ends_agree([summary], [cloud.end()])


def test_sum_of_parts_beyond_the_limit_is_told(start: Start) -> None:
    cloud = start_cloud(start, RAC_LINK__MAX_MESSAGE_BYTES="163840")
    stranger = Stranger(cloud.get("start")[0]["endpoint"])
    try:
        stranger.socket.send_multipart([bytes(100_000), bytes(100_000)])
        reject = stranger.wait_for(Reject)
        assert reject == Reject(RejectCode.LIMITS, "a message of more than 163840 bytes")
    finally:
        stranger.close()
    cloud.end()


def test_open_link_is_said_again_and_again_and_is_a_metric(start: Start) -> None:
    """`lo` is this machine, but by a name that could be any other interface's."""
    cloud = start_cloud(start, "--bind", "tcp://lo:0", "--insecure")
    assert "INSECURE: whoever reaches tcp://lo:0 can read, forge and flood" in cloud.errors
    assert cloud.metrics()["rac_cloud_insecure",] == 1
    assert cloud.get("start")[0]["security"] == "insecure"
    port = cloud.get("start")[0]["endpoint"].rpartition(":")[2]
    # 0.0.0.0 leads to this machine as well, and is not a loopback address.
    node = start(
        "rac-node", "--camera", "test:", "--cloud", f"tcp://0.0.0.0:{port}", "--insecure", "--metrics-port", "0"
    )
    node.wait_event("result", 5)
    assert "INSECURE: frames to tcp://0.0.0.0" in node.errors
    assert node.metrics()["rac_node_insecure",] == 1
    check_ends_agree([node.end()], [cloud.end()])


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    """Pairs with which something is wrong each."""
    made = Keys(tmp_path_factory.mktemp("broken") / "keys")
    for name in ("door", "open"):
        made.make(name)
    made.allow("door")
    (made.folder / "open.key").chmod(0o644)
    (made.folder / "half.key").write_text("secret half n0tak3y")
    (made.folder / "half.key").chmod(0o600)
    (made.folder / "list").write_text("door nokey\n")
    return made


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("rac-cloud --bind tcp://0.0.0.0:0", "link.bind: tcp://0.0.0.0:0 can be reached"),
        ("rac-cloud --key KEYS/absent.key --allowed KEYS/allowed", "absent.key: cannot be read: No such file"),
        ("rac-cloud --key KEYS/open.key --allowed KEYS/allowed", "open.key: others than its owner can use it"),
        ("rac-cloud --key KEYS/half.key --allowed KEYS/allowed", "half.key: line 1: no key"),
        ("rac-cloud --key KEYS/cloud.pub --allowed KEYS/allowed", "cloud.pub: others than its owner can use it"),
        ("rac-cloud --key KEYS/cloud.key", "security.allowed: must name the file or folder"),
        ("rac-cloud --key KEYS/cloud.key --allowed KEYS/absent", "absent: cannot be read: No such file"),
        ("rac-cloud --key KEYS/cloud.key --allowed KEYS/list", "list: line 1: no key"),
        ("rac-cloud --key KEYS/cloud.key --allowed KEYS/door.key", "door.key: line 3: holds a secret key"),
        ("rac-cloud --key KEYS/cloud.key --allowed KEYS/allowed --insecure", "security.insecure: goes without keys"),
        ("rac-cloud --metrics-host 0.0.0.0", "metrics.host: 0.0.0.0 can be reached from other machines"),
        ("rac-cloud --metrics-token short", "metrics.token: must be 16 or more printable characters"),
        ("rac-node --camera test: --cloud tcp://192.0.2.1:5570", "cloud.endpoints: tcp://192.0.2.1:5570 leaves"),
        ("rac-node --camera test: --key KEYS/door.key", "security.cloud_keys: must name the cloud's public key"),
        ("rac-node --camera test: --key KEYS/open.key --cloud-key KEYS/cloud.pub", "open.key: others than its owner"),
        ("rac-node --camera test: --key KEYS/door.key --cloud-key KEYS/door.pub", "is this node's own key"),
        ("rac-node --camera test: --key KEYS/door.key --cloud-key KEYS/cloud.key", "cloud.key: line 3: holds a secret"),
    ],
)
def test_security_that_cannot_be_set_up_ends_the_program_with_one_line(broken: Keys, words: str, says: str) -> None:
    program, *arguments = words.replace("KEYS", str(broken.folder)).split()
    where = ["--metrics-port", "0"]
    if program == "rac-cloud" and "--bind" not in words:
        where += ["--bind", "tcp://127.0.0.1:0"]
    done = run(program, *arguments, *where)
    assert done.returncode == EXIT_USAGE, done
    assert says in done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    for path in broken.folder.glob("*.key"):
        assert path.read_text().split()[-1] not in done.stdout + done.stderr


def test_password_of_a_camera_is_nowhere(start: Start, tmp_path: Path) -> None:
    """Not on the node's screen, in its log or metrics, not on the wire, and so not in the cloud."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    url = f"rtsp://admin:{PASSWORD}@127.0.0.1:{port}/stream?token={PASSWORD}"
    written = tmp_path / "results.jsonl"
    cloud = start_cloud(start, "--results", f"jsonl:{written}", "--log-level", "debug")
    recorder = Recorder(cloud.get("start")[0]["endpoint"])
    arguments = ["--camera", url, "--camera", "yard=test:", "--cloud", recorder.endpoint, "--metrics-port", "0"]
    node = start("rac-node", *arguments, "--log-level", "debug", RAC_CAPTURE__OPEN_TIMEOUT_S="2")
    try:
        node.wait_event("result", 5)
        down = node.wait_event("camera", 2, state="down", reason="open_failed")
        assert down["camera"] == "127.0.0.1"
        pages = f"{node.metrics()}{cloud.metrics()}"
        node.end()
        cloud.end()
    finally:
        recorder.close()
    said = f"{node.events}{node.errors}{cloud.events}{cloud.errors}{pages}{written.read_text()}"
    for secret in (PASSWORD, "admin"):
        assert secret not in said
        assert secret.encode() not in recorder.up + recorder.down
    # The recording does see what is in the clear.
    assert b"yard" in recorder.up


def test_password_in_a_configuration_is_not_shown(tmp_path: Path) -> None:
    path = tmp_path / "node.yaml"
    path.write_text(
        f"cameras: ['rtsp://admin:{PASSWORD}@camera/stream']\nmetrics: {{token: {PASSWORD}-{PASSWORD}-x}}\n"
    )
    shown = run("rac-node", "--config", str(path), "--check-config", "--json")
    assert json.loads(shown.stdout)["ok"]
    path.write_text(f"cameras: ['rtsp://admin:{PASSWORD}@camera:99999/{'x' * 80}']\ncodec: {{depth: deep}}\n")
    refused = run("rac-node", "--config", str(path), "--check-config")
    assert refused.returncode == EXIT_USAGE
    for done in (shown, refused):
        assert PASSWORD not in done.stdout + done.stderr


def test_metrics_beyond_this_machine_want_the_token(start: Start) -> None:
    """The rule for other machines, tried on this one: whoever sets a token wants it asked for everywhere."""
    token = "0123456789abcdef"
    cloud = start("rac-cloud", *START_WITH, RAC_METRICS__TOKEN=token)
    url = cloud.wait_event("start")["metrics"]
    host, port = url.removeprefix("http://").removesuffix("/metrics").split(":")
    for authorization, status in ((None, b"401"), ("Bearer wrong", b"401"), (f"Bearer {token}", b"200")):
        with socket.create_connection((host, int(port)), PATIENCE_S) as connection:
            given = f"Authorization: {authorization}\r\n" if authorization else ""
            connection.sendall(f"GET /metrics HTTP/1.0\r\nHost: {host}:{port}\r\n{given}\r\n".encode())
            assert connection.recv(16).split()[1] == status
    assert token not in cloud.errors + str(cloud.events)
    cloud.end()
