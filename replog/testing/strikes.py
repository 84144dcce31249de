"""What strikes one operation on a node's files, and the files and the log that are struck.

A *strike* is an operation, by its number, and a *mode*:

* five crashes in front of the operation, which differ in what they leave of all that was not
  synced: nothing, a prefix of each file, the last change alone, a random half of the sectors and
  names, everything;
* two failures (``EIO``) of the operation, after which the process is over, and what was not synced
  stays, or goes with a power cut;
* a flipped bit in what the operation wrote, which shows when the node is started again.

What is left to others: where the node is, and what must hold after a strike
(:mod:`replog.testing.every_write`).
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from copy import deepcopy
from dataclasses import replace
from enum import Enum
from pathlib import Path
from random import Random
from typing import Final, NoReturn

from replog.loading import MachineHome, find_newest
from replog.storage.directory import IDENTITY_NAME, init_directory, open_directory
from replog.storage.files import Descriptor
from replog.storage.identity import FOUNDING_VERSION, FoundingRecord
from replog.storage.plugin import StorageHome, StoragePlugin
from replog.storage.protocol import Recovered, Storage
from replog.storage.recovery import find_content_end
from replog.storage.snapshot_writer import SnapshotInfo
from replog.storage.snapshots import SnapshotStore
from replog.storage.wal import Wal, WalPlugin
from replog.testing.disk import Disk, Group, is_same
from replog.testing.files import (
    Crashed,
    ForgetfulFiles,
    Keep,
    KeepEverything,
    KeepLatest,
    KeepNothing,
    KeepPrefix,
    KeepSectors,
)
from replog.testing.log_disk import ENGINE, LogDisk
from replog.testing.snapshot_disk import CLUSTER_ID, EPOCH, MACHINE, NODE_PATH, SYNC_BYTES
from replog.types import Entry, LogIndex, NodeId, Voter, record

WRITE_BYTES_MAX: Final = 1000
"""A write takes no more than this at once, so that some groups take several."""

PREFIX_BYTES_MAX: Final = 600
"""A crash that leaves a prefix leaves fewer bytes of each file than this."""

LOOKING: Final = ("read", "names", "open", "size_bytes", "mode", "close")
"""The operations that change nothing on the disk."""

SYNCING: Final = ("sync", "sync_directory")
"""Those that make durable what was changed."""


class Mode(Enum):
    """How an operation is struck; see the module."""

    NOTHING = "crash, nothing unsynced stays"
    TORN = "crash, a random half of it stays"
    PREFIX = "crash, a prefix of it stays"
    LATEST = "crash, the last change alone stays"
    EVERYTHING = "crash, all of it stays"
    FAILS = "EIO, all of it stays"
    FAILS_LOST = "EIO, nothing of it stays"
    FLIPPED = "a bit flips in what it wrote"

    @property
    def is_failure(self) -> bool:
        """Whether the operation is told to fail, and the process goes on."""
        return self in (Mode.FAILS, Mode.FAILS_LOST)

    def keep(self, random: Random) -> Keep:
        """What is left of all that was not synced."""
        if self is Mode.TORN:
            return KeepSectors(random.randrange(1 << 30))
        if self is Mode.PREFIX:
            return KeepPrefix(random.randrange(1, PREFIX_BYTES_MAX))
        if self is Mode.LATEST:
            return KeepLatest()
        if self in (Mode.EVERYTHING, Mode.FAILS):
            return KeepEverything()
        return KeepNothing()


@record
class Operation:
    """One operation on the files of the node under test."""

    scene: str
    """What the node went through."""
    name: str
    path: Path


@record
class Strike:
    """One operation, and how it is struck."""

    number: int
    """Of the operation, from 1 in the whole run."""
    operation: str
    path: Path
    mode: Mode

    @property
    def is_failed_look(self) -> bool:
        """Whether something fails that changes nothing on the disk."""
        return self.mode.is_failure and self.operation in LOOKING


Meet = Callable[[str, Path], Strike | None]
"""Is told of each operation before it takes effect; says whether it is struck."""


class StruckFiles(ForgetfulFiles):
    """Files of which each operation may be struck.  Copies of them are plain ones."""

    def __init__(self, meet: Meet, seed: int) -> None:
        super().__init__(WRITE_BYTES_MAX)
        self.keep: Keep = KeepNothing()
        """What the next crash leaves, whatever it is told."""
        self.strike: Strike | None = None
        """The one that has happened."""
        self.is_over = False
        """Whether nothing is struck any more."""
        self._meet = meet
        self._seed = seed
        self._is_seen = True
        self._flip_next = False

    def __deepcopy__(self, memo: dict[int, object]) -> ForgetfulFiles:
        copy = ForgetfulFiles()
        names = vars(copy)
        own = {name: value for name, value in vars(self).items() if name in names}
        own["fault"] = None
        vars(copy).update(deepcopy(own, memo))
        return copy

    @contextmanager
    def unseen(self) -> Iterator[None]:
        """Look at the files as a test does; what is done meanwhile is no operation of the node."""
        before, self._is_seen = self._is_seen, False
        try:
            yield
        finally:
            self._is_seen = before

    def crash(self, keep: Keep) -> None:
        """See :meth:`replog.testing.files.ForgetfulFiles.crash`."""
        super().crash(self.keep)

    def write(self, descriptor: Descriptor, data: bytes | memoryview, offset: int) -> int:
        """See :meth:`replog.storage.files.FileLayer.write`."""
        taken = super().write(descriptor, data, offset)
        if self._flip_next:
            self._flip_next = False
            random, written = self._random(), bytearray(data[:taken])
            written[random.randrange(taken)] ^= 1 << random.randrange(8)
            super().write(descriptor, bytes(written), offset)
        return taken

    def _count(self, operation: str, path: Path) -> None:
        if self._is_seen and self.strike is None and not self.is_over:
            self.strike = self._meet(operation, path)
            if self.strike is not None:
                self._be_struck(self.strike)
        super()._count(operation, path)

    def _random(self) -> Random:
        assert self.strike is not None
        return Random(f"{self._seed}/{self.strike.number}/{self.strike.mode.name}")

    def _be_struck(self, strike: Strike) -> None:
        self.keep = strike.mode.keep(self._random())
        if strike.mode is Mode.FLIPPED:
            self._flip_next = True
        elif strike.mode.is_failure:
            self.fault = _pass
            raise OSError(errno.EIO, "Input/output error", str(strike.path))
        else:
            self.fault = _stay_crashed
            _stay_crashed(strike.number, strike.operation, strike.path)


class StruckLog(LogDisk):
    """The log and the snapshots of the node under test, on files that are struck."""

    __slots__ = ("_bodies", "_plugin", "overwritten_count", "struck_files")

    def __init__(self, node_id: NodeId, files: StruckFiles, plugin: StoragePlugin) -> None:
        self.struck_files = files
        self._plugin = plugin
        self._bodies: dict[LogIndex, bytes] = {}
        """What was written last at each index."""
        self.overwritten_count = 0
        """How many entries were voided by another one, or by a truncation."""
        super().__init__(node_id, files)

    def found(self) -> None:
        """Make the directory, unless an attempt that was struck has come to its end."""
        with self.struck_files.unseen():
            is_made = self._has_identity()
        if is_made:
            return
        node_id = self._home.node_id
        voters = (Voter(node_id, node_id),)
        founding = FoundingRecord(FOUNDING_VERSION, CLUSTER_ID, ENGINE, self._plugin.name, voters)
        init_directory(self.files, NODE_PATH, founding, node_id, self._plugin)
        self.files.crash(KeepNothing())

    def _has_identity(self) -> bool:
        with suppress(FileNotFoundError):
            return IDENTITY_NAME in self.files.names(NODE_PATH)
        return False

    def _log_on(self, files: ForgetfulFiles) -> Storage:
        return self._plugin.open(replace(self._home, files=files))

    def persist(self, group: Group) -> None:
        """See :meth:`replog.testing.log_disk.LogDisk.persist`."""
        super().persist(group)
        for write in group.writes:
            if write.truncate_from is not None:
                self._void([index for index in self._bodies if index >= write.truncate_from])
            changed = [entry for entry in write.entries if self._differs(entry)]
            self._void([entry.index for entry in changed])
            self._bodies.update((entry.index, entry.body) for entry in write.entries)

    def _differs(self, entry: Entry) -> bool:
        return self._bodies.get(entry.index, entry.body) != entry.body

    def _void(self, indexes: Sequence[LogIndex]) -> None:
        self.overwritten_count += len(indexes)
        for index in indexes:
            del self._bodies[index]

    def unseen(self) -> AbstractContextManager[None]:
        """See :meth:`StruckFiles.unseen`."""
        return self.struck_files.unseen()

    def crash(self, disk: Disk, random: Random, keep: Keep | None = None) -> Keep:
        """The run is over; what was on its way is uncertain from now on."""
        self.uncertain += disk.pending
        self._log = None
        self.files.crash(KeepNothing())  # or what the files were told to keep
        return self.struck_files.keep

    def close(self) -> None:
        """End a run in order, as far as the log goes."""
        assert self._log is not None
        self._log.close()

    def recover(self) -> Recovered:
        """See :meth:`replog.testing.log_disk.LogDisk.recover`."""
        self._check_directory()
        with self.struck_files.unseen():
            before = self._content()
        log = self._log_on(self.files)
        recovered = log.recover()
        self._log = log
        with self.struck_files.unseen():
            self.torn_count += self._content() != before
            if isinstance(log, Wal) and not self._is_flipped:
                self.is_end_clean = find_content_end(self.files.read(self.path)) <= log.end
        return recovered

    @property
    def _is_flipped(self) -> bool:
        strike = self.struck_files.strike
        return strike is not None and strike.mode is Mode.FLIPPED

    def _check_directory(self) -> None:
        _check_directory(self.files, self._home, self._plugin)

    def _content(self) -> dict[str, bytes]:
        """What is in the files of the log, zeros at their ends aside."""
        files = self.files
        names = [name for name in files.names(NODE_PATH) if name.endswith(".seg")]
        return {name: files.read(NODE_PATH / name).rstrip(b"\0") for name in names}

    def rehearse_write(self, group: Group, seed: int) -> str:
        """Nothing is rehearsed where every operation is struck."""
        return ""

    def rehearse(self, found: Recovered, random: Random) -> str:
        """See :meth:`rehearse_write`."""
        return ""

    def outlasts_power_cut(self, found: Recovered) -> bool:
        """What :meth:`problem_of_recovery` has seen of the same files is not looked at again."""
        return True

    def problem_of_recovery(self) -> str:
        """What is wrong, if a node that is started on what is there, and whose power is cut or
        whose process ends right then, finds something else the next time."""
        files = deepcopy(self.files)
        found = self._found_on(files)
        # The harder one first: what of the recovery itself was not synced is gone.
        for keep in (KeepNothing(), KeepEverything()):
            again = deepcopy(files)
            again.crash(keep)
            if not _is_same_found(found, self._found_on(again)):
                return f"a second recovery, after {type(keep).__name__}, finds something else"
        return ""

    def _found_on(self, files: ForgetfulFiles) -> tuple[Recovered, SnapshotInfo | None]:
        """What a start finds, verified to its end."""
        home = replace(self._home, files=files)
        _check_directory(files, home, self._plugin)
        recovered = self._log_on(files).recover()
        store = SnapshotStore(files, NODE_PATH, CLUSTER_ID, SYNC_BYTES)
        newest = find_newest(MachineHome(files, NODE_PATH, MACHINE, EPOCH), store, recovered.log)
        if newest is not None:
            store.verify(newest, None)
        return recovered, newest


class SmallWal(WalPlugin):
    """The write-ahead log with segments so small that a short run fills several."""

    def open(self, home: StorageHome) -> Storage:
        """See :meth:`~replog.storage.plugin.StoragePlugin.open`."""
        return Wal(home, segment_bytes=1536, extend_bytes=1536, reserve_bytes=64)


def _check_directory(files: ForgetfulFiles, home: StorageHome, plugin: StoragePlugin) -> None:
    directory = open_directory(
        NODE_PATH,
        cluster_id=CLUSTER_ID,
        node_id=home.node_id,
        engine=ENGINE,
        storage=plugin.name,
        plugin=plugin,
        files=files,
    )
    directory.close()


def _is_same_found(
    one: tuple[Recovered, SnapshotInfo | None], other: tuple[Recovered, SnapshotInfo | None]
) -> bool:
    return is_same(one[0], other[0]) and one[1] == other[1]


def _pass(_: int, operation: str, path: Path) -> None:
    """The disk works again; what failed has failed."""


def _stay_crashed(_: int, operation: str, path: Path) -> NoReturn:
    raise Crashed(f"{operation} of {path.name}")
