"""What the segments of a log come to, without the entries themselves: kept while the log is used.

For each live entry it knows the group that wrote it, for each group where it stands, and for each
segment how far up it puts entries, so that a segment can be removed when a base has passed it.

All of it belongs to the event loop: encoding a group notes here what the disk will hold.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Sequence

from replog.entries import unpack_run_heads
from replog.storage.hard_state import Vouched
from replog.storage.places import Places
from replog.storage.protocol import Write
from replog.types import Entry, EntryId, EpochNumber, HardState, LogIndex, Term


class SegmentState:
    """One segment of the log."""

    __slots__ = ("first_sequence", "number", "put_index_max", "salt")

    def __init__(self, number: int, first_sequence: int, salt: int) -> None:
        self.number = number
        self.first_sequence = first_sequence
        """Of its first group."""
        self.salt = salt
        """From which the checksum of every head in it starts."""
        self.put_index_max: LogIndex = 0
        """No group of it puts an entry above this."""


class LogState:
    """A :class:`~replog.storage.replay.Sink`; see the module."""

    __slots__ = ("_offsets", "_sequence", "hard_state", "places", "segments")

    def __init__(self) -> None:
        self.hard_state: HardState | None = None
        self.places = Places()
        self.segments: list[SegmentState] = []
        self._offsets = array("Q")
        """Where each group begins in its segment, from the first group of the first segment on."""
        self._sequence = 0
        """The group that is told just now."""

    # -- what is told --

    def begin_segment(self, number: int, first_sequence: int, salt: int) -> None:
        """The groups that follow are in this segment."""
        self.segments.append(SegmentState(number, first_sequence, salt))

    def begin_group(self, sequence: int, offset: int) -> None:
        """The records that follow are of this group, which begins at ``offset``."""
        assert sequence == self.segments[0].first_sequence + len(self._offsets)
        self._offsets.append(offset)
        self._sequence = sequence

    def cut(self, base: EntryId) -> None:
        """See :class:`~replog.storage.replay.Sink`."""
        self.places.cut(base)

    def truncate(self, from_index: LogIndex) -> None:
        """See :class:`~replog.storage.replay.Sink`."""
        self.places.truncate(from_index)

    def put_packed(self, content: bytes) -> None:
        """See :class:`~replog.storage.replay.Sink`."""
        for epoch, term, first, count in unpack_run_heads(content):
            self._put_run(first, count, epoch, term)

    def _put_run(self, first: LogIndex, count: int, epoch: EpochNumber, term: Term) -> None:
        self.places.put(first, count, epoch, term, self._sequence)
        segment = self.segments[-1]
        if first + count > segment.put_index_max:
            segment.put_index_max = first + count - 1

    def note(self, writes: Sequence[Write], runs: Sequence[Sequence[Sequence[Entry]]]) -> None:
        """What the records of ``writes`` tell, whose bytes need not be read for it again; by write,
        ``runs`` are its entries."""
        for write, runs_of_write in zip(writes, runs, strict=True):
            if write.hard_state is not None:
                self.hard_state = write.hard_state
            if write.base is not None:
                self.places.cut(write.base)
            if write.truncate_from is not None:
                self.places.truncate(write.truncate_from)
            index = 0
            for run in runs_of_write:
                first = run[0]
                assert first.index > index, "entries ascend"
                index = run[-1].index
                self._put_run(first.index, len(run), first.epoch, first.term)

    # -- what is asked --

    def vouched(self) -> Vouched:
        """What must never be forgotten of all this."""
        hard_state = self.hard_state
        assert hard_state is not None, "every log opens with it"
        return Vouched(
            hard_state.epoch,
            hard_state.term,
            hard_state.voted_for,
            self.segments[-1].number,
            self.segments[0].number,
        )

    def stand(self, sequence: int) -> tuple[SegmentState, int]:
        """The segment of a group, and where it begins there."""
        segments = self.segments
        at = bisect_right(segments, sequence, key=lambda each: each.first_sequence) - 1
        return segments[at], self._offsets[sequence - segments[0].first_sequence]

    def forget_obsolete(self) -> list[int]:
        """Forget the segments in which no entry above the base was put, from the oldest on, and
        return their numbers; never the last one."""
        obsolete: list[int] = []
        while len(self.segments) > 1:
            oldest, following = self.segments[:2]
            if oldest.put_index_max > self.places.base.index:
                break
            obsolete.append(oldest.number)
            del self._offsets[: following.first_sequence - oldest.first_sequence]
            del self.segments[0]
        return obsolete
