"""A fault of its own: a replica whose state seems to be another than that of the others.

Only the digest of its state is wrong (:attr:`replog.testing.judged_machine.JudgedMachine.error`),
so that every other judge goes on as before.  It must be found, and nobody else: the node stops and
names the first wrong entry, or says that it cannot know it (I26).  It comes back as after any other
failure, with a machine that is made anew and right.  Who is still wrong when all else is calm is
found soon (L12).

Never more than a minority is wrong at a time, and no two in the same way: then there is a majority
to be believed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, cast

from replog.errors import ReplicaDiverged
from replog.testing.checks import Broken
from replog.testing.goals import Goals
from replog.testing.judged_machine import JudgedMachine
from replog.testing.nodes import ClusterNode
from replog.types import NodeId

if TYPE_CHECKING:
    from replog.testing.cluster import Cluster


def is_wrong(node: ClusterNode) -> bool:
    """Whether a node runs and is in another state than the others."""
    return node.is_up and isinstance(node.machine, JudgedMachine) and node.machine.error != 0


def check_found(cluster: Cluster, leader_ticks: int, done_ticks: int, payload: bytes) -> None:
    """Judge that in calm a wrong replica is found, if a majority is right (L12); all of them are
    started again, who stops at once: without it there may be no quorum, by which others come to
    know enough to be of the majority.  A node that takes part no more knows nothing: it is not of
    it, and cannot be found."""
    wrong = _wrong(cluster)
    if not wrong:
        return
    right_count = sum(
        node.is_up and not is_wrong(node) and not cluster.is_out(node.node_id)
        for node in cluster.nodes.values()
    )
    if 2 * right_count > len(cluster.nodes):
        cluster.check_leader(leader_ticks)
        # Who comes to the first command by a snapshot that holds it applies the second.
        for _ in range(2):
            cluster.run_until_done(payload, done_ticks)
            if cluster.run_until(partial(_is_over, cluster, wrong), done_ticks):
                break
        else:
            raise cluster.violation(
                f"L12: node {wrong[0].node_id} is in another state than the others, and after "
                f"{2 * done_ticks} ticks of calm it goes on"
            )
    for node in wrong:
        if is_wrong(node):
            cluster.crash_process(node.node_id)
        if not node.is_up:
            cluster.restart(node.node_id)


def _is_over(cluster: Cluster, wrong: Sequence[ClusterNode]) -> bool:
    """Start again who stopped; whether nobody is wrong any more."""
    for node in wrong:
        if not node.is_up:
            cluster.restart(node.node_id)
    return not _wrong(cluster)


def _wrong(cluster: Cluster) -> list[ClusterNode]:
    """Who is in another state than the others, and takes part."""
    return [node for node in cluster.driver.diverging.wrong if not cluster.is_out(node.node_id)]


class Diverging:
    """Makes replicas differ, and judges who is found."""

    __slots__ = ("_goals", "_nodes")

    def __init__(self, nodes: Mapping[NodeId, ClusterNode], goals: Goals) -> None:
        self._nodes = nodes
        self._goals = goals

    @property
    def wrong(self) -> list[ClusterNode]:
        """The nodes that run and are in another state than the others."""
        return [node for node in self._nodes.values() if is_wrong(node)]

    def begin(self, node: ClusterNode) -> None:
        """From the next command on this node is in another state, if enough others are right."""
        is_judged = node.is_up and isinstance(node.machine, JudgedMachine)
        if is_judged and 2 * (len(self.wrong) + 1) < len(self._nodes):
            cast(JudgedMachine, node.machine).error = node.node_id

    def judge(self, node: ClusterNode, error: ReplicaDiverged) -> None:
        """A node has found that it is the one that differs, and stops."""
        machine = node.machine
        if not isinstance(machine, JudgedMachine) or not machine.wrong_index:
            raise Broken(f"I26: node {node.node_id} stops though its replica is right: {error}")
        if error.index < machine.wrong_index or (
            error.index > machine.wrong_index and "or before it" not in str(error)
        ):
            raise Broken(
                f"I26: node {node.node_id} is wrong from entry {machine.wrong_index} on, and says: "
                f"{error}"
            )
        self._goals.reach("divergence_found")
        if error.index == machine.wrong_index:
            self._goals.reach("first_difference_named")
