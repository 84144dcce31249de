"""A full disk under whole nodes: they refuse, drop and hand over, and go on voting; then they
recover by themselves."""

from __future__ import annotations

import pytest

from replog.errors import DiskFull, NotLeader, SnapshotFailed
from replog.handing_over import HAND_OVER_MS
from replog.limits import Limits
from replog.plugins import engine_names, find_engine
from replog.replica import Replica
from replog.testing.chance import Chance, Selection
from replog.testing.checks import Violation
from replog.testing.cluster import Cluster
from replog.testing.disk import DiskModel
from replog.testing.faults import Faults
from replog.testing.full_disks import ROOM_TICKS
from replog.testing.goals import COMMON, ON_FILES, Goals
from replog.testing.nodes import Outcome
from replog.testing.sim import SimOptions, simulate
from replog.turns import Turns
from replog.types import NodeId, Role

pytestmark = pytest.mark.parametrize("engine", engine_names())

TICKS_MAX = 400
SECOND_TICKS = HAND_OVER_MS // Limits().tick_ms
CHANCE_SEEDS = (5, 6)
"""A run over modelled disks, and one over the real log, in which disks are full."""
EARLY, LATE = 3, 0
"""A disk that is known to be full with room for some groups left, and one that finds out."""


def led(engine: str, nodes: int = 3, **settings: object) -> Cluster:
    """A cluster that node 1 leads, with one command done."""
    cluster = Cluster(find_engine(engine), node_count=nodes, **settings)  # type: ignore[arg-type]
    cluster.campaign(1)
    assert cluster.run_until(lambda: cluster.leader() == 1, TICKS_MAX)
    assert cluster.run_until_done(b"first", TICKS_MAX)
    assert cluster.run_until(cluster.is_converged, TICKS_MAX)
    return cluster


def fill(cluster: Cluster, node_id: NodeId, room_groups: int = EARLY) -> None:
    """Fill a node's disk and let it find out."""
    cluster.fill_disk(node_id, room_groups)
    if not room_groups:
        cluster.propose(cluster.leader(), b"too much")
    assert cluster.run_until(lambda: cluster.nodes[node_id].was_full, TICKS_MAX)


def test_full_leader_refuses_and_hands_over(engine: str) -> None:
    """A leader that is full takes no command, with a sentence, stays leader at first, and hands
    over to a node that has room within about a second."""
    cluster = led(engine)
    fill(cluster, 1)
    refused = cluster.propose(1, b"x")
    cluster.settle()
    assert refused.outcome is Outcome.NOT_DONE
    assert isinstance(refused.error, DiskFull)
    assert "node 1 leads and its disk is full, so nothing was proposed; free" in str(refused.error)
    assert cluster.leader() == 1
    assert cluster.run_until(lambda: cluster.leader() not in (0, 1), SECOND_TICKS + 5)
    assert cluster.run_until_done(b"y", TICKS_MAX)
    cluster.tick(SECOND_TICKS)  # a heartbeat tells who leads
    elsewhere = cluster.propose(1, b"z")
    assert isinstance(elsewhere.error, NotLeader), "a full follower says who leads"
    assert elsewhere.error.leader_id == cluster.leader()


def test_full_leader_hands_over_to_no_learner(engine: str) -> None:
    """A leader that is full passes over a peer that has come back as a learner, though it is as far
    as any, and hands over to the voter."""
    cluster = led(engine)
    cluster.crash(2)
    cluster.rejoin(2)
    assert cluster.run_until(cluster.is_converged, TICKS_MAX)
    fill(cluster, 1)
    assert cluster.run_until(lambda: cluster.leader() == 3, 8 * SECOND_TICKS)


def test_full_leader_hands_over_to_one_after_the_other(
    engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A leader whose peers do not take over tries the furthest after a second, and each of the
    others after twice as long as the one before."""
    cluster = led(engine, nodes=5)
    cluster.isolate(5)
    assert cluster.run_until_done(b"x", TICKS_MAX)
    asked: list[tuple[NodeId, int]] = []
    began = cluster.now
    monkeypatch.setattr(Replica, "transfer", lambda _, to: asked.append((to, cluster.now - began)))
    cluster.fill_disk(1, EARLY)
    cluster.tick(16 * SECOND_TICKS)
    seconds = [ticks // SECOND_TICKS for _, ticks in asked]
    assert seconds == [1, 3, 7, 15]
    assert sorted(to for to, _ in asked[:3]) == [2, 3, 4]
    assert asked[3][0] == 5, "cut off, and so the last"


@pytest.mark.parametrize("room_groups", [EARLY, LATE])
def test_full_follower_recovers_without_a_restart(engine: str, room_groups: int) -> None:
    """What comes to a full follower is dropped, the others go on without it, and when there is room
    again it catches up in the run that it is in."""
    cluster = led(engine)
    fill(cluster, 3, room_groups)
    for number in range(5):
        assert cluster.run_until_done(b"%d" % number, TICKS_MAX)
    last_index = max(cluster.nodes[3].disk.entries)
    assert last_index < cluster.nodes[1].replica.applied_index
    cluster.clear_disk(3)
    assert cluster.run_until(cluster.is_converged, TICKS_MAX)
    assert cluster.nodes[3].run == 1
    assert not cluster.nodes[3].is_full


def test_full_follower_votes(engine: str) -> None:
    """Of three nodes one is full and the leader gone: the third is elected by the full one's vote,
    which is on its disk."""
    cluster = led(engine)
    assert cluster.run_until_done(b"x", TICKS_MAX)
    fill(cluster, 3)
    cluster.crash(1)
    assert cluster.run_until(lambda: cluster.leader() == 2, 2 * TICKS_MAX)
    hard_state = cluster.nodes[3].disk.hard_state
    assert hard_state is not None
    assert hard_state.voted_for == 2
    assert cluster.nodes[3].is_full


def test_everybody_full_proposes_nothing_and_recovers(engine: str) -> None:
    """Where every disk is full nothing is proposed, leadership goes round less and less often, and
    when the disks have room again the cluster works as before."""
    cluster = led(engine)
    for node_id in cluster.nodes:
        fill(cluster, node_id)
    leaders: list[tuple[NodeId, int]] = []
    for _ in range(20 * SECOND_TICKS):
        leader_id = cluster.leader()
        if leader_id:
            assert isinstance(cluster.propose(leader_id, b"x").error, DiskFull)
            leaders.append((leader_id, cluster.nodes[leader_id].replica.engine.term))
        cluster.tick()
    assert len(set(leaders)) <= 10, "each of the three hands over less and less often"
    for node_id in cluster.nodes:
        cluster.clear_disk(node_id)
    cluster.check_liveness(TICKS_MAX, TICKS_MAX)
    assert [node.run for node in cluster.nodes.values()] == [1, 1, 1]


def test_refused_group_holds_up_what_is_behind_it(engine: str) -> None:
    """A node whose group was refused gives no vote until there is room for that group, and goes on
    answering its leader."""
    cluster = led(engine)
    fill(cluster, 3, LATE)
    cluster.tick(2 * TICKS_MAX)
    assert cluster.leader() == 1, "heartbeats go on"
    assert cluster.nodes[3].disk.is_refusing
    cluster.crash(1)
    cluster.tick(TICKS_MAX)
    assert cluster.leader() == 0
    cluster.clear_disk(3)
    assert cluster.run_until(lambda: cluster.leader() != 0, 2 * TICKS_MAX)


def test_full_real_log_recovers(engine: str) -> None:
    """The same on the real log, which finds out for itself that the disk is full."""
    cluster = led(engine, disk_model=DiskModel(is_real=True), codec=True)
    cluster.fill_disk(3, room_bytes=100)
    for number in range(100):
        assert cluster.run_until_done(b"a command of some bytes %d" % number, TICKS_MAX)
    assert cluster.nodes[3].is_full
    cluster.clear_disk(3)
    assert cluster.run_until(cluster.is_converged, TICKS_MAX)
    assert cluster.nodes[3].run == 1


def test_snapshot_without_room_is_tried_again(engine: str) -> None:
    """A snapshot for which there is no room fails, nothing is trimmed for it, and the next one that
    is due is taken when there is room."""
    limits = Limits(snapshot_entries=5, trim_margin_entries=1)
    cluster = led(engine, limits=limits)
    node = cluster.nodes[2]
    # The log has room, and the snapshots have none.
    files = node.snapshots.files
    files.capacity_bytes = files.used_bytes
    for number in range(14):
        assert cluster.run_until_done(b"%d" % number, TICKS_MAX)
    snapshots = node.turns.snapshots
    assert "room" in snapshots.problem
    assert snapshots.newest is None
    assert node.replica.engine.status().base_index == 0
    told: list[Exception | None] = []
    snapshots.take(lambda _, failure: told.append(failure))
    cluster.tick(5)
    assert isinstance(told[0], SnapshotFailed)
    files.capacity_bytes = None
    for number in range(8):
        assert cluster.run_until_done(b"%d" % number, TICKS_MAX)
    cluster.tick(5)
    assert snapshots.problem == ""
    assert node.replica.engine.status().base_index > 0


def test_command_at_a_full_disk_breaks_i17(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that proposes on a full disk is found out, and so is one that takes entries in."""
    monkeypatch.setattr(Turns, "_handle_fullness", lambda *_: None)
    cluster = led(engine)
    fill(cluster, 1)
    with pytest.raises(Violation, match="I17: node 1 proposes"):
        cluster.propose(1, b"x")
    cluster = led(engine)
    fill(cluster, 2)
    with pytest.raises(Violation, match="I17: node 2 takes in the entries of a"):
        cluster.run_until_done(b"x", TICKS_MAX)


def test_group_that_is_given_up_breaks_i9(engine: str) -> None:
    """A message that waits for a refused group does not leave before it is durable."""
    cluster = led(engine)
    fill(cluster, 3, LATE)
    node = cluster.nodes[3]
    with pytest.raises(Violation, match=r"I9|I5|I3|Assertion"):
        cluster.driver.turn(node, node.turns.handle_synced)


def test_chance_fills_disks(engine: str) -> None:
    """Runs in which nothing but full disks strikes come to refusals and to recoveries."""
    full = Selection.parse("full")
    reports = [simulate(SimOptions(engine, seed, faults=full, ticks=200)) for seed in CHANCE_SEEDS]
    struck = [report for report in reports if report.struck]
    assert {report.is_real for report in struck} == {True, False}
    reached = {goal for report in struck for goal in report.goals}
    assert {"full_disk_refused", "full_disk_recovered"} <= reached


def test_disk_stays_full_for_its_time(engine: str) -> None:
    """A disk that is filled by chance is cleared when its time is over, though the cluster is still
    in trouble, and at the latest in calm."""
    goals = Goals({**COMMON, **ON_FILES})
    cluster = Cluster(find_engine(engine), chance=Chance(3, Selection.parse("full")), goals=goals)
    faults = Faults(full_chance=0.05, full_ticks_max=30)
    filled = 0
    for _ in range(200):
        cluster.run(1, faults, propose_chance=0.9)
        filled += any(node.disk.room_groups is not None for node in cluster.nodes.values())
    assert 0 < filled < 200
    assert "full_disk_recovered" in goals.reached
    cluster.calm()
    assert all(node.disk.room_groups is None for node in cluster.nodes.values())
    cluster.tick(ROOM_TICKS + 1)
    assert not any(node.is_full for node in cluster.nodes.values())
    cluster.check_liveness(TICKS_MAX, TICKS_MAX)
    assert any(
        node.replica.engine.soft_state.role is Role.LEADER for node in cluster.nodes.values()
    )
