"""Bugs to plant in the Multi-Paxos engine for the model checker, each an honest mistake.

A bug is a function that replaces a piece of the engine for the time of a test; its docstring says
what is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final

import pytest

from replog.engine import EngineSetup
from replog.quorum import Threshold
from replog.testing.model import Bounds
from replog.types import Role, Term
from replog_multipaxos import MultiPaxos, acceptor, election
from replog_multipaxos.ballot import owner_of
from replog_multipaxos.election import Candidacy
from replog_multipaxos.messages import Accept, Accepted, Message, Prepare, Promise

Bug = Callable[[pytest.MonkeyPatch], None]


def vote_told_early(patch: pytest.MonkeyPatch) -> None:
    """A vote is told before it is on disk."""
    patch.setattr(MultiPaxos, "acknowledge", MultiPaxos.send)


def repeated_vote_told_early(patch: pytest.MonkeyPatch) -> None:
    """A vote that was asked for twice is told at once, though the first is not synced."""
    right = MultiPaxos.acknowledge

    def wrong(engine: MultiPaxos, message: Accepted) -> None:
        (right if engine.slots.has_unsaved else MultiPaxos.send)(engine, message)

    patch.setattr(MultiPaxos, "acknowledge", wrong)


def promise_told_early(patch: pytest.MonkeyPatch) -> None:
    """A promise is sent before it is on disk."""
    right = MultiPaxos.send_after_sync

    def wrong(engine: MultiPaxos, message: Message) -> None:
        (MultiPaxos.send if isinstance(message, Promise) else right)(engine, message)

    patch.setattr(MultiPaxos, "send_after_sync", wrong)


def promise_forgotten(patch: pytest.MonkeyPatch) -> None:
    """A restarted node does not know what it promised."""
    right = MultiPaxos.__init__

    def wrong(engine: MultiPaxos, setup: EngineSetup) -> None:
        right(engine, setup)
        engine.term = max((entry.term for entry in setup.entries), default=0)

    patch.setattr(MultiPaxos, "__init__", wrong)


def promise_omits_votes(patch: pytest.MonkeyPatch) -> None:
    """A promise leaves out what its sender has voted for."""
    right = acceptor.promise_page

    def wrong(engine: MultiPaxos, message: Prepare) -> Promise:
        return replace(right(engine, message), entries=(), chosen_upto=0)

    patch.setattr(acceptor, "promise_page", wrong)


def told_votes_emptied(patch: pytest.MonkeyPatch) -> None:
    """A new leader proposes no-ops, whatever it was told."""
    right = election.open_proposals

    def wrong(engine: MultiPaxos, candidacy: Candidacy) -> object:
        candidacy.votes.clear()
        return right(engine, candidacy)

    patch.setattr(election, "open_proposals", wrong)


def too_few_promises(patch: pytest.MonkeyPatch) -> None:
    """A leader needs one promise less than it must."""
    right = MultiPaxos.__init__

    def wrong(engine: MultiPaxos, setup: EngineSetup) -> None:
        right(engine, setup)
        engine.phase1_quorum = Threshold(engine.phase1_quorum.voters, 1)

    patch.setattr(MultiPaxos, "__init__", wrong)


def accepts_below_promise(patch: pytest.MonkeyPatch) -> None:
    """A follower accepts at a ballot below its promise."""
    right = MultiPaxos._admit_ballot

    def wrong(engine: MultiPaxos, message: Message) -> bool:
        if isinstance(message, Accept) and message.term < engine.term:
            return engine.role is Role.FOLLOWER
        return right(engine, message)

    patch.setattr(MultiPaxos, "_admit_ballot", wrong)


def ballot_used_again(patch: pytest.MonkeyPatch) -> None:
    """A node that has promised its own ballot begins at the same one again."""
    right = vars(MultiPaxos)["next_ballot"].__get__

    def wrong(engine: MultiPaxos) -> Term:
        return engine.term if owner_of(engine.term) == engine.node_id else right(engine)

    patch.setattr(MultiPaxos, "next_ballot", property(wrong))


BUGS: Final[Mapping[Bug, Bounds]] = {
    vote_told_early: Bounds(terms=1, crashes=0),
    repeated_vote_told_early: Bounds(terms=1, crashes=0, duplicates=1),
    promise_told_early: Bounds(),
    promise_forgotten: Bounds(),
    promise_omits_votes: Bounds(crashes=0),
    told_votes_emptied: Bounds(crashes=0),
    too_few_promises: Bounds(crashes=0),
    accepts_below_promise: Bounds(commands=2, crashes=0),
    ballot_used_again: Bounds(),
}
"""Each bug, and bounds within which it shows."""
