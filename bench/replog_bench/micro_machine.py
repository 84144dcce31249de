"""What the machine itself costs: syncs, hops between threads, round trips on loopback."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from time import perf_counter
from typing import Final

import trio

from replog.limits import KIB, MIB
from replog.storage.files import RealFiles
from replog_bench import loopback
from replog_bench.sampling import Measure, Samples, one_by_one


def _sync(size_bytes: int, *, zeroed: bool) -> Callable[[Path], Samples]:
    """Append and sync, in a preallocated file that was or was not written before."""

    def run(directory: Path) -> Samples:
        files = RealFiles()
        descriptor = files.create(directory / "sync")
        room = 32 * MIB
        files.preallocate(descriptor, 0, room)
        if zeroed:
            os.pwrite(descriptor, bytes(room), 0)
        os.fsync(descriptor)
        data, offset = os.urandom(size_bytes), 0

        def append() -> None:
            nonlocal offset
            files.write(descriptor, data, offset)
            files.sync(descriptor)
            offset += size_bytes

        try:
            return one_by_one(append, 300)
        finally:
            files.close(descriptor)

    return run


def _hop_pipe(_: Path) -> Samples:
    """Into a thread by a lock and back by a pipe, as the journal's sync thread."""
    go, is_stopped = threading.Lock(), threading.Event()
    go.acquire()
    reader, writer = os.pipe()

    def work() -> None:
        while go.acquire() and not is_stopped.is_set():
            os.write(writer, b"\0")

    async def hop() -> Samples:
        samples = []
        for _ in range(1000):
            start = perf_counter()
            go.release()
            await trio.lowlevel.wait_readable(reader)
            os.read(reader, 1)
            samples.append((perf_counter() - start) * 1e6)
        return samples

    thread = threading.Thread(target=work)
    thread.start()
    try:
        return trio.run(hop)
    finally:
        is_stopped.set()
        go.release()
        thread.join()
        os.close(reader)
        os.close(writer)


def _hop_token(_: Path) -> Samples:
    """Into a thread by a queue and back by trio's token."""

    async def hop() -> Samples:
        calls: queue.SimpleQueue[bool] = queue.SimpleQueue()
        token, task = trio.lowlevel.current_trio_token(), trio.lowlevel.current_task()

        def work() -> None:
            while calls.get():
                token.run_sync_soon(trio.lowlevel.reschedule, task)

        thread = threading.Thread(target=work)
        thread.start()
        samples = []
        for _ in range(1000):
            start = perf_counter()
            calls.put(True)
            await trio.lowlevel.wait_task_rescheduled(lambda _: trio.lowlevel.Abort.FAILED)
            samples.append((perf_counter() - start) * 1e6)
        calls.put(False)
        thread.join()
        return samples

    return trio.run(hop)


MACHINE_MEASURES: Final[Mapping[str, Measure]] = {
    "sync, 100 B": Measure("append and sync, preallocated", _sync(100, zeroed=False)),
    "sync, 64 KiB": Measure("append and sync, preallocated", _sync(64 * KIB, zeroed=False)),
    "sync, 100 B, zeroed": Measure("in a file written before", _sync(100, zeroed=True)),
    "sync, 64 KiB, zeroed": Measure("in a file written before", _sync(64 * KIB, zeroed=True)),
    "thread hop, pipe": Measure("there and back: lock, pipe", _hop_pipe),
    "thread hop, token": Measure("there and back: queue, TrioToken", _hop_token),
    "loopback round trip": Measure(
        "100 B between two processes, trio", lambda _: loopback.round_trips(1000)
    ),
}
