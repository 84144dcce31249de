"""Reads that need no entry: what a linearizable one must see, at whichever node it is asked.

Every answer is judged where it is given (I19): it must see all that any node had been handed to
apply when the query was asked.  So a scenario only has to bring about the hour in which a wrong
engine answers too early.
"""

from __future__ import annotations

from random import Random
from typing import Final

from replog.limits import Limits
from replog.testing.cluster import Cluster
from replog.testing.conformance.subject import (
    Scenario,
    Subject,
    check_equal,
    done,
    leads,
    scenarios_of,
)
from replog.testing.faults import drawn_faults
from replog.testing.nodes import Outcome
from replog.testing.queries import Query
from replog.types import NO_NODE, LogIndex, NodeId, ReadLevel, Role

SHORT: Final = Limits(read_wait_ms=2000)
"""A query is refused after 40 ticks."""

SHUFFLES: Final = 30
"""So many orders in which messages arrive are tried."""


def served(cluster: Cluster, node_id: NodeId) -> Query:
    """A linearizable query that is served without time passing."""
    query = cluster.query(node_id)
    cluster.settle()
    assert query.outcome is Outcome.DONE, f"node {node_id} did not serve a query on a good day"
    return query


def check_outcome(query: Query, outcome: Outcome) -> None:
    """A query has come to this by now."""
    assert query.outcome is outcome, f"q{query.number} is {query.outcome.value}"


def pump(cluster: Cluster, random: Random) -> bool:
    """Let one of the messages arrive that are held, whichever comes up; whether there was one."""
    held = list(cluster.network.held.values())
    if held:
        chosen = random.choice(held)
        cluster.deliver(lambda flight: flight is chosen)
    return bool(held)


def by_every_node(subject: Subject) -> None:
    """On a good day whichever node is asked serves a linearizable query, which sees all that was
    done; no entry is made for it, and no time passes."""
    for node_count in subject.supported(1, 2, 3, 4, 5):
        cluster = subject.led(node_count)
        proposals = [done(cluster, b"%d" % at) for at in range(3)]
        before = cluster.nodes[1].replica.engine.status().last_index
        for node_id in cluster.nodes:
            query = served(cluster, node_id)
            assert query.result == tuple(each.payload for each in proposals)
        assert cluster.nodes[1].replica.engine.status().last_index == before
        assert cluster.now == 0


def by_hand(subject: Subject) -> None:
    """An engine answers each read once: a lone node at once, with an index that it has."""
    cluster = subject.led(1)
    done(cluster, b"x")
    engine = cluster.nodes[1].replica.engine.clone()
    for read_id in (1, 2, 3):
        engine.read(read_id)
    answers = []
    while (ready := engine.ready()) is not None:
        answers += list(ready.reads)
        engine.advance(ready)
    assert [answer.read_id for answer in answers] == [1, 2, 3]
    assert all(answer.index == engine.status().commit_index for answer in answers)


def many_at_once(subject: Subject) -> None:
    """Queries that come together share what they cost: a hundred of them send no more messages
    than one."""
    cluster = subject.led()
    done(cluster, b"x")
    for node_id in cluster.nodes:
        counts: list[int] = []
        for count in (1, 100):
            before = cluster.network.sent_count
            engine = cluster.nodes[node_id].replica.engine
            for read_id in range(count - 1):
                engine.read(1_000_000 + read_id)
            served(cluster, node_id)
            counts.append(cluster.network.sent_count - before)
        assert counts[0] == counts[1], f"node {node_id} sends {counts}"


def deposed_leader_serves_nothing_new(subject: Subject) -> None:
    """A leader that is overtaken while it stands still serves no query afterwards by what was
    said to it before; an answer to an earlier round proves nothing."""
    for seed in range(3):
        cluster = subject.led(3, seed)
        done(cluster, b"old")
        cluster.hold(lambda flight: flight.to == 1)
        early = cluster.query(1)
        cluster.settle()
        cluster.pause(1)
        said = len(cluster.network.held)
        assert said or early.outcome is Outcome.DONE
        answers = list(cluster.network.held.values())
        found = cluster.run_until(lambda: cluster.leader() != 1, 6 * subject.election_ticks)  # noqa: B023
        cluster.run_until(lambda: has_fresh_leader(cluster), 6 * subject.election_ticks)  # noqa: B023
        assert found or has_fresh_leader(cluster)
        done_by_others(cluster, b"new")
        cluster.resume(1)
        late = cluster.query(1)
        cluster.settle()
        for answer in answers:
            cluster.deliver(lambda flight: flight is answer)  # noqa: B023
        assert late.outcome is not Outcome.DONE, "served by what was said before it was asked"
        cluster.release()
        subject.recover(cluster)
        check_answered(cluster)


def has_fresh_leader(cluster: Cluster) -> bool:
    """Whether another node than the first leads in a higher term than the first one's."""
    return any(
        node.is_running
        and node.replica.engine.soft_state.role is Role.LEADER
        and node.replica.engine.term > cluster.nodes[1].replica.engine.term
        for node in cluster.nodes.values()
    )


def done_by_others(cluster: Cluster, payload: bytes) -> None:
    """See a command done by a leader that is not node 1."""
    leader_id = next(
        node_id
        for node_id, node in cluster.nodes.items()
        if node_id != 1 and node.replica.engine.soft_state.role is Role.LEADER
    )
    proposal = cluster.propose(leader_id, payload)
    cluster.settle()
    assert proposal.outcome is Outcome.DONE


def new_leader_waits_for_its_past(subject: Subject) -> None:
    """A leader that was elected a moment ago serves nothing before it has applied what its
    predecessors did, in whatever order the messages arrive."""
    for seed in range(SHUFFLES):
        random, cluster = Random(seed), subject.led(3, seed)
        cluster.hold(lambda flight: flight.sender == 1)
        proposal = cluster.propose(1, b"of the predecessor")
        # The followers take it in, and never hear that it is done.
        for node_id in (2, 3):
            newest = max(
                number for number, flight in cluster.network.held.items() if flight.to == node_id
            )
            cluster.deliver(lambda flight: flight.number == newest)  # noqa: B023
            cluster.settle()
        assert proposal.outcome is Outcome.DONE
        cluster.crash(1)
        cluster.drop()
        subject.silence(cluster)
        cluster.hold(lambda flight: flight.to > 0)
        cluster.campaign(2)
        queries: list[Query] = []
        for _ in range(200):
            if leads(cluster, 2) and not queries:
                queries = [cluster.query(node_id) for node_id in (2, 3)]
            cluster.settle()
            if not pump(cluster, random):
                break
        cluster.release()
        subject.recover(cluster)
        check_answered(cluster)
        assert not queries or any(query.outcome is Outcome.DONE for query in queries)


def answer_to_an_earlier_life(subject: Subject) -> None:
    """A follower that was started anew is not served by the answer to a request of its earlier
    life, in whatever order the messages arrive."""
    for seed in range(SHUFFLES):
        random, cluster = Random(seed), subject.led(3, seed)
        done(cluster, b"old")
        cluster.tick(2)
        cluster.hold(lambda flight: flight.to == 3)
        cluster.query(3)
        cluster.settle()
        assert cluster.network.held, "no answer is on its way to the follower"
        cluster.crash(3)
        done(cluster, b"new")
        cluster.restart(3)
        late = cluster.query(3)
        for _ in range(3):
            cluster.tick()
            for _ in range(len(cluster.network.held) // 2):
                pump(cluster, random)
                cluster.settle()
        cluster.release()
        cluster.settle()
        cluster.run_until(lambda: late.outcome is Outcome.DONE, 2 * subject.election_ticks)  # noqa: B023
        check_outcome(late, Outcome.DONE)
        assert late.result == (b"old", b"new")


def answer_to_an_earlier_request(subject: Subject) -> None:
    """A follower does not serve a query by the answer to a request that left before that."""
    cluster = subject.led()
    done(cluster, b"old")
    cluster.tick(2)
    cluster.hold(lambda flight: flight.to == 3)
    cluster.query(3)
    cluster.settle()
    answers = list(cluster.network.held.values())
    done(cluster, b"new")
    late = cluster.query(3)
    cluster.settle()
    for answer in answers:
        cluster.deliver(lambda flight: flight is answer)  # noqa: B023
        cluster.settle()
    check_outcome(late, Outcome.PENDING)
    cluster.release()
    cluster.settle()
    check_outcome(late, Outcome.DONE)


def follower_of_a_deposed_leader(subject: Subject) -> None:
    """A leader that was overtaken while it stood still answers no follower that stood still, too,
    before a majority has answered it."""
    subject.supported(5)
    cluster = subject.led(5)
    done(cluster, b"old")
    cluster.tick(2)
    for node_id in (1, 5):
        cluster.pause(node_id)
    cluster.run_until(lambda: has_fresh_leader(cluster), 6 * subject.election_ticks)
    cluster.partition((1, 5), (2, 3, 4))
    done_by_others(cluster, b"new")
    for node_id in (1, 5):
        cluster.resume(node_id)
    cluster.drop()
    queries = [cluster.query(1), cluster.query(5)]
    cluster.settle()
    assert all(query.outcome is not Outcome.DONE for query in queries)
    subject.recover(cluster)
    check_answered(cluster)


def learner_confirms_nothing(subject: Subject) -> None:
    """A node that lost its disk and came back without a vote is no help in a round: with it alone a
    leader serves nothing; it may read itself, when a majority confirms."""
    cluster = subject.led()
    done(cluster, b"x")
    cluster.crash(3)
    cluster.rejoin(3)
    assert cluster.run_until(cluster.is_converged, 20 * subject.election_ticks)
    served(cluster, 3)
    leader_id = cluster.leader()
    cut = cluster.isolate(3 - leader_id)
    query = cluster.query(leader_id)
    cluster.tick(2 * subject.election_ticks)
    assert query.outcome is not Outcome.DONE
    cluster.mend(cut)
    subject.recover(cluster)


def lone_leader_refuses(subject: Subject) -> None:
    """A leader that is cut off serves no linearizable query, and says so when it gives up; what may
    be old is served at once."""
    cluster = subject.led()
    done(cluster, b"x")
    cluster.tick(2)
    cut = cluster.isolate(1)
    query = cluster.query(1)
    stale = cluster.query(1, level=ReadLevel.STALE)
    cluster.settle()
    check_outcome(query, Outcome.PENDING)
    check_outcome(stale, Outcome.DONE)
    assert stale.result == (b"x",)
    cluster.tick(2 * subject.election_ticks)
    check_outcome(query, Outcome.NOT_DONE)
    cluster.mend(cut)
    subject.recover(cluster)
    served(cluster, 1)


def without_a_leader_refused(subject: Subject) -> None:
    """Where no leader is known, a linearizable query is refused after a bounded time."""
    cluster = subject.cluster(3, limits=SHORT)
    for node_id in (1, 2):
        cluster.crash(node_id)
    query = cluster.query(3)
    cluster.tick(SHORT.read_ticks_max + 2)
    check_outcome(query, Outcome.NOT_DONE)


def outlives_its_leader(subject: Subject) -> None:
    """A query that was asked of a follower is served by the next leader, when the first is gone."""
    cluster = subject.led(3, limits=Limits(read_wait_ms=60_000))
    done(cluster, b"x")
    cluster.tick(2)
    cluster.crash(1)
    query = cluster.query(3)
    cluster.run_until(lambda: cluster.leader() != NO_NODE, 5 * subject.election_ticks)
    assert cluster.leader() != NO_NODE
    cluster.tick(subject.election_ticks)
    check_outcome(query, Outcome.DONE)
    assert query.result == (b"x",)


def request_is_lost(subject: Subject) -> None:
    """A follower whose request or whose answer was lost asks again."""
    for lost_to in (1, 3):
        cluster = subject.led()
        done(cluster, b"x")
        cluster.tick(2)
        cut = cluster.cut([(3, 1)] if lost_to == 1 else [(1, 3)])
        query = cluster.query(3)
        cluster.settle()
        check_outcome(query, Outcome.PENDING)
        cluster.mend(cut)
        cluster.tick(subject.election_ticks // 2)
        check_outcome(query, Outcome.DONE)


def timeline_waits_for_its_index(subject: Subject) -> None:
    """At the level timeline a node serves what it has, as soon as it has what the client saw."""
    cluster = subject.led()
    seen = done(cluster, b"x").index
    cluster.tick(2)
    cut = cluster.isolate(3)
    later: LogIndex = done(cluster, b"y").index
    old, new = (cluster.query(3, b"", ReadLevel.TIMELINE, index) for index in (seen, later))
    cluster.settle()
    assert (old.outcome, old.result) == (Outcome.DONE, (b"x",))
    check_outcome(new, Outcome.PENDING)
    cluster.mend(cut)
    cluster.tick(subject.election_ticks)
    check_outcome(new, Outcome.DONE)
    assert new.result == (b"x", b"y")
    assert new.index >= later


def amid_a_transfer(subject: Subject) -> None:
    """A leader that is handing over serves queries, and takes no proposals."""
    cluster = subject.led()
    done(cluster, b"x")
    cluster.crash(3)
    cluster.transfer(1, 3)
    assert cluster.propose(1, b"meanwhile").outcome is Outcome.NOT_DONE
    served(cluster, 1)
    served(cluster, 2)


def answered_when_it_stops(subject: Subject) -> None:
    """A node that stops answers every query that waits."""
    cluster = subject.led()
    cluster.tick(2)
    cluster.isolate(3)
    queries = [cluster.query(3), cluster.query(3, b"", ReadLevel.TIMELINE, 1000)]
    cluster.settle()
    cluster.stop(3)
    assert all(query.outcome is Outcome.NOT_DONE for query in queries)


def amid_all_faults(subject: Subject) -> None:
    """Whatever fails, no query sees less than its level promises, and in the end each has an
    answer."""
    for seed in range(12):
        random = Random(seed)
        cluster = subject.cluster(3, seed, limits=Limits(message_bytes_max=100))

        def ask() -> None:
            running = [each for each, node in cluster.nodes.items() if node.is_running]  # noqa: B023
            if running and random.random() < 0.6:  # noqa: B023
                level = random.choice((ReadLevel.LINEARIZABLE, *ReadLevel))  # noqa: B023
                at_least = random.randrange(20)  # noqa: B023
                cluster.query(random.choice(running), b"", level, at_least)  # noqa: B023

        cluster.run(
            200, drawn_faults(random, subject.election_ticks), propose_chance=0.4, before_tick=ask
        )
        subject.recover(cluster)
        cluster.tick(Limits().read_ticks_max + 1)
        check_answered(cluster)
        check_equal(cluster)


def check_answered(cluster: Cluster) -> None:
    """No query is forgotten by a node that runs on."""
    cluster.tick(Limits().read_ticks_max + 1)
    forgotten = [query.number for query in cluster.queries if query.outcome is Outcome.PENDING]
    assert not forgotten, f"nobody was told what came of the queries {forgotten}"


SCENARIOS: tuple[Scenario, ...] = scenarios_of(
    "reads",
    (
        by_every_node,
        by_hand,
        many_at_once,
        deposed_leader_serves_nothing_new,
        new_leader_waits_for_its_past,
        answer_to_an_earlier_life,
        answer_to_an_earlier_request,
        follower_of_a_deposed_leader,
        learner_confirms_nothing,
        lone_leader_refuses,
        without_a_leader_refused,
        outlives_its_leader,
        request_is_lost,
        timeline_waits_for_its_index,
        amid_a_transfer,
        answered_when_it_stops,
        amid_all_faults,
    ),
)
