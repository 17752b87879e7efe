"""How near one picture is to another: PSNR, and SSIM of Wang, Bovik, Sheikh and Simoncelli (2004)."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

PEAK = 255.0
WINDOW_PX, WINDOW_SIGMA = 11, 1.5
LUMINANCE_SHARE, CONTRAST_SHARE = 0.01, 0.03
"""K1 and K2 of the paper."""


def psnr(picture: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    """Peak signal to noise ratio over all pixels and colours, in dB; infinite for equal pictures."""
    error = float(np.square(picture.astype(np.float64) - other).mean())
    return float("inf") if error == 0 else 10 * float(np.log10(PEAK**2 / error))


def ssim(picture: NDArray[np.uint8], other: NDArray[np.uint8]) -> float:
    """Structural similarity of two BGR pictures in brightness, 1 for equal ones; borders of half a window left out."""
    x, y = (cv2.cvtColor(each, cv2.COLOR_BGR2GRAY).astype(np.float64) for each in (picture, other))
    mean_x, mean_y = _blur(x), _blur(y)
    variance_x, variance_y = _blur(x * x) - mean_x**2, _blur(y * y) - mean_y**2
    covariance = _blur(x * y) - mean_x * mean_y
    c1, c2 = (LUMINANCE_SHARE * PEAK) ** 2, (CONTRAST_SHARE * PEAK) ** 2
    similarity = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    similarity /= (mean_x**2 + mean_y**2 + c1) * (variance_x + variance_y + c2)
    border = WINDOW_PX // 2
    return float(similarity[border:-border, border:-border].mean())


def _blur(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(cv2.GaussianBlur(values, (WINDOW_PX, WINDOW_PX), WINDOW_SIGMA), np.float64)
