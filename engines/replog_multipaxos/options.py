"""The options of the Multi-Paxos engine, as ``[engine.multipaxos]`` sets them, and its timeouts."""

from __future__ import annotations

from typing import Final

from replog.jitter import draw_ticks
from replog.leases import LEASE_NAME, LeaseTerms, option_problems
from replog.types import Epoch, NodeId, Term, record

BACK_OFF_DOUBLINGS_MAX: Final = 3
"""How often the range of timeouts is doubled at most: after so many rounds that failed it
grows no more."""


@record
class MultiPaxosOptions:
    """How one Multi-Paxos engine behaves; all times are in ticks (``limits.tick_ms``)."""

    heartbeat_ticks: int = 2
    """A leader sends a heartbeat every so many ticks."""
    election_ticks_min: int = 10
    """A node that hears no leader for this long or longer starts an election; must exceed what
    a sync of the disk takes at its worst, twice, or a slow disk elects nobody."""
    election_ticks_max: int = 20
    """The upper end of the range from which each election timeout is drawn."""
    preferred_node: int = 0
    """This node's elections come first: the others wait a whole range longer; 0: none."""
    automatic_elections: bool = True
    """Start elections by timeout; false: only by ``campaign()``, from a failure detector in your
    own program: nodes of ``replog serve``, which has none, would elect nobody."""
    open_slots_max: int = 65_536
    """Slots that may be proposed and not yet committed; a leader that has as many refuses
    proposals.  A batch is taken whole while there is one free, so the last may go beyond."""
    phase1_quorum: int = 0
    """How many nodes must promise (FPaxos); fixed when a cluster is founded; 0: a majority, or
    what meets every phase-2 quorum if that is given."""
    phase2_quorum: int = 0
    """How many nodes must accept (FPaxos); fixed when a cluster is founded; 0: a majority, or what
    meets every phase-1 quorum if that is given.  It is also how many disks an acknowledged command
    is on: with 1, one lost disk loses commands that clients were told are done."""
    lease_ms: int = 0
    """For so many milliseconds after a leader's message a node promises nobody else anything, which
    lets the leader read by lease; fixed when a cluster is founded; 0: there are no leases."""
    clock_drift_percent: int = 10
    """How much faster or slower than real time a clock of this cluster may run at most; leases are
    as safe as this is true."""

    def problems(self) -> list[str]:
        """Every relation that does not hold, as ``key: sentence``."""
        found = []
        if self.heartbeat_ticks < 1:
            found.append(f"heartbeat_ticks: must be at least 1, not {self.heartbeat_ticks}")
        if self.election_ticks_min < 2 * self.heartbeat_ticks:
            found.append(
                f"election_ticks_min: {self.election_ticks_min} must be at least twice "
                f"heartbeat_ticks = {self.heartbeat_ticks}, or one lost heartbeat ends a leadership"
            )
        if self.election_ticks_max <= self.election_ticks_min:
            found.append(
                f"election_ticks_max: {self.election_ticks_max} must be above "
                f"election_ticks_min = {self.election_ticks_min}, or elections collide for ever"
            )
        if not 0 <= self.preferred_node <= 65_535:
            found.append(f"preferred_node: must be 0 to 65535, not {self.preferred_node}")
        if self.open_slots_max < 1:
            found.append(f"open_slots_max: must be at least 1, not {self.open_slots_max}")
        found += [
            f"{name}: must be at least 0, not {size}"
            for name, size in (
                ("phase1_quorum", self.phase1_quorum),
                ("phase2_quorum", self.phase2_quorum),
            )
            if size < 0
        ]
        return found + option_problems(self.lease_ms, self.clock_drift_percent)

    def lease_terms(self, epoch: Epoch) -> LeaseTerms:
        """What was agreed on for leases when the cluster was founded."""
        return LeaseTerms.of(dict(epoch.agreed).get(LEASE_NAME, 0), self.clock_drift_percent)

    def quorum_sizes(self, voter_count: int) -> tuple[int, int]:
        """The (phase-1, phase-2) quorum sizes that these options ask for among so many voters.

        Where one is not given, it is the least that meets every quorum of the other.
        """
        phase1, phase2 = self.phase1_quorum, self.phase2_quorum
        if not phase1 and not phase2:
            majority = voter_count // 2 + 1
            return majority, majority
        phase1 = phase1 or voter_count + 1 - phase2
        phase2 = phase2 or voter_count + 1 - phase1
        return phase1, phase2

    def election_ticks(
        self, seed: int, node_id: NodeId, term: Term, attempt: int, failed_count: int
    ) -> int:
        """The election timeout of one attempt.

        A pure function, so that clones agree and replays are exact; ``attempt`` counts the
        elections begun in one term, since a round that fails must not repeat its timing.  Each
        round in a row that failed doubles the range: proposers that interrupt each other part
        (PMS §2.4), and promises that take long are waited for.
        """
        least, spread = self.election_ticks_min, self.election_ticks_max - self.election_ticks_min
        most = least + (spread << min(failed_count, BACK_OFF_DOUBLINGS_MAX))
        ticks = draw_ticks(least, most, seed, node_id, term, attempt)
        if self.preferred_node not in (0, node_id):
            ticks += spread + 1
        return ticks

    @property
    def hold_ticks(self) -> int:
        """How long a node lets another finish, after it promised it something: 1.5 timeouts."""
        return self.election_ticks_min * 3 // 2
