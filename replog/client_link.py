"""Calling one node for one request: a connection, the handshake on it, and the reply.

For the command line and for a node that comes back, which mean a node and not the leader; a client
that looks for the leader is :mod:`replog.client`.  Names are looked up anew for each call, so a
node that has moved is found again.
"""

from __future__ import annotations

from typing import Final, Generic, TypeVar

import trio

from replog.address import Address
from replog.client_core import Answered, Broken, ClientCore, Welcomed
from replog.client_lines import ATTEMPT_SECONDS_MAX
from replog.client_surface import reason_of as _reason_of
from replog.errors import AddressError, PeerError
from replog.frames import FrameCodec, Reply, ServerHello
from replog.limits import Limits
from replog.transport.connection import Connection, connect

W = TypeVar("W")

FAILURES: Final = (OSError, trio.TooSlowError, PeerError, AddressError)
"""What can go wrong with an address."""

_KEEPALIVES_PER_IDLE: Final = 4
"""How many keepalives each side sends before silence ends the connection
(``limits.connection_idle_ms``)."""

_ENDED: Final = "the connection ended before the answer"


class Link(Generic[W]):
    """An open connection to a node that has welcomed the client."""

    __slots__ = ("address", "connection", "core", "end_reason", "hello")

    def __init__(
        self,
        address: str,
        connection: Connection,
        core: ClientCore[W],
        hello: ServerHello,
    ) -> None:
        self.address = address
        self.connection = connection
        self.core = core
        self.hello = hello
        self.end_reason = "the connection ended"


async def open_link(address: str, codec: FrameCodec, limits: Limits, cluster_id: str) -> Link[W]:
    """Connect and shake hands; raises any of ``FAILURES``.

    ``cluster_id`` is the only cluster that will do; empty: any.
    """
    parsed = Address.parse(address)
    core = ClientCore[W](codec, limits.client_requests_max, cluster_id)
    with trio.fail_after(min(limits.handshake_ms / 1000, ATTEMPT_SECONDS_MAX)):
        connection = await connect(parsed.host, parsed.port, limits.client_queue_bytes_max)
        try:
            connection.queue(core.hello())
            connection.flush()
            hello = await _receive_hello(connection, core)
        except BaseException:
            connection.close()
            raise
    return Link(address, connection, core, hello)


async def _receive_hello(connection: Connection, core: ClientCore[W]) -> ServerHello:
    """Wait for the answer to the client's hello."""
    while data := await connection.receive():
        for event in core.receive(data):
            if isinstance(event, Welcomed):
                return event.hello
            if isinstance(event, Broken):
                raise event.failure
    raise ConnectionResetError(_ENDED)


async def watch_silence(link: Link[W], idle_seconds: float) -> None:
    """Send keepalives, and close the connection when nothing has arrived for ``idle_seconds``.

    Both sides send keepalives of their own and answer none: behind a large request on a slow link
    an answer would come too late.  For the same reason none is queued behind something that waits.
    """
    connection = link.connection
    while not connection.is_closed:
        await trio.sleep(idle_seconds / _KEEPALIVES_PER_IDLE)
        connection.silent_checks += 1
        if connection.silent_checks > _KEEPALIVES_PER_IDLE:
            link.end_reason = f"nothing was heard for {idle_seconds:g} s"
            connection.close()
        elif connection.queued_bytes == 0:
            connection.queue(link.core.keepalive())
            connection.flush()


async def ask_once(link: Link[None], verb: str, body: bytes) -> tuple[Reply, object]:
    """Send the only request of a connection and wait for its reply and the decoded result.

    Raises ``OSError`` and :class:`~replog.errors.PeerError`; has no deadline of its own.
    """
    connection, core = link.connection, link.core
    connection.queue(core.request(verb, body, None)[1])
    await connection.drain(float("inf"))
    while data := await connection.receive():
        for event in core.receive(data):
            if isinstance(event, Answered):
                return event.reply, event.value
            if isinstance(event, Broken):
                raise event.failure
    raise ConnectionResetError(_ENDED)


def reason_of(failure: BaseException) -> str:
    """Why an address did not answer, in few words."""
    if isinstance(failure, trio.TooSlowError):
        return f"no answer within {ATTEMPT_SECONDS_MAX:g} s"
    return _reason_of(failure)
