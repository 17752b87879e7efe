"""The paper's family in training: one network for one rate and one complexity.

    single stage (Eq. 2)   0.5 CE + 0.5 KL + sum of MSE at four points + lambda * bpp
    two stages (Eq. 1)     sums of squared errors at the four points over pixels + lambda * bpp; then, with encoder and
                           prior frozen and symbols really rounded, 0.5 CE + 0.5 KL; a joint classifier learns there

The four points are the cut and the ends of the three stages behind it. Without labels CE is left out. The classifier
stays fixed, or its part behind the cut is trained too (joint); the teacher is always the untouched one.
Source: Duan and Zhu 2022; the two stages are the Entropic Student's (Matsubara et al. 2022).
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.codec.classifier import CLASSIFIERS, Classifier, build_tail
from pipeline.codec.lite0 import Lite0
from pipeline.codec.paper import PaperCodec, PaperShape, build_paper_codec
from pipeline.codec.resnet import ResNet50
from pipeline.training.datasets import Pictures, use_views
from pipeline.training.muon import Muon
from pipeline.training.recipes import Recipe
from pipeline.training.schedule import learning_rate_share, rate_ramp
from pipeline.training.task import Parts, divergence, set_peaks
from pipeline.training.teacher import Teacher, normalise

NUM_LATER_POINTS = 3
"""Ends of classifier stages whose features are compared, beside the cut's."""
CLASS_WEIGHT = 0.5
"""Of CE and of KL."""
VALIDATION_PICTURES = 192
VALIDATION_BATCH = 32


@dataclass(frozen=True, slots=True)
class PaperTargets:
    """What a batch is compared with.

    Attributes:
        points: the teacher's features at the cut and at the three later points, cut first.
        logits: the teacher's, (B, classes).
        labels: int64 (B,), -1 where none is known.
    """

    points: list[Tensor]
    logits: Tensor
    labels: Tensor


def paper_shape_of(recipe: Recipe) -> PaperShape:
    """The recipe's network at its classifier's cut."""
    cut = CLASSIFIERS[recipe.classifier].cuts[recipe.cut]
    return PaperShape(recipe.paper.network, recipe.paper.depth, cut.channels)


def build_paper(recipe: Recipe) -> PaperCodec:
    """An untrained codec of the recipe's network."""
    return build_paper_codec(paper_shape_of(recipe))


class PaperTask:
    """Networks, loss and stages of one run of the paper's family.

    Args:
        x: normalised training crops, on which latent and features are scaled before the first step.
    """

    def __init__(self, recipe: Recipe, classifier: Classifier, teacher: Teacher, x: Tensor, device: str) -> None:
        self.recipe, self.teacher, self.device = recipe, teacher, torch.device(device)
        self.stage = 1
        codec = build_paper(recipe)
        if recipe.paper.start == "scaled":
            codec.feature_mean.copy_(teacher.feature_mean)
            codec.feature_std.copy_(teacher.feature_std)
            codec.fit_initial_scale(x.cpu())
        self.network = nn.ModuleDict({"codec": codec.to(self.device).to(memory_format=torch.channels_last)})  # type: ignore[call-overload]
        self._fixed: Classifier | None = None
        if recipe.paper.classifier_training == "joint":
            self.network["classifier"] = _trainable(classifier, recipe.cut)
        else:  # in bf16 throughout it takes two thirds of the time under autocast
            self._fixed = deepcopy(classifier).to(torch.bfloat16)
        self.average = deepcopy(self.network).requires_grad_(False)
        self.optimisers = _build_optimisers(self.network, recipe)
        if recipe.paper.schedule == "two_stage" and "classifier" in self.network:
            self.network["classifier"].requires_grad_(False)  # the first stage's targets are its own features

    def advance(self, progress: float) -> bool:
        """At the second stage's share of the run, go on from the averaged weights with encoder and prior frozen."""
        paper = self.recipe.paper
        if paper.schedule == "single_stage" or self.stage == 2 or progress < paper.second_stage:
            return False
        self.network.load_state_dict(self.average.state_dict())
        _codec(self.network).prior.fit_quantiles()  # symbols are counted from the medians
        self._freeze()
        return True

    def _freeze(self) -> None:
        self.stage = 2
        codec = _codec(self.network)
        codec.encoder.requires_grad_(False)
        codec.prior.requires_grad_(False)
        if "classifier" in self.network:
            _free_tail(self.network["classifier"], self.recipe.cut)

    def learning_rate_share(self, step: int, progress: float) -> float:
        """Warm-up, and a cosine for each stage."""
        paper = self.recipe.paper
        if paper.schedule == "two_stage":
            split = paper.second_stage
            progress = (progress - split) / (1 - split) if self.stage == 2 else progress / split
        return learning_rate_share(step, min(1.0, progress), self.recipe.optimiser)

    def targets(self, x: Tensor, labels: Tensor, progress: float) -> PaperTargets:
        """The teacher's features and classes."""
        features, stages = self.teacher.engine(x)
        return PaperTargets([features, *stages[:NUM_LATER_POINTS]], stages[-1], labels)

    def loss(self, x: Tensor, targets: PaperTargets, progress: float) -> tuple[Tensor, Parts]:
        """Eq. 2, or the present stage of Eq. 1."""
        is_single = self.recipe.paper.schedule == "single_stage"
        pixels = x.shape[-2] * x.shape[-1]
        codec = _codec(self.network)
        with torch.autocast(self.device.type, torch.bfloat16):
            features, bits = codec(x, "noise" if self.stage == 1 else "straight_through")
        bpp = bits.mean() / pixels
        stages = self._stages(self.network, features.float())
        parts = {"bpp": float(bpp.detach())}
        loss = torch.zeros((), device=x.device)
        if self.stage == 1:
            error = _feature_error(
                [features, *stages[:NUM_LATER_POINTS]], targets.points, None if is_single else pixels
            )
            loss = loss + error + self._lmbda(progress) * bpp
            parts["features"] = float(error.detach())
        if is_single or self.stage == 2:
            kl = divergence(targets.logits, stages[-1].float()).mean()
            loss = loss + CLASS_WEIGHT * kl
            parts["kl"] = float(kl.detach())
            if bool((targets.labels >= 0).any()):
                ce = F.cross_entropy(stages[-1].float(), targets.labels, ignore_index=-1)
                loss = loss + CLASS_WEIGHT * ce
                parts["ce"] = float(ce.detach())
        return loss, parts

    def _lmbda(self, progress: float) -> float:
        paper = self.recipe.paper
        share = paper.second_stage if paper.schedule == "two_stage" else 1.0
        return paper.lmbda * rate_ramp(progress, paper.rate_ramp_share * share)

    def _stages(self, network: nn.ModuleDict, features: Tensor) -> list[Tensor]:
        """Features behind the cut, logits last, by the classifier that belongs to a network."""
        if self._fixed is not None:
            return self._fixed.stages(features.to(torch.bfloat16), self.recipe.cut)
        classifier = network["classifier"]
        assert isinstance(classifier, Lite0 | ResNet50)
        with torch.autocast(self.device.type, torch.bfloat16):
            return classifier.stages(features, self.recipe.cut)

    def facts(self) -> dict[str, Any]:
        """The stage, where there are two."""
        return {"stage": self.stage} if self.recipe.paper.schedule == "two_stage" else {}

    def take_over(self) -> None:
        """Nothing: features are compared as they are."""

    def finish(self, pictures: Pictures) -> dict[str, Any]:
        """Fit the averaged prior's quantiles and see that they hold the held-out pictures' symbols.

        Raises:
            TrainingError: they do not.
        """
        codec = _codec(self.average)
        codec.prior.fit_quantiles()
        with torch.no_grad():
            latents = [codec.encoder(x).float() for x, _ in self._held_out(pictures)]
        return {"coverage": codec.prior.check_coverage(torch.cat(latents)).share}

    @torch.no_grad()
    def validate(self, pictures: Pictures) -> list[Parts]:
        """One point: agreement, KL, estimated bpp of real symbols and, where labels are known, top-1."""
        self.average.eval()
        codec = deepcopy(_codec(self.average))
        codec.prior.fit_quantiles()
        rows, correct = [], []
        for x, labels in self._held_out(pictures):
            reference = self.teacher.engine(x)[1][-1]
            features, bits = codec(x, "straight_through")
            logits = self._stages(self.average, features)[-1].float()
            agrees = (logits.argmax(1) == reference.argmax(1)).float()
            bpp = bits / (x.shape[-2] * x.shape[-1])
            rows.append(torch.stack([agrees, divergence(reference, logits), bpp], dim=1))
            correct.append((logits.argmax(1) == labels)[labels >= 0].float())
        agreement, kl, bpp_mean = torch.cat(rows).mean(0).tolist()
        point = {"depth": self.recipe.paper.depth, "agreement": agreement, "kl": kl, "bpp": bpp_mean}
        known = torch.cat(correct)
        return [point | ({"top1": float(known.mean())} if len(known) else {})]

    def _held_out(self, pictures: Pictures) -> list[tuple[Tensor, Tensor]]:
        """Batches of normalised views of use and their labels."""
        views = use_views(pictures.held_out, VALIDATION_PICTURES, self.recipe.data.side_px)[:, :, :, ::-1].copy()
        known = pictures.held_out_labels
        labels = torch.full((len(views),), -1) if known is None else torch.from_numpy(known[: len(views)])
        starts = range(0, len(views), VALIDATION_BATCH)
        return [
            (
                normalise(views[start : start + VALIDATION_BATCH], self.device, self.recipe.classifier),
                labels[start : start + VALIDATION_BATCH].to(self.device),
            )
            for start in starts
        ]

    def state(self) -> dict[str, Any]:
        """The stage."""
        return {"stage": self.stage}

    def restore(self, state: dict[str, Any]) -> None:
        """Stage of a saved state."""
        if state["stage"] == 2:
            self._freeze()


def _codec(network: nn.ModuleDict) -> PaperCodec:
    codec = network["codec"]
    assert isinstance(codec, PaperCodec)
    return codec


def _feature_error(points: list[Tensor], targets: list[Tensor], pixels: int | None) -> Tensor:
    """Sum over the points of the mean squared error, or with `pixels` of a picture's whole squared error over them."""
    error = torch.zeros((), device=targets[0].device)
    for point, target in zip(points, targets, strict=True):
        square = (point.float() - target).square()
        error = error + (square.mean() if pixels is None else square.flatten(1).sum(dim=1).mean() / pixels)
    return error


def _trainable(classifier: Classifier, cut: str) -> Classifier:
    """A copy whose part behind the cut learns; the part before it is not run."""
    copy = deepcopy(classifier).train().requires_grad_(False)
    _free_tail(copy, cut)
    return copy


def _free_tail(classifier: nn.Module, cut: str) -> None:
    assert isinstance(classifier, Lite0 | ResNet50)
    build_tail(classifier, cut).requires_grad_(True)


def _build_optimisers(network: nn.ModuleDict, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """AdamW with Muon for convolutions, AdamW alone, or SGD with momentum for all but the prior.

    Weight decay is on weights of convolutions and linear layers alone, the prior learns faster, a classifier slower.
    """
    chosen, codec = recipe.optimiser, _codec(network)
    prior = [parameter for parameter in codec.prior.parameters() if parameter.requires_grad]
    networks = [*codec.encoder.parameters(), *codec.decoder.parameters()]
    classifier = [p for p in network["classifier"].parameters() if p.requires_grad] if "classifier" in network else []
    rate = chosen.learning_rate
    slow = rate * recipe.paper.classifier_lr_factor
    with_muon = chosen.method == "adamw" and chosen.matrices == "muon"
    matrices = [p for p in networks if with_muon and p.ndim == 4 and p.shape[1] > 1]
    of_muon = {id(parameter) for parameter in matrices}
    networks = [parameter for parameter in networks if id(parameter) not in of_muon]
    groups = [
        {"params": [p for p in networks if p.ndim == 4], "lr": rate, "weight_decay": chosen.weight_decay},
        {"params": [p for p in networks if p.ndim != 4], "lr": rate, "weight_decay": 0.0},
        {"params": prior, "lr": rate * chosen.operating_lr_factor, "weight_decay": 0.0},
        {"params": [p for p in classifier if p.ndim > 1], "lr": slow, "weight_decay": chosen.weight_decay},
        {"params": [p for p in classifier if p.ndim == 1], "lr": slow, "weight_decay": 0.0},
    ]
    of_prior = [group for group in groups if group["params"] and group["params"] is prior]
    others = [group for group in groups if group["params"] and group["params"] is not prior]
    if chosen.method == "sgd":
        sgd = torch.optim.SGD(others, momentum=chosen.momentum)
        return set_peaks([sgd, torch.optim.AdamW(of_prior, betas=(0.9, 0.98))])
    optimisers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW([group for group in groups if group["params"]], betas=(0.9, 0.98))
    ]
    if matrices:
        optimisers.append(Muon(matrices, chosen.muon_learning_rate, weight_decay=chosen.weight_decay))
    return set_peaks(optimisers)
