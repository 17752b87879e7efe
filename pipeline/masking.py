"""Passwords of cameras never reach a log, a label, a message or a screen: what hides them in any text."""

from __future__ import annotations

import re

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://\S*")
_SECRET_OPTION = re.compile(
    r"([?&;][^=&;\s#]*(?:user|usr|login|pass|pwd|token|key|auth|secret)[^=&;\s#]*=)[^&;\s#]+", re.IGNORECASE
)


def mask_credentials(text: str) -> str:
    """Replace user, password and tokens in the URLs of a text by ***.

    Better too much than too little: where a URL has several @, everything up to the last is hidden, since a
    password may hold an @ or / that should have been written as %40 or %2F.
    """
    return _URL.sub(_mask_url, text)


def _mask_url(match: re.Match[str]) -> str:
    scheme, _, rest = match[0].partition("://")
    _, at, shown = rest.rpartition("@")
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    if at and ("@" in authority or not re.fullmatch(r"(\[[^]]*\]|[^:]*)(:\d*)?", authority)):
        rest = "***@" + shown
    return _SECRET_OPTION.sub(r"\1***", f"{scheme}://{rest}")
