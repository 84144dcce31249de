"""Listening: opening an address, the first frame of a conversation, and turning strangers away."""

from __future__ import annotations

import errno
from typing import Final

import structlog
import trio

from replog.address import Address
from replog.errors import AddressError, HandshakeError
from replog.frames import FrameCodec, Refusal
from replog.limits import Limits
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


class Refusals:
    """How one port turns strangers away: with a sentence, counted, and logged at a limited rate."""

    def __init__(
        self, port: str, limits: Limits, log: structlog.typing.FilteringBoundLogger
    ) -> None:
        self._port = port
        self._handshake_ms = limits.handshake_ms
        self._codec = FrameCodec(limits)
        self._log = log
        self._rate = RateLimit(per_second=1)
        self.count = 0
        """Connections that were refused or broken off since the start."""

    async def refuse(self, connection: Connection, failure: BaseException) -> None:
        """Tell the other side why its connection ends; the caller closes it."""
        reason = str(failure) or (
            f"no handshake came within {self._handshake_ms} ms (limits.handshake_ms)"
        )
        self.count += 1
        if self._rate.admits(trio.current_time()):
            self._log.warning(
                "connection_refused",
                port=self._port,
                caller=connection.peer_name(),
                reason=reason,
                refused_count=self.count,
            )
        connection.queue(self._codec.encode(Refusal(reason)))
        await connection.drain(seconds=1.0)
