"""Keys as text, and the list of nodes that may connect. No files here: `nodes.key_files` reads and writes them.

A key is 32 bytes of CURVE25519 in Z85: 40 characters without spaces. Files hold one key a line, `#` begins a
comment line:

    NAME KEY            a public key; a list of these is an allow-list
    secret NAME KEY     the secret key behind it

A secret key looks like a public one, so the word before it keeps one from being published as the other. A node
is called what the list calls its key; what it says about itself counts for nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from pipeline.wire_fields import is_name

KEY_CHARS = 40
SECRET_WORD = "secret"

_Z85 = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"
_Z85_GROUP_CHARS = 5
_Z85_GROUP_LIMIT = 1 << 32


@dataclass(frozen=True, slots=True)
class NamedKey:
    """A key, and what its owner is called. Whether it is secret is known where it came from.

    Attributes:
        key: Z85 text; left out of the representation, since it may be the secret one.
    """

    name: str
    key: str = field(repr=False)


class AllowList:
    """Which public key is which node; immutable, so that threads may share it.

    A name may have several keys: that is how a node changes its key without a gap.
    """

    def __init__(self, entries: Iterable[NamedKey] = ()) -> None:
        """Take the entries.

        Raises:
            ValueError: one key has two names.
        """
        names: dict[str, str] = {}
        for entry in entries:
            other = names.setdefault(entry.key, entry.name)
            if other != entry.name:
                raise ValueError(f"the key of {other} is also the one of {entry.name}: every node needs its own")
        self._names: Mapping[str, str] = names

    def __len__(self) -> int:
        return len(self._names)

    def __repr__(self) -> str:
        return f"<AllowList of {len(self)} keys>"

    def name_of(self, key: str) -> str | None:
        """The node with this public key; None for a stranger."""
        return self._names.get(key)


def check_key(text: str) -> None:
    """Raise ValueError unless this is a key in Z85."""
    if len(text) != KEY_CHARS or not set(text) <= set(_Z85):
        raise ValueError(f"no key: a key has {KEY_CHARS} characters of Z85")
    for start in range(0, KEY_CHARS, _Z85_GROUP_CHARS):
        number = 0
        for char in text[start : start + _Z85_GROUP_CHARS]:
            number = number * len(_Z85) + _Z85.index(char)
        if number >= _Z85_GROUP_LIMIT:
            raise ValueError("no key: its characters stand for no 32 bytes")


def parse_public(text: str) -> list[NamedKey]:
    """Read lines of `NAME KEY`.

    Raises:
        ValueError: with the number of the line; never with what stands in it, which may be a secret.
    """
    entries = []
    for number, words in _lines(text):
        if words[0] == SECRET_WORD:
            raise ValueError(f"line {number}: holds a secret key, where public ones (*.pub) belong")
        entries.append(_entry(number, words))
    return entries


def parse_secret(text: str) -> NamedKey:
    """Read the one line `secret NAME KEY`.

    Raises:
        ValueError: it is not that; the text never repeats the key.
    """
    found = list(_lines(text))
    if len(found) != 1:
        raise ValueError(f"must hold one secret key, has {len(found)} lines beside comments")
    number, words = found[0]
    if words[0] != SECRET_WORD:
        raise ValueError(f"line {number}: must be `secret NAME KEY`, the *.key file that rac keys wrote")
    return _entry(number, words[1:])


def render_public(entry: NamedKey) -> str:
    """The line of a public key file."""
    return f"{entry.name} {entry.key}\n"


def render_secret(entry: NamedKey) -> str:
    """A secret key file, with its warning."""
    return (
        f"# Secret CURVE key of {entry.name}. Whoever has it can pass for {entry.name}: keep it on that machine,\n"
        f"# readable by its owner alone. The public key: rac keys public FILE\n"
        f"{SECRET_WORD} {entry.name} {entry.key}\n"
    )


def _lines(text: str) -> Iterable[tuple[int, list[str]]]:
    """Lines with something in them, by number, in words. A key may hold a #, so only whole lines are comments."""
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if words and not words[0].startswith("#"):
            yield number, words


def _entry(number: int, words: list[str]) -> NamedKey:
    if len(words) != 2:
        raise ValueError(f"line {number}: must be a name and a key")
    name, key = words
    if not is_name(name):
        raise ValueError(f"line {number}: its name must be 1 to 64 letters, digits, dots, dashes and underscores")
    try:
        check_key(key)
    except ValueError as error:
        raise ValueError(f"line {number}: {error}") from error
    return NamedKey(name, key)
