"""The bytes of a snapshot: header, records, end mark.  Pure; no file is touched here.

``docs/snapshot-format.md`` describes them for readers in any language.  In short, big-endian::

    snapshot  header (512 bytes), meta, sections, end mark; nothing behind it
    header    magic, version, cluster id; checksum at its end
    record    type (u8), bytes of content (u32), content, checksum
    meta      a record: what the snapshot stands for, in CBOR
    section   a record with a name and a flag, then blocks: records of at most 1 MiB of data
    end mark  a record: sections (u32), bytes of the whole file (u64)

What the parts are for:

* **One running checksum.**  Each record's goes on from the checksum before it, so a block that is
  swapped, missing, doubled or of another snapshot does not fit; and the end mark's is a checksum of
  everything before.  It stands at the very end of the file, where it is found without reading the
  rest.
* **Named sections**, each mandatory or not, so that a later release can add to a snapshot, and an
  earlier one knows whether it may do without.
* **No node in it.**  A snapshot travels between nodes as it is.
"""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Final

from replog.cbor import strict_dumps, strict_loads
from replog.errors import REJOIN_REMEDY, SchemaError, SnapshotDamaged, UnknownFormat
from replog.limits import KIB, MIB
from replog.storage.segment import CLUSTER_ID_BYTES_MAX, SECTOR_BYTES
from replog.types import NODE_ID_MAX, EntryId, Epoch, SnapshotMeta, TermId, Voter, record

FORMAT_VERSION: Final = 1

HEADER_MAGIC: Final = b"RPLGSNP\n"
HEADER_BYTES: Final = SECTOR_BYTES
_HEADER: Final = struct.Struct(">8sHH")
CHECKSUM: Final = struct.Struct(">I")
_CHECKSUM_OFFSET: Final = HEADER_BYTES - CHECKSUM.size

RECORD_META: Final = 1
RECORD_SECTION: Final = 2
RECORD_BLOCK: Final = 3
RECORD_END: Final = 4
RECORD_HEAD: Final = struct.Struct(">BI")
FRAME_BYTES: Final = RECORD_HEAD.size + CHECKSUM.size
"""What a record takes beside its content."""

BLOCK_BYTES_MAX: Final = 1 * MIB
"""The most that a block holds, and any other record: what a reader needs memory for."""
META_BYTES_MAX: Final = 64 * KIB
NAME_BYTES_MAX: Final = 255
"""The longest name of a section, or of a state machine."""

_SECTION_FLAGS: Final = struct.Struct(">B")
_MANDATORY: Final = 1
_END: Final = struct.Struct(">IQ")
END_BYTES: Final = _END.size + FRAME_BYTES

SNAPSHOT_BYTES_MIN: Final = HEADER_BYTES + FRAME_BYTES + END_BYTES
"""No snapshot is smaller."""

DAMAGE_REMEDY: Final = (
    "no state machine may be filled from it: check the disk, and put an intact copy in its place "
    "(the snapshot of the same entry from any node of the cluster will do), or "
    f"{REJOIN_REMEDY}"
)
WRITER_AT_FAULT: Final = "its checksum is right, so a broken or foreign program wrote it"
_LATER_RELEASE: Final = "use the release that wrote it, or a later one"

_INT64: Final = 1 << 64
_INT63: Final = 1 << 63
_INT32: Final = 1 << 32


@record
class SnapshotEnd:
    """What the end mark says."""

    sections: int
    size_bytes: int
    """Of the whole file, this mark with it."""
    checksum: int
    """Of everything before it, and of the mark itself."""


def pack_header(cluster_id: str) -> tuple[bytes, int]:
    """The first 512 bytes of a snapshot, and their checksum."""
    name = cluster_id.encode()
    assert 0 < len(name) <= CLUSTER_ID_BYTES_MAX
    fields = _HEADER.pack(HEADER_MAGIC, FORMAT_VERSION, len(name)) + name
    block = fields.ljust(_CHECKSUM_OFFSET, b"\0")
    checksum = zlib.crc32(block)
    return block + CHECKSUM.pack(checksum), checksum


def unpack_header(path: Path, data: bytes) -> tuple[str, int]:
    """The id of the cluster in a header, and the checksum of the header.

    Raises :class:`~replog.errors.SnapshotDamaged`, or :class:`~replog.errors.UnknownFormat` when it
    is intact and of a version that this release does not know.  Magic, version and checksum stand
    where they stand in every version to come.
    """
    checksum = zlib.crc32(data[:_CHECKSUM_OFFSET])
    if (
        len(data) != HEADER_BYTES
        or not data.startswith(HEADER_MAGIC)
        or CHECKSUM.unpack_from(data, _CHECKSUM_OFFSET) != (checksum,)
    ):
        raise damaged(path, 0, "the header is damaged")
    _, version, length = _HEADER.unpack_from(data)
    if version != FORMAT_VERSION:
        raise UnknownFormat(
            f"{path} is a snapshot of format version {version}; this release knows version "
            f"{FORMAT_VERSION}: {_LATER_RELEASE}"
        )
    cluster_id = data[_HEADER.size : _HEADER.size + length].decode(errors="replace")
    return cluster_id, checksum


def pack_record(kind: int, content: bytes | bytearray | memoryview, chain: int) -> bytes:
    """One record; ``chain`` is the checksum before it, and its own is the last four bytes."""
    head = RECORD_HEAD.pack(kind, len(content))
    checksum = zlib.crc32(content, zlib.crc32(head, chain))
    return b"".join((head, content, CHECKSUM.pack(checksum)))


def record_checksum(packed: bytes) -> int:
    """The checksum at the end of a packed record."""
    (checksum,) = CHECKSUM.unpack_from(packed, len(packed) - CHECKSUM.size)
    assert isinstance(checksum, int)
    return checksum


def pack_section(name: str, mandatory: bool) -> bytes:
    """The content of the record that opens a section."""
    encoded = name.encode()
    assert 0 < len(encoded) <= NAME_BYTES_MAX
    return _SECTION_FLAGS.pack(_MANDATORY if mandatory else 0) + encoded


def unpack_section(path: Path, offset: int, content: bytes) -> tuple[str, bool]:
    """The name of a section, and whether it is mandatory."""
    name = content[_SECTION_FLAGS.size :].decode(errors="replace")
    if not name:
        raise damaged(path, offset, f"a section has no name; {WRITER_AT_FAULT}")
    (flags,) = _SECTION_FLAGS.unpack_from(content)
    if flags & ~_MANDATORY:
        raise UnknownFormat(
            f"{path}: the section {name!r} at offset {offset} has flags that this release does not "
            f"know ({flags:#04x}); {_LATER_RELEASE}"
        )
    return name, flags == _MANDATORY


def unknown_section(path: Path, offset: int, name: str) -> UnknownFormat:
    """The error for a mandatory section that a reader does not know."""
    return UnknownFormat(
        f"{path}: the section {name!r} at offset {offset} is mandatory, and this release does not "
        f"know it; {_LATER_RELEASE}"
    )


def unknown_record(path: Path, offset: int, kind: int) -> UnknownFormat:
    """The error for an intact record of a type that this release does not know."""
    return UnknownFormat(
        f"{path}: a record of type {kind} at offset {offset} is not known to this release; "
        f"{_LATER_RELEASE}"
    )


def pack_end(sections: int, size_bytes: int) -> bytes:
    """The content of the end mark; ``size_bytes`` is that of the whole file."""
    return _END.pack(sections, size_bytes)


def read_end(data: bytes) -> SnapshotEnd | None:
    """The end mark in the last bytes of a file, or ``None``; only its shape is looked at, for its
    checksum needs all that is before it."""
    if len(data) != END_BYTES or RECORD_HEAD.unpack_from(data) != (RECORD_END, _END.size):
        return None
    sections, size_bytes = _END.unpack_from(data, RECORD_HEAD.size)
    return SnapshotEnd(sections, size_bytes, record_checksum(data))


def damaged(path: Path, offset: int, what: str) -> SnapshotDamaged:
    """The error for what is wrong at ``offset`` in a snapshot."""
    return SnapshotDamaged(f"{path}: {what}, at offset {offset}; {DAMAGE_REMEDY}")


# -- the meta --

_META_KEYS: Final = ("last", "epoch", "time_ms", "machine", "learners", "highest_term")
_EPOCH_KEYS: Final = ("number", "engine", "voters", "start_index", "agreed")


def meta_problem(meta: SnapshotMeta) -> str:
    """Why nothing can be a snapshot of this, or an empty string."""
    last, epoch = meta.last, meta.epoch
    names = [name for name, _ in epoch.agreed]
    if not (0 <= last.epoch < _INT32 and 0 <= last.term < _INT64 and 0 < last.index < _INT64):
        return "its last entry has an epoch, a term or an index that cannot be"
    if not 1 <= len(meta.machine.encode(errors="replace")) <= NAME_BYTES_MAX:
        return f"the name of its state machine must have 1 to {NAME_BYTES_MAX} bytes"
    if not 0 <= meta.time_ms < _INT63:
        return "its time is not a number of milliseconds from 0 on"
    highest = meta.highest_term
    if not (0 <= highest.epoch < _INT32 and 0 <= highest.term < _INT64):
        return "its highest term has an epoch or a term that cannot be"
    if not (last.epoch <= epoch.number < _INT32 and 0 <= epoch.start_index <= last.index + 1):
        return "its epoch is not in force behind its last entry"
    if not epoch.engine or not epoch.voters:
        return "its epoch names no engine or no voter"
    for members in (epoch.voters, meta.learners):
        ids = [member.node_id for member in members]
        if ids != sorted(set(ids)) or not all(1 <= node_id <= NODE_ID_MAX for node_id in ids):
            return f"its node ids must differ, ascend and be 1 to {NODE_ID_MAX}"
        if not all(1 <= member.incarnation < _INT63 for member in members):
            return "an incarnation in it is not a positive 63-bit number"
    if names != sorted(set(names)) or not all(0 <= number < _INT64 for _, number in epoch.agreed):
        return "what is agreed on in it must have names that ascend and be numbers from 0 on"
    return ""


def pack_meta(meta: SnapshotMeta) -> bytes:
    """The content of the meta record."""
    assert not meta_problem(meta), meta_problem(meta)
    last, epoch = meta.last, meta.epoch
    packed = strict_dumps(
        {
            "last": [last.epoch, last.term, last.index],
            "epoch": {
                "number": epoch.number,
                "engine": epoch.engine,
                "voters": [[voter.node_id, voter.incarnation] for voter in epoch.voters],
                "start_index": epoch.start_index,
                "agreed": [[name, number] for name, number in epoch.agreed],
            },
            "time_ms": meta.time_ms,
            "machine": meta.machine,
            "learners": [[learner.node_id, learner.incarnation] for learner in meta.learners],
            "highest_term": list(meta.highest_term),
        }
    )
    assert len(packed) <= META_BYTES_MAX
    return packed


def unpack_meta(path: Path, offset: int, content: bytes) -> SnapshotMeta:
    """The meta in the content of its record at ``offset``, whose checksum was right.

    Raises :class:`~replog.errors.SnapshotDamaged` for what cannot be, and
    :class:`~replog.errors.UnknownFormat` for a key of a later release.
    """
    try:
        return parse_meta(str(path), content)
    except SchemaError as error:
        what = f"the meta makes no sense ({error}); {WRITER_AT_FAULT}"
        raise damaged(path, offset, what) from error


def parse_meta(source: str, content: bytes) -> SnapshotMeta:
    """What :func:`pack_meta` made, wherever it comes from; ``source`` names that in a complaint.

    Raises :class:`~replog.errors.SchemaError` for what cannot be, and
    :class:`~replog.errors.UnknownFormat` for a key of a later release.
    """
    if len(content) > META_BYTES_MAX:
        raise SchemaError(f"it has {len(content)} bytes, above {META_BYTES_MAX}")
    meta = _read_meta(source, strict_loads(content))
    if problem := meta_problem(meta):
        raise SchemaError(problem)
    return meta


def _read_meta(source: str, value: object) -> SnapshotMeta:
    table = _table(source, "the meta", value, _META_KEYS)
    epoch = _table(source, "the epoch", table["epoch"], _EPOCH_KEYS)
    last = _integers("last", table["last"], 3)
    return SnapshotMeta(
        last=EntryId(*last),
        epoch=Epoch(
            number=_integer("number", epoch["number"]),
            engine=_text("engine", epoch["engine"]),
            voters=_members("voters", epoch["voters"]),
            start_index=_integer("start_index", epoch["start_index"]),
            agreed=tuple(
                (_text("agreed", name), _integer("agreed", number))
                for name, number in (
                    _items("agreed", pair, 2) for pair in _items("agreed", epoch["agreed"])
                )
            ),
        ),
        time_ms=_integer("time_ms", table["time_ms"]),
        machine=_text("machine", table["machine"]),
        learners=_members("learners", table["learners"]),
        highest_term=TermId(*_integers("highest_term", table["highest_term"], 2)),
    )


def _table(source: str, what: str, value: object, keys: tuple[str, ...]) -> dict[str, object]:
    """A map with exactly these keys."""
    if not isinstance(value, dict):
        raise SchemaError(f"{what} is not a map")
    for key in keys:
        if key not in value:
            raise SchemaError(f"{what} has no {key}")
    for key in value:
        if key not in keys:
            raise UnknownFormat(
                f"{source}: {what} holds {key!r}, which this release does not know; "
                f"{_LATER_RELEASE}"
            )
    return value


def _items(key: str, value: object, count: int | None = None) -> list[object]:
    """A list, of ``count`` items if that is given."""
    if isinstance(value, list) and count in (None, len(value)):
        return value
    raise SchemaError(f"{key} is not a list of the right length")


def _integers(key: str, value: object, count: int) -> list[int]:
    """A list of so many numbers."""
    return [_integer(key, number) for number in _items(key, value, count)]


def _members(key: str, value: object) -> tuple[Voter, ...]:
    """A list of node ids, each with an incarnation."""
    return tuple(Voter(*_integers(key, pair, 2)) for pair in _items(key, value))


def _integer(key: str, value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise SchemaError(f"{key} is not a number")


def _text(key: str, value: object) -> str:
    if isinstance(value, str):
        return value
    raise SchemaError(f"{key} is not a text")
