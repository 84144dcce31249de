"""Snapshots on their way between a node's directory and a file that people keep: a backup.

A backup is the file of a snapshot, byte for byte.  The rules:

* What is copied is read to its end and verified before it gets its name; a crash leaves a file
  that ends in ``.tmp``, and any failure leaves nothing.
* No file is ever replaced.
* Memory holds one piece at a time.

For a new cluster the file is written again, section by section: whose it is and where its log
begins stand in the file, and its checksum goes over both.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Final, NoReturn

from replog.errors import (
    BackupError,
    SnapshotDamaged,
    SnapshotFailed,
    SnapshotGone,
    StorageFailed,
)
from replog.limits import MIB
from replog.storage.files import NO_ROOM, Descriptor, FileLayer, temporary_path, write_all
from replog.storage.snapshot_reader import SnapshotReader
from replog.storage.snapshot_transfer import OutgoingSnapshot
from replog.storage.snapshot_writer import SnapshotInfo, SnapshotWriter
from replog.types import SnapshotMeta

PIECE_BYTES: Final = 1 * MIB


def copy_snapshot(files: FileLayer, info: SnapshotInfo, cluster_id: str, path: Path) -> None:
    """Copy a snapshot of ``cluster_id`` to a new file, durably and verified to its end.

    Raises :class:`~replog.errors.BackupError` where that file cannot be made,
    :class:`~replog.errors.SnapshotGone` when the snapshot was removed since it was listed,
    :class:`~replog.errors.SnapshotDamaged`, :class:`~replog.errors.SnapshotFailed` for lack of
    room, and :class:`~replog.errors.StorageFailed`.
    """
    temporary = temporary_path(path)
    source = OutgoingSnapshot(files, info)
    try:
        check_absent(files, path)
        file = _create(files, temporary)
        try:
            try:
                _copy_pieces(files, source, file)
                files.sync(file)
            finally:
                files.close(file)
            _verify_copy(files, info, cluster_id, temporary)
            # Whoever makes the same file has to make the temporary one first, and only one can.
            check_absent(files, path)
            files.rename(temporary, path)
        except OSError as error:
            _fail(path, error)
        finally:
            remove_if_there(files, temporary)
    finally:
        source.close()
    try:
        files.sync_directory(path.parent)
    except OSError as error:
        remove_if_there(files, path)
        _fail(path, error)


def rewrite_snapshot(
    files: FileLayer, source: Path, path: Path, cluster_id: str, meta: SnapshotMeta
) -> SnapshotInfo:
    """Write all sections of the snapshot ``source`` again, as a snapshot of another cluster.

    What an interrupted call left at ``path`` is replaced; durable on return, and on failure nothing
    is there.  Raises :class:`~replog.errors.SnapshotDamaged`,
    :class:`~replog.errors.SnapshotFailed` and :class:`~replog.errors.StorageFailed`.
    """
    for leftover in (path, temporary_path(path)):
        remove_if_there(files, leftover)
    try:
        with (
            SnapshotReader(files, source, None) as reader,
            SnapshotWriter(files, path, cluster_id, meta) as writer,
        ):
            for name, chunks in reader.sections(None):
                writer.section(name, mandatory=reader.is_mandatory)
                for chunk in chunks:
                    writer.write(chunk)
            return writer.publish()
    except SnapshotFailed as failure:
        raise _no_room(path, failure.__cause__ or failure) from failure


def check_absent(files: FileLayer, path: Path) -> None:
    """Raise :class:`~replog.errors.BackupError` unless a new file can appear at ``path``."""
    try:
        names = files.names(path.parent)
    except FileNotFoundError as error:
        raise BackupError(
            f"{path} cannot be written: there is no directory {path.parent}; make it first"
        ) from error
    except OSError as error:
        raise BackupError(
            f"{path} cannot be written: {path.parent}: {error.strerror or error}; choose another "
            "directory"
        ) from error
    if path.name in names:
        raise BackupError(
            f"{path} exists already, and a backup never replaces a file; choose another name"
        )


def remove_if_there(files: FileLayer, path: Path) -> None:
    """Remove a file, if there is one; raises :class:`~replog.errors.StorageFailed`."""
    try:
        if path.name in files.names(path.parent):
            files.remove(path)
    except OSError as error:
        raise StorageFailed(f"{path} cannot be removed: {error.strerror or error}") from error


def _create(files: FileLayer, temporary: Path) -> Descriptor:
    try:
        return files.create(temporary)
    except FileExistsError as error:
        raise BackupError(
            f"{temporary} exists already: another backup is being written there, or one was "
            "interrupted; if none is, remove that file"
        ) from error
    except OSError as error:
        if error.errno in NO_ROOM:
            raise _no_room(temporary, error) from error
        raise BackupError(
            f"{temporary} cannot be written: {error.strerror or error}; choose another directory"
        ) from error


def _copy_pieces(files: FileLayer, source: OutgoingSnapshot, file: Descriptor) -> None:
    offset = 0
    while piece := source.read_chunk(offset, PIECE_BYTES):
        write_all(files, file, piece, offset)
        offset += len(piece)


def _verify_copy(files: FileLayer, info: SnapshotInfo, cluster_id: str, temporary: Path) -> None:
    try:
        _verify(files, temporary, cluster_id, info)
    except SnapshotDamaged as damage:
        # Which of the two is it?  That of the source is said with the source's name.
        with suppress(SnapshotGone):
            _verify(files, info.path, cluster_id, info)
        raise StorageFailed(
            f"{temporary} is not what was copied to it from {info.path}, so it was removed; check "
            "the disk that it is on"
        ) from damage


def _verify(files: FileLayer, path: Path, cluster_id: str, info: SnapshotInfo) -> None:
    with SnapshotReader(files, path, cluster_id) as reader:
        reader.verify(None)
        if (reader.meta, reader.checksum) != (info.meta, info.checksum):
            raise SnapshotGone(f"{info.path} was replaced by another snapshot; take the newest")


def _fail(path: Path, error: OSError) -> NoReturn:
    if error.errno in NO_ROOM:
        raise _no_room(path, error) from error
    raise StorageFailed(
        f"{path} cannot be written ({error.strerror or error}), and what was written of it is "
        "removed; check the disk"
    ) from error


def _no_room(path: Path, error: BaseException) -> SnapshotFailed:
    reason = error.strerror if isinstance(error, OSError) else error
    return SnapshotFailed(
        f"there is no room for {path} ({reason}), and what was written of it is removed; free some "
        "space on the disk, or raise the quota"
    )
