"""Hidden channels that no picture makes fire: a ReLU behind them passes no gradient, so they never learn again."""

from __future__ import annotations

from types import TracebackType

import torch
from torch import Tensor, nn

from pipeline.codec.nested import Block


class HiddenPeaks:
    """While entered, remembers the largest value of each hidden channel of every block that is run.

    Args:
        network: its `Block`s are watched, but for those whose activation lets every gradient through.
    """

    def __init__(self, network: nn.Module) -> None:
        blocks = [(name, module) for name, module in network.named_modules() if isinstance(module, Block)]
        self._blocks = {name: block for name, block in blocks if block.negative_slope == 0}
        self._peaks: dict[str, Tensor] = {}

    def __enter__(self) -> HiddenPeaks:
        self._hooks = [
            block.expand.register_forward_hook(lambda _layer, _inputs, y, name=name: self._see(name, y))
            for name, block in self._blocks.items()
        ]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for hook in self._hooks:
            hook.remove()

    def _see(self, name: str, y: Tensor) -> None:
        if len(y) > 0:
            peak = y.detach().float().amax(dim=(0, 2, 3))
            self._peaks[name] = torch.maximum(self._peaks.get(name, peak), peak)

    def silent(self) -> dict[str, str]:
        """Blocks with channels that never rose above zero: `12 of 192`."""
        counts = {name: int((peak <= 0).sum()) for name, peak in self._peaks.items()}
        return {name: f"{count} of {len(self._peaks[name])}" for name, count in counts.items() if count > 0}
