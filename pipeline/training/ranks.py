"""Several processes that train together, one a GPU, as `torchrun` starts them.

    torchrun --nproc-per-node 4 --no-python rac train RECIPE --device cuda

Every rank draws its own crops and noise, gradients are averaged, so that the weights are the same everywhere; the
first rank alone writes. A recipe's batch is that of one rank.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

PATIENCE = timedelta(hours=1)
"""The others wait while the first rank validates and saves."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """One process's place among those that train together.

    Attributes:
        rank: of this process, from 0.
        count: of all processes.
        local: rank on this machine, the number of its GPU.
    """

    rank: int = 0
    count: int = 1
    local: int = 0

    @property
    def is_first(self) -> bool:
        """Whether this process writes log and checkpoints."""
        return self.rank == 0

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module with its gradients averaged over all ranks; each of its parameters must be in every loss."""
        return module if self.count == 1 else DistributedDataParallel(module)

    def agree(self, elapsed_s: float, stop: bool) -> tuple[float, bool]:
        """The longest time, and whether anyone was asked to stop: all ranks do the same next."""
        if self.count == 1:
            return elapsed_s, stop
        values = torch.tensor([elapsed_s, float(stop)], dtype=torch.float64)
        distributed.all_reduce(values, distributed.ReduceOp.MAX)
        return float(values[0]), bool(values[1])

    def average(self, values: Tensor) -> None:
        """Replace values, on the CPU, by their mean over all ranks."""
        if self.count > 1:
            distributed.all_reduce(values)
            values /= self.count

    def gather(self, value: dict[str, Any]) -> list[dict[str, Any]]:
        """Every rank's value, in the order of ranks."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        distributed.all_gather_object(values, value)
        return values


ALONE = Ranks()


@contextmanager
def joined_ranks(device: str) -> Iterator[Ranks]:
    """Meet the other processes, if `torchrun` started any."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield ALONE
        return
    backend = "cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo"
    distributed.init_process_group(backend, timeout=PATIENCE)
    try:
        yield Ranks(distributed.get_rank(), count, int(os.environ.get("LOCAL_RANK", "0")))
    finally:
        distributed.destroy_process_group()
