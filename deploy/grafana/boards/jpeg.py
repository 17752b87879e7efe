"""What JPEG would cost: bits a pixel at which it keeps as many classes right as the default bundle does.

The bundle's own points are those that its manifest was sealed with, JPEG's are rows of the README's table: the same
pictures, the same classifier, the same view of 224 x 224 pixels. Between JPEG's points its rate is interpolated.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

import numpy as np

MANIFEST: Final = Path(__file__).parents[3] / "pipeline/bundles/default/manifest.json"
#: (bits a pixel, share of top-1) of JPEG at qualities 5 to 95, from the README's table; a test compares them.
JPEG_POINTS: Final = (
    (0.232, 0.379),
    (0.382, 0.666),
    (0.620, 0.846),
    (0.810, 0.893),
    (1.107, 0.926),
    (1.571, 0.947),
    (2.450, 0.961),
    (3.407, 0.990),
)
STEPS_PER_LEVEL: Final = 16


def jpeg_bpp_by_level() -> dict[int, float]:
    """Bits a pixel of JPEG by the bundle's whole level, as a mean over its depths.

    Raises:
        ValueError: the bundle keeps less than JPEG's worst point, where nothing was measured. Above its best one that
            point stands, which flatters JPEG.
    """
    points = json.loads(MANIFEST.read_text(encoding="utf-8"))["measured"]["points"]
    rates, shares = zip(*JPEG_POINTS, strict=True)
    found: dict[int, list[float]] = {}
    for point in points:
        if point["share_of_top1"] < shares[0]:
            raise ValueError(f"JPEG was not measured at a share of top-1 of {point['share_of_top1']}")
        level, is_between = divmod(point["level16"], STEPS_PER_LEVEL)
        if not is_between:
            found.setdefault(level, []).append(float(np.interp(point["share_of_top1"], shares, rates)))
    return {level: round(sum(rates) / len(rates), 3) for level, rates in sorted(found.items())}
