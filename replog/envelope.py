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
time that a state machine may know.  This release writes and understands no feature; an entry with a
version or a feature that a node does not know stops that node with a sentence, because skipping it
would make replicas differ.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final, NoReturn

from replog.errors import UnknownFormat
from replog.types import BODY_HEAD_BYTES, Entry

ENVELOPE_VERSION: Final = 1
FEATURES_KNOWN: Final = 0

ENVELOPE_HEAD: Final = struct.Struct(">HQ")
"""The head of an envelope, with version and features as one number to compare."""

ENVELOPE_OPENING: Final = ENVELOPE_VERSION << 8
ENVELOPE_BYTES: Final = ENVELOPE_HEAD.size
PAYLOAD_OFFSET: Final = BODY_HEAD_BYTES + ENVELOPE_BYTES


def pack_envelope(payload: bytes, time_ms: int) -> bytes:
    """Wrap one command's payload for the log; ``time_ms`` is the proposer's wall clock."""
    return ENVELOPE_HEAD.pack(ENVELOPE_OPENING, time_ms) + payload


def pack_envelopes(payloads: Sequence[bytes], time_ms: int) -> list[bytes]:
    """Wrap the payloads of commands that are proposed together."""
    head = ENVELOPE_HEAD.pack(ENVELOPE_OPENING, time_ms)
    return [head + payload for payload in payloads]


def open_envelope(entry: Entry) -> tuple[int, bytes]:
    """The (time in ms, payload) of a ``COMMAND`` entry.

    Reads straight from the entry's body, which saves a copy per entry.  Raises
    :class:`~replog.errors.UnknownFormat`.
    """
    body = entry.body
    if len(body) < PAYLOAD_OFFSET:
        refuse_envelope(entry)
    opening, time_ms = ENVELOPE_HEAD.unpack_from(body, BODY_HEAD_BYTES)
    if opening != ENVELOPE_OPENING:
        refuse_envelope(entry)
    return time_ms, body[PAYLOAD_OFFSET:]


def refuse_envelope(entry: Entry) -> NoReturn:
    """Stop the node at an entry whose envelope it cannot open."""
    body = entry.body
    if len(body) < PAYLOAD_OFFSET:
        raise UnknownFormat(
            f"entry {entry.index} is a command of {len(body)} bytes, too short for its envelope; "
            "it was written by a broken or foreign program"
        )
    opening, _ = ENVELOPE_HEAD.unpack_from(body, BODY_HEAD_BYTES)
    raise UnknownFormat(
        f"entry {entry.index} has a command envelope of version {opening >> 8} with features "
        f"{opening & 0xFF:#04x}; this release knows version {ENVELOPE_VERSION} with features "
        f"{FEATURES_KNOWN:#04x}: upgrade this node"
    )
