"""Training pictures: read once into memory, cropped and varied anew for every step."""

from __future__ import annotations

import csv
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.classes import load_classes
from pipeline.errors import TrainingError
from pipeline.frames import VIEW_SIDE_PX
from pipeline.training.file_pictures import FilePictures, StoredPicture
from pipeline.training.recipes import EVALUATION_SIDE_PX, DataRecipe
from pipeline.view import EVALUATION_VIEW, make_view

PICTURE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}
HELD_OUT_ONE_IN = 10
MAX_HELD_OUT = 2000
"""Of pictures that stay in their files: these are decoded, and no validation looks at more."""
MAX_REDRAWN = 100
AREA_TRIES = 10
AREA_ASPECT = float(np.log(4 / 3))
"""Largest change of a region's shape, as a natural logarithm."""


@dataclass(frozen=True, slots=True)
class Pictures:
    """Decoded pictures and their labels.

    Attributes:
        training / held_out: uint8 (H, W, 3) BGR; training ones may be decoded only when they are asked for.
        unreadable: number of files that could not be decoded.
        training_labels / held_out_labels: class indices int64 (N,), -1 where none is known; None where none is at all.
    """

    training: Sequence[NDArray[np.uint8]]
    held_out: list[NDArray[np.uint8]]
    unreadable: int
    training_labels: NDArray[np.int64] | None = None
    held_out_labels: NDArray[np.int64] | None = None

    @property
    def num_labelled(self) -> int:
        """Training pictures whose class is known."""
        return 0 if self.training_labels is None else int((self.training_labels >= 0).sum())


def load_pictures(folders: tuple[str, ...], labels_csv: str | None = None, *, in_memory: bool = True) -> Pictures:
    """Decode every picture under the folders, from files and from tar shards (WebDataset).

    A tenth, chosen by a hash of the file's name, is held out; the choice does not depend on order or machine. Labels
    come from the CSV (columns file and label), else from the sub-folders if every one of them is named by a class.

    Args:
        in_memory: False leaves training pictures in their files and shards, and takes no more than `MAX_HELD_OUT`
            held-out ones.

    Raises:
        TrainingError: a folder is missing, a tar is damaged, the CSV is none, or there are too few pictures.
    """
    listed = None if labels_csv is None else _read_labels(Path(labels_csv))
    training: list[NDArray[np.uint8]] = []
    stored: list[StoredPicture] = []
    held_out: list[NDArray[np.uint8]] = []
    labels: tuple[list[int | None], list[int | None]] = ([], [])
    unreadable = 0
    for folder in folders:
        if not Path(folder).is_dir():
            raise TrainingError(f"{folder}: no such folder of pictures")
        for name, path, place in _find_pictures(Path(folder)):
            is_held_out = zlib.crc32(name.encode()) % HELD_OUT_ONE_IN == 0
            if not in_memory and not is_held_out:
                stored.append(place)
            elif not in_memory and len(held_out) == MAX_HELD_OUT:
                continue
            else:
                picture = _decode_picture(_read_stored(place))
                if picture is None:
                    unreadable += 1
                    continue
                (held_out if is_held_out else training).append(picture)
            labels[is_held_out].append(_class_of_folder(path) if listed is None else _find_label(listed, path))
    chosen: Sequence[NDArray[np.uint8]] = training if in_memory else FilePictures(stored, _decode_picture)
    if not chosen or not held_out:
        raise TrainingError(f"{', '.join(folders)}: too few pictures to train on ({len(chosen)} and {len(held_out)})")
    together = [*labels[0], *labels[1]]
    if None in together if listed is None else set(together) == {None}:
        return Pictures(chosen, held_out, unreadable)
    of_training, of_held_out = (np.array([-1 if each is None else each for each in part], np.int64) for part in labels)
    return Pictures(chosen, held_out, unreadable, of_training, of_held_out)


def read_pictures(folder: str) -> list[NDArray[np.uint8]]:
    """Every picture under a folder that can be decoded, in the order of the names; none is held out.

    Raises:
        TrainingError: there is no such folder, or nothing in it can be decoded.
    """
    if not Path(folder).is_dir():
        raise TrainingError(f"{folder}: no such folder of pictures")
    found = [_decode_picture(_read_stored(place)) for _, _, place in _find_pictures(Path(folder))]
    pictures = [picture for picture in found if picture is not None]
    if not pictures:
        raise TrainingError(f"{folder}: no picture there can be decoded")
    return pictures


def _class_of_folder(path: PurePosixPath) -> int | None:
    """Class that names a picture's own folder, by index or WordNet id."""
    try:
        return load_classes().parse_label(path.parent.name)
    except ValueError:
        return None


def _find_label(listed: dict[str, int], path: PurePosixPath) -> int | None:
    return listed.get(path.as_posix(), listed.get(path.name))


def _read_labels(path: Path) -> dict[str, int]:
    """Labels by picture, from a CSV with the columns file and label."""
    found = {}
    try:
        rows = csv.DictReader(path.read_text(encoding="utf-8-sig").splitlines())
        for row in rows:
            if not row.get("file") or row.get("label") is None:
                raise TrainingError(f"{path}: line {rows.line_num}: needs the columns file and label")
            if row["label"]:  # an empty one means that none is known
                found[PurePosixPath(row["file"]).as_posix()] = load_classes().parse_label(row["label"])
    except OSError as error:
        raise TrainingError(f"{path}: labels cannot be read ({error.strerror})") from error
    except (ValueError, csv.Error) as error:
        raise TrainingError(f"{path}: no labels: {error}") from error
    return found


def _decode_picture(content: bytes) -> NDArray[np.uint8] | None:
    """Picture (H, W, 3) BGR, or None for bytes that are none."""
    try:
        picture = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error:  # empty, or larger than OpenCV's limit
        return None
    return None if picture is None else np.asarray(picture, np.uint8)


def _read_stored(place: StoredPicture) -> bytes:
    try:
        return place.read()
    except OSError as error:
        raise TrainingError(f"{place.path}: cannot be read ({error})") from error


def _find_pictures(folder: Path) -> Iterator[tuple[str, PurePosixPath, StoredPicture]]:
    """Name that decides what is held out, path below the folder or in its shard, and place; in sorted order."""
    for path in sorted(folder.rglob("*")):
        suffix = path.suffix.lower()
        if suffix not in {".tar", *PICTURE_SUFFIXES} or not path.is_file():
            continue
        if suffix != ".tar":
            yield path.name, PurePosixPath(path.relative_to(folder).as_posix()), StoredPicture(path)
            continue
        try:
            yield from _find_in_shard(path)
        except (OSError, tarfile.TarError) as error:
            raise TrainingError(f"{path}: cannot be read ({error})") from error


def _find_in_shard(path: Path) -> Iterator[tuple[str, PurePosixPath, StoredPicture]]:
    with tarfile.open(path, "r:") as shard:  # not compressed: what is in it can be read where it lies
        for member in shard:
            if member.isfile() and Path(member.name).suffix.lower() in PICTURE_SUFFIXES:
                place = StoredPicture(path, member.offset_data, member.size)
                yield member.name, PurePosixPath(member.name), place


@dataclass(frozen=True, slots=True)
class Crop:
    """One random crop: a region in pixels, mirrored or not, and pixels * contrast + shift."""

    left: int
    top: int
    width: int
    height: int
    is_mirrored: bool
    contrast: float
    shift: float


def draw_crops(
    random: np.random.Generator, heights: NDArray[np.int64], widths: NDArray[np.int64], size_px: int, recipe: DataRecipe
) -> list[Crop]:
    """Draw one crop of each picture of heights x widths pixels, each to become a square of size_px."""
    if recipe.area is None:
        aspect = np.exp(random.uniform(-0.2, 0.2, len(heights)))  # width over height, of what becomes the square
        share = size_px / recipe.side_px * np.exp(random.uniform(-recipe.zoom, recipe.zoom, len(heights)))
        side = np.minimum(1.0, share) * np.minimum(heights, widths)
        region_w = np.minimum(widths, np.maximum(8, np.rint(side * aspect**0.5).astype(np.int64)))
        region_h = np.minimum(heights, np.maximum(8, np.rint(side / aspect**0.5).astype(np.int64)))
    else:
        region_w, region_h = _draw_regions(random, heights, widths, recipe.area)
    left, top = random.integers(widths - region_w + 1), random.integers(heights - region_h + 1)
    is_mirrored = random.random(len(heights)) < 0.5
    contrast = 1 + random.uniform(-recipe.contrast, recipe.contrast, len(heights))
    brightness = 127 * random.uniform(-recipe.brightness, recipe.brightness, len(heights))
    shift = 127 * (1 - contrast) + brightness
    columns = (left, top, region_w, region_h, is_mirrored, contrast, shift)
    return [Crop(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]


def _draw_regions(
    random: np.random.Generator, heights: NDArray[np.int64], widths: NDArray[np.int64], area: tuple[float, float]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Widths and heights of regions of a random share of each picture, 3:4 to 4:3; what ImageNet is mostly trained on.

    A region that does not fit is drawn again; after ten times it is the largest square.
    """
    tries = (AREA_TRIES, len(heights))
    pixels = heights * widths * random.uniform(*area, tries)
    aspect = np.exp(random.uniform(-AREA_ASPECT, AREA_ASPECT, tries))
    region_w, region_h = (np.rint(side**0.5).astype(np.int64) for side in (pixels * aspect, pixels / aspect))
    fits = (region_w > 0) & (region_w <= widths) & (region_h > 0) & (region_h <= heights)
    first, columns = fits.argmax(axis=0), np.arange(len(heights))
    largest = np.minimum(heights, widths)
    chosen = (np.where(fits.any(axis=0), region[first, columns], largest) for region in (region_w, region_h))
    return next(chosen), next(chosen)


class CropSampler:
    """Endless batches of random crops; two samplers with one seed give the same batches.

    Attributes:
        random: whose state is the sampler's.
        drawn: which pictures the last batch was cut from, int64 (B,).
    """

    def __init__(self, pictures: Sequence[NDArray[np.uint8]], recipe: DataRecipe, seed: int) -> None:
        self._pictures = pictures
        self._recipe = recipe
        self.random = np.random.default_rng(seed)
        self.drawn: NDArray[np.int64] = np.zeros(0, np.int64)

    def batch(self, size_px: int, batch: int) -> NDArray[np.uint8]:
        """uint8 (batch, size, size, 3) RGB."""
        self.drawn = self.random.integers(len(self._pictures), size=batch)
        pictures = [self._draw_readable(row) for row in range(batch)]
        heights, widths = np.array([picture.shape[:2] for picture in pictures]).T
        drawn = draw_crops(self.random, heights, widths, size_px, self._recipe)
        return np.stack([_cut(picture, crop, size_px) for picture, crop in zip(pictures, drawn, strict=True)])

    def _draw_readable(self, row: int) -> NDArray[np.uint8]:
        """The picture drawn for a row; another one in place of a file that is none."""
        for _ in range(MAX_REDRAWN):
            picture = self._pictures[int(self.drawn[row])]
            if picture.size:
                return picture
            self.drawn[row] = self.random.integers(len(self._pictures))
        raise TrainingError(f"{MAX_REDRAWN} pictures one after the other cannot be decoded")


def _cut(picture: NDArray[np.uint8], drawn: Crop, size_px: int) -> NDArray[np.uint8]:
    """RGB square (size, size, 3) of a BGR picture."""
    region = picture[drawn.top : drawn.top + drawn.height, drawn.left : drawn.left + drawn.width]
    shrinks = drawn.width > size_px and drawn.height > size_px
    crop = cv2.resize(region, (size_px, size_px), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    if drawn.is_mirrored:
        crop = crop[:, ::-1]
    varied = cv2.convertScaleAbs(np.ascontiguousarray(crop), alpha=drawn.contrast, beta=drawn.shift)
    return np.asarray(varied[:, :, ::-1], np.uint8)


def use_views(
    pictures: list[NDArray[np.uint8]], limit: int | None = None, side_px: int = EVALUATION_SIDE_PX
) -> NDArray[np.uint8]:
    """Pictures as they are met in use: short side to 256, centre 224; uint8 (N, 224, 224, 3) BGR.

    Args:
        side_px: short side instead of 256, for pictures that are smaller: blown up they would be smoother than what a
            camera shows. What is missing to 224 is mirrored.
    """
    chosen = pictures if limit is None else pictures[:limit]
    if side_px == EVALUATION_SIDE_PX:
        return np.stack([make_view(picture, EVALUATION_VIEW) for picture in chosen])
    return np.stack([_mirrored_view(picture, side_px) for picture in chosen])


def _mirrored_view(picture: NDArray[np.uint8], side_px: int) -> NDArray[np.uint8]:
    height, width = (round(side * side_px / min(picture.shape[:2])) for side in picture.shape[:2])
    shrinks = side_px < min(picture.shape[:2])
    scaled = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    shown_h, shown_w = min(height, VIEW_SIDE_PX), min(width, VIEW_SIDE_PX)
    top, left = (height - shown_h) // 2, (width - shown_w) // 2
    above, before = (VIEW_SIDE_PX - shown_h) // 2, (VIEW_SIDE_PX - shown_w) // 2
    border = (above, VIEW_SIDE_PX - shown_h - above, before, VIEW_SIDE_PX - shown_w - before)
    shown = scaled[top : top + shown_h, left : left + shown_w]
    return np.asarray(cv2.copyMakeBorder(shown, *border, cv2.BORDER_REFLECT_101), np.uint8)
