"""The blocking work of a node's snapshots, in a thread beside the event loop.

One job runs at a time, in the order in which they were started; when it has run, the node is told
on the loop.  Not the thread that makes the log durable: a snapshot may take minutes.  And not the
same one for a node's own snapshots and for those that it sends or fetches, for the same reason.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import trio

from replog.transfer_outlet import Job
from replog.wakeup import Wakeup


class Jobs:
    """Some of the jobs of one node, one after the other."""

    def __init__(self) -> None:
        self._waiting: deque[Job] = deque()
        self._wakeup = Wakeup()

    def start(self, job: Job) -> None:
        """Have a job run after those before it; on the event loop."""
        self._waiting.append(job)
        self._wakeup.set()

    async def run(self, handle_done: Callable[[Job], None]) -> None:
        """Run jobs until cancelled, which waits for the one that runs just then.

        What a job raises comes out of here and stops the node.
        """
        while True:
            await self._wakeup.wait()
            while self._waiting:
                job = self._waiting.popleft()
                await trio.to_thread.run_sync(job.run)
                handle_done(job)
