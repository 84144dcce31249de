"""How a snapshot gets to disk: under a name of no meaning until it is whole and synced.

The rules:

* What is written is durable and complete before it has the name of a snapshot, and the name is
  durable before ``publish`` returns.  A crash leaves a file that ends in ``.tmp``, or nothing.
* At most one block is held in memory, however the writer's data come.
* A disk without room ends the snapshot, not the node: what was written is removed, and nothing
  rested on it.  Any other failure of the disk stops the node, here as everywhere.
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import NoReturn

from replog.errors import SnapshotFailed, StorageFailed
from replog.storage.files import NO_ROOM, Descriptor, FileLayer, temporary_path, write_all
from replog.storage.snapshot_format import (
    BLOCK_BYTES_MAX,
    END_BYTES,
    RECORD_BLOCK,
    RECORD_END,
    RECORD_META,
    RECORD_SECTION,
    pack_end,
    pack_header,
    pack_meta,
    pack_record,
    pack_section,
    record_checksum,
)
from replog.types import SnapshotMeta, record


@record
class SnapshotInfo:
    """A snapshot in a node's directory."""

    path: Path
    meta: SnapshotMeta
    size_bytes: int
    checksum: int
    """As its end mark has it: of the whole file."""


class SnapshotWriter:
    """One snapshot in the making; see :meth:`replog.storage.snapshots.SnapshotStore.begin`.

    As a context manager it is aborted unless it was published.
    """

    def __init__(self, files: FileLayer, path: Path, cluster_id: str, meta: SnapshotMeta) -> None:
        header, self._chain = pack_header(cluster_id)
        self._files = files
        self._path = path
        self._temporary = temporary_path(path)
        self._meta = meta
        self._buffer = bytearray()
        """What is not yet a block."""
        self._names: list[str] = []
        """Of the sections, in their order."""
        self._end = 0
        self._file: Descriptor | None = None
        """``None`` when the snapshot is published, aborted or failed."""
        try:
            self._file = files.create(self._temporary)
            write_all(files, self._file, header, 0)
        except OSError as error:
            self._fail(error)
        self._end = len(header)
        self._put(RECORD_META, pack_meta(meta))

    def section(self, name: str, *, mandatory: bool) -> None:
        """Begin a section; ``mandatory``: who does not know it must refuse the snapshot."""
        assert name not in self._names, name
        self._flush()
        self._names.append(name)
        self._put(RECORD_SECTION, pack_section(name, mandatory))

    def write(self, chunk: bytes | bytearray | memoryview) -> None:
        """Go on with the section; the sizes of chunks mean nothing.

        Raises :class:`~replog.errors.SnapshotFailed` when there is no room, and
        :class:`~replog.errors.StorageFailed`; both leave nothing behind.
        """
        assert self._names, "data belong to a section"
        with memoryview(chunk) as view:
            at = 0
            while at < len(view):
                if not self._buffer and len(view) - at >= BLOCK_BYTES_MAX:
                    # A large chunk needs no buffer.
                    self._put(RECORD_BLOCK, view[at : at + BLOCK_BYTES_MAX])
                    at += BLOCK_BYTES_MAX
                    continue
                room = BLOCK_BYTES_MAX - len(self._buffer)
                self._buffer += view[at : at + room]
                at += room
                if len(self._buffer) == BLOCK_BYTES_MAX:
                    self._flush()

    def publish(self) -> SnapshotInfo:
        """End the snapshot and make it appear, durably; errors as of :meth:`write`.

        A :class:`~replog.errors.StorageFailed` may leave the snapshot under its name, whole.
        """
        self._flush()
        size_bytes = self._end + END_BYTES
        self._put(RECORD_END, pack_end(len(self._names), size_bytes))
        assert self._end == size_bytes
        files, file = self._files, self._file
        assert file is not None
        try:
            files.sync(file)
            self._file = None
            files.close(file)
            files.rename(self._temporary, self._path)
        except OSError as error:
            self._fail(error)
        sync_directory(files, self._path.parent)
        return SnapshotInfo(self._path, self._meta, size_bytes, self._chain)

    def abort(self) -> None:
        """Give the snapshot up and remove what was written; does nothing when it is over."""
        if self._file is None:
            return
        file, self._file = self._file, None
        discard(self._files, file, self._temporary)

    def _flush(self) -> None:
        if self._buffer:
            self._put(RECORD_BLOCK, self._buffer)
            self._buffer.clear()

    def _put(self, kind: int, content: bytes | bytearray | memoryview) -> None:
        assert self._file is not None, "neither published nor aborted"
        packed = pack_record(kind, content, self._chain)
        try:
            write_all(self._files, self._file, packed, self._end)
        except OSError as error:
            self._fail(error)
        self._chain = record_checksum(packed)
        self._end += len(packed)

    def _fail(self, error: OSError) -> NoReturn:
        file, self._file = self._file, None
        fail_writing(self._files, file, self._temporary, error)

    def __enter__(self) -> SnapshotWriter:
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.abort()


def fail_writing(files: FileLayer, file: Descriptor | None, path: Path, error: OSError) -> NoReturn:
    """Remove an unfinished file that cannot be written on, and raise what that means."""
    discard(files, file, path)
    reason = error.strerror or error
    if error.errno in NO_ROOM:
        raise SnapshotFailed(
            f"{path} was given up, for there is no room to write it ({reason}); what was written "
            "of it is removed and the node goes on without it: free some space on the disk, or "
            "raise the quota"
        ) from error
    raise StorageFailed(
        f"{path}: writing the snapshot failed ({reason}); check the disk, and start the node again"
    ) from error


def discard(files: FileLayer, file: Descriptor | None, path: Path) -> None:
    """Close an unfinished file, if it is open, and remove it."""
    try:
        if file is not None:
            files.close(file)
        if path.name in files.names(path.parent):
            files.remove(path)
    except OSError as error:
        raise StorageFailed(f"{path} cannot be removed: {error.strerror or error}") from error


def sync_directory(files: FileLayer, path: Path) -> None:
    """Make the names in a node's directory durable."""
    try:
        files.sync_directory(path)
    except OSError as error:
        raise StorageFailed(
            f"{path}: syncing the names of the snapshots failed ({error.strerror or error}), so "
            "which of them survive a power cut is not known any more and the node stops; check the "
            "disk, and start the node again"
        ) from error
