"""A trial of etcd: three members in three processes, and its own compiled load in a fourth.

The members have their default settings, the sync of every write among them; only what a cluster
cannot do without is said: names, addresses on loopback, an empty directory each, on the disk that
replog's nodes have theirs on.  Variables that would change settings are taken away from them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import cbor2

from replog.config import Config, NodeConfig, local_config
from replog_bench.load import LoadResult, commands
from replog_bench.network import PUT, READ
from replog_bench.processes import Child, ChildFailed, Line, Processes
from replog_bench.trial import READY_SECONDS, Trial, load_result

REQUESTS: Final = {PUT: "put", READ: "read"}
"""The requests that replog and etcd both know, and their names in the load for etcd."""


@dataclass(frozen=True, slots=True)
class Etcd:
    """The programs of a trial."""

    server: str
    load: Path
    connections: int
    """Which the requests in flight share, all of them to the leader."""

    def run(self, trial: Trial, kind: str) -> LoadResult:
        """One trial at a new cluster; ``kind`` is one of :data:`REQUESTS`."""
        config = local_config(trial.directory)
        with Processes() as processes:
            members = [
                _start(processes, f"etcd {node.id}", trial, self.server, member_flags(config, node))
                for node in config.nodes
            ]
            flags = self._load_flags(config, trial, kind)
            load = _start(processes, "the load for etcd", trial, str(self.load), flags)
            try:
                # It looks for the leader itself, so nobody waits for the members before.
                return etcd_result(load.line(READY_SECONDS + trial.load_seconds))
            except ChildFailed:
                for member in members:
                    if member.process.poll() is not None:
                        member.line(0.0)  # Raises, with the last words of the culprit.
                raise

    def _load_flags(self, config: Config, trial: Trial, kind: str) -> list[str]:
        made = commands(trial.value_bytes)
        _, _, value = cbor2.loads(made[0])
        return [
            f"-endpoints={','.join(str(node.client) for node in config.nodes)}",
            f"-in-flight={trial.clients}",
            f"-connections={self.connections}",
            f"-kind={REQUESTS[kind]}",
            # The same keys and values as replog's puts have.
            f"-keys={len(made)}",
            f"-value-bytes={len(value)}",
            f"-wait={READY_SECONDS}s",
            f"-warm-up={trial.warm_up_seconds}s",
            f"-window={trial.seconds}s",
        ]


def member_flags(config: Config, node: NodeConfig) -> list[str]:
    """How a member is started."""
    cluster = ",".join(f"node-{each.id}=http://{each.peer}" for each in config.nodes)
    return [
        f"--name=node-{node.id}",
        f"--data-dir={node.directory}",
        f"--listen-peer-urls=http://{node.peer}",
        f"--initial-advertise-peer-urls=http://{node.peer}",
        f"--listen-client-urls=http://{node.client}",
        f"--advertise-client-urls=http://{node.client}",
        f"--initial-cluster={cluster}",
    ]


def etcd_result(line: Line) -> LoadResult:
    """What the load for etcd said; raises :class:`ChildFailed` for what is no measurement."""
    figures = {name: line.get(name) for name in LoadResult.__slots__}
    for name, figure in figures.items():
        is_right = isinstance(figure, str if name == "first_error" else int | float)
        if not is_right or (isinstance(figure, float) and not math.isfinite(figure)):
            raise ChildFailed(f"the load for etcd said {figure!r} of {name}; nothing was measured")
    return load_result(figures)


def _start(
    processes: Processes, name: str, trial: Trial, program: str, flags: Sequence[str]
) -> Child:
    lifetime = ("--lifetime-seconds", str(trial.lifetime_seconds + READY_SECONDS))
    return processes.start(name, "replog_bench.guard", (*lifetime, "--", program, *flags))
