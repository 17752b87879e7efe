"""Spells of lost frames: told when they begin and when they are over."""

from __future__ import annotations

from pipeline.drop_spells import DropSpells

S = 1_000_000_000
KEY = ("door", "stale")


def test_a_spell_begins_once_and_counts_on() -> None:
    spells = DropSpells()
    begun = spells.drop(KEY, 7, 0)
    assert begun is not None
    assert (begun.first, begun.count) == (7, 1)
    for second in range(1, 60):
        assert spells.drop(KEY, 7 + second, second * S, count=2) is None
        assert spells.take_over(second * S) == []
    (over,) = spells.take_over(69 * S)
    assert (over.first, over.last, over.count) == (7, 66, 119)
    assert (over.began_ns, over.newest_ns) == (0, 59 * S)
    assert spells.take_over(100 * S) == []
    assert spells.drop(KEY, 100, 100 * S) is not None, "the next one is a new spell"


def test_other_cameras_and_reasons_have_their_own() -> None:
    spells = DropSpells()
    assert spells.drop(("door", "stale"), 1, 0) is not None
    assert spells.drop(("yard", "stale"), 1, 0) is not None
    assert spells.drop(("door", "corrupt"), None, 5 * S) is not None
    assert {spell.key for spell in spells.take_over(10 * S)} == {("door", "stale"), ("yard", "stale")}


def test_spells_are_bounded() -> None:
    spells = DropSpells(max_spells=2)
    begun = [spells.drop(name, 0, 0) is not None for name in "abc"]
    assert begun == [True, True, False]
    spells.take_over(10 * S)
    assert spells.drop("c", 0, 10 * S) is not None
