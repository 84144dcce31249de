"""The envelope around a command's payload."""

from __future__ import annotations

import struct

import pytest

from replog.envelope import (
    ENVELOPE_BYTES,
    ENVELOPE_VERSION,
    SessionCommand,
    is_in_session,
    open_envelope,
    pack_envelope,
    pack_envelopes,
    session_in,
)
from replog.errors import UnknownFormat
from replog.types import Entry, EntryKind, entry_body


def command(data: bytes) -> Entry:
    """A command entry at index 5 with ``data`` as its envelope and payload."""
    return Entry(1, 5, 2, entry_body(EntryKind.COMMAND, 1, 2, 3, data))


@pytest.mark.parametrize("payload", [b"", b"x", bytes(range(256)) * 5])
@pytest.mark.parametrize("time_ms", [0, 1_700_000_000_000, (1 << 64) - 1])
def test_open_envelope_packed(payload: bytes, time_ms: int) -> None:
    """What was packed is found again: the time and the payload, an empty one included."""
    assert open_envelope(command(pack_envelope(payload, time_ms))) == (time_ms, payload)


def test_pack_envelope_layout() -> None:
    """The layout is for ever: version, features and time in 10 bytes, big-endian, then the
    payload."""
    assert pack_envelope(b"set", 0x0102_0304) == b"\x01\x00\x00\x00\x00\x00\x01\x02\x03\x04set"
    assert (ENVELOPE_VERSION, ENVELOPE_BYTES) == (1, 10)


@pytest.mark.parametrize("version", [0, 2, 255])
def test_open_envelope_other_version(version: int) -> None:
    """An envelope of another version stops the node with a sentence that names it."""
    data = bytes([version]) + pack_envelope(b"set", 7)[1:]
    with pytest.raises(UnknownFormat, match=f"entry 5 .* version {version} .*upgrade this node"):
        open_envelope(command(data))


@pytest.mark.parametrize("features", [0x04, 0x07, 0x80, 0xFF])
def test_open_envelope_unknown_feature(features: int) -> None:
    """An envelope with a feature that this release does not know stops the node: to skip it would
    make replicas differ."""
    data = bytes([ENVELOPE_VERSION, features]) + pack_envelope(b"set", 7)[2:]
    with pytest.raises(UnknownFormat, match=f"with features {features:#04x}"):
        open_envelope(command(data))


def test_open_envelope_in_session() -> None:
    """A command in a session carries session, sequence and lowest unacknowledged, 24 bytes
    big-endian behind the head; the payload follows."""
    (packed, plain) = pack_envelopes([SessionCommand.of(b"set", 7, 3, 2), b"set"], 9)
    assert packed[:2] == b"\x01\x01"
    assert packed[ENVELOPE_BYTES:] == struct.pack(">QQQ", 7, 3, 2) + b"set"
    assert plain == pack_envelope(b"set", 9)
    assert open_envelope(command(packed)) == (9, b"set")
    assert session_in(command(packed)) == (7, 3, 2)
    assert is_in_session(command(packed))
    assert not is_in_session(command(plain))


@pytest.mark.parametrize("size_bytes", [0, 1, 23])
def test_open_envelope_session_cut(size_bytes: int) -> None:
    """A command that is too short for the session that it names stops the node."""
    data = b"\x01\x01" + bytes(8 + size_bytes)
    with pytest.raises(UnknownFormat, match="too short for the session"):
        open_envelope(command(data))


@pytest.mark.parametrize("size_bytes", [0, 1, ENVELOPE_BYTES - 1])
def test_open_envelope_too_short(size_bytes: int) -> None:
    """A command that is too short for its envelope stops the node with a sentence."""
    with pytest.raises(UnknownFormat, match=r"entry 5 is a command of \d+ bytes, too short"):
        open_envelope(command(pack_envelope(b"", 7)[:size_bytes]))
