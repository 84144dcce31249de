"""Reading a segment back, and the judgement on its end: torn, or damaged?  Pure.

A node whose log lost something that it acknowledged must not vote.  So what is found is judged by
what a crash *can* leave, and everything else is refused:

* Groups are synced one by one, and the file is longer than its groups, durably so, before a group
  is written (:mod:`replog.storage.wal`).  So a crash tears at most the last group, never ends the
  file within a group, and leaves zeros behind it.
* A torn write leaves each sector either written or as it was, which is zero (and a write that
  stopped within a sector leaves zeros behind that byte).  So a torn group *misses* something: a
  whole sector of it is zero, or its end byte is.

A group that misses something, with nothing but zeros after it, was never acknowledged and is cut.
A group that is broken though nothing is missing, that is followed by anything, or that does not
fit the chain, is damage: :class:`~replog.errors.LogDamaged`.  What cannot be told apart: damage in
the very last group that looks like a tear, as when its last sector was zeroed.
"""

from __future__ import annotations

import zlib
from pathlib import Path

from replog.errors import LogDamaged, SchemaError, UnknownFormat
from replog.storage.log_state import LogState
from replog.storage.segment import (
    DAMAGE_REMEDY,
    END_BYTE,
    FRAME_BYTES,
    GROUP_MAGIC,
    HEAD_BYTES,
    HEADER_BYTES,
    SECTOR_BYTES,
    GroupHead,
    SegmentHeader,
    header_salt,
    read_head,
    replay_records,
)
from replog.types import record

TAIL_BYTES = SECTOR_BYTES
"""At least so many zeros stand behind the last group, so that a file cut short is noticed."""


@record
class Scanned:
    """What the groups of a segment came to."""

    last_sequence: int
    chain: int
    """The head checksum of the last intact group."""
    last_offset: int
    """Where the last intact group begins."""
    end: int
    """Where the next group goes."""
    content_end: int
    """Behind the last byte of the file that is not zero; above ``end`` when a group is torn."""


def scan_groups(path: Path, data: bytes, header: SegmentHeader, state: LogState) -> Scanned:
    """Tell ``state`` every group of the segment ``data``; raises ``LogDamaged`` as the module
    says."""
    salt = header_salt(data)
    state.begin_segment(header.segment, header.first_sequence, salt)
    content_end = find_content_end(data)
    sequence = header.first_sequence - 1
    chain = header.chain
    last_offset = offset = HEADER_BYTES
    while offset < content_end:
        head = read_head(data, offset, salt)
        if head is None:
            where = _where(path, sequence + 1, offset)
            _check_headless_tear(data, offset, content_end, salt, where)
            break
        if head.sequence != sequence + 1 or head.chain != chain:
            raise LogDamaged(
                f"{_where(path, sequence + 1, offset)} is a misplaced or stale one (number "
                f"{head.sequence}); {DAMAGE_REMEDY}"
            )
        body_end = offset + HEAD_BYTES + head.body_bytes
        body = data[offset + HEAD_BYTES : body_end]
        if (
            zlib.crc32(body) != head.body_checksum
            or data[body_end : body_end + len(END_BYTE)] != END_BYTE
        ):
            _check_tear(data, offset, head, content_end, _where(path, head.sequence, offset))
            break
        state.begin_group(head.sequence, offset)
        _replay_group(path, offset, head, body, state)
        sequence = head.sequence
        chain = head.checksum
        last_offset = offset
        offset = body_end + len(END_BYTE)
    if sequence < header.first_sequence or state.hard_state is None:
        raise LogDamaged(
            f"{path}: the opening group at offset {HEADER_BYTES} is missing or damaged, and with "
            f"it the hard state; {DAMAGE_REMEDY}"
        )
    if len(data) < offset + TAIL_BYTES:
        raise LogDamaged(
            f"{path} was cut short: it ends at offset {len(data)}, where zeros must follow the "
            f"last group; {DAMAGE_REMEDY}"
        )
    return Scanned(sequence, chain, last_offset, offset, content_end)


def _replay_group(path: Path, offset: int, head: GroupHead, body: bytes, state: LogState) -> None:
    try:
        replay_records(body, state)
    except SchemaError as error:
        where = _where(path, head.sequence, offset)
        raise LogDamaged(f"{where}: {error}; {DAMAGE_REMEDY}") from error
    except UnknownFormat as error:
        raise UnknownFormat(f"{_where(path, head.sequence, offset)}: {error}") from error


def check_sealed(path: Path, scanned: Scanned, header: SegmentHeader, following: Path) -> None:
    """Raise unless a segment ends where the header of the following one says.

    The following one was made when this one was full, and durable to its last group: a tear here
    is damage.
    """
    if scanned.content_end > scanned.end:
        raise LogDamaged(
            f"{_where(path, scanned.last_sequence + 1, scanned.end)} is damaged, and {following} "
            f"follows it; {DAMAGE_REMEDY}"
        )
    if (header.first_sequence, header.chain) != (scanned.last_sequence + 1, scanned.chain):
        raise LogDamaged(
            f"{path} ends with group {scanned.last_sequence}, and {following} goes on with group "
            f"{header.first_sequence} of another chain; {DAMAGE_REMEDY}"
        )


def _where(path: Path, sequence: int, offset: int) -> str:
    return f"{path}: group {sequence} at offset {offset}"


def _check_tear(data: bytes, offset: int, head: GroupHead, content_end: int, where: str) -> None:
    """A head is intact, its group is not: raise unless a crash can have left it so."""
    end = offset + FRAME_BYTES + head.body_bytes
    if end > len(data):
        raise LogDamaged(f"{where}: the file ends within it, so it was cut; {DAMAGE_REMEDY}")
    if content_end > end:
        raise LogDamaged(f"{where} is damaged, and more follows it; {DAMAGE_REMEDY}")
    if data[end - 1] != 0 and not _misses_sector(data, offset, end):
        raise LogDamaged(
            f"{where} is damaged, and not torn, for nothing of it is missing; {DAMAGE_REMEDY}"
        )


def _check_headless_tear(data: bytes, offset: int, content_end: int, salt: int, where: str) -> None:
    """There is something, and it has no intact head: raise unless a crash can have left it so."""
    head_end = offset + HEAD_BYTES
    if content_end <= head_end:
        return  # the write stopped within the head, or the wiping of an earlier tear did
    if not _misses_sector(data, offset, head_end):
        raise LogDamaged(f"{where}: its head is damaged; {DAMAGE_REMEDY}")
    # The sector with the head is lost, and with it the length.  What is left may be the group's
    # own body, unless a later group can be seen: then this one was acknowledged.
    found = data.find(GROUP_MAGIC, offset + 1)
    while found >= 0:
        if read_head(data, found, salt) is not None:
            raise LogDamaged(
                f"{where}: its head is lost, and a later group follows at offset {found}; "
                f"{DAMAGE_REMEDY}"
            )
        found = data.find(GROUP_MAGIC, found + 1)


def _misses_sector(data: bytes, start: int, end: int) -> bool:
    """Whether the part of some sector within start..end is zero."""
    while start < end:
        boundary = min(end, start - start % SECTOR_BYTES + SECTOR_BYTES)
        if not any(data[start:boundary]):
            return True
        start = boundary
    return False


def find_content_end(data: bytes) -> int:
    """The offset behind the last byte that is not zero."""
    step = 64 * 1024
    end = len(data)
    while end > 0:
        start = max(0, end - step)
        kept = len(data[start:end].rstrip(b"\0"))
        if kept:
            return start + kept
        end = start
    return 0
