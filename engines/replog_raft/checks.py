"""What Raft promises beyond every engine's invariants (Raft, figure 3), judged from outside: by
the Readys that nodes hand out, the messages that leave, the disks, and what a leader's status says.

* **R1** Who leads has the durable votes of a majority in its term (Raft §5.2, Election Safety).
* **R2** Within a term nobody loses an entry of that term (Raft §5.3, Leader Append-Only): there is
  one leader per term and it only appends, so whoever follows it does too.
* **R3** Equal (index, term) means equal entries, there and before (Raft §5.3, Log Matching).
* **R4** Who leads holds every entry that was committed in an earlier term, be it before or while it
  leads (Raft §5.4.3, Leader Completeness).
* **R5** A leader's commit index only comes to entries of its own term (Raft §5.4.2, figure 8), a
  follower's only to entries that the leader of its term has.
* **R6** A message that binds its sender (to a term, a vote, an entry) states what is on its disk.
* **R7** A leader takes a peer to hold what that peer has acknowledged to it in this term, and
  tells it to commit no more than that; every node takes to be durable what is on its own disk.
* **R8** A leader has no more unanswered messages, or bytes of entries, on their way to a peer than
  its limits allow; puts no more into one message; and takes no proposal above its limit of
  uncommitted bytes.
* **R9** A vote goes to who asked for it, with a log at least as up to date as the voter's
  (Raft §5.4.1).
* **R10** Who receives a message of a higher term enters it, unless it is a request for a vote or a
  granted pre-vote, which bind nobody (Raft §5.1; thesis §4.2.3, §9.6).
* **R11** A learner asks for no vote and gives none, be it one that binds nobody (thesis §4.2.1).

R11 is :class:`~replog.testing.members.LearnersOnlyLearn`.
That State Machine Safety holds, the last line of figure 3, is I2 of :mod:`replog.testing.checks`.
R8 is judged in :mod:`replog_raft.limit_checks`.
A rule looks again only when a Ready, a message or a status is new.
"""

from __future__ import annotations

from collections.abc import Sequence

from replog.quorum import QuorumSystem
from replog.testing.checks import Check, Nodes
from replog.testing.network import Flight
from replog.testing.nodes import ClusterNode
from replog.types import NO_NODE, Entry, LogIndex, NodeId, Ready, Role, Status, Term
from replog_raft.messages import (
    AppendEntries,
    AppendReply,
    Heartbeat,
    RequestVote,
    TimeoutNow,
    Vote,
)


class WrittenLogs(Check):
    """R2 and R3, and the record that other rules read: each node's log as its Readys wrote it,
    be it on disk yet or not."""

    def __init__(self) -> None:
        self._logs: dict[NodeId, tuple[int, dict[LogIndex, Entry]]] = {}
        """By node, with the run that it is of."""
        self._known: dict[tuple[LogIndex, Term], tuple[bytes, Term]] = {}
        """By index and term, in any log there ever was: the body, and the term before it."""
        self._sent: tuple[Sequence[Entry], Term] = ((), 0)
        """What was judged last, with the term in front of it: a leader sends the same entries to
        every peer."""

    def of(self, node: ClusterNode) -> dict[LogIndex, Entry]:
        """The log of the node's current run, which began with what was on its disk."""
        run, log = self._logs.get(node.node_id, (0, {}))
        if run != node.run:
            log = {}
            self._take_snapshot(node, log, node.disk.base_index)
            log |= {index: node.disk.entries[index] for index in sorted(node.disk.entries)}
            self._logs[node.node_id] = (node.run, log)
            for entry in log.values():
                self._judge(entry, term_before(log, entry.index))
        return log

    def check_ready(self, nodes: Nodes, node: ClusterNode, ready: Ready) -> str:
        """Follow the writes of the Ready, and judge what they void and what they add."""
        log = self.of(node)
        if ready.base is not None:
            self._take_snapshot(node, log, ready.base.index)
        if ready.truncate_from is None and not ready.entries:
            return self._judge_base(node, log, ready)
        voided: list[Entry] = []
        if ready.truncate_from is not None:
            gone = [index for index in log if index >= ready.truncate_from]
            voided += [log.pop(index) for index in gone]
        for entry in ready.entries:
            if entry.index in log and log[entry.index].term != entry.term:
                voided.append(log[entry.index])
            log[entry.index] = entry
        term = node.replica.engine.term
        for entry in voided:
            if entry.term >= term:
                return (
                    f"R2: node {node.node_id} loses entry {entry.index} of term {entry.term}, and "
                    f"is in term {term}"
                )
        for entry in ready.entries:
            if not self._judge(entry, term_before(log, entry.index)):
                return f"R3: node {node.node_id} writes another ({entry.index}, t{entry.term})"
        return self._judge_base(node, log, ready)

    def _judge_base(self, node: ClusterNode, log: dict[LogIndex, Entry], ready: Ready) -> str:
        """What a new base leaves behind it must follow on it."""
        first = None if ready.base is None else log.get(ready.base.index + 1)
        if first is None or self._judge(first, term_before(log, first.index)):
            return ""
        return (
            f"R3: node {node.node_id} keeps ({first.index}, t{first.term}) behind a snapshot on "
            "whose last entry it does not follow"
        )

    def _take_snapshot(
        self, node: ClusterNode, log: dict[LogIndex, Entry], base_index: LogIndex
    ) -> None:
        """What the node's log begins behind stands in it as what it was."""
        for entry in node.applied[:base_index]:
            log[entry.index] = entry

    def check_sent(self, nodes: Nodes, flight: Flight) -> str:
        """What a leader sends is a piece of a log too."""
        message = flight.message
        if type(message) is not AppendEntries:
            return ""
        sent, sent_before = self._sent
        if message.entries is sent and message.prev_term == sent_before:
            return ""
        before = message.prev_term
        for entry in message.entries:
            if not self._judge(entry, before):
                return f"R3: node {flight.sender} sends another ({entry.index}, t{entry.term})"
            before = entry.term
        self._sent = (message.entries, message.prev_term)
        return ""

    def _judge(self, entry: Entry, before: Term) -> bool:
        """Whether every log that had an entry of this index and term had this one, behind an
        entry of the same term; by induction that is all of R3."""
        held = (entry.body, before)
        return self._known.setdefault((entry.index, entry.term), held) == held


def term_before(log: dict[LogIndex, Entry], index: LogIndex) -> Term:
    """The term of the entry in front of ``index``; 0 at the beginning of the log."""
    before = log.get(index - 1)
    return 0 if before is None else before.term


class Elections(Check):
    """R1 and R9, and the record of votes."""

    def __init__(self, logs: WrittenLogs, quorum: QuorumSystem) -> None:
        self._logs = logs
        self._quorum = quorum
        self._asked: dict[tuple[Term, NodeId], tuple[Term, LogIndex]] = {}
        """By candidacy: the last term and the last index of the candidate's log."""
        self.votes: dict[Term, dict[NodeId, NodeId]] = {}
        """By term and voter: for whom.  A candidate's own vote is on its disk when it asks."""
        self.leaders: dict[Term, NodeId] = {}

    def check_sent(self, nodes: Nodes, flight: Flight) -> str:
        """Note who asks for votes, and who gives one."""
        message = flight.message
        if type(message) is RequestVote and not message.pre:
            self._asked[message.term, message.sender] = (message.last_term, message.last_index)
            self.votes.setdefault(message.term, {})[message.sender] = message.sender
        elif type(message) is Vote and message.granted and not message.pre:
            self.votes.setdefault(message.term, {})[message.sender] = message.to
        return ""

    def check_ready(self, nodes: Nodes, node: ClusterNode, ready: Ready) -> str:
        """Hold the log of a candidate against the log of who is about to vote for it."""
        for message in ready.messages_after_sync:
            if type(message) is not Vote or message.pre or not message.granted:
                continue
            asked = self._asked.get((message.term, message.to))
            if asked is None:
                return f"R9: node {node.node_id} votes for node {message.to}, which did not ask"
            # What came behind the vote, in its very term, is the new leader's doing.
            log = self._logs.of(node).values()
            ours = [(each.term, each.index) for each in log if each.term < message.term]
            if asked < max(ours, default=(0, 0)):
                return (
                    f"R9: node {node.node_id} votes for node {message.to} in term {message.term}, "
                    f"whose log ends at {asked} (term, index), and its own at {max(ours)}"
                )
        return ""

    def check_event(self, nodes: Nodes, node: ClusterNode) -> str:
        """Count the votes for a new leader."""
        status = node.status_seen
        if status.role is not Role.LEADER or status.term in self.leaders:
            return ""
        self.leaders[status.term] = node.node_id
        hard_state = node.disk.hard_state
        votes = {**self.votes.get(status.term, {})}
        votes.pop(node.node_id, None)
        if hard_state is not None and hard_state.term == status.term:
            votes[node.node_id] = hard_state.voted_for
        voters = [voter for voter, voted_for in votes.items() if voted_for == node.node_id]
        if not self._quorum.is_quorum(voters):
            return (
                f"R1: node {node.node_id} leads in term {status.term} with the votes of {voters} "
                "only"
            )
        return ""


class LeaderCompleteness(Check):
    """R4.

    An entry is committed in the term of the leader whose commit index comes to it.  Where that was
    not seen (the leader was deposed or crashed in the same event), the lowest term stands for it in
    which any node's commit index was seen to come to the entry: a later one, so less is demanded.
    """

    def __init__(self, logs: WrittenLogs) -> None:
        self._logs = logs
        self._committed: list[Entry] = []
        """By index from 1."""
        self._terms: list[Term] = []
        """Beside it, the term in which each was committed."""
        self._seen: dict[NodeId, tuple[int, LogIndex]] = {}
        """How far the node's commit index was noted, and in which run."""
        self._judged: dict[Term, NodeId] = {}

    def check_event(self, nodes: Nodes, node: ClusterNode) -> str:
        """Note what is newly committed, and judge a new leader by all of it, and whoever leads by
        what is new."""
        status = node.status_seen
        if (index := self._note(node, status)) and (found := self._judge_leaders(nodes, index)):
            return found
        if status.role is not Role.LEADER or status.term in self._judged:
            return ""
        self._judged[status.term] = node.node_id
        return self._judge(node, 1)

    def _note(self, node: ClusterNode, status: Status) -> LogIndex:
        """The lowest index of which something new is known; 0: there is none."""
        run, noted_index = self._seen.get(node.node_id, (0, 0))
        if run != node.run:
            noted_index = 0
        if status.commit_index <= noted_index:
            return 0
        self._seen[node.node_id] = (node.run, status.commit_index)
        log, first = self._logs.of(node), 0
        for index in range(noted_index + 1, status.commit_index + 1):
            if index <= len(self._terms):
                if status.term >= self._terms[index - 1]:
                    continue
                self._terms[index - 1] = status.term
            elif index in log:
                self._committed.append(log[index])
                self._terms.append(status.term)
            else:
                break
            first = first or index
        return first

    def _judge_leaders(self, nodes: Nodes, first: LogIndex) -> str:
        for node in nodes.values():
            is_leader = node.is_up and node.status_seen.role is Role.LEADER
            if is_leader and (found := self._judge(node, first)):
                return found
        return ""

    def _judge(self, node: ClusterNode, first: LogIndex) -> str:
        """Hold the committed entries from ``first`` on against a leader's log."""
        log, led_term = self._logs.of(node), node.status_seen.term
        for at in range(first - 1, len(self._terms)):
            entry, term = self._committed[at], self._terms[at]
            held = log.get(entry.index)
            if term < led_term and (held is None or held.body != entry.body):
                return (
                    f"R4: node {node.node_id} leads in term {led_term} without entry "
                    f"{entry.index}, committed by term {term}"
                )
        return ""


class CommitsOwnTerm(Check):
    """R5."""

    def __init__(self, logs: WrittenLogs, elections: Elections) -> None:
        self._logs = logs
        self._elections = elections
        self._seen: dict[NodeId, tuple[int, Status]] = {}
        """What the node's status was, and in which run."""

    def check_event(self, nodes: Nodes, node: ClusterNode) -> str:
        """Judge where the node's commit index went."""
        status = node.status_seen
        run, seen = self._seen.get(node.node_id, (0, status))
        if seen is status and run:
            return ""
        self._seen[node.node_id] = (node.run, status)
        index = status.commit_index
        if (run, seen.term) != (node.run, status.term) or index == seen.commit_index:
            return ""
        entry = self._logs.of(node).get(index)
        held_term = 0 if entry is None else entry.term
        if status.role is not Role.LEADER:
            return self._judge_follower(nodes, status, held_term)
        if seen.role is Role.LEADER and held_term != status.term:
            return (
                f"R5: node {node.node_id}, leader of term {status.term}, commits up to entry "
                f"{index} of term {held_term}"
            )
        return ""

    def _judge_follower(self, nodes: Nodes, status: Status, held_term: Term) -> str:
        """Hold what a follower commits against its leader's log, while that still leads."""
        leader_id = self._elections.leaders.get(status.term)
        if leader_id is None or not _leads(nodes[leader_id], status.term):
            return ""
        index = status.commit_index
        entry = self._logs.of(nodes[leader_id]).get(index)
        if entry is None or entry.term != held_term:
            return (
                f"R5: node {status.node_id} commits entry {index} of term {held_term}, which node "
                f"{leader_id}, leader of term {status.term}, does not have"
            )
        return ""


class StatesWhatIsDurable(Check):
    """R6."""

    def check_sent(self, nodes: Nodes, flight: Flight) -> str:
        """Judge a message by its sender's synced layer."""
        message, disk = flight.message, nodes[flight.sender].disk
        if isinstance(message, RequestVote | Vote) and message.pre:
            return ""
        hard_state = disk.hard_state
        term, voted_for = (hard_state.term, hard_state.voted_for) if hard_state else (0, NO_NODE)
        if flight.term > term:
            return (
                f"R6: {flight.kind} of node {flight.sender} states term {flight.term}, not on disk"
            )
        if flight.term < term:
            # An answer may have waited for a group in which later writes became durable with its
            # own; an order waits for nothing.
            is_order = type(message) is TimeoutNow
            return "R6: an order to campaign from an older term" if is_order else ""
        if type(message) is AppendReply:
            if message.accepted and message.match_index:
                return self._judge_acknowledged(nodes, message)
        elif type(message) is Vote and message.granted and voted_for != message.to:
            return f"R6: node {flight.sender} votes for node {message.to}, not on disk"
        elif type(message) is RequestVote and voted_for != message.sender:
            return f"R6: node {flight.sender} asks for votes, and its own is not on disk"
        return ""

    def _judge_acknowledged(self, nodes: Nodes, message: AppendReply) -> str:
        index = message.match_index
        held = nodes[message.sender].disk_entry(index)
        if held is None:
            return f"R6: node {message.sender} acknowledges entry {index}, not on disk"
        if held.term > message.term:
            return f"R6: node {message.sender} acknowledges entry {index} of a later term"
        return ""


def _leads(node: ClusterNode, term: Term) -> bool:
    status = node.status_seen
    return node.is_up and status.role is Role.LEADER and status.term == term


class Books(Check):
    """R7: what a node's status says of its peers and of its own disk."""

    def __init__(self, logs: WrittenLogs) -> None:
        self._logs = logs
        self._acknowledged: dict[tuple[Term, NodeId, int], LogIndex] = {}
        """By term, leader and incarnation of a peer: how far it has acknowledged the leader's
        log."""
        self._seen: dict[NodeId, tuple[int, Status]] = {}
        """What the node's status was, and in which run."""

    def check_sent(self, nodes: Nodes, flight: Flight) -> str:
        """Note an acknowledgement, which is of the leader's own entry; judge a notice."""
        message = flight.message
        if type(message) is AppendReply:
            if not message.accepted:
                return ""
            place = (message.term, message.to, flight.incarnations[0])
            if message.match_index > self._acknowledged.get(place, 0):
                self._acknowledged[place] = message.match_index
                return self._judge_entry(nodes, message)
        elif type(message) is Heartbeat and message.commit_index:
            place = (message.term, message.sender, flight.incarnations[1])
            if message.commit_index > self._acknowledged.get(place, 0):
                return (
                    f"R7: node {message.sender} tells node {message.to} to commit entry "
                    f"{message.commit_index}, which that did not acknowledge"
                )
        return ""

    def _judge_entry(self, nodes: Nodes, message: AppendReply) -> str:
        """Hold the acknowledged entry against the leader's, while that leads."""
        sender, leader = nodes[message.sender], nodes[message.to]
        disk = sender.disk
        if not _leads(leader, message.term) or disk.hard_state is None:
            return ""
        ours, held = (
            self._logs.of(leader).get(message.match_index),
            sender.disk_entry(message.match_index),
        )
        is_current = disk.hard_state.term == message.term
        if is_current and (ours is None or held is None or ours.term != held.term):
            return (
                f"R7: node {message.sender} acknowledges entry {message.match_index} to node "
                f"{message.to}, which has another one"
            )
        return ""

    def check_event(self, nodes: Nodes, node: ClusterNode) -> str:
        """Hold what the node takes to be durable against what is, or was acknowledged."""
        status = node.status_seen
        run, seen = self._seen.get(node.node_id, (0, status))
        if run and seen is status:
            return ""
        self._seen[node.node_id] = (node.run, status)
        if status.durable_index != seen.durable_index or run != node.run:
            held = node.disk_entry(status.durable_index)
            ours = self._logs.of(node).get(status.durable_index)
            if ours is not None and (held is None or held.term != ours.term):
                return (
                    f"R7: node {node.node_id} takes entry {ours.index} of term {ours.term} to be "
                    "on its disk"
                )
        return self._judge_peers(node, status) if status.peers else ""

    def _judge_peers(self, node: ClusterNode, status: Status) -> str:
        for peer in status.peers:
            place = (status.term, node.node_id, node.incarnation_of(peer.node_id))
            if peer.match_index > self._acknowledged.get(place, 0):
                return (
                    f"R7: node {node.node_id} takes node {peer.node_id} to hold entry "
                    f"{peer.match_index}, which that did not acknowledge in term {status.term}"
                )
        return ""


def binds(_: ClusterNode, flight: Flight) -> bool:
    """Whether who receives this message must enter its term, if that is higher (R10): all but a
    request for a vote and a pre-vote that was granted."""
    message = flight.message
    is_grant = type(message) is Vote and message.pre and message.granted
    return not (is_grant or type(message) is RequestVote)


def takes_sides(flight: Flight) -> bool:
    """Whether a message asks for a vote or gives one, be it one that binds nobody; a learner may
    refuse one that is asked for in a term that is over (R11)."""
    message = flight.message
    return type(message) is RequestVote or (type(message) is Vote and message.granted)
