"""The follower: takes entries and commit notices from the leader of its term (Raft §5.3).

These functions are given the engine they act for; they write its log view and its outbox.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from replog.errors import InvariantViolated, SchemaError
from replog.types import Entry, LogIndex, NodeId
from replog_raft.messages import (
    AppendEntries,
    AppendReply,
    Heartbeat,
    HeartbeatReply,
    InstallSnapshot,
    RequestVote,
    Vote,
)

if TYPE_CHECKING:
    from replog_raft.raft import Raft


def answer_with_term(
    raft: Raft, message: RequestVote | AppendEntries | Heartbeat | InstallSnapshot
) -> None:
    """Let a node that is behind learn our term; states nothing else."""
    epoch, term, me, to = raft.epoch.number, raft.term, raft.node_id, message.sender
    if isinstance(message, RequestVote):
        raft.send_stating_term(Vote(epoch, term, me, to, granted=False, pre=message.pre))
    else:
        raft.send_stating_term(HeartbeatReply(epoch, term, me, to, round=0))


def handle_append_entries(raft: Raft, message: AppendEntries) -> None:
    """Take entries that follow on what we hold, or say where our log may still match."""
    check_entries(message)
    raft.follow(message.sender)
    if message.prev_index < raft.view.base_index:
        # Late: it was sent before we told how far we are.  What is up to the commit index is the
        # leader's as well, whose log holds all that was ever committed (Raft §5.4.3).
        acknowledge_up_to(raft, message.sender, raft.commit_index)
        return
    if raft.view.term_at(message.prev_index) != message.prev_term:
        reject_append(raft, message)
        return
    if message.entries:
        put_entries(raft, message.entries)
    verified_index = message.prev_index + len(message.entries)
    # Only what *this* message verified: behind it may stand a deposed leader's entries.
    advance_commit_index(raft, min(message.commit_index, verified_index))
    acknowledge_up_to(raft, message.sender, verified_index)


def check_entries(message: AppendEntries) -> None:
    """Refuse what no correct leader sends; indexes ascend already (:mod:`replog.entries`).

    Raises :class:`~replog.errors.SchemaError`.
    """
    entries = message.entries
    if not entries:
        return
    count = len(entries)
    terms = [entry.term for entry in entries]
    if (
        (entries[0].index, entries[-1].index)
        != (message.prev_index + 1, message.prev_index + count)
        or not message.prev_term <= terms[0] <= terms[-1] <= message.term
        or (terms[0] != terms[-1] and terms != sorted(terms))
        or [entry.epoch for entry in entries].count(message.epoch) != count
    ):
        raise SchemaError(
            f"node {message.sender} sent entries {entries[0].index} to {entries[-1].index} that "
            f"cannot follow index {message.prev_index} of term {message.prev_term} in the log of a "
            f"leader of term {message.term}"
        )


def put_entries(raft: Raft, entries: tuple[Entry, ...]) -> None:
    """Store the entries that we lack; truncate only at a real conflict (Raft §5.3, figure 2).

    A delayed message may hold a prefix of what we have: truncating behind it would drop entries
    that were acknowledged.
    """
    view = raft.view
    if entries[0].index == view.last_index + 1:
        view.extend(entries)
        return
    for at, entry in enumerate(entries):
        known_term = view.term_at(entry.index)
        if known_term == entry.term:
            continue
        if known_term is not None:
            if entry.index <= raft.commit_index:
                raise InvariantViolated(
                    f"node {raft.node_id} was told by the leader of term {raft.term} to replace "
                    f"entry {entry.index}, which is committed"
                )
            view.truncate(entry.index)
        view.extend(entries[at:])
        return


def acknowledge_up_to(raft: Raft, leader_id: NodeId, match_index: LogIndex) -> None:
    """Acknowledge after the sync; several acknowledgements in one Ready become the highest."""
    raft.acknowledge(
        AppendReply(
            raft.epoch.number,
            raft.term,
            raft.node_id,
            leader_id,
            accepted=True,
            match_index=match_index,
            rejected_index=0,
            hint_index=0,
            hint_term=0,
        )
    )


def reject_append(raft: Raft, message: AppendEntries) -> None:
    """Say that ``prev_index`` does not match, with a hint to go back by terms.

    The leader's terms up to ``prev_index`` are at most ``prev_term`` (terms never fall along a
    log), so nothing of ours with a higher term can match there.
    """
    hint_index = raft.view.last_index_at_most(message.prev_index, message.prev_term)
    hint_term = raft.view.term_at(hint_index)
    assert hint_term is not None
    raft.send_stating_term(
        AppendReply(
            raft.epoch.number,
            raft.term,
            raft.node_id,
            message.sender,
            accepted=False,
            match_index=0,
            rejected_index=message.prev_index,
            hint_index=hint_index,
            hint_term=hint_term,
        )
    )


def handle_install_snapshot(raft: Raft, message: InstallSnapshot) -> None:
    """The leader trimmed what we lack: a snapshot must come first, unless we lack it no more.

    Where our log holds the last entry that was trimmed, it holds all in front of it (Raft §5.3, Log
    Matching); and what is committed here the leader holds as well (Raft §5.4.3).
    """
    raft.follow(message.sender)
    if raft.view.term_at(message.last_index) == message.last_term:
        acknowledge_up_to(raft, message.sender, message.last_index)
    elif message.last_index <= raft.commit_index:
        acknowledge_up_to(raft, message.sender, raft.commit_index)
    else:
        raft.wanted_index = max(raft.wanted_index, message.last_index)


def handle_heartbeat(raft: Raft, message: Heartbeat) -> None:
    """The leader lives; it tells at most what it knows us to hold."""
    raft.follow(message.sender)
    advance_commit_index(raft, message.commit_index)
    if message.round:
        raft.send_stating_term(
            HeartbeatReply(
                raft.epoch.number, raft.term, raft.node_id, message.sender, message.round
            )
        )


def advance_commit_index(raft: Raft, index: LogIndex) -> None:
    """Move the commit index forward, never back (Raft figure 2, commitIndex)."""
    if index <= raft.commit_index:
        return
    if index > raft.view.last_index:
        raise InvariantViolated(
            f"node {raft.node_id} was told to commit entry {index}, but its log ends at "
            f"{raft.view.last_index}: it lost entries that it had acknowledged"
        )
    raft.commit_index = index
