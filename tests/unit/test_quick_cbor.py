"""The shapes that are put together and taken apart by hand: the library's very bytes, and nothing
that the strict reader would not read in the same way."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import cbor2
import pytest

from replog.cbor import strict_dumps, strict_loads
from replog.errors import SchemaError
from replog.quick_cbor import (
    NULL,
    call_head,
    pack_call,
    pack_done,
    pack_query,
    pack_request,
    unpack_done,
    unpack_query,
    unpack_request,
    unpack_short_bytes,
)

INTS = (0, 1, 23, 24, 255, 256, 65_535, 65_536, (1 << 32) - 1, 1 << 32, (1 << 64) - 1)
LENGTHS = (0, 1, 23, 24, 255, 256, 65_535, 65_536)


def listed_done(request_id: int, index: int, value: bytes) -> list[object]:
    """A reply to what is done, as the library is given it."""
    return [request_id, 0, index, value, "", "", 0, ""]


def test_bytes_of_the_library() -> None:
    """Every width of every part: the bytes of the library, and back the same parts."""
    assert strict_dumps(None) == NULL
    for number in INTS:
        for length in LENGTHS:
            data = bytes(length)
            for verb in ("propose", "q", "v" * 23):
                packed = pack_request(number, verb, data)
                assert packed == strict_dumps([number, verb, data])
                assert unpack_request(packed) == (number, verb, data)
                packed = pack_query(verb, number, data)
                assert packed == strict_dumps([verb, number, data])
                assert unpack_query(packed) == (verb, number, data)
            for index in INTS:
                packed = pack_done(number, index, data)
                assert packed == strict_dumps(listed_done(number, index, data))
                assert unpack_done(packed) == (number, index, data)


def test_other_texts_are_left_to_the_library() -> None:
    """A long verb, and one that is not ASCII, is packed right and read by the strict reader."""
    for verb in ("v" * 24, "v" * 300, "grün"):
        packed = pack_request(7, verb, b"body")
        assert packed == strict_dumps([7, verb, b"body"])
        assert unpack_request(packed) is None


def test_calls_are_those_of_the_library() -> None:
    """A call of short texts and byte strings has the library's bytes; every other one is left to
    it."""
    texts = ("", "k", "k" * 23, "k" * 24, "k" * 255)
    for count, values in ((0, ()), (2, ("key", b"value")), *((1, (text,)) for text in texts)):
        for name in ("n", "n" * 30):
            packed = pack_call(call_head(name, count), values)
            assert packed == strict_dumps([name, *values])
    for length in (0, 23, 24, 255):
        assert pack_call(call_head("n", 1), (bytes(length),)) == strict_dumps(["n", bytes(length)])
    strangers = (None, 1, True, 1.5, [], "grün", "\ud800", "k" * 256, bytes(256))
    assert all(pack_call(call_head("n", 2), ("key", value)) is None for value in strangers)


def test_short_bytes_are_those_of_the_library() -> None:
    """A byte string of a usual length is read; anything else is left to the strict reader."""
    for length in (24, 255):
        assert unpack_short_bytes(strict_dumps(bytes(length))) == bytes(length)
    others = (
        b"",
        b"\x58",
        b"\x58\x18" + bytes(23),
        b"\x58\x18" + bytes(25),
        b"\x58\x17" + bytes(23),
    )
    assert all(unpack_short_bytes(other) is None for other in others)
    for value in (None, 7, "t" * 30, bytes(23), bytes(256), [bytes(30)]):
        assert unpack_short_bytes(strict_dumps(value)) is None


SHAPES: tuple[tuple[Callable[[bytes], object], list[object]], ...] = (
    (unpack_request, [300, "propose", b"body"]),
    (unpack_done, listed_done(300, 70_000, b"\xf6")),
    (unpack_query, ["linearizable", 70_000, bytes(30)]),
)


@pytest.mark.parametrize(("unpack", "value"), SHAPES, ids=["request", "done", "query"])
def test_other_shapes_are_left_to_the_library(
    unpack: Callable[[bytes], object], value: list[object]
) -> None:
    """Another item in any place, one too many or too few, or a cut anywhere: not read here."""
    strangers: tuple[object, ...] = (None, True, -1, 1.5, "text" * 9, b"bytes", [], {}, [0])
    for at in range(len(value)):
        for stranger in strangers:
            if type(stranger) is not type(value[at]):
                other = [*value[:at], stranger, *value[at + 1 :]]
                assert unpack(cbor2.dumps(other)) is None, other
    packed = cbor2.dumps(value)
    for other in (value[:-1], [*value, 0], [value]):
        assert unpack(cbor2.dumps(other)) is None
    for end in range(len(packed)):
        assert unpack(packed[:end]) is None
    assert unpack(packed + b"\0") is None


@pytest.mark.parametrize(("unpack", "value"), SHAPES, ids=["request", "done", "query"])
def test_reads_as_the_strict_reader(unpack: Callable[[bytes], object], value: list[object]) -> None:
    """Of bytes with some changed, dropped or doubled: what is read here the strict reader reads,
    and as the same values."""
    random = Random(5)
    packed = cbor2.dumps(value)
    read_count = 0
    for _ in range(20_000):
        data = bytearray(packed)
        for _ in range(random.randint(1, 2)):
            at = random.randrange(len(data))
            change = random.random()
            if change < 0.7:
                data[at] = random.randrange(256)
            elif change < 0.85:
                del data[at : at + random.randint(1, 3)]
            else:
                data[at:at] = data[at : at + random.randint(1, 3)]
        found = unpack(bytes(data))
        if found is None:
            continue
        read_count += 1
        strict = strict_loads(bytes(data))
        assert isinstance(strict, list)
        if unpack is unpack_done:
            assert strict == listed_done(*found)  # type: ignore[misc]
        else:
            assert tuple(strict) == found
    assert read_count > 1000


def test_unknown_heads_are_refused_by_the_strict_reader() -> None:
    """What no shape fits ends as before, with a sentence."""
    for data in (b"", b"\x83", b"\x83\x1b\x00", b"\x9f\xff"):
        assert unpack_request(data) is None
        with pytest.raises(SchemaError):
            strict_loads(data)
