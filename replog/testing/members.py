"""Which incarnations of the nodes of a test cluster take part: whose messages pass, what must hold.

In a real cluster the handshake settles that for a connection, in both directions, by what the
replica of either end has applied (:func:`replog.control.incarnation_in_force`).  Here every message
carries who sent it and whom that means, and both ends look at it when it leaves and when it
arrives: a connection on which the members change is closed.

What is judged here, by the entries that were committed and not by what the replicas say:

* **I19** At a replica takes part, of each node, the very incarnation that the entries name which it
  has applied: the founding voter, or the learner that was taken in last.  It hears no other, and a
  node that has applied the entry by which its own is replaced, having taken part, has stopped.
* **I20** A learner follows: it never leads or tries to.  :class:`LearnersOnlyLearn` has an engine
  say what it must not send.  (That its disk counts for nothing is I5.)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from replog.control import incarnation_in_force, unpack_learner
from replog.testing.checks import Broken, Check, Nodes
from replog.types import Epoch, LogIndex, NodeId, Role

if TYPE_CHECKING:
    from replog.testing.driver import Driver
    from replog.testing.network import Flight
    from replog.testing.nodes import ClusterNode


class Members:
    """Who takes part in one cluster, node by node."""

    __slots__ = ("_driver", "_installed", "_known", "_taken_in", "epoch", "is_founding")

    def __init__(self, driver: Driver) -> None:
        self._driver = driver
        self.epoch: Epoch
        """The founding one; given by who begins the runs."""
        self.is_founding = True
        """Whether there never was another incarnation of any node, so that there is nothing to look
        at."""
        self._known: tuple[int, Mapping[NodeId, int]] = (0, {})
        """How many control entries were looked at last, and whom they take in."""
        self._taken_in: dict[NodeId, int] = {}
        """Learners that have applied the entry that takes them in, with the run that did."""
        self._installed: dict[int, None] = {}
        """The incarnations that were filled from a snapshot."""

    # -- whose messages pass --

    def stamp(self, flight: Flight) -> None:
        """A message leaves: note who sends it, and whom that means."""
        if self.is_founding:
            return
        sender = self._driver.invariants.nodes[flight.sender]
        flight.incarnations = (sender.incarnation, self._in_force(sender, flight.to) or 0)

    def passes(self, flight: Flight) -> bool:
        """Whether both ends of a message are who the other one takes part with."""
        if self.is_founding:
            return True
        to = self._driver.invariants.nodes[flight.to]
        sender_incarnation, meant = flight.incarnations
        if meant != to.incarnation:
            return False
        return not to.is_up or self._in_force(to, flight.sender) == sender_incarnation

    def _in_force(self, node: ClusterNode, node_id: NodeId) -> int | None:
        """What a node itself takes to be the incarnation of another one."""
        return incarnation_in_force(self.epoch, node.replica.learners, node_id)

    def renewed(self, node: ClusterNode) -> Sequence[NodeId]:
        """The peers that are other incarnations for the node's engine than when this was last
        asked."""
        learners, seen = node.replica.engine.learners, node.learners_seen
        if learners == seen:
            return ()
        node.learners_seen = learners
        return [learner.node_id for learner in learners if learner not in seen]

    # -- what must hold --

    def at(self, index: LogIndex) -> Mapping[NodeId, int]:
        """Whom the entries up to ``index`` take in, by node; every other one is the voter."""
        entries = self._driver.invariants.controls
        count = len(entries)
        while count and entries[count - 1].index > index:
            count -= 1
        if self._known[0] != count:
            taken_in = [unpack_learner(entry) for entry in entries[:count]]
            self._known = (count, {each.node_id: each.incarnation for each in taken_in})
        return self._known[1]

    def check_received(self, node: ClusterNode, flight: Flight) -> None:
        """A message is about to be given to ``node``."""
        if self.is_founding:
            return
        own, meant = flight.incarnations
        index = node.replica.learners_index
        in_force = self.at(index).get(flight.sender, flight.sender)
        if own != in_force:
            raise Broken(
                f"I19: node {node.node_id} hears incarnation {own} of node {flight.sender}, and as "
                f"of entry {index}, which it knows of, {in_force} takes part"
            )
        if meant != node.incarnation:
            raise Broken(
                f"I19: incarnation {node.incarnation} of node {node.node_id} hears what was said "
                f"to {meant}"
            )

    def check_event(self, node: ClusterNode) -> None:
        """An event at ``node`` was dealt with."""
        if self.is_founding:
            return
        replica = node.replica
        taken_in = self.at(replica.learners_index)
        if {each.node_id: each.incarnation for each in replica.learners} != taken_in:
            raise Broken(
                f"I19: node {node.node_id} takes {list(replica.learners)} for the learners, and "
                f"the entries up to {replica.learners_index}, which it knows of, name {taken_in}"
            )
        role = replica.engine.soft_state.role
        if node.is_learner and role is not Role.FOLLOWER:
            raise Broken(f"I20: node {node.node_id} is a learner and a {role.value}")
        uncounted = [each.node_id for each in replica.engine.learners]
        if node.is_learner and node.node_id not in uncounted:
            raise Broken(f"I20: node {node.node_id} is a learner, and takes itself for a voter")
        in_force = taken_in.get(node.node_id)
        if in_force == node.incarnation:
            self._taken_in[node.node_id] = node.run
            self._note_came(node)
        elif in_force and self._took_part(node):
            raise Broken(
                f"I19: incarnation {node.incarnation} of node {node.node_id} goes on, and has "
                f"applied the entry by which {in_force} takes its place"
            )

    def _took_part(self, node: ClusterNode) -> bool:
        return not node.is_learner or self._taken_in.get(node.node_id) == node.run

    def check_replaced(self, node: ClusterNode) -> None:
        """``node`` stops, because another incarnation took its place."""
        taken_in = [unpack_learner(entry) for entry in self._driver.invariants.controls]
        mine = [each.incarnation for each in taken_in if each.node_id == node.node_id]
        if node.is_learner:  # what stands before the entry that takes it in is about earlier ones
            at = mine.index(node.incarnation) if node.incarnation in mine else len(mine)
            mine = mine[at + 1 :]
        if all(each == node.incarnation for each in mine):
            raise Broken(f"I19: node {node.node_id} stops as if it were replaced, and it is not")

    # -- goals --

    def note_installed(self, node: ClusterNode) -> None:
        """A node was filled from a snapshot."""
        self._installed[node.incarnation] = None

    def _note_came(self, node: ClusterNode) -> None:
        """A learner that is taken in has applied something."""
        if node.replica.applied_index == len(self._driver.invariants.chosen):
            is_installed = node.incarnation in self._installed
            way = "snapshot" if is_installed else "log"
            self._driver.goals.reach(f"learner_caught_up_by_{way}")


class LearnersOnlyLearn(Check):
    """A learner votes for nobody and asks nobody to; each engine says which of its messages do
    that (``takes_sides``), and under which number it has this rule."""

    def __init__(self, number: str, takes_sides: Callable[[Flight], bool]) -> None:
        self._number = number
        self._takes_sides = takes_sides

    def check_sent(self, nodes: Nodes, flight: Flight) -> str:
        """Look at who sends what."""
        if nodes[flight.sender].is_learner and self._takes_sides(flight):
            return f"{self._number}: node {flight.sender} is a learner and sends a {flight.kind}"
        return ""
