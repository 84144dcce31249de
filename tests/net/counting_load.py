"""A program that counts: many increments in one session, by one of the client libraries.

::

    python tests/net/counting_load.py asyncio 127.0.0.1:8001,127.0.0.1:8002 10000

It prints a line of JSON for every hundred answers, and at last one with the answers themselves and
how many commands were sent again after an unknown outcome.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

import trio

import replog
from replog import aio, blocking

sys.path.insert(0, str(Path(__file__).parent / "counting"))
from counting import Counter

WORKERS: Final = 64
DEADLINE_SECONDS: Final = 60.0
LIFETIME_SECONDS: Final = 300
TOLD_EVERY: Final = 100


class Tally:
    """What was asked for, and what was answered."""

    def __init__(self, increments: int) -> None:
        self._left = increments
        self._lock = threading.Lock()
        self.answers: list[int] = []

    def take(self) -> bool:
        """Whether there is another one to ask for."""
        with self._lock:
            self._left -= 1
            return self._left >= 0

    def note(self, answer: int) -> None:
        """One was answered."""
        with self._lock:
            self.answers.append(answer)
            if len(self.answers) % TOLD_EVERY == 0:
                print(json.dumps({"answered": len(self.answers)}), flush=True)


async def load_trio(addresses: str, tally: Tally) -> int:
    """The load by ``replog.Client``; how many commands were sent again."""
    async with replog.Client(addresses, deadline_seconds=DEADLINE_SECONDS) as client:
        session = await client.open_session()

        async def work() -> None:
            while tally.take():
                tally.note(await session.call(Counter.add, 1))

        async with trio.open_nursery() as nursery:
            for _ in range(WORKERS):
                nursery.start_soon(work)
        await session.close()
        return session.repeated_count


async def load_asyncio(addresses: str, tally: Tally) -> int:
    """The load by ``replog.aio.Client``."""
    async with aio.Client(addresses, deadline_seconds=DEADLINE_SECONDS) as client:
        session = await client.open_session()

        async def work() -> None:
            while tally.take():
                tally.note(await session.call(Counter.add, 1))

        async with asyncio.TaskGroup() as group:
            for _ in range(WORKERS):
                group.create_task(work())
        await session.close()
        return session.repeated_count


def load_blocking(addresses: str, tally: Tally) -> int:
    """The load by ``replog.blocking.Client``."""
    with blocking.Client(addresses, deadline_seconds=DEADLINE_SECONDS) as client:
        session = client.open_session()

        def work() -> None:
            while tally.take():
                tally.note(session.call(Counter.add, 1))

        threads = [threading.Thread(target=work) for _ in range(WORKERS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        session.close()
        return session.repeated_count


LOADS: Final[dict[str, Callable[[str, Tally], int]]] = {
    "trio": lambda addresses, tally: trio.run(load_trio, addresses, tally),
    "asyncio": lambda addresses, tally: asyncio.run(load_asyncio(addresses, tally)),
    "blocking": load_blocking,
}


def main() -> None:
    """Run the load that the arguments name."""
    library, addresses, increments = sys.argv[1:]
    signal.setitimer(signal.ITIMER_REAL, LIFETIME_SECONDS)
    tally = Tally(int(increments))
    repeated_count = LOADS[library](addresses, tally)
    print(json.dumps({"answers": tally.answers, "repeated": repeated_count}), flush=True)


if __name__ == "__main__":
    main()
