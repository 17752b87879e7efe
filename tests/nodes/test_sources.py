"""What --camera accepts, what it is called, and that no password is shown."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from nodes.sources import (
    LIVE_KINDS,
    Source,
    SourceKind,
    TestOptions,
    default_name,
    list_pictures,
    parse_camera,
    parse_cameras,
    parse_source,
)
from pipeline.errors import SourceError


def _touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


@pytest.mark.parametrize(
    ("argument", "kind", "name"),
    [
        ("0", SourceKind.DEVICE, "camera0"),
        ("12", SourceKind.DEVICE, "camera12"),
        ("/dev/video3", SourceKind.DEVICE, "camera3"),
        ("rtsp://10.0.0.7:554/stream1", SourceKind.URL, "10.0.0.7"),
        ("http://cam-4.example/video.mjpg?fps=5", SourceKind.URL, "cam-4.example"),
        ("RTSPS://cam/x", SourceKind.URL, "cam"),
        ("https://[::1]:8443/x", SourceKind.URL, "1"),
    ],
)
def test_live_source_is_recognised_and_named(argument: str, kind: SourceKind, name: str) -> None:
    """Devices and URLs are not looked at: a camera that is not there yet may come."""
    (camera,) = parse_cameras([argument])
    assert (camera.source.kind, camera.name, camera.source.is_live) == (kind, name, True)
    assert kind in LIVE_KINDS


def test_files_and_folders_are_recognised_and_named(tmp_path: Path) -> None:
    _touch(tmp_path / "dock 3.mp4", tmp_path / "photos" / "a.JPG", tmp_path / "one.png")
    _touch(tmp_path / "pets" / "285" / "cat.jpg", tmp_path / "set" / "b.webp")
    (tmp_path / "set" / "labels.csv").write_text("file,label\nb.webp,3\n")
    names = ("dock 3.mp4", "photos", "one.png", "pets", "set", "set/labels.csv")
    cameras = parse_cameras([str(tmp_path / name) for name in names])
    assert [(camera.source.kind, camera.name, camera.source.is_live) for camera in cameras] == [
        (SourceKind.FILE, "dock-3", False),
        (SourceKind.FOLDER, "photos", False),
        (SourceKind.FOLDER, "one", False),
        (SourceKind.LABELLED_FOLDER, "pets", False),
        (SourceKind.CSV, "set", False),
        (SourceKind.CSV, "labels", False),
    ]


def test_given_name_wins_and_equals_in_a_url_is_no_name() -> None:
    assert parse_camera("door=0")[0] == "door"
    assert parse_camera("gate.2=rtsp://h/a?b=c")[0] == "gate.2"
    assert parse_camera("rtsp://h/a?b=c")[0] is None
    assert parse_camera("http://h/=x")[0] is None


def test_file_with_equals_in_its_name_is_reached_through_a_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _touch(tmp_path / "a=b.mp4")
    monkeypatch.chdir(tmp_path)
    assert parse_camera("./a=b.mp4")[1].location == str(tmp_path / "a=b.mp4")


def test_default_names_are_made_unique_and_given_names_kept() -> None:
    """Each camera's results carry its name, so no two may share one; a name set by hand never changes."""
    cameras = parse_cameras(["rtsp://h/1", "rtsp://h/2", "h-2=0", "rtsp://h/3"])
    assert [camera.name for camera in cameras] == ["h", "h-3", "h-2", "h-4"]
    long = "http://" + "x" * 63 + ".example/"
    names = [camera.name for camera in parse_cameras([long, long])]
    assert names == ["x" * 63 + ".", "x" * 62 + "-2"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["a=0", "a=1"], "two cameras are called 'a'"),
        (["front door=0"], "camera name 'front door'"),
        (["=0"], "camera name ''"),
        (["x" * 65 + "=0"], "1 to 64"),
        ([""], "needs a source"),
        (["door="], "needs a source"),
        (["-1"], "No such file"),
        (["nosuch.mp4"], "nosuch.mp4: No such file"),
        (["test"], "did you mean test:"),
        (["ftp://host/x"], "only rtsp, rtsps, http, https"),
        (["rtsp://"], "not a URL with a host"),
        (["rtsp://host:99999/"], "not a URL with a host"),
        (["/dev/null"], "neither a file nor a folder"),
    ],
)
def test_source_that_can_never_work_raises(arguments: list[str], words: str) -> None:
    with pytest.raises(SourceError, match=words):
        parse_cameras(arguments)


@pytest.mark.parametrize(
    "url",
    [
        "rtsp://admin:hunter2@cam/s",
        "rtsp://admin:hunter2@cam:554/s?user=admin&x=1",
        "http://cam/video?channel=1&pwd=hunter2&user=admin",
        "http://cam/video?access_token=hunter2#t",
        "rtsp://admin:hunter2@extra@cam/s",
        "rtsp://admin%40x:hunter2@cam/s",
    ],
)
def test_password_is_in_no_text_of_a_source(url: str) -> None:
    """Names, texts and representations end up in logs, metrics and other people's screens."""
    name, source = parse_camera(url)
    shown = f"{source} {source!r} {source.text} {default_name(source)} {name}"
    assert "hunter2" not in shown
    assert "admin" not in shown
    assert "cam" in source.text
    assert source.location == url


@pytest.mark.parametrize("url", ["rtsp://admin:hun/ter2@cam/s", "rtsp://admin:hun#ter2@cam/s", "ftp://a:ter2@h/"])
def test_refused_url_does_not_show_its_password(url: str) -> None:
    """A slash or hash in a password makes another host of it; it is refused, and hidden all the same."""
    with pytest.raises(SourceError) as caught:
        parse_source(url)
    assert "ter2" not in str(caught.value)
    assert "hun" not in str(caught.value)


def test_labelled_folder_takes_turns_between_classes(tmp_path: Path) -> None:
    """Class by class, the accuracy of the first minutes would be that of one class."""
    folder = tmp_path / "set"
    names = ("3/b.jpg", "3/a.jpg", "3/notes.txt", "3/.hidden.jpg", "n04557648/c.png", ".git/x.jpg")
    _touch(*(folder / name for name in names))
    entries = list_pictures(parse_source(str(folder)))
    found = [(entry.path.name, entry.label) for entry in entries]
    assert found == [("a.jpg", 3), ("c.png", 898), ("b.jpg", 3)]


def test_plain_folder_goes_by_name_without_labels(tmp_path: Path) -> None:
    _touch(tmp_path / "2.png", tmp_path / "10.png", tmp_path / "readme.txt")
    entries = list_pictures(parse_source(str(tmp_path)))
    assert [(entry.path.name, entry.label) for entry in entries] == [("10.png", None), ("2.png", None)]


def test_label_file_may_have_a_mark_more_columns_and_unknown_labels(tmp_path: Path) -> None:
    """As spreadsheets write it; paths are relative to the label file, not to where the node runs."""
    path = tmp_path / "truth.csv"
    path.write_bytes(b"\xef\xbb\xbfwho,label,file\nme,n04557648,a/b.jpg\nme,7,/x/c.jpg\nme,,d.jpg\n")
    entries = list_pictures(parse_source(str(path)))
    assert [(entry.path, entry.label) for entry in entries] == [
        (tmp_path / "a/b.jpg", 898),
        (Path("/x/c.jpg"), 7),
        (tmp_path / "d.jpg", None),
    ]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"name,label\nx,1\n", "must name the columns file and label"),
        (b"", "must name the columns"),
        (b"file,label\n", "no pictures"),
        (b"file,label\na.jpg,1\nb.jpg,cat\n", "line 3: label 'cat' is neither a class index"),
        (b"file,label\n,1\n", "line 2: no file"),
        (b"file,label\n\xff\xfe,1\n", "not a CSV file in UTF-8"),
    ],
)
def test_wrong_label_file_raises_with_its_line(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "labels.csv"
    path.write_bytes(content)
    with pytest.raises(SourceError, match=words):
        parse_source(str(path))


def test_folder_without_pictures_raises(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no pictures"):
        parse_source(str(tmp_path))
    _touch(tmp_path / "cats" / "a.jpg")
    with pytest.raises(SourceError, match="sub-folder 'cats' is neither a class index"):
        parse_source(str(tmp_path))


@pytest.mark.parametrize("kind", [SourceKind.FOLDER, SourceKind.LABELLED_FOLDER, SourceKind.CSV])
def test_folder_that_went_away_raises_when_listed(tmp_path: Path, kind: SourceKind) -> None:
    """A memory card that was pulled is not an empty one."""
    with pytest.raises(SourceError, match="card: No such file"):
        list_pictures(Source(kind, str(tmp_path / "gone"), "card"))


def test_options_of_the_test_source() -> None:
    pytest.importorskip("skimage")
    assert parse_source("test:").test == TestOptions(seed=0, fps=10.0)
    assert parse_source("test:?seed=3&fps=2.5").test == TestOptions(seed=3, fps=2.5)
    assert [camera.name for camera in parse_cameras(["test:", "test:?seed=1"])] == ["test", "test-2"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("test:seed=3", "start with a question mark"),
        ("test:?sed=3", "did you mean seed"),
        ("test:?seed=x", "whole number"),
        ("test:?seed=-1", "seed must be"),
        ("test:?fps=0", "fps above 0"),
        ("test:?fps=nan", "fps above 0"),
        ("test:?fps=", "fps a number"),
    ],
)
def test_wrong_option_of_the_test_source_raises(text: str, words: str) -> None:
    with pytest.raises(SourceError, match=words):
        parse_source(text)


def test_test_source_without_scikit_image_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SourceError, match=r"edge-cloud-rac\[demo\]"):
        parse_source("test:")
