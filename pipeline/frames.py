"""One captured frame, from the camera to the encoder."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

VIEW_SIDE_PX = 224
VIEW_BYTES = VIEW_SIDE_PX * VIEW_SIDE_PX * 3


@dataclass(frozen=True, slots=True)
class Frame:
    """A view of one captured picture with its identity.

    Attributes:
        camera: name of the camera on its node.
        sequence: number of the captured picture, from 0, without gaps at the source.
        captured_ns: monotonic time of capture on this machine's clock.
        view: uint8 (224, 224, 3) BGR, C-contiguous; read only.
        view_ns: what making the view from the camera array took.
        label: class index of a labelled picture, else None.
    """

    camera: str
    sequence: int
    captured_ns: int
    view: NDArray[np.uint8] = field(repr=False)
    view_ns: int
    label: int | None = None
