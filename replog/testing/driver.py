"""The heart of a test cluster: it drives real replicas over modelled disks and a modelled network.

Whatever happens to a node is one *turn*: something arrives (a message, a tick, a sync, a request),
and then the node's Readys are carried out, in the order of their duties, until there is none (the
driver's turn of :mod:`replog.replica`).  After every turn the invariants are judged, and whatever
goes wrong, an assertion in the engine included, is a
:class:`~replog.testing.checks.Violation` that shows the end of the trace.

The rules this module keeps: a write becomes durable only by a sync, in the order of the Readys; the
``messages_after_sync`` of a Ready leave at its sync and in no other place; a node that is down or
paused is never touched; chance is asked only while faults are on, so that a quiet stretch of a run
does not move the source of chance.

What is left to others: when time passes and what is asked of the nodes
(:mod:`replog.testing.cluster`), and which faults there are (:mod:`replog.testing.faults`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from random import Random
from typing import Final

from replog.errors import CallerError, NotDone, OutcomeUnknown
from replog.replica import Replica
from replog.storage.protocol import Recovered
from replog.testing.agenda import Agenda
from replog.testing.checks import Invariants, Violation
from replog.testing.faults import Faults, draw_delays, draw_priority
from replog.testing.network import Flight, Network
from replog.testing.nodes import ClusterNode, Outcome, Proposal
from replog.testing.trace import Trace, hard_state_pairs, node_text
from replog.types import LogIndex, NodeId, PeerStatus, Ready

TRACE_TAIL_LINES: Final = 60
"""How much of the trace a violation shows."""

QUIET: Final = Faults()
"""No faults at all."""


class Driver:
    """Carries out what the nodes of one cluster are ready for."""

    def __init__(
        self,
        seed: int,
        sync_ticks: int,
        trace: Trace,
        invariants: Invariants,
        make_replica: Callable[[NodeId, Recovered], Replica],
    ) -> None:
        self.seed = seed
        self.random = Random(seed)
        """The one source of chance."""
        self.faults = QUIET
        """What happens to messages and writes by chance at the moment."""
        self.agenda = Agenda()
        self.network = Network()
        self.trace = trace
        self.invariants = invariants
        self.proposals: list[Proposal] = []
        """Everything that was ever proposed, in order."""
        self.turn_count = 0
        """How many events the nodes dealt with."""
        self._nodes = invariants.nodes
        self._sync_ticks = sync_ticks
        self._make_replica = make_replica

    # -- noting and judging --

    def note(self, node_id: NodeId, event: str, subject: object = "", **pairs: object) -> None:
        """Add an event to the trace."""
        self.trace.add(self.agenda.now, node_id, event, subject, **pairs)

    def note_flight(self, node_id: NodeId, event: str, flight: Flight, **pairs: object) -> None:
        """Add what happened to a message to the trace."""
        self.trace.add_flight(self.agenda.now, node_id, event, flight, **pairs)

    def judge(self, act: Callable[[], object]) -> None:
        """Do something; whatever goes wrong in it is a violation, except a caller's error."""
        try:
            act()
        except (Violation, CallerError):
            raise
        except Exception as error:
            raise self.violation(f"{type(error).__name__}: {error}") from error

    def violation(self, sentence: str) -> Violation:
        """What to raise when something that must hold does not."""
        return Violation(sentence, self.seed, self.trace.lines(-TRACE_TAIL_LINES))

    # -- turns --

    def turn(self, node: ClusterNode, act: Callable[[], object]) -> None:
        """Give a node something to deal with, and carry out all that it is ready for."""
        self.turn_count += 1
        self.judge(partial(self._take_turn, node, act))

    def _take_turn(self, node: ClusterNode, act: Callable[[], object]) -> None:
        act()
        self._observe(node)
        while (ready := node.replica.ready()) is not None:
            self._carry_out(node, ready)
        self.invariants.check_event(node)

    def _carry_out(self, node: ClusterNode, ready: Ready) -> None:
        """The duties of one Ready, in their order (see :mod:`replog.engine`)."""
        for message in ready.messages:
            self.send(node, message)
        self._observe(node)
        now, disk = self.agenda.now, node.disk
        pending = disk.write(ready, now + self._draw_sync_ticks() if ready.writes else now)
        if pending.due > now:
            self.agenda.plan(pending.due, partial(self.sync_due, node, node.run))
        elif not disk.is_held:
            self._sync(node, len(disk.pending))
        for entry in ready.committed:
            self.invariants.check_committed(node, entry)
            node.applied.append(entry)
            self.note(node.node_id, "apply", entry)
        node.replica.apply(ready)
        assert node.replica.applied_index == node.applied_index, "applied something else"

    def _draw_sync_ticks(self) -> int:
        ticks_max = self.faults.sync_ticks_max
        return self._sync_ticks + (self.random.randint(0, ticks_max) if ticks_max else 0)

    def _observe(self, node: ClusterNode) -> None:
        """Note what changed in the node's status since it was last seen."""
        status, seen = node.replica.engine.status(), node.status_seen
        if status == seen:
            return
        node.status_seen = status
        if status.term != seen.term:
            node.term_tick = self.agenda.now
        if (status.role, status.term, status.leader_id) != (seen.role, seen.term, seen.leader_id):
            leader = node_text(status.leader_id)
            self.note(node.node_id, "role", status.role.value, term=status.term, leader=leader)
        if status.peers != seen.peers:
            self.invariants.check_progress(status, seen)
            self._note_progress(node, status.peers, seen.peers)
        if status.commit_index != seen.commit_index:
            self.note(node.node_id, "commit", index=status.commit_index)

    def _note_progress(
        self, node: ClusterNode, peers: Sequence[PeerStatus], seen: Sequence[PeerStatus]
    ) -> None:
        known = {peer.node_id: (peer.state, peer.match_index, peer.next_index) for peer in seen}
        for peer in peers:
            if known.get(peer.node_id) != (peer.state, peer.match_index, peer.next_index):
                self.note(
                    node.node_id,
                    "progress",
                    node_text(peer.node_id),
                    state=peer.state,
                    match=peer.match_index,
                    next=peer.next_index,
                )

    # -- disks --

    def sync(self, node: ClusterNode, count: int) -> None:
        """Make the ``count`` oldest pending Readys of a node durable now."""
        self.turn(node, partial(self._sync, node, count))

    def sync_due(self, node: ClusterNode, run: int) -> None:
        """Make durable whose tick has come, unless the run is over or something holds it."""
        if node.run != run or not node.is_running or node.disk.is_held:
            return
        count = sum(1 for pending in node.disk.pending if pending.due <= self.agenda.now)
        if count:
            self.sync(node, count)

    def _sync(self, node: ClusterNode, count: int) -> None:
        disk = node.disk
        for _ in range(count):
            pending = disk.pending[0]
            ready = pending.ready
            self.invariants.check_write(node, ready, disk.sync_next)
            self._note_write(node, "sync", ready)
            node.replica.advance(ready)
            self._observe(node)
            for message in ready.messages_after_sync:
                assert disk.synced_count == pending.number, "a message leaves before its sync"
                self.send(node, message)

    def _note_write(self, node: ClusterNode, event: str, ready: Ready) -> None:
        if not ready.writes:
            return
        pairs = hard_state_pairs(ready.hard_state)
        if ready.truncate_from is not None:
            pairs["truncate_from"] = ready.truncate_from
        if ready.entries:
            pairs["entries"] = tuple(ready.entries)
        self.note(node.node_id, event, **pairs)

    # -- messages --

    def send(self, node: ClusterNode, message: object) -> None:
        """A node sends a message; cuts and chance decide what becomes of it."""
        flight = self.network.send(message)
        assert flight.sender == node.node_id, "a node sends in its own name"
        self.note_flight(node.node_id, "send", flight)
        self.invariants.check_sent(flight)
        if self.network.is_cut(flight):
            self.lose(flight, "cut")
            return
        delays = (0,) if self.faults is QUIET else draw_delays(self.faults, self.random)
        if not delays:
            self.lose(flight, "chance")
            return
        self.launch(flight, delays[0])
        for delay in delays[1:]:
            self.duplicate(flight, delay)

    def duplicate(self, flight: Flight, delay: int) -> None:
        """Send a message once more, to arrive in ``delay`` ticks."""
        copy = self.network.send(flight.message)
        copy.line = flight.line
        self.note_flight(flight.sender, "duplicate", flight, copy=f"m{copy.number}")
        self.launch(copy, delay)

    def launch(self, flight: Flight, delay: int) -> None:
        """Let a message arrive in ``delay`` ticks, unless it is held."""
        if not self.network.put(flight):
            self.note_flight(flight.sender, "hold", flight)
            return
        priority = 0 if self.faults is QUIET else draw_priority(self.faults, self.random)
        self.agenda.plan(self.agenda.now + delay, partial(self.arrive, flight), priority)

    def arrive(self, flight: Flight) -> None:
        """Hand a message to its receiver, unless it is gone or that is impossible."""
        if not self.network.take(flight):
            return
        node = self._nodes[flight.to]
        if self.network.is_cut(flight):
            self.lose(flight, "cut")
        elif not node.is_up:
            self.lose(flight, "down")
        elif node.is_paused:
            node.inbox.append(flight)
        else:
            self.note_flight(node.node_id, "recv", flight)
            self.turn(node, partial(node.replica.step, flight.message))

    def lose(self, flight: Flight, why: str) -> None:
        """Note that a message is lost."""
        self.note_flight(flight.sender, "drop", flight, reason=why)

    # -- runs of nodes --

    def start(self, node: ClusterNode, event: str) -> None:
        """Begin a run of a node from its disk's synced layer."""
        node.start(partial(self._make_replica, node.node_id))
        recovered = node.disk.recover()
        pairs = hard_state_pairs(recovered.hard_state)
        self.note(node.node_id, event, **pairs, log=tuple(recovered.entries))
        self.turn(node, lambda: None)

    def crash(self, node: ClusterNode, kept: int) -> None:
        """End a run: of its pending Readys the ``kept`` oldest survive, the others are lost."""
        self.judge(partial(self._crash, node, kept))

    def _crash(self, node: ClusterNode, kept: int) -> None:
        disk = node.disk
        for _ in range(kept):
            ready = disk.pending[0].ready
            self.invariants.check_write(node, ready, disk.sync_next)
            self._note_write(node, "kept", ready)
        self.note(node.node_id, "crash", lost_writes=disk.crash())
        node.is_up = node.is_paused = False
        # The replica of this run is not used again, so its waiters are answered here.
        for proposal in self.proposals:
            if proposal.node_id == node.node_id and proposal.outcome is Outcome.PENDING:
                self._end(proposal, 0, None, OutcomeUnknown("the node crashed"))
        inbox, node.inbox = node.inbox, []
        for flight in inbox:
            self.lose(flight, "down")

    # -- proposals --

    def propose(self, node: ClusterNode, payload: bytes, time_ms: int) -> Proposal:
        """Propose a command at a node; the outcome shows in what is returned."""
        proposal = Proposal(len(self.proposals) + 1, node.node_id, payload)
        self.proposals.append(proposal)
        self.turn(node, partial(self._propose, node, proposal, time_ms))
        return proposal

    def _propose(self, node: ClusterNode, proposal: Proposal, time_ms: int) -> None:
        payload, subject = proposal.payload, f"p{proposal.number}"
        try:
            node.machine.check_payload(payload)
            waiter = partial(self._end, proposal)
            proposal.index = node.replica.propose(payload, time_ms, waiter)
        except NotDone as error:
            self.note(node.node_id, "propose", subject, payload=payload)
            self._end(proposal, 0, None, error)
        else:
            self.note(node.node_id, "propose", subject, index=proposal.index, payload=payload)

    def _end(
        self, proposal: Proposal, index: LogIndex, result: object, error: Exception | None
    ) -> None:
        proposal.end(index, result, error)
        subject = f"p{proposal.number}"
        self.note(proposal.node_id, proposal.outcome.value, subject, **proposal.pairs())
        self.invariants.check_done(proposal)
