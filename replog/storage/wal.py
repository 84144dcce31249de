"""The write-ahead log: what was persisted survives a crash, as a whole group or not at all.

One file, ``log-0000000000000001.seg``, whose bytes :mod:`replog.storage.segment` defines and whose
reading :mod:`replog.storage.recovery` judges.

How a group gets to disk: ``encode`` makes its bytes on the event loop; ``persist`` is one write
and one sync and hardly any Python, because it may run in a thread beside the loop and would hold
the interpreter there.  ``encode`` touches only the sequence and the chain, ``persist`` only the
file and its offsets, so the two need no lock.

The file is extended ahead of its groups, in steps, and each step is synced *before* a group is
written into it.  So a sync of a group writes no size, the file is never shorter than its groups
and a file that was cut is noticed.  Within an extension, zeros are written a little ahead of the
groups: the first write to a block that is only allocated changes the file's layout, and a sync has
to write that change too (450 against 320 us for groups of 64 commands, 640 against 390 for groups
of 1024, three processes syncing on one ext4).

Recovery leaves the disk such that a second one finds the same:

* A torn group is overwritten with zeros, so that its remains are never read as a group later.
* The last group is written once more.  The process may have been killed between its write and
  its sync, or its sync may have failed: then it is read from memory, and the disk does not hold
  it.  (A kernel may mark pages clean whose writing failed, so a sync alone is not enough.)
* Only then, after a sync, is anything reported as recovered.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NoReturn

from replog.errors import DirectoryError, LogDamaged, StorageFailed
from replog.limits import MIB
from replog.storage.files import Descriptor, write_all
from replog.storage.plugin import StorageHome
from replog.storage.protocol import Recovered, Storage, Write
from replog.storage.recovery import TAIL_BYTES, Scanned, scan_groups
from replog.storage.replay import Replay
from replog.storage.segment import (
    DAMAGE_REMEDY,
    HEAD_BYTES,
    SegmentHeader,
    group_sequence,
    header_salt,
    pack_group,
    pack_header,
    segment_name,
    unpack_header,
)
from replog.types import NO_NODE, HardState

EXTEND_BYTES: Final = 16 * MIB
"""How far the file is extended at a time; an extension costs about two syncs."""
WRITE_AHEAD_BYTES: Final = 1 * MIB
"""How far zeros are written ahead of the groups at a time."""
FOUNDING_BYTES: Final = 4096
"""The size of a log that was founded and never written."""

_SEGMENT: Final = 1
_FIRST_EPOCH: Final = 1


class Wal:
    """The log of one node; see :class:`~replog.storage.protocol.Storage` for the contract."""

    durable = True

    def __init__(self, home: StorageHome, extend_bytes: int = EXTEND_BYTES) -> None:
        assert extend_bytes > 0
        self._home = home
        self._files = home.files
        self._path = home.path / segment_name(_SEGMENT)
        self._extend_bytes = extend_bytes
        self._failure: str | None = None
        # Of the event loop.
        self._salt = 0
        self._sequence = 0
        """Of the last group that was encoded."""
        self._chain = 0
        # Of whoever persists.
        self._file: Descriptor | None = None
        self._persisted_sequence = 0
        self._end = 0
        """Where the next group goes."""
        self._allocated = 0
        """The size of the file."""
        self._written = 0
        """Up to here every block was written, be it with zeros."""

    @property
    def path(self) -> Path:
        """The file."""
        return self._path

    @property
    def end(self) -> int:
        """The offset behind the last group that is durable."""
        return self._end

    def recover(self) -> Recovered:
        """Read everything; see :meth:`~replog.storage.protocol.Storage.recover`.

        Raises :class:`~replog.errors.LogDamaged` (missing, empty, damaged: three sentences),
        :class:`~replog.errors.DirectoryError` (the log of somebody else),
        :class:`~replog.errors.UnknownFormat` and :class:`~replog.errors.StorageFailed`.
        """
        assert self._file is None, "recover is called once"
        data = self._read()
        header = unpack_header(self._path, data)
        self._check_owner(header)
        replay = Replay()
        with _collection_paused():
            scanned = scan_groups(self._path, data, header, replay)
            recovered = replay.recovered()
        try:
            self._file = self._files.open(self._path)
            self._settle(self._file, data, scanned)
        except OSError as error:
            self._fail("the end of the log again", error)
        self._salt = header_salt(data)
        self._sequence = self._persisted_sequence = scanned.last_sequence
        self._chain = scanned.chain
        self._end = scanned.end
        self._allocated = len(data)
        self._written = scanned.end
        if header.segment == 1 and scanned.last_sequence == 1:
            # Only the founding's own group: nobody has voted or written here.
            return Recovered(None, recovered.entries)
        return recovered

    def _read(self) -> bytes:
        try:
            data = self._files.read(self._path)
        except FileNotFoundError as error:
            raise LogDamaged(
                f"{self._path} is missing, although the directory was initialised with it; put "
                "the file back if it was moved (not an older copy of it), and if it is lost, keep "
                "this node stopped: without its log it must not vote"
            ) from error
        except OSError as error:
            raise StorageFailed(f"{self._path} cannot be read: {error.strerror}") from error
        if not data:
            raise LogDamaged(
                f"{self._path} is empty, although a log has a header from its founding on; "
                f"{DAMAGE_REMEDY}"
            )
        return data

    def _check_owner(self, header: SegmentHeader) -> None:
        home = self._home
        found = (header.cluster_id, header.node_id, header.incarnation, header.segment)
        if found == (home.cluster_id, home.node_id, home.incarnation, _SEGMENT):
            return
        raise DirectoryError(
            f"{self._path} is segment {header.segment} of the log of node {header.node_id}, "
            f"incarnation {header.incarnation}, of cluster {header.cluster_id!r}, and this "
            f"directory is that of node {home.node_id}, incarnation {home.incarnation}, of cluster "
            f"{home.cluster_id!r}; put the right file back, and never copy a log between nodes"
        )

    def _settle(self, file: Descriptor, data: bytes, scanned: Scanned) -> None:
        """Make what was found durable, and what is torn zero, as the module's docstring says."""
        if scanned.content_end > scanned.end:
            # The head goes last, and only when nothing is left behind it, so that a crash amid the
            # wiping leaves what is still seen to be torn.
            self._wipe(file, scanned.end + HEAD_BYTES, scanned.content_end)
            self._wipe(file, scanned.end, scanned.end + HEAD_BYTES)
        last_group = data[scanned.last_offset : scanned.end]
        write_all(self._files, file, last_group, scanned.last_offset)
        self._files.sync(file)

    def _wipe(self, file: Descriptor, start: int, end: int) -> None:
        if start < end:
            write_all(self._files, file, bytes(end - start), start)
            self._files.sync(file)

    def encode(self, writes: Sequence[Write]) -> bytes:
        """The bytes of one group; see :meth:`~replog.storage.protocol.Storage.encode`."""
        self._check_usable()
        group, self._chain = pack_group(writes, self._sequence + 1, self._chain, self._salt)
        self._sequence += 1
        return group

    def persist(self, group: bytes) -> None:
        """Write and sync one group; see :meth:`~replog.storage.protocol.Storage.persist`."""
        file = self._check_usable()
        if group_sequence(group) != self._persisted_sequence + 1:
            # Not an assert: out of order the groups would be refused at the next recovery.
            raise AssertionError("groups are persisted in the order in which they were encoded")
        end = self._end + len(group)
        try:
            if end + TAIL_BYTES > self._written:
                self._make_room(file, end + TAIL_BYTES)
            write_all(self._files, file, group, self._end)
            self._files.sync(file)
        except OSError as error:
            self._fail(f"group {self._persisted_sequence + 1}", error)
        self._end = end
        self._persisted_sequence += 1

    def _make_room(self, file: Descriptor, size_bytes_min: int) -> None:
        """Extend the file if it must be, and write zeros ahead within it."""
        if size_bytes_min > self._allocated:
            self._extend(file, size_bytes_min)
        ahead = (size_bytes_min // WRITE_AHEAD_BYTES + 1) * WRITE_AHEAD_BYTES
        written = min(ahead, self._allocated)
        write_all(self._files, file, bytes(written - self._written), self._written)
        self._written = written

    def _extend(self, file: Descriptor, size_bytes_min: int) -> None:
        step = self._extend_bytes
        size_bytes = (size_bytes_min + step - 1) // step * step
        self._files.preallocate(file, self._allocated, size_bytes - self._allocated)
        self._files.sync(file)
        self._allocated = size_bytes

    def _check_usable(self) -> Descriptor:
        if self._failure is not None:
            raise StorageFailed(self._failure)
        assert self._file is not None, "between recover and close"
        return self._file

    def _fail(self, what: str, error: OSError) -> NoReturn:
        """Poison the log: nothing is retried, for a failed sync may have dropped its pages."""
        self._failure = (
            f"{self._path}: writing {what} failed ({error.strerror or error}), so what is on disk "
            "is not known any more and the node stops; repair the disk, or free some space on it, "
            "and start the node again"
        )
        raise StorageFailed(self._failure) from error

    def close(self) -> None:
        """Release the file; may be called again."""
        if self._file is not None:
            file, self._file = self._file, None
            self._files.close(file)


@contextmanager
def _collection_paused() -> Iterator[None]:
    """Pause the cyclic garbage collector, which finds nothing in a growing heap of entries.

    Reading 1,000,000 entries takes 0.8 s of processor time so, and 1.5 s with the collector on.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def found_log(home: StorageHome) -> None:
    """Make the empty log of ``home``; its bytes are durable on return, its name need not be.

    Replaces what an interrupted founding left.  Raises
    :class:`~replog.errors.DirectoryError` for a log that holds more than a founding writes.
    """
    path = home.path / segment_name(_SEGMENT)
    header = pack_header(
        SegmentHeader(
            home.cluster_id, home.node_id, home.incarnation, _SEGMENT, first_sequence=1, chain=0
        )
    )
    opening = Write(HardState(_FIRST_EPOCH, 0, NO_NODE), None, ())
    group, _ = pack_group([opening], sequence=1, chain=0, salt=header_salt(header))
    content = header + group
    if path.name in home.files.names(home.path):
        if any(home.files.read(path)[len(content) :]):
            raise DirectoryError(
                f"{path} is a log that was written to, in a directory without an identity; a node "
                "made anew would forget what it voted: put the identity back, or choose another "
                "directory"
            )
        home.files.remove(path)
    file = home.files.create(path)
    try:
        write_all(home.files, file, content.ljust(FOUNDING_BYTES, b"\0"), 0)
        home.files.sync(file)
    finally:
        home.files.close(file)


class WalPlugin:
    """The storage ``wal``."""

    name = "wal"
    title = "write-ahead log on disk, synced before anything is acknowledged"
    durable = True

    def owns(self, name: str) -> bool:
        """See :meth:`~replog.storage.plugin.StoragePlugin.owns`."""
        return name == segment_name(_SEGMENT)

    def found(self, home: StorageHome) -> None:
        """See :func:`found_log`."""
        found_log(home)

    def open(self, home: StorageHome) -> Storage:
        """See :meth:`~replog.storage.plugin.StoragePlugin.open`."""
        return Wal(home)


WAL: Final = WalPlugin()
