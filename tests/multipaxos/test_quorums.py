"""Flexible quorums (FPaxos §3): recorded with the cluster, and what follows for who may decide."""

from __future__ import annotations

import pytest
from paxos_given import engine_of, lone, vote

from replog.errors import ConfigError, DirectoryError, LogDamaged, UnknownFormat
from replog.quorum import Threshold
from replog.testing import Cluster, Outcome
from replog_multipaxos import PLUGIN, MultiPaxosOptions


def flexible(node_count: int, phase1: int, phase2: int) -> Cluster:
    """A cluster with other quorums than majorities, led by node 1."""
    options = MultiPaxosOptions(phase1_quorum=phase1, phase2_quorum=phase2)
    quorum = Threshold(tuple(range(1, node_count + 1)), phase2)
    cluster = Cluster(PLUGIN, options, node_count=node_count, quorum=quorum)
    cluster.campaign(1)
    cluster.settle()
    assert cluster.leader() == 1
    return cluster


@pytest.mark.parametrize(
    ("given", "nodes", "sizes"),
    [
        ((0, 0), 3, (2, 2)),
        ((0, 0), 4, (3, 3)),
        ((4, 0), 5, (4, 2)),
        ((0, 2), 5, (4, 2)),
        ((3, 2), 4, (3, 2)),
    ],
)
def test_sizes(given: tuple[int, int], nodes: int, sizes: tuple[int, int]) -> None:
    """Majorities by default; of two sizes the one that is left out is the least that will do."""
    options = MultiPaxosOptions(phase1_quorum=given[0], phase2_quorum=given[1])
    assert dict(PLUGIN.agreed(options, nodes)) == {
        "phase1_quorum": sizes[0],
        "phase2_quorum": sizes[1],
    }


@pytest.mark.parametrize(
    ("given", "nodes", "sentence"),
    [((2, 2), 4, "need not meet"), ((6, 2), 5, "is not 1 to 5"), ((1, 1), 2, "need not meet")],
)
def test_sizes_refused(given: tuple[int, int], nodes: int, sentence: str) -> None:
    """Sizes that need not meet, or that nobody can reach, found no cluster."""
    options = MultiPaxosOptions(phase1_quorum=given[0], phase2_quorum=given[1])
    with pytest.raises(ConfigError, match=sentence):
        PLUGIN.agreed(options, nodes)


def test_one_sentence_per_wrong_size() -> None:
    """A size that cannot be is named; what would have been derived from it is not."""
    with pytest.raises(ConfigError) as caught:
        PLUGIN.agreed(MultiPaxosOptions(phase1_quorum=9), 3)
    assert caught.value.problems == ["phase1_quorum: 9 is not 1 to 3, the number of nodes"]


def test_unknown_agreement_refused() -> None:
    """A cluster that agreed on something which this release does not know is not joined."""
    with pytest.raises(UnknownFormat, match="founded with read_quorum"):
        lone(agreed=(("phase1_quorum", 2), ("read_quorum", 2)))


@pytest.mark.parametrize(
    "agreed",
    [
        (("phase1_quorum", 1), ("phase2_quorum", 1)),
        (("phase2_quorum", 1),),
        (("phase1_quorum", 4), ("phase2_quorum", 2)),
        (("phase1_quorum", 0), ("phase2_quorum", 3)),
    ],
)
def test_recorded_sizes_must_meet(agreed: tuple[tuple[str, int], ...]) -> None:
    """A record with sizes that no founding could have written starts no node."""
    with pytest.raises(DirectoryError, match="need not meet or cannot be reached"):
        lone(agreed=agreed)


def test_status_says_how_many_commit_and_elect() -> None:
    """A node's status names the quorums of both phases."""
    agreed = (("phase1_quorum", 4), ("phase2_quorum", 2))
    status = lone(node_count=5, agreed=agreed).status()
    assert (status.election_quorum, status.commit_quorum) == (4, 2)


def test_small_phase2_quorum_commits() -> None:
    """With quorums of 4 and 2 out of 5, two nodes commit."""
    cluster = flexible(5, 4, 2)
    for node_id in (3, 4, 5):
        cluster.crash(node_id)
    proposal = cluster.propose(1, b"x")
    cluster.settle()
    assert proposal.outcome is Outcome.DONE


def test_large_phase1_quorum_needed() -> None:
    """With the same quorums three nodes elect nobody, and four do."""
    cluster = flexible(5, 4, 2)
    cluster.crash(1)
    cluster.crash(5)
    cluster.tick(200)
    assert cluster.leader() == 0
    cluster.restart(5)
    assert cluster.run_until(lambda: cluster.leader() != 0, 200)


def test_small_quorum_is_found_again() -> None:
    """What two of five chose is in the log of the next leader, though both may be slow to tell."""
    cluster = flexible(5, 4, 2)
    cut = cluster.partition((1, 2), (3, 4, 5))
    proposal = cluster.propose(1, b"x")
    cluster.settle()
    assert proposal.outcome is Outcome.DONE
    cluster.mend(cut)
    cluster.crash(1)
    assert cluster.run_until(lambda: cluster.leader() != 0, 200)
    cluster.tick(10)
    assert all(len(cluster.applied(node_id)) == 1 for node_id in (2, 3, 4, 5))


def test_epoch_decides_not_the_file() -> None:
    """The sizes come from the epoch's record; options that leave them out follow it, and options
    that ask for others are refused."""
    agreed = (("phase1_quorum", 4), ("phase2_quorum", 2))
    engine = lone(node_count=5, agreed=agreed)
    assert (engine.phase1_quorum.size, engine.phase2_quorum.size) == (4, 2)
    with pytest.raises(ConfigError, match="phase2_quorum: the cluster was founded with 2, not 3"):
        lone(node_count=5, agreed=agreed, options=MultiPaxosOptions(phase2_quorum=3))


def test_preferred_node_must_vote() -> None:
    """A preferred node that is no voter is a mistake of the configuration."""
    with pytest.raises(ConfigError, match="there is no node 9"):
        lone(options=MultiPaxosOptions(preferred_node=9))


@pytest.mark.parametrize(
    ("entries", "hint", "sentence"),
    [
        ([vote(2, 5)], 2, "lacks a slot up to 2"),
        ([], 1, "lacks a slot up to 1"),
        ([vote(1, 1 << 30)], 0, "above its promise"),
    ],
)
def test_impossible_log_refused(entries: list, hint: int, sentence: str) -> None:
    """A log that no acceptor leaves is damage, and its node must not vote."""
    with pytest.raises(LogDamaged, match=sentence):
        lone(promised=1 << 20, entries=entries, hint=hint)


def test_slot_below_the_epoch_refused() -> None:
    """A vote in a slot of an earlier epoch is none of this one."""
    with pytest.raises(LogDamaged, match="holds a slot below 3"):
        lone(promised=1 << 20, entries=[vote(2, 5)], start_index=3)


def test_holes_are_no_damage() -> None:
    """A log with holes above what is known as chosen is a log like any other."""
    engine = lone(promised=1 << 20, entries=[vote(1, 5), vote(4, 5)], hint=1)
    assert (engine.commit_index, engine.slots.last_index) == (1, 4)


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"heartbeat_ticks": 0}, "heartbeat_ticks"),
        ({"election_ticks_min": 3}, "election_ticks_min"),
        ({"election_ticks_max": 10}, "election_ticks_max"),
        ({"preferred_node": 65_536}, "preferred_node"),
        ({"open_slots_max": 0}, "open_slots_max"),
        ({"phase1_quorum": -1}, "phase1_quorum"),
        ({"phase2_quorum": -1}, "phase2_quorum"),
    ],
)
def test_options_refused(options: dict[str, int], key: str) -> None:
    """Every relation between the options that does not hold is named by its key."""
    assert [problem.partition(":")[0] for problem in MultiPaxosOptions(**options).problems()] == [
        key
    ]  # type: ignore[arg-type]


def test_check_quorum_uses_phase2() -> None:
    """A leader stays as long as it hears a phase-2 quorum, be it smaller than a majority."""
    cluster = flexible(5, 4, 2)
    for node_id in (3, 4, 5):
        cluster.crash(node_id)
    cluster.tick(100)
    assert engine_of(cluster, 1).leader is not None
