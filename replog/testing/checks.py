"""What must hold in every cluster at all times, whatever the engine.

The rules here are judged from outside: by the driver's own records, the disks and the messages,
never by asking the engine whether it is content (though its own ``check`` is called too).  They
are the reason why a random run proves anything:

* **I1** One leader per (epoch, term): one run of one node, for ever.
* **I2** One value per index, for ever: whatever any run of any node hands out to be applied at an
  index has the same body, crashes and terms regardless.
* **I3** Each run applies index after index, without a gap.
* **I4** On disk the (epoch, term) never falls, and a vote, once given in a term, stays.
* **I5** When an entry is first reported as committed, its body is on the synced layer of a quorum;
  and no write ever takes a committed entry from the last quorum that holds it.
* **I6** A proposal that was reported done is the entry at its index (and so, by I2, for ever).
* **I7** A term never falls within a run, nor below what the disk holds.
* **I8** What a leader knows a peer to hold never shrinks within one leadership.

What only one engine promises (log matching, for instance) comes as a :class:`Check` from outside.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from replog.envelope import open_envelope
from replog.quorum import QuorumSystem
from replog.testing.network import Flight
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


class Violation(AssertionError):
    """Something that must hold does not; the message ends with the tail of the trace."""

    def __init__(self, sentence: str, seed: int, trace_tail: Sequence[str]) -> None:
        self.sentence = sentence
        self.seed = seed
        self.trace_tail = list(trace_tail)
        tail = "\n".join(f"  {line}" for line in trace_tail)
        super().__init__(f"{sentence} (seed {seed})\nthe end of the trace:\n{tail}")


class Check(Protocol):
    """A rule beyond those of this module; each method returns what is broken, or ``""``.

    ``nodes`` are all nodes of the cluster by id, those that are down included.  An instance serves
    one cluster, so it may remember what it saw.
    """

    def check_sent(self, nodes: Mapping[NodeId, ClusterNode], flight: Flight) -> str:
        """A message has just left its sender."""

    def check_event(self, nodes: Mapping[NodeId, ClusterNode], node: ClusterNode) -> str:
        """An event at ``node`` has just been dealt with."""


class Broken(Exception):
    """A rule does not hold; the cluster turns it into a :class:`Violation`."""


class Invariants:
    """The rules of this module, and those that came from outside, over the life of a cluster."""

    __slots__ = ("_checks", "_leaders", "_quorum", "_terms", "chosen", "nodes")

    def __init__(
        self,
        nodes: Mapping[NodeId, ClusterNode],
        quorum: QuorumSystem,
        checks: Sequence[Check],
    ) -> None:
        self.nodes = nodes
        self._quorum = quorum
        self._checks = tuple(checks)
        self._leaders: dict[tuple[EpochNumber, Term], tuple[NodeId, int]] = {}
        self._terms: dict[NodeId, tuple[int, Term]] = {}
        self.chosen: dict[LogIndex, Entry] = {}
        """The first entry that was reported as committed, by index; its body is the value."""

    def check_sent(self, flight: Flight) -> None:
        """A message has left."""
        for check in self._checks:
            _demand_silence(check.check_sent(self.nodes, flight))

    def check_event(self, node: ClusterNode) -> None:
        """An event at ``node`` was dealt with."""
        engine = node.replica.engine
        engine.check()
        self._check_term(node)
        if engine.soft_state.role is Role.LEADER:
            self._check_leader(node)
        for check in self._checks:
            _demand_silence(check.check_event(self.nodes, node))

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

    def check_progress(self, status: Status, seen: Status) -> None:
        """A leader's view of its peers changed from ``seen`` to ``status``."""
        if status.term != seen.term:
            return
        known = {peer.node_id: peer.match_index for peer in seen.peers}
        for peer in status.peers:
            if peer.match_index < known.get(peer.node_id, 0):
                raise Broken(
                    f"I8: node {status.node_id} knew node {peer.node_id} to hold "
                    f"{known[peer.node_id]}, and now only {peer.match_index}"
                )

    def check_write(self, node: ClusterNode, ready: Ready, write: Callable[[], object]) -> None:
        """Carry out ``write``, which makes ``ready`` durable at ``node``, and judge the change."""
        before = node.disk.hard_state
        voided = self._chosen_on_disk(node, ready)
        write()
        after = node.disk.hard_state
        if before is not None and after is not None:
            if (after.epoch, after.term) < (before.epoch, before.term):
                raise Broken(f"I4: node {node.node_id} wrote term {after.term} over {before.term}")
            is_same_term = (after.epoch, after.term) == (before.epoch, before.term)
            if is_same_term and before.voted_for not in (NO_NODE, after.voted_for):
                raise Broken(
                    f"I4: node {node.node_id} changed its vote of term {after.term} from node "
                    f"{before.voted_for} to node {after.voted_for}"
                )
        for index in voided:
            if not self._is_durable(self.chosen[index]):
                raise Broken(
                    f"I5: node {node.node_id} voided entry {index} on its disk, which is committed "
                    "and now on no quorum's"
                )

    def _chosen_on_disk(self, node: ClusterNode, ready: Ready) -> list[LogIndex]:
        """The committed entries on the node's disk that the write of ``ready`` may void."""
        least = ready.truncate_from
        if ready.entries:
            first = ready.entries[0].index
            least = first if least is None else min(least, first)
        if least is None or least > len(self.chosen):
            return []
        entries = node.disk.entries
        return [
            index
            for index in range(least, len(self.chosen) + 1)
            if index in entries and entries[index].body == self.chosen[index].body
        ]

    def _is_durable(self, entry: Entry) -> bool:
        holders: list[NodeId] = []
        for node_id, node in self.nodes.items():
            held = node.disk.entries.get(entry.index)
            if held is not None and held.body == entry.body:
                holders.append(node_id)
        return self._quorum.is_quorum(holders)

    def check_committed(self, node: ClusterNode, entry: Entry) -> None:
        """``node`` is about to apply ``entry``."""
        if entry.index != node.applied_index + 1:
            raise Broken(
                f"I3: node {node.node_id} applies entry {entry.index} after {node.applied_index}"
            )
        chosen = self.chosen.get(entry.index)
        if chosen is None:
            self.chosen[entry.index] = entry
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

    def check_done(self, proposal: Proposal) -> None:
        """A proposal has just ended."""
        if proposal.outcome is not Outcome.DONE:
            return
        chosen = self.chosen.get(proposal.index)
        if chosen is None or not _is_command(chosen, proposal.payload):
            raise Broken(
                f"I6: proposal {proposal.number} was reported done, but another value is committed "
                f"at its index {proposal.index}"
            )

    def check_acknowledged(self, proposals: Sequence[Proposal]) -> None:
        """Every proposal that was ever reported done is in every replica that came so far."""
        for proposal in proposals:
            self.check_done(proposal)
            for node_id, node in self.nodes.items():
                at = proposal.index - 1
                if proposal.outcome is not Outcome.DONE or at >= len(node.applied):
                    continue
                if not _is_command(node.applied[at], proposal.payload):
                    raise Broken(f"I6: node {node_id} lost proposal {proposal.number}, index {at}")


def _is_command(entry: Entry, payload: bytes) -> bool:
    return entry.kind == EntryKind.COMMAND and open_envelope(entry)[1] == payload


def _demand_silence(sentence: str) -> None:
    if sentence:
        raise Broken(sentence)
