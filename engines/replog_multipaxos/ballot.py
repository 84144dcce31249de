"""Ballots: terms that have one possible owner by construction.

A ballot is ``round << 16 | node id``, an unsigned 64-bit number.  So two nodes can never propose at
one ballot, and nobody needs to vote for that (PMS §2.2: "different proposers choose their numbers
from disjoint sets").  Ballots are compared whole, never by their parts.
"""

from __future__ import annotations

from typing import Final

from replog.errors import InvariantViolated
from replog.types import NODE_ID_MAX, NodeId, Term

OWNER_BITS: Final = 16
ROUND_MAX: Final = (1 << 48) - 1


def ballot_of(round_number: int, node_id: NodeId) -> Term:
    """The ballot of a node in a round."""
    assert 0 <= round_number <= ROUND_MAX
    assert 1 <= node_id <= NODE_ID_MAX
    return round_number << OWNER_BITS | node_id


def owner_of(ballot: Term) -> NodeId:
    """The only node that may propose at a ballot; ``NO_NODE`` for 0, which is before the first."""
    return ballot & NODE_ID_MAX


def round_of(ballot: Term) -> int:
    """The round of a ballot."""
    return ballot >> OWNER_BITS


def next_ballot(seen: Term, node_id: NodeId) -> Term:
    """The first ballot of a node above every ballot up to ``seen``.

    Raises :class:`~replog.errors.InvariantViolated` when there is none: no cluster gets through
    2^48 elections, so a node miscounted, and whoever promised such a ballot must stop.
    """
    if round_of(seen) >= ROUND_MAX:
        raise InvariantViolated(
            f"ballot {seen} is of the last round, {ROUND_MAX}, which no cluster reaches by "
            f"elections: node {owner_of(seen)} or its disk has miscounted; stop the nodes and look "
            "at its log"
        )
    return ballot_of(round_of(seen) + 1, node_id)
