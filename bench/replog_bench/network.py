"""The load from outside: a process with one client, its commands in flight over one connection.

A client in flight is a task here, as in a program that serves many users: what the switches between
tasks cost is part of what such a program gets.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import asdict
from time import perf_counter
from typing import Final

import cbor2
import trio

from replog.client import Client
from replog.errors import ReplogError
from replog.types import ReadLevel
from replog_bench.load import LoadResult, Window, commands
from replog_bench.processes import hear, limit_lifetime, say
from replog_kv import Kv

PUT: Final = "put"
IN_SESSION: Final = "put in a session"
READ: Final = "linearizable read"
LEASE_READ: Final = "lease read"
KINDS: Final = (PUT, IN_SESSION, READ, LEASE_READ)
"""What the clients may ask for."""


async def run_clients(
    client: Client, window: Window, *, clients: int, value_bytes: int, kind: str = PUT
) -> LoadResult:
    """Keep ``clients`` requests in flight for as long as the window lasts."""
    made = itertools.cycle(commands(value_bytes))
    ask: Callable[[bytes], Awaitable[object]] = client.propose
    if kind == IN_SESSION:
        ask = (await client.open_session()).propose
    elif kind in (READ, LEASE_READ):
        level = ReadLevel.LINEARIZABLE if kind == READ else ReadLevel.LEASE
        payload = next(made)
        await client.propose(payload)
        (_, key, _) = cbor2.loads(payload)

        async def ask(_: bytes) -> object:
            return await client.query(Kv.get, key, level=level)

    window.open()
    async with trio.open_nursery() as nursery:
        for _ in range(clients):
            nursery.start_soon(_ask_again, ask, window, made)
    return window.result()


async def _ask_again(
    ask: Callable[[bytes], Awaitable[object]], window: Window, made: Iterator[bytes]
) -> None:
    """One client: a request after the other."""
    while True:
        started = perf_counter()
        try:
            await ask(next(made))
        except ReplogError as error:
            window.note_error(error)
            return
        now = perf_counter()
        if now >= window.end:
            return
        if now >= window.start:
            window.latencies.append(now - started)


async def run_network(given: argparse.Namespace) -> None:
    """Hear who leads, run the load against it, say the result."""
    say(ready=True)
    address = str(hear()["address"])
    window = Window(warm_up_seconds=given.warm_up_seconds, seconds=given.seconds)
    async with Client(address) as client:
        result = await run_clients(
            client,
            window,
            clients=given.clients,
            value_bytes=given.value_bytes,
            kind=given.kind,
        )
    say(**asdict(result))


def main() -> None:
    """The process of the network clients; :mod:`replog_bench.cluster` starts it."""
    parser = argparse.ArgumentParser(
        prog="python -m replog_bench.network", description=main.__doc__
    )
    parser.add_argument("--lifetime-seconds", type=float, required=True)
    parser.add_argument("--clients", type=int, required=True)
    parser.add_argument("--value-bytes", type=int, required=True)
    parser.add_argument("--warm-up-seconds", type=float, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--kind", choices=KINDS, default=PUT)
    given = parser.parse_args()
    limit_lifetime(given.lifetime_seconds)
    trio.run(run_network, given)


if __name__ == "__main__":
    main()
