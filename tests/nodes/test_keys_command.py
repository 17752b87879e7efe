"""`rac keys` as a user meets it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nodes.cli import main
from nodes.key_files import load_allow_list, load_secret, public_of
from nodes.lifecycle import EXIT_OK, EXIT_USAGE


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def keys(*arguments: str) -> int:
    return main(["keys", *arguments])


def test_pairs_of_a_cloud_and_its_nodes(capsys: pytest.CaptureFixture[str]) -> None:
    assert keys("server") == EXIT_OK
    assert keys("node", "door") == EXIT_OK
    out = capsys.readouterr().out
    assert "--cloud-key keys/cloud.pub" in out
    assert "--allowed keys/nodes" in out
    for path in ("keys/cloud.key", "keys/nodes/door.key"):
        secret = load_secret(Path(path))
        assert secret.key not in out
        assert f"{secret.name} {public_of(secret).key}" in out
    assert len(load_allow_list(Path("keys/nodes"))) == 1


def test_json_says_where_the_files_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert keys("node", "door", "--out", "mine", "--json") == EXIT_OK
    said = json.loads(capsys.readouterr().out)
    assert (said["name"], said["secret_file"], said["public_file"]) == ("door", "mine/door.key", "mine/door.pub")
    assert said["key"] == public_of(load_secret(Path("mine/door.key"))).key


def test_public_key_of_either_file(capsys: pytest.CaptureFixture[str]) -> None:
    keys("server")
    capsys.readouterr()
    assert keys("public", "keys/cloud.key") == EXIT_OK
    of_secret = capsys.readouterr().out
    assert keys("public", "keys/cloud.pub") == EXIT_OK
    assert capsys.readouterr().out == of_secret == Path("keys/cloud.pub").read_text()
    assert keys("public", "keys/cloud.pub", "--json") == EXIT_OK
    assert json.loads(capsys.readouterr().out) == dict(zip(("name", "key"), of_secret.split(), strict=True))


def test_pair_that_is_there_stays(capsys: pytest.CaptureFixture[str]) -> None:
    keys("server")
    before = Path("keys/cloud.key").read_bytes()
    assert keys("server") == EXIT_USAGE
    assert "keys/cloud.key: is there already" in capsys.readouterr().err
    assert Path("keys/cloud.key").read_bytes() == before
    assert keys("server", "--replace") == EXIT_OK
    assert Path("keys/cloud.key").read_bytes() != before


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["node"], "rac keys node door"),
        (["node", "../door"], "must be 1 to 64 letters"),
        (["public"], "rac keys public"),
        (["public", "absent.key"], "absent.key: cannot be read"),
        (["public", "absent.pub"], "absent.pub: cannot be read"),
    ],
)
def test_wrong_arguments_are_one_line(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert keys(*arguments) == EXIT_USAGE
    err = capsys.readouterr().err
    assert says in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
