"""PSNR and SSIM are those that others compute."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.training.picture_quality import psnr, ssim


def test_psnr_of_a_known_error() -> None:
    grey = np.full((8, 8, 3), 100, np.uint8)
    assert psnr(grey, grey + 5) == pytest.approx(20 * np.log10(255 / 5))
    assert psnr(grey, grey - 5) == pytest.approx(psnr(grey, grey + 5))
    assert psnr(grey, grey) == float("inf")


def test_ssim_is_scikit_images(views: NDArray[np.uint8]) -> None:
    metrics = pytest.importorskip("skimage.metrics")
    for view, sigma in ((views[0], 1.0), (views[3], 4.0)):
        blurred = np.asarray(cv2.GaussianBlur(view, (0, 0), sigma), np.uint8)
        greys = [cv2.cvtColor(each, cv2.COLOR_BGR2GRAY) for each in (view, blurred)]
        expected = metrics.structural_similarity(
            *greys, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255
        )
        assert ssim(view, blurred) == pytest.approx(expected, abs=1e-4)
    assert ssim(views[0], views[0]) == pytest.approx(1)
