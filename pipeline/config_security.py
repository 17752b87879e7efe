"""Keys of the configuration about who may connect and how much they may send; also the rule that nothing is
reachable from other machines by accident.

A cloud beyond this machine has keys, or says --insecure. So does a node. A page of metrics beyond this machine
wants a token. These rules look at several keys at once: they are looked at once every key by itself is right.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field, SecretStr, field_validator

from pipeline.config_base import Port, Seconds, Section, is_loopback, leaves_machine

# Shorter ones can be guessed by whoever may ask a few million times.
MIN_TOKEN_CHARS = 16


class CloudSecuritySection(Section):
    key: str | None = Field(
        None,
        min_length=1,
        description="File with this cloud's secret key (rac keys server); only its owner may read it. null: no"
        " encryption, for this machine alone.",
    )
    allowed: str | None = Field(
        None,
        min_length=1,
        description="Nodes that may connect: a file with a name and a public key on each line, or a folder of"
        " such files (*.pub). Read again on SIGHUP and when it changes; a node whose key is gone is cut off.",
    )
    insecure: bool = Field(
        False,
        description="Whether other machines may connect without keys. Then anybody who reaches the port can"
        " read, forge and flood.",
    )


class NodeSecuritySection(Section):
    key: str | None = Field(
        None,
        min_length=1,
        description="File with this node's secret key (rac keys node NAME); only its owner may read it. The"
        " name in it becomes the node's. null: no encryption, for a cloud on this machine.",
    )
    cloud_keys: tuple[str, ...] = Field(
        (),
        max_length=16,
        description="Public key of the cloud, or the file with it; a cloud with another key is not talked to."
        " One for all of cloud.endpoints, or one for each in their order.",
    )
    insecure: bool = Field(
        False,
        description="Whether frames may go to other machines without keys. Then anybody on the way can read"
        " and forge them.",
    )


class LimitsSection(Section):
    frames_per_second: Annotated[float, Field(gt=0, le=100_000)] = Field(
        1000.0,
        description="Frames a second of one node, over two seconds. Credit keeps honest nodes far below what"
        " the workers can do; this stops the others.",
    )
    bytes_per_second: Annotated[int, Field(ge=65_536, le=10_000_000_000)] = Field(
        125_000_000,
        description="Bytes a second of one node, over two seconds. The default is a line of 1 Gbit/s.",
    )
    node_cameras: Annotated[int, Field(ge=1, le=64)] = Field(64, description="Cameras of one node; more are refused.")
    node_sessions: Annotated[int, Field(ge=1, le=1000)] = Field(
        4,
        description="Sessions of one node at once: a node that is started anew leaves its old one behind for"
        " peer_timeout_s.",
    )
    cut_off_s: Seconds = Field(30.0, description="How long a node that broke a limit is not listened to.")


class MetricsSection(Section):
    host: str = Field(
        "127.0.0.1",
        min_length=1,
        description="Address of the status page at /, of /metrics, /healthz and /readyz. Beyond this machine they want"
        " `token`.",
    )
    port: Port = Field(
        9570,
        description="Port of page and metrics. When the default is taken the next free one; 0: any free one.",
    )
    token: SecretStr | None = Field(
        None,
        description="What a request must carry as `Authorization: Bearer TOKEN`, or a browser as password with any"
        " name; 16 printable characters or more. Better given as a variable than as a flag, which others on this"
        " machine can read. null: none wanted, on this machine alone.",
    )
    token_file: str | None = Field(
        None,
        description="File with the token instead, as container and service managers hand secrets over. Read"
        " once, at the start.",
    )
    max_cameras: Annotated[int, Field(ge=1, le=10_000)] = Field(
        64,
        description="Cameras with series of their own in the per-camera metrics, where the others share `_other`.",
    )

    @field_validator("token")
    @classmethod
    def _check_token(cls, token: SecretStr | None) -> SecretStr | None:
        if token is not None:
            check_token(token.get_secret_value())
        return token


def check_token(text: str) -> None:
    """Make sure that a token can be carried in a header and not be guessed.

    Raises:
        ValueError: it cannot; says why, and never what it is.
    """
    if not (len(text) >= MIN_TOKEN_CHARS and text.isascii() and text.isprintable()):
        raise ValueError(f"must be {MIN_TOKEN_CHARS} or more printable characters without spaces or accents")
    if " " in text:
        raise ValueError("must hold no space")


class CloudMetricsSection(MetricsSection):
    port: Port = Field(
        9580,
        description="Port of page and metrics. When the default is taken the next free one; 0: any free one.",
    )
    max_cameras: Annotated[int, Field(ge=1, le=10_000)] = Field(
        256,
        description="Cameras of all nodes that the page shows (512 at most) and that have series of their own in the"
        " per-camera metrics, where the others share `_other`.",
    )


@dataclass(frozen=True, slots=True)
class Conflict:
    """Keys that do not go together.

    Attributes:
        key: the one to look at first.
        problem: what is wrong, and what to do.
    """

    key: str
    problem: str


def find_cloud_conflict(bind: str, security: CloudSecuritySection, metrics: MetricsSection) -> Conflict | None:
    """What of a cloud would be open by accident, or which of its keys is given by half."""
    if security.key is None and security.allowed is not None:
        return Conflict("security.allowed", "names nodes, but the cloud has no key: name it in security.key")
    if security.key is not None and security.allowed is None:
        return Conflict("security.allowed", "must name the file or folder of the nodes' public keys")
    if security.key is not None and security.insecure:
        return Conflict("security.insecure", "goes without keys, but security.key is given: leave one of them out")
    if leaves_machine(bind) and security.key is None and not security.insecure:
        return Conflict(
            "link.bind",
            f"{bind} can be reached from other machines: make keys (rac keys) and name them in security.key and"
            " security.allowed, use tcp://127.0.0.1, or accept strangers with --insecure",
        )
    return _find_metrics_conflict(metrics)


def find_node_conflict(
    endpoints: tuple[str, ...], security: NodeSecuritySection, metrics: MetricsSection
) -> Conflict | None:
    """What a node would send in the clear by accident, or which of its keys is given by half."""
    if security.key is None and security.cloud_keys:
        return Conflict("security.cloud_keys", "names the cloud's key, but the node has none: name it in security.key")
    if security.key is not None and not security.cloud_keys:
        return Conflict("security.cloud_keys", "must name the cloud's public key, or the file with it")
    if security.key is not None and security.insecure:
        return Conflict("security.insecure", "goes without keys, but security.key is given: leave one of them out")
    if len(security.cloud_keys) not in (0, 1, len(endpoints)):
        problem = f"has {len(security.cloud_keys)} keys for {len(endpoints)} endpoints: give one, or one for each"
        return Conflict("security.cloud_keys", problem)
    outside = [endpoint for endpoint in endpoints if leaves_machine(endpoint)]
    if outside and security.key is None and not security.insecure:
        return Conflict(
            "cloud.endpoints",
            f"{outside[0]} leaves this machine: make keys (rac keys) and name them in security.key and"
            " security.cloud_keys, or send frames in the clear with --insecure",
        )
    return _find_metrics_conflict(metrics)


def _find_metrics_conflict(metrics: MetricsSection) -> Conflict | None:
    if metrics.token is not None and metrics.token_file is not None:
        return Conflict("metrics.token_file", "names a token, and metrics.token is one: leave one of them out")
    if not is_loopback(metrics.host) and metrics.token is None and metrics.token_file is None:
        problem = f"{metrics.host} can be reached from other machines: set metrics.token, or use 127.0.0.1"
        return Conflict("metrics.host", problem)
    return None
