"""Training pictures that stay in their files: for sets that no memory holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class StoredPicture:
    """Where a picture's bytes are: a whole file, or a part of a tar.

    Attributes:
        offset / num_bytes: of the part; None: to the end.
    """

    path: Path
    offset: int = 0
    num_bytes: int | None = None

    def read(self) -> bytes:
        """The content.

        Raises:
            OSError: it cannot be read.
        """
        with self.path.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.num_bytes)


class FilePictures(Sequence[Picture]):
    """Decodes a picture whenever it is asked for.

    One that cannot be decoded gives an empty array; samplers draw another one instead.

    Args:
        decode: a file's content to uint8 (H, W, 3) BGR, or None.

    Attributes:
        unreadable: which were found to be no pictures.
    """

    def __init__(self, places: Sequence[StoredPicture], decode: Callable[[bytes], Picture | None]) -> None:
        self._places, self._decode = list(places), decode
        self.unreadable: set[StoredPicture] = set()

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> Picture: ...
    @overload
    def __getitem__(self, index: slice) -> list[Picture]: ...
    def __getitem__(self, index: int | slice) -> Picture | list[Picture]:
        if isinstance(index, slice):
            return [self[each] for each in range(*index.indices(len(self)))]
        place = self._places[index]
        try:
            picture = self._decode(place.read())
        except OSError:
            picture = None
        if picture is None:
            self.unreadable.add(place)
            return np.zeros((0, 0, 3), np.uint8)
        return picture
