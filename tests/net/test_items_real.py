"""Results of any size by the client libraries, at real nodes."""

from __future__ import annotations

from pathlib import Path

import pytest
from scripted import Conversation, done, scripted_nodes

from replog.config import local_config
from replog.errors import Unavailable
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


@pytest.mark.parametrize("library", LIBRARIES)
async def test_deadline_is_for_each_page(library: str) -> None:
    """A page that does not come ends the reading at the caller's deadline, not at the client's, and
    what came before it was given out."""
    page = {"items": ["a", "b"], "next": "b"}

    async def tell_one_page(conversation: Conversation) -> None:
        await conversation.welcome()
        await conversation.send(done(await conversation.request(), page))
        await conversation.until_hung_up()

    async with (
        scripted_nodes(tell_one_page) as (node,),
        OPENERS[library](node.address, deadline_seconds=60) as client,
    ):
        items = client.items(Kv.scan, deadline_seconds=0.3)
        assert [await anext(items), await anext(items)] == page["items"]
        with pytest.raises(Unavailable, match=r"within 0\.3 s"):
            await anext(items)
        assert len(node.requests) == 2
