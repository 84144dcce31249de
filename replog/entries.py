"""How entries are laid out as bytes: the same in every frame and in the log on disk.

Entries travel as *runs*: stretches of one epoch and term at contiguous indexes.  A run is

=================  ====================================================================
part               content (big-endian)
=================  ====================================================================
head               epoch (u32), term (u64), first index (u64), count (u32)
lengths            ``count`` body lengths (u32 each)
bodies             the bodies, back to back, as they were encoded at birth
=================  ====================================================================

The columns make one ``struct`` call and one join of a whole batch; a head per entry would cost
more than everything else that is done for the entry.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator, Sequence
from itertools import repeat
from typing import Final

from replog.errors import SchemaError
from replog.types import BODY_HEAD_BYTES, Entry, EpochNumber, LogIndex, Term, record

_RUN_HEAD: Final = struct.Struct(">IQQI")
RUN_HEAD_BYTES: Final = _RUN_HEAD.size
ENTRY_OVERHEAD_BYTES_MAX: Final = RUN_HEAD_BYTES + 4
"""What an entry takes beside its body, at most: as a run of its own."""


@record
class Packed:
    """Entries with their bytes."""

    entries: Sequence[Entry]
    runs: Sequence[Sequence[Entry]]
    """The same, cut into runs."""
    data: bytes


class _LastPacked:
    """What was packed or unpacked last.

    A batch is wanted as bytes several times in a row: for every peer and for the disk at a leader,
    and at a follower for its disk, just as it came.  Records do not change, so a tuple of them that
    is *the same object* has the same bytes.
    """

    __slots__ = ("packed",)

    def __init__(self) -> None:
        self.packed = Packed((), (), b"")
        """Replaced as a whole: another thread may pack as well."""


_LAST: Final = _LastPacked()


def pack_entries(entries: Sequence[Entry]) -> bytes:
    """The bytes of entries, which ascend by index; their terms may differ in any way."""
    return packed_entries(entries).data


def packed_entries(entries: Sequence[Entry]) -> Packed:
    """The bytes of entries, as :func:`pack_entries`, with the runs that they consist of."""
    packed = _LAST.packed
    if packed.entries is entries:
        return packed
    runs = entry_runs(entries)
    packed = Packed(entries, runs, b"".join(map(_pack_run, runs)))
    if type(entries) is tuple:
        _LAST.packed = packed
    return packed


def entry_runs(entries: Sequence[Entry]) -> Sequence[Sequence[Entry]]:
    """The runs in entries that ascend by index: contiguous, and of one epoch and term."""
    if not entries:
        return ()
    first = entries[0]
    count = len(entries)
    # Indexes ascend, so a span as long as the count has no gap.
    if (
        entries[-1].index - first.index == count - 1
        and [entry.term for entry in entries].count(first.term) == count
        and [entry.epoch for entry in entries].count(first.epoch) == count
    ):
        return (entries,)
    runs: list[Sequence[Entry]] = []
    start = 0
    for at in range(1, count + 1):
        if at < count and _continues(entries[at - 1], entries[at]):
            continue
        runs.append(entries[start:at])
        start = at
    return runs


def _continues(before: Entry, after: Entry) -> bool:
    return (
        after.term == before.term
        and after.epoch == before.epoch
        and after.index == before.index + 1
    )


def _pack_run(entries: Sequence[Entry]) -> bytes:
    first = entries[0]
    bodies = [entry.body for entry in entries]
    count = len(bodies)
    return b"".join(
        (
            _RUN_HEAD.pack(first.epoch, first.term, first.index, count),
            struct.pack(f">{count}I", *map(len, bodies)),
            *bodies,
        )
    )


def unpack_entries(data: bytes, start: int = 0) -> list[Entry]:
    """The entries in ``data`` from ``start`` to its end.

    Raises :class:`~replog.errors.SchemaError` when the bytes are not exactly a sequence of runs
    whose indexes ascend; nothing is allocated beyond the size of ``data``.
    """
    entries: list[Entry] = []
    for epoch, term, first_index, lengths, offset in _runs(data, start):
        bodies: list[bytes] = []
        for length in lengths:
            bodies.append(data[offset : offset + length])
            offset += length
        entries += map(Entry, repeat(epoch), itertools.count(first_index), repeat(term), bodies)
    return entries


def unpack_batch(data: bytes, start: int) -> tuple[Entry, ...]:
    """As :func:`unpack_entries`, for a batch that is packed again soon, most likely."""
    entries = tuple(unpack_entries(data, start))
    # One run has one form only: nothing else would come of packing it.
    if entries and _RUN_HEAD.unpack_from(data, start)[3] == len(entries):
        _LAST.packed = Packed(entries, (entries,), data[start:])
    return entries


def unpack_run_heads(
    data: bytes, start: int = 0
) -> Iterator[tuple[EpochNumber, Term, LogIndex, int]]:
    """Of each run in ``data`` from ``start`` on: epoch, term, first index and count.

    Checks the same as :func:`unpack_entries`, and makes no entry: a tenth of the time, no memory.
    """
    for epoch, term, first_index, lengths, _ in _runs(data, start):
        yield epoch, term, first_index, len(lengths)


def _runs(
    data: bytes, start: int
) -> Iterator[tuple[EpochNumber, Term, LogIndex, tuple[int, ...], int]]:
    """Of each run: epoch, term, first index, the lengths of the bodies, where those begin."""
    end = len(data)
    offset = start
    index_min = 1
    while offset < end:
        if end - offset < RUN_HEAD_BYTES:
            raise SchemaError("a run of entries is cut off in its head")
        epoch, term, first_index, count = _RUN_HEAD.unpack_from(data, offset)
        offset += RUN_HEAD_BYTES
        if count == 0 or count * 4 > end - offset:
            raise SchemaError(f"a run of entries claims {count} entries, which do not fit")
        if first_index < index_min or first_index + count > 1 << 64:
            raise SchemaError(f"a run of entries starts at index {first_index}, out of order")
        lengths = struct.unpack_from(f">{count}I", data, offset)
        offset += 4 * count
        bytes_sum = sum(lengths)
        if bytes_sum > end - offset or min(lengths) < BODY_HEAD_BYTES:
            raise SchemaError("a run of entries has a body that is too short or cut off")
        yield epoch, term, first_index, lengths, offset
        offset += bytes_sum
        index_min = first_index + count
