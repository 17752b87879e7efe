"""Recipes: a wrong one is told by file, key and what would be right, before hours of work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.errors import ConfigError
from pipeline.training.recipes import Recipe, load_recipe

SAMPLES = sorted((Path(__file__).parents[3] / "configs" / "train").glob("*.yaml"))


def load(tmp_path: Path, fields: object) -> Recipe:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(fields), encoding="utf-8")
    return load_recipe(path)


def refuse(tmp_path: Path, fields: object) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, fields)
    assert caught.value.source.endswith("recipe.yaml")
    assert "\n" not in str(caught.value)
    return caught.value


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.name)
def test_sample_recipe_loads(path: Path) -> None:
    recipe = load_recipe(path)
    assert {0, 2, 4, 8} <= set(recipe.network.depths)
    assert len(recipe.rates.target_bpp) >= 4


def test_recipe_comes_back_from_a_checkpoints_form(recipe: Recipe) -> None:
    assert Recipe.model_validate(recipe.model_dump(mode="json")) == recipe


@pytest.mark.parametrize(
    ("change", "key", "nearest"),
    [
        ({"minuts": 3}, "minuts", "minutes"),
        ({"optimizer": {}}, "optimizer", "optimiser"),
        ({"data": {"folders": ["a"], "side_pix": 176}}, "data.side_pix", "side_px"),
        ({"data": {"folder": ["a"]}}, "data.folder", "folders"),
        ({"network": {"chanels": 8}}, "network.chanels", "channels"),
        ({"paper": {"lambda": 1}}, "paper.lambda", "lmbda"),
        ({"loss": {"coarsest": {"pool": 1}}}, "loss.coarsest.pool", "pooled"),
        ({"crops": [{"untill": 1.0, "size_px": 32}]}, "crops.0.untill", "until"),
    ],
)
def test_unknown_key_names_the_nearest_right_one(
    tmp_path: Path, recipe_fields: dict[str, Any], change: dict[str, Any], key: str, nearest: str
) -> None:
    error = refuse(tmp_path, {**recipe_fields, **change})
    assert error.key == key
    assert error.problem == f"unknown key; did you mean {nearest}?"


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"minutes": 0}, "minutes"),
        ({"minutes": "soon"}, "minutes"),
        ({"minutes": float("inf")}, "minutes"),
        ({"minutes": float("nan")}, "minutes"),
        ({"name": "a/b"}, "name"),
        ({"name": ""}, "name"),
        ({"data": {"folders": []}}, "data.folders"),
        ({"data": {"folders": "pool"}}, "data.folders"),
        ({"crops": []}, "crops"),
        ({"crops": [{"until": 1.0, "size_px": 100}]}, "crops.0.size_px"),
        ({"network": {"depths": [1, 2]}}, "network"),
        ({"network": {"depths": [0, 2, 1]}}, "network"),
        ({"network": {"depths": [0, 300]}}, "network.depths.1"),
        ({"network": {"kernel": 4}}, "network.kernel"),
        ({"network": {"decoder": "heavy"}}, "network.decoder"),
        ({"rates": {"target_bpp": [0.1], "initial_lmbda": [1]}}, "rates.target_bpp"),
        ({"rates": {"target_bpp": [0.0, 0.1], "initial_lmbda": [1, 1]}}, "rates.target_bpp.0"),
        ({"rates": {"target_bpp": [0.1, 0.2], "initial_lmbda": [1, 0]}}, "rates.initial_lmbda.1"),
        ({"rates": {"target_bpp": [0.1, 0.2], "initial_lmbda": [1]}}, "rates"),
        ({"rates": {"target_bpp": [0.2, 0.1], "initial_lmbda": [1, 1]}}, "rates"),
        ({"loss": {"kl": -1}}, "loss.kl"),
        ({"optimiser": {"learning_rate": 0}}, "optimiser.learning_rate"),
        ({"cut": "stride16"}, "cut"),
        ({"paper": {"network": "papers"}}, "paper.network"),
        ({"paper": {"lmbda": 0}}, "paper.lmbda"),
        ({"family": "paper", "cut": "stride8"}, ""),
        ({"classifier": "resnet50"}, ""),
    ],
    ids=str,
)
def test_bad_value_is_told_by_its_key(
    tmp_path: Path, recipe_fields: dict[str, Any], change: dict[str, Any], key: str
) -> None:
    assert refuse(tmp_path, {**recipe_fields, **change}).key == key


def test_crops_must_reach_the_end_of_the_run(tmp_path: Path, recipe_fields: dict[str, Any]) -> None:
    for until in ([0.5], [0.7, 0.5], [1.0, 0.5]):
        recipe_fields["crops"] = [{"until": end, "size_px": 32} for end in until]
        assert "crops must end" in refuse(tmp_path, recipe_fields).problem


def test_more_levels_than_a_bitstream_can_name_are_refused(tmp_path: Path, recipe_fields: dict[str, Any]) -> None:
    """Sixteenths of a level travel in a byte: level 16 would be 256."""
    targets = [0.1 * (index + 1) for index in range(17)]
    recipe_fields["rates"] = {"target_bpp": targets, "initial_lmbda": [1.0] * 17}
    assert refuse(tmp_path, recipe_fields).key == "rates.target_bpp"
    recipe_fields["rates"] = {"target_bpp": targets[:16], "initial_lmbda": [1.0] * 16}
    assert len(load(tmp_path, recipe_fields).rates.target_bpp) == 16


def test_missing_key_is_named(tmp_path: Path, recipe_fields: dict[str, Any]) -> None:
    del recipe_fields["data"]
    assert refuse(tmp_path, recipe_fields).key == "data"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"name: [", "is not YAML"),
        (b"\xff\xfe\x00", "is not YAML"),
        (b"!!python/object/apply:os.getcwd []", "is not YAML"),
        (b"- a\n- b", "must hold keys and values"),
        (b"", "must hold keys and values"),
    ],
)
def test_file_that_is_no_recipe_is_one_line(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=problem) as caught:
        load_recipe(path)
    assert "\n" not in str(caught.value)


def test_missing_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml: cannot be read: No such file"):
        load_recipe(tmp_path / "none.yaml")
