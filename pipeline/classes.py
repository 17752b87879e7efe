"""The thousand classes of ImageNet-1k: index, WordNet id and name, from `pipeline/classes.csv`.

The index is the rank of the WordNet id among the thousand in sorted order, which is the order that every
classifier here was trained with. Names are unique: where WordNet gives two classes the same word (crane,
maillot) one or both carry an addition.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources


@dataclass(frozen=True, slots=True)
class ClassList:
    """Names and ids of the classes.

    Attributes:
        names: name of each class by index, words joined by underscores.
        wnids: WordNet id of each class by index, such as n04557648.
        indices: class index by WordNet id.
    """

    names: tuple[str, ...]
    wnids: tuple[str, ...]
    indices: Mapping[str, int]

    def parse_label(self, text: str) -> int:
        """Turn a class index or a WordNet id, as in a label file or a folder's name, into a class index.

        Raises:
            ValueError: neither; says what would be right.
        """
        label = text.strip()
        if label in self.indices:
            return self.indices[label]
        # int() alone would take "1_0", "+7" and the digits of other scripts.
        if label.isascii() and label.isdigit() and int(label) < len(self.names):
            return int(label)
        last = len(self.names) - 1
        raise ValueError(f"{text!r} is neither a class index (0 to {last}) nor a WordNet id (like n04557648)")


@cache
def load_classes() -> ClassList:
    """Read the class list that ships with the package; the same object each time."""
    text = resources.files("pipeline").joinpath("classes.csv").read_text(encoding="utf-8")
    rows = [(row["wnid"], row["name"]) for row in csv.DictReader(text.splitlines())]
    return ClassList(
        names=tuple(name for _, name in rows),
        wnids=tuple(wnid for wnid, _ in rows),
        indices={wnid: index for index, (wnid, _) in enumerate(rows)},
    )
