"""Bugs to plant in the Raft engine for the model checker, each an honest mistake.

A bug is a function that replaces a piece of the engine for the time of a test; its docstring says
what is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import pytest

from replog.engine import EngineSetup
from replog.testing.model import Bounds
from replog.types import NO_NODE, Entry, NodeId, Role, Term
from replog_raft import Raft, election, follower, leader
from replog_raft.leader import Leader
from replog_raft.messages import Message, RequestVote, Vote
from replog_raft.raft import _HANDLERS

Bug = Callable[[pytest.MonkeyPatch], None]


def own_copy_counted_early(patch: pytest.MonkeyPatch) -> None:
    """A leader counts its own copy of an entry before its disk has it."""
    right = leader.advance_commit_index

    def wrong(raft: Raft, leading: Leader) -> None:
        durable_index = raft.view.durable_index
        raft.view.durable_index = raft.view.last_index
        right(raft, leading)
        raft.view.durable_index = durable_index

    patch.setattr(leader, "advance_commit_index", wrong)


def entries_acknowledged_early(patch: pytest.MonkeyPatch) -> None:
    """A follower acknowledges entries before they are on disk."""
    patch.setattr(Raft, "acknowledge", Raft.send)


def conflict_kept(patch: pytest.MonkeyPatch) -> None:
    """A follower keeps what conflicts, and only adds what is behind its log."""

    def wrong(raft: Raft, entries: tuple[Entry, ...]) -> None:
        fresh = [entry for entry in entries if entry.index > raft.view.last_index]
        if fresh:
            raft.view.extend(fresh)

    patch.setattr(follower, "put_entries", wrong)


def vote_told_early(patch: pytest.MonkeyPatch) -> None:
    """A vote is sent before it is on disk."""
    right = Raft.send_after_sync

    def wrong(raft: Raft, message: Message) -> None:
        (Raft.send if isinstance(message, Vote) else right)(raft, message)

    patch.setattr(Raft, "send_after_sync", wrong)


def vote_forgotten(patch: pytest.MonkeyPatch) -> None:
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
        if raft.role is Role.FOLLOWER:
            raft.voted_for = NO_NODE
        right(raft, message)

    replace_vote(patch, wrong)


def log_ignored(patch: pytest.MonkeyPatch) -> None:
    """A node votes for a candidate whose log is behind its own."""
    right = election.handle_request_vote

    def wrong(raft: Raft, message: RequestVote) -> None:
        view = raft.view
        ours = view.last_index, view.last_term
        view.last_index, view.last_term = 0, 0
        right(raft, message)
        view.last_index, view.last_term = ours

    replace_vote(patch, wrong)


def replace_vote(patch: pytest.MonkeyPatch, handler: Callable[[Raft, RequestVote], None]) -> None:
    """Have another function answer requests for votes, in every role."""
    for row in _HANDLERS.values():
        patch.setitem(row, RequestVote, handler)


def votes_not_a_set(patch: pytest.MonkeyPatch) -> None:
    """A candidate counts granted votes, not voters."""
    right = election.count_vote

    def wrong(raft: Raft, voter: NodeId, granted: bool) -> None:
        if granted and voter in raft.votes:
            others = [peer for peer in raft.peer_ids if peer not in raft.votes]
            voter = others[0] if others else voter
        right(raft, voter, granted)

    patch.setattr(election, "count_vote", wrong)


def term_not_written(patch: pytest.MonkeyPatch) -> None:
    """A term that comes from a peer is not made durable."""
    right = Raft.update_term

    def wrong(raft: Raft, term: Term) -> None:
        right(raft, term)
        raft.is_hard_state_new = False

    patch.setattr(Raft, "update_term", wrong)


BUGS: Final[Mapping[Bug, Bounds]] = {
    own_copy_counted_early: Bounds(terms=1, crashes=0),
    entries_acknowledged_early: Bounds(terms=1, crashes=0),
    conflict_kept: Bounds(crashes=0),
    vote_told_early: Bounds(commands=0),
    vote_forgotten: Bounds(commands=0),
    votes_twice: Bounds(commands=0, crashes=0),
    log_ignored: Bounds(crashes=0),
    votes_not_a_set: Bounds(terms=2, commands=0, crashes=0, duplicates=1, nodes=5),
}
"""Each bug, and bounds within which it shows."""
