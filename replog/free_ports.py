"""Free ports of the loopback, for clusters on one machine of which nobody chose the ports.

How: the ports below the range from which systems give ports to outgoing connections are cut into
stretches.  A process claims a stretch by keeping the first port of it bound, and takes ports from
its own stretch, one after the other and around.  Two processes never choose the same, and a process
chooses a port again only after all others of its stretch: what it chose and has not opened yet,
such as a node that starts later, is not taken from under it.

Why not ports that the system gives: the first node's connection to a peer could be given the port
that the next node is about to open.  Why not free ports at random: between the choice and the node
that opens its port another process may choose it, and of some thousand nodes one does.
"""

from __future__ import annotations

import itertools
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from replog.errors import AddressError

FIRST_PORT: Final = 20_000
STRETCH: Final = 240
STRETCHES: Final = 50


@dataclass(slots=True)
class _Stretch:
    """Ports from which one process alone chooses, while it lives."""

    process: int
    """Who claimed it; a process that was forked from that one claims its own."""
    first: int
    """The port that stays bound."""
    looked: Iterator[int] = field(default_factory=itertools.count)
    """Counts how often one of the others was looked at; threads may look at once."""

    def next(self) -> int:
        """The port that was not looked at for longest."""
        return self.first + 1 + next(self.looked) % (STRETCH - 1)


_stretch: _Stretch | None = None


def free_ports(count: int) -> list[int]:
    """``count`` ports on which nothing listens now and which no other process chooses.

    Raises :class:`~replog.errors.AddressError` when there are not so many.
    """
    global _stretch
    if _stretch is None or _stretch.process != os.getpid():
        _stretch = _claim()
    ports: list[int] = []
    for _ in range(STRETCH - 1):
        if len(ports) == count:
            return ports
        port = _stretch.next()
        if _is_free(port):
            ports.append(port)
    if len(ports) == count:
        return ports
    raise AddressError(
        f"{count} free ports are more than a process can have ({STRETCH - 1}, of which now"
        f" {len(ports)} are free); choose first_port"
    )


def _claim() -> _Stretch:
    """A stretch that no process has.  The claim ends with the process, so nobody closes it."""
    start = int.from_bytes(os.urandom(2), "big")
    for step in range(STRETCHES):
        first = FIRST_PORT + (start + step) % STRETCHES * STRETCH
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as claim:
            try:
                claim.bind(("127.0.0.1", first))
            except OSError:
                continue
            claim.detach()
            return _Stretch(os.getpid(), first)
    last = FIRST_PORT + STRETCHES * STRETCH - 1
    raise AddressError(
        f"all ports of the loopback between {FIRST_PORT} and {last} are in use by other processes;"
        " choose first_port"
    )


def _is_free(port: int) -> bool:
    """Whether a node could listen on ``port`` now, asked as the node will ask."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
