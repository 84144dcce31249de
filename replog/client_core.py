"""The client's side of one connection, without any I/O.

:class:`ClientCore` turns bytes that arrived into events and requests into bytes.  It has no socket
and no clock, so a test can put any bytes into it in any order:

=========  ===========================================================================
state      what the server may send
=========  ===========================================================================
``HELLO``  one server hello, or a refusal; no request may leave before it
``READY``  replies to open requests in any order, keepalives, at last a refusal
``CLOSED`` nothing is looked at any more
=========  ===========================================================================

The rules this module keeps:

* **Strict.**  A frame that the state does not allow, a reply to what was never asked or is already
  answered, a result that is no CBOR: each is a :class:`Broken` event, and the connection is over.
* **Exact about what left.**  All bytes of a connection come from its core, so the end of each
  request is a position in one stream.  When the connection ends, the driver says how many bytes
  stayed behind, and the core tells which requests cannot have arrived: a node acts on whole frames
  only.
* **Bounded.**  Requests in flight have a limit.  One that nobody waits for any more counts until
  its late reply has come, because it is a load on the node until then.

What is left to others: connecting (:mod:`replog.client_link`), which node to call
(:mod:`replog.client_search`), deadlines and retries (:mod:`replog.client`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import Enum
from typing import Any, Final, Generic, TypeAlias, TypeVar

from replog.cbor import strict_loads
from replog.errors import (
    BadCommand,
    CallerError,
    CommandFailed,
    CommandTooLarge,
    DiskFull,
    DumpUnavailable,
    EntryReplaced,
    FrameError,
    HandshakeError,
    NotDone,
    NotLeader,
    OutcomeUnknown,
    Overloaded,
    PeerError,
    QueryFailed,
    SchemaError,
    SessionFull,
    SnapshotFailed,
    SnapshotUnavailable,
    TermChanged,
    Unavailable,
)
from replog.frames import (
    CLIENT_PROTOCOL_VERSION,
    ClientHello,
    FrameCodec,
    FrameType,
    Outcome,
    Refusal,
    Reply,
    ServerHello,
    retry_after_in,
    terms_in,
)
from replog.quick_cbor import NULL, unpack_short_bytes
from replog.types import NodeId, record
from replog.wire import FrameReader, pack_frame

REQUEST_OVERHEAD_BYTES: Final = 128
"""What a request adds to its body in a frame, and never more."""

_KEEPALIVE: Final = pack_frame(FrameType.KEEPALIVE, b"")

W = TypeVar("W")


class ConnectionState(Enum):
    """How far the conversation is."""

    HELLO = "hello"
    """The client has introduced itself and waits for the answer."""
    READY = "ready"
    """Requests and replies flow."""
    CLOSED = "closed"
    """It is over: what was not answered will not be."""


@record
class Welcomed:
    """The node has accepted the client."""

    hello: ServerHello


@record
class Answered(Generic[W]):
    """A request that somebody waits for has its reply."""

    waiter: W
    reply: Reply
    value: object
    """The decoded result when the outcome is ``DONE``, else None."""


@record
class Broken:
    """The node refused, or sent what no correct node sends; the connection is to be closed."""

    failure: PeerError


Event: TypeAlias = Welcomed | Answered[W] | Broken


class ClientCore(Generic[W]):
    """One connection; ``W`` is whatever the driver wants back with the reply of a request."""

    __slots__ = (
        "_cluster_id",
        "_codec",
        "_forgotten",
        "_frames_after",
        "_last_request_id",
        "_open",
        "_produced_bytes",
        "_reader",
        "_requests_max",
        "state",
    )

    def __init__(self, codec: FrameCodec, requests_max: int, cluster_id: str = "") -> None:
        """``cluster_id`` is the only cluster that will do; empty: any."""
        self.state = ConnectionState.HELLO
        self._codec = codec
        self._cluster_id = cluster_id
        self._requests_max = requests_max
        keepalive = {int(FrameType.KEEPALIVE): 0}
        self._frames_after = keepalive | codec.limits_of(FrameType.REPLY, FrameType.REFUSAL)
        self._reader = FrameReader(
            keepalive | codec.limits_of(FrameType.SERVER_HELLO, FrameType.REFUSAL)
        )
        self._open: dict[int, tuple[W, int]] = {}
        """By request id: who waits, and where the request ends in the stream of bytes."""
        self._forgotten: set[int] = set()
        """Requests without a reply for which nobody waits; only ever looked up."""
        self._last_request_id = 0
        self._produced_bytes = 0

    # -- what leaves; the driver sends everything, in the order in which it was made --

    def hello(self) -> bytes:
        """The first bytes of the connection."""
        assert self._produced_bytes == 0, "a connection begins with its one hello"
        return self._produce(
            self._codec.encode(
                ClientHello(CLIENT_PROTOCOL_VERSION, CLIENT_PROTOCOL_VERSION, self._cluster_id)
            )
        )

    def request(self, verb: str, body: bytes, waiter: W) -> tuple[int, bytes]:
        """The id and the bytes of a new request, which must be sent; needs :attr:`room`.

        Raises :class:`~replog.errors.CallerError` when the body does not fit into a frame.
        """
        assert self.state is ConnectionState.READY, "requests follow the handshake"
        assert len(self._open) < self._requests_max, "more requests in flight than the limit"
        request_id = self._last_request_id + 1
        frame = self._produce(self._codec.encode_request(request_id, verb, body))
        self._last_request_id = request_id
        self._open[request_id] = (waiter, self._produced_bytes)
        return request_id, frame

    def keepalive(self) -> bytes:
        """The sign that this client lives; no node answers it, each sends its own."""
        return self._produce(_KEEPALIVE)

    def _produce(self, frame: bytes) -> bytes:
        self._produced_bytes += len(frame)
        return frame

    @property
    def room(self) -> int:
        """How many more requests may be in flight."""
        return self._requests_max - self.unanswered_count

    @property
    def unanswered_count(self) -> int:
        """Requests in flight, with those for which nobody waits any more."""
        return len(self._open) + len(self._forgotten)

    @property
    def answered_count(self) -> int:
        """Replies that have come, also those for which nobody waited any more."""
        return self._last_request_id - self.unanswered_count

    @property
    def open_count(self) -> int:
        """Requests that somebody waits for."""
        return len(self._open)

    def waiters(self) -> list[W]:
        """Who waits for a reply."""
        return [waiter for waiter, _ in self._open.values()]

    def forget(self, request_id: int) -> None:
        """Nobody waits for this request any more: its late reply is ignored."""
        del self._open[request_id]
        self._forgotten.add(request_id)

    # -- what arrives --

    def receive(self, data: bytes) -> Sequence[Event[W]]:
        """Take bytes that arrived; what they mean, in order.

        A :class:`Broken` is the last event of a connection.  Whoever waits for a request that has
        no :class:`Answered` by then is found by :meth:`end`.
        """
        events: list[Event[W]] = []
        try:
            state, handlers = self.state, HANDLERS[self.state]
            for frame_type, content in self._reader.feed(data):
                if self.state is not state:
                    state, handlers = self.state, HANDLERS[self.state]
                handlers[frame_type](self, frame_type, content, events)
        except PeerError as failure:
            if self.state is ConnectionState.HELLO and isinstance(failure, FrameError):
                failure = HandshakeError(f"no client port of a node answers there: {failure}")
            self._break(failure, events)
        return events

    def _break(self, failure: PeerError, events: list[Event[W]]) -> None:
        if self.state is not ConnectionState.CLOSED:
            self.state = ConnectionState.CLOSED
            events.append(Broken(failure))

    def _handle_hello(self, frame_type: int, content: bytes, events: list[Event[W]]) -> None:
        hello = self._codec.decode(frame_type, content)
        assert isinstance(hello, ServerHello)
        if hello.version != CLIENT_PROTOCOL_VERSION:
            raise HandshakeError(
                f"node {hello.node_id} answered in version {hello.version} of the client protocol, "
                f"but this client speaks version {CLIENT_PROTOCOL_VERSION}; upgrade the older one"
            )
        if self._cluster_id not in ("", hello.cluster_id):
            raise HandshakeError(
                f"this is cluster '{hello.cluster_id}', not '{self._cluster_id}'; check the "
                "addresses that the client was given"
            )
        self.state = ConnectionState.READY
        self._reader.accept(self._frames_after)
        events.append(Welcomed(hello))

    def _handle_refusal(self, frame_type: int, content: bytes, events: list[Event[W]]) -> None:
        refusal = self._codec.decode(frame_type, content)
        assert isinstance(refusal, Refusal)
        self._break(HandshakeError(refusal.reason), events)

    def _handle_reply(self, frame_type: int, content: bytes, events: list[Event[W]]) -> None:
        reply = self._codec.decode(frame_type, content)
        assert isinstance(reply, Reply)
        request_id = reply.request_id
        waiting = self._open.get(request_id)
        if waiting is None:
            if request_id not in self._forgotten:
                raise SchemaError(
                    f"a reply to request {request_id} came, which has none to come: it was "
                    "answered before or never sent"
                )
            self._forgotten.remove(request_id)
            return
        value: object = None
        if reply.outcome is Outcome.DONE and reply.value != NULL:
            value = unpack_short_bytes(reply.value)
            if value is None:
                value = strict_loads(reply.value)
        # Only now: a result that cannot be decoded leaves its request open, to end as unknown.
        del self._open[request_id]
        events.append(Answered(waiting[0], reply, value))

    def _handle_unexpected(self, frame_type: int, content: bytes, events: list[Event[W]]) -> None:
        raise SchemaError(f"a frame of type {frame_type} came in the state {self.state.value!r}")

    def _ignore(self, frame_type: int, content: bytes, events: list[Event[W]]) -> None:
        """A keepalive says nothing but that bytes came; what follows a refusal, nothing at all."""

    def end(self, unsent_bytes: int) -> Iterator[tuple[W, bool]]:
        """The connection has ended: everyone who still waits, and whether the request may have
        arrived.

        ``unsent_bytes`` is how much of what this core made was never handed to the socket.
        """
        self.state = ConnectionState.CLOSED
        sent_bytes = self._produced_bytes - unsent_bytes
        unanswered, self._open = self._open, {}
        for waiter, end in unanswered.values():
            yield waiter, end <= sent_bytes


# Any, because one table serves the cores of all kinds of waiters.
_Handler: TypeAlias = "Callable[[ClientCore[Any], int, bytes, list[Event[Any]]], None]"

_NOTHING_YET: Final[Mapping[int, _Handler]] = dict.fromkeys(
    FrameType, ClientCore._handle_unexpected
)

HANDLERS: Final[Mapping[ConnectionState, Mapping[int, _Handler]]] = {
    ConnectionState.HELLO: {
        **_NOTHING_YET,
        FrameType.SERVER_HELLO: ClientCore._handle_hello,
        FrameType.REFUSAL: ClientCore._handle_refusal,
    },
    ConnectionState.READY: {
        **_NOTHING_YET,
        FrameType.REPLY: ClientCore._handle_reply,
        FrameType.KEEPALIVE: ClientCore._ignore,
        FrameType.REFUSAL: ClientCore._handle_refusal,
    },
    ConnectionState.CLOSED: dict.fromkeys(FrameType, ClientCore._ignore),
}
"""What each frame does in each state; total, so that nothing is ever answered by accident."""


# --- What a reply means to the caller -----------------------------------------------------------

_NOT_DONE: Final[Mapping[str, type[CallerError]]] = {
    made.__name__: made
    for made in (
        *(BadCommand, EntryReplaced, QueryFailed, Unavailable),
        *(DumpUnavailable, SnapshotFailed, SnapshotUnavailable),
    )
}
"""The errors that are made of a sentence alone, by the code in a reply."""

_BUSY: Final[Mapping[str, type[Overloaded]]] = {
    made.__name__: made for made in (Overloaded, DiskFull, SessionFull)
}
"""Those that also say when to come back."""


def failure_of(reply: Reply, node_id: NodeId, body_bytes: int) -> Exception:
    """The error that a reply of ``node_id`` to a request with ``body_bytes`` stands for.

    What is definitely not done is a :class:`~replog.errors.NotDone` (or, where no command was sent,
    the like of :class:`~replog.errors.DumpUnavailable`), also when a newer node gives a code that
    is not known here.
    """
    assert reply.outcome is not Outcome.DONE, "a result is no failure"
    if reply.outcome is Outcome.FAILED:
        return CommandFailed(reply.code, reply.message)
    if reply.outcome is Outcome.UNKNOWN:
        return OutcomeUnknown(reply.message)
    if reply.code == NotLeader.__name__:
        return NotLeader(node_id, reply.leader_id)
    if reply.code == CommandTooLarge.__name__:
        return _too_large(reply.message, body_bytes)
    if reply.code == TermChanged.__name__ and (terms := terms_in(reply.value)) is not None:
        return TermChanged(*terms)
    if reply.code in _BUSY:
        return _BUSY[reply.code](reply.message, retry_after_in(reply.value))
    return _NOT_DONE.get(reply.code, NotDone)(reply.message)


def _too_large(message: str, size_bytes: int) -> CommandTooLarge:
    """The node's own sentence; its limit stands in there, and only there."""
    error = CommandTooLarge(size_bytes, 0)
    error.args = (message,)
    return error
