"""Imports that need torchvision, also where its compiled part does not load.

Beside the CPU build of torch, torchvision's compiled part does not load, and `import torchvision`, with it
`import compressai`, stops at "operator torchvision::nms does not exist": its Python part registers shapes for
operators that only the compiled part defines. Defining their schemas, without any code behind them, is
enough.

To be removed, with all that uses it, once the pinned torchvision imports by itself beside the pinned torch's
CPU build: once `python -c "import torchvision"` passes on a machine without CUDA.
"""

from __future__ import annotations

import sys
import warnings
from functools import cache
from importlib import import_module
from types import ModuleType

import torch

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


def import_compressai(name: str = "compressai") -> ModuleType:
    """Import compressai or a module of it, such as `compressai.ans`.

    Raises:
        ModuleNotFoundError: compressai or torchvision is not installed (extra `[train]`).
    """
    import_torchvision()
    return _import_quietly(name)


def import_torchvision(name: str = "torchvision") -> ModuleType:
    """Import torchvision or a module of it; where its compiled part loads, nothing is defined in its place.

    Raises:
        ModuleNotFoundError: torchvision is not installed (extra `[train]`).
    """
    try:
        _import_quietly("torchvision")
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        # What the failed import left behind would be found half done by the next.
        for module in [key for key in sys.modules if key.split(".")[0] == "torchvision"]:
            del sys.modules[module]
        _define_operators()
    return _import_quietly(name)


@cache
def _define_operators() -> torch.library.Library:
    """Define what is missing; the definitions last as long as the library that is returned, so it is kept."""
    library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    for schema in _SCHEMAS:
        if not hasattr(torch.ops.torchvision, schema.split("(")[0]):
            library.define(schema)  # type: ignore[no-untyped-call]
    return library


def _import_quietly(name: str) -> ModuleType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch about itself, in packages that are not ours
        return import_module(name)
