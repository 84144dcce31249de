"""What Multi-Paxos promises beyond every engine's invariants, judged from outside: by the messages
that leave and by what is on the disks when they do.

:class:`OneChoice` is the heart of it and keeps the records that the others read, so it is asked
first.  A record on disk counts as a vote, though it may be a fact that was learned: a fact is told
with a ballot at or above one at which its value was chosen, and every proposal from there on has
that value, so no other value is ever counted by it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from replog.quorum import QuorumSystem
from replog.testing.checks import Check
from replog.testing.network import Flight
from replog.testing.nodes import ClusterNode
from replog.types import Entry, LogIndex, NodeId, Role, Term
from replog_multipaxos.ballot import owner_of
from replog_multipaxos.messages import (
    Accept,
    Accepted,
    CommitReply,
    Learn,
    Message,
    Prepare,
    Promise,
)

Nodes = Mapping[NodeId, ClusterNode]


class OneChoice:
    """Of one ballot there is one value per slot, and what a quorum accepted at one ballot is the
    value of every later one (PMS §2.2, P2b), whichever of the two was seen first."""

    def __init__(self, quorum: QuorumSystem) -> None:
        self._quorum = quorum
        self._values: dict[LogIndex, dict[Term, bytes]] = {}
        self._voters: dict[tuple[LogIndex, Term], list[NodeId]] = {}
        self._synced: dict[NodeId, int] = {}
        self._on_disk: dict[NodeId, dict[LogIndex, Entry]] = {}
        self.chosen: dict[LogIndex, Term] = {}
        """The lowest ballot at which a quorum's disks are known to have held the slot."""
        self.promised: dict[NodeId, Term] = {}
        """The highest ballot that the node has stated in a Promise."""
        self.given: dict[tuple[NodeId, LogIndex, Term], Term] = {}
        """By vote: what its node had stated as promised when the vote was first on its disk."""

    def check_sent(self, nodes: Nodes, flight: Flight) -> str:
        """Hold what travels, and what the sender's disk holds, against all that was seen."""
        found = self._judge_disk(nodes[flight.sender])
        for entry in entries_of(flight):
            found = found or self._judge_value(entry)
        message = flight.message
        if isinstance(message, Promise) and not message.pre:
            before = self.promised.get(message.sender, 0)
            self.promised[message.sender] = max(before, message.term)
        return found

    def check_event(self, nodes: Nodes, node: ClusterNode) -> str:
        """Hold what the node's disk holds against all that was seen."""
        return self._judge_disk(node)

    def _judge_disk(self, node: ClusterNode) -> str:
        """Judge the records that were not there when this was last asked."""
        node_id, disk = node.node_id, node.disk
        if self._synced.get(node_id) == disk.synced_count:
            return ""
        self._synced[node_id] = disk.synced_count
        seen = self._on_disk.setdefault(node_id, {})
        for slot, entry in disk.entries.items():
            if seen.get(slot) is entry:
                continue
            seen[slot] = entry
            self.given.setdefault((node_id, slot, entry.term), self.promised.get(node_id, 0))
            if found := self._judge_value(entry) or self._count(node_id, entry):
                return found
        return ""

    def _judge_value(self, entry: Entry) -> str:
        values = self._values.setdefault(entry.index, {})
        value = values.get(entry.term)
        if value is None:
            values[entry.term] = entry.body
            return self._judge_choice(entry.index)
        return "" if value == entry.body else f"two values in slot {entry.index} at {entry.term}"

    def _count(self, node_id: NodeId, vote: Entry) -> str:
        slot, ballot = vote.index, vote.term
        voters = self._voters.setdefault((slot, ballot), [])
        if node_id not in voters:
            voters.append(node_id)
        if not self._quorum.is_quorum(voters) or self.chosen.get(slot, ballot + 1) <= ballot:
            return ""
        self.chosen[slot] = ballot
        return self._judge_choice(slot)

    def _judge_choice(self, slot: LogIndex) -> str:
        """Judge the values of the ballots from the one on at which the slot was chosen."""
        chosen = self.chosen.get(slot)
        if chosen is None:
            return ""
        values = self._values[slot]
        for ballot, body in values.items():
            if ballot > chosen and body != values[chosen]:
                return f"slot {slot} is chosen at ballot {chosen}, and {ballot} has another value"
        return ""


class PromiseKept:
    """Who has promised a ballot gives no vote at a lower one any more (PMS §2.2, P1a)."""

    def __init__(self, record: OneChoice) -> None:
        self._record = record

    def check_sent(self, nodes: Nodes, flight: Flight) -> str:
        """A vote that is told was on disk before a higher promise left."""
        message = flight.message
        if not isinstance(message, Accepted):
            return ""
        for slot in slots_of(message.ranges):
            given = self._record.given.get((message.sender, slot, message.term), 0)
            if given > message.term:
                return (
                    f"node {message.sender} accepts slot {slot} at ballot {message.term}, having "
                    f"promised {given}"
                )
        return ""

    def check_event(self, nodes: Nodes, node: ClusterNode) -> str:
        """Events are not looked at."""
        return ""


class BallotUsedOnce:
    """One run of one node asks and proposes at a ballot: its owner (PMS §2.2)."""

    def __init__(self) -> None:
        self._users: dict[Term, int] = {}
        """By ballot: the run of its owner."""

    def check_sent(self, nodes: Nodes, flight: Flight) -> str:
        """Judge who acts at the ballot of the message."""
        message = flight.message
        if not isinstance(message, Prepare | Accept):
            return ""
        if owner_of(message.term) != message.sender:
            return f"node {message.sender} acts at ballot {message.term}, which is another's"
        is_binding = isinstance(message, Accept) or not message.pre
        run = nodes[message.sender].run
        if is_binding and self._users.setdefault(message.term, run) != run:
            return f"two runs of node {message.sender} use ballot {message.term}"
        return ""

    def check_event(self, nodes: Nodes, node: ClusterNode) -> str:
        """Events are not looked at."""
        return ""


class StatesOnlyDurable:
    """A message states a ballot, votes and chosen values only when its sender's disk has them."""

    def __init__(self) -> None:
        self._reach: dict[NodeId, LogIndex] = {}
        """By node: every slot up to there has a record on its disk."""

    def check_sent(self, nodes: Nodes, flight: Flight) -> str:
        """Look at the sender's disk."""
        message = flight.message
        assert isinstance(message, Message)
        if isinstance(message, Prepare | Promise) and message.pre:
            return ""
        disk = nodes[flight.sender].disk
        if disk.hard_state is None or disk.hard_state.term < message.term:
            return f"a {flight.kind} states ballot {message.term}, which is not on disk"
        told: Iterable[tuple[LogIndex, Term]] = ()
        if isinstance(message, Accepted):
            told = ((slot, message.term) for slot in slots_of(message.ranges))
        elif isinstance(message, Promise):
            told = ((vote.index, vote.term) for vote in message.entries)
        for slot, ballot in told:
            held = disk.entries.get(slot)
            if held is None or held.term < ballot:
                return f"a {flight.kind} states slot {slot}, which is not on disk"
        return self._judge_chosen(nodes[flight.sender], flight)

    def _judge_chosen(self, node: ClusterNode, flight: Flight) -> str:
        message = flight.message
        if not isinstance(message, Accepted | CommitReply):
            return ""
        reach = self._reach.get(node.node_id, 0)
        while reach + 1 in node.disk.entries:
            reach += 1
        self._reach[node.node_id] = reach
        if message.chosen_upto <= reach:
            return ""
        return f"{flight.kind} states slots up to {message.chosen_upto}, {reach + 1} is not on disk"

    def check_event(self, nodes: Nodes, node: ClusterNode) -> str:
        """Events are not looked at."""
        return ""


class LedByQuorum:
    """Who leads has the promises of a phase-1 quorum at its ballot, its own on disk."""

    def __init__(self, phase1: QuorumSystem) -> None:
        self._phase1 = phase1
        self._promised: dict[Term, list[NodeId]] = {}
        self._judged: set[Term] = set()

    def check_sent(self, nodes: Nodes, flight: Flight) -> str:
        """Note who has promised."""
        message = flight.message
        if isinstance(message, Promise) and not message.pre:
            self._promised.setdefault(message.term, []).append(message.sender)
        return ""

    def check_event(self, nodes: Nodes, node: ClusterNode) -> str:
        """Count the promises of a new leader."""
        status = node.status_seen
        if status.role is not Role.LEADER or status.term in self._judged:
            return ""
        self._judged.add(status.term)
        hard_state = node.disk.hard_state
        is_own = hard_state is not None and hard_state.term == status.term
        nodes_promised = [*self._promised.get(status.term, []), *([node.node_id] * is_own)]
        if self._phase1.is_quorum(nodes_promised):
            return ""
        return f"node {node.node_id} leads at {status.term}, promised by {nodes_promised} only"


class CountsOnlyVotes:
    """What a leader takes a peer to hold was on the peer's disk at this ballot, or is chosen."""

    def __init__(self, record: OneChoice) -> None:
        self._record = record
        self._seen: dict[tuple[NodeId, Term, NodeId], LogIndex] = {}

    def check_sent(self, nodes: Nodes, flight: Flight) -> str:
        """Messages are not looked at."""
        return ""

    def check_event(self, nodes: Nodes, node: ClusterNode) -> str:
        """Hold what the leader has newly counted against what the disks ever held."""
        status, record = node.status_seen, self._record
        for peer in status.peers:
            place = (node.node_id, status.term, peer.node_id)
            seen = self._seen.get(place, 0)
            for slot in range(seen + 1, peer.match_index + 1):
                is_vote = (peer.node_id, slot, status.term) in record.given
                if not is_vote and slot not in record.chosen:
                    return (
                        f"node {node.node_id} counts a vote of node {peer.node_id} in slot {slot} "
                        f"at ballot {status.term}, which was never given"
                    )
            self._seen[place] = max(seen, peer.match_index)
        return ""


def entries_of(flight: Flight) -> Sequence[Entry]:
    """What a message carries."""
    message = flight.message
    return message.entries if isinstance(message, Accept | Promise | Learn) else ()


def slots_of(ranges: Iterable[tuple[LogIndex, LogIndex]]) -> Iterable[LogIndex]:
    """Every slot in some ranges."""
    return (slot for first, last in ranges for slot in range(first, last + 1))


def multipaxos_checks(
    phase2: QuorumSystem, phase1: QuorumSystem | None = None
) -> tuple[Check, ...]:
    """All of them, for one cluster; ``phase1`` ``None``: who promised is not judged."""
    record = OneChoice(phase2)
    checks: list[Check] = [
        record,
        PromiseKept(record),
        BallotUsedOnce(),
        StatesOnlyDurable(),
        CountsOnlyVotes(record),
    ]
    if phase1 is not None:
        checks.append(LedByQuorum(phase1))
    return tuple(checks)
