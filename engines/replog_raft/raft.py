"""The Raft engine: the term rule, elections, and what every role shares.

The names are the paper's, the actions those of its TLA+ specification.  What a leader does is in
:mod:`replog_raft.leader`, what a follower does with entries in :mod:`replog_raft.follower`, how
votes are asked for, given and counted in :mod:`replog_raft.election`.

Three additions to the paper's basic algorithm belong together, because each alone has a hole:

* **Pre-vote** (thesis §9.6): an election begins with a round that raises no term, so a node that
  was cut off cannot depose a healthy leader with the high term that it counted up alone.
* **Check-quorum** (thesis §6.2): a leader that hears no quorum for an election timeout steps down,
  so that it does not hold back its clients or keep a part of the nodes faithful to it.
* **Stickiness** (thesis §4.2.3): who heard a leader within the shortest election timeout ignores
  requests for votes, so a partially connected node cannot disturb it either.

With them a message of a lower term must be answered, with the own term: silence would leave a node
in a higher term deaf for ever, since the leader would never learn of that term.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Final

from replog.engine import EngineSetup
from replog.errors import InvariantViolated, NotLeader
from replog.leases import Faith
from replog.quorum import Majority, QuorumSystem, Without
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
from replog_raft import election, reading
from replog_raft import follower as following
from replog_raft import leader as leading
from replog_raft.logview import LogView
from replog_raft.messages import (
    AppendEntries,
    AppendReply,
    Heartbeat,
    HeartbeatReply,
    InstallSnapshot,
    Message,
    ReadReply,
    ReadRequest,
    RequestVote,
    TimeoutNow,
    Vote,
)
from replog_raft.options import RaftOptions
from replog_raft.table import TABLE


class Raft:
    """One node's Raft (Raft figure 2)."""

    __slots__ = (
        "_after_sync",
        "_handed_index",
        "_messages",
        "_reported",
        "attempt",
        "commit_index",
        "durable",
        "election_elapsed",
        "election_ticks",
        "epoch",
        "faith",
        "is_hard_state_new",
        "leader",
        "leader_id",
        "learner_ids",
        "learners",
        "majority",
        "node_id",
        "options",
        "peer_ids",
        "quorum",
        "reads",
        "role",
        "setup",
        "term",
        "view",
        "voted_for",
        "votes",
        "wanted_index",
    )

    def __init__(self, setup: EngineSetup) -> None:
        assert isinstance(setup.options, RaftOptions)
        self.setup = setup
        self.options = setup.options
        self.node_id = setup.node_id
        self.epoch = setup.epoch
        self.majority = Majority(setup.epoch.voter_ids)
        self.learners: tuple[Voter, ...] = ()
        self.learner_ids: tuple[NodeId, ...] = ()
        self.quorum: QuorumSystem = self.majority
        self.peer_ids = tuple(peer for peer in setup.epoch.voter_ids if peer != setup.node_id)
        assert len(self.peer_ids) + 1 == len(setup.epoch.voters), "the node is not a voter"
        self.term: Term = setup.hard_state.term
        self.voted_for: NodeId = setup.hard_state.voted_for
        cache_bytes_max = setup.limits.log_cache_bytes_max
        self.view = LogView(setup.epoch.start_index - 1, setup.log, cache_bytes_max)
        snapshot = setup.snapshot
        if snapshot.index and self.view.term_at(snapshot.index) != snapshot.term:
            # It came from elsewhere, and the process ended before the log began behind it.
            self.view.install(snapshot)
        self.is_hard_state_new = snapshot.term > self.term
        if self.is_hard_state_new:
            # A new node was given the snapshot; it has voted in no term.
            self.term, self.voted_for = snapshot.term, NO_NODE
        self.commit_index: LogIndex = max(self.view.base_index, snapshot.index, setup.applied_index)
        assert self.commit_index <= self.view.last_index, "applied what the log never held"
        self.role = Role.FOLLOWER
        self.leader_id: NodeId = NO_NODE
        self.leader: leading.Leader | None = None
        """The variables of our leadership; ``None`` in every other role."""
        self.votes: dict[NodeId, bool] = {}
        """The answers to our (pre-)candidacy; empty in every other role."""
        self.attempt = 0
        """Elections begun since the term last changed or a leader was last heard."""
        self.election_elapsed = 0
        """Ticks since a leader was heard, a vote was given, or an election was begun."""
        self.election_ticks = 0
        election.draw_election_ticks(self)
        self.durable = setup.hard_state
        self._handed_index: LogIndex = max(self.view.base_index, setup.applied_index)
        """Everything up to here was handed out to be applied."""
        self.wanted_index: LogIndex = 0
        """A leader trimmed everything up to here, and we lacked some of it."""
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

    # -- messages and the term rule --

    def step(self, message: object) -> None:
        """Take one message: first the rule of terms, then the table."""
        assert isinstance(message, Message)
        if message.epoch != self.epoch.number or message.sender not in self.peer_ids:
            return
        if message.term != self.term and not self._admit_term(message):
            return
        _HANDLERS[self.role][type(message)](self, message)

    def _admit_term(self, message: Message) -> bool:
        """Apply the rule of terms (Raft §5.1) to a message of another term; whether to go on."""
        if message.term < self.term:
            if isinstance(message, RequestVote | AppendEntries | Heartbeat | InstallSnapshot):
                following.answer_with_term(self, message)
            return False
        if isinstance(message, RequestVote):
            if election.is_bound(self, message):
                return False  # thesis §4.2.3: neither the term nor a vote
            if message.pre:
                return True  # thesis §9.6: a pre-vote raises no term
        if isinstance(message, Vote) and message.pre and message.granted:
            return True  # the term that we asked about, in which nobody is yet
        self.update_term(message.term)
        return True

    @property
    def hears_leader(self) -> bool:
        if self.role is Role.LEADER:
            return True
        return self.leader_id != NO_NODE and self.election_elapsed < self.options.election_ticks_min

    def update_term(self, term: Term) -> None:
        """Enter a higher term as a follower without a vote (Raft §5.1)."""
        assert term > self.term
        self.term = term
        self.voted_for = NO_NODE
        self.is_hard_state_new = True
        self.attempt = 0
        if self.role is Role.FOLLOWER:
            # Not a reset: only a leader's message or a granted vote puts an election off.
            self.leader_id = NO_NODE
            election.draw_election_ticks(self)
        else:
            self.become_follower(NO_NODE)

    def ignore(self, message: Message) -> None:
        """A stale answer, or an order that does not apply to the role."""

    def refuse_second_leader(self, message: Message) -> None:
        """Two leaders in one term: an election was broken (Raft §5.2, Election Safety)."""
        raise InvariantViolated(
            f"node {message.sender} acts as leader in term {self.term}, in which node "
            f"{self.node_id} leads"
        )

    def handle_append_entries(self, message: AppendEntries) -> None:
        """See :func:`replog_raft.follower.handle_append_entries`."""
        following.handle_append_entries(self, message)

    def handle_heartbeat(self, message: Heartbeat) -> None:
        """See :func:`replog_raft.follower.handle_heartbeat`."""
        following.handle_heartbeat(self, message)

    def handle_install_snapshot(self, message: InstallSnapshot) -> None:
        """See :func:`replog_raft.follower.handle_install_snapshot`."""
        following.handle_install_snapshot(self, message)

    def handle_append_reply(self, message: AppendReply) -> None:
        """See :func:`replog_raft.leader.handle_append_reply`."""
        leading.handle_append_reply(self, message)

    def handle_heartbeat_reply(self, message: HeartbeatReply) -> None:
        """See :func:`replog_raft.leader.handle_heartbeat_reply`."""
        leading.handle_heartbeat_reply(self, message)

    def handle_request_vote(self, message: RequestVote) -> None:
        """See :func:`replog_raft.election.handle_request_vote`."""
        election.handle_request_vote(self, message)

    def handle_pre_vote_reply(self, message: Vote) -> None:
        """See :func:`replog_raft.election.handle_pre_vote_reply`."""
        election.handle_pre_vote_reply(self, message)

    def handle_vote_reply(self, message: Vote) -> None:
        """See :func:`replog_raft.election.handle_vote_reply`."""
        election.handle_vote_reply(self, message)

    def handle_read_request(self, message: ReadRequest) -> None:
        """See :func:`replog_raft.reading.handle_read_request`."""
        reading.handle_read_request(self, message)

    def handle_read_reply(self, message: ReadReply) -> None:
        """The leader of our term says where to read (thesis §6.4)."""
        self.reads.hear(message.nonce, message.index)

    # -- elections (Raft §5.2) --

    def campaign(self) -> None:
        """Try to become leader; see the contract."""
        election.campaign(self)

    def handle_timeout_now(self, message: TimeoutNow) -> None:
        """The leader hands over: begin an election at once, without a pre-vote (thesis §3.10)."""
        if not self.is_learner:
            election.start_election(self, transfer=True, ordered_in=self.term)

    def become_leader(self) -> None:
        self._leave_role()
        self.role = Role.LEADER
        self.leader_id = self.node_id
        self.leader = leading.start_leading(self)

    def become_follower(self, leader_id: NodeId) -> None:
        """Follow ``leader_id`` (or nobody yet) in the current term."""
        self._leave_role()
        self.role = Role.FOLLOWER
        self.leader_id = leader_id
        self.election_elapsed = 0
        election.draw_election_ticks(self)

    def _leave_role(self) -> None:
        if self.leader is not None:
            reading.end_rounds(self, self.leader)
        self.leader = None
        self.votes = {}

    def follow(self, leader_id: NodeId) -> None:
        """A message of the current term's leader came: elections are put off (Raft §5.2)."""
        if self.role is not Role.FOLLOWER:
            self.become_follower(leader_id)
        self.leader_id = leader_id
        self.faith.hear_leader(self.term)
        self.attempt = 0
        self.election_elapsed = 0

    # -- time --

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
        if election.is_vote_under_way(self):
            return
        self.election_elapsed += 1
        if not self.options.automatic_elections or self.is_learner:
            return
        if self.election_elapsed >= self.election_ticks:
            self.campaign()

    # -- proposals and reads --

    def read(self, read_id: int, now_ns: int | None = None) -> None:
        """Find out where to read; begun at the next ``ready``.  See the contract."""
        if now_ns is None or not reading.read_by_lease(self, read_id, now_ns):
            self.reads.register(read_id)

    def propose(self, data: bytes, kind: EntryKind = EntryKind.COMMAND) -> Entry:
        """Append one entry at the leader; see the contract."""
        (entry,) = self.propose_batch((data,), kind)
        return entry

    def propose_batch(self, datas: Sequence[bytes], kind: EntryKind) -> Sequence[Entry]:
        """Append entries at the leader; see the contract."""
        leader = self.leader
        if leader is None:
            raise NotLeader(self.node_id, self.leader_id)
        limits = self.setup.limits
        if leader.successor_id or leader.uncommitted_bytes > limits.uncommitted_bytes_max:
            leading.refuse_proposal(self, leader)
        return leading.append_entries(self, leader, kind, datas)

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
        """To leave at once if the term that it states is on disk already."""
        is_durable = self.durable.term == self.term
        (self._messages if is_durable else self._after_sync).append(message)

    def acknowledge(self, message: AppendReply) -> None:
        """Acknowledge entries after the sync; the highest of one Ready stands for all."""
        last = self._after_sync[-1] if self._after_sync else None
        if (
            isinstance(last, AppendReply)
            and last.accepted
            and (last.term, last.to) == (message.term, message.to)
            and last.match_index <= message.match_index
        ):
            self._after_sync[-1] = message
            return
        self._after_sync.append(message)

    def ready(self) -> Ready | None:
        """Everything that has come up since the last call, in the order of its duties."""
        committed = self._take_committed()
        if self.leader is not None:
            # Held back for as long as one Ready takes, not while a backlog is applied.
            is_notice_held = bool(committed) and self._handed_index == self.commit_index
            leading.send_appends(self, self.leader, is_notice_held)
        reads: Sequence[ReadIndex] = ()
        if self.reads.open_count or not (self.leader is None or self.leader.rounds.is_idle):
            reads = reading.carry_on(self)
        hard_state: HardState | None = None
        if self.is_hard_state_new:
            self.is_hard_state_new = False
            hard_state = HardState(self.epoch.number, self.term, self.voted_for)
        base: EntryId | None = None
        truncate_from: LogIndex | None = None
        entries: tuple[Entry, ...] = ()
        if self.view.has_unsaved:
            base, truncate_from, entries = self.view.take_unsaved()
        soft_state: SoftState | None = None
        if self.role is not self._reported.role or self.leader_id != self._reported.leader_id:
            soft_state = self._reported = self.soft_state
        messages, self._messages = self._messages, []
        late, self._after_sync = self._after_sync, []
        ready = Ready(
            messages, hard_state, truncate_from, entries, late, committed, soft_state, base, reads
        )
        is_idle = not (messages or late or committed or soft_state or reads or ready.writes)
        return None if is_idle else ready

    def _take_committed(self) -> tuple[Entry, ...]:
        if self._handed_index == self.commit_index:
            return ()
        first = self._handed_index + 1
        last = min(self.commit_index, self._handed_index + self.setup.limits.apply_entries_max)
        self._handed_index = last
        committed = self.view.slice(first, last)
        self.view.release(committed)
        return committed

    def advance(self, ready: Ready) -> None:
        """The writes of ``ready`` are durable: count our own vote, or our own copy."""
        if ready.hard_state is not None:
            self.durable = ready.hard_state
            if self.role is Role.CANDIDATE and self.durable.term == self.term:
                election.count_vote(self, self.node_id, granted=True)
        if ready.entries or ready.truncate_from is not None or ready.base is not None:
            self.view.advance_durable()
            if self.leader is not None:
                leading.advance_commit_index(self, self.leader)

    # -- learners (thesis §4.2.1) --

    @property
    def is_learner(self) -> bool:
        """Whether this node follows without a vote."""
        return self.node_id in self.learner_ids

    def set_learners(self, learners: Sequence[Voter]) -> None:
        """These nodes count in no quorum; see the contract."""
        fresh = [learner.node_id for learner in learners if learner not in self.learners]
        self.learners = tuple(learners)
        self.learner_ids = tuple(learner.node_id for learner in learners)
        self.quorum = Without(self.majority, self.learner_ids) if learners else self.majority
        if self.is_learner and self.role is not Role.FOLLOWER:
            self.become_follower(NO_NODE)
        if self.leader is not None:
            leading.forget_peers(self, self.leader, fresh)

    # -- snapshots (Raft §7) --

    def entries(self, first: LogIndex, last: LogIndex, bytes_max: int) -> Sequence[Entry]:
        """What was handed out to be applied; see the contract."""
        assert first <= last <= self._handed_index
        return self.view.applied(first, last, bytes_max)

    def snapshot_id(self, index: LogIndex) -> EntryId:
        """The name of a snapshot of everything up to ``index``; see the contract."""
        assert index <= self._handed_index
        term = self.view.term_at(index)
        assert term is not None, "below the base"
        return EntryId(self.epoch.number, term, index)

    def trim(self, upto: LogIndex) -> LogIndex:
        """Forget entries that a durable snapshot holds; see the contract."""
        assert upto <= self._handed_index, "trimmed beyond what was applied"
        upto = min(upto, self.view.durable_index)
        if upto > self.view.base_index:
            self.view.trim(upto, self.epoch.number)
        return self.view.base_index

    def observe_term(self, term: Term) -> None:
        """A fact is to come from a node of this term; see the contract."""
        if term > self.term:
            self.update_term(term)

    def install(self, last: EntryId) -> None:
        """Go on behind a snapshot; see the contract."""
        if last.index <= self.commit_index:
            # The log knows as much; what of it was not handed out yet is in the machine now.
            self._handed_index = max(self._handed_index, last.index)
            return
        if self.leader is not None:
            leading.forget_uncommitted(self, self.leader, last.index)
        self.view.install(last)
        self.commit_index = self._handed_index = last.index
        if self.role is Role.FOLLOWER and self.leader_id != NO_NODE:
            # Whoever leads our term holds everything that was ever committed (Raft §5.4.3).
            following.acknowledge_up_to(self, self.leader_id, last.index)

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
            last_index=self.view.last_index,
            durable_index=self.view.durable_index,
            commit_index=self.commit_index,
            applied_index=self._handed_index,
            peers=tuple(peer.status(node_id) for node_id, peer in progress.items()),
            commit_quorum=len(self.majority.voters) // 2 + 1,
            election_quorum=len(self.majority.voters) // 2 + 1,
            base_index=self.view.base_index,
            durable_term=self.durable.term,
            wanted_index=self.wanted_index if self.wanted_index > self.commit_index else 0,
            lease_until_ns=None if self.leader is None else self.leader.lease.until_ns,
        )

    def clone(self) -> Raft:
        """An independent copy with the same future."""
        copy: Raft = object.__new__(Raft)
        for name in self.__slots__:
            setattr(copy, name, getattr(self, name))
        copy.view = self.view.clone()
        copy.leader = None if self.leader is None else self.leader.clone()
        copy.votes, copy.reads = self.votes.copy(), self.reads.clone()
        copy.faith = self.faith.clone()
        copy._messages = self._messages.copy()
        copy._after_sync = self._after_sync.copy()
        return copy

    def key(self) -> Hashable:
        """Equal for two engines of one node that behave alike from here on."""
        return (
            self.node_id,
            self.term,
            self.voted_for,
            self.role.value,
            self.leader_id,
            self.commit_index,
            self._handed_index,
            self.view.key(),
            None if self.leader is None else self.leader.key(self.faith.now_ns),
            tuple(sorted(self.votes.items())),
            (self.attempt, self.election_elapsed, self.election_ticks, self.faith.key()),
            (self.durable, self.is_hard_state_new),
            (tuple(self._messages), tuple(self._after_sync)),
            (self._reported.role.value, self._reported.leader_id),
            (self.wanted_index, self.learners, self.reads.key()),
        )

    def check(self) -> None:
        """Assert what one node can see of itself (Raft figure 3)."""
        self._demand(self._handed_index <= self.commit_index, "applied beyond the commit index")
        self._demand(self.view.base_index <= self._handed_index, "trimmed beyond what was applied")
        self._demand(self.commit_index <= self.view.last_index, "committed beyond the log")
        self._demand(self.view.durable_index <= self.view.last_index, "durable beyond the log")
        self._demand(self.view.last_term <= self.term, "an entry of a term not yet entered")
        is_leading = self.role is Role.LEADER
        self._demand(is_leading == (self.leader is not None), "leader variables without the role")
        if is_leading:
            self._demand(self.voted_for == self.node_id, "leads without its own vote")
            self._demand(self.durable.term == self.term, "leads in a term that is not durable")

    def _demand(self, holds: bool, violation: str) -> None:
        if not holds:
            raise InvariantViolated(f"node {self.node_id} in term {self.term}: {violation}")


_HANDLERS: Final[dict[Role, dict[type, Callable[..., None]]]] = {
    role: {message: getattr(Raft, name) for message, name in row.items()}
    for role, row in TABLE.items()
}
