"""Measured points on the disk, so that a comparison that was interrupted does not measure anything twice.

A file for each curve, written whole or not at all, under a key that names what the points depend on: pictures, codec or
bundle, engine and precision. A file of another key, or a damaged one, is measured anew.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import EvaluationError
from pipeline.evaluation.accuracy import RatePoint


class PointStore:
    """Points of many curves in one folder.

    Args:
        common: what all points depend on.
    """

    def __init__(self, folder: Path, common: Sequence[str]) -> None:
        self._folder, self._common = folder, tuple(common)

    def load(self, curve: str, key: str) -> list[RatePoint] | None:
        """The points of a curve, or None where they must be measured."""
        try:
            content = json.loads(self._path(curve).read_text(encoding="utf-8"))
            if content["key"] != [*self._common, key]:
                return None
            return [_point(fields) for fields in content["points"]]
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def save(self, curve: str, key: str, points: Sequence[RatePoint]) -> None:
        """Keep the points of a curve.

        Raises:
            EvaluationError: they cannot be written.
        """
        rows = [
            asdict(point) | {"predictions": point.predictions.tolist(), "num_bytes": point.num_bytes.tolist()}
            for point in points
        ]
        path = self._path(curve)
        temporary = path.with_suffix(".partial")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps({"key": [*self._common, key], "points": rows}), encoding="utf-8")
            temporary.replace(path)
        except OSError as error:
            raise EvaluationError(f"{path}: cannot be written: {error.strerror}") from error

    def _path(self, curve: str) -> Path:
        return self._folder / (re.sub(r"[^A-Za-z0-9.=-]+", "-", curve) + ".json")


def _point(fields: dict[str, object]) -> RatePoint:
    arrays = {name: np.array(fields[name], np.int64) for name in ("predictions", "num_bytes")}
    return RatePoint(**{**fields, **arrays})  # type: ignore[arg-type]


def digest(arrays: Sequence[NDArray[np.generic]]) -> str:
    """What names pictures and labels."""
    hasher = hashlib.sha256()
    for array in arrays:
        hasher.update(f"{array.shape} {array.dtype}".encode())
        hasher.update(np.ascontiguousarray(array).tobytes())
    return hasher.hexdigest()[:16]
