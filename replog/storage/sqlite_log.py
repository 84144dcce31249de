"""The entries of the storage ``sqlite``, to be read: a :class:`~replog.stored_log.StoredLog`.

It belongs to the event loop and has a connection of its own, which only reads.  Which entries there
are it knows by their runs, from one scan at recovery; the entries themselves it reads from the
table, and those that are not persisted yet from memory.

The thread that persists tells it one number, of the last group that the table holds.  The loop
looks at it before it reads and forgets what is on disk; so nothing is changed by two threads.
"""

from __future__ import annotations

import sqlite3
import struct
import zlib
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Final, TypeAlias

from replog.entries import ENTRY_OVERHEAD_BYTES_MAX
from replog.errors import FatalError, LogDamaged, StorageFailed
from replog.runs import Runs
from replog.storage.segment import DAMAGE_REMEDY
from replog.stored_log import check_stored
from replog.types import BODY_HEAD_BYTES, NO_ENTRY, Entry, EntryId, LogIndex

INDEX_MAX: Final = (1 << 63) - 1
BUSY_SECONDS: Final = 5.0
"""How long to wait for a program that looks into the database."""

_NUMBERS: Final = tuple(struct.Struct(f">{count}q") for count in range(5))
_DAMAGE_CODES: Final = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR)
"""The last one is for a table or column that is not there."""
_SELECT: Final = "SELECT idx, epoch, term, body, checksum FROM entries"

Row: TypeAlias = tuple[int, int, int, bytes, int]


LOADED_COUNT: Final = 4096
"""How many entries are in memory at a time while all are checked."""


class SqliteLog:
    """Reads the table of entries, and what is on its way there."""

    __slots__ = ("_held", "_path", "_reader", "_waiting", "base", "persisted_count", "runs")

    def __init__(self, path: Path) -> None:
        self._path = path
        self._reader: sqlite3.Connection | None = None
        self.base: EntryId = NO_ENTRY
        self.runs = Runs()
        self._held: dict[LogIndex, tuple[int, Entry]] = {}
        """By index, what may not be in the table yet, each with the number of its group."""
        self._waiting: deque[tuple[int, Sequence[Entry]]] = deque()
        """The groups in ``_held``, in order."""
        self.persisted_count = 0
        """How many groups were persisted in this run; set by whoever persists."""

    def load(self, connection: sqlite3.Connection, base: EntryId) -> None:
        """Begin with a base, and with the entries of the table, of which each is checked."""
        self.base = base
        cursor = connection.execute(f"{_SELECT} ORDER BY idx")
        while rows := cursor.fetchmany(LOADED_COUNT):
            self.runs.put_entries(list(map(self._entry, rows)))
        first = self.runs.next_from(0)
        if first is not None and first.first <= base.index:
            raise LogDamaged(
                f"{self._path} holds entry {first.first}, which was cut off; {DAMAGE_REMEDY}"
            )

    def open(self) -> None:
        """Get ready to read."""
        self._reader = connect(self._path, "ro", "FULL")

    def close(self) -> None:
        """Release the files; may be called again."""
        if self._reader is not None:
            reader, self._reader = self._reader, None
            reader.close()

    # -- what a group says, when it is encoded --

    def cut(self, base: EntryId) -> None:
        """The log begins behind a base, which is above the one in force."""
        self.base = base
        self.runs.remove(0, base.index)

    def truncate(self, from_index: LogIndex) -> None:
        """Void everything at and above ``from_index``."""
        self.runs.truncate(from_index)

    def put(self, entries: Sequence[Entry], number: int) -> Sequence[Entry]:
        """A group puts entries, which ascend; those of them that are above the base."""
        self._forget_persisted()
        if entries and entries[0].index <= self.base.index:
            entries = [entry for entry in entries if entry.index > self.base.index]
        if not entries:
            return entries
        assert entries[-1].index <= INDEX_MAX
        self.runs.put_entries(entries)
        for entry in entries:
            self._held[entry.index] = (number, entry)
        self._waiting.append((number, entries))
        return entries

    def _forget_persisted(self) -> None:
        persisted = self.persisted_count
        while self._waiting and self._waiting[0][0] <= persisted:
            number, entries = self._waiting.popleft()
            for entry in entries:
                held = self._held.get(entry.index)
                if held is not None and held[0] == number:
                    del self._held[entry.index]

    # -- what is asked --

    def read(self, first: LogIndex, last: LogIndex, bytes_max: int) -> tuple[Entry, ...]:
        """See :class:`~replog.stored_log.StoredLog`."""
        check_stored(self, first)
        self._forget_persisted()
        last = self.runs.reach(first, last)
        found: list[Entry] = []
        size_bytes = 0
        stored = self._stored(first, last)
        try:
            for index in range(first, last + 1):
                held = self._held.get(index)
                entry = self._next_at(stored, index) if held is None else held[1]
                size_bytes += len(entry.body) + ENTRY_OVERHEAD_BYTES_MAX
                if found and size_bytes > bytes_max:
                    break
                found.append(entry)
        except sqlite3.Error as error:
            raise read_error(self._path, error) from error
        finally:
            stored.close()  # or the connection would go on seeing the table as it is now
        return tuple(found)

    def _stored(self, first: LogIndex, last: LogIndex) -> Generator[Row, None, None]:
        """The rows of a stretch; among them may be some that a group on its way replaces."""
        assert self._reader is not None, "between recover and close"
        rows = self._reader.execute(
            f"{_SELECT} WHERE idx BETWEEN ? AND ? ORDER BY idx", (first, last)
        )
        try:
            yield from rows
        finally:
            rows.close()

    def _next_at(self, stored: Iterator[Row], index: LogIndex) -> Entry:
        for row in stored:
            if row[0] == index:
                return self._entry(row)
            if row[0] > index:
                break
        raise LogDamaged(
            f"{self._path}: entry {index} was there when it was written or recovered, and is "
            f"missing now; {DAMAGE_REMEDY}"
        )

    def _entry(self, row: Row) -> Entry:
        index, epoch, term, body, checksum = row
        if (
            not isinstance(body, bytes)
            or len(body) < BODY_HEAD_BYTES
            or numbers_checksum(index, epoch, term, body=body) != checksum
        ):
            raise LogDamaged(f"{self._path}: entry {index} is damaged; {DAMAGE_REMEDY}")
        return Entry(epoch, index, unsigned(term), body)


def entry_row(entry: Entry) -> Row:
    """An entry as the table holds it."""
    index, epoch, term, body = entry.index, entry.epoch, signed(entry.term), entry.body
    return index, epoch, term, body, numbers_checksum(index, epoch, term, body=body)


def numbers_checksum(*numbers: int, body: bytes = b"") -> int:
    """Of the numbers of a row and its body; -1, which is no checksum, for what are no numbers."""
    try:
        return zlib.crc32(body, zlib.crc32(_NUMBERS[len(numbers)].pack(*numbers)))
    except struct.error:
        return -1


def signed(term: int) -> int:
    """An unsigned number of 64 bits as the signed one of the same bits."""
    return term - (1 << 64) if term > INDEX_MAX else term


def unsigned(number: int) -> int:
    """The reverse of :func:`signed`."""
    return number & ((1 << 64) - 1)


def connect(path: Path, mode: str, synchronous: str) -> sqlite3.Connection:
    """A connection to an existing database: ``rw`` or ``ro``, and how its commits are synced."""
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={mode}",
        uri=True,
        timeout=BUSY_SECONDS,
        isolation_level=None,  # transactions begin and end where we say so
        check_same_thread=False,  # one thread at a time, but not always the same
    )
    try:
        # On macOS a sync stops at the cache of the drive, unless it is a full one.
        for pragma in (f"synchronous={synchronous}", "fullfsync=ON", "checkpoint_fullfsync=ON"):
            connection.execute(f"PRAGMA {pragma}")
        connection.execute("PRAGMA cell_size_check=ON")
    except BaseException:
        connection.close()
        raise
    return connection


def read_error(path: Path, error: sqlite3.Error) -> FatalError:
    """What it means that a database cannot be read."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)
    if code & 0xFF in _DAMAGE_CODES:
        return LogDamaged(f"{path} is damaged ({error}); {DAMAGE_REMEDY}")
    return StorageFailed(f"{path} cannot be read ({error}); mend that and start the node again")
