"""What a field of a wire message may hold: one rule each, stated in the field's annotation.

    class Credit(Record):
        frames: Annotated[int, Whole(1, 1024)]

A `Record` checks its fields when it is built, so that a value that exists is valid; `pack_fields` and `build`
turn it into the list that msgpack takes and back. Wrong types raise WireFormatError, values out of range
WireLimitError; messages name the field and the limit and never repeat what the peer sent.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, ClassVar, NoReturn, TypeVar, get_type_hints

from pipeline.errors import WireFormatError, WireLimitError

# Reasons and class names: ImageNet's longest name has 121 characters.
MAX_TEXT_CHARS = 256
# Names become metric labels, topics and file names: as long as a host name, from a set safe in all of these.
MAX_NAME_CHARS = 64

_NAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{MAX_NAME_CHARS - 1}}}")
_ENDPOINT = re.compile(r"tcp://(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):([0-9]{1,5})")
_MAX_PORT = 65_535


def is_name(text: str) -> bool:
    """Whether a node, camera or capability may be called so: letters, digits, ". _ -", not first; 1..64."""
    return _NAME.fullmatch(text) is not None


def is_endpoint(text: str) -> bool:
    """Whether this is `tcp://HOST:PORT`, the only kind of address that a peer may send us to."""
    found = _ENDPOINT.fullmatch(text)
    return found is not None and len(text) <= MAX_TEXT_CHARS and 0 < int(found.group(1)) <= _MAX_PORT


def clean_text(text: str) -> str:
    """Make any text fit a message: unprintable characters become spaces, the end beyond the limit is cut."""
    return "".join(char if char.isprintable() else " " for char in text[:MAX_TEXT_CHARS])


class Rule:
    """What a field may hold, and how it travels; the default travels as it is."""

    def check(self, value: object, where: str) -> None:
        """Raise WireFormatError for another type, WireLimitError for a value out of range."""
        raise NotImplementedError

    def pack(self, value: Any) -> Any:
        return value

    def parse(self, value: Any, where: str) -> Any:
        """Turn what msgpack gave into what the field holds; `check` follows, so only shape matters here."""
        return value


@dataclass(frozen=True, slots=True)
class Whole(Rule):
    """A whole number, minimum and maximum included."""

    minimum: int
    maximum: int

    def check(self, value: object, where: str) -> None:
        if not isinstance(value, int) or isinstance(value, bool):
            _refuse(where, "a whole number")
        if not self.minimum <= value <= self.maximum:
            raise WireLimitError(f"{where}: must be {self.minimum} to {self.maximum}")


@dataclass(frozen=True, slots=True)
class Share(Rule):
    """A finite float from 0 to 1."""

    def check(self, value: object, where: str) -> None:
        if not isinstance(value, float):
            _refuse(where, "a float")
        if not (math.isfinite(value) and 0.0 <= value <= 1.0):
            raise WireLimitError(f"{where}: must be 0 to 1")


@dataclass(frozen=True, slots=True)
class Flag(Rule):
    """True or false."""

    def check(self, value: object, where: str) -> None:
        if not isinstance(value, bool):
            _refuse(where, "true or false")


@dataclass(frozen=True, slots=True)
class Octets(Rule):
    """Bytes of bounded length; immutable ones only, so that a message never changes after its check."""

    minimum: int
    maximum: int

    def check(self, value: object, where: str) -> None:
        if not isinstance(value, bytes):
            _refuse(where, "bytes")
        if not self.minimum <= len(value) <= self.maximum:
            raise WireLimitError(f"{where}: must have {self.minimum} to {self.maximum} bytes")


@dataclass(frozen=True, slots=True)
class Text(Rule):
    """Printable text: it ends in logs and on terminals, where control characters do harm."""

    def check(self, value: object, where: str) -> None:
        if not isinstance(value, str):
            _refuse(where, "text")
        if len(value) > MAX_TEXT_CHARS:
            raise WireLimitError(f"{where}: must have at most {MAX_TEXT_CHARS} characters")
        if not value.isprintable():
            _refuse(where, "printable text")


@dataclass(frozen=True, slots=True)
class Name(Rule):
    """See `is_name`."""

    def check(self, value: object, where: str) -> None:
        if not isinstance(value, str) or not is_name(value):
            _refuse(where, f"a name: 1 to {MAX_NAME_CHARS} letters, digits, dots, dashes and underscores")


@dataclass(frozen=True, slots=True)
class Endpoint(Rule):
    """See `is_endpoint`."""

    def check(self, value: object, where: str) -> None:
        if not isinstance(value, str) or not is_endpoint(value):
            _refuse(where, "tcp://HOST:PORT")


@dataclass(frozen=True, slots=True)
class OneOf(Rule):
    """A member of a closed set of words; travels as its word."""

    allowed: frozenset[StrEnum]

    def check(self, value: object, where: str) -> None:
        if value not in self.allowed or not isinstance(value, StrEnum):
            _refuse(where, f"one of {', '.join(sorted(self.allowed))}")

    def pack(self, value: StrEnum) -> str:
        return value.value

    def parse(self, value: Any, where: str) -> Any:
        # Compared, not looked up: an unhashable value must get here unharmed.
        return next((word for word in self.allowed if word == value), None)


@dataclass(frozen=True, slots=True)
class Maybe(Rule):
    """What another rule allows, or None."""

    rule: Rule

    def check(self, value: object, where: str) -> None:
        if value is not None:
            self.rule.check(value, where)

    def pack(self, value: Any) -> Any:
        return None if value is None else self.rule.pack(value)

    def parse(self, value: Any, where: str) -> Any:
        return None if value is None else self.rule.parse(value, where)


@dataclass(frozen=True, slots=True)
class Many(Rule):
    """A tuple of bounded length."""

    rule: Rule
    minimum: int
    maximum: int

    def check(self, value: object, where: str) -> None:
        if not isinstance(value, tuple):
            _refuse(where, "an array")
        if not self.minimum <= len(value) <= self.maximum:
            raise WireLimitError(f"{where}: must have {self.minimum} to {self.maximum} entries")
        for entry in value:
            self.rule.check(entry, where)

    def pack(self, value: tuple[Any, ...]) -> list[Any]:
        return [self.rule.pack(entry) for entry in value]

    def parse(self, value: Any, where: str) -> Any:
        if not isinstance(value, list):
            _refuse(where, "an array")
        return tuple(self.rule.parse(entry, where) for entry in value)


@dataclass(frozen=True, slots=True)
class Part(Rule):
    """A record inside a message; travels as an array, longer ones allowed as for messages."""

    kind: type[Record]

    def check(self, value: object, where: str) -> None:
        if not isinstance(value, self.kind):
            _refuse(where, self.kind.__name__)

    def pack(self, value: Record) -> list[Any]:
        return pack_fields(value)

    def parse(self, value: Any, where: str) -> Any:
        if not isinstance(value, list):
            _refuse(where, "an array")
        return build(self.kind, value)


def _refuse(where: str, wanted: str) -> NoReturn:
    raise WireFormatError(f"{where}: must be {wanted}")


class Record:
    """A frozen value whose fields are checked by the rules in their annotations."""

    __slots__ = ()
    __match_args__: ClassVar[tuple[str, ...]] = ()
    #: Fields at the end that older minor versions do not send; they have defaults.
    added_later: ClassVar[int] = 0

    def __post_init__(self) -> None:
        for name, rule in field_rules(type(self)):
            rule.check(getattr(self, name), f"{type(self).__name__}.{name}")
        self._check_together()

    def _check_together(self) -> None:
        """Raise WireError where fields that are right by themselves do not go together."""


RecordType = TypeVar("RecordType", bound=Record)


_RULES: dict[type[Record], tuple[tuple[str, Rule], ...]] = {}


def field_rules(kind: type[Record]) -> tuple[tuple[str, Rule], ...]:
    """Names and rules of a record's fields, in their order."""
    rules = _RULES.get(kind)
    if rules is None:
        hints = get_type_hints(kind, include_extras=True)
        rules = tuple((name, hints[name].__metadata__[0]) for name in kind.__match_args__)
        _RULES[kind] = rules
    return rules


def pack_fields(record: Record) -> list[Any]:
    """The record as the list that goes into msgpack."""
    return [rule.pack(getattr(record, name)) for name, rule in field_rules(type(record))]


def build(kind: type[RecordType], values: Sequence[Any]) -> RecordType:
    """The record of a list that came out of msgpack.

    Trailing values are a newer minor version's and ignored; those that an older one lacks take their defaults.

    Raises:
        WireFormatError / WireLimitError: too short, or a field breaks its rule.
    """
    rules = field_rules(kind)
    needed = len(rules) - kind.added_later
    if len(values) < needed:
        raise WireFormatError(f"{kind.__name__}: has {len(values)} fields, needs {needed}")
    return kind(
        *(rule.parse(value, f"{kind.__name__}.{name}") for (name, rule), value in zip(rules, values, strict=False))
    )
