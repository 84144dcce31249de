"""What each sync level survives: the crash of a process, and a power cut.

The scenarios are the same at both levels and for every engine; what differs is what must come of
them.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest

from replog.engine import EnginePlugin
from replog.plugins import engine_names, find_engine
from replog.storage.segment_end import SegmentEnd
from replog.testing import sim
from replog.testing.checks import Violation
from replog.testing.cluster import Cluster
from replog.testing.disk import DiskModel
from replog.testing.files import KeepEverything
from replog.testing.goals import COMMON, ON_FILES, Goals
from replog.testing.log_disk import drawn_keep
from replog.testing.nodes import Outcome
from replog.testing.scenarios import Scenario, run_scenario
from replog.testing.sim import SimOptions, Simulation
from replog.types import NO_NODE

ENGINES = pytest.mark.parametrize("engine", engine_names())
DISKS = pytest.mark.parametrize("is_real", [False, True], ids=["modelled", "real log"])
TICKS_MAX = 400
OS_SEED = 8
"""The first seed whose real logs are at the level ``os``, ..."""
CUT_SEED = 54
"""... and the first in which a power cut would take what counts."""


def cluster_at(
    plugin: EnginePlugin, is_real: bool, is_synced: bool, goals: Goals | None = None
) -> Cluster:
    """Three nodes with a leader, whose election was written back long ago."""
    disk_model = DiskModel(is_real=is_real, is_synced=is_synced)
    cluster = Cluster(plugin, disk_model=disk_model, goals=goals)
    cluster.campaign(1)
    assert cluster.run_until(lambda: cluster.leader() != NO_NODE, TICKS_MAX)
    cluster.tick(5)
    for node_id in cluster.nodes:
        cluster.write_back(node_id)
    return cluster


def acknowledge(cluster: Cluster, payload: bytes = b"x") -> None:
    """Have a command acknowledged, and brought to every node."""
    done = cluster.propose(cluster.leader(), payload)
    cluster.tick(5)
    assert done.outcome is Outcome.DONE
    assert cluster.is_converged()


def restart_all(cluster: Cluster, end: Callable[[int], None]) -> None:
    """End the runs of all nodes, start them, and judge what the cluster is then."""
    for node_id in cluster.nodes:
        end(node_id)
    for node_id in cluster.nodes:
        cluster.restart(node_id)
    cluster.check_liveness(TICKS_MAX, TICKS_MAX)


def power_cut_of_all(is_real: bool, is_synced: bool) -> Scenario[EnginePlugin]:
    """The power is cut at every node, right after a command was acknowledged."""

    def run(plugin: EnginePlugin) -> None:
        cluster = cluster_at(plugin, is_real, is_synced)
        acknowledge(cluster)
        restart_all(cluster, cluster.cut_power)

    return Scenario("sync_levels.power_cut_of_all", "a power cut takes nothing acknowledged", run)


def crash_of_all_processes(is_real: bool, is_synced: bool) -> Scenario[EnginePlugin]:
    """Every process crashes, right after a command was acknowledged."""

    def run(plugin: EnginePlugin) -> None:
        cluster = cluster_at(plugin, is_real, is_synced)
        acknowledge(cluster)
        restart_all(cluster, cluster.crash_process)

    claim = "the crash of every process takes nothing acknowledged"
    return Scenario("sync_levels.crash_of_all_processes", claim, run)


# -- what each level survives --


@ENGINES
@DISKS
def test_power_cut_at_always(engine: str, is_real: bool) -> None:
    """At the level always a power cut at all nodes at once takes nothing that was acknowledged."""
    result = run_scenario(power_cut_of_all(is_real, is_synced=True), find_engine(engine))
    assert result.failure == ""


@ENGINES
@DISKS
def test_power_cut_at_os(engine: str, is_real: bool) -> None:
    """At the level os the same power cut takes an acknowledged command, and that is reported as
    soon as another one is committed in its place."""
    result = run_scenario(power_cut_of_all(is_real, is_synced=False), find_engine(engine))
    assert result.failure.startswith("I2: ")
    assert "than was committed there" in result.failure


@ENGINES
@DISKS
@pytest.mark.parametrize("is_synced", [True, False], ids=["always", "os"])
def test_crash_of_all_processes(engine: str, is_real: bool, is_synced: bool) -> None:
    """At either level the crash of every process at once takes nothing that was acknowledged."""
    result = run_scenario(crash_of_all_processes(is_real, is_synced), find_engine(engine))
    assert result.failure == ""


@ENGINES
@DISKS
def test_power_cut_after_write_back(engine: str, is_real: bool) -> None:
    """What the operating system has written back outlives a power cut at the level os, too."""
    cluster = cluster_at(find_engine(engine), is_real, is_synced=False)
    acknowledge(cluster)
    for node_id in cluster.nodes:
        cluster.write_back(node_id)
    restart_all(cluster, cluster.cut_power)


@ENGINES
@DISKS
def test_power_cut_after_recovery(engine: str, is_real: bool) -> None:
    """What a node has recovered is durable at the level os, too: a power cut takes it no more."""
    cluster = cluster_at(find_engine(engine), is_real, is_synced=False)
    acknowledge(cluster)
    cluster.crash_process(2)
    cluster.restart(2)
    before = dict(cluster.nodes[2].disk.entries)
    cluster.cut_power(2)
    cluster.restart(2)
    assert cluster.nodes[2].disk.entries == before
    assert any(entry.body.endswith(b"x") for entry in before.values())


@ENGINES
def test_power_cut_takes_a_vote(engine: str) -> None:
    """A real log at the level os that a power cut made older than its node's vote is refused, as a
    damaged one is, and the others go on."""
    cluster = cluster_at(find_engine(engine), is_real=True, is_synced=False)
    cluster.transfer(1, 2)
    assert cluster.run_until(lambda: cluster.leader() == 2, TICKS_MAX)
    cluster.tick(5)
    cluster.cut_power(3)
    cluster.restart(3)
    assert cluster.is_out(3)
    assert cluster.run_until_done(b"x", TICKS_MAX)


@ENGINES
def test_power_cut_at_one_node(engine: str) -> None:
    """What one node forgot by a power cut at the level os is still on the others, and they go on.
    (What becomes of that node is its engine's affair: it may get it again, stand still or stop.)"""
    cluster = cluster_at(find_engine(engine), is_real=True, is_synced=False)
    acknowledge(cluster)
    cluster.cut_power(3)
    assert "power_cut  lost_writes=0 lost_unsynced=" in cluster.trace.lines()[-1]
    cluster.restart(3)
    assert cluster.run_until_done(b"y", TICKS_MAX)
    assert [entry.body[-1:] for entry in cluster.applied(2)][-2:] == [b"x", b"y"]
    cluster.check_acknowledged()


# -- whether the checks can fail --


@ENGINES
def test_unwritten_group_found(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A log that at the level os keeps groups in its own memory, and not in the operating system's,
    loses them with the process; that is found."""
    append = SegmentEnd.append

    def keep_back(end: SegmentEnd, group: bytes) -> None:
        if end.is_synced:
            append(end, group)
        else:
            end.end += len(group)

    monkeypatch.setattr(SegmentEnd, "append", keep_back)
    result = run_scenario(crash_of_all_processes(True, is_synced=False), find_engine(engine))
    assert result.failure.startswith(("I11: ", "LogDamaged: "))


@ENGINES
def test_goal_for_each_crash(engine: str) -> None:
    """A power cut and the crash of a process are told apart, if there was anything to take, and so
    is a log that was not synced and is found again."""
    goals = Goals({**COMMON, **ON_FILES})
    cluster = cluster_at(find_engine(engine), is_real=True, is_synced=False, goals=goals)
    cluster.crash_process(2)
    assert "process_crash" not in goals.reached
    cluster.restart(2)
    acknowledge(cluster)
    cluster.crash_process(2)
    assert "process_crash" in goals.reached
    assert "unsynced_log_recovered" not in goals.reached
    cluster.restart(2)
    assert "unsynced_log_recovered" in goals.reached
    assert "power_cut" not in goals.reached
    cluster.cut_power(3)
    assert "power_cut" in goals.reached


# -- random seeds --


def test_seeds_draw_both_crashes() -> None:
    """At the level always chance draws both power cuts and crashes of processes; at the level os it
    draws none but those of processes."""
    random = Random(1)
    drawn = [isinstance(drawn_keep(random), KeepEverything) for _ in range(40)]
    assert set(drawn) == {True, False}
    assert all(isinstance(drawn_keep(random, is_synced=False), KeepEverything) for _ in range(40))


@ENGINES
def test_seed_at_os(engine: str) -> None:
    """Some seeds run their real logs at the level os under crashes of processes, and every node
    finds all that it had acknowledged."""
    simulation = Simulation(SimOptions(engine, OS_SEED))
    report = simulation.run()
    assert not simulation.disk_model.is_synced
    assert report.is_real
    assert {"process_crash", "unsynced_log_recovered"} <= set(report.goals)
    assert "power_cut" not in report.goals


def test_seed_at_os_bears_no_power_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """If power cuts were drawn at the level os, the same seed would show what they take."""
    simulation = Simulation(SimOptions(engine_names()[0], CUT_SEED))
    assert not simulation.disk_model.is_synced
    simulation.run()
    monkeypatch.setattr("replog.testing.log_disk.drawn_keep", lambda random, *_: drawn_keep(random))
    with pytest.raises(Violation):
        Simulation(SimOptions(engine_names()[0], CUT_SEED)).run()


def test_seeds_at_os_are_some() -> None:
    """About a fifth of the seeds over the real log are at the level os, and none over a modelled
    disk: there would be nothing to find again."""
    models = [
        Simulation(SimOptions(engine_names()[0], seed, ticks=1)).disk_model for seed in range(60)
    ]
    at_os = [model for model in models if not model.is_synced]
    assert all(model.is_real for model in at_os)
    share = len(at_os) / sum(model.is_real for model in models)
    assert sim.PROCESS_CRASHES_CHANCE / 2 < share < 2 * sim.PROCESS_CRASHES_CHANCE
