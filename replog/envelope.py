"""The command envelope: what a ``COMMAND`` entry carries around its payload.

Layout, big-endian: version (u8), features (u8), time in ms (u64), then the block of each feature
whose bit is set, in the order of the bits, then the payload.

========  =====================================================================================
bit       block
========  =====================================================================================
``0x01``  session (u64), sequence (u64), lowest unacknowledged sequence (u64)
``0x02``  expect_term: epoch (u32), term (u64)
========  =====================================================================================

The time is stamped by the proposing leader and made monotonic when it is applied; it is the only
time that a state machine may know.  This release knows the session alone; an entry with a version
or a feature that a node does not know stops that node with a sentence, because skipping it would
make replicas differ.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final, NoReturn

from replog.errors import CommandTooLarge, UnknownFormat
from replog.types import BODY_HEAD_BYTES, Entry

ENVELOPE_VERSION: Final = 1
IN_SESSION: Final = 0x01
FEATURES_KNOWN: Final = IN_SESSION

ENVELOPE_HEAD: Final = struct.Struct(">HQ")
"""The head of an envelope, with version and features as one number to compare."""

ENVELOPE_OPENING: Final = ENVELOPE_VERSION << 8
ENVELOPE_BYTES: Final = ENVELOPE_HEAD.size
PAYLOAD_OFFSET: Final = BODY_HEAD_BYTES + ENVELOPE_BYTES
"""Where the payload begins in the body of a command without features."""

SESSION_OPENING: Final = ENVELOPE_OPENING | IN_SESSION
SESSION_BLOCK: Final = struct.Struct(">QQQ")
"""The session, the command's sequence number in it, and the lowest that is not acknowledged."""
SESSION_PAYLOAD_OFFSET: Final = PAYLOAD_OFFSET + SESSION_BLOCK.size


class SessionCommand(bytes):
    """The block and the payload of a command in a session, as they stand behind the head: what is
    handed on in the place of a payload."""

    __slots__ = ()

    @classmethod
    def of(cls, payload: bytes, session_id: int, sequence: int, lowest: int) -> SessionCommand:
        """Mark one command's payload."""
        return cls(SESSION_BLOCK.pack(session_id, sequence, lowest) + payload)


def pack_envelope(payload: bytes, time_ms: int) -> bytes:
    """Wrap one command's payload for the log; ``time_ms`` is the proposer's wall clock."""
    return ENVELOPE_HEAD.pack(ENVELOPE_OPENING, time_ms) + payload


def pack_envelopes(payloads: Sequence[bytes], time_ms: int) -> list[bytes]:
    """Wrap the payloads of commands that are proposed together, some of them in sessions."""
    head = ENVELOPE_HEAD.pack(ENVELOPE_OPENING, time_ms)
    in_session = ENVELOPE_HEAD.pack(SESSION_OPENING, time_ms)
    return [
        (in_session if type(payload) is SessionCommand else head) + payload for payload in payloads
    ]


def check_size(payload: bytes, bytes_max: int) -> None:
    """Raise :class:`~replog.errors.CommandTooLarge`, unless it is what stands around the command
    that makes it so long."""
    size_bytes = len(payload)
    if type(payload) is SessionCommand:
        size_bytes -= SESSION_BLOCK.size
    if size_bytes > bytes_max:
        raise CommandTooLarge(size_bytes, bytes_max)


def open_envelope(entry: Entry) -> tuple[int, bytes]:
    """The (time in ms, payload) of a ``COMMAND`` entry, in a session or not.

    Reads straight from the entry's body, which saves a copy per entry.  Raises
    :class:`~replog.errors.UnknownFormat`.
    """
    body = entry.body
    if len(body) < PAYLOAD_OFFSET:
        refuse_envelope(entry)
    opening, time_ms = ENVELOPE_HEAD.unpack_from(body, BODY_HEAD_BYTES)
    if opening == ENVELOPE_OPENING:
        return time_ms, body[PAYLOAD_OFFSET:]
    session_in(entry)
    return time_ms, body[SESSION_PAYLOAD_OFFSET:]


def is_in_session(entry: Entry) -> bool:
    """Whether a ``COMMAND`` entry that could be opened names a session."""
    return entry.body[BODY_HEAD_BYTES + 1] & IN_SESSION != 0


def session_in(entry: Entry) -> tuple[int, int, int]:
    """The (session, sequence, lowest unacknowledged) of a ``COMMAND`` entry with features.

    Raises :class:`~replog.errors.UnknownFormat`.
    """
    body = entry.body
    opening, _ = ENVELOPE_HEAD.unpack_from(body, BODY_HEAD_BYTES)
    if opening != SESSION_OPENING or len(body) < SESSION_PAYLOAD_OFFSET:
        refuse_envelope(entry)
    session_id, sequence, lowest = SESSION_BLOCK.unpack_from(body, PAYLOAD_OFFSET)
    return session_id, sequence, lowest


def refuse_envelope(entry: Entry) -> NoReturn:
    """Stop the node at an entry whose envelope it cannot open."""
    body = entry.body
    if len(body) < PAYLOAD_OFFSET:
        raise UnknownFormat(
            f"entry {entry.index} is a command of {len(body)} bytes, too short for its envelope; "
            "it was written by a broken or foreign program"
        )
    opening, _ = ENVELOPE_HEAD.unpack_from(body, BODY_HEAD_BYTES)
    if opening == SESSION_OPENING:
        raise UnknownFormat(
            f"entry {entry.index} is a command of {len(body)} bytes, too short for the session "
            "that it names; it was written by a broken or foreign program"
        )
    raise UnknownFormat(
        f"entry {entry.index} has a command envelope of version {opening >> 8} with features "
        f"{opening & 0xFF:#04x}; this release knows version {ENVELOPE_VERSION} with features "
        f"{FEATURES_KNOWN:#04x}: upgrade this node"
    )
