"""Voters that lost their disks and came back as learners, and voters that were replaced as they
ran: what the cluster does, step by step, and that the judges of it can fail."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from replog import control, snapshots
from replog.limits import Limits
from replog.plugins import engine_names, find_engine
from replog.quorum import Without
from replog.testing import members, runs
from replog.testing.chance import Selection
from replog.testing.checks import Violation
from replog.testing.cluster import Cluster
from replog.testing.disk import DiskModel
from replog.testing.files import Crashed, set_crash
from replog.testing.goals import COMMON, ON_FILES, Goals
from replog.testing.judged_machine import SAVED_COUNT, JudgedOnDisk, Results
from replog.testing.nodes import Outcome, Recorder
from replog.testing.registers import Registers
from replog.testing.rejoining import Rejoining
from replog.testing.sim import SimOptions, simulate
from replog.testing.trials import find_trial
from replog.types import NO_NODE, NodeId, Role, SnapshotMeta, Voter
from replog_multipaxos import MultiPaxos
from replog_raft import Raft

ENGINES = pytest.mark.parametrize("engine", engine_names())
TICKS_MAX = 400
SNAPSHOTS = Limits(snapshot_entries=5, trim_margin_entries=1)
ONE_BY_ONE = Limits(apply_entries_max=1)
"""So that a leader tells how far it has committed before it has applied all of it."""
NOTICES = ("heartbeat", "commit")
"""By which a leader tells how far it has committed, when it has nothing to propose."""


def led(engine: str, node_count: int = 3, first: bytes = b"first", **settings: object) -> Cluster:
    """A cluster that node 1 leads, with one command done and the engine's own rules judged."""
    plugin = find_engine(engine)
    trial, options = find_trial(plugin), plugin.options()
    goals = Goals({**COMMON, **ON_FILES, **trial.goals})
    cluster = Cluster(
        plugin,
        options,
        node_count=node_count,
        goals=goals,
        checks=trial.checks(options, tuple(range(1, node_count + 1)), goals),
        **settings,  # type: ignore[arg-type]
    )
    cluster.campaign(1)
    assert cluster.run_until(lambda: cluster.leader() == 1, TICKS_MAX)
    done(cluster, first)
    assert cluster.run_until(cluster.is_converged, TICKS_MAX)
    return cluster


def done(cluster: Cluster, *payloads: bytes) -> None:
    for payload in payloads:
        assert cluster.run_until_done(payload, TICKS_MAX)


def lose(cluster: Cluster, *node_ids: NodeId, started: bool = True) -> None:
    for node_id in node_ids:
        cluster.crash(node_id)
        cluster.rejoin(node_id, started)


def payloads(cluster: Cluster, node_id: NodeId) -> Sequence[bytes]:
    machine = cluster.nodes[node_id].machine
    assert isinstance(machine, Recorder)
    return machine.payloads


def reached(cluster: Cluster) -> Sequence[str]:
    return cluster.driver.goals.reached


def learners(cluster: Cluster, node_id: NodeId) -> Sequence[Voter]:
    return cluster.nodes[node_id].replica.learners


@ENGINES
@pytest.mark.parametrize("is_real", [False, True])
def test_lost_voter_comes_up_by_snapshot(engine: str, is_real: bool) -> None:
    """A voter that lost its disk, when the log was trimmed long ago, is filled from a snapshot as a
    learner, and has what was acknowledged while it was gone."""
    model = DiskModel(is_real=is_real)
    cluster = led(engine, limits=SNAPSHOTS, disk_model=model, codec=is_real)
    done(cluster, *(b"%d" % number for number in range(20)))
    cluster.crash(3)
    done(cluster, b"meanwhile")
    cluster.rejoin(3)
    assert cluster.run_until(cluster.is_converged, TICKS_MAX)
    assert b"meanwhile" in payloads(cluster, 3)
    assert "learner_caught_up_by_snapshot" in reached(cluster)
    own = cluster.nodes[3].own
    assert own != Voter(3, 3)
    assert [learners(cluster, node_id) for node_id in cluster.nodes] == [(own,)] * 3
    cluster.check_liveness(TICKS_MAX, TICKS_MAX)


@ENGINES
def test_lost_voter_comes_up_in_an_idle_cluster(engine: str) -> None:
    """A learner is sent the log though nobody proposes anything any more."""
    cluster = led(engine)
    lose(cluster, 3)
    assert cluster.run_until(cluster.is_converged, TICKS_MAX)
    assert payloads(cluster, 3) == [b"first"]
    assert "learner_caught_up_by_log" in reached(cluster)


@ENGINES
def test_learner_is_heard_by_who_has_applied_its_entry(engine: str) -> None:
    """A learner that is started before its entry is applied is heard by nobody, nor after it by the
    one that has not applied that yet."""
    cluster = led(engine)
    cluster.hold(lambda flight: flight.to == 2 and flight.kind in NOTICES)
    lose(cluster, 3)
    cluster.tick(4)
    assert [learners(cluster, node_id) for node_id in (1, 2)] == [(cluster.nodes[3].own,), ()]
    heard = [cluster.driver.members._in_force(cluster.nodes[node_id], 3) for node_id in (1, 2)]
    assert heard == [cluster.nodes[3].incarnation, 3]
    assert any("reason=incarnation" in line for line in cluster.trace.lines())
    cluster.release()
    assert cluster.run_until(cluster.is_converged, TICKS_MAX)


@ENGINES
def test_two_of_three_lost(engine: str) -> None:
    """When two voters of three have lost their disks, nothing is committed any more, not even who
    rejoins; nothing is lost, and nothing is made up."""
    cluster = led(engine)
    lose(cluster, 2, 3)
    late = cluster.propose(1, b"late")
    cluster.tick(TICKS_MAX)
    assert late.outcome is Outcome.UNKNOWN
    assert cluster.leader() == NO_NODE
    assert [payloads(cluster, node_id) for node_id in cluster.nodes] == [[b"first"], [], []]
    assert not cluster.run_until_done(b"later", TICKS_MAX)
    assert not cluster.is_converged()
    cluster.check_acknowledged()


@ENGINES
def test_two_of_five_lost(engine: str) -> None:
    """When two voters of five have lost their disks, the other three go on, and lack none of them
    from then on."""
    cluster = led(engine, 5)
    lose(cluster, 4, 5)
    assert cluster.run_until(cluster.is_converged, TICKS_MAX)
    assert not cluster.can_lose(3)
    done(cluster, b"with three")
    cluster.crash(3)
    assert not cluster.run_until_done(b"with two", TICKS_MAX)
    cluster.restart(3)
    cluster.check_liveness(TICKS_MAX, TICKS_MAX)
    assert payloads(cluster, 5)[:2] == [b"first", b"with three"]


@ENGINES
def test_lost_again(engine: str) -> None:
    """A learner that loses its disk comes back under a third incarnation, and nobody hears the
    second any more."""
    cluster = led(engine)
    lose(cluster, 3)
    assert cluster.run_until(cluster.is_converged, TICKS_MAX)
    second = cluster.nodes[3].own
    cluster.hold(lambda flight: flight.sender == 3)
    done(cluster, b"second")
    lose(cluster, 3)
    third = cluster.nodes[3].own
    assert len({second, third, Voter(3, 3)}) == 3
    cluster.release()
    assert cluster.run_until(cluster.is_converged, TICKS_MAX)
    assert "rejoined_twice" in reached(cluster)
    assert [learners(cluster, node_id) for node_id in cluster.nodes] == [(third,)] * 3
    assert payloads(cluster, 3) == [b"first", b"second"]


@ENGINES
def test_lost_again_before_it_was_taken_in(engine: str) -> None:
    """Whoever is lost again before anybody knew of it is taken in under its last incarnation."""
    cluster = led(engine)
    cluster.isolate(1)
    lose(cluster, 3)
    lose(cluster, 3)
    cluster.heal()
    assert cluster.run_until(cluster.is_converged, TICKS_MAX)
    assert learners(cluster, 1) == (cluster.nodes[3].own,)


@ENGINES
def test_started_when_it_was_taken_in(engine: str) -> None:
    """Whoever waits with the new node until it is taken in finds it heard at once."""
    cluster = led(engine)
    lose(cluster, 3, started=False)
    assert not cluster.nodes[3].is_up
    assert cluster.run_until(cluster.is_converged, TICKS_MAX)


@ENGINES
def test_learner_stays_one_when_it_is_restarted(engine: str) -> None:
    """A learner that has heard of no entry, and one that has, neither asks for votes nor gives any
    after a restart, whoever asks it."""
    cluster = led(engine, limits=SNAPSHOTS)
    cluster.isolate(3)
    lose(cluster, 3)
    for _ in range(2):
        cluster.crash(3)
        cluster.restart(3)
        cluster.campaign(3)
        cluster.tick(100)
        assert cluster.nodes[3].status_seen.role is Role.FOLLOWER
        cluster.heal()
        assert cluster.run_until(cluster.is_converged, TICKS_MAX)
        done(cluster, *(b"%d" % number for number in range(10)))
        cluster.campaign(2)
        cluster.tick(20)
    assert learners(cluster, 3) == (cluster.nodes[3].own,)


@ENGINES
def test_late_word_of_the_old_incarnation(engine: str) -> None:
    """What the lost incarnation had said arrives when the new one is taken in, and counts no
    more: the new one is sent all that it lacks."""
    cluster = led(engine)
    cluster.hold(lambda flight: flight.sender == 3)
    done(cluster, b"x", b"y")
    lose(cluster, 3)
    cluster.tick(4)
    assert learners(cluster, 1)
    cluster.release()
    cluster.settle()
    assert cluster.run_until(cluster.is_converged, TICKS_MAX)
    assert payloads(cluster, 3) == [b"first", b"x", b"y"]


# -- replaced while it runs --


def replace_cut_off(cluster: Cluster) -> None:
    """Node 3 is cut off and replaced, which nodes 1 and 2 hold and only node 1 knows as committed;
    then node 1 is gone, and node 2 reaches node 3, and commits it with its help."""
    cluster.isolate(3)
    cluster.tick(30)
    cluster.hold(lambda flight: flight.to == 2 and flight.kind in NOTICES)
    cluster.propose(1, b"before")
    cluster.replace(3)
    cluster.tick()
    assert [bool(learners(cluster, node_id)) for node_id in (1, 2, 3)] == [True, False, False]
    cluster.crash(1)
    cluster.drop()
    cluster.network.held.clear()
    cluster.release()
    cluster.heal()
    cluster.campaign(2)
    cluster.settle()


@ENGINES
def test_replaced_as_it_was_cut_off(engine: str) -> None:
    """A voter that was merely cut off, and is replaced, gives its word for as long as nobody it
    reaches knows; it stops when it hears of the entry, which it helps to commit; and its successor
    has everything."""
    cluster = led(engine, limits=ONE_BY_ONE)
    replace_cut_off(cluster)
    assert cluster.leader() == 2
    assert not cluster.nodes[3].is_up
    assert "replaced_node_stopped" in reached(cluster)
    assert learners(cluster, 2)
    cluster.restart(1)
    assert cluster.run_until(cluster.is_converged, TICKS_MAX)
    assert cluster.nodes[3].is_learner
    done(cluster, b"later")
    cluster.check_liveness(TICKS_MAX, TICKS_MAX)


@ENGINES
def test_replaced_leader(engine: str) -> None:
    """A leader has nobody put in its own place; the operator stops it, the others take in who comes
    after it, and whoever waited was told."""
    cluster = led(engine)
    old = cluster.nodes[1].own
    waiting = cluster.propose(1, b"x")
    cluster.replace(1)
    cluster.tick()
    assert "reason=NodeActive" in "\n".join(cluster.trace.lines())
    assert cluster.run_until(lambda: cluster.nodes[1].own != old, TICKS_MAX)
    assert waiting.outcome is not Outcome.PENDING
    assert cluster.run_until(cluster.is_converged, TICKS_MAX)
    assert cluster.nodes[1].is_learner
    cluster.check_liveness(TICKS_MAX, TICKS_MAX)


@ENGINES
def test_replaced_and_never_heard_of_it(engine: str) -> None:
    """A voter that is cut off until the end is stopped by the operator, and its successor runs."""
    cluster = led(engine)
    cut = cluster.isolate(3)
    cluster.replace(3)
    assert cluster.run_until(lambda: cluster.nodes[3].is_learner, TICKS_MAX)
    assert "replaced_node_stopped" not in reached(cluster)
    cluster.mend(cut)
    assert cluster.run_until(cluster.is_converged, TICKS_MAX)


@ENGINES
def test_old_directory_is_started_again(engine: str) -> None:
    """Whoever was replaced, has heard of it and is started again stops again, be it that the entry
    is in its log or in its snapshot."""
    cluster = led(engine, limits=replace(ONE_BY_ONE, snapshot_entries=5, trim_margin_entries=1))
    replace_cut_off(cluster)
    assert not cluster.nodes[3].is_up
    cluster.restart(3)
    cluster.restart(1)
    assert cluster.run_until(cluster.is_converged, TICKS_MAX)


@ENGINES
@pytest.mark.parametrize(("node_id", "losses"), [(2, 1), (3, 1), (3, 2)])
def test_machine_behind_the_snapshot(engine: str, node_id: NodeId, losses: int) -> None:
    """A machine on its own disk that lags behind its node's newest snapshot is handed old entries
    again, and who takes part never goes back with them."""
    results = Results()
    cluster = led(
        engine,
        limits=ONE_BY_ONE,
        machine=lambda: JudgedOnDisk(Registers(), results),
        first=b"put a 1",
    )
    for _ in range(losses):
        lose(cluster, 3)
        assert cluster.run_until(cluster.is_converged, TICKS_MAX)
    node = cluster.nodes[node_id]
    cluster.take_snapshot(node_id)
    cluster.tick(5)
    assert node.turns.snapshots.newest is not None
    done(cluster, b"put b 2")  # Multi-Paxos notes how far it has committed
    cluster.tick(3)
    cluster.crash(node_id)
    cluster.restart(node_id)
    assert cluster.run_until(cluster.is_converged, TICKS_MAX)
    assert list(learners(cluster, node_id)) == [cluster.nodes[3].own]


def stale_leader(patch: pytest.MonkeyPatch, engine: str, is_late: bool) -> Cluster:
    """Node 5 of five was lost, and is taken in.  Then node 1, which led and has a proposal of its
    own, stands still while the others go on under another.  Node 5 is started, with a backup from
    before anybody was asked to take it in or (``is_late``) of now, and hears node 1 first."""
    patch.setattr(Rejoining, "_plan_finish", lambda *_: None)
    cluster = led(engine, 5)
    cluster.crash(5)
    if not is_late:
        cluster.take_snapshot(2)
        cluster.tick(3)
    cluster.replace(5)
    if not is_late:
        cluster.back_up(5, 2)
    assert cluster.run_until(
        lambda: all(learners(cluster, each) for each in (1, 2, 3, 4)), TICKS_MAX
    )
    cluster.tick(2)
    cluster.isolate(1)
    cluster.propose(1, b"stale")
    cluster.settle()
    cluster.pause(1)
    assert cluster.run_until(lambda: cluster.leader() in (2, 3, 4), TICKS_MAX)
    done(cluster, b"fresh")
    cluster.tick(3)
    if is_late:
        cluster.take_snapshot(2)
        cluster.tick(3)
        cluster.back_up(5, 2)
    cluster.heal()
    cluster.partition((1, 5), (2, 3, 4))
    cluster.rejoin(5)
    cluster.resume(1)
    cluster.tick(5)
    return cluster


@ENGINES
def test_backup_of_before_the_entry(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that begins with a backup of before it was taken in takes nobody in, and comes up."""
    cluster = stale_leader(monkeypatch, engine, is_late=False)
    assert "learner_began_with_backup" in reached(cluster)
    cluster.heal()
    assert cluster.run_until(cluster.is_converged, TICKS_MAX)
    assert payloads(cluster, 5) == [b"first", b"fresh"]


def test_backup_of_behind_the_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    """A newer backup says that something was chosen and not at which ballot, and by its word a
    deposed leader of Multi-Paxos takes its own proposal for that: so none is ever added later."""
    with pytest.raises(Violation) as found:
        stale_leader(monkeypatch, "multipaxos", is_late=True)
    assert found.value.invariant in ("I2", "I3", "P2")


# -- by chance --


def test_backup_is_no_operation_of_its_source() -> None:
    """A backup is read by the operator: the crash that awaits its node at its next operation
    strikes the node, and not the simulator."""
    model = DiskModel(is_real=True)
    cluster = led(engine_names()[0], limits=SNAPSHOTS, disk_model=model, codec=True)
    done(cluster, *(b"%d" % number for number in range(20)))
    files = cluster.nodes[2].snapshots.files
    set_crash(files, 1)
    armed = files.fault
    cluster.back_up(3, 2)
    assert files.fault is armed
    with pytest.raises(Crashed):
        cluster.nodes[2].snapshots.store.newest()


@ENGINES
def test_rejoin_and_replace_by_chance(engine: str) -> None:
    """A seed in which nodes rejoin and are replaced comes to what it is there for."""
    faults = Selection.parse("crash,rejoin,replace,cut,late,campaign")
    report = simulate(SimOptions(engine, 4, ticks=160, faults=faults))
    assert "learner_admitted" in report.goals


@ENGINES
def test_machine_ahead_of_its_snapshot_misses_no_learner(engine: str) -> None:
    """A machine on a disk of its own may hold more than the newest snapshot; who became a learner
    in between is read from the log at the next start."""
    results = Results()
    cluster = led(engine, machine=lambda: JudgedOnDisk(Recorder(), results))
    cluster.take_snapshot(1)
    cluster.tick()
    lose(cluster, 3)
    done(cluster, *(b"%d" % number for number in range(SAVED_COUNT + 1)))
    assert cluster.run_until(cluster.is_converged, TICKS_MAX)
    node, [control] = cluster.nodes[1], cluster.invariants.controls
    assert 0 < node.snapshots.durable_index < control.index <= node.machine_disk.index
    cluster.crash(1)
    cluster.restart(1)
    assert [each.node_id for each in node.replica.learners] == [3]


# -- the judges can fail --


def nobody_is_replaced(patch: pytest.MonkeyPatch) -> None:
    """A node goes on when another incarnation took its place."""
    patch.setattr("replog.replica.check_not_replaced", lambda *_: None)


def voters_heard_first(patch: pytest.MonkeyPatch) -> None:
    """The incarnation that was lost is heard for ever, and the new one never."""
    right = control.incarnation_in_force
    patch.setattr(members, "incarnation_in_force", lambda epoch, _, node: right(epoch, (), node))


def no_learners_in_snapshots(patch: pytest.MonkeyPatch) -> None:
    """Whoever is filled from a snapshot knows of no learners."""
    patch.setattr(snapshots, "SnapshotMeta", lambda *fields: SnapshotMeta(*fields[:4]))


def forgotten_by_restart(patch: pytest.MonkeyPatch) -> None:
    """A learner knows that it is one from the entry alone."""
    patch.setattr(runs, "learners_at", lambda _, __, learners: learners)


def counted_in_quorums(patch: pytest.MonkeyPatch) -> None:
    """The word of a learner counts as the voter's did."""
    patch.setattr(Without, "is_quorum", lambda self, nodes: self.system.is_quorum(nodes))
    patch.setattr(
        Without, "committed_index", lambda self, match: self.system.committed_index(match)
    )


def old_acknowledgements_kept(patch: pytest.MonkeyPatch) -> None:
    """A leader goes on from what the lost incarnation had."""
    patch.setattr("replog_raft.leader.forget_peers", lambda *_: None)


def learners_vote(patch: pytest.MonkeyPatch) -> None:
    """A learner gives its vote or its promise."""
    for engine in (Raft, MultiPaxos):
        patch.setattr(engine, "is_learner", False)


def a_snapshot_later(cluster: Cluster) -> None:
    """Node 3 is taken in, and then its entry is trimmed before it hears of anything."""
    cut = cluster.isolate(3)
    lose(cluster, 3)
    done(cluster, *(b"%d" % number for number in range(20)))
    cluster.mend(cut)
    cluster.run_until(cluster.is_converged, TICKS_MAX)


def an_election_later(cluster: Cluster) -> None:
    """Node 3 is taken in; then node 2 asks for its vote."""
    lose(cluster, 3)
    cluster.run_until(cluster.is_converged, TICKS_MAX)
    cluster.crash(1)
    cluster.tick(100)


def alone_with_a_learner(cluster: Cluster) -> None:
    """The leader and the learner are by themselves."""
    lose(cluster, 3)
    assert cluster.run_until(cluster.is_converged, TICKS_MAX)
    cluster.isolate(2)
    cluster.propose(1, b"x")
    cluster.tick(5)


def restarted_alone(cluster: Cluster) -> None:
    """A node that has lost its disk hears nothing, and is asked to lead."""
    cluster.isolate(3)
    lose(cluster, 3)
    cluster.campaign(3)


def converged(cluster: Cluster) -> None:
    """Node 3 is taken in, and the cluster has nothing else to do."""
    lose(cluster, 3)
    cluster.run_until(cluster.is_converged, TICKS_MAX)
    if not cluster.is_converged():
        raise cluster.violation("L3: the replicas differ")


@ENGINES
@pytest.mark.parametrize(
    ("plant", "run", "found"),
    [
        (nobody_is_replaced, replace_cut_off, "I19"),
        (voters_heard_first, converged, "I19|L3"),
        (no_learners_in_snapshots, a_snapshot_later, "I19"),
        (forgotten_by_restart, restarted_alone, "I20|R11|P13"),
        (counted_in_quorums, alone_with_a_learner, "I5"),
        (learners_vote, an_election_later, "I20|R11|P13"),
    ],
)
def test_judges_see_planted_bug(
    engine: str,
    plant: Callable[[pytest.MonkeyPatch], None],
    run: Callable[[Cluster], None],
    found: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each of these bugs is found by the rule that is about it."""
    cluster = led(engine, limits=ONE_BY_ONE if run is replace_cut_off else SNAPSHOTS)
    plant(monkeypatch)
    with pytest.raises(Violation, match=rf"^({found}):"):
        run(cluster)


def test_judges_see_old_acknowledgements_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Raft leader that takes a learner to hold what the lost incarnation acknowledged is found,
    even where that counts in no quorum."""
    cluster = led("raft")
    old_acknowledgements_kept(monkeypatch)
    with pytest.raises(Violation, match=r"^(R7|InvariantViolated):"):
        converged(cluster)
