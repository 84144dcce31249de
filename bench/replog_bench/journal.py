"""The durable file of the bare pipeline, and the thread that syncs it.

What was measured (two shared cores, ext4, CPython 3.11; medians with two other processes syncing at
the same time, as in a cluster on one machine):

* A file that was only preallocated (``posix_fallocate``) is not yet cheap to sync: the first write
  to each of its blocks turns the block from "unwritten" to "written", which is a change of metadata
  that the sync has to commit.  Writing zeros ahead takes that out of the sync: 450 -> 320 us for
  batches of 64 commands (4.6 KB), 640 -> 390 us for batches of 1024 (75 KB).
* Waking the event loop from the thread through a pipe and ``wait_readable`` costs 30 to 110 us
  there and back, through ``TrioToken.run_sync_soon`` 170 us.
* A lock as the hand-over into the thread is cheaper than ``queue.SimpleQueue`` by itself (31
  against 54 us there and back on a quiet machine); in the pipeline the two were alike.
* ``O_DSYNC`` instead of ``fdatasync``, a smaller switch interval of the interpreter, writing on the
  loop and only syncing in the thread, and a process in the place of the thread earned nothing that
  could be told from noise.
"""

from __future__ import annotations

import os
import sys
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Final

import trio

from replog.limits import MIB
from replog.storage.files import RealFiles, write_all

EXTENT_BYTES: Final = 64 * MIB
"""Room is claimed in such steps, so that the file system lays the file out in one piece."""

ZEROED_BYTES: Final = 1 * MIB
"""Zeros are written ahead in such steps; 4 MiB at once made the p99 three times as long."""


class Journal:
    """A file that only grows, every part of it durable when :meth:`append` returns, unless
    ``is_synced`` is false: then the operating system syncs it when it likes."""

    def __init__(self, path: Path, *, is_synced: bool = True) -> None:
        self._is_synced = is_synced
        self._files = RealFiles()
        self._descriptor = self._files.create(path)
        self._size_bytes = 0
        self._claimed_bytes = 0
        self._zeroed_bytes = 0
        self._make_room(1)
        self._files.sync(self._descriptor)

    def append(self, data: bytes) -> None:
        """Write, and sync unless that is left to the operating system; blocks."""
        end = self._size_bytes + len(data)
        if end > self._zeroed_bytes:
            self._make_room(end)
        write_all(self._files, self._descriptor, data, self._size_bytes)
        if self._is_synced:
            self._files.sync(self._descriptor)
        self._size_bytes = end

    def close(self) -> None:
        """Release the file."""
        self._files.close(self._descriptor)

    def _make_room(self, end: int) -> None:
        while self._zeroed_bytes < end:
            if self._zeroed_bytes == self._claimed_bytes:
                self._files.preallocate(self._descriptor, self._claimed_bytes, EXTENT_BYTES)
                self._claimed_bytes += EXTENT_BYTES
            write_all(self._files, self._descriptor, bytes(ZEROED_BYTES), self._zeroed_bytes)
            self._zeroed_bytes += ZEROED_BYTES


def sync_microseconds(directory: Path, samples: int = 100) -> float:
    """The median time of appending 100 bytes durably in ``directory``."""
    path = directory / "sync"
    journal = Journal(path)
    took = []
    for _ in range(samples):
        start = perf_counter()
        journal.append(bytes(100))
        took.append((perf_counter() - start) * 1e6)
    journal.close()
    path.unlink()
    return median(took)


class SyncThread:
    """Makes groups of batches durable beside the event loop, one group at a time.

    A batch is bytes and the last index in them.  Whatever is handed over while a group is on its
    way to disk makes the next group.
    """

    def __init__(self, journal: Journal, after_sync: Callable[[int], None] | None) -> None:
        """``after_sync`` is called *in the thread* with the last durable index."""
        self._journal = journal
        self._after_sync = after_sync
        self._batches: deque[tuple[bytes, int]] = deque()
        self._is_busy = False
        self._durable_index = 0
        self._failure: BaseException | None = None
        self._go = threading.Lock()
        self._go.acquire()
        self._is_stopped = False
        self._wake_reader, self._wake_writer = os.pipe()
        os.set_blocking(self._wake_reader, False)
        self._thread = threading.Thread(target=self._run, name="bare-sync", daemon=True)
        self._thread.start()

    @property
    def is_busy(self) -> bool:
        """Whether something that was handed over is not known to be durable yet."""
        return self._is_busy

    def submit(self, data: bytes, last_index: int) -> None:
        """Hand a batch over; never blocks."""
        self._batches.append((data, last_index))
        if not self._is_busy:
            self._is_busy = True
            self._go.release()

    async def wait_synced(self) -> int:
        """Wait until another group is durable and return its last index."""
        await trio.lowlevel.wait_readable(self._wake_reader)
        os.read(self._wake_reader, 64)
        if self._failure is not None:
            raise self._failure
        if self._batches:
            self._go.release()
        else:
            self._is_busy = False
        return self._durable_index

    def stop(self) -> None:
        """End the thread after the group on its way; blocks until then."""
        self._is_stopped = True
        if self._go.locked():
            self._go.release()
        self._thread.join()
        os.close(self._wake_reader)
        os.close(self._wake_writer)
        self._journal.close()

    def _run(self) -> None:
        while self._go.acquire() and not self._is_stopped:
            group = []
            while self._batches:
                data, last_index = self._batches.popleft()
                group.append(data)
            try:
                self._journal.append(b"".join(group))
                self._durable_index = last_index
                if self._after_sync is not None:
                    self._after_sync(last_index)
            except BaseException as failure:
                self._failure = failure
            os.write(self._wake_writer, b"\0")
            if self._failure is not None:
                print(f"the sync thread failed: {self._failure!r}", file=sys.stderr)
                return
