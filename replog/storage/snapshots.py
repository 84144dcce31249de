"""The snapshots in a node's directory: which there are, and how they come and go.

Each is one file, ``snapshot-<last index, 20 digits>-<term at it, 16 hex digits>.snap``, so that the
names sort as the snapshots do.  Whatever has such a name was complete and synced before it got it
(:mod:`replog.storage.snapshot_writer`, :mod:`replog.storage.snapshot_transfer`), so no crash leaves
a damaged one: damage is the disk's, and is reported, never passed over.

The rules:

* ``recover`` comes first: what an earlier process saw of the names may not have been durable.
* Nothing is filled from a snapshot before ``verify`` has read it to its end.
* The newest intact snapshot is never removed; that it is intact is read, not remembered.
* One snapshot arrives at a time; what is left of another one is removed.

All calls block.  Snapshots are taken and removed in one thread, and sent and received in another:
who opens one that is being removed is told that it is gone.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import Final

from replog.errors import (
    DirectoryError,
    SchemaError,
    SnapshotDamaged,
    StorageFailed,
)
from replog.limits import MIB
from replog.storage.files import FileLayer
from replog.storage.snapshot_format import SNAPSHOT_BYTES_MIN, damaged, meta_problem
from replog.storage.snapshot_reader import SnapshotReader, end_mark, file_bytes, open_file, replaced
from replog.storage.snapshot_transfer import IncomingSnapshot, OutgoingSnapshot
from replog.storage.snapshot_writer import SnapshotInfo, SnapshotWriter, discard, sync_directory
from replog.types import EntryId, LogIndex, SnapshotMeta

SYNC_BYTES: Final = 8 * MIB
"""How often a snapshot that arrives is synced."""

_STEM: Final = r"snapshot-([0-9]{20})-([0-9a-f]{16})"
_NAME: Final = re.compile(rf"{_STEM}\.snap")
_TEMPORARY_NAME: Final = re.compile(rf"{_STEM}\.snap\.tmp")
_PART_NAME: Final = re.compile(rf"{_STEM}-[0-9a-f]{{16}}-[0-9a-f]{{8}}\.part")


def snapshot_name(last: EntryId) -> str:
    """The file name of the snapshot that ends with ``last``."""
    return f"snapshot-{last.index:020d}-{last.term:016x}.snap"


def snapshot_index(name: str) -> LogIndex:
    """The last index of the snapshot with this file name; 0 for every other name."""
    match = _NAME.fullmatch(name)
    return int(match.group(1)) if match else 0


def part_name(last: EntryId, size_bytes: int, checksum: int) -> str:
    """The file name of a snapshot that arrives, with what tells it from every other one."""
    stem = snapshot_name(last).removesuffix(".snap")
    return f"{stem}-{size_bytes:016x}-{checksum:08x}.part"


class SnapshotStore:
    """The snapshots of one node."""

    def __init__(
        self, files: FileLayer, path: Path, cluster_id: str, sync_bytes: int = SYNC_BYTES
    ) -> None:
        assert sync_bytes > 0
        self._files = files
        self._path = path
        """The node's directory."""
        self._cluster_id = cluster_id
        self._sync_bytes = sync_bytes
        self._recovered = False
        self.unfinished: tuple[str, ...] = ()
        """The names (see :func:`part_name`) of what ``recover`` found of snapshots that arrive."""

    def recover(self) -> SnapshotInfo | None:
        """Settle what the last process left, and tell the newest snapshot; called once, first.

        Unfinished snapshots are removed, and so is what arrived of one that is no newer than the
        newest here.  Errors as of :meth:`newest`.
        """
        assert not self._recovered
        newest = self._newest_index()
        for name in self._names():
            part = _PART_NAME.fullmatch(name)
            if _TEMPORARY_NAME.fullmatch(name) or (part and int(part.group(1)) <= newest):
                discard(self._files, None, self._path / name)
            elif part:
                self.unfinished += (name,)
        # A snapshot that the last process published may have a name in memory only.
        sync_directory(self._files, self._path)
        self._recovered = True
        return self.newest()

    def list(self) -> tuple[SnapshotInfo, ...]:
        """All snapshots, the oldest first, as their heads and their end marks tell.

        Raises :class:`~replog.errors.SnapshotDamaged` for one that lacks either,
        :class:`~replog.errors.DirectoryError` for one of another cluster,
        :class:`~replog.errors.UnknownFormat` and :class:`~replog.errors.StorageFailed`.
        """
        return tuple(self.info(path) for path in self.paths())

    def newest(self) -> SnapshotInfo | None:
        """The newest snapshot; ``None``: there is none.  Errors as of :meth:`list`, for the newest
        alone."""
        paths = self.paths()
        return self.info(paths[-1]) if paths else None

    def paths(self) -> tuple[Path, ...]:
        """Where the snapshots are, the oldest first."""
        return tuple(self._path / name for name in self._names() if _NAME.fullmatch(name))

    def info(self, path: Path) -> SnapshotInfo:
        """What the head and the end of the snapshot at ``path`` tell, without what is between them;
        errors as of :meth:`list`, and :class:`~replog.errors.SnapshotGone`."""
        with SnapshotReader(self._files, path, self._cluster_id) as reader:
            meta = reader.meta
        file = open_file(self._files, path)
        try:
            size_bytes = file_bytes(self._files, file, path)
            end = end_mark(self._files, file, path, size_bytes)
        finally:
            self._files.close(file)
        if end is None or end.size_bytes != size_bytes:
            raise damaged(path, size_bytes, "the end mark is missing")
        if snapshot_name(meta.last) != path.name:
            raise DirectoryError(
                f"{path} is the snapshot {snapshot_name(meta.last)} under a wrong name; rename it"
            )
        return SnapshotInfo(path, meta, size_bytes, end.checksum)

    def begin(self, meta: SnapshotMeta) -> SnapshotWriter:
        """Begin to write the snapshot of ``meta``.

        Raises :class:`~replog.errors.SnapshotFailed` (no room; the node goes on) and
        :class:`~replog.errors.StorageFailed`.
        """
        assert self._recovered
        assert not meta_problem(meta), meta_problem(meta)
        path = self._path / snapshot_name(meta.last)
        return SnapshotWriter(self._files, path, self._cluster_id, meta)

    def open(self, info: SnapshotInfo) -> SnapshotReader:
        """Read a snapshot; ``verify`` it before.  Close the reader.

        Raises :class:`~replog.errors.SnapshotGone` when it was removed since it was listed, and
        what :meth:`list` raises.
        """
        return SnapshotReader(self._files, info.path, self._cluster_id)

    def verify(self, info: SnapshotInfo, known: Collection[str] | None) -> None:
        """Read a snapshot to its end, in constant memory; ``known`` are the names of the sections
        that can be read, ``None`` stands for every name.

        Raises what :meth:`open` raises, and :class:`~replog.errors.UnknownFormat` for a mandatory
        section of another name.
        """
        with self.open(info) as reader:
            reader.verify(known)
            if (reader.meta, reader.checksum) != (info.meta, info.checksum):
                raise replaced(info.path)

    def remove_older(self, keep: int = 1) -> LogIndex:
        """Remove every snapshot that is older than the newest ``keep`` intact ones, and return the
        last index of the newest intact one; 0: there is none.

        Each of those is read to its end before anything is removed.  A damaged one that is newer
        than they stays, for somebody to look at.
        """
        assert keep > 0
        paths = [*self.paths()]
        intact = newest_index = 0
        while paths and intact < keep:
            path = paths.pop()
            if self._is_intact(path):
                newest_index = newest_index or snapshot_index(path.name)
                intact += 1
        # What is left is older than they; nothing is, where there are not as many.
        for path in paths:
            # The oldest first and one by one, so that a crash leaves no gap among them.
            discard(self._files, None, path)
            sync_directory(self._files, path.parent)
        return newest_index

    def receive(self, meta: SnapshotMeta, size_bytes: int, checksum: int) -> IncomingSnapshot:
        """Take the snapshot of ``meta`` from a peer, from where an earlier transfer broke off.

        ``size_bytes`` and ``checksum`` are the peer's :class:`SnapshotInfo`.  Raises
        :class:`~replog.errors.SchemaError` for what no snapshot can be, and errors as of
        :meth:`begin`.
        """
        assert self._recovered
        problem = meta_problem(meta)
        if not SNAPSHOT_BYTES_MIN <= size_bytes < 1 << 63 or not 0 <= checksum < 1 << 32:
            problem = f"it has {size_bytes} bytes or the checksum {checksum}"
        if problem:
            raise SchemaError(f"a snapshot is offered that cannot be one: {problem}")
        part = self._path / part_name(meta.last, size_bytes, checksum)
        for name in self._names():
            if _PART_NAME.fullmatch(name) and name != part.name:
                discard(self._files, None, self._path / name)
        info = SnapshotInfo(self._path / snapshot_name(meta.last), meta, size_bytes, checksum)
        return IncomingSnapshot(self._files, part, info, self._cluster_id, self._sync_bytes)

    def outgoing(self, info: SnapshotInfo) -> OutgoingSnapshot:
        """Read a snapshot as it is, to send it to one peer; errors as of :meth:`open`."""
        return OutgoingSnapshot(self._files, info)

    def _is_intact(self, path: Path) -> bool:
        try:
            self.verify(self.info(path), None)
        except SnapshotDamaged:
            # Nothing rests on it here: it only does not count.
            return False
        return True

    def _newest_index(self) -> LogIndex:
        """The last index of the newest snapshot by its name; 0: there is none."""
        return max(map(snapshot_index, self._names()), default=0)

    def _names(self) -> tuple[str, ...]:
        try:
            return tuple(self._files.names(self._path))
        except OSError as error:
            raise StorageFailed(
                f"{self._path} cannot be read: {error.strerror or error}"
            ) from error
