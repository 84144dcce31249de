"""Leases on whole clusters, the same scenarios for each engine (:mod:`replog.leases`).

Every answer is judged where it is given (I22), and so is every lease when somebody else is elected
(I25).
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from replog.errors import ConfigError, UnknownFormat
from replog.plugins import find_engine
from replog.testing.cluster import Cluster
from replog.testing.goals import COMMON, Goals
from replog.testing.lease_trials import LeaseWatch
from replog.testing.nodes import Outcome
from replog.testing.queries import Query
from replog.types import NodeId, ReadLevel, Role
from replog_multipaxos import MultiPaxosOptions
from replog_raft import RaftOptions

TICK_NS = 50_000_000
LEASE_MS = 450
RAFT = RaftOptions(election_ticks_min=10, lease_ms=LEASE_MS)
PAXOS = MultiPaxosOptions(election_ticks_min=10, lease_ms=LEASE_MS)
LEASE_TICKS = 8
"""A lease is shorter than nine ticks by the drift, and ends within its eighth."""

pytestmark = pytest.mark.parametrize(
    ("engine", "options"), [("raft", RAFT), ("multipaxos", PAXOS)], ids=["raft", "multipaxos"]
)


def made(engine: str, options: object, node_count: int = 3) -> Cluster:
    """A cluster with leases whose nodes keep no faith from their start any more."""
    watch = LeaseWatch(Goals(COMMON), lambda node: cluster.driver.clock_ns(node))
    cluster = Cluster(find_engine(engine), options, node_count=node_count, checks=(watch,))
    silence = cluster.partition(*[(node_id,) for node_id in cluster.nodes])
    cluster.tick(LEASE_MS // 50 + 1)
    cluster.mend(silence)
    return cluster


def led(engine: str, options: object, node_count: int = 3) -> Cluster:
    """A cluster that node 1 leads, with a lease."""
    cluster = made(engine, options, node_count)
    cluster.campaign(1)
    cluster.settle()
    assert cluster.leader() == 1
    cluster.tick(4)
    assert lease_ticks(cluster, 1) > 0
    return cluster


def lease_ticks(cluster: Cluster, node_id: NodeId) -> float:
    """How long the lease of a node runs yet; 0: it holds none."""
    until_ns = cluster.nodes[node_id].replica.engine.status().lease_until_ns
    if until_ns is None:
        return 0
    return max(0, until_ns - cluster.driver.clock_ns(cluster.nodes[node_id])) / TICK_NS


def asked(cluster: Cluster, node_id: NodeId) -> Query:
    """A query at the level ``lease``, and what comes of it without time passing."""
    query = cluster.query(node_id, level=ReadLevel.LEASE)
    cluster.settle()
    return query


def leads(cluster: Cluster, node_id: NodeId) -> bool:
    """Whether a node takes itself for the leader."""
    return cluster.nodes[node_id].replica.engine.soft_state.role is Role.LEADER


def test_lease_asks_nobody(engine: str, options: object) -> None:
    """A leader with a lease serves a query although no message leaves, or could arrive."""
    cluster = led(engine, options)
    proposal = cluster.propose(1, b"x")
    cluster.settle()
    assert proposal.outcome is Outcome.DONE
    cluster.isolate(1)
    before = cluster.network.sent_count
    query = asked(cluster, 1)
    assert query.outcome is Outcome.DONE
    assert query.result == (b"x",)
    assert cluster.network.sent_count == before


def test_lease_ends_by_the_clock(engine: str, options: object) -> None:
    """A leader that nobody answers serves queries until its lease is over, and not one more, though
    it still takes itself for the leader."""
    cluster = led(engine, options)
    cluster.isolate(1)
    for _ in range(LEASE_TICKS + 1):
        holds = lease_ticks(cluster, 1) > 0
        query = asked(cluster, 1)
        assert (query.outcome is Outcome.DONE) is holds
        cluster.tick()
    assert leads(cluster, 1)
    assert asked(cluster, 1).outcome is Outcome.PENDING


def test_process_that_stood_still_serves_nothing(engine: str, options: object) -> None:
    """A leader that was suspended for longer than its lease serves no query by it, though it has
    neither counted that time nor heard of its rival."""
    cluster = led(engine, options)
    cluster.pause(1)
    assert cluster.run_until(lambda: leads(cluster, 2) or leads(cluster, 3), 60)
    rival = 2 if leads(cluster, 2) else 3
    assert cluster.propose(rival, b"new") is not None
    cluster.settle()
    cluster.isolate(1)
    cluster.resume(1)
    query = cluster.query(1, level=ReadLevel.LEASE)
    cluster.settle()
    assert query.outcome is not Outcome.DONE


def test_no_lease_before_a_quorum_answered(engine: str, options: object) -> None:
    """Who was just elected holds no lease, whatever its rounds before were answered."""
    cluster = made(engine, options)
    cluster.hold(lambda flight: flight.sender != 1 and leads(cluster, 1))
    cluster.campaign(1)
    cluster.settle()
    assert leads(cluster, 1)
    cluster.tick(3)
    assert lease_ticks(cluster, 1) == 0
    cluster.release()
    cluster.tick(3)
    assert lease_ticks(cluster, 1) > 0


@pytest.mark.parametrize("automatic", [True, False], ids=["timeouts", "campaigns"])
def test_faith_withstands_campaigns(engine: str, options: object, automatic: bool) -> None:
    """While faith is kept nobody is elected, not even by its own order, and no term rises."""
    assert isinstance(options, RaftOptions | MultiPaxosOptions)
    cluster = led(engine, replace(options, automatic_elections=automatic))
    term = cluster.nodes[2].replica.engine.term
    cluster.isolate(1)
    ticks = 0
    while lease_ticks(cluster, 1) > 0:
        for node_id in (2, 3):
            cluster.campaign(node_id)
        cluster.settle()
        assert not leads(cluster, 2)
        assert not leads(cluster, 3)
        assert cluster.nodes[2].replica.engine.term == term
        cluster.tick()
        ticks += 1
    assert ticks >= LEASE_TICKS // 2
    for _ in range(60):
        cluster.campaign(2)
        cluster.tick()
        if leads(cluster, 2):
            return
    raise AssertionError("nobody was elected when the faith was over")


def test_campaign_of_one_that_hears_nobody_leaves_a_leader(engine: str, options: object) -> None:
    """With an outside failure detector, a node that alone lost the leader campaigns in vain: the
    others keep faith, and the leader leads on."""
    assert isinstance(options, RaftOptions | MultiPaxosOptions)
    cluster = led(engine, replace(options, automatic_elections=False), 5)
    cluster.cut([(1, 5)])
    cluster.tick(15)
    cluster.campaign(5)
    cluster.tick(100)
    assert leads(cluster, 1)
    assert lease_ticks(cluster, 1) > 0


def test_restarted_voters_keep_faith(engine: str, options: object) -> None:
    """Voters that are started again elect nobody while the lease may run that they vouched for."""
    cluster = led(engine, options)
    cluster.isolate(1)
    for node_id in (2, 3):
        cluster.crash(node_id)
        cluster.restart(node_id)
    while lease_ticks(cluster, 1) > 0:
        cluster.campaign(2)
        cluster.settle()
        assert not leads(cluster, 2)
        cluster.tick()


def test_transfer_passes_faith_and_ends_lease(engine: str, options: object) -> None:
    """Who is ordered to take over is elected at once, all faith aside; and who ordered it holds no
    lease from then on, even if nothing comes of the order."""
    cluster = led(engine, options)
    cluster.transfer(1, 2)
    cluster.settle()
    assert cluster.leader() == 2
    cluster.tick(4)
    assert lease_ticks(cluster, 2) > 0
    cut = cluster.isolate(3)
    cluster.tick(2)
    cluster.hold(lambda flight: flight.sender == 2 and flight.kind in ("timeout_now", "take_over"))
    cluster.transfer(2, 1)
    cluster.settle()
    assert leads(cluster, 2)
    assert lease_ticks(cluster, 2) == 0
    cluster.tick(9)
    assert leads(cluster, 2)
    assert lease_ticks(cluster, 2) == 0
    cluster.mend(cut)
    cluster.tick(4)
    assert lease_ticks(cluster, 2) == 0
    late = asked(cluster, 2)
    assert late.outcome is Outcome.DONE, "a leader without a lease asks the others"


@pytest.mark.parametrize("restarts", [True, False], ids=["restarted", "running"])
def test_voter_yields_to_no_earlier_order(engine: str, options: object, restarts: bool) -> None:
    """A voter knows of a later leader than the one whose order comes late, also when it was started
    again, by the term on its disk: it does not yield to that."""
    assert isinstance(options, RaftOptions | MultiPaxosOptions)
    cluster = led(engine, replace(options, automatic_elections=False))
    cluster.hold(lambda flight: flight.sender == 1 and flight.kind in ("timeout_now", "take_over"))
    cluster.transfer(1, 3)
    cluster.settle()
    cut = cluster.isolate(3)
    lone = cluster.cut([(1, 2), (2, 1)])
    cluster.tick(25)
    cluster.mend(lone)
    for _ in range(60):
        if not leads(cluster, 2):
            cluster.campaign(2)
        cluster.tick()
    assert leads(cluster, 2)
    assert lease_ticks(cluster, 2) > 0
    cluster.hold(lambda flight: flight.sender == 2)
    cluster.mend(cut)
    if restarts:
        cluster.crash(1)
        cluster.restart(1)
    cluster.deliver(lambda flight: flight.kind in ("timeout_now", "take_over"))
    cluster.tick(3)
    assert not leads(cluster, 3)


def test_follower_asks_its_leader(engine: str, options: object) -> None:
    """At a node that does not lead, the level ``lease`` is as good as ``linearizable``."""
    cluster = led(engine, options)
    cluster.propose(1, b"x")
    cluster.settle()
    query = asked(cluster, 2)
    assert query.outcome is Outcome.DONE
    assert query.result == (b"x",)


def test_without_leases_it_is_linearizable(engine: str, options: object) -> None:
    """In a cluster that agreed on no leases the level ``lease`` takes a round of messages, and
    faith is kept with nobody."""
    assert isinstance(options, RaftOptions | MultiPaxosOptions)
    plain = replace(options, lease_ms=0)
    cluster = Cluster(find_engine(engine), plain, node_count=3)
    cluster.campaign(1)
    cluster.settle()
    assert cluster.leader() == 1
    before = cluster.network.sent_count
    assert asked(cluster, 1).outcome is Outcome.DONE
    assert cluster.network.sent_count > before


def test_options_must_be_those_of_the_founding(engine: str, options: object) -> None:
    """A node whose file asks for another lease than was agreed on is refused, one that leaves it
    out is not, and one that asks for one where there is none is."""
    assert isinstance(options, RaftOptions | MultiPaxosOptions)
    plugin = find_engine(engine)
    setup = Cluster(plugin, options, node_count=3).nodes[1].replica.engine.setup  # type: ignore[attr-defined]
    plugin.create(replace(setup, options=replace(options, lease_ms=0)))
    with pytest.raises(ConfigError, match="lease_ms: the cluster was founded with 450, not 400"):
        plugin.create(replace(setup, options=replace(options, lease_ms=400)))
    epoch = replace(setup.epoch, agreed=())
    with pytest.raises(ConfigError, match="lease_ms: the cluster was founded without it"):
        plugin.create(replace(setup, epoch=epoch, options=options))
    with pytest.raises(ConfigError, match="two heartbeats"):
        plugin.create(replace(setup, options=replace(options, heartbeat_ticks=5)))
    epoch = replace(setup.epoch, agreed=(("later_rule", 1),))
    with pytest.raises(UnknownFormat, match="later_rule"):
        plugin.create(replace(setup, epoch=epoch, options=options))
