"""The follower's side of replication (Raft §5.3; figure 2, "AppendEntries RPC")."""

from __future__ import annotations

from dataclasses import replace

import pytest
from given import (
    LIMITS,
    append,
    entry,
    heartbeat,
    make_raft,
    only,
    settle,
    take,
    terms_of,
)

from replog.errors import InvariantViolated, SchemaError
from replog.types import LogIndex, Role, Term
from replog_raft.messages import AppendEntries, AppendReply, HeartbeatReply
from replog_raft.raft import Raft


def acknowledged(raft: Raft) -> list[LogIndex]:
    """What the follower acknowledges, once everything is on its disk."""
    return [reply.match_index for reply in only(AppendReply, settle(raft)) if reply.accepted]


# -- consistency check --


@pytest.mark.parametrize(
    ("prev_index", "prev_term", "matches"),
    [(0, 0, True), (1, 1, True), (2, 2, True), (2, 1, False), (1, 2, False), (3, 2, False)],
)
def test_check_previous_entry(prev_index: LogIndex, prev_term: Term, matches: bool) -> None:
    """Figure 2, step 2: Entries are taken iff the log holds ``prev_term`` at ``prev_index``; the
    place before the first entry always matches."""
    raft = make_raft((1, 2), term=3)
    raft.step(append(3, prev_index, prev_term))
    (reply,) = only(AppendReply, settle(raft))
    assert reply.accepted is matches
    assert reply.rejected_index == (0 if matches else prev_index)
    assert terms_of(raft) == (1, 2)


def test_check_previous_entry_at_epoch_start() -> None:
    """§5.3: What lies below the epoch is its common ground: it has term 0 and always matches."""
    raft = make_raft(start_index=11, term=3)
    raft.step(append(3, 10, 0, (3, 3)))
    assert acknowledged(raft) == [12]


def test_mismatch_stores_nothing() -> None:
    """§5.3: Entries behind a place that does not match are not stored and move no commit index."""
    raft = make_raft((1, 1), term=3)
    raft.step(append(3, 2, 2, (3, 3), commit=4))
    assert (terms_of(raft), raft.commit_index) == ((1, 1), 0)


# -- storing --


@pytest.mark.parametrize(
    ("log", "prev_index", "prev_term", "sent", "stored"),
    [
        ((1, 2, 2), 3, 2, (3,), (1, 2, 2, 3)),
        ((1, 2, 2), 1, 1, (3, 4), (1, 3, 4)),
        ((1, 2, 2), 0, 0, (3, 4), (3, 4)),
        ((1, 2, 2), 0, 0, (1,), (1, 2, 2)),
        ((1, 2, 2), 0, 0, (1, 2, 2, 4), (1, 2, 2, 4)),
        ((1, 2, 2), 2, 2, (3,), (1, 2, 3)),
        ((), 0, 0, (1, 3), (1, 3)),
    ],
)
def test_store_entries(
    log: tuple[Term, ...],
    prev_index: LogIndex,
    prev_term: Term,
    sent: tuple[Term, ...],
    stored: tuple[Term, ...],
) -> None:
    """Figure 2, steps 3 and 4: Entries that conflict are replaced with all that follow them, and
    what is missing is added."""
    raft = make_raft(log, term=4)
    raft.step(append(4, prev_index, prev_term, sent))
    assert terms_of(raft) == stored
    assert acknowledged(raft) == [prev_index + len(sent)]


def test_truncate_on_disk() -> None:
    """Figure 2, step 3: A conflict is voided on disk in the same write as what replaces it."""
    raft = make_raft((1, 1, 1), term=2)
    raft.step(append(2, 1, 1, (2,)))
    ready = take(raft)
    assert ready.truncate_from == 2
    assert [(stored.index, stored.term) for stored in ready.entries] == [(2, 2)]


def test_delayed_append_does_not_truncate() -> None:
    """Figure 2, step 3: A delayed shorter message finds no conflict, so what came after it stays:
    it may have been acknowledged."""
    raft = make_raft(term=1)
    raft.step(append(1, terms=(1, 1, 1, 1)))
    settle(raft)
    raft.step(append(1, terms=(1, 1)))
    ready = take(raft)
    assert not ready.writes
    assert terms_of(raft) == (1, 1, 1, 1)


def test_probe_does_not_truncate() -> None:
    """Figure 2, step 3: An empty message removes nothing behind the place that it matches at."""
    raft = make_raft((1, 1, 1), term=2)
    raft.step(append(2, 1, 1))
    assert terms_of(raft) == (1, 1, 1)
    assert acknowledged(raft) == [1]


def test_truncate_clips_write_under_way() -> None:
    """Figure 2, step 3: A write that a truncation overtook makes nothing durable of what replaced
    its entries."""
    raft = make_raft(term=1)
    raft.step(append(1, terms=(1, 1, 1)))
    first = take(raft)
    raft.step(append(2, 1, 1, (2, 2), sender=3))
    second = take(raft)
    raft.advance(first)
    assert raft.status().durable_index == 1
    raft.advance(second)
    assert raft.status().durable_index == 3


def test_replace_committed_entry_refused() -> None:
    """§5.4.3, State Machine Safety: An order to replace a committed entry stops the node."""
    raft = make_raft((1, 1), term=1)
    raft.step(append(1, 2, 1, commit=2))
    with pytest.raises(InvariantViolated, match="replace entry 2, which is committed"):
        raft.step(append(2, 1, 1, (2,), sender=3))


# -- committing --


@pytest.mark.parametrize(
    ("sent", "leader_commit", "committed"),
    [((2, 2), 3, 3), ((2, 2), 2, 2), ((2, 2), 9, 4), ((), 9, 2), ((2, 2), 0, 0)],
)
def test_commit_from_append(
    sent: tuple[Term, ...], leader_commit: LogIndex, committed: LogIndex
) -> None:
    """Figure 2, step 5: The commit index becomes min(leader_commit, last entry of the message)."""
    raft = make_raft((1, 1), term=2)
    raft.step(append(2, 2, 1, sent, commit=leader_commit))
    assert raft.commit_index == committed
    assert [done.index for done in take(raft).committed] == list(range(1, committed + 1))


def test_commit_only_verified() -> None:
    """Figure 2, step 5: Entries of a deposed leader behind the last verified one are not
    committed."""
    raft = make_raft((1, 1, 1, 1), term=2)
    raft.step(append(2, 1, 1, (1,), commit=4))
    assert raft.commit_index == 2


def test_commit_index_never_falls() -> None:
    """Figure 2: The commit index increases monotonically, whatever late messages say."""
    raft = make_raft((1, 1, 1), term=1)
    raft.step(append(1, 3, 1, commit=3))
    raft.step(append(1, 1, 1, commit=1))
    raft.step(heartbeat(1, 2))
    assert raft.commit_index == 3


def test_hand_out_committed_once() -> None:
    """Figure 2: Committed entries are handed out in order, each once, however many at a time."""
    raft = make_raft((1,) * 7, term=1, limits=replace(LIMITS, apply_entries_max=3))
    raft.step(append(1, 7, 1, commit=5))
    handed: list[LogIndex] = []
    while (ready := raft.ready()) is not None:
        assert len(ready.committed) <= 3
        handed += [done.index for done in ready.committed]
        raft.advance(ready)
        raft.step(heartbeat(1, 7, round_number=0))
    assert handed == [1, 2, 3, 4, 5, 6, 7]


def test_commit_from_heartbeat() -> None:
    """§5.2: A heartbeat tells the commit index too, and round 0 asks for no answer."""
    raft = make_raft((1, 1), term=1)
    raft.step(heartbeat(1, 2, round_number=0))
    ready = take(raft)
    assert [done.index for done in ready.committed] == [1, 2]
    assert not only(HeartbeatReply, [*ready.messages, *ready.messages_after_sync])


def test_commit_lost_entries_refused() -> None:
    """Figure 2: A node that is told to commit what it acknowledged and no longer has stops."""
    raft = make_raft((1,), term=1)
    with pytest.raises(InvariantViolated, match="its log ends at 1"):
        raft.step(heartbeat(1, 2))


# -- answering --


def test_acknowledge_after_sync() -> None:
    """§5.3: Entries are acknowledged only when they are on disk."""
    raft = make_raft(term=1)
    raft.step(append(1, terms=(1, 1)))
    ready = take(raft)
    assert [stored.index for stored in ready.entries] == [1, 2]
    assert not only(AppendReply, ready.messages)
    assert [reply.match_index for reply in only(AppendReply, ready.messages_after_sync)] == [2]


def test_acknowledge_duplicate_after_sync() -> None:
    """§5.3: The acknowledgement of a duplicate does not overtake the sync of the first."""
    raft = make_raft(term=1)
    raft.step(append(1, terms=(1, 1)))
    take(raft)
    raft.step(append(1, terms=(1, 1)))
    ready = take(raft)
    assert not ready.writes
    assert not ready.messages
    assert [reply.match_index for reply in only(AppendReply, ready.messages_after_sync)] == [2]


def test_acknowledge_what_was_verified() -> None:
    """§5.3: What stands behind the last verified entry is not acknowledged: it may be a deposed
    leader's."""
    raft = make_raft((1, 1, 1, 1), term=2)
    raft.step(append(2, 1, 1, (1,)))
    assert acknowledged(raft) == [2]


def test_acknowledge_highest() -> None:
    """§5.3: Of several acknowledgements in one Ready the highest goes out, also when a delayed
    message was the last."""
    raft = make_raft(term=1)
    raft.step(append(1, terms=(1,)))
    raft.step(append(1, 1, 1, (1, 1)))
    assert acknowledged(raft) == [3]
    raft.step(append(1, 3, 1, (1,)))
    raft.step(append(1, terms=(1,)))
    assert max(acknowledged(raft)) == 4


def test_acknowledge_each_leader() -> None:
    """§5.3: An acknowledgement to the leader of one term does not stand for one of the next."""
    raft = make_raft(term=1)
    raft.step(append(1, terms=(1,)))
    raft.step(append(2, 1, 1, (2,), sender=3))
    replies = only(AppendReply, settle(raft))
    assert [(reply.term, reply.to, reply.match_index) for reply in replies] == [
        (1, 2, 1),
        (2, 3, 2),
    ]


@pytest.mark.parametrize(
    ("log", "prev_index", "prev_term", "hint"),
    [
        ((1, 1), 5, 4, (2, 1)),
        ((1, 4, 4, 4, 6), 4, 2, (1, 1)),
        ((2, 2, 2), 3, 1, (0, 0)),
        ((1, 1, 2, 2, 5, 5), 6, 3, (4, 2)),
        ((), 4, 2, (0, 0)),
    ],
)
def test_reject_with_hint(
    log: tuple[Term, ...], prev_index: LogIndex, prev_term: Term, hint: tuple[LogIndex, Term]
) -> None:
    """§5.3: A rejection names the highest entry that may still match: the last one at or below
    ``prev_index`` whose term is at most ``prev_term``."""
    raft = make_raft(log, term=7)
    raft.step(append(7, prev_index, prev_term))
    (reply,) = only(AppendReply, settle(raft))
    assert not reply.accepted
    assert (reply.hint_index, reply.hint_term) == hint


def test_reject_at_once() -> None:
    """§5.3: A rejection promises nothing about entries, so it leaves at once in a durable term and
    after the sync in a new one."""
    raft = make_raft((1,), term=2)
    raft.step(append(2, 5, 2))
    assert [reply.accepted for reply in only(AppendReply, take(raft).messages)] == [False]
    raft.step(append(3, 5, 2))
    ready = take(raft)
    assert not ready.messages
    assert len(only(AppendReply, ready.messages_after_sync)) == 1


def test_append_makes_leader_known() -> None:
    """§5.1: A follower learns from the leader's messages who leads, a rejected one included."""
    raft = make_raft((1,), term=1)
    raft.step(append(2, 5, 2, sender=3))
    assert (raft.role, raft.leader_id) == (Role.FOLLOWER, 3)


# -- what no correct leader sends --


def sent(term: Term, prev_index: LogIndex, *entries: tuple[LogIndex, Term]) -> AppendEntries:
    """A message with exactly these entries."""
    return replace(
        append(term, prev_index, 1 if prev_index else 0),
        entries=tuple(entry(index, of_term) for index, of_term in entries),
    )


MALFORMED = {
    "gap_after_prev": sent(3, 1, (3, 3)),
    "not_after_prev": sent(3, 1, (1, 3)),
    "first_twice": sent(3, 1, (1, 3), (3, 3)),
    "gap_within": sent(3, 1, (2, 3), (4, 3)),
    "last_of_a_later_term": sent(3, 1, (2, 3), (3, 4)),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_append_refused(name: str) -> None:
    """§5.3: Entries that are not contiguous behind ``prev_index``, or of a later term than their
    leader's, are refused with a sentence, and nothing is stored."""
    raft = make_raft((1,), term=3)
    with pytest.raises(SchemaError, match="node 2 sent entries"):
        raft.step(MALFORMED[name])
    assert terms_of(raft) == (1,)


MALFORMED_WITHIN = {
    "first_of_a_later_term": sent(3, 1, (2, 9), (3, 3)),
    "terms_fall": sent(3, 1, (2, 3), (3, 2)),
    "term_below_prev": replace(append(3, 1, 2), entries=(entry(2, 1),)),
    "other_epoch": replace(append(3, 1, 1), entries=(replace(entry(2, 3), epoch=2),)),
}


@pytest.mark.parametrize("name", MALFORMED_WITHIN)
def test_malformed_append_within_refused(name: str) -> None:
    """§5.3: Entries whose terms fall or exceed the leader's, or of another epoch, are refused too:
    the search by terms relies on it."""
    raft = make_raft((2,) if name == "term_below_prev" else (1,), term=3)
    with pytest.raises(SchemaError):
        raft.step(MALFORMED_WITHIN[name])
