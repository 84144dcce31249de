"""The leader: phase 2, the window of open slots, what is lost, and the hand-over (PMS §2.2, §3).

A :class:`Leader` holds the variables of one leadership and dies with it.  Every slot above the
commit index was proposed by this leadership, at its ballot: what phase 1 found open first, then
what clients ask for.  The engine that leads passes itself to the functions here; they write its
commit index, its slots and its outbox, and nothing else of it.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, NoReturn

from replog.errors import CallerError, Overloaded, SchemaError
from replog.leases import Lease, LeaseTerms
from replog.progress import Progress
from replog.reads import ReadRounds
from replog.types import NO_NODE, Entry, EntryKind, LogIndex, NodeId, PeerState, new_entries
from replog_multipaxos import learner
from replog_multipaxos.indexes import IndexSet, Range
from replog_multipaxos.messages import (
    Accept,
    Accepted,
    Commit,
    CommitReply,
    Promise,
    TakeOver,
)

if TYPE_CHECKING:
    from replog_multipaxos.multipaxos import MultiPaxos


class Leader:
    """The variables of one leadership."""

    __slots__ = (
        "accepted",
        "first_open",
        "heartbeat_elapsed",
        "lease",
        "progress",
        "proposal_count",
        "quorum_elapsed",
        "recovered_index",
        "repeated_round",
        "round",
        "rounds",
        "successor_asked",
        "successor_elapsed",
        "successor_id",
        "uncommitted_bytes",
    )

    def __init__(self, first_open: LogIndex, recovered_index: LogIndex, terms: LeaseTerms) -> None:
        self.recovered_index = recovered_index
        """The last slot that phase 1 knew as chosen, found open, or filled: what was chosen at
        lower ballots is not behind it."""
        self.first_open = first_open
        """The first slot that this leadership proposes; those below are chosen, and told as facts.
        """
        self.progress: dict[NodeId, Progress] = {}
        """The peers by id, ascending.  ``match_index``: each slot up to there is accepted by the
        peer at our ballot, or known to it as chosen, and on its disk."""
        self.accepted: dict[NodeId, IndexSet] = {}
        """By peer, what it accepted at our ballot above its ``match_index``: behind a hole."""
        self.heartbeat_elapsed = 0
        self.quorum_elapsed = 0
        self.round = 0
        """The number of the last round of heartbeats; never twice in one leadership."""
        self.rounds = ReadRounds()
        """The reads that wait for a round to be answered."""
        self.lease = Lease(terms)
        self.repeated_round: dict[NodeId, int] = {}
        """By peer, the round in which something lost was last sent to it again."""
        self.proposal_count = 0
        """How many values originated here: the sequence of their origins."""
        self.uncommitted_bytes = 0
        """Bytes of the bodies that are proposed and not committed yet."""
        self.successor_id: NodeId = NO_NODE
        """Whom leadership is being handed to."""
        self.successor_elapsed = 0
        self.successor_asked = False
        """Whether the successor was sent TakeOver."""

    def clone(self) -> Leader:
        """An independent copy."""
        copy: Leader = object.__new__(Leader)
        for name in self.__slots__:
            setattr(copy, name, getattr(self, name))
        copy.progress = {peer: progress.clone() for peer, progress in self.progress.items()}
        copy.accepted = {peer: accepted.clone() for peer, accepted in self.accepted.items()}
        copy.rounds, copy.lease = self.rounds.clone(), self.lease.clone()
        copy.repeated_round = self.repeated_round.copy()
        return copy

    def key(self, now_ns: int | None) -> Hashable:
        """Equal for two leaderships that go on alike, where the clock shows ``now_ns``."""
        return (
            tuple((peer, progress.key()) for peer, progress in self.progress.items()),
            tuple((peer, accepted.key()) for peer, accepted in self.accepted.items()),
            tuple(self.repeated_round.items()),
            (self.first_open, self.recovered_index, self.rounds.key()),
            self.lease.key(now_ns),
            self.heartbeat_elapsed,
            self.quorum_elapsed,
            self.round,
            self.proposal_count,
            self.uncommitted_bytes,
            self.successor_id,
            self.successor_elapsed,
            self.successor_asked,
        )


def start_leading(engine: MultiPaxos, proposals: Sequence[Entry], noop_count: int) -> Leader:
    """Begin a leadership: propose what phase 1 found open, and say who leads.

    Nobody's position has to be searched for: who promised has told it, and is heard next; who did
    not tells it when it is first heard.
    """
    recovered_index = proposals[-1].index if proposals else engine.commit_index
    terms = engine.options.lease_terms(engine.epoch)
    leader = Leader(engine.commit_index + 1, recovered_index, terms)
    for peer in engine.peer_ids:
        know_nothing_of(engine, leader, peer)
    if proposals:
        engine.slots.put(proposals, held=True)
        leader.proposal_count = noop_count
        leader.uncommitted_bytes = sum([len(entry.body) for entry in proposals])
    return leader


def forget_peers(engine: MultiPaxos, leader: Leader, peers: Sequence[NodeId]) -> None:
    """These peers have lost their disks, and what they accepted is on them no more."""
    for peer in peers:
        if peer in leader.progress:
            know_nothing_of(engine, leader, peer)
        if leader.successor_id == peer:
            leader.successor_id = NO_NODE


def know_nothing_of(engine: MultiPaxos, leader: Leader, peer: NodeId) -> None:
    """Where a peer stands is not known: it says so when it is heard."""
    leader.progress[peer] = Progress(engine.epoch.start_index, engine.setup.limits)
    leader.accepted[peer] = IndexSet()
    leader.repeated_round[peer] = 0


def propose_entries(
    engine: MultiPaxos, leader: Leader, kind: EntryKind, datas: Sequence[bytes]
) -> tuple[Entry, ...]:
    """Propose new values behind the last slot; sent at the next ``ready``."""
    entries = new_entries(
        int(kind),
        engine.epoch.number,
        engine.term,
        first_index=engine.slots.last_index + 1,
        first_sequence=leader.proposal_count + 1,
        datas=datas,
    )
    engine.slots.put(entries, held=True)
    leader.proposal_count += len(entries)
    leader.uncommitted_bytes += engine.slots.size_bytes(entries[0].index, entries[-1].index)
    return entries


def refuse_proposal(engine: MultiPaxos, leader: Leader) -> NoReturn:
    """Say which limit, or which transfer, forbids a client's entry; nothing is proposed."""
    if leader.successor_id:
        raise Overloaded(
            f"node {engine.node_id} is handing leadership to node {leader.successor_id}; "
            "try again a little later"
        )
    open_count = engine.slots.last_index - engine.commit_index
    if open_count >= engine.options.open_slots_max:
        raise Overloaded(
            f"node {engine.node_id} has {open_count} open slots, the most that open_slots_max = "
            f"{engine.options.open_slots_max} allows; try again a little later"
        )
    raise Overloaded(
        f"node {engine.node_id} holds {leader.uncommitted_bytes} bytes of uncommitted entries, "
        f"above limits.uncommitted_bytes_max = {engine.setup.limits.uncommitted_bytes_max}; "
        "try again a little later"
    )


# -- time --


def tick(engine: MultiPaxos, leader: Leader) -> None:
    """Heartbeats, the quorum check, and the end of a hand-over that takes too long."""
    options = engine.options
    leader.quorum_elapsed += 1
    if leader.quorum_elapsed >= options.election_ticks_min:
        leader.quorum_elapsed = 0
        if not is_quorum_active(engine, leader):
            # A leader that hears no quorum can get nothing chosen; its clients should look on.
            engine.become_follower(NO_NODE)
            return
    if leader.successor_id:
        leader.successor_elapsed += 1
        if leader.successor_elapsed >= options.election_ticks_min:
            leader.successor_id = NO_NODE
    leader.heartbeat_elapsed += 1
    if leader.heartbeat_elapsed >= options.heartbeat_ticks:
        send_heartbeats(engine, leader)


def is_quorum_active(engine: MultiPaxos, leader: Leader) -> bool:
    """Whether a phase-2 quorum was heard since the last check, which begins a new one."""
    active = [engine.node_id]
    for peer, progress in leader.progress.items():
        if progress.recently_active:
            active.append(peer)
        progress.recently_active = False
    return engine.phase2_quorum.is_quorum(active)


# -- what a leader sends --


def send_heartbeats(engine: MultiPaxos, leader: Leader) -> None:
    """Say to all that the leader lives, and ask what did not arrive."""
    leader.heartbeat_elapsed = 0
    begin_round(engine, leader)
    for peer, progress in leader.progress.items():
        send_commit(engine, peer, progress, leader.round)


def begin_round(engine: MultiPaxos, leader: Leader) -> None:
    """Commits of a new number are about to leave."""
    leader.round += 1
    leader.lease.begin_round(leader.round, engine.faith.now_ns)


def send_commit(engine: MultiPaxos, peer: NodeId, progress: Progress, round_number: int) -> None:
    """Say how far the log is chosen; the peer judges which of its votes that speaks of."""
    progress.commit_sent = engine.commit_index
    is_known = progress.state is PeerState.REPLICATE
    engine.send(
        Commit(
            engine.epoch.number,
            engine.term,
            engine.node_id,
            peer,
            chosen_upto=engine.commit_index,
            sent_upto=progress.next_index - 1 if is_known else 0,
            round=round_number,
        )
    )


def send_proposals(engine: MultiPaxos, leader: Leader, is_notice_held: bool) -> None:
    """Send every peer what it lacks, as far as its window allows.

    ``is_notice_held``: entries are just being handed out to be applied; what is proposed when they
    are will carry the new commit index, so the bare notice waits for the next ``ready``.
    """
    last_index = engine.slots.last_index
    for peer, progress in leader.progress.items():
        if progress.state is not PeerState.REPLICATE:
            continue  # where it stands is not known: it says so when it answers a heartbeat
        while not progress.pauses_below(engine.slots.first_held_index):
            # What was trimmed no message can bring; the peer can vote behind it all the same.
            first = max(progress.next_index, engine.slots.base_index + 1)
            if first > last_index:
                break
            last = min(last_index, leader.first_open - 1) if first < leader.first_open else 0
            entries, size_bytes = engine.slots.slice_within(
                first, last or last_index, engine.setup.limits.message_bytes_max
            )
            send_entries(engine, leader, peer, entries)
            progress.handle_sent(entries[-1].index, size_bytes)
        if not is_notice_held and engine.commit_index > progress.commit_sent:
            send_commit(engine, peer, progress, round_number=0)


def send_entries(
    engine: MultiPaxos, leader: Leader, peer: NodeId, entries: tuple[Entry, ...]
) -> None:
    """Send slots of which the first is below ``first_open`` as facts, others as proposals."""
    if entries and entries[0].index < leader.first_open:
        learner.tell(engine, peer, entries)
        return
    leader.progress[peer].commit_sent = engine.commit_index
    engine.send(
        Accept(
            engine.epoch.number,
            engine.term,
            engine.node_id,
            peer,
            engine.commit_index,
            entries,
        )
    )


# -- what a leader hears --


def handle_late_promise(engine: MultiPaxos, message: Promise) -> None:
    """Too late to matter for what was proposed; it still says where the peer stands."""
    leader = engine.leader
    assert leader is not None
    if not message.pre:
        hear_position(engine, leader, message.sender, message.chosen_upto)


def hear_position(engine: MultiPaxos, leader: Leader, peer: NodeId, chosen_upto: LogIndex) -> None:
    """The peer durably holds every chosen value up to ``chosen_upto``.

    What it knows as chosen is chosen: where our proposal stands in such a slot, it is the chosen
    value (see ``learner.choose_held``).  That is a fact and counts as nobody's vote.
    """
    progress = leader.progress[peer]
    progress.recently_active = True
    if chosen_upto > engine.slots.last_index:
        raise SchemaError(
            f"node {peer} knows slots up to {chosen_upto} as chosen, but the leader of ballot "
            f"{engine.term} has proposed nothing behind {engine.slots.last_index}"
        )
    learner.choose_held(engine, chosen_upto)
    if progress.handle_accepted(max(chosen_upto, progress.match_index)):
        extend_match(leader, peer)


def extend_match(leader: Leader, peer: NodeId) -> None:
    """A hole of the peer was closed: what it accepted behind the hole joins on."""
    accepted, progress = leader.accepted[peer], leader.progress[peer]
    if accepted:
        reach = accepted.reach(progress.match_index + 1)
        progress.handle_accepted(reach)
        accepted.remove(0, reach)


def handle_accepted(engine: MultiPaxos, message: Accepted) -> None:
    """Count the peer's votes (PMS §2.2): per slot a set of nodes, all at this one ballot."""
    leader = engine.leader
    assert leader is not None
    peer = message.sender
    if message.ranges and message.ranges[-1][1] > engine.slots.last_index:
        raise SchemaError(
            f"node {peer} accepts slot {message.ranges[-1][1]} at ballot {engine.term}, whose "
            f"leader has proposed nothing behind {engine.slots.last_index}"
        )
    hear_position(engine, leader, peer, message.chosen_upto)
    progress, accepted = leader.progress[peer], leader.accepted[peer]
    fresh: list[Range] = []
    for first, last in message.ranges:
        match_index = progress.match_index
        if first > match_index + 1:
            fresh += accepted.gaps(first, last)
            accepted.add(first, last)
            progress.handle_apart(first, last)
        elif last > match_index:
            fresh.append((match_index + 1, last))
            progress.handle_accepted(last)
    extend_match(leader, peer)
    count_votes(engine, leader, fresh)
    maybe_ask_successor(engine, leader)


def count_own_votes(engine: MultiPaxos, leader: Leader, entries: Sequence[Entry]) -> None:
    """Our own votes for ``entries`` are on disk."""
    count_votes(engine, leader, ((entries[0].index, entries[-1].index),))


def count_votes(engine: MultiPaxos, leader: Leader, ranges: Sequence[Range]) -> None:
    """Commit what a phase-2 quorum has accepted at our ballot; ``ranges`` have got a new vote.

    Without holes it is enough to know how far each node has come.  Behind a hole every slot is
    counted by itself: it may be chosen before the slots in front of it.
    """
    first = engine.commit_index + 1
    reach: dict[NodeId, LogIndex] = {engine.node_id: engine.slots.durable.reach(first)}
    for peer, progress in leader.progress.items():
        if progress.match_index >= first:
            reach[peer] = progress.match_index
        else:
            reach[peer] = leader.accepted[peer].reach(first)
    index = engine.phase2_quorum.committed_index(reach)
    if index >= first:
        learner.advance_commit_index(engine, index)
    if any(leader.accepted.values()):
        choose_behind_holes(engine, leader, ranges)
    learner.advance_over_chosen(engine)


def choose_behind_holes(engine: MultiPaxos, leader: Leader, ranges: Sequence[Range]) -> None:
    """Find slots above the commit index that a quorum has accepted."""
    for first, last in ranges:
        for slot in range(max(first, engine.commit_index + 1), last + 1):
            if engine.phase2_quorum.is_quorum(voters_of(engine, leader, slot)):
                engine.chosen.add(slot, slot)


def voters_of(engine: MultiPaxos, leader: Leader, slot: LogIndex) -> list[NodeId]:
    """Who is known to have accepted our proposal in an open slot, durably."""
    voters = [engine.node_id] if slot in engine.slots.durable else []
    for peer, progress in leader.progress.items():
        if slot <= progress.match_index or slot in leader.accepted[peer]:
            voters.append(peer)
    return voters


def handle_commit_reply(engine: MultiPaxos, message: CommitReply) -> None:
    """The peer lives; send again what it says never arrived, and ask for lost answers."""
    leader = engine.leader
    assert leader is not None
    peer = message.sender
    progress = leader.progress[peer]
    hear_position(engine, leader, peer, message.chosen_upto)
    if message.round <= leader.round:
        # It had promised our ballot, and no higher one, after that round began.
        leader.rounds.confirm(peer, message.round)
        leader.lease.confirm(peer, message.round, engine.phase2_quorum, engine.node_id)
    # An answer to a round from before the last repetition cannot know of that.
    is_outdated = 0 < message.round <= leader.repeated_round[peer]
    if message.ranges and not is_outdated:
        repeat_lost(engine, leader, peer, message)
    if message.round and progress.match_index < min(message.sent_upto, progress.next_index - 1):
        # An empty Accept: tell again, once it is on disk, what you accepted.
        send_entries(engine, leader, peer, ())
    count_votes(engine, leader, ())
    maybe_ask_successor(engine, leader)


def repeat_lost(engine: MultiPaxos, leader: Leader, peer: NodeId, message: CommitReply) -> None:
    """Send again what was lost on the way to a peer.

    A hole moves ``next_index`` not at all; a lost end moves it back to where that begins, which the
    peer has said, so that the pipeline goes on from there.  At most a message full is sent per
    round, and nothing that was trimmed.
    """
    progress, base_index = leader.progress[peer], engine.slots.base_index
    ranges = message.ranges
    first, last = max(ranges[-1][0], base_index + 1), ranges[-1][1]
    is_end = last == message.sent_upto == progress.next_index - 1
    if is_end and progress.match_index < first <= last and first not in leader.accepted[peer]:
        progress.handle_tail_lost(first)
        leader.repeated_round[peer] = leader.round
        ranges = ranges[:-1]
    budget = engine.setup.limits.message_bytes_max
    for low, high in ranges:
        low = max(low, progress.match_index + 1, base_index + 1)
        high = min(high, progress.next_index - 1)
        if low < leader.first_open:
            high = min(high, leader.first_open - 1)
        if low > high or budget <= 0:
            continue
        entries, size_bytes = engine.slots.slice_within(low, high, budget)
        send_entries(engine, leader, peer, entries)
        leader.repeated_round[peer] = leader.round
        budget -= size_bytes


# -- handing over --


def transfer(engine: MultiPaxos, leader: Leader, to: NodeId) -> None:
    """Hand leadership to a peer: proposals stop, and once it holds everything it is asked to begin
    phase 1.  Anyone may lead, so waiting is not for safety: it saves the successor the fetching.
    """
    if to == engine.node_id:
        return
    if to not in leader.progress or to in engine.learner_ids:
        raise CallerError(
            f"node {to} is no voter of the cluster; choose one of "
            f"{', '.join(str(peer) for peer in leader.progress if peer not in engine.learner_ids)}"
        )
    leader.successor_id = to
    leader.successor_elapsed = 0
    leader.successor_asked = False
    maybe_ask_successor(engine, leader)


def maybe_ask_successor(engine: MultiPaxos, leader: Leader) -> None:
    """Send TakeOver once the successor holds everything."""
    to = leader.successor_id
    if not to or leader.successor_asked:
        return
    if leader.progress[to].match_index == engine.slots.last_index:
        leader.successor_asked = True
        leader.lease.end()  # the order may come at any time, and its promises pass all faith
        engine.send(TakeOver(engine.epoch.number, engine.term, engine.node_id, to))
