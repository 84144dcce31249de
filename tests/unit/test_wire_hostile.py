"""Bytes from an enemy: nothing but a PeerError ever comes out, and memory stays within limits.

The mutations are drawn from fixed seeds, so a failure is found again by running the test again.
"""

from __future__ import annotations

import dataclasses
import random
import tracemalloc
from collections.abc import Mapping

import cbor2
import pytest

from replog.cbor import strict_dumps, strict_loads
from replog.engine import FieldKind, MessageSpec
from replog.entries import pack_entries, unpack_entries
from replog.errors import FrameError, PeerError, SchemaError
from replog.frames import (
    HANDSHAKE_LIMITS,
    ClientHello,
    FrameCodec,
    Outcome,
    PeerHello,
    PeerWelcome,
    Refusal,
    Reply,
    Request,
    ServerHello,
)
from replog.limits import Limits
from replog.transfer_messages import (
    TRANSFER_SPECS,
    SnapshotChunk,
    SnapshotFetch,
    SnapshotGone,
    SnapshotOffer,
    SnapshotQuery,
)
from replog.types import Entry, EntryKind, entry_body, record
from replog.wire import HEADER_BYTES, FrameReader, MessageCodec, pack_frame

ROUNDS = 4000
LIMITS = Limits(command_bytes_max=1024, message_bytes_max=1024, frame_bytes_max=8192)


@record
class Send:
    """A message with every kind of field."""

    epoch: int
    term: int
    sender: int
    to: int
    probe: bool
    entries: tuple[Entry, ...]


MESSAGES = MessageCodec(
    [
        MessageSpec(
            number=7,
            record=Send,
            fields={
                "epoch": FieldKind.U32,
                "term": FieldKind.U64,
                "sender": FieldKind.U16,
                "to": FieldKind.U16,
                "probe": FieldKind.BOOL,
                "entries": FieldKind.ENTRIES,
            },
            bytes_max=None,
        )
    ],
    LIMITS,
    TRANSFER_SPECS,
)
OWN = FrameCodec(LIMITS)
ENTRIES = tuple(
    Entry(1, 5 + at, 2 + at // 3, entry_body(EntryKind.COMMAND, 1, 2, at, b"d" * at))
    for at in range(6)
)
GOOD = [
    MESSAGES.encode(Send(epoch=1, term=2, sender=3, to=4, probe=True, entries=ENTRIES)),
    MESSAGES.encode(Send(epoch=1, term=2, sender=3, to=4, probe=False, entries=())),
    *(
        MESSAGES.encode(message)
        for message in (
            SnapshotQuery(1, 2, 3, 4, 100, 0, 0),
            SnapshotOffer(1, 2, 3, 4, 5000, 99, b"meta"),
            SnapshotFetch(1, 2, 3, 4, 100, 5000, 99, 700, 300),
            SnapshotChunk(1, 2, 3, 4, 100, 99, 700, b"chunk"),
            SnapshotGone(1, 2, 3, 4, 100, 99),
        )
    ),
    *(
        OWN.encode(frame)
        for frame in (
            PeerHello(1, 1, "berlin", 1, 99, 2, "some", 1, 5, ((2, 7), (3, 8), (400, 9))),
            PeerWelcome(1, 2, 98, 6, ((1, 5),)),
            Refusal("wrong cluster"),
            ClientHello(1, 1, "berlin"),
            ServerHello(1, "berlin", 1, 2, ((1, "a:1"), (2, "b:2"))),
            Request(12, "call", strict_dumps(["put", "key", b"value"])),
            Reply(12, Outcome.DONE, 5, strict_dumps({"a": [1, None]}), "", "", 2, "b:2"),
        )
    ),
]
EVERY_LIMIT: Mapping[int, int] = {**MESSAGES.frame_limits, **OWN.frame_limits}
LARGEST_FRAME_BYTES = HEADER_BYTES + max(EVERY_LIMIT.values())


def decode(frame_type: int, content: bytes) -> object:
    """Decode a frame of either family."""
    if frame_type in MESSAGES.frame_limits:
        return MESSAGES.decode(frame_type, content)
    return OWN.decode(frame_type, content)


def mutated(dice: random.Random, data: bytes) -> bytes:
    """``data`` with one to three changes of the kinds that break parsers."""
    out = bytearray(data)
    for _ in range(dice.randrange(1, 4)):
        at = dice.randrange(len(out) + 1)
        match dice.randrange(7):
            case 0:
                out[at : at + 1] = bytes((dice.randrange(256),))
            case 1:
                out[at:at] = dice.randbytes(dice.randrange(1, 9))
            case 2:
                del out[at : at + dice.randrange(1, 9)]
            case 3:
                out[at : at + 1] = bytes((dice.choice(HEADS),))
            case 4:
                out[at : at + 4] = dice.choice((b"\xff" * 4, b"\x7f\xff\xff\xff", b"\x00" * 4))
            case 5:
                out[at:at] = out[dice.randrange(len(out) + 1) :][:16]
            case _:
                out[at:] = b""
    return bytes(out)


HEADS = b"\x80\x9f\x9b\x5f\x5b\x7b\xbf\xbb\xa1\xc0\xc2\xd9\xdb\xe0\xf7\xf8\xf4\xf9\xfb\xff\x1b\x3b"


def is_sentence(error: PeerError) -> bool:
    """Whether the error says something, and not too much."""
    return 10 < len(str(error)) < 600


def test_reader_mutated_streams() -> None:
    """A damaged stream yields frames that were sent, unharmed, or a FrameError."""
    dice = random.Random(1)
    refused = 0
    for _ in range(ROUNDS):
        frames = [dice.choice(GOOD) for _ in range(3)]
        contents = [frame[HEADER_BYTES:] for frame in frames]
        stream = mutated(dice, b"".join(frames))
        reader = FrameReader(EVERY_LIMIT)
        try:
            while stream:
                size = dice.randrange(1, 200)
                for frame_type, content in reader.feed(stream[:size]):
                    assert frame_type in EVERY_LIMIT
                    assert content in contents
                assert reader.buffered_bytes < LARGEST_FRAME_BYTES
                stream = stream[size:]
        except FrameError:
            refused += 1
    assert refused > ROUNDS // 2


def test_reader_random_bytes() -> None:
    """Noise, with or without a true magic before it, never comes out as a frame."""
    dice = random.Random(2)
    for opening in (b"", b"R", b"RL", b"RL\x01", b"RL\x01\x45", b"RL\x01\x45\x00\x00"):
        for _ in range(ROUNDS // 6):
            reader = FrameReader(EVERY_LIMIT)
            try:
                assert reader.feed(opening + dice.randbytes(dice.randrange(100))) == []
                assert reader.buffered_bytes < LARGEST_FRAME_BYTES
            except FrameError:
                continue


@pytest.mark.parametrize("number", range(len(GOOD)))
def test_decode_mutated_contents(number: int) -> None:
    """A content with a true checksum but a false shape is a SchemaError or a legal record."""
    dice = random.Random(3 + number)
    frame_type, content = GOOD[number][3], GOOD[number][HEADER_BYTES:]
    good = decode(frame_type, content)
    refused = 0
    for _ in range(ROUNDS // 4):
        bad = mutated(dice, content)
        try:
            came = decode(frame_type, bad)
        except SchemaError as error:
            refused += is_sentence(error)
            continue
        assert type(came) is type(good)
        for field in dataclasses.fields(good):  # type: ignore[arg-type]
            assert type(getattr(came, field.name)) is type(getattr(good, field.name))
    assert refused > ROUNDS // 16


def test_decode_random_contents() -> None:
    """Noise as the content of any type is never anything but a PeerError."""
    dice = random.Random(4)
    for frame_type in EVERY_LIMIT:
        for _ in range(ROUNDS // 8):
            noise = dice.randbytes(dice.randrange(80))
            with pytest.raises(PeerError) as failure:
                decode(frame_type, noise)
            assert is_sentence(failure.value)


def test_loads_mutated_values() -> None:
    """A damaged value is a SchemaError or a value that could have been written."""
    dice = random.Random(5)
    good = strict_dumps(
        ["put", {"a": [1, -2, 1.5, None], "b": {"c": b"x" * 30}}, "é" * 30, 1 << 63]
    )
    accepted = 0
    for _ in range(ROUNDS):
        data = mutated(dice, good)
        try:
            value = strict_loads(data)
        except SchemaError:
            continue
        accepted += 1
        # Equality would trip over NaN.
        assert repr(strict_loads(strict_dumps(value))) == repr(value)
    assert accepted > 50


def test_loads_random_bytes() -> None:
    """Noise is a SchemaError or a value that could have been written; the library agrees."""
    dice = random.Random(6)
    accepted = 0
    for _ in range(ROUNDS * 3):
        data = bytes((dice.choice(HEADS + bytes(range(0, 256, 7))),)) + dice.randbytes(
            dice.randrange(12)
        )
        try:
            value = strict_loads(data)
        except SchemaError:
            continue
        accepted += 1
        strict_dumps(value)
        assert repr(cbor2.loads(data)) == repr(value)
    assert accepted > 50


def test_entries_mutated() -> None:
    """Damaged entries are a SchemaError, or entries that ascend and fill the bytes exactly."""
    dice = random.Random(7)
    good = pack_entries(ENTRIES)
    accepted = 0
    for _ in range(ROUNDS):
        data = mutated(dice, good)
        try:
            entries = unpack_entries(data)
        except SchemaError:
            continue
        accepted += 1
        indexes = [entry.index for entry in entries]
        assert indexes == sorted(set(indexes))
        assert all(0 < index < 1 << 64 for index in indexes)
        assert unpack_entries(pack_entries(entries)) == entries
    assert accepted > 50


@pytest.mark.parametrize("frame_type", EVERY_LIMIT)
def test_limit_of_every_type(frame_type: int) -> None:
    """A frame of exactly its limit comes out, and one byte more is refused by its header alone."""
    limit = EVERY_LIMIT[frame_type]
    ((number, content),) = FrameReader(EVERY_LIMIT).feed(pack_frame(frame_type, bytes(limit)))
    assert (number, len(content)) == (frame_type, limit)
    with pytest.raises(FrameError, match=f"above its limit of {limit}"):
        FrameReader(EVERY_LIMIT).feed(pack_frame(frame_type, bytes(limit + 1))[:HEADER_BYTES])


def test_handshake_takes_little() -> None:
    """Before the two sides know each other no frame of more than 64 KiB is taken."""
    assert max(HANDSHAKE_LIMITS.values()) <= 65_536
    for frame_type in set(EVERY_LIMIT) - set(HANDSHAKE_LIMITS):
        with pytest.raises(FrameError, match="not expected on this connection"):
            FrameReader(HANDSHAKE_LIMITS).feed(pack_frame(frame_type, b"")[:HEADER_BYTES])


def test_reader_memory_bounded() -> None:
    """A sender that announces the most it may and then dribbles holds no more than that."""
    reader = FrameReader(EVERY_LIMIT)
    announced = pack_frame(7, bytes(EVERY_LIMIT[7]))
    tracemalloc.start()
    try:
        for _ in range(20):
            for start in range(0, len(announced), 512):
                reader.feed(announced[start : start + 512])
                assert reader.buffered_bytes < LARGEST_FRAME_BYTES
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < 8 * LARGEST_FRAME_BYTES


@pytest.mark.parametrize("filling", [b"\x80", b"\xa0", b"\xf6", b"\x18\xff", b"\xf9\x00\x01"])
def test_decode_memory_bounded(filling: bytes) -> None:
    """A request full of tiny items is refused before any of them is made."""
    count = 1_000_000 // len(filling)
    head = b"\x9a" + count.to_bytes(4, "big")
    full = head + filling * count
    contents = (full, b"\x83" + full + b"\x60\x40", b"\x83\x01\x60" + full)
    tracemalloc.start()
    try:
        for content in contents:
            with pytest.raises(SchemaError):
                OWN.decode(69, content)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < 100_000
