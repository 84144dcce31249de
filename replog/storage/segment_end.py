"""The end of the last segment, where groups are written: room, zeros ahead, write and sync.

It touches its files and its offsets and nothing else, and hardly any Python runs in it: it belongs
to the thread that makes groups durable.

The file is extended ahead of its groups, in steps, and each step is synced *before* a group is
written into it.  So a sync of a group writes no size, the file is never shorter than its groups
and a file that was cut is noticed.  Within an extension, zeros are written a little ahead of the
groups: the first write to a block that is only allocated changes the file's layout, and a sync has
to write that change too (450 against 320 us for groups of 64 commands, 640 against 390 for groups
of 1024, three processes syncing on one ext4).

Room is sought before it is needed.  Behind each group a *reserve* of zeros stands in the file, and
when the next group would use of it, the file is extended first; where the segment ends, the file of
the following one is made instead, under a name of no meaning.  If there is no room for that,
``is_full`` says so, and groups go on into the reserve; what does not fit there takes whatever the
disk still has, in small pieces.  Only a group that finds none of this is refused:
:class:`~replog.errors.StorageFull`, raised nowhere but where a second attempt repairs the first.
That is so while a file grows, for zeros mean nothing, and while the group itself is written: no
sync was asked for, nothing stands behind the group, and the next attempt writes the same bytes to
the same place.  A *sync* that fails for lack of room may have dropped pages, and is an error like
any other.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Final, NoReturn

from replog.errors import StorageFull
from replog.limits import KIB, MIB
from replog.storage.files import NO_ROOM, Descriptor, FileLayer, temporary_path, write_all
from replog.storage.plugin import StorageHome
from replog.storage.recovery import TAIL_BYTES
from replog.storage.segment import segment_name
from replog.types import record

WRITE_AHEAD_BYTES: Final = 1 * MIB
"""How far zeros are written ahead of the groups at a time."""
PIECE_BYTES: Final = 4 * KIB
"""How far a file is extended when there is no room for a whole step."""


@record
class Growth:
    """How segments grow."""

    segment_bytes: int
    """A segment is full when the next group would make it larger than this."""
    extend_bytes: int
    """How far a file is extended at a time; an extension costs about two syncs."""
    reserve_bytes: int
    """How much room stands behind the last group, unless the disk is full."""


class SegmentEnd:
    """An open segment, to be written at its end."""

    __slots__ = (
        "_allocated",
        "_file",
        "_files",
        "_following",
        "_growth",
        "_home",
        "_limit",
        "_written",
        "end",
        "is_full",
        "is_synced",
        "number",
        "path",
    )

    def __init__(
        self,
        home: StorageHome,
        number: int,
        file: Descriptor,
        end: int,
        allocated: int,
        growth: Growth,
    ) -> None:
        self._home = home
        self._files = home.files
        self.number = number
        self.path = home.path / segment_name(number)
        self._file = file
        self._following = FollowingSegment(home.files, home.path / segment_name(number + 1))
        self._growth = growth
        self._allocated = allocated
        """The size of the file."""
        self._written = end
        """Up to here every block was written, be it with zeros."""
        self._limit = end - growth.reserve_bytes
        """A group that ends behind this, with the zeros that must follow it, needs more room."""
        self.end = end
        """Where the next group goes."""
        self.is_synced = home.is_synced
        """Whether a group is synced when it is written (sync level ``always``)."""
        self.is_full = False
        """Whether the last attempt to keep the reserve met no room."""

    def append(self, group: bytes) -> None:
        """Write a group and sync it.

        Raises :class:`~replog.errors.StorageFull`; the next group to be appended is the same one
        then.
        """
        end = self.end + len(group)
        if end + TAIL_BYTES > self._limit:
            self._find_room(end + TAIL_BYTES)
        try:
            write_all(self._files, self._file, group, self.end)
        except OSError as error:
            self._refuse(self.path, error)
        if self.is_synced:
            self._files.sync(self._file)
        self.end = end

    def _find_room(self, size_bytes_min: int) -> None:
        """Make the file reach so far, with the reserve behind it if that can be had."""
        if not self.is_full:
            with suppress(StorageFull):  # noted in is_full
                self._grow(size_bytes_min)
        if size_bytes_min > self._written:
            wanted = _rounded_up(size_bytes_min, PIECE_BYTES)
            if size_bytes_min > self._allocated:
                self._extend(wanted)
            self._write_ahead(wanted)
        if self.is_full:
            self._limit = self._written

    def _grow(self, size_bytes_min: int) -> None:
        """Make the file reach so far and have the reserve behind that, be it in a file to come."""
        growth = self._growth
        reserve_bytes = growth.reserve_bytes
        wanted = size_bytes_min + reserve_bytes
        if wanted > growth.segment_bytes:
            self._prepare_following(growth.extend_bytes)
            wanted = max(size_bytes_min, growth.segment_bytes)
            reserve_bytes = 0
        if wanted > self._allocated:
            step = _rounded_up(wanted, growth.extend_bytes)
            self._extend(min(step, max(wanted, growth.segment_bytes)))
        self._write_ahead((wanted // WRITE_AHEAD_BYTES + 1) * WRITE_AHEAD_BYTES)
        self._limit = self._written - reserve_bytes
        self.is_full = False

    def _extend(self, size_bytes: int) -> None:
        try:
            self._files.preallocate(self._file, self._allocated, size_bytes - self._allocated)
        except OSError as error:
            self._refuse(self.path, error)
        self._files.sync(self._file)
        self._allocated = size_bytes

    def _write_ahead(self, size_bytes: int) -> None:
        """Write zeros so far, within what is allocated."""
        written = min(size_bytes, self._allocated)
        if written <= self._written:
            return
        try:
            write_all(self._files, self._file, bytes(written - self._written), self._written)
        except OSError as error:
            self._refuse(self.path, error)
        self._written = written

    def _prepare_following(self, size_bytes: int) -> None:
        try:
            self._following.make(size_bytes)
        except OSError as error:
            self._refuse(self._following.path, error)

    def _refuse(self, path: Path, error: OSError) -> NoReturn:
        """What a failure means that is no sync's: for lack of room, nothing is lost."""
        if error.errno not in NO_ROOM:
            raise error
        self.is_full = True
        raise StorageFull(
            f"{path} cannot grow, for the disk has no room ({error.strerror or error}); nothing is "
            "lost, and the log goes on as soon as there is some: free some space on the disk, or "
            "raise the quota"
        ) from error

    def make_room(self, waiting_bytes: int, *, opens_segment: bool) -> None:
        """Try to have the reserve again, and room for a refused group of so many bytes;
        ``opens_segment``: its segment is the following one, and could not be made."""
        with suppress(StorageFull):
            if opens_segment:
                size_bytes = waiting_bytes + TAIL_BYTES + self._growth.reserve_bytes
                self._prepare_following(max(self._growth.extend_bytes, size_bytes))
                self.is_full = False
            else:
                self._grow(self.end + waiting_bytes + TAIL_BYTES)

    def follow(self, opening: bytes) -> SegmentEnd:
        """Publish the following segment, which begins with ``opening``, and let go of this one.

        Raises :class:`~replog.errors.StorageFull`; this one is as usable as before then.
        """
        self.make_durable()  # at every level, so that only the last segment can be torn
        size_bytes_min = len(opening) + TAIL_BYTES
        following = self._following
        if following.size_bytes < size_bytes_min:
            with suppress(StorageFull):
                self._prepare_following(max(self._growth.extend_bytes, size_bytes_min))
        if following.size_bytes < size_bytes_min:
            self._prepare_following(_rounded_up(size_bytes_min, PIECE_BYTES))
        size_bytes = following.size_bytes
        try:
            following.fill(opening)
        except OSError as error:
            self._refuse(following.path, error)
        file = following.publish()
        self._files.close(self._file)
        return SegmentEnd(self._home, self.number + 1, file, len(opening), size_bytes, self._growth)

    def make_durable(self) -> None:
        """Sync what was not synced group by group."""
        if not self.is_synced:
            self._files.sync(self._file)

    def close(self) -> None:
        """Release the file, and give back the room that was kept for the following one."""
        self._files.close(self._file)
        with suppress(OSError):  # a recovery removes it as well
            self._following.discard()


class FollowingSegment:
    """The file of a segment to come: room, under a name of no meaning until it is published."""

    __slots__ = ("_file", "_files", "_temporary", "path", "size_bytes")

    def __init__(self, files: FileLayer, path: Path) -> None:
        self._files = files
        self.path = path
        self._temporary = temporary_path(path)
        self._file: Descriptor | None = None
        self.size_bytes = 0
        """How large it is; 0: it is not made."""

    def make(self, size_bytes: int) -> None:
        """Make the file with room for so many bytes; without room there is none."""
        if size_bytes <= self.size_bytes:
            return
        self.discard()
        if self._temporary.name in self._files.names(self.path.parent):
            self._files.remove(self._temporary)
        self._file = self._files.create(self._temporary)
        try:
            self._files.preallocate(self._file, 0, size_bytes)
        except OSError:
            self.discard()
            raise
        self.size_bytes = size_bytes

    def fill(self, opening: bytes) -> None:
        """Write the first bytes of the segment and sync them; if that fails there is no file."""
        assert self._file is not None, "made"
        try:
            write_all(self._files, self._file, opening, 0)
            self._files.sync(self._file)
        except OSError:
            self.discard()
            raise

    def publish(self) -> Descriptor:
        """Make the segment appear, durably, as it was filled; the open file."""
        assert self._file is not None, "filled"
        self._files.rename(self._temporary, self.path)
        self._files.sync_directory(self.path.parent)
        file, self._file = self._file, None
        self.size_bytes = 0
        return file

    def discard(self) -> None:
        """Remove the file, if there is one."""
        if self._file is None:
            return
        file, self._file = self._file, None
        self.size_bytes = 0
        self._files.close(file)
        self._files.remove(self._temporary)


def _rounded_up(size_bytes: int, step_bytes: int) -> int:
    return (size_bytes + step_bytes - 1) // step_bytes * step_bytes
