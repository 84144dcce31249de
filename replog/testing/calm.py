"""Troubles that a calm cluster is given at last, one at a time, and what must come of each.

Amid the faults of chance nobody can say what a node should have done by now; in calm everybody can.
Each function says which goal it came to; ``""``: the cluster has nobody to spare for the trouble.
"""

from __future__ import annotations

from replog.quorum import QuorumSystem
from replog.testing.cluster import Cluster
from replog.types import NO_NODE, NodeId, Role


def check_deaf_node(cluster: Cluster, leader_id: NodeId, ticks: int) -> str:
    """Who is cut off from the leader alone deposes nobody: the others hear it (L8)."""
    deaf_id = _spare_node(cluster, leader_id)
    if not deaf_id:
        return ""
    term = cluster.nodes[leader_id].replica.engine.term
    cluster.partition((leader_id,), (deaf_id,))
    cluster.tick(ticks)
    engine = cluster.nodes[leader_id].replica.engine
    if (engine.soft_state.role, engine.term) != (Role.LEADER, term):
        raise cluster.violation(
            f"L8: node {leader_id} led in term {term}, and node {deaf_id}, cut off from it alone, "
            "deposed it"
        )
    return "deaf_node_disturbed_nobody"


def check_lone_leader(cluster: Cluster, leader_id: NodeId, ticks: int, quorum: QuorumSystem) -> str:
    """A leader that reaches nobody, and alone can commit nothing, gives up (L9).

    It may lead again, in a later term, where one node is enough to become leader.
    """
    if quorum.is_quorum((leader_id,)):
        return ""
    term = cluster.nodes[leader_id].replica.engine.term
    cluster.isolate(leader_id)
    cluster.tick(ticks)
    engine = cluster.nodes[leader_id].replica.engine
    if (engine.soft_state.role, engine.term) == (Role.LEADER, term):
        raise cluster.violation(
            f"L9: node {leader_id} reaches nobody, and after {ticks} ticks it leads in term {term} "
            "still"
        )
    return "lone_leader_gave_up"


def check_vain_transfer(cluster: Cluster, leader_id: NodeId, ticks: int, payload: bytes) -> str:
    """A transfer to a node that nobody reaches ends, and commands are taken again (L10)."""
    successor_id = _spare_node(cluster, leader_id)
    if not successor_id:
        return ""
    cluster.isolate(successor_id)
    cluster.transfer(leader_id, successor_id)
    if not cluster.run_until_done(payload, ticks):
        raise cluster.violation(
            f"L10: node {leader_id} was to hand over to node {successor_id}, which nobody reaches, "
            f"and after {ticks} ticks no fresh proposal is done"
        )
    return "vain_transfer_called_off"


def _spare_node(cluster: Cluster, leader_id: NodeId) -> NodeId:
    """A node that the others can do without."""
    for node_id, node in cluster.nodes.items():
        if node_id != leader_id and node.is_running and cluster.can_lose(node_id):
            return node_id
    return NO_NODE
