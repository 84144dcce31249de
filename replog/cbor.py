"""The strict part of CBOR (RFC 8949) in which commands, results and frames travel.

A value is None, a bool, an int that fits 64 bits (signed or unsigned: -2^63 to 2^64 - 1), a float,
a str, bytes, a list of values, or a dict from str to values, nested at most ``depth_max`` deep.
Nothing else is written and nothing else is read: no tag, no indefinite length, no ``undefined`` or
other simple value, no key twice, not one byte behind the value.

Two surprises are excluded, and two are left to know.  A NaN always travels as the one quiet NaN,
so equal results have equal bytes; and a dict keeps its order on both sides, so what a reader
iterates over does not depend on the reader.  But a NaN that was read still differs from itself, and
two equal dicts that were filled in different orders have different bytes.

Reading goes in two steps.  First one pass over the heads of the bytes, which allocates nothing,
refuses all of the above, and finds where the value ends; only then the library decodes, and meets
nothing that it could treat in its own way.  The other way round, asking the library to refuse and
looking at what it made, costs more, since the library tells neither where a value ends nor that
an integer came as a tag.
"""

from __future__ import annotations

import struct
from typing import Final

import cbor2

from replog.errors import BadCommand, SchemaError

DEPTH_MAX: Final = 8
"""How deep lists and dicts may nest where nothing else is said."""

INT_MIN: Final = -(1 << 63)
INT_MAX: Final = (1 << 64) - 1

_LONG: Final = 0
"""Stands in ``_STEPS`` for an item whose size is not told by its first byte."""

_SHORT_STRING: Final = -1
"""Stands in ``_STEPS`` for a string whose length is told by its second byte."""


def _step(first: int) -> int:
    """The bytes of a whole item that begins with ``first``, or one of the two signs above."""
    major, low = first >> 5, first & 31
    if low > 27:
        return _LONG
    if first in (0x58, 0x78):
        return _SHORT_STRING
    argument_bytes = 0 if low < 24 else 1 << (low - 24)
    if major in (0, 1):
        # A negative integer of eight bytes may be below INT_MIN.
        return _LONG if first == 0x3B else 1 + argument_bytes
    if major in (2, 3) and low < 24:
        return 1 + low
    if first in (0xF4, 0xF5, 0xF6):
        return 1
    if first in (0xF9, 0xFA, 0xFB):
        return 1 + argument_bytes
    return _LONG


_STEPS: Final = tuple(_step(first) for first in range(256))

_ARGUMENTS: Final = {
    24: struct.Struct(">B"),
    25: struct.Struct(">H"),
    26: struct.Struct(">I"),
    27: struct.Struct(">Q"),
}


def strict_loads(data: bytes, depth_max: int = DEPTH_MAX) -> object:
    """The one value that ``data`` holds; see the module for what it can be.

    Memory stays within a fixed factor of the size of ``data``, which is about 90 for a list of
    nothing but empty dicts.  Raises :class:`~replog.errors.SchemaError`.
    """
    try:
        first = data[0]
        if 0x80 <= first < 0x98 and depth_max > 0:
            # Every command and every frame is a short list, mostly of plain items: no calls.
            offset, steps = 1, _STEPS
            for _ in range(first & 31):
                step = steps[data[offset]]
                if step > 0:
                    offset += step
                elif step == _SHORT_STRING:
                    offset += 2 + data[offset + 1]
                else:
                    offset = _end_of_long(data, offset, depth_max - 1)
        else:
            offset = _end_of_items(data, 0, 1, depth_max)
    except (IndexError, struct.error):
        # Some item claims to reach beyond the last byte.
        raise SchemaError(f"a CBOR value is cut off at byte {len(data)}") from None
    if offset != len(data):
        if offset > len(data):
            raise SchemaError(f"a CBOR value is cut off at byte {len(data)}")
        raise SchemaError(f"{len(data) - offset} bytes follow a CBOR value of {offset} bytes")
    try:
        value: object = cbor2.loads(data, allow_duplicate_keys=False)
    except cbor2.CBORError as error:
        # What is left to find: a text that is not UTF-8, and a key that comes twice.
        raise SchemaError(f"a CBOR value cannot be decoded: {error}") from error
    return value


def _end_of_items(data: bytes, offset: int, count: int, depth: int) -> int:
    """Where ``count`` items from ``offset`` on end; a count beyond all bounds costs nothing.

    Raises IndexError or struct.error when the data end before the last item; the end of a string
    is only computed, so it may lie beyond the data.
    """
    steps = _STEPS
    for _ in range(count):
        step = steps[data[offset]]
        if step > 0:
            offset += step
        elif step == _SHORT_STRING:
            offset += 2 + data[offset + 1]
        else:
            offset = _end_of_long(data, offset, depth)
    return offset


def _end_of_long(data: bytes, start: int, depth: int) -> int:
    """Where the item at ``start`` ends, of which ``_STEPS`` does not tell the size."""
    first = data[start]
    major, low = first >> 5, first & 31
    if low > 27 or major > 5:
        raise SchemaError(f"{_name_of(first)} stands in a CBOR value, at byte {start}")
    offset = start + 1
    argument: int = low
    if low > 23:
        (argument,) = _ARGUMENTS[low].unpack_from(data, offset)
        offset += _ARGUMENTS[low].size
    if major == 1:
        if argument > -1 - INT_MIN:
            raise SchemaError(f"a CBOR value holds an integer below -2^63, at byte {start}")
        return offset
    if major < 4:
        return offset + argument
    if depth == 0:
        raise SchemaError("a CBOR value nests its lists and maps too deep")
    if major == 4:
        return _end_of_items(data, offset, argument, depth - 1)
    for _ in range(argument):
        if data[offset] >> 5 != 3:
            raise SchemaError(f"a CBOR map has a key that is not a text, at byte {offset}")
        offset = _end_of_items(data, offset, 2, depth - 1)
    return offset


def _name_of(first: int) -> str:
    """What a refused first byte would begin."""
    major, low = first >> 5, first & 31
    if major == 6:
        return "a tag"
    if low == 31 and major in (2, 3, 4, 5):
        return "an item of indefinite length"
    if first == 0xF7:
        return "undefined"
    if major == 7 and low <= 24:
        return "an unknown simple value"
    return f"the byte {first:#04x}, which begins no item,"


_FREE: Final = frozenset((type(None), bool, float, str, bytes))
"""The types of which every value may travel, apart from a str that is not Unicode."""


def strict_dumps(value: object) -> bytes:
    """The bytes of ``value``; a tuple travels as a list and arrives as one.

    Raises :class:`~replog.errors.BadCommand`, naming the type, for anything that the module does
    not list.  The types are meant exactly: an enum or a named tuple would come back as something
    else than was sent, so it is refused and the caller says what he means.
    """
    if type(value) not in _FREE:
        _check_value(value, DEPTH_MAX)
    try:
        return cbor2.dumps(value)
    except UnicodeEncodeError as error:
        raise BadCommand(
            f"the text {error.object[:40]!r} holds a lone surrogate, which UTF-8 cannot express; "
            "send such a name as bytes"
        ) from None


def _check_value(value: object, depth: int) -> None:
    kind = type(value)
    if kind is list or kind is tuple:
        if depth == 0:
            raise BadCommand(f"lists and dicts may be nested {DEPTH_MAX} deep, not deeper")
        for item in value:  # type: ignore[attr-defined]
            if type(item) not in _FREE:
                _check_value(item, depth - 1)
    elif kind is int:
        if not INT_MIN <= value <= INT_MAX:  # type: ignore[operator]
            raise BadCommand(
                "an int beyond 64 bits cannot travel; send it as bytes or as a str of digits"
            )
    elif kind is dict:
        _check_dict(value, depth)  # type: ignore[arg-type]
    elif kind not in _FREE:
        raise BadCommand(
            f"a value of type {kind.__qualname__} cannot travel; use None, bool, int, float, str, "
            "bytes, list, tuple or dict"
        )


def _check_dict(value: dict[object, object], depth: int) -> None:
    if depth == 0:
        raise BadCommand(f"lists and dicts may be nested {DEPTH_MAX} deep, not deeper")
    for key, item in value.items():
        if type(key) is not str:
            raise BadCommand(
                f"a dict with a key of type {type(key).__qualname__} cannot travel; keys are str"
            )
        if type(item) not in _FREE:
            _check_value(item, depth - 1)
