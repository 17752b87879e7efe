"""Configuration keys in words: what each takes, its variable, and the commented sample file of a program."""

from __future__ import annotations

import textwrap
import types
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin

import yaml
from pydantic.fields import FieldInfo

from pipeline.config import CameraConfig, CloudConfig, NodeConfig, section_of
from pipeline.config_base import Section

ENVIRONMENT_PREFIX: Final = "RAC_"
PROGRAMS: Final[Mapping[type[Section], str]] = {NodeConfig: "rac-node", CloudConfig: "rac-cloud"}
COMMENT_COLUMNS: Final = 100
UNITS: Final = {"_ms": " milliseconds", "_s": " seconds", "_bytes": " bytes", "_frames": " frames"}

_HEAD = """\
# Configuration of {program}: every key with its default. Used by: {program} --config FILE
#
# Stronger than this file is the environment (RAC_, then the key in capitals with __ for the dot:
# {variable}), and stronger still are the flags. Write a new copy: {program} --sample-config
"""


def environment_name(key: str) -> str:
    """Environment variable of a dotted key: cloud.endpoints -> RAC_CLOUD__ENDPOINTS."""
    return ENVIRONMENT_PREFIX + key.upper().replace(".", "__")


def expected(field_info: FieldInfo) -> str:
    """What a key takes, in words: type, limits, choices."""
    return _expected_type(field_info.annotation, field_info.metadata)


def render_sample(model: type[Section]) -> str:
    """The sample file of a program: every key with its default, and what it means above it."""
    example = "cloud.endpoints" if model is NodeConfig else "link.bind"
    head = _HEAD.format(program=PROGRAMS[model], variable=environment_name(example))
    return head + "\n".join(_render_section(model, "")) + "\n"


def _render_section(model: type[Section], indent: str) -> list[str]:
    lines = []
    for name, field_info in model.model_fields.items():
        lines.append("")
        section = section_of(field_info)
        if section is not None:
            lines += _comment(field_info.description or "", indent)
            # A section's first key follows its name without a gap.
            lines += [f"{indent}{name}:", *_render_section(section, indent + "  ")[1:]]
            continue
        lines += _comment(_meaning(name, field_info), indent)
        if name == "cameras":
            lines += _render_camera_keys()
        default = field_info.get_default()
        plain = list(default) if isinstance(default, tuple) else default
        dumped = yaml.safe_dump(plain, default_flow_style=True, width=1000).removesuffix("...\n").strip()
        lines.append(f"{indent}{name}: {dumped}")
    return lines


def _render_camera_keys() -> list[str]:
    lines = []
    for name, field_info in CameraConfig.model_fields.items():
        lines += _comment(f"{name}: {_meaning(name, field_info)}", "#   ", hang="  ")
    return [*lines, "# For example: cameras: [0, door=rtsp://camera.local/stream, {source: pets, fps: 2}]"]


def _meaning(name: str, field_info: FieldInfo) -> str:
    """Description, then what the key takes and in which unit, unless any text or list will do."""
    takes = expected(field_info)
    if takes.startswith(("text", "a list of one", "a list or")) or takes == "a list":
        return field_info.description or ""
    unit = next((unit for suffix, unit in UNITS.items() if name.endswith(suffix)), "")
    return f"{field_info.description} Takes {takes}{unit}."


def _comment(text: str, indent: str, hang: str = "") -> list[str]:
    lead = indent if indent.startswith("#") else f"{indent}# "
    return textwrap.wrap(
        text, COMMENT_COLUMNS, initial_indent=lead, subsequent_indent=lead + hang, break_on_hyphens=False
    )


def _expected_type(annotation: Any, metadata: Sequence[Any]) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _expected_type(arguments[0], [*_limits_of(arguments[1:]), *metadata])
    if origin in (Union, types.UnionType):
        return _either([_expected_type(part, () if part is type(None) else metadata) for part in arguments])
    if origin is Literal:
        return _either(arguments)
    least = any(getattr(part, "min_length", None) for part in metadata)
    if origin is tuple and Ellipsis in arguments:
        return "a list of one or more" if least else "a list"
    if origin is tuple:
        return f"a list of {len(arguments)} numbers{_range(_limits_of(get_args(arguments[0])[1:]), ', each ')}"
    if annotation is int:
        return f"a whole number{_range(metadata, ' ')}"
    if annotation is float:
        return f"a number{_range(metadata, ' ')}"
    if any(getattr(part, "pattern", None) for part in metadata):
        return "1 to 64 of A-Z a-z 0-9 . _ -"
    text = "text, not empty" if least else "text"
    return {bool: "true or false", type(None): "null"}.get(annotation, text)


def _limits_of(extras: Sequence[Any]) -> list[Any]:
    """Metadata of Annotated's extras, where a Field(...) holds several."""
    return [part for extra in extras for part in (extra.metadata if isinstance(extra, FieldInfo) else [extra])]


def _range(metadata: Sequence[Any], lead: str) -> str:
    words = {"gt": "above {:.15g}", "ge": "from {:.15g}", "lt": "and below {:.15g}", "le": "to {:.15g}"}
    limits = [
        text.format(getattr(part, name))
        for name, text in words.items()
        for part in metadata
        if getattr(part, name, None) is not None
    ]
    return lead + " ".join(limits) if limits else ""


def _either(choices: Sequence[Any]) -> str:
    *first, last = [str(choice) for choice in choices]
    return f"{', '.join(first)} or {last}" if first else last
