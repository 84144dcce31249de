"""What a node's directory holds, for people: read, judged and never changed.

It says what the next start of the node would say, and looks at what that start would not: every
snapshot is read to its end.  A node may be using the directory meanwhile; then the end of the log
may be a group that is just being written.
"""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from replog.errors import DirectoryError, FatalError, LogDamaged, SnapshotGone
from replog.storage.directory import read_identity
from replog.storage.files import FileLayer, RealFiles
from replog.storage.hard_state import SecondCopy, Vouched
from replog.storage.identity import Identity
from replog.storage.log_reading import ReadSegment, check_whole, read_log, read_second_copy
from replog.storage.log_state import LogState
from replog.storage.plugin import StorageHome
from replog.storage.segment import (
    END_BYTE,
    HEAD_BYTES,
    HEADER_BYTES,
    RECORD_NAMES,
    record_kinds,
    unpack_head,
)
from replog.storage.snapshots import SnapshotStore
from replog.storage.wal import WAL
from replog.types import record

HEALTHY: Final = "healthy"
EMPTY: Final = "empty"
DAMAGED: Final = "damaged"


@record
class SegmentReport:
    """One segment of the log."""

    file: str
    size_bytes: int
    groups: int
    first_sequence: int
    last_sequence: int
    used_bytes: int
    """Up to the end of the last intact group."""
    torn_bytes: int
    """Of a group behind it that was never acknowledged; the next start wipes them."""
    records: Counter[str]
    """How many there are of each type."""


@record
class SnapshotReport:
    """One snapshot."""

    file: str
    size_bytes: int
    index: int
    """0 where its head cannot be read; term, time and name are missing then as well."""
    term: int
    time_ms: int
    machine: str
    checksum: int
    """As its end mark has it."""
    damage: str
    """What is wrong with it, in one sentence; empty: nothing."""


@dataclass
class Inspection:
    """What a directory holds."""

    path: Path
    identity: Identity
    segments: list[SegmentReport] = field(default_factory=list)
    state: LogState = field(default_factory=LogState)
    """What the segments came to, as far as they could be read."""
    vouched: Vouched | None = None
    """What the second copy of the hard state says, if it could be read."""
    snapshots: list[SnapshotReport] = field(default_factory=list)
    damage: list[str] = field(default_factory=list)
    """A sentence for each thing that is wrong, the first damage of the log in front."""

    @property
    def verdict(self) -> str:
        """``healthy``, ``empty`` (founded, and never written) or ``damaged``."""
        if self.damage:
            return DAMAGED
        is_unwritten = len(self.segments) == 1 and self.segments[0].last_sequence == 1
        return EMPTY if is_unwritten and not self.snapshots else HEALTHY


def inspect_directory(path: Path, files: FileLayer | None = None) -> Inspection:
    """Read everything in a node's directory.

    Raises :class:`~replog.errors.DirectoryError` for what is no node's directory, or one whose
    storage keeps no log in segments.
    """
    files = files or RealFiles()
    identity = read_identity(files, path)
    if identity.storage != WAL.name:
        raise DirectoryError(
            f"{path} was made for storage {identity.storage!r}, and only the files of "
            f"{WAL.name!r} can be inspected"
        )
    home = StorageHome(files, path, identity.cluster_id, identity.node_id, identity.incarnation)
    found = Inspection(path, identity)
    _inspect_log(home, found)
    _inspect_snapshots(home, found)
    return found


def _inspect_log(home: StorageHome, found: Inspection) -> None:
    second_copy = SecondCopy(home.files, home.path, home.node_id, home.incarnation)
    try:
        read_log(home, found.state, lambda segment: found.segments.append(_report(segment)))
        found.vouched = read_second_copy(second_copy)
        check_whole(home, found.state, found.vouched)
    except (FatalError, DirectoryError) as error:
        found.damage.append(str(error))


def _report(segment: ReadSegment) -> SegmentReport:
    data, scanned = segment.data, segment.scanned
    records: Counter[str] = Counter()
    groups, offset, first_sequence = 0, HEADER_BYTES, 0
    while offset < scanned.end:
        head = unpack_head(data[offset : offset + HEAD_BYTES])
        body_end = offset + HEAD_BYTES + head.body_bytes
        for kind in record_kinds(data[offset + HEAD_BYTES : body_end]):
            records[RECORD_NAMES[kind]] += 1
        groups += 1
        first_sequence = first_sequence or head.sequence
        offset = body_end + len(END_BYTE)
    return SegmentReport(
        segment.path.name,
        len(data),
        groups,
        first_sequence,
        scanned.last_sequence,
        scanned.end,
        max(0, scanned.content_end - scanned.end),
        records,
    )


def _inspect_snapshots(home: StorageHome, found: Inspection) -> None:
    try:
        found.snapshots = inspect_snapshots(home.files, home.path, home.cluster_id)
        found.damage += [snapshot.damage for snapshot in found.snapshots if snapshot.damage]
        newest = max((snapshot.index for snapshot in found.snapshots), default=0)
        if found.state.places.base.index > newest:
            raise LogDamaged(
                f"{home.path}: the log begins behind entry {found.state.places.base.index}, and no "
                f"snapshot reaches further than {newest}; put the newer snapshot back, or keep "
                "this node stopped"
            )
    except (FatalError, DirectoryError) as error:
        found.damage.append(str(error))


def inspect_snapshots(files: FileLayer, path: Path, cluster_id: str) -> list[SnapshotReport]:
    """Every snapshot in a node's directory, the oldest first, each read to its end.

    One that is removed meanwhile is passed over: a newer one is there.  Raises
    :class:`~replog.errors.StorageFailed` where the directory cannot be read.
    """
    store = SnapshotStore(files, path, cluster_id)
    found: list[SnapshotReport] = []
    for at in store.paths():
        with suppress(SnapshotGone):
            found.append(_inspect_snapshot(store, at))
    return found


def _inspect_snapshot(store: SnapshotStore, path: Path) -> SnapshotReport:
    try:
        info = store.info(path)
    except (FatalError, DirectoryError) as error:
        return SnapshotReport(path.name, 0, 0, 0, 0, "", 0, str(error))
    damage = ""
    try:
        store.verify(info, None)
    except (FatalError, DirectoryError) as error:
        damage = str(error)
    last = info.meta.last
    return SnapshotReport(
        file=path.name,
        size_bytes=info.size_bytes,
        index=last.index,
        term=last.term,
        time_ms=info.meta.time_ms,
        machine=info.meta.machine,
        checksum=info.checksum,
        damage=damage,
    )
