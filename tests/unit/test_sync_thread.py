"""The thread that persists: a full disk holds it up, and nothing but a failure ends it."""

from __future__ import annotations

import select
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pytest

from replog.errors import StorageFailed, StorageFull
from replog.storage.protocol import Recovered, Write
from replog.sync_thread import SyncThread

ROOM_SECONDS = 0.02


class CrampedStorage:
    """Has room for ``room`` more groups, and notes what is asked of it."""

    durable = True
    written_bytes = 0

    def __init__(self, room: int) -> None:
        self.room = room
        self.is_full = False
        self.failure: Exception | None = None
        """What the next attempt to make room comes to."""
        self.calls: list[object] = []
        """The groups that were tried, refused ones with a question mark, and attempts at room."""
        self.threads: set[str] = set()

    def recover(self) -> Recovered:
        """Not needed here."""
        raise AssertionError

    def encode(self, writes: Sequence[Write]) -> object:
        """Not needed here."""
        raise AssertionError

    def persist(self, group: object) -> None:
        """Take the group, if there is room."""
        self.threads.add(threading.current_thread().name)
        if not self.room:
            self.is_full = True
            self.calls.append(f"{group}?")
            raise StorageFull("there is no room")
        self.room -= 1
        self.calls.append(group)

    def make_room(self) -> None:
        """There is some if the test has given it."""
        self.threads.add(threading.current_thread().name)
        self.calls.append("make_room")
        if self.failure is not None:
            raise self.failure
        self.is_full = not self.room

    def close(self) -> None:
        """Nothing is held."""


@contextmanager
def running(storage: CrampedStorage, seconds: float = ROOM_SECONDS) -> Iterator[SyncThread]:
    """A thread on a storage; it is stopped at the end."""
    syncs = SyncThread(storage, seconds)
    try:
        yield syncs
    finally:
        syncs.stop()


def ended(syncs: SyncThread, seconds: float = 5.0) -> bool:
    """Wait until the group on its way has ended; whether it has."""
    select.select([syncs.wake_descriptor], [], [], seconds)
    return syncs.take_ended()


def until(holds: Callable[[], bool]) -> None:
    """Wait for another thread."""
    deadline = time.monotonic() + 5
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_refused_group_comes_again_as_it_is() -> None:
    """A group without room stays on its way, is tried again after each attempt to make room, and
    ends when there is some."""
    storage = CrampedStorage(room=1)
    with running(storage) as syncs:
        syncs.submit("first")
        assert ended(syncs)
        syncs.submit("second")
        until(lambda: storage.calls.count("make_room") >= 2)
        assert syncs.is_busy
        assert not syncs.take_ended()
        storage.room = 1
        assert ended(syncs)
        assert not syncs.is_busy
    tries = [call for call in storage.calls if call != "make_room"]
    assert tries == ["first", *["second?"] * (len(tries) - 2), "second"]
    between = storage.calls[1:-1]
    assert between[::2] == ["second?"] * len(between[::2])
    assert set(between[1::2]) == {"make_room"}
    assert storage.threads == {"replog-sync"}


def test_room_is_sought_between_groups() -> None:
    """A storage that is full and has a group refused nobody gets its attempts all the same, and
    none any more when it has room."""
    storage = CrampedStorage(room=9)
    storage.is_full = True
    storage.room = 0
    with running(storage) as syncs:
        until(lambda: storage.calls.count("make_room") >= 2)
        storage.room = 2
        until(lambda: not storage.is_full)
        count = len(storage.calls)
        time.sleep(3 * ROOM_SECONDS)
        assert len(storage.calls) == count
        syncs.submit("group")
        assert ended(syncs)


def test_room_is_sought_among_many_groups() -> None:
    """Groups that go on into kept room do not keep a full storage from its attempts."""
    storage = CrampedStorage(room=1 << 30)
    storage.is_full = True
    sought = threading.Event()
    storage.make_room = sought.set  # type: ignore[method-assign]
    with running(storage) as syncs:
        sought.wait(5)
        sought.clear()
        deadline = time.monotonic() + 5
        while not sought.is_set():
            assert time.monotonic() < deadline
            syncs.submit("vote")
            assert ended(syncs)


def test_stop_does_not_wait_for_room() -> None:
    """A thread whose group finds no room ends at once when it is told to."""
    storage = CrampedStorage(room=0)
    syncs = SyncThread(storage, room_seconds=60)
    syncs.submit("group")
    until(lambda: bool(storage.calls))
    began = time.monotonic()
    syncs.stop()
    assert time.monotonic() - began < 1
    assert storage.calls == ["group?"]


def test_stop_between_attempts_ends_at_once() -> None:
    """A thread that is idle on a full storage ends at once as well."""
    storage = CrampedStorage(room=0)
    storage.is_full = True
    syncs = SyncThread(storage, room_seconds=60)
    until(lambda: bool(storage.calls))
    began = time.monotonic()
    syncs.stop()
    assert time.monotonic() - began < 1


@pytest.mark.parametrize("is_group_waiting", [False, True])
def test_failed_attempt_at_room_is_told(is_group_waiting: bool) -> None:
    """A disk that fails while room is sought fails the node, whether or not a group waits."""
    storage = CrampedStorage(room=0)
    storage.is_full = True
    storage.failure = OSError(5, "Input/output error")
    with running(storage) as syncs:
        if is_group_waiting:
            syncs.submit("group")
        with pytest.raises(StorageFailed, match="Input/output error"):
            ended(syncs)
