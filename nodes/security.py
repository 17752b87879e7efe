"""Keys from the configuration to the sockets, for both programs; and the reminder that there are none."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import zmq
from pydantic import SecretStr

from nodes.authenticator import AllowedNodes, Authenticator
from nodes.key_files import load_allow_list, load_public, load_secret, public_of
from nodes.uplink import LinkKeys
from pipeline.authorisation import NamedKey
from pipeline.config import CloudConfig, NodeConfig
from pipeline.config_base import leaves_machine
from pipeline.config_security import check_token
from pipeline.errors import ConfigError

REMIND_EVERY_S: Final = 60.0

logger = logging.getLogger("rac.security")


class InsecureReminder:
    """Says again and again that the link is open, so that nobody forgets it; silent for a link that is not."""

    def __init__(self, text: str, clock: Callable[[], float] = time.monotonic) -> None:
        """Say it for the first time at the first `look`.

        Args:
            text: what is open; empty: nothing is.
        """
        self._text = text
        self._clock = clock
        self._said_s: float | None = None

    @property
    def is_insecure(self) -> bool:
        return bool(self._text)

    def look(self) -> None:
        """Say it when it is time; call it now and then."""
        now_s = self._clock()
        if self._text and (self._said_s is None or now_s - self._said_s >= REMIND_EVERY_S):
            self._said_s = now_s
            logger.warning("INSECURE: %s", self._text, extra={"event": "insecure"})


def cloud_reminder(config: CloudConfig) -> InsecureReminder:
    """The reminder of a cloud that strangers can reach."""
    is_open = config.security.key is None and leaves_machine(config.link.bind)
    text = f"whoever reaches {config.link.bind} can read, forge and flood; make keys with rac keys"
    return InsecureReminder(text if is_open else "")


def node_reminder(config: NodeConfig) -> InsecureReminder:
    """The reminder of a node whose frames anybody on the way can read."""
    outside = [endpoint for endpoint in config.cloud.endpoints if leaves_machine(endpoint)]
    is_open = config.security.key is None and bool(outside)
    text = f"frames to {', '.join(outside)} can be read and forged on the way; make keys with rac keys"
    return InsecureReminder(text if is_open else "")


def load_cloud_key(config: CloudConfig) -> NamedKey | None:
    """The cloud's secret key; None where none is configured.

    Raises:
        ConfigError: it cannot be used, or keys are given by half.
    """
    _check(config)
    return None if config.security.key is None else load_secret(Path(config.security.key))


def check_node_keys(config: NodeConfig) -> None:
    """Read everything that a start would.

    Raises:
        ConfigError: it cannot be used.
    """
    load_link_keys(config)
    load_metrics_token(config)


def check_cloud_keys(config: CloudConfig) -> None:
    """Read everything that a start would.

    Raises:
        ConfigError: it cannot be used.
    """
    load_cloud_key(config)
    load_metrics_token(config)
    if config.security.allowed is not None:
        load_allow_list(Path(config.security.allowed))


@contextmanager
def authenticator(
    config: CloudConfig, context: zmq.Context[zmq.Socket[bytes]], reloads: Callable[[], int]
) -> Iterator[Authenticator | None]:
    """What authorises nodes, running; None without keys.

    Raises:
        ConfigError: the allow-list cannot be used.
        SecurityError: the handler cannot start.
    """
    if config.security.allowed is None:
        yield None
        return
    handler = Authenticator(context, AllowedNodes(Path(config.security.allowed)), reloads)
    try:
        yield handler
    finally:
        handler.close()


def load_link_keys(config: NodeConfig) -> tuple[str, LinkKeys] | None:
    """The node's name and keys; None where none are configured.

    Raises:
        ConfigError: they cannot be used, or are given by half.
    """
    _check(config)
    if config.security.key is None:
        return None
    secret = load_secret(Path(config.security.key))
    clouds = tuple(load_public(text) for text in config.security.cloud_keys)
    own = public_of(secret).key
    if own in clouds:
        raise ConfigError("configuration", "security.cloud_keys", "is this node's own key: name the cloud's")
    return secret.name, LinkKeys(own, secret.key, clouds)


def may_open(config: NodeConfig) -> Callable[[str], bool]:
    """Whether a cloud may send the node to an endpoint: in the clear only where the user said so."""
    is_free = config.security.key is not None or config.security.insecure
    return lambda endpoint: is_free or not leaves_machine(endpoint)


def load_metrics_token(config: CloudConfig | NodeConfig) -> SecretStr | None:
    """What every request to the metrics server must carry; None: nothing.

    Raises:
        ConfigError: the file that holds it cannot be used.
    """
    name = config.metrics.token_file
    if name is None:
        return config.metrics.token
    try:
        token = Path(name).read_text(encoding="utf-8").strip()
        check_token(token)
    except OSError as error:
        raise ConfigError("configuration", "metrics.token_file", f"{name}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError("configuration", "metrics.token_file", f"{name}: holds no text") from error
    except ValueError as error:
        raise ConfigError("configuration", "metrics.token_file", f"{name}: {error}") from error
    return SecretStr(token)


def _check(config: CloudConfig | NodeConfig) -> None:
    """The rule that `load_config` has checked; whoever makes a configuration in another way meets it here."""
    conflict = config.find_conflict()
    if conflict is not None:
        raise ConfigError("configuration", conflict.key, conflict.problem)
