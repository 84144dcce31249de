"""The changes of a state machine, for whoever watches it: the last of them, and who reads them.

A machine that can be watched has a :class:`ChangeWindow`, notes in it what each command changed,
and has a query that gives out a page of it (``docs/watch.md``).  Whoever watches pulls: it names
the index up to which it was told everything (a :class:`ChangeCursor` does), gets a page of what was
changed since, and goes on from there, at this node or any other.

The rules of a window:

* **It is part of the state.**  What it holds depends on the commands alone, it is in the machine's
  snapshot, and it does not end with a process: so every replica that has applied as much tells the
  same.
* **It is bounded**, by a number of changes and by the bytes of large values.  What is older is
  gone, and who asks for that is told so: ``first`` is the first index of which all changes are
  known.  There is never a gap that nobody tells of.
* **A command is one change at most.**  An index names one change, so it is a place to go on from.

To note a change costs no more than to append to a deque, for every write pays for it.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final, TypeAlias, TypedDict

from replog.chunks import CHUNK_BYTES
from replog.errors import BadCommand, FellBehind, NotYet, SchemaError, SnapshotDamaged
from replog.types import Change, LogIndex, ReadLevel

CHANGES_MAX: Final = 8192
"""So many changes a window holds, ...  Four times as many would be 5 MiB more in each process, and
memory that is written and not read again soon costs a node more than the work on it."""

VALUES_BYTES_MAX: Final = 16 * 1024 * 1024
"""... and no more bytes of large values, unless the last one alone has them."""

LARGE_BYTES: Final = 256
"""A value above this is large; smaller ones are bounded by their number."""

SCAN_CHANGES_MAX: Final = 1024
"""So many changes are looked at for a page: a query that is run again and again must be short."""

PAGE_BYTES: Final = 64 * 1024
"""A page ends behind the change with which it has so many bytes."""

_Noted: TypeAlias = "tuple[LogIndex, str, bytes | None]"

_WINDOW_HEAD: Final = struct.Struct(">QI")
"""The first index, and how many changes follow."""

_CHANGE_HEAD: Final = struct.Struct(">QHI")
"""The index, the bytes of the key, and those of the value and 1; 0: there is none."""


class ChangesPage(TypedDict):
    """A page of changes, as a query of a machine gives it out."""

    first: LogIndex
    """All changes at this index and later are known.  If it is above the one behind that which was
    asked for, the others are gone, and the page says nothing else."""
    changes: list[list[object]]
    """Of each the index, the key and the new value (``None``: the key is gone); ascending."""
    upto: LogIndex
    """Everything up to this index is told; the next page is asked for behind it."""


class ChangeWindow:
    """The last changes of a machine; see the module."""

    __slots__ = (
        "_changes_max",
        "_first_index",
        "_large",
        "_large_bytes",
        "_values_bytes_max",
        "noted",
    )

    def __init__(
        self, *, changes_max: int = CHANGES_MAX, values_bytes_max: int = VALUES_BYTES_MAX
    ) -> None:
        """A window in which nothing was noted yet, and nothing is missing."""
        assert changes_max > 0
        assert values_bytes_max > 0
        self._changes_max = changes_max
        self._values_bytes_max = values_bytes_max
        self._first_index: LogIndex = 1
        """Unless ``noted`` is full."""
        self.noted: deque[_Noted] = deque(maxlen=changes_max + 1)
        """The changes, ascending.  When it is full, the oldest one counts as gone: its index says
        from where on all are known."""
        self._large: deque[tuple[LogIndex, int]] = deque()
        """The indexes of large values, and their bytes; some may be gone."""
        self._large_bytes = 0
        """Of all of these."""

    def note(self, index: LogIndex, key: str, value: bytes | None) -> None:
        """The command at ``index`` has set ``key`` to ``value``, or has removed it.

        ``index`` is above that of every earlier change.
        """
        self.noted.append((index, key, value))
        if value is not None and len(value) > LARGE_BYTES:
            self.count_large(index, len(value))

    def count_large(self, index: LogIndex, size_bytes: int) -> None:
        """The change at ``index``, which was appended to ``noted``, has a large value.

        It is the rest of :meth:`note`, for a machine that spells the beginning out.
        """
        large, noted = self._large, self.noted
        large.append((index, size_bytes))
        self._large_bytes += size_bytes
        first_index = self.first_index
        while large and large[0][0] < first_index:
            self._large_bytes -= large.popleft()[1]
        while self._large_bytes > self._values_bytes_max and len(large) > 1:
            dropped_index, dropped_bytes = large.popleft()
            self._large_bytes -= dropped_bytes
            self._first_index = dropped_index + 1
            while noted and noted[0][0] <= dropped_index:
                noted.popleft()

    @property
    def first_index(self) -> LogIndex:
        """All changes at this index and later are known."""
        is_full = len(self.noted) > self._changes_max
        return self.noted[0][0] + 1 if is_full else self._first_index

    def emptied(self, upto: LogIndex) -> ChangeWindow:
        """A window with these limits that knows nothing of changes up to ``upto``: for a state that
        came from elsewhere without them."""
        window = ChangeWindow(
            changes_max=self._changes_max, values_bytes_max=self._values_bytes_max
        )
        window._first_index = upto + 1
        return window

    # -- pages --

    def page(
        self, after: LogIndex | None, prefix: str = "", *, is_key: bool = False
    ) -> ChangesPage:
        """What was changed behind the index ``after``, of the keys that begin with ``prefix``, or
        of that very key if it ``is_key``; ``after`` of ``None``: an empty page as of now.

        Raises :class:`~replog.errors.NotYet` where there is nothing yet.  The page is short, and
        may be empty where much else was changed.
        """
        first, noted = self.first_index, self.noted
        if after is None:
            return {"first": first, "changes": [], "upto": noted[-1][0] if noted else first - 1}
        if after + 1 < first:
            return {"first": first, "changes": [], "upto": after}
        found: list[list[object]] = []
        upto, scanned_count, size_bytes = after, 0, 0
        for place in range(bisect_right(noted, after, key=_index_of), len(noted)):
            upto, key, value = noted[place]
            scanned_count += 1
            if (key == prefix) if is_key else key.startswith(prefix):
                found.append([upto, key, value])
                size_bytes += len(key) + (0 if value is None else len(value))
            if size_bytes >= PAGE_BYTES or scanned_count >= SCAN_CHANGES_MAX:
                break
        page: ChangesPage = {"first": first, "changes": found, "upto": upto}
        if not found and scanned_count < SCAN_CHANGES_MAX:
            raise NotYet(upto + 1, page)
        return page

    # -- snapshots --

    def freeze(self) -> Iterator[bytes]:
        """The window as records of a snapshot (:mod:`replog.chunks`), as of this call; they may be
        consumed later, in another thread."""
        first_index = self.first_index
        return _records(first_index, [each for each in self.noted if each[0] >= first_index])

    def restored(self, records: Iterator[bytes]) -> ChangeWindow:
        """A window with these limits that goes on as the one that was frozen; it takes the records
        of that and no more.

        Raises :class:`~replog.errors.SnapshotDamaged`.
        """
        try:
            first_index, count = _WINDOW_HEAD.unpack(next(records, b""))
        except struct.error:
            raise _foreign("its head cannot be read") from None
        window = self.emptied(first_index - 1)
        last_index = first_index - 1
        while count > 0:
            for index, key, value in _unpack_changes(next(records, b"")):
                if index <= last_index:
                    raise _foreign("its indexes do not ascend")
                window.note(index, key, value)
                last_index, count = index, count - 1
        if count < 0:
            raise _foreign("there are more changes than it says")
        return window


def _index_of(change: _Noted) -> LogIndex:
    return change[0]


def _records(first_index: LogIndex, changes: Sequence[_Noted]) -> Iterator[bytes]:
    yield _WINDOW_HEAD.pack(first_index, len(changes))
    parts: list[bytes] = []
    record_bytes = 0
    for index, key, value in changes:
        encoded = key.encode()
        size_bytes = 0 if value is None else len(value) + 1
        parts += (_CHANGE_HEAD.pack(index, len(encoded), size_bytes), encoded, value or b"")
        record_bytes += _CHANGE_HEAD.size + len(encoded) + size_bytes
        if record_bytes >= CHUNK_BYTES:
            yield b"".join(parts)
            parts.clear()
            record_bytes = 0
    if parts:
        yield b"".join(parts)


def _unpack_changes(content: bytes) -> Iterable[_Noted]:
    """The changes of one record, which has one at least."""
    found: list[_Noted] = []
    end = 0
    while end < len(content) or not found:
        try:
            index, key_bytes, value_bytes = _CHANGE_HEAD.unpack_from(content, end)
            middle = end + _CHANGE_HEAD.size + key_bytes
            key = content[middle - key_bytes : middle].decode()
        except (struct.error, UnicodeDecodeError):
            raise _foreign("a change cannot be read") from None
        end = middle + max(0, value_bytes - 1)
        if end > len(content):
            raise _foreign("a change is cut off")
        found.append((index, key, content[middle:end] if value_bytes else None))
    return found


def _foreign(what: str) -> SnapshotDamaged:
    return SnapshotDamaged(
        f"the changes in a snapshot make no sense: {what}, and its checksum is right, so a broken "
        "or foreign program wrote it; take the snapshot of another node"
    )


# --- Who reads them -----------------------------------------------------------------------------


class ChangeCursor:
    """Where somebody stands who watches a machine, a page at a time."""

    __slots__ = ("_encode", "_is_any_node", "_is_first", "_was_empty", "after")

    def __init__(
        self,
        encode: Callable[[LogIndex | None], bytes],
        after: LogIndex | None,
        *,
        is_any_node: bool,
    ) -> None:
        """``encode(after)`` is the query for a page.  ``after`` is the index up to which everything
        is known already; ``None``: it is told what is changed from now on.  ``is_any_node``:
        whoever leads is asked, and not a node of the caller's choice.

        Raises :class:`~replog.errors.BadCommand` for an index below 0.
        """
        if after is not None and after < 0:
            raise BadCommand(f"an index is not below 0, as {after} is")
        self._encode = encode
        self._is_any_node = is_any_node
        self._is_first = True
        self._was_empty = False
        self.after = after
        """Everything up to here was told."""

    @property
    def payload(self) -> bytes:
        """The query for the next page."""
        return self._encode(self.after)

    @property
    def level(self) -> ReadLevel:
        """How new the state must be for the next page.

        The first is as new as can be: whoever begins sees what was done before.  Later ones need
        only be as new as what was told, unless there was nothing: a node that leads no more and is
        cut off has nothing to tell, for ever, and must not pass for one where nothing is changed.
        """
        is_in_doubt = self._was_empty and self._is_any_node
        is_newest = self._is_first or is_in_doubt
        return ReadLevel.LINEARIZABLE if is_newest else ReadLevel.TIMELINE

    @property
    def at_least(self) -> LogIndex:
        """What the node must have applied, at the level ``timeline``."""
        return self.after or 0

    def take(self, result: object, read_index: LogIndex) -> Sequence[Change]:
        """A page has come, as of ``read_index``; what is new on it.

        Raises :class:`~replog.errors.FellBehind`; :class:`~replog.errors.BadCommand` for an index
        to which the log has not come; and :class:`~replog.errors.SchemaError` for what is no page.
        """
        first, changes, upto = _page_in(result)
        if self.after is not None:
            if first > self.after + 1:
                raise FellBehind(first)
            if self._is_first and self.after > read_index:
                raise BadCommand(
                    f"nothing can be watched from behind index {self.after} on, for the log has "
                    f"only come to {read_index}; it is the index of another cluster"
                )
            self._was_empty = upto <= self.after
        self._is_first = False
        self.after = max(self.after or 0, upto)
        return changes


def _page_in(value: object) -> tuple[LogIndex, Sequence[Change], LogIndex]:
    match value:
        case {"first": int(first), "changes": list(changes), "upto": int(upto)}:
            if all(map(_is_change, changes)):
                return first, tuple(Change(*change) for change in changes), upto
    raise SchemaError(
        "what came is no page of changes; watch a query that gives out such pages, and run the "
        "same release on both sides"
    )


def _is_change(value: object) -> bool:
    match value:
        case [int(), str(), bytes() | None]:
            return True
    return False
