"""The log as a log: append to it, and read it, in a program with a node of its own.

    async with open_node("cluster.toml", node=1) as node, open_log(node) as log:
        index = await log.append(b"hello")
        async for entry in log.entries(from_index=1):
            print(entry.index, entry.data)

It needs no state machine: with ``state_machine = "log"`` whatever is appended is only kept.  With
another one, what is appended is a command of that.

Any node takes an ``append``: where another one leads, it is forwarded there, once; so it has the
three outcomes of any command.  Entries are read from the node's own log, as far as they are
applied.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import cast

import trio

from replog.client import Client
from replog.client_surface import LogCursor
from replog.errors import NotLeader, OutcomeUnknown, Overloaded, Unavailable
from replog.node import Node
from replog.types import LogEntry, LogIndex, LogPage
from replog.waiting import applied_by


class Log:
    """The log of the cluster, at one of its nodes; made by :func:`open_log`."""

    def __init__(self, node: Node, client: Client) -> None:
        self._node = node
        self._client = client

    async def append(self, data: bytes, *, deadline_seconds: float | None = None) -> LogIndex:
        """Append to the log and return the index; on return it is durable at a quorum.

        ``deadline_seconds`` is how long that may take (``None``: 10 s).  Raises a
        :class:`~replog.errors.NotDone` when it was definitely not appended, and
        :class:`~replog.errors.OutcomeUnknown` when it may have been.  With a state machine it may
        also raise the :class:`~replog.errors.StateMachineError` that the command declares (as
        :class:`~replog.errors.CommandFailed` where another node leads): it is in the log then.
        """
        self._node.check_command(data)
        seconds = self._client.deadline_seconds if deadline_seconds is None else deadline_seconds
        deadline = trio.current_time() + seconds
        with trio.move_on_at(deadline) as forming:
            await self._node.wait_formed()
        if forming.cancelled_caught:
            raise Unavailable(f"the node took no part within {seconds:g} s; nothing was appended")
        try:
            return await self._append_here(data, deadline)
        except (NotLeader, Overloaded):
            # Refused here and now, so it may be sent as if it had never been here: to whoever leads
            # and, while that one has no room or is handing over, again.
            seconds = max(0.0, deadline - trio.current_time())
        applied = await self._client.propose(data, deadline_seconds=seconds)
        return applied.index

    async def _append_here(self, data: bytes, deadline: float) -> LogIndex:
        with trio.move_on_at(deadline):
            return (await applied_by(partial(self._node.submit, data))).index
        raise OutcomeUnknown(
            "it was not known in time whether the data was appended; look, or append it again only "
            "if twice does no harm"
        )

    async def entries(
        self, from_index: LogIndex = 1, *, follow: bool = True
    ) -> AsyncIterator[LogEntry]:
        """What was appended, from ``from_index`` on, in order, none missed and none twice.

        ``follow``: also what is appended later, without end; otherwise up to all that was committed
        before, anywhere.  Nothing is held for whoever reads slowly: to go on later, or elsewhere,
        begin behind the last entry that came.

        While the node is cut off from the others, nothing comes.  Raises
        :class:`~replog.errors.Compacted` where a snapshot stands for what is asked for, also where
        that overtook whoever reads too slowly; :class:`~replog.errors.Unavailable` when the node
        stops, is being filled from a snapshot for long, or hears from no leader in time what was
        committed before; and :class:`~replog.errors.Overloaded` above ``limits.reads_max``.
        """
        await self._node.wait_formed()
        cursor = LogCursor(from_index, follow, is_any_node=False)
        submit = self._node.submit_log_read
        while not cursor.is_at_end:
            applied = await applied_by(
                partial(submit, cursor.next_index, cursor.level, cursor.waits)
            )
            for entry in cursor.take(cast(LogPage, applied.result), applied.index):
                yield entry


@asynccontextmanager
async def open_log(node: Node) -> AsyncIterator[Log]:
    """The log at a running node, for as long as the block lasts."""
    async with Client(node.config) as client:
        yield Log(node, client)
