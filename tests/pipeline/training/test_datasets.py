"""Training pictures: what is read, what is held out, and crops that a seed brings back."""

from __future__ import annotations

import io
import random
import shutil
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.errors import TrainingError
from pipeline.training.datasets import CropSampler, Pictures, draw_crops, load_pictures, use_views
from pipeline.training.file_pictures import FilePictures
from pipeline.training.recipes import DataRecipe
from pipeline.view import EVALUATION_VIEW, make_view

PLAIN = DataRecipe(folders=("none",), side_px=32, zoom=0, brightness=0, contrast=0)


@pytest.fixture
def folder(picture_folder: Path, tmp_path: Path) -> Path:
    """A copy of the pictures, to add to."""
    return Path(shutil.copytree(picture_folder, tmp_path / "pictures"))


def write_shard(folder: Path, shard: Path, seed: int) -> None:
    """The folder's pictures as a tar, in an order of its own."""
    files = sorted(folder.iterdir())
    random.Random(seed).shuffle(files)
    with tarfile.open(shard, "w") as archive:
        for file in files:
            archive.add(file, file.name)


def fingerprints(pictures: list[NDArray[np.uint8]]) -> set[bytes]:
    return {picture.tobytes() for picture in pictures}


# Reading


def test_unreadable_pictures_are_skipped_and_counted(folder: Path, pictures: Pictures) -> None:
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.png").write_text("not a picture", encoding="utf-8")
    (folder / "notes.txt").write_text("no picture by its name", encoding="utf-8")
    (folder / "folder.jpg").mkdir()
    found = load_pictures((str(folder),))
    assert found.unreadable == 2
    assert fingerprints(found.training) == fingerprints(pictures.training)
    assert fingerprints(found.held_out) == fingerprints(pictures.held_out)


def test_unreadable_pictures_in_a_shard_are_counted(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    write_shard(folder, tmp_path / "shards" / "a.tar", 1)
    with tarfile.open(tmp_path / "shards" / "a.tar", "a") as archive:
        member = tarfile.TarInfo("broken.webp")
        member.size = 5
        archive.addfile(member, io.BytesIO(b"RIFF?"))
    assert load_pictures((str(tmp_path / "shards"),)).unreadable == 1


def test_pictures_below_the_folder_and_of_several_folders_are_read(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    shutil.move(folder, tmp_path / "deep" / "er")
    once = load_pictures((str(tmp_path / "deep"),))
    twice = load_pictures((str(tmp_path / "deep"), str(tmp_path / "deep" / "er")))
    assert len(twice.training) == 2 * len(once.training)


@pytest.mark.parametrize("content", [None, "notes.txt", "one.png"])
def test_folder_without_enough_pictures_says_so(tmp_path: Path, picture_folder: Path, content: str | None) -> None:
    if content == "one.png":
        shutil.copy(next(iter(sorted(picture_folder.iterdir()))), tmp_path / content)
    elif content is not None:
        (tmp_path / content).write_text("no picture", encoding="utf-8")
    with pytest.raises(TrainingError, match="too few pictures"):
        load_pictures((str(tmp_path),))


def test_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="nowhere: no such folder"):
        load_pictures((str(tmp_path / "nowhere"),))


def test_damaged_shard_is_named(folder: Path) -> None:
    """A download that was cut off must not train on half of the pictures without a word."""
    write_shard(folder, folder / "shard.tar", 1)
    content = (folder / "shard.tar").read_bytes()
    (folder / "shard.tar").write_bytes(content[: len(content) // 2])
    with pytest.raises(TrainingError, match=r"shard\.tar"):
        load_pictures((str(folder),))


# Holding out


def test_hold_out_depends_on_names_alone(folder: Path, pictures: Pictures, tmp_path: Path) -> None:
    """Not on order, folder or container: else measured pictures would be trained on after the next move."""
    for seed in (1, 2):
        shards = tmp_path / f"shards{seed}"
        shards.mkdir()
        write_shard(folder, shards / "a.tar", seed)
        found = load_pictures((str(shards),))
        assert fingerprints(found.held_out) == fingerprints(pictures.held_out)
    assert not fingerprints(pictures.held_out) & fingerprints(pictures.training)


def test_hold_out_is_about_a_tenth(tmp_path: Path, picture_folder: Path) -> None:
    content = next(iter(sorted(picture_folder.iterdir()))).read_bytes()
    for number in range(300):
        (tmp_path / f"{number:06}.png").write_bytes(content)
    found = load_pictures((str(tmp_path),))
    assert 15 <= len(found.held_out) <= 50
    assert len(found.held_out) + len(found.training) == 300


# Crops


def test_sampler_repeats_with_its_seed(pictures: Pictures) -> None:
    recipe = DataRecipe(folders=("none",))
    first, second = (CropSampler(pictures.training, recipe, 5) for _ in range(2))
    batches = [first.batch(32, 4), first.batch(64, 3)]
    assert [batch.shape for batch in batches] == [(4, 32, 32, 3), (3, 64, 64, 3)]
    for batch in batches:
        np.testing.assert_array_equal(second.batch(batch.shape[1], len(batch)), batch)
    assert not np.array_equal(CropSampler(pictures.training, recipe, 6).batch(32, 4), batches[0])


def test_sampler_goes_on_from_a_saved_state(pictures: Pictures) -> None:
    recipe = DataRecipe(folders=("none",))
    sampler = CropSampler(pictures.training, recipe, 5)
    sampler.batch(32, 4)
    state = sampler.random.bit_generator.state
    following = sampler.batch(32, 4)
    other = CropSampler(pictures.training, recipe, 99)
    other.random.bit_generator.state = state
    np.testing.assert_array_equal(other.batch(32, 4), following)


def test_crops_are_rgb() -> None:
    blue = np.zeros((80, 60, 3), np.uint8)
    blue[:, :, 0] = 200  # BGR
    crops = CropSampler([blue], PLAIN, 1).batch(32, 3)
    assert (crops[..., 2] == 200).all()
    assert not crops[..., :2].any()


def test_crops_vary_in_place_side_and_light(photographs: dict[str, NDArray[np.uint8]]) -> None:
    picture = photographs["coffee.png"]
    crops = CropSampler([picture], DataRecipe(folders=("none",)), 2).batch(64, 24)
    assert len({crop.tobytes() for crop in crops}) == 24
    assert crops.mean(axis=(1, 2, 3)).std() > 3
    plain = CropSampler([np.ascontiguousarray(picture)], PLAIN, 2).batch(64, 24)
    mirrored = sum(np.abs(plain[0].astype(int) - crop[:, ::-1]).mean() < 12 for crop in plain[1:])
    straight = sum(np.abs(plain[0].astype(int) - crop).mean() < 12 for crop in plain[1:])
    assert mirrored + straight > 0


@pytest.mark.parametrize("shape", [(7, 300), (300, 7), (1, 1), (8, 8)])
def test_odd_pictures_still_give_crops(shape: tuple[int, int]) -> None:
    picture = np.full((*shape, 3), 90, np.uint8)
    crops = CropSampler([picture], PLAIN, 1).batch(32, 2)
    assert (crops == 90).all()


def test_views_of_use_are_those_of_evaluation(pictures: Pictures) -> None:
    views = use_views(pictures.held_out, 2)
    assert views.shape == (2, 224, 224, 3)
    np.testing.assert_array_equal(views[1], make_view(pictures.held_out[1], EVALUATION_VIEW))
    assert len(use_views(pictures.held_out)) == len(pictures.held_out)


def test_views_of_small_pictures_keep_their_pixels_and_mirror_the_rest(
    photographs: dict[str, NDArray[np.uint8]],
) -> None:
    small = [np.ascontiguousarray(photographs[name][:176, :190]) for name in ("coffee.png", "astronaut.png")]
    views = use_views(small, side_px=176)
    assert views.shape == (2, 224, 224, 3)
    np.testing.assert_array_equal(views[1, 24:200, 17:207], small[1])
    np.testing.assert_array_equal(views[1, 23], views[1, 25])
    np.testing.assert_array_equal(views[1, :, 207], views[1, :, 205])


def test_crops_are_at_the_scale_of_the_recipe(photographs: dict[str, NDArray[np.uint8]]) -> None:
    """Without a change of scale a crop is a piece of the picture, but for the change of its shape."""
    picture = np.ascontiguousarray(photographs["coffee.png"][:176, :176])
    recipe = DataRecipe(folders=("none",), side_px=176, zoom=0, brightness=0, contrast=0)
    crops = CropSampler([picture], recipe, 3).batch(160, 32)
    fine = [cv2.Laplacian(crop, cv2.CV_64F).var() for crop in crops]
    blurred = CropSampler([picture], recipe.model_copy(update={"side_px": 256}), 3).batch(160, 32)
    assert np.mean(fine) > 1.5 * np.mean([cv2.Laplacian(crop, cv2.CV_64F).var() for crop in blurred])


# Labels


def label_pictures(folder: Path, into: Path, classes: tuple[str, ...]) -> None:
    """The folder's pictures, in turn, in sub-folders."""
    for index, file in enumerate(sorted(folder.iterdir())):
        place = into / classes[index % len(classes)]
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, place / file.name)


def test_sub_folders_named_by_classes_label_their_pictures(picture_folder: Path, tmp_path: Path) -> None:
    label_pictures(picture_folder, tmp_path, ("7", "n01440764"))  # by index, and by WordNet id: class 0
    found = load_pictures((str(tmp_path),))
    assert found.training_labels is not None
    assert found.held_out_labels is not None
    assert len(found.training_labels) == len(found.training) == found.num_labelled
    assert sorted([*found.training_labels, *found.held_out_labels]) == [0] * 12 + [7] * 12


def test_folders_that_are_no_classes_give_no_labels(picture_folder: Path, tmp_path: Path) -> None:
    label_pictures(picture_folder, tmp_path, ("7", "holidays"))
    found = load_pictures((str(tmp_path),))
    assert (found.training_labels, found.held_out_labels, found.num_labelled) == (None, None, 0)


def test_csv_labels_some_pictures(picture_folder: Path, tmp_path: Path, pictures: Pictures) -> None:
    names = [path.name for path in sorted(picture_folder.iterdir())]
    (tmp_path / "labels.csv").write_text(f"file,label\n{names[0]},3\n{names[1]},\n{names[2]},n01440764\n")
    found = load_pictures((str(picture_folder),), str(tmp_path / "labels.csv"))
    assert found.training_labels is not None
    assert found.held_out_labels is not None
    together = [*found.training_labels, *found.held_out_labels]
    assert sorted(label for label in together if label >= 0) == [0, 3]
    assert len(together) == len(names)
    assert fingerprints(found.held_out) == fingerprints(pictures.held_out)


@pytest.mark.parametrize("content", [None, "file,label\na.png,no such class\n", "name,class\na.png,3\n", "\xff"])
def test_labels_that_are_none_are_one_line(picture_folder: Path, tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "labels.csv").write_text(content, encoding="latin-1")
    with pytest.raises(TrainingError, match=r"labels\.csv") as caught:
        load_pictures((str(picture_folder),), str(tmp_path / "labels.csv"))
    assert "\n" not in str(caught.value)


def test_sampler_says_which_pictures_it_drew() -> None:
    shades = [np.full((40, 40, 3), 10 * shade, np.uint8) for shade in range(5)]
    sampler = CropSampler(shades, PLAIN, 1)
    crops = sampler.batch(32, 6)
    assert [int(crop.mean()) for crop in crops] == [10 * index for index in sampler.drawn]


# Sets that no memory holds


def test_pictures_that_stay_in_their_files_give_the_same_crops(folder: Path, pictures: Pictures) -> None:
    found = load_pictures((str(folder),), in_memory=False)
    assert len(found.training) == len(pictures.training)
    assert fingerprints(found.held_out) == fingerprints(pictures.held_out)
    crops = CropSampler(found.training, PLAIN, 4).batch(32, 6)
    np.testing.assert_array_equal(crops, CropSampler(pictures.training, PLAIN, 4).batch(32, 6))


def test_a_file_that_is_no_picture_is_counted_and_another_drawn(folder: Path) -> None:
    found = load_pictures((str(folder),), in_memory=False)
    assert isinstance(found.training, FilePictures)
    for path in folder.iterdir():  # all but one: whoever draws must find it
        if found.training._places[3].path != path:
            path.write_bytes(b"")
    sampler = CropSampler(found.training, PLAIN, 4)
    crops = sampler.batch(32, 5)
    assert sampler.drawn.tolist() == [3] * 5
    assert crops.std() > 0
    assert len(found.training.unreadable) > 5
    found.training._places[3].path.unlink()
    with pytest.raises(TrainingError, match="cannot be decoded"):
        sampler.batch(32, 1)


def test_pictures_that_stay_in_a_shard_give_the_same_crops(folder: Path, pictures: Pictures, tmp_path: Path) -> None:
    """Read where they lie in the tar, in its order."""
    (tmp_path / "shards").mkdir()
    write_shard(folder, tmp_path / "shards" / "a.tar", 1)
    kept = load_pictures((str(tmp_path / "shards"),))
    found = load_pictures((str(tmp_path / "shards"),), in_memory=False)
    assert isinstance(found.training, FilePictures)
    assert all(np.array_equal(*pair) for pair in zip(found.training, kept.training, strict=True))
    assert fingerprints(list(found.training)) == fingerprints(list(pictures.training))


def test_a_compressed_shard_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    with tarfile.open(tmp_path / "shards" / "a.tar", "w:gz") as archive:
        archive.add(next(folder.iterdir()), "a.png")
    with pytest.raises(TrainingError, match=r"a\.tar: cannot be read"):
        load_pictures((str(tmp_path / "shards"),))


def test_crops_by_area_cover_the_shares_that_are_asked_for() -> None:
    recipe = DataRecipe(folders=("none",), area=(0.08, 1.0))
    generator = np.random.default_rng(1)
    drawn = draw_crops(generator, np.full(400, 300), np.full(400, 400), 224, recipe)
    shares = np.array([crop.width * crop.height / (300 * 400) for crop in drawn])
    assert 0.078 < shares.min() < 0.12
    assert 0.9 < shares.max() <= 1
    aspects = np.array([crop.width / crop.height for crop in drawn])
    assert aspects.min() > 0.74
    assert aspects.max() < 1.35
    assert all(crop.left + crop.width <= 400 and crop.top + crop.height <= 300 for crop in drawn)
    wanted = DataRecipe(folders=("none",), area=(0.9, 1.0))
    narrow, fitting = draw_crops(generator, np.array([20, 300]), np.array([400, 300]), 224, wanted)
    assert (narrow.width, narrow.height) == (20, 20)  # nothing of such a share fits
    assert fitting.width * fitting.height > 0.88 * 300**2
