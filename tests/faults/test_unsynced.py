"""What was persisted survives the loss of everything that was not synced."""

from __future__ import annotations

from itertools import count
from pathlib import Path

import pytest

from replog.errors import StorageFailed
from replog.storage.plugin import StorageHome
from replog.storage.protocol import Recovered, Write
from replog.storage.segment import SECTOR_BYTES
from replog.storage.wal import Wal, found_log
from replog.stored_log import all_entries
from replog.testing.files import (
    Crashed,
    ForgetfulFiles,
    KeepEverything,
    KeepNothing,
    KeepPrefix,
    KeepSectors,
)
from replog.types import Entry, EntryKind, HardState, entry_body

NODE = Path("/node")
EXTEND_BYTES = 8192
SEEDS = range(40)
KEEPS = [
    KeepNothing(),
    *[KeepPrefix(count) for count in (1, 20, 30, 511, 600, 5000)],
    *[KeepSectors(seed) for seed in SEEDS],
]


class UnsyncingFiles(ForgetfulFiles):
    """A disk that says it synced and, once it is told to lie, did not."""

    lies = False

    def sync(self, descriptor):
        if not self.lies:
            super().sync(descriptor)


class DroppingFiles(ForgetfulFiles):
    """A kernel that, when a sync fails, marks the pages clean that it did not write."""

    drops = False

    def sync(self, descriptor):
        if self.drops:
            self._opened(descriptor)[1].writes.clear()
            raise OSError(5, "Input/output error")
        super().sync(descriptor)


def founded(files):
    files.make_directory(NODE)
    files.sync_directory(NODE.parent)
    found_log(home_on(files))
    files.sync_directory(NODE)
    return files


def home_on(files):
    return StorageHome(files, NODE, "demo", 1, 77)


def opened(files):
    wal = Wal(home_on(files), extend_bytes=EXTEND_BYTES, reserve_bytes=512)
    return wal, wal.recover()


def entry(index, term, size):
    return Entry(1, index, term, entry_body(EntryKind.COMMAND, 1, term, index, b"%d" % term * size))


def writes():
    """Groups of all sizes and kinds, each with what is recovered after it."""
    first, second, third = entry(1, 1, 10), entry(2, 1, 3000), entry(2, 2, 700)
    return [
        ([Write(HardState(1, 1, 1), None, [first])], (HardState(1, 1, 1), [first])),
        ([Write(None, None, [second])], (HardState(1, 1, 1), [first, second])),
        ([Write(HardState(1, 2, 0), None, [])], (HardState(1, 2, 0), [first, second])),
        ([Write(None, 2, [third])], (HardState(1, 2, 0), [first, third])),
        (
            [Write(None, None, [entry(3, 2, 9000)]), Write(HardState(1, 3, 2), None, [])],
            (HardState(1, 3, 2), [first, third, entry(3, 2, 9000)]),
        ),
    ]


NOTHING = (None, [])


def held(recovered: Recovered):
    return (recovered.hard_state, list(all_entries(recovered.log)))


def check_persisted_survives(files, keep):
    """The one check, with a disk that keeps its word and with one that does not."""
    for group, expected in writes():
        wal, _ = opened(files)
        wal.persist(wal.encode(group))
        files.crash(keep)
        found = held(opened(files)[1])
        assert found == expected


@pytest.mark.parametrize("keep", KEEPS, ids=str)
def test_crash_after_persist(keep):
    """When persist has returned, its group and all before it survive, whatever else is lost."""
    check_persisted_survives(founded(ForgetfulFiles()), keep)


def test_crash_after_persist_unsynced():
    """The same check fails on a disk whose sync does nothing: it does see what is not synced."""
    files = founded(UnsyncingFiles())
    files.lies = True
    with pytest.raises(AssertionError):
        check_persisted_survives(files, KeepNothing())


def crashed_at(files, operation_number, act):
    """Run ``act`` up to an operation; whether it came that far."""
    last = files.operations_count + operation_number

    def fault(number, name, path):
        if number >= last:
            raise Crashed

    files.fault = fault
    try:
        act()
    except Crashed:
        return True
    files.fault = None
    return False


@pytest.mark.parametrize("keep", KEEPS, ids=str)
def test_crash_within_persist(keep):
    """A crash at any operation of persist leaves the state before the group or the one after."""
    for operation_number in range(1, 6):
        files = founded(ForgetfulFiles())
        before = NOTHING
        for group, after in writes():
            wal, found = opened(files)
            assert held(found) == before
            packed = wal.encode(group)
            if crashed_at(files, operation_number, lambda: wal.persist(packed)):  # noqa: B023
                files.crash(keep)
                found = held(opened(files)[1])
                assert found in (before, after)
                files.crash(KeepNothing())
                assert held(opened(files)[1]) == found, "what was recovered once is durable"
                if found == before:
                    wal, _ = opened(files)
                    wal.persist(wal.encode(group))
            before = after


@pytest.mark.parametrize("keep", KEEPS, ids=str)
def test_crash_within_recovery(keep):
    """A crash at any operation of the recovery from a torn group loses nothing persisted."""
    for operation_number in range(1, 10):
        for seed in range(8):
            files = founded(ForgetfulFiles())
            wal, _ = opened(files)
            group, expected = writes()[0]
            wal.persist(wal.encode(group))
            packed = wal.encode([Write(None, None, [entry(2, 1, 2000)])])
            assert crashed_at(files, 2, lambda: wal.persist(packed))  # noqa: B023
            files.crash(KeepSectors(seed))
            crashed_at(files, operation_number, lambda: opened(files))  # noqa: B023
            files.crash(keep)
            found = held(opened(files)[1])
            assert found in (expected, (expected[0], [*expected[1], entry(2, 1, 2000)]))


def torn_around_a_group():
    """A log with one group, and a torn one whose body holds the bytes of the first: a command may
    carry anything, also a piece of this very log."""
    files = founded(ForgetfulFiles())
    wal, _ = opened(files)
    first, expected = writes()[0]
    group = wal.encode(first)
    wal.persist(group)
    first_group = group.data
    # Three sectors: the torn group's head, then the piece by itself, then its end.
    apart = bytes(2 * SECTOR_BYTES)
    data = b"a" + apart + first_group + apart + b"z"
    body = entry_body(EntryKind.COMMAND, 1, 1, 2, data)
    torn = wal.encode([Write(None, None, [Entry(1, 2, 1, body)])])
    assert first_group in torn.data
    assert crashed_at(files, 2, lambda: wal.persist(torn))
    files.crash(KeepPrefix(len(torn.data) - 1))  # all but its end byte
    return files, expected


@pytest.mark.parametrize("keep", KEEPS, ids=str)
def test_crash_within_wiping(keep):
    """A crash amid the wiping of a torn group leaves what is still seen to be torn, and never its
    body without its head, in which a group of this log might be found and taken for a later one."""
    for operation_number in count(1):
        files, expected = torn_around_a_group()
        if not crashed_at(files, operation_number, lambda: opened(files)):  # noqa: B023
            break
        files.crash(keep)
        assert held(opened(files)[1]) == expected


def test_wiping_syncs_each_step():
    """A torn group is wiped behind its head, then at its head, with a sync after each, before the
    last intact group is written anew."""
    files, _ = torn_around_a_group()
    names = []

    def note(number, name, path):
        names.append(name)

    files.fault = note
    opened(files)
    reading = ["names", "read", "names", "read"]  # the log, and the second copy of the hard state
    copying = ["names", "sync_directory", "open", "write", "sync"]
    assert names == [*reading, "open", *["write", "sync"] * 3, *copying]


def test_kill_between_write_and_sync():
    """What a recovery reports after the end of a process outlasts a power cut right after it."""
    files = founded(ForgetfulFiles())
    wal, _ = opened(files)
    group, expected = writes()[0]
    packed = wal.encode(group)
    # The third operation is the sync, after zeros written ahead and the group.
    assert crashed_at(files, 3, lambda: wal.persist(packed))
    files.crash(KeepEverything())
    assert held(opened(files)[1]) == expected
    files.crash(KeepNothing())
    assert held(opened(files)[1]) == expected


def test_restart_after_dropped_pages():
    """The same holds when a sync failed and the kernel dropped the pages that it can still read."""
    files = founded(DroppingFiles())
    wal, _ = opened(files)
    group, expected = writes()[0]
    files.drops = True
    with pytest.raises(StorageFailed, match="Input/output error"):
        wal.persist(wal.encode(group))
    files.drops = False
    files.crash(KeepEverything())
    assert held(opened(files)[1]) == expected
    files.crash(KeepNothing())
    assert held(opened(files)[1]) == expected
