"""Changes of a state machine, watched at real nodes: each told once, in order, or an error."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import AsyncIterator, Iterable
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

import pytest
import trio

import replog
from replog import BadCommand, FellBehind, SchemaError
from replog.chunks import pack_chunks
from replog.config import Config, local_config
from replog.limits import Limits
from replog.node import Node
from replog.plugins import engine_names
from replog.queries import Queries
from replog.running import open_node
from replog.types import Change, NodeId
from replog_kv import Kv
from replog_kv.machine import SNAPSHOT_FORM_1, _records

from libraries import LIBRARIES, OPENERS, OpenClient
from running import cut_off, first_of, leading_of, running_cluster

pytestmark = pytest.mark.net

Started: TypeAlias = "trio.TaskStatus[None]"


@pytest.fixture(params=LIBRARIES)
def open_client(request: pytest.FixtureRequest) -> OpenClient:
    """Opens a client of one of the libraries."""
    return OPENERS[request.param]


async def test_clients_watch(open_client: OpenClient, tmp_path: Path) -> None:
    """A client is told what was changed of the keys that it watches, from any index and at any
    node, goes on behind the last change that it knows, and is told what comes."""
    config = local_config(tmp_path)
    async with running_cluster(tmp_path, config=config) as nodes, open_client(config) as client:
        await leading_of(nodes)
        payloads = [Kv.put.encode(f"a{at}", b"%d" % at + bytes(2000)) for at in range(60)]
        payloads[7:7] = [Kv.put.encode("b", b""), Kv.delete.encode("a3")]
        await client.propose_many(payloads)
        for node in (None, 1, 2, 3):
            found = await first_of(client.watch(Kv.changes, "a", after=0, node=node), 61)
            assert [change.key for change in found if change.value] == [f"a{n}" for n in range(60)]
            assert [change.key for change in found if change.value is None] == ["a3"]
            indexes = [change.index for change in found]
            assert indexes == sorted(set(indexes))
            middle = client.watch(Kv.changes, "a", after=found[40].index, node=node)
            assert await first_of(middle, 20) == found[41:]
        later: list[Change] = []

        async def watch() -> None:
            later.extend(await first_of(client.watch(Kv.changes, "later", True), 2))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            await trio.sleep(0.7)  # it has begun, and an empty page has come
            await client.call(Kv.put, "later and more", b"")
            await client.call(Kv.put, "later", b"1")
            await client.call(Kv.delete, "later")
        assert [(change.key, change.value) for change in later] == [
            ("later", b"1"),
            ("later", None),
        ]


@pytest.mark.parametrize(
    ("engine", "library"),
    [(engine, LIBRARIES[at % 3]) for at, engine in enumerate(engine_names() * 2)],
)
async def test_watched_over_transfers_and_restarts(
    tmp_path: Path, engine: str, library: str
) -> None:
    """Who watches goes on by itself while leaders change and a leader ends and comes back, and is
    told each change once."""
    config = local_config(tmp_path, engine=engine)
    count = 60
    async with trio.open_nursery() as nursery:
        stop: dict[NodeId, trio.CancelScope] = {}
        running: dict[NodeId, Node] = {}

        async def run(node_id: NodeId, started: trio.Event) -> None:
            with trio.CancelScope() as stop[node_id]:
                async with open_node(config, node_id, bootstrap=True) as node:
                    running[node_id] = node
                    started.set()
                    await trio.sleep_forever()

        async def start(node_id: NodeId) -> None:
            started = trio.Event()
            nursery.start_soon(run, node_id, started)
            await started.wait()

        found: list[Change] = []

        async def watch() -> None:
            async with OPENERS[library](config) as client:
                found.extend(await first_of(client.watch(Kv.changes, after=0), count))

        with trio.fail_after(40):
            for node in config.nodes:
                await start(node.id)
            async with trio.open_nursery() as watching, replog.Client(config) as client:
                watching.start_soon(watch)
                watching.start_soon(watch)
                session = await client.open_session()
                for at in range(count):
                    await session.call(Kv.put, f"{at}", b"")
                    if at in (15, 45):
                        leader = await leading_of(running)
                        leader.transfer(leader.node_id % 3 + 1)
                    elif at == 30:
                        leader_id = (await leading_of(running)).node_id
                        del running[leader_id]
                        stop[leader_id].cancel()
                    elif at == 40:
                        await start(leader_id)
        nursery.cancel_scope.cancel()
    assert len(found) == 2 * count
    for index in range(2):
        assert len({change.key for change in found[index * count : (index + 1) * count]}) == count


@pytest.mark.parametrize("engine", engine_names())
async def test_nodes_watch(tmp_path: Path, engine: str) -> None:
    """In a program with a node of its own, every node tells the very same changes, behind a read
    too; and after a restart of all nodes from their snapshots they tell them again."""
    config = local_config(tmp_path, engine=engine)
    async with running_cluster(tmp_path, config=config) as nodes:
        leader = await leading_of(nodes)
        for at in range(20):
            await leader.call(Kv.put, f"{at % 3}", b"%d" % at)
        told = [await first_of(node.watch(Kv.changes, after=0), 20) for node in nodes.values()]
        assert told[0] == told[1] == told[2]
        assert [change.value for change in told[0]] == [b"%d" % at for at in range(20)]
        read = await leader.query(Kv.range)
        await leader.call(Kv.delete, "1")
        (change,) = await first_of(nodes[2].watch(Kv.changes, after=read.index), 1)
        assert (change.key, change.value) == ("1", None)
        for node in nodes.values():
            await node.take_snapshot()
    async with running_cluster(tmp_path, config=config) as nodes:
        await leading_of(nodes)
        for node in nodes.values():
            assert await first_of(node.watch(Kv.changes, after=0), 21) == [*told[0], change]


def forgetful_config(directory: Path) -> Config:
    """A cluster of one node."""
    return replace(local_config(directory, nodes=1), limits=Limits(tick_ms=10))


async def test_fell_behind(open_client: OpenClient, tmp_path: Path) -> None:
    """Who watches from what is not remembered any more is told so with the first index that is, in
    every library and at the node; from there it goes on."""
    config = forgetful_config(tmp_path)
    machine = Kv(changes_max=10)
    with trio.fail_after(20):
        async with (
            open_node(config, node=1, machine=machine, bootstrap=True) as node,
            open_client(config) as client,
        ):
            await node.wait_leader()
            indexes = [
                applied.index
                for applied in await client.propose_many(
                    [Kv.put.encode(f"{at}", b"") for at in range(30)]
                )
            ]
            for watched in (
                client.watch(Kv.changes, after=indexes[5]),
                client.watch(Kv.changes, after=indexes[5], node=1),
                node.watch(Kv.changes, after=indexes[5]),
            ):
                with pytest.raises(FellBehind, match="read the state") as caught:
                    await anext(watched)
                assert caught.value.first_available == indexes[19] + 1
            known = client.watch(Kv.changes, after=caught.value.first_available - 1)
            assert [change.index for change in await first_of(known, 10)] == indexes[20:]


async def test_bad_watches(open_client: OpenClient, tmp_path: Path) -> None:
    """What cannot be watched is refused at once: a command, an argument that does not fit, a query
    that gives out no changes, an index below 0, and one to which the log has not come."""
    config = forgetful_config(tmp_path)
    with trio.fail_after(20):
        async with (
            open_node(config, node=1, bootstrap=True) as node,
            open_client(config) as client,
        ):
            await node.wait_leader()
            bad: list[tuple[AsyncIterator[Change], type[Exception], str]] = []
            for watch in (client.watch, node.watch):
                bad += [
                    (watch(Kv.delete, after=0), BadCommand, "is a command"),  # type: ignore[arg-type]
                    (watch(Kv.changes, 7, after=0), BadCommand, "'prefix'"),
                    (watch(Kv.range, after=0), BadCommand, "'start'"),  # type: ignore[arg-type]
                    (watch(Kv.changes, after=-1), BadCommand, "not below 0"),
                    (watch(Kv.changes, after=1000), BadCommand, "has only come to"),
                ]
            for changes, error, sentence in bad:
                with pytest.raises(error, match=sentence):
                    await anext(changes)


async def test_watch_of_no_changes(tmp_path: Path) -> None:
    """A query that takes an index and gives out something else is no page of changes."""

    class Odd(replog.StateMachine):
        @replog.query
        def changes(self, after: int | None) -> int:
            return 7

    config = forgetful_config(tmp_path)
    with trio.fail_after(20):
        async with open_node(config, node=1, machine=Odd(), bootstrap=True) as node:
            await node.wait_leader()
            with pytest.raises(SchemaError, match="no page of changes"):
                await anext(node.watch(Odd.changes))  # type: ignore[arg-type]


async def test_many_watchers_do_not_end_the_connection(tmp_path: Path) -> None:
    """Watchers of large values that share a connection wait for each other; commands go on."""
    limits = Limits(
        client_queue_bytes_max=1 << 20,
        frame_bytes_max=1 << 20,
        command_bytes_max=1 << 18,
        message_bytes_max=1 << 18,
        snapshot_chunk_bytes=1 << 18,
    )
    config = replace(local_config(tmp_path, nodes=1), limits=limits)
    async with running_cluster(tmp_path, config=config) as nodes, replog.Client(config) as client:
        await leading_of(nodes)
        await client.propose_many([Kv.put.encode(f"{at}", bytes(1 << 17)) for at in range(8)])
        found: list[list[str]] = []

        async def watch() -> None:
            changes = await first_of(client.watch(Kv.changes, after=0), 8)
            found.append([change.key for change in changes])

        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(watch)
            for _ in range(20):
                await client.call(Kv.put, "small", b"")
        assert found == [[f"{at}" for at in range(8)]] * 20


@pytest.mark.parametrize("engine", engine_names())
async def test_watcher_leaves_a_leader_that_is_cut_off(tmp_path: Path, engine: str) -> None:
    """Who watches at whoever leads does not stay at a node that leads no more and hears nothing."""
    config = local_config(tmp_path, engine=engine)
    async with running_cluster(tmp_path, config=config) as nodes, replog.Client(config) as client:
        deposed = await leading_of(nodes)
        index = (await client.propose(Kv.put.encode("before", b""))).index
        cut_off(nodes, deposed)
        others = {node.node_id: node for node in nodes.values() if node is not deposed}
        found: list[Change] = []

        async def watch() -> None:
            found.extend(await first_of(client.watch(Kv.changes, after=index), 1))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            while not any(node.status().term > deposed.status().term for node in others.values()):
                await trio.sleep(0.01)
            await (await leading_of(others)).call(Kv.put, "after", b"")
        assert [change.key for change in found] == ["after"]


async def test_many_watchers_on_a_busy_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three hundred who wait for a key that nobody writes cost no more than ``query_reruns_max``
    runs in a tick, beside the one of each page that they ask for; and are told when it comes."""
    limits = Limits(query_reruns_max=5, tick_ms=50)
    config = replace(local_config(tmp_path, nodes=1), limits=limits)
    machine = Counted()
    with trio.fail_after(40):
        async with open_node(config, node=1, machine=machine, bootstrap=True) as node:
            await node.wait_leader()
            ticks, queries = 0, node._replica._queries
            tick = queries.tick

            def count_tick() -> None:
                nonlocal ticks
                ticks += 1
                tick()

            monkeypatch.setattr(Queries, "tick", lambda _: count_tick())
            asked, submit = 0, node.submit_query

            def count_asked(*args: object) -> None:
                nonlocal asked
                asked += 1
                submit(*args)  # type: ignore[arg-type]

            node.submit_query = count_asked  # type: ignore[method-assign, assignment]
            found: list[Change] = []

            async def watch() -> None:
                found.extend(await first_of(node.watch(Counted.changes, "rare", after=0), 1))

            async with trio.open_nursery() as nursery:
                for _ in range(300):
                    nursery.start_soon(watch)
                written = 0
                while ticks <= 2 or written < 400:
                    await node.call(Counted.put, f"{written}", b"")
                    written += 1
                assert machine.runs <= asked + limits.query_reruns_max * (ticks + 1)
                await node.call(Counted.put, "rare", b"")
            assert len(found) == 300


class Counted(Kv):
    """A store that counts how often it is asked for changes."""

    def __init__(self) -> None:
        super().__init__()
        self.runs = 0

    def answer(self, payload: bytes) -> object:
        """Count, and answer."""
        self.runs += 1
        return super().answer(payload)


async def test_command_line(tmp_path: Path) -> None:
    """``replog kv watch`` prints each change as it comes; who fell behind is told so in one
    sentence, with exit code 1."""
    config = forgetful_config(tmp_path)
    with trio.fail_after(40):
        async with (
            open_node(config, node=1, machine=Kv(changes_max=5), bootstrap=True) as node,
            trio.open_nursery() as nursery,
        ):
            await node.wait_leader()
            await node.call(Kv.put, "a/1", b"one")
            words = [sys.executable, "-m", "replog", "kv", "watch"]
            connect = ["--connect", str(config.nodes[0].client)]
            lines: dict[str, list[str]] = {}

            async def watch(*options: str, task_status: Started = trio.TASK_STATUS_IGNORED) -> None:
                process = await trio.lowlevel.open_process(
                    [*words, *options, *connect], stdout=subprocess.PIPE
                )
                assert process.stdout is not None
                told = b""
                while told.count(b"\n") < 3:
                    told += await process.stdout.receive_some()
                    task_status.started()
                    task_status = trio.TASK_STATUS_IGNORED
                process.kill()
                await process.wait()
                lines[options[-1]] = told.decode().splitlines()

            await nursery.start(watch, "--from", "1", "a/")
            nursery.start_soon(watch, "--json", "--from", "1")
            await node.call(Kv.put, "b", b"")
            await node.call(Kv.put, "a/1", b"\xff")
            await node.call(Kv.delete, "a/1")
            while len(lines) < 2:
                await trio.sleep(0.05)
            rows = [line.split("\t")[1:] for line in lines["a/"][:3]]
            assert rows == [["set", "a/1", "one"], ["set", "a/1", r"\xff"], ["gone", "a/1"]]
            documents = [json.loads(line) for line in lines["1"][:3]]
            assert [(each["key"], each["value"]) for each in documents] == [
                ("a/1", "one"),
                ("b", ""),
                ("a/1", "/w=="),
            ]
            for at in range(9):
                await node.call(Kv.put, f"{at}", b"")
            ended = await trio.run_process(
                [*words, "--from", "1", *connect], capture_stderr=True, check=False
            )
            assert (ended.returncode, ended.stderr.count(b"\n")) == (1, 1)
            assert b"are not known any more" in ended.stderr


class OldKv(Kv):
    """A store as an earlier release had it, whose snapshots know of no changes."""

    def freeze(self) -> Iterable[bytes]:
        """The items alone."""
        return pack_chunks(SNAPSHOT_FORM_1, _records(self._items.copy()))

    def restore(self, chunks: Iterable[bytes]) -> None:
        """As of the present release."""
        super().restore(chunks)


async def test_snapshot_of_an_earlier_release(tmp_path: Path) -> None:
    """A node that begins with a snapshot without changes knows them from its index on: who asks for
    one in front of it, also for the removal that left no trace in the items, is told so."""
    config = forgetful_config(tmp_path)
    with trio.fail_after(20):
        async with open_node(config, node=1, machine=OldKv(), bootstrap=True) as node:
            await node.wait_leader()
            await node.call(Kv.put, "a", b"")
            await node.call(Kv.put, "b", b"")
            before = (await node.query(Kv.range)).index
            await node.call(Kv.delete, "b")
            info = await node.take_snapshot()
            await node.call(Kv.put, "c", b"")
        async with open_node(config, node=1, machine=Kv()) as node:
            await node.wait_leader()
            with pytest.raises(FellBehind) as caught:
                await anext(node.watch(Kv.changes, after=before))
            assert caught.value.first_available == info.meta.last.index + 1
            changes = node.watch(Kv.changes, after=info.meta.last.index)
            assert (await anext(changes)).key == "c"
