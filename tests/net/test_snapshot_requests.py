"""Snapshots that somebody asks a real node for, by call and by the client protocol."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from replog.backup import restore_backup, write_backup
from replog.cli.asking import ask_snapshot, ask_status
from replog.config import local_config
from replog.errors import (
    DumpUnavailable,
    SnapshotUnavailable,
    Unavailable,
)
from replog.machine import ApplyContext, DumpPage
from replog.plugins import engine_names, find_state_machine
from replog.running import open_node
from replog.storage.snapshot_writer import SnapshotInfo
from replog_kv import Kv

pytestmark = pytest.mark.net


class SlowKv(Kv):
    """A store whose snapshots take until they are let go."""

    def __init__(self) -> None:
        super().__init__()
        self.is_begun = threading.Event()
        self.may_end = threading.Event()

    def restore(self, chunks: Iterable[bytes]) -> None:
        super().restore(chunks)

    def freeze(self) -> Iterator[bytes]:
        frozen = super().freeze()

        def chunks() -> Iterator[bytes]:
            self.is_begun.set()
            assert self.may_end.wait(20)
            yield from frozen

        return chunks()


class PlainMachine:
    """A machine with nothing but what every machine has."""

    def apply(self, context: ApplyContext, payload: bytes) -> object:
        return None

    def answer(self, payload: bytes) -> object:
        return None

    def check_payload(self, payload: bytes) -> None:
        pass

    def dump(self, cursor: bytes, items_max: int) -> DumpPage:
        raise DumpUnavailable("it shows nothing")


async def test_take_snapshot_holds_what_was_applied_before(tmp_path: Path) -> None:
    """Who asks while a snapshot is being written gets the next one: the first does not hold what
    was applied since it was begun."""
    config = local_config(tmp_path, nodes=1)
    machine = SlowKv()
    taken: list[SnapshotInfo] = []
    with trio.fail_after(20):
        async with open_node(config, 1, machine, bootstrap=True) as node:
            await node.wait_leader()

            async def take() -> None:
                taken.append(await node.take_snapshot())

            await node.call(Kv.put, "a", b"1")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(take)
                await trio.to_thread.run_sync(machine.is_begun.wait)
                await node.call(Kv.put, "b", b"2")
                applied_index = node.status().applied_index
                nursery.start_soon(take)
                await trio.sleep(0.1)
                machine.may_end.set()
            first, second = (info.meta.last.index for info in taken)
            assert first < second
            assert second == applied_index
            assert await node.take_snapshot() == taken[1], "there is one of as much already"


async def test_take_snapshot_ends_with_the_node(tmp_path: Path) -> None:
    """Who waits for a snapshot when the node stops is told so, and does not wait for ever."""
    machine = SlowKv()
    failures: list[Unavailable] = []
    with trio.fail_after(20):
        async with (
            trio.open_nursery() as nursery,
            open_node(local_config(tmp_path, nodes=1), 1, machine, True) as node,
        ):
            await node.wait_leader()
            await node.call(Kv.put, "a", b"1")

            async def take() -> None:
                with pytest.raises(Unavailable, match="stopped") as caught:
                    await node.take_snapshot()
                failures.append(caught.value)

            # One snapshot is being written, and when the node has waited for that, the next is not
            # begun any more.
            node.submit_snapshot(lambda *_: None)
            await trio.to_thread.run_sync(machine.is_begun.wait)
            await node.call(Kv.put, "b", b"2")
            nursery.start_soon(take)
            await trio.sleep(0.1)
            threading.Timer(0.3, machine.may_end.set).start()
    assert len(failures) == 1


async def test_request_for_snapshot(tmp_path: Path) -> None:
    """A client's request is answered when the snapshot is durable, and the status shows it."""
    config = local_config(tmp_path, nodes=1)
    address = str(config.nodes[0].client)
    machine = SlowKv()
    with trio.fail_after(20):
        async with open_node(config, 1, machine, bootstrap=True) as node:
            await node.wait_leader()
            await node.call(Kv.put, "a", b"1")
            with trio.move_on_after(0.3):
                await ask_snapshot(address, 10, config.cluster_id, 1)
                raise AssertionError("answered although nothing is durable")
            assert (await ask_status(address, 10)).number("snapshot_index") == 0
            machine.may_end.set()
            answer = await ask_snapshot(address, 10, config.cluster_id, 1)
            (path,) = config.nodes[0].directory.glob("*.snap")
            assert (answer.text("file"), answer.problem) == (path.name, None)
            assert answer.number("bytes") == path.stat().st_size
            status = await ask_status(address, 10)
            assert status.number("snapshot_index") == answer.number("index") > 0
            for cluster_id, node_id in (("other", 1), (config.cluster_id, 2)):
                wrong = await ask_snapshot(address, 10, cluster_id, node_id)
                assert wrong.status is None
                assert wrong.problem


async def test_machine_without_snapshots_refused(tmp_path: Path) -> None:
    """A machine that offers no snapshots is named as what it is, to the program and to clients."""
    config = local_config(tmp_path, nodes=1)
    with trio.fail_after(20):
        async with open_node(config, 1, PlainMachine(), bootstrap=True) as node:
            await node.wait_leader()
            with pytest.raises(SnapshotUnavailable, match="offers no snapshots"):
                await node.take_snapshot()
            refused = await ask_snapshot(str(config.nodes[0].client), 10, config.cluster_id, 1)
            assert "offers no snapshots" in str(refused.problem)
            assert isinstance(refused.failure, SnapshotUnavailable)


@pytest.mark.parametrize("engine", engine_names())
@pytest.mark.parametrize(("machine", "storage"), [("kv", "sqlite"), ("sqlite-kv", "wal")])
async def test_restored_node_goes_on(
    tmp_path: Path, engine: str, machine: str, storage: str
) -> None:
    """What a node held, whatever keeps its state and its log, the node of a restored cluster holds
    as well, and goes on behind it, also after another start."""
    old = local_config(tmp_path / "old", 1, engine=engine, state_machine=machine)
    new = replace(
        local_config(tmp_path / "new", 1, engine=engine, state_machine=machine, storage=storage),
        cluster_id="new",
    )
    kv = find_state_machine(machine)
    with trio.fail_after(30):
        async with open_node(old, 1, bootstrap=True) as node:
            await node.wait_leader()
            await node.call(kv.put, "a", b"1")  # type: ignore[attr-defined]
            info = await node.take_snapshot()
            write_backup(old.nodes[0].directory, tmp_path / "b", info.meta.last.index)
        restore_backup(tmp_path / "b", new, tmp_path / "new.founding")
        for key in ("b", "c"):
            async with open_node(new, 1) as node:
                await node.wait_leader()
                assert node.status().base_index == info.meta.last.index
                assert node.snapshots().newest_index == info.meta.last.index
                applied = await node.propose(kv.put.encode(key, b"2"))  # type: ignore[attr-defined]
                assert applied.index > info.meta.last.index
                assert await node.call(kv.get, "a") == b"1"  # type: ignore[attr-defined]
                assert await node.call(kv.get, "b") == b"2"  # type: ignore[attr-defined]
