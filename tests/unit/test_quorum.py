"""Majorities, as predicates over sets of voters."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations, product

import pytest

from replog.quorum import Majority
from replog.types import NodeId

SIZES = range(1, 7)


def subsets(voters: tuple[NodeId, ...]) -> Iterator[tuple[NodeId, ...]]:
    """Every set of voters."""
    for size in range(len(voters) + 1):
        yield from combinations(voters, size)


def majority_of(size: int) -> Majority:
    """A cluster of so many voters, whose ids are not their positions."""
    return Majority(tuple(range(10, 10 + 3 * size, 3)))


@pytest.mark.parametrize("size", SIZES)
def test_is_quorum_more_than_half(size: int) -> None:
    """A set is a quorum iff it holds more than half of the voters; half is not enough."""
    majority = majority_of(size)
    for nodes in subsets(majority.voters):
        assert majority.is_quorum(nodes) == (len(nodes) > size / 2)


@pytest.mark.parametrize("size", SIZES)
def test_quorums_meet(size: int) -> None:
    """Any two quorums have a voter in common."""
    majority = majority_of(size)
    quorums = [set(nodes) for nodes in subsets(majority.voters) if majority.is_quorum(nodes)]
    assert quorums
    assert all(one & other for one, other in product(quorums, quorums))


def test_is_quorum_strangers() -> None:
    """Nodes that are no voters do not count, however many they are."""
    majority = Majority((1, 2, 3))
    assert not majority.is_quorum([1, 4, 5, 6, 7])
    assert majority.is_quorum([4, 1, 3])


def test_is_quorum_repeated() -> None:
    """A voter that is named twice is one voter."""
    assert not Majority((1, 2, 3)).is_quorum([2, 2, 2])


@pytest.mark.parametrize("size", SIZES)
def test_is_blocked_without_quorum(size: int) -> None:
    """Refusals block iff those who did not refuse are no quorum."""
    majority = majority_of(size)
    for refused in subsets(majority.voters):
        left = [voter for voter in majority.voters if voter not in refused]
        assert majority.is_blocked(refused) == (not majority.is_quorum(left))
    assert not majority.is_blocked([99, 98, 97])


@pytest.mark.parametrize("size", range(1, 6))
def test_committed_index_highest_held(size: int) -> None:
    """The committed index is the highest that the voters of some quorum all hold."""
    majority = majority_of(size)
    for held in product(range(4), repeat=size):
        match = dict(zip(majority.voters, held, strict=True))
        reached = [
            index
            for index in range(4)
            if majority.is_quorum([voter for voter in match if match[voter] >= index])
        ]
        assert majority.committed_index(match) == max(reached)


def test_committed_index_unknown_voter() -> None:
    """A voter of which nothing is known holds nothing, and a stranger does not matter."""
    assert Majority((1, 2, 3)).committed_index({1: 7}) == 0
    assert Majority((1, 2, 3)).committed_index({1: 7, 8: 9, 9: 9}) == 0
    assert Majority((1, 2, 3)).committed_index({1: 7, 3: 5, 9: 9}) == 5
