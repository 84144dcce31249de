"""Real nodes on loopback, in this process, for the tests of this folder."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import trio

from replog.config import Config, local_config
from replog.node import Node
from replog.running import open_node
from replog.types import NodeId, Role

T = TypeVar("T")


@asynccontextmanager
async def running_cluster(
    directory: Path, nodes: int = 3, seconds: float = 30.0, config: Config | None = None
) -> AsyncIterator[dict[NodeId, Node]]:
    """Open every node of a cluster; all of it ends after ``seconds`` at the latest."""
    config = config or local_config(directory, nodes=nodes)
    with trio.fail_after(seconds):
        async with AsyncExitStack() as stack:
            opened = {}
            for node in config.nodes:
                opened[node.id] = await stack.enter_async_context(
                    open_node(config, node.id, bootstrap=True)
                )
            yield opened


async def leader_of(nodes: dict[NodeId, Node]) -> Node:
    """Wait until one of the nodes leads and has committed in its term."""
    while True:
        for node in nodes.values():
            status = node.status()
            if status.role is Role.LEADER and status.commit_index:
                return node
        await trio.sleep(0.01)


async def until(holds: Callable[[], bool]) -> None:
    """Wait until ``holds()``; the test's own deadline bounds it."""
    while not holds():
        await trio.sleep(0.01)


async def leading_of(nodes: dict[NodeId, Node]) -> Node:
    """The node that leads, as soon as one does."""
    while True:
        for node in nodes.values():
            if node.status().role is Role.LEADER:
                return node
        await trio.sleep(0.01)


async def first_of(items: AsyncIterator[T], count: int) -> list[T]:
    """The first of what has no end."""
    found: list[T] = []
    async for item in items:
        found.append(item)
        if len(found) == count:
            break
    return found


def cut_off(nodes: dict[NodeId, Node], lone: Node) -> None:
    """From now on nothing that a node sends reaches another, and nothing reaches it."""
    for node in nodes.values():
        surroundings, is_cut = node._turns._surroundings, node is lone

        def send(
            message: object,
            send: Callable[[object], None] = surroundings.send,
            is_cut: bool = is_cut,
        ) -> None:
            if not is_cut and message.to != lone.node_id:  # type: ignore[attr-defined]
                send(message)

        node._turns._surroundings = replace(surroundings, send=send)
