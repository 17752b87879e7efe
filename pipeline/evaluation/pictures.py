"""Labelled pictures for measuring, from a folder or a tar, as 224 x 224 views."""

from __future__ import annotations

import csv
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline.classes import load_classes
from pipeline.errors import EvaluationError
from pipeline.view import EVALUATION_VIEW, make_view

PICTURE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}
LABELS_FILE = "labels.csv"


@dataclass(frozen=True, slots=True)
class LabelledViews:
    """Views to measure on.

    Attributes:
        views: uint8 (N, 224, 224, 3) BGR.
        labels: int64 (N,), class indices.
        unreadable: pictures that could not be decoded and were left out.
    """

    views: NDArray[np.uint8]
    labels: NDArray[np.int64]
    unreadable: int


def load_labelled_views(source: Path, labels_csv: Path | None = None, limit: int | None = None) -> LabelledViews:
    """Read a folder or tar of pictures and their labels.

    Args:
        labels_csv: columns `file,label` (class index or WordNet id); default `labels.csv` in the folder or tar. A
            WebDataset tar may hold `.cls` files instead.
        limit: take the first so many, in order of their names.

    Raises:
        EvaluationError: nothing to read, no labels, or a label that is no class.
    """
    contents = dict(_read_folder(source) if source.is_dir() else _read_tar(source))
    labels = _read_labels(source, labels_csv, contents)
    names = [name for name in sorted(contents) if name in labels][:limit]
    if not names:
        raise EvaluationError(f"{source}: no picture there has a label")
    views, kept = [], []
    for name in names:
        picture = cv2.imdecode(np.frombuffer(contents[name], np.uint8), cv2.IMREAD_COLOR)
        if picture is not None:
            views.append(make_view(np.asarray(picture, np.uint8), EVALUATION_VIEW))
            kept.append(labels[name])
    if not views:
        raise EvaluationError(f"{source}: none of {len(names)} pictures can be decoded")
    return LabelledViews(np.stack(views), np.array(kept, np.int64), len(names) - len(views))


def _read_folder(folder: Path) -> Iterator[tuple[str, bytes]]:
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in PICTURE_SUFFIXES or path.name == LABELS_FILE:
            yield path.relative_to(folder).as_posix(), path.read_bytes()


def _read_tar(path: Path) -> Iterator[tuple[str, bytes]]:
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                name = PurePosixPath(member.name)
                wanted = name.suffix.lower() in PICTURE_SUFFIXES or name.suffix == ".cls" or name.name == LABELS_FILE
                reader = archive.extractfile(member) if wanted and member.isfile() else None
                if reader is not None:
                    yield member.name, reader.read()
    except (OSError, tarfile.TarError) as error:
        raise EvaluationError(f"{path}: neither a folder nor a tar of pictures ({error})") from error


def _read_labels(source: Path, labels_csv: Path | None, contents: dict[str, bytes]) -> dict[str, int]:
    """Labels by picture name; takes everything that is no picture out of `contents`."""
    own = next((contents.pop(name) for name in list(contents) if PurePosixPath(name).name == LABELS_FILE), None)
    class_files = {name: contents.pop(name) for name in list(contents) if name.endswith(".cls")}
    if labels_csv is not None:
        try:
            own = labels_csv.read_bytes()
        except OSError as error:
            raise EvaluationError(f"{labels_csv}: labels cannot be read ({error.strerror})") from error
    if own is not None:
        return _parse_labels(labels_csv or source, own.decode("utf-8"))
    if class_files:
        stems = {name.removesuffix(".cls"): int(content) for name, content in class_files.items()}
        return {name: stems[stem] for name in contents if (stem := name.rsplit(".", 1)[0]) in stems}
    raise EvaluationError(f"{source}: holds no {LABELS_FILE}; name one with --labels")


def _parse_labels(origin: Path, text: str) -> dict[str, int]:
    classes = load_classes()
    labels = {}
    for line, row in enumerate(csv.DictReader(text.splitlines()), start=2):
        if row.get("file") is None or row.get("label") is None:
            raise EvaluationError(f"{origin}: line {line}: needs the columns file and label")
        try:
            labels[row["file"]] = classes.parse_label(row["label"])
        except ValueError as error:
            raise EvaluationError(f"{origin}: line {line}: {error}") from error
    return labels
