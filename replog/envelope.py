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
from typing import Final

from replog.errors import UnknownFormat
from replog.types import BODY_HEAD_BYTES, Entry

ENVELOPE_VERSION: Final = 1
FEATURE_SESSION: Final = 0x01
FEATURE_EXPECT_TERM: Final = 0x02
FEATURES_KNOWN: Final = 0

_OPENING_AND_TIME: Final = struct.Struct(">HQ")
"""The head of an envelope, with version and features as one number to compare."""

_OPENING: Final = ENVELOPE_VERSION << 8
ENVELOPE_BYTES: Final = _OPENING_AND_TIME.size
_PAYLOAD_OFFSET: Final = BODY_HEAD_BYTES + ENVELOPE_BYTES


def pack_envelope(payload: bytes, time_ms: int) -> bytes:
    """Wrap a command's payload for the log; ``time_ms`` is the proposer's wall clock."""
    return _OPENING_AND_TIME.pack(_OPENING, time_ms) + payload


def open_envelope(entry: Entry) -> tuple[int, bytes]:
    """The (time in ms, payload) of a ``COMMAND`` entry.

    Reads straight from the entry's body, which saves a copy per entry.  Raises
    :class:`~replog.errors.UnknownFormat`.
    """
    body = entry.body
    try:
        opening, time_ms = _OPENING_AND_TIME.unpack_from(body, BODY_HEAD_BYTES)
    except struct.error:
        raise UnknownFormat(
            f"entry {entry.index} is a command of {len(body)} bytes, too short for its envelope; "
            "it was written by a broken or foreign program"
        ) from None
    if opening != _OPENING:
        raise UnknownFormat(
            f"entry {entry.index} has a command envelope of version {opening >> 8} with features "
            f"{opening & 0xFF:#04x}; this release knows version {ENVELOPE_VERSION} with features "
            f"{FEATURES_KNOWN:#04x}: upgrade this node"
        )
    return time_ms, body[_PAYLOAD_OFFSET:]
