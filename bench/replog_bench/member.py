"""One node of a measured cluster, as a process that its parent tells what to do.

It runs the node that any program gets from :func:`replog.open_node`, with garbage collected as
seldom as ``replog serve`` has it, and says on stdout which leader it knows, whenever that changes.
On stdin it is told, one JSON object per line:

=============================  ================================================================
``{"do": "campaign"}``         try to become leader, until a leader is known
``{"do": "load", ...}``        run the closed loop inside this process, say ``{"result": ...}``
=============================  ================================================================

Any of the nodes can be told to run the load, so whichever leads is; nothing here knows engines.
The end of stdin ends the process: it does not outlive its parent.
"""

from __future__ import annotations

import argparse
import cProfile
import io
import json
import os
import pstats
from collections.abc import AsyncIterator
from dataclasses import asdict
from pathlib import Path
from typing import Final

import trio

from replog.cli.serve import configure_logs
from replog.cli.shared import collect_less
from replog.node import Node
from replog.running import open_node
from replog.types import NodeId
from replog_bench.load import ClosedLoop
from replog_bench.processes import Line, limit_lifetime, say
from replog_bench.timeline import Timeline

CAMPAIGN_SECONDS: Final = 0.1
"""How long a campaign may take before the next: the first may find no peer connected yet."""

PROFILE_ROWS: Final = 45


async def orders() -> AsyncIterator[dict[str, object]]:
    """What the parent tells, until it closes the pipe."""
    received = b""
    while True:
        await trio.lowlevel.wait_readable(0)
        data = os.read(0, 65536)
        if not data:
            return
        *lines, received = (received + data).split(b"\n")
        for line in lines:
            order = json.loads(line)
            assert isinstance(order, dict)
            yield order


async def report_leader(node: Node) -> None:
    """Say who leads, as far as this node knows, at first and whenever it changes."""
    async for change in node.role_changes():
        say(leader=change.leader_id, term=change.term)


async def campaign(node: Node) -> None:
    """Campaign until anybody leads."""
    await node.wait_formed()
    while not node.status().leader_id:
        node.campaign()
        with trio.move_on_after(CAMPAIGN_SECONDS):
            await node.wait_leader()


async def run_load(node: Node, order: Line, timeline: Timeline | None) -> None:
    """Run the closed loop against this node and say what it measured."""
    ended = trio.Event()
    load = ClosedLoop(
        node.submit,
        clients=int(str(order["clients"])),
        value_bytes=int(str(order["value_bytes"])),
        warm_up_seconds=float(str(order["warm_up_seconds"])),
        seconds=float(str(order["seconds"])),
        on_end=ended.set,
    )
    profile = cProfile.Profile() if order["profile"] else None
    if timeline is not None:
        timeline.begin()
    if profile is not None:
        profile.enable()
    load.start()
    await ended.wait()
    text = ""
    if profile is not None:
        profile.disable()
        text = profile_text(profile)
    if timeline is not None:
        text += timeline.text()
    say(result=asdict(load.result()), text=text)


def profile_text(profile: cProfile.Profile) -> str:
    """The functions that took most of the event loop's time, themselves first."""
    written = io.StringIO()
    pstats.Stats(profile, stream=written).strip_dirs().sort_stats("tottime").print_stats(
        PROFILE_ROWS
    )
    return written.getvalue()


async def run_member(config: Path, node_id: NodeId, timeline: Timeline | None) -> None:
    """Run the node and do what is told, until stdin ends."""
    async with open_node(config, node_id) as node, trio.open_nursery() as nursery:
        say(opened=node_id, durable=node.is_durable)
        nursery.start_soon(report_leader, node)
        async for order in orders():
            if order["do"] == "campaign":
                nursery.start_soon(campaign, node)
            else:
                assert order["do"] == "load", order
                nursery.start_soon(run_load, node, order, timeline)
        nursery.cancel_scope.cancel()


def main() -> None:
    """One node; :mod:`replog_bench.cluster` starts three of them."""
    parser = argparse.ArgumentParser(prog="python -m replog_bench.member", description=main.__doc__)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--node", type=int, required=True)
    parser.add_argument("--lifetime-seconds", type=float, required=True)
    parser.add_argument("--timeline", action="store_true")
    given = parser.parse_args()
    limit_lifetime(given.lifetime_seconds)
    # Standard output belongs to the parent; a role change is no news here.
    configure_logs("warning", "json")
    collect_less()
    timeline = Timeline() if given.timeline else None
    trio.run(run_member, given.config, given.node, timeline)


if __name__ == "__main__":
    main()
