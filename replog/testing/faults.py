"""Faults by chance: what a random run does to messages, links, disks, clocks and nodes.

Every strike is drawn from the run's :class:`~replog.testing.chance.Chance`, in a fixed order, so
the seed decides everything.  The rules this module keeps: a fault is one that a correct system
survives (what was synced stays synced, messages are lost or late but never changed; who lost its
disk or may not trust it takes part no more, and a quorum is left); every fault that lasts has a
drawn end, planned when it begins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from random import Random
from typing import TYPE_CHECKING, Final

from replog.testing.coups import begin_coup
from replog.testing.log_disk import GROWING_OPERATIONS
from replog.types import NO_NODE, NodeId, Role, record

if TYPE_CHECKING:
    from replog.testing.chance import Chance
    from replog.testing.cluster import Cluster
    from replog.testing.network import Link
    from replog.testing.nodes import ClusterNode


ELECTION_TICKS: Final = 3
"""For how long after a change of its term a node is likelier to crash, ..."""

ELECTION_CRASH_FACTOR: Final = 8
"""... and how much likelier."""

LOST_CALL_CHANCE: Final = 0.7
"""Nodes of one cluster meet over some ticks, and not in the order in which they are started."""

STARTED_FIRST_CHANCE: Final = 0.6
"""How likely it is that a node that rejoins is started before it is taken in."""

CUT_OFF_CHANCE: Final = 0.7
"""How likely it is that a node that is replaced as it runs is cut off."""

FLAPS_MAX: Final = 5
FADE_TICKS_MAX: Final = 3
RECOVERY_OPERATIONS: Final = 16
"""A crash that is to strike in a recovery does at one of so many operations on the files."""


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
    job_ticks_max: int = 0
    """Every job that reads or writes a piece of a snapshot takes 0 to this many ticks."""
    stall_chance: float = 0.0
    """Per node and tick: its disk stands still, and makes nothing durable meanwhile."""
    stall_ticks_max: int = 50
    cut_chance: float = 0.0
    """Per tick: links are cut (a split, a node, one direction of a node, or any set of links)."""
    cut_ticks_max: int = 50
    flap_chance: float = 0.0
    """Per tick: the links of a node are cut and mended several times."""
    fade_chance: float = 0.0
    """Per tick: half of what a node sends is lost for a few ticks, then it is cut off."""
    crash_chance: float = 0.0
    """Per node and tick: it crashes, and a prefix of its pending writes survives; far likelier
    while its term is new."""
    fetching_crash_chance: float = 0.0
    """Per tick and node that fetches a snapshot: it crashes."""
    stop_chance: float = 0.0
    """Per node and tick: it is stopped in order."""
    crash_all_chance: float = 0.0
    """Per tick: every node crashes."""
    crash_in_write_chance: float = 0.0
    """Per node and tick: it will crash within the next operations on its files, if it has any."""
    crash_in_job_chance: float = 0.0
    """Per job that reads or writes a piece of a snapshot: the node crashes within it."""
    crash_in_recovery_chance: float = 0.0
    """Per restart: it crashes again while it recovers its log, or soon after, if it has files."""
    disk_error_chance: float = 0.0
    """Per node and tick: one of its next operations on files fails, if it has any."""
    full_chance: float = 0.0
    """Per node and tick: its disk has no room any more."""
    full_ticks_max: int = 50
    overload_chance: float = 0.0
    """Per tick: a rush of commands, and the leader's machine is slow."""
    overload_ticks_max: int = 50
    damage_chance: float = 0.0
    """Per restart: a bit of the node's log has flipped, if it has files."""
    wipe_chance: float = 0.0
    """Per restart: the node has lost its disk, for ever."""
    rejoin_chance: float = 0.0
    """Per restart: the node has lost its disk, and rejoins under another incarnation."""
    replace_chance: float = 0.0
    """Per tick: some node is replaced by another incarnation while it runs."""
    lost_call_chance: float = 0.0
    """Per call of a node that is forming, or to one: nobody hears it."""
    down_ticks_max: int = 50
    pause_chance: float = 0.0
    """Per node and tick: it stands still, as a stopped process."""
    pause_ticks_max: int = 50
    clock_chance: float = 0.0
    """Per node and tick: its clock goes at another rate from now on, and its time of day jumps."""
    campaign_chance: float = 0.0
    """Per tick: some node campaigns unasked."""
    coup_chance: float = 0.0
    """Per tick: the leader is cut off or stands still, and the others forget it and campaign."""
    diverge_chance: float = 0.0
    """Per tick: some replica's state has a wrong digest from now on."""
    transfer_chance: float = 0.0
    """Per tick: the leader is told to hand over to some node."""
    snapshot_chance: float = 0.0
    """Per tick: some node is told to take a snapshot."""


def drawn_faults(random: Random, ticks_scale: int) -> Faults:
    """A mixture for one run: each fault is on or off, and as strong as drawn (swarm testing).

    Few faults let a run reach far, many lead it into corners.  In a third of the runs leaders come
    and go, with old messages about.  What lasts is drawn around ``ticks_scale`` ticks."""

    def chance(most: float, is_on_chance: float = 0.4) -> float:
        return random.uniform(most / 10, most) if random.random() < is_on_chance else 0.0

    def ticks(most: int) -> int:
        return random.randint(1, max(1, most)) if random.random() < 0.4 else 0

    if random.random() < 1 / 3:
        faults = Faults(
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
    else:
        faults = Faults(
            drop_chance=chance(0.3 if random.random() < 0.3 else 0.1),
            duplicate_chance=chance(0.2),
            reorder_chance=chance(0.5),
            delay_ticks_max=ticks(ticks_scale // 8),
            late_chance=chance(0.05),
            late_ticks_max=4 * ticks_scale,
            sync_ticks_max=ticks(ticks_scale // 8),
            cut_chance=chance(1 / ticks_scale),
            cut_ticks_max=3 * ticks_scale,
            flap_chance=chance(0.5 / ticks_scale, 0.2),
            crash_chance=chance(0.2 / ticks_scale),
            crash_all_chance=chance(0.1 / ticks_scale),
            down_ticks_max=2 * ticks_scale,
            pause_chance=chance(0.2 / ticks_scale),
            pause_ticks_max=2 * ticks_scale,
            campaign_chance=chance(1 / ticks_scale),
            transfer_chance=chance(1 / ticks_scale),
        )
    return replace(
        faults,
        fade_chance=3 * chance(0.5 / ticks_scale),
        crash_in_write_chance=chance(0.2 / ticks_scale, 0.5),
        crash_in_recovery_chance=chance(0.5),
        disk_error_chance=chance(0.1 / ticks_scale, 0.3),
        damage_chance=chance(0.5, 0.4),
        wipe_chance=chance(0.2, 0.2),
        clock_chance=chance(0.1 / ticks_scale, 0.3),
        stop_chance=chance(0.1 / ticks_scale, 0.3),
        job_ticks_max=random.choice((0, 0, 1, 4)),
        fetching_crash_chance=chance(0.2, 0.7),
        stall_chance=chance(0.5 / ticks_scale, 0.3),
        stall_ticks_max=2 * ticks_scale,
        full_chance=chance(0.5 / ticks_scale, 0.3),
        full_ticks_max=4 * ticks_scale,
        rejoin_chance=chance(0.5, 0.3),
        replace_chance=chance(0.3 / ticks_scale, 0.2),
        crash_in_job_chance=chance(0.05, 0.3),
        lost_call_chance=LOST_CALL_CHANCE,
        overload_chance=chance(0.5 / ticks_scale, 0.4),
        diverge_chance=chance(0.5 / ticks_scale, 0.3),
    )


def draw_delays(faults: Faults, chance: Chance) -> Sequence[int]:
    """In how many ticks a message arrives: once, twice or (empty) never."""
    if chance.strikes("drop", faults.drop_chance):
        return ()
    delay = _draw_delay(faults, chance)
    if chance.strikes("duplicate", faults.duplicate_chance):
        random = chance.details("duplicate")
        ticks_max = faults.late_ticks_max if random.random() < 0.5 else faults.delay_ticks_max
        return (delay, random.randint(0, ticks_max))
    return (delay,)


def _draw_delay(faults: Faults, chance: Chance) -> int:
    if chance.strikes("late", faults.late_chance):
        return chance.details("late").randint(0, faults.late_ticks_max)
    return chance.ticks("delay", faults.delay_ticks_max) if faults.delay_ticks_max else 0


def draw_priority(faults: Faults, chance: Chance) -> int:
    """Where a message stands among those of its tick: 0 is its own place."""
    if chance.strikes("reorder", faults.reorder_chance):
        return chance.details("reorder").choice((-8, -4, -2, -1, 1, 2, 4, 8))
    return 0


def draw_troubles(cluster: Cluster, faults: Faults, chance: Chance) -> None:
    """Let begin in this tick whatever the chances bring; each trouble plans its own end."""
    _trouble_links(cluster, faults, chance)
    is_end_of_all = chance.strikes("crash_all", faults.crash_all_chance)
    for node in cluster.nodes.values():
        # What a node owes to its disk is owed in elections above all.
        is_new_term = cluster.now - node.term_tick <= ELECTION_TICKS
        crash_chance = faults.crash_chance * (ELECTION_CRASH_FACTOR if is_new_term else 1)
        if node.is_fetching:
            crash_chance = max(crash_chance, faults.fetching_crash_chance)
        if chance.strikes("clock", faults.clock_chance):
            cluster.set_clock(node.node_id, *_drawn_clock(chance.details("clock")))
        if not node.is_up:
            continue
        if is_end_of_all or chance.strikes("crash", crash_chance):
            kind = "crash_all" if is_end_of_all else "crash"
            random = chance.details(kind)
            kept = random.randint(0, len(node.disk.pending))
            cluster.crash(node.node_id, kept if node.log_disk is None else 0)
        elif node.is_running and chance.strikes("stop", faults.stop_chance):
            cluster.stop(node.node_id)
        elif node.log_disk is not None and not node.is_paused:
            if chance.strikes("crash_in_write", faults.crash_in_write_chance):
                random = chance.details("crash_in_write")
                operations, growing = random.randint(1, 6), random.randint(0, GROWING_OPERATIONS)
                node.log_disk.set_crash(operations, growing)
            elif chance.strikes("disk_error", faults.disk_error_chance):
                node.log_disk.set_fault(chance.details("disk_error"))
        if not node.disk.is_held and chance.strikes("stall", faults.stall_chance):
            cluster.hold_disk(node.node_id)
            ticks = _drawn_lasting(chance.details("stall"), faults.stall_ticks_max)
            cluster.plan(ticks, partial(cluster.release_disk, node.node_id))
        if chance.strikes("full", faults.full_chance):
            _fill_disk(cluster, node, faults, chance.details("full"))
        if node.is_running and chance.strikes("pause", faults.pause_chance):
            cluster.pause(node.node_id)
            ticks = _drawn_lasting(chance.details("pause"), faults.pause_ticks_max)
            cluster.plan(ticks, partial(_end_pause, cluster, node, node.run))
    _trouble_leaders(cluster, faults, chance)
    if chance.strikes("overload", faults.overload_chance):
        random, leader_id = chance.details("overload"), cluster.leader()
        if leader_id != NO_NODE:
            ticks = _drawn_lasting(random, faults.overload_ticks_max)
            cluster.driver.crowd.begin(leader_id, random, ticks)
    if chance.strikes("replace", faults.replace_chance):
        _begin_replacing(cluster, faults, chance.details("replace"))
    if chance.strikes("snapshot", faults.snapshot_chance):
        node = chance.details("snapshot").choice(list(cluster.nodes.values()))
        if node.is_running and node.applied_index:
            cluster.take_snapshot(node.node_id)


def _trouble_leaders(cluster: Cluster, faults: Faults, chance: Chance) -> None:
    """What is done to who leads, and to what a replica has become."""
    if chance.strikes("campaign", faults.campaign_chance):
        node = chance.details("campaign").choice(list(cluster.nodes.values()))
        if node.is_running:
            cluster.campaign(node.node_id)
    if chance.strikes("coup", faults.coup_chance):
        begin_coup(cluster, chance.details("coup"))
    if chance.strikes("diverge", faults.diverge_chance):
        node = chance.details("diverge").choice(list(cluster.nodes.values()))
        cluster.driver.diverging.begin(node)
    if chance.strikes("transfer", faults.transfer_chance):
        leader_id = cluster.leader()
        to = chance.details("transfer").choice(list(cluster.nodes))
        is_able = leader_id != NO_NODE and cluster.nodes[leader_id].is_running
        if is_able and cluster.is_voter(to, leader_id):
            cluster.transfer(leader_id, to)


def _fill_disk(cluster: Cluster, node: ClusterNode, faults: Faults, random: Random) -> None:
    """A disk that is full already stays so for as long as it was to be."""
    room_groups, room_bytes = random.randint(0, 3), random.choice((0, 100, 2000))
    ticks = _drawn_lasting(random, faults.full_ticks_max)
    if node.snapshots.files.capacity_bytes is None:
        cluster.fill_disk(node.node_id, room_groups, room_bytes)
        cluster.plan(ticks, partial(cluster.clear_disk, node.node_id))


def _begin_replacing(cluster: Cluster, faults: Faults, random: Random) -> None:
    """Whoever is replaced as it runs was mostly taken for lost, because nobody hears it."""
    node = random.choice(list(cluster.nodes.values()))
    ticks = _drawn_lasting(random, faults.cut_ticks_max)
    is_cut_off = random.random() < CUT_OFF_CHANCE
    if node.is_up and cluster.can_replace(node.node_id):
        if is_cut_off:
            cluster.plan(ticks, partial(cluster.mend, cluster.isolate(node.node_id)))
        cluster.replace(node.node_id)


def _trouble_links(cluster: Cluster, faults: Faults, chance: Chance) -> None:
    if chance.strikes("cut", faults.cut_chance):
        random = chance.details("cut")
        cut = cluster.cut(_drawn_links(cluster, random))
        cluster.plan(_drawn_lasting(random, faults.cut_ticks_max), partial(cluster.mend, cut))
    if chance.strikes("flap", faults.flap_chance):
        random = chance.details("flap")
        node_id = random.choice(list(cluster.nodes))
        at = 0
        for _ in range(random.randint(2, FLAPS_MAX)):
            cluster.plan(at, partial(_flap, cluster, node_id, random.randint(1, 6)))
            at += random.randint(2, 12)
    if chance.strikes("fade", faults.fade_chance):
        _begin_fade(cluster, faults, chance.details("fade"))


def _begin_fade(cluster: Cluster, faults: Faults, random: Random) -> None:
    """What a leader proposes shortly before it is lost reaches some and not others: holes."""
    node_id = cluster.leader() or random.choice(list(cluster.nodes))
    cluster.fade(node_id, random)
    cut_ticks = _drawn_lasting(random, faults.cut_ticks_max)
    cluster.plan(random.randint(0, FADE_TICKS_MAX), partial(_end_fade, cluster, node_id, cut_ticks))


def _end_fade(cluster: Cluster, node_id: NodeId, cut_ticks: int) -> None:
    cluster.end_fade(node_id)
    if cluster.is_calm:
        return
    cluster.plan(cut_ticks, partial(cluster.mend, cluster.isolate(node_id)))


def propose_somewhere(cluster: Cluster) -> None:
    """Propose mostly at a node that takes itself for the leader, else anywhere.

    A deposed leader that does not know it yet is as good: what it takes must not be lost in
    silence.
    """
    running = [node for node in cluster.nodes.values() if node.is_running]
    leaders = [node for node in running if node.replica.engine.soft_state.role is Role.LEADER]
    is_guess = not leaders or cluster.random.random() < 0.1
    if running:
        node = cluster.random.choice(running if is_guess else leaders)
        cluster.propose(node.node_id, b"%d" % (len(cluster.proposals) + 1))


def plan_restart(cluster: Cluster, node: ClusterNode, faults: Faults, chance: Chance) -> None:
    """A node went down: plan when it starts again, and in what state its disk is then."""
    run = node.run
    random = Random(f"{chance.seed}/down/{node.node_id}/{run}")
    crash_at = 0
    if node.log_disk is not None and chance.strikes(
        "crash_in_recovery", faults.crash_in_recovery_chance
    ):
        crash_at = chance.details("crash_in_recovery").randint(1, RECOVERY_OPERATIONS)
    damaged = chance.strikes("damage", faults.damage_chance)
    wiped = chance.strikes("wipe", faults.wipe_chance)
    ticks = _drawn_lasting(random, faults.down_ticks_max)
    if chance.strikes("rejoin", faults.rejoin_chance):
        is_first = chance.details("rejoin").random() < STARTED_FIRST_CHANCE
        cluster.plan(ticks, partial(_rejoin, cluster, node, run, is_first))
    cluster.plan(ticks, partial(_end_crash, cluster, node, run, damaged, wiped, crash_at, random))


def _rejoin(cluster: Cluster, node: ClusterNode, run: int, started: bool) -> None:
    if node.run == run and not node.is_up and cluster.can_replace(node.node_id):
        cluster.rejoin(node.node_id, started)


def _end_crash(
    cluster: Cluster,
    node: ClusterNode,
    run: int,
    damaged: bool,
    wiped: bool,
    crash_at: int,
    random: Random,
) -> None:
    if node.run != run or node.is_up or node.is_lost:
        return
    if wiped and cluster.can_lose(node.node_id):
        cluster.wipe(node.node_id)
    elif damaged and node.log_disk is not None and cluster.can_lose(node.node_id):
        cluster.damage(node.node_id, random)
    elif crash_at and node.log_disk is not None:
        node.log_disk.set_crash(crash_at)
    cluster.restart(node.node_id)


def _end_pause(cluster: Cluster, node: ClusterNode, run: int) -> None:
    if node.run == run and node.is_paused:
        cluster.resume(node.node_id)
        cluster.driver.handle_resumed(node)


def _flap(cluster: Cluster, node_id: int, ticks: int) -> None:
    if cluster.is_calm:
        return
    cluster.plan(ticks, partial(cluster.mend, cluster.isolate(node_id)))


def _drawn_lasting(random: Random, ticks_max: int) -> int:
    """How long a trouble lasts: as often a few ticks as any time up to ``ticks_max``."""
    return random.randint(1, ticks_max if random.random() < 0.5 else min(3, ticks_max))


def _drawn_clock(random: Random) -> tuple[int, int]:
    """A rate in per cent, and how far the time of day is ahead, in milliseconds."""
    return random.choice((50, 80, 90, 100, 100, 110, 125, 200)), random.randint(-60_000, 60_000)


def _drawn_links(cluster: Cluster, random: Random) -> list[Link]:
    """The links to cut.  Leaders are preferred: a leader that others cannot hear, or that hears
    too few of them, is where logs part."""
    node_ids = list(cluster.nodes)
    links = [(a, b) for a in node_ids for b in node_ids if a != b]
    leader_id = cluster.leader()
    chosen_id = leader_id if leader_id and random.random() < 0.7 else random.choice(node_ids)
    kind = random.randrange(6)
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
    if kind == 3:
        # A star: everybody reaches the chosen node and nobody else.
        return [link for link in links if chosen_id not in link]
    if kind == 4:
        # A chain: everybody reaches its neighbours.
        return [(a, b) for a, b in links if abs(a - b) > 1] or links[:1]
    return [link for link in links if random.random() < 0.4] or links[:1]
