"""The real log under a simulated node: what the simulator does to it, and what it would notice."""

from __future__ import annotations

from contextlib import suppress
from itertools import count
from random import Random

import pytest

from replog.errors import LogDamaged
from replog.storage.files import Descriptor
from replog.storage.protocol import Write
from replog.storage.recovery import Scanned
from replog.storage.segment import GROUP_MAGIC, HEAD_BYTES
from replog.storage.segment_end import SegmentEnd
from replog.storage.wal import Wal
from replog.stored_log import all_entries
from replog.testing.disk import Disk, Group
from replog.testing.files import Crashed, KeepEverything, KeepPrefix, set_crash_at_sync
from replog.testing.log_disk import LogDisk
from replog.types import Entry, EntryKind, HardState, entry_body


def started(is_synced: bool = True) -> tuple[LogDisk, Disk]:
    """A log that was just founded and opened, and its model."""
    log = LogDisk(1, is_synced=is_synced)
    return log, Disk(log.recover(), is_synced)


def one_group(log: LogDisk, disk: Disk, index: int, size_bytes: int = 200) -> Group:
    """Put a group with one entry on its way."""
    body = entry_body(EntryKind.COMMAND, 1, 1, index, b"x" * size_bytes)
    writes = [Write(HardState(1, index, 1), None, (Entry(1, index, 1, body),))]
    group = disk.write(writes, due=0)
    log.write(group)
    return group


def write_one(log: LogDisk, disk: Disk, index: int, size_bytes: int = 200) -> None:
    """Make one group durable, or as much of it as a crash lets."""
    log.persist(one_group(log, disk, index, size_bytes))
    disk.sync_next()


def torn() -> LogDisk:
    """A log in which a crash left the first hundred bytes of the second group."""
    log, disk = started()
    write_one(log, disk, 1)
    log.set_crash(2)
    with suppress(Crashed):
        write_one(log, disk, 2)
    log.files.crash(KeepPrefix(100))
    return log


def settle_from_head(wal: Wal, file: Descriptor, data: bytes, scanned: Scanned) -> None:
    """Wipe a torn group in the wrong order."""
    wal._wipe(file, scanned.end, scanned.end + HEAD_BYTES)
    wal._wipe(file, scanned.end + HEAD_BYTES, scanned.content_end)


@pytest.mark.parametrize("seed", range(4))
def test_rehearse_torn_tail(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """A recovery that wipes a torn group from its head on may crash such that the next one refuses
    the log, and every rehearsal finds that; of the right one it finds nothing."""
    log = torn()
    found = log.recover()
    assert log.torn_count == 1
    assert not log.rehearse(found, Random(seed))
    monkeypatch.setattr(Wal, "_settle", settle_from_head)
    assert "refuses that then" in log.rehearse(found, Random(seed))


@pytest.mark.parametrize("bytes_kept", [1, 8, HEAD_BYTES - 1])
def test_wipe_stops_within_head(monkeypatch: pytest.MonkeyPatch, bytes_kept: int) -> None:
    """What does harm is a head that is wiped in part while records stand behind it: at one of its
    syncs a crash leaves that when the head is wiped first, and at none when it is wiped last."""
    assert not refused_after_crash_at_syncs(bytes_kept)
    monkeypatch.setattr(Wal, "_settle", settle_from_head)
    [refused] = refused_after_crash_at_syncs(bytes_kept)
    assert "its head is damaged" in refused


def refused_after_crash_at_syncs(bytes_kept: int) -> list[str]:
    """Why the next recovery refuses the log, after a crash of one at each of its syncs that left so
    many of the bytes that were to be synced."""
    refused: list[str] = []
    for syncs in count():
        log = torn()
        set_crash_at_sync(log.files, syncs)
        try:
            log.recover()
        except Crashed:
            log.files.crash(KeepPrefix(bytes_kept))
        else:
            break
        try:
            log.recover()
        except LogDamaged as damaged:
            refused.append(str(damaged))
    assert syncs > 3
    return refused


@pytest.mark.parametrize("is_synced", [True, False])
def test_rehearse_write_torn(monkeypatch: pytest.MonkeyPatch, is_synced: bool) -> None:
    """Some writes to a small log are torn on copies, which finds a recovery that wipes in the wrong
    order though no crash tears anything; at the level ``os`` none is: that takes a power cut."""
    monkeypatch.setattr("replog.testing.log_disk.TORN_SHARE", 1.0)
    assert not written(is_synced)
    monkeypatch.setattr(Wal, "_settle", settle_from_head)
    assert ("refuses that then" in written(is_synced)) is is_synced


def test_power_cut_after_recovery(monkeypatch: pytest.MonkeyPatch) -> None:
    """A recovery that reports what it only read would lose it again to a power cut; the right one
    has made it durable."""
    for is_right in (True, False):
        log, disk = started()
        write_one(log, disk, 1)
        log.set_crash(5)  # its sync
        with suppress(Crashed):
            write_one(log, disk, 2)
        log.files.crash(KeepEverything())
        if not is_right:
            monkeypatch.setattr(Wal, "_settle", lambda *_: None)
        found = log.recover()
        assert found.log.runs.last_index == 2
        assert log.outlasts_power_cut(found) is is_right


def test_flip_bit_in_last_size() -> None:
    """Damage strikes all over the log, a little behind its end, and often in the size of the last
    group; a log that was struck is refused, unless nothing was there."""
    struck: list[int] = []
    behind_count = copy_count = 0
    for seed in range(40):
        log, disk = started()
        for index in (1, 2, 3):
            write_one(log, disk, index)
        log.files.crash(KeepEverything())
        before = log.files.read(log.path)
        log.flip_bit(Random(seed))
        after = log.files.read(log.path)
        if after == before:  # in the second copy of the hard state, of which one slot is enough
            copy_count += 1
            log.recover()
            continue
        [at] = [at for at, byte in enumerate(after) if byte != before[at]]
        struck.append(at - before.rindex(GROUP_MAGIC) - len(GROUP_MAGIC))
        end = len(before.rstrip(b"\0"))
        if at < end:
            with pytest.raises(LogDamaged):
                log.recover()
            continue
        behind_count += 1
        assert [entry.index for entry in all_entries(log.recover().log)] == [1, 2, 3]
    assert behind_count
    assert copy_count
    in_size = [at for at in struck if 0 <= at < 4]
    assert len(in_size) > 8
    assert len(set(struck)) > 12


def test_set_crash_growing() -> None:
    """A crash comes after so many operations, and later if the file has to grow until then."""
    counts: list[int] = []
    for growing in (0, 5):
        log, disk = started()
        size_bytes = len(log.files.read(log.path))
        before = log.files.operations_count
        log.set_crash(3, growing)
        with pytest.raises(Crashed):
            write_one(log, disk, 1, size_bytes)
        counts.append(log.files.operations_count - before)
    assert counts == [3, 8]


def test_rehearse_write_growing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that grows by a write, and was not synced before it, may end within the group after a
    crash, and a rehearsal finds that; of the right log it finds nothing."""
    monkeypatch.setattr("replog.testing.log_disk.REHEARSED_SHARE", 1.0)
    assert not grown()

    def extend(end: SegmentEnd, size_bytes: int) -> None:
        end._files.preallocate(end._file, end._allocated, size_bytes - end._allocated)
        end._allocated = size_bytes

    monkeypatch.setattr(SegmentEnd, "_extend", extend)
    assert "refuses its log then" in grown()


def grown() -> str:
    """What the first rehearsal finds that finds anything, of a log that grows and grows."""
    return written(groups_count=300)


def written(is_synced: bool = True, groups_count: int = 8) -> str:
    """What the first rehearsal finds that finds anything, of a log of so many groups."""
    log, disk = started(is_synced)
    for index in range(1, groups_count):
        group = one_group(log, disk, index)
        if problem := log.rehearse_write(group, 1):
            return problem
        log.persist(group)
        disk.sync_next()
    return ""
