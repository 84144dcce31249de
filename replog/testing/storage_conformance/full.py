"""A full disk: what it refuses, what it must still take, and how it goes on.

These scenarios need a disk that can be filled, which is one in memory; on real files every storage
is excused.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from replog.errors import StorageFull
from replog.limits import KIB, MIB
from replog.testing.files import (
    Crashed,
    ForgetfulFiles,
    Keep,
    KeepEverything,
    KeepNothing,
    KeepSectors,
)
from replog.testing.scenarios import Skipped
from replog.testing.storage_conformance.subject import (
    Scenario,
    Subject,
    entry,
    put,
    scenarios_of,
    state,
)

ROOM_BYTES: Final = 100 * KIB
"""How much room there is to become full in: a storage that grows by more is full at once."""
LITTLE_BYTES: Final = 8 * KIB
"""How much there is for a few votes, and not for a large group."""
ENOUGH_BYTES: Final = 64 * MIB
"""How much must be enough for everybody."""
ENTRY_BYTES: Final = 2 * KIB
GROUP_BYTES: Final = 200 * KIB
GROUPS_MAX: Final = 100
VOTES: Final = 5
POINTS_MAX: Final = 2000
KEEPS: Final[tuple[Keep, ...]] = (KeepNothing(), KeepEverything(), KeepSectors(5))


def disk_of(subject: Subject) -> ForgetfulFiles:
    """The disk, which can be filled; excuses a storage on another one."""
    files = subject.ground.files
    if not isinstance(files, ForgetfulFiles):
        raise Skipped("no real disk is filled up for it, only one in memory")
    subject.expect_durable()
    return files


class FullRun:
    """A new storage on a disk that is nearly full, and a driver that keeps the rules."""

    def __init__(self, subject: Subject, room_bytes: int) -> None:
        self.files = disk_of(subject)
        self.run = subject.begin()
        self.term = 0
        self.index = 0
        self.expect_full(False)
        self.set_room(room_bytes)

    def remove(self) -> None:
        """Close the storage and remove its files: the next run has the disk for itself."""
        self.files.fault = None
        self.files.capacity_bytes = None
        self.run.storage.close()
        for name in self.files.names(self.run.home.path):
            self.files.remove(self.run.home.path / name)
        self.files.sync_directory(self.run.home.path)

    def set_room(self, room_bytes: int) -> None:
        """Let there be so much room on the disk."""
        self.files.capacity_bytes = self.files.used_bytes + room_bytes

    def expect_full(self, is_full: bool) -> None:
        """Raise unless the storage says that it is full, or that it is not."""
        wrong = self.run.storage.is_full != is_full
        assert not wrong, f"it says that it is {'not ' if is_full else ''}full, and that is wrong"

    def vote(self) -> None:
        """Persist a group without entries."""
        self.term += 1
        self.run.write(state(self.term, voted_for=2))

    def append(self, size_bytes: int = ENTRY_BYTES) -> None:
        """Encode and persist an entry of the next index."""
        self.index += 1
        self.run.encode(put(entry(self.index, 1, bytes([self.index % 256]) * size_bytes)))
        self.run.persist()

    def fill(self) -> None:
        """Persist entries until the storage says that it is full."""
        for _ in range(GROUPS_MAX):
            if self.run.storage.is_full:
                return
            try:
                self.append()
            except StorageFull:
                self.expect_full(True)
        raise AssertionError(f"{GROUPS_MAX} groups of {ENTRY_BYTES} bytes do not fill the disk")

    def refuse(self) -> None:
        """Have the oldest group that waits refused."""
        try:
            self.run.persist()
        except StorageFull:
            self.expect_full(True)
            return
        raise AssertionError("a group finds room where there is none for it")

    def go_on(self) -> None:
        """Look for room, and persist what was refused."""
        self.run.storage.make_room()
        while self.run.is_waiting:
            self.run.persist()


def full_and_not_again(subject: Subject) -> None:
    """A storage says that it is full; while there is no room it stays that, without an error; when
    there is some it goes on with entries, and everything that was persisted is found."""
    full = FullRun(subject, ROOM_BYTES)
    full.vote()
    full.fill()
    full.set_room(0)
    for _ in range(3):
        full.run.storage.make_room()
        full.expect_full(True)
        full.run.check()
    full.set_room(ENOUGH_BYTES)
    full.go_on()
    full.expect_full(False)
    full.append()
    full.vote()
    full.run.check()
    full.run.crash()
    full.append()
    full.expect_full(False)
    full.run.reopen()
    full.remove()


def votes_while_full(subject: Subject) -> None:
    """While a storage is full and has refused nothing, groups without entries are persisted, also
    on a disk on which nothing else finds room; and it can be opened on a full disk."""
    full = FullRun(subject, ROOM_BYTES)
    full.vote()
    full.fill()
    if full.run.is_waiting:
        full.set_room(ENOUGH_BYTES)
        full.go_on()
    full.set_room(LITTLE_BYTES)
    for _ in range(VOTES):
        full.vote()
    full.run.check()
    full.run.crash()
    full.vote()
    full.run.reopen()
    full.set_room(ENOUGH_BYTES)
    full.append()
    full.expect_full(False)
    full.run.reopen()
    full.remove()


def refused_comes_again(subject: Subject) -> None:
    """A group that is refused is the next one: it is read as encoded, refused again while there is
    no room, not found by a crash, and persisted with those behind it when there is room."""
    full = FullRun(subject, LITTLE_BYTES)
    run = full.run
    full.vote()
    large = put(entry(1, 1, bytes(GROUP_BYTES)), entry(2))
    run.encode(large)
    full.refuse()
    full.set_room(0)
    behind = run.encode(state(7, voted_for=3))
    for _ in range(2):
        run.storage.make_room()
        full.refuse()
        run.check()
    try:
        run.storage.persist(behind)
    except AssertionError:
        is_refused = True
    else:
        is_refused = False
    assert is_refused, "a group is persisted before the one that was refused"
    full.set_room(ENOUGH_BYTES)
    full.go_on()
    full.expect_full(False)
    run.check()
    run.reopen()
    full.remove()
    full = FullRun(subject, LITTLE_BYTES)
    full.vote()
    full.run.encode(large)
    full.refuse()
    full.run.crash()
    full.vote()
    full.run.reopen()
    full.remove()


def crash_at_every_operation(subject: Subject) -> None:
    """A crash at any operation of a run that refuses a group, becomes full and goes on loses
    nothing that was persisted and invents nothing, and a second recovery finds the same."""
    for keep in KEEPS:
        for number in range(1, POINTS_MAX):
            full = FullRun(subject, LITTLE_BYTES)
            full.vote()
            at = full.files.operations_count + number

            def crash(count: int, operation: str, path: Path, at: int = at) -> None:
                if count >= at:
                    raise Crashed(f"{operation} of {path}")

            full.files.fault = crash
            is_over = True
            try:
                becomes_full_and_goes_on(full)
            except Crashed:
                is_over = False
                full.files.capacity_bytes = None
                full.run.crash_amid(full.files, keep)
                full.vote()
                full.run.reopen()
            full.remove()
            if is_over:
                break


def becomes_full_and_goes_on(full: FullRun) -> None:
    """The run in which :func:`crash_at_every_operation` strikes."""
    full.run.encode(put(entry(1, 1, bytes(GROUP_BYTES))))
    full.index = 1
    full.refuse()
    full.set_room(GROUP_BYTES + 4 * LITTLE_BYTES)
    full.go_on()
    full.fill()
    full.set_room(LITTLE_BYTES)
    full.run.storage.make_room()
    if not full.run.is_waiting:
        full.vote()
    full.set_room(ENOUGH_BYTES)
    full.go_on()
    full.append()
    full.vote()


SCENARIOS: tuple[Scenario, ...] = scenarios_of(
    "full",
    (
        full_and_not_again,
        votes_while_full,
        refused_comes_again,
        crash_at_every_operation,
    ),
)
