"""How a snapshot is read: record by record, each one verified before anybody sees it.

A snapshot is larger than memory, so a reader learns of damage at its end only when it has handed
out what stands before.  Therefore nobody fills a state machine from a snapshot that was not read
through once before (:meth:`replog.storage.snapshots.SnapshotStore.verify`); the second pass still
verifies everything, for a disk may alter what it gave.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection, Iterator
from pathlib import Path
from types import TracebackType

from replog.errors import DirectoryError, SnapshotGone, StorageFailed
from replog.storage.files import Descriptor, FileLayer
from replog.storage.snapshot_format import (
    BLOCK_BYTES_MAX,
    CHECKSUM,
    END_BYTES,
    FRAME_BYTES,
    HEADER_BYTES,
    RECORD_BLOCK,
    RECORD_END,
    RECORD_HEAD,
    RECORD_META,
    RECORD_SECTION,
    WRITER_AT_FAULT,
    SnapshotEnd,
    damaged,
    read_end,
    unknown_record,
    unknown_section,
    unpack_header,
    unpack_meta,
    unpack_section,
)
from replog.types import SnapshotMeta, record


@record
class SnapshotRecord:
    """One intact record of a snapshot."""

    kind: int
    offset: int
    content: bytes


class RecordReader:
    """The records of an open snapshot, one after the other; in memory is one at a time."""

    def __init__(self, files: FileLayer, file: Descriptor, path: Path) -> None:
        self.path = path
        self.offset = 0
        """Everything before it is intact."""
        self.chain = 0
        """The checksum up to there."""
        self._files = files
        self._file = file

    def read_header(self) -> str:
        """The id of the cluster; to be read first."""
        assert self.offset == 0
        cluster_id, self.chain = unpack_header(self.path, self._bytes(0, HEADER_BYTES))
        self.offset = HEADER_BYTES
        return cluster_id

    def next_end(self) -> int:
        """Where the next record would end, by what its head says; 0 if that cannot be."""
        length: int
        _, length = RECORD_HEAD.unpack(self._bytes(self.offset, RECORD_HEAD.size))
        return self.offset + FRAME_BYTES + length if length <= BLOCK_BYTES_MAX else 0

    def read(self) -> SnapshotRecord:
        """The next record; raises :class:`~replog.errors.SnapshotDamaged`."""
        path, offset = self.path, self.offset
        head = self._bytes(offset, RECORD_HEAD.size)
        if len(head) < RECORD_HEAD.size:
            raise damaged(path, offset, "the file ends before its end mark")
        kind, length = RECORD_HEAD.unpack(head)
        if length > BLOCK_BYTES_MAX:
            raise damaged(path, offset, f"a record claims to have {length} bytes")
        content = self._bytes(offset + len(head), length)
        written = self._bytes(offset + len(head) + length, CHECKSUM.size)
        if len(written) < CHECKSUM.size:
            raise damaged(path, offset, "the file ends within a record")
        checksum = zlib.crc32(content, zlib.crc32(head, self.chain))
        if CHECKSUM.unpack(written) != (checksum,):
            raise damaged(path, offset, "the checksum of a record does not fit")
        self.chain = checksum
        self.offset = offset + FRAME_BYTES + length
        return SnapshotRecord(kind, offset, content)

    def _bytes(self, offset: int, size_bytes: int) -> bytes:
        return read_bytes(self._files, self._file, self.path, offset, size_bytes)


class SnapshotReader:
    """An open snapshot, whose sections are read once and in order; close it.

    Made by :meth:`replog.storage.snapshots.SnapshotStore.open`.  The meta is verified when it is
    there.
    """

    def __init__(self, files: FileLayer, path: Path, cluster_id: str | None) -> None:
        """``cluster_id`` is the cluster that it must be of; ``None``: any will do."""
        self._files = files
        self._path = path
        self.is_mandatory = False
        """Whether who does not know the section that was handed out last must refuse the
        snapshot."""
        self._file: Descriptor | None = open_file(files, path)
        self._begun = False
        self._section = 0
        """The number of the section that is read, from 1."""
        self._next: SnapshotRecord | None = None
        """What was read and belongs to nobody yet."""
        try:
            self._records = RecordReader(files, self._file, path)
            self.cluster_id = self._records.read_header()
            if cluster_id is not None:
                self._check_owner(self.cluster_id, cluster_id)
            self.meta = self._read_meta()
        except BaseException:
            self.close()
            raise

    @property
    def checksum(self) -> int:
        """Of everything that was read; that of the snapshot when the sections are at their end."""
        return self._records.chain

    def sections(self, known: Collection[str] | None) -> Iterator[tuple[str, Iterator[bytes]]]:
        """The sections whose names are in ``known``, each with its data in chunks of at most 1 MiB;
        ``None`` stands for every name.

        An optional section of another name is passed over.  What is not taken of a section is
        verified all the same when the next one is asked for.  Raises
        :class:`~replog.errors.UnknownFormat` for a mandatory section of another name, and
        :class:`~replog.errors.SnapshotDamaged`.
        """
        assert not self._begun, "the sections are read once"
        self._begun = True
        names: list[str] = []
        while (found := self._read_past_blocks()).kind == RECORD_SECTION:
            name, mandatory = unpack_section(self._path, found.offset, found.content)
            if name in names:
                what = f"the section {name!r} comes twice; {WRITER_AT_FAULT}"
                raise damaged(self._path, found.offset, what)
            names.append(name)
            self._section = len(names)
            if known is None or name in known:
                self.is_mandatory = mandatory
                yield name, self._chunks(self._section)
            elif mandatory:
                raise unknown_section(self._path, found.offset, name)
        self._check_end(found, len(names))

    def verify(self, known: Collection[str] | None) -> None:
        """Read everything; errors as of :meth:`sections`."""
        for _, chunks in self.sections(known):
            for _ in chunks:
                pass

    def close(self) -> None:
        """Release the file; may be called again."""
        if self._file is not None:
            file, self._file = self._file, None
            self._files.close(file)

    def _check_owner(self, found: str, cluster_id: str) -> None:
        if found != cluster_id:
            raise DirectoryError(
                f"{self._path} is a snapshot of cluster {found!r}, and this node belongs to "
                f"cluster {cluster_id!r}; remove it, or put the right file back"
            )

    def _read_meta(self) -> SnapshotMeta:
        found = self._read()
        if found.kind != RECORD_META:
            raise self._misplaced(found)
        return unpack_meta(self._path, found.offset, found.content)

    def _read(self) -> SnapshotRecord:
        found, self._next = self._next, None
        return found or self._records.read()

    def _read_past_blocks(self) -> SnapshotRecord:
        """The next record that is no block: a section, or the end mark."""
        while (found := self._read()).kind == RECORD_BLOCK:
            if not self._section:
                raise self._misplaced(found)
        if found.kind not in (RECORD_SECTION, RECORD_END):
            raise self._misplaced(found)
        return found

    def _chunks(self, section: int) -> Iterator[bytes]:
        while True:
            assert section == self._section, "the data of a section are taken before the next one"
            found = self._read()
            if found.kind != RECORD_BLOCK:
                self._next = found
                return
            yield found.content

    def _misplaced(self, found: SnapshotRecord) -> Exception:
        if found.kind not in (RECORD_META, RECORD_SECTION, RECORD_BLOCK, RECORD_END):
            return unknown_record(self._path, found.offset, found.kind)
        what = f"a record of type {found.kind} stands where none may; {WRITER_AT_FAULT}"
        return damaged(self._path, found.offset, what)

    def _check_end(self, found: SnapshotRecord, sections: int) -> None:
        assert self._file is not None, "open"
        path, end = self._path, self._records.offset
        said = end_mark(self._files, self._file, path, end)
        if said is None or (said.sections, said.size_bytes) != (sections, end):
            what = f"the end mark does not say what stands before it; {WRITER_AT_FAULT}"
            raise damaged(path, found.offset, what)
        if file_bytes(self._files, self._file, path) != end:
            raise damaged(path, end, "something follows the end mark")

    def __enter__(self) -> SnapshotReader:
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def open_file(files: FileLayer, path: Path) -> Descriptor:
    """Open a snapshot, which may be removed at any time for a newer one."""
    try:
        return files.open_to_read(path)
    except FileNotFoundError as error:
        raise SnapshotGone(
            f"{path} was removed, for a newer snapshot replaces it; take the newest"
        ) from error
    except OSError as error:
        raise _unreadable(path, error) from error


def replaced(path: Path) -> SnapshotGone:
    """The error for a file that is not the one that was listed under its name."""
    return SnapshotGone(
        f"{path} was replaced by another snapshot of the same entry since it was listed; take the "
        "newest"
    )


def read_bytes(
    files: FileLayer, file: Descriptor, path: Path, offset: int, size_bytes: int
) -> bytes:
    """So many bytes from ``offset`` on; fewer only at the end of the file."""
    try:
        return files.read_at(file, offset, size_bytes)
    except OSError as error:
        raise _unreadable(path, error) from error


def file_bytes(files: FileLayer, file: Descriptor, path: Path) -> int:
    """The size of an open file."""
    try:
        return files.size_bytes(file)
    except OSError as error:
        raise _unreadable(path, error) from error


def end_mark(files: FileLayer, file: Descriptor, path: Path, end: int) -> SnapshotEnd | None:
    """The end mark that ends at ``end``, by its shape; ``None`` if there is none."""
    if end < END_BYTES:
        return None
    return read_end(read_bytes(files, file, path, end - END_BYTES, END_BYTES))


def _unreadable(path: Path, error: OSError) -> StorageFailed:
    return StorageFailed(f"{path} cannot be read: {error.strerror or error}")
