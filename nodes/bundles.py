"""The bundle that a configuration names."""

from __future__ import annotations

from pipeline.bundle import Bundle, find_bundle, load_bundle
from pipeline.errors import BundleFormatError, ConfigError


def load_configured(name: str, source: str, key: str) -> Bundle:
    """Load a bundle by its configured name or path.

    Args:
        source, key: where the name stands, for the error.
    Raises:
        ConfigError: there is no such bundle.
        BundleError: there is one, and it is damaged.
    """
    try:
        find_bundle(name)
    except BundleFormatError as error:
        raise ConfigError(source, key, str(error)) from error
    return load_bundle(name)
