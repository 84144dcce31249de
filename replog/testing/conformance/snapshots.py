"""The rules of :mod:`replog.engine` about what goes into snapshots: trimming, installing, facts.

Some need a cluster, whose nodes take, send and install snapshots by themselves; some need one
engine in a state that a cluster has brought it to, a clone of which is told what its node would
tell it.  What a snapshot consists of is nobody's affair here.
"""

from __future__ import annotations

from typing import Final

from replog.engine import Engine
from replog.limits import Limits
from replog.node_messages import NODE_TYPES
from replog.testing.cluster import Cluster
from replog.testing.conformance.subject import (
    Scenario,
    Subject,
    check_equal,
    done,
    scenarios_of,
)
from replog.testing.network import Flight
from replog.transfer_messages import TRANSFER_TYPES
from replog.types import LogIndex, NodeId, Ready

LIMITS: Final = Limits(
    trim_margin_entries=1, snapshot_chunk_bytes=40, snapshot_bytes_per_second_max=1000
)
"""Little is kept behind a snapshot, and one travels in many pieces, for some ticks."""

COMMANDS: Final = 6
"""How many commands the others go on by, while a node is cut off."""

FILLED_TICKS_MAX: Final = 400
"""Within so many ticks a node that can ask for a snapshot is filled from it."""


def trim(cluster: Cluster, *node_ids: NodeId) -> None:
    """Have nodes take snapshots, and trim their logs behind them."""
    for node_id in node_ids:
        cluster.take_snapshot(node_id)
    cluster.settle()
    cluster.tick()
    for node_id in node_ids:
        assert cluster.nodes[node_id].disk.base_index, f"node {node_id} trimmed nothing"


def carried_out(engine: Engine) -> list[Ready]:
    """All that an engine wants done, done; what it wants sent is lost."""
    found: list[Ready] = []
    while (ready := engine.ready()) is not None:
        found.append(ready)
        engine.advance(ready)
    return found


def is_filled(cluster: Cluster, node_id: NodeId) -> bool:
    """Whether a node's current run installed a snapshot."""
    return cluster.nodes[node_id].installed_index > 0


# -- trimming --


def trim_tells_the_disk(subject: Subject) -> None:
    """A trim goes as far as it says, tells the disk once, and names the same snapshots as before;
    to trim less afterwards changes nothing."""
    cluster = subject.led()
    for at in range(COMMANDS):
        done(cluster, b"%d" % at)
    cluster.tick(subject.election_ticks)
    for node in cluster.nodes.values():
        engine = node.replica.engine.clone()
        carried_out(engine)
        applied_index = engine.status().applied_index
        names = {index: engine.snapshot_id(index) for index in range(1, applied_index + 1)}
        upto = engine.trim(applied_index - 1)
        assert 0 < upto <= applied_index - 1
        assert engine.status().base_index == upto
        bases = [ready.base for ready in carried_out(engine) if ready.base is not None]
        assert bases == [names[upto]], "the disk is told something else, or more than once"
        assert engine.snapshot_id(applied_index) == names[applied_index]
        assert engine.trim(1) == upto
        assert carried_out(engine) == []


def trim_keeps_what_is_not_durable(subject: Subject) -> None:
    """What a quorum of others has is committed, and stays in a log whose disk has it not."""
    cluster = subject.led()
    done(cluster, b"before")
    cluster.tick(subject.election_ticks)
    cluster.hold_disk(1)
    cluster.propose(1, b"x")
    cluster.settle()
    engine = cluster.nodes[1].replica.engine.clone()
    status = engine.status()
    assert status.applied_index > status.durable_index, "the own disk was waited for"
    assert engine.trim(status.applied_index) <= status.durable_index


def same_names_everywhere(subject: Subject) -> None:
    """A snapshot of the same entries has one name, whoever takes it, under whichever leader."""
    cluster = subject.led()
    done(cluster, b"x")
    cluster.transfer(1, 2)
    cluster.tick(subject.election_ticks)
    subject.wait_leader(cluster)
    done(cluster, b"y")
    cluster.tick(subject.election_ticks)
    engines = [node.replica.engine for node in cluster.nodes.values()]
    least = min(engine.status().applied_index for engine in engines)
    for index in range(1, least + 1):
        assert len({engine.snapshot_id(index) for engine in engines}) == 1, index


# -- installing --


def lagging_node_is_filled(subject: Subject) -> None:
    """A node that lacks what the others trimmed is filled from a snapshot, also when it dies amid
    that, and starts from it later."""
    cluster = subject.led(limits=LIMITS)
    cut = cluster.isolate(3)
    for at in range(COMMANDS):
        done(cluster, b"%d" % at)
    trim(cluster, 1, 2)
    cluster.mend(cut)
    lagging = cluster.nodes[3]
    assert cluster.run_until(lambda: lagging.is_fetching, FILLED_TICKS_MAX), "nothing is fetched"
    cluster.crash(3)
    cluster.restart(3)
    assert cluster.run_until(lambda: is_filled(cluster, 3), FILLED_TICKS_MAX), "never filled"
    done(cluster, b"last")
    subject.recover(cluster)
    cluster.crash(3)
    cluster.restart(3)
    subject.recover(cluster)
    check_equal(cluster)


def overtaken(subject: Subject, own_count: int) -> Cluster:
    """A cluster whose first leader was cut off with entries of its own, while the others committed
    something else and trimmed it; nothing is cut any more."""
    cluster = subject.led(limits=LIMITS)
    done(cluster, b"before")
    cluster.tick(3)
    cut = cluster.isolate(1)
    for at in range(own_count):
        cluster.propose(1, b"own %d" % at)
    cluster.settle()
    assert cluster.run_until(lambda: cluster.leader() in (2, 3), 6 * subject.election_ticks), (
        "nobody took over"
    )
    for at in range(COMMANDS):
        done(cluster, b"%d" % at)
    cluster.tick(subject.election_ticks)
    trim(cluster, 2, 3)
    cluster.mend(cut)
    return cluster


def overtaken_leader_is_filled(subject: Subject) -> None:
    """A leader that was cut off comes back to a trimmed log, with fewer entries of its own than
    the others have, or with more: all are equal."""
    for own_count in (2, 2 * COMMANDS):
        cluster = overtaken(subject, own_count)
        assert cluster.run_until(lambda: is_filled(cluster, 1), FILLED_TICKS_MAX), (  # noqa: B023
            "never filled"
        )
        subject.recover(cluster)
        check_equal(cluster)


def dies_before_its_log_begins_there(subject: Subject) -> None:
    """A node dies when its machine is filled from a snapshot, and its disk does not know that its
    log begins behind it: it goes on from the snapshot, whatever its log holds."""
    for own_count in (2, 2 * COMMANDS):
        cluster = overtaken(subject, own_count)
        alone = cluster.nodes[1]
        assert cluster.run_until(lambda: alone.is_fetching, FILLED_TICKS_MAX), (  # noqa: B023
            "nothing is fetched"
        )
        cluster.hold_disk(1)
        assert cluster.run_until(lambda: is_filled(cluster, 1), FILLED_TICKS_MAX), (  # noqa: B023
            "never filled"
        )
        reach = alone.installed_index
        cluster.crash(1)
        cluster.restart(1)
        assert alone.status_seen.applied_index >= reach, "what was installed is gone"
        cluster.release_disk(1)
        cluster.tick()
        assert alone.disk.base_index >= reach, "the disk was not told again"
        subject.recover(cluster)
        check_equal(cluster)


def stored_but_not_committed(subject: Subject) -> tuple[Engine, Cluster, LogIndex]:
    """A follower's engine with three entries on its disk that it does not know as committed, the
    cluster in which they are, and the index in front of them."""
    cluster = subject.led()
    done(cluster, b"before")
    cluster.tick(subject.election_ticks)
    cluster.crash(2)
    cluster.hold(from_third)
    for payload in (b"a", b"b", b"c"):
        cluster.propose(1, payload)
        cluster.settle()
    engine = cluster.nodes[3].replica.engine.clone()
    carried_out(engine)
    status = engine.status()
    known_index = status.commit_index
    assert status.durable_index == status.last_index == known_index + 3, "not stored, or known"
    cluster.release()
    cluster.settle()
    assert cluster.nodes[1].status_seen.applied_index == known_index + 3
    return engine, cluster, known_index


def from_third(flight: Flight) -> bool:
    """Whether node 3 sends it."""
    return flight.sender == 3


def install_keeps_what_is_behind(subject: Subject) -> None:
    """A snapshot of the first of some entries, all of them acknowledged, takes none of the others;
    and nothing that it holds is handed out."""
    engine, cluster, known_index = stored_but_not_committed(subject)
    leader = cluster.nodes[1].replica.engine
    last_index = engine.status().last_index
    engine.observe_term(leader.term)
    engine.install(leader.snapshot_id(known_index + 2))
    readys = carried_out(engine)
    status = engine.status()
    assert (status.commit_index, status.applied_index) == (known_index + 2, known_index + 2)
    assert (status.base_index, status.last_index) == (known_index + 2, last_index)
    assert status.durable_index == last_index, "what was acknowledged is not on disk any more"
    assert not any(ready.committed for ready in readys)
    assert all((ready.truncate_from or last_index + 1) > last_index for ready in readys)
    engine.check()


def install_of_the_past_changes_nothing(subject: Subject) -> None:
    """A snapshot of what was applied long ago takes nothing back."""
    cluster = subject.led()
    for at in range(3):
        done(cluster, b"%d" % at)
    cluster.tick(subject.election_ticks)
    for node in cluster.nodes.values():
        engine = node.replica.engine.clone()
        carried_out(engine)
        before = engine.key()
        engine.install(engine.snapshot_id(2))
        assert carried_out(engine) == []
        assert engine.key() == before


# -- facts --


def fact_deposes(subject: Subject) -> None:
    """Whoever is to take a fact of a higher term is in that term, as a follower, and durably; one
    of a lower term changes nothing."""
    cluster = subject.led()
    done(cluster, b"x")
    cluster.transfer(1, 2)
    cluster.tick(subject.election_ticks)
    subject.wait_leader(cluster)
    higher = cluster.nodes[cluster.leader()].replica.engine.term
    fresh = subject.led()
    for node in fresh.nodes.values():
        engine = node.replica.engine.clone()
        carried_out(engine)
        lower = engine.term
        assert lower < higher
        engine.observe_term(higher)
        assert engine.term == higher
        assert engine.soft_state.leader_id == 0, "it follows or leads under its old term"
        assert any(ready.hard_state is not None for ready in carried_out(engine))
        assert engine.status().durable_term == higher
        engine.observe_term(lower)
        assert engine.term == higher


def snapshot_brings_its_senders_term(subject: Subject) -> None:
    """A node that is told of no new leader enters its term, durably, before it installs what that
    leader's followers send."""
    cluster = subject.led(limits=LIMITS)
    cut = cluster.isolate(3)
    for at in range(COMMANDS):
        done(cluster, b"%d" % at)
    trim(cluster, 1, 2)
    cluster.mend(cut)
    node = cluster.nodes[3]

    def wants() -> bool:
        return node.replica.engine.status().wanted_index > 0

    assert cluster.run_until(wants, FILLED_TICKS_MAX), "node 3 wants no snapshot"
    cluster.hold(to_third)
    cluster.hold(engines_of_third)
    cluster.transfer(1, 2)
    cluster.settle()
    assert cluster.run_until(lambda: cluster.leader() == 2, 3 * subject.election_ticks)
    cluster.settle()
    term = cluster.nodes[2].replica.engine.term
    cluster.release(to_third)
    assert cluster.run_until(lambda: is_filled(cluster, 3), FILLED_TICKS_MAX), "never filled"
    hard_state = node.disk.hard_state
    assert hard_state is not None
    assert hard_state.term >= term, "a snapshot was installed under an older term"
    cluster.network.held.clear()
    cluster.release()
    subject.recover(cluster)
    check_equal(cluster)


def to_third(flight: Flight) -> bool:
    """Whether it goes to node 3 and is of a transfer."""
    return flight.to == 3 and type(flight.message) in TRANSFER_TYPES


def engines_of_third(flight: Flight) -> bool:
    """Whether it goes to node 3 or comes from it, and is an engine's."""
    return 3 in flight.link and type(flight.message) not in NODE_TYPES


SCENARIOS: tuple[Scenario, ...] = scenarios_of(
    "snapshots",
    (
        trim_tells_the_disk,
        trim_keeps_what_is_not_durable,
        same_names_everywhere,
        lagging_node_is_filled,
        overtaken_leader_is_filled,
        dies_before_its_log_begins_there,
        install_keeps_what_is_behind,
        install_of_the_past_changes_nothing,
        fact_deposes,
        snapshot_brings_its_senders_term,
    ),
)
