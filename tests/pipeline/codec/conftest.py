"""What the codec's tests share: reference implementations that may not be installed."""

from __future__ import annotations

import contextlib
import functools
import warnings
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest
import torch


@functools.cache
def _define_missing_operators() -> torch.library.Library | None:
    """Make torchvision importable beside a build of torch that its compiled part was not made for.

    Its import stops at operators that only the compiled part defines; their schemas alone are enough. Returns
    what keeps the schemas alive. To be removed once the packages that the registry gives fit the CPU build of
    torch.
    """
    package = find_spec("torchvision")
    if package is None or not package.submodule_search_locations:
        return None
    # The compiled part first, where it loads: defined twice, an operator is an error.
    with contextlib.suppress(OSError):
        compiled = Path(package.submodule_search_locations[0]) / "_C.so"
        torch.ops.load_library(compiled)  # type: ignore[no-untyped-call]
    library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    for operator in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, operator):
            schema = f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            library.define(schema)  # type: ignore[no-untyped-call]
    return library


def _import_reference(name: str) -> ModuleType:
    """Import a module that needs torchvision; skip where it is not installed."""
    _define_missing_operators()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about torch's own deprecations, in packages that are not ours
        try:
            return import_module(name)
        except ModuleNotFoundError as error:
            pytest.skip(f"{error.name} is not installed: pip install 'edge-cloud-rac[train]'")


@pytest.fixture(scope="session")
def torchvision_models() -> ModuleType:
    """torchvision's classifiers."""
    return _import_reference("torchvision.models")


@pytest.fixture(scope="session")
def compressai_entropy() -> ModuleType:
    """CompressAI's entropy models."""
    return _import_reference("compressai.entropy_models")


@pytest.fixture(scope="session")
def compressai_layers() -> ModuleType:
    """CompressAI's layers."""
    return _import_reference("compressai.layers")
