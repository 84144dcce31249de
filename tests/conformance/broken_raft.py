"""Bugs to plant in the Raft engine, each of one line, as an honest mistake would make them.

They measure the conformance suite: what an engine behind the contract may get wrong, it must see.
A bug is a function that replaces a piece of the engine for the time of a test; its docstring says
what is wrong.  Beside each stands the scenario that finds it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import pytest

from replog.engine import EngineSetup
from replog.types import NO_NODE, Entry, NodeId, Role
from replog_raft import Raft, election, follower, leader
from replog_raft.leader import Leader
from replog_raft.messages import AppendEntries, AppendReply, Message, RequestVote, Vote
from replog_raft.raft import _HANDLERS

Bug = Callable[[pytest.MonkeyPatch], None]


def sent_at_once(patch: pytest.MonkeyPatch, message_type: type) -> None:
    """Let messages of a type leave before the sync."""
    right = Raft.send_after_sync

    def wrong(raft: Raft, message: Message) -> None:
        (Raft.send if isinstance(message, message_type) else right)(raft, message)

    patch.setattr(Raft, "send_after_sync", wrong)


def vote_before_sync(patch: pytest.MonkeyPatch) -> None:
    """A vote is sent before it is on disk."""
    sent_at_once(patch, Vote)


def request_before_sync(patch: pytest.MonkeyPatch) -> None:
    """A candidate asks for votes before its own vote is on disk."""
    sent_at_once(patch, RequestVote)


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


def old_terms_counted(patch: pytest.MonkeyPatch) -> None:
    """A leader commits what a quorum holds, whatever its term (Raft, figure 8)."""
    right = leader.advance_commit_index

    def wrong(raft: Raft, leading: Leader) -> None:
        match = {peer: progress.match_index for peer, progress in leading.progress.items()}
        match[raft.node_id] = raft.view.durable_index
        index = raft.quorum.committed_index(match)
        if index < leading.first_index:
            raft.commit_index = max(raft.commit_index, index)
        right(raft, leading)

    patch.setattr(leader, "advance_commit_index", wrong)


def vote_by(
    patch: pytest.MonkeyPatch, right: Callable[..., None], prepare: Callable[[Raft], None]
) -> None:
    """Have requests for votes answered after something was changed in the voter."""

    def wrong(raft: Raft, message: RequestVote) -> None:
        view = raft.view
        ours = view.last_index, view.last_term
        prepare(raft)
        right(raft, message)
        view.last_index, view.last_term = ours

    for row in _HANDLERS.values():
        patch.setitem(row, RequestVote, wrong)


def vote_regardless_of_log(patch: pytest.MonkeyPatch) -> None:
    """A node votes for a candidate whose log is behind its own."""

    def prepare(raft: Raft) -> None:
        raft.view.last_index = raft.view.last_term = 0

    vote_by(patch, election.handle_request_vote, prepare)


def longer_log_preferred(patch: pytest.MonkeyPatch) -> None:
    """The longer log counts as more up to date, whatever the terms (Raft §5.4.1)."""
    right = election.handle_request_vote

    def wrong(raft: Raft, message: RequestVote) -> None:
        last_term, raft.view.last_term = raft.view.last_term, message.last_term
        right(raft, message)
        raft.view.last_term = last_term

    for row in _HANDLERS.values():
        patch.setitem(row, RequestVote, wrong)


def second_vote(patch: pytest.MonkeyPatch) -> None:
    """A node votes for whoever asks, though it voted in this term."""

    def prepare(raft: Raft) -> None:
        if raft.voted_for != raft.node_id:
            raft.voted_for = NO_NODE

    vote_by(patch, election.handle_request_vote, prepare)


def repeated_vote_counted(patch: pytest.MonkeyPatch) -> None:
    """A candidate counts granted votes, not voters."""
    right = election.count_vote

    def wrong(raft: Raft, voter: NodeId, granted: bool) -> None:
        if granted and voter in raft.votes:
            others = [peer for peer in raft.peer_ids if peer not in raft.votes]
            voter = others[0] if others else voter
        right(raft, voter, granted)

    patch.setattr(election, "count_vote", wrong)


def vote_forgotten_by_restart(patch: pytest.MonkeyPatch) -> None:
    """A restarted node remembers its term but not its vote."""
    right = Raft.__init__

    def wrong(raft: Raft, setup: EngineSetup) -> None:
        right(raft, setup)
        raft.voted_for = NO_NODE

    patch.setattr(Raft, "__init__", wrong)


def always_truncated(patch: pytest.MonkeyPatch) -> None:
    """A follower drops everything behind ``prev_index``, conflict or not."""

    def wrong(raft: Raft, entries: tuple[Entry, ...]) -> None:
        if entries[0].index <= raft.view.last_index:
            raft.view.truncate(entries[0].index)
        raft.view.extend(entries)

    patch.setattr(follower, "put_entries", wrong)


def deposed_leader_obeyed(patch: pytest.MonkeyPatch) -> None:
    """A follower takes entries from the leader of an earlier term."""
    right = Raft._admit_term

    def wrong(raft: Raft, message: Message) -> bool:
        if isinstance(message, AppendEntries) and raft.role is Role.FOLLOWER:
            return message.term <= raft.term or right(raft, message)
        return right(raft, message)

    patch.setattr(Raft, "_admit_term", wrong)


def term_beyond_the_last(patch: pytest.MonkeyPatch) -> None:
    """A candidate asks for the term above the last that fits on the wire."""
    patch.setattr(Raft, "_check_not_in_last_term", lambda _: None)


BUGS: Final[dict[Bug, str]] = {
    vote_before_sync: "crashes.voter_dies_with_answer_out",
    request_before_sync: "crashes.candidate_dies_having_asked",
    acknowledged_before_sync: "crashes.acceptor_dies_with_answer_out",
    repeated_acknowledgement_before_sync: "crashes.acceptor_dies_with_answer_out",
    own_copy_counted_early: "faults.held_majority",
    old_terms_counted: "crashes.old_entry_reaches_majority",
    vote_regardless_of_log: "crashes.two_old_values",
    longer_log_preferred: "crashes.two_old_values",
    repeated_vote_counted: "faults.repeated_answers",
    second_vote: "crashes.voter_dies_with_answer_out",
    vote_forgotten_by_restart: "crashes.voter_dies_with_answer_out",
    always_truncated: "contract.deterministic",
    deposed_leader_obeyed: "crashes.old_proposal_comes_late",
    term_beyond_the_last: "refusals.out_of_range_survived",
}
"""Each with the scenario that finds it."""
