"""Crops made in tensors are the crops that OpenCV makes, drawn by the same seed and state."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pipeline.training.datasets import CropSampler, Pictures
from pipeline.training.device_crops import DeviceCropSampler, fits
from pipeline.training.recipes import DataRecipe

RECIPE = DataRecipe(folders=("none",))


def both(pictures: list[NDArray[np.uint8]], seed: int) -> tuple[CropSampler, DeviceCropSampler]:
    return CropSampler(pictures, RECIPE, seed), DeviceCropSampler(pictures, RECIPE, seed, "cpu")


@pytest.mark.parametrize("size_px", [32, 160])
def test_crops_are_those_of_the_cpu(pictures: Pictures, size_px: int) -> None:
    """Smaller and larger than the pictures: averaged over areas, and interpolated."""
    on_cpu, on_device = both(pictures.training, 5)
    expected = on_cpu.batch(size_px, 12)
    crops = on_device.batch(size_px, 12)
    assert crops.dtype == torch.uint8
    assert crops.shape == (12, size_px, size_px, 3)
    np.testing.assert_array_equal(on_device.drawn, on_cpu.drawn)
    differences = np.abs(crops.numpy().astype(int) - expected)
    # An area average and an antialiased interpolation differ at edges, no more than that.
    assert differences.mean() < 4
    assert differences.mean(axis=(1, 2, 3)).max() < 10
    # Nothing else fits as well: side and light are those of the same draw.
    mirrored = np.abs(crops.numpy()[:, :, ::-1].astype(int) - expected)
    assert mirrored.mean() > 2 * differences.mean()


def test_state_of_either_goes_on_in_the_other(pictures: Pictures) -> None:
    """A run that was begun on a CPU may go on on a GPU."""
    on_cpu, _ = both(pictures.training, 5)
    on_cpu.batch(32, 4)
    _, on_device = both(pictures.training, 99)
    on_device.random.bit_generator.state = on_cpu.random.bit_generator.state
    on_cpu.batch(32, 4)
    on_device.batch(32, 4)
    np.testing.assert_array_equal(on_device.drawn, on_cpu.drawn)
    assert on_device.random.bit_generator.state == on_cpu.random.bit_generator.state


def test_sampler_repeats_with_its_seed(pictures: Pictures) -> None:
    first, second = (DeviceCropSampler(pictures.training, RECIPE, 5, "cpu") for _ in range(2))
    assert torch.equal(first.batch(32, 4), second.batch(32, 4))
    assert not torch.equal(first.batch(32, 4), DeviceCropSampler(pictures.training, RECIPE, 6, "cpu").batch(32, 4))


@pytest.mark.parametrize("shape", [(7, 300), (300, 7), (1, 1), (8, 8)])
def test_odd_pictures_still_give_crops(shape: tuple[int, int]) -> None:
    picture = np.full((*shape, 3), 90, np.uint8)
    plain = DataRecipe(folders=("none",), side_px=32, zoom=0, brightness=0, contrast=0)
    assert bool((DeviceCropSampler([picture], plain, 1, "cpu").batch(32, 2) == 90).all())


def test_a_batch_that_is_cut_in_parts_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures of every shape; too many pixels for one go."""
    generator = np.random.default_rng(3)
    shapes = [(40, 300), (300, 40), (90, 80), (200, 210)]
    pictures = [generator.integers(0, 255, (*shape, 3)).astype(np.uint8) for shape in shapes]
    whole = DeviceCropSampler(pictures, RECIPE, 5, "cpu").batch(64, 16)
    monkeypatch.setattr("pipeline.training.device_crops.MAX_PIXELS", 3_000)
    sampler = DeviceCropSampler(pictures, RECIPE, 5, "cpu")
    regions, read = sampler._regions, []
    monkeypatch.setattr(sampler, "_regions", lambda *args: read.append(regions(*args)) or read[-1])
    parts = sampler.batch(64, 16)
    assert len(read) > 1
    assert all(len(part) == 1 or part[:, 0].numel() <= 3_000 for part in read)
    assert (parts.int() - whole.int()).abs().max() <= 1


def test_pictures_live_on_a_gpu_with_memory_to_spare(monkeypatch: pytest.MonkeyPatch, pictures: Pictures) -> None:
    size = sum(picture.nbytes for picture in pictures.training)
    assert not fits(pictures, torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (size, 10 * size))
    assert not fits(pictures, torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (3 * size, 10 * size))
    assert fits(pictures, torch.device("cuda"))
