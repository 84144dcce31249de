"""The messages by which snapshots travel between nodes: one documented record each.

They belong to no engine, and travel beside the engine's own.  Like those, each names its epoch, its
sender's term, its sender and its receiver.  A snapshot is a *fact*: who takes one enters the
sender's term first, so the term of an offer and of a chunk is the one that the sender has, never an
earlier one.

A file is named in all of them by the index of its last entry, its size and its checksum, which is
that of every byte in it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, TypeAlias

from replog.engine import FieldKind, MessageSpec
from replog.storage.snapshot_format import META_BYTES_MAX
from replog.types import EpochNumber, LogIndex, NodeId, Term, record


@record
class SnapshotQuery:
    """The sender cannot go on without a snapshot.

    Repeated as long as that is so, and to every peer: who hears it keeps its log's entries behind
    the snapshot, or the sender would need another one as soon as it has installed it.
    """

    epoch: EpochNumber
    term: Term
    sender: NodeId
    to: NodeId
    index: LogIndex
    """The snapshot must reach at least this index; at least 1."""
    fetching_index: LogIndex
    """The last index of the snapshot that the sender fetches already; 0: none."""
    offset: int
    """How many bytes of it are here; who makes no progress is not waited for for ever."""


@record
class SnapshotOffer:
    """The answer to :class:`SnapshotQuery` of a node that has such a snapshot."""

    epoch: EpochNumber
    term: Term
    sender: NodeId
    to: NodeId
    size_bytes: int
    checksum: int
    meta: bytes
    """As it stands in the file (``docs/snapshot-format.md``)."""


@record
class SnapshotFetch:
    """Asks for a piece of the file that was offered."""

    epoch: EpochNumber
    term: Term
    sender: NodeId
    to: NodeId
    last_index: LogIndex
    size_bytes: int
    checksum: int
    offset: int
    bytes_max: int
    """At least 1; the receiver may send less."""


@record
class SnapshotChunk:
    """The answer to :class:`SnapshotFetch`."""

    epoch: EpochNumber
    term: Term
    sender: NodeId
    to: NodeId
    last_index: LogIndex
    checksum: int
    offset: int
    data: bytes
    """Never empty."""


@record
class SnapshotGone:
    """The answer to :class:`SnapshotFetch` of a node that has that file no more: ask again what
    there is."""

    epoch: EpochNumber
    term: Term
    sender: NodeId
    to: NodeId
    last_index: LogIndex
    checksum: int


TransferMessage: TypeAlias = (
    SnapshotQuery | SnapshotOffer | SnapshotFetch | SnapshotChunk | SnapshotGone
)

TRANSFER_TYPES: Final[frozenset[type]] = frozenset(
    {SnapshotQuery, SnapshotOffer, SnapshotFetch, SnapshotChunk, SnapshotGone}
)
"""What a node hands to its transfer, and not to its engine."""

_SMALL_BYTES_MAX: Final = 256
_U32, _U64 = FieldKind.U32, FieldKind.U64
_COMMON: Final[Mapping[str, FieldKind]] = {
    "epoch": _U32,
    "term": _U64,
    "sender": FieldKind.U16,
    "to": FieldKind.U16,
}


def _spec(
    number: int, message: type, bytes_max: int | None, fields: Mapping[str, FieldKind]
) -> MessageSpec:
    return MessageSpec(
        number=number, record=message, fields={**_COMMON, **fields}, bytes_max=bytes_max
    )


TRANSFER_SPECS: Final[tuple[MessageSpec, ...]] = (
    _spec(
        80, SnapshotQuery, _SMALL_BYTES_MAX, {"index": _U64, "fetching_index": _U64, "offset": _U64}
    ),
    _spec(
        81,
        SnapshotOffer,
        META_BYTES_MAX + _SMALL_BYTES_MAX,
        {"size_bytes": _U64, "checksum": _U32, "meta": FieldKind.BYTES},
    ),
    _spec(
        82,
        SnapshotFetch,
        _SMALL_BYTES_MAX,
        {
            "last_index": _U64,
            "size_bytes": _U64,
            "checksum": _U32,
            "offset": _U64,
            "bytes_max": _U64,
        },
    ),
    _spec(
        83,
        SnapshotChunk,
        None,
        {"last_index": _U64, "checksum": _U32, "offset": _U64, "data": FieldKind.BYTES},
    ),
    _spec(84, SnapshotGone, _SMALL_BYTES_MAX, {"last_index": _U64, "checksum": _U32}),
)
