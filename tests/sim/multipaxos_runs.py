"""One random run of the Multi-Paxos engine: what tests in this folder repeat with many seeds."""

from __future__ import annotations

from random import Random

from multipaxos_checks import multipaxos_checks

from replog.limits import Limits
from replog.quorum import Threshold
from replog.testing.cluster import Cluster
from replog.testing.faults import drawn_faults
from replog_multipaxos import PLUGIN, MultiPaxosOptions

RUN_TICKS = 250
ELECTION_TICKS_MAX = 16
LEADER_TICKS_MAX = 20 * ELECTION_TICKS_MAX
"""The back-off makes a timeout up to eight times as long."""
TICKS_PER_ENTRY_MAX = 8
"""How long a slow disk and a window of one entry may take to bring a node one entry further."""
QUORUMS = {3: ((2, 2), (2, 2), (3, 1)), 5: ((3, 3), (3, 3), (4, 2), (2, 4))}
"""By the number of nodes: (phase 1, phase 2)."""


def random_cluster(node_count: int, seed: int) -> Cluster:
    """A cluster whose options and limits are drawn by its seed, tiny ones among them."""
    random = Random(seed)
    phase1, phase2 = random.choice(QUORUMS[node_count])
    options = MultiPaxosOptions(
        heartbeat_ticks=random.randint(1, 4),
        election_ticks_min=8,
        election_ticks_max=ELECTION_TICKS_MAX,
        preferred_node=random.choice((0, 0, 1)),
        open_slots_max=random.choice((2, 65_536, 65_536)),
        phase1_quorum=phase1,
        phase2_quorum=phase2,
    )
    limits = Limits(
        message_bytes_max=random.choice((1, 100, 1 << 20)),
        in_flight_messages_max=random.choice((1, 2, 64)),
        in_flight_bytes_max=random.choice((1, 200, 1 << 20)),
        apply_entries_max=random.choice((1, 2, 4096)),
    )
    node_ids = tuple(range(1, node_count + 1))
    quorum = Threshold(node_ids, phase2)
    return Cluster(
        PLUGIN,
        options,
        node_count=node_count,
        seed=seed,
        limits=limits,
        sync_ticks=random.choice((0, 0, 1, 3)),
        quorum=quorum,
        checks=multipaxos_checks(quorum, Threshold(node_ids, phase1)),
    )


def run_seed(node_count: int, seed: int) -> Cluster:
    """One whole run: faults, calm, liveness; raises ``Violation``."""
    cluster = random_cluster(node_count, seed)
    faults = drawn_faults(cluster.random, ELECTION_TICKS_MAX)
    cluster.run(RUN_TICKS, faults, propose_chance=cluster.random.choice((0.1, 0.4, 0.9)))
    cluster.calm()
    backlog = max(node.status_seen.last_index for node in cluster.nodes.values())
    done_ticks_max = LEADER_TICKS_MAX + TICKS_PER_ENTRY_MAX * backlog
    cluster.check_liveness(LEADER_TICKS_MAX, done_ticks_max)
    return cluster
