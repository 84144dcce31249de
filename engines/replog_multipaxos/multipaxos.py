"""The Multi-Paxos engine: the fence of ballots, what is chosen, and what every role shares.

Not Raft with other names: anyone may lead, for a leader *learns* the past in phase 1; the log may
have holes above the commit index and is filled slot by slot; no message is checked against the
entry before it, and nothing is ever cut off.  The parts:

* :mod:`replog_multipaxos.acceptor`: promises and votes (phase 1b, 2b), what a Commit tells
* :mod:`replog_multipaxos.election`: the round that binds nobody, phase 1a, counting promises
* :mod:`replog_multipaxos.leader`: phase 2a, the window, counting votes, lost messages
* :mod:`replog_multipaxos.learner`: chosen values, asked for and told by anyone
* :mod:`replog_multipaxos.reading`: reads that need no slot
* :mod:`replog_multipaxos.table`: which of them has which message, by role

**The fence.**  A promise is for every slot at once.  A Prepare, Accept or Commit of a lower ballot
is answered with a Nack, never with silence; any other message of a higher ballot (a Nack, a Learn)
raises the promise as well: to have promised a ballot and to be bound to its owner are one fact,
wherever it came from (PMS §2.2).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from replog.engine import EngineSetup
from replog.errors import InvariantViolated, NotLeader, SchemaError
from replog.leases import Faith
from replog.quorum import QuorumSystem, Threshold, Without
from replog.reads import Reads
from replog.types import (
    NO_NODE,
    Entry,
    EntryId,
    EntryKind,
    HardState,
    LogIndex,
    NodeId,
    ReadIndex,
    Ready,
    Role,
    SoftState,
    Status,
    Term,
    Voter,
)
from replog_multipaxos import acceptor, election, learner, reading
from replog_multipaxos import leader as leading
from replog_multipaxos.ballot import next_ballot, owner_of
from replog_multipaxos.indexes import IndexSet
from replog_multipaxos.messages import (
    Accept,
    Accepted,
    Commit,
    Learn,
    LearnRequest,
    Message,
    Nack,
    Prepare,
    Promise,
    TakeOver,
    Trimmed,
)
from replog_multipaxos.options import MultiPaxosOptions
from replog_multipaxos.slots import Slots
from replog_multipaxos.table import TABLE


class MultiPaxos:
    """One node's proposer, acceptor and learner (PMS §2.4, §3)."""

    __slots__ = (
        "_after_sync",
        "_handed_index",
        "_hint_written",
        "_is_hard_state_new",
        "_messages",
        "_phase1",
        "_phase2",
        "_reported",
        "ask_count",
        "attempt",
        "candidacy",
        "chosen",
        "commit_index",
        "durable",
        "election_elapsed",
        "election_ticks",
        "epoch",
        "failed_count",
        "faith",
        "hold_left",
        "leader",
        "leader_id",
        "learner_ids",
        "learners",
        "nacked_ballot",
        "node_id",
        "options",
        "peer_ids",
        "phase1_quorum",
        "phase2_quorum",
        "reads",
        "role",
        "setup",
        "silent_ticks",
        "slots",
        "stuck_index",
        "term",
        "waiting_bytes",
        "wanted_index",
    )

    def __init__(self, setup: EngineSetup) -> None:
        assert isinstance(setup.options, MultiPaxosOptions)
        self.setup, self.options = setup, setup.options
        self.node_id, self.epoch = setup.node_id, setup.epoch
        voter_ids = setup.epoch.voter_ids
        self.peer_ids = tuple(peer for peer in voter_ids if peer != setup.node_id)
        assert len(self.peer_ids) + 1 == len(voter_ids), "the node is not a voter"
        # The sizes come from the epoch's record, never from a node's own options: two nodes with
        # two files would choose two values.
        agreed = dict(setup.epoch.agreed)
        majority = len(voter_ids) // 2 + 1
        self._phase1 = Threshold(voter_ids, agreed.get("phase1_quorum", majority))
        self._phase2 = Threshold(voter_ids, agreed.get("phase2_quorum", majority))
        self.learners: tuple[Voter, ...] = ()
        self.learner_ids: tuple[NodeId, ...] = ()
        self.phase1_quorum: QuorumSystem = self._phase1
        self.phase2_quorum: QuorumSystem = self._phase2
        self.term: Term = setup.hard_state.term
        """The promised ballot; may not be durable yet."""
        base_index = setup.epoch.start_index - 1
        known_index = setup.hard_state.commit_hint
        cache_bytes_max = setup.limits.log_cache_bytes_max
        self.slots = Slots(base_index, setup.log, self.term, known_index, cache_bytes_max)
        if setup.snapshot.index > max(self.slots.base_index, known_index):
            # It may have come from elsewhere, shortly before the process ended; what we voted for
            # in its slots need not be what was chosen.
            self.slots.install(setup.snapshot)
        known_index = max(known_index, setup.snapshot.index, setup.applied_index)
        self.commit_index: LogIndex = max(self.slots.base_index, known_index)
        """Every slot up to here is known as chosen, and its value is here."""
        self.chosen = IndexSet()
        """Slots above it that are known as chosen too, with the values here."""
        self.role = Role.FOLLOWER
        self.leader_id: NodeId = NO_NODE
        self.leader: leading.Leader | None = None
        """The variables of our leadership; ``None`` in every other role."""
        self.candidacy: election.Candidacy | None = None
        """The variables of our (pre-)candidacy; ``None`` in every other role."""
        self.attempt = 0
        """Rounds begun since the ballot last changed or a leader was last heard."""
        self.failed_count = 0
        """Rounds that a Nack ended since a leader was last heard."""
        self.nacked_ballot: Term = 0
        """The highest of our ballots that a Nack ended."""
        self.election_elapsed = 0
        """Ticks since a leader was heard, a promise was given, or a round was begun."""
        self.silent_ticks = 0
        """Ticks since the leader was last heard."""
        self.hold_left = 0
        """Ticks for which another's phase 1 is left undisturbed."""
        self.ask_count = 0
        """Requests for chosen values so far: each goes to another node than the last."""
        self.stuck_index: LogIndex = -1
        """The commit index at the last heartbeat that told of more; -1: it told of no more."""
        self.election_ticks = 0
        election.draw_election_ticks(self)
        self.durable = setup.hard_state
        self._hint_written = setup.hard_state.commit_hint
        self._is_hard_state_new = False
        self._handed_index: LogIndex = max(self.slots.base_index, setup.applied_index)
        """Everything up to here was handed out to be applied."""
        self.wanted_index = self.waiting_bytes = 0
        """Some node trimmed everything up to here, of which we lacked something; meanwhile
        ``waiting_bytes`` were taken in behind it."""
        self.reads = Reads(setup.nonce, self.options.heartbeat_ticks, setup.limits)
        self.faith = Faith(self.options.lease_terms(setup.epoch), setup.hard_state.term)
        self._messages: list[Message] = []
        self._after_sync: list[Message] = []
        self.set_learners(setup.learners)
        self._reported = self.soft_state

    @property
    def soft_state(self) -> SoftState:
        """The role and the known leader, as of now."""
        return SoftState(self.role, self.leader_id)

    # -- messages and the fence --

    def step(self, message: object) -> None:
        """Take one message: first the fence, then the table."""
        assert isinstance(message, Message)
        if message.epoch != self.epoch.number or message.sender not in self.peer_ids:
            return
        if message.term != self.term and not self._admit_ballot(message):
            return
        TABLE[self.role][type(message)](self, message)

    def _admit_ballot(self, message: Message) -> bool:
        """Apply the fence to a message of another ballot than the promised; whether to go on."""
        if isinstance(message, Prepare | Accept | Commit):
            self.check_owner(message)
            if message.term < self.term:
                self.refuse(message.sender, message.term)
                return False
            if isinstance(message, Prepare):
                if message.pre:
                    return True  # binds nobody, so it raises nothing
                if self.faith.refuses(message.ordered_in):
                    self.refuse(message.sender, message.term)
                    return False  # neither the ballot nor a promise
        elif message.term < self.term:
            # A fact stays one, a request for facts can be met, and a Nack may refuse a round that
            # asks for a ballot to come; every other answer is to a ballot that is over.
            return isinstance(message, Learn | LearnRequest | Nack | Trimmed)
        elif isinstance(message, Promise) and message.pre:
            return True  # the ballot that we asked about, in which nobody is yet
        self.update_term(message.term)
        return True

    def check_owner(self, message: Prepare | Accept | Commit | TakeOver) -> None:
        """Only its owner acts at a ballot; raises :class:`~replog.errors.SchemaError`."""
        if owner_of(message.term) != message.sender:
            raise SchemaError(
                f"node {message.sender} acts at ballot {message.term}, which belongs to node "
                f"{owner_of(message.term)}"
            )

    def refuse(self, to: NodeId, rejected: Term) -> None:
        """Say which ballot we promised, and whom we follow."""
        leader_id = self.leader_id if self.hears_leader else NO_NODE
        self.send_stating_term(
            Nack(self.epoch.number, self.term, self.node_id, to, rejected, leader_id)
        )

    @property
    def hears_leader(self) -> bool:
        """Whether this node leads, or heard its leader within the shortest timeout."""
        if self.role is Role.LEADER:
            return True
        return self.leader_id != NO_NODE and self.silent_ticks < self.options.election_ticks_min

    def update_term(self, ballot: Term) -> None:
        """Promise a higher ballot, in every slot at once (PMS §2.2, P1a); a leader stops."""
        assert ballot > self.term
        self.term = ballot
        self.slots.enter_ballot()
        self._is_hard_state_new = True
        self.attempt = 0
        if self.role is Role.FOLLOWER:
            # Not a reset: only a leader's message or a Prepare puts an election off.
            self.leader_id = NO_NODE
            election.draw_election_ticks(self)
        else:
            self.become_follower(NO_NODE)

    # -- roles --

    def campaign(self) -> None:
        """Try to become leader; see the contract."""
        election.campaign(self)

    def become_follower(self, leader_id: NodeId) -> None:
        """Follow ``leader_id`` (or nobody yet)."""
        self.leave_role()
        self.role = Role.FOLLOWER
        self.leader_id = leader_id
        self.election_elapsed = 0
        election.draw_election_ticks(self)

    def leave_role(self) -> None:
        """The variables of a role die with it."""
        if self.leader is not None:
            reading.end_rounds(self, self.leader)
        self.leader = None
        self.candidacy = None

    def follow(self, leader_id: NodeId) -> None:
        """The owner of the promised ballot leads: elections are put off."""
        if self.role is not Role.FOLLOWER:
            self.become_follower(leader_id)
        self.leader_id = leader_id
        self.faith.hear_leader(self.term)
        self.attempt = self.failed_count = 0
        self.election_elapsed = self.silent_ticks = self.hold_left = 0

    @property
    def is_timed(self) -> bool:
        """Whether the cluster has leases; see the contract."""
        return self.faith.is_kept

    def observe_time(self, now_ns: int) -> None:
        """The clock shows ``now_ns``; see the contract."""
        self.faith.observe(now_ns)

    def tick(self) -> None:
        """One unit of time has passed."""
        self.reads.tick()
        if self.leader is not None:
            leading.tick(self, self.leader)
            return
        self.silent_ticks += 1
        if self.hold_left:
            self.hold_left -= 1
        election.tick(self)

    @property
    def next_ballot(self) -> Term:
        """The ballot of our next election: above every ballot that we have seen."""
        return next_ballot(self.term, self.node_id)

    # -- proposals and reads --

    def read(self, read_id: int, now_ns: int | None = None) -> None:
        """Find out where to read; begun at the next ``ready``.  See the contract."""
        if now_ns is None or not reading.read_by_lease(self, read_id, now_ns):
            self.reads.register(read_id)

    def propose(self, data: bytes, kind: EntryKind = EntryKind.COMMAND) -> Entry:
        """Propose one entry at the leader; see the contract."""
        (entry,) = self.propose_batch((data,), kind)
        return entry

    def propose_batch(self, datas: Sequence[bytes], kind: EntryKind) -> Sequence[Entry]:
        """Propose entries at the leader; see the contract."""
        leader = self.leader
        if leader is None:
            raise NotLeader(self.node_id, self.leader_id)
        if (
            leader.successor_id
            or leader.uncommitted_bytes > self.setup.limits.uncommitted_bytes_max
            or self.slots.last_index - self.commit_index >= self.options.open_slots_max
        ):
            leading.refuse_proposal(self, leader)
        return leading.propose_entries(self, leader, kind, datas)

    def transfer(self, to: NodeId) -> None:
        """Hand leadership to a peer; see the contract."""
        if self.leader is None:
            raise NotLeader(self.node_id, self.leader_id)
        leading.transfer(self, self.leader, to)

    # -- the one door out --

    def send(self, message: Message) -> None:
        """To leave at once: it binds nobody, or what it binds is durable."""
        self._messages.append(message)

    def send_after_sync(self, message: Message) -> None:
        """To leave when everything up to now is durable."""
        self._after_sync.append(message)

    def send_stating_term(self, message: Message) -> None:
        """To leave at once if the ballot that it states is on disk already."""
        is_durable = self.durable.term == self.term
        (self._messages if is_durable else self._after_sync).append(message)

    def acknowledge(self, message: Accepted) -> None:
        """Say after the sync what was accepted; one message stands for all of one Ready."""
        last = self._after_sync[-1] if self._after_sync else None
        if (
            isinstance(last, Accepted)
            and (last.term, last.to) == (message.term, message.to)
            and (merged := acceptor.merge_accepted(last, message)) is not None
        ):
            self._after_sync[-1] = merged
            return
        self._after_sync.append(message)

    def ready(self) -> Ready | None:
        """Everything that has come up since the last call, in the order of its duties."""
        committed = self._take_committed()
        if self.leader is not None:
            # Held back for as long as one Ready takes, not while a backlog is applied.
            is_notice_held = bool(committed) and self._handed_index == self.commit_index
            leading.send_proposals(self, self.leader, is_notice_held)
        reads: Sequence[ReadIndex] = ()
        if self.reads.open_count or not (self.leader is None or self.leader.rounds.is_idle):
            reads = reading.carry_on(self)
        base: EntryId | None = None
        entries: tuple[Entry, ...] = ()
        if self.slots.has_unsaved:
            base, entries = self.slots.take_unsaved()
        hard_state: HardState | None = None
        if self._is_hard_state_new or (entries and self.commit_index > self._hint_written):
            # The hint costs no write of its own: it rides with what is written anyway.
            self._is_hard_state_new = False
            self._hint_written = self.commit_index
            hard_state = HardState(
                self.epoch.number, self.term, owner_of(self.term), self.commit_index
            )
        soft_state: SoftState | None = None
        if self.role is not self._reported.role or self.leader_id != self._reported.leader_id:
            soft_state = self._reported = self.soft_state
        messages, self._messages = self._messages, []
        late, self._after_sync = self._after_sync, []
        ready = Ready(messages, hard_state, None, entries, late, committed, soft_state, base, reads)
        is_idle = not (messages or late or committed or soft_state or reads or ready.writes)
        return None if is_idle else ready

    def _take_committed(self) -> tuple[Entry, ...]:
        if self._handed_index == self.commit_index:
            return ()
        first = self._handed_index + 1
        last = min(self.commit_index, self._handed_index + self.setup.limits.apply_entries_max)
        self._handed_index = last
        committed = self.slots.slice(first, last)
        self.slots.release(committed)
        return committed

    def advance(self, ready: Ready) -> None:
        """The writes of ``ready`` are durable: count our own promise, or our own votes."""
        if ready.hard_state is not None:
            self.durable = ready.hard_state
        if ready.entries or ready.base is not None:
            self.slots.advance_durable()
        if ready.entries and self.leader is not None:
            leading.count_own_votes(self, self.leader, ready.entries)
        if self.candidacy is not None:
            election.maybe_lead(self)

    # -- learners: nodes that learn, and neither propose nor accept (PMS §2.3) --

    @property
    def is_learner(self) -> bool:
        """Whether this node follows without a vote."""
        return self.node_id in self.learner_ids

    def set_learners(self, learners: Sequence[Voter]) -> None:
        """These nodes count in no quorum; see the contract."""
        fresh = [learner.node_id for learner in learners if learner not in self.learners]
        self.learners = tuple(learners)
        self.learner_ids = lost = tuple(learner.node_id for learner in learners)
        self.phase1_quorum = Without(self._phase1, lost) if lost else self._phase1
        self.phase2_quorum = Without(self._phase2, lost) if lost else self._phase2
        if self.is_learner and self.role is not Role.FOLLOWER:
            self.become_follower(NO_NODE)
        if self.leader is not None:
            leading.forget_peers(self, self.leader, fresh)

    # -- snapshots --

    def entries(self, first: LogIndex, last: LogIndex, bytes_max: int) -> Sequence[Entry]:
        """What was handed out to be applied; see the contract."""
        assert first <= last <= self._handed_index
        return self.slots.applied(first, last, bytes_max)

    def snapshot_id(self, index: LogIndex) -> EntryId:
        """The name of a snapshot of everything up to ``index``; see the contract.

        It has no term: the votes for one value may be of different ballots.
        """
        assert self.slots.base_index <= index <= self._handed_index
        return EntryId(self.epoch.number, 0, index)

    def trim(self, upto: LogIndex) -> LogIndex:
        """Forget the slots up to ``upto``, which were applied and are in a durable snapshot; nobody
        can be told of them any more.

        Returns up to where that was done: an applied slot that is being proposed again is not on
        disk at the new ballot yet, and it and those behind it wait for another time.
        """
        assert upto <= self._handed_index, "trimmed beyond what was applied"
        upto = min(upto, self.slots.durable_index)
        if upto > self.slots.base_index:
            self.slots.trim(EntryId(self.epoch.number, 0, upto))
        return self.slots.base_index

    def observe_term(self, term: Term) -> None:
        """A fact is to come from a node that promised this ballot; see the contract."""
        if term > self.term:
            self.update_term(term)

    def install(self, last: EntryId) -> None:
        """Go on behind a snapshot; see the contract.  The votes behind it stay."""
        if last.index <= self.commit_index:
            # The slots hold as much; what was not handed out yet is in the machine now.
            self._handed_index = max(self._handed_index, last.index)
            return
        leader, slots = self.leader, self.slots
        if leader is not None:
            upto = min(last.index, slots.last_index)
            if self.commit_index < upto:
                leader.uncommitted_bytes -= slots.size_bytes(self.commit_index + 1, upto)
        slots.install(last)
        self.commit_index = self._handed_index = last.index
        self.chosen.remove(0, last.index)
        learner.advance_over_chosen(self)
        if self.candidacy is not None:
            election.maybe_lead(self)

    # -- for people, tests and the model checker --

    def status(self) -> Status:
        """A read-only picture."""
        progress = self.leader.progress if self.leader is not None else {}
        return Status(
            node_id=self.node_id,
            engine=self.epoch.engine,
            role=self.role,
            leader_id=self.leader_id,
            epoch=self.epoch.number,
            term=self.term,
            last_index=self.slots.last_index,
            durable_index=self.slots.durable_index,
            commit_index=self.commit_index,
            applied_index=self._handed_index,
            peers=tuple(peer.status(node_id) for node_id, peer in progress.items()),
            commit_quorum=self._phase2.size,
            election_quorum=self._phase1.size,
            base_index=self.slots.base_index,
            durable_term=self.durable.term,
            wanted_index=self.wanted_index if self.wanted_index > self.commit_index else 0,
            lease_until_ns=None if self.leader is None else self.leader.lease.until_ns,
        )

    def clone(self) -> MultiPaxos:
        """An independent copy with the same future."""
        copy: MultiPaxos = object.__new__(MultiPaxos)
        for name in self.__slots__:
            setattr(copy, name, getattr(self, name))
        copy.slots = self.slots.clone()
        copy.chosen, copy.reads = self.chosen.clone(), self.reads.clone()
        copy.faith = self.faith.clone()
        copy.leader = None if self.leader is None else self.leader.clone()
        copy.candidacy = None if self.candidacy is None else self.candidacy.clone()
        copy._messages = self._messages.copy()
        copy._after_sync = self._after_sync.copy()
        return copy

    def key(self) -> Hashable:
        """Equal for two engines of one node that behave alike from here on."""
        return (
            self.node_id,
            self.term,
            self.role.value,
            self.leader_id,
            self.commit_index,
            self.chosen.key(),
            self._handed_index,
            self.slots.key(),
            None if self.leader is None else self.leader.key(self.faith.now_ns),
            None if self.candidacy is None else self.candidacy.key(),
            (self.attempt, self.failed_count, self.nacked_ballot),
            (self.election_elapsed, self.election_ticks, self.faith.key()),
            (self.silent_ticks, self.hold_left, self.ask_count, self.stuck_index),
            (self.durable, self._is_hard_state_new, self._hint_written),
            (tuple(self._messages), tuple(self._after_sync)),
            (self._reported.role.value, self._reported.leader_id),
            (self.wanted_index, self.waiting_bytes, self.learners, self.reads.key()),
        )

    def check(self) -> None:
        """Assert what one node can see of itself."""
        slots = self.slots
        self._demand(self._handed_index <= self.commit_index, "applied beyond the commit index")
        self._demand(self.commit_index <= slots.last_index, "committed beyond the log")
        self._demand(slots.last_index == 0 or slots.durable.last <= slots.last_index, "durable")
        self._demand(slots.base_index <= self._handed_index, "trimmed beyond what was applied")
        self._demand(self.durable.term <= self.term, "a promise was taken back")
        is_joined = not self.chosen or not self.chosen.within(1, self.commit_index + 1)
        self._demand(is_joined, "a slot counts as chosen that is committed, or could be")
        is_leading = self.role is Role.LEADER
        self._demand(is_leading == (self.leader is not None), "leader variables without the role")
        is_asking = self.role in (Role.PRE_CANDIDATE, Role.CANDIDATE)
        self._demand(is_asking == (self.candidacy is not None), "candidacy without the role")
        if is_leading:
            self._demand(owner_of(self.term) == self.node_id, "leads at another's ballot")
            self._demand(self.durable.term == self.term, "leads at a ballot that is not durable")
            if self.commit_index < slots.last_index:
                reach = slots.held.reach(self.commit_index + 1)
                self._demand(reach == slots.last_index, "leads with an open slot not its own")

    def _demand(self, holds: bool, violation: str) -> None:
        if not holds:
            raise InvariantViolated(f"node {self.node_id} at ballot {self.term}: {violation}")
