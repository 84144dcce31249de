"""Listening: opening an address with a clear error, and the first frame of each conversation."""

from __future__ import annotations

import errno
from typing import Final

import trio

from replog.address import Address
from replog.errors import AddressError, HandshakeError
from replog.transport.connection import Connection
from replog.wire import FrameReader

_REMEDIES: Final = {
    errno.EADDRINUSE: "another program listens there; end it or choose another port",
    errno.EADDRNOTAVAIL: "this machine has no such address; set peer_listen or client_listen",
    errno.EACCES: "the port is reserved; choose one above 1023",
}


async def open_listeners(address: Address, purpose: str) -> list[trio.SocketListener]:
    """Listen on ``address``; raises :class:`~replog.errors.AddressError`."""
    try:
        return await trio.open_tcp_listeners(address.port, host=address.host)
    except OSError as failure:
        remedy = _REMEDIES.get(failure.errno or 0, str(failure))
        raise AddressError(f"cannot listen on {address} for {purpose}: {remedy}") from failure


def close_listeners(listeners: list[trio.SocketListener]) -> None:
    """Close listeners at once, for good; may be called again."""
    for listener in listeners:
        listener.socket.close()


async def receive_first(connection: Connection, reader: FrameReader) -> tuple[int, bytes]:
    """The (type, content) of the one frame that opens a conversation.

    Raises a :class:`~replog.errors.PeerError` for anything else.
    """
    while data := await connection.receive():
        frames = reader.feed(data)
        if len(frames) > 1:
            raise HandshakeError("more than one frame came before the handshake was answered")
        if frames:
            return frames[0]
    raise HandshakeError("the connection ended before the handshake")


class RateLimit:
    """Lets a few through per second, so that hostile traffic cannot fill a log."""

    __slots__ = ("_allowance", "_at", "_per_second")

    def __init__(self, per_second: float) -> None:
        self._per_second = per_second
        self._allowance = per_second
        self._at = 0.0

    def admits(self, now: float) -> bool:
        """Whether one more may pass at ``now`` (seconds of any one clock)."""
        self._allowance = min(
            max(1.0, self._per_second), self._allowance + (now - self._at) * self._per_second
        )
        self._at = now
        if self._allowance < 1.0:
            return False
        self._allowance -= 1.0
        return True
