"""The round trip of a small message between two processes on loopback, through trio."""

from __future__ import annotations

import socket
from time import perf_counter
from typing import Final

import trio

from replog_bench.processes import Processes, limit_lifetime, say

LIFETIME_SECONDS: Final = 30.0
MESSAGE: Final = bytes(100)


def round_trips(count: int) -> list[float]:
    """The microseconds of each of ``count`` round trips to a process of our own."""
    with Processes() as processes:
        port = processes.start("echo", "replog_bench.loopback", ()).line(LIFETIME_SECONDS)["port"]
        assert isinstance(port, int)
        with socket.create_connection(("127.0.0.1", port)) as connection:
            return trio.run(_ask, connection, count)


async def _ask(connection: socket.socket, count: int) -> list[float]:
    connection.setblocking(False)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    samples = []
    for _ in range(count):
        start = perf_counter()
        connection.send(MESSAGE)
        await trio.lowlevel.wait_readable(connection)
        connection.recv(4096)
        samples.append((perf_counter() - start) * 1e6)
    return samples


async def _echo() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        say(port=listener.getsockname()[1])
        connection, _ = listener.accept()
    with connection:
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while True:
            await trio.lowlevel.wait_readable(connection)
            data = connection.recv(4096)
            if not data:
                return
            connection.send(data)


if __name__ == "__main__":
    limit_lifetime(LIFETIME_SECONDS)
    trio.run(_echo)
