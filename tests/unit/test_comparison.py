"""Comparing replicas by messages alone: the first difference is found, and only the odd one stops.

The comparisons here are real, and what they compare is made up: marks of entries that nobody
applied.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import cast

import pytest

from replog.comparison import ENTRIES_COMPARED_MAX, VOTES_MAX, Comparison, Difference
from replog.comparison_messages import DigestCompare
from replog.digests import MARKS_FORM, MARKS_MAX, Digests
from replog.errors import SchemaError
from replog.limits import Limits
from replog.replica import Replica
from replog.types import Epoch, NodeId, Voter

LIMITS = Limits(tick_ms=50, digest_compare_ms=100)
MESSAGES_MAX = 10_000
FORM = MARKS_FORM << 1


def add_mark(digests: Digests, mark: int) -> None:
    """What a replica does with the mark of an entry."""
    digests.marks.append(mark)


def begin_at(digests: Digests, first: int) -> None:
    """The same marks, and none is known up to ``first``."""
    digests._first = first
    del digests.marks[:first]


def alter(digests: Digests, index: int, by: int = 1) -> None:
    """One entry came to something else."""
    digests.marks[index - digests.first - 1] += by


class World:
    """Some comparisons, and what is on its way between them."""

    def __init__(self, count: int) -> None:
        voters = tuple(Voter(node_id, node_id) for node_id in range(1, count + 1))
        epoch = Epoch(1, "engine", voters, 1)
        self.replicas = {
            voter.node_id: SimpleNamespace(digests=Digests(0), learners=(), machine=None)
            for voter in voters
        }
        self.sent: list[DigestCompare] = []
        self.sent_count = 0
        self.told: list[tuple[NodeId, NodeId, int]] = []
        self.nodes = {
            node_id: Comparison(node_id, epoch, cast(Replica, replica), LIMITS, self.put)
            for node_id, replica in self.replicas.items()
        }
        for node_id, node in self.nodes.items():
            node.handle_difference = self.hearer(node_id)
        self.loses: Callable[[DigestCompare], bool] = lambda _: False

    def hearer(self, node_id: NodeId) -> Callable[[NodeId, Difference], None]:
        """Notes what a node says of its peers."""
        return lambda peer, found: self.told.append((node_id, peer, found.index))

    def put(self, message: object) -> None:
        """A message leaves."""
        assert isinstance(message, DigestCompare)
        self.sent.append(message)
        self.sent_count += 1

    def apply(self, count: int, wrong: Sequence[NodeId] = (), behind: int = 0) -> None:
        """Every node applies so many entries; to the ``wrong`` they come to something else, to each
        in its own way, from the entry behind ``behind`` on."""
        for node_id, replica in self.replicas.items():
            for number in range(count):
                mark = 1_000_003 * (replica.digests.last + 1)
                if node_id in wrong and number >= behind:
                    mark += node_id
                add_mark(replica.digests, mark)

    def settle(self) -> None:
        """Deliver all that is on its way, and what that brings about."""
        count = 0
        while self.sent:
            message = self.sent.pop(0)
            count += 1
            assert count < MESSAGES_MAX, "they never come to an end"
            if not self.loses(message) and self.nodes[message.to].diverged is None:
                self.nodes[message.to].step(message)

    def tick(self, ticks: int = 2) -> None:
        """Let time pass for whoever runs."""
        for _ in range(ticks):
            for node in self.nodes.values():
                if node.diverged is None:
                    node.tick()
            self.settle()

    def diverged(self) -> dict[NodeId, int]:
        """Who has found that it is wrong, and since which entry."""
        return {
            node_id: node.diverged.index
            for node_id, node in self.nodes.items()
            if node.diverged is not None
        }


@pytest.mark.parametrize("count", [3, 5])
@pytest.mark.parametrize("first", [1, 2, 3, 7, 8, 64, 99, 100])
def test_first_difference_is_found(first: int, count: int) -> None:
    """Whichever entry it is, the node that differs names it, says that it is the first, and stops;
    nobody else does."""
    world = World(count)
    world.apply(100, wrong=[2], behind=first - 1)
    world.tick()
    assert world.diverged() == {2: first}
    error = world.nodes[2].diverged
    assert error is not None
    assert f"at entry {first}, it came to something else" in str(error)
    assert "replog rejoin" in str(error)
    assert set(error.others) <= set(range(1, count + 1)) - {2}


def test_one_entry_that_differs() -> None:
    """A single answer that was another one is found, though all behind it is the same."""
    world = World(3)
    world.apply(50)
    alter(world.replicas[3].digests, 21)
    world.tick()
    assert world.diverged() == {3: 21}


def test_equal_replicas_fall_silent() -> None:
    """Who has nothing new to compare says nothing."""
    world = World(3)
    world.apply(1000)
    world.tick()
    sent_count = world.sent_count
    assert sent_count <= 12
    world.tick(20)
    assert world.sent_count == sent_count
    assert not world.told


def test_two_do_not_know_who_is_right() -> None:
    """Without a majority everybody goes on and says so once; when a third one comes, the odd one
    stops, and names the same entry."""
    world = World(3)
    world.loses = lambda message: 3 in (message.sender, message.to)
    world.apply(100, wrong=[1], behind=40)
    world.tick(10)
    assert world.diverged() == {}
    assert sorted(world.told) == [(1, 2, 41), (2, 1, 41)]
    assert world.nodes[2].differences == {1: Difference(41, is_first=True)}
    world.apply(30, wrong=[1])
    world.loses = lambda _: False
    world.tick(4)
    assert world.diverged() == {1: 41}


def test_three_ways() -> None:
    """Where each of three is in a state of its own, nobody stops."""
    world = World(3)
    world.apply(20, wrong=[2, 3], behind=5)
    world.tick(6)
    assert world.diverged() == {}
    assert {pair[:2] for pair in world.told} == {
        (node, peer) for node in (1, 2, 3) for peer in (1, 2, 3) if node != peer
    }


def test_half_of_four_is_no_majority() -> None:
    """Two against two: nobody stops."""
    world = World(4)
    world.apply(20)
    for node_id in (3, 4):
        alter(world.replicas[node_id].digests, 11, 5)
    world.tick(6)
    assert world.diverged() == {}


@pytest.mark.parametrize("lost", range(12))
def test_lost_message_costs_a_period(lost: int) -> None:
    """Whichever message is lost, the next period finds it."""
    world = World(3)
    numbers = iter(range(1 << 30))
    world.loses = lambda _: next(numbers) == lost
    world.apply(100, wrong=[2], behind=33)
    world.tick(6)
    assert world.diverged() == {2: 34}


def test_slow_node_is_compared_as_far_as_it_came() -> None:
    """A node that has applied less is compared up to there, and the others with each other."""
    world = World(3)
    world.apply(100, wrong=[2], behind=10)
    del world.replicas[2].digests.marks[50:]
    world.tick()
    assert world.diverged() == {2: 11}


def test_first_is_not_claimed_where_nobody_knows() -> None:
    """Behind a restart only the last entries can be compared: the first of them that differs may
    not be the first at all, and the sentence says so."""
    world = World(3)
    world.apply(100, wrong=[2], behind=10)
    for node_id in (1, 3):
        begin_at(world.replicas[node_id].digests, 60)
    world.tick()
    assert world.diverged() == {2: 61}
    assert "at entry 61 or before it, it came" in str(world.nodes[2].diverged)


@pytest.mark.parametrize("starting", [(1, 3), (3,)])
def test_agreement_says_nothing_of_what_nobody_knows(starting: Sequence[NodeId]) -> None:
    """Who has agreed on the last entries, with somebody who knows no others, has not agreed on what
    is in front of them: the next entry that differs may not be the first."""
    world = World(3)
    world.apply(60, wrong=[2], behind=10)
    world.apply(40)
    for node_id in starting:
        begin_at(world.replicas[node_id].digests, 60)
    world.tick(4)
    assert world.diverged() == {}
    world.apply(10, wrong=[2])
    world.tick(4)
    assert world.diverged() == {2: 101}
    assert "at entry 101 or before it, it came" in str(world.nodes[2].diverged)


def test_different_starts_fall_silent() -> None:
    """Nodes that know of different stretches agree on what both know, and are silent then."""
    world = World(3)
    world.apply(100)
    for node_id, first in ((1, 99), (3, 40)):
        begin_at(world.replicas[node_id].digests, first)
    world.tick(4)
    sent_count = world.sent_count
    world.tick(20)
    assert world.sent_count == sent_count


def test_much_is_compared_at_once() -> None:
    """Under load what was applied is compared before its marks are gone, whatever the period."""
    assert 2 * ENTRIES_COMPARED_MAX <= MARKS_MAX
    world = World(3)
    world.apply(ENTRIES_COMPARED_MAX, wrong=[3], behind=17)
    world.tick(1)
    assert world.diverged() == {3: 18}


def test_restarted_node_is_right_again() -> None:
    """A peer whose marks are right by now is no more said to differ."""
    world = World(2)
    world.apply(100, wrong=[2], behind=40)
    world.tick()
    assert world.nodes[1].differences
    world.replicas[2].digests.marks[:] = world.replicas[1].digests.marks
    world.tick(4)
    assert not world.nodes[1].differences
    assert not world.nodes[2].differences


def test_new_incarnation_begins_anew() -> None:
    """What differed at a node that was replaced is no word about the one in its place."""
    world = World(3)
    world.loses = lambda message: 3 in (message.sender, message.to)
    world.apply(100, wrong=[2], behind=40)
    world.tick()
    assert 2 in world.nodes[1].differences
    world.replicas[1].learners = (Voter(2, 99),)
    world.nodes[1].tick()
    assert not world.nodes[1].differences


def test_snapshot_ends_the_judgement() -> None:
    """Who was filled from elsewhere since is not stopped by what it had applied before."""
    world = World(3)
    world.apply(100, wrong=[2], behind=40)
    world.loses = lambda message: message.sender == 3
    world.tick()
    assert world.diverged() == {}
    world.replicas[2].digests.forget(100)
    world.loses = lambda _: False
    vote = DigestCompare(1, 0, 3, 2, 40, 41, 5, FORM, 41, 40, is_answer=True)
    world.nodes[2].step(vote)
    world.tick(4)
    assert world.diverged() == {}


def test_votes_are_bounded() -> None:
    """A peer that names one entry after the other fills no memory."""
    world = World(3)
    world.apply(100)
    message = DigestCompare(1, 0, 2, 1, 0, 1, 12345, FORM, 0, 0, is_answer=True)
    for index in range(1, 100):
        world.nodes[1].step(replace(message, after_index=index - 1, upto_index=index))
    assert len(world.nodes[1]._votes) == VOTES_MAX
    assert world.diverged() == {}


@pytest.mark.parametrize(
    "changes",
    [
        {"after_index": 5, "upto_index": 5},
        {"after_index": 6, "upto_index": 5},
        {"after_index": 5, "upto_index": 9, "differs_upto": 8},
    ],
)
def test_senseless_message_refused(changes: dict[str, int]) -> None:
    """A stretch that is none is no correct peer's."""
    world = World(3)
    world.apply(20)
    message = DigestCompare(1, 0, 2, 1, 0, 1, 0, FORM, 0, 0, is_answer=False)
    with pytest.raises(SchemaError, match="makes no sense"):
        world.nodes[1].step(replace(message, **changes))


def test_strangers_are_ignored() -> None:
    """Neither another epoch, nor a node that is no peer, nor one that makes its marks in another
    way is answered."""
    world = World(3)
    world.apply(20)
    message = DigestCompare(1, 0, 2, 1, 0, 1, 12345, FORM, 0, 0, is_answer=False)
    for changed in (
        replace(message, epoch=2),
        replace(message, sender=9),
        replace(message, form=FORM + 1),
    ):
        world.nodes[1].step(changed)
    assert not world.sent


def test_old_votes_do_not_count() -> None:
    """What a node said in an earlier run, in which it was wrong, makes no majority with another
    that is wrong in the same way now."""
    world = World(3)
    world.loses = lambda message: 2 in (message.sender, message.to)
    world.apply(100)
    alter(world.replicas[1].digests, 41)
    world.tick()
    assert world.nodes[3].differences
    alter(world.replicas[1].digests, 41, -1)
    world.tick(4)
    assert not world.nodes[3].differences
    alter(world.replicas[2].digests, 41)
    world.loses = lambda _: False
    world.tick(6)
    assert world.diverged() == {2: 41}


def test_restart_that_replays_otherwise_is_found() -> None:
    """What was agreed on with an earlier run of a node says nothing of what it replays now."""
    world = World(3)
    world.apply(100)
    world.tick()
    world.nodes[2] = Comparison(
        2, world.nodes[2]._epoch, cast(Replica, world.replicas[2]), LIMITS, world.put
    )
    begin_at(world.replicas[2].digests, 30)
    alter(world.replicas[2].digests, 51)
    world.apply(10)
    world.tick(6)
    assert world.diverged() == {2: 51}
    assert "at entry 51 or before it" in str(world.nodes[2].diverged)


@pytest.mark.parametrize("count", [5, 11])
def test_chaos_is_bounded(count: int) -> None:
    """Where every node is in a state of its own, a period costs a bounded number of messages."""
    world = World(count)
    for _ in range(20):
        world.apply(10, wrong=range(1, count + 1))
        before = world.sent_count
        world.tick()
        assert world.sent_count - before < 40 * count * count
