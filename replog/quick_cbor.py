"""The few shapes that every request and every reply have, without the library.

The library looks at each list that it encodes as something of an unknown kind, which costs more
than all else that is done for a frame of a hundred bytes.  So what travels all the time is put
together here, head by head, to the very bytes that the library would make; and what has exactly
one of these shapes is taken apart here.  Whatever looks otherwise is ``None`` here, and left to
:mod:`replog.cbor`, which says what is wrong with it, or reads it.

The heads are those of RFC 8949, section 3: a major type in three bits, and an argument in the rest
of the byte, or in the 1, 2, 4 or 8 bytes behind it.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

_UNSIGNED: Final = 0x00
BYTES: Final = 0x40
TEXT: Final = 0x60
_ARRAY: Final = 0x80

NULL: Final = b"\xf6"
"""The one value that most commands result in."""

_NO_ERROR: Final = b"\x60\x60\x00\x60"
"""The end of a reply to what is done: no code, no sentence, no leader, no address."""

TEXTS_MAX: Final = 64
"""So many verbs are remembered as bytes."""


_HEAD_16: Final = struct.Struct(">BH")
_HEAD_32: Final = struct.Struct(">BI")
_HEAD_64: Final = struct.Struct(">BQ")


def _head(major: int, argument: int) -> bytes:
    """The head of an item, in the fewest bytes."""
    if argument < 24:
        return bytes((major | argument,))
    if argument < 1 << 8:
        return bytes((major | 24, argument))
    if argument < 1 << 16:
        return _HEAD_16.pack(major | 25, argument)
    if argument < 1 << 32:
        return _HEAD_32.pack(major | 26, argument)
    return _HEAD_64.pack(major | 27, argument)


_SMALL: Final = tuple(_head(_UNSIGNED, value) for value in range(256))
_BYTES_HEADS: Final = tuple(_head(BYTES, length) for length in range(256))
_TEXT_HEADS: Final = tuple(_head(TEXT, length) for length in range(256))
_WIDTHS: Final = {24: 1, 25: 2, 26: 4, 27: 8}


def _unsigned(value: int) -> bytes:
    return _SMALL[value] if value < 256 else _head(_UNSIGNED, value)


def _bytes_head(length: int) -> bytes:
    return _BYTES_HEADS[length] if length < 256 else _head(BYTES, length)


@lru_cache(TEXTS_MAX)
def _text(value: str) -> bytes:
    encoded = value.encode()
    return _head(TEXT, len(encoded)) + encoded


# -- putting together --


def pack_request(request_id: int, verb: str, body: bytes) -> bytes:
    """``[request_id, verb, body]``."""
    return b"".join((b"\x83", _unsigned(request_id), _text(verb), _bytes_head(len(body)), body))


def pack_done(request_id: int, index: int, value: bytes) -> bytes:
    """``[request_id, 0, index, value, "", "", 0, ""]``: a reply to what is done."""
    head = _bytes_head(len(value))
    return b"".join(
        (b"\x88", _unsigned(request_id), b"\x00", _unsigned(index), head, value, _NO_ERROR)
    )


def pack_query(level: str, at_least: int, payload: bytes) -> bytes:
    """``[level, at_least, payload]``."""
    return b"".join(
        (b"\x83", _text(level), _unsigned(at_least), _bytes_head(len(payload)), payload)
    )


def call_head(name: str, count: int) -> bytes:
    """``[name, ...`` with ``count`` more items to come: how the payload of a call begins."""
    encoded = name.encode()
    return _head(_ARRAY, 1 + count) + _head(TEXT, len(encoded)) + encoded


def pack_call(head: bytes, values: Sequence[object]) -> bytes | None:
    """A call of which all arguments are short texts and byte strings; ``None``: it is none."""
    parts = [head]
    for value in values:
        if type(value) is str:
            if not value.isascii():
                return None
            data, heads = value.encode(), _TEXT_HEADS
        elif type(value) is bytes:
            data, heads = value, _BYTES_HEADS
        else:
            return None
        if len(data) > 255:
            return None
        parts += (heads[len(data)], data)
    return b"".join(parts)


# -- taking apart --


def _read_unsigned(content: bytes, at: int) -> tuple[int, int]:
    """An unsigned integer, and where it ends; raises ``KeyError`` and ``IndexError`` for what is
    none.  One that is cut off ends behind the content."""
    low = content[at]
    if low < 24:
        return low, at + 1
    end = at + 1 + _WIDTHS[low]
    return int.from_bytes(content[at + 1 : end], "big"), end


def _read_short_text(content: bytes, at: int) -> tuple[str, int]:
    """A text of less than 24 bytes, and where it ends; raises ``KeyError`` for what is none."""
    length = content[at] - TEXT
    if not 0 <= length < 24:
        raise KeyError
    end = at + 1 + length
    return content[at + 1 : end].decode("ascii"), end


def _read_bytes(content: bytes, at: int, end: int) -> bytes | None:
    """The byte string that stands from ``at`` to exactly ``end``."""
    head = content[at]
    low = head - BYTES
    if 0 <= low < 24:
        start = at + 1
        length = low
    elif low in _WIDTHS:
        start = at + 1 + _WIDTHS[low]
        length = int.from_bytes(content[at + 1 : start], "big")
    else:
        return None
    return content[start:end] if start + length == end else None


def unpack_request(content: bytes) -> tuple[int, str, bytes] | None:
    """What :func:`pack_request` made."""
    try:
        if content[0] != 0x83:
            return None
        request_id, at = _read_unsigned(content, 1)
        verb, at = _read_short_text(content, at)
        body = _read_bytes(content, at, len(content))
    except (IndexError, KeyError, UnicodeDecodeError):
        return None
    return None if body is None else (request_id, verb, body)


def unpack_short_bytes(content: bytes) -> bytes | None:
    """A byte string of 24 to 255 bytes."""
    if len(content) > 1 and content[0] == BYTES | 24 and content[1] == len(content) - 2 > 23:
        return content[2:]
    return None


def unpack_done(content: bytes) -> tuple[int, int, bytes] | None:
    """What :func:`pack_done` made: the request, the index and the value."""
    try:
        if content[0] != 0x88 or not content.endswith(_NO_ERROR):
            return None
        request_id, at = _read_unsigned(content, 1)
        if content[at]:
            return None
        index, at = _read_unsigned(content, at + 1)
        value = _read_bytes(content, at, len(content) - len(_NO_ERROR))
    except (IndexError, KeyError):
        return None
    return None if value is None else (request_id, index, value)


def unpack_query(content: bytes) -> tuple[str, int, bytes] | None:
    """What :func:`pack_query` made."""
    try:
        if content[0] != 0x83:
            return None
        level, at = _read_short_text(content, 1)
        at_least, at = _read_unsigned(content, at)
        payload = _read_bytes(content, at, len(content))
    except (IndexError, KeyError, UnicodeDecodeError):
        return None
    return None if payload is None else (level, at_least, payload)
