"""The log as a log, at real nodes: appended anywhere, read anywhere, none missed and none twice."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest
import trio

import replog
from replog import BadCommand, CommandTooLarge, Compacted, Log, Unavailable, open_log
from replog.config import Config, local_config
from replog.limits import Limits
from replog.node import Node
from replog.plugins import engine_names
from replog.running import open_node
from replog.types import LogEntry, NodeId
from replog_kv import Kv
from replog_log.commands import Lines

from libraries import LIBRARIES, OPENERS, OpenClient
from running import cut_off, first_of, leading_of, running_cluster

pytestmark = pytest.mark.net


def log_config(directory: Path, nodes: int = 3, engine: str = "raft", **limits: int) -> Config:
    """A cluster without a state machine."""
    config = local_config(directory, nodes=nodes, engine=engine)
    return replace(config, state_machine="log", limits=Limits(**limits))


async def all_of(entries: AsyncIterator[LogEntry]) -> list[LogEntry]:
    """Every entry, of what ends."""
    return [entry async for entry in entries]


@pytest.mark.parametrize("engine", engine_names())
async def test_append_and_read_anywhere(tmp_path: Path, engine: str) -> None:
    """Any node takes an append, and every node gives out all of them in the one order, with the
    index that was returned."""
    config = log_config(tmp_path, engine=engine)
    async with running_cluster(tmp_path, config=config) as nodes:
        await leading_of(nodes)
        appended: dict[int, bytes] = {}

        async def append(log: Log, data: bytes) -> None:
            appended[await log.append(data)] = data

        for node in nodes.values():
            async with open_log(node) as log, trio.open_nursery() as nursery:
                for at in range(5):
                    nursery.start_soon(append, log, b"%d from %d" % (at, node.node_id))
        for node in nodes.values():
            async with open_log(node) as log:
                found = await all_of(log.entries(follow=False))
                assert {entry.index: entry.data for entry in found} == appended
                assert [entry.index for entry in found] == sorted(appended)
                assert all(entry.time_ms > 0 for entry in found)
                middle = found[7].index
                assert await all_of(log.entries(middle, follow=False)) == found[7:]
                assert await all_of(log.entries(1 << 40, follow=False)) == []


@pytest.mark.parametrize("engine", engine_names())
async def test_followed_over_transfers(tmp_path: Path, engine: str) -> None:
    """Who follows the log gets what comes, once each, whoever leads meanwhile."""
    config = log_config(tmp_path, engine=engine)
    count = 40
    async with running_cluster(tmp_path, config=config) as nodes, trio.open_nursery() as nursery:
        found: dict[NodeId, list[bytes]] = {}

        async def follow(node: Node) -> None:
            async with open_log(node) as log:
                entries = await first_of(log.entries(), count)
            found[node.node_id] = [entry.data for entry in entries]

        for node in nodes.values():
            nursery.start_soon(follow, node)
        for at in range(count):
            leader = await leading_of(nodes)
            if at % 10 == 9:
                leader.transfer(leader.node_id % 3 + 1)
            async with open_log(nodes[at % 3 + 1]) as log:
                await log.append(b"%d" % at)
    assert list(found.values()) == [[b"%d" % at for at in range(count)]] * 3


@pytest.fixture(params=LIBRARIES)
def open_client(request: pytest.FixtureRequest) -> OpenClient:
    """Opens a client of one of the libraries."""
    return OPENERS[request.param]


async def test_clients_read_the_log(open_client: OpenClient, tmp_path: Path) -> None:
    """A client reads the log of any node, in pages that no entry falls between, goes on from where
    it was, and follows what comes."""
    config = log_config(tmp_path)
    datas = [b"%d" % at + bytes(3000) for at in range(60)]
    async with running_cluster(tmp_path, config=config) as nodes, open_client(config) as client:
        await leading_of(nodes)
        indexes = [applied.index for applied in await client.propose_many(datas)]
        for node in (None, 1, 2, 3, str(config.nodes[0].client)):
            found = await all_of(client.entries(follow=False, node=node))
            assert [(entry.index, entry.data) for entry in found] == list(
                zip(indexes, datas, strict=True)
            )
        assert await first_of(client.entries(indexes[50]), 5) == found[50:55]
        later: list[bytes] = []

        async def follow() -> None:
            later.extend(e.data for e in await first_of(client.entries(indexes[-1] + 1), 2))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(follow)
            await trio.sleep(0.7)  # an empty page has come by then
            for data in (b"later", b"last"):
                await client.propose(data)
        assert later == [b"later", b"last"]


async def test_trimmed_is_compacted(open_client: OpenClient, tmp_path: Path) -> None:
    """What a snapshot stands for is refused with the first index that is there, to a program with
    the node and to a client; what is behind it is read."""
    config = log_config(tmp_path, nodes=1, trim_margin_entries=5)
    async with running_cluster(tmp_path, config=config) as nodes, open_client(config) as client:
        node = await leading_of(nodes)
        for outcome in await client.propose_many(b"%d" % at for at in range(30)):
            last_index = outcome.index
        await node.take_snapshot()
        while not node.status().base_index:
            await trio.sleep(0.01)
        async with open_log(node) as log:
            for reader in (log, client):
                with pytest.raises(Compacted) as refused:
                    await all_of(reader.entries(follow=False))
                first = refused.value.first_available
                found = await all_of(reader.entries(first, follow=False))
                assert first == node.status().base_index + 1
                assert [entry.index for entry in found] == list(range(first, last_index + 1))


async def test_log_over_a_restart(tmp_path: Path) -> None:
    """What was appended is there after a restart; a node that stops ends who follows."""
    config = log_config(tmp_path, nodes=1)
    with trio.fail_after(30):
        async with open_node(config, 1, bootstrap=True) as node, open_log(node) as log:
            await node.wait_leader()
            index = await log.append(b"kept")
        with pytest.raises(Unavailable):
            await first_of(log.entries(index + 1), 1)
        async with open_node(config, 1) as node, open_log(node) as log:
            (entry,) = await all_of(log.entries(follow=False))
            assert (entry.index, entry.data) == (index, b"kept")
            with pytest.raises(BadCommand, match="not below 0"):
                await all_of(log.entries(-1))


async def test_append_refused(tmp_path: Path) -> None:
    """With a state machine, only its commands are appended; and nothing that is too large."""
    config = replace(local_config(tmp_path, nodes=1), limits=Limits(command_bytes_max=100))
    async with (
        running_cluster(tmp_path, config=config) as nodes,
        open_log(await leading_of(nodes)) as log,
    ):
        with pytest.raises(BadCommand):
            await log.append(b"no command of kv")
        with pytest.raises(CommandTooLarge):
            await log.append(bytes(101))
        put = Kv.put.encode("key", b"value")
        index = await log.append(put)
        (entry,) = await all_of(log.entries(follow=False))
        assert (entry.index, entry.data) == (index, put)


async def test_command_line(tmp_path: Path) -> None:
    """``replog log`` appends data, all of standard input, or its lines, and reads them back."""
    config = log_config(tmp_path, nodes=1)
    async with running_cluster(tmp_path, config=config) as nodes:
        await leading_of(nodes)
        connect = ("--connect", str(config.nodes[0].client))

        async def log(*words: str, stdin: bytes = b"") -> tuple[int, bytes, bytes]:
            done = await trio.run_process(
                [sys.executable, "-m", "replog", "log", *words, *connect],
                stdin=stdin,
                capture_stdout=True,
                capture_stderr=True,
                check=False,
            )
            return done.returncode, done.stdout, done.stderr

        code, out, _ = await log("append", "grün")
        first = int(out)
        assert code == 0
        assert (await log("append", "--stdin", stdin=b"\xff\n"))[0] == 0
        code, out, _ = await log("append", "--lines", "--json", stdin=b"one\n\ttwo\n\nlast")
        indexes = json.loads(out)["indexes"]
        assert len(indexes) == 4
        code, out, _ = await log("read")
        assert code == 0
        assert [line.split(b"\t")[1] for line in out.splitlines()] == [
            "grün".encode(),
            rb"\xff\n",
            b"one",
            rb"\ttwo",
            b"",
            b"last",
        ]
        _, out, _ = await log("read", "--json", "--from", str(first + 1))
        documents = [json.loads(line) for line in out.splitlines()]
        assert [each["index"] for each in documents] == [first + 1, *indexes]
        assert (documents[0]["data"], documents[0]["encoding"]) == ("/wo=", "base64")
        assert (documents[2]["data"], documents[2]["encoding"]) == ("\ttwo", "utf-8")
        assert set(documents[0]) == {"index", "time_ms", "data", "encoding"}
        for words in (("append",), ("append", "x", "--stdin"), ("read", "--from", "-1")):
            code, _, err = await log(*words)
            assert (code, err.count(b"\n")) == (2, 1)


def test_lines_as_they_come() -> None:
    """Lines are taken as soon as they are whole, and what has no end at the end."""
    pieces = [b"on", b"e\ntwo\nth", b"ree", b"\n", b"rest", b"", b""]
    lines = Lines(lambda _: pieces.pop(0))
    assert [lines.take() for _ in range(4)] == [[b"one", b"two"], [b"three"], [b"rest"], []]


async def test_node_that_never_takes_part(tmp_path: Path) -> None:
    """At a node that waits for the others, an append ends in time and was not done; who reads there
    is told when the node stops."""
    config = log_config(tmp_path)
    ended: list[str] = []

    async def note(what: str, act: Callable[[], Awaitable[object]]) -> None:
        with pytest.raises(Unavailable):
            await act()
        ended.append(what)

    with trio.fail_after(30):
        async with (
            trio.open_nursery() as nursery,
            open_node(config, 1, bootstrap=True) as node,
            open_log(node) as log,
        ):
            nursery.start_soon(note, "read", lambda: all_of(log.entries()))
            await note("append", lambda: log.append(b"x", deadline_seconds=0.2))
    assert ended == ["append", "read"]


async def test_pages_fit_into_small_frames(tmp_path: Path) -> None:
    """However small the frames are, a page of the log fits into one."""
    small = {"command_bytes_max": 1000, "message_bytes_max": 1000, "frame_bytes_max": 8192}
    config = log_config(tmp_path, nodes=1, snapshot_chunk_bytes=1000, **small)
    async with running_cluster(tmp_path, config=config) as nodes, replog.Client(config) as client:
        await leading_of(nodes)
        await client.propose_many([bytes(900)] * 40)
        assert len(await all_of(client.entries(follow=False))) == 40


async def test_many_readers_do_not_end_the_connection(tmp_path: Path) -> None:
    """Readers of large entries that share a connection wait for each other; commands go on."""
    limits = {"client_queue_bytes_max": 1 << 20, "frame_bytes_max": 1 << 20}
    config = log_config(
        tmp_path, nodes=1, command_bytes_max=1 << 18, message_bytes_max=1 << 18, **limits
    )
    config = replace(config, limits=replace(config.limits, snapshot_chunk_bytes=1 << 18))
    async with running_cluster(tmp_path, config=config) as nodes, replog.Client(config) as client:
        await leading_of(nodes)
        await client.propose_many([bytes(1 << 17)] * 8)
        found: list[int] = []

        async def read() -> None:
            found.append(len(await all_of(client.entries(follow=False))))

        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(read)
            for _ in range(20):
                await client.propose(b"small")
        assert len(found) == 20
        assert min(found) >= 8


@pytest.mark.parametrize("engine", engine_names())
async def test_reader_leaves_a_leader_that_is_cut_off(tmp_path: Path, engine: str) -> None:
    """Who reads from whoever leads does not stay at a node that leads no more and hears nothing."""
    config = log_config(tmp_path, engine=engine)
    async with running_cluster(tmp_path, config=config) as nodes, replog.Client(config) as client:
        deposed = await leading_of(nodes)
        index = (await client.propose(b"before")).index
        cut_off(nodes, deposed)
        others = {node.node_id: node for node in nodes.values() if node is not deposed}
        async with trio.open_nursery() as nursery:
            found: list[bytes] = []

            async def follow() -> None:
                found.extend(e.data for e in await first_of(client.entries(index + 1), 1))

            nursery.start_soon(follow)
            async with open_log(await leading_of(others)) as log:
                await log.append(b"after")
        assert found == [b"after"]
