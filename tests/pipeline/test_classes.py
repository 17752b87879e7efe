"""The class list: complete, in the classifiers' order, and what counts as a label."""

from __future__ import annotations

import pytest

from pipeline.classes import load_classes


def test_classes_are_the_thousand_in_order_of_their_ids() -> None:
    """The index is the rank of the WordNet id: that is what every classifier's output means."""
    classes = load_classes()
    assert len(classes.names) == len(classes.wnids) == len(set(classes.names)) == 1000
    assert list(classes.wnids) == sorted(set(classes.wnids))
    assert classes.names[898] == "water_bottle"
    assert classes.indices["n04557648"] == 898


@pytest.mark.parametrize(("text", "label"), [("0", 0), (" 999 ", 999), ("n04557648", 898), ("007", 7)])
def test_label_is_an_index_or_a_wordnet_id(text: str, label: int) -> None:
    assert load_classes().parse_label(text) == label


@pytest.mark.parametrize("text", ["", "1000", "-1", "+1", "1_0", "1.0", "n00000000", "tench", "\u0661"])
def test_other_labels_raise(text: str) -> None:
    with pytest.raises(ValueError, match="class index"):
        load_classes().parse_label(text)
