"""Strict CBOR: what may travel comes back as it was, and everything else is refused."""

from __future__ import annotations

import math
import struct
import tracemalloc
from datetime import UTC, datetime
from decimal import Decimal
from enum import IntEnum
from typing import NamedTuple

import cbor2
import pytest

from replog.cbor import DEPTH_MAX, strict_dumps, strict_loads
from replog.errors import BadCommand, SchemaError


class Colour(IntEnum):
    """An int that is more than an int."""

    RED = 1


class Point(NamedTuple):
    """A tuple that is more than a tuple."""

    x: int


VALUES = [
    None,
    True,
    False,
    0,
    23,
    24,
    255,
    256,
    65_536,
    (1 << 64) - 1,
    -1,
    -25,
    -(1 << 63),
    0.0,
    -0.0,
    1.5,
    math.inf,
    -math.inf,
    "",
    "key",
    "x" * 23,
    "x" * 24,
    "é" * 200,
    "x" * 70_000,
    b"",
    b"\xff" * 24,
    b"\x00" * 300,
    b"\xf7" * 70_000,
    [],
    [1, [2, [3]], "four", None],
    list(range(24)),
    list(range(300)),
    {},
    {"a": 1, "b": {"c": [b"d"]}},
    {str(at): at for at in range(300)},
    ["put", "key-123", b"x" * 50],
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: repr(value)[:24])
def test_loads_what_was_dumped(value: object) -> None:
    """Every kind of value comes back equal and of the same type, whatever its length."""
    came = strict_loads(strict_dumps(value))
    assert came == value
    assert type(came) is type(value)


def test_loads_short_floats() -> None:
    """Floats of two, four and eight bytes are read: other writers choose the shortest."""
    assert strict_loads(bytes.fromhex("83f93e00fa3fc00000fb3ff8000000000000")) == [1.5, 1.5, 1.5]


def test_loads_wide_heads() -> None:
    """A length or a number may be written wider than it needs to be."""
    assert strict_loads(bytes.fromhex("9a000000021b0000000000000001590001ff")) == [1, b"\xff"]


def test_dumps_nan_one_way() -> None:
    """Every NaN travels as the same bytes, so equal results have equal bytes."""
    odd = struct.unpack(">d", bytes.fromhex("fff8000000000123"))[0]
    assert strict_dumps([odd]) == strict_dumps([math.nan]) == bytes.fromhex("81f97e00")
    again = strict_loads(bytes.fromhex("81fb7ff8000000000123"))
    assert strict_dumps(again) == bytes.fromhex("81f97e00")


def test_dict_order_kept() -> None:
    """A dict keeps the order in which it was filled, on both sides."""
    value = {"b": 1, "a": 2, "c": 3}
    came = strict_loads(strict_dumps(value))
    assert isinstance(came, dict)
    assert list(came) == ["b", "a", "c"]


def test_tuple_arrives_as_list() -> None:
    """A tuple travels as a list."""
    assert strict_loads(strict_dumps(("put", ("a", 1)))) == ["put", ["a", 1]]


@pytest.mark.parametrize("around", ["", "81", "8201", "a16161", "81a1616181"])
@pytest.mark.parametrize("tag", [0, 1, 2, 3, 4, 21, 24, 28, 29, 30, 258, 256, 1004, 55799, 1 << 63])
def test_loads_tag_refused(tag: int, around: str) -> None:
    """Every tag is refused, at the top and nested, whether or not the library knows it."""
    for content in ("4101", "01", "80", "6161", "820102"):
        head = cbor2.dumps(cbor2.CBORTag(tag, None))[:-1]
        with pytest.raises(SchemaError, match="a tag stands in a CBOR value"):
            strict_loads(bytes.fromhex(around) + head + bytes.fromhex(content))


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ("", "cut off at byte 0"),
        ("9f01ff", "indefinite length"),
        ("5f4161ff", "indefinite length"),
        ("7f6161ff", "indefinite length"),
        ("bf616101ff", "indefinite length"),
        ("819fff", "indefinite length"),
        ("a16161bfff", "indefinite length"),
        ("f7", "undefined"),
        ("82f7f7", "undefined"),
        ("e0", "unknown simple value"),
        ("f3", "unknown simple value"),
        ("81f820", "unknown simple value"),
        ("81f8ff", "unknown simple value"),
        ("f814", "unknown simple value"),
        ("ff", "0xff, which begins no item"),
        ("81ff", "0xff, which begins no item"),
        ("1c", "0x1c, which begins no item"),
        ("fc", "0xfc, which begins no item"),
        ("5c00", "0x5c, which begins no item"),
        ("0101", "1 bytes follow"),
        ("8101f6f6", "2 bytes follow"),
        ("80c0", "1 bytes follow"),
        ("18", "cut off"),
        ("1b00000000000000", "cut off"),
        ("8201", "cut off"),
        ("6261", "cut off"),
        ("58", "cut off"),
        ("580261", "cut off"),
        ("590002ff", "cut off"),
        ("fb00", "cut off"),
        ("a16161", "cut off"),
        ("a2616101", "cut off"),
        ("3b8000000000000000", "below -2\\^63"),
        ("813bffffffffffffffff", "below -2\\^63"),
        ("61ff", "cannot be decoded"),
        ("82016180", "cannot be decoded"),
        ("62c080", "cannot be decoded"),
        ("63eda080", "cannot be decoded"),
        ("a2616101616102", "cannot be decoded"),
        ("81a260016002", "cannot be decoded"),
        ("a10101", "key that is not a text"),
        ("a1410101", "key that is not a text"),
        ("a18001", "key that is not a text"),
        ("a1f601", "key that is not a text"),
        ("81a26161010102", "key that is not a text"),
    ],
)
def test_loads_broken_refused(data: str, sentence: str) -> None:
    """Whatever the module does not list is refused, with a sentence that says what came."""
    with pytest.raises(SchemaError, match=sentence):
        strict_loads(bytes.fromhex(data))


@pytest.mark.parametrize("major", [2, 3, 4, 5])
@pytest.mark.parametrize("length", ["1affffffff", "1b7fffffffffffffff", "1bffffffffffffffff"])
def test_loads_absurd_length_allocates_nothing(major: int, length: str) -> None:
    """A length beyond the data is refused without memory or time for what it promises."""
    head = bytearray.fromhex(length)
    head[0] |= major << 5
    for around in (b"", b"\x82", b"\x82\x01", b"\xa1\x61a"):
        tracemalloc.start()
        try:
            with pytest.raises(SchemaError):
                strict_loads(around + bytes(head) + b"ab")
            peak_bytes = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak_bytes < 100_000


@pytest.mark.parametrize("opening", [b"\x81", b"\xa1\x61a"])
def test_loads_depth_limit(opening: bytes) -> None:
    """A value may nest exactly depth_max lists and maps, empty ones counted."""
    for innermost in (b"\x80", b"\xa0", b"\x81\x01", b"\xa1\x61a\x01"):
        for depth_max in (1, 2, DEPTH_MAX):
            strict_loads(opening * (depth_max - 1) + innermost, depth_max)
            with pytest.raises(SchemaError, match="too deep"):
                strict_loads(opening * depth_max + innermost, depth_max)
    assert strict_loads(b"\x01", 0) == 1
    with pytest.raises(SchemaError, match="too deep"):
        strict_loads(b"\x80", 0)


def test_loads_very_deep_refused() -> None:
    """A million nested lists are refused early, not by the end of the stack."""
    with pytest.raises(SchemaError, match="too deep"):
        strict_loads(b"\x81" * 1_000_000)


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ({1, 2}, "type set"),
        (object(), "type object"),
        (Decimal(1), "type Decimal"),
        (datetime(2020, 1, 1, tzinfo=UTC), "type datetime"),
        (bytearray(b"a"), "type bytearray"),
        (memoryview(b"a"), "type memoryview"),
        (1j, "type complex"),
        (Colour.RED, "type Colour"),
        (Point(1), "type Point"),
        (cbor2.undefined, "type [Uu]ndefined"),
        (cbor2.CBORTag(1, 2), "type CBORTag"),
        (1 << 64, "beyond 64 bits"),
        (-(1 << 63) - 1, "beyond 64 bits"),
        ({1: "a"}, "key of type int"),
        ({b"a": 1}, "key of type bytes"),
        ("\ud800", "lone surrogate"),
    ],
    ids=lambda part: repr(part) if isinstance(part, str) else type(part).__name__,
)
def test_dumps_stranger_refused(value: object, sentence: str) -> None:
    """What may not travel is refused by the name of its type, at the top and nested."""
    for around in (value, [1, value], (value,), {"a": value}, {"a": [{"b": value}]}):
        with pytest.raises(BadCommand, match=sentence):
            strict_dumps(around)


def test_dumps_depth_limit() -> None:
    """What is written can be read: the same depth is the limit, and a cycle ends there."""
    value: list[object] = []
    for _ in range(DEPTH_MAX - 1):
        value = [value]
    assert strict_loads(strict_dumps(value)) == value
    with pytest.raises(BadCommand, match="8 deep"):
        strict_dumps([value])
    with pytest.raises(BadCommand, match="8 deep"):
        strict_dumps({"a": value})
    cycle: list[object] = []
    cycle.append(cycle)
    with pytest.raises(BadCommand, match="8 deep"):
        strict_dumps(cycle)


def test_loads_never_differs_from_library() -> None:
    """What is accepted is read as the library reads it: the pass over the heads changes nothing."""
    for value in VALUES:
        data = cbor2.dumps(value)
        assert strict_loads(data) == cbor2.loads(data)
