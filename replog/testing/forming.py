"""The formation of a test cluster: births, meetings, and whose messages pass.

Each node has a real :class:`~replog.formation.Formation` per run, and what it must remember becomes
durable a tick later, or is lost in a crash.  Nodes that run and reach each other, both ways, call
each other in each tick while one of them is forming; a call is a hello and its answer, and the next
one says what became durable meanwhile.

A cluster begins formed, as if its nodes had met long ago, unless it is told not to.  A node whose
disk is wiped gets another birth: every node that has met it refuses it from then on.

What is judged here (I18): what a node tells is durable at that node; no directory meets a node
under two births; who takes part was remembered by every other voter under its birth before, and no
node ever takes part under two; and (in the driver) who takes no part says nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final

from replog.errors import DirectoryRemade
from replog.formation import Formation, MetRecord
from replog.testing.checks import Broken
from replog.types import NodeId

if TYPE_CHECKING:
    from replog.testing.driver import Driver
    from replog.testing.network import Flight
    from replog.testing.nodes import ClusterNode

SAVE_TICKS: Final = 1
"""After so many ticks it is durable whom a node has met."""

BIRTHS_APART: Final = 1 << 16
"""Between the births of two directories of one node: above every node id."""


class Forming:
    """The formation of all nodes of one cluster."""

    __slots__ = ("_driver", "_met", "_nodes", "_took_part")

    def __init__(self, driver: Driver, nodes: Mapping[NodeId, ClusterNode], formed: bool) -> None:
        self._driver = driver
        driver.passes = self.passes
        self._nodes = nodes
        self._met: dict[tuple[NodeId, NodeId], dict[int, None]] = {}
        """By (who met, whom): under which births, ever; durably."""
        self._took_part: dict[NodeId, int] = {}
        """The birth under which each node has taken part."""
        for node in nodes.values():
            node.birth = node.node_id
        if formed:
            for node in nodes.values():
                others = [each for each in nodes.values() if each is not node]
                self._keep(
                    node,
                    MetRecord(
                        tuple((other.node_id, other.birth) for other in others),
                        tuple(other.node_id for other in others),
                    ),
                )

    def begin(self, node: ClusterNode) -> None:
        """A run of a node begins: it knows what its disk remembers."""
        node.formation = Formation(node.node_id, node.birth, tuple(self._nodes), node.met)
        self._admit(node)

    def wipe(self, node: ClusterNode) -> None:
        """A node's directory is made anew: it has another birth, and has met nobody."""
        node.birth += BIRTHS_APART
        node.met = MetRecord()

    def is_refused(self, node_id: NodeId) -> bool:
        """Whether some node has met this one under another birth than it has now."""
        birth = self._nodes[node_id].birth
        if self._nodes[node_id].is_learner:
            return False  # its incarnation names the directory
        return any(
            dict(other.met.met).get(node_id, birth) != birth for other in self._nodes.values()
        )

    def passes(self, flight: Flight) -> bool:
        """Whether both ends of a message have met each other under the births that they have."""
        sender, to = self._nodes[flight.sender], self._nodes[flight.to]
        if sender.is_learner or to.is_learner:
            return True
        return sender.formation.accepts(to.node_id, to.birth) and to.formation.accepts(
            sender.node_id, sender.birth
        )

    def can_lose(self, node_ids: Sequence[NodeId]) -> bool:
        """Whether these need none of the others any more to take part."""
        return all(self._nodes[node_id].formation.is_formed for node_id in node_ids)

    @property
    def is_over(self) -> bool:
        """Whether every node that runs takes part."""
        return all(node.turns.takes_part for node in self._nodes.values() if node.is_running)

    def tick(self) -> None:
        """Nodes that run and reach each other call each other, while one of them is forming."""
        if self.is_over:
            return
        self._driver.judge(self._call_all)

    def _call_all(self) -> None:
        """A call may be lost, so that nodes meet one after the other."""
        chance, lost_chance = self._driver.chance, self._driver.faults.lost_call_chance
        running = [node for node in self._nodes.values() if node.is_running and not node.is_learner]
        for caller in running:
            for called in running:
                is_needed = not (caller.turns.takes_part and called.turns.takes_part)
                if caller is called or not is_needed or not self._reach(caller, called):
                    continue
                if not chance.strikes("drop", lost_chance):
                    self._call(caller, called)

    def _reach(self, one: ClusterNode, other: ClusterNode) -> bool:
        """Whether a connection between two nodes holds: no direction is cut, and neither fades."""
        network = self._driver.network
        ids = (one.node_id, other.node_id)
        return not (
            network.is_link_cut(ids)
            or network.is_link_cut(ids[::-1])
            or any(node_id in network.fading for node_id in ids)
        )

    def _call(self, caller: ClusterNode, called: ClusterNode) -> None:
        """A hello, and the welcome that answers it; or a refusal by either side."""
        try:
            self._hear(called, caller)
            self._hear(caller, called)
        except DirectoryRemade:
            return

    def _hear(self, node: ClusterNode, other: ClusterNode) -> None:
        """A node takes in what another one says of itself."""
        told = other.formation.told
        if not set(told) <= set(other.met.met):
            raise Broken(f"I18: node {other.node_id} tells of a meeting that is not durable")
        was_saved = node.formation.is_saved
        try:
            node.formation.hear(other.node_id, other.birth, told)
        finally:
            if was_saved and not node.formation.is_saved:
                due = self._driver.agenda.now + SAVE_TICKS
                self._driver.agenda.plan(due, partial(self._save, node, node.run))

    def _save(self, node: ClusterNode, run: int) -> None:
        """What a node has heard is durable, unless its run is over; a paused one saves later."""
        if node.run != run or not node.is_up:
            return
        self._driver.judge(partial(self._save_now, node))

    def _save_now(self, node: ClusterNode) -> None:
        recorded = node.formation.record()
        self._keep(node, recorded)
        node.formation.handle_saved(recorded)
        pairs = {f"n{node_id}": birth for node_id, birth in recorded.met}
        self._driver.note(node.node_id, "met", **pairs)
        self._admit(node)

    def _keep(self, node: ClusterNode, recorded: MetRecord) -> None:
        before = dict(node.met.met)
        for node_id, birth in recorded.met:
            if before.get(node_id, birth) != birth:
                raise Broken(f"I18: node {node.node_id} has met node {node_id} under two births")
            self._met.setdefault((node.node_id, node_id), {})[birth] = None
        node.met = recorded

    def _admit(self, node: ClusterNode) -> None:
        """Let a node take part as soon as it is formed, and judge whether it may."""
        is_news = not node.turns.takes_part
        node.turns.waits_for = node.formation.waits_for
        if not node.turns.takes_part:
            return
        for other_id in self._nodes:
            known = self._met.get((other_id, node.node_id), {})
            if other_id != node.node_id and node.birth not in known:
                raise Broken(
                    f"I18: node {node.node_id} takes part, and node {other_id} never met it"
                )
        if self._took_part.setdefault(node.node_id, node.birth) != node.birth:
            raise Broken(f"I18: node {node.node_id} takes part under two births")
        if is_news:
            self._driver.note(node.node_id, "formed")
            if all(each.formation.is_formed for each in self._nodes.values()):
                self._driver.goals.reach("cluster_formed")
