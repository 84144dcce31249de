"""A leader whose log is not in memory fills a peer that has nothing, without stopping meanwhile."""

from __future__ import annotations

from collections import deque
from typing import Any

import pytest

from replog import plugins
from replog.engine import Engine, EngineSetup, entries_fields
from replog.limits import KIB, Limits
from replog.progress import STORED_MESSAGES_MAX
from replog.stored_log import HeldLog
from replog.types import Entry, EntryKind, Epoch, HardState, NodeId, Role, Voter, entry_body

ENTRIES = 400
TERM = 1 << 16 | 1
"""A term of Raft, and the first ballot of node 1."""
LIMITS = Limits(log_cache_bytes_max=8 * KIB, message_bytes_max=16 * KIB, command_bytes_max=KIB)


def make_engines(engine: str) -> dict[NodeId, Engine]:
    """Two nodes that hold a long log, and a third that holds nothing."""
    plugin = plugins.find_engine(engine)
    epoch = Epoch(1, engine, tuple(Voter(node_id, node_id) for node_id in (1, 2, 3)), 1)
    log = tuple(
        Entry(1, index, TERM, entry_body(EntryKind.NOOP, 1, TERM, index, bytes(KIB)))
        for index in range(1, ENTRIES + 1)
    )
    return {
        node_id: plugin.create(
            EngineSetup(
                node_id=node_id,
                epoch=epoch,
                hard_state=HardState(1, TERM, 1, 0 if node_id == 3 else ENTRIES),
                log=HeldLog() if node_id == 3 else HeldLog(log),
                limits=LIMITS,
                options=plugin.options(),
                seed=node_id,
                nonce=0,
            )
        )
        for node_id in (1, 2, 3)
    }


@pytest.mark.parametrize("engine", plugins.engine_names())
def test_few_messages_at_a_time(engine: str) -> None:
    """What is read back goes to the peer a few messages at a time, until it has everything."""
    engines = make_engines(engine)
    fields = entries_fields(plugins.find_engine(engine).messages)
    waiting: deque[Any] = deque()
    held: deque[Any] = deque()

    def settle() -> None:
        """Deliver everything but entries for the third node, and what is behind them."""
        while waiting:
            message = waiting.popleft()
            if message.to == 3 and (held or brings_entries(message)):
                held.append(message)
            else:
                step(message)

    def brings_entries(message: Any) -> bool:
        return bool(getattr(message, fields.get(type(message), ""), ()))

    def step(message: Any) -> None:
        engines[message.to].step(message)
        carry_out(message.to)

    def carry_out(node_id: NodeId) -> None:
        acting = engines[node_id]
        while (ready := acting.ready()) is not None:
            waiting.extend(ready.messages)
            acting.advance(ready)
            waiting.extend(ready.messages_after_sync)

    engines[1].campaign()
    carry_out(1)
    settle()
    assert engines[1].soft_state.role is Role.LEADER
    most = 0
    for _ in range(200):
        engines[1].tick()
        carry_out(1)
        settle()
        most = max(most, sum(map(brings_entries, held)))
        if held:
            step(held.popleft())
            while held and not brings_entries(held[0]):
                step(held.popleft())
            settle()
    assert most == STORED_MESSAGES_MAX + 1, "the last one is in memory"
    assert engines[3].status().commit_index >= ENTRIES
