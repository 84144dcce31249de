"""The write-ahead log: what was persisted survives a crash, as a whole group or not at all.

Files ``log-0000000000000001.seg`` and so on, the *segments*, whose bytes
:mod:`replog.storage.segment` defines and whose reading :mod:`replog.storage.recovery` judges.

How a group gets to disk: ``encode`` makes its bytes on the event loop and notes where they will
stand (:mod:`replog.storage.log_state`); ``persist`` is one write and one sync and hardly any
Python, because it may run in a thread beside the loop and would hold the interpreter there.  What
the two share goes from one to the other in the group.

A group that does not fit into its segment opens a new one.  That appears, durably, with the hard
state and the base in force before the group is written; so only the last segment can be torn, and
any segment that a base has passed can be removed.

A full disk refuses what grows, and keeps what must stay writable.  Room is sought before a group
needs it (:mod:`replog.storage.segment_end`); when there is none, ``is_full`` says so while
``RESERVE_BYTES`` are left for the groups on their way and for those without entries: terms, votes,
truncations and bases.  A vote takes some 60 bytes there; its second copy is overwritten in place
and needs none.  A group that fits nowhere is refused with ``StorageFull``, nothing of it counts,
and it stays the next one, so whatever was encoded behind it waits as well, votes included.  A group
that is no larger than the reserve is not refused, unless the log was full already or was opened on
a full disk.

An entry is read back with its whole group, whose checksum is verified each time.

Recovery leaves the disk such that a second one finds the same:

* The log must be as new as the second copy of the hard state (:mod:`replog.storage.hard_state`).
* A torn group is overwritten with zeros, so that its remains are never read as a group later.
* The last group is written once more.  The process may have been killed between its write and
  its sync, or its sync may have failed: then it is read from memory, and the disk does not hold
  it.  (A kernel may mark pages clean whose writing failed, so a sync alone is not enough.)
* Only then, after a sync, is anything reported as recovered.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final, NoReturn

from replog.errors import DirectoryError, StorageFailed, StorageFull
from replog.limits import MIB
from replog.storage.files import TEMPORARY_SUFFIX, Descriptor, write_all
from replog.storage.hard_state import FILE_NAME as SECOND_COPY_NAME
from replog.storage.hard_state import SecondCopy, Vouched
from replog.storage.log_reading import check_whole, read_log, read_second_copy
from replog.storage.log_state import LogState
from replog.storage.plugin import StorageHome
from replog.storage.protocol import Recovered, Storage, Write
from replog.storage.recovery import TAIL_BYTES, Scanned
from replog.storage.segment import (
    HEAD_BYTES,
    SegmentHeader,
    frame_group,
    header_salt,
    pack_group,
    pack_header,
    pack_records,
    segment_name,
    segment_number,
)
from replog.storage.segment_end import Growth, SegmentEnd
from replog.storage.segment_reader import SegmentReader
from replog.types import NO_NODE, HardState, record

SEGMENT_BYTES: Final = 32 * MIB
"""A segment is full when the next group would make it larger than this."""
EXTEND_BYTES: Final = 16 * MIB
"""How far a file is extended at a time; an extension costs about two syncs."""
RESERVE_BYTES: Final = 1 * MIB
"""How much room stands behind the last group: more is sought before a group uses of it."""
FOUNDING_BYTES: Final = 4096
"""The size of a log that was founded and never written."""

_FIRST_EPOCH: Final = 1


@record
class Group:
    """A group on its way to the disk."""

    sequence: int
    data: bytes
    opening: bytes
    """Header and opening group of the segment that it begins; empty: it goes behind the last."""
    segment: int
    obsolete: Sequence[int]
    """The segments that can be removed when it is durable, oldest first."""
    vouched: Vouched | None
    """What the second copy has to say when it is durable; ``None``: what it says already."""


class Wal:
    """The log of one node; see :class:`~replog.storage.protocol.Storage` for the contract."""

    def __init__(
        self,
        home: StorageHome,
        segment_bytes: int = SEGMENT_BYTES,
        extend_bytes: int = EXTEND_BYTES,
        reserve_bytes: int = RESERVE_BYTES,
    ) -> None:
        assert 0 < reserve_bytes <= extend_bytes <= segment_bytes
        self._home = home
        self._files = home.files
        self._segment_bytes = segment_bytes
        self._growth = Growth(segment_bytes, extend_bytes, reserve_bytes)
        self.durable = home.is_synced
        self._failure: str | None = None
        """Set by whoever persists, once and for all."""
        self._is_open = False
        # Of the event loop.
        self._state = LogState()
        self._reader = SegmentReader(home.files, home.path, self._state)
        self._sequence = 0
        """Of the last group that was encoded."""
        self.written_bytes = 0
        self._chain = 0
        self._salt = 0
        self._encoded_end = 0
        """Where the next group goes, in the last segment."""
        self._vouched: Vouched | None = None
        """What the second copy of the hard state says, or will."""
        # Of whoever persists.
        self._end: SegmentEnd | None = None
        self._persisted_sequence = 0
        self._refused: Group | None = None
        """The group that found no room and is to come again."""
        self._second_copy = SecondCopy(home.files, home.path, home.node_id, home.incarnation)

    @property
    def is_full(self) -> bool:
        """See :attr:`~replog.storage.protocol.Storage.is_full`."""
        end = self._end
        return end is not None and end.is_full

    @property
    def end(self) -> int:
        """Where the next group goes in the last segment; what is on its way counts."""
        return self._encoded_end

    @property
    def path(self) -> Path:
        """The last segment."""
        return self._path(self._state.segments[-1].number)

    def recover(self) -> Recovered:
        """Read everything; see :meth:`~replog.storage.protocol.Storage.recover`.

        Raises :class:`~replog.errors.LogDamaged` (missing, empty, damaged: three sentences),
        :class:`~replog.errors.DirectoryError` (the log of somebody else),
        :class:`~replog.errors.UnknownFormat` and :class:`~replog.errors.StorageFailed`.
        """
        assert self._end is None, "recover is called once"
        segment = read_log(self._home, self._state)
        check_whole(self._home, self._state, read_second_copy(self._second_copy))
        self._open_end(segment.path, segment.data, segment.scanned)
        if segment.scanned.last_sequence == 1:
            # Only the founding's own group: nobody has voted or written here.
            return Recovered(None, self._reader)
        return Recovered(self._state.hard_state, self._reader)

    def _path(self, segment: int) -> Path:
        return self._home.path / segment_name(segment)

    def _open_end(self, path: Path, data: bytes, scanned: Scanned) -> None:
        """Settle the last segment and get ready to write behind it."""
        try:
            file = self._files.open(path)
            self._settle(file, data, scanned)
            self._remove_unpublished()
            self._files.sync_directory(self._home.path)  # the name of the last segment
            self._vouched = self._state.vouched()
            self._second_copy.write(self._vouched)
        except OSError as error:
            self._fail(path, "its end again", error)
        self._end = self._new_end(file, scanned.end, len(data))
        self._is_open = True
        self._persisted_sequence = self._sequence = scanned.last_sequence
        self._chain = scanned.chain
        self._salt = header_salt(data)
        self._encoded_end = scanned.end

    def _new_end(self, file: Descriptor, end: int, size_bytes: int) -> SegmentEnd:
        number = self._state.segments[-1].number
        return SegmentEnd(self._home, number, file, end, size_bytes, self._growth)

    def _remove_unpublished(self) -> None:
        """Give back the room that the run before kept for a segment to come."""
        for name in self._files.names(self._home.path):
            if _unpublished_number(name):
                self._files.remove(self._home.path / name)

    def _settle(self, file: Descriptor, data: bytes, scanned: Scanned) -> None:
        """Make what was found durable, and what is torn zero, as the module's docstring says."""
        if scanned.content_end > scanned.end:
            # The head goes last, and only when nothing is left behind it, so that a crash amid the
            # wiping leaves what is still seen to be torn.
            self._wipe(file, scanned.end + HEAD_BYTES, scanned.content_end)
            self._wipe(file, scanned.end, scanned.end + HEAD_BYTES)
        last_group = data[scanned.last_offset : scanned.end]
        write_all(self._files, file, last_group, scanned.last_offset)
        self._files.sync(file)

    def _wipe(self, file: Descriptor, start: int, end: int) -> None:
        if start < end:
            write_all(self._files, file, bytes(end - start), start)
            self._files.sync(file)

    # -- on the event loop --

    def encode(self, writes: Sequence[Write]) -> Group:
        """One group; see :meth:`~replog.storage.protocol.Storage.encode`."""
        self._check_usable()
        sequence, chain = self._sequence + 1, self._chain
        records = pack_records(writes)
        data, next_chain = frame_group(records, sequence, chain, self._salt)
        opening = b""
        is_beyond = self._encoded_end + len(data) + TAIL_BYTES > self._segment_bytes
        if is_beyond and sequence > self._state.segments[-1].first_sequence + 1:
            opening = self._begin_segment()
            sequence, chain = self._sequence + 1, self._chain
            data, next_chain = frame_group(records, sequence, chain, self._salt)
        state = self._state
        hard_state, base = state.hard_state, state.places.base
        state.begin_group(sequence, self._encoded_end)
        state.note(writes, records.runs)
        self._encoded_end += len(data)
        self.written_bytes += len(data)
        self._sequence, self._chain = sequence, next_chain
        segment = state.segments[-1].number
        obsolete = [] if state.places.base is base else state.forget_obsolete()
        for number in obsolete:
            self._reader.forget_segment(number)
        self._reader.hold(sequence, data)
        vouched: Vouched | None = None
        if opening or obsolete or state.hard_state is not hard_state:
            vouched = state.vouched()
            if vouched == self._vouched:
                vouched = None  # a hint alone is new, which nobody vouches for
            else:
                self._vouched = vouched
        return Group(sequence, data, opening, segment, obsolete, vouched)

    def _begin_segment(self) -> bytes:
        """The header and the opening group of the next segment, in which groups go from now on."""
        home, state = self._home, self._state
        assert state.hard_state is not None, "every segment opens with it"
        number, sequence = state.segments[-1].number + 1, self._sequence + 1
        header = pack_header(
            SegmentHeader(
                home.cluster_id, home.node_id, home.incarnation, number, sequence, self._chain
            )
        )
        base = state.places.base if state.places.base.index else None
        writes = [Write(state.hard_state, None, (), base)]
        self._salt = header_salt(header)
        group, self._chain = pack_group(writes, sequence, self._chain, self._salt)
        self._sequence = sequence
        state.begin_segment(number, sequence, self._salt)
        state.begin_group(sequence, len(header))
        opening = header + group
        self._encoded_end = len(opening)
        return opening

    # -- in the thread that persists --

    def persist(self, group: object) -> None:
        """Write and sync one group; see :meth:`~replog.storage.protocol.Storage.persist`."""
        assert isinstance(group, Group)
        self._check_usable()
        end = self._end
        assert end is not None, "between recover and close"
        step = 2 if group.opening else 1
        if group.sequence != self._persisted_sequence + step:
            # Not an assert: out of order the groups would be refused at the next recovery.
            raise AssertionError("groups are persisted in the order in which they were encoded")
        try:
            if group.opening and end.number != group.segment:
                end = self._end = end.follow(group.opening)
            end.append(group.data)
            if group.obsolete:
                end.make_durable()  # at every level: what the segments held goes with them
            if group.vouched is not None:
                self._second_copy.write(group.vouched)
            for segment in group.obsolete:
                # One after the other: a crash must not keep one and lose a later one.
                self._files.remove(self._path(segment))
                self._files.sync_directory(self._home.path)
            if group.obsolete and end.is_full:
                end.make_room(0, opens_segment=False)
        except StorageFull:
            self._refused = group
            raise
        except BaseException as error:
            self._fail(self._path(group.segment), f"group {group.sequence}", error)
        self._refused = None
        self._persisted_sequence = group.sequence
        self._reader.release(group.sequence)

    def make_room(self) -> None:
        """Try to grow again; see :meth:`~replog.storage.protocol.Storage.make_room`."""
        self._check_usable()
        end, refused = self._end, self._refused
        assert end is not None, "between recover and close"
        if not end.is_full:
            return
        try:
            if refused is None:
                end.make_room(0, opens_segment=False)
            elif refused.segment == end.number:
                end.make_room(len(refused.data), opens_segment=False)
            else:
                waiting_bytes = len(refused.opening) + len(refused.data)
                end.make_room(waiting_bytes, opens_segment=True)
        except BaseException as error:
            self._fail(end.path, "zeros behind the last group", error)

    def _check_usable(self) -> None:
        if self._failure is not None:
            raise StorageFailed(self._failure)
        assert self._is_open, "between recover and close"

    def _fail(self, path: Path, what: str, error: BaseException) -> NoReturn:
        """Poison the log: nothing is retried, for a failed sync may have dropped its pages."""
        reason = (error.strerror or error) if isinstance(error, OSError) else repr(error)
        self._failure = (
            f"{path}: writing {what} failed ({reason}), so what is on disk is not known any more "
            "and the node stops; repair the disk, or free some space on it, and start the node "
            "again"
        )
        if not isinstance(error, OSError):
            raise error
        raise StorageFailed(self._failure) from error

    def close(self) -> None:
        """Release the files; may be called again."""
        self._is_open = False
        self._reader.close()
        self._second_copy.close()
        if self._end is not None:
            end, self._end = self._end, None
            end.close()


def found_log(home: StorageHome) -> None:
    """Make the empty log of ``home``; its bytes are durable on return, its name need not be.

    Replaces what an interrupted founding left.  Raises
    :class:`~replog.errors.DirectoryError` for a log that holds more than a founding writes.
    """
    path = home.path / segment_name(1)
    header = pack_header(
        SegmentHeader(home.cluster_id, home.node_id, home.incarnation, 1, first_sequence=1, chain=0)
    )
    opening = Write(HardState(_FIRST_EPOCH, 0, NO_NODE), None, ())
    group, _ = pack_group([opening], sequence=1, chain=0, salt=header_salt(header))
    content = header + group
    names = home.files.names(home.path)
    second_copy = SecondCopy(home.files, home.path, home.node_id, home.incarnation)
    numbers = [max(segment_number(name), _unpublished_number(name)) for name in names]
    is_written = max(numbers, default=0) > 1 or second_copy.is_written()
    if path.name in names:
        is_written = is_written or any(home.files.read(path)[len(content) :])
    if is_written:
        raise DirectoryError(
            f"{path} belongs to a log that was written to, in a directory without an identity; a "
            "node made anew would forget what it voted: put the identity back, or choose another "
            "directory"
        )
    if path.name in names:
        home.files.remove(path)
    second_copy.found(Vouched(_FIRST_EPOCH, 0, NO_NODE, 1, 1))
    file = home.files.create(path)
    try:
        write_all(home.files, file, content.ljust(FOUNDING_BYTES, b"\0"), 0)
        home.files.sync(file)
    finally:
        home.files.close(file)


def _unpublished_number(name: str) -> int:
    """The number of the segment that was to have the file of that name; 0: none."""
    stem = name.removesuffix(TEMPORARY_SUFFIX)
    return segment_number(stem) if stem != name else 0


class WalPlugin:
    """The storage ``wal``."""

    name = "wal"
    title = "write-ahead log on disk, synced before anything is acknowledged"
    durable = True

    def owns(self, name: str) -> bool:
        """See :meth:`~replog.storage.plugin.StoragePlugin.owns`."""
        number = segment_number(name) or _unpublished_number(name)
        return number > 0 or name == SECOND_COPY_NAME

    def found(self, home: StorageHome) -> None:
        """See :func:`found_log`."""
        found_log(home)

    def open(self, home: StorageHome) -> Storage:
        """See :meth:`~replog.storage.plugin.StoragePlugin.open`."""
        return Wal(home)


WAL: Final = WalPlugin()
