"""To wait, in a task, for what a turn tells whoever asked.

A waiter is called once, on the event loop, never within the call that asks.  A task that waits for
one is woken without a channel or an event, which would cost as much as a small command.
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from replog.snapshots import SnapshotTaken
from replog.storage.snapshot_writer import SnapshotInfo
from replog.types import Applied, LogIndex, Waiter


async def applied_by(begin: Callable[[Waiter], None]) -> Applied:
    """Have something begun, and wait for its end; raises the error that it ended with, or what
    ``begin`` raises.  When the wait is cancelled it may still come to pass."""
    task = trio.lowlevel.current_task()
    is_waiting = True
    applied = Applied(0, None)
    failure: Exception | None = None

    def end_wait(index: LogIndex, result: object, error: Exception | None) -> None:
        nonlocal applied, failure
        if is_waiting:
            applied, failure = Applied(index, result), error
            trio.lowlevel.reschedule(task)

    def stop_waiting(_: Callable[[], None]) -> trio.lowlevel.Abort:
        nonlocal is_waiting
        is_waiting = False
        return trio.lowlevel.Abort.SUCCEEDED

    await trio.lowlevel.checkpoint_if_cancelled()
    begin(end_wait)
    await trio.lowlevel.wait_task_rescheduled(stop_waiting)
    if failure is not None:
        raise failure
    return applied


async def taken_by(begin: Callable[[SnapshotTaken], None]) -> SnapshotInfo:
    """Have a snapshot taken, and wait for it; raises the error that it ended with, or what
    ``begin`` raises."""
    ended = trio.Event()
    taken: SnapshotInfo | None = None
    failure: Exception | None = None

    def end_wait(info: SnapshotInfo | None, error: Exception | None) -> None:
        nonlocal taken, failure
        taken, failure = info, error
        ended.set()

    begin(end_wait)
    await ended.wait()
    if failure is not None:
        raise failure
    assert taken is not None
    return taken
