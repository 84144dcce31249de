"""Elections: how they begin, requests for votes, and the counting of the answers (Raft §5.2;
thesis §9.6).

When they begin by themselves, and what their end makes of the node, is the engine's affair
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
    is_free = not is_bound(raft, message) and raft.voted_for in (NO_NODE, message.sender)
    if is_current and is_free:
        if raft.voted_for == NO_NODE:
            raft.voted_for = message.sender
            raft.is_hard_state_new = True
        raft.election_elapsed = 0
        raft.send_after_sync(Vote(epoch, raft.term, me, to, granted=True, pre=False))
    else:
        raft.send_stating_term(Vote(epoch, raft.term, me, to, granted=False, pre=False))


def is_bound(raft: Raft, message: RequestVote) -> bool:
    """Whether a leader that we hear, or whose lease may still run, forbids a vote."""
    is_sticky = raft.hears_leader and not message.transfer  # thesis §4.2.3
    return is_sticky or raft.faith.refuses(message.ordered_in)


# -- our own election --


def campaign(raft: Raft) -> None:
    """Begin an election with a pre-vote; a leader has nothing to win.

    With a failure detector outside, who calls this knows better than the nodes' own timers: then
    nobody is asked whether it hears a leader, as after a leader's order (thesis §3.10).  Leases no
    detector breaks: there a pre-vote comes first all the same, or a leader would give way to a
    candidate for whom nobody else votes.  And who keeps faith does not campaign, for its own vote
    counts like any other; a candidate that hears a leader is none any more.
    """
    is_idle = raft.role is Role.LEADER or is_vote_under_way(raft) or raft.is_learner
    if is_idle or raft.faith.refuses(ordered_in=0):
        return
    if not raft.options.automatic_elections and not raft.faith.is_kept:
        start_election(raft, transfer=True, ordered_in=0)
        return
    check_not_in_last_term(raft)
    raft.attempt += 1
    become_candidate(raft, Role.PRE_CANDIDATE)
    request_votes(raft, raft.term + 1, pre=True, transfer=False, ordered_in=0)
    count_vote(raft, raft.node_id, granted=True)  # binds nobody, so nothing need be on disk


def is_vote_under_way(raft: Raft) -> bool:
    """Whether our own vote is on its way to disk, and the requests for others' wait for it.

    Nobody can have answered yet; beginning anew would give a slow disk one more write per timeout,
    and no election would ever end.
    """
    return raft.role is Role.CANDIDATE and raft.durable.term != raft.term


def start_election(raft: Raft, transfer: bool, ordered_in: Term) -> None:
    """Raise the term, vote for ourselves and ask the others, once that is on disk."""
    check_not_in_last_term(raft)
    raft.update_term(raft.term + 1)
    raft.voted_for = raft.node_id
    become_candidate(raft, Role.CANDIDATE)
    request_votes(raft, raft.term, pre=False, transfer=transfer, ordered_in=ordered_in)


def become_candidate(raft: Raft, role: Role) -> None:
    """Ask for votes, in a role that asks."""
    raft.role = role
    raft.leader_id = NO_NODE
    raft.votes = {}
    raft.election_elapsed = 0
    draw_election_ticks(raft)


def draw_election_ticks(raft: Raft) -> None:
    """Draw the timeout of the next attempt."""
    raft.election_ticks = raft.options.election_ticks(
        raft.setup.seed, raft.node_id, raft.term, raft.attempt
    )


def check_not_in_last_term(raft: Raft) -> None:
    """Raise where no higher term is left to ask for."""
    if raft.term >= TERM_MAX:
        raise InvariantViolated(
            f"node {raft.node_id} is in the last term, {TERM_MAX}, which no cluster reaches by "
            "elections: some node or its disk has miscounted; stop the nodes and look at their "
            "logs"
        )


def request_votes(raft: Raft, term: Term, pre: bool, transfer: bool, ordered_in: Term) -> None:
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
                ordered_in=ordered_in,
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
            start_election(raft, transfer=False, ordered_in=0)
        else:
            raft.become_leader()
    elif raft.quorum.is_blocked([node for node, vote in raft.votes.items() if not vote]):
        raft.become_follower(NO_NODE)
