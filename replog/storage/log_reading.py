"""Reading the whole log of a directory: for whoever recovers it, and for whoever only looks.

It goes segment by segment, tells a :class:`~replog.storage.log_state.LogState` all that they hold,
and judges what it meets; nothing is opened for writing.  One segment is in memory at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from replog.errors import REJOIN_REMEDY, DirectoryError, LogDamaged, StorageFailed
from replog.storage.files import FileLayer
from replog.storage.hard_state import SecondCopy, Vouched
from replog.storage.log_state import LogState
from replog.storage.plugin import StorageHome
from replog.storage.recovery import Scanned, check_sealed, scan_groups
from replog.storage.segment import (
    DAMAGE_REMEDY,
    SegmentHeader,
    segment_name,
    segment_number,
    unpack_header,
)
from replog.types import record


@record
class ReadSegment:
    """One segment, and what its groups came to."""

    number: int
    path: Path
    data: bytes
    scanned: Scanned


def read_log(
    home: StorageHome, state: LogState, handle: Callable[[ReadSegment], None] | None = None
) -> ReadSegment:
    """Read every segment, the oldest first, and return the last one.

    ``state`` is told what they hold; ``handle`` is given each after that, and must not keep it.
    Raises :class:`~replog.errors.LogDamaged` (missing, empty, damaged: three sentences),
    :class:`~replog.errors.DirectoryError` (the log of somebody else),
    :class:`~replog.errors.UnknownFormat` and :class:`~replog.errors.StorageFailed`.
    """
    before: tuple[Path, Scanned] | None = None
    segment: ReadSegment | None = None
    for number in segment_numbers(home.files, home.path):
        segment = None  # lets go of the bytes of the one before
        path = home.path / segment_name(number)
        data = _read(home.files, path)
        header = unpack_header(path, data)
        _check_owner(home, path, header, number)
        if before is not None:
            check_sealed(*before, header, path)
        scanned = scan_groups(path, data, header, state)
        before = path, scanned
        segment = ReadSegment(number, path, data, scanned)
        del data
        if handle is not None:
            handle(segment)
    assert segment is not None, "there is one segment at least"
    return segment


def check_whole(home: StorageHome, state: LogState, vouched: Vouched) -> None:
    """Raise unless neither the beginning nor the end of a log that was read is lost."""
    numbers = [segment.number for segment in state.segments]
    if numbers[0] > 1 and not state.places.base.index:
        raise LogDamaged(
            f"{home.path}: the segments before {segment_name(numbers[0])} are missing, and nothing "
            f"says that a snapshot stands for them; {DAMAGE_REMEDY}"
        )
    problem = vouched.problem(state.hard_state, numbers[0], numbers[-1])
    if problem:
        raise LogDamaged(f"{home.path}: {problem}; {DAMAGE_REMEDY}")


def read_second_copy(second_copy: SecondCopy) -> Vouched:
    """What it says; raises as :meth:`~replog.storage.hard_state.SecondCopy.recover`, and
    :class:`~replog.errors.StorageFailed`."""
    try:
        return second_copy.recover()
    except OSError as error:
        raise StorageFailed(f"{second_copy.path} cannot be read: {error.strerror}") from error


def segment_numbers(files: FileLayer, path: Path) -> list[int]:
    """The segments that there are, ascending and without a gap; raises as
    :func:`read_log`."""
    try:
        names = files.names(path)
    except OSError as error:
        raise StorageFailed(f"{path} cannot be read: {error.strerror}") from error
    numbers = sorted(filter(None, map(segment_number, names)))
    wanted = range(numbers[0], numbers[-1] + 1) if numbers else (1,)
    for number in wanted:
        if number not in numbers:
            raise LogDamaged(
                f"{path / segment_name(number)} is missing, although the log was written with it; "
                "put the file back if it was moved (not an older copy of it); if it is lost, the "
                f"node must not vote any more: {REJOIN_REMEDY}"
            )
    return numbers


def _read(files: FileLayer, path: Path) -> bytes:
    try:
        data = files.read(path)
    except OSError as error:
        raise StorageFailed(f"{path} cannot be read: {error.strerror}") from error
    if not data:
        raise LogDamaged(
            f"{path} is empty, although a segment has a header from its beginning on; "
            f"{DAMAGE_REMEDY}"
        )
    return data


def _check_owner(home: StorageHome, path: Path, header: SegmentHeader, segment: int) -> None:
    found = (header.cluster_id, header.node_id, header.incarnation, header.segment)
    if found == (home.cluster_id, home.node_id, home.incarnation, segment):
        return
    raise DirectoryError(
        f"{path} is segment {header.segment} of the log of node {header.node_id}, incarnation "
        f"{header.incarnation}, of cluster {header.cluster_id!r}, and this directory is that of "
        f"node {home.node_id}, incarnation {home.incarnation}, of cluster {home.cluster_id!r}; put "
        "the right file back, and never copy a log between nodes"
    )
