"""A labelled folder made of photographs."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

# Which of the thousand classes they show; Lite0 knows the first two.
LABELS = {"coffee.png": 967, "camera.png": 872, "chelsea.png": 285, "rocket.jpg": 744}


@pytest.fixture(scope="session")
def labelled(photographs: dict[str, NDArray[np.uint8]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight JPEG pictures and labels.csv; not to be changed."""
    folder = tmp_path_factory.mktemp("labelled")
    lines = ["file,label"]
    for name, label in LABELS.items():
        for number, share in enumerate((1.0, 0.85)):
            picture = photographs[name]
            side = int(min(picture.shape[:2]) * share)
            top, left = ((extent - side) // 2 for extent in picture.shape[:2])
            file = f"{Path(name).stem}-{number}.jpg"
            cv2.imwrite(str(folder / file), cv2.resize(picture[top : top + side, left : left + side], (256, 256)))
            lines.append(f"{file},{label}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder
