"""What Raft promises beyond every engine's invariants (Raft, figure 3), judged from outside.

These rules look into the engine's log view, so they stand with the tests and not in
``replog.testing``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from replog.testing.checks import Check
from replog.testing.network import Flight
from replog.testing.nodes import ClusterNode
from replog.types import Entry, LogIndex, NodeId, Role, Term
from replog_raft import Raft
from replog_raft.messages import AppendReply, RequestVote, TimeoutNow, Vote

Nodes = Mapping[NodeId, ClusterNode]


def raft_of(node: ClusterNode) -> Raft:
    """The engine of a node, with everything that it keeps to itself."""
    engine = node.replica.engine
    assert isinstance(engine, Raft)
    return engine


class LogMatching:
    """Equal (index, term) means equal entries, there and before (Raft §5.3).

    By induction it is enough that the entries themselves and the terms before them are equal.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[LogIndex, Term], tuple[bytes, Term]] = {}
        self._seen: dict[NodeId, tuple[int, LogIndex, Term]] = {}

    def check_sent(self, nodes: Nodes, flight: Flight) -> str:
        """Messages are not looked at."""
        return ""

    def check_event(self, nodes: Nodes, node: ClusterNode) -> str:
        """Hold what is new in the node's log against every log that there ever was."""
        view = raft_of(node).view
        run, last_index, last_term = self._seen.get(node.node_id, (0, 0, 0))
        if (run, last_index, last_term) == (node.run, view.last_index, view.last_term):
            return ""
        self._seen[node.node_id] = (node.run, view.last_index, view.last_term)
        has_grown = run == node.run and view.term_at(last_index) == last_term
        for index in range(last_index + 1 if has_grown else 1, view.last_index + 1):
            entry, before = view.entry_at(index), view.term_at(index - 1)
            assert before is not None
            held = (entry.body, before)
            if self._known.setdefault((index, entry.term), held) != held:
                return f"log matching: node {node.node_id} differs at ({index}, t{entry.term})"
        return ""


class LeaderCompleteness:
    """A leader holds every entry that was committed in an earlier term (Raft §5.4.3)."""

    def __init__(self) -> None:
        self._committed: list[tuple[Entry, Term]] = []
        """By index from 1, with the term in which it was first applied anywhere."""
        self._leaders: dict[Term, NodeId] = {}

    def check_sent(self, nodes: Nodes, flight: Flight) -> str:
        """Messages are not looked at."""
        return ""

    def check_event(self, nodes: Nodes, node: ClusterNode) -> str:
        """Note what is newly applied, and judge the log of a new leader."""
        raft = raft_of(node)
        for entry in node.applied[len(self._committed) :]:
            self._committed.append((entry, raft.term))
        if raft.role is not Role.LEADER or raft.term in self._leaders:
            return ""
        self._leaders[raft.term] = node.node_id
        for entry, term in self._committed:
            index = entry.index
            if term < raft.term and (
                raft.view.last_index < index or raft.view.entry_at(index).body != entry.body
            ):
                return (
                    f"leader completeness: node {node.node_id} leads in term {raft.term} without "
                    f"entry {index}, committed by term {term}"
                )
        return ""


class ElectedByQuorum:
    """A leader has the durable votes of a majority in its term (Raft §5.2)."""

    def __init__(self) -> None:
        self._votes: dict[Term, dict[NodeId, NodeId]] = {}
        """By term and voter: for whom."""
        self._leaders: dict[Term, NodeId] = {}

    def check_sent(self, nodes: Nodes, flight: Flight) -> str:
        """Note what the sender's disk holds, before a vote can arrive."""
        hard_state = nodes[flight.sender].disk.hard_state
        if hard_state is not None:
            votes = self._votes.setdefault(hard_state.term, {})
            votes[flight.sender] = hard_state.voted_for
        return ""

    def check_event(self, nodes: Nodes, node: ClusterNode) -> str:
        """Count the votes for a new leader."""
        raft = raft_of(node)
        if raft.role is not Role.LEADER or raft.term in self._leaders:
            return ""
        self._leaders[raft.term] = node.node_id
        hard_state = node.disk.hard_state
        votes = {**self._votes.get(raft.term, {})}
        if hard_state is not None and hard_state.term == raft.term:
            votes[node.node_id] = hard_state.voted_for
        voters = [voter for voter, voted_for in votes.items() if voted_for == node.node_id]
        if not raft.quorum.is_quorum(voters):
            return f"node {node.node_id} leads in term {raft.term} with the votes of {voters} only"
        return ""


class AppendOnly:
    """Within a term nobody loses an entry of that term (Raft §5.3, Leader Append-Only).

    There is one leader per term and it only appends, so whoever follows it does too.
    """

    def __init__(self) -> None:
        self._seen: dict[NodeId, tuple[int, Term, LogIndex]] = {}

    def check_sent(self, nodes: Nodes, flight: Flight) -> str:
        """Messages are not looked at."""
        return ""

    def check_event(self, nodes: Nodes, node: ClusterNode) -> str:
        """Judge how far the entries of the node's current term reach."""
        raft = raft_of(node)
        last_index = raft.view.last_index if raft.view.last_term == raft.term else 0
        run, term, seen_index = self._seen.get(node.node_id, (0, 0, 0))
        self._seen[node.node_id] = (node.run, raft.term, last_index)
        if (run, term) == (node.run, raft.term) and last_index < seen_index:
            return f"node {node.node_id} lost entry {seen_index} of its term {term} within it"
        return ""


class MatchIsDurable:
    """What a leader knows a peer to hold is on the peer's disk, unless a later leader undid it."""

    def check_sent(self, nodes: Nodes, flight: Flight) -> str:
        """Messages are not looked at."""
        return ""

    def check_event(self, nodes: Nodes, node: ClusterNode) -> str:
        """Hold the leader's progress against the disks of its peers."""
        raft = raft_of(node)
        if raft.leader is None:
            return ""
        for peer, progress in raft.leader.progress.items():
            index, disk = progress.match_index, nodes[peer].disk
            if not index or (disk.hard_state and disk.hard_state.term > raft.term):
                continue
            held = disk.entries.get(index)
            if held is None or held.term != raft.view.term_at(index):
                return f"node {node.node_id} takes entry {index} to be on the disk of node {peer}"
        return ""


class CommitsOwnTerm:
    """A leader's commit index only comes to entries of its own term (Raft §5.4.2)."""

    def __init__(self) -> None:
        self._before: dict[NodeId, tuple[Term, LogIndex]] = {}

    def check_sent(self, nodes: Nodes, flight: Flight) -> str:
        """Messages are not looked at."""
        return ""

    def check_event(self, nodes: Nodes, node: ClusterNode) -> str:
        """Judge where a leader's commit index went."""
        raft = raft_of(node)
        if raft.role is not Role.LEADER:
            self._before.pop(node.node_id, None)
            return ""
        term, index = self._before.get(node.node_id, (raft.term, raft.commit_index))
        self._before[node.node_id] = (raft.term, raft.commit_index)
        if term == raft.term and index != raft.commit_index:
            committed_term = raft.view.term_at(raft.commit_index)
            if committed_term != raft.term:
                return f"node {node.node_id} committed up to an entry of term {committed_term}"
        return ""


class StatesWhatIsDurable:
    """A message that binds its sender states only what is on the sender's disk."""

    def check_sent(self, nodes: Nodes, flight: Flight) -> str:
        """Judge a message by its sender's synced layer."""
        message, disk = flight.message, nodes[flight.sender].disk
        if isinstance(message, RequestVote | Vote) and message.pre:
            return ""
        term = disk.hard_state.term if disk.hard_state else 0
        voted_for = disk.hard_state.voted_for if disk.hard_state else 0
        if flight.term > term:
            return f"{flight.kind} of node {flight.sender} states term {flight.term}, not on disk"
        binds_to = flight.sender if isinstance(message, RequestVote) else flight.to
        is_vote = isinstance(message, RequestVote) or (
            isinstance(message, Vote) and message.granted
        )
        if is_vote and flight.term == term and voted_for != binds_to:
            return f"{flight.kind} of node {flight.sender} is a vote that is not on disk"
        if isinstance(message, AppendReply) and message.accepted:
            if message.match_index and message.match_index not in disk.entries:
                return f"node {flight.sender} acknowledges {message.match_index}, not on disk"
        elif isinstance(message, TimeoutNow):
            return "" if flight.term == term else "an order to campaign from an older term"
        return ""

    def check_event(self, nodes: Nodes, node: ClusterNode) -> str:
        """Only messages are looked at."""
        return ""


def raft_checks() -> Sequence[Check]:
    """Fresh instances of all of them, for one cluster."""
    return (
        LogMatching(),
        LeaderCompleteness(),
        ElectedByQuorum(),
        AppendOnly(),
        MatchIsDurable(),
        CommitsOwnTerm(),
        StatesWhatIsDurable(),
    )
