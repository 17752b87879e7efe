"""What all tests share: one browser."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests import browser as chromium


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[chromium.Browser]:
    """A headless Chromium; tests that want one are left out where it is missing."""
    if chromium.PROGRAM is None:
        pytest.skip("chromium is missing: apt install chromium")
    with chromium.Browser(tmp_path_factory.mktemp("browser")) as started:
        yield started
