"""A disk that forgets: files in memory, each with what was *written* and what was *synced*.

:class:`ForgetfulFiles` is a :class:`~replog.storage.files.FileLayer`.  ``crash`` does what a power
cut does: of everything that was not synced it keeps what it is told to, and the rest is gone.
``write_back`` does what an operating system does when it likes: it makes durable what was written.

How much is kept is said by one of

* :class:`KeepNothing`: all unsynced bytes and names are lost;
* :class:`KeepPrefix`: of each file the first so many unsynced bytes, in the order of writing;
* :class:`KeepSectors`: of each file a random subset of the unsynced 512-byte sectors, which tears
  groups; and of each directory a random subset of the changes of names;
* :class:`KeepLatest`: of each file the last unsynced write, of each directory the last change of
  names, and nothing before them, as from a disk that puts things into an order of its own;
* :class:`KeepEverything`: not a power cut but the end of the process.  What was written can be
  read, and is still *not synced*: a power cut after it takes it away.

The names in a directory and the content of a file are synced apart, as POSIX has it.  A rename is
atomic, but a later change of names may be kept where an earlier one is lost.

The disk may be of a certain size (``capacity_bytes``).  Where it is used up, a write takes what
still fits, and the next one fails with ``ENOSPC``, as does a preallocation that does not fit; files
that are removed and no longer open free their room.

Every operation passes :meth:`ForgetfulFiles._count`, where it is counted and where ``fault``, when
set, is called before it takes effect and may raise: an ``OSError``, or :class:`Crashed` to stop
the program under test there.
"""

from __future__ import annotations

import errno
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from replog.storage.files import DIRECTORY_MODE, Descriptor
from replog.types import record

SECTOR_BYTES = 512


@record
class KeepNothing:
    """Everything unsynced is lost."""


@record
class KeepPrefix:
    """Of each file, the first ``bytes_kept`` unsynced bytes are kept, in the order of writing."""

    bytes_kept: int


@record
class KeepSectors:
    """Each unsynced sector is kept or lost by a toss of a coin."""

    seed: int


@record
class KeepLatest:
    """Of what is unsynced, the last write to each file and the last change of names stay alone."""


@record
class KeepEverything:
    """The process ends and the machine goes on; what is unsynced stays so."""


Keep: TypeAlias = KeepNothing | KeepPrefix | KeepSectors | KeepLatest | KeepEverything
Fault: TypeAlias = Callable[[int, str, Path], None]
"""Called before an operation with its number (from 1), name and path; may raise."""


class Crashed(BaseException):
    """Raised by a fault to end the program under test; no ``except Exception`` stops it."""


@dataclass(slots=True)
class _File:
    data: bytearray = field(default_factory=bytearray)
    synced: bytearray = field(default_factory=bytearray)
    writes: list[tuple[int, bytes]] = field(default_factory=list)
    """What was written since the last sync."""

    def write(self, data: bytes, offset: int) -> None:
        _patch(self.data, data, offset)
        self.writes.append((offset, data))

    def sync(self) -> None:
        for offset, data in self.writes:
            _patch(self.synced, data, offset)
        self.writes.clear()

    def crash(self, keep: Keep, rng: random.Random) -> None:
        if isinstance(keep, KeepEverything):
            return
        if isinstance(keep, KeepPrefix):
            left = keep.bytes_kept
            for offset, data in self.writes:
                _patch(self.synced, data[:left], offset)
                left = max(0, left - len(data))
        elif isinstance(keep, KeepLatest):
            for offset, data in self.writes[-1:]:
                _patch(self.synced, data, offset)
        elif isinstance(keep, KeepSectors):
            for sector in self._unsynced_sectors():
                if rng.random() < 0.5:
                    start = sector * SECTOR_BYTES
                    _patch(self.synced, self.data[start : start + SECTOR_BYTES], start)
        self.data = bytearray(self.synced)
        self.writes.clear()

    @property
    def holds_unsynced(self) -> bool:
        return bool(self.writes)

    def _unsynced_sectors(self) -> list[int]:
        sectors: set[int] = set()
        for offset, data in self.writes:
            first = offset // SECTOR_BYTES
            last = (offset + len(data) - 1) // SECTOR_BYTES
            sectors.update(range(first, last + 1))
        return sorted(sectors)


_Node: TypeAlias = "_File | _Directory"


@dataclass(slots=True)
class _Directory:
    mode: int
    entries: dict[str, _Node] = field(default_factory=dict)
    synced: dict[str, _Node] = field(default_factory=dict)
    changes: list[dict[str, _Node | None]] = field(default_factory=list)
    """What each change since the last sync made of the names that it touched; ``None``: removed."""

    def change(self, change: dict[str, _Node | None]) -> None:
        self.changes.append(change)
        _apply(self.entries, change)

    def files(self) -> list[_File]:
        """All files in it and below it."""
        found: list[_File] = []
        for node in self.entries.values():
            found += [node] if isinstance(node, _File) else node.files()
        return found

    @property
    def holds_unsynced(self) -> bool:
        return bool(self.changes) or any(node.holds_unsynced for node in self.entries.values())

    def sync(self) -> None:
        self.synced = dict(self.entries)
        self.changes.clear()

    def write_back(self) -> None:
        self.sync()
        for node in self.entries.values():
            if isinstance(node, _Directory):
                node.write_back()
            else:
                node.sync()

    def crash(self, keep: Keep, rng: random.Random) -> None:
        if isinstance(keep, KeepSectors):
            for change in self.changes:
                if rng.random() < 0.5:
                    _apply(self.synced, change)
        elif isinstance(keep, KeepLatest):
            for change in self.changes[-1:]:
                _apply(self.synced, change)
        if not isinstance(keep, KeepEverything):
            self.entries = dict(self.synced)
            self.changes.clear()
        for name in sorted(self.entries):
            self.entries[name].crash(keep, rng)


class ForgetfulFiles:
    """See the module; one object is one disk, which outlives its crashes."""

    def __init__(
        self, write_bytes_max: int | None = None, capacity_bytes: int | None = None
    ) -> None:
        self.operations_count = 0
        self.capacity_bytes = capacity_bytes
        """How many bytes of files the disk holds; ``None``: any number.  May be changed."""
        self.fault: Fault | None = None
        self.struck_unsynced = False
        """Whether the last crash met anything that was written and not synced."""
        self._write_bytes_max = write_bytes_max
        """The most that one ``write`` takes; ``None``: everything."""
        self._root = _Directory(DIRECTORY_MODE)
        self._open: dict[Descriptor, tuple[Path, _File]] = {}
        self._locked: dict[Descriptor, Path] = {}
        self._descriptors_count = 0

    @property
    def used_bytes(self) -> int:
        """The sizes of all files that have a name or are open."""
        files = self._root.files() + [file for _, file in self._open.values()]
        return sum({id(file): len(file.data) for file in files}.values())

    def _room_bytes(self, wanted_bytes: int) -> int:
        """How many of so many bytes a file may grow by."""
        if self.capacity_bytes is None or wanted_bytes <= 0:
            return wanted_bytes
        return max(0, min(wanted_bytes, self.capacity_bytes - self.used_bytes))

    def crash(self, keep: Keep) -> None:
        """Lose what is not synced, except for what ``keep`` says; close and unlock everything."""
        self.struck_unsynced = self.holds_unsynced
        seed = keep.seed if isinstance(keep, KeepSectors) else 0
        self._root.crash(keep, random.Random(seed))
        self._open.clear()
        self._locked.clear()
        self.fault = None

    @property
    def holds_unsynced(self) -> bool:
        """Whether there is anything that a power cut could take away; no operation."""
        return self._root.holds_unsynced

    def write_back(self) -> None:
        """Make durable whatever was written, names included; no operation."""
        self._root.write_back()

    def corrupt(self, path: Path, offset: int, data: bytes) -> None:
        """Change bytes behind everybody's back, durably: the disk's own fault, not a crash's."""
        file = self._file(path)
        for layer in (file.data, file.synced):
            _patch(layer, data, offset)

    def cut(self, path: Path, size_bytes: int) -> None:
        """Shorten a file behind everybody's back, durably."""
        file = self._file(path)
        del file.data[size_bytes:], file.synced[size_bytes:]

    def synced_names(self, path: Path) -> list[str]:
        """The names in a directory that every power cut would leave, sorted; no operation."""
        directory = self._directory(path)
        return sorted(directory.synced.keys() & directory.entries.keys())

    def open(self, path: Path) -> Descriptor:
        """See :meth:`replog.storage.files.FileLayer.open`."""
        self._count("open", path)
        return self._open_file(path, self._file(path))

    def open_to_read(self, path: Path) -> Descriptor:
        """See :meth:`~replog.storage.files.FileLayer.open_to_read`."""
        return self.open(path)

    def create(self, path: Path) -> Descriptor:
        """See :meth:`replog.storage.files.FileLayer.create`."""
        self._count("create", path)
        directory = self._directory(path.parent)
        if path.name in directory.entries:
            raise _os_error(errno.EEXIST, path)
        file = _File()
        directory.change({path.name: file})
        return self._open_file(path, file)

    def close(self, descriptor: Descriptor) -> None:
        """See :meth:`replog.storage.files.FileLayer.close`."""
        if descriptor in self._locked:
            self._count("close", self._locked[descriptor])
            del self._locked[descriptor]
        else:
            path, _ = self._opened(descriptor)
            self._count("close", path)
            del self._open[descriptor]

    def read(self, path: Path) -> bytes:
        """See :meth:`replog.storage.files.FileLayer.read`."""
        self._count("read", path)
        return bytes(self._file(path).data)

    def read_at(self, descriptor: Descriptor, offset: int, size_bytes: int) -> bytes:
        """See :meth:`replog.storage.files.FileLayer.read_at`."""
        path, file = self._opened(descriptor)
        self._count("read", path)
        return bytes(file.data[offset : offset + size_bytes])

    def size_bytes(self, descriptor: Descriptor) -> int:
        """See :meth:`replog.storage.files.FileLayer.size_bytes`."""
        path, file = self._opened(descriptor)
        self._count("size_bytes", path)
        return len(file.data)

    def write(self, descriptor: Descriptor, data: bytes | memoryview, offset: int) -> int:
        """See :meth:`replog.storage.files.FileLayer.write`."""
        path, file = self._opened(descriptor)
        self._count("write", path)
        taken = bytes(data[: self._write_bytes_max])
        growth = offset + len(taken) - len(file.data)
        missing = growth - self._room_bytes(growth)
        if missing > 0:
            if missing >= len(taken):
                raise _os_error(errno.ENOSPC, path)
            taken = taken[:-missing]
        file.write(taken, offset)
        return len(taken)

    def preallocate(self, descriptor: Descriptor, offset: int, size_bytes: int) -> None:
        """See :meth:`replog.storage.files.FileLayer.preallocate`."""
        path, file = self._opened(descriptor)
        self._count("preallocate", path)
        missing = offset + size_bytes - len(file.data)
        if self._room_bytes(missing) < missing:
            raise _os_error(errno.ENOSPC, path)
        if missing > 0:
            file.write(bytes(missing), len(file.data))

    def sync(self, descriptor: Descriptor) -> None:
        """See :meth:`replog.storage.files.FileLayer.sync`."""
        path, file = self._opened(descriptor)
        self._count("sync", path)
        file.sync()

    def rename(self, old: Path, new: Path) -> None:
        """See :meth:`replog.storage.files.FileLayer.rename`."""
        assert old.parent == new.parent
        self._count("rename", old)
        file = self._file(old)
        directory = self._directory(old.parent)
        directory.change({old.name: None, new.name: file})

    def remove(self, path: Path) -> None:
        """See :meth:`replog.storage.files.FileLayer.remove`."""
        self._count("remove", path)
        self._file(path)
        self._directory(path.parent).change({path.name: None})

    def names(self, path: Path) -> list[str]:
        """See :meth:`replog.storage.files.FileLayer.names`."""
        self._count("names", path)
        return sorted(self._directory(path).entries)

    def make_directory(self, path: Path) -> None:
        """See :meth:`replog.storage.files.FileLayer.make_directory`."""
        self._count("make_directory", path)
        parent = self._directory(path.parent)
        if path == path.parent or path.name in parent.entries:
            raise _os_error(errno.EEXIST, path)
        parent.change({path.name: _Directory(DIRECTORY_MODE)})

    def sync_directory(self, path: Path) -> None:
        """See :meth:`replog.storage.files.FileLayer.sync_directory`."""
        self._count("sync_directory", path)
        self._directory(path).sync()

    def mode(self, path: Path) -> int:
        """See :meth:`replog.storage.files.FileLayer.mode`; modes survive every crash."""
        self._count("mode", path)
        return self._directory(path).mode

    def restrict(self, path: Path) -> None:
        """See :meth:`replog.storage.files.FileLayer.restrict`."""
        self._count("restrict", path)
        self._directory(path).mode = DIRECTORY_MODE

    def lock(self, path: Path, holder: bytes) -> Descriptor:
        """See :meth:`replog.storage.files.FileLayer.lock`."""
        self._count("lock", path)
        if path in self._locked.values():
            raise _os_error(errno.EAGAIN, path)
        directory = self._directory(path.parent)
        if path.name not in directory.entries:
            directory.change({path.name: _File()})
        file = self._file(path)
        file.data.clear()
        file.write(holder, 0)
        self._descriptors_count += 1
        self._locked[self._descriptors_count] = path
        return self._descriptors_count

    def _count(self, operation: str, path: Path) -> None:
        """The one point that every operation passes before it takes effect."""
        self.operations_count += 1
        if self.fault is not None:
            self.fault(self.operations_count, operation, path)

    def _open_file(self, path: Path, file: _File) -> Descriptor:
        self._descriptors_count += 1
        self._open[self._descriptors_count] = (path, file)
        return self._descriptors_count

    def _opened(self, descriptor: Descriptor) -> tuple[Path, _File]:
        if descriptor not in self._open:
            raise OSError(errno.EBADF, "the descriptor is closed, or was lost in a crash")
        return self._open[descriptor]

    def _directory(self, path: Path) -> _Directory:
        directory = self._root
        for part in path.parts[1:]:
            node = directory.entries.get(part)
            if node is None:
                raise _os_error(errno.ENOENT, path)
            if not isinstance(node, _Directory):
                raise _os_error(errno.ENOTDIR, path)
            directory = node
        return directory

    def _file(self, path: Path) -> _File:
        node = self._directory(path.parent).entries.get(path.name)
        if node is None:
            raise _os_error(errno.ENOENT, path)
        if not isinstance(node, _File):
            raise _os_error(errno.EISDIR, path)
        return node


def set_crash(files: ForgetfulFiles, operations: int, growing: int = 0) -> None:
    """Let the machine crash at the ``operations``-th operation on the files from now; if a file
    grows until then, ``growing`` operations later."""
    at = files.operations_count + operations
    at_if_grown = at + growing

    def crash(count: int, operation: str, _: Path) -> None:
        nonlocal at
        if operation == "preallocate":
            at = at_if_grown
        if count >= at:
            raise Crashed(operation)

    files.fault = crash


def set_crash_at_sync(files: ForgetfulFiles, syncs: int) -> None:
    """Let the machine crash in front of a sync, of a file or a directory, when so many others were
    made from now on."""
    left = syncs

    def crash(_: int, operation: str, path: Path) -> None:
        nonlocal left
        if operation in ("sync", "sync_directory"):
            if not left:
                raise Crashed(f"{operation} of {path}")
            left -= 1

    files.fault = crash


def _apply(names: dict[str, _Node], change: dict[str, _Node | None]) -> None:
    for name, node in change.items():
        if node is None:
            names.pop(name, None)
        else:
            names[name] = node


def _patch(target: bytearray, data: bytes | bytearray, offset: int) -> None:
    if not data:
        return
    if offset > len(target):
        target.extend(bytes(offset - len(target)))
    target[offset : offset + len(data)] = data


def _os_error(number: int, path: Path) -> OSError:
    """The ``OSError`` subclass that the number stands for."""
    return OSError(number, errno.errorcode[number], str(path))
