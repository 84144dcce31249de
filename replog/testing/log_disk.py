"""The real write-ahead log under a simulated node, on files that forget what was not synced.

The modelled disk (:class:`~replog.testing.disk.Disk`) says what must be there; the log's own code
(:mod:`replog.storage.wal`) says what it finds.  After every crash the two are compared: a group
that was synced must be found, one that was on its way may be found whole or not at all, and nothing
else may be.

A crash here strikes within a system call: at the first, second or a later operation on the files
(recovery included), with what was not synced kept, lost, or torn by sectors.  And one strikes right
after the init that made the node's directory, which is durable when it returns.
"""

from __future__ import annotations

import errno
from pathlib import Path, PurePosixPath
from random import Random
from typing import Final

from replog.errors import StorageFailed
from replog.storage.directory import init_directory, open_directory
from replog.storage.identity import FOUNDING_VERSION, FoundingRecord
from replog.storage.plugin import StorageHome
from replog.storage.protocol import Recovered, Storage
from replog.storage.segment import segment_name
from replog.storage.wal import WAL, Wal
from replog.testing.disk import Disk, Group
from replog.testing.files import (
    Crashed,
    ForgetfulFiles,
    Keep,
    KeepEverything,
    KeepNothing,
    KeepPrefix,
    KeepSectors,
)
from replog.types import NodeId, Voter

EXTEND_BYTES: Final = 1024
"""The log file grows by little, so that it grows often, and a crash may keep what is written in it
and not how far it grew."""

WRITE_BYTES_MAX: Final = 100
"""A write takes no more than this at once, so most groups take several."""

ERRORS: Final = (errno.EIO, errno.ENOSPC)

_PATH: Final = Path(PurePosixPath("/data/node"))
_CLUSTER_ID: Final = "simulated"
_ENGINE: Final = "simulated"


class LogDisk:
    """The log of one node, through all its runs."""

    __slots__ = ("_home", "_log", "files", "torn_count", "uncertain")

    def __init__(self, node_id: NodeId) -> None:
        self.files = ForgetfulFiles(WRITE_BYTES_MAX)
        self._home = StorageHome(self.files, _PATH, _CLUSTER_ID, node_id, node_id)
        voters = (Voter(node_id, node_id),)
        founding = FoundingRecord(FOUNDING_VERSION, _CLUSTER_ID, _ENGINE, WAL.name, voters)
        init_directory(self.files, _PATH, founding, node_id)
        self.files.crash(KeepNothing())
        self._log: Storage | None = None
        self.uncertain: list[Group] = []
        """The groups that were on their way when the last run ended, oldest first."""
        self.torn_count = 0
        """How many recoveries found the remains of a group and cut them off."""

    def write(self, group: Group) -> None:
        """Encode a group that is on its way now."""
        assert self._log is not None
        group.data = self._log.encode(group.writes)

    def persist(self, group: Group) -> None:
        """Make a group durable; raises ``StorageFailed`` or ``Crashed`` when that was set up."""
        assert self._log is not None
        self._log.persist(group.data)

    def set_fault(self, random: Random) -> None:
        """Let one of the next few operations on the files fail, as a disk does."""
        number = random.choice(ERRORS)
        at = self.files.operations_count + random.randint(1, 3)

        def fail(count: int, operation: str, path: Path) -> None:
            if count >= at and operation in ("write", "sync", "preallocate"):
                raise OSError(number, errno.errorcode[number], str(path))

        self.files.fault = fail

    def set_crash(self, operations: int) -> None:
        """Let the machine crash at the ``operations``-th operation on the files from now."""
        at = self.files.operations_count + operations

        def crash(count: int, operation: str, _: Path) -> None:
            if count >= at:
                raise Crashed(operation)

        self.files.fault = crash

    def crash(self, disk: Disk, random: Random) -> None:
        """The run is over: the group on its way was written, in part or not at all.

        ``disk`` is the model, whose pending groups are the uncertain ones from now on.
        """
        self.uncertain += disk.pending
        if self._log is not None and self.files.fault is None and disk.pending:
            self.set_crash(random.randint(1, 3))
            try:
                self._log.persist(disk.pending[0].data)
            except (Crashed, StorageFailed):
                pass
            else:
                # Synced, and the node did not learn of it.
                pass
        self._log = None
        self.files.crash(_drawn_keep(random))

    def flip_bit(self, random: Random) -> None:
        """Damage one byte of the log that holds something, behind everybody's back."""
        path = self._home.path / segment_name(1)
        data = self.files.read(path)
        held = [at for at, byte in enumerate(data) if byte]
        at = random.choice(held)
        self.files.corrupt(path, at, bytes([data[at] ^ (1 << random.randrange(8))]))

    def recover(self) -> Recovered:
        """Open the log anew; raises ``LogDamaged``, ``StorageFailed`` or ``Crashed``."""
        directory = open_directory(
            _PATH,
            cluster_id=_CLUSTER_ID,
            node_id=self._home.node_id,
            engine=_ENGINE,
            storage=WAL.name,
            files=self.files,
        )
        directory.close()  # the real one stays locked; a simulated node has no rival
        log = Wal(self._home, EXTEND_BYTES)
        before = self.files.read(log.path)
        recovered = log.recover()
        self._log = log
        # What was whole is written once more as it was; what was torn is wiped.
        self.torn_count += self.files.read(log.path) != before
        return recovered


def _drawn_keep(random: Random) -> Keep:
    kind = random.randrange(4)
    if kind == 0:
        return KeepNothing()
    if kind == 1:
        return KeepEverything()
    if kind == 2:
        return KeepPrefix(random.choice((1, 8, 40, random.randint(1, 2000))))
    return KeepSectors(random.randrange(1 << 30))
