"""Real nodes on the storage ``sqlite``: nothing but the configuration says so."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from replog.client import Client
from replog.config import local_config
from replog.node import Node
from replog.plugins import engine_names
from replog.storage.sqlite import FILE_NAME
from replog.types import NodeId, Role
from replog_kv import Kv

from running import running_cluster, until

pytestmark = pytest.mark.net

KEYS = 40


async def some_leader(nodes: dict[NodeId, Node]) -> Node:
    """Wait until a node leads; it need not have committed anything, for not every engine begins
    with an entry of its own."""
    leaders: list[Node] = []

    def is_led() -> bool:
        leaders[:] = [node for node in nodes.values() if node.status().role is Role.LEADER]
        return bool(leaders)

    await until(is_led)
    return leaders[0]


@pytest.mark.parametrize("engine", engine_names())
async def test_cluster_on_sqlite_keeps_everything(tmp_path: Path, engine: str) -> None:
    """Three nodes whose logs are SQLite databases replicate, stop, start again and hold what was
    acknowledged; so do clients see it."""
    config = local_config(tmp_path, nodes=3, engine=engine, storage="sqlite")
    async with running_cluster(tmp_path, config=config) as nodes:
        leader = await some_leader(nodes)
        assert leader.is_durable
        async with trio.open_nursery() as nursery:
            for number in range(KEYS):
                nursery.start_soon(leader.call, Kv.put, f"key-{number}", b"%d" % number)
    for node in config.nodes:
        assert (node.directory / FILE_NAME).exists()
    async with running_cluster(tmp_path, config=config) as nodes:
        leader = await some_leader(nodes)
        async with Client(config) as client:
            for number in range(KEYS):
                assert await client.call(Kv.get, f"key-{number}") == b"%d" % number
        last = leader.status().applied_index
        await until(lambda: all(node.status().applied_index >= last for node in nodes.values()))
        dumps = [list(node.machine.dump(b"", 1000).items) for node in nodes.values()]
        assert len(dumps[0]) == KEYS
        assert dumps[0] == dumps[1] == dumps[2]
