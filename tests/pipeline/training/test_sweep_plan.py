"""Plans: one budget for all, a recipe for each lambda, mistakes in one line; the plans that ship load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.errors import ConfigError
from pipeline.training.recipes import load_recipe
from pipeline.training.sweep_plan import load_plan

PLANS = Path(__file__).parents[3] / "configs/train/sweeps"


def plan_fields() -> dict[str, Any]:
    return {
        "name": "tiny",
        "budget": {
            "pictures": 40,
            "data": {"folders": ["pool"]},
            "crops": [{"until": 1.0, "size_px": 64, "batch": 4}],
        },
        "networks": [
            {
                "name": "fixed-n0",
                "system": "paper N=0, fixed",
                "lmbda": [0.5, 2],
                "recipe": {"family": "paper", "cut": "stride4", "paper": {"depth": 0}},
            },
            {"name": "ours", "system": "ours", "recipe": {"cut": "stride4"}},
        ],
    }


def load(tmp_path: Path, fields: dict[str, Any]) -> Any:
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump(fields), encoding="utf-8")
    return load_plan(path)


def test_every_lambda_is_a_network_with_the_budget_of_all(tmp_path: Path) -> None:
    _, networks = load(tmp_path, plan_fields())
    assert [network.name for network in networks] == ["fixed-n0-0.5", "fixed-n0-2", "ours"]
    assert [network.recipe.paper.lmbda for network in networks[:2]] == [0.5, 2.0]
    assert [network.recipe.paper.depth for network in networks[:2]] == [0, 0]
    assert {network.recipe.pictures for network in networks} == {40}
    assert len({network.recipe.data for network in networks}) == 1


@pytest.mark.parametrize(
    ("place", "change", "text"),
    [
        ("budget", {"picture": 3}, "budget.picture: unknown key; did you mean pictures?"),
        ("budget", {"pictures": None}, "budget.pictures: is missing"),
        ("networks.0.recipe", {"pictures": 10}, "pictures is of the budget"),
        ("networks.0.recipe", {"cut": "stride8"}, "needs cut: stride4"),
        ("networks.1.recipe", {"cut": "stride8", "network": {"decoder": "paper"}}, "decoder: paper needs cut: stride4"),
        ("networks.0", {"lmbda": [-1]}, "greater than 0"),
        ("networks.1", {"lmbda": [1]}, "lmbda is of families paper and picture"),
        ("networks.1", {"name": "fixed-n0"}, "two have the same name"),
        ("networks.1", {"colour": "red"}, "networks.1.colour"),
    ],
)
def test_a_mistake_is_named_with_its_place(tmp_path: Path, place: str, change: dict[str, Any], text: str) -> None:
    fields = plan_fields()
    target: Any = fields
    for part in place.split("."):
        target = target[int(part) if part.isdecimal() else part]
    target.update(change)
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, fields)
    assert text in str(caught.value)
    assert "plan.yaml" in str(caught.value)


@pytest.mark.parametrize("content", ["[1]", "{", "name: x"])
def test_a_file_that_is_no_plan_is_told(tmp_path: Path, content: str) -> None:
    (tmp_path / "plan.yaml").write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError):
        load_plan(tmp_path / "plan.yaml")


@pytest.mark.parametrize("path", sorted(PLANS.glob("*.yaml")), ids=lambda path: path.name)
def test_plans_that_ship_load(path: Path) -> None:
    plan, networks = load_plan(path)
    assert plan.name == path.stem
    assert plan.budget["pictures"] == networks[0].recipe.pictures
    assert all(len(entry.lmbda) >= 3 for entry in plan.networks if entry.recipe.get("family") in ("paper", "picture"))


def test_the_papers_own_plan_has_its_47_networks_as_published() -> None:
    seven = (0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12)
    published = {
        "joint-n0": (0.06, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 3.84, 5.12),
        "joint-n4": (0.08, 0.16, 0.32, 0.64, 1.28, 1.92, 3.84, 5.12),
        "joint-n8": seven,
        "fixed-n0": (*seven[:-1], 3.84, 5.12, 7.68),
        "fixed-n4": seven,
        "fixed-n8": seven,
    }
    plan, networks = load_plan(PLANS / "imagenet-paper.yaml")
    assert {entry.name: entry.lmbda for entry in plan.networks if entry.name in published} == published
    own = [network for network in networks if network.entry.name in published]
    assert len(own) == 47
    for network in own:
        recipe, (kind, depth) = network.recipe, network.entry.name.split("-n")
        assert (recipe.paper.classifier_training, recipe.paper.depth) == (kind, int(depth))
        assert (recipe.paper.schedule, recipe.paper.start, recipe.paper.rate_ramp_share) == ("single_stage", "paper", 0)
        chosen = recipe.optimiser
        assert (chosen.method, chosen.learning_rate, chosen.momentum) == ("sgd", 0.01, 0.9)
        assert (chosen.weight_decay, chosen.warmup_steps, chosen.clip_norm) == (1e-4, 0, None)
        assert chosen.learning_rate * chosen.final_share == pytest.approx(1e-4)
    singles = {path.stem: load_recipe(path) for path in PLANS.parent.glob("imagenet-*.yaml")}
    assert set(singles) == {"imagenet-fixed", "imagenet-joint", "imagenet-entropic-student"}
    for kind in ("fixed", "joint"):
        single, planned = (
            singles[f"imagenet-{kind}"],
            next(each.recipe for each in own if each.name == f"{kind}-n4-1.28"),
        )
        assert single.pictures == planned.pictures == 20 * 1_281_167
        assert (single.optimiser, single.data) == (planned.optimiser, planned.data)
        assert single.paper.classifier_training == kind
