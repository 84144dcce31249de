"""A full disk under the write-ahead log: what is refused, what goes on, and what comes again.

What every storage promises of it is in ``test_storages.py``.
"""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from replog.errors import StorageFailed, StorageFull
from replog.storage.files import NO_ROOM, RealFiles, temporary_path
from replog.storage.hard_state import FILE_NAME as SECOND_COPY_NAME
from replog.storage.plugin import StorageHome
from replog.storage.protocol import Write
from replog.storage.recovery import TAIL_BYTES
from replog.storage.segment import segment_name
from replog.storage.wal import WAL, Group, Wal, found_log
from replog.stored_log import all_entries
from replog.testing.files import Crashed, ForgetfulFiles, KeepEverything, KeepNothing, KeepSectors
from replog.types import Entry, EntryId, EntryKind, HardState, entry_body

NODE = Path("/node")
SEGMENT_BYTES = 16_384
EXTEND_BYTES = 8192
RESERVE_BYTES = 2048
KEEPS = [KeepNothing(), KeepEverything(), KeepSectors(3)]


def entry(index: int, size_bytes: int = 100) -> Entry:
    """An entry whose data has ``size_bytes`` bytes."""
    data = bytes([index % 255 + 1]) * size_bytes
    return Entry(1, index, 1, entry_body(EntryKind.COMMAND, 1, 1, index, data))


def founded(write_bytes_max: int | None = None) -> ForgetfulFiles:
    """Files with an empty log, on a disk of any size."""
    files = ForgetfulFiles(write_bytes_max)
    files.make_directory(NODE)
    files.sync_directory(NODE.parent)
    found_log(home_on(files))
    files.sync_directory(NODE)
    return files


def home_on(files: ForgetfulFiles) -> StorageHome:
    """Where the log is."""
    return StorageHome(files, NODE, "demo", 1, 7)


def opened(files: ForgetfulFiles, is_synced: bool = True) -> Wal:
    """The log, recovered."""
    home = replace(home_on(files), is_synced=is_synced)
    wal = Wal(home, SEGMENT_BYTES, EXTEND_BYTES, RESERVE_BYTES)
    wal.recover()
    return wal


def put(index: int, size_bytes: int = 100) -> Write:
    """Put one entry."""
    return Write(None, None, [entry(index, size_bytes)])


def vote(term: int) -> Write:
    """Vote in a term."""
    return Write(HardState(1, term, 2), None, ())


def persist(wal: Wal, *writes: Write) -> None:
    """Make one group durable."""
    wal.persist(wal.encode(writes))


def found(files: ForgetfulFiles) -> tuple[int, list[int]]:
    """The term and the indexes that a recovery finds."""
    wal = Wal(home_on(files), SEGMENT_BYTES, EXTEND_BYTES, RESERVE_BYTES)
    recovered = wal.recover()
    wal.close()
    state = recovered.hard_state
    return (state.term if state else 0), [each.index for each in all_entries(recovered.log)]


def set_room(files: ForgetfulFiles, room_bytes: int) -> None:
    """Let there be so much room on the disk."""
    files.capacity_bytes = files.used_bytes + room_bytes


def names(files: ForgetfulFiles) -> list[str]:
    """The segments, and what is to become one."""
    return [name for name in files.names(NODE) if name.startswith("log-")]


def filled(files: ForgetfulFiles, wal: Wal, size_bytes: int = 100) -> int:
    """Persist entries until the log is full; the index of the last one."""
    index = 0
    while not wal.is_full:
        index += 1
        assert index < 1000
        persist(wal, put(index, size_bytes))
    return index


# The disk of these tests


def test_capacity_kept() -> None:
    """A write takes what fits, the next one and a preallocation fail, and what is removed and no
    longer open frees its room."""
    files = ForgetfulFiles(capacity_bytes=1000)
    ballast, path = Path("/ballast"), Path("/file")
    held = files.create(ballast)
    files.preallocate(held, 0, 900)
    file = files.create(path)
    with pytest.raises(OSError, match="ENOSPC"):
        files.preallocate(file, 0, 101)
    assert (files.used_bytes, files.read(path)) == (900, b"")
    assert files.write(file, b"x" * 150, 0) == 100
    assert files.write(file, b"y" * 60, 50) == 50
    with pytest.raises(OSError, match="ENOSPC"):
        files.write(file, b"x", 100)
    assert files.write(file, b"z" * 100, 0) == 100, "to overwrite needs no room"
    files.remove(ballast)
    with pytest.raises(OSError, match="ENOSPC"):
        files.write(file, b"x", 100)
    files.close(held)
    assert files.write(file, b"x" * 1000, 100) == 900


# Becoming full


def test_full_before_room_is_needed() -> None:
    """The log is full while the reserve is still there; nothing is refused, and everything is
    durable."""
    files = founded()
    wal = opened(files)
    persist(wal, vote(1))
    set_room(files, EXTEND_BYTES)
    last = filled(files, wal)
    left = len(files.read(wal.path)) - wal.end
    assert RESERVE_BYTES - 200 < left < RESERVE_BYTES + TAIL_BYTES
    files.crash(KeepNothing())
    assert found(files) == (1, list(range(1, last + 1)))


@pytest.mark.parametrize("number", sorted(NO_ROOM))
def test_full_whatever_the_reason(number: int) -> None:
    """A full disk, a used-up quota and a limit on the size of files are alike."""
    files = founded()
    wal = opened(files)
    files.fault = failing("preallocate", number)
    persist(wal, put(1, 2000))
    assert wal.is_full
    files.fault = None
    wal.make_room()
    assert not wal.is_full


def failing(name: str, number: int, first: int = 1) -> Callable[[int, str, Path], None]:
    """A fault at every operation of a name, from the ``first`` one on."""
    seen = 0

    def fail(_: int, operation: str, path: Path) -> None:
        nonlocal seen
        seen += operation == name
        if operation == name and seen >= first:
            raise OSError(number, errno.errorcode[number], str(path))

    return fail


def test_full_reserve_serves_groups_on_their_way() -> None:
    """Groups with entries that were encoded before the log became full are persisted in the
    reserve, also by short writes."""
    files = founded(write_bytes_max=50)
    wal = opened(files)
    persist(wal, vote(1))
    set_room(files, 0)
    groups = [wal.encode([put(index)]) for index in range(1, 12)]
    assert not wal.is_full
    for group in groups:
        wal.persist(group)
    assert wal.is_full
    files.crash(KeepNothing())
    assert found(files) == (1, list(range(1, 12)))


def test_full_votes_go_on() -> None:
    """Hundreds of votes are durable on a full disk, and their second copy takes no room."""
    files = founded()
    wal = opened(files)
    last = 0
    set_room(files, EXTEND_BYTES)
    last = filled(files, wal)
    set_room(files, 0)
    before = files.used_bytes
    for term in range(1, 30):
        persist(wal, vote(term))
    assert files.used_bytes == before
    assert len(files.read(NODE / SECOND_COPY_NAME)) == 1024
    assert wal.is_full
    files.crash(KeepNothing())
    assert found(files) == (29, list(range(1, last + 1)))
    wal = opened(files)
    persist(wal, vote(30))
    files.crash(KeepNothing())
    assert found(files)[0] == 30


def test_full_votes_take_what_is_left() -> None:
    """When the reserve is used up, votes take what room the disk still has, in small pieces; when
    there is none, one is refused, and written later."""
    files = founded()
    wal = opened(files)
    set_room(files, EXTEND_BYTES)
    filled(files, wal)
    set_room(files, EXTEND_BYTES - 1)
    before = files.used_bytes
    term = 0
    with pytest.raises(StorageFull, match=r"cannot grow, for the disk has no room"):
        while True:
            term += 1
            assert term < 1000
            group = wal.encode([vote(term)])
            wal.persist(group)
    assert files.used_bytes > before
    files.capacity_bytes = None
    wal.make_room()
    wal.persist(group)
    files.crash(KeepNothing())
    assert found(files)[0] == term


# Changing the segment


def test_full_segment_made_ahead() -> None:
    """The file of the next segment is made before the segment is full, so the group that opens it
    needs no room any more."""
    files = founded()
    wal = opened(files)
    index = 0
    while not any(name.endswith(".tmp") for name in names(files)):
        index += 1
        assert index < 100
        persist(wal, put(index))
    assert SEGMENT_BYTES - RESERVE_BYTES - 1000 < wal.end < SEGMENT_BYTES - RESERVE_BYTES
    assert all(WAL.owns(name) for name in names(files))
    set_room(files, 0)
    while segment_name(2) not in files.names(NODE):
        index += 1
        assert index < 200
        persist(wal, put(index))
    assert not wal.is_full
    files.crash(KeepNothing())
    assert found(files)[1] == list(range(1, index + 1))


def test_full_next_segment_refused() -> None:
    """If the next segment cannot be made, its half-made file is removed, the old segment goes on,
    and the group that opens the new one is refused before a byte of it is written; later it is
    persisted as it is, with the groups behind it."""
    files = founded()
    wal = opened(files)
    index = 0
    while wal.end < SEGMENT_BYTES - RESERVE_BYTES - 1000:
        index += 1
        persist(wal, put(index))
    set_room(files, 3000)
    while not wal.is_full:
        index += 1
        persist(wal, put(index))
    assert names(files) == [segment_name(1)]
    large = wal.encode([put(index + 1, 3000)])
    behind = wal.encode([vote(5)])
    assert large.opening
    data = files.read(NODE / segment_name(1))
    for room_bytes in (0, 3000):
        set_room(files, room_bytes)
        with pytest.raises(StorageFull, match=r"log-0000000000000002\.seg cannot grow"):
            wal.persist(large)
        wal.make_room()
        assert wal.is_full
    assert names(files) == [segment_name(1)]
    assert files.read(NODE / segment_name(1)) == data
    set_room(files, 4 * EXTEND_BYTES)
    wal.make_room()
    assert not wal.is_full
    wal.persist(large)
    wal.persist(behind)
    assert names(files) == [segment_name(1), segment_name(2)]
    files.crash(KeepNothing())
    assert found(files) == (5, list(range(1, index + 2)))


def test_full_next_segment_made_for_its_group() -> None:
    """Room for a group that opens a segment is sought in that segment, not in the full one."""
    files = founded()
    wal = opened(files)
    persist(wal, vote(1))
    persist(wal, put(1))
    set_room(files, 0)
    large = wal.encode([put(2, 3 * EXTEND_BYTES)])
    with pytest.raises(StorageFull):
        wal.persist(large)
    size_bytes = len(files.read(NODE / segment_name(1)))
    set_room(files, 5 * EXTEND_BYTES)
    wal.make_room()
    assert not wal.is_full
    assert len(files.read(NODE / segment_name(1))) == size_bytes
    set_room(files, 0)
    wal.persist(large)
    files.crash(KeepNothing())
    assert found(files) == (1, [1, 2])


def test_full_behind_the_opening() -> None:
    """A segment that was made and has no room for the group that opens it is not made again."""
    files = founded()
    wal = opened(files)
    persist(wal, vote(1))
    persist(wal, put(1))
    set_room(files, EXTEND_BYTES + 100)
    large = wal.encode([put(2, 3 * EXTEND_BYTES)])
    behind = wal.encode([put(3)])
    assert large.opening
    for _ in range(3):
        with pytest.raises(StorageFull):
            wal.persist(large)
        wal.make_room()
        assert wal.is_full
        assert names(files) == [segment_name(1), segment_name(2)]
    files.capacity_bytes = None
    wal.make_room()
    assert not wal.is_full
    wal.persist(large)
    wal.persist(behind)
    files.crash(KeepNothing())
    assert found(files) == (1, [1, 2, 3])


def test_full_leftovers_give_their_room() -> None:
    """What a run kept for a segment to come is removed when the log is closed, and by the next
    recovery where it was not."""
    files = founded()
    wal = opened(files)
    index = 0
    while segment_name(2) + ".tmp" not in names(files):
        index += 1
        assert index < 200
        persist(wal, put(index))
    files.sync_directory(NODE)
    files.crash(KeepNothing())
    assert segment_name(2) + ".tmp" in names(files)
    wal = opened(files)
    assert names(files) == [segment_name(1)]
    persist(wal, put(index + 1))
    assert segment_name(2) + ".tmp" in names(files)
    wal.close()
    assert names(files) == [segment_name(1)]


def test_full_ended_by_removal() -> None:
    """A base that removes segments frees room, and the log is not full any more without another
    word."""
    files = founded()
    wal = opened(files)
    index = 0
    while wal.path.name != segment_name(3):
        index += 1
        persist(wal, put(index))
    set_room(files, 0)
    while not wal.is_full:
        index += 1
        persist(wal, put(index))
    persist(wal, Write(None, None, (), EntryId(1, 1, index - 3)))
    assert not wal.is_full
    persist(wal, put(index + 1))
    files.crash(KeepNothing())
    assert found(files)[1] == list(range(index - 2, index + 2))


# What fails otherwise


def test_full_amid_the_group() -> None:
    """On a file system on which overwriting needs room, a group that was written in part is written
    again, the same bytes at the same place; before that a crash finds nothing of it."""
    for keep in KEEPS:
        files = founded(write_bytes_max=300)
        wal = opened(files)
        persist(wal, put(1, 2500))
        group = half_written(files, wal, put(2, 600))
        start = wal.end - len(group.data)
        assert files.read(wal.path)[start : start + 301] == group.data[:300] + b"\0"
        files.fault = None
        wal.make_room()
        assert not wal.is_full
        wal.persist(group)
        persist(wal, put(3))
        files.crash(keep)
        assert found(files) == (0, [1, 2, 3])
        wal = opened(files)
        persist(wal, put(4))
        half_written(files, wal, put(5, 600))
        files.crash(keep)
        for _ in range(2):
            assert found(files) == (0, [1, 2, 3, 4])
            files.crash(KeepNothing())


def test_full_amid_the_zeros() -> None:
    """Where an extension is no promise of room, zeros may find none; the group may all the same,
    with only a few of them ahead of it, and nothing is lost."""
    files = founded()
    wal = opened(files)
    writes: list[int] = []

    def fail(_: int, operation: str, path: Path) -> None:
        if operation == "write":
            writes.append(len(writes))
            if len(writes) == 1:
                raise OSError(errno.ENOSPC, "No space left on device")

    files.fault = fail
    persist(wal, put(1, 2000))
    assert wal.is_full
    assert len(writes) == 3
    persist(wal, put(2))
    wal.make_room()
    assert not wal.is_full
    persist(wal, put(3))
    files.crash(KeepNothing())
    assert found(files) == (0, [1, 2, 3])


def half_written(files: ForgetfulFiles, wal: Wal, write: Write) -> Group:
    """A group of which the first write is done, and the second one finds no room."""
    group = wal.encode([write])
    files.fault = failing("write", errno.ENOSPC, first=2)
    with pytest.raises(StorageFull):
        wal.persist(group)
    assert wal.is_full
    return group


@pytest.mark.parametrize("operation", ["preallocate", "write", "sync"])
def test_full_make_room_failing(operation: str) -> None:
    """Looking for room may fail for another reason, or in a sync for this one, and that poisons."""
    files = founded()
    wal = opened(files)
    set_room(files, 0)
    filled(files, wal)
    files.capacity_bytes = None
    files.fault = failing(operation, errno.ENOSPC if operation == "sync" else errno.EIO)
    with pytest.raises(StorageFailed, match="zeros behind the last group failed"):
        wal.make_room()
    files.fault = None
    for act in (wal.make_room, lambda: wal.encode([])):
        with pytest.raises(StorageFailed):
            act()


def test_full_make_room_idle() -> None:
    """A log that is not full does nothing about room."""
    files = founded()
    wal = opened(files)
    persist(wal, put(1))
    before = files.operations_count
    wal.make_room()
    assert files.operations_count == before


@pytest.mark.parametrize("is_synced", [True, False])
def test_full_crash_at_every_operation(is_synced: bool) -> None:
    """A crash at any operation while segments change on a full disk, with any part of what was not
    synced kept, loses nothing and invents nothing, and a second recovery finds the same."""
    points = 0
    for keep in KEEPS if is_synced else [KeepEverything()]:
        for number in range(1, 300):
            files = founded()
            wal = opened(files, is_synced)
            persist(wal, vote(1))
            at = files.operations_count + number

            def crash(count: int, operation: str, path: Path, at: int = at) -> None:
                if count >= at:
                    raise Crashed(operation)

            files.fault = crash
            persisted: list[int] = []
            try:
                change_segments_while_full(files, wal, persisted)
            except Crashed:
                points += 1
            else:
                break
            files.crash(keep)
            term, indexes = found(files)
            assert term == 1
            assert indexes in (persisted, [*persisted, len(persisted) + 1])
            files.crash(KeepNothing())
            assert found(files) == (1, indexes)
    assert points > (100 if is_synced else 30)


def change_segments_while_full(files: ForgetfulFiles, wal: Wal, persisted: list[int]) -> None:
    """Go through three segments, each of which finds room only at the second attempt."""
    while len(persisted) < 9:
        index = len(persisted) + 1
        group = wal.encode([put(index, 5000)])
        set_room(files, 0)
        try:
            wal.persist(group)
        except StorageFull:
            wal.make_room()
            set_room(files, 3 * EXTEND_BYTES)
            wal.make_room()
            wal.persist(group)
        persisted.append(index)


# A real disk


@pytest.mark.skipif(sys.platform != "linux", reason="other systems let a file grow without room")
def test_full_preallocation_given_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a preallocation took before it met the end of the disk is given back."""
    files = RealFiles()
    file = files.create(tmp_path / "file")
    files.preallocate(file, 0, 10_000)

    def fallocate(descriptor: int, offset: int, size_bytes: int) -> None:
        os.ftruncate(descriptor, offset + size_bytes // 2)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.posix_fallocate", fallocate)
    with pytest.raises(OSError, match="No space left"):
        files.preallocate(file, 10_000, 10_000)
    assert files.size_bytes(file) == 10_000
    files.close(file)


LIMITED = """
import resource, sys
from pathlib import Path
from replog.errors import StorageFull
from replog.storage.files import RealFiles
from replog.storage.plugin import StorageHome
from replog.storage.protocol import Write
from replog.storage.wal import Wal, found_log
from replog.types import Entry, EntryKind, HardState, entry_body

MIB = 1024 * 1024
home = StorageHome(RealFiles(), Path(sys.argv[1]), "demo", 1, 7)
found_log(home)
wal = Wal(home)
wal.recover()
limits = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (3 * MIB, limits[1]))
index = 0
try:
    while True:
        index += 1
        body = entry_body(EntryKind.COMMAND, 1, 1, index, bytes(300_000))
        group = wal.encode([Write(None, None, [Entry(1, index, 1, body)])])
        wal.persist(group)
        assert wal.is_full
except StorageFull:
    wal.make_room()
    assert wal.is_full
    print(index, wal.path.stat().st_size)
resource.setrlimit(resource.RLIMIT_FSIZE, limits)
wal.make_room()
assert not wal.is_full
wal.persist(group)
wal.persist(wal.encode([Write(HardState(1, 5, 2), None, ())]))
wal.close()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems let a file grow without room")
def test_full_real_files(tmp_path: Path) -> None:
    """On a real disk, files that may not grow beyond a limit are used up to it, and then a group is
    refused and comes again."""
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    refused, size_bytes = map(int, done.stdout.split())
    assert refused == 11
    assert 3_000_000 < size_bytes <= 3 * 1024 * 1024
    wal = Wal(StorageHome(RealFiles(), tmp_path, "demo", 1, 7))
    recovered = wal.recover()
    assert recovered.hard_state == HardState(1, 5, 2)
    assert recovered.log.runs.last_index == refused
    wal.close()
    assert not temporary_path(tmp_path / segment_name(2)).exists()
