"""Chance: strikes are drawn from streams of their own, numbered, and chosen by a selection."""

from __future__ import annotations

import pytest

from replog.errors import CallerError
from replog.testing.chance import ALL, KINDS, Chance, Selection


@pytest.mark.parametrize(
    "text", ["all", "none", "drop", "drop,crash:2", "delay:1-4,delay:6,wipe", "late:3-4"]
)
def test_selection_text_read_back(text: str) -> None:
    """A selection writes itself down as it was read."""
    assert Selection.parse(text).text == text


@pytest.mark.parametrize(
    "text", ["", "crush", "crash:0", "crash:x", "crash:", "crash:3-1", "crash:1-2-3", "crash:-1"]
)
def test_selection_bad_text(text: str) -> None:
    """What is no selection is refused, with what may be said instead."""
    with pytest.raises(CallerError, match=r"say all, none|numbered from 1|is no list"):
        Selection.parse(text)


def test_selection_chooses() -> None:
    """A kind, or numbers of a kind, take effect, and nothing else."""
    selection = Selection.parse("drop,crash:2-3")
    assert selection.has("drop", 99)
    assert [selection.has("crash", number) for number in (1, 2, 3, 4)] == [False, True, True, False]
    assert [kind for kind in KINDS if selection.may_have(kind)] == ["drop", "crash"]


def test_strikes_by_kind_apart() -> None:
    """What one kind draws does not depend on what another drew."""
    alone, beside = Chance(1), Chance(1)
    struck = []
    for _ in range(50):
        beside.strikes("drop", 0.5)
        struck.append((alone.strikes("late", 0.3), beside.strikes("late", 0.3)))
    assert {one == other for one, other in struck} == {True}
    assert {one for one, _ in struck} == {True, False}


def test_strikes_selected_keep_numbers_and_details() -> None:
    """A strike keeps its number and its details when those before it take no effect."""
    whole, few = Chance(1), Chance(1, Selection.parse("cut:3"))
    details: dict[str, list[float]] = {"whole": [], "few": []}
    for _ in range(100):
        if whole.strikes("cut", 0.2):
            details["whole"].append(whole.details("cut").random())
        if few.strikes("cut", 0.2):
            details["few"].append(few.details("cut").random())
    assert few.struck["cut"] == [3]
    assert details["few"] == details["whole"][2:3]
    assert few.counts == whole.counts


def test_ticks_drawn() -> None:
    """Ticks above 0 are strikes; without effect they are 0."""
    chance, none = Chance(1, ALL), Chance(1, Selection.parse("none"))
    drawn = [chance.ticks("delay", 2) for _ in range(50)]
    assert set(drawn) == {0, 1, 2}
    assert {none.ticks("delay", 2) for _ in range(50)} == {0}
    assert chance.counts["delay"] == none.counts["delay"] == sum(map(bool, drawn))
