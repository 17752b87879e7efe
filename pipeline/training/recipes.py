"""Recipes: what to train, on what, for how long. YAML in, one frozen value out."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipeline.errors import ConfigError

MAX_DEPTH = 64
"""Eight times what a camera box has time for."""
EVALUATION_SIDE_PX = 256
"""Short side of a picture in use, of whose centre the classifier sees 224 pixels."""
MAX_LEVELS = 16
"""The bitstream's header holds sixteenths of a level in a byte."""


class RecipePart(BaseModel):
    """Unknown keys are errors; values do not change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


Positive = Annotated[float, Field(gt=0)]
Weight = Annotated[float, Field(ge=0)]
Depth = Annotated[int, Field(ge=0, le=MAX_DEPTH)]
Quality = Annotated[int, Field(ge=1, le=100)]
PICTURE_STRIDE_PX = 64
"""Of the hyperprior's coarsest latent."""


class NetworkRecipe(RecipePart):
    """Sizes of the nested codec; the words of `pipeline.codec.nested.NestedShape`."""

    depths: tuple[Depth, ...] = (0, 1, 2, 4, 8)
    activation: Literal["relu", "leaky_relu"] = Field("relu", description="of the blocks, the decoder's too")
    channels: int = Field(64, ge=8)
    expansion: int = Field(3, ge=1)
    kernel: Literal[3, 5, 7] = 5
    latent_channels: int = Field(48, ge=1)
    block_side: Literal[1, 2, 4] = Field(1, description="DCT of blocks of so many positions a side; 1: none")
    decoder_channels: int = Field(96, ge=8)
    decoder_blocks: int = Field(3, ge=0)
    decoder_expansion: int = Field(2, ge=1)
    decoder_kernel: Literal[3, 5, 7] = 5
    decoder: Literal["light", "paper"] = Field("light", description="paper: its layers, of these channels, at stride4")

    @model_validator(mode="after")
    def _check_depths(self) -> NetworkRecipe:
        if self.depths[:1] != (0,) or list(self.depths) != sorted(set(self.depths)):
            raise ValueError("depths must rise and start with 0")
        return self


class RateRecipe(RecipePart):
    """Rate levels, lowest rate first, each with its weight lambda.

    With `adaptation` the weight of a level rises while its deepest exit takes more than `target_bpp` and falls while it
    takes less, so that one long run lands on the wanted points; short runs are better off with fixed weights.
    """

    target_bpp: tuple[Positive, ...] = Field((0.10, 0.17, 0.28, 0.45, 0.75), min_length=2, max_length=MAX_LEVELS)
    initial_lmbda: tuple[Positive, ...] = (6.0, 3.0, 1.5, 0.75, 0.35)
    adaptation: float = Field(0.0, ge=0, description="change of ln(lambda) a step for a rate off by a factor e")
    start_share: float = Field(1.0, ge=0, description="share of lambda during the warm-up")
    quantiser: Literal["noise", "rounding"] = Field(
        "noise", description="of the latent whose rate is counted; rounding counts real symbols, its gradient passed on"
    )
    ramp_share: float = Field(0.0, ge=0, le=1, description="of the run, in which every lambda rises from a hundredth")
    coarsest_step: Positive = Field(1.3, description="of level 0 at a start from principal components")
    level_ratio: float = Field(1.44, gt=1, description="by which each level's step is finer at that start")

    @model_validator(mode="after")
    def _check_lengths(self) -> RateRecipe:
        if len(self.target_bpp) != len(self.initial_lmbda):
            raise ValueError("target_bpp and initial_lmbda need the same number of levels")
        if list(self.target_bpp) != sorted(self.target_bpp):
            raise ValueError("target_bpp must rise")
        return self


class CoarsestLossRecipe(RecipePart):
    """Weights of the distortion terms at the lowest rate, once all are in; the words of `LossRecipe`."""

    cut: Positive
    stages: tuple[Positive, Positive, Positive]
    pooled: Positive
    kl: Positive


class LossRecipe(RecipePart):
    """Weights of the distortion terms. Features are standardised, so each term starts near 1."""

    cut: Weight = 30.0
    cut_later: Weight = Field(1.0, description="weight of the cut's features once the rest is in")
    stages: tuple[Weight, Weight, Weight] = (0.3, 0.5, 0.5)
    pooled: Weight = 0.5
    kl: Weight = 1.0
    coarsest: CoarsestLossRecipe | None = Field(
        None, description="at the lowest rate; between it and the highest, where the others hold, geometric"
    )
    warmup_share: float = Field(0.12, ge=0, le=1, description="of the run, with the cut's features alone")
    ramp_share: float = Field(0.03, gt=0, le=1, description="of the run, in which the rest comes in")


class CropRecipe(RecipePart):
    """Training crops of one part of the run."""

    until: float = Field(gt=0, le=1, description="share of the run at which this part ends")
    size_px: int = Field(ge=32, multiple_of=32)
    batch: int = Field(32, ge=2)


class DataRecipe(RecipePart):
    """Pictures and how they are varied."""

    folders: tuple[str, ...] = Field(min_length=1)
    labels: str | None = Field(None, description="CSV of file and label; else sub-folders named by classes label")
    in_memory: bool = Field(True, description="false: decoded anew for every crop, for sets that no memory holds")
    side_px: int = Field(
        EVALUATION_SIDE_PX, ge=32, description="short side at which pictures are cropped and looked at; 256 as in use"
    )
    zoom: float = Field(0.2, ge=0, le=1, description="largest change of a crop's scale, as a natural logarithm")
    area: tuple[Positive, Positive] | None = Field(
        None, description="least and largest share of a picture that a crop covers; instead of side_px and zoom"
    )
    brightness: float = Field(0.2, ge=0, lt=1)
    contrast: float = Field(0.2, ge=0, lt=1)

    @model_validator(mode="after")
    def _check_area(self) -> DataRecipe:
        if self.area is not None and not self.area[0] <= self.area[1] <= 1:
            raise ValueError("area must rise and end at 1 at most")
        return self


class OptimiserRecipe(RecipePart):
    """AdamW, with Muon for the blocks' matrices; a cosine that ends at `final_share` of the learning rates."""

    method: Literal["adamw", "sgd"] = Field("adamw", description="of the paper's family; the prior always has AdamW")
    momentum: float = Field(0.9, ge=0, lt=1, description="of sgd")
    learning_rate: float = Field(1e-3, gt=0)
    final_share: float = Field(0.01, ge=0, le=1)
    warmup_steps: int = Field(200, ge=0)
    matrices: Literal["adamw", "muon"] = Field(
        "muon", description="for blocks' 1 x 1 convolutions; family paper: for all but depthwise ones, with adamw"
    )
    muon_learning_rate: float = Field(0.01, gt=0)
    task_share: float = Field(0.25, gt=0, le=1, description="of the learning rates, once the classes are in the loss")
    operating_lr_factor: float = Field(5.0, gt=0, description="learning rate of gains and prior over the networks'")
    weight_decay: float = Field(0.01, ge=0)
    clip_norm: float | None = Field(1.0, gt=0, description="largest norm of a gradient; null leaves it as it is")
    ema_decay: float = Field(0.999, ge=0, lt=1)


class PaperRecipe(RecipePart):
    """A network of the paper's family, for one rate and one complexity; the words of `pipeline.codec.paper`."""

    network: Literal["paper", "entropic_student", "ablation_a", "ablation_b", "ablation_c"] = "paper"
    depth: Depth = Field(4, description="N; no network but `paper` reads it")
    lmbda: Positive = Field(1.28, description="weight of bpp in the loss")
    classifier_training: Literal["fixed", "joint"] = "fixed"
    schedule: Literal["single_stage", "two_stage"] = Field("single_stage", description="Eq. 2, or Eq. 1")
    second_stage: float = Field(0.5, gt=0, lt=1, description="share of the run at which encoder and prior freeze")
    rate_ramp_share: float = Field(
        0.0, ge=0, le=1, description="of the run or its first stage, in which lmbda rises from a hundredth"
    )
    start: Literal["scaled", "paper"] = Field("scaled", description="numbers of size one, or as published")
    classifier_lr_factor: float = Field(0.1, gt=0, description="learning rate of a joint classifier over the codec's")


class PictureRecipe(RecipePart):
    """A picture codec of CompressAI's for one rate, a baseline; the words of `pipeline.codec.picture_network`."""

    network: Literal["factorized", "hyperprior"] = "factorized"
    channels: int = Field(128, ge=8, description="N; 128 and M = 192 are the published sizes of the lower rates")
    latent_channels: int = Field(192, ge=8, description="M")
    lmbda: Positive = Field(0.013, description="weight of the squared error of pixels 0 to 255, beside bpp")


class TunedRecipe(RecipePart):
    """The classifier tuned on pictures that WebP has been through, a baseline."""

    qualities: tuple[Quality, Quality] = Field((1, 95), description="lowest and highest that are drawn")

    @model_validator(mode="after")
    def _check_qualities(self) -> TunedRecipe:
        if self.qualities[0] > self.qualities[1]:
            raise ValueError("qualities must rise")
        return self


class Recipe(RecipePart):
    """One training run."""

    name: str = Field(pattern=r"^[A-Za-z0-9._-]{1,64}$", description="of the run and its folder")
    family: Literal["nested", "paper", "picture", "tuned"] = "nested"
    classifier: Literal["efficientnet_lite0", "resnet50"] = "efficientnet_lite0"
    classifier_weights: str | None = Field(
        None, description="state dict; else the package's, or for resnet50 what torchvision downloads"
    )
    cut: Literal["input", "stride4", "stride8"] = "input"
    start: Literal["principal", "random"] = "principal"
    seed: int = 1
    minutes: float = Field(60, gt=0, description="length of the whole run; the schedule is fitted to it")
    pictures: int | None = Field(None, gt=0, description="length in pictures seen, instead of minutes")
    deepest_share: float = Field(0.35, ge=0, le=1, description="of the frames that take the deepest exit")
    network: NetworkRecipe = NetworkRecipe()
    paper: PaperRecipe = PaperRecipe()
    picture: PictureRecipe = PictureRecipe()
    tuned: TunedRecipe = TunedRecipe()
    rates: RateRecipe = RateRecipe()
    loss: LossRecipe = LossRecipe()
    crops: tuple[CropRecipe, ...] = Field((CropRecipe(until=1.0, size_px=160, batch=32),), min_length=1)
    data: DataRecipe
    optimiser: OptimiserRecipe = OptimiserRecipe()
    checkpoint_minutes: float = Field(2, gt=0)
    validate_minutes: float = Field(10, gt=0)

    @model_validator(mode="after")
    def _check_crops(self) -> Recipe:
        ends = [crop.until for crop in self.crops]
        if ends != sorted(ends) or ends[-1] != 1.0:
            raise ValueError("crops must end in rising shares, the last one at 1.0")
        return self

    @model_validator(mode="after")
    def _check_family(self) -> Recipe:
        if self.family == "paper" and self.cut != "stride4":
            raise ValueError("family paper needs cut: stride4, where its decoders end")
        if self.network.decoder == "paper" and self.cut != "stride4":
            raise ValueError("network.decoder: paper needs cut: stride4, where it ends")
        if self.family == "picture" and any(crop.size_px % PICTURE_STRIDE_PX for crop in self.crops):
            raise ValueError(f"family picture needs crops of a multiple of {PICTURE_STRIDE_PX} pixels")
        if self.classifier == "resnet50" and (self.cut != "stride4" or self.family not in ("nested", "paper")):
            raise ValueError("classifier resnet50 needs family: nested or paper, and its only cut: stride4")
        return self


def load_recipe(path: Path) -> Recipe:
    """Read and check a recipe.

    Raises:
        ConfigError: unreadable file, unknown key (with the nearest right one) or bad value.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(path, "", f"cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(path, "", f"is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ConfigError(path, "", "must hold keys and values")
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        errors = error.errors()
        # A misspelt key is often missed under its right name too; the misspelling says more.
        first = next((each for each in errors if each["type"] == "extra_forbidden"), errors[0])
        key = ".".join(str(part) for part in first["loc"])
        problem = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            problem = _unknown_key(first["loc"])
        raise ConfigError(path, key, problem) from error


def complete_fields(fields: Any) -> Any:
    """A checkpoint's recipe with the defaults of keys that came later; anything else as it is."""
    try:
        return Recipe.model_validate(fields).model_dump(mode="json")
    except ValidationError:
        return fields


def _unknown_key(location: tuple[Any, ...]) -> str:
    """Name the nearest right key at the place of an unknown one."""
    model: type[BaseModel] | None = Recipe
    for part in location[:-1]:
        field = model.model_fields.get(str(part)) if model is not None else None
        kinds = (field.annotation, *get_args(field.annotation)) if field is not None else ()
        annotation = next((kind for kind in kinds if isinstance(kind, type)), None)
        model = annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None
    names = list(model.model_fields) if model is not None else list(CropRecipe.model_fields)
    nearest = difflib.get_close_matches(str(location[-1]), names, n=1, cutoff=0.4)
    return f"unknown key; did you mean {nearest[0]}?" if nearest else f"unknown key; known are {', '.join(names)}"
