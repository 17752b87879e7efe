"""The uncompressed classifier as the source of training targets; never trained, always in evaluation mode."""

from __future__ import annotations

import warnings
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.codec.classifier import CLASSIFIERS, LITE0, Classifier
from pipeline.training.losses import Targets


def normalise(crops: NDArray[np.uint8] | Tensor, device: torch.device, classifier: str = LITE0) -> Tensor:
    """uint8 (B, H, W, 3) RGB to float (B, 3, H, W) as the classifier takes it, channels last in memory."""
    pixels = torch.as_tensor(crops).to(device).permute(0, 3, 1, 2).to(torch.float32)
    facts = CLASSIFIERS[classifier]
    mean, std = (torch.tensor(values, device=device)[:, None, None] for values in (facts.mean_rgb, facts.std_rgb))
    return ((pixels - mean) / std).contiguous(memory_format=torch.channels_last)


class Engine(Protocol):
    """Runs the whole classifier: normalised pictures to (features at the cut, stages with logits last)."""

    def __call__(self, x: Tensor) -> tuple[Tensor, list[Tensor]]: ...


class TorchEngine:
    """For GPUs, there in bf16, and where OpenVINO is not installed."""

    def __init__(self, classifier: Classifier, cut: str) -> None:
        self._classifier, self._cut = classifier, cut

    @torch.no_grad()
    def __call__(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=x.device.type != "cpu"):
            features = self._classifier.features(x, self._cut)
            *stages, logits = self._classifier.stages(features, self._cut)
        return features.float(), [*stages, logits.float()]


class OpenVinoEngine:
    """On CPUs: many times faster than torch for this network's depthwise convolutions. One graph a crop size."""

    def __init__(self, classifier: Classifier, cut: str, threads: int) -> None:
        self._module = _WithStages(classifier, cut).eval()
        self._threads = threads
        self._compiled: dict[tuple[int, ...], object] = {}

    def __call__(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        shape = tuple(x.shape)
        if shape not in self._compiled:
            self._compiled[shape] = self._compile(shape)
        outputs = self._compiled[shape](x.contiguous().numpy())  # type: ignore[operator]
        tensors = [torch.from_numpy(np.array(outputs[index])) for index in range(len(outputs))]
        return tensors[0], tensors[1:]

    def _compile(self, shape: tuple[int, ...]) -> object:
        import openvino

        with warnings.catch_warnings():
            # It traces with torch.jit, which torch announces as ending; paddings are fixed by the shape.
            warnings.simplefilter("ignore")
            model = openvino.convert_model(self._module, example_input=torch.zeros(shape), input=[list(shape)])
        # bf16 where the CPU has it: twice as fast, and far nearer to fp32 than any codec will come.
        settings = {"INFERENCE_NUM_THREADS": self._threads, "INFERENCE_PRECISION_HINT": "bf16"}
        return openvino.compile_model(model, "CPU", settings)


class _WithStages(torch.nn.Module):
    def __init__(self, classifier: Classifier, cut: str) -> None:
        super().__init__()
        self.classifier, self.cut = classifier, cut

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        features = self.classifier.features(x, self.cut)
        return (features, *self.classifier.stages(features, self.cut))


class Teacher:
    """Gives the targets of a batch, standardised by statistics of some training crops."""

    def __init__(self, engine: Engine, sample: Tensor, cut: str) -> None:
        self.engine, self._cut = engine, cut
        features, stages = engine(sample)
        self.feature_mean = features.mean(dim=(0, 2, 3))
        self.feature_std = features.std(dim=(0, 2, 3)).clamp_min(1e-3)
        self._variances = [float(stage.var()) for stage in stages[:-1]]

    def targets(self, x: Tensor) -> Targets:
        """Targets of normalised pictures (B, 3, H, W)."""
        features, stages = self.engine(x)
        return Targets(self._standardise(features), stages[:-1], self._variances, stages[-1])

    def cut_targets(self, x: Tensor) -> Targets:
        """Targets without stages and logits: at the cut `input` the classifier need not run for them."""
        features = x if self._cut == "input" else self.engine(x)[0]
        return Targets(self._standardise(features), [], [], features.new_zeros(0))

    def _standardise(self, features: Tensor) -> Tensor:
        return (features - self.feature_mean[:, None, None]) / self.feature_std[:, None, None]
