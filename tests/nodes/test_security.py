"""From the configuration to keys; and the reminder for whoever goes without."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import zmq

from nodes.authenticator import ZAP_ENDPOINT
from nodes.cli import cloud_main, node_main
from nodes.key_files import write_pair
from nodes.lifecycle import EXIT_FAILURE, EXIT_OK, EXIT_USAGE, exit_code_of
from nodes.security import (
    REMIND_EVERY_S,
    InsecureReminder,
    authenticator,
    cloud_reminder,
    load_cloud_key,
    load_link_keys,
    load_metrics_token,
    may_open,
    node_reminder,
)
from pipeline.config import CloudConfig, NodeConfig
from pipeline.errors import ConfigError, SecurityError

OUTSIDE = "tcp://192.0.2.1:5570"


def node_config(**security: Any) -> NodeConfig:
    return NodeConfig.model_validate({"cloud": {"endpoints": [OUTSIDE]}, "security": security})


def cloud_config(**security: Any) -> CloudConfig:
    return CloudConfig.model_validate({"link": {"bind": "tcp://0.0.0.0:0"}, "security": security})


def test_reminder_says_it_at_once_and_every_minute(caplog: pytest.LogCaptureFixture) -> None:
    now_s = [5000.0]
    reminder = InsecureReminder("open", lambda: now_s[0])
    for _ in range(3):
        reminder.look()
    assert [record.getMessage() for record in caplog.records] == ["INSECURE: open"]
    assert caplog.records[0].levelno == logging.WARNING
    now_s[0] += REMIND_EVERY_S
    reminder.look()
    assert len(caplog.records) == 2


def test_who_is_open_is_reminded_and_nobody_else(caplog: pytest.LogCaptureFixture) -> None:
    assert cloud_reminder(cloud_config(insecure=True)).is_insecure
    assert node_reminder(node_config(insecure=True)).is_insecure
    keyed = {"key": "x.key"}
    silent = [
        cloud_reminder(cloud_config(allowed="nodes", **keyed)),
        node_reminder(node_config(cloud_keys=("y",), **keyed)),
        cloud_reminder(CloudConfig.model_validate({"security": {"insecure": True}})),
        node_reminder(NodeConfig()),
    ]
    for reminder in silent:
        reminder.look()
        assert not reminder.is_insecure
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("load", "config"), [(load_cloud_key, cloud_config()), (load_link_keys, node_config())], ids=["cloud", "node"]
)
def test_open_link_is_refused_however_the_configuration_was_made(load: Any, config: Any) -> None:
    with pytest.raises(ConfigError, match="make keys"):
        load(config)


def test_keys_of_a_node(tmp_path: Path) -> None:
    secret, _, own = write_pair(tmp_path, "door", may_replace=False)
    _, public, cloud = write_pair(tmp_path, "cloud", may_replace=False)
    found = load_link_keys(node_config(key=str(secret), cloud_keys=(str(public),)))
    assert found is not None
    name, keys = found
    assert (name, keys.public, keys.cloud) == ("door", own.key, (cloud.key,))
    assert keys.secret not in repr(keys)
    assert load_link_keys(NodeConfig()) is None


def test_configuration_is_checked_with_its_keys(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--check-config` says ok only where a start would not fail at once."""
    monkeypatch.chdir(tmp_path)
    for name in ("door", "cloud"):
        write_pair(Path(), name, may_replace=False)
    node = ["--camera", "test:", "--key", "door.key", "--cloud-key", "cloud.pub", "--check-config"]
    cloud = ["--key", "cloud.key", "--allowed", "door.pub", "--check-config"]
    assert node_main(node) == cloud_main(cloud) == EXIT_OK
    Path("door.key").chmod(0o644)
    Path("door.pub").write_text("door")
    assert node_main(node) == cloud_main(cloud) == EXIT_USAGE
    said = capsys.readouterr().err.splitlines()
    assert [line.split(":")[1].strip() for line in said] == ["door.key", "door.pub"]


def test_handler_that_cannot_start_ends_the_program(tmp_path: Path) -> None:
    """Never a cloud that runs on without it."""
    write_pair(tmp_path, "cloud", may_replace=False)
    config = cloud_config(key=str(tmp_path / "cloud.key"), allowed=str(tmp_path / "cloud.pub"))
    with zmq.Context() as context, context.socket(zmq.REP) as other:
        other.bind(ZAP_ENDPOINT)
        with pytest.raises(SecurityError) as caught, authenticator(config, context, lambda: 0):
            raise AssertionError("it runs")
    assert exit_code_of(caught.value) == EXIT_FAILURE


def test_own_key_in_place_of_the_clouds_is_found_at_the_start(tmp_path: Path) -> None:
    secret, public, _ = write_pair(tmp_path, "door", may_replace=False)
    with pytest.raises(ConfigError, match="this node's own key"):
        load_link_keys(node_config(key=str(secret), cloud_keys=(str(public),)))


def test_cloud_may_not_send_a_node_off_in_the_clear() -> None:
    """A redirect is the cloud's word; whether frames may leave this machine unprotected is the user's."""
    assert not may_open(NodeConfig())(OUTSIDE)
    assert may_open(NodeConfig())("tcp://127.0.0.1:1")
    assert may_open(node_config(insecure=True))(OUTSIDE)
    assert may_open(node_config(key="x.key", cloud_keys=("y",)))(OUTSIDE)


def test_token_is_read_from_its_file_without_the_line_end(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("0123456789abcdef\n")
    token = load_metrics_token(NodeConfig.model_validate({"metrics": {"token_file": str(path)}}))
    assert token is not None
    assert token.get_secret_value() == "0123456789abcdef"
    given = load_metrics_token(CloudConfig.model_validate({"metrics": {"token": "fedcba9876543210"}}))
    assert given is not None
    assert given.get_secret_value() == "fedcba9876543210"
    assert load_metrics_token(NodeConfig()) is None


@pytest.mark.parametrize("content", [None, b"", b"hunter2", b"hunter2-hunter2 hunter2", b"\xff" * 20])
def test_token_file_that_is_of_no_use_is_one_line_and_code_2(
    tmp_path: Path, content: bytes | None, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "token"
    if content is not None:
        path.write_bytes(content)
    for main in (node_main, cloud_main):
        assert main(["--metrics-token-file", str(path), "--check-config"]) == EXIT_USAGE
        (line,) = capsys.readouterr().err.splitlines()
        assert f"metrics.token_file: {path}: " in line
        assert "hunter2" not in line
