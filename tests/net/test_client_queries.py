"""Queries of the client libraries at real nodes: no entry, any node, never backwards."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from replog import Client, ReadLevel
from replog.config import local_config
from replog.errors import AddressError, BadCommand, CommandFailed, Unavailable
from replog.plugins import engine_names
from replog.server import EARLY_BYTES
from replog.transport.connection import Connection
from replog_kv import Kv

from libraries import LIBRARIES, OPENERS, OpenClient
from running import leader_of, running_cluster, until

pytestmark = pytest.mark.net


@pytest.fixture(params=LIBRARIES)
def open_client(request: pytest.FixtureRequest) -> OpenClient:
    """Opens a client of one of the libraries."""
    return OPENERS[request.param]


@pytest.mark.parametrize("engine", engine_names())
async def test_query_makes_no_entry(open_client: OpenClient, tmp_path: Path, engine: str) -> None:
    """What was put is read by every node at every level, and the log is as long as before."""
    config = local_config(tmp_path, nodes=3, engine=engine)
    async with running_cluster(tmp_path, config=config) as nodes, open_client(config) as client:
        await client.call(Kv.put, "key", b"value")
        session = await client.open_session()
        assert await session.call(Kv.get, "key") == b"value"
        last_index = (await leader_of(nodes)).status().last_index
        assert await client.call(Kv.get, "key") == b"value"
        for node in (None, *nodes, str(config.nodes[0].client)):
            for level in (ReadLevel.LINEARIZABLE, ReadLevel.TIMELINE):
                applied = await client.query(Kv.get, "key", level=level, node=node)
                assert applied.result == b"value"
        await until(
            lambda: all(node.status().applied_index == last_index for node in nodes.values())
        )
        stale = await client.query(Kv.get, "key", level=ReadLevel.STALE, node=2)
        assert (stale.index, stale.result) == (last_index, b"value")
        assert (await leader_of(nodes)).status().last_index == last_index


async def test_answers_leave_while_others_are_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What many ask for at once is sent a few KiB at a time, and everybody has the right answer."""
    sent: list[int] = []
    real = Connection._send_queue

    def note(connection: Connection) -> None:
        sent.append(connection.queued_bytes)
        real(connection)

    async with running_cluster(tmp_path, nodes=1) as nodes, Client(nodes[1].config) as client:
        for number in range(100):
            await client.call(Kv.put, f"key {number}", bytes((number,)) * 1024)
        monkeypatch.setattr(Connection, "_send_queue", note)
        found: dict[int, object] = {}

        async def read(number: int) -> None:
            found[number] = await client.call(Kv.get, f"key {number}")

        async with trio.open_nursery() as nursery:
            for number in range(100):
                nursery.start_soon(read, number)
        assert found == {number: bytes((number,)) * 1024 for number in range(100)}
        assert 16 * 1024 > max(sent) >= EARLY_BYTES


async def test_errors_of_queries(open_client: OpenClient, tmp_path: Path) -> None:
    """A declared error, a command where a query belongs, and an index that nobody has yet."""
    async with running_cluster(tmp_path, nodes=1) as nodes:
        await leader_of(nodes)
        async with open_client(nodes[1].config) as client:
            with pytest.raises(CommandFailed) as failed:
                await client.call(Kv.range, "", None, 0)
            assert failed.value.name == "KvError"
            with pytest.raises(BadCommand, match="put is a command"):
                await client.query(Kv.put, "key", b"value")
            with pytest.raises(AddressError):
                await client.query(Kv.get, "key", node="nowhere")
            with pytest.raises(Unavailable):
                await client.query(
                    Kv.get, "key", level=ReadLevel.TIMELINE, at_least=1 << 40, deadline_seconds=0.3
                )


async def test_timeline_never_goes_back(open_client: OpenClient, tmp_path: Path) -> None:
    """A client that puts and reads at other nodes sees what it has put, and what it has read."""
    async with running_cluster(tmp_path) as nodes:
        leader = await leader_of(nodes)
        others = [node_id for node_id in nodes if node_id != leader.node_id]
        async with open_client(leader.config) as client:
            seen = 0
            for number in range(20):
                await client.call(Kv.put, "key", b"%d" % number)
                for node in others:
                    applied = await client.query(Kv.get, "key", level=ReadLevel.TIMELINE, node=node)
                    assert applied.result == b"%d" % number
                    assert applied.index >= seen
                    seen = applied.index


async def test_queries_go_on_over_a_transfer(open_client: OpenClient, tmp_path: Path) -> None:
    """While leadership is handed over, every query is answered."""
    async with running_cluster(tmp_path) as nodes:
        leader = await leader_of(nodes)
        async with open_client(leader.config) as client:
            await client.call(Kv.put, "key", b"value")

            async def work() -> None:
                for _ in range(60):
                    assert await client.call(Kv.get, "key") == b"value"

            async with trio.open_nursery() as nursery:
                for _ in range(4):
                    nursery.start_soon(work)
                for _ in range(2):
                    leader = await leader_of(nodes)
                    leader.transfer(next(each for each in nodes if each != leader.node_id))
                    await trio.sleep(0.1)
