"""The storage ``sqlite``: the log as tables of one SQLite database.  File ``log.sqlite3``.

It is there as proof that a storage is a plugin, and as a second opinion on what the write-ahead log
gives back; a large group costs it several times as much.

One group is one transaction, so it is found again whole or not at all.  The tables::

    meta        cluster_id, node_id, incarnation, format_version        one row: the owner
    hard_state  epoch, term, voted_for, commit_hint, checksum           one row once it was written
    base        epoch, term, idx, checksum                              one row once it was cut
    entries     idx, epoch, term, body, checksum

SQLite has signed 64-bit integers, so a term stands there as the signed number of the same bits, and
an index must fit into 63 bits.  It keeps no checksums of its own, so each row has one: the CRC-32
of its numbers, 8 bytes each and big-endian, and of the body.

The rules:

* It uses real files only: SQLite opens them itself, past the
  :class:`~replog.storage.files.FileLayer`, so no disk of a test can stand below it.
* The journal is a write-ahead one, because only beside that readers and the writer do not wait for
  each other: the loop reads on a connection of its own while a thread waits for a sync.  There
  ``synchronous=FULL`` syncs each commit before it returns, and the directory with a new journal.
  Only founding is done beside a rollback journal, whose commit is the removal of a *name*; so it
  takes ``EXTRA``, which syncs the directory after that too.
* Sync level ``os`` is ``synchronous=OFF``.
* What was encoded and is not persisted is read from memory (:mod:`replog.storage.sqlite_log`).
* Recovery checks the structure of the database and the checksum of every row.  Then it moves
  everything from the journal into the database, with syncs, before it reports anything: the process
  may have been killed between a write and its sync.  The database is synced before that by itself,
  for an earlier run may have been one of sync level ``os``.
* On a full disk a transaction is rolled back and its group refused, to come again.  No room is kept
  for votes, and none is sought ahead: SQLite cannot be asked for either.  A used-up quota it takes
  for an error, which ends the storage.

What it cannot tell: a journal ``log.sqlite3-wal`` that lost its end, or was removed by hand, looks
like one that was never written further.  The storage ``wal`` notices that where it would be a vote.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NoReturn

from replog.errors import (
    REJOIN_REMEDY,
    DirectoryError,
    LogDamaged,
    StorageFailed,
    StorageFull,
    UnknownFormat,
)
from replog.limits import MIB
from replog.storage.files import NO_ROOM, FileLayer, RealFiles, temporary_path
from replog.storage.plugin import StorageHome
from replog.storage.protocol import Recovered, Storage, Write
from replog.storage.segment import DAMAGE_REMEDY
from replog.storage.sqlite_log import (
    INDEX_MAX,
    SqliteLog,
    connect,
    entry_row,
    numbers_checksum,
    read_error,
    signed,
    unsigned,
)
from replog.types import EntryId, HardState, record

FILE_NAME: Final = "log.sqlite3"
FORMAT_VERSION: Final = 1

ROOM_BYTES: Final = 1 * MIB
"""How much room must be on the disk, beside twice a group that waits, to go on with entries."""

_JOURNALS: Final = ("-wal", "-shm", "-journal")
"""What SQLite appends to a database's name for the files beside it."""

_SCHEMA: Final = """
BEGIN IMMEDIATE;
CREATE TABLE meta (cluster_id TEXT, node_id INTEGER, incarnation INTEGER, format_version INTEGER);
CREATE TABLE hard_state (
    id INTEGER PRIMARY KEY, epoch INTEGER, term INTEGER, voted_for INTEGER, commit_hint INTEGER,
    checksum INTEGER
);
CREATE TABLE base (
    id INTEGER PRIMARY KEY, epoch INTEGER, term INTEGER, idx INTEGER, checksum INTEGER
);
CREATE TABLE entries (
    idx INTEGER PRIMARY KEY, epoch INTEGER, term INTEGER, body BLOB, checksum INTEGER
);
"""
_PUT_HARD_STATE: Final = "INSERT OR REPLACE INTO hard_state VALUES (1, ?, ?, ?, ?, ?)"
_PUT_BASE: Final = "INSERT OR REPLACE INTO base VALUES (1, ?, ?, ?, ?)"
_CUT: Final = "DELETE FROM entries WHERE idx <= ?"
_TRUNCATE: Final = "DELETE FROM entries WHERE idx >= ?"
_PUT_ENTRY: Final = "INSERT OR REPLACE INTO entries VALUES (?, ?, ?, ?, ?)"
_IS_WRITTEN: Final = (
    "SELECT EXISTS (SELECT 1 FROM hard_state) OR EXISTS (SELECT 1 FROM base) "
    "OR EXISTS (SELECT 1 FROM entries)"
)


@record
class Group:
    """A group on its way to the disk: statements, each with the rows that it is done for."""

    number: int
    size_bytes: int
    """Of its entries."""
    steps: Sequence[tuple[str, Sequence[tuple[int | bytes, ...]]]]


class SqliteStorage:
    """The log of one node; see :class:`~replog.storage.protocol.Storage` for the contract."""

    def __init__(self, home: StorageHome) -> None:
        assert isinstance(home.files, RealFiles), "SQLite opens its files itself"
        self._home = home
        self._path = home.path / FILE_NAME
        self.durable = home.is_synced
        self.written_bytes = 0
        self.is_full = False
        """Set by whoever persists, as the failure is."""
        self._failure: str | None = None
        # Of the event loop.
        self._log = SqliteLog(self._path)
        self._encoded_count = 0
        # Of whoever persists.
        self._writer: sqlite3.Connection | None = None
        self._refused_bytes = 0
        """The size of the group that is to come again."""

    def recover(self) -> Recovered:
        """Read and check everything; see :meth:`~replog.storage.protocol.Storage.recover`.

        Raises :class:`~replog.errors.LogDamaged` (missing, empty, damaged),
        :class:`~replog.errors.DirectoryError` (the log of somebody else),
        :class:`~replog.errors.UnknownFormat` and :class:`~replog.errors.StorageFailed`.
        """
        assert self._writer is None, "recover is called once"
        self._check_file()
        try:
            synchronous = "FULL" if self._home.is_synced else "OFF"
            self._writer = connect(self._path, "rw", synchronous)
            (verdict,) = self._writer.execute("PRAGMA quick_check(1)").fetchone()
            if verdict != "ok":
                raise LogDamaged(f"{self._path} is damaged ({verdict}); {DAMAGE_REMEDY}")
            self._check_owner(self._writer)
            hard_state = self._read_hard_state(self._writer)
            self._log.load(self._writer, self._read_base(self._writer))
            self._settle(self._writer)
            self._log.open()
        except sqlite3.Error as error:
            self.close()
            raise read_error(self._path, error) from error
        except BaseException:
            self.close()
            raise
        return Recovered(hard_state, self._log)

    def _check_file(self) -> None:
        """SQLite would make a database of a file that is missing or empty."""
        try:
            size_bytes = self._path.stat().st_size
            self._sync_file()
        except FileNotFoundError as error:
            raise LogDamaged(
                f"{self._path} is missing, although the log was founded with it; put the file back "
                "if it was moved, with those beside it (not older copies); if it is lost, the node "
                f"must not vote any more: {REJOIN_REMEDY}"
            ) from error
        except OSError as error:
            raise StorageFailed(f"{self._path} cannot be read: {error.strerror}") from error
        if not size_bytes:
            raise LogDamaged(
                f"{self._path} is empty, although a log has its tables from its founding on; "
                f"{DAMAGE_REMEDY}"
            )

    def _sync_file(self) -> None:
        """Before there is a connection: SQLite's locks end when any descriptor of a file closes."""
        if not self._home.is_synced:
            return
        files = self._home.files
        descriptor = files.open(self._path)
        try:
            files.sync(descriptor)
        finally:
            files.close(descriptor)

    def _check_owner(self, writer: sqlite3.Connection) -> None:
        rows = writer.execute("SELECT format_version FROM meta").fetchall()
        if len(rows) != 1 or not isinstance(rows[0][0], int):
            raise LogDamaged(f"{self._path} does not say whose log it is; {DAMAGE_REMEDY}")
        if rows[0][0] != FORMAT_VERSION:
            raise UnknownFormat(
                f"{self._path} is a log of format version {rows[0][0]}; this release knows version "
                f"{FORMAT_VERSION}: start this node with the release that wrote it, or a later one"
            )
        home = self._home
        owner = writer.execute("SELECT cluster_id, node_id, incarnation FROM meta").fetchone()
        if owner == (home.cluster_id, home.node_id, home.incarnation):
            return
        cluster_id, node_id, incarnation = owner
        raise DirectoryError(
            f"{self._path} is the log of node {node_id}, incarnation {incarnation}, of cluster "
            f"{cluster_id!r}, and this directory is that of node {home.node_id}, incarnation "
            f"{home.incarnation}, of cluster {home.cluster_id!r}; put the right file back, and "
            "never copy a log between nodes"
        )

    def _read_hard_state(self, writer: sqlite3.Connection) -> HardState | None:
        row = writer.execute(
            "SELECT epoch, term, voted_for, commit_hint, checksum FROM hard_state"
        ).fetchone()
        if row is None:
            return None
        epoch, term, voted_for, commit_hint = self._checked("hard state", row)
        return HardState(epoch, unsigned(term), voted_for, commit_hint)

    def _read_base(self, writer: sqlite3.Connection) -> EntryId:
        row = writer.execute("SELECT epoch, term, idx, checksum FROM base").fetchone()
        if row is None:
            return EntryId(0, 0, 0)
        epoch, term, index = self._checked("base", row)
        return EntryId(epoch, unsigned(term), index)

    def _checked(self, what: str, row: tuple[int, ...]) -> tuple[int, ...]:
        """The numbers of a row, without the checksum at its end, which is right."""
        *numbers, checksum = row
        if numbers_checksum(*numbers) != checksum:
            raise LogDamaged(f"{self._path}: the {what} is damaged; {DAMAGE_REMEDY}")
        return tuple(numbers)

    def _settle(self, writer: sqlite3.Connection) -> None:
        """Make what was found durable: it may be in the memory of the machine only."""
        is_busy, _, _ = writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        (mode,) = writer.execute("PRAGMA journal_mode=WAL").fetchone()
        if is_busy or mode != "wal":
            raise StorageFailed(
                f"{self._path} is in use by another program, or its file system cannot share "
                "memory; end that program, or move the directory to a local disk"
            )

    # -- on the event loop --

    def encode(self, writes: Sequence[Write]) -> Group:
        """One group; see :meth:`~replog.storage.protocol.Storage.encode`."""
        self._check_usable()
        steps: list[tuple[str, Sequence[tuple[int | bytes, ...]]]] = []
        number = self._encoded_count + 1
        size_bytes = 0
        log = self._log
        for write in writes:
            if (state := write.hard_state) is not None:
                steps.append(
                    (
                        _PUT_HARD_STATE,
                        [
                            _with_checksum(
                                state.epoch, signed(state.term), state.voted_for, state.commit_hint
                            )
                        ],
                    )
                )
            if (base := write.base) is not None and base.index > log.base.index:
                assert base.index <= INDEX_MAX
                row = _with_checksum(base.epoch, signed(base.term), base.index)
                steps.append((_PUT_BASE, [row]))
                steps.append((_CUT, [(base.index,)]))
                log.cut(base)
            if write.truncate_from is not None:
                assert write.truncate_from <= INDEX_MAX
                steps.append((_TRUNCATE, [(write.truncate_from,)]))
                log.truncate(write.truncate_from)
            if entries := log.put(write.entries, number):
                steps.append((_PUT_ENTRY, list(map(entry_row, entries))))
                size_bytes += sum([len(entry.body) for entry in entries])
        self._encoded_count = number
        self.written_bytes += size_bytes
        return Group(number, size_bytes, steps)

    # -- in the thread that persists --

    def persist(self, group: object) -> None:
        """Commit one group; see :meth:`~replog.storage.protocol.Storage.persist`."""
        assert isinstance(group, Group)
        writer = self._check_usable()
        if group.number != self._log.persisted_count + 1:
            # Not an assert: out of order, an older entry would replace a newer one.
            raise AssertionError("groups are persisted in the order in which they were encoded")
        try:
            writer.execute("BEGIN IMMEDIATE")
            for statement, rows in group.steps:
                writer.executemany(statement, rows)
            writer.execute("COMMIT")
        except sqlite3.Error as error:
            what = f"group {group.number} of this run"
            if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_FULL:
                self._refuse(writer, group, what, error)
            self._fail(what, error)
        self._refused_bytes = 0
        self._log.persisted_count = group.number

    def _refuse(
        self, writer: sqlite3.Connection, group: Group, what: str, error: sqlite3.Error
    ) -> NoReturn:
        """Take back what was done of a group that finds no room."""
        try:
            if writer.in_transaction:
                writer.execute("ROLLBACK")
        except sqlite3.Error as failure:
            self._fail(what, failure)
        self.is_full = True
        self._refused_bytes = group.size_bytes
        raise StorageFull(
            f"{self._path} has no room for {what} ({error}); nothing is lost, and it is written as "
            "soon as there is some: free some space on the disk, or raise the quota"
        ) from error

    def make_room(self) -> None:
        """See whether there is room, by taking some for a moment; see
        :meth:`~replog.storage.protocol.Storage.make_room`."""
        self._check_usable()
        if not self.is_full:
            return
        files = self._home.files
        probe = temporary_path(self._path)
        try:
            _remove(files, probe)
            descriptor = files.create(probe)
            try:
                files.preallocate(descriptor, 0, ROOM_BYTES + 2 * self._refused_bytes)
                self.is_full = False
            finally:
                files.close(descriptor)
                files.remove(probe)
        except OSError as error:
            if error.errno not in NO_ROOM:
                self._fail("a file beside it", error)

    def _check_usable(self) -> sqlite3.Connection:
        if self._failure is not None:
            raise StorageFailed(self._failure)
        assert self._writer is not None, "between recover and close"
        return self._writer

    def _fail(self, what: str, error: sqlite3.Error | OSError) -> NoReturn:
        """Poison the storage: nothing is retried, for a failed sync may have dropped its pages."""
        self._failure = (
            f"{self._path}: writing {what} failed ({error}), so what is on disk is not known any "
            "more and the node stops; repair the disk, or free some space on it, and start the "
            "node again"
        )
        raise StorageFailed(self._failure) from error

    def close(self) -> None:
        """Release the files; may be called again."""
        self._log.close()
        if self._writer is not None:
            writer, self._writer = self._writer, None
            writer.close()


def found_log(home: StorageHome) -> None:
    """Make the empty log of ``home``; its bytes are durable on return, its name need not be.

    It is made under another name, so a founding that was interrupted leaves no log, or a whole one
    without content; both are replaced.  Raises :class:`~replog.errors.DirectoryError` for a log
    that holds anything, or cannot be read.
    """
    files = home.files
    assert isinstance(files, RealFiles), "SQLite opens its files itself"
    path = home.path / FILE_NAME
    temporary = temporary_path(path)
    _check_unwritten(files, path)
    for database in (path, temporary):
        # The journals first: they would be taken for those of a new database under the name.
        for suffix in (*_JOURNALS, ""):
            _remove(files, database.with_name(database.name + suffix))
    files.close(files.create(temporary))  # of the right mode, which SQLite gives the journals too
    try:
        _make_tables(temporary, home)
    except sqlite3.Error as error:
        raise DirectoryError(
            f"{path} cannot be made ({error}); choose a directory on a local disk with room, that "
            "this user may write in"
        ) from error
    descriptor = files.open(temporary)
    try:
        files.sync(descriptor)
    finally:
        files.close(descriptor)
    files.rename(temporary, path)


def _check_unwritten(files: FileLayer, path: Path) -> None:
    """Raise unless there is no log, or one that was founded and never written."""
    names = files.names(path.parent)
    journal = path.with_name(f"{path.name}-wal")
    if path.name in names:
        try:
            connection = connect(path, "ro", "OFF")
            try:
                (is_written,) = connection.execute(_IS_WRITTEN).fetchone()
            finally:
                connection.close()
        except sqlite3.Error:
            is_written = True  # whatever it is, no founding left it
    else:
        is_written = journal.name in names and journal.stat().st_size > 0
    if is_written:
        raise DirectoryError(
            f"{path} is a log that was written to, in a directory without an identity; a node made "
            "anew would forget what it voted: put the identity back, or choose another directory"
        )


def _make_tables(path: Path, home: StorageHome) -> None:
    connection = connect(path, "rw", "EXTRA")
    try:
        connection.executescript(_SCHEMA)
        connection.execute(
            "INSERT INTO meta VALUES (?, ?, ?, ?)",
            (home.cluster_id, home.node_id, home.incarnation, FORMAT_VERSION),
        )
        connection.execute("COMMIT")
        connection.execute("PRAGMA journal_mode=WAL").fetchone()  # noted in the file
    finally:
        connection.close()


def _remove(files: FileLayer, path: Path) -> None:
    if path.name in files.names(path.parent):
        files.remove(path)


def _with_checksum(*numbers: int) -> tuple[int, ...]:
    return (*numbers, numbers_checksum(*numbers))


class SqlitePlugin:
    """The storage ``sqlite``."""

    name = "sqlite"
    title = "SQLite database on disk, a synced transaction per group; slower than wal"
    durable = True

    def owns(self, name: str) -> bool:
        """See :meth:`~replog.storage.plugin.StoragePlugin.owns`."""
        databases = (FILE_NAME, temporary_path(Path(FILE_NAME)).name)
        return any(
            name == database + suffix for database in databases for suffix in ("", *_JOURNALS)
        )

    def found(self, home: StorageHome) -> None:
        """See :func:`found_log`."""
        found_log(home)

    def open(self, home: StorageHome) -> Storage:
        """See :meth:`~replog.storage.plugin.StoragePlugin.open`."""
        return SqliteStorage(home)


SQLITE: Final = SqlitePlugin()
