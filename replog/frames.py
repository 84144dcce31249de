"""replog's own frames: the handshake of both ports, requests and replies.

A frame's content is the CBOR array of the fields of its record, in order.  A decoded record is
exactly of the declared shape, or a :class:`~replog.errors.SchemaError` was raised; its texts are
bounded only by the limit of the frame.

A conversation begins with the hello of the side that connects, and nothing may follow that hello
until it is answered, by a welcome (between nodes), a server hello (to a client) or a refusal.  The
layout of the handshake never changes from the first release on: it is how two releases find out
that they do not speak the same version.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields as dataclass_fields
from enum import IntEnum
from typing import Any, Final, NamedTuple, TypeAlias

import cbor2

from replog.cbor import strict_dumps, strict_loads
from replog.errors import CallerError, SchemaError
from replog.formation import Meeting
from replog.limits import KIB, Limits
from replog.quick_cbor import pack_done, pack_request, unpack_done, unpack_request
from replog.types import NO_NODE, NODE_ID_MAX, EpochNumber, LogIndex, NodeId, TermId, record
from replog.wire import pack_frame

CLIENT_PROTOCOL_VERSION: Final = 1
"""What a client and a node agree on in their hellos."""


class FrameType(IntEnum):
    """replog's own frames; the numbers are fixed for ever."""

    PEER_HELLO = 64
    PEER_WELCOME = 65
    REFUSAL = 66
    CLIENT_HELLO = 67
    SERVER_HELLO = 68
    REQUEST = 69
    REPLY = 70
    KEEPALIVE = 71
    """Empty, so it has no record: the sender lives."""


_REQUEST: Final = int(FrameType.REQUEST)
_REPLY: Final = int(FrameType.REPLY)


@record
class PeerHello:
    """The first frame of a node that calls another one."""

    version_min: int
    version_max: int
    cluster_id: str
    sender: NodeId
    incarnation: int
    """Of the sender's directory."""
    receiver: NodeId
    """Whom the sender means to have called."""
    engine: str
    epoch: EpochNumber
    birth: int
    """Of the sender's very directory; see :mod:`replog.formation`."""
    met: tuple[Meeting, ...]
    """Whom the sender's directory has met, durably, and under which birth; ascending."""


@record
class PeerWelcome:
    """The answer to a :class:`PeerHello` that was accepted."""

    version: int
    """The highest that both sides speak."""
    sender: NodeId
    incarnation: int
    birth: int
    met: tuple[Meeting, ...]
    """As in the hello; the caller is among them."""


@record
class Refusal:
    """The last frame before a connection is closed, on either port."""

    reason: str
    """One sentence; cut to ``SENTENCE_CHARS_MAX``."""


@record
class ClientHello:
    """The first frame of a client."""

    version_min: int
    version_max: int
    cluster_id: str
    """Empty: any cluster will do."""


@record
class ServerHello:
    """The answer to a :class:`ClientHello` that was accepted."""

    version: int
    cluster_id: str
    node_id: NodeId
    leader_id: NodeId
    """``NO_NODE`` when none is known."""
    members: tuple[tuple[NodeId, str], ...]
    """Every member with its address for clients."""


@record
class Request:
    """What a client wants done."""

    request_id: int
    """Chosen by the client, to tell the replies of one connection apart."""
    verb: str
    body: bytes


class Outcome(IntEnum):
    """How a request ended."""

    DONE = 0
    """``index`` and ``value`` hold the result."""
    NOT_DONE = 1
    """Definitely not done, now or later; ``code`` and ``message`` say why."""
    UNKNOWN = 2
    """It may or may not have been done, or may still be."""
    FAILED = 3
    """Done, at ``index``: the result is the error that the state machine declares."""


@record
class Reply:
    """How one request ended."""

    request_id: int
    outcome: Outcome
    index: LogIndex
    value: bytes
    """The result as CBOR when the outcome is ``DONE``; of an error what its code and its sentence
    do not say (:func:`pack_more`), mostly nothing."""
    code: str
    """The name of the error; empty when there is none."""
    message: str
    """One sentence about the error; cut to ``SENTENCE_CHARS_MAX``."""
    leader_id: NodeId
    leader_address: str
    """The leader's address for clients, as a hint; may be empty."""


OwnFrame: TypeAlias = (
    PeerHello | PeerWelcome | Refusal | ClientHello | ServerHello | Request | Reply
)

SENTENCE_CHARS_MAX: Final = 1000
_BIRTH_MAX: Final = (1 << 63) - 1


class _Kind(NamedTuple):
    """What a field of an own frame holds."""

    type: type
    """The exact type that CBOR must yield."""
    least: int = 0
    most: int = 0
    """The bounds of an int."""
    convert: Callable[[Any], object] | None = None
    """From what CBOR yields to what the record holds; ValueError when it cannot be."""


def _meetings(values: list[object]) -> tuple[Meeting, ...]:
    before = 0
    for value in values:
        if type(value) is not list or list(map(type, value)) != [int, int]:
            raise ValueError
        if not before < value[0] <= NODE_ID_MAX or not 1 <= value[1] <= _BIRTH_MAX:
            raise ValueError
        before = value[0]
    return tuple(map(tuple, values))  # type: ignore[arg-type]


def _members(values: list[object]) -> tuple[tuple[NodeId, str], ...]:
    for value in values:
        if type(value) is not list or list(map(type, value)) != [int, str]:
            raise ValueError
        if not 1 <= value[0] <= NODE_ID_MAX:
            raise ValueError
    return tuple(map(tuple, values))  # type: ignore[arg-type]


_TEXT: Final = _Kind(str)
_SENTENCE: Final = _Kind(str, most=SENTENCE_CHARS_MAX)
_BYTES: Final = _Kind(bytes)
_U16: Final = _Kind(int, most=(1 << 16) - 1)
_U32: Final = _Kind(int, most=(1 << 32) - 1)
_U64: Final = _Kind(int, most=(1 << 64) - 1)
_NODE: Final = _Kind(int, least=1, most=NODE_ID_MAX)
_NODE_OR_NONE: Final = _Kind(int, most=NODE_ID_MAX)
_OUTCOME: Final = _Kind(int, most=max(Outcome), convert=tuple(Outcome).__getitem__)
_BIRTH: Final = _Kind(int, least=1, most=_BIRTH_MAX)
_MEETINGS: Final = _Kind(list, convert=_meetings)
_MEMBERS: Final = _Kind(list, convert=_members)


class _OwnLayout:
    """How one of replog's own frames travels; ``kinds`` are those of the record's fields."""

    def __init__(
        self, number: FrameType, made: type[OwnFrame], bytes_max: int | None, *kinds: _Kind
    ) -> None:
        self.number = int(number)
        self.record = made
        self.bytes_max = bytes_max
        """``None``: ``limits.frame_bytes_max``."""
        self._names = tuple(field.name for field in dataclass_fields(made))
        assert len(self._names) == len(kinds), f"{made.__name__} has other fields than its layout"
        self._types = tuple(kind.type for kind in kinds)
        self._head = bytes((0x80 | len(kinds),))
        self._depth = 3 if list in self._types else 1
        self._bounds = tuple(
            (at, kind.least, kind.most) for at, kind in enumerate(kinds) if kind.type is int
        )
        self._converts = tuple(
            (at, kind.convert) for at, kind in enumerate(kinds) if kind.convert is not None
        )
        self._sentences = tuple(at for at, kind in enumerate(kinds) if kind is _SENTENCE)

    def pack(self, frame: OwnFrame) -> bytes:
        """The content of a frame."""
        values = [getattr(frame, name) for name in self._names]
        for at in self._sentences:
            values[at] = values[at][:SENTENCE_CHARS_MAX]
        try:
            return cbor2.dumps(values)
        except UnicodeEncodeError:
            # A sentence may quote a file name that is not Unicode.
            for at in self._sentences:
                values[at] = values[at].encode("utf-8", "replace").decode()
            return cbor2.dumps(values)

    def unpack(self, content: bytes) -> OwnFrame:
        """The record; raises :class:`~replog.errors.SchemaError`."""
        # The head first: an array of any other length is refused before it is built.
        if content[:1] != self._head:
            raise self._misfit()
        values: list[Any] = strict_loads(content, self._depth)  # type: ignore[assignment]
        if tuple(map(type, values)) != self._types:
            raise self._misfit()
        for at, least, most in self._bounds:
            if not least <= values[at] <= most:
                raise self._misfit()
        try:
            for at, convert in self._converts:
                values[at] = convert(values[at])
        except ValueError:
            raise self._misfit() from None
        made: Callable[..., OwnFrame] = self.record
        return made(*values)

    def _misfit(self) -> SchemaError:
        return SchemaError(
            f"a {self.record.__name__} came whose fields are not {', '.join(self._names)}"
        )


_HANDSHAKE_BYTES: Final = 16 * KIB
_REFUSAL_BYTES: Final = 5 * KIB

_OWN_LAYOUTS: Final = (
    _OwnLayout(
        FrameType.PEER_HELLO,
        PeerHello,
        _HANDSHAKE_BYTES,
        *(_U16, _U16, _TEXT, _NODE, _U64, _NODE, _TEXT, _U32, _BIRTH, _MEETINGS),
    ),
    _OwnLayout(
        FrameType.PEER_WELCOME,
        PeerWelcome,
        _HANDSHAKE_BYTES,
        *(_U16, _NODE, _U64, _BIRTH, _MEETINGS),
    ),
    _OwnLayout(FrameType.REFUSAL, Refusal, _REFUSAL_BYTES, _SENTENCE),
    _OwnLayout(FrameType.CLIENT_HELLO, ClientHello, _HANDSHAKE_BYTES, _U16, _U16, _TEXT),
    _OwnLayout(
        FrameType.SERVER_HELLO,
        ServerHello,
        4 * _HANDSHAKE_BYTES,
        *(_U16, _TEXT, _NODE, _NODE_OR_NONE, _MEMBERS),
    ),
    _OwnLayout(FrameType.REQUEST, Request, None, _U64, _TEXT, _BYTES),
    _OwnLayout(
        FrameType.REPLY,
        Reply,
        None,
        *(_U64, _OUTCOME, _U64, _BYTES, _TEXT, _SENTENCE, _NODE_OR_NONE, _TEXT),
    ),
)

HANDSHAKE_LIMITS: Final[Mapping[int, int]] = {
    layout.number: layout.bytes_max for layout in _OWN_LAYOUTS if layout.bytes_max is not None
}
"""What a :class:`FrameReader` accepts before the two sides know each other, on either port."""


class FrameCodec:
    """replog's own frames, as bytes and back, under the limits of one node or client."""

    __slots__ = ("_by_number", "_by_record", "_bytes_max", "frame_limits")

    def __init__(self, limits: Limits) -> None:
        self.frame_limits: Mapping[int, int] = {
            **{at.number: at.bytes_max or limits.frame_bytes_max for at in _OWN_LAYOUTS},
            FrameType.KEEPALIVE: 0,
        }
        """The largest content of each frame type."""
        self._bytes_max = limits.frame_bytes_max
        """The largest content of a request and of a reply."""
        self._by_number = {layout.number: layout for layout in _OWN_LAYOUTS}
        self._by_record = {
            layout.record: (layout, self.frame_limits[layout.number]) for layout in _OWN_LAYOUTS
        }

    def limits_of(self, *frame_types: FrameType) -> dict[int, int]:
        """The limits of these types alone, for the :class:`~replog.wire.FrameReader` of a port."""
        return {int(frame_type): self.frame_limits[frame_type] for frame_type in frame_types}

    def encode(self, frame: OwnFrame) -> bytes:
        """The whole frame.

        Raises :class:`~replog.errors.CallerError` when it is larger than its limit (a result, a
        command): nobody would read it.
        """
        layout, limit = self._by_record[type(frame)]
        content = layout.pack(frame)
        if len(content) > limit:
            raise _too_large(layout.number, content, limit)
        return pack_frame(layout.number, content)

    def encode_request(self, request_id: int, verb: str, body: bytes) -> bytes:
        """The frame of a :class:`Request`; as :meth:`encode`, without the record."""
        content = pack_request(request_id, verb, body)
        if len(content) > self._bytes_max:
            raise _too_large(_REQUEST, content, self._bytes_max)
        return pack_frame(_REQUEST, content)

    def encode_done(self, request_id: int, index: LogIndex, value: bytes) -> bytes:
        """The frame of a :class:`Reply` to what is done; as :meth:`encode`, without the record."""
        content = pack_done(request_id, index, value)
        if len(content) > self._bytes_max:
            raise _too_large(_REPLY, content, self._bytes_max)
        return pack_frame(_REPLY, content)

    def decode(self, frame_type: int, content: bytes) -> OwnFrame:
        """The record of a frame; raises :class:`~replog.errors.SchemaError`."""
        if frame_type == _REQUEST:
            request = unpack_request(content)
            if request is not None:
                return Request(*request)
        elif frame_type == _REPLY:
            done = unpack_done(content)
            if done is not None:
                request_id, index, value = done
                return Reply(request_id, Outcome.DONE, index, value, "", "", NO_NODE, "")
        layout = self._by_number.get(frame_type)
        if layout is None:
            raise SchemaError(f"a frame of type {frame_type} came, which holds no record")
        return layout.unpack(content)


def _too_large(number: int, content: bytes, limit: int) -> CallerError:
    """Why a frame does not leave: nobody would read it."""
    name = FrameType(number).name.lower()
    return CallerError(
        f"a {name} of {len(content)} bytes is above its limit of {limit}; ask for less at once, or "
        "raise limits.frame_bytes_max on every node and client"
    )


RETRY_AFTER_MS: Final = "retry_after_ms"
"""What a refusal may say: before so many milliseconds have passed, asking again is of no use."""

RETRY_AFTER_MS_MAX: Final = 60_000
"""A client takes nobody's word for longer."""


def pack_more(retry_after_ms: int) -> bytes:
    """The ``value`` of a refusal: a map, so that later releases can say more.

    A client of an earlier release looks at the ``value`` of what is done alone.
    """
    return strict_dumps({RETRY_AFTER_MS: retry_after_ms}) if retry_after_ms > 0 else b""


def retry_after_in(value: bytes) -> int:
    """What :func:`pack_more` was told, cut to :data:`RETRY_AFTER_MS_MAX`; 0 where it is not said.

    It is advice, so what says it in another way says nothing.
    """
    if not value:
        return 0
    try:
        told = strict_loads(value)
    except SchemaError:
        return 0
    found = told.get(RETRY_AFTER_MS) if isinstance(told, dict) else None
    return min(found, RETRY_AFTER_MS_MAX) if type(found) is int and found > 0 else 0


_EXPECTED_TERM: Final = "expected_term"
_FOUND_TERM: Final = "found_term"


def pack_terms(expected: tuple[int, int], found: tuple[int, int]) -> bytes:
    """The ``value`` of the refusal of a command that was to be done in another term."""
    return strict_dumps({_EXPECTED_TERM: list(expected), _FOUND_TERM: list(found)})


def terms_in(value: bytes) -> tuple[TermId, TermId] | None:
    """What :func:`pack_terms` was told; ``None`` where it is not said, or in another way."""
    try:
        told = strict_loads(value)
    except SchemaError:
        return None
    if not isinstance(told, dict):
        return None
    match told.get(_EXPECTED_TERM), told.get(_FOUND_TERM):
        case [int(epoch), int(term)], [int(found_epoch), int(found_term)]:
            return TermId(epoch, term), TermId(found_epoch, found_term)
    return None


_FIRST_NAMES: Final[Mapping[int, str]] = {
    FrameType.PEER_HELLO: "the hello of another node",
    FrameType.CLIENT_HELLO: "the hello of a client",
}


def refusal_of_first(expected: FrameType, came: int) -> str | None:
    """Why a conversation cannot begin with a frame of type ``came``; ``None`` when it can.

    ``expected`` is ``PEER_HELLO`` on the port for nodes and ``CLIENT_HELLO`` on that for clients.
    """
    assert expected in _FIRST_NAMES, "a port expects one of the two hellos"
    if came == expected:
        return None
    if came == FrameType.CLIENT_HELLO:
        return "this port is for the nodes of the cluster; connect to the node's client address"
    if came == FrameType.PEER_HELLO:
        return (
            "this port is for clients; the calling node's configuration names it as a peer "
            "address: put this node's peer address there"
        )
    return f"a connection to this port begins with {_FIRST_NAMES[expected]}, not with type {came}"
