"""Key files on disk: written so that only their owner can read them, refused when others can.

    keys/cloud.key  keys/cloud.pub             the cloud's pair; the .pub goes to every node
    keys/nodes/door.key  keys/nodes/door.pub   a node's pair; the .key goes to the node, the folder is an allow-list

What is wrong with a file is a `ConfigError` with its path, never with its content.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

import zmq

from pipeline.authorisation import (
    KEY_CHARS,
    AllowList,
    NamedKey,
    check_key,
    parse_public,
    parse_secret,
    render_public,
    render_secret,
)
from pipeline.errors import ConfigError

SECRET_SUFFIX: Final = ".key"
PUBLIC_SUFFIX: Final = ".pub"
SECRET_MODE: Final = 0o600
PUBLIC_MODE: Final = 0o644
FOLDER_MODE: Final = 0o700
OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO
# A fleet of ten thousand nodes in one list; a file given by mistake, such as a video, ends here.
MAX_FILE_BYTES: Final = 2**20

Signature = tuple[tuple[str, int, int, int], ...]


def make_pair(name: str) -> tuple[NamedKey, NamedKey]:
    """A new pair: public and secret."""
    public, secret = zmq.curve_keypair()
    return NamedKey(name, public.decode()), NamedKey(name, secret.decode())


def public_of(secret: NamedKey) -> NamedKey:
    """The public key behind a secret one."""
    return NamedKey(secret.name, zmq.curve_public(secret.key.encode()).decode())


def write_pair(folder: Path, name: str, *, may_replace: bool) -> tuple[Path, Path, NamedKey]:
    """Make a pair and write NAME.key and NAME.pub into a folder, which is made where it is missing.

    Returns:
        Secret file, public file, public key.
    Raises:
        ConfigError: one of them is there already and may not be replaced, or cannot be written.
    """
    public, secret = make_pair(name)
    paths = folder / f"{name}{SECRET_SUFFIX}", folder / f"{name}{PUBLIC_SUFFIX}"
    try:
        folder.mkdir(mode=FOLDER_MODE, parents=True, exist_ok=True)
        for path in paths:
            if os.path.lexists(path) and not may_replace:
                raise ConfigError(path, "", "is there already: choose another name or --out, or --replace it for good")
        write_whole(paths[0], render_secret(secret), SECRET_MODE)
        write_whole(paths[1], render_public(public), PUBLIC_MODE)
    except OSError as error:
        raise ConfigError(error.filename or folder, "", f"cannot be written: {error.strerror or error}") from error
    return *paths, public


def load_secret(path: Path) -> NamedKey:
    """Read a secret key file.

    Raises:
        ConfigError: it cannot be read, others can read it, or it holds no secret key.
    """
    try:
        with path.open("rb") as file:
            # Of what was opened, not of what may stand there a moment later.
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(path, "", f"cannot be read: {error.strerror or error}") from error
    if mode & OTHERS:
        raise ConfigError(path, "", f"others than its owner can use it (mode {mode:04o}): chmod 600 {path}")
    try:
        return parse_secret(_decode(content))
    except ValueError as error:
        raise ConfigError(path, "", str(error)) from error


def load_public(path_or_key: str) -> str:
    """The key that is meant by a public key file, or by the key itself.

    Raises:
        ConfigError: neither, or a file with several.
    """
    path = Path(path_or_key)
    if len(path_or_key) == KEY_CHARS and not path.exists():
        try:
            check_key(path_or_key)
        except ValueError as error:
            raise ConfigError("configuration", "security.cloud_keys", f"{error}, and no such file") from error
        return path_or_key
    entries = _load_entries(path)
    if len(entries) != 1:
        raise ConfigError(path, "", f"must hold one public key, has {len(entries)}")
    return entries[0].key


def load_allow_list(path: Path) -> AllowList:
    """Read an allow-list: a file, or every *.pub file of a folder, hidden ones left out.

    Raises:
        ConfigError: it is missing, or anything in it is wrong. No half of a list is ever used.
    """
    entries = [entry for file in _files(path) for entry in _load_entries(file)]
    try:
        return AllowList(entries)
    except ValueError as error:
        raise ConfigError(path, "", str(error)) from error


def signature(path: Path) -> Signature:
    """What changes whenever an allow-list does; empty while it is missing."""
    try:
        found = [(file, file.stat()) for file in _files(path)]
    except (OSError, ConfigError):
        return ()
    return tuple((file.name, status.st_mtime_ns, status.st_size, status.st_ino) for file, status in found)


def _files(path: Path) -> list[Path]:
    try:
        if not path.is_dir():
            path.stat()
            return [path]
        return sorted(file for file in path.iterdir() if file.suffix == PUBLIC_SUFFIX and file.name[0] != ".")
    except OSError as error:
        raise ConfigError(path, "", f"cannot be read: {error.strerror or error}") from error


def _load_entries(path: Path) -> list[NamedKey]:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise ConfigError(path, "", f"cannot be read: {error.strerror or error}") from error
    try:
        return parse_public(_decode(content))
    except ValueError as error:
        raise ConfigError(path, "", str(error)) from error


def _decode(content: bytes) -> str:
    if len(content) > MAX_FILE_BYTES:
        raise ValueError("is far too large for a file of keys")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise ValueError("is no text") from error


def write_whole(path: Path, text: str, mode: int) -> None:
    """Write a file whole or not at all; it never exists with another mode than this."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            os.fchmod(file.fileno(), mode)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
