"""Muon: orthogonal steps of the wanted size, with a memory that a checkpoint keeps."""

from __future__ import annotations

import pytest
import torch

from pipeline.training.muon import Muon, orthogonalise


@pytest.mark.parametrize("shape", [(16, 16), (48, 12), (12, 48)])
def test_singular_values_come_close_to_one(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(1)) * 30
    values = torch.linalg.svdvals(orthogonalise(matrix))
    assert values.min() > 0.3
    assert values.max() < 1.3


def test_step_goes_against_the_gradient_by_the_learning_rate() -> None:
    weight = torch.nn.Parameter(torch.zeros(8, 8, 1, 1))
    weight.grad = torch.randn(8, 8, 1, 1, generator=torch.Generator().manual_seed(1))
    Muon([weight], lr=0.1).step()
    assert (weight.detach() * weight.grad).sum() < 0
    assert torch.linalg.matrix_norm(weight.detach().reshape(8, 8), 2) == pytest.approx(0.1, rel=0.3)


def test_it_finds_a_linear_map() -> None:
    generator = torch.Generator().manual_seed(3)
    target, inputs = torch.randn(6, 10, generator=generator), torch.randn(64, 10, generator=generator)
    weight = torch.nn.Parameter(torch.zeros(6, 10))
    optimiser = Muon([weight], lr=0.2)
    for step in range(150):
        for group in optimiser.param_groups:
            group["lr"] = 0.2 * (1 - step / 150)
        loss = ((inputs @ (weight - target).T) ** 2).mean()
        weight.grad = None
        loss.backward()
        optimiser.step()
    assert float(loss.detach()) < 1e-2 * float(((inputs @ target.T) ** 2).mean())


def test_parameter_without_gradient_is_left_alone() -> None:
    weight = torch.nn.Parameter(torch.ones(4, 4))
    Muon([weight]).step()
    assert torch.equal(weight, torch.ones(4, 4))


def test_weights_decay_by_their_share_of_the_learning_rate() -> None:
    weight = torch.nn.Parameter(torch.ones(4, 4))
    weight.grad = torch.zeros(4, 4)
    Muon([weight], lr=0.1, weight_decay=0.5).step()
    torch.testing.assert_close(weight.detach(), torch.full((4, 4), 0.95))


def test_matrices_of_one_size_do_not_touch_each_other() -> None:
    """Made orthogonal together, each one steps as it would alone."""
    generator = torch.Generator().manual_seed(5)
    shapes = [(8, 4, 1, 1), (4, 8, 1, 1), (8, 4, 1, 1)]
    starts, gradients = ([torch.randn(shape, generator=generator) for shape in shapes] for _ in range(2))

    def stepped(chosen: list[int]) -> list[torch.Tensor]:
        weights = [torch.nn.Parameter(starts[index].clone()) for index in chosen]
        for weight, index in zip(weights, chosen, strict=True):
            weight.grad = gradients[index].clone()
        optimiser = Muon(weights, lr=0.1, weight_decay=0.5)
        for _ in range(2):
            optimiser.step()
        return [weight.detach() for weight in weights]

    for index, together in enumerate(stepped([0, 1, 2])):
        torch.testing.assert_close(together, stepped([index])[0])
