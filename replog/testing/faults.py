"""Faults by chance: what a random run does to messages, links, disks and nodes.

Every chance is drawn from the cluster's one source of randomness, in a fixed order, so the seed
decides everything.  The rules this module keeps: a fault is one that a correct system survives
(what was synced stays synced, messages are lost or late but never changed); every fault that lasts
has a drawn end, planned when it begins.
"""

from __future__ import annotations

from functools import partial
from random import Random
from typing import TYPE_CHECKING, Final

from replog.types import NO_NODE, record

if TYPE_CHECKING:
    from collections.abc import Sequence

    from replog.testing.cluster import Cluster
    from replog.testing.network import Link
    from replog.testing.nodes import ClusterNode


ELECTION_TICKS: Final = 3
"""For how long after a change of its term a node is likelier to crash, ..."""

ELECTION_CRASH_FACTOR: Final = 8
"""... and how much likelier."""


@record
class Faults:
    """How likely each fault is; chances are 0.0 to 1.0, and 0 everywhere is a quiet cluster."""

    drop_chance: float = 0.0
    """Per message: it is lost."""
    duplicate_chance: float = 0.0
    """Per message: it arrives twice, the second time possibly very late."""
    reorder_chance: float = 0.0
    """Per message: it changes places with others that are due in the same tick."""
    delay_ticks_max: int = 0
    """Every message takes 0 to this many ticks."""
    late_chance: float = 0.0
    """Per message: it takes up to ``late_ticks_max`` instead."""
    late_ticks_max: int = 0
    sync_ticks_max: int = 0
    """Every write takes 0 to this many ticks to be durable, beyond the cluster's own latency."""
    cut_chance: float = 0.0
    """Per tick: links are cut (a split, a node, one direction of a node, or any set of links)."""
    cut_ticks_max: int = 50
    crash_chance: float = 0.0
    """Per node and tick: it crashes, and a prefix of its pending writes survives; far likelier
    while its term is new."""
    crash_all_chance: float = 0.0
    """Per tick: every node crashes."""
    down_ticks_max: int = 50
    pause_chance: float = 0.0
    """Per node and tick: it stands still, as a stopped process."""
    pause_ticks_max: int = 50
    campaign_chance: float = 0.0
    """Per tick: some node campaigns unasked."""
    transfer_chance: float = 0.0
    """Per tick: the leader is told to hand over to some node."""


def drawn_faults(random: Random, ticks_scale: int) -> Faults:
    """A mixture for one run: each fault is on or off, and as strong as drawn.

    Runs with few faults reach far into the protocol, runs with many reach its corners; neither can
    stand for the other.  A third of the runs is about nothing but leaders that come and go, with
    old messages about: there logs part.  ``ticks_scale`` is the longest election timeout: what
    lasts is drawn around it.
    """

    def chance(most: float, is_on_chance: float = 0.4) -> float:
        return random.uniform(most / 10, most) if random.random() < is_on_chance else 0.0

    def ticks(most: int) -> int:
        return random.randint(1, max(1, most)) if random.random() < 0.4 else 0

    if random.random() < 1 / 3:
        return Faults(
            duplicate_chance=chance(0.1),
            reorder_chance=chance(0.5),
            delay_ticks_max=ticks(ticks_scale // 8),
            late_chance=chance(0.1, 0.7),
            late_ticks_max=2 * ticks_scale,
            sync_ticks_max=ticks(ticks_scale // 8),
            cut_chance=2 / ticks_scale,
            cut_ticks_max=2 * ticks_scale,
            crash_chance=chance(0.1 / ticks_scale),
            down_ticks_max=ticks_scale,
            campaign_chance=chance(2 / ticks_scale, 0.7),
            transfer_chance=chance(1 / ticks_scale),
        )
    return Faults(
        drop_chance=chance(0.2),
        duplicate_chance=chance(0.2),
        reorder_chance=chance(0.5),
        delay_ticks_max=ticks(ticks_scale // 8),
        late_chance=chance(0.05),
        late_ticks_max=4 * ticks_scale,
        sync_ticks_max=ticks(ticks_scale // 8),
        cut_chance=chance(1 / ticks_scale),
        cut_ticks_max=3 * ticks_scale,
        crash_chance=chance(0.2 / ticks_scale),
        crash_all_chance=chance(0.1 / ticks_scale),
        down_ticks_max=2 * ticks_scale,
        pause_chance=chance(0.2 / ticks_scale),
        pause_ticks_max=2 * ticks_scale,
        campaign_chance=chance(1 / ticks_scale),
        transfer_chance=chance(1 / ticks_scale),
    )


def draw_delays(faults: Faults, random: Random) -> Sequence[int]:
    """In how many ticks a message arrives: once, twice or (empty) never."""
    if random.random() < faults.drop_chance:
        return ()
    if random.random() < faults.duplicate_chance:
        is_late = random.random() < 0.5
        late_ticks = random.randint(0, faults.late_ticks_max)
        again = late_ticks if is_late else _draw_delay(faults, random)
        return (_draw_delay(faults, random), again)
    return (_draw_delay(faults, random),)


def _draw_delay(faults: Faults, random: Random) -> int:
    if faults.late_chance and random.random() < faults.late_chance:
        return random.randint(0, faults.late_ticks_max)
    return random.randint(0, faults.delay_ticks_max) if faults.delay_ticks_max else 0


def draw_priority(faults: Faults, random: Random) -> int:
    """Where a message stands among those of its tick: 0 is its own place."""
    if faults.reorder_chance and random.random() < faults.reorder_chance:
        return random.randint(-8, 8)
    return 0


def draw_troubles(cluster: Cluster, faults: Faults) -> None:
    """Let begin in this tick whatever the chances bring; each trouble plans its own end."""
    random = cluster.random
    if random.random() < faults.cut_chance:
        cut = cluster.cut(_draw_links(cluster))
        cluster.plan(_draw_lasting(random, faults.cut_ticks_max), partial(cluster.mend, cut))
    is_end_of_all = random.random() < faults.crash_all_chance
    for node in cluster.nodes.values():
        # What a node owes to its disk is owed in elections above all.
        is_new_term = cluster.now - node.term_tick <= ELECTION_TICKS
        crash_chance = faults.crash_chance * (ELECTION_CRASH_FACTOR if is_new_term else 1)
        if node.is_up and (is_end_of_all or random.random() < crash_chance):
            cluster.crash(node.node_id, random.randint(0, len(node.disk.pending)))
            down_ticks = _draw_lasting(random, faults.down_ticks_max)
            cluster.plan(down_ticks, partial(_end_crash, cluster, node, node.run))
        elif node.is_running and random.random() < faults.pause_chance:
            cluster.pause(node.node_id)
            pause_ticks = _draw_lasting(random, faults.pause_ticks_max)
            cluster.plan(pause_ticks, partial(_end_pause, cluster, node, node.run))
    if random.random() < faults.campaign_chance:
        node = random.choice(list(cluster.nodes.values()))
        if node.is_running:
            cluster.campaign(node.node_id)
    if random.random() < faults.transfer_chance:
        leader_id, to = cluster.leader(), random.choice(list(cluster.nodes))
        if leader_id != NO_NODE and cluster.nodes[leader_id].is_running:
            cluster.transfer(leader_id, to)


def _draw_lasting(random: Random, ticks_max: int) -> int:
    """How long a trouble lasts: as often a few ticks as any time up to ``ticks_max``."""
    return random.randint(1, ticks_max if random.random() < 0.5 else min(3, ticks_max))


def _end_crash(cluster: Cluster, node: ClusterNode, run: int) -> None:
    if node.run == run and not node.is_up:
        cluster.restart(node.node_id)


def _end_pause(cluster: Cluster, node: ClusterNode, run: int) -> None:
    if node.run == run and node.is_paused:
        cluster.resume(node.node_id)


def _draw_links(cluster: Cluster) -> list[Link]:
    """The links to cut.  Leaders are preferred: a leader that others cannot hear, or that hears
    too few of them, is where logs part."""
    random, node_ids = cluster.random, list(cluster.nodes)
    links = [(a, b) for a in node_ids for b in node_ids if a != b]
    leader_id = cluster.leader()
    chosen_id = leader_id if leader_id and random.random() < 0.7 else random.choice(node_ids)
    kind = random.randrange(4)
    if kind == 0:
        # Two groups; the chosen node is in the smaller one.
        others = [node_id for node_id in node_ids if node_id != chosen_id]
        group = [chosen_id, *random.sample(others, random.randint(0, (len(node_ids) - 1) // 2))]
        return [link for link in links if (link[0] in group) != (link[1] in group)]
    if kind == 1:
        return [link for link in links if chosen_id in link]
    if kind == 2:
        end = random.randrange(2)
        return [link for link in links if link[end] == chosen_id]
    return [link for link in links if random.random() < 0.4] or links[:1]
