"""A fault of its own: all that can be done at once to have another node elected too early.

A leader is cut off, from all or from one, or stands still, or hears its answers late; the others
are started again at once or count their ticks too fast, so that they have forgotten it; and they
campaign, tick after tick.  Whatever a leader believes of itself meanwhile, by a lease above all, is
put to the test.
"""

from __future__ import annotations

from functools import partial
from random import Random
from typing import TYPE_CHECKING, Final

from replog.types import NO_NODE, NodeId

if TYPE_CHECKING:
    from replog.testing.cluster import Cluster

TICKS_MAX: Final = 16
"""How long a coup lasts at most."""

FAST_RATE: Final = 1000
"""So many ticks count those whose clocks run fast in a hundred of the cluster's."""


def begin_coup(cluster: Cluster, random: Random) -> None:
    """Turn the others against the leader, if there is one; each part plans its own end."""
    leader_id = cluster.leader()
    if len(cluster.nodes) < 2:
        return
    kind = random.choice(("cut", "deaf", "late", "pause", "one", "one"))
    ticks = random.randint(4, TICKS_MAX)
    others = [node_id for node_id in cluster.nodes if node_id != leader_id]
    measures = [random.choice(("none", "fast", "restart", "restart")) for _ in others]
    if kind == "one":
        # Whoever hears the leader no more gets others to vote who hear it all the time.
        ticks, measures = 2 * TICKS_MAX, [random.choice(("none", "fast")) for _ in others]
    rivals = [random.choice(others) for _ in range(ticks)]
    if leader_id == NO_NODE or not cluster.nodes[leader_id].is_running:
        return
    _turn_off(cluster, leader_id, kind, ticks)
    for other, measure in zip(others, measures, strict=True):
        if measure != "none" and cluster.nodes[other].is_running:
            _make_forget(cluster, other, measure, ticks)
    for at, rival in enumerate(rivals):
        cluster.plan(at + 1, partial(_campaign, cluster, rival))


def _turn_off(cluster: Cluster, leader_id: NodeId, kind: str, ticks: int) -> None:
    """Let the leader and the others not hear each other, in one way or the other."""
    node = cluster.nodes[leader_id]
    if kind == "pause":
        cluster.pause(leader_id)
        cluster.plan(ticks, partial(_resume, cluster, leader_id, node.run))
        return
    others = [node_id for node_id in cluster.nodes if node_id != leader_id]
    links = [(leader_id, other) for other in others]
    if kind == "late":
        # What was answered already comes later, when it proves nothing any more.
        cluster.hold(lambda flight: flight.to == leader_id)
        cluster.plan(ticks // 2, cluster.release)
    elif kind == "one":
        links = [link for pair in links[:1] for link in (pair, pair[::-1])]
    elif kind == "cut":
        links += [(other, leader_id) for other in others]
    cluster.plan(ticks, partial(cluster.mend, cluster.cut(links)))


def _resume(cluster: Cluster, node_id: NodeId, run: int) -> None:
    node = cluster.nodes[node_id]
    if node.run == run and node.is_paused:
        cluster.resume(node_id)
        cluster.driver.handle_resumed(node)


def _make_forget(cluster: Cluster, node_id: NodeId, measure: str, ticks: int) -> None:
    """Let a node forget that it heard a leader: by a new start, or by counting too fast."""
    if measure == "fast":
        cluster.set_clock(node_id, FAST_RATE, 0)
        cluster.plan(ticks, partial(cluster.set_clock, node_id, 100, 0))
        return
    node = cluster.nodes[node_id]
    cluster.crash(node_id, 0)
    cluster.plan(1, partial(_restart, cluster, node_id, node.run))


def _restart(cluster: Cluster, node_id: NodeId, run: int) -> None:
    node = cluster.nodes[node_id]
    if node.run == run and not node.is_up and not node.is_lost:
        cluster.restart(node_id)


def _campaign(cluster: Cluster, node_id: NodeId) -> None:
    if cluster.nodes[node_id].is_running and not cluster.is_calm:
        cluster.campaign(node_id)
