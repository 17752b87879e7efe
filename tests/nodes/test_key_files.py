"""Key files on disk: only their owner can read a secret, nothing is overwritten, what is wrong is named by its path."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from nodes.key_files import load_allow_list, load_public, load_secret, make_pair, public_of, signature, write_pair
from pipeline.authorisation import render_public, render_secret
from pipeline.errors import ConfigError


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_pair_is_written_for_its_owner_alone_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        secret, public, key = write_pair(tmp_path / "keys/nodes", "door", may_replace=False)
    finally:
        os.umask(before)
    assert (mode_of(secret), mode_of(public), mode_of(tmp_path / "keys/nodes")) == (0o600, 0o644, 0o700)
    assert load_secret(secret).name == "door"
    assert public_of(load_secret(secret)) == key
    assert load_public(str(public)) == key.key
    assert key.key not in secret.read_text()
    assert load_secret(secret).key not in public.read_text()
    assert sorted(path.name for path in secret.parent.iterdir()) == ["door.key", "door.pub"]


@pytest.mark.parametrize("left", ["door.key", "door.pub"])
def test_pair_is_never_overwritten_by_accident(tmp_path: Path, left: str) -> None:
    """Not even when only one half of it is left."""
    secret, public, _ = write_pair(tmp_path, "door", may_replace=False)
    for path in (secret, public):
        if path.name != left:
            path.unlink()
    before = (tmp_path / left).read_bytes()
    with pytest.raises(ConfigError, match="is there already"):
        write_pair(tmp_path, "door", may_replace=False)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {left: before}


def test_pair_is_replaced_where_that_was_asked_for(tmp_path: Path) -> None:
    _, _, old = write_pair(tmp_path, "door", may_replace=False)
    secret, public, new = write_pair(tmp_path, "door", may_replace=True)
    assert old != new
    assert public_of(load_secret(secret)) == new
    assert load_public(str(public)) == new.key
    assert mode_of(secret) == 0o600


def test_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="file.*cannot be written"):
        write_pair(tmp_path / "file", "door", may_replace=False)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644, 0o610])
def test_secret_that_others_can_use_is_refused(tmp_path: Path, mode: int) -> None:
    path, _, _ = write_pair(tmp_path, "door", may_replace=False)
    path.chmod(mode)
    with pytest.raises(ConfigError, match=f"mode 0{mode:o}.*chmod 600"):
        load_secret(path)


def test_secret_that_its_owner_cannot_change_is_fine(tmp_path: Path) -> None:
    path, _, _ = write_pair(tmp_path, "door", may_replace=False)
    path.chmod(0o400)
    assert load_secret(path).name == "door"


@pytest.mark.parametrize("content", [b"", b"secret door", b"\xff\xfe", b"x" * (2**20 + 2)])
def test_secret_file_with_something_else_in_it_is_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "door.key"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(ConfigError) as caught:
        load_secret(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_missing_files_are_named(tmp_path: Path) -> None:
    for load in (load_secret, load_allow_list):
        with pytest.raises(ConfigError, match=r"absent: cannot be read: No such file"):
            load(tmp_path / "absent")
    with pytest.raises(ConfigError, match=r"absent: cannot be read: No such file"):
        load_public(str(tmp_path / "absent"))


def test_public_key_is_a_file_or_the_key_itself(tmp_path: Path) -> None:
    public, secret = make_pair("cloud")
    path = tmp_path / "cloud.pub"
    path.write_text(render_public(public))
    assert load_public(str(path)) == load_public(public.key) == public.key
    with pytest.raises(ConfigError, match="no key"):
        load_public("'" * 40)
    path.write_text(render_secret(secret))
    with pytest.raises(ConfigError, match="holds a secret key") as caught:
        load_public(str(path))
    assert secret.key not in str(caught.value)
    path.write_text(render_public(public) * 2)
    with pytest.raises(ConfigError, match="must hold one public key, has 2"):
        load_public(str(path))


def test_allow_list_is_a_file_or_the_pub_files_of_a_folder(tmp_path: Path) -> None:
    door, yard, gone = (make_pair(name)[0] for name in ("door", "yard", "gone"))
    file, folder = tmp_path / "nodes", tmp_path / "folder"
    file.write_text(render_public(door) + render_public(yard))
    folder.mkdir()
    for entry in (door, yard):
        (folder / f"{entry.name}.pub").write_text(render_public(entry))
    (folder / "notes.txt").write_text("no keys")
    (folder / ".gone.pub").write_text(render_public(gone))
    (folder / "gone.pub.bak").write_text(render_public(gone))
    for path in (file, folder):
        allowed = load_allow_list(path)
        assert [allowed.name_of(entry.key) for entry in (door, yard, gone)] == ["door", "yard", None]


def test_list_with_one_bad_file_is_not_used_by_half(tmp_path: Path) -> None:
    write_pair(tmp_path, "door", may_replace=False)
    (tmp_path / "yard.pub").write_text("yard")
    with pytest.raises(ConfigError, match=r"yard\.pub: line 1"):
        load_allow_list(tmp_path)


def test_two_nodes_with_one_key_are_an_error(tmp_path: Path) -> None:
    public, _ = make_pair("door")
    (tmp_path / "a.pub").write_text(f"door {public.key}")
    (tmp_path / "b.pub").write_text(f"yard {public.key}")
    with pytest.raises(ConfigError, match="every node needs its own"):
        load_allow_list(tmp_path)


def test_signature_changes_with_every_change(tmp_path: Path) -> None:
    public, _ = make_pair("door")
    folder = tmp_path / "nodes"
    assert signature(folder) == ()
    folder.mkdir()
    path = folder / "door.pub"
    seen = [signature(folder)]
    path.write_text(render_public(public))
    seen.append(signature(folder))
    assert signature(folder) == seen[-1]
    path.write_text(render_public(public) * 2)
    seen.append(signature(folder))
    path.rename(folder / "yard.pub")
    seen.append(signature(folder))
    (folder / "yard.pub").unlink()
    assert signature(folder) == seen[0]
    assert len(set(seen)) == 4
