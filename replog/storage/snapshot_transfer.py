"""Snapshots on their way between nodes: bytes as they are, in order, resumed where they broke off.

A snapshot travels as the bytes of its file.  Nothing of it is looked at on the way: whoever gets it
verifies the whole of it, and only then gives it the name of a snapshot.

What arrives is kept in a file ``*.part``, whose name says what it will be: the last entry, the size
and the checksum of the whole.  After a restart it goes on from what is both synced and intact:

* **Synced**: no byte is written behind a multiple of ``sync_bytes`` before everything in front of
  it is synced.  So the length of the file says how far it was synced, whatever a crash tore.
* **Intact**: of that, the records up to the first that does not fit are taken.

The rest is written again.  The length never says too much then, for what was synced stays so.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import NoReturn

from replog.errors import DirectoryError, SnapshotDamaged, SnapshotMisplaced, UnknownFormat
from replog.storage.files import Descriptor, FileLayer, write_all
from replog.storage.snapshot_format import RECORD_HEAD, damaged
from replog.storage.snapshot_reader import (
    RecordReader,
    SnapshotReader,
    end_mark,
    file_bytes,
    open_file,
    read_bytes,
    replaced,
)
from replog.storage.snapshot_writer import SnapshotInfo, discard, fail_writing, sync_directory


class OutgoingSnapshot:
    """A snapshot that is sent to one peer; it can be read to its end even if it is removed
    meanwhile.  Made by :meth:`replog.storage.snapshots.SnapshotStore.outgoing`; close it."""

    def __init__(self, files: FileLayer, info: SnapshotInfo) -> None:
        self.info = info
        self._files = files
        self._file: Descriptor | None = open_file(files, info.path)
        try:
            self._check_unchanged(self._file)
        except BaseException:
            self.close()
            raise

    def read_chunk(self, offset: int, bytes_max: int) -> bytes:
        """Some bytes from ``offset`` on, at most ``bytes_max``; empty at the end only.

        They are not verified: the receiver does that, with the whole.
        """
        assert self._file is not None, "open"
        assert offset >= 0
        assert bytes_max > 0
        info = self.info
        wanted = max(0, min(bytes_max, info.size_bytes - offset))
        chunk = read_bytes(self._files, self._file, info.path, offset, wanted)
        if len(chunk) < wanted:
            raise SnapshotDamaged(
                f"{info.path} had {info.size_bytes} bytes and ends at offset {offset + len(chunk)} "
                "now; check the disk: something shortens its files"
            )
        return chunk

    def close(self) -> None:
        """Release the file; may be called again."""
        if self._file is not None:
            file, self._file = self._file, None
            self._files.close(file)

    def _check_unchanged(self, file: Descriptor) -> None:
        """Under the same name there may be a snapshot that came from another node since."""
        info, path = self.info, self.info.path
        size_bytes = file_bytes(self._files, file, path)
        said = end_mark(self._files, file, path, size_bytes)
        if said is None or said.size_bytes != size_bytes:
            raise damaged(path, size_bytes, "the end mark is missing")
        if (size_bytes, said.checksum) != (info.size_bytes, info.checksum):
            raise replaced(path)


class IncomingSnapshot:
    """A snapshot that arrives from a peer; made by
    :meth:`replog.storage.snapshots.SnapshotStore.receive`.

    After any error but a misplaced piece it is over.  ``close`` keeps what arrived, to be resumed.
    """

    def __init__(
        self, files: FileLayer, part: Path, info: SnapshotInfo, cluster_id: str, sync_bytes: int
    ) -> None:
        self.info = info
        """What it will be; ``info.path`` is where it will appear."""
        self.offset = 0
        """Where the next piece goes."""
        self._files = files
        self._part = part
        self._cluster_id = cluster_id
        self._sync_bytes = sync_bytes
        self._file: Descriptor | None = None
        try:
            if part.name in files.names(part.parent):
                self._resume()
            if self._file is None:
                self._file = files.create(part)
        except OSError as error:
            self._fail(error)
        # Also after a restart: the process may have ended before it was synced.
        sync_directory(files, part.parent)

    def append(self, offset: int, data: bytes) -> None:
        """Write a piece that begins at ``offset``.

        Raises :class:`~replog.errors.SnapshotMisplaced` when that is not :attr:`offset` or the
        piece reaches beyond the announced size (nothing is written then, and it can go on),
        :class:`~replog.errors.SnapshotFailed` when there is no room, and
        :class:`~replog.errors.StorageFailed`.
        """
        assert self._file is not None, "open"
        if offset != self.offset or offset + len(data) > self.info.size_bytes:
            raise SnapshotMisplaced(
                f"a piece of {len(data)} bytes for offset {offset} of {self.info.path.name} came, "
                f"which has {self.info.size_bytes} bytes and goes on at offset {self.offset}; send "
                "it from there on",
                self.offset,
            )
        try:
            at = 0
            while at < len(data):
                piece = data[at : at + self._sync_bytes - self.offset % self._sync_bytes]
                write_all(self._files, self._file, piece, self.offset)
                at += len(piece)
                self.offset += len(piece)
                if self.offset % self._sync_bytes == 0:
                    self._files.sync(self._file)
        except OSError as error:
            self._fail(error)

    def finish(self, known: Collection[str] | None) -> SnapshotInfo:
        """Verify everything and make the snapshot appear, durably; ``known`` as of
        :meth:`~replog.storage.snapshot_reader.SnapshotReader.sections`.

        Raises :class:`~replog.errors.SnapshotDamaged`, also for one that is not what was announced,
        :class:`~replog.errors.UnknownFormat` and :class:`~replog.errors.DirectoryError` (the
        snapshot of another cluster), after having removed it; else errors as of :meth:`append`.
        """
        assert self._file is not None, "open"
        try:
            self._files.sync(self._file)
        except OSError as error:
            self._fail(error)
        try:
            self._verify(known)
        except (SnapshotDamaged, UnknownFormat, DirectoryError):
            self.abort()
            raise
        try:
            self.close()
            self._files.rename(self._part, self.info.path)
        except OSError as error:
            self._fail(error)
        sync_directory(self._files, self._part.parent)
        return self.info

    def _verify(self, known: Collection[str] | None) -> None:
        info = self.info
        if self.offset != info.size_bytes:
            raise self._damaged(f"has {self.offset} bytes of the announced {info.size_bytes}")
        try:
            with SnapshotReader(self._files, self._part, self._cluster_id) as reader:
                reader.verify(known)
                found = (reader.meta, reader.checksum)
        except SnapshotDamaged as error:
            raise self._damaged(f"did not arrive intact ({error})") from error
        if found != (info.meta, info.checksum):
            raise self._damaged("is intact, but another one than was announced")

    def _damaged(self, what: str) -> SnapshotDamaged:
        return SnapshotDamaged(
            f"the snapshot received for {self.info.path} {what}; it is removed and has to be sent "
            "again"
        )

    def close(self) -> None:
        """Release the file and keep what arrived; may be called again."""
        if self._file is not None:
            file, self._file = self._file, None
            self._files.close(file)

    def abort(self) -> None:
        """Give the snapshot up and remove what arrived; does nothing when it is over."""
        if self._file is not None:
            file, self._file = self._file, None
            discard(self._files, file, self._part)

    def _resume(self) -> None:
        """Go on with what an earlier transfer left; leaves no open file where there is nothing."""
        files, part = self._files, self._part
        file = self._file = files.open(part)
        length = min(files.size_bytes(file), self.info.size_bytes)
        # The last byte of a stretch may stand there although its sync failed.
        synced = max(0, length - 1) // self._sync_bytes * self._sync_bytes
        self.offset = intact_bytes(files, file, part, synced)
        if self.offset == 0:
            self._file = None
            discard(files, file, part)

    def _fail(self, error: OSError) -> NoReturn:
        file, self._file = self._file, None
        fail_writing(self._files, file, self._part, error)


def intact_bytes(files: FileLayer, file: Descriptor, path: Path, bytes_max: int) -> int:
    """How far the records of an unfinished snapshot reach within its first ``bytes_max`` bytes; 0
    if one of them is damaged, for then nothing of it is trusted."""
    records = RecordReader(files, file, path)
    try:
        records.read_header()
        while records.offset + RECORD_HEAD.size <= bytes_max:
            if records.next_end() > bytes_max:
                break
            records.read()
    except (SnapshotDamaged, UnknownFormat):
        return 0
    return records.offset if records.offset <= bytes_max else 0
