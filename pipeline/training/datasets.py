"""Training pictures: read once into memory, cropped and varied anew for every step."""

from __future__ import annotations

import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.errors import TrainingError
from pipeline.training.recipes import DataRecipe
from pipeline.view import EVALUATION_VIEW, make_view

PICTURE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}
HELD_OUT_ONE_IN = 10


@dataclass(frozen=True, slots=True)
class Pictures:
    """Decoded pictures, uint8 (H, W, 3) BGR, and how many files could not be read."""

    training: list[NDArray[np.uint8]]
    held_out: list[NDArray[np.uint8]]
    unreadable: int


def load_pictures(folders: tuple[str, ...]) -> Pictures:
    """Decode every picture under the folders, from files and from tar shards (WebDataset).

    A tenth, chosen by a hash of the file's name, is held out; the choice does not depend on order or machine.

    Raises:
        TrainingError: a folder is missing, a tar is damaged, or there are too few pictures.
    """
    training: list[NDArray[np.uint8]] = []
    held_out: list[NDArray[np.uint8]] = []
    unreadable = 0
    for folder in folders:
        if not Path(folder).is_dir():
            raise TrainingError(f"{folder}: no such folder of pictures")
        for name, content in _read_files(Path(folder)):
            picture = _decode_picture(content)
            if picture is None:
                unreadable += 1
                continue
            is_held_out = zlib.crc32(name.encode()) % HELD_OUT_ONE_IN == 0
            (held_out if is_held_out else training).append(picture)
    if not training or not held_out:
        raise TrainingError(f"{', '.join(folders)}: too few pictures to train on ({len(training)} and {len(held_out)})")
    return Pictures(training, held_out, unreadable)


def _decode_picture(content: bytes) -> NDArray[np.uint8] | None:
    """Picture (H, W, 3) BGR, or None for bytes that are none."""
    try:
        picture = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error:  # empty, or larger than OpenCV's limit
        return None
    return None if picture is None else np.asarray(picture, np.uint8)


def _read_files(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Name and content of every picture below a folder, in sorted order."""
    for path in sorted(folder.rglob("*")):
        suffix = path.suffix.lower()
        if suffix not in {".tar", *PICTURE_SUFFIXES} or not path.is_file():
            continue
        try:
            if suffix == ".tar":
                yield from _read_shard(path)
            else:
                yield path.name, path.read_bytes()
        except (OSError, tarfile.TarError) as error:
            raise TrainingError(f"{path}: cannot be read ({error})") from error


def _read_shard(path: Path) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(path) as shard:
        for member in shard:
            if member.isfile() and Path(member.name).suffix.lower() in PICTURE_SUFFIXES:
                reader = shard.extractfile(member)
                yield member.name, reader.read() if reader is not None else b""


class CropSampler:
    """Endless batches of random crops; two samplers with one seed give the same batches."""

    def __init__(self, pictures: list[NDArray[np.uint8]], recipe: DataRecipe, seed: int) -> None:
        self._pictures = pictures
        self._recipe = recipe
        self.random = np.random.default_rng(seed)

    def batch(self, size_px: int, batch: int) -> NDArray[np.uint8]:
        """uint8 (batch, size, size, 3) RGB."""
        crops = np.empty((batch, size_px, size_px, 3), np.uint8)
        for row, index in enumerate(self.random.integers(len(self._pictures), size=batch)):
            crops[row] = self._crop(self._pictures[index], size_px)
        return crops

    def _crop(self, picture: NDArray[np.uint8], size_px: int) -> NDArray[np.uint8]:
        random, recipe = self.random, self._recipe
        height, width = picture.shape[:2]
        aspect = np.exp(random.uniform(-0.2, 0.2))  # width over height, of the region that becomes the square
        side = np.sqrt(random.uniform(recipe.min_area, 1.0)) * min(height, width)
        region_w = min(width, max(8, round(side * aspect**0.5)))
        region_h = min(height, max(8, round(side / aspect**0.5)))
        left, top = random.integers(width - region_w + 1), random.integers(height - region_h + 1)
        region = picture[top : top + region_h, left : left + region_w]
        shrinks = region_w > size_px and region_h > size_px
        crop = cv2.resize(region, (size_px, size_px), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
        if random.random() < 0.5:
            crop = crop[:, ::-1]
        contrast = 1 + random.uniform(-recipe.contrast, recipe.contrast)
        brightness = 127 * random.uniform(-recipe.brightness, recipe.brightness)
        varied = cv2.convertScaleAbs(np.ascontiguousarray(crop), alpha=contrast, beta=127 * (1 - contrast) + brightness)
        return np.asarray(varied[:, :, ::-1], np.uint8)


def use_views(pictures: list[NDArray[np.uint8]], limit: int | None = None) -> NDArray[np.uint8]:
    """Pictures as they are met in use: short side to 256, centre 224; uint8 (N, 224, 224, 3) BGR."""
    chosen = pictures if limit is None else pictures[:limit]
    return np.stack([make_view(picture, EVALUATION_VIEW) for picture in chosen])
