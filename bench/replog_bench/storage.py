"""What the log on disk costs: a group beside the bare write and sync of the same bytes, and what a
long log costs when it is opened and read back.

A group and its bare twin take turns, in files that grow alike, so that both meet the same disk.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Final

from replog.limits import MIB
from replog.storage.files import RealFiles
from replog.storage.plugin import StorageHome
from replog.storage.protocol import Write
from replog.storage.wal import Wal, found_log
from replog.types import HardState
from replog_bench.micro_parts import command_entries
from replog_bench.report import StorageRow

GROUP_ENTRIES: Final = (1, 64, 1024)
BARE_BYTES: Final = 64 * MIB
"""Written with zeros before the measurement, so that no bare write changes the file's layout."""

LONG_GROUP: Final = 1024
"""How many entries a group of the long log has."""

READ_BYTES: Final = 1 * MIB


@dataclass(frozen=True, slots=True)
class StoragePlan:
    """What to measure."""

    entries: int
    """How many the long log has, of 64 bytes each."""
    groups: int
    """How many of each size are written."""
    directory: Path | None


def run_storage(plan: StoragePlan, progress: Callable[[str], None]) -> list[StorageRow]:
    """Measure everything."""
    rows: list[StorageRow] = []
    with tempfile.TemporaryDirectory(prefix="replog-bench-", dir=plan.directory) as made:
        for entries in GROUP_ENTRIES:
            progress(f"groups of {entries}")
            folder = Path(made) / f"groups-{entries}"
            folder.mkdir()
            rows.append(_group_row(folder, entries, plan.groups))
        progress(f"a log of {plan.entries} entries")
        folder = Path(made) / "long"
        folder.mkdir()
        rows += _long_rows(folder, plan.entries)
    return rows


def _home(folder: Path, *, is_synced: bool = True) -> StorageHome:
    return StorageHome(RealFiles(), folder, "bench", 1, 1, is_synced)


def _opened(home: StorageHome) -> Wal:
    found_log(home)
    wal = Wal(home)
    wal.recover()
    return wal


def _group_row(folder: Path, entries: int, groups: int) -> StorageRow:
    """Groups of the log, and bare writes of as many bytes, in turn."""
    wal = _opened(_home(folder))
    wal.persist(wal.encode([Write(HardState(1, 1, 1), None, ())]))
    bare = os.open(folder / "bare", os.O_RDWR | os.O_CREAT)
    os.pwrite(bare, bytes(BARE_BYTES), 0)
    os.fdatasync(bare)
    ours: list[float] = []
    theirs: list[float] = []
    data, at = wal.encode(_batch(entries, 0)), 0
    wal.persist(data)
    size_bytes = len(data.data)
    for number in range(1, groups + 1):
        batch = _batch(entries, number)

        def persist(batch: Sequence[Write] = batch) -> None:
            wal.persist(wal.encode(batch))

        def write_bare(at: int = at) -> None:
            os.pwrite(bare, data.data, at)
            os.fdatasync(bare)

        # Who comes first finds the disk idle, so they take turns at that as well.
        if number % 2:
            ours.append(_seconds(persist))
            theirs.append(_seconds(write_bare))
        else:
            theirs.append(_seconds(write_bare))
            ours.append(_seconds(persist))
        at = 0 if at + 2 * size_bytes > BARE_BYTES else at + size_bytes
    os.close(bare)
    wal.close()
    return StorageRow(
        f"group of {entries}",
        median(ours) * 1e3,
        "ms",
        median(ours) / median(theirs),
        f"encode, write, sync; beside {median(theirs) * 1e3:.3f} ms for the bare write and sync",
    )


def _batch(entries: int, number: int) -> Sequence[Write]:
    return [Write(None, None, command_entries(1 + number * entries, entries))]


def _seconds(act: Callable[[], None]) -> float:
    began = perf_counter()
    act()
    return perf_counter() - began


def _long_rows(folder: Path, entries: int) -> list[StorageRow]:
    """A long log is recovered, and read from its beginning to its end."""
    wal = _opened(_home(folder, is_synced=False))
    wal.persist(wal.encode([Write(HardState(1, 1, 1), None, ())]))
    for first in range(1, entries + 1, LONG_GROUP):
        count = min(LONG_GROUP, entries + 1 - first)
        wal.persist(wal.encode([Write(None, None, command_entries(first, count))]))
    wal.close()
    wal = Wal(_home(folder))
    began = perf_counter()
    log = wal.recover().log
    recovered = perf_counter() - began
    began = perf_counter()
    index = 1
    while index <= entries:
        index += len(log.read(index, entries, READ_BYTES))
    read = perf_counter() - began
    wal.close()
    return [
        StorageRow("recovery", recovered, "s", None, f"of a log of {entries:,} entries"),
        StorageRow("reading back", entries / read, "entries/s", None, "a MiB at a time"),
    ]
