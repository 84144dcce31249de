"""The options of the Raft engine, as ``[engine.raft]`` sets them, and its timeouts' jitter."""

from __future__ import annotations

from replog.types import NodeId, Term, record

_MASK = (1 << 64) - 1


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
    conflict_hints: bool = True
    """Back up by whole terms when logs differ; false: by single entries, as in Raft §5.3."""

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
        return found

    def election_ticks(self, seed: int, node_id: NodeId, term: Term, attempt: int) -> int:
        """The election timeout of one attempt (Raft §5.2: drawn at random, here by a hash).

        A pure function, so that clones agree and replays are exact; ``attempt`` counts the
        elections begun in one term, since a pre-vote that fails must not repeat its timing.
        """
        spread = self.election_ticks_max - self.election_ticks_min + 1
        mixed = 0
        for part in (seed, node_id, term, attempt):
            mixed = _mix(mixed ^ part)
        ticks = self.election_ticks_min + mixed % spread
        if self.preferred_node not in (0, node_id):
            ticks += spread
        return ticks


def _mix(value: int) -> int:
    """SplitMix64's output function: every bit of the input changes about half of the output."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)
