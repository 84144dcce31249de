"""The storage ``sqlite``, as far as it is special: its file, its damage, its disk, and its end.

What it shares with every storage is in ``test_storages.py``.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from replog import plugins
from replog.errors import DirectoryError, LogDamaged, StorageFailed, StorageFull, UnknownFormat
from replog.storage import sqlite_log
from replog.storage.files import RealFiles
from replog.storage.plugin import StorageHome
from replog.storage.protocol import Write
from replog.storage.sqlite import FILE_NAME, ROOM_BYTES, SQLITE, SqliteStorage
from replog.stored_log import all_entries
from replog.testing.files import ForgetfulFiles
from replog.types import Entry, EntryId, EntryKind, HardState, entry_body

JOURNAL = f"{FILE_NAME}-wal"


def entry(index: int, data: bytes = b"x") -> Entry:
    """A command of term 1."""
    return Entry(1, index, 1, entry_body(EntryKind.COMMAND, 1, 1, index, data))


def home_at(path: Path, incarnation: int = 77) -> StorageHome:
    """Where the storage is."""
    return StorageHome(RealFiles(), path, "demo", 1, incarnation)


def persist(storage: SqliteStorage, *writes: Write) -> None:
    """Encode one group and persist it."""
    storage.persist(storage.encode(writes))


def recovered(path: Path) -> SqliteStorage:
    """A storage that was recovered."""
    storage = SqliteStorage(home_at(path))
    storage.recover()
    return storage


def written(path: Path) -> Path:
    """The database of a log with a vote, a base, and entries up to 40; it is closed."""
    SQLITE.found(home_at(path))
    storage = recovered(path)
    items = [entry(index, b"data" * index) for index in range(1, 41)]
    persist(storage, Write(HardState(1, 4, 2, 3), None, items))
    persist(storage, Write(None, None, (), EntryId(1, 1, 2)))
    storage.close()
    return path / FILE_NAME


def alter(database: Path, statement: str) -> None:
    """Change the tables behind the storage's back."""
    connection = sqlite3.connect(database)
    with connection:
        connection.execute(statement)
    connection.close()


def refused(path: Path) -> str:
    """The sentence with which a damaged log is refused."""
    with pytest.raises(LogDamaged) as caught:
        recovered(path)
    sentence = str(caught.value)
    assert str(path / FILE_NAME) in sentence
    assert "`replog rejoin`" in sentence, "and what to do"
    return sentence


# Its file


def test_found_by_name() -> None:
    """The storage comes in through an entry point, as anybody's does."""
    assert "sqlite" in plugins.storage_names()
    assert "sqlite" not in plugins.STORAGES_BUILT_IN
    assert plugins.find_storage("sqlite") is SQLITE


def test_files_are_private(tmp_path: Path) -> None:
    """The database and the files beside it are closed to other users, whatever the umask."""
    before = os.umask(0)
    try:
        SQLITE.found(home_at(tmp_path))
        storage = recovered(tmp_path)
        persist(storage, Write(HardState(1, 1, 0), None, [entry(1)]))
        modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
        storage.close()
    finally:
        os.umask(before)
    assert {FILE_NAME, JOURNAL} <= set(modes)
    assert set(modes.values()) == {0o600}


def test_path_with_signs(tmp_path: Path) -> None:
    """A directory may have any name, also one with signs that mean something in an address."""
    path = tmp_path / "a?mode=memory&b#c%20d"
    path.mkdir()
    database = written(path)
    storage = recovered(path)
    assert storage._log.runs.last_index == 40
    storage.close()
    assert database.exists()


@pytest.mark.parametrize(("is_synced", "level"), [(True, 2), (False, 0)])
def test_sync_level(tmp_path: Path, is_synced: bool, level: int) -> None:
    """A commit is synced (FULL), beside a write-ahead journal; at sync level ``os`` it is not, and
    the storage says that it is not durable."""
    home = replace(home_at(tmp_path), is_synced=is_synced)
    SQLITE.found(home)
    storage = SqliteStorage(home)
    storage.recover()
    assert storage._writer is not None
    assert storage._writer.execute("PRAGMA synchronous").fetchone() == (level,)
    assert storage._writer.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert storage.durable == is_synced
    storage.close()


@pytest.mark.parametrize("is_synced", [True, False])
def test_recovery_syncs_the_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_synced: bool
) -> None:
    """What an earlier run left unsynced in the database is synced before it is recovered, unless
    this run promises nothing either."""
    written(tmp_path)
    synced: list[bool] = []
    real = RealFiles.sync

    def sync(files: RealFiles, descriptor: int) -> None:
        synced.append(os.fstat(descriptor).st_ino == database.st_ino)
        real(files, descriptor)

    monkeypatch.setattr(RealFiles, "sync", sync)
    database = (tmp_path / FILE_NAME).stat()
    storage = SqliteStorage(replace(home_at(tmp_path), is_synced=is_synced))
    storage.recover()
    storage.close()
    assert synced == [True] * is_synced


def test_file_layer_refused() -> None:
    """It uses real files only, and whoever gives it others is told so at once."""
    home = StorageHome(ForgetfulFiles(), Path("/node"), "demo", 1, 7)
    for act in (SQLITE.found, SQLITE.open):
        with pytest.raises(AssertionError, match="itself"):
            act(home)


def test_memory_is_released(tmp_path: Path) -> None:
    """What was persisted is not kept in memory."""
    SQLITE.found(home_at(tmp_path))
    storage = recovered(tmp_path)
    for index in range(1, 20):
        persist(storage, Write(HardState(1, 1, 0), None, [entry(index), entry(index + 1)]))
    assert len(storage._log.read(1, 20, 1 << 20)) == 20
    assert not storage._log._held
    assert not storage._log._waiting
    storage.close()


# Founding


@pytest.mark.parametrize("suffix", ["", "-journal", "-wal"])
def test_interrupted_founding_is_replaced(tmp_path: Path, suffix: str) -> None:
    """What a founding left under its own name before it ended is replaced, journals as well."""
    leftover = tmp_path / f"{FILE_NAME}.tmp{suffix}"
    leftover.write_bytes(b"half of something")
    SQLITE.found(home_at(tmp_path))
    assert SQLITE.owns(leftover.name)
    assert [path.name for path in tmp_path.iterdir()] == [FILE_NAME]
    recovered(tmp_path).close()


@pytest.mark.parametrize("name", [FILE_NAME, JOURNAL])
def test_founding_over_anything_else_refused(tmp_path: Path, name: str) -> None:
    """A file under the log's name that no founding left is not touched: a database that cannot be
    read, and a journal whose database is gone."""
    (tmp_path / name).write_bytes(b"votes, perhaps")
    with pytest.raises(DirectoryError, match="is a log that was written to"):
        SQLITE.found(home_at(tmp_path))
    assert (tmp_path / name).read_bytes() == b"votes, perhaps"


def test_founding_sees_the_journal(tmp_path: Path) -> None:
    """A log of which everything is still in the journal was written to."""
    SQLITE.found(home_at(tmp_path))
    storage = recovered(tmp_path)
    persist(storage, Write(HardState(1, 1, 0), None, ()))
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in (FILE_NAME, JOURNAL):
        (copy / name).write_bytes((tmp_path / name).read_bytes())
    storage.close()
    with pytest.raises(DirectoryError, match="is a log that was written to"):
        SQLITE.found(home_at(copy))


# Damage


def test_missing_and_empty_refused(tmp_path: Path) -> None:
    """A missing database and an empty one are refused with a sentence each, and none is made."""
    database = written(tmp_path)
    database.write_bytes(b"")
    assert "is empty" in refused(tmp_path)
    database.unlink()
    assert "is missing" in refused(tmp_path)
    assert not database.exists()


def test_cut_and_foreign_files_refused(tmp_path: Path) -> None:
    """A database that lost its end, or its beginning, is damaged."""
    database = written(tmp_path)
    data = database.read_bytes()
    database.write_bytes(data[: len(data) // 2])
    assert "is damaged" in refused(tmp_path)
    database.write_bytes(bytes(len(data)))
    assert "is damaged" in refused(tmp_path)


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("DROP TABLE entries", "no such table: entries"),
        ("DELETE FROM meta", "does not say whose log it is"),
        ("UPDATE hard_state SET voted_for = 3", "the hard state is damaged"),
        ("UPDATE hard_state SET term = 'four'", "the hard state is damaged"),
        ("UPDATE base SET idx = 1", "the base is damaged"),
        ("UPDATE entries SET term = 2 WHERE idx = 7", "entry 7 is damaged"),
        ("UPDATE entries SET body = NULL WHERE idx = 40", "entry 40 is damaged"),
        ("UPDATE entries SET idx = 90 WHERE idx = 9", "entry 90 is damaged"),
    ],
)
def test_altered_rows_refused(tmp_path: Path, statement: str, words: str) -> None:
    """Every row is checked at recovery; SQLite itself would not notice a changed value."""
    alter(written(tmp_path), statement)
    assert words in refused(tmp_path)


def test_every_flipped_byte_of_a_body_is_noticed(tmp_path: Path) -> None:
    """A changed byte in the bytes of an entry is damage, wherever it is."""
    database = written(tmp_path)
    data = database.read_bytes()
    at = data.index(b"data" * 20)
    for offset in range(at, at + 80, 7):
        database.write_bytes(data[:offset] + b"\xff" + data[offset + 1 :])
        assert "is damaged" in refused(tmp_path)
    database.write_bytes(data)
    recovered(tmp_path).close()


def test_cut_off_entry_is_damage(tmp_path: Path) -> None:
    """An entry that a base has cut off must not be there again."""
    database = written(tmp_path)
    row = sqlite_log.entry_row(entry(2))
    connection = sqlite3.connect(database)
    with connection:
        connection.execute("INSERT INTO entries VALUES (?, ?, ?, ?, ?)", row)
    connection.close()
    assert "entry 2, which was cut off" in refused(tmp_path)


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        ("UPDATE entries SET body = zeroblob(30) WHERE idx = 9", "entry 9 is damaged"),
        ("DELETE FROM entries WHERE idx = 9", "entry 9 was there"),
    ],
)
def test_damage_after_recovery_is_noticed(tmp_path: Path, statement: str, words: str) -> None:
    """Each entry is checked again whenever it is read."""
    database = written(tmp_path)
    storage = recovered(tmp_path)
    assert len(storage._log.read(8, 10, 1 << 20)) == 3
    alter(database, statement)
    with pytest.raises(LogDamaged, match=words):
        storage._log.read(8, 10, 1 << 20)
    storage.close()


def test_later_version_refused(tmp_path: Path) -> None:
    """The log of a later release is no damage."""
    alter(written(tmp_path), "UPDATE meta SET format_version = 2")
    with pytest.raises(UnknownFormat, match="is a log of format version 2"):
        recovered(tmp_path)


def test_log_of_another_names_both(tmp_path: Path) -> None:
    """The refusal says whose log it is and who asked, and leaves nothing open."""
    written(tmp_path)
    with pytest.raises(DirectoryError, match=r"incarnation 77, of .* incarnation 78, of"):
        SqliteStorage(home_at(tmp_path, incarnation=78)).recover()
    assert [path.name for path in tmp_path.iterdir()] == [FILE_NAME]


# The disk


def full_storage(path: Path) -> tuple[SqliteStorage, object]:
    """A storage whose database may not grow, and the group that it refused for that."""
    written(path)
    storage = recovered(path)
    persist(storage, Write(None, None, [entry(41)]))
    set_pages_max(storage, None)
    group = storage.encode([Write(HardState(1, 9, 1), None, [entry(42, b"large" * 10_000)])])
    with pytest.raises(StorageFull, match=r"no room for group 2 of this run \(.*full"):
        storage.persist(group)
    assert storage.is_full
    return storage, group


def set_pages_max(storage: SqliteStorage, count: int | None) -> None:
    """Let the database have so many pages; ``None``: as many as it has."""
    assert storage._writer is not None
    (pages,) = storage._writer.execute("PRAGMA page_count").fetchone()
    storage._writer.execute(f"PRAGMA max_page_count = {count or pages}")


def test_full_disk_refuses_and_goes_on(tmp_path: Path) -> None:
    """A group that finds no room is taken back as a whole and persisted again when there is some,
    with the groups behind it; what was encoded can be read all the time."""
    storage, group = full_storage(tmp_path)
    behind = storage.encode([Write(None, None, [entry(43)])])
    assert [each.index for each in storage._log.read(40, 43, 1 << 20)] == [40, 41, 42, 43]
    with pytest.raises(StorageFull):
        storage.persist(group)
    with pytest.raises(AssertionError, match="in the order"):
        storage.persist(behind)
    set_pages_max(storage, 1_000_000)
    storage.make_room()
    assert not storage.is_full
    storage.persist(group)
    storage.persist(behind)
    storage.close()
    storage = SqliteStorage(home_at(tmp_path))
    found = storage.recover()
    assert found.hard_state == HardState(1, 9, 1)
    assert found.log.runs.last_index == 43
    storage.close()


def test_full_disk_refused_group_not_found(tmp_path: Path) -> None:
    """Of a group that was refused the next run finds nothing, and everything before it."""
    storage, _ = full_storage(tmp_path)
    storage.close()
    storage = SqliteStorage(home_at(tmp_path))
    found = storage.recover()
    assert not storage.is_full
    assert found.hard_state == HardState(1, 4, 2, 3)
    assert found.log.runs.last_index == 41
    storage.close()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_full_disk_make_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Room is looked for with a file that is removed again; that there is none is no error, and
    another failure poisons."""
    storage, group = full_storage(tmp_path)
    before = sorted(path.name for path in tmp_path.iterdir())

    def fail(files: RealFiles, descriptor: int, offset: int, size_bytes: int) -> None:
        assert size_bytes > ROOM_BYTES + 2 * 50_000
        raise OSError(number, "refused")

    monkeypatch.setattr(RealFiles, "preallocate", fail)
    if number == errno.EIO:
        with pytest.raises(StorageFailed, match="refused"):
            storage.make_room()
        with pytest.raises(StorageFailed, match="refused"):
            storage.persist(group)
    else:
        storage.make_room()
        assert storage.is_full
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    storage.close()


def test_other_program_in_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that writes into the database stops the node, with a sentence."""
    monkeypatch.setattr(sqlite_log, "BUSY_SECONDS", 0.05)
    database = written(tmp_path)
    storage = recovered(tmp_path)
    other = sqlite3.connect(database, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StorageFailed, match="database is locked"):
        persist(storage, Write(HardState(1, 5, 0), None, ()))
    storage.close()
    with pytest.raises(StorageFailed, match=r"in use by another program|database is locked"):
        recovered(tmp_path)
    other.close()
    recovered(tmp_path).close()


# The end

CHILD = """
import sys
from pathlib import Path
from replog.storage.files import RealFiles
from replog.storage.plugin import StorageHome
from replog.storage.protocol import Write
from replog.storage.sqlite import SqliteStorage
from replog.types import Entry, EntryKind, HardState, entry_body

storage = SqliteStorage(StorageHome(RealFiles(), Path(sys.argv[1]), "demo", 1, 77))
number = storage.recover().log.runs.last_index
while True:
    number += 1
    body = entry_body(EntryKind.COMMAND, 1, number, number, b"%d" % number * 2000)
    entry = Entry(1, number, number, body)
    halves = [Write(None, None, [entry]), Write(HardState(1, number, 0), None, ())]
    storage.persist(storage.encode(halves))
    print(number, flush=True)
"""


def killed_at(path: Path, count: int) -> int:
    """Kill a process that persists numbered groups after it acknowledged some more; the last one
    that it acknowledged."""
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    with child.stdout:
        for _ in range(count):
            assert child.stdout.readline(), "it ended by itself"
        child.kill()
        rest = child.stdout.read().splitlines(keepends=True)
    child.wait(10)
    whole = [line for line in rest if line.endswith("\n")]
    return int(whole[-1]) if whole else 0


def test_kill_keeps_what_was_acknowledged(tmp_path: Path) -> None:
    """A process that is killed while it persists leaves every group that it acknowledged, and at
    most one more, which is whole; and recovery leaves nothing of it in the journal."""
    SQLITE.found(home_at(tmp_path))
    killed_before = 0
    for count in (1, 40, 400):
        acknowledged = killed_at(tmp_path, count)
        storage = SqliteStorage(home_at(tmp_path))
        found = storage.recover()
        assert (tmp_path / JOURNAL).stat().st_size == 0
        last = found.log.runs.last_index
        assert found.hard_state == HardState(1, last, 0)
        assert [each.term for each in all_entries(found.log)] == list(range(1, last + 1))
        storage.close()
        assert last >= killed_before + count
        assert not acknowledged or acknowledged <= last <= acknowledged + 1
        killed_before = last
