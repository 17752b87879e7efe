"""Counting of parameters and multiply-accumulates, on layers that can be counted by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pipeline.codec.counts import count, count_parameters, layer_macs
from pipeline.codec.entropic_student import GDN1


@pytest.mark.parametrize(
    ("layer", "input_shape", "parameters", "macs"),
    [
        (nn.Conv2d(3, 8, 3, padding=1), (3, 10, 12), 8 * 27 + 8, 10 * 12 * 8 * 27),
        (nn.Conv2d(8, 8, 5, 2, padding=2, groups=8, bias=False), (8, 10, 10), 200, 5 * 5 * 8 * 25),
        (nn.ConvTranspose2d(4, 6, 5, 2, padding=2, output_padding=1), (4, 7, 7), 606, 49 * 4 * 6 * 25),
        (nn.Linear(20, 30), (20,), 630, 600),
        (GDN1(6), (6, 5, 5), 42, 25 * 36),
    ],
    ids=["convolution", "depthwise", "transposed", "linear", "gdn"],
)
def test_count_of_one_layer(layer: nn.Module, input_shape: tuple[int, ...], parameters: int, macs: int) -> None:
    counts = count(layer, input_shape)
    assert (counts.parameters, counts.macs) == (parameters, macs)
    assert len(counts.layers) == 1


def test_count_tells_gdn_apart() -> None:
    counts = count(nn.Sequential(nn.Conv2d(3, 6, 1, bias=False), GDN1(6), nn.ReLU()), (3, 4, 4))
    assert counts.macs == 16 * 18 + 16 * 36
    assert counts.macs_without_gdn == 16 * 18
    assert [(layer.name, layer.kind) for layer in counts.layers] == [("0", "Conv2d"), ("1", "GDN1")]


def test_count_of_a_call_counts_only_what_runs_and_each_call() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(4, 4), nn.Linear(4, 4)

        def run(self, x: Tensor, times: int) -> Tensor:
            for _ in range(times):
                x = self.used(x)
            return x

    counts = count(Twice(), (4,), lambda module, x: module.run(x, 2))
    assert counts.macs == 32
    assert counts.parameters == 40


def test_count_leaves_the_module_as_it_was() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).train()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    count(module, (3, 8, 8))
    assert module.training
    assert not module[0]._forward_hooks
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())


def test_shared_parameters_count_once() -> None:
    layer = nn.Linear(3, 3)
    assert count_parameters(nn.Sequential(layer, layer)) == 12


def test_layer_macs_of_an_uncounted_layer_raises() -> None:
    with pytest.raises(ValueError, match="ReLU"):
        layer_macs(nn.ReLU(), (3, 4, 4), (3, 4, 4))
