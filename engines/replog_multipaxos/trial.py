"""The trial of Multi-Paxos: what the simulator is told of this engine (see
:mod:`replog.testing.trials`).

Its rules are in :mod:`replog_multipaxos.checks` and :mod:`replog_multipaxos.limit_checks`; here
are the options worth drawing, and the goals.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from replog.quorum import QuorumSystem, Threshold
from replog.testing.chance import Source
from replog.testing.checks import Check, EntersHigherTerms, Nodes
from replog.testing.goals import Goals
from replog.testing.lease_trials import draw_lease
from replog.testing.members import LearnersOnlyLearn
from replog.testing.network import Flight
from replog.testing.nodes import ClusterNode
from replog.types import EntryKind, LogIndex, NodeId, Ready, Role, Status, Term
from replog_multipaxos.ballot import owner_of
from replog_multipaxos.checks import (
    BallotUsedOnce,
    CountsOnlyVotes,
    LedByQuorum,
    OneChoice,
    PromiseKept,
    PromiseTellsAll,
    Proposals,
    StatesOnlyDurable,
    binds,
    binds_in_faith,
    takes_sides,
)
from replog_multipaxos.limit_checks import WithinLimits, WithinOpenSlots
from replog_multipaxos.messages import Accept, Nack, Prepare
from replog_multipaxos.options import MultiPaxosOptions

GOALS: Final[Mapping[str, str]] = {
    "hole_filled_by_noop": (
        "a new leader proposed a no-op in a slot in which nobody of its quorum had voted, below "
        "another one"
    ),
    "value_adopted_from_promise": (
        "a new leader proposed a value again that it knew from a promise alone"
    ),
    "slots_chosen_out_of_order": "a slot was chosen before the one in front of it",
    "slot_learned_at_two_ballots": (
        "two nodes handed out one slot as committed, with different ballots"
    ),
    "duel_ended_by_back_off": (
        "two nodes had their ballots refused, one after the other, and then one of them led"
    ),
    "pre_round_refused": "a node refused a round that binds nobody",
    "check_quorum_step_down": "a leader that heard no quorum gave up at its own ballot",
}


class MultiPaxosTrial:
    """See :class:`replog.testing.trials.EngineTrial`."""

    goals: Final = GOALS
    acknowledgements: Final = ("accepted",)

    def draw_options(self, source: Source, node_count: int) -> object:
        """Short timeouts, a window of two slots at times, and quorums of different sizes."""
        phase1, phase2 = source.choice(quorum_sizes(node_count))
        options = MultiPaxosOptions(
            heartbeat_ticks=source.randint(1, 4),
            election_ticks_min=8,
            election_ticks_max=16,
            preferred_node=source.choice((0, 0, 1)),
            open_slots_max=source.choice((2, 65_536, 65_536)),
            phase1_quorum=phase1,
            phase2_quorum=phase2,
        )
        lease_ms, drift_percent = draw_lease(
            source, options.heartbeat_ticks, options.election_ticks_min
        )
        return replace(options, lease_ms=lease_ms, clock_drift_percent=drift_percent)

    def election_ticks_max(self, options: object) -> int:
        """The longest timeout that no Nack has doubled; with a preferred node the others wait a
        whole range longer."""
        assert isinstance(options, MultiPaxosOptions)
        longer = options.election_ticks_max - options.election_ticks_min + 1
        return options.election_ticks_max + (longer if options.preferred_node else 0)

    def clock_drift_percent(self, options: object) -> int | None:
        """See :class:`~replog.testing.trials.EngineTrial`."""
        assert isinstance(options, MultiPaxosOptions)
        return options.clock_drift_percent if options.lease_ms else None

    def commit_quorum(self, options: object, voters: tuple[NodeId, ...]) -> QuorumSystem:
        """A phase-2 quorum (FPaxos §3)."""
        assert isinstance(options, MultiPaxosOptions)
        return Threshold(voters, options.quorum_sizes(len(voters))[1])

    def checks(self, options: object, voters: tuple[NodeId, ...], goals: Goals) -> Sequence[Check]:
        """P1 to P13 and the watch for the goals."""
        assert isinstance(options, MultiPaxosOptions)
        phase1, phase2 = options.quorum_sizes(len(voters))
        quorum = Threshold(voters, phase2)
        record = OneChoice(quorum)
        elections = LedByQuorum(Threshold(voters, phase1))
        proposals = Proposals(elections)
        return (
            record,
            PromiseKept(record),
            BallotUsedOnce(),
            StatesOnlyDurable(),
            elections,
            proposals,
            CountsOnlyVotes(record, proposals),
            PromiseTellsAll(record),
            WithinLimits(),
            WithinOpenSlots(options.open_slots_max),
            EntersHigherTerms("P11", binds_in_faith if options.lease_ms else binds),
            LearnersOnlyLearn("P13", takes_sides),
            GoalWatch(goals, record, elections, proposals, quorum),
        )


def quorum_sizes(node_count: int) -> Sequence[tuple[int, int]]:
    """The (phase-1, phase-2) quorums to draw from: half of them majorities, the rest as unequal as
    they may be while one node can be missing in an election (of three nodes: in a vote)."""
    majority = node_count // 2 + 1
    phase1_max = node_count - 1 if node_count > 3 else node_count
    unequal = [(size, node_count + 1 - size) for size in range(phase1_max, 0, -1)]
    unequal = [sizes for sizes in unequal if sizes != (majority, majority)]
    return ((majority, majority), (majority, majority), *unequal)


class GoalWatch(Check):
    """Sees when the run comes to a goal; what was reached once is not watched for any more."""

    def __init__(
        self,
        goals: Goals,
        record: OneChoice,
        elections: LedByQuorum,
        proposals: Proposals,
        quorum: QuorumSystem,
    ) -> None:
        self._goals = goals
        self._record = record
        self._elections = elections
        self._proposals = proposals
        self._quorum = quorum
        self._sought: dict[str, None] = dict.fromkeys(GOALS)
        self._seen: dict[NodeId, tuple[int, Status]] = {}
        """What the node's status was, and in which run."""
        self._committed: dict[LogIndex, Term] = {}
        """By slot: the ballot with which it was first handed out."""
        self._asked: dict[Term, None] = {}
        """The ballots of binding Prepares."""
        self._beaten: dict[NodeId, None] = {}
        """Whose ballots were refused since somebody last led."""
        self._chosen_count = 0
        self._led_count = 0

    def _reach(self, name: str) -> None:
        self._goals.reach(name)
        del self._sought[name]

    # -- messages --

    def check_sent(self, nodes: Nodes, flight: Flight) -> str:
        """Look out for what an Accept proposes, and for refused rounds."""
        message = flight.message
        if type(message) is Accept:
            if "hole_filled_by_noop" in self._sought:
                self._watch_holes(nodes[flight.sender].status_seen, message)
        elif type(message) is Prepare:
            if not message.pre:
                self._asked[message.term] = None
        elif type(message) is Nack and message.rejected not in self._asked:
            # A round that binds nobody asks for a ballot before its Prepares do.
            self._sought.pop("pre_round_refused", None)
            self._goals.reach("pre_round_refused")
        return ""

    def _watch_holes(self, status: Status, message: Accept) -> None:
        for entry in message.entries:
            is_new = entry.kind == EntryKind.NOOP and entry.origin.term == message.term
            if is_new and entry.index < status.last_index:
                self._reach("hole_filled_by_noop")
                return

    def check_received(self, nodes: Nodes, node: ClusterNode, flight: Flight) -> str:
        """Look out for who is told that its ballot, with which it never led, is refused."""
        message = flight.message
        if type(message) is Nack and "duel_ended_by_back_off" in self._sought:
            ballot = message.rejected
            is_own = owner_of(ballot) == node.node_id and ballot in self._asked
            if is_own and ballot not in self._elections.leaders:
                self._beaten[node.node_id] = None
        return ""

    # -- Readys --

    def check_ready(self, nodes: Nodes, node: ClusterNode, ready: Ready) -> str:
        """Look out for adopted values, and for slots handed out with different ballots."""
        if self._proposals.has_adopted and "value_adopted_from_promise" in self._sought:
            self._reach("value_adopted_from_promise")
        if ready.committed and "slot_learned_at_two_ballots" in self._sought:
            for entry in ready.committed:
                if self._committed.setdefault(entry.index, entry.term) != entry.term:
                    self._reach("slot_learned_at_two_ballots")
                    break
        return ""

    # -- what changed --

    def check_event(self, nodes: Nodes, node: ClusterNode) -> str:
        """Look at what was chosen, and at what changed in the node's status."""
        chosen = self._record.chosen
        if len(chosen) > self._chosen_count:
            if "slots_chosen_out_of_order" in self._sought:
                self._watch_choices(nodes)
            self._chosen_count = len(chosen)
        status = node.status_seen
        run, seen = self._seen.get(node.node_id, (0, status))
        if run and seen is status:
            return ""
        self._seen[node.node_id] = (node.run, status)
        led_already = (run, seen.term, seen.role) == (node.run, status.term, Role.LEADER)
        # Whoever hears of a higher ballot promises it: this one gave up by itself.
        gave_up = led_already and status.role is not Role.LEADER
        if gave_up and "check_quorum_step_down" in self._sought:
            self._reach("check_quorum_step_down")
        if len(self._elections.leaders) > self._led_count:
            self._led_count = len(self._elections.leaders)
            self._watch_duel(node.node_id)
        return ""

    def _watch_choices(self, nodes: Nodes) -> None:
        """Slots were chosen since this was last asked, the newest last."""
        chosen = self._record.chosen
        for slot in list(chosen)[self._chosen_count :]:
            before = slot - 1
            if before and before not in chosen and not self._is_on_quorum(nodes, before):
                self._reach("slots_chosen_out_of_order")
                return

    def _is_on_quorum(self, nodes: Nodes, slot: LogIndex) -> bool:
        """Whether some vote in the slot is on a quorum's disks, those of crashed nodes included."""
        voters: dict[Term, list[NodeId]] = {}
        for node_id, node in nodes.items():
            held = node.disk_entry(slot)
            if held is not None:
                voters.setdefault(held.term, []).append(node_id)
        return any(self._quorum.is_quorum(each) for each in voters.values())

    def _watch_duel(self, leader_id: NodeId) -> None:
        """Somebody new leads."""
        if len(self._beaten) > 1 and leader_id in self._beaten:
            self._sought.pop("duel_ended_by_back_off", None)
            self._goals.reach("duel_ended_by_back_off")
        self._beaten.clear()


TRIAL: Final = MultiPaxosTrial()
