"""Bugs to plant: each breaks one rule of the protocol, as an honest mistake would.

A bug is a function that replaces a piece of the engine, or of the replica, for the time of a test;
its docstring says what is wrong.  They are the measure of the random runs: a checker that finds
none of them proves nothing by finding nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import pytest

from replog.engine import EngineSetup
from replog.errors import OutcomeUnknown
from replog.progress import Progress
from replog.replica import Replica
from replog.types import NO_NODE, Entry, LogIndex, NodeId, Ready, Role, Term
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

Bug = Callable[[pytest.MonkeyPatch], None]


def leader_counts_itself_early(patch: pytest.MonkeyPatch) -> None:
    """A leader counts its own copy of an entry before its disk has it."""
    right = leader.advance_commit_index

    def wrong(raft: Raft, leading: Leader) -> None:
        durable_index = raft.view.durable_index
        raft.view.durable_index = raft.view.last_index
        right(raft, leading)
        raft.view.durable_index = durable_index

    patch.setattr(leader, "advance_commit_index", wrong)


def commit_counts_old_terms(patch: pytest.MonkeyPatch) -> None:
    """A leader commits what a quorum holds, whatever its term (Raft, figure 8)."""

    def wrong(raft: Raft, leading: Leader) -> None:
        match = {peer: progress.match_index for peer, progress in leading.progress.items()}
        match[raft.node_id] = raft.view.durable_index
        raft.commit_index = max(raft.commit_index, raft.quorum.committed_index(match))

    patch.setattr(leader, "advance_commit_index", wrong)


def follower_always_truncates(patch: pytest.MonkeyPatch) -> None:
    """A follower drops everything behind ``prev_index``, conflict or not."""

    def wrong(raft: Raft, entries: tuple[Entry, ...]) -> None:
        if entries[0].index <= raft.view.last_index:
            raft.view.truncate(entries[0].index)
        raft.view.extend(entries)

    patch.setattr(follower, "put_entries", wrong)


def follower_never_truncates(patch: pytest.MonkeyPatch) -> None:
    """A follower keeps what conflicts, and only adds what is behind its log."""

    def wrong(raft: Raft, entries: tuple[Entry, ...]) -> None:
        fresh = [entry for entry in entries if entry.index > raft.view.last_index]
        if fresh:
            raft.view.extend(fresh)

    patch.setattr(follower, "put_entries", wrong)


def previous_entry_unchecked(patch: pytest.MonkeyPatch) -> None:
    """A follower compares only the index of the previous entry, not its term."""

    def wrong(raft: Raft, message: AppendEntries) -> None:
        raft.follow(message.sender)
        if raft.view.term_at(message.prev_index) is None:
            follower.reject_append(raft, message)
            return
        if message.entries:
            follower.put_entries(raft, message.entries)
        verified_index = message.prev_index + len(message.entries)
        follower.advance_commit_index(raft, min(message.commit_index, verified_index))
        follower.accept_append(raft, message, verified_index)

    patch.setattr(follower, "handle_append_entries", wrong)


def commit_beyond_verified(patch: pytest.MonkeyPatch) -> None:
    """A follower commits up to the end of its log, not to the last entry of the message."""

    def wrong(raft: Raft, message: AppendEntries) -> None:
        raft.follow(message.sender)
        if raft.view.term_at(message.prev_index) != message.prev_term:
            follower.reject_append(raft, message)
            return
        if message.entries:
            follower.put_entries(raft, message.entries)
        commit_index = min(message.commit_index, raft.view.last_index)
        follower.advance_commit_index(raft, commit_index)
        verified_index = message.prev_index + len(message.entries)
        follower.accept_append(raft, message, verified_index)

    patch.setattr(follower, "handle_append_entries", wrong)


def heartbeat_tells_too_much(patch: pytest.MonkeyPatch) -> None:
    """A leader's heartbeat names its commit index, whatever the follower holds."""

    def wrong(raft: Raft, peer: NodeId, progress: Progress, round_number: int) -> None:
        progress.commit_sent = raft.commit_index
        raft.send(
            Heartbeat(
                raft.epoch.number, raft.term, raft.node_id, peer, raft.commit_index, round_number
            )
        )

    patch.setattr(leader, "send_heartbeat", wrong)


def vote_leaves_before_sync(patch: pytest.MonkeyPatch) -> None:
    """A vote is sent before it is on disk."""
    right = Raft.send_after_sync

    def wrong(raft: Raft, message: Message) -> None:
        (Raft.send if isinstance(message, Vote) else right)(raft, message)

    patch.setattr(Raft, "send_after_sync", wrong)


def candidacy_leaves_before_sync(patch: pytest.MonkeyPatch) -> None:
    """A candidate asks for votes before its own vote is on disk."""
    right = Raft.send_after_sync

    def wrong(raft: Raft, message: Message) -> None:
        (Raft.send if isinstance(message, RequestVote) else right)(raft, message)

    patch.setattr(Raft, "send_after_sync", wrong)


def ack_leaves_before_sync(patch: pytest.MonkeyPatch) -> None:
    """A follower acknowledges entries before they are on disk."""
    patch.setattr(Raft, "acknowledge", Raft.send)


def repeated_ack_overtakes_sync(patch: pytest.MonkeyPatch) -> None:
    """A follower acknowledges at once what it has seen before, though the first is not synced."""
    right = Raft.acknowledge

    def wrong(raft: Raft, message: AppendReply) -> None:
        is_repeated = not raft.view.has_unsaved
        (Raft.send if is_repeated else right)(raft, message)

    patch.setattr(Raft, "acknowledge", wrong)


def overtaken_write_counts(patch: pytest.MonkeyPatch) -> None:
    """A write that a truncation overtook marks the entries that replaced its own as durable."""
    right = LogView.truncate

    def wrong(view: LogView, from_index: LogIndex) -> None:
        spans = view._spans.copy()
        right(view, from_index)
        view._spans = spans

    patch.setattr(LogView, "truncate", wrong)


def vote_forgotten_by_restart(patch: pytest.MonkeyPatch) -> None:
    """A restarted node remembers its term but not its vote."""
    right = Raft.__init__

    def wrong(raft: Raft, setup: EngineSetup) -> None:
        right(raft, setup)
        raft.voted_for = NO_NODE

    patch.setattr(Raft, "__init__", wrong)


def votes_twice(patch: pytest.MonkeyPatch) -> None:
    """A node votes for whoever asks, though it voted in this term."""
    right = election.handle_request_vote

    def wrong(raft: Raft, message: RequestVote) -> None:
        if not message.pre and raft.role is Role.FOLLOWER:
            raft.voted_for = NO_NODE
        right(raft, message)

    replace_vote(patch, wrong)


def vote_ignores_log(patch: pytest.MonkeyPatch) -> None:
    """A node votes for a candidate whose log is behind its own."""
    right = election.handle_request_vote

    def wrong(raft: Raft, message: RequestVote) -> None:
        view = raft.view
        ours = view.last_index, view.last_term
        view.last_index, view.last_term = 0, 0
        right(raft, message)
        view.last_index, view.last_term = ours

    replace_vote(patch, wrong)


def vote_compares_length_only(patch: pytest.MonkeyPatch) -> None:
    """The longer log counts as more up to date, whatever the terms."""
    right = election.handle_request_vote

    def wrong(raft: Raft, message: RequestVote) -> None:
        last_term = raft.view.last_term
        raft.view.last_term = message.last_term
        right(raft, message)
        raft.view.last_term = last_term

    replace_vote(patch, wrong)


def replace_vote(patch: pytest.MonkeyPatch, handler: Callable[[Raft, RequestVote], None]) -> None:
    """Have another function answer requests for votes, in every role."""
    for row in _HANDLERS.values():
        patch.setitem(row, RequestVote, handler)


def duplicate_votes_counted(patch: pytest.MonkeyPatch) -> None:
    """A candidate counts granted votes, not voters."""
    right = election.count_vote

    def wrong(raft: Raft, voter: NodeId, granted: bool) -> None:
        if granted and voter in raft.votes:
            others = [peer for peer in raft.peer_ids if peer not in raft.votes]
            voter = others[0] if others else voter
        right(raft, voter, granted)

    patch.setattr(election, "count_vote", wrong)


def stale_votes_counted(patch: pytest.MonkeyPatch) -> None:
    """A vote of an earlier term counts for the current candidacy."""
    right = Raft._admit_term

    def wrong(raft: Raft, message: Message) -> bool:
        if isinstance(message, Vote) and not message.pre and message.term < raft.term:
            return True
        return right(raft, message)

    patch.setattr(Raft, "_admit_term", wrong)


def deposed_leader_obeyed(patch: pytest.MonkeyPatch) -> None:
    """A node takes entries from the leader of an earlier term."""
    right = Raft._admit_term

    def wrong(raft: Raft, message: Message) -> bool:
        if isinstance(message, AppendEntries) and raft.role is Role.FOLLOWER:
            return message.term <= raft.term or right(raft, message)
        return right(raft, message)

    patch.setattr(Raft, "_admit_term", wrong)


def stale_acks_counted(patch: pytest.MonkeyPatch) -> None:
    """A leader counts acknowledgements of an earlier term."""
    right = Raft._admit_term

    def wrong(raft: Raft, message: Message) -> bool:
        return isinstance(message, AppendReply) or right(raft, message)

    patch.setattr(Raft, "_admit_term", wrong)


def term_not_written(patch: pytest.MonkeyPatch) -> None:
    """A higher term that came without a vote is not made durable."""
    right = Raft.update_term

    def wrong(raft: Raft, term: Term) -> None:
        right(raft, term)
        raft.is_hard_state_new = False

    patch.setattr(Raft, "update_term", wrong)


def leader_stays_in_higher_term(patch: pytest.MonkeyPatch) -> None:
    """A leader that sees a higher term enters it and goes on leading."""
    right = Raft.update_term

    def wrong(raft: Raft, term: Term) -> None:
        if raft.role is Role.LEADER:
            raft.term = term
            raft.voted_for = raft.node_id
            raft.is_hard_state_new = True
            return
        right(raft, term)

    patch.setattr(Raft, "update_term", wrong)


def match_index_optimistic(patch: pytest.MonkeyPatch) -> None:
    """A leader takes what it sent for what its peer holds."""
    right = Progress.handle_sent

    def wrong(progress: Progress, last_index: LogIndex, size_bytes: int) -> None:
        right(progress, last_index, size_bytes)
        progress.match_index = progress.next_index - 1

    patch.setattr(Progress, "handle_sent", wrong)


def match_index_falls(patch: pytest.MonkeyPatch) -> None:
    """A late acknowledgement takes back what is known to be durable."""
    right = Progress.handle_accepted

    def wrong(progress: Progress, match_index: LogIndex) -> bool:
        progress.match_index = min(progress.match_index, match_index)
        return right(progress, match_index)

    patch.setattr(Progress, "handle_accepted", wrong)


def lost_probe_never_repeated(patch: pytest.MonkeyPatch) -> None:
    """A probe that was lost is not sent again when the peer is heard."""

    def wrong(progress: Progress) -> None:
        """Go on waiting."""

    patch.setattr(Progress, "handle_heartbeat_answered", wrong)


def gap_never_probed(patch: pytest.MonkeyPatch) -> None:
    """A leader does not ask where a lagging peer stands: a lost append stays lost."""

    def wrong(raft: Raft, message: HeartbeatReply) -> None:
        assert raft.leader is not None
        progress = raft.leader.progress[message.sender]
        progress.recently_active = True
        progress.handle_heartbeat_answered()

    patch.setattr(leader, "handle_heartbeat_reply", wrong)


def silent_to_lower_terms(patch: pytest.MonkeyPatch) -> None:
    """A message of a lower term is not answered, so its sender never learns of the term."""

    def wrong(raft: Raft, message: Message) -> None:
        """Say nothing."""

    patch.setattr(Raft, "_answer_with_term", wrong)


def attempts_repeat_timing(patch: pytest.MonkeyPatch) -> None:
    """Every election timeout of every node is the same."""
    patch.setattr(Raft, "_draw_election_ticks", set_election_ticks)


def set_election_ticks(raft: Raft) -> None:
    """The shortest timeout, always."""
    raft._election_ticks = raft.options.election_ticks_min


def waiter_ignores_body(patch: pytest.MonkeyPatch) -> None:
    """A proposal counts as done when anything is applied at its index, whoever leads by then."""

    def wrong(replica: Replica, ready: Ready) -> None:
        applied = {entry.index: entry for entry in ready.committed}
        for at, (entry, waiter) in enumerate(replica._waits):
            replica._waits[at] = (applied.get(entry.index, entry), waiter)
        if ready.committed:
            replica._apply_entries(ready.committed)

    patch.setattr(Replica, "apply", wrong)


def waits_never_ended(patch: pytest.MonkeyPatch) -> None:
    """A leader that is deposed leaves its clients waiting."""

    def wrong(replica: Replica, error: Exception) -> None:
        assert isinstance(error, OutcomeUnknown)

    patch.setattr(Replica, "end_waits", wrong)


BUGS: Final[tuple[Bug, ...]] = (
    leader_counts_itself_early,
    commit_counts_old_terms,
    follower_always_truncates,
    follower_never_truncates,
    previous_entry_unchecked,
    heartbeat_tells_too_much,
    vote_leaves_before_sync,
    candidacy_leaves_before_sync,
    ack_leaves_before_sync,
    repeated_ack_overtakes_sync,
    vote_forgotten_by_restart,
    votes_twice,
    vote_ignores_log,
    stale_votes_counted,
    deposed_leader_obeyed,
    term_not_written,
    leader_stays_in_higher_term,
    match_index_optimistic,
    match_index_falls,
    lost_probe_never_repeated,
    gap_never_probed,
    attempts_repeat_timing,
    waiter_ignores_body,
    waits_never_ended,
)
"""What the random runs must find."""

RARE: Final[tuple[Bug, ...]] = (
    commit_beyond_verified,
    overtaken_write_counts,
    vote_compares_length_only,
    duplicate_votes_counted,
    stale_acks_counted,
    silent_to_lower_terms,
)
"""What they may miss in a few hundred runs: each needs several rare things at once, in one order.
Tests of their own are what guards against these."""
