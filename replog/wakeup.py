"""A flag that one task waits for: the cheapest way to say "there is something to do"."""

from __future__ import annotations

from collections.abc import Callable

import trio


class Wakeup:
    """Set any number of times, it wakes its one waiting task once.

    A ``trio.Event`` would have to be replaced after each use and keeps a set of waiters; this is
    one flag and one task.
    """

    __slots__ = ("_is_set", "_task")

    def __init__(self) -> None:
        self._is_set = False
        self._task: trio.lowlevel.Task | None = None

    def set(self) -> None:
        """Wake the task, now or when it next waits.  Only on the event loop's thread."""
        if self._is_set:
            return
        self._is_set = True
        if self._task is not None:
            task, self._task = self._task, None
            trio.lowlevel.reschedule(task)

    async def wait(self) -> None:
        """Wait until the flag is set, and lower it.  Always lets other tasks run."""
        if self._is_set:
            await trio.lowlevel.checkpoint()
        else:
            assert self._task is None, "one task waits at a time"
            self._task = trio.lowlevel.current_task()

            def stop_waiting(_: Callable[[], None]) -> trio.lowlevel.Abort:
                self._task = None
                return trio.lowlevel.Abort.SUCCEEDED

            await trio.lowlevel.wait_task_rescheduled(stop_waiting)
        self._is_set = False
