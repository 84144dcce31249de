"""The file operations that durability is built of, and nothing more.

Everything under :mod:`replog.storage` reaches the disk through a :class:`FileLayer`, so that a
test can put a disk with a memory of its own below it (:mod:`replog.testing.files`) and take away
whatever was not synced.  :class:`RealFiles` is the real thing.

The rules of the layer:

* What was written is durable after ``sync`` of the file; a new, renamed or removed *name* is
  durable after ``sync_directory`` of the directory that holds it.  One does not imply the other.
* ``write`` may write less than it was given; :func:`write_all` goes on.
* Failures are plain ``OSError``; the caller knows what they mean and says so.
* Nothing here retries: a failed sync may have dropped the very pages that it was to write.
"""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from typing import Final, Protocol, TypeAlias

from replog.errors import PlatformError

if sys.platform != "win32":
    import fcntl

Descriptor: TypeAlias = int

NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""The failures that removing something mends, or a larger quota."""

TEMPORARY_SUFFIX: Final = ".tmp"

FILE_MODE = 0o600
DIRECTORY_MODE = 0o700


class FileLayer(Protocol):
    """The operations of a disk as the storage needs them."""

    def open(self, path: Path) -> Descriptor:
        """Open an existing file to write in it."""

    def open_to_read(self, path: Path) -> Descriptor:
        """Open an existing file to read pieces of it, and never write."""

    def create(self, path: Path) -> Descriptor:
        """Make a new file of mode 0600; ``FileExistsError`` when there is one."""

    def close(self, descriptor: Descriptor) -> None:
        """Close a file, or give up a lock; says nothing about durability."""

    def read(self, path: Path) -> bytes:
        """All bytes of a file."""

    def read_at(self, descriptor: Descriptor, offset: int, size_bytes: int) -> bytes:
        """At most so many bytes from ``offset`` on; fewer only at the end of the file."""

    def size_bytes(self, descriptor: Descriptor) -> int:
        """How long a file is."""

    def write(self, descriptor: Descriptor, data: bytes | memoryview, offset: int) -> int:
        """Write at ``offset``; how many bytes were taken."""

    def preallocate(self, descriptor: Descriptor, offset: int, size_bytes: int) -> None:
        """Make the file reach to ``offset + size_bytes``, with room on disk; new bytes are zero.

        Where there is no room for all of it, the file keeps its size, and takes no more room than
        before.
        """

    def sync(self, descriptor: Descriptor) -> None:
        """Make the content and the size of a file durable."""

    def rename(self, old: Path, new: Path) -> None:
        """Give a file a new name within its directory, atomically, replacing what had it."""

    def remove(self, path: Path) -> None:
        """Remove the name of a file."""

    def names(self, path: Path) -> list[str]:
        """The names in a directory, sorted."""

    def make_directory(self, path: Path) -> None:
        """Make one directory of mode 0700; ``FileExistsError`` when there is one."""

    def sync_directory(self, path: Path) -> None:
        """Make the names in a directory durable."""

    def mode(self, path: Path) -> int:
        """The permission bits of a file or directory."""

    def restrict(self, path: Path) -> None:
        """Set the permissions of a directory to 0700."""

    def lock(self, path: Path, holder: bytes) -> Descriptor:
        """Lock a file, made if need be, against every other process, and write ``holder`` in it.

        Raises ``BlockingIOError`` when it is held.  ``close`` and the end of the process free it.
        """


def write_all(files: FileLayer, descriptor: Descriptor, data: bytes, offset: int) -> None:
    """Write all of ``data`` at ``offset``, however little a single call takes."""
    written = files.write(descriptor, data, offset)
    if written == len(data):
        return
    view = memoryview(data)
    while written < len(view):
        count = files.write(descriptor, view[written:], offset + written)
        if count <= 0:
            raise OSError(errno.EIO, "the device takes no more bytes")
        written += count


def temporary_path(path: Path) -> Path:
    """The name under which :func:`publish` writes a file before it is whole."""
    return path.with_name(path.name + TEMPORARY_SUFFIX)


def publish(files: FileLayer, path: Path, data: bytes) -> None:
    """Make a small file appear durably, with all of its bytes or not at all.

    Whatever was done in its directory before is durable before the file appears.
    """
    temporary = temporary_path(path)
    if temporary.name in files.names(path.parent):
        files.remove(temporary)
    descriptor = files.create(temporary)
    try:
        write_all(files, descriptor, data, 0)
        files.sync(descriptor)
    finally:
        files.close(descriptor)
    files.sync_directory(path.parent)
    files.rename(temporary, path)
    files.sync_directory(path.parent)


def check_platform(platform: str) -> None:
    """Raise :class:`~replog.errors.PlatformError` where a sync cannot be trusted."""
    if platform not in ("linux", "darwin"):
        raise PlatformError(
            f"replog keeps its promises on Linux and macOS only, where it knows how to make the "
            f"disk itself sync; on {platform!r} use the storage 'memory' with files of its own, "
            "or run it in a Linux container"
        )


class RealFiles:
    """The disk of this machine.

    Linux: ``fdatasync``, which writes the size too when the data could not be read without it.
    macOS: ``F_FULLFSYNC``, because ``fsync`` there stops at the cache of the drive.
    """

    def __init__(self) -> None:
        check_platform(sys.platform)

    def open(self, path: Path) -> Descriptor:
        """See :meth:`FileLayer.open`."""
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)

    def open_to_read(self, path: Path) -> Descriptor:
        """See :meth:`FileLayer.open_to_read`."""
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def create(self, path: Path) -> Descriptor:
        """See :meth:`FileLayer.create`."""
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, FILE_MODE)

    def close(self, descriptor: Descriptor) -> None:
        """See :meth:`FileLayer.close`."""
        os.close(descriptor)

    def read(self, path: Path) -> bytes:
        """See :meth:`FileLayer.read`."""
        return path.read_bytes()

    def read_at(self, descriptor: Descriptor, offset: int, size_bytes: int) -> bytes:
        """See :meth:`FileLayer.read_at`."""
        return os.pread(descriptor, size_bytes, offset)

    def size_bytes(self, descriptor: Descriptor) -> int:
        """See :meth:`FileLayer.size_bytes`."""
        return os.fstat(descriptor).st_size

    def write(self, descriptor: Descriptor, data: bytes | memoryview, offset: int) -> int:
        """See :meth:`FileLayer.write`."""
        return os.pwrite(descriptor, data, offset)

    def preallocate(self, descriptor: Descriptor, offset: int, size_bytes: int) -> None:
        """See :meth:`FileLayer.preallocate`.

        macOS has no such call that also sets the size; there the file only grows, and room on
        disk is found when it is written.
        """
        size_before = os.fstat(descriptor).st_size
        try:
            if sys.platform == "linux":
                os.posix_fallocate(descriptor, offset, size_bytes)
            else:
                os.ftruncate(descriptor, max(size_before, offset + size_bytes))
        except OSError:
            # A file system without room may have taken the rest of it all the same.
            os.ftruncate(descriptor, size_before)
            raise

    def sync(self, descriptor: Descriptor) -> None:
        """See :meth:`FileLayer.sync`."""
        if sys.platform == "darwin":
            fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
        else:
            os.fdatasync(descriptor)

    def rename(self, old: Path, new: Path) -> None:
        """See :meth:`FileLayer.rename`."""
        assert old.parent == new.parent
        os.rename(old, new)

    def remove(self, path: Path) -> None:
        """See :meth:`FileLayer.remove`."""
        os.unlink(path)

    def names(self, path: Path) -> list[str]:
        """See :meth:`FileLayer.names`."""
        return sorted(os.listdir(path))

    def make_directory(self, path: Path) -> None:
        """See :meth:`FileLayer.make_directory`."""
        os.mkdir(path, DIRECTORY_MODE)

    def sync_directory(self, path: Path) -> None:
        """See :meth:`FileLayer.sync_directory`."""
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if sys.platform == "darwin":
                fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
            else:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def mode(self, path: Path) -> int:
        """See :meth:`FileLayer.mode`."""
        return os.stat(path).st_mode & 0o777

    def restrict(self, path: Path) -> None:
        """See :meth:`FileLayer.restrict`."""
        os.chmod(path, DIRECTORY_MODE)

    def lock(self, path: Path, holder: bytes) -> Descriptor:
        """See :meth:`FileLayer.lock`; an advisory ``flock``, which dies with the process."""
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, FILE_MODE)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # In this order it needs no room where the file had some already.
            os.pwrite(descriptor, holder, 0)
            os.ftruncate(descriptor, len(holder))
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor
