"""Elections: requests for votes, and the counting of the answers (Raft §5.2; thesis §9.6).

When an election begins, and what its end makes of the node, is the engine's affair
(:mod:`replog_raft.raft`), which passes itself to the functions here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from replog.errors import InvariantViolated
from replog.types import NO_NODE, NodeId, Role, Term
from replog_raft.messages import RequestVote, Vote

if TYPE_CHECKING:
    from replog_raft.raft import Raft

TERM_MAX: Final[Term] = (1 << 64) - 1
"""The last term that fits on the wire and on the disk."""


def handle_request_vote(raft: Raft, message: RequestVote) -> None:
    """Grant at most one vote per term, and only to a log that is up to date."""
    if raft.is_learner:
        return
    ours = (raft.view.last_term, raft.view.last_index)
    is_current = (message.last_term, message.last_index) >= ours  # Raft §5.4.1
    epoch, me, to = raft.epoch.number, raft.node_id, message.sender
    if message.pre:
        granted = is_current and message.term > raft.term
        term = message.term if granted else raft.term
        raft.send_stating_term(Vote(epoch, term, me, to, granted=granted, pre=True))
        return
    is_sticky = raft.hears_leader and not message.transfer
    if is_current and not is_sticky and raft.voted_for in (NO_NODE, message.sender):
        if raft.voted_for == NO_NODE:
            raft.voted_for = message.sender
            raft.is_hard_state_new = True
        raft.election_elapsed = 0
        raft.send_after_sync(Vote(epoch, raft.term, me, to, granted=True, pre=False))
    else:
        raft.send_stating_term(Vote(epoch, raft.term, me, to, granted=False, pre=False))


def check_not_in_last_term(raft: Raft) -> None:
    """Raise where no higher term is left to ask for."""
    if raft.term >= TERM_MAX:
        raise InvariantViolated(
            f"node {raft.node_id} is in the last term, {TERM_MAX}, which no cluster reaches by "
            "elections: some node or its disk has miscounted; stop the nodes and look at their "
            "logs"
        )


def request_votes(raft: Raft, term: Term, pre: bool, transfer: bool) -> None:
    """Ask every peer for its vote in ``term``; for a real one only once our own is on disk."""
    send = raft.send if pre else raft.send_after_sync
    for peer in raft.peer_ids:
        send(
            RequestVote(
                raft.epoch.number,
                term,
                raft.node_id,
                peer,
                last_index=raft.view.last_index,
                last_term=raft.view.last_term,
                pre=pre,
                transfer=transfer,
            )
        )


def handle_pre_vote_reply(raft: Raft, message: Vote) -> None:
    """Count an answer to our pre-vote."""
    asked_term = raft.term + 1 if message.granted else raft.term
    if message.pre and message.term == asked_term:
        count_vote(raft, message.sender, message.granted)


def handle_vote_reply(raft: Raft, message: Vote) -> None:
    """Count an answer to our candidacy."""
    if not message.pre:
        count_vote(raft, message.sender, message.granted)


def count_vote(raft: Raft, voter: NodeId, granted: bool) -> None:
    """Count an answer: a set of voters, for one that is repeated is no second voter."""
    raft.votes.setdefault(voter, granted)
    if raft.quorum.is_quorum([node for node, vote in raft.votes.items() if vote]):
        if raft.role is Role.PRE_CANDIDATE:
            raft.start_election(transfer=False)
        else:
            raft.become_leader()
    elif raft.quorum.is_blocked([node for node, vote in raft.votes.items() if not vote]):
        raft.become_follower(NO_NODE)
