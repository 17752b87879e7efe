"""Bundles: every byte is verified, and nothing that is not exactly a bundle is taken for one."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import bundle as bundle_module
from pipeline.bundle import (
    DECODER_FILE,
    DEFAULT_FRAME_BYTES,
    MANIFEST_FILE,
    TABLES_FILE,
    Bundle,
    check_target,
    find_bundle,
    load_bundle,
    seal_bundle,
)
from pipeline.errors import BundleError, BundleFormatError, BundleMismatchError


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny bundle, to spoil."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "bundle"))


def edit_manifest(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    manifest = json.loads((folder / MANIFEST_FILE).read_text(encoding="utf-8"))
    change(manifest)
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest), encoding="utf-8")


def replace_file(folder: Path, name: str, content: bytes) -> None:
    """Another content with the hash that goes with it: what only a hostile maker of bundles can do."""

    def change(manifest: dict[str, Any]) -> None:
        manifest["files"][name] = {"sha256": hashlib.sha256(content).hexdigest(), "size_bytes": len(content)}

    (folder / name).write_bytes(content)
    edit_manifest(folder, change)


def zip_folder(folder: Path, target: Path, compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(target, "w", compression) as archive:
        for path in sorted(folder.iterdir()):
            archive.write(path, path.name)
    return target


def pack_arrays(arrays: dict[str, np.ndarray[Any, Any]]) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def unpack_arrays(folder: Path) -> dict[str, np.ndarray[Any, Any]]:
    with np.load(folder / TABLES_FILE, allow_pickle=False) as arrays:
        return dict(arrays)


# Sound bundles


def test_load_gives_what_was_sealed(folder: Path) -> None:
    bundle = load_bundle(str(folder))
    assert bundle.bundle_id == hashlib.sha256((folder / MANIFEST_FILE).read_bytes()).digest()
    assert bundle.id8 == bundle.bundle_id[:8]
    assert bundle.bundle_id.hex().startswith(bundle.short_id)
    assert set(bundle.files) == {path.name for path in folder.iterdir()} - {MANIFEST_FILE}
    assert bundle.encoder_graph(1) == (folder / "encoder-1.onnx").read_bytes()
    assert set(bundle.gains) == set(bundle.manifest.levels16)


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_zip_and_folder_are_the_same_bundle(folder: Path, tmp_path: Path, compression: int) -> None:
    from_folder = load_bundle(str(folder))
    from_zip = load_bundle(str(zip_folder(folder, tmp_path / "bundle.zip", compression)))
    assert from_zip.bundle_id == from_folder.bundle_id
    assert from_zip.files == from_folder.files


def test_default_bundle_is_found_by_name_wherever_we_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    bundle = load_bundle("default")
    assert bundle.manifest.name == "default"
    assert {0, 2, 4, 8} <= set(bundle.manifest.depths)
    whole = [level16 for level16 in bundle.manifest.levels16 if level16 % 16 == 0]
    assert len(whole) >= 4
    for depth in bundle.manifest.depths:
        for level16 in whole:
            point = bundle.measured_point(depth, level16)
            assert point is not None
            assert 0 < point.bpp < 8
            assert 0 <= point.agreement <= 1


@pytest.mark.parametrize("name", [".", ".."])
def test_relative_folder_is_a_path_not_a_name(folder: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    place = folder if name == "." else folder / "below"
    place.mkdir(exist_ok=True)
    monkeypatch.chdir(place)
    assert find_bundle(name).resolve() == folder.resolve()


@pytest.mark.parametrize("name", ["defualt", "no/such/folder", ""])
def test_unknown_bundle_names_those_there_are(name: str) -> None:
    with pytest.raises(BundleFormatError, match=r"no such bundle.*default"):
        load_bundle(name)


def test_nearest_level_is_one_with_tables(tiny_bundle: Bundle) -> None:
    assert tiny_bundle.nearest_level16(0.3) == 4
    assert tiny_bundle.nearest_level16(-5) == 0
    assert tiny_bundle.nearest_level16(99) == 16


def measured_at(bundle: Bundle, bpp: dict[int, float], tmp_path: Path) -> Bundle:
    deepest = max(bundle.manifest.depths)
    points = [{"depth": deepest, "level16": level16, "bpp": value, "agreement": 0.5} for level16, value in bpp.items()]
    # One that must not count: another depth.
    points.append({"depth": 0, "level16": 16, "bpp": 0.001, "agreement": 0.5})
    measured = bundle_module.Measured.model_validate({"pictures": 1, "source": "made up", "points": points})
    seal_bundle(tmp_path / "measured", bundle.manifest.model_copy(update={"measured": measured}), bundle.files)
    return load_bundle(str(tmp_path / "measured"))


@pytest.mark.parametrize(
    ("bpp", "expected"),
    [({0: 0.1, 16: 0.4}, 16), ({0: 0.1, 16: 0.6}, 0), ({0: 0.7, 16: 0.9}, 16), ({}, 16)],
    ids=["both fit", "low fits", "none fits", "not measured"],
)
def test_default_level_is_the_highest_whose_frames_fit(
    tiny_bundle: Bundle, tmp_path: Path, bpp: dict[int, float], expected: int
) -> None:
    assert 0.4 < 8 * DEFAULT_FRAME_BYTES / 224**2 < 0.6
    assert measured_at(tiny_bundle, bpp, tmp_path).default_level16 == expected


def test_sealing_again_replaces_a_bundle_and_changes_its_id(folder: Path) -> None:
    old = load_bundle(str(folder))
    (folder / "encoder-7.onnx").write_bytes(b"of a deeper bundle")
    sealed = seal_bundle(folder, old.manifest.model_copy(update={"name": "other"}), old.files)
    new = load_bundle(str(folder))
    assert (new.bundle_id, new.manifest.name) == (sealed, "other")
    assert new.bundle_id != old.bundle_id


def test_sealing_beside_something_else_takes_nothing_away(tiny_bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work", encoding="utf-8")
    (tmp_path / TABLES_FILE).write_bytes(b"old")
    with pytest.raises(BundleFormatError, match=r"thesis\.txt"):
        seal_bundle(tmp_path, tiny_bundle.manifest, tiny_bundle.files)
    assert (tmp_path / TABLES_FILE).read_bytes() == b"old"
    with pytest.raises(BundleFormatError, match="not a folder"):
        check_target(tmp_path / TABLES_FILE)


# Damaged bundles


def test_one_changed_byte_of_any_file_is_found(folder: Path) -> None:
    for path in sorted(folder.iterdir()):
        if path.name == MANIFEST_FILE:
            continue
        content = path.read_bytes()
        for position in (0, len(content) // 2, len(content) - 1):
            tampered = bytearray(content)
            tampered[position] ^= 1
            path.write_bytes(tampered)
            with pytest.raises(BundleMismatchError, match=path.name):
                load_bundle(str(folder))
        path.write_bytes(content)
    load_bundle(str(folder))


def test_one_changed_byte_of_the_manifest_is_another_bundle(folder: Path) -> None:
    """The node and the cloud must not meet as equals."""
    before = load_bundle(str(folder)).bundle_id
    path = folder / MANIFEST_FILE
    path.write_bytes(path.read_bytes().replace(b'"tiny"', b'"tinz"'))
    assert load_bundle(str(folder)).bundle_id != before


@pytest.mark.parametrize("name", [MANIFEST_FILE, TABLES_FILE, DECODER_FILE, "encoder-1.onnx"])
def test_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(BundleFormatError, match=name):
        load_bundle(str(folder))


@pytest.mark.parametrize("name", ["encoder-5.onnx", "run.py", ".hidden", "encoder-1.onnx.data", "Manifest.json"])
def test_extra_file_is_named(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"x")
    with pytest.raises(BundleFormatError, match=name):
        load_bundle(str(folder))


def test_link_in_place_of_a_file_is_refused(folder: Path, tiny_folder: Path) -> None:
    (folder / DECODER_FILE).unlink()
    (folder / DECODER_FILE).symlink_to(tiny_folder / DECODER_FILE)
    with pytest.raises(BundleFormatError, match="not a plain file"):
        load_bundle(str(folder))


@pytest.mark.parametrize("kind", ["folder", "fifo"])
def test_what_is_no_file_is_refused_and_not_waited_for(folder: Path, kind: str) -> None:
    if kind == "folder":
        (folder / "encoder-3.onnx").mkdir()
    else:
        os.mkfifo(folder / "encoder-3.onnx")
    with pytest.raises(BundleFormatError, match="not a plain file"):
        load_bundle(str(folder))


@pytest.mark.parametrize("content", [b"", b"no zip", b"PK\x03\x04" + bytes(40)], ids=["empty", "text", "cut"])
def test_file_that_is_no_zip_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bundle.zip").write_bytes(content)
    with pytest.raises(BundleFormatError, match=r"bundle\.zip"):
        load_bundle(str(tmp_path / "bundle.zip"))


def test_zip_damaged_anywhere_is_refused_or_the_same(folder: Path, tmp_path: Path) -> None:
    """Whatever a disk or a link does to it, loading ends in an error of ours or in the sealed bundle."""
    sound = zip_folder(folder, tmp_path / "sound.zip").read_bytes()
    expected = load_bundle(str(tmp_path / "sound.zip")).bundle_id
    random, path = np.random.default_rng(3), tmp_path / "damaged.zip"
    refused = 0
    for _ in range(60):
        content = bytearray(sound)
        for position in random.integers(len(content), size=4):
            content[position] ^= int(random.integers(1, 256))
        path.write_bytes(content if random.random() < 0.8 else content[: int(random.integers(len(content)))])
        try:
            assert load_bundle(str(path)).bundle_id == expected
        except BundleError:
            refused += 1
    assert refused > 40


def test_zip_with_a_file_twice_is_refused(folder: Path, tmp_path: Path) -> None:
    """Which of the two counts would depend on who reads it."""
    path = zip_folder(folder, tmp_path / "bundle.zip")
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.write(folder / DECODER_FILE, DECODER_FILE)
    with pytest.raises(BundleFormatError, match="twice"):
        load_bundle(str(path))


@pytest.mark.parametrize("name", ["../outside", "folder/manifest.json", "/etc/passwd"])
def test_zip_with_a_path_is_refused(folder: Path, tmp_path: Path, name: str) -> None:
    path = zip_folder(folder, tmp_path / "bundle.zip")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(name, b"x")
    with pytest.raises(BundleFormatError, match="does not belong"):
        load_bundle(str(path))


# Too large


def test_file_over_the_limit_is_refused_unread(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle_module, "MAX_FILE_BYTES", 1000)

    def fail(_: Path) -> bytes:
        raise AssertionError("read")

    monkeypatch.setattr(Path, "read_bytes", fail)
    with pytest.raises(BundleFormatError, match="larger than 1000"):
        load_bundle(str(folder))


def test_zip_entry_over_the_limit_is_refused_unread(folder: Path, tmp_path: Path) -> None:
    """64 MiB and a byte of zeros take 64 kB in a zip."""
    (folder / "encoder-2.onnx").write_bytes(bytes(bundle_module.MAX_FILE_BYTES + 1))
    path = zip_folder(folder, tmp_path / "bundle.zip")
    assert path.stat().st_size < 2**20
    with pytest.raises(BundleFormatError, match=r"encoder-2\.onnx is larger"):
        load_bundle(str(path))


@pytest.mark.parametrize("limit", ["MAX_BUNDLE_BYTES", "MAX_FILES"])
def test_all_files_together_have_a_limit(folder: Path, limit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle_module, limit, 4)
    with pytest.raises(BundleFormatError, match="more than"):
        load_bundle(str(folder))


def test_zip_entry_that_inflates_to_more_than_it_says_is_not_read_to_its_end(folder: Path, tmp_path: Path) -> None:
    """Its header says one byte; the 40 MB behind it must not fill the memory."""
    path = zip_folder(folder, tmp_path / "bundle.zip")
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("encoder-9.onnx", bytes(40_000_000))
    content = path.read_bytes()
    size = (40_000_000).to_bytes(4, "little")
    assert content.count(size) == 2  # in the local header and in the directory
    path.write_bytes(content.replace(size, (1).to_bytes(4, "little")))
    read: list[int] = []
    inflate = zipfile.ZipExtFile.read

    def watched(self: zipfile.ZipExtFile, n: int | None = -1) -> bytes:
        part = inflate(self, n)
        read.append(len(part))
        assert n is not None
        assert n >= 0  # without a limit everything would be inflated first
        return part

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zipfile.ZipExtFile, "read", watched)
        with pytest.raises(BundleFormatError):
            load_bundle(str(path))
    assert sum(read) < 5_000_000


def test_tables_that_inflate_beyond_the_limit_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle_module, "MAX_FILE_BYTES", 3_000_000)
    arrays = unpack_arrays(folder)
    replace_file(folder, TABLES_FILE, pack_arrays({**arrays, "frequencies": np.zeros(2_000_000, np.uint16)}))
    with pytest.raises(BundleFormatError, match="arrays of more than"):
        load_bundle(str(folder))


# Made by somebody hostile, or by another version: the hashes are right


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_other_format_version_says_so(folder: Path, version: object) -> None:
    edit_manifest(folder, lambda manifest: manifest.update(format_version=version))
    with pytest.raises(BundleFormatError, match=rf"bundle format {version}, this program reads 1"):
        load_bundle(str(folder))


def test_other_entropy_coder_says_so(folder: Path) -> None:
    edit_manifest(folder, lambda manifest: manifest.update(entropy_coder="constriction-0.6.0/ans"))
    with pytest.raises(BundleFormatError, match=r"constriction-0\.6\.0/ans, this program has"):
        load_bundle(str(folder))


def test_unknown_manifest_key_is_named(folder: Path) -> None:
    edit_manifest(folder, lambda manifest: manifest.update(colour="red"))
    with pytest.raises(BundleFormatError, match="colour"):
        load_bundle(str(folder))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", "a/b"),
        ("classifier_sha256", "57"),
        ("depths", []),
        ("depths", [1, 0]),
        ("depths", [0, 0, 1]),
        ("depths", [0, 256]),
        ("levels16", [0, -4]),
        ("latent_shape", [6, 28]),
        ("latent_shape", [6, 28, 10**9]),
        ("latent_shape", [0, 28, 28]),
        ("family", "other"),
        ("files", {"tables.npz": {"sha256": "0" * 64, "size_bytes": 10**12}}),
    ],
)
def test_manifest_value_out_of_range_is_named(folder: Path, key: str, value: object) -> None:
    edit_manifest(folder, lambda manifest: manifest.update({key: value}))
    with pytest.raises(BundleFormatError, match=f"manifest: {key}"):
        load_bundle(str(folder))


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"format_version": 1}'],
    ids=["empty", "cut", "list", "null", "no text", "deep", "bare"],
)
def test_manifest_that_is_none_is_refused(folder: Path, content: bytes) -> None:
    (folder / MANIFEST_FILE).write_bytes(content)
    with pytest.raises(BundleFormatError, match="manifest"):
        load_bundle(str(folder))


def test_manifest_that_names_other_files_than_there_are_is_refused(folder: Path) -> None:
    edit_manifest(folder, lambda manifest: manifest["files"].pop(DECODER_FILE))
    with pytest.raises(BundleFormatError, match=DECODER_FILE):
        load_bundle(str(folder))


def test_pickled_array_is_refused_and_not_run(folder: Path, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
            return os.mkdir, (str(tmp_path / "sprung"),)

    trapped = np.empty(1, object)
    trapped[0] = Trap()
    replace_file(folder, TABLES_FILE, pack_arrays({**unpack_arrays(folder), "gains": trapped}))
    with pytest.raises(BundleFormatError, match=TABLES_FILE):
        load_bundle(str(folder))
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("kind", ["empty", "noise", "npy", "no arrays", "cut"])
def test_tables_file_that_is_none_is_refused(folder: Path, kind: str) -> None:
    buffer = io.BytesIO()
    if kind == "npy":
        np.save(buffer, np.zeros(3))
    elif kind == "no arrays":
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr("gains", b"not an array")
            archive.writestr("gain_levels16", b"neither")
    elif kind == "cut":
        buffer.write((folder / TABLES_FILE).read_bytes()[:-40])
    elif kind == "noise":
        buffer.write(b"\x13" * 100)
    replace_file(folder, TABLES_FILE, buffer.getvalue())
    with pytest.raises(BundleFormatError, match=TABLES_FILE):
        load_bundle(str(folder))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("gains", lambda gains: gains * np.nan),
        ("gains", lambda gains: -gains),
        ("gains", lambda gains: gains.astype(np.float64)),
        ("gains", lambda gains: gains[:, :-1]),
        ("gains", lambda gains: gains[:-1]),
        ("dead_zones", lambda zones: zones + 0.5),
        ("dead_zones", lambda zones: zones - 0.01),
        ("dead_zones", lambda zones: zones * np.nan),
        ("dead_zones", lambda zones: zones.astype(np.float64)),
        ("dead_zones", lambda zones: zones[1:]),
        ("gain_levels16", lambda levels: levels[::-1]),
        ("gain_levels16", lambda levels: levels[0]),
        ("points", lambda points: points[:, ::-1]),
        ("points", lambda points: np.repeat(points[:1], len(points), axis=0)),
        ("frequencies", lambda frequencies: frequencies + np.uint16(1)),
        ("sizes", lambda sizes: sizes * np.uint16(3)),
    ],
)
def test_tables_that_do_not_fit_the_manifest_are_refused(
    folder: Path, name: str, change: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]
) -> None:
    arrays = unpack_arrays(folder)
    arrays[name] = np.ascontiguousarray(change(arrays[name])).reshape(np.shape(change(arrays[name])))
    replace_file(folder, TABLES_FILE, pack_arrays(arrays))
    with pytest.raises(BundleFormatError):
        load_bundle(str(folder))


def test_graph_with_tensors_in_other_files_is_refused(folder: Path) -> None:
    """It would read any file that the node may read."""
    onnx = pytest.importorskip("onnx")
    model = onnx.load_from_string((folder / "encoder-1.onnx").read_bytes())
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "/etc/passwd"
    replace_file(folder, "encoder-1.onnx", model.SerializeToString())
    with pytest.raises(BundleFormatError, match=r"encoder-1\.onnx keeps tensors in other files"):
        load_bundle(str(folder))
