"""What Multi-Paxos promises beyond every engine's invariants, judged from outside: by the messages
that leave, by what is on the disks when they do, and by what a leader's status says.

* **P1** Of one ballot there is one value per slot (PMS §2.2).
* **P2** What a quorum accepted at one ballot is the value of every proposal, vote and fact of a
  higher one (PMS §2.2, P2b), whichever of the two was seen first.
* **P3** Who has promised a ballot gives no vote at a lower one any more (PMS §2.2, P1a), and what a
  slot holds gives way to a higher ballot only.
* **P4** One run of one node asks and proposes at a ballot: its owner (PMS §2.2).
* **P5** A message states a ballot, votes and chosen values only when its sender's disk has them.
* **P6** A leader takes a slot to be held by a peer that gave its vote at this ballot, or the slot
  is chosen, and that peer has said as much; every node takes to be durable what is on its own disk.
* **P7** Who leads was sent complete promises by a phase-1 quorum at its ballot, its own on disk.
* **P8** A promise tells every vote that its sender's disk held when it was asked (PMS §2.2, 1b).
* **P9** Of the votes that a new leader was told and its own it proposes, in each slot, the one of
  the highest ballot, and a value of its own only where there is none (PMS §2.2, P2c).
* **P10** A leader has no more unanswered messages, or bytes of entries, on their way to a peer than
  its limits allow; nobody puts more into one message; and a leader takes no proposal above its
  limit of uncommitted bytes, or while ``open_slots_max`` slots are open.
* **P11** Who receives a message of a higher ballot promises it, unless that is of a round that
  binds nobody (PMS §2.2; a fact is safe only behind the ballot that it came with).
* **P12** What is told as a fact is a record of a chosen slot, of a ballot at or above one at which
  it was chosen.
* **P13** A learner promises nothing and asks for no promise, be it one that binds nobody.

P10 is judged in :mod:`replog_multipaxos.limit_checks`; P13 is
:class:`~replog.testing.members.LearnersOnlyLearn`.

:class:`OneChoice` is the heart of it and keeps the records that the others read, so it is asked
first.  A record on disk counts as a vote, though it may be a fact that was learned: a fact is told
with a ballot at or above one at which its value was chosen, and every proposal from there on has
that value, so no other value is ever counted by it.  A record on the disk of a learner is no vote;
what an incarnation of a node said and held says nothing of the next one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

from replog.quorum import QuorumSystem
from replog.testing.checks import Check, Nodes
from replog.testing.disk import Disk
from replog.testing.network import Flight
from replog.testing.nodes import ClusterNode
from replog.types import Entry, LogIndex, NodeId, Ready, Role, Status, Term, Voter
from replog_multipaxos.ballot import owner_of
from replog_multipaxos.indexes import Range
from replog_multipaxos.messages import (
    Accept,
    Accepted,
    CommitReply,
    Learn,
    Prepare,
    Promise,
)


class OneChoice(Check):
    """P1, P2 and P12, and the record of votes and choices."""

    def __init__(self, quorum: QuorumSystem) -> None:
        self._quorum = quorum
        self._values: dict[LogIndex, dict[Term, bytes]] = {}
        self._voters: dict[tuple[LogIndex, Term], list[NodeId]] = {}
        self._synced: dict[NodeId, tuple[int, int]] = {}
        """By node: in which run, and after which sync, its disk was last looked at."""
        self._unsynced: dict[NodeId, deque[Sequence[Entry]]] = {}
        """By node: what its Readys asked to be written and was not seen on its disk yet."""
        self._sent: Sequence[Entry] = ()
        """What was judged last: a leader sends the same entries to every peer."""
        self.chosen: dict[LogIndex, Term] = {}
        """The lowest ballot at which a quorum's disks are known to have held the slot."""
        self.promised: dict[int, Term] = {}
        """The highest ballot that an incarnation of a node has stated in a Promise."""
        self.votes: dict[tuple[int, LogIndex, Term], int] = {}
        """Every record that was ever on the disk of an incarnation of a node, with the moment at
        which it was seen."""
        self.late_votes: dict[tuple[int, Term], dict[LogIndex, Term]] = {}
        """By incarnation and ballot, the slots in which a record of it came to the disk after the
        node had stated a higher promise, and that.  For a fact this is as it should be."""
        self.moment = 0
        """Moves on whenever a disk changed or a binding Prepare arrived."""

    def check_ready(self, nodes: Nodes, node: ClusterNode, ready: Ready) -> str:
        """Note what is about to be written."""
        found = self.look_at_disk(node)
        if ready.entries:
            self._unsynced.setdefault(node.node_id, deque()).append(ready.entries)
        return found

    def check_sent(self, nodes: Nodes, flight: Flight) -> str:
        """Hold what travels, and what the sender's disk holds, against all that was seen."""
        found = self.look_at_disk(nodes[flight.sender])
        message = flight.message
        if not isinstance(message, Accept | Promise | Learn):
            return found
        if message.entries is not self._sent:
            for entry in message.entries:
                found = found or self._judge_value(entry)
            self._sent = message.entries
        if type(message) is Learn:
            found = found or self._judge_facts(message)
        if type(message) is Promise and not message.pre:
            sender = flight.incarnations[0]
            self.promised[sender] = max(self.promised.get(sender, 0), message.term)
        return found

    def check_event(self, nodes: Nodes, node: ClusterNode) -> str:
        """Hold what the node's disk holds against all that was seen."""
        return self.look_at_disk(node)

    def look_at_disk(self, node: ClusterNode) -> str:
        """Count the votes that came to the disk since this was last asked, and judge them."""
        node_id, disk = node.node_id, node.disk
        run, count = self._synced.get(node_id, (0, 0))
        if (run, count) == (node.run, disk.synced_count):
            return ""
        self._synced[node_id] = (node.run, disk.synced_count)
        self.moment += 1
        unsynced = self._unsynced.setdefault(node_id, deque())
        if run != node.run:
            # What was on its way when the last run ended is on disk or lost for ever.
            unsynced.clear()
            return self._count_all(node, disk.entries.values())
        while unsynced and _is_on_disk(unsynced[0], disk):
            if found := self._count_all(node, unsynced.popleft()):
                return found
        return ""

    def _count_all(self, node: ClusterNode, entries: Iterable[Entry]) -> str:
        incarnation = node.incarnation
        for entry in entries:
            vote = (incarnation, entry.index, entry.term)
            if vote in self.votes:
                continue
            self.votes[vote] = self.moment
            promised = self.promised.get(incarnation, 0)
            if promised > entry.term:
                late = self.late_votes.setdefault((incarnation, entry.term), {})
                late[entry.index] = promised
            found = self._judge_value(entry)
            if not node.is_learner:
                found = found or self._count(node.node_id, entry)
            if found:
                return found
        return ""

    def _judge_value(self, entry: Entry) -> str:
        values = self._values.setdefault(entry.index, {})
        value = values.get(entry.term)
        if value is None:
            values[entry.term] = entry.body
            return self._judge_choice(entry.index)
        if value == entry.body:
            return ""
        return f"P1: two values in slot {entry.index} at ballot {entry.term}"

    def _count(self, node_id: NodeId, vote: Entry) -> str:
        slot, ballot = vote.index, vote.term
        voters = self._voters.setdefault((slot, ballot), [])
        voters.append(node_id)
        if self.chosen.get(slot, ballot + 1) <= ballot or not self._quorum.is_quorum(voters):
            return ""
        self.chosen[slot] = ballot
        return self._judge_choice(slot)

    def _judge_facts(self, message: Learn) -> str:
        for entry in message.entries:
            if entry.term < self.chosen.get(entry.index, entry.term + 1):
                return (
                    f"P12: node {message.sender} tells its record of slot {entry.index}, of ballot "
                    f"{entry.term}, as a fact, and at none up to that is it chosen"
                )
        return ""

    def _judge_choice(self, slot: LogIndex) -> str:
        """Judge the values of the ballots from the one on at which the slot was chosen."""
        chosen = self.chosen.get(slot)
        if chosen is None:
            return ""
        values = self._values[slot]
        for ballot, body in values.items():
            if ballot > chosen and body != values[chosen]:
                return (
                    f"P2: slot {slot} is chosen at ballot {chosen}, and ballot {ballot} has "
                    "another value"
                )
        return ""


def _is_on_disk(entries: Sequence[Entry], disk: Disk) -> bool:
    """Whether the disk holds every one of ``entries``, or a later record in its slot, or has
    trimmed that."""
    for entry in entries:
        if entry.index <= disk.base_index:
            continue
        held = disk.entries.get(entry.index)
        if held is None or held.term < entry.term:
            return False
    return True


class PromiseKept(Check):
    """P3."""

    def __init__(self, record: OneChoice) -> None:
        self._record = record

    def check_sent(self, nodes: Nodes, flight: Flight) -> str:
        """A vote that is told was on disk before a higher promise left."""
        message = flight.message
        if type(message) is not Accepted:
            return ""
        late = self._record.late_votes.get((flight.incarnations[0], message.term))
        if late is None:
            return ""
        for slot in slots_of(message.ranges):
            if slot in late:
                return (
                    f"P3: node {message.sender} accepts slot {slot} at ballot {message.term}, "
                    f"having promised {late[slot]}"
                )
        return ""


class BallotUsedOnce(Check):
    """P4."""

    def __init__(self) -> None:
        self._users: dict[Term, int] = {}
        """By ballot: the run of its owner."""

    def check_sent(self, nodes: Nodes, flight: Flight) -> str:
        """Judge who acts at the ballot of the message."""
        message = flight.message
        if not isinstance(message, Prepare | Accept):
            return ""
        if owner_of(message.term) != message.sender:
            return f"P4: node {message.sender} acts at ballot {message.term}, which is another's"
        is_binding = isinstance(message, Accept) or not message.pre
        run = nodes[message.sender].run
        if is_binding and self._users.setdefault(message.term, run) != run:
            return f"P4: two runs of node {message.sender} use ballot {message.term}"
        return ""


class StatesOnlyDurable(Check):
    """P5."""

    def __init__(self) -> None:
        self._reach: dict[NodeId, tuple[int, LogIndex]] = {}
        """By node, in its current run: every slot up to there has a record on its disk."""

    def check_sent(self, nodes: Nodes, flight: Flight) -> str:
        """Look at the sender's disk."""
        message = flight.message
        if isinstance(message, Prepare | Promise) and message.pre:
            return ""
        node = nodes[flight.sender]
        hard_state = node.disk.hard_state
        durable_term = 0 if hard_state is None else hard_state.term
        if durable_term < flight.term:
            return f"P5: a {flight.kind} states ballot {flight.term}, which is not on disk"
        told: Iterable[tuple[LogIndex, Term]] = ()
        if type(message) is Accepted:
            told = ((slot, message.term) for slot in slots_of(message.ranges))
        elif type(message) is Promise:
            told = ((vote.index, vote.term) for vote in message.entries)
        entries = node.disk.entries
        for slot, ballot in told:
            held = entries.get(slot)
            if slot <= node.disk.base_index:
                continue  # it was, and was trimmed since
            if held is None or held.term < ballot:
                return f"P5: a {flight.kind} states slot {slot}, which is not on disk"
        if isinstance(message, Accepted | CommitReply):
            return self._judge_chosen(node, flight, message.chosen_upto)
        return ""

    def _judge_chosen(self, node: ClusterNode, flight: Flight, chosen_upto: LogIndex) -> str:
        run, reach = self._reach.get(node.node_id, (0, 0))
        if run != node.run:
            reach = 0
        entries = node.disk.entries
        if chosen_upto > reach:
            reach = max(reach, node.base_index)
        while reach + 1 in entries:
            reach += 1
        self._reach[node.node_id] = (node.run, reach)
        if chosen_upto <= reach:
            return ""
        return (
            f"P5: a {flight.kind} states slots up to {chosen_upto}, and {reach + 1} is not on disk"
        )


class CountsOnlyVotes(Check):
    """P6."""

    def __init__(self, record: OneChoice, proposals: Proposals) -> None:
        self._record = record
        self._proposals = proposals
        self._seen: dict[NodeId, tuple[int, Status, Sequence[Voter]]] = {}
        """What the node's status was, in which run, and whom it took for learners."""
        self._judged: dict[tuple[NodeId, Term, int], LogIndex] = {}
        """By leader, ballot and incarnation of a peer."""
        self._told: dict[int, LogIndex] = {}
        """By incarnation of a node, the highest slot of which it said that it is chosen there, or
        accepted."""
        self._rewritten: dict[NodeId, LogIndex] = {}
        """By node, the lowest slot whose record its Readys replaced since it was last judged."""

    def check_sent(self, nodes: Nodes, flight: Flight) -> str:
        """Note what a node tells of itself."""
        message = flight.message
        if isinstance(message, Accepted | CommitReply | Promise):
            told = message.chosen_upto
            if type(message) is Accepted and message.ranges:
                told = max(told, message.ranges[-1][1])
            sender = flight.incarnations[0]
            if told > self._told.get(sender, 0):
                self._told[sender] = told
        return ""

    def check_ready(self, nodes: Nodes, node: ClusterNode, ready: Ready) -> str:
        """Note which slots the node has to sync anew."""
        if ready.entries:
            slot = ready.entries[0].index
            self._rewritten[node.node_id] = min(slot, self._rewritten.get(node.node_id, slot))
        return ""

    def check_event(self, nodes: Nodes, node: ClusterNode) -> str:
        """Hold what the node has newly counted against what the disks hold, or ever held."""
        status, engine = node.status_seen, node.replica.engine
        run, seen, learners = self._seen.get(node.node_id, (0, status, engine.learners))
        rewritten = self._rewritten.pop(node.node_id, status.durable_index + 1)
        if learners is not engine.learners:
            status = engine.status()  # another incarnation was taken in since the last one
        elif run and seen is status and rewritten > status.durable_index:
            return ""
        self._seen[node.node_id] = (node.run, status, engine.learners)
        slots, disk = self._proposals.of(node), node.disk.entries
        first = min(seen.durable_index, status.durable_index) if run == node.run else 0
        first = max(min(first, rewritten - 1), node.base_index)
        for slot in range(first + 1, status.durable_index + 1):
            if slot not in disk or disk[slot].term != slots[slot].term:
                return f"P6: node {node.node_id} takes its vote in slot {slot} to be on its disk"
        return self._judge_peers(node, status) if status.peers else ""

    def _judge_peers(self, node: ClusterNode, status: Status) -> str:
        record = self._record
        renewed = {each.node_id: each.incarnation for each in node.replica.engine.learners}
        for peer in status.peers:
            incarnation = renewed.get(peer.node_id, peer.node_id)
            place = (node.node_id, status.term, incarnation)
            judged = self._judged.get(place, 0)
            if peer.match_index <= judged:
                continue
            for slot in range(judged + 1, peer.match_index + 1):
                is_vote = (incarnation, slot, status.term) in record.votes
                if not is_vote and slot not in record.chosen:
                    return (
                        f"P6: node {node.node_id} counts a vote of node {peer.node_id} in slot "
                        f"{slot} at ballot {status.term}, which was never given"
                    )
            if peer.match_index > self._told.get(incarnation, 0):
                return (
                    f"P6: node {node.node_id} takes node {peer.node_id} to hold the slots up to "
                    f"{peer.match_index}, which that never said"
                )
            self._judged[place] = peer.match_index
        return ""


class LedByQuorum(Check):
    """P7, and the record of what candidates were told."""

    def __init__(self, phase1: QuorumSystem) -> None:
        self._phase1 = phase1
        self._promised: dict[Term, list[NodeId]] = {}
        """By ballot: who has told all its votes, to the end of the log."""
        self._told: dict[Term, dict[LogIndex, Entry]] = {}
        self.leaders: dict[Term, NodeId] = {}

    def told(self, ballot: Term) -> dict[LogIndex, Entry]:
        """By slot, the vote of the highest ballot that the owner of a ballot was told before it
        led."""
        return self._told.setdefault(ballot, {})

    def check_received(self, nodes: Nodes, node: ClusterNode, flight: Flight) -> str:
        """Note what a candidate is told: a leader learns nothing from a promise any more."""
        message, status = flight.message, node.status_seen
        if type(message) is not Promise or message.pre:
            return ""
        if (status.role, status.term) != (Role.CANDIDATE, message.term):
            return ""
        if not message.upto_slot:
            self._promised.setdefault(message.term, []).append(message.sender)
        told = self.told(message.term)
        for vote in message.entries:
            known = told.get(vote.index)
            if known is None or known.term < vote.term:
                told[vote.index] = vote
        return ""

    def check_event(self, nodes: Nodes, node: ClusterNode) -> str:
        """Count the promises of a new leader."""
        status = node.status_seen
        if status.role is not Role.LEADER or status.term in self.leaders:
            return ""
        self.leaders[status.term] = node.node_id
        hard_state = node.disk.hard_state
        is_own = hard_state is not None and hard_state.term == status.term
        promised = [*self._promised.get(status.term, []), *([node.node_id] * is_own)]
        if self._phase1.is_quorum(promised):
            return ""
        return f"P7: node {node.node_id} leads at ballot {status.term}, promised by {promised} only"


class Proposals(Check):
    """P9 and the second half of P3, and the record of each node's slots as its Readys wrote them,
    be they on disk yet or not."""

    def __init__(self, elections: LedByQuorum) -> None:
        self._elections = elections
        self._slots: dict[NodeId, tuple[int, dict[LogIndex, Entry]]] = {}
        """By node, with the run that it is of."""
        self.has_adopted = False
        """Whether a leader ever proposed a value that it did not hold itself, and was told."""

    def of(self, node: ClusterNode) -> dict[LogIndex, Entry]:
        """The slots of the node's current run, which began with what was on its disk."""
        run, slots = self._slots.get(node.node_id, (0, {}))
        if run != node.run:
            slots = dict(node.disk.entries)
            self._slots[node.node_id] = (node.run, slots)
        return slots

    def check_ready(self, nodes: Nodes, node: ClusterNode, ready: Ready) -> str:
        """Judge what is written in the place of what, and what a leader proposes."""
        if not ready.entries:
            return ""
        slots, status = self.of(node), node.status_seen
        led_ballot = status.term if status.role is Role.LEADER else 0
        found = ""
        for entry in ready.entries:
            found = found or self._judge_record(node.node_id, entry, slots, led_ballot)
            slots[entry.index] = entry
        return found

    def _judge_record(
        self, node_id: NodeId, entry: Entry, slots: dict[LogIndex, Entry], led_ballot: Term
    ) -> str:
        held = slots.get(entry.index)
        if held is not None and held.term >= entry.term:
            return (
                f"P3: node {node_id} replaces its record of slot {entry.index}, of ballot "
                f"{held.term}, by one of ballot {entry.term}"
            )
        if entry.term == led_ballot and (found := self._judge_proposal(entry, held)):
            return f"P9: node {node_id}{found}"
        return ""

    def _judge_proposal(self, entry: Entry, held: Entry | None) -> str:
        told = self._elections.told(entry.term).get(entry.index)
        best = held
        if told is not None and (held is None or told.term > held.term):
            best = told
        if best is None:
            if entry.origin.term == entry.term:
                return ""
            return f" proposes an older value in slot {entry.index}, of which it was told nothing"
        if best.body != entry.body:
            return (
                f" proposes another value in slot {entry.index} at ballot {entry.term} than the "
                f"one of ballot {best.term}"
            )
        if best is told and (held is None or held.body != entry.body):
            self.has_adopted = True
        return ""


class PromiseTellsAll(Check):
    """P8."""

    def __init__(self, record: OneChoice) -> None:
        self._record = record
        self._asked: dict[tuple[NodeId, Term, LogIndex], int] = {}
        """By node, ballot and first slot: the moment at which it was first asked."""

    def check_received(self, nodes: Nodes, node: ClusterNode, flight: Flight) -> str:
        """Note when a node is asked: what comes to its disk later need not be told."""
        message = flight.message
        if type(message) is Prepare and not message.pre:
            found = self._record.look_at_disk(node)
            self._record.moment += 1
            place = (node.node_id, message.term, message.from_slot)
            self._asked.setdefault(place, self._record.moment)
            return found
        return ""

    def check_sent(self, nodes: Nodes, flight: Flight) -> str:
        """Hold a page of a promise against its sender's disk."""
        message = flight.message
        if type(message) is not Promise or message.pre:
            return ""
        node, votes = nodes[message.sender], self._record.votes
        asked = self._asked.get((message.sender, message.term, message.from_slot), 0)
        told = {vote.index: vote.term for vote in message.entries}
        last = message.upto_slot or node.status_seen.last_index
        first = max(message.from_slot, message.trimmed_upto + 1)
        for slot in range(first, last + 1):
            held = node.disk.entries.get(slot)
            if held is None or told.get(slot, 0) >= held.term:
                continue
            moment = votes.get((flight.incarnations[0], slot, held.term), asked)
            if moment < asked and held.term < message.term:
                return (
                    f"P8: node {message.sender} promises ballot {message.term} and leaves out its "
                    f"vote in slot {slot} at {held.term}"
                )
        return ""


def binds(_: ClusterNode, flight: Flight) -> bool:
    """Whether who receives this message must promise its ballot, if that is higher (P11): all but
    the trial of a phase 1."""
    message = flight.message
    return not (isinstance(message, Prepare | Promise) and message.pre)


def binds_in_faith(node: ClusterNode, flight: Flight) -> bool:
    """The same where there are leases: then a Prepare may be refused for the sake of a leader, but
    not one that was ordered at the ballot that the node has promised, or at a later one."""
    message = flight.message
    may_refuse = isinstance(message, Prepare) and message.ordered_in < max(1, node.status_seen.term)
    return binds(node, flight) and not may_refuse


def slots_of(ranges: Iterable[Range]) -> Iterable[LogIndex]:
    """Every slot in some ranges."""
    return (slot for first, last in ranges for slot in range(first, last + 1))


def takes_sides(flight: Flight) -> bool:
    """Whether a message asks for a promise or gives one, be it one that binds nobody (P13)."""
    return isinstance(flight.message, Prepare | Promise)
