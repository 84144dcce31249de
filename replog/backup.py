"""Backups: a snapshot of a node in a file of its own, and what can be made from one.

A backup is the file of a snapshot, byte for byte (``docs/backup.md``), so that everything which
reads snapshots verifies backups.  Three things are done with it:

* :func:`write_backup` copies the newest snapshot of a node's directory, beside the running node.
* :func:`restore_backup` founds a *new* cluster, every node of which begins with the backup.
* :func:`init_from_backup` makes the directory of a node of the *same* cluster that comes back as
  another incarnation (:mod:`replog.rejoin`).

The rules:

* A backup is read to its end, every checksum right, before anything is made from it.
* A new cluster has another id than the one that was backed up.  Two clusters of one id would take
  each other's messages for their own.
* A new cluster's log begins behind the backup, in term 0, and so says its snapshot: terms are of
  one cluster, and of one engine.
* A restore is all or nothing: identities are written when everything else is durable, and what
  fails before that is undone.

All of it blocks; memory holds one piece of a snapshot at a time.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

from replog import plugins
from replog.config import Config, agreed_options
from replog.errors import BackupError, DirectoryError, SnapshotDamaged, SnapshotGone
from replog.founding import (
    MadeDirectory,
    check_foundable,
    check_usable,
    joining,
    read_matching,
)
from replog.loading import KNOWN_SECTIONS
from replog.storage.directory import (
    IDENTITY_NAME,
    DirectoryDraft,
    draft_directory,
    read_identity,
)
from replog.storage.files import FileLayer, RealFiles, temporary_path
from replog.storage.identity import FoundingRecord, new_founding, write_founding
from replog.storage.snapshot_copy import (
    check_absent,
    copy_snapshot,
    remove_if_there,
    rewrite_snapshot,
)
from replog.storage.snapshot_format import DAMAGE_REMEDY, HEADER_MAGIC
from replog.storage.snapshot_reader import SnapshotReader
from replog.storage.snapshot_writer import SnapshotInfo
from replog.storage.snapshots import SnapshotStore, snapshot_name
from replog.types import EntryId, LogIndex, NodeId, SnapshotMeta, Voter, record

_TRIES_MAX: Final = 10
"""How often a snapshot that is removed while it is copied is given up for a newer one."""


@record
class Backup:
    """A backup that was read to its end, every checksum right."""

    info: SnapshotInfo
    """What it holds; ``info.path`` is its file."""
    cluster_id: str
    """The cluster that was backed up."""


# -- writing and reading --


def write_backup(
    directory: Path, file: Path, index_min: LogIndex = 0, files: FileLayer | None = None
) -> Backup:
    """Copy the newest snapshot of a node's directory to a new file, durably and verified.

    The node may be running.  ``index_min`` is how far the snapshot must reach; ``files`` is the
    real disk unless given.  Raises :class:`~replog.errors.BackupError` where the file cannot be
    made, or there is no such snapshot, :class:`~replog.errors.DirectoryError` for what is no
    node's directory, :class:`~replog.errors.SnapshotDamaged`,
    :class:`~replog.errors.SnapshotFailed` for lack of room, :class:`~replog.errors.SnapshotGone`
    where snapshots are removed faster than they are copied, and
    :class:`~replog.errors.StorageFailed`.
    """
    files = files or RealFiles()
    identity = read_identity(files, directory)
    check_absent(files, file)
    if os.path.realpath(file.parent) == os.path.realpath(directory):
        raise BackupError(
            f"{file} would stand in the directory of a node, where only that node writes; choose "
            "another place, best on another disk"
        )
    store = SnapshotStore(files, directory, identity.cluster_id)
    for left in reversed(range(_TRIES_MAX)):
        try:
            newest = _newest(store, directory, index_min)
            copy_snapshot(files, newest, identity.cluster_id, file)
            return Backup(replace(newest, path=file), identity.cluster_id)
        except SnapshotGone:
            # The node has a newer one, or has just filled itself from one.
            if not left:
                raise
    raise AssertionError("the last try returned or raised")


def read_backup(file: Path, files: FileLayer | None = None) -> Backup:
    """Read a backup to its end and tell what it is.

    Raises :class:`~replog.errors.BackupError` for a file that is none,
    :class:`~replog.errors.SnapshotDamaged`, :class:`~replog.errors.UnknownFormat` for one of a
    later release, and :class:`~replog.errors.StorageFailed`.
    """
    files = files or RealFiles()
    size_bytes = _check_kind(files, file)
    try:
        with SnapshotReader(files, file, None) as reader:
            reader.verify(KNOWN_SECTIONS)
            info = SnapshotInfo(file, reader.meta, size_bytes, reader.checksum)
            return Backup(info, reader.cluster_id)
    except SnapshotDamaged as damage:
        what = str(damage).removesuffix(f"; {DAMAGE_REMEDY}")
        raise SnapshotDamaged(
            f"{what}: the backup is damaged and nothing was made from it; take another copy of it, "
            "or another backup"
        ) from damage
    except SnapshotGone as error:
        raise BackupError(f"{file} was removed while it was read; put it back") from error


def _newest(store: SnapshotStore, directory: Path, index_min: LogIndex) -> SnapshotInfo:
    newest = store.newest()
    if newest is None:
        raise BackupError(
            f"{directory} holds no snapshot, and a backup is a copy of one; start the node, and "
            "have it take one with `replog snapshot take`"
        )
    if newest.meta.last.index < index_min:
        raise BackupError(
            f"{directory} holds no snapshot that reaches entry {index_min}, although its node has "
            "just taken one; run the backup on the machine of the node, with its own configuration"
        )
    return newest


def _check_kind(files: FileLayer, file: Path) -> int:
    """How many bytes a file has, which begins as a snapshot does."""
    try:
        descriptor = files.open_to_read(file)
        try:
            head = files.read_at(descriptor, 0, len(HEADER_MAGIC))
            size_bytes = files.size_bytes(descriptor)
        finally:
            files.close(descriptor)
    except FileNotFoundError as error:
        raise BackupError(f"there is no file {file}; correct the path") from error
    except OSError as error:
        raise BackupError(
            f"{file} cannot be read: {error.strerror or error}; name the file of a backup"
        ) from error
    if head != HEADER_MAGIC:
        raise BackupError(
            f"{file} is no backup: it does not begin as one does; name a file that `replog backup` "
            "wrote"
        )
    return size_bytes


# -- a new cluster --


def restore_backup(
    file: Path, config: Config, record_path: Path, node_id: NodeId | None = None
) -> tuple[Backup, list[MadeDirectory]]:
    """Found a new cluster from a backup: its record, and the directory of every node, or of
    ``node_id`` alone, each with the backup as its first snapshot.  Returns what was restored, and
    what was made.

    All or nothing, as :func:`replog.founding.found_cluster` is, and with its errors; and those of
    :func:`read_backup`, :class:`~replog.errors.BackupError` for a backup that is not for this
    cluster, and :class:`~replog.errors.SnapshotFailed` for lack of room.
    """
    backup = read_backup(file)
    _check_restorable(backup, config)
    agreed = agreed_options(config)
    wanted = check_foundable(config, record_path, node_id, _first_names(backup))
    founding = new_founding(
        config.cluster_id, config.engine, config.storage, [node.id for node in config.nodes], agreed
    )
    record_path.parent.mkdir(parents=True, exist_ok=True)
    _Restore(backup, founding, wanted).make(record_path)
    return backup, wanted


def join_restored(
    file: Path, config: Config, record_path: Path, node_id: NodeId
) -> tuple[Backup, list[MadeDirectory]]:
    """Make one node's directory from a backup and the record that a restore elsewhere made; errors
    as of :func:`restore_backup`."""
    backup = read_backup(file)
    _check_restorable(backup, config)
    founding = read_matching(config, record_path)
    path = config.node(node_id).directory
    check_usable(path, plugins.find_storage(config.storage), _first_names(backup))
    _Restore(backup, founding, [(node_id, path)]).make(None)
    return backup, [(node_id, path)]


def _check_restorable(backup: Backup, config: Config) -> None:
    file, meta = backup.info.path, backup.info.meta
    if backup.cluster_id == config.cluster_id:
        raise BackupError(
            f"{file} is a backup of cluster {backup.cluster_id!r}, and {config.source} gives the "
            "new cluster the same id; give it another one: two clusters of one id would take each "
            "other's messages for their own"
        )
    if meta.machine != config.state_machine:
        raise BackupError(
            f"{file} is a backup of the state machine {meta.machine!r}, and {config.source} names "
            f"{config.state_machine!r}; correct cluster.state_machine"
        )


def _first_id(backup: Backup) -> EntryId:
    """What the log of a new cluster begins behind: no entry of its own, so of no term."""
    return EntryId(1, 0, backup.info.meta.last.index)


def _first_names(backup: Backup) -> Sequence[str]:
    """The names of a node's first snapshot, whole and unfinished."""
    name = snapshot_name(_first_id(backup))
    return name, temporary_path(Path(name)).name


class _Restore:
    """The directories of a new cluster in the making."""

    def __init__(
        self, backup: Backup, founding: FoundingRecord, wanted: Sequence[MadeDirectory]
    ) -> None:
        self._backup = backup
        self._founding = founding
        self._wanted = wanted
        self._names = _first_names(backup)
        self._plugin = plugins.find_storage(founding.storage)
        self._drafts: list[DirectoryDraft] = []
        self._missing = sorted(
            {
                each
                for _, path in wanted
                for each in (path, *path.parents)
                if not os.path.lexists(each)
            },
            reverse=True,
        )
        """The directories that are made on the way, those within others first."""

    def make(self, record_path: Path | None) -> None:
        """Make them all, and the record, unless ``record_path`` is ``None``: it exists."""
        with ExitStack() as locks:
            try:
                for node_id, path in self._wanted:
                    self._draft(node_id, path, locks)
                if record_path is not None:
                    write_founding(record_path, self._founding)
                for draft in self._drafts:
                    draft.finish()
            except BaseException as error:
                self._undo(record_path, error)
                raise

    def _draft(self, node_id: NodeId, path: Path, locks: ExitStack) -> None:
        """Make everything in a directory but its identity."""
        files = RealFiles()
        draft = draft_directory(files, path, self._founding, node_id, self._plugin, self._names)
        self._drafts.append(locks.enter_context(draft))
        draft.found()
        meta = self._backup.info.meta
        meta = SnapshotMeta(
            _first_id(self._backup), self._founding.epoch, meta.time_ms, meta.machine
        )
        first = path / snapshot_name(meta.last)
        rewrite_snapshot(files, self._backup.info.path, first, self._founding.cluster_id, meta)

    def _undo(self, record_path: Path | None, error: BaseException) -> None:
        """Leave nothing, unless one of the directories is complete: that one may be in use."""
        made = [each for each, path in self._wanted if os.path.lexists(path / IDENTITY_NAME)]
        if not made:
            for draft in self._drafts:
                draft.discard(self._names)
            for path in self._missing:
                with suppress(OSError):
                    path.rmdir()
            if record_path is not None:
                for path in (record_path, temporary_path(record_path)):
                    path.unlink(missing_ok=True)
        elif isinstance(error, DirectoryError) and record_path is not None:
            raise DirectoryError(
                f"{error}; what was made stays ({record_path} and the directory of node "
                f"{', '.join(map(str, made))}), so when this is mended, restore the others with "
                f"{joining(record_path)} ID"
            ) from error


# -- a node that comes back --


def backup_names(backup: Backup) -> Sequence[str]:
    """The names of a backup in the directory of a node that comes back, whole and unfinished."""
    name = snapshot_name(backup.info.meta.last)
    return name, temporary_path(Path(name)).name


def init_from_backup(
    file: Path,
    path: Path,
    founding: FoundingRecord,
    learner: Voter,
    files: FileLayer | None = None,
) -> SnapshotInfo:
    """Make the directory of a node that comes back, with a backup of this very cluster as its first
    snapshot; all of it is durable on return.

    The backup is whole before the directory has an identity, and so before any entry can name that
    incarnation.  That is what makes a backup safe, which says what was chosen and not as of which
    term: whoever hears the node has applied its entry, and every entry of the backup comes before
    that.

    An older one takes nothing back: the node counts in no quorum, and never said anything under
    this incarnation.  After a crash the same call makes it again.  Raises
    :class:`~replog.errors.BackupError`, what :func:`read_backup` and
    :func:`~replog.storage.directory.draft_directory` raise, and
    :class:`~replog.errors.SnapshotFailed` for lack of room; then nothing is left.
    """
    files = files or RealFiles()
    backup = read_backup(file, files)
    _check_of_cluster(backup, founding)
    names = backup_names(backup)
    plugin = plugins.find_storage(founding.storage)
    with draft_directory(
        files, path, founding, learner.node_id, plugin, names, learner.incarnation
    ) as draft:
        try:
            for name in names:
                remove_if_there(files, path / name)
            draft.found()
            copy_snapshot(files, backup.info, backup.cluster_id, path / names[0])
            draft.finish()
        except Exception:
            if IDENTITY_NAME not in files.names(path):
                draft.discard(names)
            raise
    return replace(backup.info, path=path / names[0])


def find_backup(file: Path, path: Path, files: FileLayer | None = None) -> SnapshotInfo:
    """The snapshot in the directory of a node that comes back which :func:`init_from_backup` made
    of this backup.

    Raises :class:`~replog.errors.BackupError` if it is not there: what is added later may say more
    than the entry that took the node in.
    """
    files = files or RealFiles()
    backup = read_backup(file, files)
    name = backup_names(backup)[0]
    wanted = replace(backup.info, path=path / name)
    store = SnapshotStore(files, path, backup.cluster_id)
    if name in files.names(path) and store.info(wanted.path) == wanted:
        return wanted
    raise BackupError(
        f"{path} was made by an earlier `replog rejoin` and does not begin with {file}, and no "
        "backup is added later; run it without --from-backup, or remove the directory and run the "
        "same again"
    )


def _check_of_cluster(backup: Backup, founding: FoundingRecord) -> None:
    file = backup.info.path
    if backup.cluster_id != founding.cluster_id:
        raise BackupError(
            f"{file} is a backup of cluster {backup.cluster_id!r}, and the node belongs to cluster "
            f"{founding.cluster_id!r}; take the backup of that one"
        )
    if backup.info.meta.epoch != founding.epoch:
        raise BackupError(
            f"{file} is a backup of a cluster {backup.cluster_id!r} with another founding record; "
            "take a backup of the cluster that the node belongs to"
        )
