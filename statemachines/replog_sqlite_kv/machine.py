"""The key-value store on its own disk: the commands of ``kv``, for a state larger than memory.

What a command answers is the same on every replica for ever, so the limits below are part of the
store's meaning.  They are those of ``kv``, and so are the names of the commands and their results.

Everything is in :mod:`replog_sqlite_kv.database`, where the index of the last command is committed
with what the commands changed.  Memory holds a cache of fixed size, whatever the store holds.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final, TypedDict

from replog.errors import StateMachineError
from replog.pages import ItemsPage
from replog.statemachine import (
    ApplyContext,
    CommandMachine,
    DumpPage,
    Opened,
    command,
    query,
)
from replog_sqlite_kv.database import ItemDatabase

if TYPE_CHECKING:
    from pathlib import Path

KEY_BYTES_MAX: Final = 1024
"""The longest key, as UTF-8."""

VALUE_BYTES_MAX: Final = 1 << 28
"""The longest value; ``limits.command_bytes_max`` is lower, unless somebody raises it far."""

RANGE_ITEMS_MAX: Final = 10_000
"""The most items that one range returns."""

RANGE_BYTES_MAX: Final = 1 << 20
"""A range or a dumped page ends before it exceeds this, but never before its first item."""

SCAN_ITEMS_MAX: Final = 1000
"""The most items that a page of a scan holds."""

ITEM_OVERHEAD_BYTES: Final = 40
"""What an item costs on the wire beyond its key and value, roughly and never more."""

_PUT: Final = (
    "INSERT INTO items VALUES (?, ?, ?) "
    "ON CONFLICT (key) DO UPDATE SET value = excluded.value, idx = excluded.idx"
)
_DELETE: Final = "DELETE FROM items WHERE key = ?"
_GET: Final = "SELECT key, value, idx FROM items WHERE key = ?"
_FROM: Final = "SELECT key, value, idx FROM items WHERE key >= ? ORDER BY key LIMIT ?"
_BETWEEN: Final = (
    "SELECT key, value, idx FROM items WHERE key >= ? AND key < ? ORDER BY key LIMIT ?"
)
_BEHIND: Final = "SELECT key, value, idx FROM items WHERE key > ? ORDER BY key LIMIT ?"
# A cursor may come from anybody, so it need not be UTF-8.
_AFTER: Final = "SELECT key, value, idx FROM items WHERE key > CAST(? AS TEXT) ORDER BY key LIMIT ?"


class KvError(StateMachineError):
    """The store cannot do that; the message says why.  Nothing was changed."""


class Item(TypedDict):
    """One item, as a range returns it."""

    key: str
    value: bytes
    index: int
    """The log index of the command that last set the value."""


class ItemRange(TypedDict):
    """A stretch of the store in the order of the keys."""

    items: list[Item]
    more: bool
    """Whether a limit cut the range short: ask again from the last key + ``"\\0"``."""


class SqliteKv(CommandMachine):
    """A key-value store on its own disk, in SQLite; the commands are those of kv."""

    def __init__(self) -> None:
        self._database: ItemDatabase | None = None

    # -- what the node calls; see :class:`replog.machine.KeepsAnswers` --

    def open(self, directory: Path) -> Opened:
        """Open the database in ``directory``, or make an empty one."""
        assert self._database is None, "open is called once"
        self._database = ItemDatabase(directory)
        return self._database.opened

    def apply(self, context: ApplyContext, payload: bytes) -> object:
        """Apply one command, behind all those that the database holds."""
        database = self._opened()
        assert context.index > database.applied_index, "no entry is applied twice"
        try:
            result = super().apply(context, payload)
        except StateMachineError:
            database.note(context.index, context.time_ms, context.in_session)
            raise
        except BaseException as error:
            database.poison(f"the command {context.index} failed ({type(error).__name__})")
            raise
        database.note(context.index, context.time_ms, context.in_session)
        return result

    def keep_answer(self, index: int, answer: bytes) -> None:
        """Keep what the last command was answered, in its transaction."""
        self._opened().keep_answer(index, answer)

    def kept_answer(self, index: int) -> bytes | None:
        """What the command at ``index`` was answered, if that is kept."""
        return self._opened().kept_answer(index)

    def forget_answers(self, upto: int) -> None:
        """Remove the answers up to an index, some with each batch."""
        self._opened().forget_answers(upto)

    def commit(self) -> None:
        """End the batch of commands that share a transaction, before it is full."""
        self._opened().commit()

    def freeze(self) -> Iterable[bytes]:
        """All items in the order of the keys, as of now."""
        return self._opened().freeze()

    def restore(self, chunks: Iterable[bytes], index: int, time_ms: int) -> None:
        """Replace all items by those of a snapshot, in constant memory."""
        self._opened().restore(chunks, index, time_ms)

    def close(self) -> None:
        """Commit and release the files; may be called again."""
        if self._database is not None:
            self._database.close()

    # -- commands --

    @command
    def put(self, key: str, value: bytes) -> None:
        """Set ``key`` to ``value``."""
        _check_key(key)
        _check_value(value)
        self._opened().change(_PUT, key, value, self.context.index)

    @query
    def get(self, key: str) -> bytes | None:
        """The value of ``key``, or None when there is none."""
        _check_key(key)
        return self._value(key)

    @command
    def delete(self, key: str) -> bool:
        """Remove ``key``; False when there was none."""
        _check_key(key)
        return self._opened().change(_DELETE, key) > 0

    @command
    def compare_and_set(self, key: str, expected: bytes | None, value: bytes | None) -> bool:
        """Set ``key`` to ``value`` if its value is ``expected``; False, and no change, if not.

        None stands for absence: ``expected=None`` sets only what is not there, ``value=None``
        removes.
        """
        _check_key(key)
        if value is not None:
            _check_value(value)
        if self._value(key) != expected:
            return False
        if value is not None:
            self._opened().change(_PUT, key, value, self.context.index)
        elif expected is not None:
            self._opened().change(_DELETE, key)
        return True

    @query
    def range(self, start: str = "", end: str | None = None, limit: int = 1000) -> ItemRange:
        """The items with ``start <= key < end`` in the order of the keys; no end: to the last.

        At most ``limit`` items, 1 to 10000, and about 1 MiB of them, but at least one.
        """
        if not 1 <= limit <= RANGE_ITEMS_MAX:
            raise KvError(f"the limit of a range is 1 to {RANGE_ITEMS_MAX} items, not {limit}")
        if end is None:
            items, more = self._page(limit, _FROM, start)
        else:
            items, more = self._page(limit, _BETWEEN, start, end)
        return {"items": items, "more": more}

    @query
    def scan(self, after: str | None, prefix: str = "") -> ItemsPage:
        """A page of the items whose keys begin with ``prefix``, in the order of the keys, behind
        the key ``after``; ``client.items`` asks this again and again."""
        if after is None or after < prefix:
            found, more = self._page(SCAN_ITEMS_MAX, _FROM, prefix)
        else:
            found, more = self._page(SCAN_ITEMS_MAX, _BEHIND, after)
        items = [item for item in found if item["key"].startswith(prefix)]
        is_cut = more and len(items) == len(found)
        return {"items": items, "next": items[-1]["key"] if is_cut else None}

    def dump(self, cursor: bytes, items_max: int) -> DumpPage:
        """A page of ``[key, value, index]`` in the order of the keys; the cursor is a key."""
        assert items_max >= 1
        items, more = self._page(items_max, _AFTER, cursor)
        return DumpPage(
            items=[[item["key"], item["value"], item["index"]] for item in items],
            cursor=items[-1]["key"].encode() if more else None,
        )

    def _value(self, key: str) -> bytes | None:
        return next((value for _, value, _ in self._opened().rows(_GET, key)), None)

    def _page(
        self, count_max: int, statement: str, *bounds: str | bytes
    ) -> tuple[list[Item], bool]:
        """The items that a statement finds, and whether a limit cut some off."""
        items: list[Item] = []
        size_bytes = 0
        # One more than asked for tells whether there are more.
        for key, value, index in self._opened().rows(statement, *bounds, count_max + 1):
            size_bytes += len(key.encode()) + len(value) + ITEM_OVERHEAD_BYTES
            if len(items) == count_max or (size_bytes > RANGE_BYTES_MAX and items):
                return items, True
            items.append({"key": key, "value": value, "index": index})
        return items, False

    def _opened(self) -> ItemDatabase:
        assert self._database is not None, "open comes first"
        return self._database


def _check_key(key: str) -> None:
    """Refuse a key that is empty or too long."""
    if not key:
        raise KvError("a key must not be empty")
    size_bytes = len(key.encode())
    if size_bytes > KEY_BYTES_MAX:
        raise KvError(f"a key has at most {KEY_BYTES_MAX} bytes as UTF-8, not {size_bytes}")


def _check_value(value: bytes) -> None:
    if len(value) > VALUE_BYTES_MAX:
        raise KvError(f"a value has at most {VALUE_BYTES_MAX} bytes, not {len(value)}")
