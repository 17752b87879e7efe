"""A short run of `make soak`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.soak import soak

pytest.importorskip("skimage", reason="photographs are missing: pip install 'edge-cloud-rac[demo]'")


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes in /proc")
def test_programs_at_full_load_stay_as_large_as_they_are(tmp_path: Path) -> None:
    report = soak(0.3, tmp_path)
    assert report["trouble"] == [], report
    # A cloud and its two workers, three nodes and their readers.
    assert len(report["processes"]) == 9
    assert report["results"] > 100
