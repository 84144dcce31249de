"""One thread per storage that makes groups durable, beside the event loop.

A sync takes as long as the disk likes; on the event loop it would stop every heartbeat.  So the
loop encodes a group, hands it over, and goes on; the thread makes only system calls (which
release the interpreter's lock) and wakes the loop once.

One group is on its way at a time.  What comes up meanwhile waits with the caller and makes the
next group: the batch grows by itself with the load and with the slowness of the disk.

While the storage is full, the thread tries about once a second to make room.  A group that was
refused for lack of room stays on its way, and is persisted again after each attempt, as it is: it
is the next one in the log, and whatever waits for it may be said only behind it.

The loop is woken through a pipe, which costs 30 to 110 us there and back; a call through the event
loop's own thread-safe queue costs 170.  The pipe is this module's, so that it needs no event loop
of a certain kind: who owns the thread waits until ``wake_descriptor`` is readable.
"""

from __future__ import annotations

import os
import threading
import time
from queue import Empty, SimpleQueue
from typing import Final

from replog.errors import FatalError, StorageFailed, StorageFull
from replog.storage.protocol import Storage

ROOM_SECONDS: Final = 1.0
"""How long after an attempt to make room the next one follows."""


class SyncThread:
    """Persists one group after the other; owned by one event loop."""

    def __init__(self, storage: Storage, room_seconds: float = ROOM_SECONDS) -> None:
        self._storage = storage
        self._room_seconds = room_seconds
        self._room_due = 0.0
        """When room is to be sought again, by the monotonic clock."""
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
        """End the thread after the group on its way, or without it if there is no room for it;
        blocks until then."""
        self._groups.put(None)
        self._thread.join()
        os.close(self.wake_descriptor)
        os.close(self._wake_writer)

    def _run(self) -> None:
        try:
            while (group := self._await_group()) is not None:
                while not self._is_persisted(group):
                    if self._is_stopped_within(self._room_seconds):
                        return
                    self._make_room()
                os.write(self._wake_writer, b"\0")
            return
        except FatalError as failure:
            self._failure = failure
        except Exception as failure:
            # Whatever a storage plugin raises, what is on disk is unknown now.
            self._failure = StorageFailed(f"a write failed: {failure!r}")
            self._failure.__cause__ = failure
        os.write(self._wake_writer, b"\0")

    def _await_group(self) -> object:
        """The next group, ``None`` at the end; room is sought meanwhile if there is none."""
        while self._storage.is_full:
            seconds = self._room_due - time.monotonic()
            if seconds <= 0:
                self._make_room()
                continue
            try:
                return self._groups.get(timeout=seconds)
            except Empty:
                pass
        return self._groups.get()

    def _is_persisted(self, group: object) -> bool:
        """Make a group durable; False: there is no room for it, and it is to come again."""
        try:
            self._storage.persist(group)
        except StorageFull:
            return False
        return True

    def _is_stopped_within(self, seconds: float) -> bool:
        """Wait for so long, or for the end; while a group is on its way nothing else can come."""
        try:
            group = self._groups.get(timeout=seconds)
        except Empty:
            return False
        assert group is None, "one group is on its way at a time"
        return True

    def _make_room(self) -> None:
        self._storage.make_room()
        self._room_due = time.monotonic() + self._room_seconds
