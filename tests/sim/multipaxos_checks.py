"""What Multi-Paxos promises beyond every engine's invariants, judged from outside: by the messages
that leave and by what is on the disks when they do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from replog.quorum import QuorumSystem
from replog.testing.checks import Check
from replog.testing.network import Flight
from replog.testing.nodes import ClusterNode
from replog.types import Entry, LogIndex, NodeId, Term
from replog_multipaxos.messages import (
    Accept,
    Accepted,
    Learn,
    Message,
    Prepare,
    Promise,
)

Nodes = Mapping[NodeId, ClusterNode]


class OneValuePerBallot:
    """Of one ballot there is one value per slot, whoever tells it (PMS §2.2)."""

    def __init__(self) -> None:
        self.values: dict[tuple[LogIndex, Term], bytes] = {}

    def check_sent(self, nodes: Nodes, flight: Flight) -> str:
        """Hold every entry that travels against all that ever did."""
        for entry in entries_of(flight):
            if self.values.setdefault((entry.index, entry.term), entry.body) != entry.body:
                return f"two values in slot {entry.index} at ballot {entry.term}"
        return ""

    def check_event(self, nodes: Nodes, node: ClusterNode) -> str:
        """Events are not looked at."""
        return ""


class ChosenForEver:
    """What a quorum accepted at one ballot is proposed at every later one (PMS §2.2, P2b)."""

    def __init__(self, quorum: QuorumSystem) -> None:
        self._quorum = quorum
        self._voters: dict[tuple[LogIndex, Term], list[NodeId]] = {}
        self._chosen: dict[LogIndex, tuple[Term, bytes]] = {}

    def check_sent(self, nodes: Nodes, flight: Flight) -> str:
        """Count the votes as they leave, and judge the proposals of later ballots."""
        message = flight.message
        if isinstance(message, Accepted):
            for first, last in message.ranges:
                for slot in range(first, last + 1):
                    self._count(nodes, slot, message)
        if isinstance(message, Accept):
            for entry in message.entries:
                ballot, body = self._chosen.get(entry.index, (entry.term, entry.body))
                if entry.term >= ballot and entry.body != body:
                    return (
                        f"slot {entry.index} was chosen at ballot {ballot}, and ballot "
                        f"{entry.term} proposes something else"
                    )
        return ""

    def _count(self, nodes: Nodes, slot: LogIndex, message: Accepted) -> None:
        voters = self._voters.setdefault((slot, message.term), [])
        if message.sender in voters or slot in self._chosen:
            return
        voters.append(message.sender)
        owner = nodes[message.to].disk.entries.get(slot)
        own = [message.to] if owner is not None and owner.term == message.term else []
        vote = nodes[message.sender].disk.entries.get(slot)
        if vote is not None and self._quorum.is_quorum([*voters, *own]):
            self._chosen[slot] = (message.term, vote.body)

    def check_event(self, nodes: Nodes, node: ClusterNode) -> str:
        """Events are not looked at."""
        return ""


class StatesOnlyDurable:
    """A message states a ballot, and votes, only when they are on its sender's disk."""

    def check_sent(self, nodes: Nodes, flight: Flight) -> str:
        """Look at the sender's disk."""
        message = flight.message
        assert isinstance(message, Message)
        if isinstance(message, Prepare | Promise) and message.pre:
            return ""
        disk = nodes[flight.sender].disk
        if disk.hard_state is None or disk.hard_state.term < message.term:
            return f"a {flight.kind} states ballot {message.term}, which is not on disk"
        if isinstance(message, Accepted):
            for first, last in message.ranges:
                for slot in range(first, last + 1):
                    vote = disk.entries.get(slot)
                    if vote is None or vote.term < message.term:
                        return f"an accepted states slot {slot}, which is not on disk"
        return ""

    def check_event(self, nodes: Nodes, node: ClusterNode) -> str:
        """Events are not looked at."""
        return ""


def entries_of(flight: Flight) -> Sequence[Entry]:
    """What a message carries."""
    message = flight.message
    return message.entries if isinstance(message, Accept | Promise | Learn) else ()


def multipaxos_checks(quorum: QuorumSystem) -> tuple[Check, ...]:
    """All of them, for one cluster."""
    return (OneValuePerBallot(), ChosenForEver(quorum), StatesOnlyDurable())
