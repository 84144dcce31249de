"""One random run of the Raft engine: what the tests in this folder repeat with many seeds."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from raft_checks import raft_checks

from replog.limits import Limits
from replog.testing.checks import Check
from replog.testing.cluster import Cluster
from replog.testing.faults import drawn_faults
from replog_raft import PLUGIN, RaftOptions

RUN_TICKS = 250
ELECTION_TICKS_MAX = 16
LEADER_TICKS_MAX = 10 * ELECTION_TICKS_MAX
TICKS_PER_ENTRY_MAX = 6
"""How long a slow disk and a window of one entry may take to bring a node one entry further."""


def random_cluster(node_count: int, seed: int, checks: Sequence[Check]) -> Cluster:
    """A cluster whose options and limits are drawn by its seed, tiny ones among them."""
    random = Random(seed)
    options = RaftOptions(
        heartbeat_ticks=random.randint(1, 4),
        election_ticks_min=8,
        election_ticks_max=ELECTION_TICKS_MAX,
        preferred_node=random.choice((0, 0, 1)),
        conflict_hints=random.random() < 0.7,
    )
    limits = Limits(
        message_bytes_max=random.choice((1, 100, 1 << 20)),
        in_flight_messages_max=random.choice((1, 2, 64)),
        in_flight_bytes_max=random.choice((1, 200, 1 << 20)),
        apply_entries_max=random.choice((1, 2, 4096)),
    )
    return Cluster(
        PLUGIN,
        options,
        node_count=node_count,
        seed=seed,
        limits=limits,
        sync_ticks=random.choice((0, 0, 1, 3)),
        checks=checks,
    )


def run_seed(node_count: int, seed: int) -> Cluster:
    """One whole run: faults, calm, liveness; raises ``Violation``."""
    cluster = random_cluster(node_count, seed, raft_checks())
    faults = drawn_faults(cluster.random, ELECTION_TICKS_MAX)
    cluster.run(RUN_TICKS, faults, propose_chance=cluster.random.choice((0.1, 0.4, 0.9)))
    cluster.calm()
    backlog = max(node.status_seen.last_index for node in cluster.nodes.values())
    done_ticks_max = LEADER_TICKS_MAX + TICKS_PER_ENTRY_MAX * backlog
    cluster.check_liveness(LEADER_TICKS_MAX, done_ticks_max)
    return cluster
