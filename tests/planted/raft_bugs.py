"""Bugs to plant in the Raft engine; see ``shared_bugs.py``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
from shared_bugs import sent_at_once

from replog.engine import EngineSetup
from replog.errors import NotLeader
from replog.types import NO_NODE, Entry, EntryId, EntryKind, LogIndex, NodeId, Role, Term
from replog_raft import Raft, election, follower, leader
from replog_raft.leader import Leader
from replog_raft.logview import LogView
from replog_raft.messages import (
    AppendEntries,
    AppendReply,
    Heartbeat,
    HeartbeatReply,
    Message,
    RequestVote,
    Vote,
)
from replog_raft.raft import _HANDLERS

# -- what waits for a sync --


def vote_before_sync(patch: pytest.MonkeyPatch) -> None:
    """A vote is sent before it is on disk."""
    sent_at_once(patch, Raft, Vote)


def request_before_sync(patch: pytest.MonkeyPatch) -> None:
    """A candidate asks for votes before its own vote is on disk."""
    sent_at_once(patch, Raft, RequestVote)


def acknowledged_before_sync(patch: pytest.MonkeyPatch) -> None:
    """A follower acknowledges entries before they are on disk."""
    patch.setattr(Raft, "acknowledge", Raft.send)


def repeated_acknowledgement_before_sync(patch: pytest.MonkeyPatch) -> None:
    """What was acknowledged before is so again at once, though the first is not synced."""
    right = Raft.acknowledge

    def wrong(raft: Raft, message: AppendReply) -> None:
        (right if raft.view.has_unsaved else Raft.send)(raft, message)

    patch.setattr(Raft, "acknowledge", wrong)


def own_copy_counted_early(patch: pytest.MonkeyPatch) -> None:
    """A leader counts its own copy of an entry before its disk has it."""
    right = leader.advance_commit_index

    def wrong(raft: Raft, leading: Leader) -> None:
        durable_index = raft.view.durable_index
        raft.view.durable_index = raft.view.last_index
        right(raft, leading)
        raft.view.durable_index = durable_index

    patch.setattr(leader, "advance_commit_index", wrong)


# -- terms --


def term_beyond_the_last(patch: pytest.MonkeyPatch) -> None:
    """A candidate asks for the term above the last that fits on the wire."""
    patch.setattr(election, "check_not_in_last_term", lambda _: None)


def term_not_written(patch: pytest.MonkeyPatch) -> None:
    """A higher term is entered, and not made durable."""
    right = Raft.update_term

    def wrong(raft: Raft, term: Term) -> None:
        right(raft, term)
        raft.is_hard_state_new = False

    patch.setattr(Raft, "update_term", wrong)


def deposed_leader_obeyed(patch: pytest.MonkeyPatch) -> None:
    """A follower takes entries from the leader of an earlier term."""
    right = Raft._admit_term

    def wrong(raft: Raft, message: Message) -> bool:
        if isinstance(message, AppendEntries) and raft.role is Role.FOLLOWER:
            return message.term <= raft.term or right(raft, message)
        return right(raft, message)

    patch.setattr(Raft, "_admit_term", wrong)


def answers_raise_no_term(patch: pytest.MonkeyPatch) -> None:
    """A higher term in an answer to a leader is ignored."""
    right = Raft._admit_term

    def wrong(raft: Raft, message: Message) -> bool:
        return isinstance(message, AppendReply | HeartbeatReply) or right(raft, message)

    patch.setattr(Raft, "_admit_term", wrong)


# -- votes --


def answering_requests(
    patch: pytest.MonkeyPatch, wrong: Callable[[Raft, RequestVote], None]
) -> None:
    """Have another function answer requests for votes, in every role."""
    for row in _HANDLERS.values():
        patch.setitem(row, RequestVote, wrong)


def vote_regardless_of_log(patch: pytest.MonkeyPatch) -> None:
    """A node votes for a candidate whose log is behind its own."""
    right = election.handle_request_vote
    answering_requests(
        patch, lambda raft, message: right(raft, replace(message, last_term=1 << 40))
    )


def longer_log_preferred(patch: pytest.MonkeyPatch) -> None:
    """The longer log counts as more up to date, whatever the terms (Raft §5.4.1)."""
    right = election.handle_request_vote

    def wrong(raft: Raft, message: RequestVote) -> None:
        right(raft, replace(message, last_term=raft.view.last_term))

    answering_requests(patch, wrong)


def second_vote(patch: pytest.MonkeyPatch) -> None:
    """A follower votes for whoever asks, though it voted in this term."""
    right = election.handle_request_vote

    def wrong(raft: Raft, message: RequestVote) -> None:
        if raft.role is Role.FOLLOWER:
            raft.voted_for = NO_NODE
        right(raft, message)

    answering_requests(patch, wrong)


def vote_forgotten_by_restart(patch: pytest.MonkeyPatch) -> None:
    """A restarted node remembers its term but not its vote."""
    right = Raft.__init__

    def wrong(raft: Raft, setup: EngineSetup) -> None:
        right(raft, setup)
        raft.voted_for = NO_NODE

    patch.setattr(Raft, "__init__", wrong)


def repeated_vote_counted(patch: pytest.MonkeyPatch) -> None:
    """A candidate counts granted votes, not voters."""
    right = election.count_vote

    def wrong(raft: Raft, voter: NodeId, granted: bool) -> None:
        if granted and voter in raft.votes:
            others = [peer for peer in raft.peer_ids if peer not in raft.votes]
            voter = others[0] if others else voter
        right(raft, voter, granted)

    patch.setattr(election, "count_vote", wrong)


def own_vote_is_enough(patch: pytest.MonkeyPatch) -> None:
    """A candidate leads with the first vote, its own."""
    right = election.count_vote

    def wrong(raft: Raft, voter: NodeId, granted: bool) -> None:
        if raft.role is Role.CANDIDATE:
            raft.become_leader()
        else:
            right(raft, voter, granted)

    patch.setattr(election, "count_vote", wrong)


# -- the log --


def always_truncated(patch: pytest.MonkeyPatch) -> None:
    """A follower drops everything behind ``prev_index``, conflict or not."""

    def wrong(raft: Raft, entries: tuple[Entry, ...]) -> None:
        if entries[0].index <= raft.view.last_index:
            raft.view.truncate(entries[0].index)
        raft.view.extend(entries)

    patch.setattr(follower, "put_entries", wrong)


def conflict_kept(patch: pytest.MonkeyPatch) -> None:
    """A follower keeps what conflicts, and only adds what is behind its log."""

    def wrong(raft: Raft, entries: tuple[Entry, ...]) -> None:
        fresh = [entry for entry in entries if entry.index > raft.view.last_index]
        if fresh:
            raft.view.extend(fresh)

    patch.setattr(follower, "put_entries", wrong)


def other_bytes_sent(patch: pytest.MonkeyPatch) -> None:
    """A leader sends other entries than it has."""
    right = Raft.send

    def wrong(raft: Raft, message: Message) -> None:
        if isinstance(message, AppendEntries):
            entries = tuple(replace(each, body=each.body + b"x") for each in message.entries)
            message = replace(message, entries=entries)
        right(raft, message)

    patch.setattr(Raft, "send", wrong)


# -- the commit rule --


def old_terms_counted(patch: pytest.MonkeyPatch) -> None:
    """A leader commits what a quorum holds, whatever its term (Raft, figure 8)."""

    def wrong(raft: Raft, leading: Leader) -> None:
        match = {peer: progress.match_index for peer, progress in leading.progress.items()}
        match[raft.node_id] = raft.view.durable_index
        raft.commit_index = max(raft.commit_index, raft.quorum.committed_index(match))

    patch.setattr(leader, "advance_commit_index", wrong)


def held_taken_for_committed(patch: pytest.MonkeyPatch) -> None:
    """A follower that hears a leader commits its whole log."""
    right = follower.handle_heartbeat

    def wrong(raft: Raft, message: Heartbeat) -> None:
        right(raft, message)
        raft.commit_index = raft.view.last_index

    patch.setitem(_HANDLERS[Role.FOLLOWER], Heartbeat, wrong)


# -- snapshots --


def fact_binds_nobody(patch: pytest.MonkeyPatch) -> None:
    """A node takes what a higher term brings, and goes on in its own."""
    patch.setattr(Raft, "observe_term", lambda *_: None)


def install_drops_what_follows(patch: pytest.MonkeyPatch) -> None:
    """A snapshot takes away what was acknowledged behind it."""
    right = LogView.install

    def wrong(view: LogView, last: EntryId) -> None:
        if view.last_index > last.index:
            view.truncate(last.index + 1)
        right(view, last)

    patch.setattr(LogView, "install", wrong)


def trimmed_beyond_the_disk(patch: pytest.MonkeyPatch) -> None:
    """A log is trimmed up to what was applied, whether it is on the disk or not."""

    def wrong(raft: Raft, upto: LogIndex) -> LogIndex:
        raft.view.durable_index = max(raft.view.durable_index, upto)
        raft.view.trim(upto, raft.epoch.number)
        return raft.view.base_index

    patch.setattr(Raft, "trim", wrong)


# -- limits --


def message_size_ignored(patch: pytest.MonkeyPatch) -> None:
    """A leader puts all that a peer lacks into one message."""
    right = LogView.slice_within
    patch.setattr(LogView, "slice_within", lambda self, first, _: right(self, first, 1 << 40))


def uncommitted_ignored(patch: pytest.MonkeyPatch) -> None:
    """A leader takes proposals however much is uncommitted."""

    def wrong(raft: Raft, datas: Sequence[bytes], kind: EntryKind) -> Sequence[Entry]:
        if raft.leader is None:
            raise NotLeader(raft.node_id, raft.leader_id)
        return leader.append_entries(raft, raft.leader, kind, datas)

    patch.setattr(Raft, "propose_batch", wrong)
