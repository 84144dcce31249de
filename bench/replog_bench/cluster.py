"""A trial of replog itself: three nodes in three processes, for any installed engine.

Everything is as a user has it: the plugins that the configuration names, the log on disk with its
syncs (at the sync level ``os``: without them), the key-value store behind its strict decoding, the
default limits and options.  Node 1 is told to campaign, only to save the wait for an election; the
load then goes to whoever leads.  What is said of durability is what every node says of itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from time import monotonic
from typing import Final

from replog.config import Config, local_config
from replog.config_text import config_toml
from replog.founding import found_cluster, founding_path
from replog.limits import Limits
from replog.types import NO_NODE, NodeId, Term
from replog_bench.load import LoadResult
from replog_bench.network import LEASE_READ, PUT
from replog_bench.processes import Child, ChildFailed, Line, Processes
from replog_bench.trial import READY_SECONDS, Trial, load_result

STATE_MACHINE: Final = "kv"
STORAGE: Final = "wal"
LEASE_MS: Final = 450
"""As long as it may be with the default timeouts, in the clusters that have leases."""


@dataclass(frozen=True, slots=True)
class RunningCluster:
    """Three processes of one cluster, all of which know the leader."""

    config: Config
    leader_id: NodeId
    leader: Child


def run_embedded(engine: str, trial: Trial) -> LoadResult:
    """One trial with the load inside the leader's process."""
    with running(engine, trial) as cluster:
        return load_result(_load_line(cluster, trial, profile=False)[0])


def run_network(engine: str, trial: Trial, kind: str = PUT) -> LoadResult:
    """One trial with the load in a client's process, over one connection to the leader; ``kind`` is
    what the clients ask for (:data:`replog_bench.network.KINDS`)."""
    with Processes() as processes:
        client = processes.start(
            f"{engine} client",
            "replog_bench.network",
            (
                *("--lifetime-seconds", str(trial.lifetime_seconds + READY_SECONDS)),
                *("--clients", str(trial.clients), "--value-bytes", str(trial.value_bytes)),
                *("--warm-up-seconds", str(trial.warm_up_seconds)),
                *("--seconds", str(trial.seconds), "--kind", kind),
            ),
        )
        lease_ms = LEASE_MS if kind == LEASE_READ else 0
        with running(engine, trial, lease_ms=lease_ms) as cluster:
            client.line(READY_SECONDS)
            client.tell(address=str(cluster.config.node(cluster.leader_id).client))
            return load_result(client.line(trial.load_seconds))


def explain_embedded(engine: str, trial: Trial, *, timeline: bool) -> str:
    """The leader's profile, or its timeline, under the load of :func:`run_embedded`."""
    with running(engine, trial, more=("--timeline",) if timeline else ()) as cluster:
        line, text = _load_line(cluster, trial, profile=not timeline)
        load_result(line)
        return text


def _load_line(cluster: RunningCluster, trial: Trial, *, profile: bool) -> tuple[Line, str]:
    """Have the leader run the load: what it measured, and what it explains."""
    cluster.leader.tell(
        do="load",
        clients=trial.clients,
        value_bytes=trial.value_bytes,
        warm_up_seconds=trial.warm_up_seconds,
        seconds=trial.seconds,
        profile=profile,
    )
    deadline = monotonic() + trial.load_seconds
    while "result" not in (line := cluster.leader.line(deadline - monotonic())):
        pass  # A change of the leader shows in the result, as failed commands.
    result = line["result"]
    assert isinstance(result, dict)
    return result, str(line["text"])


@contextmanager
def running(
    engine: str,
    trial: Trial,
    *,
    limits: Limits | None = None,
    module: str = "replog_bench.member",
    more: Sequence[str] = (),
    lease_ms: int = 0,
) -> Iterator[RunningCluster]:
    """Found a cluster in the trial's directory and run it until all nodes know one leader.

    ``limits`` of ``None`` are the defaults; ``module`` is what the nodes run, and ``more`` what
    they are told beyond which node they are; with ``lease_ms`` above 0 there are leases.
    """
    config = local_config(
        trial.directory,
        engine=engine,
        state_machine=STATE_MACHINE,
        storage=STORAGE,
        sync=trial.sync,
        limits=limits,
    )
    if lease_ms:
        options = replace(config.engine_options, lease_ms=lease_ms)  # type: ignore[type-var]
        config = replace(config, engine_options=options)
    path = trial.directory / "cluster.toml"
    path.write_text(config_toml(config), encoding="utf-8")
    found_cluster(config, founding_path(config, path))
    with Processes() as processes:
        members = {
            node.id: processes.start(
                f"{engine} node {node.id}",
                module,
                (
                    *("--config", str(path), "--node", str(node.id)),
                    *("--lifetime-seconds", str(trial.lifetime_seconds + READY_SECONDS)),
                    *more,
                ),
            )
            for node in config.nodes
        }
        leader_id = _elect(members, is_durable=trial.is_durable)
        yield RunningCluster(config, leader_id, members[leader_id])


def _elect(members: dict[NodeId, Child], *, is_durable: bool) -> NodeId:
    """Have the first node campaign, and wait until all of them know the same leader.

    Raises :class:`~replog_bench.processes.ChildFailed` for a node whose log is not as durable as
    its figures would be said to be.
    """
    deadline = monotonic() + READY_SECONDS
    for member in members.values():
        while "opened" not in (line := member.line(deadline - monotonic())):
            pass
        if line["durable"] is not is_durable:
            raise ChildFailed(
                f"{member.name} says that its log is {'' if line['durable'] else 'not '}durable, "
                "and the level that it was told says otherwise; nothing was measured"
            )
    next(iter(members.values())).tell(do="campaign")
    known: dict[NodeId, tuple[Term, NodeId]] = dict.fromkeys(members, (0, NO_NODE))
    while True:
        term_max = max(known.values())[0]
        behind = [
            node_id
            for node_id, (term, leader_id) in known.items()
            if term < term_max or leader_id == NO_NODE
        ]
        if not behind:
            return known[1][1]
        # Only who knows no leader, or one of an earlier term, still has something to say.
        line = members[behind[0]].line(deadline - monotonic())
        known[behind[0]] = (int(str(line["term"])), int(str(line["leader"])))
