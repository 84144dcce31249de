"""Entries read back from the segments, group by group: a :class:`~replog.stored_log.StoredLog`.

It belongs to the event loop.  What is on its way to the disk is read from memory: whoever encodes a
group leaves it here (:meth:`SegmentReader.hold`) until it is persisted.

A group is read whole and its checksum verified.  Small groups are read many at a time: the bytes of
one read stay until another stretch is asked for, and that is all that is cached.
"""

from __future__ import annotations

import zlib
from bisect import bisect_left
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from replog.entries import ENTRY_OVERHEAD_BYTES_MAX, unpack_entries
from replog.errors import LogDamaged, StorageFailed
from replog.limits import KIB
from replog.runs import Runs
from replog.storage.files import Descriptor, FileLayer
from replog.storage.log_state import LogState
from replog.storage.segment import (
    DAMAGE_REMEDY,
    HEAD_BYTES,
    read_head,
    segment_name,
    unpack_puts,
)
from replog.stored_log import check_stored
from replog.types import Entry, EntryId, LogIndex

READ_BYTES: Final = 256 * KIB
"""How much is read at a time, at least."""


DESCRIPTORS_MAX: Final = 4
"""So many segments stay open to be read: slow peers rarely read in more places than that."""


class SegmentReader:
    """Reads what a :class:`~replog.storage.log_state.LogState` knows of."""

    def __init__(self, files: FileLayer, path: Path, state: LogState) -> None:
        self._files = files
        self._path = path
        self._state = state
        self._held: dict[int, bytes] = {}
        """By number, the groups that are not persisted yet."""
        self._descriptors: dict[int, Descriptor] = {}
        """By number, the segments that were read from, those opened first in front."""
        self._chunk = b""
        """What was read last, ..."""
        self._chunk_stand = (0, 0)
        """... from which segment, and from where."""
        self._group = 0
        """The group whose entries were unpacked last, ..."""
        self._entries: list[Entry] = []
        """... and these, ascending by index."""

    @property
    def base(self) -> EntryId:
        """See :class:`~replog.stored_log.StoredLog`."""
        return self._state.places.base

    @property
    def runs(self) -> Runs:
        """See :class:`~replog.stored_log.StoredLog`."""
        return self._state.places.runs

    def hold(self, sequence: int, group: bytes) -> None:
        """A group is on its way to the disk."""
        self._held[sequence] = group

    def release(self, sequence: int) -> None:
        """A group is on the disk; may be called from another thread."""
        self._held.pop(sequence, None)

    def read(self, first: LogIndex, last: LogIndex, bytes_max: int) -> tuple[Entry, ...]:
        """See :class:`~replog.stored_log.StoredLog`."""
        check_stored(self, first)
        places = self._state.places
        end = self.runs.reach(first, last)
        found: list[Entry] = []
        index = first
        while index <= end:
            group = places.group_of(index)
            if group != self._group:
                self._unpack(group)
            entries = self._entries
            at = bisect_left(entries, index, key=_index_of)
            count = places.reach_of(group, index, min(end, index + len(entries) - at - 1))
            if entries[at + count - 1].index != index + count - 1:
                count = 1  # there is a hole in the group, which another one fills
            taken = entries[at : at + count]
            size_bytes = sum([len(entry.body) for entry in taken])
            size_bytes += count * ENTRY_OVERHEAD_BYTES_MAX
            if size_bytes > bytes_max:
                found += _within(taken, bytes_max, not found)
                break
            bytes_max -= size_bytes
            found += taken
            index += count
        return tuple(found)

    def _unpack(self, sequence: int) -> None:
        body = self._body(sequence)
        self._group, self._entries = 0, []
        writes = [unpack_entries(content) for content in unpack_puts(body)]
        if len(writes) == 1:
            (self._entries,) = writes
        else:
            last_wins = {entry.index: entry for entries in writes for entry in entries}
            self._entries = [last_wins[index] for index in sorted(last_wins)]
        self._group = sequence

    def _body(self, sequence: int) -> bytes:
        """The records of a group, verified."""
        held = self._held.get(sequence)
        if held is not None:
            return held[HEAD_BYTES:-1]
        segment, offset = self._state.stand(sequence)
        for _ in range(2):
            head = read_head(self._bytes(segment.number, offset, HEAD_BYTES), 0, segment.salt)
            if head is not None and head.sequence == sequence:
                body = self._bytes(segment.number, offset + HEAD_BYTES, head.body_bytes)
                if len(body) == head.body_bytes and zlib.crc32(body) == head.body_checksum:
                    return body
            # The chunk may be older than the group.
            self._chunk = b""
        raise LogDamaged(
            f"{self._path / segment_name(segment.number)}: group {sequence} at offset {offset} was "
            f"intact when it was written or recovered, and is damaged now; {DAMAGE_REMEDY}"
        )

    def _bytes(self, segment: int, offset: int, size_bytes: int) -> bytes:
        """A piece of a segment, from the chunk that was read last if it is there."""
        chunk_segment, chunk_offset = self._chunk_stand
        start = offset - chunk_offset
        if segment != chunk_segment or start < 0 or start + size_bytes > len(self._chunk):
            path = self._path / segment_name(segment)
            try:
                if segment not in self._descriptors:
                    if len(self._descriptors) == DESCRIPTORS_MAX:
                        self._files.close(self._descriptors.pop(next(iter(self._descriptors))))
                    self._descriptors[segment] = self._files.open_to_read(path)
                self._chunk = self._files.read_at(
                    self._descriptors[segment], offset, max(READ_BYTES, size_bytes)
                )
            except OSError as error:
                raise StorageFailed(f"{path} cannot be read: {error.strerror or error}") from error
            self._chunk_stand = (segment, offset)
            start = 0
        return self._chunk[start : start + size_bytes]

    def forget_segment(self, segment: int) -> None:
        """A segment is about to be removed."""
        if segment in self._descriptors:
            self._files.close(self._descriptors.pop(segment))
        self._chunk, self._chunk_stand = b"", (0, 0)

    def close(self) -> None:
        """Release the files."""
        for segment in list(self._descriptors):
            self.forget_segment(segment)


def _index_of(entry: Entry) -> LogIndex:
    return entry.index


def _within(entries: Sequence[Entry], bytes_max: int, is_first: bool) -> Sequence[Entry]:
    """Those of the first of ``entries`` that fit; ``is_first``: one at least."""
    count = 0
    for entry in entries:
        bytes_max -= len(entry.body) + ENTRY_OVERHEAD_BYTES_MAX
        if bytes_max < 0 and not (is_first and not count):
            break
        count += 1
    return entries[:count]
