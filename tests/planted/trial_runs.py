"""Runs that the trial of an engine watches, with planted bugs or without."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from random import Random
from typing import Final, TypeAlias

from replog.engine import EnginePlugin
from replog.limits import Limits
from replog.quorum import QuorumSystem
from replog.storage.protocol import Recovered
from replog.testing.checks import Check, Violation
from replog.testing.cluster import Cluster
from replog.testing.faults import Faults
from replog.testing.goals import Goals
from replog.testing.trials import EngineTrial
from replog.types import NO_NODE, NodeId

Hearing: TypeAlias = Callable[[Sequence[Check]], Sequence[Check]]
"""Picks those of the engine's own checks that are asked."""

VOTERS: tuple[NodeId, ...] = (1, 2, 3, 4, 5)
TICKS = 150
NEVER_MS: Final = 1 << 30
TIGHT_LIMITS: Sequence[Limits] = (
    Limits(message_bytes_max=1, in_flight_messages_max=2, digest_compare_ms=NEVER_MS),
    Limits(
        message_bytes_max=150,
        in_flight_bytes_max=100,
        uncommitted_bytes_max=100,
        digest_compare_ms=NEVER_MS,
    ),
)
"""Of every other seed each.  Replicas are not compared, or a node that a bug has led astray would
stop before it breaks the rule that is to be heard."""


def hear_all(checks: Sequence[Check]) -> Sequence[Check]:
    """Ask every check."""
    return checks


def watched(
    plugin: EnginePlugin,
    trial: EngineTrial,
    options: object,
    node_count: int,
    limits: Limits | None,
    disks: dict[NodeId, Recovered] | None,
    heard: Hearing = hear_all,
) -> tuple[Cluster, Goals]:
    """A quiet cluster, and the goals that it comes to."""
    goals = Goals(trial.goals)
    checks = heard(trial.checks(options, VOTERS[:node_count], goals))
    cluster = Cluster(
        plugin, options, node_count=node_count, limits=limits, disks=disks, checks=checks
    )
    return cluster, goals


def run_quietly(cluster: Cluster) -> None:
    """Elect somebody and propose for a while, with nothing going wrong."""
    assert cluster.run_until(lambda: cluster.leader() != NO_NODE, 100)
    cluster.run(100, propose_chance=0.5)
    assert cluster.is_converged()


def isolate_leader(cluster: Cluster, leader_id: NodeId, ticks: int) -> None:
    """Cut a leader off for as long as it takes to give up by itself."""
    assert cluster.leader() == leader_id
    cluster.isolate(leader_id)
    cluster.tick(ticks)
    assert cluster.leader() == NO_NODE


def violations(
    plugin: EnginePlugin,
    trial: EngineTrial,
    seeds: Iterable[int],
    faults: Faults,
    heard: Hearing,
    quorum: QuorumSystem | None = None,
) -> Iterator[Violation]:
    """What random runs find, one after the other; ``quorum`` stands in for what commits an entry,
    where that is not to be judged by the engine's own."""
    for seed in seeds:
        options = trial.draw_options(Random(seed), len(VOTERS))
        cluster = Cluster(
            plugin,
            options,
            node_count=len(VOTERS),
            seed=seed,
            limits=TIGHT_LIMITS[seed % len(TIGHT_LIMITS)],
            sync_ticks=1,
            checks=heard(trial.checks(options, VOTERS, Goals(trial.goals))),
            quorum=trial.commit_quorum(options, VOTERS) if quorum is None else quorum,
        )
        # Faults from the very start, for the first election is as good as any.
        try:
            cluster.run(TICKS, faults, propose_chance=0.5)
        except Violation as violation:
            yield violation
