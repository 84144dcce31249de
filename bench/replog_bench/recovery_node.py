"""One node of a cluster that is filled, ended and started again, as a process of its own.

It runs the node that any program gets from :func:`replog.node.open_node`.  On stdin it is told, one
JSON object per line, and answers each with one on stdout, but for the first:

================================  =============================================================
``{"do": "campaign"}``            try to become leader, until a leader is known
``{"do": "follow"}``              wait for a leader, and say who it is
``{"do": "fill", ...}``           have commands committed, and say up to which index
``{"do": "reach", "index": i}``   wait until everything up to ``i`` is applied, and say when
``{"do": "snapshot"}``            take a snapshot, and say how large it is
``{"do": "mark"}``                memory that grows is counted from now on
``{"do": "picture"}``             say how far a transfer came, and how much memory has grown
``{"do": "installed"}``           the same, but only when a snapshot that was watched is installed
================================  =============================================================

Times are those of ``monotonic``, which all processes of a machine share.  Told nothing, a node
does nothing but its work: only ``--watch`` has it look for an arriving snapshot now and then.  The
end of stdin ends the process.
"""

from __future__ import annotations

import argparse
import cProfile
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from time import monotonic
from typing import Final

import cbor2
import trio

from replog.cli.serve import configure_logs
from replog.cli.shared import collect_less
from replog.node import Node
from replog.running import open_node
from replog.storage.snapshots import snapshot_index
from replog.types import LogIndex, NodeId
from replog_bench.load import commands
from replog_bench.member import campaign, orders, profile_text
from replog_bench.memory import MemoryMark
from replog_bench.processes import Line, limit_lifetime, say

LOOK_SECONDS: Final = 0.005
"""How often it is looked whether something has happened; more often would take the time of what is
looked at."""


class Fill:
    """Keeps commands in flight until so many are committed."""

    def __init__(
        self, node: Node, *, entries: int, value_bytes: int, in_flight: int, is_distinct: bool
    ) -> None:
        """``is_distinct``: every command puts a key of its own, so that the store grows."""
        self.ended = trio.Event()
        self.last_index: LogIndex = 0
        self.failure: Exception | None = None
        self._node = node
        self._entries = entries
        self._in_flight = min(entries, in_flight)
        self._commands = () if is_distinct else commands(value_bytes)
        self._value = bytes(range(256)) * (value_bytes // 256)
        self._submitted = self._committed = 0

    def start(self) -> None:
        """Submit the first of them, on the node's event loop."""
        for _ in range(self._in_flight):
            self._submit()

    def _submit(self) -> None:
        if self._commands:
            command = self._commands[self._submitted % len(self._commands)]
        else:
            command = cbor2.dumps(["put", f"key-{self._submitted:09}", self._value])
        self._submitted += 1
        self._node.submit(command, self._end_one)

    def _end_one(self, index: LogIndex, _result: object, error: Exception | None) -> None:
        if error is not None:
            self.failure = self.failure or error
            self.ended.set()
            return
        self._committed += 1
        self.last_index = index
        if self._submitted < self._entries:
            self._submit()
        elif self._committed == self._entries:
            self.ended.set()


class Station:
    """A running node, and what is noted of it."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self._mark = MemoryMark()
        self._stamps = {"first_chunk_at": 0.0, "durable_at": 0.0, "installed_at": 0.0}
        self._installed = trio.Event()

    async def watch(self) -> None:
        """Note when a snapshot from a peer begins to arrive, has its name, and is installed."""
        node, stamps = self.node, self._stamps
        directory = node.config.node(node.node_id).directory
        while not node.snapshots().transfer.received_bytes:
            await trio.sleep(LOOK_SECONDS)
        stamps["first_chunk_at"] = monotonic()
        while not any(snapshot_index(path.name) for path in directory.iterdir()):
            await trio.sleep(LOOK_SECONDS)
        stamps["durable_at"] = monotonic()
        while not node.snapshots().newest_index:
            await trio.sleep(LOOK_SECONDS)
        stamps["installed_at"] = monotonic()
        self._installed.set()

    async def campaign(self, _order: Line) -> None:
        """Campaign until anybody leads."""
        await campaign(self.node)

    async def follow(self, _order: Line) -> None:
        """Say who leads."""
        say(leader=await self.node.wait_leader())

    async def fill(self, order: Line) -> None:
        """Have so many commands committed through this node, which leads."""
        fill = Fill(
            self.node,
            entries=int(str(order["entries"])),
            value_bytes=int(str(order["value_bytes"])),
            in_flight=int(str(order["in_flight"])),
            is_distinct=bool(order["is_distinct"]),
        )
        self._mark = MemoryMark()
        began = monotonic()
        fill.start()
        await fill.ended.wait()
        if fill.failure is not None:
            raise fill.failure
        say(index=fill.last_index, seconds=monotonic() - began)

    async def reach(self, order: Line) -> None:
        """Say since when a leader is known, and when everything up to an index was applied."""
        index = int(str(order["index"]))
        await self.node.wait_leader()
        followed_at = monotonic()
        while self.node.status().applied_index < index:
            await trio.sleep(LOOK_SECONDS)
        say(followed_at=followed_at, reached_at=monotonic())

    async def snapshot(self, _order: Line) -> None:
        """Take a snapshot of everything that is applied."""
        info = await self.node.take_snapshot()
        say(index=info.meta.last.index, size_bytes=info.size_bytes)

    async def mark(self, _order: Line) -> None:
        """Count memory from now on."""
        self._mark = MemoryMark()
        say(marked=True)

    async def picture(self, _order: Line) -> None:
        """Say how far a transfer came."""
        transfer = self.node.snapshots().transfer
        arriving = transfer.arriving
        say(
            received_bytes=transfer.received_bytes,
            sent_bytes=transfer.sent_bytes,
            source=arriving.source if arriving is not None else 0,
            grown_bytes=self._mark.grown_bytes,
            **self._stamps,
        )

    async def installed(self, order: Line) -> None:
        """Say so when the snapshot is installed."""
        await self._installed.wait()
        await self.picture(order)


Act = Callable[[Station, Line], Awaitable[None]]

ACTS: Final[Mapping[str, Act]] = {
    "campaign": Station.campaign,
    "follow": Station.follow,
    "fill": Station.fill,
    "reach": Station.reach,
    "snapshot": Station.snapshot,
    "mark": Station.mark,
    "picture": Station.picture,
    "installed": Station.installed,
}


async def run_node(config: Path, node_id: NodeId, is_watching: bool) -> None:
    """Run the node and do what is told, until stdin ends."""
    async with open_node(config, node_id) as node, trio.open_nursery() as nursery:
        station = Station(node)
        if is_watching:
            nursery.start_soon(station.watch)
        say(opened=node_id)
        async for order in orders():
            nursery.start_soon(ACTS[str(order["do"])], station, order)
        nursery.cancel_scope.cancel()


def main() -> None:
    """One node; :mod:`replog_bench.recovery` starts it."""
    parser = argparse.ArgumentParser(
        prog="python -m replog_bench.recovery_node", description=main.__doc__
    )
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--node", type=int, required=True)
    parser.add_argument("--lifetime-seconds", type=float, required=True)
    parser.add_argument("--watch", action="store_true")
    parser.add_argument("--profile", type=Path, help="write the event loop's profile there")
    given = parser.parse_args()
    limit_lifetime(given.lifetime_seconds)
    configure_logs("warning", "json")
    collect_less()
    if given.profile is None:
        trio.run(run_node, given.config, given.node, given.watch)
        return
    profile = cProfile.Profile()
    profile.runcall(trio.run, run_node, given.config, given.node, given.watch)
    given.profile.write_text(profile_text(profile), encoding="utf-8")


if __name__ == "__main__":
    main()
