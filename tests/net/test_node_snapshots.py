"""Snapshots in real nodes: taken while commands go on, sent over TCP, found after a restart."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import trio

from replog.config import Config, local_config
from replog.errors import LogDamaged, SnapshotUnavailable
from replog.limits import Limits
from replog.machine import DumpPage
from replog.node import Node
from replog.plugins import engine_names
from replog.running import open_node
from replog.storage.snapshots import snapshot_index
from replog.types import LogIndex
from replog_kv import Kv
from replog_sqlite_kv import SqliteKv

from running import leading_of, running_cluster, until

pytestmark = pytest.mark.net

EAGER = Limits(
    snapshot_entries=40, trim_margin_entries=5, snapshot_chunk_bytes=1000, apply_entries_max=16
)


def eager_config(directory: Path, engine: str, state_machine: str = "kv", nodes: int = 3) -> Config:
    """A cluster that takes snapshots all the time."""
    config = local_config(directory, nodes=nodes, engine=engine, state_machine=state_machine)
    return replace(config, limits=EAGER)


async def put(leader: Node, first: int, count: int) -> None:
    """Put so many keys, a few at a time."""

    async def one(number: int) -> None:
        await leader.call(Kv.put, f"key-{number:05}", b"%d" % number * 10)

    for at in range(first, first + count, 20):
        async with trio.open_nursery() as nursery:
            for number in range(at, min(at + 20, first + count)):
                nursery.start_soon(one, number)


def items_of(node: Node) -> list[object]:
    """The whole state of a node's machine."""
    page: DumpPage = node.machine.dump(b"", 10_000)
    return list(page.items)


def snapshots_in(directory: Path) -> list[LogIndex]:
    """The last indexes of the snapshots in a node's directory."""
    return sorted(index for path in directory.iterdir() if (index := snapshot_index(path.name)))


def is_even(nodes: dict[int, Node]) -> bool:
    """Whether all nodes have applied as much."""
    return len({node.status().applied_index for node in nodes.values()}) == 1


@pytest.mark.parametrize("engine", engine_names())
async def test_node_that_was_away_is_filled(tmp_path: Path, engine: str) -> None:
    """A node that missed more than the others kept gets a snapshot over TCP, and then the rest."""
    config = eager_config(tmp_path, engine)
    with trio.fail_after(40):
        async with running_cluster(tmp_path, config=config) as nodes:
            await put(await leading_of(nodes), 0, 10)
        async with (
            open_node(config, 1) as first,
            open_node(config, 2) as second,
        ):
            leader = await leading_of({1: first, 2: second})
            await put(leader, 10, 300)
            # Snapshots are taken beside the commands.
            await until(lambda: leader.status().base_index > 200)
            async with open_node(config, 3, machine=Kv()) as third:
                nodes = {1: first, 2: second, 3: third}
                await until(lambda: is_even(nodes))
                assert third.status().base_index > 200
                await put(await leading_of(nodes), 310, 10)
                await until(lambda: is_even(nodes))
                assert len(items_of(third)) == 320
                assert items_of(first) == items_of(second) == items_of(third)


@pytest.mark.parametrize("engine", engine_names())
@pytest.mark.parametrize(("name", "machine"), [("kv", Kv), ("sqlite-kv", SqliteKv)])
async def test_restart_from_a_snapshot(
    tmp_path: Path, engine: str, name: str, machine: type[Kv]
) -> None:
    """A node that starts again holds what its snapshot and the rest of its log hold."""
    config = eager_config(tmp_path, engine, name, nodes=1)
    own = config.node(1).directory
    with trio.fail_after(40):
        async with open_node(config, 1, machine=machine(), bootstrap=True) as node:
            await put(await leading_of({1: node}), 0, 130)
            await until(lambda: node.status().base_index > 70)  # the second snapshot, at least
            before = items_of(node)
        assert len(snapshots_in(own)) == 1
        async with open_node(config, 1, machine=machine()) as node:
            await put(await leading_of({1: node}), 130, 1)
            assert items_of(node)[:130] == before
            assert len(items_of(node)) == 131


async def test_snapshot_on_request(tmp_path: Path) -> None:
    """Whoever asks gets the snapshot when it is durable; asking again finds the same one."""
    config = local_config(tmp_path, nodes=1)
    with trio.fail_after(30):
        async with open_node(config, 1, bootstrap=True) as node:
            await put(await leading_of({1: node}), 0, 10)
            info = await node.take_snapshot()
            assert info.path.exists()
            assert info.meta.last.index == node.status().applied_index
            assert await node.take_snapshot() == info
            assert node.status().base_index == 0  # within the margin


class Plain:
    """A machine that offers no snapshots."""

    def __init__(self) -> None:
        self._kv = Kv()

    def apply(self, context, payload):  # type: ignore[no-untyped-def]
        """As the key-value store does."""
        return self._kv.apply(context, payload)

    def answer(self, payload: bytes) -> object:
        """As the key-value store does."""
        return self._kv.answer(payload)

    def check_payload(self, payload: bytes) -> None:
        """As the key-value store does."""
        self._kv.check_payload(payload)

    def dump(self, cursor: bytes, items_max: int) -> DumpPage:
        """As the key-value store does."""
        return self._kv.dump(cursor, items_max)


async def test_machine_without_snapshots(tmp_path: Path) -> None:
    """A machine that offers none is served all the same, and a request is refused."""
    config = replace(local_config(tmp_path, nodes=1), limits=EAGER)
    with trio.fail_after(30):
        async with open_node(config, 1, machine=Plain(), bootstrap=True) as node:
            await put(await leading_of({1: node}), 0, 100)
            assert node.status().base_index == 0
            with pytest.raises(SnapshotUnavailable, match="offers no snapshots"):
                await node.take_snapshot()


async def test_missing_snapshot_is_noticed(tmp_path: Path) -> None:
    """A node whose log begins behind a snapshot that somebody removed does not start."""
    config = eager_config(tmp_path, engine_names()[0], nodes=1)
    own = config.node(1).directory
    with trio.fail_after(30):
        async with open_node(config, 1, bootstrap=True) as node:
            await put(await leading_of({1: node}), 0, 130)
            await until(lambda: node.status().base_index > 70)  # the second snapshot, at least
        for path in own.glob("*.snap"):
            path.unlink()
        with pytest.raises(LogDamaged, match="begins behind entry"):
            async with open_node(config, 1):
                pass
