"""The options of the Raft engine, as ``[engine.raft]`` sets them, and its timeouts' jitter."""

from __future__ import annotations

from replog.jitter import draw_ticks
from replog.leases import LEASE_NAME, LeaseTerms, option_problems
from replog.types import Epoch, NodeId, Term, record


@record
class RaftOptions:
    """How one Raft engine behaves; all times are in ticks (``limits.tick_ms``)."""

    heartbeat_ticks: int = 2
    """A leader sends a heartbeat every so many ticks."""
    election_ticks_min: int = 10
    """A follower that hears nothing for this long or longer starts an election; must exceed what
    a sync of the disk takes at its worst, twice, or a slow disk elects nobody."""
    election_ticks_max: int = 20
    """The upper end of the range from which each election timeout is drawn."""
    preferred_node: int = 0
    """This node's elections come first: the others wait a whole range longer; 0: none."""
    automatic_elections: bool = True
    """Start elections by timeout; false: only by ``campaign()``, from a failure detector in your
    own program: nodes of ``replog serve``, which has none, would elect nobody."""
    conflict_hints: bool = True
    """Back up by whole terms when logs differ; false: by single entries, as in Raft §5.3."""
    lease_ms: int = 0
    """For so many milliseconds after a leader's message a node elects nobody else, which lets the
    leader read by lease; fixed when a cluster is founded; 0: there are no leases."""
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
        return found + option_problems(self.lease_ms, self.clock_drift_percent)

    def lease_terms(self, epoch: Epoch) -> LeaseTerms:
        """What was agreed on for leases when the cluster was founded."""
        return LeaseTerms.of(dict(epoch.agreed).get(LEASE_NAME, 0), self.clock_drift_percent)

    def election_ticks(self, seed: int, node_id: NodeId, term: Term, attempt: int) -> int:
        """The election timeout of one attempt (Raft §5.2: drawn at random, here by a hash).

        A pure function, so that clones agree and replays are exact; ``attempt`` counts the
        elections begun in one term, since a pre-vote that fails must not repeat its timing.
        """
        least, most = self.election_ticks_min, self.election_ticks_max
        ticks = draw_ticks(least, most, seed, node_id, term, attempt)
        if self.preferred_node not in (0, node_id):
            ticks += most - least + 1
        return ticks
