"""The formation of a cluster, step by step: what the rule prevents, and that it holds nobody up."""

from __future__ import annotations

from random import Random

import pytest

from replog.formation import Formation, Meeting
from replog.plugins import engine_names, find_engine
from replog.testing.checks import Violation
from replog.testing.cluster import Cluster
from replog.testing.faults import Faults
from replog.testing.nodes import Outcome
from replog.turns import Turns
from replog.types import NO_NODE

ENGINES = pytest.mark.parametrize("engine", engine_names())
LEADER_TICKS = 400
SEEDS = 20


def founded(engine: str, node_count: int = 3, seed: int = 0) -> Cluster:
    """A cluster whose nodes have not met yet."""
    return Cluster(find_engine(engine), node_count=node_count, seed=seed, formed=False)


def formed(cluster: Cluster) -> list[bool]:
    return [node.turns.takes_part for node in cluster.nodes.values()]


def lead(cluster: Cluster, node_id: int) -> None:
    """Have a node lead, whoever else runs."""
    for _ in range(10):
        cluster.campaign(node_id)
        if cluster.run_until(lambda: cluster.leader() == node_id, 40):
            return
    raise AssertionError(f"node {node_id} does not lead")


def done(cluster: Cluster, payload: bytes) -> None:
    proposal = cluster.propose(cluster.leader(), payload)
    cluster.tick(20)
    assert proposal.outcome is Outcome.DONE


def use_record_twice(cluster: Cluster, fenced: bool) -> None:
    """Node 1 has been cut off from the start, 2 and 3 have committed; then 3 is made anew from the
    same record, 2 is down, and 1 and 3 are a majority."""
    cluster.heal()
    cluster.crash(3)
    cluster.wipe(3, fenced=fenced)
    cluster.crash(2)
    cluster.restart(3)


@ENGINES
def test_record_used_twice_without_the_rule(engine: str) -> None:
    """Where a directory made anew passes for the one that voted, a majority that knows nothing of
    an acknowledged write agrees on another one, and the checker sees it."""
    cluster = Cluster(find_engine(engine))
    cluster.isolate(1)
    lead(cluster, 2)
    done(cluster, b"acknowledged")
    use_record_twice(cluster, fenced=False)
    with pytest.raises(Violation, match=r"^(I\d+|R\d+|P\d+):"):
        lead(cluster, 1)
        done(cluster, b"another")


@ENGINES
def test_record_used_twice_with_the_rule(engine: str) -> None:
    """With the rule nothing is committed before all have met, and a directory made anew takes part
    in nothing: the write that is acknowledged is there when its nodes are."""
    cluster = founded(engine)
    cluster.isolate(1)
    cluster.tick(LEADER_TICKS)
    assert formed(cluster) == [False] * 3
    assert cluster.propose(2, b"too early").outcome is Outcome.NOT_DONE
    cluster.heal()
    cluster.tick(5)
    assert formed(cluster) == [True] * 3
    cluster.isolate(1)
    lead(cluster, 2)
    done(cluster, b"acknowledged")
    use_record_twice(cluster, fenced=True)
    cluster.campaign(1)
    cluster.tick(LEADER_TICKS)
    assert cluster.leader() == NO_NODE
    assert formed(cluster)[2] is False
    cluster.restart(2)
    assert cluster.run_until_done(b"later", LEADER_TICKS)
    cluster.tick(20)
    for node_id in (1, 2):
        assert cluster.nodes[node_id].machine.payloads == [  # type: ignore[attr-defined]
            b"acknowledged",
            b"later",
        ]
    cluster.check_acknowledged()


@ENGINES
@pytest.mark.parametrize("ticks", range(4))
@pytest.mark.parametrize("crashed", [(1,), (1, 2), (1, 2, 3)], ids=str)
def test_crash_amid_formation(engine: str, ticks: int, crashed: tuple[int, ...]) -> None:
    """Whoever crashes at whichever tick of its formation forms after its restart, and so do the
    others."""
    cluster = founded(engine)
    cluster.tick(ticks)
    for node_id in crashed:
        cluster.crash(node_id)
    cluster.tick(3)
    for node_id in crashed:
        cluster.restart(node_id)
    cluster.tick(5)
    assert formed(cluster) == [True] * 3
    assert cluster.run_until_done(b"x", LEADER_TICKS)


@ENGINES
def test_formed_for_ever(engine: str) -> None:
    """Who was formed once takes part at once after a restart, whoever is down."""
    cluster = founded(engine)
    cluster.tick(5)
    for node_id in cluster.nodes:
        cluster.crash(node_id)
    cluster.restart(1)
    cluster.restart(2)
    assert formed(cluster)[:2] == [True, True]
    assert cluster.run_until_done(b"x", LEADER_TICKS)


@ENGINES
def test_two_wiped_at_once(engine: str) -> None:
    """Two directories made anew at once know each other and are no majority: of five nodes the
    others go on, of three the last one commits nothing without them."""
    for node_count in (3, 5):
        cluster = founded(engine, node_count)
        cluster.tick(5)
        lead(cluster, 1)
        done(cluster, b"acknowledged")
        for node_id in (2, 3):
            cluster.crash(node_id)
            cluster.wipe(node_id)
        for node_id in (2, 3):
            cluster.restart(node_id)
        cluster.tick(LEADER_TICKS)
        assert formed(cluster) == [True, False, False, True, True][:node_count]
        assert [cluster.is_out(node_id) for node_id in (1, 2, 3)] == [False, True, True]
        assert (cluster.leader() != NO_NODE) == (node_count == 5)
        assert cluster.run_until_done(b"later", 20) == (node_count == 5)


@ENGINES
def test_wiped_before_it_met_anybody(engine: str) -> None:
    """A directory that was lost before anybody met it may be made anew: it had promised nothing."""
    cluster = founded(engine)
    cut = cluster.isolate(3)
    cluster.tick(10)
    cluster.crash(3)
    cluster.wipe(3)
    cluster.restart(3)
    cluster.mend(cut)
    cluster.tick(5)
    assert formed(cluster) == [True] * 3


@ENGINES
def test_lossy_links(engine: str) -> None:
    """However links come and go and nodes crash while the nodes meet, all are formed soon after
    that ends, and agree."""
    faults = Faults(
        drop_chance=0.2,
        delay_ticks_max=3,
        cut_chance=0.3,
        cut_ticks_max=8,
        flap_chance=0.1,
        crash_chance=0.05,
        crash_all_chance=0.02,
        down_ticks_max=10,
        pause_chance=0.05,
        pause_ticks_max=5,
        wipe_chance=0.3,
    )
    for seed in range(SEEDS):
        cluster = founded(engine, 3 + 2 * (seed % 2), seed)
        cluster.run(60, faults, propose_chance=0.2)
        cluster.calm()
        cluster.tick(10)
        assert all(
            node.turns.takes_part
            for node_id, node in cluster.nodes.items()
            if not cluster.is_out(node_id)
        )
        cluster.check_liveness(LEADER_TICKS, 2 * LEADER_TICKS)


@ENGINES
@pytest.mark.parametrize("asked", [1, 2])
def test_star_of_links(engine: str, asked: int) -> None:
    """Who reaches everybody forms; the others wait for each other, and give no vote meanwhile and
    want none, until they meet themselves."""
    cluster = founded(engine)
    cut = cluster.partition((2,), (3,))
    cluster.tick(10)
    assert formed(cluster) == [True, False, False]
    cluster.campaign(asked)
    cluster.tick(LEADER_TICKS)
    assert cluster.leader() == NO_NODE
    assert [cluster.nodes[node_id].replica.engine.term for node_id in (2, 3)] == [0, 0]
    refused = cluster.propose(2, b"x").error
    assert "has not heard from node 3" in str(refused)
    assert cluster.nodes[2].turns.waits_for == (3,)
    cluster.mend(cut)
    cluster.tick(5)
    assert formed(cluster) == [True] * 3


# -- the judge of the rule --


def test_judge_sees_word_before_durable(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that tells of a meeting before it is durable is caught."""

    def told(formation: Formation) -> tuple[Meeting, ...]:
        return formation.record().met

    monkeypatch.setattr(Formation, "told", property(told))
    with pytest.raises(Violation, match="I18: node 2 tells of a meeting that is not durable"):
        founded("raft").tick(5)


def test_judge_sees_second_birth(monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that takes a second birth for the first is caught."""

    def meet(formation: Formation, node_id: int, birth: int) -> None:
        formation._met[node_id] = birth

    monkeypatch.setattr(Formation, "meet", meet)
    cluster = Cluster(find_engine("raft"))
    cluster.crash(3)
    cluster.wipe(3)
    monkeypatch.setattr(Turns, "takes_part", property(lambda _: False))
    with pytest.raises(Violation, match="I18: node 1 has met node 3 under two births"):
        cluster.nodes[1].formation.hear(3, cluster.nodes[3].birth, ())
        cluster.driver.judge(lambda: cluster._forming._save_now(cluster.nodes[1]))


@pytest.mark.parametrize("known_by", [0, 1])
def test_judge_sees_early_part(monkeypatch: pytest.MonkeyPatch, known_by: int) -> None:
    """A node that takes part when only some of the others know it is caught."""

    def waits_for(formation: Formation) -> tuple[int, ...]:
        return () if len(formation.record().known_by) >= known_by else (9,)

    monkeypatch.setattr(Formation, "waits_for", property(waits_for))
    with pytest.raises(Violation, match=r"I18: node \d takes part, and node \d never met it"):
        cluster = founded("raft")
        cluster.partition((2,), (3,))
        cluster.isolate(3)
        cluster.tick(5)


def test_fading_links_bring_no_meeting() -> None:
    """A node that fades meets nobody until it is heard again."""
    cluster = founded("raft")
    cluster.fade(3, Random(1))
    cluster.tick(10)
    assert formed(cluster) == [False] * 3
    cluster.end_fade(3)
    cluster.tick(5)
    assert formed(cluster) == [True] * 3
