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
            WebDataset tar may hold `.cls` files instead; without either, each picture's sub-folder names its class.
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
        view = _decode_view(contents[name])
        if view is not None:
            views.append(view)
            kept.append(labels[name])
    if not views:
        raise EvaluationError(f"{source}: none of {len(names)} pictures can be decoded")
    return LabelledViews(np.stack(views), np.array(kept, np.int64), len(names) - len(views))


def _decode_view(content: bytes) -> NDArray[np.uint8] | None:
    """View of a picture file's content, or None for bytes that are no picture."""
    try:
        picture = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error:  # empty, or larger than OpenCV's limit
        return None
    return None if picture is None else make_view(np.asarray(picture, np.uint8), EVALUATION_VIEW)


def _read_folder(folder: Path) -> Iterator[tuple[str, bytes]]:
    for path in sorted(folder.rglob("*")):
        if (path.suffix.lower() in PICTURE_SUFFIXES or path.name == LABELS_FILE) and path.is_file():
            try:
                yield path.relative_to(folder).as_posix(), path.read_bytes()
            except OSError as error:
                raise EvaluationError(f"{path}: cannot be read: {error.strerror}") from error


def _read_tar(path: Path) -> Iterator[tuple[str, bytes]]:
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                name = PurePosixPath(member.name)
                wanted = name.suffix.lower() in PICTURE_SUFFIXES or name.suffix == ".cls" or name.name == LABELS_FILE
                reader = archive.extractfile(member) if wanted and member.isfile() else None
                if reader is not None:
                    yield name.as_posix(), reader.read()  # without the "./" that tar writes for a folder's content
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
        return _parse_labels(labels_csv or source, own)
    if class_files:
        # One a sample: everything up to the first dot of the file's name, as WebDataset pairs them.
        samples = {_sample(name): _parse_label(source, name, content) for name, content in class_files.items()}
        return {name: samples[_sample(name)] for name in contents if _sample(name) in samples}
    folders = {name: PurePosixPath(name).parent.name for name in contents}
    if not folders or not all(folders.values()):
        raise EvaluationError(f"{source}: holds no {LABELS_FILE}; name one with --labels")
    return {name: _parse_label(source, f"sub-folder of {name}", folder.encode()) for name, folder in folders.items()}


def _sample(name: str) -> PurePosixPath:
    path = PurePosixPath(name)
    return path.with_name(path.name.partition(".")[0] or path.name)


def _parse_label(source: Path, place: str, content: bytes) -> int:
    try:
        return load_classes().parse_label(content.decode())
    except ValueError as error:
        raise EvaluationError(f"{source}: {place}: {error}") from error


def _parse_labels(origin: Path, content: bytes) -> dict[str, int]:
    classes = load_classes()
    labels = {}
    try:
        rows = csv.DictReader(content.decode("utf-8-sig").splitlines())  # spreadsheets write a byte order mark
        for row in rows:
            if not row.get("file") or row.get("label") is None:
                raise EvaluationError(f"{origin}: line {rows.line_num}: needs the columns file and label")
            if row["label"]:  # an empty one means that none is known
                labels[PurePosixPath(row["file"]).as_posix()] = classes.parse_label(row["label"])
    except (UnicodeDecodeError, csv.Error) as error:
        raise EvaluationError(f"{origin}: is not a CSV file in UTF-8: {error}") from error
    except ValueError as error:
        raise EvaluationError(f"{origin}: line {rows.line_num}: {error}") from error
    return labels
