"""A machine on a disk of its own is given what is durable in its node's log, all of it, and no
more."""

from __future__ import annotations

import pytest

from replog.errors import MachineDamaged
from replog.plugins import engine_names, find_engine
from replog.testing.checks import Violation
from replog.testing.cluster import Cluster
from replog.testing.judged_machine import JudgedOnDisk, Results
from replog.testing.nodes import Outcome
from replog.testing.registers import Registers
from replog.types import NodeId

pytestmark = pytest.mark.parametrize("engine", engine_names())


def cluster_of(engine: str, node_count: int, sync_ticks: int = 0) -> Cluster:
    """A cluster whose machines are on disks, and that node 1 leads."""
    results = Results()
    cluster = Cluster(
        find_engine(engine),
        node_count=node_count,
        sync_ticks=sync_ticks,
        machine=lambda: JudgedOnDisk(Registers(), results),
    )
    cluster.campaign(1)
    cluster.settle()
    cluster.tick(2 * sync_ticks)
    assert cluster.leader() == 1
    return cluster


def applied_count(cluster: Cluster, node_id: NodeId) -> int:
    """How many commands the node's machine holds."""
    return sum(1 for entry in cluster.applied(node_id) if entry.data)


def test_last_command_is_applied(engine: str) -> None:
    """Commands that become durable at the same time are all applied, also when nothing else
    happens: a lone node has no heartbeats."""
    cluster = cluster_of(engine, 1, sync_ticks=2)
    proposals = [cluster.propose(1, b"put a %d" % at) for at in range(5)]
    cluster.tick(8)
    assert [proposal.outcome for proposal in proposals] == [Outcome.DONE] * 5
    assert applied_count(cluster, 1) == 5


def test_nothing_is_applied_before_it_is_durable_here(engine: str) -> None:
    """What a quorum of others holds is committed, and is applied here when it is on this disk."""
    cluster = cluster_of(engine, 3)
    cluster.tick(3)
    before = applied_count(cluster, 1)
    cluster.hold_disk(1)
    proposal = cluster.propose(1, b"put a 1")
    cluster.tick(6)
    assert cluster.nodes[1].status_seen.commit_index > cluster.nodes[1].status_seen.durable_index
    assert (applied_count(cluster, 1), proposal.outcome) == (before, Outcome.PENDING)
    cluster.release_disk(1)
    cluster.tick(2)
    assert (applied_count(cluster, 1), proposal.outcome) == (before + 1, Outcome.DONE)


def test_machine_goes_on_from_its_disk(engine: str) -> None:
    """After a restart only what the machine had not made durable is applied again."""
    cluster = cluster_of(engine, 3)
    for at in range(7):
        cluster.propose(1, b"put a %d" % at)
        cluster.settle()
    cluster.tick(3)
    cluster.crash(2)
    held_index = cluster.nodes[2].machine_disk.index
    assert held_index > 0
    cluster.restart(2)
    assert cluster.nodes[2].applied_index == held_index
    assert cluster.run_until(cluster.is_converged, 60)


def test_machine_ahead_of_the_log_is_refused(engine: str) -> None:
    """A machine that holds what the log does not stops the node at its start."""
    cluster = cluster_of(engine, 3)
    cluster.propose(1, b"put a 1")
    cluster.tick(3)
    cluster.crash(2)
    cluster.nodes[2].machine_disk.index = 1000
    with pytest.raises(Violation, match=MachineDamaged.__name__):
        cluster.restart(2)


def test_machine_behind_its_report_is_refused(engine: str) -> None:
    """A machine that once reported more has lost something; one that reports nothing is filled
    again."""
    cluster = cluster_of(engine, 3)
    for at in range(9):
        cluster.propose(1, b"put a %d" % at)
        cluster.settle()
    cluster.tick(3)
    disk = cluster.nodes[2].machine_disk
    cluster.crash(2)
    cluster.restart(2)  # reports what it holds
    held_index, disk.index = disk.index, 0
    cluster.crash(2)
    cluster.restart(2)
    assert cluster.run_until(cluster.is_converged, 60)
    assert disk.index >= held_index
    cluster.crash(2)
    cluster.restart(2)
    disk.index -= 1
    cluster.crash(2)
    with pytest.raises(Violation, match=MachineDamaged.__name__):
        cluster.restart(2)
