"""The parts of the engine by themselves: index sets, slots, the table, clones."""

from __future__ import annotations

from itertools import pairwise
from random import Random

import pytest
from paxos_given import b, engine_of, led, vote

from replog.stored_log import HeldLog
from replog.types import EntryId, Role
from replog_multipaxos.acceptor import merge_accepted
from replog_multipaxos.indexes import IndexSet
from replog_multipaxos.messages import MESSAGE_SPECS, MESSAGE_TYPES, Accepted
from replog_multipaxos.slots import HOLE, Slots
from replog_multipaxos.table import TABLE


def test_index_set_like_a_set() -> None:
    """An index set does what a set of numbers does, over random additions and removals."""
    for seed in range(200):
        random = Random(seed)
        ours, real = IndexSet(), set()
        for _ in range(40):
            first = random.randint(1, 40)
            last = min(40, first + random.randint(0, 8))
            if random.random() < 0.6:
                ours.add(first, last)
                real |= set(range(first, last + 1))
            else:
                ours.remove(first, last)
                real -= set(range(first, last + 1))
            ranges = ours.ranges()
            assert {i for low, high in ranges for i in range(low, high + 1)} == real
            assert all(one[1] + 1 < two[0] for one, two in pairwise(ranges))
            assert all((i in ours) == (i in real) for i in range(42))
            assert bool(ours) == bool(real)
            assert ours.last == max(real, default=0)
            low, high = sorted((random.randint(1, 41), random.randint(1, 41)))
            inside = {i for one, two in ours.within(low, high) for i in range(one, two + 1)}
            gaps = {i for one, two in ours.gaps(low, high) for i in range(one, two + 1)}
            assert inside == {i for i in real if low <= i <= high}
            assert gaps == set(range(low, high + 1)) - real
            reach = low - 1
            while reach + 1 in real:
                reach += 1
            assert ours.reach(low) == reach


def test_overwritten_write_is_not_durable() -> None:
    """A write that was overtaken by a higher ballot does not make the new record durable."""
    slots = Slots(0, HeldLog(), b(1, 1), 0, 1 << 20)
    slots.put([vote(1, b(1, 1)), vote(2, b(1, 1))], held=True)
    slots.take_unsaved()
    slots.put([vote(1, b(2, 2))], held=True)
    slots.advance_durable()
    assert slots.durable.ranges() == ((2, 2),)
    assert [entry.term for entry in slots.take_unsaved()[1]] == [b(2, 2)]
    slots.advance_durable()
    assert slots.durable_index == 2


def test_holes_are_kept() -> None:
    """A slot without a vote is a hole, also when one behind it has a vote."""
    slots = Slots(0, HeldLog([vote(3, b(1, 1))]), b(1, 1), 0, 1 << 20)
    assert slots.at(1) is HOLE
    assert slots.at(3).term == b(1, 1)
    assert slots.at(9) is HOLE
    assert (slots.last_index, slots.durable_index) == (3, 0)
    assert slots.votes_within(1, 1000) == ((vote(3, b(1, 1)),), 0)


def test_slices_are_shared_and_never_stale() -> None:
    """The same stretch is the same object until one of its slots is written again."""
    slots = Slots(0, HeldLog(), b(1, 1), 0, 1 << 20)
    slots.put([vote(1, b(1, 1)), vote(2, b(1, 1))], held=True)
    first, _ = slots.slice_within(1, 2, 1000)
    assert slots.slice_within(1, 2, 1000)[0] is first
    assert slots.take_unsaved()[1] is first
    slots.put([vote(2, b(2, 2))], held=True)
    assert slots.slice_within(1, 2, 1000)[0][1].term == b(2, 2)


def test_trimmed_slots_are_gone() -> None:
    """What is trimmed is not told any more; what is behind it stays."""
    slots = Slots(0, HeldLog([vote(slot, b(1, 1)) for slot in range(1, 6)]), b(1, 1), 0, 1 << 20)
    slots.trim(EntryId(1, 0, 3))
    assert (slots.base_index, slots.last_index, slots.durable_index) == (3, 5, 5)
    assert slots.at(3) is HOLE
    assert [entry.index for entry in slots.votes_within(1, 1000)[0]] == [4, 5]


def test_table_is_total() -> None:
    """Every role knows what to do with every message."""
    assert set(TABLE) == set(Role)
    for role, row in TABLE.items():
        assert set(row) == set(MESSAGE_TYPES), role
    assert [spec.record for spec in MESSAGE_SPECS] == list(MESSAGE_TYPES)


@pytest.mark.parametrize(
    ("one", "two", "merged"),
    [
        (((1, 3),), ((4, 6),), ((1, 6),)),
        (((1, 3),), ((5, 6),), ((1, 3), (5, 6))),
        (((5, 6),), ((1, 2),), ((1, 2), (5, 6))),
        ((), ((1, 2),), ((1, 2),)),
        (((1, 9),), ((3, 4),), ((1, 9),)),
    ],
)
def test_accepted_merged(one: tuple, two: tuple, merged: tuple) -> None:
    """Two Accepted of one Ready become one that says the same."""
    last, message = (Accepted(1, 1, 2, 1, upto, ranges) for upto, ranges in ((3, one), (2, two)))
    both = merge_accepted(last, message)
    assert both is not None
    assert (both.ranges, both.chosen_upto) == (merged, 3)


def test_clone_shares_nothing() -> None:
    """A clone of a leader goes its own way."""
    cluster = led()
    engine = engine_of(cluster, 1)
    clone = engine.clone()
    assert clone.key() == engine.key()
    clone.propose(b"x")
    assert engine.slots.last_index == 0
    assert clone.key() != engine.key()
