"""Every node is killed at once, in the middle of a load: what was acknowledged is there."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from replog import Client
from replog.cli.demo_nodes import NodeProcesses, node_processes
from replog.config import local_config
from replog.errors import NotDone, OutcomeUnknown
from replog.plugins import engine_names
from replog_kv import Kv

pytestmark = pytest.mark.net

WORKERS = 32
ACKNOWLEDGED_MIN = 500


async def load_until_killed(nodes: NodeProcesses) -> dict[str, bytes]:
    """Write until every node is dead; returns exactly what was acknowledged."""
    acknowledged: dict[str, bytes] = {}
    next_number = iter(range(1_000_000))

    async def work(client: Client) -> None:
        for number in next_number:
            key, value = f"key-{number}", b"%d" % number
            try:
                await client.call(Kv.put, key, value)
            except (NotDone, OutcomeUnknown):
                return  # the nodes are dead; whether it was done is not known
            acknowledged[key] = value

    async with Client(nodes.config, deadline_seconds=2.0) as client, trio.open_nursery() as nursery:
        for _ in range(WORKERS):
            nursery.start_soon(work, client)
        while len(acknowledged) < ACKNOWLEDGED_MIN:
            await trio.sleep(0.005)
        for node in nodes.config.nodes:
            nodes.kill(node.id)
    return acknowledged


@pytest.mark.parametrize("engine", engine_names())
async def test_kill_all_keeps_everything(tmp_path: Path, engine: str) -> None:
    """All nodes are killed with SIGKILL under load; after a restart every acknowledged write is in
    every replica, and the replicas agree."""
    config = local_config(tmp_path / "data", nodes=3, engine=engine)
    with trio.fail_after(60):
        async with node_processes(config, tmp_path) as nodes:
            await nodes.wait_leader()
            acknowledged = await load_until_killed(nodes)
            for node in config.nodes:
                await nodes.wait_ended(node.id)
            for node in config.nodes:
                await nodes.start(node.id)
            await nodes.wait_leader()
            await nodes.wait_equal()
            async with Client(config) as client:
                pages = [await client.dump(items_max=10_000, node=node.id) for node in config.nodes]
    assert len(acknowledged) >= ACKNOWLEDGED_MIN
    for page in pages:
        assert page.cursor is None
        assert page.items == pages[0].items
        found = {item[0]: item[1] for item in page.items if isinstance(item, list)}
        missing = [key for key, value in acknowledged.items() if found.get(key) != value]
        assert not missing
