"""Plans of a sweep: many networks under one budget. YAML in, one recipe for each network out.

name: comparison
budget:            # of every network alike: the same keys as a recipe's
  pictures: 20000
  data: {folders: [pool]}
  crops: [{until: 1.0, size_px: 160, batch: 32}]
networks:
  - name: fixed-n4
    system: paper N=4, fixed
    lmbda: [0.32, 1.28, 5.12]      # a network for each; left out: one network, at the rates of its recipe
    recipe: {family: paper, cut: stride4, paper: {depth: 4}}
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError, model_validator

from pipeline.errors import ConfigError
from pipeline.training.recipes import Positive, Recipe, RecipePart

RATED_FAMILIES = ("paper", "picture")
"""Whose recipes are for one rate, with a lambda of their own."""
BUDGET_KEYS = ("pictures", "data", "crops", "classifier", "classifier_weights", "seed")
"""What decides how much a network learns from; the first three must be there, and no network has its own."""
NUM_NEEDED_KEYS = 3


class SweepNetwork(RecipePart):
    """One entry: a network, or one for each lambda."""

    name: str = Field(pattern=r"^[a-z0-9-]{1,40}$", description="of its folders, with the lambda behind it")
    system: str = Field(min_length=1, max_length=60, description="as it stands in tables and plots")
    lmbda: tuple[Positive, ...] = Field((), description="of families paper (of the rate) and picture (of the error)")
    depths: tuple[int, ...] = Field((), description="that are measured; all unless given")
    note: str = Field("", description="that stands beside its row")
    recipe: dict[str, Any] = Field(description="keys of a recipe, without the budget's")

    @model_validator(mode="after")
    def _check_recipe(self) -> SweepNetwork:
        of_budget = [key for key in BUDGET_KEYS if key in self.recipe]
        if of_budget:
            raise ValueError(f"{self.name}: {of_budget[0]} is of the budget, which is one for all networks")
        if self.lmbda and self.recipe.get("family") not in RATED_FAMILIES:
            families = " and ".join(RATED_FAMILIES)
            raise ValueError(f"{self.name}: lmbda is of families {families}; others have rates in their recipe")
        return self


class SweepPlan(RecipePart):
    """All networks and their budget."""

    name: str = Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")
    budget: dict[str, Any]
    networks: tuple[SweepNetwork, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _check_budget(self) -> SweepPlan:
        for key in self.budget:
            if key not in BUDGET_KEYS:
                nearest = difflib.get_close_matches(key, BUDGET_KEYS, n=1)
                hint = f"did you mean {nearest[0]}?" if nearest else f"known are {', '.join(BUDGET_KEYS)}"
                raise ValueError(f"budget.{key}: unknown key; {hint}")
        missing = [key for key in BUDGET_KEYS[:NUM_NEEDED_KEYS] if self.budget.get(key) is None]
        if missing:
            raise ValueError(f"budget.{missing[0]}: is missing")
        names = [network.name for network in self.networks]
        if len(set(names)) < len(names):
            raise ValueError("networks: two have the same name")
        return self


@dataclass(frozen=True, slots=True)
class PlannedNetwork:
    """One network of a sweep.

    Attributes:
        lmbda: weight of its rate, of picture codecs of their error; None where its recipe has several rates.
    """

    entry: SweepNetwork
    lmbda: float | None
    recipe: Recipe

    @property
    def name(self) -> str:
        """Of its folder."""
        return self.recipe.name


def load_plan(path: Path) -> tuple[SweepPlan, list[PlannedNetwork]]:
    """Read and check a plan and all its recipes.

    Raises:
        ConfigError: unreadable file, unknown key or bad value.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        plan = SweepPlan.model_validate(content)
        return plan, [network for entry in plan.networks for network in _networks(plan, entry)]
    except OSError as error:
        raise ConfigError(path, "", f"cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(path, "", f"is not YAML: {' '.join(str(error).split())}") from error
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise ConfigError(path, key, first["msg"].removeprefix("Value error, ")) from error


def _networks(plan: SweepPlan, entry: SweepNetwork) -> list[PlannedNetwork]:
    networks = []
    for lmbda in entry.lmbda or (None,):
        fields = {**plan.budget, **entry.recipe, "name": entry.name if lmbda is None else f"{entry.name}-{lmbda:g}"}
        if lmbda is not None:
            family = entry.recipe["family"]
            fields[family] = {**fields.get(family, {}), "lmbda": lmbda}
        networks.append(PlannedNetwork(entry, lmbda, Recipe.model_validate(fields)))
    return networks
