"""Results of any size by the client libraries, at real nodes."""

from __future__ import annotations

from pathlib import Path

import pytest

from replog.config import local_config
from replog.limits import KIB
from replog.types import ReadLevel
from replog_kv import Kv

from libraries import LIBRARIES, OPENERS
from running import leading_of, running_cluster

pytestmark = pytest.mark.net


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("state_machine", ["kv", "sqlite-kv"])
async def test_items_of_many_pages(tmp_path: Path, library: str, state_machine: str) -> None:
    """Ten MiB of items come one by one, though no frame holds so much; also from a node of one's
    choice, and none of those with another prefix."""
    config = local_config(tmp_path, nodes=3, state_machine=state_machine)
    open_client = OPENERS[library]
    async with running_cluster(tmp_path, config=config) as nodes, open_client(config) as client:
        leader = await leading_of(nodes)
        values = {f"job/{number:03}": bytes([number]) * 256 * KIB for number in range(40)}
        puts = [Kv.put.encode(key, value) for key, value in values.items()]
        await client.propose_many([*puts, Kv.put.encode("kob", b"")])
        found = [item async for item in client.items(Kv.scan, "job/")]
        assert {item["key"]: item["value"] for item in found} == values
        assert sum(len(value) for value in values.values()) > config.limits.frame_bytes_max
        follower = next(node_id for node_id in nodes if node_id != leader.node_id)
        again = [
            item async for item in client.items(Kv.scan, level=ReadLevel.TIMELINE, node=follower)
        ]
        assert [item["key"] for item in again] == [*values, "kob"]
