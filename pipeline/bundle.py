"""Bundles: the immutable, hashed set of files that node and cloud must share.

A bundle is a folder, or a zip of one, with exactly these files:

    manifest.json         what it is, what it was measured at, size and SHA-256 of every other file
    encoder-<depth>.onnx  one graph an exit: `view` uint8 (1, 224, 224, 3) BGR and `gain` float32 (C,) in;
                          `scaled` float32 and `symbols` int32, both (1, C, H, W), out
    tables.npz            integer tables, gains and dead zones
    decoder.safetensors   the decoder's weights, and a classifier's tail that was trained with it
    manifest.sig          who vouches for it (`pipeline.bundle_signature`); may be missing

The bundle's id is the SHA-256 of the manifest's bytes, so one id stands for every byte. Nothing in it is run or
unpickled: graphs are refused when they point outside themselves, arrays are read with pickle off.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import stat
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from pipeline.entropy.tables import TableSet, pack_tables, unpack_tables
from pipeline.errors import BundleFormatError, BundleMismatchError

FORMAT_VERSION = 1
ENTROPY_CODER = "constriction-0.5.0/ans-u32-u64-24"
"""Word format of the bitstream; a bundle made for another is refused."""
MANIFEST_FILE, TABLES_FILE, DECODER_FILE = "manifest.json", "tables.npz", "decoder.safetensors"
SIGNATURE_FILE = "manifest.sig"
MAX_FILE_BYTES = 64 * 2**20
"""Far above any encoder that a camera box could run; keeps a hostile zip from filling the memory."""
MAX_DECODER_BYTES = 128 * 2**20
"""The same of the decoder, which only clouds read: with the tail of a ResNet-50 that was trained with it 113 MB."""
MAX_FILES, MAX_BUNDLE_BYTES = 32, 256 * 2**20
"""Of all files together: sixteen graphs, manifest, tables and decoder are nineteen."""
MAX_LATENT_CHANNELS, MAX_LATENT_SIDE = 4096, 56
"""Stride 4 of a view; what a frame may ask the decoder to hold."""
MAX_DEAD_ZONE = 0.5
"""From there on a whole step would round to zero."""
EXTERNAL_MARK = b"location"
"""Key of every tensor that an ONNX graph keeps in another file; our graphs hold the word nowhere."""
DEFAULT_FRAME_BYTES = 3000
"""What a frame may take when nobody asked for a level: a camera at 10 frames a second stays under 250 kbit/s."""
BUNDLED_FOLDER = Path(__file__).parent / "bundles"
BUNDLE_NAME = "[A-Za-z0-9._-]{1,64}"
_BUNDLE_FILE = re.compile(r"manifest\.(?:json|sig)|tables\.npz|decoder\.safetensors|encoder-\d+\.onnx")


class ManifestPart(BaseModel):
    """Unknown keys are errors: a newer format has a newer version."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class FileEntry(ManifestPart):
    """Identity of one file."""

    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    size_bytes: int = Field(ge=0, le=MAX_DECODER_BYTES)


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


Byte = Annotated[int, Field(ge=0, le=255)]
"""Depth and level16 take a byte each in the bitstream's header."""


class Manifest(ManifestPart):
    """Everything that a bundle says of itself."""

    format_version: Literal[1] = 1
    name: str = Field(pattern=f"^{BUNDLE_NAME}$")
    family: Literal["nested", "paper"]
    classifier: str
    classifier_sha256: str = Field(pattern="^[0-9a-f]{64}$")
    cut: str
    entropy_coder: str
    view: Literal["crop224"] = "crop224"
    depths: tuple[Byte, ...] = Field(min_length=1, max_length=16)
    levels16: tuple[Byte, ...] = Field(min_length=1, max_length=256)
    latent_shape: tuple[
        Annotated[int, Field(ge=1, le=MAX_LATENT_CHANNELS)],
        Annotated[int, Field(ge=1, le=MAX_LATENT_SIDE)],
        Annotated[int, Field(ge=1, le=MAX_LATENT_SIDE)],
    ]
    network: dict[str, int | float | str | list[int]]
    training: dict[str, str | int | float]
    measured: Measured | None = None
    files: dict[str, FileEntry]

    @field_validator("depths", "levels16")
    @classmethod
    def _check_rising(cls, values: tuple[int, ...]) -> tuple[int, ...]:
        if list(values) != sorted(set(values)):
            raise ValueError("must rise")
        return values


@dataclass(frozen=True, slots=True)
class Bundle:
    """A verified bundle in memory.

    Attributes:
        bundle_id: 32 bytes, SHA-256 of the manifest.
        tables: one set for each (depth, level16).
        gains: level16 -> float32 (C,).
        dead_zones: level16 -> by how much a scaled value must be further from zero than half a step to be rounded away
            from it, 0 to below 0.5; a bundle without them rounds to the nearest.
        files: every file's bytes by name, manifest and signature excluded.
        signature: content of the signature file, not checked; None without one.
    """

    manifest: Manifest
    bundle_id: bytes
    tables: Mapping[tuple[int, int], TableSet]
    gains: Mapping[int, NDArray[np.float32]]
    dead_zones: Mapping[int, float]
    files: Mapping[str, bytes]
    signature: bytes | None = None

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
        levels16 = self.manifest.levels16
        whole = [level16 for level16 in levels16 if level16 % 16 == 0] or list(levels16)
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
    tables: Mapping[tuple[int, int], TableSet],
    gains: Mapping[int, NDArray[np.float32]],
    dead_zones: Mapping[int, float] | None = None,
) -> bytes:
    """The content of `tables.npz`; without dead zones, symbols are the nearest whole numbers."""
    arrays = dict(pack_tables(tables))
    arrays["gain_levels16"] = np.array(sorted(gains), np.uint8)
    arrays["gains"] = np.stack([gains[level16] for level16 in sorted(gains)]).astype(np.float32)
    if dead_zones is not None:
        arrays["dead_zones"] = np.array([dead_zones[level16] for level16 in sorted(gains)], np.float32)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def check_target(folder: Path) -> None:
    """Make sure that a bundle may be written there: sealing takes away what is not of the bundle.

    Raises:
        BundleFormatError: it is no folder, or holds something that no bundle holds.
    """
    if not folder.exists():
        return
    if not folder.is_dir():
        raise BundleFormatError(f"{folder}: is not a folder")
    strange = sorted(entry.name for entry in folder.iterdir() if not _BUNDLE_FILE.fullmatch(entry.name))
    if strange:
        raise BundleFormatError(f"{folder}: holds {strange[0]}, which is not of a bundle; name an empty or new folder")


def seal_bundle(folder: Path, manifest: Manifest, files: Mapping[str, bytes]) -> bytes:
    """Write a bundle's files and, last, its manifest with their hashes; return the id.

    An older bundle in the folder is replaced; until the new manifest is there, the folder holds none.

    Args:
        manifest: its `files` are replaced by the hashes of `files`.

    Raises:
        BundleFormatError: the folder holds something that no bundle holds.
    """
    check_target(folder)
    folder.mkdir(parents=True, exist_ok=True)
    entries = {
        name: FileEntry(sha256=hashlib.sha256(content).hexdigest(), size_bytes=len(content))
        for name, content in sorted(files.items())
    }
    sealed = manifest.model_copy(update={"files": entries})
    (folder / MANIFEST_FILE).unlink(missing_ok=True)
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
    known = sorted(entry.name for entry in BUNDLED_FOLDER.iterdir()) if BUNDLED_FOLDER.is_dir() else []
    if name_or_path in known:  # looked up, not joined: "." and ".." are paths
        return BUNDLED_FOLDER / name_or_path
    path = Path(name_or_path)
    if name_or_path and path.exists():
        return path
    raise BundleFormatError(f"{name_or_path}: no such bundle; in the package: {', '.join(known) or 'none'}")


def load_bundle(name_or_path: str, *, is_node_part: bool = False) -> Bundle:
    """Read a bundle and verify every byte.

    Args:
        is_node_part: the decoder, which a node has no use for, may be missing; the manifest still names it, so that
            the id is the same.
    Raises:
        BundleFormatError: not a bundle, or one that this version cannot read.
        BundleMismatchError: a file differs from its hash.
    """
    path = find_bundle(name_or_path)
    contents = read_contents(path)
    manifest_bytes = contents.pop(MANIFEST_FILE)
    signature = contents.pop(SIGNATURE_FILE, None)
    manifest = _parse_manifest(path, manifest_bytes)
    _verify_files(path, manifest, contents, is_node_part=is_node_part)
    tables, gains, dead_zones = _read_operating_points(path, manifest, contents[TABLES_FILE])
    bundle_id = hashlib.sha256(manifest_bytes).digest()
    return Bundle(manifest, bundle_id, tables, gains, dead_zones, contents, signature)


def read_contents(path: Path) -> dict[str, bytes]:
    """Bytes of every file of a bundle, manifest included; sizes are checked, nothing else.

    Raises:
        BundleFormatError: not a bundle.
    """
    try:
        contents = _read_folder(path) if path.is_dir() else _read_zip(path)
    except OSError as error:
        raise BundleFormatError(f"{path}: cannot be read: {error.strerror or error}") from error
    if MANIFEST_FILE not in contents:
        raise BundleFormatError(f"{path}: no {MANIFEST_FILE}")
    return contents


def _read_folder(path: Path) -> dict[str, bytes]:
    sizes = {}
    for entry in sorted(path.iterdir()):
        facts = entry.lstat()
        if not stat.S_ISREG(facts.st_mode):
            raise BundleFormatError(f"{path}: {entry.name} is not a plain file")
        sizes[entry.name] = facts.st_size
    _check_sizes(path, sizes)
    return {name: (path / name).read_bytes() for name in sizes}


def _read_zip(path: Path) -> dict[str, bytes]:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = {entry.filename: entry for entry in archive.infolist()}
            if len(entries) < len(archive.infolist()):
                raise BundleFormatError(f"{path}: a file occurs twice in the zip")
            sizes = {name: entry.file_size for name, entry in entries.items()}
            _check_sizes(path, sizes)
            return {name: _read_entry(archive, entry) for name, entry in entries.items()}
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError, NotImplementedError) as error:
        raise BundleFormatError(f"{path}: neither a bundle's folder nor a zip of one ({error})") from error


def _check_sizes(path: Path, sizes: Mapping[str, int]) -> None:
    """Refuse what is no bundle before any of it is read."""
    for name, size_bytes in sizes.items():
        if not _BUNDLE_FILE.fullmatch(name):
            raise BundleFormatError(f"{path}: {name} does not belong into a bundle")
        limit_bytes = MAX_DECODER_BYTES if name == DECODER_FILE else MAX_FILE_BYTES
        if size_bytes > limit_bytes:
            raise BundleFormatError(f"{path}: {name} is larger than {limit_bytes} bytes")
    if len(sizes) > MAX_FILES or sum(sizes.values()) > MAX_BUNDLE_BYTES:
        raise BundleFormatError(f"{path}: more than {MAX_FILES} files or {MAX_BUNDLE_BYTES} bytes")


def _read_entry(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    """Content of a zip's file, no more than the size that was checked: it may inflate to more than it says."""
    with archive.open(entry) as file:
        return file.read(entry.file_size)


def _parse_manifest(path: Path, content: bytes) -> Manifest:
    try:
        version = json.loads(content).get("format_version")
        if version != FORMAT_VERSION:
            raise BundleFormatError(f"{path}: bundle format {version}, this program reads {FORMAT_VERSION}")
        manifest = Manifest.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise BundleFormatError(f"{path}: manifest: {key}: {first['msg']}") from error
    except (ValueError, AttributeError, RecursionError) as error:
        raise BundleFormatError(f"{path}: {MANIFEST_FILE} is not a manifest ({type(error).__name__})") from error
    if manifest.entropy_coder != ENTROPY_CODER:
        raise BundleFormatError(f"{path}: made for coder {manifest.entropy_coder}, this program has {ENTROPY_CODER}")
    return manifest


def _verify_files(path: Path, manifest: Manifest, contents: Mapping[str, bytes], *, is_node_part: bool) -> None:
    expected = {TABLES_FILE, DECODER_FILE, *(encoder_file(depth) for depth in manifest.depths)}
    left_out = {DECODER_FILE} - set(contents) if is_node_part else set()
    if set(manifest.files) != expected or set(contents) != expected - left_out:
        odd = sorted(expected ^ set(contents)) or sorted(expected ^ set(manifest.files))
        raise BundleFormatError(f"{path}: missing or unknown files: {', '.join(odd)}")
    for name, content in contents.items():
        entry = manifest.files[name]
        if len(content) != entry.size_bytes or hashlib.sha256(content).hexdigest() != entry.sha256:
            raise BundleMismatchError(f"{path}: {name} differs from its hash in the manifest; fetch the bundle again")
        if name.endswith(".onnx") and EXTERNAL_MARK in content:
            raise BundleFormatError(f"{path}: {name} keeps tensors in other files")


def _read_operating_points(
    path: Path, manifest: Manifest, content: bytes
) -> tuple[dict[tuple[int, int], TableSet], dict[int, NDArray[np.float32]], dict[int, float]]:
    try:
        arrays = _read_arrays(content)
    except (ValueError, OSError, MemoryError, EOFError, zlib.error, zipfile.BadZipFile) as error:
        raise BundleFormatError(f"{path}: {TABLES_FILE} cannot be read ({error})") from error
    levels, found = arrays.pop("gain_levels16", None), arrays.pop("gains", None)
    channels = manifest.latent_shape[0]
    if levels is None or found is None or found.shape != (levels.size, channels) or found.dtype != np.float32:
        raise BundleFormatError(f"{path}: {TABLES_FILE} holds no fitting gains")
    gains = found.astype(np.float32)
    if levels.tolist() != list(manifest.levels16) or not np.all(np.isfinite(gains) & (gains > 0)):
        raise BundleFormatError(f"{path}: gains in {TABLES_FILE} do not fit the manifest's levels")
    dead_zones = _read_dead_zones(path, arrays.pop("dead_zones", np.zeros(levels.size, np.float32)), levels.size)
    tables = dict(unpack_tables(arrays))
    points = {(depth, level16) for depth in manifest.depths for level16 in manifest.levels16}
    if set(tables) != points or any(table.num_channels != channels for table in tables.values()):
        raise BundleFormatError(f"{path}: tables do not cover the manifest's depths and levels")
    per_level = zip(manifest.levels16, gains, strict=True)
    return tables, dict(per_level), dict(zip(manifest.levels16, dead_zones, strict=True))


def _read_dead_zones(path: Path, found: NDArray[np.generic], levels: int) -> list[float]:
    if found.shape != (levels,) or found.dtype != np.float32:
        raise BundleFormatError(f"{path}: {TABLES_FILE} holds no fitting dead zones")
    dead_zones = found.astype(np.float32)
    if not np.all((dead_zones >= 0) & (dead_zones < MAX_DEAD_ZONE)):
        raise BundleFormatError(f"{path}: dead zones in {TABLES_FILE} must be from 0 to below {MAX_DEAD_ZONE}")
    return [float(zone) for zone in dead_zones]


def _read_arrays(content: bytes) -> dict[str, NDArray[np.generic]]:
    """Arrays of an npz; unlike numpy alone, refuses one that inflates to more than a file may have."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        if sum(entry.file_size for entry in archive.infolist()) > MAX_FILE_BYTES:
            raise ValueError(f"arrays of more than {MAX_FILE_BYTES} bytes")
    with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
        found = {name: arrays[name] for name in arrays.files}
    if not all(isinstance(array, np.ndarray) for array in found.values()):
        raise ValueError("holds something that is no array")
    return found
