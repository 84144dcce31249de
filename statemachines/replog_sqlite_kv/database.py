"""The items of the store in one SQLite database, and up to which index they were applied.

The tables::

    items    key, value, idx     idx: the log index at which the item was last set
    applied  idx, time_ms        one row: as of which command, and its replicated time
    answers  idx, answer         what commands in sessions were answered; in no snapshot

The rules:

* **What was applied, its answers and the index stand in one transaction**, of at most
  ``BATCH_COMMANDS_MAX`` commands; none ends between a command and its answer.  A commit is not
  synced: what a power cut takes is in the log.  ``open`` moves all of SQLite's journal into the
  database, with syncs, before it reports an index.
* **No name is used twice.**  A database is ``items-NNNNNNNN.sqlite3``; a restored one is made under
  a temporary name, synced, and renamed to the *next* number, and only when that name is durable
  the old one is removed.  So no journal is ever taken for that of another database, and whoever
  still reads the old one reads on.  The highest number is the one that counts.
* **A frozen view has a connection and a read transaction of its own**, which begins at once;
  SQLite's write-ahead journal lets the writer go on.
* A failure poisons: nothing is committed after it, for a command might be missing below.
"""

from __future__ import annotations

import re
import sqlite3
import struct
import weakref
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final, TypeAlias

from replog.chunks import CHUNK_BYTES, pack_chunks, unpack_chunks
from replog.errors import (
    MachineDamaged,
    ReplogError,
    SnapshotDamaged,
    StorageFailed,
    UnknownFormat,
)
from replog.limits import MIB
from replog.machine import Opened
from replog.storage.files import RealFiles

FORMAT_VERSION: Final = 2
"""Of the tables.  One of version 1, which has no answers, is brought to this one when it is opened;
a release before this one refuses it from then on."""

SNAPSHOT_FORM: Final = "sqlite-kv 1"
"""What the records of a snapshot are: items in the order of the keys, each a head, key, value."""

BATCH_COMMANDS_MAX: Final = 256
BATCH_BYTES_MAX: Final = 1 * MIB
"""A transaction ends when it has so many commands, or so many bytes of keys and values."""

CACHE_KIB: Final = 32 * 1024
"""What SQLite holds of the database in memory, for commands."""

PASS_CACHE_KIB: Final = 2 * 1024
"""The same for a snapshot that is taken, and for one that fills a database: both go through the
keys in order and need no page twice, and a node should not need much more memory meanwhile."""

FORGOTTEN_ROWS_MAX: Final = 2 * BATCH_COMMANDS_MAX
"""So many answers that are not needed any more are removed in a transaction: twice as many as come
in one, and no pause."""

JOURNAL_BYTES_MAX: Final = 64 * MIB
"""What is left of the journal when it was longer, because a frozen view was read meanwhile."""

_NAME: Final = re.compile(r"items-([0-9]{8})\.sqlite3")
_TEMPORARY: Final = "items.sqlite3.tmp"
_OURS: Final = re.compile(r"(items-[0-9]{8}\.sqlite3|items\.sqlite3\.tmp)(-wal|-shm|-journal)?")
_ITEM_HEAD: Final = struct.Struct(">HIQ")
"""The bytes of the key and of the value, and the index."""

_ANSWERS: Final = "CREATE TABLE answers (idx INTEGER PRIMARY KEY, answer BLOB)"
_IS_OURS: Final = f"PRAGMA user_version = {FORMAT_VERSION}"
_SCHEMA: Final = f"""
CREATE TABLE items (key TEXT PRIMARY KEY, value BLOB, idx INTEGER);
CREATE TABLE applied (id INTEGER PRIMARY KEY, idx INTEGER, time_ms INTEGER);
{_ANSWERS};
{_IS_OURS};
"""
_PUT_APPLIED: Final = "INSERT OR REPLACE INTO applied VALUES (1, ?, ?)"
_GET_APPLIED: Final = "SELECT idx, time_ms FROM applied"
_KEEP_ANSWER: Final = "INSERT INTO answers VALUES (?, ?)"
_GET_ANSWER: Final = "SELECT CAST(answer AS BLOB) FROM answers WHERE idx = ?"
_FORGET_ANSWERS: Final = (
    "DELETE FROM answers WHERE idx IN (SELECT idx FROM answers WHERE idx <= ? ORDER BY idx LIMIT ?)"
)
_REMEDY: Final = (
    "check the disk, then remove the whole directory: the state machine is filled again, from the "
    "node's snapshot and log"
)

_DAMAGE: Final = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR)
"""The codes of SQLite that mean that the file is not what was written; a table that is missing is
an error of no code of its own."""

Row: TypeAlias = tuple[str, bytes, int]
"""A key, its value, and the index at which it was set."""

_NameRule: TypeAlias = Callable[[str], bool]


class ItemDatabase:
    """The database in one directory, open for one process."""

    def __init__(self, directory: Path) -> None:
        """Open the newest database, or make an empty one.

        Raises :class:`~replog.errors.MachineDamaged`, :class:`~replog.errors.UnknownFormat` and
        :class:`~replog.errors.StorageFailed`.
        """
        self._files = RealFiles()
        self._directory = directory
        self._failure: str | None = None
        self._is_writing = False
        """Whether a transaction is open."""
        self._commands_count = 0
        self._bytes = 0
        """Of the transaction so far."""
        self._awaits_answer = False
        """Whether the last command is done and what it was answered is still to come."""
        self._forgotten_index = 0
        """The answers up to here are to be removed; 0: they were."""
        self._number = self._settle_names()
        self._connection: sqlite3.Connection | None = _connect(self._path)
        try:
            self.opened = self._settle(self._connection)
        except BaseException:
            self.close()
            raise
        self._applied = self.opened

    @property
    def _path(self) -> Path:
        return self._directory / f"items-{self._number:08d}.sqlite3"

    # -- commands --

    def rows(self, statement: str, *values: str | bytes | int) -> Iterator[Row]:
        """What a SELECT of key, value and idx finds, as of the last command; read it at once."""
        try:
            yield from self._usable().execute(statement, values)
        except sqlite3.Error as error:
            raise self._fail(error) from error

    def change(self, statement: str, *values: str | bytes | int) -> int:
        """Do an INSERT or DELETE in the transaction of the batch; how many rows it changed."""
        connection = self._usable()
        try:
            self._begin(connection)
            changed = connection.execute(statement, values).rowcount
        except sqlite3.Error as error:
            raise self._fail(error) from error
        self._bytes += sum(len(value) for value in values if not isinstance(value, int))
        return changed

    def note(self, index: int, time_ms: int, awaits_answer: bool) -> None:
        """The command at ``index`` is done, with all of its changes, but for its answer where that
        is to be kept: :meth:`keep_answer` comes next then."""
        self._applied = Opened(index, time_ms)
        self._commands_count += 1
        self._awaits_answer = awaits_answer
        self._maybe_commit()

    def keep_answer(self, index: int, answer: bytes) -> None:
        """The command that was noted last was answered so."""
        assert index == self._applied.applied_index, "the answer of another command"
        self.change(_KEEP_ANSWER, index, answer)
        self._awaits_answer = False
        self._maybe_commit()

    def kept_answer(self, index: int) -> bytes | None:
        """What the command at ``index`` was answered; ``None``: it is not kept."""
        try:
            row = self._usable().execute(_GET_ANSWER, (index,)).fetchone()
        except sqlite3.Error as error:
            raise self._fail(error) from error
        return None if row is None else row[0]

    def forget_answers(self, upto: int) -> None:
        """Remove the answers up to an index, a few with each transaction from now on."""
        self._forgotten_index = max(self._forgotten_index, upto)

    def _maybe_commit(self) -> None:
        is_full = self._commands_count >= BATCH_COMMANDS_MAX or self._bytes >= BATCH_BYTES_MAX
        if is_full and not self._awaits_answer:
            self.commit()

    @property
    def applied_index(self) -> int:
        """The index of the last command that was noted."""
        return self._applied.applied_index

    def commit(self) -> None:
        """End the batch: the process may be killed now, and nothing of it is lost."""
        assert not self._awaits_answer, "a command and its answer are one"
        connection = self._usable()
        if not self._commands_count and not self._is_writing:
            return
        try:
            self._begin(connection)
            self._remove_forgotten(connection)
            connection.execute(_PUT_APPLIED, (self._applied.applied_index, self._applied.time_ms))
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            raise self._fail(error) from error
        self._is_writing = False
        self._commands_count = self._bytes = 0

    def _remove_forgotten(self, connection: sqlite3.Connection) -> None:
        if self._forgotten_index:
            bounds = (self._forgotten_index, FORGOTTEN_ROWS_MAX)
            if connection.execute(_FORGET_ANSWERS, bounds).rowcount < FORGOTTEN_ROWS_MAX:
                self._forgotten_index = 0

    def _begin(self, connection: sqlite3.Connection) -> None:
        if not self._is_writing:
            connection.execute("BEGIN IMMEDIATE")
            self._is_writing = True

    def poison(self, reason: str) -> None:
        """Never commit again: the state is between two commands."""
        self._failure = self._failure or (
            f"{self._path}: {reason}, so the state machine holds what belongs to no index; start "
            "the node again, which goes on behind the last transaction"
        )

    def _usable(self) -> sqlite3.Connection:
        if self._failure is not None:
            raise StorageFailed(self._failure)
        assert self._connection is not None, "between open and close"
        return self._connection

    def _fail(self, error: sqlite3.Error) -> ReplogError:
        self.poison(f"SQLite failed ({error})")
        return _typed(self._path, error)

    # -- snapshots --

    def freeze(self) -> Iterable[bytes]:
        """The chunks of all items, as of now; the batch is committed for that."""
        self.commit()
        return _FrozenItems(self._path)

    def restore(self, chunks: Iterable[bytes], index: int, time_ms: int) -> None:
        """Replace everything by a snapshot, as of ``index``; on an error the old state stays."""
        assert self._connection is not None, "between open and close"
        self._make(self._number + 1, _unpack_rows(chunks), Opened(index, time_ms))
        old, self._connection = self._connection, None
        old.close()
        self._number += 1
        self._remove_all_but(self._path.name)
        self._failure = None
        self._is_writing = self._awaits_answer = False
        self._commands_count = self._bytes = self._forgotten_index = 0
        self._connection = _connect(self._path)
        self._applied = Opened(index, time_ms)

    def close(self) -> None:
        """Commit what is whole and release the files; may be called again."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        try:
            # A command without its answer is not whole; it is offered again, and all of its batch.
            if self._failure is None and self._commands_count and not self._awaits_answer:
                self._connection = connection
                self.commit()
        finally:
            self._connection = None
            connection.close()

    # -- files --

    def _settle_names(self) -> int:
        """The number of the database that counts, which exists; the others are gone."""
        try:
            if not self._directory.is_dir():
                self._files.make_directory(self._directory)
                self._files.sync_directory(self._directory.parent)
            # What the last process renamed may have its name in memory only.
            self._files.sync_directory(self._directory)
            names = self._files.names(self._directory)
        except OSError as error:
            raise _unwritable(self._directory, error) from error
        number = max((int(m.group(1)) for m in map(_NAME.fullmatch, names) if m), default=0)
        if not number:
            number = 1
            self._make(number, (), Opened(0, 0))
        self._remove_all_but(f"items-{number:08d}.sqlite3")
        return number

    def _make(self, number: int, rows: Iterable[Row], applied: Opened) -> None:
        """Make the database of a number, in constant memory; it is whole and durable on return."""
        temporary = self._directory / _TEMPORARY
        files = self._files
        try:
            self._remove(lambda name: name.startswith(_TEMPORARY))
            files.close(files.create(temporary))  # of the right mode, which SQLite would not give
            try:
                _fill(temporary, rows, applied)
            except BaseException:
                self._remove(lambda name: name.startswith(_TEMPORARY))
                raise
            descriptor = files.open(temporary)
            try:
                files.sync(descriptor)
            finally:
                files.close(descriptor)
            files.rename(temporary, self._directory / f"items-{number:08d}.sqlite3")
            files.sync_directory(self._directory)
        except OSError as error:
            raise _unwritable(temporary, error) from error
        except sqlite3.Error as error:
            raise _typed(temporary, error) from error

    def _remove_all_but(self, kept: str) -> None:
        """Remove what is left of other databases."""
        try:
            self._remove(lambda name: not name.startswith(kept))
        except OSError as error:
            raise _unwritable(self._directory, error) from error

    def _remove(self, is_useless: _NameRule) -> None:
        for name in self._files.names(self._directory):
            if _OURS.fullmatch(name) and is_useless(name):
                self._files.remove(self._directory / name)

    def _settle(self, connection: sqlite3.Connection) -> Opened:
        """Make everything durable, and tell as of which index it is."""
        try:
            # Even what an earlier process committed may be in the memory of the machine only.
            is_busy, _, _ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if version > FORMAT_VERSION:
                raise UnknownFormat(
                    f"{self._path} is of format version {version}; this release knows version "
                    f"{FORMAT_VERSION}: start this node with the release that wrote it, or a later "
                    "one"
                )
            if version == 1:
                _add_answers(connection)
            row = connection.execute(_GET_APPLIED).fetchone() if version else None
        except sqlite3.Error as error:
            raise _typed(self._path, error) from error
        if is_busy:
            raise StorageFailed(f"{self._path} is in use by another program; end that program")
        if row is None or not all(type(number) is int and number >= 0 for number in row):
            raise MachineDamaged(
                f"{self._path} does not say up to which index it was applied; {_REMEDY}"
            )
        return Opened(*row)


class _FrozenItems:
    """The items as of one moment, to be read once, in any thread."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._connection = _connect(path, PASS_CACHE_KIB)
            # A view that nobody reads, or not to its end, closes with the last reference to it.
            weakref.finalize(self, self._connection.close).atexit = False
            self._connection.execute("BEGIN")
            # The transaction begins with the first thing read.
            self._connection.execute(_GET_APPLIED).fetchone()
        except sqlite3.Error as error:
            raise _typed(path, error) from error

    def __iter__(self) -> Iterator[bytes]:
        try:
            rows = self._connection.execute("SELECT key, value, idx FROM items ORDER BY key")
            yield from pack_chunks(SNAPSHOT_FORM, _pack_rows(rows))
        except sqlite3.Error as error:
            raise _typed(self._path, error) from error
        finally:
            self._connection.close()


def _connect(path: Path, cache_kib: int = CACHE_KIB) -> sqlite3.Connection:
    """A connection that any one thread at a time may use; raises typed errors."""
    try:
        connection = sqlite3.connect(
            f"{path.resolve().as_uri()}?mode=rw",
            uri=True,
            isolation_level=None,
            check_same_thread=False,
        )
    except sqlite3.Error as error:
        raise _typed(path, error) from error
    try:
        for pragma in (
            "journal_mode = WAL",
            "synchronous = NORMAL",
            f"cache_size = -{cache_kib}",
            f"journal_size_limit = {JOURNAL_BYTES_MAX}",
            # On macOS a plain fsync stops at the cache of the drive.
            "fullfsync = ON",
            "checkpoint_fullfsync = ON",
        ):
            connection.execute(f"PRAGMA {pragma}")
    except sqlite3.Error as error:
        connection.close()
        raise _typed(path, error) from error
    return connection


def _fill(path: Path, rows: Iterable[Row], applied: Opened) -> None:
    """Fill a new file, without a journal: until it is renamed, nothing rests on it."""
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        connection.execute("PRAGMA journal_mode = OFF")
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute(f"PRAGMA cache_size = -{PASS_CACHE_KIB}")
        connection.executescript(_SCHEMA)
        connection.execute("BEGIN")
        connection.executemany("INSERT INTO items VALUES (?, ?, ?)", rows)
        connection.execute(_PUT_APPLIED, (applied.applied_index, applied.time_ms))
        connection.execute("COMMIT")
        connection.execute("PRAGMA journal_mode = WAL")  # noted in the file
    finally:
        connection.close()


def _add_answers(connection: sqlite3.Connection) -> None:
    """Bring a database of format version 1 to version 2; it keeps no answers so far."""
    connection.execute("BEGIN IMMEDIATE")
    connection.execute(_ANSWERS)
    connection.execute(_IS_OURS)
    connection.execute("COMMIT")


def _pack_rows(rows: Iterable[Row]) -> Iterator[bytes]:
    """The items as records of about ``CHUNK_BYTES``."""
    parts: list[bytes] = []
    size_bytes = 0
    for key, value, index in rows:
        encoded = key.encode()
        parts += (_ITEM_HEAD.pack(len(encoded), len(value), index), encoded, value)
        size_bytes += _ITEM_HEAD.size + len(encoded) + len(value)
        if size_bytes >= CHUNK_BYTES:
            yield b"".join(parts)
            parts.clear()
            size_bytes = 0
    if parts:
        yield b"".join(parts)


def _unpack_rows(chunks: Iterable[bytes]) -> Iterator[Row]:
    """The items of a snapshot, one by one."""
    last = ""
    for content in unpack_chunks(SNAPSHOT_FORM, chunks):
        end = 0
        while end < len(content):
            try:
                key_bytes, value_bytes, index = _ITEM_HEAD.unpack_from(content, end)
                middle = end + _ITEM_HEAD.size + key_bytes
                key = content[middle - key_bytes : middle].decode()
            except (struct.error, UnicodeDecodeError):
                raise _foreign("an item cannot be read") from None
            end = middle + value_bytes
            if end > len(content) or index >= 1 << 63:
                raise _foreign("an item is cut off, or its index out of range")
            if key <= last:
                raise _foreign("its keys do not ascend")
            last = key
            yield key, content[middle:end], index


def _foreign(what: str) -> SnapshotDamaged:
    return SnapshotDamaged(
        f"a snapshot of the form {SNAPSHOT_FORM!r} makes no sense: {what}, and its checksum is "
        "right, so a broken or foreign program wrote it; take the snapshot of another node"
    )


def _unwritable(path: Path, error: OSError) -> StorageFailed:
    return StorageFailed(
        f"{path} cannot be written ({error.strerror or error}); check the disk, its room and who "
        "may write there, and start the node again"
    )


def _typed(path: Path, error: sqlite3.Error) -> ReplogError:
    """What an error of SQLite means."""
    code: int | None = getattr(error, "sqlite_errorcode", None)
    # The lower byte tells the kind; what the module itself raises has no code.
    if code is not None and code & 0xFF in _DAMAGE:
        return MachineDamaged(f"{path} is damaged ({error}); {_REMEDY}")
    return StorageFailed(
        f"{path}: SQLite failed ({error}); check the disk, its room and who may write there, and "
        "start the node again"
    )
