"""Real nodes compare what they applied: the one that differs stops, and the others go on."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from replog import Client, ReplicaDiverged, StateMachine, command
from replog.cli import main
from replog.config import Config, local_config
from replog.config_text import config_toml
from replog.limits import Limits
from replog.machine import Machine
from replog.node import Node
from replog.plugins import engine_names
from replog.running import open_node
from replog.types import NodeId
from replog_kv import Kv

from running import leading_of, until

pytestmark = pytest.mark.net

FAST = Limits(tick_ms=20, digest_compare_ms=100)


class Dice(StateMachine):
    """A machine as none should be: it answers by chance."""

    def __init__(self) -> None:
        self.thrown = 0

    @command
    def throw(self, sides: int) -> int:
        """Throw one die."""
        self.thrown += 1
        return random.randrange(sides)


class Running:
    """A cluster whose nodes may end on their own."""

    def __init__(self, config: Config, nursery: trio.Nursery) -> None:
        self.config = config
        self.nodes: dict[NodeId, Node] = {}
        self.diverged: dict[NodeId, ReplicaDiverged] = {}
        self._nursery = nursery

    async def start(self, node_id: NodeId, machine: Machine) -> None:
        """Open a node; it runs until it fails or the test ends."""
        await self._nursery.start(self._run, node_id, machine)

    async def _run(
        self, node_id: NodeId, machine: Machine, task_status: trio.TaskStatus[None]
    ) -> None:
        try:
            async with open_node(self.config, node_id, machine, bootstrap=True) as node:
                self.nodes[node_id] = node
                task_status.started()
                await trio.sleep_forever()
        except ReplicaDiverged as error:
            del self.nodes[node_id]
            self.diverged[node_id] = error


@pytest.mark.parametrize("engine", engine_names())
@pytest.mark.parametrize("leads", [True, False], ids=["leader", "follower"])
async def test_altered_replica_stops(tmp_path: Path, engine: str, leads: bool) -> None:
    """A value that was altered in one node's memory is noticed when it is replaced: that node stops
    and names the entry, also if it leads, and the others serve on."""
    config = replace(local_config(tmp_path, engine=engine), limits=FAST)
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery, Client(config) as client:
            running = Running(config, nursery)
            for node_id in (1, 2, 3):
                await running.start(node_id, Kv())
            before = await client.propose(Kv.put.encode("key", b"value"))
            leader = await leading_of(running.nodes)
            others = [node for node in running.nodes.values() if node is not leader]
            odd = leader if leads else others[0]
            machine = odd.machine
            await until(lambda: odd.status().applied_index >= before.index)
            assert isinstance(machine, Kv)
            machine._items["key"] = (before.index, "key", b"valve")
            after = await client.propose(Kv.put.encode("key", b"other"))
            await until(lambda: bool(running.diverged))
            assert running.diverged.keys() == {odd.node_id}
            error = running.diverged[odd.node_id]
            assert (error.node_id, error.index) == (odd.node_id, after.index)
            assert f"at entry {after.index}, it came to something else" in str(error)
            assert await client.call(Kv.get, "key") == b"other"
            await client.call(Kv.put, "key", b"on")
            await trio.sleep(0.3)
            assert len(running.nodes) == 2
            nursery.cancel_scope.cancel()


async def test_two_of_two_say_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where nobody can know who is right, both go on, and the status says that they differ."""
    config = local_config(tmp_path, nodes=2, engine=engine_names()[0])
    config = replace(config, limits=FAST)
    path = tmp_path / "cluster.toml"
    path.write_text(config_toml(config))
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery, Client(config) as client:
            running = Running(config, nursery)
            for node_id in (1, 2):
                await running.start(node_id, Dice())
            first = await client.propose(Dice.throw.encode(1 << 60))
            node = running.nodes[1]
            await until(lambda: bool(node.differences))
            assert node.differences[2].index == first.index
            status = await trio.to_thread.run_sync(main, ["status", "--config", str(path)])
            said = capsys.readouterr().err
            assert status == 0
            assert f"node 1 ({config.node(1).client}) and node 2 are not in the same state" in said
            assert not running.diverged
            nursery.cancel_scope.cancel()
