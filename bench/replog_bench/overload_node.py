"""One node of a cluster that is overloaded, as a process that its parent tells what to do.

It is :mod:`replog_bench.member` but for what the leader is told to do: to find out what it can do
with a closed loop, to be offered a multiple of that, and to say what it could do afterwards.
``--apply-us`` makes the state machine slow: before each command it sleeps, as one does that waits
for a disk of its own, and the event loop sleeps with it.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from time import sleep
from typing import Final

import trio

from replog.cli.serve import configure_logs
from replog.cli.shared import collect_less
from replog.machine import ApplyContext
from replog.node import Node
from replog.running import open_node
from replog.types import NodeId
from replog_bench.load import ClosedLoop, LoadResult
from replog_bench.member import campaign, orders, report_leader
from replog_bench.memory import MemoryMark
from replog_bench.open_loop import OpenLoop
from replog_bench.processes import limit_lifetime, say
from replog_kv import Kv

SETTLE_SECONDS: Final = 0.2


async def run_closed(node: Node, order: dict[str, object]) -> LoadResult:
    """What the leader can do: commands in flight, one after the other."""
    ended = trio.Event()
    load = ClosedLoop(
        node.submit,
        clients=int(str(order["clients"])),
        value_bytes=int(str(order["value_bytes"])),
        warm_up_seconds=float(str(order["warm_up_seconds"])),
        seconds=float(str(order["closed_seconds"])),
        on_end=ended.set,
    )
    load.start()
    await ended.wait()
    return load.result()


def gap_of(node: Node) -> int:
    """What is committed and not applied."""
    status = node.status()
    return status.commit_index - status.applied_index


async def run_overload(node: Node, order: dict[str, object]) -> None:
    """The peak, the overload and the peak again; say all of it."""
    before = await run_closed(node, order)
    mark = MemoryMark()
    rate = before.ops_per_second * float(str(order["factor"]))
    load = OpenLoop(
        node.submit,
        lambda: gap_of(node),
        rate=rate,
        value_bytes=int(str(order["value_bytes"])),
        seconds=float(str(order["seconds"])),
        patience_seconds=float(str(order["patience_seconds"])),
    )
    await load.run()
    grown_bytes = mark.grown_bytes
    overload = load.result()
    while gap_of(node):
        await trio.sleep(SETTLE_SECONDS)
    after = await run_closed(node, order)
    say(
        before=asdict(before),
        overload=asdict(overload),
        after=asdict(after),
        offered_per_second=rate,
        grown_bytes=grown_bytes,
    )


def make_slow(seconds: float) -> None:
    """Have every command of the key-value store in this process take so much longer."""
    apply = Kv.apply

    def slow_apply(machine: Kv, context: ApplyContext, payload: bytes) -> object:
        sleep(seconds)
        return apply(machine, context, payload)

    Kv.apply = slow_apply  # type: ignore[assignment,method-assign]


async def run_node(config: Path, node_id: NodeId) -> None:
    """Run the node and do what is told, until stdin ends."""
    async with open_node(config, node_id) as node, trio.open_nursery() as nursery:
        say(opened=node_id, durable=node.is_durable)
        nursery.start_soon(report_leader, node)
        async for order in orders():
            if order["do"] == "campaign":
                nursery.start_soon(campaign, node)
            else:
                assert order["do"] == "overload", order
                nursery.start_soon(run_overload, node, order)
        nursery.cancel_scope.cancel()


def main() -> None:
    """One node; :mod:`replog_bench.overload` starts three of them."""
    parser = argparse.ArgumentParser(
        prog="python -m replog_bench.overload_node", description=main.__doc__
    )
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--node", type=int, required=True)
    parser.add_argument("--lifetime-seconds", type=float, required=True)
    parser.add_argument("--apply-us", type=int, default=0)
    given = parser.parse_args()
    limit_lifetime(given.lifetime_seconds)
    configure_logs("error", "json")
    collect_less()
    if given.apply_us:
        make_slow(given.apply_us / 1e6)
    trio.run(run_node, given.config, given.node)


if __name__ == "__main__":
    main()
