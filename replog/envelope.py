"""The command envelope: what a ``COMMAND`` entry carries around its payload.

Layout, big-endian: version (u8), features (u8), time in ms (u64), then the block of each feature
whose bit is set, in the order of the bits, then the payload.

========  =====================================================================================
bit       block
========  =====================================================================================
``0x01``  session (u64), sequence (u64), lowest unacknowledged sequence (u64)
``0x02``  the term in which alone the command is done: epoch (u32), term (u64)
========  =====================================================================================

The time is stamped by the proposing leader and made monotonic when it is applied; it is the only
time that a state machine may know.  An entry with a version or a feature that a node does not know
stops that node with a sentence, because skipping it would make replicas differ.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import ClassVar, Final, NamedTuple, NoReturn, TypeAlias

from replog.errors import BadCommand, CommandTooLarge, UnknownFormat
from replog.types import BODY_HEAD_BYTES, Entry, TermId, pack_term, unpack_term

ENVELOPE_VERSION: Final = 1
IN_SESSION: Final = 0x01
IN_TERM: Final = 0x02
FEATURES_KNOWN: Final = IN_SESSION | IN_TERM

ENVELOPE_HEAD: Final = struct.Struct(">HQ")
"""The head of an envelope, with version and features as one number to compare."""

COMMAND_HEAD: Final = struct.Struct(">x12s8xHQ")
"""Where a command begins in an entry's body: the term of the origin, packed, and the head."""

ENVELOPE_OPENING: Final = ENVELOPE_VERSION << 8
ENVELOPE_BYTES: Final = ENVELOPE_HEAD.size
PAYLOAD_OFFSET: Final = BODY_HEAD_BYTES + ENVELOPE_BYTES
"""Where the payload begins in the body of a command without features."""

SESSION_OPENING: Final = ENVELOPE_OPENING | IN_SESSION
SESSION_BLOCK: Final = struct.Struct(">QQQ")
"""The session, the command's sequence number in it, and the lowest that is not acknowledged."""
SESSION_PAYLOAD_OFFSET: Final = PAYLOAD_OFFSET + SESSION_BLOCK.size

TERM_BLOCK_BYTES: Final = 12
"""A term as :func:`replog.types.pack_term` makes it."""

SessionMark: TypeAlias = "tuple[int, int, int]"
"""The session, the sequence, and the lowest that is not acknowledged."""


class Marks(NamedTuple):
    """What the blocks of a command say."""

    session: SessionMark | None
    """``None``: it is in none."""
    term: TermId | None
    """In which alone it is done; ``None``: in any."""
    payload_offset: int
    """Where the payload begins, in the body of the entry."""


class MarkedCommand(bytes):
    """The blocks and the payload of a command with features, as they stand behind the head: what is
    handed on in the place of a payload."""

    __slots__ = ()
    features: ClassVar[int]
    blocks_bytes: ClassVar[int]

    @property
    def payload(self) -> bytes:
        """What stands behind the blocks."""
        return self[self.blocks_bytes :]


class SessionCommand(MarkedCommand):
    """One in a session."""

    __slots__ = ()
    features = IN_SESSION
    blocks_bytes = SESSION_BLOCK.size

    @classmethod
    def of(cls, payload: bytes, session_id: int, sequence: int, lowest: int) -> SessionCommand:
        """Mark one command's payload."""
        return cls(SESSION_BLOCK.pack(session_id, sequence, lowest) + payload)


class TermCommand(MarkedCommand):
    """One that is done in one term only."""

    __slots__ = ()
    features = IN_TERM
    blocks_bytes = TERM_BLOCK_BYTES


class SessionTermCommand(MarkedCommand):
    """One in a session, and in one term only."""

    __slots__ = ()
    features = IN_SESSION | IN_TERM
    blocks_bytes = SESSION_BLOCK.size + TERM_BLOCK_BYTES


MARKED: Final[Mapping[int, type[MarkedCommand]]] = {
    kind.features: kind for kind in (SessionCommand, TermCommand, SessionTermCommand)
}
"""By the features."""

_OPENINGS: Final[Mapping[type, bytes]] = {
    kind: bytes((ENVELOPE_VERSION, features)) for features, kind in MARKED.items()
}
_PLAIN_OPENING: Final = bytes((ENVELOPE_VERSION, 0))


def mark_command(payload: bytes, session: SessionMark | None, term: TermId | None) -> bytes:
    """A command's payload, marked with what is not ``None``."""
    blocks = b"" if session is None else SESSION_BLOCK.pack(*session)
    if term is not None:
        blocks += pack_term(term)
    features = (0 if session is None else IN_SESSION) | (0 if term is None else IN_TERM)
    return MARKED[features](blocks + payload) if features else payload


def check_term(term: TermId | None) -> TermId | None:
    """The term that a command is to be done in, as it was given; ``None``: any.

    Raises :class:`~replog.errors.BadCommand` for what is no term.
    """
    match term:
        case None:
            return None
        case (int(epoch), int(number)) if 0 <= epoch < 1 << 32 and 0 <= number < 1 << 64:
            return TermId(epoch, number)
    raise BadCommand(
        f"expect_term is an epoch and a term, as leading_term() gives them, and not {term!r}"
    )


def pack_envelope(payload: bytes, time_ms: int) -> bytes:
    """Wrap one command's payload for the log; ``time_ms`` is the proposer's wall clock."""
    return ENVELOPE_HEAD.pack(ENVELOPE_OPENING, time_ms) + payload


def pack_envelopes(payloads: Sequence[bytes], time_ms: int) -> list[bytes]:
    """Wrap the payloads of commands that are proposed together, some of them marked."""
    time = time_ms.to_bytes(8)
    plain = _PLAIN_OPENING + time
    return [
        plain + payload
        if type(payload) is bytes
        else _OPENINGS.get(type(payload), _PLAIN_OPENING) + time + payload
        for payload in payloads
    ]


def check_size(payload: bytes, bytes_max: int) -> None:
    """Raise :class:`~replog.errors.CommandTooLarge`, unless it is what stands around the command
    that makes it so long."""
    size_bytes = len(payload)
    if isinstance(payload, MarkedCommand):
        size_bytes -= payload.blocks_bytes
    if size_bytes > bytes_max:
        raise CommandTooLarge(size_bytes, bytes_max)


def open_envelope(entry: Entry) -> tuple[int, bytes]:
    """The (time in ms, payload) of a ``COMMAND`` entry, marked or not.

    Reads straight from the entry's body, which saves a copy per entry.  Raises
    :class:`~replog.errors.UnknownFormat`.
    """
    body = entry.body
    if len(body) < PAYLOAD_OFFSET:
        refuse_envelope(entry)
    opening, time_ms = ENVELOPE_HEAD.unpack_from(body, BODY_HEAD_BYTES)
    if opening == ENVELOPE_OPENING:
        return time_ms, body[PAYLOAD_OFFSET:]
    return time_ms, body[marks_in(entry).payload_offset :]


def is_in_session(entry: Entry) -> bool:
    """Whether a ``COMMAND`` entry that could be opened names a session."""
    return entry.body[BODY_HEAD_BYTES + 1] & IN_SESSION != 0


def session_in(entry: Entry) -> SessionMark:
    """The (session, sequence, lowest unacknowledged) of a ``COMMAND`` entry that is in one."""
    mark = marks_in(entry).session
    assert mark is not None
    return mark


def marks_in(entry: Entry) -> Marks:
    """What the blocks of a ``COMMAND`` entry say; raises :class:`~replog.errors.UnknownFormat`."""
    body = entry.body
    if len(body) < PAYLOAD_OFFSET:
        refuse_envelope(entry)
    opening, _ = ENVELOPE_HEAD.unpack_from(body, BODY_HEAD_BYTES)
    features = opening & 0xFF
    if opening >> 8 != ENVELOPE_VERSION or features & ~FEATURES_KNOWN:
        refuse_envelope(entry)
    if features and len(body) < PAYLOAD_OFFSET + MARKED[features].blocks_bytes:
        refuse_envelope(entry)
    session, term, offset = None, None, PAYLOAD_OFFSET
    if features & IN_SESSION:
        session = SESSION_BLOCK.unpack_from(body, offset)
        offset += SESSION_BLOCK.size
    if features & IN_TERM:
        term = unpack_term(body[offset : offset + TERM_BLOCK_BYTES])
        offset += TERM_BLOCK_BYTES
    return Marks(session, term, offset)


def refuse_envelope(entry: Entry) -> NoReturn:
    """Stop the node at an entry whose envelope it cannot open."""
    body = entry.body
    if len(body) < PAYLOAD_OFFSET:
        raise UnknownFormat(
            f"entry {entry.index} is a command of {len(body)} bytes, too short for its envelope; "
            "it was written by a broken or foreign program"
        )
    opening, _ = ENVELOPE_HEAD.unpack_from(body, BODY_HEAD_BYTES)
    features = opening & 0xFF
    if opening >> 8 == ENVELOPE_VERSION and not features & ~FEATURES_KNOWN:
        raise UnknownFormat(
            f"entry {entry.index} is a command of {len(body)} bytes, too short for the session or "
            "the term that it names; it was written by a broken or foreign program"
        )
    raise UnknownFormat(
        f"entry {entry.index} has a command envelope of version {opening >> 8} with features "
        f"{features:#04x}; this release knows version {ENVELOPE_VERSION} with features "
        f"{FEATURES_KNOWN:#04x}: upgrade this node"
    )
