"""One engine's run of the demonstration, from founding the cluster to the verdict."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Final

import trio

from replog.cli.demo_check import count_lost, count_words, dump_replica
from replog.cli.demo_load import Load
from replog.cli.demo_nodes import NodeProcesses, node_processes
from replog.cli.demo_report import DemoResult, Progress
from replog.cli.demo_words import puts_of
from replog.cli.shared import run_async
from replog.client import Client
from replog.config import SYNC_LEVELS, local_config
from replog.errors import Unavailable
from replog.statemachine import StateMachine
from replog.types import NodeId, record

NODES: Final = 3
WORDS_SHOWN: Final = 10

_BOUND_SECONDS: Final = 90.0
"""How long a run may take beyond the load that was asked for; then it has failed."""

_PROGRESS_SECONDS: Final = 0.1


@record
class DemoPlan:
    """What is written, and how much of it."""

    machine: type[StateMachine]
    machine_name: str
    lines: Sequence[str]
    repeat: bool
    """Whether the text begins again when it ends."""
    writes_min: int
    """All of the text, if it is not repeated."""
    seconds_min: float
    in_flight: int
    sync: str
    """One of the :data:`~replog.config.SYNC_LEVELS`."""


@record
class _Failover:
    """What was done to the cluster, and how it took it."""

    killed: NodeId
    new_leader: NodeId
    killed_at: float


def run_engine(engine: str, folder: Path, plan: DemoPlan) -> DemoResult:
    """Run the demonstration of one engine in ``folder``, which is empty.

    Raises :class:`~replog.errors.Unavailable` when the cluster does not do its part in time.
    Whatever is raised, SIGTERM and Ctrl-C included, no process stays behind.
    """
    return run_async(_run_engine, engine, folder, plan)


async def _run_engine(engine: str, folder: Path, plan: DemoPlan) -> DemoResult:
    progress = Progress(engine, is_durable=plan.sync == SYNC_LEVELS[0])
    try:
        with trio.move_on_after(_BOUND_SECONDS + plan.seconds_min):
            with trio.open_signal_receiver(signal.SIGTERM) as terminations:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_raise_on_first, terminations)
                    result = await _run_cluster(engine, folder, plan, progress)
                    nursery.cancel_scope.cancel()
            return result
    finally:
        progress.clear()
    raise Unavailable(
        f"the demonstration of {engine} was not done in time (it stopped at: {progress.phase}); "
        "see the nodes' logs, which --keep DIR keeps"
    )


async def _raise_on_first(signals: AsyncIterator[int]) -> None:
    """Let a signal end the demonstration as Ctrl-C does, so that the nodes end with it."""
    await anext(signals)
    raise KeyboardInterrupt


async def _run_cluster(engine: str, folder: Path, plan: DemoPlan, progress: Progress) -> DemoResult:
    config = local_config(
        folder,
        nodes=NODES,
        engine=engine,
        state_machine=plan.machine_name,
        sync=plan.sync,
        cluster_id="demo",
    )
    progress.show(0)
    async with node_processes(config, folder) as nodes, Client(config) as client:
        for node in config.nodes:
            await nodes.wait_answer(node.id)
        await nodes.wait_leader()
        load = Load(
            client,
            plan.machine,
            puts_of(plan.lines, plan.repeat),
            in_flight=plan.in_flight,
            writes_min=plan.writes_min,
            seconds_min=plan.seconds_min,
            writes_max=None if plan.repeat else plan.writes_min,
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_show_progress, progress, load)
            async with trio.open_nursery() as working:
                working.start_soon(load.run)
                failover = await _fail_over(nodes, load, progress)
            result = await _judge(engine, plan, nodes, client, load, failover, progress)
            nursery.cancel_scope.cancel()
    return result


async def _fail_over(nodes: NodeProcesses, load: Load, progress: Progress) -> _Failover:
    """Kill the leader in the middle of the load, and bring its node back under it."""
    progress.phase = "replicating"
    await load.wait_middle()
    killed = await nodes.wait_leader()
    progress.phase = f"node {killed} led and was killed; waiting for another leader"
    killed_at = trio.current_time()
    nodes.kill(killed)
    await nodes.wait_ended(killed)
    # Only what is sent from here on counts as acknowledged by the next leader.
    load.note_failure()
    await load.wait_recovered()
    new_leader = await nodes.wait_leader()
    progress.phase = f"node {new_leader} leads; starting node {killed} again"
    await nodes.start(killed)
    await nodes.wait_answer(killed)
    progress.phase = f"node {new_leader} leads; node {killed} is back and catches up"
    load.let_end()
    return _Failover(killed, new_leader, killed_at)


async def _judge(
    engine: str,
    plan: DemoPlan,
    nodes: NodeProcesses,
    client: Client,
    load: Load,
    failover: _Failover,
    progress: Progress,
) -> DemoResult:
    """Look every acknowledged write up in every replica, and sum up."""
    progress.phase = "counting the words in the cluster"
    words = await count_words(client, plan.machine, WORDS_SHOWN)
    progress.phase = "waiting until every node has applied everything"
    applied_index = await nodes.wait_equal()
    progress.phase = "comparing the replicas"
    dumps = [await dump_replica(client, node.id) for node in nodes.config.nodes]
    answers = await nodes.statuses()
    latencies = sorted(load.latencies)
    assert load.recovered_at is not None, "the load ends after a command of the new leader"
    return DemoResult(
        engine=engine,
        durable=all(answer.flag("durable") for answer in answers),
        nodes=len(nodes.config.nodes),
        writes=load.written_count,
        seconds=round(load.seconds, 3),
        acknowledged=len(load.acknowledged),
        unknown=load.unknown_count,
        lost=count_lost(load.acknowledged, dumps),
        replicas_equal=len({dump.digest for dump in dumps}) == 1,
        killed_node=failover.killed,
        new_leader=failover.new_leader,
        leaderless_ms=round((load.recovered_at - failover.killed_at) * 1000, 1),
        commits_per_second=round(len(load.acknowledged) / load.seconds, 1),
        p50_ms=_quantile_ms(latencies, 50),
        p99_ms=_quantile_ms(latencies, 99),
        applied_index=applied_index,
        in_flight=plan.in_flight,
        words=words,
    )


def _quantile_ms(latencies: Sequence[float], percent: int) -> float:
    """The smallest latency that ``percent`` of all writes did not exceed; ``latencies`` ascend."""
    rank = -(-percent * len(latencies) // 100)
    return round(latencies[rank - 1] * 1000, 3)


async def _show_progress(progress: Progress, load: Load) -> None:
    while True:
        progress.show(len(load.acknowledged))
        await trio.sleep(_PROGRESS_SECONDS)
