"""The operator of a test cluster, who puts new incarnations of nodes in the place of others.

A voter that has lost its disk comes back with an empty one, as another incarnation and a learner.
The operator has some running node propose the entry that takes it in, mostly the leader, and does
so again when that is refused, when the outcome is unknown, and when nobody answers: it is the same
entry, so it may be committed twice.

A node may also be replaced while it runs.  Then the old incarnation goes on until it hears of the
entry and stops by itself, or the operator, who was told that the entry is committed, stops it; only
then does the new one begin.  Two of them never run at once here: they could not hear each other.

The new directory may begin with a backup, which is a snapshot of another node.  It is taken before
anybody is asked to take the incarnation in, so that it is in front of the entry; ``back_up`` at any
other time shows what happens else.

What the operator decides by chance comes from a source of its own, which is asked only while there
is something to do.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Final

from replog.control import pack_learner
from replog.errors import NodeActive, NotDone
from replog.testing.checks import Broken
from replog.testing.driver import QUIET
from replog.types import LogIndex, NodeId, Role, Voter

if TYPE_CHECKING:
    from replog.testing.driver import Driver
    from replog.testing.nodes import ClusterNode
    from replog.testing.runs import Runs

INCARNATIONS_APART: Final = 1 << 16
"""Between two incarnations of one node: above every node id."""

PATIENCE_TICKS: Final = 30
"""After so long without an answer the operator asks again, ..."""

REFUSED_TICKS_MAX: Final = 5
"""... after so long at most when that was refused."""

FINISH_TICKS_MAX: Final = 20
"""How long an old incarnation may run at most, when it is known that the new one is taken in."""

BACKUP_CHANCE: Final = 0.4
"""How likely it is that a new directory begins with a backup amid faults, if some node has a
snapshot."""

LEADER_CHANCE: Final = 0.8
"""How likely it is that the operator asks a node that leads, if there is one."""


class Rejoining:
    """Replaces nodes of one cluster by new incarnations of them."""

    __slots__ = (
        "_ask_at",
        "_backups",
        "_control_count",
        "_driver",
        "_nodes",
        "_random",
        "_runs",
        "_wanted",
    )

    def __init__(self, driver: Driver, nodes: Mapping[NodeId, ClusterNode], runs: Runs) -> None:
        self._driver = driver
        self._nodes = nodes
        self._runs = runs
        self._random = Random(f"{driver.seed}/operator")
        self._wanted: dict[NodeId, Voter] = {}
        """Whom the operator asks to be taken in, and was not told that it is done."""
        self._ask_at: dict[NodeId, int] = {}
        """When to ask again."""
        self._backups: dict[NodeId, tuple[Path, bytes]] = {}
        """What the next directory of a node begins with: a snapshot's file."""
        self._control_count = 0
        """How many control entries there were when they were last looked at."""
        driver.handle_replaced = self.handle_replaced

    # -- what is so --

    @property
    def is_at_rest(self) -> bool:
        """Whether nobody is to be taken in, and nobody is to be replaced."""
        return not self._wanted and all(
            node.incarnation == node.incarnation_wanted for node in self._nodes.values()
        )

    def is_whole(self, node: ClusterNode) -> bool:
        """Whether a node is the founding voter, and is to stay that."""
        return node.incarnation_wanted == node.node_id

    # -- what is done --

    def replace(self, node: ClusterNode) -> None:
        """Begin to have another incarnation of a node taken in."""
        node.incarnation_wanted += INCARNATIONS_APART
        self._wanted[node.node_id] = Voter(node.node_id, node.incarnation_wanted)
        self._ask_at[node.node_id] = self._driver.agenda.now
        self._driver.members.is_founding = False
        self._driver.note(node.node_id, "replace", incarnation=node.incarnation_wanted)
        self._backups.pop(node.node_id, None)
        others = [each for each in self._nodes.values() if each is not node]
        sources = [each for each in others if each.snapshots.durable_index]
        is_quiet = self._driver.faults is QUIET
        if sources and not is_quiet and self._random.random() < BACKUP_CHANCE:
            self.back_up(node, self._random.choice(sources))

    def back_up(self, node: ClusterNode, source: ClusterNode) -> None:
        """Keep the newest snapshot of another node, for ``node`` to begin with if its disk has
        room then."""
        files = source.snapshots.files
        fault, files.fault = files.fault, None  # the operator reads them, not the node
        newest = source.snapshots.store.newest()
        assert newest is not None, f"node {source.node_id} has no snapshot"
        self._backups[node.node_id] = (newest.path, files.read(newest.path))
        files.fault = fault
        self._driver.note(
            node.node_id, "back_up", f"n{source.node_id}", index=newest.meta.last.index
        )

    def rejoin(self, node: ClusterNode, started: bool) -> None:
        """A node that is down lost its disk, and comes back under another incarnation: now, or when
        that is taken in."""
        if node.incarnation == node.incarnation_wanted:
            self.replace(node)
        if node.is_learner:
            self._driver.goals.reach("rejoined_twice")
        node.renew()
        if (backup := self._backups.pop(node.node_id, None)) is not None and not node.is_full:
            node.snapshots.put(*backup)
            self._driver.goals.reach("learner_began_with_backup")
        self._driver.note(node.node_id, "rejoin", incarnation=node.incarnation)
        if started:
            self._runs.start(node, "restart")

    def handle_replaced(self, node: ClusterNode) -> None:
        """A node stops, because it has heard that it was replaced."""
        self._driver.members.check_replaced(node)
        self._driver.goals.reach("replaced_node_stopped")
        if node.incarnation == node.incarnation_wanted:
            self.replace(node)  # by an entry of an earlier one that came late
        self._plan_finish(node)

    def _plan_finish(self, node: ClusterNode) -> None:
        due = self._driver.agenda.now + self._random.randint(1, FINISH_TICKS_MAX)
        self._driver.agenda.plan(due, partial(self._finish, node, node.incarnation_wanted))

    def _finish(self, node: ClusterNode, incarnation: int) -> None:
        """Have the new incarnation run, and the old one no more."""
        if node.incarnation_wanted != incarnation:
            return
        if node.incarnation != incarnation:
            if node.is_up:
                self._runs.stop(node)
            self.rejoin(node, started=True)
        elif not node.is_up:
            self._runs.start(node, "restart")

    # -- asking --

    def tick(self) -> None:
        """Ask for what is wanted, in the order of the nodes."""
        if self._driver.members.is_founding:
            return
        self._look_at_entries()
        for node_id in sorted(self._wanted):
            if self._ask_at[node_id] <= self._driver.agenda.now:
                self._ask(self._wanted[node_id])

    def _look_at_entries(self) -> None:
        """Whoever was taken in may be pushed out by an entry of an earlier incarnation that was
        proposed before and is committed late: then it is asked for again."""
        controls = self._driver.invariants.controls
        if len(controls) == self._control_count:
            return
        self._control_count = len(controls)
        taken_in = self._driver.members.at(controls[-1].index)
        for node_id, incarnation in sorted(taken_in.items()):
            wanted = self._nodes[node_id].incarnation_wanted
            if incarnation != wanted and node_id not in self._wanted:
                self._wanted[node_id] = Voter(node_id, wanted)
                self._ask_at[node_id] = self._driver.agenda.now

    def _ask(self, learner: Voter) -> None:
        """Have some node propose the entry."""
        able = [node for node in self._nodes.values() if node.is_running and node.turns.takes_part]
        leaders = [each for each in able if each.replica.engine.soft_state.role is Role.LEADER]
        random = self._random
        among = leaders if leaders and random.random() < LEADER_CHANCE else able
        if among:
            node = random.choice(among)
            self._ask_at[learner.node_id] = self._driver.agenda.now + PATIENCE_TICKS
            self._driver.turn(node, partial(self._propose, node, learner))

    def _propose(self, node: ClusterNode, learner: Voter) -> None:
        was_in = learner in node.replica.learners
        try:
            node.turns.admit(learner, partial(self._hear, learner, was_in))
        except NotDone as refusal:
            self._ask_soon(learner)
            self._driver.note(node.node_id, "refuse", reason=type(refusal).__name__)
            if isinstance(refusal, NodeActive):
                self._plan_finish(node)  # the operator is told to stop it, and does
            return
        self._driver.note(
            node.node_id, "take_in", f"n{learner.node_id}", incarnation=learner.incarnation
        )

    def _ask_soon(self, learner: Voter) -> None:
        ticks = self._random.randint(1, REFUSED_TICKS_MAX)
        self._ask_at[learner.node_id] = self._driver.agenda.now + ticks

    def _hear(
        self, learner: Voter, was_in: bool, index: LogIndex, _: object, error: Exception | None
    ) -> None:
        """What became of the entry: it is committed, or perhaps not; ``was_in``: at the node that
        was asked it was committed before."""
        if self._wanted.get(learner.node_id) != learner:
            return
        if error is not None:
            self._ask_soon(learner)
            return
        entry = self._driver.invariants.chosen.get(index)
        if not was_in and (entry is None or entry.data != pack_learner(learner)):
            raise Broken(
                f"I6: that node {learner.node_id} is taken in was reported done, and another value "
                f"is committed at index {index}"
            )
        del self._wanted[learner.node_id]
        self._driver.goals.reach("learner_admitted")
        self._plan_finish(self._nodes[learner.node_id])
