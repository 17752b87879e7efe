"""What `--camera [NAME=]SOURCE` means: which kind of source, where it is, what it is called.

    0, 12, /dev/video0, /dev/v4l/...   device           live
    rtsp:// rtsps:// http:// https://  url              live
    test:  test:?seed=3&fps=10         test             live: a moving view over scikit-image's photographs
    clip.mp4                           file             waits; plays at its own rate
    photos/  photo.jpg                 folder           waits; 5 pictures a second without --fps
    pets/285/cat.jpg                   labelled_folder  the same: pets/ has one sub-folder per class
    labels.csv  (or a folder with it)  csv              the same: columns file,label

A live source goes on whether it is read or not, so only its newest frame is kept. A waiting source stands
still until its last frame was taken, so none is lost.

A head before the first "=" is a name unless it looks like part of a path or URL: write ./a=b.mp4 for a file
of that name. Only this module looks at a source before it is opened: what can never work is a `SourceError`
here, what may work later (a camera that is not plugged in) is left to capture, which tries again.
"""

from __future__ import annotations

import csv
import difflib
import importlib.util
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import chain, zip_longest
from pathlib import Path
from typing import Final
from urllib.parse import parse_qsl, urlsplit

from pipeline.classes import load_classes
from pipeline.errors import SourceError
from pipeline.masking import mask_credentials

URL_SCHEMES: Final = ("rtsp", "rtsps", "http", "https")
PICTURE_SUFFIXES: Final = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".ppm"})
LABEL_FILE: Final = "labels.csv"
MAX_NAME_CHARACTERS: Final = 64
# Above what any camera delivers; a wrong unit (100000) is caught.
MAX_FPS: Final = 1000.0
MAX_SEED: Final = 2**32 - 1

_NAME = re.compile(rf"[A-Za-z0-9._-]{{1,{MAX_NAME_CHARACTERS}}}")
_DEVICE_PATH = re.compile(r"/dev/(video\d+|v4l/.+)")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


class SourceKind(StrEnum):
    """How a source is read; the value of the label `kind` of rac_node_camera_info."""

    DEVICE = "device"
    URL = "url"
    TEST = "test"
    FILE = "file"
    FOLDER = "folder"
    LABELLED_FOLDER = "labelled_folder"
    CSV = "csv"


LIVE_KINDS: Final = frozenset({SourceKind.DEVICE, SourceKind.URL, SourceKind.TEST})


@dataclass(frozen=True, slots=True)
class TestOptions:
    """Options of `test:`.

    Attributes:
        seed: chooses the order of the photographs and the way of the view over them.
        fps: pictures a second, above 0, at most 1000.
    """

    # pytest takes every class named Test... for a test case.
    __test__ = False

    seed: int = 0
    fps: float = 10.0


@dataclass(frozen=True, slots=True)
class Source:
    """Where frames come from.

    Attributes:
        kind: how it is read.
        location: device index or path, absolute path, or URL; may hold a password, so never shown.
        text: the same as given, with user, password and token masked; for logs and errors.
        test: options of a `test:` source, else the default.
    """

    kind: SourceKind
    location: str = field(repr=False)
    text: str
    test: TestOptions = TestOptions()

    @property
    def is_live(self) -> bool:
        """Whether it goes on unread, so that only the newest frame is kept."""
        return self.kind in LIVE_KINDS


@dataclass(frozen=True, slots=True)
class Camera:
    """One `--camera`: a source with the name that results and metrics carry, 1 to 64 of A-Z a-z 0-9 . _ -"""

    name: str
    source: Source


@dataclass(frozen=True, slots=True)
class PictureEntry:
    """One picture of a folder or label file, with its class index if it has one."""

    path: Path
    label: int | None


def parse_cameras(arguments: Sequence[str]) -> tuple[Camera, ...]:
    """Parse every `--camera` of a node; cameras without a name get one that no other has.

    Raises:
        SourceError: one of them can never work, or two have the same given name.
    """
    parsed = [parse_camera(argument) for argument in arguments]
    taken: set[str] = set()
    for name, _ in parsed:
        if name is not None and name in taken:
            raise SourceError(f"two cameras are called {name!r}: give each NAME=SOURCE a name of its own")
        if name is not None:
            taken.add(name)
    cameras = []
    for given, source in parsed:
        name = given or _free_name(default_name(source), taken)
        taken.add(name)
        cameras.append(Camera(name, source))
    return tuple(cameras)


def parse_camera(argument: str) -> tuple[str | None, Source]:
    """Parse one `--camera [NAME=]SOURCE`.

    Returns:
        The given name, or None, and the source.

    Raises:
        SourceError: it can never work: says what is wrong, never shows a password.
    """
    head, equals, rest = argument.partition("=")
    if not equals or re.search(r"[/:?\\]", head):
        return None, parse_source(argument)
    if not _NAME.fullmatch(head):
        raise SourceError(
            f"camera name {head!r} must be 1 to {MAX_NAME_CHARACTERS} of A-Z a-z 0-9 . _ -"
            " (for a file with = in its name write ./NAME)"
        )
    return head, parse_source(rest)


def parse_source(text: str) -> Source:
    """Find out what kind of source a text means; looks at the file system, opens nothing but label files.

    Raises:
        SourceError: it can never work.
    """
    if not text or "\0" in text:
        raise SourceError("a camera needs a source: an index, a file, a folder, a URL or test:")
    if text.isascii() and text.isdigit() or _DEVICE_PATH.fullmatch(text):
        return Source(SourceKind.DEVICE, text, text)
    if text.startswith("test:"):
        return Source(SourceKind.TEST, text, text, _parse_test_options(text))
    scheme = _SCHEME.match(text)
    if scheme is not None:
        return _parse_url(text, scheme[1].lower())
    return _parse_path(text)


def default_name(source: Source) -> str:
    """The name of a camera that was given none: camera0, host, file or folder name, or test."""
    if source.kind is SourceKind.TEST:
        name = "test"
    elif source.kind is SourceKind.URL:
        name = urlsplit(source.location).hostname or ""
    elif source.kind is SourceKind.DEVICE:
        name = "camera" + source.location.removeprefix("/dev/video")
    elif source.kind is SourceKind.LABELLED_FOLDER or Path(source.location).is_dir():
        name = Path(source.location).name
    else:
        name = Path(source.location).stem
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[:MAX_NAME_CHARACTERS] or "camera"


def list_pictures(source: Source) -> tuple[PictureEntry, ...]:
    """The pictures of a folder, labelled folder or label file, in the order in which they are played.

    A folder goes by name. A labelled folder plays the first picture of every class, then the second, and so
    on, so that accuracy over any part of it speaks of all classes.

    Raises:
        SourceError: it is not there, holds no picture, or a label is wrong.
    """
    path = Path(source.location)
    try:
        path.stat()
        if source.kind is SourceKind.CSV:
            entries = _read_label_file(path / LABEL_FILE if path.is_dir() else path)
        elif source.kind is SourceKind.LABELLED_FOLDER:
            entries = _list_labelled_folder(path)
        else:
            files = _list_folder(path) if path.is_dir() else [path]
            entries = [PictureEntry(file, None) for file in files]
    except OSError as error:
        raise SourceError(f"{source.text}: {error.strerror or error}") from error
    if not entries:
        raise SourceError(f"{source.text}: no pictures in it ({' '.join(sorted(PICTURE_SUFFIXES))})")
    return tuple(entries)


def find_photographs() -> Path:
    """The folder of photographs inside the installed scikit-image, for `test:`.

    Raises:
        SourceError: scikit-image is not installed.
    """
    # Not imported: importing takes 0.2 s, and only its files are wanted.
    spec = importlib.util.find_spec("skimage")
    if spec is None or spec.origin is None:
        raise SourceError("test: needs the photographs of scikit-image: pip install 'edge-cloud-rac[demo]'")
    return Path(spec.origin).parent / "data"


def _free_name(wanted: str, taken: set[str]) -> str:
    name, number = wanted, 1
    while name in taken:
        number += 1
        ending = f"-{number}"
        name = wanted[: MAX_NAME_CHARACTERS - len(ending)] + ending
    return name


def _parse_test_options(text: str) -> TestOptions:
    query = text.removeprefix("test:")
    if query and not query.startswith("?"):
        raise SourceError(f"{text}: options of test: start with a question mark, as in test:?seed=3&fps=10")
    options = {"seed": str(TestOptions().seed), "fps": str(TestOptions().fps)}
    for key, value in parse_qsl(query[1:], keep_blank_values=True):
        if key not in options:
            near = difflib.get_close_matches(key, options, n=1)
            hint = f": did you mean {near[0]}?" if near else ", only seed and fps"
            raise SourceError(f"{text}: test: has no option {key!r}{hint}")
        options[key] = value
    try:
        seed, fps = int(options["seed"]), float(options["fps"])
    except ValueError as error:
        raise SourceError(f"{text}: seed must be a whole number and fps a number") from error
    if not 0 <= seed <= MAX_SEED or not 0 < fps <= MAX_FPS:
        raise SourceError(f"{text}: seed must be 0 to {MAX_SEED} and fps above 0, at most {MAX_FPS:g}")
    find_photographs()
    return TestOptions(seed=seed, fps=fps)


def _parse_url(text: str, scheme: str) -> Source:
    shown = mask_credentials(text)
    if scheme not in URL_SCHEMES:
        raise SourceError(f"{shown}: {scheme}:// is not supported, only {', '.join(URL_SCHEMES)}")
    try:
        parts = urlsplit(text)
        # Reading the port checks it; where a password holds a slash, the port is what is left of it.
        is_complete = bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_complete = False
    if not is_complete or any(character.isspace() for character in text):
        raise SourceError(f"{shown}: not a URL with a host (in passwords write / as %2F, @ as %40)")
    return Source(SourceKind.URL, text, shown)


def _parse_path(text: str) -> Source:
    path = Path(text).expanduser()
    try:
        path = path.resolve(strict=True)
        is_folder = path.is_dir()
        kind = _folder_kind(path) if is_folder else _file_kind(path, text)
    except OSError as error:
        hint = " (did you mean test:?)" if text == "test" else ""
        raise SourceError(f"{text}: {error.strerror or 'cannot be read'}{hint}") from error
    source = Source(kind, str(path), text)
    if kind is not SourceKind.FILE:
        list_pictures(source)
    return source


def _folder_kind(path: Path) -> SourceKind:
    if (path / LABEL_FILE).is_file():
        return SourceKind.CSV
    if _list_folder(path):
        return SourceKind.FOLDER
    # Without pictures of its own a folder can only be a labelled one; listing says if a name is no class.
    return SourceKind.LABELLED_FOLDER if _sub_folders(path) else SourceKind.FOLDER


def _file_kind(path: Path, text: str) -> SourceKind:
    if not path.is_file():
        raise SourceError(f"{text}: neither a file nor a folder (a camera is its index or /dev/videoN)")
    # Opened and closed: a file that may not be read is an error now, not a camera that may come back.
    with path.open("rb"):
        pass
    if path.suffix.lower() == ".csv":
        return SourceKind.CSV
    return SourceKind.FOLDER if path.suffix.lower() in PICTURE_SUFFIXES else SourceKind.FILE


def _list_folder(path: Path) -> list[Path]:
    """The pictures of a folder by name; hidden files are left out."""
    files = (file for file in path.iterdir() if file.suffix.lower() in PICTURE_SUFFIXES)
    return sorted(file for file in files if file.name[0] != ".")


def _sub_folders(path: Path) -> list[Path]:
    return sorted(folder for folder in path.iterdir() if folder.is_dir() and folder.name[0] != ".")


def _list_labelled_folder(path: Path) -> list[PictureEntry]:
    columns = []
    for folder in _sub_folders(path):
        try:
            label = load_classes().parse_label(folder.name)
        except ValueError as error:
            raise SourceError(f"{path}: sub-folder {error}") from error
        columns.append([PictureEntry(file, label) for file in _list_folder(folder)])
    return [entry for entry in chain.from_iterable(zip_longest(*columns)) if entry is not None]


def _read_label_file(path: Path) -> list[PictureEntry]:
    """Read the columns file and label; others are ignored, an empty label means none is known."""
    entries = []
    try:
        # utf-8-sig: spreadsheets write a byte order mark.
        with path.open(encoding="utf-8-sig", newline="") as lines:
            rows = csv.DictReader(lines)
            if not {"file", "label"} <= set(rows.fieldnames or ()):
                raise SourceError(f"{path}: the first line must name the columns file and label")
            for row in rows:
                if not row["file"]:
                    raise SourceError(f"{path}: line {rows.line_num}: no file")
                label = load_classes().parse_label(row["label"]) if row["label"] else None
                # An absolute path stays as it is, another one is relative to the label file.
                entries.append(PictureEntry(path.parent / row["file"], label))
    except (UnicodeDecodeError, csv.Error) as error:
        raise SourceError(f"{path}: not a CSV file in UTF-8: {error}") from error
    except ValueError as error:
        raise SourceError(f"{path}: line {rows.line_num}: label {error}") from error
    return entries
