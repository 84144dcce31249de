"""Raft and snapshots (Raft §7): what is trimmed, who needs a snapshot, and what one leaves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from replog.engine import EngineSetup
from replog.limits import Limits
from replog.stored_log import HeldLog
from replog.testing.cluster import Cluster
from replog.testing.nodes import Outcome, Recorder
from replog.types import (
    NO_ENTRY,
    NO_NODE,
    Entry,
    EntryId,
    EntryKind,
    Epoch,
    HardState,
    PeerState,
    Ready,
    Role,
    Term,
    Voter,
    entry_body,
)
from replog_raft import PLUGIN, Raft, RaftOptions
from replog_raft.messages import (
    AppendEntries,
    AppendReply,
    HeartbeatReply,
    InstallSnapshot,
    RequestVote,
    Vote,
)

BY_HAND = RaftOptions(heartbeat_ticks=2, election_ticks_min=10, election_ticks_max=20)
TINY = Limits(trim_margin_entries=1)
ONE_AT_A_TIME = Limits(message_bytes_max=1, in_flight_messages_max=1)


def entry(index: int, term: Term) -> Entry:
    """The entry that the leader of ``term`` proposed at ``index``."""
    return Entry(1, index, term, entry_body(EntryKind.COMMAND, 1, term, index, b""))


def node(
    terms: Sequence[Term] = (),
    *,
    term: Term = 0,
    base: EntryId = NO_ENTRY,
    snapshot: EntryId = NO_ENTRY,
    applied_index: int = 0,
) -> Raft:
    """Node 1 as it starts from a log of ``terms`` behind a base."""
    entries = [entry(index, each) for index, each in enumerate(terms, base.index + 1)]
    return Raft(
        EngineSetup(
            node_id=1,
            epoch=Epoch(1, "raft", tuple(Voter(each, each) for each in (1, 2, 3)), 1),
            hard_state=HardState(1, max(term, *terms, 0), NO_NODE),
            log=HeldLog(entries, base),
            limits=ONE_AT_A_TIME,
            options=BY_HAND,
            seed=1,
            nonce=0,
            snapshot=snapshot,
            applied_index=applied_index,
        )
    )


def carried_out(raft: Raft) -> list[Ready]:
    """All that the engine wants done, done."""
    found: list[Ready] = []
    while (ready := raft.ready()) is not None:
        found.append(ready)
        raft.advance(ready)
    return found


def said(raft: Raft) -> list[object]:
    """Every message that leaves."""
    return [
        message
        for ready in carried_out(raft)
        for message in (*ready.messages, *ready.messages_after_sync)
    ]


def leader(terms: Sequence[Term] = (1, 1, 1, 1)) -> Raft:
    """Node 1, which leads in term 2; its no-op and all before it is committed by node 2."""
    raft = node(terms)
    raft.campaign()
    raft.step(Vote(1, 2, 2, 1, granted=True, pre=True))
    carried_out(raft)
    raft.step(Vote(1, 2, 2, 1, granted=True, pre=False))
    assert raft.role is Role.LEADER
    carried_out(raft)
    raft.step(AppendReply(1, 2, 2, 1, True, raft.view.last_index, 0, 0, 0))
    carried_out(raft)
    assert raft.commit_index == len(terms) + 1
    return raft


# -- trimming --


def test_trim_moves_the_base() -> None:
    """A trim forgets the entries, knows the term of the last one, and tells the disk."""
    raft = leader()
    assert raft.trim(3) == 3
    assert raft.status().base_index == 3
    assert raft.view.term_at(3) == 1
    assert raft.view.term_at(2) is None
    [ready] = carried_out(raft)
    assert ready.base == EntryId(1, 1, 3)
    assert ready.writes
    assert raft.ready() is None


def test_trim_keeps_what_is_not_durable() -> None:
    """What a quorum of others has and the own disk has not is committed and applied, and stays."""
    raft = leader()
    raft.propose(b"x")
    ready = raft.ready()
    assert ready is not None  # on its way to disk
    for peer in (2, 3):
        raft.step(AppendReply(1, 2, peer, 1, True, 6, 0, 0, 0))
    raft.ready()
    assert raft.commit_index == 6
    assert raft.trim(6) == 5


def test_trim_below_the_base_changes_nothing() -> None:
    """A trim says how far the log is trimmed, also where there is nothing left to trim."""
    raft = leader()
    raft.trim(3)
    carried_out(raft)
    assert raft.trim(2) == 3
    assert raft.ready() is None


def test_snapshot_is_named_by_its_last_entry() -> None:
    """The name has the term of the entry, which is the same on every node that applied it."""
    raft = leader()
    assert raft.snapshot_id(4) == EntryId(1, 1, 4)
    assert raft.snapshot_id(5) == EntryId(1, 2, 5)
    raft.trim(4)
    assert raft.snapshot_id(4) == EntryId(1, 1, 4)


# -- who needs a snapshot --


def test_peer_behind_the_base_is_told() -> None:
    """A peer that lacks what was trimmed gets no entries but word of how far it was, again with
    each answered heartbeat, until it holds something new."""
    raft = leader()
    raft.trim(3)
    carried_out(raft)
    raft.step(AppendReply(1, 2, 3, 1, False, 0, 4, 0, 0))
    told = [message for message in said(raft) if isinstance(message, InstallSnapshot)]
    assert told == [InstallSnapshot(1, 2, 1, 3, 3, 1)]
    assert raft.status().peers[1].state is PeerState.SNAPSHOT
    raft.propose(b"x")
    assert not [each for each in said(raft) if isinstance(each, AppendEntries) and each.to == 3]
    raft.step(HeartbeatReply(1, 2, 3, 1, 1))
    assert InstallSnapshot(1, 2, 1, 3, 3, 1) in said(raft)
    raft.step(AppendReply(1, 2, 3, 1, True, 3, 0, 0, 0))
    sent = [each for each in said(raft) if isinstance(each, AppendEntries) and each.to == 3]
    assert [each.index for message in sent for each in message.entries] == [4]
    assert raft.status().peers[1].state is PeerState.REPLICATE


def test_window_that_was_trimmed_away() -> None:
    """A peer whose window is full and whose next entry is trimmed meanwhile is told as well, when
    its heartbeat is answered; nothing is asked of a term that is not known any more."""
    raft = leader()
    raft.step(AppendReply(1, 2, 3, 1, False, 0, 4, 1, 1))
    raft.step(AppendReply(1, 2, 3, 1, True, 1, 0, 0, 0))
    carried_out(raft)
    status = raft.status().peers[1]
    assert (status.state, status.next_index) == (PeerState.REPLICATE, 3)
    raft.trim(4)
    raft.step(HeartbeatReply(1, 2, 3, 1, 1))
    assert InstallSnapshot(1, 2, 1, 3, 4, 1) in said(raft)


def test_follower_wants_a_snapshot() -> None:
    """A follower that lacks what its leader trimmed says how far a snapshot must reach."""
    raft = node([1], term=2)
    raft.step(InstallSnapshot(1, 2, 2, 1, 3, 1))
    assert raft.status().wanted_index == 3
    assert raft.leader_id == 2
    assert not [each for each in said(raft) if isinstance(each, AppendReply)]


@pytest.mark.parametrize(
    ("terms", "commit_index", "acknowledged"), [((1, 1, 1), 0, 3), ((1, 1, 1, 2), 4, 4)]
)
def test_follower_that_lacks_nothing_acknowledges(
    terms: Sequence[Term], commit_index: int, acknowledged: int
) -> None:
    """Whose log holds the last trimmed entry, or has committed as much, needs no snapshot."""
    raft = node(terms, term=2)
    if commit_index:
        raft.step(AppendEntries(1, 2, 2, 1, len(terms), terms[-1], commit_index, ()))
        carried_out(raft)
    last_term = 1 if not commit_index else 9
    raft.step(InstallSnapshot(1, 2, 2, 1, 3, last_term))
    assert raft.status().wanted_index == 0
    [reply] = [each for each in said(raft) if isinstance(each, AppendReply)]
    assert (reply.accepted, reply.match_index) == (True, acknowledged)


def test_notice_of_an_older_term_is_answered() -> None:
    """A deposed leader that says what it trimmed learns of the term."""
    raft = node([1], term=5)
    raft.step(InstallSnapshot(1, 4, 2, 1, 3, 1))
    assert raft.status().wanted_index == 0
    assert said(raft) == [HeartbeatReply(1, 5, 1, 2, round=0)]


# -- installing --


def test_install_forgets_another_history() -> None:
    """Where the last entry of the snapshot is not in the log, nothing of the log stays."""
    raft = node([1, 1, 2, 2, 2], term=4)
    raft.install(EntryId(1, 3, 4))
    assert (raft.view.base_index, raft.view.last_index, raft.view.last_term) == (4, 4, 3)
    assert (raft.commit_index, raft.status().applied_index) == (4, 4)
    [ready] = carried_out(raft)
    assert (ready.base, ready.truncate_from) == (EntryId(1, 3, 4), 5)
    assert ready.committed == ()


def test_install_keeps_what_follows() -> None:
    """Where the last entry is in the log, what is behind it may have been acknowledged, and stays
    (Raft §7)."""
    raft = node([1, 1, 2, 2, 2], term=4)
    raft.install(EntryId(1, 2, 4))
    assert (raft.view.base_index, raft.view.last_index, raft.view.last_term) == (4, 5, 2)
    [ready] = carried_out(raft)
    assert (ready.base, ready.truncate_from, ready.entries) == (EntryId(1, 2, 4), None, ())
    assert raft.view.slice(5, 5)[0].term == 2


def test_install_far_ahead() -> None:
    """A snapshot may reach far beyond the log; the log goes on behind it."""
    raft = node([1], term=3)
    raft.step(InstallSnapshot(1, 3, 2, 1, 9, 3))
    raft.install(EntryId(1, 3, 10))
    replies = [each for each in said(raft) if isinstance(each, AppendReply)]
    assert [(reply.to, reply.match_index) for reply in replies] == [(2, 10)]
    assert raft.status().wanted_index == 0
    raft.step(AppendEntries(1, 3, 2, 1, 10, 3, 11, (entry(11, 3),)))
    [*_, last] = carried_out(raft)
    assert [each.index for ready in (last,) for each in ready.committed] == [11]


def test_install_of_less_changes_nothing() -> None:
    """A snapshot of what is committed here already says nothing new."""
    raft = leader()
    before = raft.key()
    raft.install(EntryId(1, 1, 4))
    assert raft.key() == before


def test_install_ahead_of_what_was_handed_out() -> None:
    """What is committed and waits to be handed out is in the machine now: it is not handed out any
    more, and may be trimmed."""
    raft = node([1, 1, 1, 1], term=1)
    raft.step(AppendEntries(1, 1, 2, 1, 4, 1, 4, ()))
    assert (raft.commit_index, raft.status().applied_index) == (4, 0)
    raft.install(EntryId(1, 1, 3))
    assert raft.trim(3) == 3
    committed = [each.index for ready in carried_out(raft) for each in ready.committed]
    assert committed == [4]


def test_install_amid_a_write() -> None:
    """A write that was on its way when a snapshot replaced the log makes nothing durable that is
    not there any more."""
    raft = node([1, 1], term=2)
    raft.step(AppendEntries(1, 2, 2, 1, 2, 1, 0, (entry(3, 2), entry(4, 2), entry(5, 2))))
    written = raft.ready()
    assert written is not None
    raft.observe_term(3)
    raft.install(EntryId(1, 3, 4))
    raft.advance(written)
    assert (raft.view.durable_index, raft.view.last_index) == (4, 4)
    raft.check()


def test_install_at_a_leader() -> None:
    """A leader that hears of more than it knew to be committed counts it as such, once."""
    raft = node([1, 1])
    raft.campaign()
    raft.step(Vote(1, 2, 2, 1, granted=True, pre=True))
    carried_out(raft)
    raft.step(Vote(1, 2, 2, 1, granted=True, pre=False))
    raft.propose(b"x" * 100)
    carried_out(raft)
    assert raft.leader is not None
    held_bytes = raft.leader.uncommitted_bytes
    raft.install(EntryId(1, 2, 4))
    assert raft.role is Role.LEADER
    assert (held_bytes > 100, raft.leader.uncommitted_bytes) == (True, 0)


def test_observed_term_is_entered() -> None:
    """A fact of a higher term deposes, and the term is to be durable."""
    raft = leader()
    raft.observe_term(7)
    assert (raft.role, raft.term) == (Role.FOLLOWER, 7)
    assert raft.status().durable_term == 2
    carried_out(raft)
    assert raft.status().durable_term == 7
    raft.observe_term(3)
    assert raft.term == 7


# -- behind the base --


def test_late_append_below_the_base() -> None:
    """An append from before the base is acknowledged as far as is committed; none of it counts."""
    raft = node([1, 1, 1, 1], term=1)
    raft.step(AppendEntries(1, 1, 2, 1, 4, 1, 4, ()))
    carried_out(raft)
    raft.trim(3)
    carried_out(raft)
    raft.step(AppendEntries(1, 1, 2, 1, 1, 1, 4, (entry(2, 1), entry(3, 1), entry(4, 1))))
    [reply] = [each for each in said(raft) if isinstance(each, AppendReply)]
    assert (reply.accepted, reply.match_index) == (True, 4)
    assert raft.view.last_index == 4


def test_late_append_below_the_base_says_nothing_of_what_follows() -> None:
    """What a deposed leader left behind the commit index is not acknowledged by an append from
    before the base, which verifies none of it."""
    raft = node([1, 1, 1, 1, 2], term=3)
    raft.step(AppendEntries(1, 3, 2, 1, 4, 1, 4, ()))
    carried_out(raft)
    raft.trim(3)
    carried_out(raft)
    raft.step(AppendEntries(1, 3, 2, 1, 1, 1, 4, (entry(2, 1), entry(3, 1), entry(4, 1))))
    [reply] = [each for each in said(raft) if isinstance(each, AppendReply)]
    assert (reply.accepted, reply.match_index) == (True, 4)


def test_append_behind_the_base() -> None:
    """The entry in front of the first is compared by the term that the base remembers."""
    raft = node(term=3, base=EntryId(1, 2, 5), snapshot=EntryId(1, 2, 5), applied_index=5)
    raft.step(AppendEntries(1, 3, 2, 1, 5, 2, 0, (entry(6, 3),)))
    [reply] = [each for each in said(raft) if isinstance(each, AppendReply)]
    assert (reply.accepted, reply.match_index) == (True, 6)


def test_trimmed_log_wins_elections() -> None:
    """A log that begins behind a base is as up to date as its base says (Raft §5.4.1)."""
    raft = node(base=EntryId(1, 2, 5), snapshot=EntryId(1, 2, 5), applied_index=5, term=2)
    raft.step(
        RequestVote(1, 3, 2, 1, last_index=9, last_term=1, pre=False, transfer=False, ordered_in=0)
    )
    [vote] = [each for each in said(raft) if isinstance(each, Vote)]
    assert not vote.granted
    raft.step(
        RequestVote(1, 4, 3, 1, last_index=5, last_term=2, pre=False, transfer=False, ordered_in=0)
    )
    [vote] = [each for each in said(raft) if isinstance(each, Vote)]
    assert vote.granted


# -- starting --


def test_start_behind_a_snapshot_in_the_log() -> None:
    """What the machine was filled with is not handed out again, and counts as committed."""
    raft = node([1, 1, 1, 2], snapshot=EntryId(1, 1, 3), applied_index=3)
    assert (raft.commit_index, raft.status().applied_index, raft.view.base_index) == (3, 3, 0)
    assert carried_out(raft) == []


@pytest.mark.parametrize("terms", [[1, 1], [1, 1, 2, 2]])
def test_start_behind_a_snapshot_that_was_not_installed(terms: list[Term]) -> None:
    """A snapshot that came from elsewhere, shortly before a crash, is installed at the start."""
    raft = node(terms, term=3, snapshot=EntryId(1, 3, 3), applied_index=3)
    assert (raft.view.base_index, raft.view.last_index) == (3, 3)
    [ready] = carried_out(raft)
    assert ready.base == EntryId(1, 3, 3)


def test_start_of_a_machine_that_lags_its_snapshot() -> None:
    """A machine on its own disk may have come less far than the snapshot; it is given the rest."""
    raft = node([1, 1, 1, 2], snapshot=EntryId(1, 1, 3), applied_index=1)
    assert (raft.commit_index, raft.status().applied_index) == (3, 1)
    [ready] = carried_out(raft)
    assert [each.index for each in ready.committed] == [2, 3]


def test_clone_keeps_the_moved_base() -> None:
    """A clone tells its disk of the base as the original does, and what a node wants is part of
    what it does next."""
    raft = leader()
    raft.trim(3)
    clone = raft.clone()
    assert clone.key() == raft.key()
    assert [ready.base for ready in carried_out(clone)] == [EntryId(1, 1, 3)]
    assert clone.key() != raft.key()
    follower = node([1], term=2)
    other = follower.clone()
    other.wanted_index = 3
    assert other.key() != follower.key()


# -- whole clusters --


def test_laggard_is_filled_from_a_snapshot() -> None:
    """A node that lacks what the others trimmed gets a snapshot and then the rest, and its machine
    holds what all hold."""
    cluster = Cluster(PLUGIN, BY_HAND, limits=replace(TINY, snapshot_chunk_bytes=40))
    cluster.campaign(1)
    cluster.settle()
    cut = cluster.isolate(3)
    for at in range(12):
        cluster.propose(1, b"x%d" % at)
        cluster.settle()
    for node_id in (1, 2):
        cluster.take_snapshot(node_id)
    cluster.settle()
    cluster.tick()
    assert cluster.nodes[1].disk.base_index == 12
    cluster.mend(cut)
    last = cluster.propose(1, b"last")
    assert cluster.run_until(cluster.is_converged, 80)
    machines = [cluster.nodes[each].machine for each in (1, 3)]
    assert all(isinstance(machine, Recorder) for machine in machines)
    assert [getattr(machine, "payloads", None) for machine in machines] == [
        [*(b"x%d" % at for at in range(12)), b"last"]
    ] * 2
    assert last.outcome is Outcome.DONE
    assert sum(" install " in line for line in cluster.trace.lines()) == 1
    cluster.crash(3)
    cluster.restart(3)
    assert cluster.run_until(cluster.is_converged, 80)
