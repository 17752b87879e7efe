"""Training pictures that stay in their files: for sets that no memory holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import overload

import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8]


class FilePictures(Sequence[Picture]):
    """Decodes a picture whenever it is asked for.

    A file that cannot be decoded gives an empty array; samplers draw another one instead.

    Args:
        decode: a file's content to uint8 (H, W, 3) BGR, or None.

    Attributes:
        unreadable: which were found to be no pictures.
    """

    def __init__(self, paths: Sequence[Path], decode: Callable[[bytes], Picture | None]) -> None:
        self._paths, self._decode = list(paths), decode
        self.unreadable: set[Path] = set()

    def __len__(self) -> int:
        return len(self._paths)

    @overload
    def __getitem__(self, index: int) -> Picture: ...
    @overload
    def __getitem__(self, index: slice) -> list[Picture]: ...
    def __getitem__(self, index: int | slice) -> Picture | list[Picture]:
        if isinstance(index, slice):
            return [self[each] for each in range(*index.indices(len(self)))]
        path = self._paths[index]
        try:
            picture = self._decode(path.read_bytes())
        except OSError:
            picture = None
        if picture is None:
            self.unreadable.add(path)
            return np.zeros((0, 0, 3), np.uint8)
        return picture
