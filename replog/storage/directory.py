"""A node's directory: made once by an explicit act, opened by one process at a time.

The rules:

* A directory comes from :func:`init_directory` and from nothing else.  A node never starts on a
  missing or uninitialised one: it would vote without knowing how it voted before.
* The identity is written last.  A crash before that leaves a directory without one, which a second
  init completes; it removes nothing but what such a crash can have left.
* A directory belongs to one cluster, node, engine and storage, and is never read by another.
* One process at a time: the file ``lock`` is locked while it is open.
* A directory is of mode 0700.  Init makes it so; a wider one is refused at start and not quietly
  tightened, because what others could write in may no longer be what the node wrote.
* A storage that is not durable serves for one run: the file ``started`` says that it was.

Each kind of thing has a file of its own, so that what is written later (as whom a node has met)
never touches the identity.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from replog.errors import DirectoryError, PluginError, StorageFailed
from replog.storage.files import Descriptor, FileLayer, RealFiles, publish, temporary_path
from replog.storage.identity import (
    IDENTITY_VERSION,
    FoundingRecord,
    Identity,
    draw_incarnation,
    pack_identity,
    unpack_identity,
)
from replog.storage.memory import MEMORY
from replog.storage.met import MetFile
from replog.storage.plugin import StorageHome, StoragePlugin
from replog.storage.protocol import Storage
from replog.storage.snapshots import SnapshotStore
from replog.storage.wal import WAL
from replog.types import NodeId

STORAGES: Final[dict[str, StoragePlugin]] = {WAL.name: WAL, MEMORY.name: MEMORY}
"""The built-in storages by name."""

IDENTITY_NAME: Final = "identity"
LOCK_NAME: Final = "lock"
STARTED_NAME: Final = "started"


class _LockedDirectory:
    """A directory that this process alone has, until ``close``."""

    def __init__(
        self, home: StorageHome, identity: Identity, plugin: StoragePlugin, lock: Descriptor
    ) -> None:
        self.path = home.path
        self.identity = identity
        self._home = home
        self._plugin = plugin
        self._lock: Descriptor | None = lock

    def close(self) -> None:
        """Let another process have the directory; may be called again."""
        if self._lock is not None:
            lock, self._lock = self._lock, None
            self._home.files.close(lock)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class NodeDirectory(_LockedDirectory):
    """An open directory, locked until ``close``; made by :func:`open_directory`."""

    def open_storage(self, *, is_synced: bool = True) -> Storage:
        """The node's storage, as durable as :class:`~replog.storage.plugin.StorageHome` says;
        ``recover`` it next."""
        assert self._lock is not None, "the directory is open"
        return self._plugin.open(replace(self._home, is_synced=is_synced))

    @property
    def files(self) -> FileLayer:
        """The disk that the directory is on."""
        return self._home.files

    def open_met(self) -> MetFile:
        """The record of whom the node has met."""
        assert self._lock is not None, "the directory is open"
        identity = self.identity
        return MetFile(self._home.files, self.path, identity.node_id, identity.birth)

    def open_snapshots(self) -> SnapshotStore:
        """The node's snapshots; ``recover`` them next."""
        assert self._lock is not None, "the directory is open"
        return SnapshotStore(self._home.files, self.path, self._home.cluster_id)

    def mark_started(self) -> None:
        """The node begins to take part: from here on the directory of a storage that is not
        durable is used up.  To be called when nothing that can still go wrong is left before it.
        """
        if self._plugin.durable:
            return
        try:
            publish(
                self._home.files,
                self.path / STARTED_NAME,
                b"this directory has served its one run\n",
            )
        except OSError as error:
            raise StorageFailed(
                f"{self.path / STARTED_NAME} cannot be written: {error.strerror or error}"
            ) from error


class DirectoryDraft(_LockedDirectory):
    """A node's directory in the making, locked until ``close``: it has everything but an identity.

    Made by :func:`draft_directory`.  ``found`` comes first and ``finish`` last; what stands there
    when the identity is written is durable with it.
    """

    def found(self) -> None:
        """Make the empty storage, and the way to the directory durable."""
        assert self._lock is not None, "open"
        with _failing(self.path):
            self._plugin.found(self._home)
            _sync_parents(self._home.files, self.path)

    def finish(self) -> Identity:
        """Write the identity: from here on it is a node's directory."""
        assert self._lock is not None, "open"
        with _failing(self.path):
            publish(self._home.files, self.path / IDENTITY_NAME, pack_identity(self.identity))
        return self.identity

    def discard(self, others: Collection[str]) -> None:
        """Give it up and remove what was made: the storage, and the files named in ``others``."""
        assert self._lock is not None, "open"
        files = self._home.files
        ours = (*others, LOCK_NAME, temporary_path(self.path / IDENTITY_NAME).name)
        with _failing(self.path):
            for name in files.names(self.path):
                if name in ours or self._plugin.owns(name):
                    files.remove(self.path / name)
        self.close()


def init_directory(
    files: FileLayer,
    path: Path,
    founding: FoundingRecord,
    node_id: NodeId,
    plugin: StoragePlugin | None = None,
    incarnation: int | None = None,
) -> Identity:
    """Make the directory of a node; everything is durable on return.

    Arguments and errors as of :func:`draft_directory`.
    """
    with draft_directory(files, path, founding, node_id, plugin, (), incarnation) as draft:
        draft.found()
        return draft.finish()


def draft_directory(
    files: FileLayer,
    path: Path,
    founding: FoundingRecord,
    node_id: NodeId,
    plugin: StoragePlugin | None = None,
    leftovers: Collection[str] = (),
    incarnation: int | None = None,
) -> DirectoryDraft:
    """Begin to make the directory of a founding voter, or of what comes in its place: a fresh
    ``incarnation``, which no record names.

    ``plugin`` is the storage that the record names; ``None``: the built-in one of that name.
    ``leftovers`` are names that may be there already, for an interrupted call.
    Raises :class:`~replog.errors.DirectoryError` for a populated directory, and changes nothing
    in it then.
    """
    assert not founding.problem(), founding.problem()
    plugin = _find_plugin(founding.storage, plugin)
    founder = founding.incarnation_of(node_id)
    if founder is None:
        ids = ", ".join(str(voter.node_id) for voter in founding.voters)
        raise DirectoryError(
            f"node {node_id} is not a founding voter of cluster {founding.cluster_id!r}, whose "
            f"founding record names {ids}; correct the id"
        )
    assert incarnation != founder, "a fresh incarnation is not the founding voter's"
    incarnation = incarnation or founder
    home = StorageHome(files, path, founding.cluster_id, node_id, incarnation)
    identity = Identity(
        version=IDENTITY_VERSION,
        cluster_id=founding.cluster_id,
        node_id=node_id,
        incarnation=incarnation,
        birth=draw_incarnation(),
        engine=founding.engine,
        storage=founding.storage,
        founding=founding,
    )
    with _failing(path):
        _make_directories(files, path)
        check_unpopulated(files, path, plugin, leftovers)
        files.restrict(path)
        lock = _take_lock(files, path)
        try:
            # Once more: another init may have finished before we got the lock.
            check_unpopulated(files, path, plugin, leftovers)
        except BaseException:
            files.close(lock)
            raise
    return DirectoryDraft(home, identity, plugin, lock)


@contextmanager
def _failing(path: Path) -> Iterator[None]:
    """Say of what fails on the disk which directory it was for."""
    try:
        yield
    except OSError as error:
        raise DirectoryError(
            f"{path} cannot be made a node's directory: {error.strerror or error}"
        ) from error


def _make_directories(files: FileLayer, path: Path) -> None:
    """Make the directory, and those above it that are missing."""
    try:
        files.make_directory(path)
    except FileExistsError:
        return
    except FileNotFoundError:
        _make_directories(files, path.parent)
        files.make_directory(path)


def _sync_parents(files: FileLayer, path: Path) -> None:
    """Make the names on the way to the directory durable; an interrupted init may have made any."""
    files.sync_directory(path.parent)
    for parent in path.parent.parents:
        try:
            files.sync_directory(parent)
        except OSError as error:
            if error.errno == errno.EIO:
                raise
            return  # no init made a directory in one that is closed to us


def check_unpopulated(
    files: FileLayer, path: Path, plugin: StoragePlugin, leftovers: Collection[str] = ()
) -> None:
    """Raise unless the directory holds nothing but what an interrupted init may have left, and
    files of the names ``leftovers``."""
    names = files.names(path)
    if IDENTITY_NAME in names:
        identity = unpack_identity(path / IDENTITY_NAME, files.read(path / IDENTITY_NAME))
        raise DirectoryError(
            f"{path} is already the directory of node {identity.node_id} of cluster "
            f"{identity.cluster_id!r}; start that node, or choose another directory (made anew "
            "under the same id, a node would forget what it voted)"
        )
    ours = (LOCK_NAME, temporary_path(path / IDENTITY_NAME).name, *leftovers)
    foreign = [name for name in names if name not in ours and not plugin.owns(name)]
    if foreign:
        raise DirectoryError(
            f"{path} is not empty: it holds {foreign[0]!r}, which does not come from an init with "
            f"the storage {plugin.name!r}; choose another directory, or empty this one"
        )


def open_directory(
    path: Path,
    *,
    cluster_id: str,
    node_id: NodeId,
    engine: str,
    storage: str,
    plugin: StoragePlugin | None = None,
    files: FileLayer | None = None,
) -> NodeDirectory:
    """Open and lock the directory of this very node of this very cluster.

    ``plugin`` is the storage of the name ``storage``; ``None``: the built-in one.  ``files`` is
    the real disk unless given.  Raises :class:`~replog.errors.DirectoryError`,
    :class:`~replog.errors.PlatformError` or :class:`~replog.errors.UnknownFormat`, and writes
    nothing in a directory that is not the node's own.
    """
    files = files or RealFiles()
    plugin = _find_plugin(storage, plugin)
    try:
        identity = read_identity(files, path)
        _check_identity(path, identity, cluster_id, node_id, engine, storage)
        mode = files.mode(path)
        if mode & 0o077:
            raise DirectoryError(
                f"{path} is open to other users (mode {mode:04o}); make sure that nobody changed "
                f"anything in it, then run: chmod 700 {path}"
            )
        lock = _take_lock(files, path)
        try:
            # An init that was killed, and not by a power cut, may have left the identity unsynced.
            files.sync_directory(path)
            _check_unspent(files, path, plugin)
        except BaseException:
            files.close(lock)
            raise
    except OSError as error:
        raise DirectoryError(f"{path} cannot be opened: {error.strerror or error}") from error
    home = StorageHome(files, path, identity.cluster_id, identity.node_id, identity.incarnation)
    return NodeDirectory(home, identity, plugin, lock)


def read_identity(files: FileLayer, path: Path) -> Identity:
    """Whose directory it is: a missing one is told from an uninitialised one and from a node's.

    Raises :class:`~replog.errors.DirectoryError`.
    """
    try:
        names = files.names(path)
    except FileNotFoundError as error:
        raise DirectoryError(
            f"{path} does not exist; correct the path, or make the directory with `replog init` "
            "if this cluster was never started"
        ) from error
    if IDENTITY_NAME not in names:
        state = "is empty" if not names else f"holds {names[0]!r} but no identity"
        raise DirectoryError(
            f"{path} {state}: it was never initialised, or its init was interrupted; make it with "
            "`replog init`, unless a node has run in it: that one has lost its memory of its votes "
            "and comes back with `replog rejoin`"
        )
    return unpack_identity(path / IDENTITY_NAME, files.read(path / IDENTITY_NAME))


def _check_identity(
    path: Path, identity: Identity, cluster_id: str, node_id: NodeId, engine: str, storage: str
) -> None:
    if identity.cluster_id != cluster_id:
        raise DirectoryError(
            f"{path} belongs to cluster {identity.cluster_id!r}, not {cluster_id!r}; correct the "
            "cluster's id or the path of the directory"
        )
    if identity.node_id != node_id:
        raise DirectoryError(
            f"{path} belongs to node {identity.node_id}, not node {node_id}; correct the node's id "
            "or the path of the directory"
        )
    if identity.engine != engine:
        raise DirectoryError(
            f"{path} was written by engine {identity.engine!r} and cannot be read by {engine!r}, "
            "because an entry that is not committed means something else to each of them; start "
            f"the node with engine {identity.engine!r}, or found a new cluster"
        )
    if identity.storage != storage:
        raise DirectoryError(
            f"{path} was made for storage {identity.storage!r}, not {storage!r}; start the node "
            f"with storage {identity.storage!r}, or found a new cluster"
        )


def _check_unspent(files: FileLayer, path: Path, plugin: StoragePlugin) -> None:
    """Raise if the storage forgets and has had its one run; under the lock, or two could pass."""
    if not plugin.durable and STARTED_NAME in files.names(path):
        raise DirectoryError(
            f"{path} has served its one run with the storage {plugin.name!r}: its log was lost "
            "with the process, and a node without its log must not vote; remove the directory and "
            "bring the node back with `replog rejoin`, or make a new cluster with `replog init`"
        )


def _take_lock(files: FileLayer, path: Path) -> Descriptor:
    try:
        return files.lock(path / LOCK_NAME, b"%d\n" % os.getpid())
    except BlockingIOError as error:
        holder = files.read(path / LOCK_NAME).decode(errors="replace").strip()
        who = f"process {holder}" if holder else "another process"
        raise DirectoryError(
            f"{path} is in use by {who}; stop that one first, or give this node a directory of "
            "its own"
        ) from error


def _find_plugin(name: str, plugin: StoragePlugin | None) -> StoragePlugin:
    if plugin is None:
        plugin = STORAGES.get(name)
    if plugin is None:
        raise PluginError(
            f"there is no built-in storage {name!r}, only {', '.join(sorted(STORAGES))}; a storage "
            "of a plugin must be handed in"
        )
    assert plugin.name == name, (plugin.name, name)
    return plugin
