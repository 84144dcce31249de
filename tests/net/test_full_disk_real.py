"""A process whose disk is full: it refuses, hands over, goes on, and recovers without a restart.

A limit on the size of files, which can be set for another process from outside, stands in for the
full disk: growing beyond it fails as it does without room.
"""

from __future__ import annotations

import json
import resource
from pathlib import Path

import pytest
import trio

from replog import Client
from replog.cli.demo_nodes import NodeProcesses, node_processes
from replog.config import local_config
from replog.limits import KIB, MIB
from replog.plugins import engine_names
from replog.types import NodeId
from replog_kv import Kv

pytestmark = [
    pytest.mark.net,
    pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="limits of another process"),
]

LIMIT_BYTES = 3 * MIB
"""The log takes a MiB of zeros ahead of its groups, so it is full when it holds some two."""
VALUE = b"v" * (64 * KIB)
PUTS = 48


def set_file_bytes_max(nodes: NodeProcesses, node_id: NodeId, bytes_max: int) -> None:
    """Let the files of a running node grow so far and no further."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.prlimit(nodes.pid(node_id), resource.RLIMIT_FSIZE, (bytes_max, hard))


async def wait_disk_full(nodes: NodeProcesses, node_id: NodeId, is_full: bool) -> None:
    """Wait until a node says so."""
    while True:
        answers = {answer.node_id: answer for answer in await nodes.statuses()}
        if node_id in answers and answers[node_id].flag("disk_full") is is_full:
            return
        await trio.sleep(0.05)


def events(nodes: NodeProcesses, node_id: NodeId) -> list[str]:
    """What a node has logged of its disk."""
    lines = nodes.log_path(node_id).read_text().splitlines()
    found = [str(json.loads(line)["event"]) for line in lines]
    return [event for event in found if event.startswith("disk_")]


@pytest.mark.parametrize("engine", engine_names())
async def test_full_leader_is_replaced_and_recovers(tmp_path: Path, engine: str) -> None:
    """A client does not notice that the leader's disk is full, but for a second or two; the full
    node says so, lags, and catches up in the same process when there is room."""
    config = local_config(tmp_path / "data", nodes=3, engine=engine)
    with trio.fail_after(60):
        async with node_processes(config, tmp_path) as nodes, Client(config) as client:
            full_id = await nodes.wait_leader()
            set_file_bytes_max(nodes, full_id, LIMIT_BYTES)
            for number in range(PUTS):
                await client.call(Kv.put, f"key-{number}", VALUE)
            await wait_disk_full(nodes, full_id, True)
            assert await nodes.wait_leader() != full_id
            answers = {answer.node_id: answer for answer in await nodes.statuses()}
            applied = {node_id: at.number("applied_index") for node_id, at in answers.items()}
            assert applied[full_id] < max(applied.values())
            set_file_bytes_max(nodes, full_id, resource.RLIM_INFINITY)
            await wait_disk_full(nodes, full_id, False)
            await nodes.wait_equal()
            pages = [await client.dump(items_max=1000, node=node.id) for node in config.nodes]
            assert pages[0].items
            assert [page.items for page in pages] == [pages[0].items] * 3
            assert await client.call(Kv.get, f"key-{PUTS - 1}") == VALUE
            assert events(nodes, full_id) == ["disk_full", "disk_has_room"]
