"""Configuration: precedence, messages, and sample files that say what the code does."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import CameraConfig, CloudConfig, NodeConfig, config_keys
from pipeline.config_base import check_endpoint, is_loopback, leaves_machine
from pipeline.config_files import describe, is_given, load_config, read_yaml
from pipeline.config_sample import environment_name, render_sample
from pipeline.errors import ConfigError


def load_node(tmp_path: Path, text: str = "", environment: Mapping[str, str] | None = None, **flags: Any) -> NodeConfig:
    path = tmp_path / "node.yaml"
    path.write_text(text)
    return load_config(NodeConfig, path, environment or {}, flags)


def load_cloud(tmp_path: Path, text: str = "", environment: Mapping[str, str] | None = None) -> CloudConfig:
    path = tmp_path / "cloud.yaml"
    path.write_text(text)
    return load_config(CloudConfig, path, environment or {}, {})


def problem(
    tmp_path: Path, text: str, environment: Mapping[str, str] | None = None, model: Any = NodeConfig
) -> ConfigError:
    """The error that a file gives; its text must be one line."""
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(model, path, environment or {}, {})
    assert "\n" not in str(caught.value)
    return caught.value


def test_each_layer_is_stronger_than_the_one_before(tmp_path: Path) -> None:
    assert load_node(tmp_path).codec.budget_ms == 8.0
    text = "codec: {budget_ms: 9, threads: 2, rate: 3}"
    environment = {"RAC_CODEC__BUDGET_MS": "10", "RAC_CODEC__THREADS": "4"}
    path = tmp_path / "node.yaml"
    path.write_text(text)
    config = load_config(NodeConfig, path, environment, {"codec.budget_ms": "11"})
    assert (config.codec.budget_ms, config.codec.threads, config.codec.rate) == (11.0, 4, 3.0)


def test_list_of_a_stronger_layer_replaces_the_weaker_ones(tmp_path: Path) -> None:
    config = load_node(tmp_path, "cameras: [0, 1]", {"RAC_CAMERAS": "test:"})
    assert [camera.source for camera in config.cameras] == ["test:"]


def test_bad_value_is_forgiven_when_a_stronger_layer_replaces_it(tmp_path: Path) -> None:
    assert load_node(tmp_path, "codec: {threads: many}", {"RAC_CODEC__THREADS": "2"}).codec.threads == 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("tcp://127.0.0.1:1,tcp://127.0.0.1:2", ("tcp://127.0.0.1:1", "tcp://127.0.0.1:2")),
        ('["tcp://127.0.0.1:1"]', ("tcp://127.0.0.1:1",)),
    ],
)
def test_environment_list_with_commas_or_as_json(tmp_path: Path, text: str, expected: tuple[str, ...]) -> None:
    assert load_node(tmp_path, "", {"RAC_CLOUD__ENDPOINTS": text}).cloud.endpoints == expected


def test_environment_of_the_other_program_and_other_variables_are_passed_over(tmp_path: Path) -> None:
    environment = {"RAC_POOL__WORKERS": "3", "RAC_CACHE": "/tmp", "PATH": "x", "RAC_NAME": ""}
    assert load_node(tmp_path, "name: door", environment).name == "door"


@pytest.mark.parametrize(
    ("text", "key", "words"),
    [
        ("codec: {budgetms: 3}", "codec.budgetms", "did you mean codec.budget_ms?"),
        ("budget_ms: 3", "budget_ms", "did you mean codec.budget_ms?"),
        ("kodec: {}", "kodec", "did you mean codec?"),
        ("codec: {budget_ms: 0}", "codec.budget_ms", "must be a number above 0 to 10000, not 0"),
        ("codec: {budget_ms: .nan}", "codec.budget_ms", "must be a number"),
        ("codec: {depth: deep}", "codec.depth", 'must be a whole number from 0 to 64 or auto, not "deep"'),
        ("codec: {threads: yes}", "codec.threads", "not true"),
        ("codec: 5", "codec", "is a section with the keys bundle,"),
        ("log: {level: loud}", "log.level", "must be debug, info, warning or error"),
        ("name: two words", "name", "must be 1 to 64 of A-Z a-z 0-9 . _ -"),
        ("cloud: {endpoints: []}", "cloud.endpoints", "a list of one or more"),
        ("cloud: {endpoints: [127.0.0.1]}", "cloud.endpoints", "write tcp://HOST:PORT or ipc://PATH"),
        (
            "link: {reconnect_min_s: 60}",
            "link",
            "reconnect_max_s (30) must not be below reconnect_min_s (60)",
        ),
        ("cameras: [{source: a, fpps: 2}]", "cameras[0].fpps", "did you mean fps?"),
        ("cameras: [a, {name: b}]", "cameras[1].source", "is missing"),
        ("cameras: [[1]]", "cameras[0]", "must be NAME=SOURCE or an object"),
        ("cameras: [{source: a, roi: [0, 0, 640, 480]}]", "cameras[0].roi", "each from 0 to 1"),
        ("cameras: [{source: a, roi: [0.5, 0, 0.6, 1]}]", "cameras[0].roi", "must lie inside the picture"),
    ],
)
def test_wrong_key_or_value_names_file_key_and_what_is_right(tmp_path: Path, text: str, key: str, words: str) -> None:
    error = problem(tmp_path, text)
    assert error.source == str(tmp_path / "bad.yaml")
    assert error.key == key
    assert words in error.problem


def test_peer_timeout_must_leave_room_for_a_heartbeat(tmp_path: Path) -> None:
    error = problem(tmp_path, "link: {peer_timeout_s: 2}", model=CloudConfig)
    assert (error.key, error.problem) == ("link", "peer_timeout_s (2) must be above heartbeat_s (2)")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("codec: [", "line 1"),
        ("codec: {}\ncodec: {}", "line 2: codec is given twice"),
        ("codec:\n  rate: 1\n  rate: 2", "line 3: rate is given twice"),
        ("- a", "must hold keys"),
        ("a: !!python/object:os.system {}", "could not determine a constructor"),
    ],
)
def test_file_that_is_no_configuration_says_where(tmp_path: Path, text: str, words: str) -> None:
    assert words in problem(tmp_path, text).problem


def test_unreadable_file_is_an_error_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.yaml: cannot be read: No such file"):
        read_yaml(tmp_path / "absent.yaml")
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="is not UTF-8"):
        read_yaml(binary)


def test_list_that_holds_itself_is_an_error_not_a_crash(tmp_path: Path) -> None:
    assert problem(tmp_path, "cameras: &a [*a]").key == "cameras[0]"


def test_several_problems_are_all_named_in_one_line(tmp_path: Path) -> None:
    error = problem(tmp_path, "codec: {threads: 0, depth: x}", {"RAC_LOG__FORMAT": "xml"})
    assert error.key in ("codec.depth", "codec.threads")
    for words in ("codec.threads: must be", "codec.depth: must be", "environment: log.format: must be"):
        assert words in str(error)


def test_unknown_variable_suggests_the_right_one(tmp_path: Path) -> None:
    error = problem(tmp_path, "", {"RAC_CLOUD__ENDPOINT": "x"})
    assert (error.source, error.key) == ("environment", "RAC_CLOUD__ENDPOINT")
    assert "did you mean RAC_CLOUD__ENDPOINTS?" in error.problem


def test_wrong_flag_says_command_line() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(NodeConfig, None, {}, {"metrics.port": "70000"})
    assert (caught.value.source, caught.value.key) == ("command line", "metrics.port")


def test_camera_short_and_long_forms(tmp_path: Path) -> None:
    config = load_node(
        tmp_path, "cameras: [0, door=clip.mp4, {source: pets, name: pets, fps: max, roi: [0.1, 0, 0.9, 1]}]"
    )
    assert [camera.argument for camera in config.cameras] == ["0", "door=clip.mp4", "pets=pets"]
    assert config.cameras[2].fps == "max"
    assert config.cameras[2].roi == (0.1, 0.0, 0.9, 1.0)


KEYED = "security: {key: cloud.key, allowed: nodes}"


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.5", "example.org", "[::]", "*"])
def test_bind_off_loopback_wants_keys_or_a_word(tmp_path: Path, host: str) -> None:
    bind = f'link: {{bind: "tcp://{host}:5570"}}\n'
    error = problem(tmp_path, bind, model=CloudConfig)
    assert error.key == "link.bind"
    assert error.source == str(tmp_path / "bad.yaml")
    assert "rac keys" in error.problem
    assert load_cloud(tmp_path, bind + KEYED).link.bind == f"tcp://{host}:5570"
    assert load_cloud(tmp_path, bind, {"RAC_SECURITY__INSECURE": "true"}).security.insecure


@pytest.mark.parametrize("endpoint", ["tcp://192.168.1.5:5570", "tcp://cloud.example.org:5570", "tcp://[fe80::1]:1"])
def test_endpoint_off_loopback_wants_keys_or_a_word(tmp_path: Path, endpoint: str) -> None:
    """Also where it is only the second choice."""
    text = f'cloud: {{endpoints: [tcp://127.0.0.1:5570, "{endpoint}"]}}\n'
    error = problem(tmp_path, text)
    assert error.key == "cloud.endpoints"
    assert endpoint in error.problem
    load_node(tmp_path, text + "security: {key: door.key, cloud_keys: [cloud.pub]}")
    load_node(tmp_path, text + "security: {insecure: true}")


@pytest.mark.parametrize(
    ("model", "text", "key"),
    [
        (CloudConfig, "security: {key: cloud.key}", "security.allowed"),
        (CloudConfig, "security: {allowed: nodes}", "security.allowed"),
        (CloudConfig, "security: {key: cloud.key, allowed: nodes, insecure: true}", "security.insecure"),
        (NodeConfig, "security: {key: door.key}", "security.cloud_keys"),
        (NodeConfig, "security: {cloud_keys: [cloud.pub]}", "security.cloud_keys"),
        (NodeConfig, "security: {key: door.key, cloud_keys: [a, b]}", "security.cloud_keys"),
        (NodeConfig, "security: {key: door.key, cloud_keys: [a], insecure: true}", "security.insecure"),
    ],
)
def test_half_a_security_is_an_error(tmp_path: Path, model: Any, text: str, key: str) -> None:
    """Somebody who wrote down a key believes in it; it must not be passed over."""
    assert problem(tmp_path, text, model=model).key == key


def test_half_a_security_is_an_error_wherever_the_other_half_stands(tmp_path: Path) -> None:
    error = problem(tmp_path, "security: {allowed: nodes}", {"RAC_SECURITY__KEY": ""}, model=CloudConfig)
    assert error.source == str(tmp_path / "bad.yaml")
    assert load_cloud(tmp_path, "security: {allowed: nodes}", {"RAC_SECURITY__KEY": "cloud.key"}).security.key


@pytest.mark.parametrize("model", [NodeConfig, CloudConfig])
def test_metrics_off_loopback_want_a_token(tmp_path: Path, model: Any) -> None:
    assert problem(tmp_path, "metrics: {host: 0.0.0.0}", model=model).key == "metrics.host"
    environment = {"RAC_METRICS__TOKEN": "0123456789abcdef"}
    path = tmp_path / "right.yaml"
    path.write_text("metrics: {host: 0.0.0.0}")
    assert load_config(model, path, environment, {}).metrics.host == "0.0.0.0"


@pytest.mark.parametrize("model", [NodeConfig, CloudConfig])
def test_token_may_stand_in_a_file_of_its_own(tmp_path: Path, model: Any) -> None:
    path = tmp_path / "right.yaml"
    path.write_text("metrics: {host: 0.0.0.0, token_file: /run/token}")
    assert load_config(model, path, {}, {}).metrics.token_file == "/run/token"
    both = "metrics: {token: 0123456789abcdef, token_file: /run/token}"
    assert problem(tmp_path, both, model=model).key == "metrics.token_file"


@pytest.mark.parametrize("token", ["hunter2-hunter", "with space in it!", "hunter2-h\u00fcnter2!!"])
def test_token_is_never_shown(tmp_path: Path, token: str) -> None:
    assert "hunter2" not in str(problem(tmp_path, f'metrics: {{token: "{token}"}}'))
    config = load_node(tmp_path, "metrics: {token: hunter2-hunter2-hunter2}")
    assert "hunter2" not in f"{describe(config)} {config!r}"


def test_password_in_a_wrong_value_is_not_shown(tmp_path: Path) -> None:
    """Not even its first half, where the message cuts a long value off."""
    url = "rtsp://admin:hunter2hunter2hunter2hunter2hunter2hunter2hunter2@camera.local/stream"
    for text in (f'cameras: [["{url}"]]', f'cameras: "{url}"', f'codec: {{depth: "{url}"}}'):
        assert "hunter2" not in str(problem(tmp_path, text))


@pytest.mark.parametrize(
    "endpoint",
    ["tcp://127.0.0.1:5570", "tcp://localhost:1", "tcp://[::1]:65535", "ipc:///run/rac", "tcp://127.9.9.9:1"],
)
def test_endpoint_on_this_machine_is_accepted(endpoint: str) -> None:
    check_endpoint(endpoint)
    assert not leaves_machine(endpoint)


@pytest.mark.parametrize("endpoint", ["tcp://10.0.0.1:1", "tcp://*:1", "tcp://localhost.example.org:1", "udp://x"])
def test_endpoint_beyond_this_machine_is_known(endpoint: str) -> None:
    assert leaves_machine(endpoint)


@pytest.mark.parametrize(
    "endpoint", ["tcp://127.0.0.1", "tcp://127.0.0.1:0", "tcp://127.0.0.1:70000", "udp://x:1", "ipc://"]
)
def test_endpoint_that_cannot_work_is_refused(endpoint: str) -> None:
    with pytest.raises(ValueError):
        check_endpoint(endpoint)


def test_bind_may_ask_for_any_port() -> None:
    for endpoint in ("tcp://127.0.0.1:0", "tcp://127.0.0.1:*"):
        check_endpoint(endpoint, any_port=True)


def test_loopback_is_by_address_not_by_name() -> None:
    assert is_loopback("localhost")
    assert not is_loopback("localhost.example.org")
    assert not is_loopback("127.0.0.1.example.org")


def test_given_keys_are_known_even_at_their_default(tmp_path: Path) -> None:
    """A port that somebody wrote down does not move when it is taken; the default does."""
    assert not is_given(load_node(tmp_path), "metrics.port")
    assert is_given(load_node(tmp_path, "metrics: {port: 9570}"), "metrics.port")


def test_describe_holds_every_key_as_json(tmp_path: Path) -> None:
    described = describe(load_cloud(tmp_path, "pool: {workers: 3}"))
    assert described["pool.workers"] == 3
    assert set(described) == set(config_keys(CloudConfig))


def test_configuration_cannot_be_changed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_node(tmp_path).codec.threads = 4  # type: ignore[misc]


@pytest.mark.parametrize("model", [NodeConfig, CloudConfig])
def test_sample_equals_the_defaults_and_holds_every_key(tmp_path: Path, model: Any) -> None:
    path = tmp_path / "sample.yaml"
    path.write_text(render_sample(model))
    config = load_config(model, path, {}, {})
    assert config == model()
    assert all(is_given(config, key) for key in config_keys(model))


def test_sample_explains_the_keys_of_a_camera() -> None:
    text = render_sample(NodeConfig)
    assert all(f"#   {name}: " in text for name in CameraConfig.model_fields)


def test_variable_of_a_key() -> None:
    assert environment_name("cloud.endpoints") == "RAC_CLOUD__ENDPOINTS"
    assert environment_name("drain_s") == "RAC_DRAIN_S"
