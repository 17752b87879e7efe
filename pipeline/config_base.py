"""What sections of the configuration are made of: the model, kinds of values, and rules about addresses.

The keys themselves are in `pipeline.config` and `pipeline.config_security`.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, Any, Final, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

NAME_PATTERN: Final = r"^[A-Za-z0-9._-]{1,64}$"
# A day: longer times are a wrong unit (milliseconds written as seconds).
MAX_SECONDS: Final = 86_400.0

Seconds = Annotated[float, Field(gt=0, le=MAX_SECONDS)]
Port = Annotated[int, Field(ge=0, le=65_535)]
FramesPerSecond = Annotated[float, Field(gt=0, le=1000)]
Share = Annotated[float, Field(ge=0, le=1)]

_ENDPOINT = re.compile(r"tcp://(?P<host>\[[0-9A-Fa-f:.]+\]|[^\s:/\[\]]+):(?P<port>\d{1,5}|\*)")


class Section(BaseModel):
    """A group of keys. Immutable; unknown keys are errors; a number never stands for true or false."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, coerce_numbers_to_str=True)

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_truth_as_number(cls, value: Any, context: ValidationInfo) -> Any:
        # YAML reads `workers: yes` as true, and true counts as 1.
        assert context.field_name is not None
        annotation = cls.model_fields[context.field_name].annotation
        if isinstance(value, bool) and annotation is not bool and bool not in get_args(annotation):
            raise PydanticCustomError("wrong_type", "is true or false")
        return value


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address; a name other than localhost counts as outside."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def leaves_machine(endpoint: str) -> bool:
    """Whether a ZeroMQ endpoint reaches, or can be reached from, other machines."""
    match = _ENDPOINT.fullmatch(endpoint)
    return not endpoint.startswith("ipc://") and (match is None or not is_loopback(match["host"]))


def check_endpoint(endpoint: str, *, any_port: bool = False) -> None:
    """Check the form of a ZeroMQ endpoint.

    Args:
        any_port: whether port 0 or * may ask for any free one, as for a bind.
    Raises:
        ValueError: malformed.
    """
    if endpoint.startswith("ipc://") and len(endpoint) > len("ipc://"):
        return
    match = _ENDPOINT.fullmatch(endpoint)
    if match is None:
        raise ValueError(f"{endpoint!r} is no endpoint: write tcp://HOST:PORT or ipc://PATH")
    port = 0 if match["port"] == "*" else int(match["port"])
    if port > 65_535 or (port == 0 and not any_port):
        raise ValueError(f"{endpoint!r} has no usable port (1 to 65535)")


def check_order(low_name: str, low: float, high_name: str, high: float, *, equal: bool = True) -> None:
    """Raise ValueError where the high value is below the low one, or equal to it unless it may be."""
    if low > high or (low == high and not equal):
        raise ValueError(f"{high_name} ({high:g}) must {'not be below' if equal else 'be above'} {low_name} ({low:g})")
