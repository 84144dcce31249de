"""The trial of Raft: what the simulator is told of this engine (see :mod:`replog.testing.trials`).

Its rules are in :mod:`replog_raft.checks` and :mod:`replog_raft.limit_checks`; here are the
options worth drawing, and the goals.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from replog.quorum import Majority, QuorumSystem
from replog.testing.chance import Source
from replog.testing.checks import Check, EntersHigherTerms, Nodes
from replog.testing.goals import Goals
from replog.testing.lease_trials import draw_lease
from replog.testing.members import LearnersOnlyLearn
from replog.testing.network import Flight
from replog.testing.nodes import ClusterNode
from replog.types import LogIndex, NodeId, Ready, Role, Status, Term
from replog_raft.checks import (
    Books,
    CommitsOwnTerm,
    Elections,
    LeaderCompleteness,
    StatesWhatIsDurable,
    WrittenLogs,
    binds,
    takes_sides,
)
from replog_raft.limit_checks import WithinLimits
from replog_raft.messages import Vote
from replog_raft.options import RaftOptions

GOALS: Final[Mapping[str, str]] = {
    "conflicting_suffix_truncated": (
        "a follower cut off entries of a deposed leader that it had written already"
    ),
    "next_index_stepped_back": "a leader went back in a peer's log to find where it matches",
    "old_term_not_counted": (
        "a leader saw an entry of an earlier term on a quorum and did not commit it for that"
    ),
    "pre_vote_refused": "a node refused a pre-vote",
    "check_quorum_step_down": "a leader that heard no quorum gave up in its own term",
    "vote_split": "the votes of a term were split, so that nobody could lead in it",
}


class RaftTrial:
    """See :class:`replog.testing.trials.EngineTrial`."""

    goals: Final = GOALS
    acknowledgements: Final = ("append_reply",)

    def draw_options(self, source: Source, node_count: int) -> object:
        """Short timeouts, a heartbeat from every tick to just often enough."""
        options = RaftOptions(
            heartbeat_ticks=source.randint(1, 4),
            election_ticks_min=8,
            election_ticks_max=16,
            preferred_node=source.choice((0, 0, 1)),
            conflict_hints=source.random() < 0.7,
        )
        lease_ms, drift_percent = draw_lease(
            source, options.heartbeat_ticks, options.election_ticks_min
        )
        return replace(options, lease_ms=lease_ms, clock_drift_percent=drift_percent)

    def election_ticks_max(self, options: object) -> int:
        """The longest timeout; with a preferred node the others wait a whole range longer."""
        assert isinstance(options, RaftOptions)
        longer = options.election_ticks_max - options.election_ticks_min + 1
        return options.election_ticks_max + (longer if options.preferred_node else 0)

    def clock_drift_percent(self, options: object) -> int | None:
        """See :class:`~replog.testing.trials.EngineTrial`."""
        assert isinstance(options, RaftOptions)
        return options.clock_drift_percent if options.lease_ms else None

    def commit_quorum(self, options: object, voters: tuple[NodeId, ...]) -> QuorumSystem:
        """A majority (Raft §5.3)."""
        return Majority(voters)

    def checks(self, options: object, voters: tuple[NodeId, ...], goals: Goals) -> Sequence[Check]:
        """R1 to R11 and the watch for the goals."""
        quorum = Majority(voters)
        logs = WrittenLogs()
        elections = Elections(logs, quorum)
        return (
            GoalWatch(goals, logs, elections, quorum),
            logs,
            elections,
            LeaderCompleteness(logs),
            CommitsOwnTerm(logs, elections),
            StatesWhatIsDurable(),
            Books(logs),
            WithinLimits(),
            EntersHigherTerms("R10", binds),
            LearnersOnlyLearn("R11", takes_sides),
        )


class GoalWatch(Check):
    """Sees when the run comes to a goal; what was reached once is not watched for any more.

    It comes before the record of logs among the checks, so that it sees a log as it was before a
    Ready.
    """

    def __init__(
        self, goals: Goals, logs: WrittenLogs, elections: Elections, quorum: Majority
    ) -> None:
        self._goals = goals
        self._logs = logs
        self._elections = elections
        self._quorum = quorum
        self._sought: dict[str, None] = dict.fromkeys(GOALS)
        self._seen: dict[NodeId, tuple[int, Status]] = {}
        """What the node's status was, and in which run."""
        self._led_count = 0
        """How many leaders there were when the votes were last looked at."""

    def _reach(self, name: str) -> None:
        self._goals.reach(name)
        del self._sought[name]

    def check_sent(self, nodes: Nodes, flight: Flight) -> str:
        """Look out for a refused pre-vote."""
        message = flight.message
        if type(message) is Vote and message.pre and not message.granted:
            self._sought.pop("pre_vote_refused", None)
            self._goals.reach("pre_vote_refused")
        return ""

    def check_ready(self, nodes: Nodes, node: ClusterNode, ready: Ready) -> str:
        """Look out for a truncation of what was written, because another entry takes its place."""
        if ready.truncate_from is None or "conflicting_suffix_truncated" not in self._sought:
            return ""
        held = self._logs.of(node).get(ready.truncate_from)
        for entry in ready.entries:
            is_first = entry.index == ready.truncate_from
            if is_first and held is not None and held.term != entry.term:
                self._reach("conflicting_suffix_truncated")
        return ""

    def check_event(self, nodes: Nodes, node: ClusterNode) -> str:
        """Look at what changed in the node's status."""
        status = node.status_seen
        run, seen = self._seen.get(node.node_id, (0, status))
        if run and seen is status:
            return ""
        self._seen[node.node_id] = (node.run, status)
        if (run, seen.term, seen.role) == (node.run, status.term, Role.LEADER):
            self._watch_leadership(node, status, seen)
        if "vote_split" in self._sought and len(self._elections.leaders) > self._led_count:
            self._led_count = len(self._elections.leaders)
            self._watch_votes(nodes, status.term)
        return ""

    def _watch_leadership(self, node: ClusterNode, status: Status, seen: Status) -> None:
        """The node led in this term when it was last seen."""
        sought = self._sought
        if status.role is not Role.LEADER:
            # Whoever hears of a higher term enters it: this one gave up by itself.
            if "check_quorum_step_down" in sought:
                self._reach("check_quorum_step_down")
            return
        if "next_index_stepped_back" in sought:
            before = {peer.node_id: peer.next_index for peer in seen.peers}
            if any(peer.next_index < before.get(peer.node_id, 0) for peer in status.peers):
                self._reach("next_index_stepped_back")
        if "old_term_not_counted" in sought:
            index = quorum_index(status, self._quorum)
            held = self._logs.of(node).get(index)
            if index > status.commit_index and held is not None and held.term < status.term:
                self._reach("old_term_not_counted")

    def _watch_votes(self, nodes: Nodes, led_term: Term) -> None:
        """Somebody leads: was there an earlier term in which nobody can lead any more, because of
        how its votes fell?"""
        for term, votes in self._elections.votes.items():
            candidates = dict.fromkeys(votes.values())
            if term >= led_term or term in self._elections.leaders or len(candidates) < 2:
                continue
            if not any(self._may_win(nodes, term, votes, each) for each in candidates):
                self._reach("vote_split")
                return

    def _may_win(
        self, nodes: Nodes, term: Term, votes: dict[NodeId, NodeId], candidate: NodeId
    ) -> bool:
        """Whether those who voted for the candidate and those who still could are a quorum."""
        voters = [
            node_id
            for node_id, node in nodes.items()
            if votes.get(node_id) == candidate
            or (
                node_id not in votes
                and (node.disk.hard_state is None or node.disk.hard_state.term <= term)
            )
        ]
        return self._quorum.is_quorum(voters)


def quorum_index(status: Status, quorum: Majority) -> LogIndex:
    """How far a quorum holds a leader's log, as far as the leader knows."""
    match = {peer.node_id: peer.match_index for peer in status.peers}
    match[status.node_id] = status.durable_index
    return quorum.committed_index(match)


TRIAL: Final = RaftTrial()
