"""Elections: the round that binds nobody, phase 1a, and the counting of promises (PMS §2.2, §3).

Four things keep proposers from interrupting each other for ever (PMS §2.4 leaves them to the
implementer): a round that binds nobody comes first, so that no ballot rises unless a quorum would
follow; each round that fails doubles the range from which timeouts are drawn; who promised somebody
something leaves that one in peace for 1.5 timeouts; and a leader that hears no quorum steps down.

A :class:`Candidacy` holds the variables of one round and dies with it.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING

from replog.errors import SchemaError
from replog.tail import HOLE
from replog.types import NO_NODE, Entry, EntryKind, LogIndex, NodeId, Role, Term, entry_body
from replog_multipaxos import leader as leading
from replog_multipaxos import learner
from replog_multipaxos.acceptor import check_same_value
from replog_multipaxos.ballot import owner_of
from replog_multipaxos.indexes import INDEX_MAX, IndexSet
from replog_multipaxos.messages import Nack, Prepare, Promise, TakeOver
from replog_multipaxos.slots import is_too_far

if TYPE_CHECKING:
    from replog_multipaxos.multipaxos import MultiPaxos


class Promised:
    """What one node's promise told so far."""

    __slots__ = ("chosen_upto", "covered", "trimmed_upto")

    def __init__(self) -> None:
        self.covered = IndexSet()
        """The slots that its pages cover."""
        self.trimmed_upto: LogIndex = 0
        self.chosen_upto: LogIndex = 0

    def covers_from(self, slot: LogIndex) -> bool:
        """Whether its pages cover every slot from ``slot`` on."""
        return self.covered.reach(slot) == INDEX_MAX

    def clone(self) -> Promised:
        """An independent copy."""
        copy = Promised()
        copy.covered = self.covered.clone()
        copy.trimmed_upto, copy.chosen_upto = self.trimmed_upto, self.chosen_upto
        return copy

    def key(self) -> Hashable:
        """Equal for equal promises."""
        return (self.covered.key(), self.trimmed_upto, self.chosen_upto)


class Candidacy:
    """The variables of one round, be it one that binds nobody or phase 1."""

    __slots__ = (
        "ballot",
        "elapsed",
        "ordered_in",
        "promised",
        "refused",
        "silent_heartbeats",
        "votes",
        "willing",
    )

    def __init__(self, ballot: Term, peer_ids: Sequence[NodeId], ordered_in: Term = 0) -> None:
        self.ballot = ballot
        self.ordered_in = ordered_in
        """The ballot whose owner asked for this; 0: nobody did."""
        self.willing: list[NodeId] = []
        """Who would promise; only in the round that binds nobody."""
        self.refused: list[NodeId] = []
        self.promised: dict[NodeId, Promised] = {}
        """What the peers promised; only in phase 1."""
        self.votes: dict[LogIndex, Entry] = {}
        """By slot, of what was told: the vote of the highest ballot."""
        self.elapsed = 0
        """Ticks since the last heartbeat, at which silent peers are asked again."""
        self.silent_heartbeats = dict.fromkeys(peer_ids, 0)
        """By peer, whole heartbeats since it was asked for something new; only in phase 1."""

    def clone(self) -> Candidacy:
        """An independent copy."""
        copy = Candidacy(self.ballot, (), self.ordered_in)
        copy.willing, copy.refused = self.willing.copy(), self.refused.copy()
        copy.promised = {peer: promised.clone() for peer, promised in self.promised.items()}
        copy.votes = self.votes.copy()
        copy.elapsed, copy.silent_heartbeats = self.elapsed, self.silent_heartbeats.copy()
        return copy

    def key(self) -> Hashable:
        """Equal for two rounds that go on alike."""
        return (
            (self.ballot, self.ordered_in),
            (self.elapsed, tuple(self.silent_heartbeats.items())),
            tuple(sorted(self.willing)),
            tuple(sorted(self.refused)),
            tuple(sorted((peer, promised.key()) for peer, promised in self.promised.items())),
            tuple(self.votes[slot] for slot in sorted(self.votes)),
        )


def draw_election_ticks(engine: MultiPaxos) -> None:
    """Draw the timeout of the next attempt."""
    engine.election_ticks = engine.options.election_ticks(
        engine.setup.seed, engine.node_id, engine.term, engine.attempt, engine.failed_count
    )


def tick(engine: MultiPaxos) -> None:
    """Ask again for promises that did not come, and begin anew after a timeout."""
    if is_own_promise_under_way(engine):
        return
    candidacy = engine.candidacy
    if candidacy is not None and engine.role is Role.CANDIDATE:
        candidacy.elapsed += 1
        if candidacy.elapsed >= engine.options.heartbeat_ticks:
            candidacy.elapsed = 0
            for peer in engine.peer_ids:
                maybe_prepare_again(engine, candidacy, peer)
            fetch_trimmed(engine, candidacy)
    engine.election_elapsed += 1
    if (
        engine.options.automatic_elections
        and engine.election_elapsed >= engine.election_ticks
        and not engine.hold_left
        and not engine.faith.refuses(ordered_in=0)
    ):
        if engine.role is Role.CANDIDATE:
            # A quorum was willing, and its promises take longer than we waited: pages on a slow
            # link.  Their votes are lost with the round, so the next one must wait longer.
            engine.failed_count += 1
        campaign(engine)


def is_own_promise_under_way(engine: MultiPaxos) -> bool:
    """Whether our own promise is on its way to disk, and our Prepares wait for it.

    Nobody can have answered yet; beginning anew would give a slow disk one more write per timeout,
    and no election would ever end.
    """
    return engine.role is Role.CANDIDATE and engine.durable.term != engine.term


def campaign(engine: MultiPaxos) -> None:
    """Begin an election; a leader has nothing to win.

    With a failure detector outside, who calls this knows better than the nodes' own timers: then
    nobody is asked whether he hears a leader.  Leases no detector breaks: there the round that
    binds nobody comes first all the same, or a leader would give way to a candidate to whom nobody
    else promises.  And who keeps faith does not campaign, for its own promise counts like any
    other; a candidate that hears a leader is none any more.
    """
    if engine.role is Role.LEADER or is_own_promise_under_way(engine) or engine.is_learner:
        return
    if engine.faith.refuses(ordered_in=0):
        return
    if not engine.options.automatic_elections and not engine.faith.is_kept:
        start_election(engine, ordered_in=0)
        return
    engine.attempt += 1
    ballot = engine.next_ballot
    begin_round(engine, Role.PRE_CANDIDATE, ballot)
    for peer in engine.peer_ids:
        engine.send(
            Prepare(
                engine.epoch.number,
                ballot,
                engine.node_id,
                peer,
                from_slot=engine.commit_index + 1,
                pre=True,
                ordered_in=0,
            )
        )
    count_willing(engine, engine.node_id)  # binds nobody, so nothing need be on disk


def begin_round(engine: MultiPaxos, role: Role, ballot: Term, ordered_in: Term = 0) -> None:
    """Ask for ``ballot``, in a role that asks."""
    engine.leave_role()
    engine.role = role
    engine.leader_id = NO_NODE
    engine.candidacy = Candidacy(ballot, engine.peer_ids, ordered_in)
    engine.election_elapsed = 0
    draw_election_ticks(engine)


def handle_pre_promise(engine: MultiPaxos, message: Promise) -> None:
    """Count a node that would promise."""
    assert engine.candidacy is not None
    if message.pre and message.term == engine.candidacy.ballot:
        count_willing(engine, message.sender)


def count_willing(engine: MultiPaxos, node_id: NodeId) -> None:
    """Begin phase 1 once a quorum would promise."""
    candidacy = engine.candidacy
    assert candidacy is not None
    if node_id not in candidacy.willing:
        candidacy.willing.append(node_id)
    if engine.phase1_quorum.is_quorum(candidacy.willing):
        start_election(engine, ordered_in=0)


def handle_nack(engine: MultiPaxos, message: Nack) -> None:
    """A ballot of ours is refused.  A higher ballot in the Nack has passed the fence already, so
    whatever we led or asked for is over; accepts on their way may still be chosen."""
    if owner_of(message.rejected) != engine.node_id:
        return
    if message.rejected < engine.term:
        # What the fence ended just now, or some time ago; each ballot is counted once.
        if message.rejected > engine.nacked_ballot:
            engine.nacked_ballot = message.rejected
            back_off(engine)
        return
    candidacy = engine.candidacy
    if engine.role is not Role.PRE_CANDIDATE or candidacy is None:
        return
    if message.rejected != candidacy.ballot or message.sender in candidacy.refused:
        return
    candidacy.refused.append(message.sender)
    if engine.phase1_quorum.is_blocked(candidacy.refused):
        # Whom the others follow is who leads, even if we cannot hear that node.
        is_ours = message.term == engine.term and message.leader_id != engine.node_id
        engine.become_follower(message.leader_id if is_ours else NO_NODE)
        back_off(engine)


def back_off(engine: MultiPaxos) -> None:
    """Wait longer before the next round, unless a leader is heard first."""
    if engine.leader is not None or engine.hears_leader:
        return
    engine.failed_count += 1
    draw_election_ticks(engine)


def handle_take_over(engine: MultiPaxos, message: TakeOver) -> None:
    """The leader hands over: begin phase 1 at once."""
    engine.check_owner(message)
    if not engine.is_learner:
        start_election(engine, ordered_in=engine.term)


def start_election(engine: MultiPaxos, ordered_in: Term) -> None:
    """Phase 1a: promise our own next ballot and ask the others, once that is on disk.

    After a crash the same ballot could otherwise be used twice, for two different values.
    """
    engine.update_term(engine.next_ballot)
    begin_round(engine, Role.CANDIDATE, engine.term, ordered_in)
    for peer in engine.peer_ids:
        engine.send_after_sync(prepare(engine, peer, engine.commit_index + 1, ordered_in))


def prepare(engine: MultiPaxos, to: NodeId, from_slot: LogIndex, ordered_in: Term) -> Prepare:
    """Ask for a promise at our ballot, and for the votes from a slot on."""
    epoch, ballot, me = engine.epoch.number, engine.term, engine.node_id
    return Prepare(epoch, ballot, me, to, from_slot, pre=False, ordered_in=ordered_in)


def prepare_rest(engine: MultiPaxos, candidacy: Candidacy, peer: NodeId) -> None:
    """Ask a peer for what its promise did not cover yet; only when our own is on disk.  What is
    known as chosen meanwhile it need not tell."""
    promised = candidacy.promised.get(peer)
    reach = engine.commit_index
    if promised is not None:
        reach = promised.covered.reach(reach + 1)
    if reach < INDEX_MAX:
        engine.send(prepare(engine, peer, reach + 1, candidacy.ordered_in))


def maybe_prepare_again(engine: MultiPaxos, candidacy: Candidacy, peer: NodeId) -> None:
    """A heartbeat has passed: ask again for a page that did not come in all that time.

    After one whole heartbeat, then after two more, four, and so on: a page may be under way on a
    slow link, and each that is told twice makes those behind it later.
    """
    silent_heartbeats = candidacy.silent_heartbeats[peer] + 1
    candidacy.silent_heartbeats[peer] = silent_heartbeats
    if silent_heartbeats > 0 and silent_heartbeats & (silent_heartbeats - 1) == 0:
        prepare_rest(engine, candidacy, peer)


def handle_promise(engine: MultiPaxos, message: Promise) -> None:
    """Take one page of a promise, ask for the next, or lead."""
    candidacy = engine.candidacy
    assert candidacy is not None
    if message.pre:
        return
    check_page(message)
    promised = candidacy.promised.setdefault(message.sender, Promised())
    promised.trimmed_upto = max(promised.trimmed_upto, message.trimmed_upto)
    promised.chosen_upto = max(promised.chosen_upto, message.chosen_upto)
    if is_too_far(message.entries, engine.commit_index):
        # Its votes cannot be taken in before a snapshot has been installed, so it does not count.
        fetch_trimmed(engine, candidacy)
        return
    facts: list[Entry] = []
    for vote in message.entries:
        if vote.index <= message.chosen_upto:
            facts.append(vote)
        known = candidacy.votes.get(vote.index, HOLE)
        if vote.term == known.term:
            check_same_value(engine, known, vote)
        elif vote.term > known.term:
            candidacy.votes[vote.index] = vote
    learner.take_facts(engine, facts)
    first, last = message.from_slot, message.upto_slot or INDEX_MAX
    is_news = bool(promised.covered.gaps(first, last))
    promised.covered.add(first, last)
    engine.election_elapsed = 0  # a long log takes many pages; that is no failure
    if promised.covers_from(engine.commit_index + 1):
        fetch_trimmed(engine, candidacy)
        maybe_lead(engine)
    elif is_news:
        # A page that was told twice would double all that follow it.
        candidacy.silent_heartbeats[message.sender] = -1
        prepare_rest(engine, candidacy, message.sender)


def check_page(message: Promise) -> None:
    """Refuse a page that contradicts itself; raises :class:`~replog.errors.SchemaError`."""
    entries, first, last = message.entries, message.from_slot, message.upto_slot or INDEX_MAX
    if (
        not 1 <= first <= last
        or (entries and not first <= entries[0].index <= entries[-1].index <= last)
        or any(entry.term > message.term or entry.epoch != message.epoch for entry in entries)
    ):
        raise SchemaError(
            f"node {message.sender} promises ballot {message.term} with votes that do not fit "
            f"slots {first} to {last} or that ballot"
        )


def fetch_trimmed(engine: MultiPaxos, candidacy: Candidacy) -> None:
    """Ask for what a node that promised has trimmed: silence about a slot never means empty."""
    trimmed_upto = max(
        [promised.trimmed_upto for promised in candidacy.promised.values()], default=0
    )
    if trimmed_upto > engine.commit_index:
        learner.ask(engine, engine.chosen.gaps(engine.commit_index + 1, trimmed_upto))


def maybe_lead(engine: MultiPaxos) -> None:
    """Lead once a quorum has promised every slot from ``from_slot`` on, our own promise on disk.

    A node that trimmed slots which we still lack does not count until we have fetched them; if
    nobody has them any more, the timeout begins phase 1 again, perhaps with another quorum.
    """
    candidacy = engine.candidacy
    if candidacy is None or engine.role is not Role.CANDIDATE:
        return
    if engine.durable.term != engine.term:
        return
    complete = [engine.node_id]
    for peer, promised in candidacy.promised.items():
        is_whole = promised.trimmed_upto <= engine.commit_index
        if is_whole and promised.covers_from(engine.commit_index + 1):
            complete.append(peer)
    if not engine.phase1_quorum.is_quorum(complete):
        return
    proposals, noop_count = open_proposals(engine, candidacy)
    engine.leave_role()
    engine.role = Role.LEADER
    engine.leader_id = engine.node_id
    engine.failed_count = engine.hold_left = 0
    engine.leader = leading.start_leading(engine, proposals, noop_count)
    for peer, promised in sorted(candidacy.promised.items()):
        leading.hear_position(engine, engine.leader, peer, promised.chosen_upto)
    leading.send_heartbeats(engine, engine.leader)


def open_proposals(engine: MultiPaxos, candidacy: Candidacy) -> tuple[list[Entry], int]:
    """What must be proposed in the slots that are not known as chosen, at our own ballot: the value
    of the highest ballot among the votes (PMS §2.2, P2c), else a no-op (PMS §3); and how many
    no-ops there are among them.
    """
    epoch, ballot, slots = engine.epoch.number, engine.term, engine.slots
    last_slot = max(slots.last_index, max(candidacy.votes, default=0))
    found: list[Entry] = []
    noop_count = 0
    for slot in range(engine.commit_index + 1, last_slot + 1):
        own, told = slots.at(slot), candidacy.votes.get(slot, HOLE)
        if own.term == told.term or slot in engine.chosen:
            check_agrees(engine, own, told)
        vote = told if told.term > own.term and slot not in engine.chosen else own
        body = vote.body
        if vote is HOLE:
            noop_count += 1
            body = entry_body(EntryKind.NOOP, epoch, ballot, noop_count, b"")
        found.append(Entry(epoch, slot, ballot, body))
    return found, noop_count


def check_agrees(engine: MultiPaxos, own: Entry, told: Entry) -> None:
    """Our own vote and the one that we were told cannot differ where one of them decides."""
    if told is not HOLE and own is not HOLE and told.term >= own.term:
        check_same_value(engine, own, told)
