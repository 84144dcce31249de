"""Calling a node: a connection, the handshake on it, what its silence means, and why it failed in a
few words.

Names are looked up anew for each call, so a node that has moved is found again.
"""

from __future__ import annotations

import os
import socket
from typing import Final, Generic, TypeVar

import trio

from replog.address import Address
from replog.client_core import Answered, Broken, ClientCore, Welcomed
from replog.errors import AddressError, PeerError
from replog.frames import FrameCodec, Reply, ServerHello
from replog.limits import Limits
from replog.transport.connection import Connection, connect

W = TypeVar("W")

FAILURES: Final = (OSError, trio.TooSlowError, PeerError, AddressError)
"""What can go wrong with an address."""

_ATTEMPT_SECONDS_MAX: Final = 2.0
"""How long one address may take to connect and shake hands: the next one may do."""

REPLY_SECONDS_MAX: Final = 1.0
"""A node that has owed a reply for so long, and has sent none, may be frozen or cut off."""

_REPLY_LOOKS: Final = 4
"""How often within that time replies are looked for.  Counting looks instead of time forgives a
process that was paused itself."""

_DRAIN_LOOK_SECONDS: Final = 0.25
"""How often a connection that only drains is looked at: deadlines end waits without a reply."""

_KEEPALIVES_PER_IDLE: Final = 4
"""How many keepalives each side sends before silence ends the connection
(``limits.connection_idle_ms``)."""

_ENDED: Final = "the connection ended before the answer"


class Link(Generic[W]):
    """An open connection to a node that has welcomed the client."""

    __slots__ = ("address", "connection", "core", "end_reason", "hello", "is_leading", "scope")

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
        self.is_leading = True
        """False once the node has said that it does not lead, or another one that it does: nothing
        new is sent, and the connection ends when nobody waits for it any more."""
        self.scope = trio.CancelScope()
        """Of everything that runs for this connection."""
        self.end_reason = "the connection ended"

    @property
    def name(self) -> str:
        """The node, for sentences."""
        return f"node {self.hello.node_id} ({self.address})"


async def open_link(address: str, codec: FrameCodec, limits: Limits, cluster_id: str) -> Link[W]:
    """Connect and shake hands; raises any of ``FAILURES``.

    ``cluster_id`` is the only cluster that will do; empty: any.
    """
    parsed = Address.parse(address)
    core = ClientCore[W](codec, limits.client_requests_max, cluster_id)
    with trio.fail_after(min(limits.handshake_ms / 1000, _ATTEMPT_SECONDS_MAX)):
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


async def await_missing_reply(core: ClientCore[W]) -> None:
    """Return when replies are owed and none has come for about ``REPLY_SECONDS_MAX``."""
    answered_count = core.answered_count
    looks = 0
    while looks < _REPLY_LOOKS:
        await trio.sleep(REPLY_SECONDS_MAX / _REPLY_LOOKS)
        looks += 1
        if core.answered_count != answered_count or not core.unanswered_count:
            answered_count = core.answered_count
            looks = 0


async def await_drained(core: ClientCore[W]) -> None:
    """Return when nobody waits for a reply any more, whether it came or the wait was ended."""
    while core.open_count:
        await trio.sleep(_DRAIN_LOOK_SECONDS)


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


def is_final_failure(failure: Exception) -> bool:
    """Whether trying the address again would bring nothing else."""
    return isinstance(failure, PeerError | AddressError)


def reason_of(failure: BaseException) -> str:
    """Why an address did not answer, in few words."""
    if isinstance(failure, trio.TooSlowError):
        return f"no answer within {_ATTEMPT_SECONDS_MAX:g} s"
    # Behind "all attempts failed" stands the failure of each address that a name has.
    while failure.__cause__ is not None:
        failure = failure.__cause__
    while isinstance(failure, BaseExceptionGroup):
        failure = failure.exceptions[0]
    if isinstance(failure, socket.gaierror):
        return "the name is not known"
    if isinstance(failure, OSError) and failure.errno:
        return os.strerror(failure.errno).lower()
    return str(failure)
