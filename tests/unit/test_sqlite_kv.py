"""The key-value store on its own disk: the answers of ``kv``, and files that hold what they say."""

from __future__ import annotations

import random
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from replog.chunks import pack_chunks
from replog.errors import (
    MachineDamaged,
    SnapshotDamaged,
    StateMachineError,
    StorageFailed,
    UnknownFormat,
)
from replog.limits import MIB
from replog.machine import (
    ApplyContext,
    Machine,
    MachineKind,
    Opened,
    answer_keeper,
    machine_kind,
)
from replog.statemachine import command
from replog.testing import check_machine
from replog_bench.memory import MemoryMark
from replog_kv import Kv
from replog_sqlite_kv import KvError, SqliteKv, database
from replog_sqlite_kv.database import BATCH_COMMANDS_MAX, FORGOTTEN_ROWS_MAX, SNAPSHOT_FORM

FIRST = "items-00000001.sqlite3"
SECOND = "items-00000002.sqlite3"


@pytest.fixture
def kv(tmp_path: Path) -> Iterator[SqliteKv]:
    machine = SqliteKv()
    machine.open(tmp_path / "kv")
    yield machine
    machine.close()


def opened(directory: Path) -> tuple[SqliteKv, Opened]:
    machine = SqliteKv()
    return machine, machine.open(directory)


def killed(directory: Path, to: Path) -> Path:
    """The files as a killed process leaves them, in another place."""
    shutil.copytree(directory, to)
    return to


def fill(machine: Machine, first: int, last: int) -> None:
    for index in range(first, last + 1):
        payload = SqliteKv.put.encode(f"key-{index * 7919 % 10007:05d}", b"v%d" % index)
        machine.apply(ApplyContext(index, 1000 + index), payload)


def payloads(seed: int, count: int) -> list[bytes]:
    """Every command and query, hostile keys and limits among them."""
    dice = random.Random(seed)
    keys = ["", "k" * 1025, "a\0b", "a", "é", "\U0001f600", *(f"key-{n}" for n in range(30))]
    made: list[bytes] = []
    for _ in range(count):
        key, end = dice.choice(keys), dice.choice([None, *keys])
        old, new = (dice.choice((None, b"", b"a")) for _ in range(2))
        made.append(
            dice.choice(
                (
                    Kv.put.encode(key, dice.choice((b"", b"a", b"x" * 300_000))),
                    Kv.get.encode(key),
                    Kv.delete.encode(key),
                    Kv.compare_and_set.encode(key, old, new),
                    Kv.range.encode(key, end, dice.randrange(-1, 9)),
                )
            )
        )
    return made


def outcome(machine: Machine, index: int, payload: bytes) -> object:
    try:
        return machine.apply(ApplyContext(index, index), payload)
    except StateMachineError as error:
        return str(error)


def test_answers_as_kv(kv: SqliteKv) -> None:
    """Commands, queries, errors and dumps are those of the store in memory."""
    twin = Kv()
    for index, payload in enumerate(payloads(1, 500), 1):
        assert outcome(kv, index, payload) == outcome(twin, index, payload)
    for cursor in (b"", b"a", b"a\0", b"key-2", "é".encode()):
        for items_max in (1, 3, 1000):
            assert kv.dump(cursor, items_max) == twin.dump(cursor, items_max)
    # A cursor may come from anybody.
    assert kv.dump(b"\xff", 1).items == []
    assert kv.dump(b"key-\x80", 1).items == [kv.dump("\x80".encode(), 1).items[0]]


def test_machine_passes_check(tmp_path: Path) -> None:
    """The store keeps the rules of a durable machine, over restarts, kills and restores."""
    assert machine_kind(SqliteKv()) is MachineKind.DURABLE
    small = [payload for payload in payloads(2, 700) if len(payload) < 2000]
    assert len(small) > 2 * BATCH_COMMANDS_MAX
    check_machine(SqliteKv, small, tmp_path, cuts_max=5)


def test_large_value_refused(kv: SqliteKv, monkeypatch: pytest.MonkeyPatch) -> None:
    """A value beyond the limit is a declared error, in both commands that take one."""
    monkeypatch.setattr("replog_sqlite_kv.machine.VALUE_BYTES_MAX", 3)
    with pytest.raises(KvError, match="at most 3 bytes, not 4"):
        kv.put("k", b"1234")
    with pytest.raises(KvError, match="at most 3 bytes, not 4"):
        kv.compare_and_set("k", None, b"1234")


def test_kill_loses_the_batch_only(kv: SqliteKv, tmp_path: Path) -> None:
    """A killed process leaves the last full batch, under its index and time."""
    fill(kv, 1, BATCH_COMMANDS_MAX + 10)
    machine, found = opened(killed(tmp_path / "kv", tmp_path / "a"))
    assert found == Opened(BATCH_COMMANDS_MAX, 1000 + BATCH_COMMANDS_MAX)
    assert len(machine.dump(b"", 1000).items) == BATCH_COMMANDS_MAX
    fill(machine, found.applied_index + 1, BATCH_COMMANDS_MAX + 10)
    assert machine.dump(b"", 1000) == kv.dump(b"", 1000)
    machine.close()


@pytest.mark.parametrize("how", ["commit", "freeze", "close", "bytes"])
def test_batch_committed(kv: SqliteKv, tmp_path: Path, how: str) -> None:
    """A batch ends when it is asked to, frozen, closed, or a MiB long."""
    fill(kv, 1, 3)
    if how == "bytes":
        kv.apply(ApplyContext(4, 1004), SqliteKv.put.encode("big", bytes(1 << 20)))
    else:
        {"commit": kv.commit, "freeze": kv.freeze, "close": kv.close}[how]()
    machine, found = opened(killed(tmp_path / "kv", tmp_path / "a"))
    last = 4 if how == "bytes" else 3
    assert found == Opened(last, 1000 + last)
    machine.close()


# -- answers --


def answered(kv: SqliteKv, first: int, last: int) -> None:
    """Apply commands in a session, each with its answer."""
    for index in range(first, last + 1):
        payload = SqliteKv.put.encode(f"key-{index:05d}", b"v%d" % index)
        kv.apply(ApplyContext(index, 1000 + index, in_session=True), payload)
        kv.keep_answer(index, b"answer %d" % index)


def kept(kv: SqliteKv, first: int, last: int) -> list[int]:
    """Which commands have an answer, each its own."""
    found = {index: kv.kept_answer(index) for index in range(first, last + 1)}
    assert all(answer in (None, b"answer %d" % index) for index, answer in found.items())
    return [index for index, answer in found.items() if answer is not None]


@pytest.mark.parametrize("count", [BATCH_COMMANDS_MAX - 1, BATCH_COMMANDS_MAX, 700])
def test_kill_leaves_answers_with_their_commands(kv: SqliteKv, tmp_path: Path, count: int) -> None:
    """After a kill every command that is reported has its answer, and no other one has."""
    assert answer_keeper(kv) is kv
    answered(kv, 1, count)
    assert kept(kv, 1, count) == [*range(1, count + 1)]
    machine, found = opened(killed(tmp_path / "kv", tmp_path / "a"))
    assert found.applied_index == count // BATCH_COMMANDS_MAX * BATCH_COMMANDS_MAX
    assert kept(machine, 1, count) == [*range(1, found.applied_index + 1)]
    machine.close()


def test_kill_between_command_and_answer(kv: SqliteKv, tmp_path: Path) -> None:
    """The last command of a full batch is not committed before its answer has come; and where that
    never comes, as after a crash, not by closing either."""
    answered(kv, 1, BATCH_COMMANDS_MAX - 1)
    last = BATCH_COMMANDS_MAX
    context = ApplyContext(last, 1000 + last, in_session=True)
    kv.apply(context, SqliteKv.put.encode("last", bytes(MIB)))
    machine, found = opened(killed(tmp_path / "kv", tmp_path / "a"))
    assert found.applied_index == 0
    machine.close()
    with pytest.raises(AssertionError, match="and its answer are one"):
        kv.freeze()
    kv.close()
    machine, found = opened(tmp_path / "kv")
    assert found.applied_index == 0
    assert machine.dump(b"", 9).items == []
    machine.close()


def test_answer_of_another_command_refused(kv: SqliteKv) -> None:
    """An answer that is not that of the last command is a mistake of the caller's."""
    answered(kv, 1, 2)
    with pytest.raises(AssertionError, match="another command"):
        kv.keep_answer(1, b"late")


def test_large_answer_ends_batch(kv: SqliteKv, tmp_path: Path) -> None:
    """The bytes of answers count for the length of a batch."""
    kv.apply(ApplyContext(1, 1, in_session=True), SqliteKv.put.encode("k", b""))
    kv.keep_answer(1, bytes(MIB))
    machine, found = opened(killed(tmp_path / "kv", tmp_path / "a"))
    assert found == Opened(1, 1)
    assert machine.kept_answer(1) == bytes(MIB)
    machine.close()


def test_forgotten_answers_go_little_by_little(kv: SqliteKv, tmp_path: Path) -> None:
    """What a snapshot holds goes with the transactions that follow, in order and bounded in each;
    what came behind it stays."""
    count = 3 * FORGOTTEN_ROWS_MAX
    answered(kv, 1, count)
    kv.commit()
    kv.forget_answers(count - 10)
    kv.forget_answers(7)
    assert len(kept(kv, 1, count)) == count
    left = []
    for index in range(count + 1, count + 5):
        fill(kv, index, index)
        kv.commit()
        left.append(kept(kv, 1, count))
    assert [numbers[0] for numbers in left] == [
        FORGOTTEN_ROWS_MAX + 1,
        2 * FORGOTTEN_ROWS_MAX + 1,
        count - 9,
        count - 9,
    ]
    kv.close()
    machine, _ = opened(tmp_path / "kv")
    assert kept(machine, 1, count) == [*range(count - 9, count + 1)]
    machine.close()


def test_answers_in_no_snapshot(kv: SqliteKv) -> None:
    """A snapshot is the same with and without answers, and whoever is filled from one has none."""
    answered(kv, 1, 20)
    chunks = list(kv.freeze())
    kv.forget_answers(20)
    answered(kv, 21, 30)
    kv.restore(chunks, 20, 1020)
    assert kept(kv, 1, 30) == []
    assert list(kv.freeze()) == chunks
    answered(kv, 21, 25)
    kv.commit()
    assert kept(kv, 1, 30) == [21, 22, 23, 24, 25]


def test_database_of_version_1_opens(kv: SqliteKv, tmp_path: Path) -> None:
    """A database of an earlier release gets a table of answers, once, and keeps what it holds."""
    fill(kv, 1, 3)
    kv.close()
    connection = sqlite3.connect(tmp_path / "kv" / FIRST)
    connection.executescript("DROP TABLE answers; PRAGMA user_version = 1;")
    connection.close()
    for first in (4, 6):
        machine, found = opened(tmp_path / "kv")
        assert found.applied_index == first - 1
        assert kept(machine, 1, 9) == [*range(4, first)]
        answered(machine, first, first + 1)
        machine.close()


@pytest.mark.parametrize("payload", [SqliteKv.put.encode("", b""), SqliteKv.get.encode("k")])
def test_index_counts_every_command(kv: SqliteKv, tmp_path: Path, payload: bytes) -> None:
    """A declared error and a query move the index too, so they are not offered again."""
    fill(kv, 1, 1)
    outcome(kv, 5, payload)
    kv.close()
    machine, found = opened(tmp_path / "kv")
    assert found == Opened(5, 5)
    with pytest.raises(AssertionError, match="twice"):
        fill(machine, 5, 5)
    machine.close()


def test_broken_off_command_poisons(tmp_path: Path) -> None:
    """What a command changed before an error that it did not declare is never committed."""

    class Hasty(SqliteKv):
        @command
        def half(self) -> None:
            self.put("half", b"")
            raise RuntimeError("and then")

    machine = Hasty()
    machine.open(tmp_path / "kv")
    fill(machine, 1, 2)
    with pytest.raises(RuntimeError):
        machine.apply(ApplyContext(3, 3), Hasty.half.encode())
    with pytest.raises(StorageFailed, match="command 3 failed"):
        fill(machine, 4, 4)
    machine.close()
    after, found = opened(tmp_path / "kv")
    assert found.applied_index == 0
    assert after.dump(b"", 9).items == []
    after.close()


def test_failed_command_poisons(kv: SqliteKv, tmp_path: Path) -> None:
    """Behind a command that broke off nothing is committed, not even by closing."""
    fill(kv, 1, 2)
    kv.commit()
    fill(kv, 3, 3)
    assert kv._database is not None
    assert kv._database._connection is not None
    kv._database._connection.execute("DROP TABLE items")
    with pytest.raises(MachineDamaged, match=r"no such table.*remove the whole directory"):
        fill(kv, 4, 4)
    with pytest.raises(StorageFailed, match="start the node again"):
        fill(kv, 5, 5)
    with pytest.raises(StorageFailed):
        kv.freeze()
    kv.close()
    machine, found = opened(tmp_path / "kv")
    assert found.applied_index == 2
    machine.close()


def test_frozen_view_stands_still(kv: SqliteKv) -> None:
    """A view shows no later command, and no restore, and outlives the closing."""
    fill(kv, 1, 2000)
    frozen, dropped = kv.freeze(), kv.freeze()
    expected = b"".join(kv.freeze())
    del dropped
    fill(kv, 2001, 4000)
    parts = iter(frozen)
    early = next(parts)
    kv.restore(kv.freeze(), 5000, 5000)
    kv.close()
    assert early + b"".join(parts) == expected


def test_restore_replaces_the_file(kv: SqliteKv, tmp_path: Path) -> None:
    """A restored store is a new file of the next number; the old one is gone, the batch too."""
    fill(kv, 1, 10)
    chunks = list(kv.freeze())
    fill(kv, 11, 20)
    kv.restore(iter(chunks), 10, 1010)
    assert sorted(path.name for path in (tmp_path / "kv").iterdir())[0] == SECOND
    assert not (tmp_path / "kv" / FIRST).exists()
    machine, found = opened(killed(tmp_path / "kv", tmp_path / "a"))
    assert found == Opened(10, 1010)
    assert len(machine.dump(b"", 100).items) == 10
    machine.close()
    fill(kv, 11, 20)
    assert len(kv.dump(b"", 100).items) == 20


def test_damaged_snapshot_changes_nothing(kv: SqliteKv, tmp_path: Path) -> None:
    """A snapshot that is not whole is refused, and the store goes on with what it had."""
    fill(kv, 1, 3000)
    chunks = list(kv.freeze())
    item = b"\0\x01\0\0\0\0" + bytes(8) + b"k"
    bad = [chunks[:-1], [], list(pack_chunks(SNAPSHOT_FORM, [item, item]))]
    bad += [list(pack_chunks(SNAPSHOT_FORM, [odd])) for odd in (b"\0", item[:-1], item + b"\0")]
    bad.append(list(pack_chunks(SNAPSHOT_FORM, [b"\0\x01\0\0\0\0" + b"\xff" * 8 + b"k"])))
    for broken in bad:
        with pytest.raises(SnapshotDamaged):
            kv.restore(broken, 1, 1)
    with pytest.raises(UnknownFormat):
        kv.restore(pack_chunks("kv 1", []), 1, 1)
    assert not list((tmp_path / "kv").glob("*.tmp*"))
    fill(kv, 3001, 3010)
    kv.close()
    machine, found = opened(tmp_path / "kv")
    assert found.applied_index == 3010
    machine.close()


def test_crash_in_restore_leaves_old_or_new(kv: SqliteKv, tmp_path: Path) -> None:
    """Whichever step of a restore is the last one before a kill, the old state opens or the new."""
    fill(kv, 1, 20)
    chunks = list(kv.freeze())
    kv.close()
    steps = ("create", "open", "sync", "rename", "sync_directory", "remove", "names")
    found_indexes = []
    for step in steps:
        place = killed(tmp_path / "kv", tmp_path / step)
        machine, _ = opened(place)

        def stop(*_: object) -> None:
            raise KeyboardInterrupt

        assert machine._database is not None
        setattr(machine._database._files, step, stop)
        with pytest.raises(KeyboardInterrupt):
            machine.restore(chunks, 99, 99)
        after, found = opened(killed(place, tmp_path / f"{step}-after"))
        assert found in (Opened(20, 1020), Opened(99, 99))
        assert len(after.dump(b"", 100).items) == 20
        assert len(list((tmp_path / f"{step}-after").glob("*.sqlite3"))) == 1
        found_indexes.append(found.applied_index)
        after.close()
        machine.close()
    assert set(found_indexes) == {20, 99}


def test_names_synced_before_removal(
    kv: SqliteKv, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An old database is removed only when the one in its place has a durable name and content."""
    steps: list[tuple[str, str]] = []

    class Watched(database.RealFiles):
        def sync(self, descriptor: int) -> None:
            steps.append(("sync", ""))
            super().sync(descriptor)

        def rename(self, old: Path, new: Path) -> None:
            steps.append(("rename", new.name))
            super().rename(old, new)

        def sync_directory(self, path: Path) -> None:
            steps.append(("sync_directory", path.name))
            super().sync_directory(path)

        def remove(self, path: Path) -> None:
            steps.append(("remove", path.name))
            super().remove(path)

    monkeypatch.setattr(database, "RealFiles", Watched)
    fill(kv, 1, 3)
    chunks = list(kv.freeze())
    kv.close()
    machine, _ = opened(tmp_path / "kv")
    assert steps == [("sync_directory", "kv")]
    steps.clear()
    machine.restore(chunks, 9, 9)
    machine.close()
    replaced = [("sync", ""), ("rename", SECOND), ("sync_directory", "kv"), ("remove", FIRST)]
    assert steps == replaced
    # As a crash before the removal leaves it.
    shutil.copy(tmp_path / "kv" / SECOND, tmp_path / "kv" / FIRST)
    steps.clear()
    machine, found = opened(tmp_path / "kv")
    assert found == Opened(9, 9)
    assert steps == [("sync_directory", "kv"), ("remove", FIRST)]
    machine.close()


def test_opened_is_durable(kv: SqliteKv, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is reported stands in the synced database itself, not in a journal."""
    fill(kv, 1, BATCH_COMMANDS_MAX)
    place = killed(tmp_path / "kv", tmp_path / "a")
    assert (place / f"{FIRST}-wal").stat().st_size > 0
    machine, found = opened(place)
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(place / FIRST, alone)
    machine.close()
    machine, again = opened(alone)
    assert again == found == Opened(BATCH_COMMANDS_MAX, 1000 + BATCH_COMMANDS_MAX)
    machine.close()


@pytest.mark.parametrize(
    ("statement", "error", "sentence"),
    [
        ("PRAGMA user_version = 9", UnknownFormat, "format version 9"),
        ("PRAGMA user_version = 0", MachineDamaged, "does not say up to which index"),
        ("DELETE FROM applied", MachineDamaged, "does not say up to which index"),
        ("UPDATE applied SET idx = -1", MachineDamaged, "does not say up to which index"),
        ("DROP TABLE applied", MachineDamaged, "no such table"),
    ],
)
def test_strange_database_refused(
    kv: SqliteKv, tmp_path: Path, statement: str, error: type[Exception], sentence: str
) -> None:
    """A database that does not say what it holds is refused with a sentence."""
    kv.close()
    connection = sqlite3.connect(tmp_path / "kv" / FIRST)
    connection.execute(statement)
    connection.commit()
    connection.close()
    with pytest.raises(error, match=sentence):
        opened(tmp_path / "kv")


def test_damaged_file_refused(tmp_path: Path) -> None:
    """A file that is no database is refused with the remedy; one that cannot be made, too."""
    (tmp_path / "kv").mkdir()
    (tmp_path / "kv" / FIRST).write_bytes(b"not a database " * 1000)
    with pytest.raises(MachineDamaged, match="remove the whole directory"):
        opened(tmp_path / "kv")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StorageFailed, match="cannot be written"):
        opened(tmp_path / "file" / "below")


def test_files_private(kv: SqliteKv, tmp_path: Path) -> None:
    """The directory and every file in it are for this user alone."""
    fill(kv, 1, 300)
    assert (tmp_path / "kv").stat().st_mode & 0o777 == 0o700
    for path in (tmp_path / "kv").iterdir():
        assert path.stat().st_mode & 0o777 == 0o600, path


def test_memory_constant(kv: SqliteKv, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither freeze nor restore holds more than a few chunks at a time."""
    value = bytes(100_000)
    for index in range(1, 121):
        kv.apply(ApplyContext(index, index), SqliteKv.put.encode(f"k{index}", value))
    frozen = iter(kv.freeze())
    assert max(map(len, frozen)) < database.CHUNK_BYTES + 2 * len(value)
    handed_out = 0

    def counted() -> Iterator[bytes]:
        nonlocal handed_out
        for chunk in kv.freeze():
            handed_out += 1
            yield chunk

    # By the time of a row, no more is taken than what is before it.
    taken = [handed_out for _ in database._unpack_rows(counted())]
    assert taken[0] <= 3
    assert taken[60] < 30


def test_pass_memory_resident(tmp_path: Path) -> None:
    """To take a snapshot and to restore it makes SQLite hold little, however much there is."""
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("the system does not tell a peak of memory")
    count, value = 160, bytes(256 * 1024)
    source, _ = opened(tmp_path / "source")
    for index in range(1, count + 1):
        source.apply(ApplyContext(index, index), SqliteKv.put.encode(f"key-{index:05d}", value))
    chunks = iter(source.freeze())
    machine, _ = opened(tmp_path / "kv")
    mark = MemoryMark()
    machine.restore(chunks, count, count)
    grown_bytes = mark.grown_bytes
    source.close()
    assert machine.range("", None, count)["items"]
    machine.close()
    assert grown_bytes < 12 * MIB < count * len(value)
