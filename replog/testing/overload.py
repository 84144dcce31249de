"""Crowds at a leader whose machine is slow, and whether it refuses them as it should.

A *rush* is some commands more than the clients ask for, in some ticks one after the other, at a
node that meanwhile takes each turn that it asked for late: its loop is busy with the machine.  Each
of these commands is a client of its own, who asks once.

What is judged of every node at any time (I15, I6):

* A leader proposes no command while more than ``unapplied_entries_max`` entries are committed and
  not applied there; and of the commands that it has taken and not applied there are no more than
  that, with no more than ``unapplied_bytes_max`` bytes.
* Whoever refuses for ``unapplied_entries_max`` leads, and has so many of the one or of the other.
* Who is refused is told when to come back, within the bounds of what a refusal may name.
* A command that was refused was not proposed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from random import Random
from typing import TYPE_CHECKING, Final

from replog.admission import RETRY_MS_MAX, RETRY_MS_MIN
from replog.errors import DiskFull, NotDone, Overloaded
from replog.limits import Limits
from replog.testing.checks import Broken
from replog.testing.nodes import ClusterNode, Proposal
from replog.types import NodeId, Role, Waiter

if TYPE_CHECKING:
    from replog.testing.driver import Driver

CROWD_NUMBERS: Final = 1000
"""In a history the commands of rushes are numbered from here on, as clients."""

RUSH_TICKS_MAX: Final = 4
RUSH_COMMANDS_MAX: Final = 12
LAG_TICKS_MAX: Final = 4


class Crowd:
    """The rushes of one run, and the judge of what its nodes refuse."""

    __slots__ = ("_count", "_driver", "_limits", "_nodes", "_random", "_rush", "lags")

    def __init__(self, driver: Driver, nodes: Mapping[NodeId, ClusterNode], limits: Limits) -> None:
        self._driver = driver
        self._nodes = nodes
        self._limits = limits
        self.lags: dict[NodeId, int] = {}
        """How many ticks after it asked for a turn a node takes that; what comes up meanwhile has
        its own turn.  Only ever looked up."""
        self._random = Random("no rush")
        self._rush: list[int] = []
        """How many commands are to be asked for in each of the next ticks."""
        self._count = 0
        """How many were, in all rushes."""

    # -- rushes --

    def begin(self, node_id: NodeId, random: Random, ticks: int) -> None:
        """Let a rush begin, and the machine of a node be slow for some time."""
        if self._rush:
            return
        self._random = random
        counts = [random.randint(1, RUSH_COMMANDS_MAX) for _ in range(RUSH_TICKS_MAX)]
        self._rush = counts[: random.randint(1, RUSH_TICKS_MAX)]
        self.lags[node_id] = lag = random.randint(1, LAG_TICKS_MAX)
        self._driver.note(node_id, "overload", lag=lag, commands=sum(self._rush))
        agenda = self._driver.agenda
        agenda.plan(agenda.now + ticks, partial(self.lags.pop, node_id, 0))

    def end(self) -> None:
        """No rush goes on, and no machine is slow."""
        self._rush = []
        self.lags.clear()

    def ask(
        self,
        choose_node: Callable[[float], NodeId],
        draw: Callable[[Random, int], bytes],
        commands_max: int,
    ) -> None:
        """Ask for the commands of this tick; there may be ``commands_max`` in all, of any kind."""
        if not self._rush:
            return
        random, driver = self._random, self._driver
        node_id = choose_node(random.random())
        for _ in range(self._rush.pop(0)):
            number = len(driver.proposals) + 1
            payload = draw(random, number)
            if node_id and self._nodes[node_id].is_running and number <= commands_max:
                self._count += 1
                client = CROWD_NUMBERS + self._count
                driver.propose(self._nodes[node_id], payload, client)

    # -- what is judged --

    def check_offered(self, node: ClusterNode, waiters: Sequence[Waiter]) -> None:
        """A node is about to propose commands; whoever does not lead is refused by its engine."""
        replica, limits = node.replica, self._limits
        if replica.engine.soft_state.role is not Role.LEADER:
            return
        gap = replica.engine.commit_index - replica.applied_index
        if gap > limits.unapplied_entries_max:
            raise Broken(
                f"I15: node {node.node_id} proposes commands while {gap} entries are committed and "
                f"not applied, above unapplied_entries_max = {limits.unapplied_entries_max}"
            )
        taken = self._unapplied(node) + [each for each in waiters if isinstance(each, Proposal)]
        if len(taken) > limits.unapplied_entries_max:
            raise Broken(
                f"I15: node {node.node_id} has taken {len(taken)} commands that are not applied, "
                f"above unapplied_entries_max = {limits.unapplied_entries_max}"
            )
        taken_bytes = sum([each.size_bytes for each in taken])
        if taken_bytes > limits.unapplied_bytes_max:
            raise Broken(
                f"I15: node {node.node_id} has taken {taken_bytes} bytes of commands that are not "
                f"applied, above unapplied_bytes_max = {limits.unapplied_bytes_max}"
            )

    def _unapplied(self, node: ClusterNode) -> list[Proposal]:
        """What a leader has proposed in its term and not applied."""
        applied_index, term = node.replica.applied_index, node.replica.engine.term
        return [
            each
            for each in self._driver.proposals
            if each.index > applied_index and each.term == term and each.node_id == node.node_id
        ]

    def judge_refusal(self, proposal: Proposal, refusal: NotDone) -> None:
        """A command ends as definitely not done."""
        goals = self._driver.goals
        if isinstance(refusal, DiskFull):
            goals.reach("full_disk_refused")
        elif isinstance(refusal, Overloaded) and not proposal.index:
            if "submitted and not proposed" in str(refusal):
                goals.reach("crowd_refused")
            self._judge_gap(proposal.node_id, refusal)
        if not isinstance(refusal, Overloaded):
            return
        if proposal.mark is None and proposal.index:
            raise Broken(
                f"I6: p{proposal.number} was refused, and proposed at index {proposal.index}"
            )
        if not proposal.index:
            self._judge_hint(proposal, refusal.retry_after_ms)

    def _judge_gap(self, node_id: NodeId, refusal: Overloaded) -> None:
        """Who says that its machine cannot follow says the truth."""
        if "unapplied_entries_max" not in str(refusal):
            return
        self._driver.goals.reach("overload_refused")
        replica = self._nodes[node_id].replica
        if replica.engine.soft_state.role is not Role.LEADER:
            raise Broken(
                f"I15: node {node_id} refuses a command for what it has not applied, and does not "
                "lead: it takes none at any rate, and others might"
            )
        gap = replica.engine.commit_index - replica.applied_index
        taken_count = replica.waiting_count + len(self._nodes[node_id].unproposed)
        limit = self._limits.unapplied_entries_max
        if gap <= limit and taken_count < limit:
            raise Broken(
                f"I15: node {node_id} refuses a command, and no more than {gap} entries are "
                f"committed and not applied, and {taken_count} commands taken"
            )

    def _judge_hint(self, proposal: Proposal, retry_after_ms: int) -> None:
        if not RETRY_MS_MIN <= retry_after_ms <= RETRY_MS_MAX:
            raise Broken(
                f"I15: node {proposal.node_id} refuses p{proposal.number} and has it come back "
                f"after {retry_after_ms} ms"
            )
