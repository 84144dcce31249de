"""Queries to real nodes: each serves them, from its own state, and makes no entry for them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cbor2
import pytest
import trio

from replog import Client, NotYet, StateMachine, command, query
from replog.config import local_config
from replog.errors import BadCommand, Unavailable
from replog.frames import (
    ClientHello,
    FrameCodec,
    FrameType,
    Outcome,
    Refusal,
    Reply,
    Request,
    ServerHello,
)
from replog.limits import Limits
from replog.node import Node
from replog.plugins import engine_names
from replog.running import open_node
from replog.types import ReadLevel, Role
from replog.wire import FrameReader
from replog_kv import Kv
from replog_kv.machine import KvError

from running import cut_off, leader_of, running_cluster, until

pytestmark = pytest.mark.net

CODEC = FrameCodec(Limits())


async def converse(node: Node, *requests: Request) -> list[Reply | Refusal]:
    """Send requests to a node, and wait for as many answers, or for a refusal."""
    address = node.config.node(node.node_id).client
    stream = await trio.open_tcp_stream(address.host, address.port)
    found: list[Reply | Refusal] = []
    async with stream:
        reader = FrameReader(dict.fromkeys(map(int, FrameType), 1 << 24))
        await stream.send_all(CODEC.encode(ClientHello(1, 1, "")))
        while len(found) < len(requests) and (data := await stream.receive_some()):
            for frame_type, content in reader.feed(data):
                if frame_type == FrameType.KEEPALIVE:
                    continue
                frame = CODEC.decode(frame_type, content)
                if isinstance(frame, ServerHello):
                    await stream.send_all(b"".join(map(CODEC.encode, requests)))
                else:
                    assert isinstance(frame, Reply | Refusal)
                    found.append(frame)
    return found


def asked(number: int, level: str, at_least: int, payload: bytes) -> Request:
    """A query as a client sends it."""
    return Request(number, "query", cbor2.dumps([level, at_least, payload]))


async def test_query_served_by_every_node(tmp_path: Path) -> None:
    """Each node serves linearizable queries, which see what was done, and no entry is made."""
    async with running_cluster(tmp_path) as nodes:
        leader = await leader_of(nodes)
        await leader.call(Kv.put, "key", b"value")
        last_index = leader.status().last_index
        for node in nodes.values():
            await node.wait_leader()
            assert await node.call(Kv.get, "key") == b"value"
            read = await node.query(Kv.get, "key")
            assert (read.result, read.index) == (b"value", last_index)
        assert leader.status().last_index == last_index


async def test_query_levels(tmp_path: Path) -> None:
    """A lone node of three serves what may be old at once, and nothing that must be new."""
    limits = Limits(read_wait_ms=400)
    config = replace(local_config(tmp_path, nodes=3), limits=limits)
    async with running_cluster(tmp_path, config=config) as nodes:
        leader = await leader_of(nodes)
        await leader.call(Kv.put, "key", b"value")
        last_index = leader.status().last_index
        await until(
            lambda: all(each.status().applied_index == last_index for each in nodes.values())
        )
    with trio.fail_after(20):
        async with open_node(config, 1) as node:
            read = await node.query(Kv.get, "key", level=ReadLevel.STALE)
            assert read.index <= last_index
            for level, at_least in ((ReadLevel.LINEARIZABLE, 0), (ReadLevel.TIMELINE, 1000)):
                with pytest.raises(Unavailable):
                    await node.query(Kv.get, "key", level=level, at_least=at_least)


async def test_query_declared_errors(tmp_path: Path) -> None:
    """What a query declares reaches the caller, and a command is no query."""
    async with running_cluster(tmp_path, nodes=1) as nodes:
        node = await leader_of(nodes)
        with pytest.raises(KvError):
            await node.query(Kv.get, "")
        with pytest.raises(BadCommand, match="goes through the log"):
            await node.query(Kv.put, "key", b"value")


async def test_query_cancelled_harms_nobody(tmp_path: Path) -> None:
    """Who gives up a query does not disturb the next."""
    async with running_cluster(tmp_path, nodes=1) as nodes:
        node = await leader_of(nodes)
        with trio.move_on_after(0.01):
            await node.query(Kv.get, "key", level=ReadLevel.TIMELINE, at_least=10_000)
        assert await node.call(Kv.get, "key") is None


async def test_query_over_the_wire(tmp_path: Path) -> None:
    """Clients read at every node by the verb ``query``; the reply says as of which index."""
    async with running_cluster(tmp_path) as nodes:
        leader = await leader_of(nodes)
        await leader.call(Kv.put, "key", b"value")
        index = leader.status().last_index
        follower = next(node for node in nodes.values() if node is not leader)
        await follower.wait_leader()
        payload = Kv.get.encode("key")
        replies = await converse(
            follower,
            asked(1, "linearizable", 0, payload),
            asked(2, "timeline", index, payload),
            asked(3, "linearizable", 0, Kv.put.encode("key", b"other")),
        )
        by_id = {reply.request_id: reply for reply in replies if isinstance(reply, Reply)}
        for number in (1, 2):
            reply = by_id[number]
            assert reply.outcome is Outcome.DONE
            assert (reply.index, cbor2.loads(reply.value)) == (index, b"value")
        assert (by_id[3].outcome, by_id[3].code) == (Outcome.NOT_DONE, "BadCommand")


@pytest.mark.parametrize(
    "body",
    [b"", cbor2.dumps([]), cbor2.dumps(["newest", 0, b""]), cbor2.dumps(["stale", -1, b""])],
    ids=["empty", "nothing", "level", "index"],
)
async def test_query_malformed_refused(tmp_path: Path, body: bytes) -> None:
    """What is no query of a correct client closes its connection, with a sentence."""
    async with running_cluster(tmp_path, nodes=1) as nodes:
        node = await leader_of(nodes)
        (refusal,) = await converse(node, Request(1, "query", body))
        assert isinstance(refusal, Refusal)
        assert await node.call(Kv.get, "key") is None


class Shelf(StateMachine):
    """Things, and a query that waits for so many of them."""

    def __init__(self) -> None:
        self.things: list[str] = []

    @command
    def add(self, thing: str) -> None:
        """Add one."""
        self.things.append(thing)

    @query
    def at_least(self, count: int) -> list[str]:
        """All things as soon as there are so many; what there is, if that takes long."""
        if len(self.things) < count:
            raise NotYet(self.context.index + 1, self.things)
        return self.things


async def test_query_waits_for_what_it_asks_for(tmp_path: Path) -> None:
    """A query that has nothing to tell yet is answered when it has, and in the end without."""
    config = local_config(tmp_path, nodes=1)
    with trio.fail_after(30):
        async with open_node(config, 1, Shelf(), bootstrap=True) as node, Client(config) as client:
            await node.wait_leader()
            assert (await node.query(Shelf.at_least, 1)).result == []
            found: list[object] = []

            async def ask() -> None:
                found.append((await client.query(Shelf.at_least, 2)).result)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(ask)
                for thing in ("one", "two"):
                    await trio.sleep(0.1)
                    assert found == []
                    await node.call(Shelf.add, thing)
            assert found == [["one", "two"]]


async def test_unknown_request_is_answered(tmp_path: Path) -> None:
    """A request that the node does not know, as of a later release, is refused with what to do, and
    the connection with the commands on it goes on."""
    config = local_config(tmp_path, nodes=1)
    async with running_cluster(tmp_path, config=config) as nodes, Client(config) as client:
        await leader_of(nodes)
        await client.call(Kv.put, "key", b"value")
        leading = client._logic._leading
        question = await client._order(
            lambda logic, now, seconds, waiter: logic.read(
                now, "nonsense", b"", None, seconds, waiter
            ),
            None,
        )
        assert isinstance(question.failure, BadCommand)
        assert "node 1 knows no request 'nonsense'" in str(question.failure)
        assert await client.call(Kv.get, "key") == b"value"
        assert client._logic._leading is leading


@pytest.mark.parametrize("engine", engine_names())
async def test_lease_read_asks_nobody(tmp_path: Path, engine: str) -> None:
    """A leader with a lease serves the level ``lease`` while nobody can answer it, to its program
    and to clients; when the lease is over, it serves it no more."""
    config = local_config(tmp_path, nodes=3, engine=engine)
    options = replace(config.engine_options, lease_ms=450)  # type: ignore[type-var]
    config = replace(config, engine_options=options, limits=Limits(read_wait_ms=2000))
    async with running_cluster(tmp_path, config=config) as nodes:
        await until(lambda: any(node.status().lease_until_ns for node in nodes.values()))
        (leader,) = [node for node in nodes.values() if node.status().role is Role.LEADER]
        await leader.call(Kv.put, "key", b"value")
        address = str(config.node(leader.node_id).client)
        async with Client(address) as client:
            read = await client.query(Kv.get, "key", level=ReadLevel.LEASE)
            assert read.result == b"value"
            cut_off(nodes, leader)
            rounds = leader._replica.engine.leader.round  # type: ignore[attr-defined]
            read = await leader.query(Kv.get, "key", level=ReadLevel.LEASE)
            assert read.result == b"value"
            assert leader._replica.engine.leader.round - rounds <= 1, "heartbeats alone"  # type: ignore[attr-defined]
        with pytest.raises(Unavailable):
            while True:
                await leader.query(Kv.get, "key", level=ReadLevel.LEASE)
