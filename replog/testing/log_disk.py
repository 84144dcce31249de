"""The real write-ahead log under a simulated node, on files that forget what was not synced.

The modelled disk (:class:`~replog.testing.disk.Disk`) says what must be there; the log's own code
(:mod:`replog.storage.wal`) says what it finds.  After every crash the two are compared: a group
that was synced must be found, one that was on its way may be found whole or not at all, and nothing
else may be.

A crash here strikes within a system call: at the first, second or a later operation on the files
(recovery included), with what was not synced kept, lost, or torn by sectors.  And one strikes right
after the init that made the node's directory, which is durable when it returns.  Some writes
by which the file grows, and every recovery from a torn log, are rehearsed besides, on copies of the
files: they may crash anywhere, and the next recovery must come to its end, or find the same.  Logs
are seldom torn, so some writes to small ones are, on copies, for that rehearsal's sake.

At the sync level ``os`` chance ends processes alone, which may lose nothing that counts: what was
written stays.  A power cut there is no fault that a correct system survives, so it comes only when
a test asks for it, and what was not written back is uncertain then, acknowledged or not.
"""

from __future__ import annotations

import errno
from contextlib import AbstractContextManager, nullcontext, suppress
from copy import deepcopy
from dataclasses import replace
from itertools import count
from pathlib import Path
from random import Random
from typing import Final

from replog.errors import LogDamaged, StorageFailed, StorageFull
from replog.storage.directory import init_directory, open_directory
from replog.storage.hard_state import FILE_NAME as SECOND_COPY_NAME
from replog.storage.identity import FOUNDING_VERSION, FoundingRecord
from replog.storage.plugin import StorageHome
from replog.storage.protocol import Recovered, Storage
from replog.storage.recovery import TAIL_BYTES, find_content_end
from replog.storage.segment import GROUP_MAGIC, HEAD_BYTES, segment_name, segment_number
from replog.storage.wal import WAL, Wal
from replog.storage.wal import Group as PackedGroup
from replog.testing.disk import Disk, Group, is_same
from replog.testing.files import (
    Crashed,
    ForgetfulFiles,
    Keep,
    KeepEverything,
    KeepNothing,
    KeepPrefix,
    KeepSectors,
    set_crash,
    set_crash_at_sync,
)
from replog.testing.snapshot_disk import CLUSTER_ID, NODE_PATH
from replog.types import NodeId, Voter

SEGMENT_BYTES: Final = 8 * 1024
"""A segment of the log is full soon, ..."""

EXTEND_BYTES: Final = 1024
"""... and grows by little, so that it grows often, and a crash may keep what is written in it
and not how far it grew."""

RESERVE_BYTES: Final = 64
"""Room is sought so far ahead: less than a group takes, so that the group by which the file grows
reaches into what it grew by."""

WRITE_BYTES_MAX: Final = 100
"""A write takes no more than this at once, so most groups take several."""

GROWING_OPERATIONS: Final = 30
"""To grow takes about a dozen operations on the file, and the group then as many at most."""

LAST_SIZE_CHANCE: Final = 0.5
"""How likely damage is in the size of the last group."""

SECOND_COPY_CHANCE: Final = 0.15
"""How likely damage is in the second copy of the hard state instead."""

BEHIND_BYTES: Final = 512
"""Damage strikes no further behind the last group than this: a sector."""

SIZE_BYTES: Final = 4
"""Of a group's size, which stands behind the magic of its head."""

REHEARSED_SHARE: Final = 1 / 8
"""How many of the writes are rehearsed by which the file grows."""

OPENING_SHARE: Final = 1 / 2
"""How many of those that open a segment, ..."""

EVERYTHING_CHANCE: Final = 0.3
"""... and how often all that was written stays, synced or not."""

TORN_SHARE: Final = 1 / 12
"""How many of the other writes to a small log are torn, on copies of the files, ..."""

SMALL_BYTES: Final = 2 * 1024
"""... which has one segment and less than this in it: a large log takes long to recover, and is
torn in no other way."""

REHEARSALS: Final = 16
"""How often the recovery from a torn log is rehearsed with a crash drawn by chance, ..."""

REHEARSAL_OPERATIONS: Final = 16
"""... and within how many operations on the files it crashes then."""

ERRORS: Final = (errno.EIO, errno.ENOSPC)

ENGINE: Final = "simulated"
"""What every directory says of its engine."""


class LogDisk:
    """The log of one node, through all its runs."""

    __slots__ = ("_before", "_home", "_log", "files", "is_end_clean", "torn_count", "uncertain")

    def __init__(
        self, node_id: NodeId, files: ForgetfulFiles | None = None, is_synced: bool = True
    ) -> None:
        self.files = files or ForgetfulFiles(WRITE_BYTES_MAX)
        self._home = StorageHome(
            self.files, NODE_PATH, CLUSTER_ID, node_id, node_id, is_synced=is_synced
        )
        self.found()
        self._log: Storage | None = None
        self._before = self.files
        """The files as the last recovery met them."""
        self.uncertain: list[Group] = []
        """The groups that were on their way when the last run ended, oldest first."""
        self.is_end_clean = True
        """Whether the last recovery left nothing behind the last group."""
        self.torn_count = 0
        """How many recoveries found the remains of a group and cut them off."""

    def found(self) -> None:
        """Make the directory; the power is cut right after it."""
        node_id = self._home.node_id
        voters = (Voter(node_id, node_id),)
        founding = FoundingRecord(FOUNDING_VERSION, CLUSTER_ID, ENGINE, WAL.name, voters)
        init_directory(self.files, NODE_PATH, founding, node_id)
        self.files.crash(KeepNothing())

    @property
    def path(self) -> Path:
        """The last segment of the log."""
        return self._home.path / segment_name(max(_segments(self.files)))

    def _log_on(self, files: ForgetfulFiles) -> Storage:
        """The log on some files, not recovered yet."""
        return Wal(replace(self._home, files=files), SEGMENT_BYTES, EXTEND_BYTES, RESERVE_BYTES)

    def unseen(self) -> AbstractContextManager[None]:
        """What is read within is read by the test, and is no operation of the node's."""
        return nullcontext()

    def write(self, group: Group) -> None:
        """Encode a group that is on its way now."""
        assert self._log is not None
        group.data = self._log.encode(group.writes)

    def persist(self, group: Group) -> None:
        """Make a group durable; raises ``StorageFull`` without room, and ``StorageFailed`` or
        ``Crashed`` when that was set up."""
        assert self._log is not None
        self._log.persist(group.data)

    @property
    def is_full(self) -> bool:
        """What the log of the current run says of its disk."""
        return self._log is not None and self._log.is_full

    def make_room(self) -> None:
        """Let the log try to grow again."""
        assert self._log is not None
        self._log.make_room()

    def set_fault(self, random: Random) -> None:
        """Let one of the next few operations on the files fail, as a disk does."""
        number = random.choice(ERRORS)
        # Without room a write is refused and comes again; only to a sync that is a failure.
        failing = ("sync",) if number == errno.ENOSPC else ("write", "sync", "preallocate")
        at = self.files.operations_count + random.randint(1, 3)

        def fail(count: int, operation: str, path: Path) -> None:
            if count >= at and operation in failing:
                raise OSError(number, errno.errorcode[number], str(path))

        self.files.fault = fail

    def set_crash(self, operations: int, growing: int = 0) -> None:
        """Let the machine crash at the ``operations``-th operation on the files from now; if a file
        grows until then, ``growing`` operations later: growing alone takes many."""
        set_crash(self.files, operations, growing)

    def crash(self, disk: Disk, random: Random, keep: Keep | None = None) -> Keep:
        """The run is over: the group on its way was written, in part or not at all.

        ``disk`` is the model, whose pending groups are the uncertain ones from now on.  ``keep`` is
        what stays of all that is not synced (``None``: chance decides); returned is what did.
        """
        self.uncertain += disk.pending
        log = self._log if self.files.fault is None and disk.pending else None
        operations = random.randint(1, 3) if log is not None else 0
        drawn = drawn_keep(random, self._home.is_synced)
        keep = drawn if keep is None else keep
        if log is not None:
            self.set_crash(operations, random.randint(0, GROWING_OPERATIONS))
            try:
                log.persist(disk.pending[0].data)
            except (Crashed, StorageFailed, StorageFull):
                pass
            else:
                # Synced, and the node did not learn of it.
                pass
        self._log = None
        self.files.crash(keep)
        if is_power_cut(keep):
            self.uncertain[:0] = disk.cut_power()
        return keep

    def flip_bit(self, random: Random) -> None:
        """Damage one byte of a segment, or of the second copy of the hard state, behind everybody's
        back: any up to a little behind its end, or one in the size of its last group, for a group
        that ends too late looks most like a torn one."""
        name = segment_name(random.choice(_segments(self.files)))
        if random.random() < SECOND_COPY_CHANCE:
            name = SECOND_COPY_NAME
        path = self._home.path / name
        data = self.files.read(path)
        end = len(data.rstrip(b"\0")) + BEHIND_BYTES
        at, bit = random.randrange(min(end, len(data))), random.randrange(8)
        if name != SECOND_COPY_NAME and random.random() < LAST_SIZE_CHANCE:
            at = data.rindex(GROUP_MAGIC) + len(GROUP_MAGIC) + random.randrange(SIZE_BYTES)
        self.files.corrupt(path, at, bytes([data[at] ^ (1 << bit)]))

    def recover(self) -> Recovered:
        """Open the log anew; raises ``LogDamaged``, ``StorageFailed`` or ``Crashed``."""
        self._before = deepcopy(self.files)
        self._check_directory()
        log = self._log_on(self.files)
        assert isinstance(log, Wal)
        before = self.files.read(self.path) if _segments(self.files) else b""
        recovered = log.recover()
        self._log = log
        # What was whole is written once more as it was; what was torn is wiped.
        after = self.files.read(self.path)
        self.torn_count += after != before
        self.is_end_clean = find_content_end(after) <= log.end
        return recovered

    def _check_directory(self) -> None:
        directory = open_directory(
            NODE_PATH,
            cluster_id=CLUSTER_ID,
            node_id=self._home.node_id,
            engine=ENGINE,
            storage=WAL.name,
            files=self.files,
        )
        directory.close()  # the real one stays locked; a simulated node has no rival

    def rehearse_write(self, group: Group, seed: int) -> str:
        """Now and then, have a write by which the file grows, and half of those that open a
        segment, crash at a sync, on copies of the files, of which some sectors stay or all: what is
        wrong, if the log is refused then, or loses something to a power cut after its recovery.
        Some of the others are torn, on copies as well."""
        if self.files.fault is not None:
            return ""
        packed = group.data
        assert isinstance(packed, PackedGroup)
        data = self.files.read(self.path)
        random = Random(f"{seed}/{self._home.node_id}/{group.number}/{len(data)}")
        size_bytes = len(data.rstrip(b"\0")) + len(packed.data) + TAIL_BYTES + RESERVE_BYTES
        if packed.opening:
            share, syncs_max = OPENING_SHARE, 4
        elif size_bytes > len(data):
            share, syncs_max = REHEARSED_SHARE, 2
        else:
            is_small = packed.segment == 1 and size_bytes < SMALL_BYTES
            is_torn = is_small and self._home.is_synced and random.random() < TORN_SHARE
            return self._rehearse_tear(packed, random) if is_torn else ""
        if random.random() >= share:
            return ""
        files = self._crashed_at_sync(packed, random.randrange(syncs_max))
        sectors = KeepSectors(random.randrange(1 << 30))
        keeps_everything = random.random() < EVERYTHING_CHANCE or not self._home.is_synced
        files.crash(KeepEverything() if keeps_everything else sectors)
        try:
            found = self._log_on(files).recover()
        except LogDamaged as damaged:
            return f"crashes as it writes a group, and refuses its log then: {damaged}"
        if not self._outlasts_power_cut(files, found):
            return "crashes as it writes a group, and recovers what a power cut takes away again"
        return ""

    def _crashed_at_sync(self, packed: PackedGroup, syncs: int) -> ForgetfulFiles:
        """Copies of the files, on which the write of a group came to an end in front of a sync,
        behind so many others, or was refused."""
        log, files = deepcopy((self._log, self.files))
        assert log is not None
        set_crash_at_sync(files, syncs)
        with suppress(Crashed, StorageFull):
            log.persist(packed)
        return files

    def _rehearse_tear(self, packed: PackedGroup, random: Random) -> str:
        """Have the write of a group stop behind its head, on copies of the files, and rehearse the
        recovery from that: what is wrong with it."""
        files = self._crashed_at_sync(packed, 0)
        files.crash(KeepPrefix(random.randrange(HEAD_BYTES, len(packed.data))))
        before = deepcopy(files)
        try:
            found = self._log_on(files).recover()
        except LogDamaged as damaged:
            return f"tears a group, and refuses its log then: {damaged}"
        return self._rehearse_syncs(before, found, random)

    def outlasts_power_cut(self, found: Recovered) -> bool:
        """Whether what was just recovered is durable: a power cut right now, on copies of the
        files, loses nothing of it."""
        files = deepcopy(self.files)
        files.fault = None
        return self._outlasts_power_cut(files, found)

    def _outlasts_power_cut(self, files: ForgetfulFiles, found: Recovered) -> bool:
        files.crash(KeepNothing())
        try:
            again = self._log_on(files).recover()
        except LogDamaged:
            return False
        return is_same(again, found)

    def rehearse(self, found: Recovered, random: Random) -> str:
        """Have the last recovery crash on copies of the files, and recover from what that leaves:
        what is wrong, if that finds anything else than ``found``."""
        for _ in range(REHEARSALS):
            files = deepcopy(self._before)
            set_crash(files, random.randint(1, REHEARSAL_OPERATIONS))
            with suppress(Crashed):
                self._log_on(files).recover()
            files.crash(drawn_keep(random, self._home.is_synced))
            if problem := self._problem_of_next(files, found):
                return problem
        return self._rehearse_syncs(self._before, found, random) if self._home.is_synced else ""

    def _rehearse_syncs(self, before: ForgetfulFiles, found: Recovered, random: Random) -> str:
        """Have the power cut in front of each sync of a recovery, the first bytes alone being on
        the disk of what it was to sync, fewer than a head takes, and recover from what that leaves:
        what is wrong, as above.  Chance would come to that too seldom."""
        for syncs in count():
            files = deepcopy(before)
            set_crash_at_sync(files, syncs)
            try:
                self._log_on(files).recover()
            except Crashed:
                files.crash(KeepPrefix(random.randrange(1, HEAD_BYTES)))
            else:
                return ""
            if problem := self._problem_of_next(files, found):
                return problem
        raise AssertionError("a recovery comes to its end")

    def _problem_of_next(self, files: ForgetfulFiles, found: Recovered) -> str:
        """What is wrong with the recovery after one that crashed, which finds ``found`` again."""
        try:
            again = self._log_on(files).recover()
        except LogDamaged as damaged:
            return f"crashes as it recovers its log, and refuses that then: {damaged}"
        if not is_same(again, found):
            return "crashes as it recovers its log, and recovers something else then"
        return ""


def _segments(files: ForgetfulFiles) -> list[int]:
    """The numbers of the segments that are there."""
    return sorted(filter(None, map(segment_number, files.names(NODE_PATH))))


def is_power_cut(keep: Keep) -> bool:
    """Whether a crash that leaves so much is more than the end of the process."""
    return not isinstance(keep, KeepEverything)


def drawn_keep(random: Random, is_synced: bool = True) -> Keep:
    """What a power cut, or only the end of the process, leaves; at the sync level ``os`` it is the
    latter."""
    if not is_synced:
        return KeepEverything()
    kind = random.randrange(4)
    if kind == 0:
        return KeepNothing()
    if kind == 1:
        return KeepEverything()
    if kind == 2:
        return KeepPrefix(random.choice((1, 8, 40, random.randint(1, 2000))))
    return KeepSectors(random.randrange(1 << 30))
