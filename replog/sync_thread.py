"""One thread per storage that makes groups durable, beside the event loop.

A sync takes as long as the disk likes; on the event loop it would stop every heartbeat.  So the
loop encodes a group, hands it over, and goes on; the thread makes only system calls (which
release the interpreter's lock) and wakes the loop once.

One group is on its way at a time.  What comes up meanwhile waits with the caller and makes the
next group: the batch grows by itself with the load and with the slowness of the disk.

The loop is woken through a pipe, which costs 30 to 110 us there and back; a call through the event
loop's own thread-safe queue costs 170.  The pipe is this module's, so that it needs no event loop
of a certain kind: who owns the thread waits until ``wake_descriptor`` is readable.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from queue import SimpleQueue

from replog.errors import FatalError, StorageFailed


class SyncThread:
    """Persists one group after the other; owned by one event loop."""

    def __init__(self, persist: Callable[[object], None]) -> None:
        self._persist = persist
        self._groups: SimpleQueue[object] = SimpleQueue()
        self._failure: FatalError | None = None
        self.is_busy = False
        """Whether a group is on its way and its end was not yet taken."""
        self.wake_descriptor, self._wake_writer = os.pipe()
        """Readable when the group on its way has ended, well or badly."""
        os.set_blocking(self.wake_descriptor, False)
        self._thread = threading.Thread(target=self._run, name="replog-sync", daemon=True)
        self._thread.start()

    def submit(self, group: object) -> None:
        """Start making ``group`` durable; only when not busy."""
        assert not self.is_busy
        self.is_busy = True
        self._groups.put(group)

    def take_ended(self) -> bool:
        """Whether the group on its way has become durable; raises what made it fail."""
        try:
            os.read(self.wake_descriptor, 1)
        except BlockingIOError:
            return False
        if self._failure is not None:
            raise self._failure
        self.is_busy = False
        return True

    def stop(self) -> None:
        """End the thread after the group on its way; blocks until then."""
        self._groups.put(None)
        self._thread.join()
        os.close(self.wake_descriptor)
        os.close(self._wake_writer)

    def _run(self) -> None:
        while (group := self._groups.get()) is not None:
            try:
                self._persist(group)
            except FatalError as failure:
                self._failure = failure
            except Exception as failure:
                # Whatever a storage plugin raises, what is on disk is unknown now.
                self._failure = StorageFailed(f"a write failed: {failure!r}")
                self._failure.__cause__ = failure
            os.write(self._wake_writer, b"\0")
            if self._failure is not None:
                return
