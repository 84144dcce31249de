"""The leader: replication, commitment, check-quorum and transfer (Raft §5.3, §5.4; thesis §3.10).

A :class:`Leader` holds the variables of one leadership and dies with it.  The engine that leads
(:class:`replog_raft.raft.Raft`) passes itself to the functions here; they write its commit index
and its outbox, and nothing else of it.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, NoReturn

from replog.errors import CallerError, Overloaded, SchemaError
from replog.leases import Lease, LeaseTerms
from replog.progress import Progress
from replog.reads import ReadRounds
from replog.types import (
    NO_NODE,
    Entry,
    EntryKind,
    LogIndex,
    NodeId,
    PeerState,
    new_entries,
)
from replog_raft.messages import (
    AppendEntries,
    AppendReply,
    Heartbeat,
    HeartbeatReply,
    InstallSnapshot,
    TimeoutNow,
)

if TYPE_CHECKING:
    from replog_raft.raft import Raft


class Leader:
    """The variables of one leadership."""

    __slots__ = (
        "first_index",
        "heartbeat_elapsed",
        "lease",
        "probed",
        "progress",
        "proposal_count",
        "quorum_elapsed",
        "round",
        "rounds",
        "successor_asked",
        "successor_elapsed",
        "successor_id",
        "uncommitted_bytes",
    )

    def __init__(self, first_index: LogIndex, terms: LeaseTerms) -> None:
        self.first_index = first_index
        """The index of the no-op with which this leadership began."""
        self.progress: dict[NodeId, Progress] = {}
        """The peers by id, ascending; without the leader itself."""
        self.heartbeat_elapsed = 0
        self.quorum_elapsed = 0
        self.round = 0
        """The number of the last round of heartbeats; never twice in one leadership."""
        self.rounds = ReadRounds()
        """The reads that wait for a round to be answered."""
        self.lease = Lease(terms)
        self.probed: list[NodeId] | None = None
        """Who answered since a round of reads began after the last tick's heartbeats, and is not
        asked again where it stands before the next ones; ``None``: no such round began."""
        self.proposal_count = 0
        """How many entries were proposed in this term: the sequence of their origins."""
        self.uncommitted_bytes = 0
        """Bytes of the bodies that were proposed here and are not committed yet."""
        self.successor_id: NodeId = NO_NODE
        """Whom leadership is being handed to."""
        self.successor_elapsed = 0
        self.successor_asked = False
        """Whether the successor was sent TimeoutNow."""

    def clone(self) -> Leader:
        """An independent copy."""
        copy: Leader = object.__new__(Leader)
        for name in self.__slots__:
            setattr(copy, name, getattr(self, name))
        copy.progress = {peer: progress.clone() for peer, progress in self.progress.items()}
        copy.rounds, copy.lease = self.rounds.clone(), self.lease.clone()
        copy.probed = None if self.probed is None else self.probed.copy()
        return copy

    def key(self, now_ns: int | None) -> Hashable:
        """Equal for two leaderships that go on alike, where the clock shows ``now_ns``."""
        return (
            tuple((peer, progress.key()) for peer, progress in self.progress.items()),
            self.first_index,
            self.heartbeat_elapsed,
            self.quorum_elapsed,
            self.round,
            self.rounds.key(),
            self.lease.key(now_ns),
            None if self.probed is None else tuple(sorted(self.probed)),
            self.proposal_count,
            self.uncommitted_bytes,
            self.successor_id,
            self.successor_elapsed,
            self.successor_asked,
        )


def start_leading(raft: Raft) -> Leader:
    """Begin a leadership: know nothing of the peers' logs, append a no-op.

    Without an entry of its own term a leader could never commit those of earlier terms
    (Raft §5.4.2), nor know what is committed (Raft §8).
    """
    leader = Leader(raft.view.last_index + 1, raft.options.lease_terms(raft.epoch))
    for peer in raft.peer_ids:
        # Raft §5.3: nextIndex starts at the index just after the last one in the leader's log.
        leader.progress[peer] = Progress(raft.view.last_index + 1, raft.setup.limits)
    append_entries(raft, leader, EntryKind.NOOP, (b"",))
    return leader


def forget_peers(raft: Raft, leader: Leader, peers: Sequence[NodeId]) -> None:
    """These peers have lost their disks, and what they acknowledged is on them no more.

    Each is sent the last entry, for only an answer shows where it stands, and a cluster without
    work has no other entry to send.
    """
    for peer in peers:
        if peer in leader.progress:
            leader.progress[peer] = Progress(raft.view.last_index, raft.setup.limits)
        if leader.successor_id == peer:
            leader.successor_id = NO_NODE


def append_entries(
    raft: Raft, leader: Leader, kind: EntryKind, datas: Sequence[bytes]
) -> tuple[Entry, ...]:
    """Append entries of the own term (Raft §5.3); replicated at the next ``ready``."""
    entries = new_entries(
        int(kind),
        raft.epoch.number,
        raft.term,
        first_index=raft.view.last_index + 1,
        first_sequence=leader.proposal_count + 1,
        datas=datas,
    )
    raft.view.extend(entries)
    leader.proposal_count += len(entries)
    leader.uncommitted_bytes += raft.view.size_bytes(entries[0].index, entries[-1].index)
    return entries


def refuse_proposal(raft: Raft, leader: Leader) -> NoReturn:
    """Say which limit, or which transfer, forbids a client's entry; nothing is proposed."""
    if leader.successor_id:
        raise Overloaded(
            f"node {raft.node_id} is handing leadership to node {leader.successor_id}; "
            "try again a little later"
        )
    raise Overloaded(
        f"node {raft.node_id} holds {leader.uncommitted_bytes} bytes of uncommitted entries, "
        f"above limits.uncommitted_bytes_max = {raft.setup.limits.uncommitted_bytes_max}; "
        "try again a little later"
    )


# -- time --


def tick(raft: Raft, leader: Leader) -> None:
    """Heartbeats, the quorum check, and the end of a transfer that takes too long."""
    options = raft.options
    leader.quorum_elapsed += 1
    if leader.quorum_elapsed >= options.election_ticks_min:
        leader.quorum_elapsed = 0
        if not is_quorum_active(raft, leader):
            # Thesis §6.2: a leader that hears no quorum may be deposed already, or alone.
            raft.become_follower(NO_NODE)
            return
    if leader.successor_id:
        leader.successor_elapsed += 1
        if leader.successor_elapsed >= options.election_ticks_min:
            # Thesis §3.10: after about an election timeout the transfer is off, writes resume.
            leader.successor_id = NO_NODE
    leader.heartbeat_elapsed += 1
    if leader.heartbeat_elapsed >= options.heartbeat_ticks:
        leader.heartbeat_elapsed = 0
        begin_round(raft, leader)
        leader.probed = None
        for peer, progress in leader.progress.items():
            send_heartbeat(raft, peer, progress, leader.round)


def begin_round(raft: Raft, leader: Leader) -> None:
    """Heartbeats of a new number are about to leave."""
    leader.round += 1
    leader.lease.begin_round(leader.round, raft.faith.now_ns)


def is_quorum_active(raft: Raft, leader: Leader) -> bool:
    """Whether a quorum was heard since the last check, which begins a new one."""
    active = [raft.node_id]
    for peer, progress in leader.progress.items():
        if progress.recently_active:
            active.append(peer)
        progress.recently_active = False
    return raft.quorum.is_quorum(active)


# -- what a leader sends --


def send_heartbeat(raft: Raft, peer: NodeId, progress: Progress, round_number: int) -> None:
    """Tell a peer that the leader lives and what it may commit of what it is known to hold."""
    commit_index = min(progress.match_index, raft.commit_index)
    progress.commit_sent = max(progress.commit_sent, commit_index)
    raft.send(
        Heartbeat(raft.epoch.number, raft.term, raft.node_id, peer, commit_index, round_number)
    )


def send_appends(raft: Raft, leader: Leader, is_notice_held: bool) -> None:
    """Send every peer what it lacks, as far as its window allows.

    ``is_notice_held``: entries are just being handed out to be applied; what is proposed when they
    are will carry the new commit index, so the bare notice waits for the next ``ready``.
    """
    view = raft.view
    for peer, progress in leader.progress.items():
        while progress.next_index <= view.last_index and not progress.pauses_below(
            view.first_held_index
        ):
            if progress.next_index <= view.base_index:
                progress.handle_trimmed()
                send_install(raft, peer)
                break
            send_entries(raft, peer, progress)
        if is_notice_held:
            continue
        if min(progress.match_index, raft.commit_index) > progress.commit_sent:
            send_heartbeat(raft, peer, progress, round_number=0)


def send_entries(raft: Raft, peer: NodeId, progress: Progress) -> None:
    """Send the entries from ``next_index`` on, one message full."""
    entries, size_bytes = raft.view.slice_within(
        progress.next_index, raft.setup.limits.message_bytes_max
    )
    send_append(raft, peer, progress, entries)
    progress.handle_sent(entries[-1].index, size_bytes)


def send_append(raft: Raft, peer: NodeId, progress: Progress, entries: tuple[Entry, ...]) -> None:
    """Send one AppendEntries that is checked against the entry before ``next_index``."""
    prev_index = progress.next_index - 1
    prev_term = raft.view.term_at(prev_index)
    assert prev_term is not None
    raft.send(
        AppendEntries(
            raft.epoch.number,
            raft.term,
            raft.node_id,
            peer,
            prev_index,
            prev_term,
            raft.commit_index,
            entries,
        )
    )
    progress.commit_sent = raft.commit_index


def send_install(raft: Raft, peer: NodeId) -> None:
    """Tell a peer that it needs a snapshot, and how far that must reach."""
    view = raft.view
    raft.send(
        InstallSnapshot(
            raft.epoch.number, raft.term, raft.node_id, peer, view.base_index, view.base_term
        )
    )


# -- what a leader hears --


def handle_append_reply(raft: Raft, message: AppendReply) -> None:
    """Move the peer's ``match_index`` on, or its ``next_index`` back (Raft §5.3)."""
    leader = raft.leader
    assert leader is not None
    progress = leader.progress[message.sender]
    progress.recently_active = True
    if not message.accepted:
        next_index = backed_up_index(raft, message)
        progress.handle_rejected(message.rejected_index, next_index)
        return
    if message.match_index > raft.view.last_index:
        raise SchemaError(
            f"node {message.sender} acknowledges entry {message.match_index} to the leader of term "
            f"{raft.term}, whose log ends at {raft.view.last_index}"
        )
    if progress.handle_accepted(message.match_index):
        advance_commit_index(raft, leader)
        maybe_ask_successor(raft, leader)


def backed_up_index(raft: Raft, message: AppendReply) -> LogIndex:
    """Where to try next after a rejection (Raft §5.3, the optimisation at its end).

    The follower named its highest entry whose term is not above the one that it was asked about;
    we go to our own highest entry whose term is not above that one's.  Each answer so rules out a
    whole term of one of the logs.
    """
    if not raft.options.conflict_hints:
        return message.rejected_index  # one entry back: rejected_index was next_index - 1
    if message.hint_index < raft.view.base_index:
        return raft.view.base_index  # it lacks what was trimmed
    return raft.view.last_index_at_most(message.hint_index, message.hint_term) + 1


def handle_heartbeat_reply(raft: Raft, message: HeartbeatReply) -> None:
    """The peer lives; if it lags, ask where it stands: something may have been lost.

    Once for each heartbeat of a tick: rounds of reads may be many, and what is merely on its way
    must not be asked for in each of them.
    """
    leader = raft.leader
    assert leader is not None
    progress = leader.progress[message.sender]
    progress.recently_active = True
    if message.round <= leader.round:
        # It was in our term, and in no higher one, after that round began (thesis §6.4).
        leader.rounds.confirm(message.sender, message.round)
        leader.lease.confirm(message.sender, message.round, raft.quorum, raft.node_id)
    if leader.probed is not None:
        if message.sender in leader.probed:
            return
        leader.probed.append(message.sender)
    progress.handle_heartbeat_answered()
    if progress.next_index <= raft.view.base_index:
        progress.handle_trimmed()
        send_install(raft, message.sender)
    elif progress.state is PeerState.REPLICATE and progress.next_index > progress.match_index + 1:
        # An empty message behind what was sent: a gap makes the follower reject it.
        send_append(raft, message.sender, progress, ())


def advance_commit_index(raft: Raft, leader: Leader) -> None:
    """Commit what a quorum holds durably, if it is of the own term (Raft §5.4.2, figure 8).

    The leader's own copy counts only up to what is on its disk; a quorum of others may be enough
    (thesis §10.2.1).
    """
    match: dict[NodeId, LogIndex] = {raft.node_id: raft.view.durable_index}
    for peer, progress in leader.progress.items():
        match[peer] = progress.match_index
    index = raft.quorum.committed_index(match)
    if index <= raft.commit_index or raft.view.term_at(index) != raft.term:
        return
    forget_uncommitted(raft, leader, index)
    raft.commit_index = index


def forget_uncommitted(raft: Raft, leader: Leader, index: LogIndex) -> None:
    """What was proposed in this leadership is committed up to ``index`` and counts no more."""
    own_index = max(raft.commit_index + 1, leader.first_index)
    if own_index <= index:
        leader.uncommitted_bytes -= raft.view.size_bytes(own_index, index)


# -- handing over (thesis §3.10) --


def transfer(raft: Raft, leader: Leader, to: NodeId) -> None:
    """Hand leadership to a peer: proposals stop, and once it holds the whole log it is asked to
    start an election."""
    if to == raft.node_id:
        return
    if to not in leader.progress or to in raft.learner_ids:
        raise CallerError(
            f"node {to} is no voter of the cluster; choose one of "
            f"{', '.join(str(peer) for peer in leader.progress if peer not in raft.learner_ids)}"
        )
    leader.successor_id = to
    leader.successor_elapsed = 0
    leader.successor_asked = False
    maybe_ask_successor(raft, leader)


def maybe_ask_successor(raft: Raft, leader: Leader) -> None:
    """Send TimeoutNow once the successor holds everything."""
    to = leader.successor_id
    if not to or leader.successor_asked:
        return
    if leader.progress[to].match_index == raft.view.last_index:
        leader.successor_asked = True
        leader.lease.end()  # the order may come at any time, and its votes pass all faith
        raft.send(TimeoutNow(raft.epoch.number, raft.term, raft.node_id, to))
