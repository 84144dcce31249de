"""What must hold in every cluster at all times, whatever the engine.

The rules here are judged from outside: by the driver's own records, the disks and the messages,
never by asking the engine whether it is content (though its own ``check`` is called too).  They
are the reason why a random run proves anything:

* **I1** One leader per (epoch, term): one run of one node, for ever.
* **I2** One value per index, for ever: whatever any run of any node hands out to be applied at an
  index has the same body, crashes and terms regardless.
* **I3** Each run applies index after index, without a gap, and nothing to a machine that is being
  filled from a snapshot.
* **I4** On disk the (epoch, term) never falls, and a vote, once given in a term, stays.
* **I5** When an entry is first reported as committed, its body is on the synced layer of a quorum;
  and no write ever takes a committed entry from the last quorum that holds it.  What a voter's disk
  held that is lost counts, if that incarnation takes part no more; a learner's disk never counts.
* **I6** A proposal that was reported done is the entry at its index (and so, by I2, for ever); one
  that was reported as not done is none.
* **I7** A term never falls within a run, nor below what the disk holds.
* **I8** What a leader knows a peer to hold never shrinks within one leadership, but for a peer that
  another incarnation has taken the place of.
* **I9** What a Ready wants sent after its sync leaves after it.
* **I16** A snapshot stands for committed entries alone, and a log begins behind nothing that is not
  in a durable snapshot.
* **I14** No proposal is committed at two indexes.
* **I15** A node holds no more bytes of commands to be proposed than its limit allows, and a leader
  proposes none that its machine is too far behind for (judged in ``overload``).
* **I17** A node that knows its disk to be full proposes no command and takes in no entries.

``docs/invariants.md`` lists all that the simulator judges; I10 to I13 and I18 to I27 are judged
elsewhere.  What only one engine promises (log matching, for instance) comes as a :class:`Check`
from outside.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Final, TypeAlias

from replog.control import LEARNER, sub_kind_of
from replog.envelope import is_in_session, open_envelope, session_in
from replog.errors import SessionExpired, SessionFull, StaleSequence, TermChanged
from replog.node_messages import NODE_TYPES
from replog.quorum import QuorumSystem
from replog.storage.protocol import Write
from replog.testing.network import Flight, kind_of
from replog.testing.nodes import ClusterNode, Outcome, Proposal
from replog.types import (
    NO_NODE,
    Entry,
    EntryKind,
    EpochNumber,
    LogIndex,
    NodeId,
    Ready,
    Role,
    Status,
    Term,
)

_APPLIED_REFUSALS: Final = (SessionExpired, SessionFull, StaleSequence, TermChanged)

Nodes: TypeAlias = "Mapping[NodeId, ClusterNode]"


class Violation(AssertionError):
    """Something that must hold does not; the message ends with the tail of the trace."""

    def __init__(self, sentence: str, seed: int, trace_tail: Sequence[str], tick: int = 0) -> None:
        self.sentence = sentence
        self.seed = seed
        self.trace_tail = list(trace_tail)
        self.tick = tick
        """When it showed."""
        tail = "\n".join(f"  {line}" for line in trace_tail)
        super().__init__(f"{sentence} (seed {seed})\nthe end of the trace:\n{tail}")

    @property
    def invariant(self) -> str:
        """Which rule is broken: its number (``I2``), or the kind of error that ended the run."""
        return self.sentence.partition(":")[0]


class Check:
    """A rule beyond those of this module: what only one engine promises, or what a test looks for.

    Each method may be left as it is; what one returns is what is broken, or ``""``.  ``nodes`` are
    all nodes of the cluster by id, those that are down included.  An instance serves one cluster,
    so it may remember what it saw.
    """

    def check_sent(self, nodes: Nodes, flight: Flight) -> str:
        """A message has just left its sender."""
        return ""

    def check_received(self, nodes: Nodes, node: ClusterNode, flight: Flight) -> str:
        """A message is about to be given to ``node``."""
        return ""

    def check_ready(self, nodes: Nodes, node: ClusterNode, ready: Ready) -> str:
        """``node`` has just handed out a Ready; nothing of it is carried out yet."""
        return ""

    def check_event(self, nodes: Nodes, node: ClusterNode) -> str:
        """An event at ``node`` has just been dealt with."""
        return ""


class EntersHigherTerms(Check):
    """Whoever receives a message of a higher term that ``binds`` its receiver is in that term from
    then on; each engine says which of its messages do, and under which number it has this rule."""

    def __init__(self, number: str, binds: Callable[[ClusterNode, Flight], bool]) -> None:
        self._number = number
        self._binds = binds
        self._told: dict[NodeId, tuple[int, Term]] = {}
        """By node, in its current run: a higher term that it was told of."""

    def check_received(self, nodes: Nodes, node: ClusterNode, flight: Flight) -> str:
        """Note a higher term.  A message of no engine binds only who takes what it offers."""
        if type(flight.message) in NODE_TYPES:
            return ""
        if flight.term > node.status_seen.term and self._binds(node, flight):
            self._told[node.node_id] = (node.run, flight.term)
        return ""

    def check_event(self, nodes: Nodes, node: ClusterNode) -> str:
        """See whether the node has entered what it was told of."""
        told = self._told.pop(node.node_id, None)
        if told is not None and told[0] == node.run and node.status_seen.term < told[1]:
            return (
                f"{self._number}: node {node.node_id} is in term {node.status_seen.term} after a "
                f"message of term {told[1]}"
            )
        return ""


class Broken(Exception):
    """A rule does not hold; the cluster turns it into a :class:`Violation`."""


class Invariants:
    """The rules of this module, and those that came from outside, over the life of a cluster."""

    __slots__ = (
        "_index_of",
        "_leaders",
        "_of_event",
        "_of_ready",
        "_of_received",
        "_of_sent",
        "_quorum",
        "_terms",
        "chosen",
        "controls",
        "nodes",
    )

    def __init__(
        self,
        nodes: Mapping[NodeId, ClusterNode],
        quorum: QuorumSystem,
        checks: Sequence[Check],
    ) -> None:
        self.nodes = nodes
        self._quorum = quorum
        # Only what a rule has a method of its own for: an empty one would cost a call per event.
        self._of_sent = [at.check_sent for at in checks if _has(at, "check_sent")]
        self._of_received = [at.check_received for at in checks if _has(at, "check_received")]
        self._of_ready = [at.check_ready for at in checks if _has(at, "check_ready")]
        self._of_event = [at.check_event for at in checks if _has(at, "check_event")]
        self._leaders: dict[tuple[EpochNumber, Term], tuple[NodeId, int]] = {}
        self._terms: dict[NodeId, tuple[int, Term]] = {}
        self._index_of: dict[bytes, LogIndex] = {}
        """Where a body was committed."""
        self.controls: list[Entry] = []
        """Those of the committed entries that take a learner in, ascending by index."""
        self.chosen: dict[LogIndex, Entry] = {}
        """The first entry that was reported as committed, by index; its body is the value."""

    def check_sent(self, flight: Flight) -> None:
        """A message has left."""
        for check in self._of_sent:
            if found := check(self.nodes, flight):
                raise Broken(found)

    def check_received(self, node: ClusterNode, flight: Flight) -> None:
        """A message is about to be given to ``node``."""
        for check in self._of_received:
            if found := check(self.nodes, node, flight):
                raise Broken(found)

    def check_event(self, node: ClusterNode) -> None:
        """An event at ``node`` was dealt with."""
        engine = node.replica.engine
        engine.check()
        self._check_term(node)
        if engine.soft_state.role is Role.LEADER:
            self._check_leader(node)
        for check in self._of_event:
            if found := check(self.nodes, node):
                raise Broken(found)

    def _check_term(self, node: ClusterNode) -> None:
        term = node.replica.engine.term
        run, last_term = self._terms.get(node.node_id, (0, 0))
        hard_state = node.disk.hard_state
        least = max(last_term if run == node.run else 0, hard_state.term if hard_state else 0)
        if term < least:
            raise Broken(f"I7: node {node.node_id} is in term {term} after it was in {least}")
        self._terms[node.node_id] = (node.run, term)

    def _check_leader(self, node: ClusterNode) -> None:
        epoch, term = node.status_seen.epoch, node.replica.engine.term
        mine = (node.node_id, node.run)
        first = self._leaders.setdefault((epoch, term), mine)
        if first != mine:
            raise Broken(
                f"I1: node {mine[0]} (run {mine[1]}) leads in term {term}, in which node "
                f"{first[0]} (run {first[1]}) led"
            )

    def check_progress(self, status: Status, seen: Status, renewed: Sequence[NodeId] = ()) -> None:
        """A leader's view of its peers changed from ``seen`` to ``status``; those that are
        ``renewed`` are other incarnations since, whose disks are empty."""
        if status.term != seen.term:
            return
        known = {
            peer.node_id: peer.match_index for peer in seen.peers if peer.node_id not in renewed
        }
        for peer in status.peers:
            if peer.match_index < known.get(peer.node_id, 0):
                raise Broken(
                    f"I8: node {status.node_id} knew node {peer.node_id} to hold "
                    f"{known[peer.node_id]}, and now only {peer.match_index}"
                )

    def check_write(
        self, node: ClusterNode, writes: Sequence[Write], write: Callable[[], object]
    ) -> None:
        """Carry out ``write``, which makes a group durable at ``node``, and judge the change."""
        self._check_hard_states(node, writes)
        self._check_bases(node, writes)
        voided = self._chosen_on_disk(node, writes)
        write()
        entries = node.disk.entries
        for index in voided:
            entry = self.chosen[index]
            held = entries.get(index)
            is_void = (held is None or held.body != entry.body) and index > node.disk.base_index
            if is_void and not self._is_durable(entry):
                raise Broken(
                    f"I5: node {node.node_id} voided entry {index} on its disk, which is committed "
                    "and now on no quorum's"
                )

    def _check_hard_states(self, node: ClusterNode, writes: Sequence[Write]) -> None:
        before = node.disk.hard_state
        for after in [write.hard_state for write in writes if write.hard_state is not None]:
            if before is not None:
                if (after.epoch, after.term) < (before.epoch, before.term):
                    raise Broken(
                        f"I4: node {node.node_id} wrote term {after.term} over {before.term}"
                    )
                is_same_term = (after.epoch, after.term) == (before.epoch, before.term)
                if is_same_term and before.voted_for not in (NO_NODE, after.voted_for):
                    raise Broken(
                        f"I4: node {node.node_id} changed its vote of term {after.term} from node "
                        f"{before.voted_for} to node {after.voted_for}"
                    )
            before = after

    def _check_bases(self, node: ClusterNode, writes: Sequence[Write]) -> None:
        base_index = max([write.base.index for write in writes if write.base], default=0)
        durable_index = node.snapshots.durable_index if base_index else 0
        if base_index > durable_index:
            raise Broken(
                f"I16: node {node.node_id} begins its log behind entry {base_index}, and its "
                f"durable snapshots reach {durable_index}"
            )

    def check_base(self, node: ClusterNode) -> None:
        """A job of ``node`` has read or written a piece of a snapshot."""
        if node.disk.base_index > node.snapshots.durable_index:
            raise Broken(
                f"I16: the log of node {node.node_id} begins behind entry {node.disk.base_index}, "
                f"and its durable snapshots reach {node.snapshots.durable_index}"
            )

    def stands_for(self, node: ClusterNode, last_index: LogIndex) -> list[Entry]:
        """The entries that a snapshot stands for."""
        if last_index > len(self.chosen):
            raise Broken(
                f"I16: node {node.node_id} goes on behind a snapshot that ends with entry "
                f"{last_index}, and {len(self.chosen)} entries are committed"
            )
        return [self.chosen[index] for index in range(1, last_index + 1)]

    def _chosen_on_disk(self, node: ClusterNode, writes: Sequence[Write]) -> list[LogIndex]:
        """The committed entries on the node's disk that a group may void."""
        least = len(self.chosen) + 1
        for write in writes:
            if write.truncate_from is not None:
                least = min(least, write.truncate_from)
            if write.entries:
                least = min(least, write.entries[0].index)
        entries, chosen = node.disk.entries, self.chosen
        return [
            index
            for index in range(least, len(chosen) + 1)
            if index in entries and entries[index].body == chosen[index].body
        ]

    def _is_durable(self, entry: Entry) -> bool:
        holders = [node_id for node_id, node in self.nodes.items() if node.holds_as_voter(entry)]
        return self._quorum.is_quorum(holders)

    def check_ready(self, node: ClusterNode, ready: Ready) -> None:
        """``node`` has handed out ``ready``."""
        for entry in ready.committed:
            self._check_committed(node, entry)
        for check in self._of_ready:
            if found := check(self.nodes, node, ready):
                raise Broken(found)

    def _check_committed(self, node: ClusterNode, entry: Entry) -> None:
        if entry.index != node.handed_index + 1:
            raise Broken(
                f"I3: node {node.node_id} hands out entry {entry.index} after {node.handed_index}"
            )
        node.handed_index = entry.index
        chosen = self.chosen.get(entry.index)
        if chosen is None:
            self.chosen[entry.index] = entry
            if entry.kind == EntryKind.CONTROL and sub_kind_of(entry) == LEARNER:
                self.controls.append(entry)
            # A body holds the origin of its proposal, so equal bodies are the same proposal.
            first_index = self._index_of.setdefault(entry.body, entry.index)
            if first_index != entry.index:
                raise Broken(
                    f"I14: the proposal at index {entry.index} is committed at {first_index} too"
                )
            if not self._is_durable(entry):
                raise Broken(
                    f"I5: node {node.node_id} reports entry {entry.index} as committed, which is "
                    "on no quorum's disk"
                )
        elif chosen.body != entry.body:
            raise Broken(
                f"I2: node {node.node_id} applies another value at index {entry.index} than was "
                f"committed there (term {entry.term}, before: term {chosen.term})"
            )

    def check_applied(self, node: ClusterNode, entries: Sequence[Entry]) -> None:
        """``node`` is about to apply ``entries``."""
        if entries and node.turns.snapshots.is_installing:
            # In one thread here, and in two where nodes run for real.
            raise Broken(
                f"I3: node {node.node_id} applies entry {entries[0].index} to a machine that is "
                "being filled from a snapshot"
            )
        index = node.applied_index
        for entry in entries:
            index += 1
            if entry.index != index or self.chosen[index].body != entry.body:
                raise Broken(
                    f"I3: node {node.node_id} applies entry {entry.index}, and {index} is next"
                )

    def check_leaves(self, node: ClusterNode, message: object) -> None:
        """``node`` is about to send ``message``."""
        _, waits_for = node.after_sync.get(id(message), (None, []))
        if not waits_for:
            return
        if len(waits_for) == 1:
            del node.after_sync[id(message)]
        if node.disk.synced_writes_count < waits_for.pop(0):
            raise Broken(
                f"I9: node {node.node_id} sends a {kind_of(type(message))} before what it states "
                "is durable"
            )

    def check_submitted(self, node: ClusterNode, proposal: Proposal, bytes_max: int) -> None:
        """``node`` has taken in a proposal; that may be one of many since its last turn."""
        node.unproposed.append(proposal)
        held_bytes = sum(each.size_bytes for each in node.unproposed)
        if held_bytes > bytes_max:
            raise Broken(
                f"I15: node {node.node_id} holds {held_bytes} bytes of commands that were "
                f"submitted and not proposed yet, and {bytes_max} are its limit"
            )

    def check_offered(self, node: ClusterNode) -> None:
        """Commands are about to be proposed at ``node``, or refused by its engine."""
        if node.was_full and node.is_full:
            raise Broken(f"I17: node {node.node_id} proposes commands, and its disk is full")

    def check_taken(self, node: ClusterNode, message: object) -> None:
        """The engine of ``node`` is about to be given ``message``."""
        if node.was_full and node.is_full and brings_entries(message):
            raise Broken(
                f"I17: node {node.node_id} takes in the entries of a {kind_of(type(message))}, and "
                "its disk is full"
            )

    def check_done(self, proposal: Proposal) -> None:
        """A proposal has just ended."""
        if proposal.outcome is not Outcome.DONE:
            return
        chosen = self.chosen.get(proposal.answer_index)
        if chosen is None or not _is_of(chosen, proposal):
            raise Broken(
                f"I6: proposal {proposal.number} was reported done, but another value is committed "
                f"at its index {proposal.answer_index}"
            )

    def check_acknowledged(self, proposals: Sequence[Proposal]) -> None:
        """Every proposal that was ever reported done is in every replica that came so far."""
        for proposal in proposals:
            self.check_done(proposal)
            if proposal.outcome is Outcome.NOT_DONE and proposal.index:
                self._check_not_done(proposal)
            for node_id, node in self.nodes.items():
                at = proposal.answer_index - 1
                if proposal.outcome is not Outcome.DONE or at >= len(node.applied):
                    continue
                if not _is_of(node.applied[at], proposal):
                    raise Broken(
                        f"I6: node {node_id} lost proposal {proposal.number}, index {at + 1}"
                    )

    def check_committed(self, proposals: Sequence[Proposal]) -> None:
        """Every command that was ever committed was proposed, and nobody was told that it was not
        done: not even who was refused, so that no index is known."""
        proposed = [(each.index, each.term) for each in proposals if each.index]
        asked = dict.fromkeys(proposed)
        for entry in self.chosen.values():
            is_command = entry.kind == EntryKind.COMMAND
            if is_command and (entry.index, entry.origin.term) not in asked:
                raise Broken(
                    f"I6: entry {entry.index} is a command of term {entry.origin.term} that nobody "
                    "proposed there, or who did was told that it is not done"
                )

    def _check_not_done(self, proposal: Proposal) -> None:
        """What was definitely not done must not be committed; in a term, an index is proposed
        once.  A command that its session or its term refused is, and does nothing (I21, I27)."""
        if was_refused_applied(proposal):
            return
        chosen = self.chosen.get(proposal.index)
        if chosen is not None and chosen.origin.term == proposal.term:
            raise Broken(
                f"I6: proposal {proposal.number} was reported as not done, and is committed at "
                f"index {proposal.index}"
            )


def was_refused_applied(proposal: Proposal) -> bool:
    """Whether a command was told that its session or its term refuses it: it is committed, and does
    nothing."""
    return isinstance(proposal.error, _APPLIED_REFUSALS)


def _has(check: Check, name: str) -> bool:
    own: object = getattr(type(check), name, None)
    return own not in (None, getattr(Check, name))


def brings_entries(message: object) -> bool:
    """Whether there is an entry anywhere in a message."""
    values: list[object] = [getattr(message, field.name) for field in fields(message)]  # type: ignore[arg-type]
    return any(
        isinstance(value, tuple) and isinstance((*value, None)[0], Entry) for value in values
    )


def _is_of(entry: Entry, proposal: Proposal) -> bool:
    """Whether the entry is the very proposal, which in its term is the only one at its index, and
    not another that asks for the same; of a command in a session, any of its copies."""
    if entry.kind != EntryKind.COMMAND or open_envelope(entry)[1] != proposal.payload:
        return False
    if proposal.mark is None:
        return entry.origin.term == proposal.term
    return is_in_session(entry) and session_in(entry)[:2] == proposal.mark[:2]
