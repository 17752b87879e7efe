"""Where configuration comes from.

    defaults < file (YAML) < environment (RAC_CLOUD__ENDPOINTS) < flags (--cloud)

Each layer is flattened to dotted keys first (`cloud.endpoints`). So every value keeps its origin for
messages, an unknown key is found before any value is looked at, and a stronger layer's list replaces the
weaker one's.
The environment is passed in; nothing here reads it.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar, get_origin

import yaml
from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from pipeline.config import CameraConfig, CloudConfig, NodeConfig, config_keys, section_of
from pipeline.config_base import Section
from pipeline.config_sample import ENVIRONMENT_PREFIX, PROGRAMS, environment_name, expected
from pipeline.errors import ConfigError
from pipeline.masking import mask_credentials

#: Variables that start like ours and are no keys: the cache folder, and whether the demo's nodes are silent.
OTHER_VARIABLES: Final = frozenset({"RAC_CACHE"})
SHOWN_CHARACTERS: Final = 60

Config = TypeVar("Config", NodeConfig, CloudConfig)


@dataclass(slots=True)
class _Layers:
    """What the sources gave so far: value and origin by dotted key, and everything that was wrong."""

    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    problems: list[ConfigError] = field(default_factory=list)

    def add(self, origin: str, key: str, value: Any) -> None:
        self.values[key] = value
        self.origins[key] = origin

    def origin_of(self, key: str) -> str:
        """Origin of a key, or of the strongest given key in a section; defaults are never wrong."""
        inside = [origin for name, origin in self.origins.items() if name == key or name.startswith(f"{key}.")]
        return inside[-1] if inside else "defaults"


def load_config(
    model: type[Config], path: Path | None, environment: Mapping[str, str], flags: Mapping[str, Any]
) -> Config:
    """Join defaults, file, environment and flags, the later the stronger.

    Args:
        model: NodeConfig or CloudConfig.
        path: YAML file, or None for none.
        environment: `os.environ` or a part of it; RAC_ variables of the other program are passed over, and an
            empty one counts as not set.
        flags: values by dotted key.
    Returns:
        The checked configuration; sections know which keys were given (`is_given`).
    Raises:
        ConfigError: one line with the origin, the key, what is wrong, and the nearest right name; where
            several things are wrong, the first one's origin and key, and all of them in its text.
    """
    layers = _Layers()
    known = config_keys(model)
    if path is not None:
        _add_mapping(layers, str(path), model, read_yaml(path))
    _add_environment(layers, known, environment)
    for key, value in flags.items():
        if key in known:
            layers.add("command line", key, value)
        else:
            layers.problems.append(ConfigError("command line", key, _unknown(key, list(known))))
    # Unknown keys first and alone: a value is only worth a message when its name is right.
    _raise_problems(layers.problems)
    try:
        config = model.model_validate(_nest(layers.values))
    except ValidationError as error:
        details = error.errors(include_url=False, include_context=False)
        _raise_problems(_explain(layers, known, details))
        raise AssertionError("a validation error without a problem") from error
    conflict = config.find_conflict()
    if conflict is not None:
        raise ConfigError(layers.origin_of(conflict.key), conflict.key, conflict.problem)
    return config


def describe(config: Section) -> dict[str, Any]:
    """Values in force by dotted key, as plain JSON values. Sources may hold passwords: mask them."""
    plain = config.model_dump(mode="json")
    found = {}
    for key in config_keys(type(config)):
        value: Any = plain
        for part in key.split("."):
            value = value[part]
        found[key] = value
    return found


def is_given(config: Section, key: str) -> bool:
    """Whether a file, the environment or a flag set a key, even to its default."""
    section: Any = config
    *parents, name = key.split(".")
    for parent in parents:
        section = getattr(section, parent)
    return name in section.model_fields_set


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds one mapping; an empty file is an empty one.

    Raises:
        ConfigError: cannot be read, is no YAML, or has a key twice.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeyLoader)
    except OSError as error:
        raise ConfigError(path, "", f"cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(path, "", "is not UTF-8 text") from error
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise ConfigError(path, "", f"{line}{error.problem or 'is not YAML'}") from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ConfigError(path, "", f"is not YAML: {' '.join(str(error).split())}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(path, "", "must hold keys with values, like `drain_s: 1.0`")
    return content


class _UniqueKeyLoader(yaml.SafeLoader):
    """Plain YAML, but a key that is given twice is an error instead of the last one winning."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if key_node.value in seen and isinstance(key_node, yaml.ScalarNode):
                raise yaml.MarkedYAMLError(problem=f"{key_node.value} is given twice", problem_mark=key_node.start_mark)
            if isinstance(key_node, yaml.ScalarNode):
                seen.add(key_node.value)
        return super().construct_mapping(node, deep)


def _add_mapping(
    layers: _Layers, origin: str, model: type[Section], mapping: Mapping[Any, Any], prefix: str = ""
) -> None:
    for name, value in mapping.items():
        key = f"{prefix}{name}"
        field_info = model.model_fields.get(name) if isinstance(name, str) else None
        if field_info is None:
            near = [prefix + known for known in model.model_fields]
            everywhere = near if prefix else list(dict.fromkeys([*near, *config_keys(model)]))
            layers.problems.append(ConfigError(origin, key, _unknown(key, everywhere)))
            continue
        section = section_of(field_info)
        if section is None:
            layers.add(origin, key, value)
        elif isinstance(value, Mapping):
            _add_mapping(layers, origin, section, value, f"{key}.")
        elif value is not None:
            keys = ", ".join(section.model_fields)
            layers.problems.append(ConfigError(origin, key, f"is a section with the keys {keys}"))


def _add_environment(layers: _Layers, known: Mapping[str, FieldInfo], environment: Mapping[str, str]) -> None:
    names = {environment_name(key): key for key in known}
    others = {environment_name(key) for model in PROGRAMS for key in config_keys(model)} | OTHER_VARIABLES
    for name, text in environment.items():
        if not name.startswith(ENVIRONMENT_PREFIX) or not text:
            continue
        if name in names:
            try:
                layers.add("environment", names[name], _parse_variable(known[names[name]], text))
            except ValueError:
                layers.problems.append(ConfigError("environment", name, "starts like JSON, but is none"))
        elif name not in others:
            layers.problems.append(ConfigError("environment", name, _unknown(name, sorted(names.keys() | others))))


def _parse_variable(field_info: FieldInfo, text: str) -> Any:
    """A list as JSON or with commas; anything else as it stands, null for nothing."""
    if get_origin(field_info.annotation) is tuple:
        if text.lstrip().startswith("["):
            return json.loads(text)
        return [part.strip() for part in text.split(",") if part.strip()]
    return None if text == "null" else text


def _nest(values: Mapping[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for key, value in values.items():
        *parents, name = key.split(".")
        section = nested
        for parent in parents:
            section = section.setdefault(parent, {})
        section[name] = value
    return nested


def _explain(layers: _Layers, known: Mapping[str, FieldInfo], details: list[ErrorDetails]) -> list[ConfigError]:
    """Turn pydantic's errors into ours, one for each key: a union reports one error for each of its types."""
    problems: dict[str, ConfigError] = {}
    for detail in details:
        key, inside = _split_location(known, detail["loc"])
        shown, problem = _explain_one(known.get(key), key, inside, detail)
        if shown not in problems:
            problems[shown] = ConfigError(layers.origin_of(key), shown, problem)
    return list(problems.values())


def _split_location(known: Mapping[str, FieldInfo], location: tuple[int | str, ...]) -> tuple[str, list[int | str]]:
    """The dotted key of an error's place, and the way on inside its value."""
    parts: list[str] = []
    for index, part in enumerate(location):
        parts.append(str(part))
        if ".".join(parts) in known:
            return ".".join(parts), list(location[index + 1 :])
    return ".".join(parts), []


def _explain_one(
    field_info: FieldInfo | None, key: str, inside: list[int | str], detail: ErrorDetails
) -> tuple[str, str]:
    shown = key
    if inside and isinstance(inside[0], int):
        shown = f"{key}[{inside[0]}]"
        if key == "cameras" and len(inside) > 1:
            name = str(inside[1])
            shown = f"{shown}.{name}"
            field_info = CameraConfig.model_fields.get(name)
            if field_info is None:
                return shown, _unknown(name, list(CameraConfig.model_fields))
        elif key == "cameras":
            field_info = None
    if detail["type"] == "value_error":
        return shown, detail["msg"].removeprefix("Value error, ")
    if detail["type"] == "missing":
        return shown, "is missing"
    if field_info is None:
        return shown, f"must be NAME=SOURCE or an object with keys, not {_short(detail['input'])}"
    return shown, f"must be {expected(field_info)}, not {_short(detail['input'])}"


def _raise_problems(problems: list[ConfigError]) -> None:
    if problems:
        first, *others = problems
        text = "; ".join([first.problem, *(str(other) for other in others)])
        raise ConfigError(first.source, first.key, text)


def _unknown(key: str, known: list[str]) -> str:
    nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    if not nearest:
        # The right word in the wrong section: workers for pool.workers.
        nearest = [name for name in known if name.rpartition(".")[2] == key.rpartition(".")[2]][:1]
    if nearest:
        return f"unknown key; did you mean {nearest[0]}?"
    return f"unknown key; known: {', '.join(known[:12])}"


def _short(value: Any) -> str:
    plain = value is None or isinstance(value, str | int | float)
    # repr() ends where a YAML alias makes a list hold itself.
    # Masked whole: of a password that is cut in two nothing says any more that it is one.
    text = mask_credentials(json.dumps(value) if plain else repr(value))
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[: SHOWN_CHARACTERS - 3]}..."
