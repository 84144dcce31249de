"""Quorum systems: predicates over sets of nodes, never counters.

A counter cannot tell a duplicated answer from a second voter; a set can.  Any two quorums of one
system meet in at least one voter, which is what carries a decision from one term to the next.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Protocol

from replog.types import LogIndex, NodeId, record


class QuorumSystem(Protocol):
    """Which sets of voters may decide."""

    def is_quorum(self, nodes: Collection[NodeId]) -> bool:
        """Whether ``nodes`` contains a quorum; nodes that are no voters do not matter."""

    def is_blocked(self, refused: Collection[NodeId]) -> bool:
        """Whether no quorum is left among the voters that are not in ``refused``."""

    def committed_index(self, match: Mapping[NodeId, LogIndex]) -> LogIndex:
        """The highest index that a quorum holds, where voter v holds up to ``match[v]``."""


@record
class Majority:
    """More than half of the voters (Raft §5.1, PMS §2.1)."""

    voters: tuple[NodeId, ...]

    def is_quorum(self, nodes: Collection[NodeId]) -> bool:
        """Whether more than half of the voters are in ``nodes``."""
        present = sum(1 for voter in self.voters if voter in nodes)
        return 2 * present > len(self.voters)

    def is_blocked(self, refused: Collection[NodeId]) -> bool:
        """Whether the voters outside ``refused`` are no majority any more."""
        return not self.is_quorum([voter for voter in self.voters if voter not in refused])

    def committed_index(self, match: Mapping[NodeId, LogIndex]) -> LogIndex:
        """The median, rounded towards the lower index when the voters are even in number."""
        held = sorted([match.get(voter, 0) for voter in self.voters])
        return held[(len(held) - 1) // 2]


@record
class Without:
    """Another quorum system of which some voters are lost: they are voters still, so a quorum is as
    large as ever, and must be found among the others."""

    system: QuorumSystem
    lost: tuple[NodeId, ...]

    def is_quorum(self, nodes: Collection[NodeId]) -> bool:
        """Whether the nodes that are not lost are a quorum."""
        return self.system.is_quorum([node for node in nodes if node not in self.lost])

    def is_blocked(self, refused: Collection[NodeId]) -> bool:
        """Whether no quorum is left outside of ``refused`` and those that are lost."""
        return self.system.is_blocked((*refused, *self.lost))

    def committed_index(self, match: Mapping[NodeId, LogIndex]) -> LogIndex:
        """See :class:`QuorumSystem`; what is lost holds nothing."""
        held = {node: index for node, index in match.items() if node not in self.lost}
        return self.system.committed_index(held)


@record
class Threshold:
    """At least ``size`` of the voters; two such systems meet when their sizes add up to more than
    there are voters (FPaxos §3)."""

    voters: tuple[NodeId, ...]
    size: int

    def is_quorum(self, nodes: Collection[NodeId]) -> bool:
        """Whether ``size`` of the voters are in ``nodes``."""
        return sum(1 for voter in self.voters if voter in nodes) >= self.size

    def is_blocked(self, refused: Collection[NodeId]) -> bool:
        """Whether fewer than ``size`` voters are left outside ``refused``."""
        return not self.is_quorum([voter for voter in self.voters if voter not in refused])

    def committed_index(self, match: Mapping[NodeId, LogIndex]) -> LogIndex:
        """The index that the ``size``-th of the voters holds, counted from the furthest."""
        held = sorted([match.get(voter, 0) for voter in self.voters])
        return held[len(held) - self.size]
