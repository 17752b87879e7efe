"""Name and version of the installed distribution."""

from __future__ import annotations

from importlib import metadata
from typing import Final

DISTRIBUTION: Final = "edge-cloud-rac"


def version() -> str:
    """Version of the installed distribution."""
    try:
        return metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return "not installed"
