"""How a cluster becomes calm, what must come of it then, and the troubles that it is given at last,
one at a time.

Amid the faults of chance nobody can say what a node should have done by now; in calm everybody can:
a leader, a fresh proposal done, all replicas equal.  Each function that gives it a trouble says
which goal it came to (one of them: which goals); nothing: the cluster has nobody to spare for that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from replog.machine import MachineKind, machine_kind
from replog.quorum import QuorumSystem
from replog.testing.nodes import Outcome, Proposal
from replog.types import NO_NODE, NodeId, Role

if TYPE_CHECKING:
    from replog.testing.chance import Chance
    from replog.testing.cluster import Cluster

OWN_ENTRIES_MAX: Final = 6
"""A leader that is cut off has up to so many entries to itself, and twice the margin that is not
trimmed."""

TRIM_TICKS_MAX: Final = 20
"""A snapshot is taken, and the log trimmed behind it, within so many ticks, or not waited for."""

FILLED_CRASH_CHANCE: Final = 0.25
"""Per tick: a node that is filled from a snapshot crashes, ..."""

FILLED_CRASHES_MAX: Final = 4
"""... so often at most: in the end it must be filled."""


def end_faults(cluster: Cluster) -> None:
    """Make a cluster calm; see :meth:`replog.testing.cluster.Cluster.calm`."""
    cluster.heal()
    cluster.release()
    cluster.driver.crowd.end()
    for node_id in cluster.nodes:
        cluster.end_fade(node_id)
    for node_id, node in cluster.nodes.items():
        node.clock_rate, node.clock_ahead_ms = 100, 0
        if node.log_disk is not None:
            node.log_disk.files.fault = None
        node.clear_disk()
        if node.is_lost:
            continue
        if not node.is_up:
            cluster.restart(node_id)
        elif node.is_paused:
            cluster.resume(node_id)
        cluster.release_disk(node_id)


def restart_everybody(cluster: Cluster) -> None:
    """End every process of a calm cluster, and start all of them again."""
    node_ids = [
        node_id
        for node_id, node in cluster.nodes.items()
        if node.is_up and not cluster.is_out(node_id)
    ]
    for node_id in node_ids:
        cluster.crash_process(node_id)
    for node_id in node_ids:
        cluster.restart(node_id)


def check_leader(cluster: Cluster, ticks_max: int) -> None:
    """Judge that there is a leader within so many ticks (L1)."""
    if not cluster.run_until(lambda: cluster.leader() != NO_NODE, ticks_max):
        raise cluster.violation(f"L1: no leader after {ticks_max} ticks of calm")


def check_liveness(
    cluster: Cluster, leader_ticks_max: int, done_ticks_max: int, payload: bytes
) -> None:
    """Judge that the cluster works (L1, L2, L3, L5); see
    :meth:`replog.testing.cluster.Cluster.check_liveness`."""
    cluster.check_leader(leader_ticks_max)
    if not cluster.run_until_done(payload, done_ticks_max):
        raise cluster.violation(f"L2: no fresh proposal done in {done_ticks_max} ticks")
    if not cluster.run_until(cluster.is_converged, done_ticks_max):
        raise cluster.violation(f"L3: the replicas differ after {done_ticks_max} ticks")
    _check_outcomes(cluster)


def _check_outcomes(cluster: Cluster) -> None:
    """Judge what clients were told (L5), and were told is done (I6)."""
    for proposal in cluster.proposals:
        if proposal.outcome is Outcome.PENDING:
            raise cluster.violation(f"L5: nobody told what became of p{proposal.number}")
    cluster.check_acknowledged()


def is_done(cluster: Cluster, fresh: list[Proposal], payload: bytes) -> bool:
    """Whether the last of ``fresh`` is done; proposes once more when the last one failed."""
    leader_id = cluster.leader()
    if fresh and fresh[-1].outcome in (Outcome.PENDING, Outcome.DONE):
        return fresh[-1].outcome is Outcome.DONE
    if leader_id != NO_NODE:
        fresh.append(cluster.propose(leader_id, payload))
    return False


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


def check_overtaken_leader(
    cluster: Cluster,
    leader_id: NodeId,
    ticks: int,
    margin: int,
    draw: Callable[[], bytes],
    chance: Chance,
) -> Sequence[str]:
    """Who led, and was cut off while the others went on and trimmed what it lacks, comes to be as
    they are, whatever it has to itself and behind their snapshot (L11).

    ``margin`` is how many entries in front of a snapshot are not trimmed, ``draw`` makes a command.
    While the node is filled it crashes now and then: what is on its disk must be enough to go on
    from.
    """
    nodes, alone = cluster.nodes, cluster.nodes[leader_id]
    is_plain = machine_kind(alone.machine) is MachineKind.PLAIN
    if is_plain or len(nodes) == 1 or not cluster.can_lose(leader_id):
        return ()
    random = chance.details("overtake")
    cut, held_index = cluster.isolate(leader_id), alone.status_seen.commit_index
    # What others commit below may be less, or more, and is trimmed but for ``margin``.
    for _ in range(random.randint(margin, 2 * margin + OWN_ENTRIES_MAX)):
        cluster.propose(leader_id, draw())
    payloads = [draw() for _ in range(margin + random.randint(1, 3))]
    _go_on_without(cluster, leader_id, ticks, payloads)
    others = [node for node in nodes.values() if node is not alone and node.is_up]
    for node in others:
        if node.applied_index > held_index:
            cluster.take_snapshot(node.node_id)
    is_trimmed = cluster.run_until(
        lambda: any(node.disk.base_index > held_index for node in others), TRIM_TICKS_MAX
    )
    cluster.mend(cut)
    crashes_left = FILLED_CRASHES_MAX

    def is_as_others() -> bool:
        nonlocal crashes_left
        if alone.is_fetching and crashes_left and chance.strikes("crash", FILLED_CRASH_CHANCE):
            crashes_left -= 1
            cluster.crash(leader_id)
            cluster.restart(leader_id)
        return cluster.is_converged()

    if not cluster.run_until(is_as_others, ticks):
        raise cluster.violation(
            f"L11: node {leader_id} led, was cut off while others did, and after {ticks} ticks is "
            "not as they are"
        )
    _check_outcomes(cluster)
    return ("leader_overtaken", *(["overtaken_leader_filled"] if is_trimmed else []))


def _go_on_without(
    cluster: Cluster, leader_id: NodeId, ticks: int, payloads: Sequence[bytes]
) -> None:
    """Have others than the node that led commit commands, one after the other (L11)."""
    if not cluster.run_until(lambda: cluster.leader() not in (NO_NODE, leader_id), ticks):
        raise cluster.violation(
            f"L11: node {leader_id} led and was cut off, and after {ticks} ticks nobody else leads"
        )
    for payload in payloads:
        if not cluster.run_until_done(payload, ticks):
            raise cluster.violation(
                f"L11: node {leader_id} led and was cut off, and the others come to nothing in "
                f"{ticks} ticks"
            )


def _spare_node(cluster: Cluster, leader_id: NodeId) -> NodeId:
    """A node that the others can do without."""
    for node_id, node in cluster.nodes.items():
        if node_id != leader_id and node.is_running and cluster.can_lose(node_id):
            return node_id
    return NO_NODE
