"""What the tests of the Multi-Paxos engine begin with: clusters, and engines alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from replog.engine import EngineSetup
from replog.limits import Limits
from replog.stored_log import HeldLog
from replog.testing import Cluster, Flight, Outcome, Proposal
from replog.types import (
    NO_ENTRY,
    NO_NODE,
    Entry,
    EntryId,
    EntryKind,
    Epoch,
    HardState,
    LogIndex,
    NodeId,
    Ready,
    Term,
    Voter,
    entry_body,
)
from replog_multipaxos import PLUGIN, MultiPaxos, MultiPaxosOptions
from replog_multipaxos.ballot import ballot_of

SMALL = Limits(message_bytes_max=1)
"""Every message carries one entry."""


def cluster_of(
    node_count: int = 3, options: MultiPaxosOptions | None = None, limits: Limits | None = None
) -> Cluster:
    """A quiet cluster in which nobody leads."""
    return Cluster(PLUGIN, options, node_count=node_count, limits=limits)


def led(
    node_count: int = 3, options: MultiPaxosOptions | None = None, limits: Limits | None = None
) -> Cluster:
    """A cluster that node 1 leads at ballot 1.1, with empty logs."""
    cluster = cluster_of(node_count, options, limits)
    cluster.campaign(1)
    cluster.settle()
    assert cluster.leader() == 1
    return cluster


def engine_of(cluster: Cluster, node_id: NodeId) -> MultiPaxos:
    """The engine of a node, with everything that it keeps to itself."""
    engine = cluster.nodes[node_id].replica.engine
    assert isinstance(engine, MultiPaxos)
    return engine


def lone(
    node_id: NodeId = 2,
    *,
    promised: Term = 0,
    entries: Sequence[Entry] = (),
    hint: LogIndex = 0,
    node_count: int = 3,
    options: MultiPaxosOptions | None = None,
    limits: Limits | None = None,
    agreed: tuple[tuple[str, int], ...] = (),
    start_index: LogIndex = 1,
    base_index: LogIndex = 0,
    snapshot_index: LogIndex = 0,
    applied_index: LogIndex = 0,
) -> MultiPaxos:
    """One engine without a cluster, as it starts from what its disk holds."""
    voters = tuple(Voter(each, each) for each in range(1, node_count + 1))
    owner = promised & 0xFFFF
    setup = EngineSetup(
        node_id,
        Epoch(1, "multipaxos", voters, start_index, agreed),
        HardState(1, promised, owner or NO_NODE, hint),
        HeldLog(entries, EntryId(1, 0, base_index) if base_index else NO_ENTRY),
        limits or Limits(),
        options or MultiPaxosOptions(),
        seed=7,
        nonce=0,
        snapshot=EntryId(1, 0, snapshot_index) if snapshot_index else NO_ENTRY,
        applied_index=applied_index,
    )
    engine = PLUGIN.create(setup)
    assert isinstance(engine, MultiPaxos)
    return engine


def vote(index: LogIndex, ballot: Term, data: bytes = b"") -> Entry:
    """A command accepted in a slot at a ballot; its origin says nothing of the ballot."""
    return Entry(1, index, ballot, entry_body(EntryKind.COMMAND, 1, 9, index, data))


def b(round_number: int, node_id: NodeId) -> Term:
    """The ballot of a node in a round."""
    return ballot_of(round_number, node_id)


def carried_out(engine: MultiPaxos) -> list[Ready]:
    """Everything that the engine is ready for, each Ready durable at once."""
    found: list[Ready] = []
    while (ready := engine.ready()) is not None:
        found.append(ready)
        engine.advance(ready)
    return found


def answers(engine: MultiPaxos) -> list[object]:
    """The messages that leave, at once and after the sync."""
    return [
        message
        for ready in carried_out(engine)
        for message in (*ready.messages, *ready.messages_after_sync)
    ]


def kind(name: str, to: NodeId = 0, sender: NodeId = 0) -> Callable[[Flight], bool]:
    """Matches messages of one kind, perhaps of one link."""

    def matches(flight: Flight) -> bool:
        return (
            flight.kind == name
            and to in (NO_NODE, flight.to)
            and sender in (NO_NODE, flight.sender)
        )

    return matches


def done(cluster: Cluster, node_id: NodeId, payload: bytes) -> Proposal:
    """Propose, and see it done without time passing."""
    proposal = cluster.propose(node_id, payload)
    cluster.settle()
    assert proposal.outcome is Outcome.DONE
    return proposal
