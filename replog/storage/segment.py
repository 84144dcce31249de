"""The bytes of a log segment: header, groups and records.  Pure; no file is touched here.

``docs/log-format.md`` describes them for readers in any language.  In short, big-endian::

    segment   header (512 bytes), groups back to back, zeros to the end of the file
    header    magic, version, owner, segment number, first sequence, chain; checksum at its end
    group     head (28 bytes), records, one end byte
    head      magic, bytes of records, sequence, chain, checksum of records; checksum of the head
    record    type (u8), bytes of content (u32), content

Each segment but the first opens with a group of its own: the hard state in force and the base, so
that what is older can be removed.

What the parts are for:

* **One checksum for all records of a group.**  A group is written, synced and found again as one,
  so a checksum per record could accept nothing that the group's refuses; it would only cost Python
  time for each (about 0.3 µs).
* **A checksum of the head alone** makes the group's length trustworthy when its records are not,
  so that a torn group can be told from a damaged one.  It starts from the header's checksum:
  the bytes of another log, carried in a command, never pass for a group of this one.
* **The chain**: each head names the checksum of the head before it.  A group that is intact but
  stale, or in the wrong place, does not fit.
* **The end byte** is not zero, so a write that stopped anywhere within its group shows.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from replog.entries import packed_entries
from replog.errors import REJOIN_REMEDY, LogDamaged, SchemaError, UnknownFormat
from replog.storage.protocol import Write
from replog.storage.replay import Sink
from replog.types import Entry, EntryId, HardState, LogIndex, NodeId, record

FORMAT_VERSION: Final = 1
SECTOR_BYTES: Final = 512
"""The unit in which a disk keeps or loses what was not synced; larger ones are multiples of it."""

HEADER_MAGIC: Final = b"RPLGSEG\n"
HEADER_BYTES: Final = SECTOR_BYTES
"""The header fills a sector of its own, which no later write touches."""
CLUSTER_ID_BYTES_MAX: Final = 255
_HEADER: Final = struct.Struct(">8sHHQQQIH")
_CHECKSUM: Final = struct.Struct(">I")
_CHECKSUM_OFFSET: Final = HEADER_BYTES - _CHECKSUM.size

GROUP_MAGIC: Final = b"RGRP"
_HEAD: Final = struct.Struct(">4sIQII")
HEAD_BYTES: Final = _HEAD.size + _CHECKSUM.size
END_BYTE: Final = b"\xe7"
FRAME_BYTES: Final = HEAD_BYTES + len(END_BYTE)
"""What a group takes beside its records."""

RECORD_HARD_STATE: Final = 1
RECORD_TRUNCATE: Final = 2
RECORD_PUT: Final = 3
RECORD_HINTED_STATE: Final = 4
RECORD_BASE: Final = 5
RECORD_NAMES: Final[Mapping[int, str]] = {
    RECORD_HARD_STATE: "hard_state",
    RECORD_TRUNCATE: "truncate",
    RECORD_PUT: "put",
    RECORD_HINTED_STATE: "hinted_state",
    RECORD_BASE: "base",
}
_RECORD: Final = struct.Struct(">BI")
_HARD_STATE: Final = struct.Struct(">IQH")
_INDEX: Final = struct.Struct(">Q")
_HARD_STATE_RECORD: Final = struct.Struct(">BIIQH")
_HINTED_STATE: Final = struct.Struct(">IQHQ")
_HINTED_STATE_RECORD: Final = struct.Struct(">BIIQHQ")
_TRUNCATE_RECORD: Final = struct.Struct(">BIQ")
_BASE: Final = struct.Struct(">IQQ")
_BASE_RECORD: Final = struct.Struct(">BIIQQ")


@record
class SegmentHeader:
    """Whose segment it is, which one, and where the chain of its groups begins."""

    cluster_id: str
    node_id: NodeId
    incarnation: int
    segment: int
    """1 for the first segment of a log."""
    first_sequence: int
    """The sequence number of its first group; 1 in the first segment."""
    chain: int
    """The head checksum of the group before its first; 0 in the first segment."""


@record
class GroupHead:
    """The head of an intact group, or at least of one whose head is."""

    body_bytes: int
    sequence: int
    chain: int
    body_checksum: int
    checksum: int
    """Of the head itself: the chain value of the next group."""


_NAME: Final = re.compile(r"log-([0-9]{16})\.seg")


def segment_name(segment: int) -> str:
    """The file name of a segment."""
    return f"log-{segment:016d}.seg"


def segment_number(name: str) -> int:
    """The number of the segment of that file name; 0 for what is no segment's."""
    found = _NAME.fullmatch(name)
    return 0 if found is None else int(found.group(1))


def pack_header(header: SegmentHeader) -> bytes:
    """The first 512 bytes of a segment."""
    cluster_id = header.cluster_id.encode()
    assert 0 < len(cluster_id) <= CLUSTER_ID_BYTES_MAX
    fields = _HEADER.pack(
        HEADER_MAGIC,
        FORMAT_VERSION,
        header.node_id,
        header.incarnation,
        header.segment,
        header.first_sequence,
        header.chain,
        len(cluster_id),
    )
    block = (fields + cluster_id).ljust(_CHECKSUM_OFFSET, b"\0")
    return block + _CHECKSUM.pack(zlib.crc32(block))


def header_salt(block: bytes) -> int:
    """The header's checksum, from which the checksum of every head in the segment starts."""
    (checksum,) = _CHECKSUM.unpack_from(block, _CHECKSUM_OFFSET)
    assert isinstance(checksum, int)
    return checksum


def unpack_header(path: Path, data: bytes) -> SegmentHeader:
    """The header at the start of ``data``.

    Raises :class:`~replog.errors.LogDamaged`, or :class:`~replog.errors.UnknownFormat` when it is
    intact and of a version that this release does not know.  Magic, version and checksum stand
    where they stand in every version to come.
    """
    if (
        len(data) < HEADER_BYTES
        or not data.startswith(HEADER_MAGIC)
        or header_salt(data) != zlib.crc32(data[:_CHECKSUM_OFFSET])
    ):
        raise LogDamaged(f"{path}: the header at offset 0 is damaged; {DAMAGE_REMEDY}")
    _, version, node_id, incarnation, segment, first_sequence, chain, length = _HEADER.unpack_from(
        data
    )
    if version != FORMAT_VERSION:
        raise UnknownFormat(
            f"{path} is a log of format version {version}; this release knows version "
            f"{FORMAT_VERSION}: start this node with the release that wrote it, or a later one"
        )
    cluster_id = data[_HEADER.size : _HEADER.size + length].decode(errors="replace")
    return SegmentHeader(cluster_id, node_id, incarnation, segment, first_sequence, chain)


DAMAGE_REMEDY: Final = (
    "what this node acknowledged may be lost, so it must not take part any more: check the disk, "
    f"{REJOIN_REMEDY}"
)


@record
class Records:
    """The records of one group, in pieces, and the runs of entries that they put."""

    parts: Sequence[bytes]
    runs: Sequence[Sequence[Sequence[Entry]]]
    """By write, its entries in runs."""


def pack_group(writes: Sequence[Write], sequence: int, chain: int, salt: int) -> tuple[bytes, int]:
    """The bytes of one group, and the checksum of its head, which the next group's head names."""
    return frame_group(pack_records(writes), sequence, chain, salt)


def pack_records(writes: Sequence[Write]) -> Records:
    """What goes between the head and the end byte of a group."""
    parts: list[bytes] = []
    runs: list[Sequence[Sequence[Entry]]] = []
    for write in writes:
        if (hard_state := write.hard_state) is not None:
            parts.append(_pack_hard_state(hard_state))
        if (base := write.base) is not None:
            parts.append(
                _BASE_RECORD.pack(RECORD_BASE, _BASE.size, base.epoch, base.term, base.index)
            )
        if write.truncate_from is not None:
            parts.append(_TRUNCATE_RECORD.pack(RECORD_TRUNCATE, _INDEX.size, write.truncate_from))
        if write.entries:
            packed = packed_entries(write.entries)
            runs.append(packed.runs)
            parts.append(_RECORD.pack(RECORD_PUT, len(packed.data)))
            parts.append(packed.data)
        else:
            runs.append(())
    return Records(parts, runs)


def frame_group(records: Records, sequence: int, chain: int, salt: int) -> tuple[bytes, int]:
    """A group of these records; see :func:`pack_group`."""
    # Summing up the parts saves one copy of everything against joining the records first.
    body_bytes = 0
    body_checksum = 0
    for part in records.parts:
        body_bytes += len(part)
        body_checksum = zlib.crc32(part, body_checksum)
    head = _HEAD.pack(GROUP_MAGIC, body_bytes, sequence, chain, body_checksum)
    checksum = zlib.crc32(head, salt)
    return b"".join((head, _CHECKSUM.pack(checksum), *records.parts, END_BYTE)), checksum


def _pack_hard_state(hard_state: HardState) -> bytes:
    epoch, term, voted_for = hard_state.epoch, hard_state.term, hard_state.voted_for
    hint = hard_state.commit_hint
    if not hint:
        size = _HARD_STATE.size
        return _HARD_STATE_RECORD.pack(RECORD_HARD_STATE, size, epoch, term, voted_for)
    size = _HINTED_STATE.size
    return _HINTED_STATE_RECORD.pack(RECORD_HINTED_STATE, size, epoch, term, voted_for, hint)


def group_sequence(group: bytes) -> int:
    """The sequence number in the head of a packed group."""
    (sequence,) = _INDEX.unpack_from(group, 8)
    assert isinstance(sequence, int)
    return sequence


def read_head(data: bytes, offset: int, salt: int) -> GroupHead | None:
    """The intact head at ``offset``, or ``None``."""
    if len(data) - offset < HEAD_BYTES:
        return None
    magic, body_bytes, sequence, chain, body_checksum = _HEAD.unpack_from(data, offset)
    (checksum,) = _CHECKSUM.unpack_from(data, offset + _HEAD.size)
    if magic != GROUP_MAGIC or checksum != zlib.crc32(data[offset : offset + _HEAD.size], salt):
        return None
    return GroupHead(body_bytes, sequence, chain, body_checksum, checksum)


def unpack_head(data: bytes) -> GroupHead:
    """The head of a group at the beginning of ``data``, whose checksum is not looked at; all zero
    where there are too few bytes."""
    if len(data) < HEAD_BYTES:
        return GroupHead(0, 0, 0, 0, 0)
    _, body_bytes, sequence, chain, body_checksum = _HEAD.unpack_from(data)
    (checksum,) = _CHECKSUM.unpack_from(data, _HEAD.size)
    return GroupHead(body_bytes, sequence, chain, body_checksum, checksum)


def unpack_puts(body: bytes) -> Iterator[bytes]:
    """The contents of the records of an intact group that put entries."""
    for kind, start, end in _records(body):
        if kind == RECORD_PUT:
            yield body[start:end]


def record_kinds(body: bytes) -> Iterator[int]:
    """The types of the records of an intact group."""
    for kind, _, _ in _records(body):
        yield kind


def _records(body: bytes) -> Iterator[tuple[int, int, int]]:
    """Of each record of an intact group: its type, and where its content begins and ends."""
    at = 0
    while at < len(body):
        kind, length = _RECORD.unpack_from(body, at)
        start = at + _RECORD.size
        at = start + length
        yield kind, start, at


def replay_records(body: bytes, sink: Sink) -> None:
    """Tell ``sink`` the records of one intact group.

    The checksum was right, so a record that makes no sense was *written* so: by a later release
    (:class:`~replog.errors.UnknownFormat`) or by a broken program
    (:class:`~replog.errors.SchemaError`).
    """
    at = 0
    while at < len(body):
        if len(body) - at < _RECORD.size:
            raise SchemaError("a record is cut off in its head")
        kind, length = _RECORD.unpack_from(body, at)
        start = at + _RECORD.size
        at = start + length
        if at > len(body):
            raise SchemaError("a record is cut off")
        _replay_record(kind, body[start:at], sink)


def _replay_record(kind: int, content: bytes, sink: Sink) -> None:
    if kind == RECORD_PUT:
        sink.put_packed(content)
    elif kind == RECORD_HARD_STATE and len(content) == _HARD_STATE.size:
        epoch, term, voted_for = _HARD_STATE.unpack(content)
        sink.hard_state = HardState(epoch, term, voted_for)
    elif kind == RECORD_HINTED_STATE and len(content) == _HINTED_STATE.size:
        sink.hard_state = HardState(*_HINTED_STATE.unpack(content))
    elif kind == RECORD_TRUNCATE and len(content) == _INDEX.size:
        index: LogIndex
        (index,) = _INDEX.unpack(content)
        sink.truncate(index)
    elif kind == RECORD_BASE and len(content) == _BASE.size:
        epoch, term, base_index = _BASE.unpack(content)
        sink.cut(EntryId(epoch, term, base_index))
    elif kind in (RECORD_HARD_STATE, RECORD_TRUNCATE, RECORD_HINTED_STATE, RECORD_BASE):
        raise SchemaError(f"a record of type {kind} has {len(content)} bytes of content")
    else:
        raise UnknownFormat(
            f"a record of type {kind} is not known to this release; start this node with the "
            "release that wrote it, or a later one"
        )
