"""Bundles: the immutable, hashed set of files that node and cloud must share.

A bundle is a folder, or a zip of one, with exactly these files:

    manifest.json         what it is, what it was measured at, size and SHA-256 of every other file
    encoder-<depth>.onnx  one graph an exit: `view` uint8 (1, 224, 224, 3) BGR and `gain` float32 (C,) in;
                          `scaled` float32 and `symbols` int32, both (1, C, 28, 28), out
    tables.npz            integer tables and gains
    decoder.safetensors   the decoder's weights

The bundle's id is the SHA-256 of the manifest's bytes, so one id stands for every byte. Nothing in it is run or
unpickled: graphs are refused when they point outside themselves, arrays are read with pickle off.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.entropy.tables import TableSet, pack_tables, unpack_tables
from pipeline.errors import BundleFormatError, BundleMismatchError

FORMAT_VERSION = 1
ENTROPY_CODER = "constriction-0.5.0/ans-u32-u64-24"
"""Word format of the bitstream; a bundle made for another is refused."""
MANIFEST_FILE, TABLES_FILE, DECODER_FILE = "manifest.json", "tables.npz", "decoder.safetensors"
MAX_FILE_BYTES = 64 * 2**20
"""Far above any encoder that a camera box could run; keeps a hostile zip from filling the memory."""
DEFAULT_FRAME_BYTES = 3000
"""What a frame may take when nobody asked for a level: a camera at 10 frames a second stays under 250 kbit/s."""
BUNDLED_FOLDER = Path(__file__).parent / "bundles"


class ManifestPart(BaseModel):
    """Unknown keys are errors: a newer format has a newer version."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class FileEntry(ManifestPart):
    """Identity of one file."""

    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    size_bytes: int = Field(ge=0, le=MAX_FILE_BYTES)


class MeasuredPoint(ManifestPart):
    """What one operating point reached when the bundle was sealed.

    Attributes:
        bpp: mean bits per pixel of the real bitstream, header included.
        agreement: share of pictures with the uncompressed classifier's top-1.
        share_of_top1: top-1 over the uncompressed classifier's; None when the pictures had no labels.
    """

    depth: int
    level16: int
    bpp: float
    agreement: float
    share_of_top1: float | None = None


class Measured(ManifestPart):
    """The measured table and what it was measured on."""

    pictures: int
    source: str
    points: tuple[MeasuredPoint, ...]


class Manifest(ManifestPart):
    """Everything that a bundle says of itself."""

    format_version: Literal[1] = 1
    name: str = Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")
    family: Literal["nested"]
    classifier: str
    classifier_sha256: str = Field(pattern="^[0-9a-f]{64}$")
    cut: str
    entropy_coder: str
    view: Literal["crop224"] = "crop224"
    depths: tuple[int, ...] = Field(min_length=1, max_length=16)
    levels16: tuple[int, ...] = Field(min_length=1, max_length=256)
    latent_shape: tuple[int, int, int]
    network: dict[str, int | float | list[int]]
    training: dict[str, str | int | float]
    measured: Measured | None = None
    files: dict[str, FileEntry]


@dataclass(frozen=True, slots=True)
class Bundle:
    """A verified bundle in memory.

    Attributes:
        bundle_id: 32 bytes, SHA-256 of the manifest.
        tables: one set for each (depth, level16).
        gains: level16 -> float32 (C,).
        files: every file's bytes by name, manifest excluded.
    """

    manifest: Manifest
    bundle_id: bytes
    tables: Mapping[tuple[int, int], TableSet]
    gains: Mapping[int, NDArray[np.float32]]
    files: Mapping[str, bytes]

    @property
    def id8(self) -> bytes:
        """The part of the id that every bitstream carries."""
        return self.bundle_id[:8]

    @property
    def short_id(self) -> str:
        """For people: the first 12 hex digits."""
        return self.bundle_id.hex()[:12]

    def encoder_graph(self, depth: int) -> bytes:
        """ONNX graph of one exit."""
        return self.files[encoder_file(depth)]

    @property
    def default_level16(self) -> int:
        """The highest whole level whose frames stay within `DEFAULT_FRAME_BYTES` at the deepest exit."""
        whole = [level16 for level16 in self.manifest.levels16 if level16 % 16 == 0]
        deepest = max(self.manifest.depths)
        limit_bpp = 8 * DEFAULT_FRAME_BYTES / (224 * 224)
        points = {level16: self.measured_point(deepest, level16) for level16 in whole}
        fitting = [level16 for level16, point in points.items() if point is not None and point.bpp <= limit_bpp]
        return max(fitting, default=whole[len(whole) // 2])

    def nearest_level16(self, level: float) -> int:
        """The level with tables that is nearest to a fractional one."""
        return min(self.manifest.levels16, key=lambda level16: abs(level16 - 16 * level))

    def measured_point(self, depth: int, level16: int) -> MeasuredPoint | None:
        """The sealed measurement of an operating point, if there is one."""
        points = self.manifest.measured.points if self.manifest.measured is not None else ()
        return next((point for point in points if (point.depth, point.level16) == (depth, level16)), None)


def encoder_file(depth: int) -> str:
    """File name of one exit's graph."""
    return f"encoder-{depth}.onnx"


def pack_operating_points(
    tables: Mapping[tuple[int, int], TableSet], gains: Mapping[int, NDArray[np.float32]]
) -> bytes:
    """The content of `tables.npz`."""
    arrays = dict(pack_tables(tables))
    arrays["gain_levels16"] = np.array(sorted(gains), np.uint8)
    arrays["gains"] = np.stack([gains[level16] for level16 in sorted(gains)]).astype(np.float32)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def seal_bundle(folder: Path, manifest: Manifest, files: Mapping[str, bytes]) -> bytes:
    """Write a bundle's files and, last, its manifest with their hashes; return the id.

    Args:
        manifest: its `files` are replaced by the hashes of `files`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    entries = {
        name: FileEntry(sha256=hashlib.sha256(content).hexdigest(), size_bytes=len(content))
        for name, content in sorted(files.items())
    }
    sealed = manifest.model_copy(update={"files": entries})
    for old in folder.iterdir():
        if old.name not in entries:
            old.unlink()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    manifest_bytes = (json.dumps(sealed.model_dump(mode="json"), indent=1) + "\n").encode()
    (folder / MANIFEST_FILE).write_bytes(manifest_bytes)
    return hashlib.sha256(manifest_bytes).digest()


def find_bundle(name_or_path: str) -> Path:
    """Place of a bundle: a path, or the name of one in the package.

    Raises:
        BundleFormatError: there is none.
    """
    bundled = BUNDLED_FOLDER / name_or_path
    if "/" not in name_or_path and bundled.is_dir():
        return bundled
    path = Path(name_or_path)
    if path.exists():
        return path
    known = sorted(entry.name for entry in BUNDLED_FOLDER.iterdir()) if BUNDLED_FOLDER.is_dir() else []
    raise BundleFormatError(f"{name_or_path}: no such bundle; in the package: {', '.join(known) or 'none'}")


def load_bundle(name_or_path: str) -> Bundle:
    """Read a bundle and verify every byte.

    Raises:
        BundleFormatError: not a bundle, or one that this version cannot read.
        BundleMismatchError: a file differs from its hash.
    """
    path = find_bundle(name_or_path)
    contents = _read_zip(path) if path.is_file() else _read_folder(path)
    manifest_bytes = contents.pop(MANIFEST_FILE, None)
    if manifest_bytes is None:
        raise BundleFormatError(f"{path}: no {MANIFEST_FILE}")
    manifest = _parse_manifest(path, manifest_bytes)
    _verify_files(path, manifest, contents)
    tables, gains = _read_operating_points(path, manifest, contents[TABLES_FILE])
    return Bundle(manifest, hashlib.sha256(manifest_bytes).digest(), tables, gains, contents)


def _read_folder(path: Path) -> dict[str, bytes]:
    contents = {}
    for entry in sorted(path.iterdir()):
        if entry.is_symlink() or not entry.is_file():
            raise BundleFormatError(f"{path}: {entry.name} is not a plain file")
        if entry.stat().st_size > MAX_FILE_BYTES:
            raise BundleFormatError(f"{path}: {entry.name} is larger than {MAX_FILE_BYTES} bytes")
        contents[entry.name] = entry.read_bytes()
    return contents


def _read_zip(path: Path) -> dict[str, bytes]:
    try:
        with zipfile.ZipFile(path) as archive:
            contents = {}
            for entry in archive.infolist():
                if "/" in entry.filename or entry.file_size > MAX_FILE_BYTES:
                    raise BundleFormatError(f"{path}: {entry.filename} does not belong into a bundle")
                contents[entry.filename] = archive.read(entry)
            return contents
    except (zipfile.BadZipFile, OSError, RuntimeError, NotImplementedError) as error:
        raise BundleFormatError(f"{path}: neither a bundle's folder nor a zip of one ({error})") from error


def _parse_manifest(path: Path, content: bytes) -> Manifest:
    try:
        version = json.loads(content).get("format_version")
        if version != FORMAT_VERSION:
            raise BundleFormatError(f"{path}: bundle format {version}, this program reads {FORMAT_VERSION}")
        manifest = Manifest.model_validate_json(content)
    except (ValidationError, ValueError, AttributeError) as error:
        first = " ".join(str(error).split())[:200]
        raise BundleFormatError(f"{path}: manifest is not valid: {first}") from error
    if manifest.entropy_coder != ENTROPY_CODER:
        raise BundleFormatError(f"{path}: made for coder {manifest.entropy_coder}, this program has {ENTROPY_CODER}")
    return manifest


def _verify_files(path: Path, manifest: Manifest, contents: Mapping[str, bytes]) -> None:
    expected = {TABLES_FILE, DECODER_FILE, *(encoder_file(depth) for depth in manifest.depths)}
    if set(manifest.files) != expected or set(contents) != expected:
        odd = sorted(expected ^ set(contents)) or sorted(expected ^ set(manifest.files))
        raise BundleFormatError(f"{path}: missing or unknown files: {', '.join(odd)}")
    for name, entry in manifest.files.items():
        if hashlib.sha256(contents[name]).hexdigest() != entry.sha256:
            raise BundleMismatchError(f"{path}: {name} differs from its hash in the manifest; fetch the bundle again")


def _read_operating_points(
    path: Path, manifest: Manifest, content: bytes
) -> tuple[dict[tuple[int, int], TableSet], dict[int, NDArray[np.float32]]]:
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        raise BundleFormatError(f"{path}: {TABLES_FILE} cannot be read ({error})") from error
    levels, gains = arrays.pop("gain_levels16", None), arrays.pop("gains", None)
    channels = manifest.latent_shape[0]
    if levels is None or gains is None or gains.shape != (len(levels), channels) or gains.dtype != np.float32:
        raise BundleFormatError(f"{path}: {TABLES_FILE} holds no fitting gains")
    if tuple(levels.tolist()) != manifest.levels16 or not np.all(np.isfinite(gains) & (gains > 0)):
        raise BundleFormatError(f"{path}: gains in {TABLES_FILE} do not fit the manifest's levels")
    tables = dict(unpack_tables(arrays))
    points = {(depth, level16) for depth in manifest.depths for level16 in manifest.levels16}
    if set(tables) != points or any(len(table.sizes) != channels for table in tables.values()):
        raise BundleFormatError(f"{path}: tables do not cover the manifest's depths and levels")
    return tables, dict(zip(manifest.levels16, gains, strict=True))
