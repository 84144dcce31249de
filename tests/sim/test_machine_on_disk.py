"""A machine on a disk of its own is given what is durable in its node's log, all of it, and no
more."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from replog.errors import CommandFailed, MachineDamaged
from replog.plugins import engine_names, find_engine
from replog.testing.checks import Violation
from replog.testing.cluster import Cluster
from replog.testing.judged_machine import JudgedKeeper, JudgedOnDisk, Results
from replog.testing.nodes import ClusterNode, Outcome, Proposal
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


# -- answers that are kept --


class Asker:
    """A client with a session at a lone node, whose commands change one register."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.session_id = 0
        self._turn(lambda node: node.turns.open_session(self._hear_opened))
        cluster.tick(3)
        assert self.session_id

    def _turn(self, act: Callable[[ClusterNode], object]) -> None:
        node = self.cluster.nodes[1]
        self.cluster.driver.turn(node, lambda: act(node))

    def _hear_opened(self, index: int, session_id: object, error: Exception | None) -> None:
        assert error is None
        self.session_id = index

    def ask(self, sequence: int) -> Proposal:
        """Send a copy of the command ``sequence``, which succeeds where it is applied in turn, and
        once; the client acknowledges nothing."""
        payload = b"cas a %d %d" % (sequence - 1, sequence)
        mark = (self.session_id, sequence, 1)
        node = self.cluster.nodes[1]
        proposal = self.cluster.driver.propose(node, payload, mark=mark)
        self.cluster.tick(3)
        assert proposal.outcome is Outcome.DONE
        return proposal


def asked(engine: str, machine: type[JudgedOnDisk]) -> tuple[Asker, list[Proposal]]:
    """A lone node with such a machine, and four commands in a session, three of which are durable
    there; no snapshot is taken unless somebody asks for it."""
    results = Results()
    cluster = Cluster(
        find_engine(engine), node_count=1, machine=lambda: machine(Registers(), results)
    )
    cluster.campaign(1)
    cluster.settle()
    assert cluster.run_until_done(b"put a 0", 10)
    asker = Asker(cluster)
    first = [asker.ask(sequence) for sequence in range(1, 5)]
    assert [proposal.result for proposal in first] == [True] * 4
    return asker, first


def restarted(cluster: Cluster) -> JudgedOnDisk:
    """The machine of node 1 after its process was killed and started again."""
    cluster.crash_process(1)
    cluster.restart(1)
    cluster.campaign(1)
    cluster.tick(3)
    machine = cluster.nodes[1].machine
    assert isinstance(machine, JudgedOnDisk)
    return machine


def told_again(asker: Asker, first: list[Proposal]) -> None:
    """Who asks again for each command is told the first answer of each."""
    for sequence, proposal in enumerate(first, 1):
        again = asker.ask(sequence)
        assert (again.answer_index, again.result, again.error) == (proposal.index, True, None)


def test_answers_outlive_a_restart(engine: str) -> None:
    """A node whose machine keeps answers gives the first one after a restart, too: of what is
    applied no more, and of what is applied again."""
    asker, first = asked(engine, JudgedKeeper)
    machine = restarted(asker.cluster)
    assert isinstance(machine, JudgedKeeper)
    held = [proposal.index for proposal in first if proposal.index <= machine.disk.index]
    assert len(held) == 2, "the first to be saved was none of a session"
    assert machine.recalled == set(held)
    told_again(asker, first)
    restarted(asker.cluster)
    told_again(asker, first)


def test_answers_lost_without_a_keeper(engine: str) -> None:
    """Where the machine keeps none, who asks again hears that the command was done, and no more."""
    asker, first = asked(engine, JudgedOnDisk)
    restarted(asker.cluster)
    again = asker.ask(1)
    assert isinstance(again.error, CommandFailed)
    assert again.error.name == "AnswerNotKept"
    assert again.answer_index == first[0].index


def test_answers_outlive_a_snapshot_that_fails(engine: str) -> None:
    """A node that is killed while it takes a snapshot has the answers still; when one is durable
    they are forgotten, and are found in that."""
    asker, first = asked(engine, JudgedKeeper)
    cluster = asker.cluster
    disk = cluster.nodes[1].machine_disk
    cluster.nodes[1].turns.snapshots.take(lambda *_: None)  # its job has not run yet
    machine = restarted(cluster)
    assert isinstance(machine, JudgedKeeper)
    assert machine.recalled
    told_again(asker, first)
    cluster.take_snapshot(1)
    cluster.tick(3)
    first += [asker.ask(sequence) for sequence in range(5, 8)]
    assert min(disk.answers) > first[3].index
    machine = restarted(cluster)
    assert isinstance(machine, JudgedKeeper)
    assert machine.recalled == {each.index for each in first if each.index <= disk.index} & set(
        disk.answers
    )
    told_again(asker, first)


def test_machine_is_left_alone_while_it_is_filled(
    engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A snapshot that becomes durable while another thread fills the machine from another one has
    nothing forgotten: nobody may touch the machine then."""
    asker, _ = asked(engine, JudgedKeeper)
    node = asker.cluster.nodes[1]
    snapshots, forgotten = node.turns.snapshots, []
    monkeypatch.setattr(JudgedKeeper, "forget_answers", lambda _, upto: forgotten.append(upto))
    asker.cluster.take_snapshot(1)
    snapshots.is_installing = True
    asker.cluster.settle()
    assert snapshots.newest is not None
    assert forgotten == []
    snapshots.is_installing = False
    asker.ask(5)
    asker.cluster.take_snapshot(1)
    asker.cluster.settle()
    assert forgotten == [snapshots.newest.meta.last.index]
