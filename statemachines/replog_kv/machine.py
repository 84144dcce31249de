"""The key-value store: str keys, bytes values, and the log index at which each was last set.

A dict holds the items.  The order of the keys, which only ranges and dumps need, is made up for
when one asks: a put then costs a dict's insertion and no more, where a sorted container would cost
several microseconds per new key.  The price is that a range behind many new keys sorts them first,
about a second for a million.

Keys compare by code point, which is also the order of their UTF-8 bytes.

A snapshot is taken beside the commands: a copy of the dict, whose values never change, takes some
30 milliseconds for a million items (three times that where most of a larger number were deleted),
and another thread sorts and packs it.  There the keys are sorted in short runs that are then
merged, because one sort of a million would hold the interpreter's lock, and the event loop with it,
for most of a second.

Every command keeps a digest of the items up to date, by which replicas are compared: the sum of a
checksum of each value that begins with its index, which no other item has.  What an item had added
is computed again from the store when it is replaced, so a value that a broken memory has altered is
noticed then.

The last changes are kept for whoever watches the store (:mod:`replog.changes`).  They are part of
its state and of its snapshots, so every replica tells the same of them, also after a restart.

What a command answers is the same on every replica for ever, so the limits below are part of the
store's meaning: to change one is to change what old entries did.
"""

from __future__ import annotations

import struct
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Iterator, Mapping
from heapq import merge
from itertools import chain
from typing import Final, TypedDict
from zlib import crc32

from replog.changes import (
    CHANGES_MAX,
    LARGE_BYTES,
    VALUES_BYTES_MAX,
    ChangesPage,
    ChangeWindow,
)
from replog.chunks import CHUNK_BYTES, pack_chunks, unpack_forms
from replog.errors import SnapshotDamaged, StateMachineError
from replog.pages import ItemsPage
from replog.statemachine import DumpPage, StateMachine, command, query

KEY_BYTES_MAX: Final = 1024
"""The longest key, as UTF-8."""

RANGE_ITEMS_MAX: Final = 10_000
"""The most items that one range returns."""

RANGE_BYTES_MAX: Final = 1 << 20
"""A range or a dumped page ends before it exceeds this, but never before its first item.

The result has to fit into a frame, and whoever asks cannot know how large the values are.
"""

ITEM_OVERHEAD_BYTES: Final = 40
"""What an item costs on the wire beyond its key and value, roughly and never more."""

SCAN_ITEMS_MAX: Final = 1000
"""The most items that a page of a scan holds."""

INSERTIONS_MAX: Final = 256
"""Up to so many changes of the key set, inserting each is cheaper than sorting all keys anew."""

SNAPSHOT_FORM: Final = "kv 2"
"""What the records of a snapshot are: the last changes, then items in the order of the keys, each a
head, key, value."""

SNAPSHOT_FORM_1: Final = "kv 1"
"""The same without changes; it is read, and no more written."""

_ITEM_HEAD: Final = struct.Struct(">HIQ")
"""The bytes of the key and of the value, and the index."""

_RUN_KEYS: Final = 8192
"""So many keys are sorted in one go while commands are applied, a few milliseconds' worth."""


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


class Kv(StateMachine):
    """A store of items; its commands go through the log, its queries need not."""

    def __init__(
        self, *, changes_max: int = CHANGES_MAX, values_bytes_max: int = VALUES_BYTES_MAX
    ) -> None:
        """How many changes are kept for those who watch, and how many bytes of large values; the
        same on every node."""
        self._changes = ChangeWindow(changes_max=changes_max, values_bytes_max=values_bytes_max)
        self._note = self._changes.noted.append
        """:meth:`ChangeWindow.note`, as far as it goes for most values: each command spares a
        call."""
        self._items: dict[str, tuple[int, str, bytes]] = {}
        """By key the index at which it was set, the key, and the value: as in a change."""
        self._order: list[str] = []
        """The keys in order, as of the last time that anybody asked for the order."""
        self._added: dict[str, None] = {}
        """Keys in ``_items`` that ``_order`` lacks; a dict, as an insertion-ordered set."""
        self._removed: dict[str, None] = {}
        """Keys in ``_order`` that ``_items`` lacks."""
        self.state_digest = 0
        """The sum of the checksums of all items, whatever came before them; see
        :class:`replog.machine.Digested`."""

    @command
    def put(self, key: str, value: bytes) -> None:
        """Set ``key`` to ``value``."""
        # 256 characters are at most 1024 bytes, so that most keys need no encoding to be checked.
        if not 0 < len(key) <= 256:
            _check_key(key)
        items, index = self._items, self.context.index
        before = items.get(key)
        if before is None:
            self._note_added(key)
            self.state_digest += crc32(value, index)
        else:
            # The key that is there already is kept with the change as well: the last changes are
            # memory that every command goes through, so the less the faster.
            before_index, key, before_value = before
            self.state_digest += crc32(value, index) - crc32(before_value, before_index)
        items[key] = change = (index, key, value)
        self._note(change)
        if len(value) > LARGE_BYTES:
            self._changes.count_large(index, len(value))

    @query
    def get(self, key: str) -> bytes | None:
        """The value of ``key``, or None when there is none."""
        _check_key(key)
        item = self._items.get(key)
        return None if item is None else item[2]

    @command
    def delete(self, key: str) -> bool:
        """Remove ``key``; False when there was none."""
        _check_key(key)
        before = self._items.pop(key, None)
        if before is None:
            return False
        self.state_digest -= crc32(before[2], before[0])
        self._note_removed(key)
        self._changes.note(self.context.index, key, None)
        return True

    @command
    def compare_and_set(self, key: str, expected: bytes | None, value: bytes | None) -> bool:
        """Set ``key`` to ``value`` if its value is ``expected``; False, and no change, if not.

        None stands for absence: ``expected=None`` sets only what is not there, ``value=None``
        removes.
        """
        _check_key(key)
        item = self._items.get(key)
        if (None if item is None else item[2]) != expected:
            return False
        if item is not None:
            self.state_digest -= crc32(item[2], item[0])
        if value is not None:
            if item is None:
                self._note_added(key)
            self.state_digest += crc32(value, self.context.index)
            self._items[key] = (self.context.index, key, value)
        elif item is not None:
            del self._items[key]
            self._note_removed(key)
        else:
            return True  # nothing was there, and nothing is
        self._changes.note(self.context.index, key, value)
        return True

    @query
    def range(self, start: str = "", end: str | None = None, limit: int = 1000) -> ItemRange:
        """The items with ``start <= key < end`` in the order of the keys; no end: to the last.

        At most ``limit`` items, 1 to 10000, and about 1 MiB of them, but at least one.
        """
        if not 1 <= limit <= RANGE_ITEMS_MAX:
            raise KvError(f"the limit of a range is 1 to {RANGE_ITEMS_MAX} items, not {limit}")
        self._sort_keys()
        order = self._order
        stop = len(order) if end is None else bisect_left(order, end)
        keys, more = self._keys_between(bisect_left(order, start), stop, limit)
        return {"items": self._found(keys), "more": more}

    @query
    def scan(self, after: str | None, prefix: str = "") -> ItemsPage:
        """A page of the items whose keys begin with ``prefix``, in the order of the keys, behind
        the key ``after``; ``client.items`` asks this again and again."""
        self._sort_keys()
        order = self._order
        first = bisect_left(order, prefix)
        stop = bisect_left(order, True, first, key=lambda key: not key.startswith(prefix))
        if after is not None:
            first = bisect_right(order, after, first, stop)
        keys, more = self._keys_between(first, stop, SCAN_ITEMS_MAX)
        return {"items": self._found(keys), "next": keys[-1] if more else None}

    @query
    def changes(self, after: int | None, prefix: str = "", is_key: bool = False) -> ChangesPage:
        """What was changed behind the index ``after``, of the keys that begin with ``prefix``, or
        of that very key if it ``is_key``; ``client.watch`` asks this again and again.

        ``after`` of None is an empty page as of now.  See :class:`~replog.changes.ChangesPage`.
        """
        return self._changes.page(after, prefix, is_key=is_key)

    def dump(self, cursor: bytes, items_max: int) -> DumpPage:
        """A page of ``[key, value, index]`` in the order of the keys; the cursor is a key."""
        assert items_max >= 1
        self._sort_keys()
        # A cursor that no page gave out still stands somewhere between the keys.
        last = cursor.decode("utf-8", "surrogateescape")
        order = self._order
        keys, more = self._keys_between(bisect_right(order, last), len(order), items_max)
        found = [self._items[key] for key in keys]
        items = [[key, value, index] for index, key, value in found]
        return DumpPage(items=items, cursor=keys[-1].encode() if more else None)

    def freeze(self) -> Iterable[bytes]:
        """The last changes, and all items in the order of the keys, as of now; see
        :mod:`replog.machine`."""
        records = chain(self._changes.freeze(), _records(self._items.copy()))
        return pack_chunks(SNAPSHOT_FORM, records)

    def restore(self, chunks: Iterable[bytes]) -> None:
        """Replace all items, and what is known of changes, by those of a snapshot.

        One of the form ``kv 1`` knows of no changes; they begin behind ``context.index``, as of
        which it was taken.

        Raises :class:`~replog.errors.SnapshotDamaged` and :class:`~replog.errors.UnknownFormat`,
        and changes nothing then.
        """
        items: dict[str, tuple[int, str, bytes]] = {}
        last, digest = "", 0
        form, records = unpack_forms((SNAPSHOT_FORM_1, SNAPSHOT_FORM), chunks)
        changes = self._changes.restored(records) if form == SNAPSHOT_FORM else None
        for content in records:
            for key, value, index in _unpack_items(content):
                if key <= last:
                    raise _foreign("its keys do not ascend")
                items[key] = (index, key, value)
                digest += crc32(value, index)
                last = key
        if changes is None:
            indexes = (index for index, _, _ in items.values())
            changes = self._changes.emptied(max(self.context.index, max(indexes, default=0)))
        self._changes, self._note = changes, changes.noted.append
        self._items, self.state_digest = items, digest
        self._order = list(items)
        self._added.clear()
        self._removed.clear()

    def _found(self, keys: Iterable[str]) -> list[Item]:
        found = map(self._items.__getitem__, keys)
        return [{"key": key, "value": value, "index": index} for index, key, value in found]

    def _keys_between(self, first: int, stop: int, count_max: int) -> tuple[list[str], bool]:
        """The keys at the positions from ``first`` up to ``stop``, and whether some were cut off.

        Cut off by ``count_max`` or by the bytes of the items, but never before the first.
        """
        size_bytes = 0
        keys = self._order[first : min(stop, first + count_max)] if first < stop else []
        for position, key in enumerate(keys):
            size_bytes += len(key.encode()) + len(self._items[key][2]) + ITEM_OVERHEAD_BYTES
            if size_bytes > RANGE_BYTES_MAX and position > 0:
                return keys[:position], True
        return keys, first + len(keys) < stop

    def _note_added(self, key: str) -> None:
        if key in self._removed:
            del self._removed[key]
        else:
            self._added[key] = None

    def _note_removed(self, key: str) -> None:
        if key in self._added:
            del self._added[key]
        else:
            self._removed[key] = None

    def _sort_keys(self) -> None:
        """Make ``_order`` the keys of ``_items``, in order."""
        if len(self._added) + len(self._removed) <= INSERTIONS_MAX:
            for key in self._removed:
                del self._order[bisect_left(self._order, key)]
            for key in self._added:
                insort(self._order, key)
        else:
            removed = self._removed
            self._order = [key for key in self._order if key not in removed]
            self._order += sorted(self._added)
            # Two sorted runs, which the sort finds and merges.
            self._order.sort()
        self._added.clear()
        self._removed.clear()


def _records(items: Mapping[str, tuple[int, str, bytes]]) -> Iterator[bytes]:
    """The items as records of about ``CHUNK_BYTES``, in the order of the keys."""
    keys = list(items)
    runs = [sorted(keys[at : at + _RUN_KEYS]) for at in range(0, len(keys), _RUN_KEYS)]
    del keys
    parts: list[bytes] = []
    size_bytes = 0
    for key in merge(*runs):
        index, _, value = items[key]
        encoded = key.encode()
        parts += (_ITEM_HEAD.pack(len(encoded), len(value), index), encoded, value)
        size_bytes += _ITEM_HEAD.size + len(encoded) + len(value)
        if size_bytes >= CHUNK_BYTES:
            yield b"".join(parts)
            parts.clear()
            size_bytes = 0
    if parts:
        yield b"".join(parts)


def _unpack_items(content: bytes) -> Iterator[tuple[str, bytes, int]]:
    """The items of one record."""
    end = 0
    while end < len(content):
        try:
            key_bytes, value_bytes, index = _ITEM_HEAD.unpack_from(content, end)
            middle = end + _ITEM_HEAD.size + key_bytes
            key = content[middle - key_bytes : middle].decode()
        except (struct.error, UnicodeDecodeError):
            raise _foreign("an item cannot be read") from None
        end = middle + value_bytes
        if end > len(content):
            raise _foreign("an item is cut off")
        yield key, content[middle:end], index


def _foreign(what: str) -> SnapshotDamaged:
    return SnapshotDamaged(
        f"a snapshot of the form {SNAPSHOT_FORM!r} makes no sense: {what}, and its checksum is "
        "right, so a broken or foreign program wrote it; take the snapshot of another node"
    )


def _check_key(key: str) -> None:
    """Refuse a key that is empty or too long."""
    if not key:
        raise KvError("a key must not be empty")
    if len(key) > KEY_BYTES_MAX // 4:
        size_bytes = len(key.encode())
        if size_bytes > KEY_BYTES_MAX:
            raise KvError(f"a key has at most {KEY_BYTES_MAX} bytes as UTF-8, not {size_bytes}")
