"""Labelled pictures from a folder or a tar, with labels in any of their usual places; a bad label is named."""

from __future__ import annotations

import io
import shutil
import subprocess
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pytest

from pipeline.classes import load_classes
from pipeline.errors import EvaluationError
from pipeline.evaluation.pictures import load_labelled_views
from pipeline.view import EVALUATION_VIEW, make_view

EXPECTED = [872, 872, 285, 285, 967, 967, 744, 744]  # in order of the files' names


@pytest.fixture
def folder(labelled: Path, tmp_path: Path) -> Path:
    """A copy, to change."""
    return Path(shutil.copytree(labelled, tmp_path / "pictures"))


def read_labels(folder: Path) -> dict[str, str]:
    lines = (folder / "labels.csv").read_text(encoding="utf-8").splitlines()
    return dict(line.split(",") for line in lines[1:])


def write_labels(folder: Path, text: str, encoding: str = "utf-8") -> None:
    (folder / "labels.csv").write_text(text, encoding=encoding)


def pack(folder: Path, target: Path) -> Path:
    with tarfile.open(target, "w") as archive:
        for path in sorted(folder.iterdir(), reverse=True):
            archive.add(path, path.name)
    return target


# Where labels may be


def test_folder_with_labels_csv(labelled: Path) -> None:
    found = load_labelled_views(labelled)
    assert found.labels.tolist() == EXPECTED
    assert found.labels.dtype == np.int64
    assert found.unreadable == 0
    first = cv2.imread(str(labelled / "camera-0.jpg"))
    assert first is not None
    np.testing.assert_array_equal(found.views[0], make_view(np.asarray(first, np.uint8), EVALUATION_VIEW))


def test_tar_and_folder_give_the_same(labelled: Path, tmp_path: Path) -> None:
    expected, found = load_labelled_views(labelled), load_labelled_views(pack(labelled, tmp_path / "eval.tar"))
    np.testing.assert_array_equal(found.views, expected.views)
    assert found.labels.tolist() == EXPECTED


def test_tar_as_the_tar_command_makes_it_of_a_folder(labelled: Path, tmp_path: Path) -> None:
    """Names then begin with "./", those in the label file do not."""
    subprocess.run(["tar", "-cf", str(tmp_path / "eval.tar"), "-C", str(labelled), "."], check=True)
    assert load_labelled_views(tmp_path / "eval.tar").labels.tolist() == EXPECTED


def test_webdataset_tar_with_cls_files(folder: Path, tmp_path: Path) -> None:
    for file, label in read_labels(folder).items():
        (folder / file).with_suffix(".cls").write_text(f"{label}\n", encoding="utf-8")
    (folder / "labels.csv").unlink()
    (folder / "rocket-1.cls").unlink()  # a picture without a class is left out
    found = load_labelled_views(pack(folder, tmp_path / "shard.tar"))
    assert found.labels.tolist() == EXPECTED[:-1]


def test_given_label_file_goes_before_the_folders_own(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_text("file,label\ncoffee-1.jpg,5\n", encoding="utf-8")
    found = load_labelled_views(folder, tmp_path / "mine.csv")
    assert found.labels.tolist() == [5]


@pytest.mark.parametrize("kind", ["index", "wnid"])
def test_sub_folders_are_classes(folder: Path, tmp_path: Path, kind: str) -> None:
    for file, label in read_labels(folder).items():
        name = label if kind == "index" else load_classes().wnids[int(label)]
        (tmp_path / "classes" / name).mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / file, tmp_path / "classes" / name / file)
    found = load_labelled_views(tmp_path / "classes")
    assert sorted(found.labels.tolist()) == sorted(EXPECTED)


def test_labels_may_be_wordnet_ids_in_any_column_with_a_byte_order_mark(folder: Path) -> None:
    """As a spreadsheet writes them."""
    wnids = load_classes().wnids
    rows = [f"{file},n,{wnids[int(label)]}" for file, label in read_labels(folder).items()]
    write_labels(folder, "\n".join(["file,note,label", *rows]), "utf-8-sig")
    assert load_labelled_views(folder).labels.tolist() == EXPECTED


def test_pictures_without_a_label_are_left_out(folder: Path) -> None:
    write_labels(folder, "file,label\ncoffee-0.jpg,967\ncoffee-1.jpg,\ngone.jpg,3\n")
    assert load_labelled_views(folder).labels.tolist() == [967]


def test_limit_takes_the_first_by_name(labelled: Path) -> None:
    assert load_labelled_views(labelled, limit=3).labels.tolist() == EXPECTED[:3]


def test_unreadable_pictures_are_counted_and_take_their_labels_along(folder: Path) -> None:
    (folder / "camera-0.jpg").write_bytes(b"")
    (folder / "rocket-1.jpg").write_bytes(b"no picture")
    found = load_labelled_views(folder)
    assert found.labels.tolist() == EXPECTED[1:-1]
    assert (len(found.views), found.unreadable) == (6, 2)


# What is wrong, named


@pytest.mark.parametrize("label", ["1000", "-1", "cat", "9.5", "n00000000"])
def test_bad_label_is_named_with_its_line(folder: Path, label: str) -> None:
    write_labels(folder, f"file,label\ncoffee-0.jpg,967\ncoffee-1.jpg,{label}\n")
    with pytest.raises(EvaluationError, match=rf"line 3: '{label}' is neither a class index"):
        load_labelled_views(folder)


@pytest.mark.parametrize("text", ["a,b\ncoffee-0.jpg,967\n", "file\ncoffee-0.jpg\n", "file,label\ncoffee-0.jpg\n"])
def test_missing_column_is_named_with_its_line(folder: Path, text: str) -> None:
    write_labels(folder, text)
    with pytest.raises(EvaluationError, match="line 2: needs the columns file and label"):
        load_labelled_views(folder)


def test_label_file_that_is_no_text_is_one_line(folder: Path) -> None:
    (folder / "labels.csv").write_bytes(b"file,label\n\xff\xfe,1\n")
    with pytest.raises(EvaluationError, match="not a CSV file in UTF-8"):
        load_labelled_views(folder)


def test_bad_cls_file_is_named(folder: Path, tmp_path: Path) -> None:
    (folder / "labels.csv").unlink()
    (folder / "coffee-0.cls").write_text("espresso", encoding="utf-8")
    with pytest.raises(EvaluationError, match=r"coffee-0\.cls: 'espresso' is neither"):
        load_labelled_views(pack(folder, tmp_path / "shard.tar"))


def test_sub_folder_that_is_no_class_is_named(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "classes" / "cats").mkdir(parents=True)
    shutil.copy(folder / "chelsea-0.jpg", tmp_path / "classes" / "cats" / "a.jpg")
    with pytest.raises(EvaluationError, match="'cats' is neither"):
        load_labelled_views(tmp_path / "classes")


def test_pictures_without_any_labels_name_the_way_out(folder: Path) -> None:
    (folder / "labels.csv").unlink()
    with pytest.raises(EvaluationError, match="--labels"):
        load_labelled_views(folder)


@pytest.mark.parametrize(
    ("labels", "problem"),
    [("file,label\nother.jpg,3\n", "no picture there has a label"), ("file,label\nbad.jpg,3\n", "can be decoded")],
)
def test_nothing_to_measure_is_told(tmp_path: Path, labels: str, problem: str) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"no picture")
    write_labels(tmp_path, labels)
    with pytest.raises(EvaluationError, match=problem):
        load_labelled_views(tmp_path)


@pytest.mark.parametrize("kind", ["missing", "text", "cut"])
def test_what_is_neither_folder_nor_tar_is_told(labelled: Path, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "eval.tar"
    if kind == "text":
        path.write_text("no tar", encoding="utf-8")
    elif kind == "cut":
        content = pack(labelled, path).read_bytes()
        path.write_bytes(content[: len(content) // 2])
    with pytest.raises(EvaluationError, match=r"eval\.tar: neither a folder nor a tar"):
        load_labelled_views(path)


def test_missing_label_file_is_named(labelled: Path) -> None:
    with pytest.raises(EvaluationError, match=r"none\.csv: labels cannot be read"):
        load_labelled_views(labelled, labelled / "none.csv")


def test_tar_with_links_and_folders_reads_files_alone(labelled: Path, tmp_path: Path) -> None:
    path = pack(labelled, tmp_path / "eval.tar")
    with tarfile.open(path, "a") as archive:
        link = tarfile.TarInfo("link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
        folder = tarfile.TarInfo("folder.jpg")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        archive.addfile(tarfile.TarInfo("empty.jpg"), io.BytesIO())
    assert load_labelled_views(path).labels.tolist() == EXPECTED
