"""What the demonstration proves at the end: every replica holds everything that was acknowledged.

The judge shares nothing with what it judges but the protocol: it reads each replica's own state,
page by page from that very node, and looks every acknowledged write up in it.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final, cast

from replog.cbor import strict_dumps
from replog.cli.demo_load import Acknowledged
from replog.cli.demo_words import SEPARATOR
from replog.client import Client
from replog.errors import SchemaError
from replog.statemachine import StateMachine
from replog.types import LogIndex, NodeId, record

_PAGE_ITEMS_MAX: Final = 5_000


@record
class ReplicaDump:
    """The whole state of one replica."""

    applied_index: LogIndex
    items: Mapping[str, tuple[bytes, LogIndex]]
    """Value and index by key."""
    digest: str
    """SHA-256 of the items as they travel, in their order: equal iff the bytes are."""


async def dump_replica(client: Client, node_id: NodeId) -> ReplicaDump:
    """Read the whole state of one node; nothing may be written meanwhile."""
    items: dict[str, tuple[bytes, LogIndex]] = {}
    digest = hashlib.sha256()
    cursor: bytes | None = b""
    applied_index = 0
    while cursor is not None:
        page = await client.dump(cursor, _PAGE_ITEMS_MAX, node=node_id)
        applied_index, cursor = page.applied_index, page.cursor
        for item in page.items:
            digest.update(strict_dumps(item))
            key, value, index = _item(item)
            items[key] = (value, index)
    return ReplicaDump(applied_index, items, digest.hexdigest())


def count_lost(acknowledged: Sequence[Acknowledged], dumps: Sequence[ReplicaDump]) -> int:
    """How many acknowledged writes are missing in some replica, or are something else there."""
    return sum(not all(_holds(dump, write) for dump in dumps) for write in acknowledged)


def _holds(dump: ReplicaDump, write: Acknowledged) -> bool:
    found = dump.items.get(write.key)
    if found is None or found[0] != write.value:
        return False
    return write.index is None or found[1] == write.index


async def count_words(
    client: Client, machine: type[StateMachine], top: int
) -> list[tuple[str, int]]:
    """The most frequent words by the number of their keys, read through the cluster."""
    counts: Counter[str] = Counter()
    start, more = "", True
    while more:
        applied = await client.propose(machine.calls["range"].encode(start, None, _PAGE_ITEMS_MAX))
        found = cast("Mapping[str, object]", applied.result)
        keys = [
            cast("str", item["key"]) for item in cast("list[dict[str, object]]", found["items"])
        ]
        counts.update(key.rpartition(SEPARATOR)[0] for key in keys)
        more = found["more"] is True
        start = keys[-1] + "\0" if keys else start
    return sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))[:top]


def _item(item: object) -> tuple[str, bytes, LogIndex]:
    if not isinstance(item, list) or list(map(type, item)) != [str, bytes, int]:
        raise SchemaError("a dump of the store holds something else than [key, value, index]")
    return cast("tuple[str, bytes, LogIndex]", tuple(item))
