"""The heart of a test cluster: it drives real nodes over modelled disks and a modelled network.

Whatever happens to a node is an *event*: something arrives (a message, a tick, a sync, a request),
and then the node takes its turn, the very one that a node of a real cluster takes
(:mod:`replog.turns`).  After every event the invariants are judged, and whatever goes wrong, an
assertion in the engine included, is a :class:`~replog.testing.checks.Violation` that shows the end
of the trace.

The rules this module keeps: a write becomes durable only by a sync, in the order of the groups; a
node that is down or paused is never touched; chance is asked only while faults are on, so that a
quiet stretch of a run does not move the source of chance.

What is left to others: when time passes and what is asked of the nodes
(:mod:`replog.testing.cluster`), and which faults there are (:mod:`replog.testing.faults`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from random import Random
from typing import Final

from replog.envelope import SessionMark, mark_command
from replog.errors import NotDone, OutcomeUnknown, Replaced, ReplicaDiverged, StorageFailed
from replog.limits import Limits
from replog.storage.protocol import Write
from replog.testing.agenda import Agenda
from replog.testing.chance import Chance
from replog.testing.checks import Broken, Invariants, Violation, brings_entries
from replog.testing.disk import DiskModel
from replog.testing.diverging import Diverging
from replog.testing.faults import Faults, draw_delays, draw_priority
from replog.testing.files import Crashed
from replog.testing.full_disks import RoomSeeker
from replog.testing.goals import Goals
from replog.testing.members import Members
from replog.testing.network import Flight, Network, kind_of
from replog.testing.nodes import ClusterNode, Outcome, Proposal
from replog.testing.overload import Crowd
from replog.testing.queries import Query
from replog.testing.snapshot_disk import JobRunner
from replog.testing.trace import Trace, hard_state_pairs, node_text
from replog.types import NO_NODE, LogIndex, NodeId, PeerStatus, ReadLevel, Role, Term, TermId
from replog.wire import FrameReader, MessageCodec

TRACE_TAIL_LINES: Final = 60
"""How much of the trace a violation shows."""

AFTER_ARRIVALS: Final = 9
"""Behind whatever arrives in the same tick, changed places included."""

QUIET: Final = Faults()
"""No faults at all."""


class Driver:
    """Carries out what the nodes of one cluster are ready for."""

    def __init__(
        self,
        seed: int,
        limits: Limits,
        disk_model: DiskModel,
        trace: Trace,
        invariants: Invariants,
        codec: MessageCodec | None,
        chance: Chance,
        goals: Goals,
    ) -> None:
        self.seed = seed
        self.random = Random(seed)
        """The source of whatever chance decides and is no fault."""
        self.chance = chance
        """The source of all faults."""
        self.goals = goals
        self.faults = QUIET
        """What happens to messages and writes by chance at the moment."""
        self.agenda = Agenda()
        self.jobs = JobRunner(self)
        self.room = RoomSeeker(self)
        self.network = Network()
        self.trace = trace
        self.invariants = invariants
        self.proposals: list[Proposal] = []
        """Everything that was ever proposed, in order."""
        self.queries: list[Query] = []
        """Everything that was ever read, in order."""
        self.turn_count = 0
        """How many events the nodes dealt with."""
        self.members = Members(self)
        """Which incarnations of the nodes take part."""
        self.handle_replaced: Callable[[ClusterNode], None] = _hear_nothing
        """Is told of each node that stops because another incarnation took its place."""
        self.handle_down: Callable[[ClusterNode], None] = _hear_nothing
        """Is told of each node that went down."""
        self.passes: Callable[[Flight], bool] = _always
        """Whether both ends of a message take each other for whom they met."""
        self.acknowledgements: tuple[str, ...] = ()
        """The kinds of the messages that acknowledge entries."""
        self.handle_ended: Callable[[Proposal], None] = _hear_nothing
        """Is told of each proposal that ended, and may raise ``Broken``."""
        self.handle_resumed: Callable[[ClusterNode], None] = _hear_nothing
        """Is told by chance's faults of a node that goes on after a pause, ahead of what waited."""
        self.is_batched = False
        """Whether what arrives in a tick is dealt with in one turn."""
        self.transfer_asked: tuple[NodeId, Term] = (NO_NODE, 0)
        """The node that the last leader was told to hand over to, and that leader's term."""
        self._moments = 0
        self._leader_terms: list[Term] = []
        self._heard: dict[int, tuple[object, int, Term]] = {}
        """The acknowledgements with copies that arrived, by identity, with the run and term in
        which they did."""
        self._codec = codec
        self._nodes = invariants.nodes
        self.crowd = Crowd(self, self._nodes, limits)
        """The rushes of commands, and the judge of what is refused."""
        self.diverging = Diverging(self._nodes, self.goals)
        """Makes replicas differ, and judges who is found."""
        self._limits = limits
        self._disk_model = disk_model
        self.handle_crash: Callable[[ClusterNode, str], None] = _hear_nothing
        """Ends the run of a node that crashed, amid what is said."""
        self.handle_failure: Callable[[ClusterNode], None] = _hear_nothing
        """Ends the run of a node whose disk failed."""
        self.end_replaced: Callable[[ClusterNode], None] = _hear_nothing
        """Ends the run of a node that was replaced."""
        self.end_diverged: Callable[[ClusterNode], None] = _hear_nothing
        """Ends the run of a node whose replica is in another state than the others."""

    # -- noting and judging --

    def note(self, node_id: NodeId, event: str, subject: object = "", **pairs: object) -> None:
        """Add an event to the trace."""
        self.trace.add(self.agenda.now, node_id, event, subject, **pairs)

    def note_flight(self, node_id: NodeId, event: str, flight: Flight, **pairs: object) -> None:
        """Add what happened to a message to the trace."""
        self.trace.add_flight(self.agenda.now, node_id, event, flight, **pairs)

    def judge(self, act: Callable[[], object]) -> None:
        """Do something; whatever goes wrong in it is a violation."""
        try:
            act()
        except Violation:
            raise
        except Exception as error:
            raise self.violation(_sentence_of(error)) from error

    def violation(self, sentence: str) -> Violation:
        """What to raise when something that must hold does not."""
        tail = self.trace.lines(-TRACE_TAIL_LINES)
        return Violation(sentence, self.seed, tail, self.agenda.now)

    # -- turns --

    def turn(self, node: ClusterNode, act: Callable[[], object]) -> None:
        """Give a node something to deal with, and carry out all that it is ready for."""
        self.turn_count += 1
        self._have(node, partial(self._take_turn, node, act))

    def _have(self, node: ClusterNode, act: Callable[[], object]) -> None:
        """Have a node do something, which its run may end with."""
        try:
            self.judge(partial(self._try, node, act))
        except Crashed as crashed:
            self.handle_crash(node, str(crashed))

    def _try(self, node: ClusterNode, act: Callable[[], object]) -> None:
        try:
            act()
        except Replaced:
            self.handle_replaced(node)
            self.end_replaced(node)
        except ReplicaDiverged as error:
            self.diverging.judge(node, error)
            self.end_diverged(node)
        except StorageFailed:
            if node.log_disk is None or node.log_disk.files.fault is None:
                raise
            self.handle_failure(node)

    def _take_turn(self, node: ClusterNode, act: Callable[[], object]) -> None:
        act()
        self.observe(node)
        node.wants_turn = False
        self.room.note_turn(node)
        node.turns.turn()
        disk = node.disk
        while disk.pending and disk.pending[0].due <= self.agenda.now and not disk.stands_still:
            self._sync(node, 1)
            self.room.note_turn(node)
            node.turns.turn()
        self.room.plan(node)
        if node.wants_turn:
            due = self.agenda.now + self.crowd.lags.get(node.node_id, 0)
            self.agenda.plan(due, partial(self._turn_again, node, node.run))
        self.invariants.check_event(node)
        self.members.check_event(node)

    def _turn_again(self, node: ClusterNode, run: int) -> None:
        """The turn that a node has asked for, unless another came first."""
        if node.run == run and node.is_running and node.wants_turn:
            self.turn(node, _do_nothing)

    def observe(self, node: ClusterNode) -> None:
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
            if status.role is Role.LEADER and seen.role is not Role.LEADER:
                self._note_leader(node.node_id, status.term)
        if status.peers != seen.peers:
            renewed = self.members.renewed(node)
            self.invariants.check_progress(status, seen, renewed)
            self._note_progress(node, status.peers, seen.peers)
        if status.commit_index != seen.commit_index:
            self.note(node.node_id, "commit", index=status.commit_index)

    def _note_leader(self, node_id: NodeId, term: Term) -> None:
        self._leader_terms.append(term)
        if len(self._leader_terms) > 1:
            self.goals.reach("leader_changed")
        to, asked_term = self.transfer_asked
        if node_id == to and term > asked_term and max(self._leader_terms[:-1]) == asked_term:
            self.goals.reach("leadership_transferred")

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

    def write(self, node: ClusterNode, writes: Sequence[Write]) -> None:
        """A node's turn puts a group on its way to disk; it is durable when it is synced."""
        ticks_max = self.faults.sync_ticks_max
        drawn = self.chance.ticks("slow_sync", ticks_max) if ticks_max else 0
        now = self.agenda.now
        group = node.disk.write(writes, now + self._disk_model.sync_ticks + drawn)
        if node.log_disk is not None:
            node.log_disk.write(group)
        if group.due > now:
            self.agenda.plan(group.due, partial(self.sync_due, node, node.run))

    def sync(self, node: ClusterNode, count: int) -> None:
        """Make the ``count`` oldest pending groups of a node durable now."""
        self.turn(node, partial(self._sync, node, count))

    def sync_due(self, node: ClusterNode, run: int) -> None:
        """Make durable whose tick has come, unless the run is over or something holds it."""
        if node.run != run or not node.is_running or node.disk.stands_still:
            return
        count = sum(1 for group in node.disk.pending if group.due <= self.agenda.now)
        if count:
            self.sync(node, count)

    def _sync(self, node: ClusterNode, count: int) -> None:
        for _ in range(count):
            if not self.room.persist(node, node.disk.pending[0]):
                return
            self.make_durable(node, "sync")
            node.turns.handle_synced()

    def make_durable(self, node: ClusterNode, event: str) -> None:
        disk = node.disk
        writes = disk.pending[0].writes
        self.invariants.check_write(node, writes, disk.sync_next)
        for write in writes:
            pairs = hard_state_pairs(write.hard_state)
            if write.base is not None:
                pairs["base"] = write.base.index
                self._note_base(node, write.base.index)
            if write.truncate_from is not None:
                pairs["truncate_from"] = write.truncate_from
            if write.entries:
                pairs["entries"] = tuple(write.entries)
            self.note(node.node_id, event, **pairs)

    def _note_base(self, node: ClusterNode, base_index: LogIndex) -> None:
        if node.is_up and node.replica.engine.soft_state.role is not Role.LEADER:
            return
        for other in self._nodes.values():
            last_index = max(other.disk.entries, default=other.disk.base_index)
            if last_index < base_index and not other.is_lost:
                self.goals.reach("log_trimmed_under_laggard")

    def time_ms(self, node: ClusterNode) -> int:
        """What the node's clock shows."""
        return max(0, self.agenda.now * self._limits.tick_ms + node.clock_ahead_ms)

    def clock_ns(self, node: ClusterNode) -> int:
        """What the clock shows by which the node's leases run."""
        tick_ns = self._limits.tick_ms * 1_000_000
        return self.agenda.now * tick_ns * node.lease_rate // 100

    # -- messages --

    def send(self, node: ClusterNode, message: object) -> None:
        """A node sends a message; cuts and chance decide what becomes of it."""
        self.invariants.check_leaves(node, message)
        if self._codec is not None:
            message = self._carried(message)
        flight = self.network.send(message)
        assert flight.sender == node.node_id, "a node sends in its own name"
        self.members.stamp(flight)
        if not node.turns.takes_part:
            raise Broken(f"I18: node {node.node_id} sends a message and takes no part yet")
        self.note_flight(node.node_id, "send", flight)
        self.invariants.check_sent(flight)
        if self.network.is_cut(flight):
            self.lose(flight, "cut")
            return
        if refusal := self._refusal(flight):
            self.lose(flight, refusal)
            return
        if self.network.has_faded(flight):
            self.lose(flight, "fade")
            return
        delays = (0,) if self.faults is QUIET else draw_delays(self.faults, self.chance)
        if not delays:
            self.lose(flight, "chance")
            return
        self.launch(flight, delays[0])
        for delay in delays[1:]:
            self.duplicate(flight, delay)

    def _refusal(self, flight: Flight) -> str:
        """Why the two ends of a message do not take each other for whom they mean; mostly empty."""
        if not self.members.passes(flight):
            return "incarnation"
        return "" if self.passes(flight) else "birth"

    def _carried(self, message: object) -> object:
        """What arrives when ``message`` has gone through the real codec."""
        assert self._codec is not None
        frame = self._codec.encode(message)
        [(number, content)] = FrameReader(self._codec.frame_limits).feed(frame)
        carried = self._codec.decode(number, content)
        if carried != message:
            raise Broken(f"I12: a {kind_of(type(message))} is changed by its way over the wire")
        return carried

    def duplicate(self, flight: Flight, delay: int) -> None:
        """Send a message once more, to arrive in ``delay`` ticks."""
        copy = self.network.send(flight.message)
        copy.line, copy.incarnations = flight.line, flight.incarnations
        copy.has_copy = flight.has_copy = True
        self.note_flight(flight.sender, "duplicate", flight, copy=f"m{copy.number}")
        self.launch(copy, delay)

    def launch(self, flight: Flight, delay: int) -> None:
        """Let a message arrive in ``delay`` ticks, unless it is held."""
        if not self.network.put(flight):
            self.note_flight(flight.sender, "hold", flight)
            return
        priority = 0 if self.faults is QUIET else draw_priority(self.faults, self.chance)
        self.agenda.plan(self.agenda.now + delay, partial(self.arrive, flight), priority)

    def arrive(self, flight: Flight) -> None:
        """Hand a message to its receiver, unless it is gone or that is impossible."""
        if not self.network.take(flight):
            return
        node = self._nodes[flight.to]
        if self.network.is_cut(flight):
            self.lose(flight, "cut")
        elif refusal := self._refusal(flight):
            self.lose(flight, refusal)
        elif not node.is_up:
            self.lose(flight, "down")
        elif node.is_paused:
            node.inbox.append(flight)
        else:
            self.note_flight(node.node_id, "recv", flight)
            self._take_in(node, partial(self._step, node, flight))

    def _take_in(self, node: ClusterNode, act: Callable[[], object]) -> None:
        """Give a node something from outside: its turn comes at once or, in a batched cluster, when
        all that is due in this tick has come, as with a loop that is behind.  What the event came
        to is judged after the turn, for not before is anything handed out."""
        if not self.is_batched:
            self.turn(node, act)
            return
        self.turn_count += 1
        is_turn_planned = node.wants_turn
        self._have(node, partial(self._hear, node, act))
        if not is_turn_planned and node.is_running:
            node.wants_turn = True
            again = partial(self._turn_again, node, node.run)
            self.agenda.plan(self.agenda.now, again, AFTER_ARRIVALS)

    def _hear(self, node: ClusterNode, act: Callable[[], object]) -> None:
        act()
        self.observe(node)

    def _step(self, node: ClusterNode, flight: Flight) -> None:
        if node.was_full and brings_entries(flight.message):
            self.lose(flight, "full")  # the node drops it, or breaks I17
        elif node.turns.takes_part:
            self.members.check_received(node, flight)
            self.invariants.check_received(node, flight)
        if flight.has_copy and flight.kind in self.acknowledgements:
            self._note_repeated(node, flight)
        node.turns.step(flight.message)

    def _note_repeated(self, node: ClusterNode, flight: Flight) -> None:
        engine = node.replica.engine
        message, run, term = self._heard.get(id(flight.message), (None, 0, 0))
        if message is None:
            self._heard[id(flight.message)] = (flight.message, node.run, engine.term)
        elif (run, term) == (node.run, engine.term) and engine.soft_state.role is Role.LEADER:
            self.goals.reach("duplicate_ack_ignored")

    def lose(self, flight: Flight, why: str) -> None:
        """Note that a message is lost."""
        self.note_flight(flight.sender, "drop", flight, reason=why)

    # -- proposals --

    def next_moment(self) -> int:
        """A number for the moment that is now; each is above those before."""
        self._moments += 1
        return self._moments

    def propose(
        self,
        node: ClusterNode,
        payload: bytes,
        client: int = 0,
        is_within: bool = False,
        mark: SessionMark | None = None,
        expected: TermId | None = None,
    ) -> Proposal:
        """Propose a command at a node; the outcome shows in what is returned.

        ``is_within``: within the turn that the node is taking.  ``mark`` and ``expected``: what
        :func:`~replog.envelope.mark_command` adds.
        """
        proposal = Proposal(len(self.proposals) + 1, node.node_id, payload, self._hear_end)
        proposal.client, proposal.mark, proposal.expected = client, mark, expected
        proposal.began = self.next_moment()
        self.proposals.append(proposal)
        if is_within:
            self._submit(node, proposal)
        else:
            self._take_in(node, partial(self._submit, node, proposal))
        return proposal

    def _submit(self, node: ClusterNode, proposal: Proposal) -> None:
        try:
            node.machine.check_payload(proposal.payload)
            marked = mark_command(proposal.payload, proposal.mark, proposal.expected)
            node.turns.submit(marked, proposal)
            limit = self._limits.uncommitted_bytes_max
            self.invariants.check_submitted(node, proposal, limit)
        except NotDone as error:
            self.crowd.judge_refusal(proposal, error)
            self.end(proposal, 0, None, error)

    def _hear_end(
        self, proposal: Proposal, index: LogIndex, result: object, error: Exception | None
    ) -> None:
        """The node says what became of a proposal."""
        if isinstance(error, OutcomeUnknown):
            self.goals.reach("unknown_outcome")
        if isinstance(error, NotDone):
            # It may have been refused before it was proposed, and is not held any more.
            node = self._nodes[proposal.node_id]
            node.unproposed = [each for each in node.unproposed if each is not proposal]
            self.crowd.judge_refusal(proposal, error)
        self.end(proposal, index, result, error)

    # -- queries --

    def query(
        self,
        node: ClusterNode,
        payload: bytes,
        level: ReadLevel,
        at_least: LogIndex,
        client: int,
    ) -> Query:
        """Ask a node a query; the answer shows in what is returned."""
        number = len(self.queries) + 1
        query = Query(number, node.node_id, node.run, payload, level, at_least, self._hear_answer)
        query.client = client
        query.began = self.next_moment()
        query.floor = len(self.invariants.chosen)
        query.is_at_leader = node.replica.engine.soft_state.role is Role.LEADER
        self.queries.append(query)
        self.note(node.node_id, "query", f"q{number}", payload=payload, level=level.value)
        self._take_in(node, partial(self._ask, node, query))
        return query

    def _ask(self, node: ClusterNode, query: Query) -> None:
        try:
            until_ns = node.replica.engine.status().lease_until_ns
            query.is_by_lease = until_ns is not None and self.clock_ns(node) < until_ns
            node.turns.query(query.payload, query.level, query.at_least, query)
        except NotDone as error:
            self._hear_answer(query, 0, None, error)

    def _hear_answer(
        self, query: Query, index: LogIndex, result: object, error: Exception | None
    ) -> None:
        """The node says what became of a query."""
        query.end(index, result, error)
        query.ended = self.next_moment()
        self.note(query.node_id, query.outcome.value, f"q{query.number}", **query.pairs())
        if problem := query.problem():
            raise Broken(problem)
        if query.level is ReadLevel.LINEARIZABLE:
            self._note_read(query)
        elif query.level is ReadLevel.LEASE and query.is_by_lease:
            self.goals.reach("lease_read_served")

    def _note_read(self, query: Query) -> None:
        node = self._nodes[query.node_id]
        leads = node.replica.engine.soft_state.role is Role.LEADER
        if query.outcome is Outcome.NOT_DONE:
            self.goals.reach("read_refused")
        elif not (query.is_at_leader or leads):
            self.goals.reach("read_served_by_follower")

    def forget_queries(self, node: ClusterNode) -> None:
        """A run crashed: nobody hears what came of what it was asked."""
        for query in self.open_queries(node):
            query.outcome = Outcome.UNKNOWN

    def open_queries(self, node: ClusterNode) -> list[Query]:
        """What a node's present run was asked and has not answered."""
        return [
            query
            for query in self.queries
            if query.node_id == node.node_id and query.outcome is Outcome.PENDING
        ]

    def end(
        self, proposal: Proposal, index: LogIndex, result: object, error: Exception | None
    ) -> None:
        """A proposal ended."""
        subject = f"p{proposal.number}"
        if not proposal.index:
            self.note(proposal.node_id, "propose", subject, payload=proposal.payload)
        proposal.end(index, result, error)
        proposal.ended = self.next_moment()
        self.note(proposal.node_id, proposal.outcome.value, subject, **proposal.pairs())
        self.invariants.check_done(proposal)
        self.handle_ended(proposal)


def _do_nothing() -> None:
    """There is nothing to do, or nothing to flush."""


def _always(_: Flight) -> bool:
    """Nobody refuses anybody."""
    return True


def _hear_nothing(*_: object) -> None:
    """Nobody wants to know."""


def _sentence_of(error: BaseException) -> str:
    """What went wrong: the broken rule, also if somebody on the way made another error of it."""
    at: BaseException | None = error
    while at is not None:
        if isinstance(at, Broken):
            return str(at)
        at = at.__cause__
    return f"{type(error).__name__}: {error}"
