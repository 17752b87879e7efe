"""Series and the page that serves them, over real HTTP."""

from __future__ import annotations

import base64
import http.client
import socket
import urllib.request
from collections.abc import Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families
from pydantic import SecretStr

from nodes.exporter import Exporter
from nodes.metrics_server import NS_PER_S, Health, MetricsServer, start_metrics_server
from pipeline.errors import ConfigError, LedgerError
from pipeline.metrics import METRICS, OTHER, metrics_of

TOKEN = "0123456789abcdef-token"
NODE_KNOWN = {"camera": ["door", "yard"], "depth": [0, 4], "level": [0, 1], "endpoint": [0]}
CLOUD_KNOWN = {"depth": [0, 4], "level": [0, 1], "bundle": ["ab12"], "worker": [0, 1], "sink": []}


def samples(exporter: Exporter) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    text, _ = exporter.render()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }


def value(exporter: Exporter, name: str, **labels: str) -> float:
    return samples(exporter)[name, frozenset(labels.items())]


@pytest.fixture
def node() -> Exporter:
    return Exporter("node", NODE_KNOWN)


@pytest.fixture
def cloud() -> Exporter:
    return Exporter("cloud", CLOUD_KNOWN, max_cameras=2)


def test_every_metric_of_a_side_is_on_its_page(node: Exporter, cloud: Exporter) -> None:
    for side, exporter in (("node", node), ("cloud", cloud)):
        text = exporter.render()[0].decode()
        expected = {metric.name for metric in metrics_of("node" if side == "node" else "cloud")}
        found = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE rac_")}
        assert found == expected


def test_known_label_values_start_at_zero(node: Exporter) -> None:
    """A counter that appears with its first event loses it from every rate."""
    assert value(node, "rac_node_frames_dropped_total", camera="yard", reason="superseded") == 0
    assert value(node, "rac_node_bitstream_bytes_count", depth="4", level="1") == 0
    assert value(node, "rac_node_budget_overruns_total", camera="door", depth="0") == 0


def test_no_creation_times_are_exported(node: Exporter) -> None:
    assert b"_created" not in node.render()[0]


def test_events_and_states(node: Exporter) -> None:
    node.add("rac_node_network_bytes_total", "sent", amount=100)
    node.add("rac_node_network_bytes_total", "sent")
    node.set("rac_node_encoder_depth", 4, "door")
    node.observe("rac_node_bitstream_bytes", 700, 4, 1)
    assert value(node, "rac_node_network_bytes_total", direction="sent") == 101
    assert value(node, "rac_node_encoder_depth", camera="door") == 4
    assert value(node, "rac_node_bitstream_bytes_sum", depth="4", level="1") == 700
    assert value(node, "rac_node_bitstream_bytes_bucket", depth="4", level="1", le="600.0") == 0
    assert value(node, "rac_node_bitstream_bytes_bucket", depth="4", level="1", le="800.0") == 1


def test_ledger_totals_are_published_as_they_are(node: Exporter) -> None:
    node.publish({("rac_node_frames_captured_total", "door"): 5, ("rac_node_in_flight_frames",): 2})
    node.publish({("rac_node_frames_captured_total", "door"): 9, ("rac_node_in_flight_frames",): 1})
    assert value(node, "rac_node_frames_captured_total", camera="door") == 9
    assert value(node, "rac_node_frames_captured_total", camera="yard") == 0
    assert value(node, "rac_node_in_flight_frames") == 1


def test_ledger_metric_cannot_be_counted_a_second_time(node: Exporter) -> None:
    with pytest.raises(KeyError):
        node.add("rac_node_frames_captured_total", "door")
    with pytest.raises(KeyError):
        node.publish({("rac_node_network_bytes_total", "sent"): 1})


@pytest.mark.parametrize("later", [{}, {("rac_node_frames_captured_total", "door"): 4}])
def test_total_that_goes_backwards_stops_loudly(node: Exporter, later: dict[tuple[object, ...], float]) -> None:
    node.publish({("rac_node_frames_captured_total", "door"): 5})
    with pytest.raises(LedgerError, match="went from 5"):
        node.publish(later)
    assert value(node, "rac_node_frames_captured_total", camera="door") == 5


def test_word_outside_an_enumeration_is_a_bug_of_ours(node: Exporter) -> None:
    with pytest.raises(ValueError, match="reason=bored"):
        node.add("rac_node_camera_reconnects_total", "door", "bored")
    with pytest.raises(ValueError, match="2 labels, not 1"):
        node.add("rac_node_camera_reconnects_total", "door")
    with pytest.raises(KeyError):
        node.add("rac_node_invented_total")


def test_value_that_a_peer_made_up_is_counted_as_other(cloud: Exporter) -> None:
    """A depth comes from a bitstream that may be bad: it never makes a series."""
    cloud.add("rac_cloud_frames_received_total", 77)
    cloud.add("rac_cloud_frames_received_total", None)
    assert value(cloud, "rac_cloud_frames_received_total", depth=OTHER) == 2


def test_cameras_beyond_the_cap_share_other(cloud: Exporter) -> None:
    for number in range(5):
        cloud.add("rac_cloud_camera_labelled_total", "node", f"camera{number}")
    cloud.add("rac_cloud_camera_labelled_total", "node", "camera0")
    assert value(cloud, "rac_cloud_camera_labelled_total", node="node", camera="camera0") == 2
    assert value(cloud, "rac_cloud_camera_labelled_total", node=OTHER, camera=OTHER) == 3


def test_capped_metrics_admit_the_same_cameras(cloud: Exporter) -> None:
    for name in ("labelled", "correct"):
        for camera in ("a", "b", "c") if name == "labelled" else ("c", "a"):
            cloud.add(f"rac_cloud_camera_{name}_total", "node", camera)
    assert value(cloud, "rac_cloud_camera_correct_total", node="node", camera="a") == 1
    assert value(cloud, "rac_cloud_camera_correct_total", node=OTHER, camera=OTHER) == 1


def test_facts_replace_older_facts_about_the_same_thing(node: Exporter) -> None:
    node.inform("rac_node_camera_info", "door", "url", 640, 480)
    node.inform("rac_node_camera_info", "yard", "file", 640, 480)
    node.inform("rac_node_camera_info", "door", "url", 1280, 720)
    found = [dict(labels) for (name, labels) in samples(node) if name == "rac_node_camera_info"]
    assert sorted((facts["camera"], facts["width"]) for facts in found) == [("door", "1280"), ("yard", "640")]


def test_missing_label_values_are_noticed_at_the_start() -> None:
    with pytest.raises(ValueError, match="label depth"):
        Exporter("node", {"camera": ["a"], "level": [0], "endpoint": [0]})


class FakeClock:
    def __init__(self) -> None:
        self.now_ns = 0

    def __call__(self) -> int:
        return self.now_ns


@pytest.fixture
def health() -> Health:
    return Health(FakeClock())


@pytest.fixture
def server(node: Exporter, health: Health) -> Iterator[MetricsServer]:
    server = start_metrics_server(node, health, "127.0.0.1", 0, may_move=False)
    yield server
    server.close()


def fetch(
    server: MetricsServer, path: str, method: str = "GET", host: str | None = None, **headers: str
) -> tuple[int, str, dict[str, str]]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.request(method, path, headers=headers if host is None else {"Host": host, **headers})
    response = connection.getresponse()
    body = response.read().decode()
    connection.close()
    return response.status, body, dict(response.getheaders())


def test_page_over_http(server: MetricsServer) -> None:
    with urllib.request.urlopen(server.url, timeout=60) as response:
        body = response.read().decode()
        assert response.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    families = {family.name for family in text_string_to_metric_families(body)}
    assert "rac_node_frames_captured" in families
    assert "process_cpu_seconds" in families


def test_health_follows_the_loop(server: MetricsServer, health: Health) -> None:
    clock = health._clock
    assert isinstance(clock, FakeClock)
    assert fetch(server, "/healthz")[:2] == (200, "ok\n")
    clock.now_ns = 60 * NS_PER_S
    assert fetch(server, "/healthz")[:2] == (503, "main loop silent for 60 s\n")
    health.beat()
    assert fetch(server, "/healthz")[0] == 200


def test_readiness_says_what_is_missing(server: MetricsServer, health: Health) -> None:
    assert fetch(server, "/readyz")[:2] == (503, "starting\n")
    health.set_reasons(["camera door is down", "no session"])
    assert fetch(server, "/readyz")[:2] == (503, "camera door is down\nno session\n")
    health.set_reasons([])
    assert fetch(server, "/readyz")[:2] == (200, "ok\n")


def test_other_paths_and_methods(server: MetricsServer) -> None:
    assert fetch(server, "/")[0] == 404, "no page without a status to show"
    assert fetch(server, "/status.json")[0] == 404
    status, body, headers = fetch(server, "/healthz", "HEAD")
    assert (status, body, headers["Content-Length"]) == (200, "", "3")
    for method in ("POST", "PUT", "PATCH", "DELETE", "OPTIONS"):
        status, _, headers = fetch(server, "/metrics", method)
        assert (status, headers["Allow"]) == (405, "GET, HEAD")


def test_answers_are_for_machines_not_for_web_pages(server: MetricsServer) -> None:
    headers = fetch(server, "/metrics")[2]
    assert headers["Content-Security-Policy"] == "default-src 'none'"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Server"].strip() == "rac"


@pytest.mark.parametrize("host", ["evil.example", "evil.example:9570", "127.0.0.1.evil.example"])
def test_request_by_another_name_is_refused(server: MetricsServer, host: str) -> None:
    """A page on the web can point its own name at 127.0.0.1."""
    assert fetch(server, "/metrics", host=host)[0] == 403


@pytest.mark.parametrize("host", ["localhost", "localhost:9570", "[::1]", "[::1]:9570", "127.0.0.1"])
def test_request_by_a_name_of_this_machine_is_answered(server: MetricsServer, host: str) -> None:
    assert fetch(server, "/healthz", host=host)[0] == 200


def basic(password: str, name: str = "rac") -> str:
    return "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()


@pytest.fixture
def guarded(node: Exporter, health: Health) -> Iterator[MetricsServer]:
    server = start_metrics_server(node, health, "127.0.0.1", 0, may_move=False, token=SecretStr(TOKEN))
    yield server
    server.close()


@pytest.mark.parametrize(
    "given",
    [
        None,
        "",
        "Bearer",
        f"Bearer {TOKEN}x",
        f"Bearer {TOKEN[:-1]}",
        f"Basic {TOKEN}",
        TOKEN,
        "Bearer \xe9",
        "Basic",
        "Basic !",
        basic(f"{TOKEN}x"),
        basic(""),
    ],
)
@pytest.mark.parametrize("path", ["/metrics", "/healthz", "/readyz", "/"])
def test_nothing_is_said_without_the_token(guarded: MetricsServer, path: str, given: str | None) -> None:
    headers = {} if given is None else {"Authorization": given}
    status, body, answer = fetch(guarded, path, **headers)
    assert status == 401
    assert "rac_" not in body
    assert answer["WWW-Authenticate"] in ("Bearer", 'Basic realm="rac", charset="UTF-8"')


def test_browser_may_bring_the_token_as_password(guarded: MetricsServer) -> None:
    """A person types it into the browser's own question; the name is not looked at."""
    for name in ("", "me"):
        assert fetch(guarded, "/healthz", Authorization=basic(TOKEN, name))[0] == 200


@pytest.mark.parametrize("host", ["127.0.0.1:9570", "10.0.0.7:9570", "[fe80::1]:9570", f"{socket.gethostname()}:9570"])
def test_token_opens_the_page_by_any_address_of_this_machine(guarded: MetricsServer, host: str) -> None:
    for scheme in ("Bearer", "bearer"):
        assert fetch(guarded, "/metrics", host=host, Authorization=f"{scheme} {TOKEN}")[0] == 200


def test_page_with_a_token_is_not_answered_by_a_foreign_name(guarded: MetricsServer) -> None:
    assert fetch(guarded, "/metrics", host="evil.example", Authorization=f"Bearer {TOKEN}")[0] == 403


def test_default_port_that_is_taken_is_passed_over(node: Exporter, health: Health) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        server = start_metrics_server(node, health, "127.0.0.1", taken, may_move=True)
        try:
            assert taken < server.port <= taken + 100
            assert fetch(server, "/healthz")[0] == 200
        finally:
            server.close()


def test_port_set_by_hand_that_is_taken_is_an_error(node: Exporter, health: Health) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        with pytest.raises(ConfigError, match=f"metrics.port: 127.0.0.1 port {taken}: is in use"):
            start_metrics_server(node, health, "127.0.0.1", taken, may_move=False)


def test_closed_server_frees_its_port(node: Exporter, health: Health) -> None:
    server = start_metrics_server(node, health, "127.0.0.1", 0, may_move=False)
    server.close()
    again = start_metrics_server(node, health, "127.0.0.1", server.port, may_move=False)
    again.close()


def test_table_and_page_agree_on_kinds(cloud: Exporter) -> None:
    text = cloud.render()[0].decode()
    kinds = {line.split()[2]: line.split()[3] for line in text.splitlines() if line.startswith("# TYPE rac_")}
    assert kinds == {name: METRICS[name].kind.value for name in kinds}


def test_removed_node_frees_its_place(cloud: Exporter) -> None:
    """Nodes come and go: the cap is on those that are there."""
    name = "rac_cloud_session_last_frame_timestamp_seconds"
    for node in ("dock", "yard", "gate"):
        cloud.set(name, 1.0, node)
    assert value(cloud, name, node=OTHER) == 1.0
    cloud.remove(name, "dock")
    cloud.remove(name, "never there")
    cloud.set(name, 2.0, "gate")
    found = {
        labels["node"]: count
        for (key, pairs), count in samples(cloud).items()
        if key == name
        for labels in [dict(pairs)]
    }
    assert found == {"yard": 1.0, OTHER: 1.0, "gate": 2.0}
    with pytest.raises(KeyError):
        cloud.remove("rac_cloud_sessions")
