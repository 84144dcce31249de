"""Runs say of every index what a plain table would say."""

from __future__ import annotations

from itertools import pairwise
from random import Random

import pytest

from replog.runs import Run, Runs
from replog.types import Entry, LogIndex, Term


def table_of(runs: Runs) -> dict[LogIndex, tuple[int, Term]]:
    """The runs, index by index."""
    return {
        index: (run.epoch, run.term) for run in runs for index in range(run.first, run.last + 1)
    }


def check_shape(runs: Runs) -> None:
    """Runs ascend, and two that touch are not alike."""
    listed = list(runs)
    for before, after in pairwise(listed):
        assert before.last < after.first
        touches = before.last + 1 == after.first
        assert not (touches and (before.epoch, before.term) == (after.epoch, after.term))


@pytest.mark.parametrize("seed", range(30))
def test_runs_equal_table(seed: int) -> None:
    """Whatever is put, truncated and removed, in any order, each index has what was put last."""
    random, runs, table = Random(seed), Runs(), dict[LogIndex, tuple[int, Term]]()
    for _ in range(120):
        first = random.randint(1, 40)
        last = first + random.randint(0, 8)
        kind = random.random()
        if kind < 0.6:
            term = random.randint(1, 3)
            runs.put(first, last, 1, term)
            table.update(dict.fromkeys(range(first, last + 1), (1, term)))
        elif kind < 0.8:
            runs.remove(first, last)
            table = {at: value for at, value in table.items() if not first <= at <= last}
        else:
            runs.truncate(first)
            table = {at: value for at, value in table.items() if at < first}
        assert table_of(runs) == table
        check_shape(runs)
        assert runs.last_index == max(table, default=0)
        for index in range(1, 50):
            assert runs.term_at(index) == table.get(index, (0, 0))[1]
            following = runs.next_from(index)
            above = [at for at in table if at >= index]
            assert (following is None) == (not above)
            assert following is None or following == runs.at(min(above))
            reach = index - 1
            while reach + 1 in table:
                reach += 1
            assert runs.reach(index, 99) == reach
            assert runs.reach(index, index + 2) == min(reach, index + 2)
    assert Runs(runs).key() == runs.clone().key() == runs.key()


@pytest.mark.parametrize("seed", range(20))
def test_last_at_most(seed: int) -> None:
    """The highest index up to a bound with a term up to a bound, as a search of all finds it."""
    random, runs, terms, index = Random(seed), Runs(), dict[LogIndex, Term](), 1
    for term in sorted(random.randint(1, 9) for _ in range(6)):
        count = random.randint(1, 4)
        runs.put(index, index + count - 1, 1, term)
        terms.update(dict.fromkeys(range(index, index + count), term))
        index += count
    for bound in range(index + 2):
        for term in range(11):
            found = [at for at, of in terms.items() if at <= bound and of <= term]
            assert runs.last_at_most(bound, term) == max(found, default=0)


def test_put_entries_merged() -> None:
    """Entries of one term at contiguous indexes are one run, however they come."""
    runs = Runs()
    entries = [Entry(1, at, 2 if at < 4 else 3, b"") for at in (1, 2, 3, 4, 5, 8)]
    runs.put_entries(entries[:2])
    runs.put_entries(entries[2:])
    assert list(runs) == [Run(1, 3, 1, 2), Run(4, 5, 1, 3), Run(8, 8, 1, 3)]


def test_clone_independent() -> None:
    """What is put into a copy is not in the original."""
    runs = Runs((Run(1, 3, 1, 1),))
    runs.clone().put(2, 2, 1, 9)
    assert list(runs) == [Run(1, 3, 1, 1)]
