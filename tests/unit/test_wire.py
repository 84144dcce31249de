"""Frames and engine messages: what was packed comes out, whole and only so."""

from __future__ import annotations

import dataclasses
import struct
from zlib import crc32

import cbor2
import pytest

from replog.engine import FieldKind, MessageSpec
from replog.entries import pack_entries
from replog.errors import FrameError, PluginError, SchemaError
from replog.limits import Limits
from replog.types import Entry, EntryKind, entry_body, record
from replog.wire import HEADER_BYTES, FrameReader, MessageCodec, pack_frame

LIMITS = Limits()
TYPES = {1: 1000, 2: 0, 64: 100_000}


@record
class Append:
    """Has every kind of field, with the entries in the middle."""

    epoch: int
    term: int
    sender: int
    to: int
    probe: bool
    entries: tuple[Entry, ...]
    commit_index: int
    last: bool


@record
class Beat:
    """Has no entries."""

    epoch: int
    term: int
    sender: int
    to: int


@record
class Parcel:
    """Has bytes, in the middle."""

    epoch: int
    term: int
    sender: int
    to: int
    data: bytes
    offset: int


HEAD = {
    "epoch": FieldKind.U32,
    "term": FieldKind.U64,
    "sender": FieldKind.U16,
    "to": FieldKind.U16,
}
APPEND = MessageSpec(
    number=1,
    record=Append,
    fields={
        **HEAD,
        "probe": FieldKind.BOOL,
        "entries": FieldKind.ENTRIES,
        "commit_index": FieldKind.U64,
        "last": FieldKind.BOOL,
    },
    bytes_max=None,
)
BEAT = MessageSpec(number=63, record=Beat, fields=HEAD, bytes_max=64)
PARCEL = MessageSpec(
    number=80,
    record=Parcel,
    fields={**HEAD, "data": FieldKind.BYTES, "offset": FieldKind.U64},
    bytes_max=None,
)


def codec() -> MessageCodec:
    """A codec of the messages above."""
    return MessageCodec([APPEND, BEAT], LIMITS, [PARCEL])


def entries_of(count: int, data: bytes = b"data") -> tuple[Entry, ...]:
    """Entries from index 7 on."""
    return tuple(
        Entry(1, 7 + at, 3, entry_body(EntryKind.COMMAND, 1, 3, at + 1, data))
        for at in range(count)
    )


def append_of(**changes: object) -> Append:
    """An Append with some fields changed."""
    plain = Append(
        epoch=1, term=2, sender=3, to=4, probe=True, entries=(), commit_index=5, last=False
    )
    return dataclasses.replace(plain, **changes)  # type: ignore[arg-type]


def content_of(frame: bytes) -> bytes:
    """The content of a frame."""
    return frame[HEADER_BYTES:]


# --- Frames ---------------------------------------------------------------------------------


def test_feed_whole_frames() -> None:
    """Frames that come in one piece come out in order, the empty one too."""
    frames = [(1, b"one"), (2, b""), (64, b"x" * 100_000), (1, b"")]
    data = b"".join(pack_frame(*frame) for frame in frames)
    assert FrameReader(TYPES).feed(data) == frames


@pytest.mark.parametrize("piece_bytes", [1, 2, 5, 11, 12, 13, 100, 4096])
def test_feed_pieces(piece_bytes: int) -> None:
    """However the bytes are cut, the same frames come out, each as soon as it is whole."""
    frames = [(1, b"one"), (2, b""), (64, bytes(5000)), (1, b"RL\x01\x01"), (1, b"z" * 1000)]
    data = b"".join(pack_frame(*frame) for frame in frames)
    ends = [sum(HEADER_BYTES + len(content) for _, content in frames[: at + 1]) for at in range(5)]
    reader = FrameReader(TYPES)
    came: list[tuple[int, bytes]] = []
    for start in range(0, len(data), piece_bytes):
        came += reader.feed(data[start : start + piece_bytes])
        fed_bytes = min(start + piece_bytes, len(data))
        assert len(came) == sum(end <= fed_bytes for end in ends)
        assert reader.buffered_bytes == fed_bytes - max(
            [end for end in ends if end <= fed_bytes] or [0]
        )
    assert came == frames


def test_feed_nothing() -> None:
    """No bytes, no frames."""
    assert FrameReader(TYPES).feed(b"") == []


def test_header_layout() -> None:
    """The header is magic, version, type, length and a checksum over all of it and the content."""
    frame = pack_frame(64, b"abc")
    assert frame[:8] == b"RL\x01\x40\x00\x00\x00\x03"
    assert frame[8:12] == crc32(frame[:8] + b"abc").to_bytes(4, "big")
    assert frame[12:] == b"abc"


def test_feed_every_flipped_bit_noticed() -> None:
    """A frame with any one bit changed never comes out."""
    frame = pack_frame(1, b"some content")
    types = dict.fromkeys(range(256), 1000)
    for at in range(len(frame) * 8):
        bad = bytearray(frame)
        bad[at // 8] ^= 1 << at % 8
        reader = FrameReader(types)
        try:
            came = reader.feed(bytes(bad))
        except FrameError:
            continue
        # A longer length only waits for more.
        assert came == []
        assert 4 <= at // 8 < 8


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", r"b'GET / HT' came, which looks like HTTP"),
        (b"POST /v1", "looks like HTTP"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "looks like TLS"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "looks like SSH"),
        (b"hello world, this is", r"b'hello wo' came, which begins no frame"),
        (b"X", r"b'X' came, which begins no frame"),
        (b"RX", "begins no frame"),
        (b"RL\x02", "version 2 came, but this release speaks version 1"),
        (b"RL\x00" + bytes(20), "version 0 came"),
        (pack_frame(9, b"abc"), "type 9 came, which is not expected"),
        (pack_frame(2, b"a"), "type 2 announces 1 bytes, above its limit of 0"),
        (pack_frame(1, bytes(1001)), "type 1 announces 1001 bytes, above its limit of 1000"),
        (pack_frame(1, b"abc")[:-1] + b"d", "checksum of a frame of type 1 is wrong"),
    ],
    ids=lambda case: f"{len(case)}_bytes" if isinstance(case, bytes) else None,
)
def test_feed_wrong_refused(data: bytes, sentence: str) -> None:
    """What is no frame is refused with a sentence that shows what came, alone or behind others."""
    for before in (b"", pack_frame(1, b"fine")):
        with pytest.raises(FrameError, match=sentence):
            FrameReader(TYPES).feed(before + data)


def test_feed_limit_checked_before_content() -> None:
    """A header over its limit is refused before any of the content has come."""
    reader = FrameReader(TYPES)
    header = pack_frame(1, bytes(1001))[:HEADER_BYTES]
    assert reader.feed(header[:-1]) == []
    with pytest.raises(FrameError, match="above its limit"):
        reader.feed(header[-1:])


def test_feed_after_failure_fails() -> None:
    """A reader that has refused something refuses everything after it."""
    reader = FrameReader(TYPES)
    with pytest.raises(FrameError):
        reader.feed(b"nonsense")
    with pytest.raises(FrameError, match="begins no frame"):
        reader.feed(pack_frame(1, b"abc"))


def test_accept_other_types() -> None:
    """After the handshake a reader takes other types, also for a frame that is half there."""
    reader = FrameReader(TYPES)
    frame = pack_frame(9, b"abc")
    assert reader.feed(pack_frame(1, b"") + frame[:5]) == [(1, b"")]
    reader.accept({9: 10})
    assert reader.feed(frame[5:]) == [(9, b"abc")]
    with pytest.raises(FrameError, match="type 1 came"):
        reader.feed(pack_frame(1, b""))


# --- Engine messages --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "message",
    [
        append_of(),
        append_of(probe=False, last=True),
        append_of(epoch=(1 << 32) - 1, term=(1 << 64) - 1, sender=65_535, to=0, commit_index=0),
        append_of(entries=entries_of(1)),
        append_of(entries=entries_of(100, b"x" * 300)),
        append_of(
            entries=(*entries_of(2), Entry(1, 100, 9, entry_body(EntryKind.NOOP, 1, 9, 1, b"")))
        ),
        Beat(epoch=1, term=2, sender=3, to=4),
        Parcel(epoch=1, term=2, sender=3, to=4, data=b"", offset=9),
        Parcel(epoch=1, term=2, sender=3, to=4, data=bytes(range(256)), offset=9),
    ],
    ids=repr,
)
def test_decode_what_was_encoded(message: object) -> None:
    """A message comes back equal, field by field and type by type."""
    one = codec()
    ((number, content),) = FrameReader(one.frame_limits).feed(one.encode(message))
    came = one.decode(number, content)
    assert came == message
    for field in dataclasses.fields(message):  # type: ignore[arg-type]
        assert type(getattr(came, field.name)) is type(getattr(message, field.name))


def test_encode_layout() -> None:
    """The content is the length of the CBOR part, an ordinary CBOR array, and the entries."""
    entries = entries_of(3)
    content = content_of(codec().encode(append_of(entries=entries)))
    cbor_bytes = int.from_bytes(content[:2], "big")
    assert cbor2.loads(content[2 : 2 + cbor_bytes]) == [1, 2, 3, 4, True, 5, False]
    assert content[2 + cbor_bytes :] == pack_entries(entries)


def test_encode_bytes_layout() -> None:
    """Bytes stand behind the CBOR part as they are, without a length of their own."""
    parcel = Parcel(epoch=1, term=2, sender=3, to=4, data=b"\x00as they are\xff", offset=9)
    content = content_of(codec().encode(parcel))
    cbor_bytes = int.from_bytes(content[:2], "big")
    assert cbor2.loads(content[2 : 2 + cbor_bytes]) == [1, 2, 3, 4, 9]
    assert content[2 + cbor_bytes :] == parcel.data


def test_frame_limits() -> None:
    """Each message has its own limit, never above that of a frame."""
    assert codec().frame_limits == {
        1: LIMITS.frame_bytes_max,
        63: 64,
        80: LIMITS.frame_bytes_max,
    }
    huge = dataclasses.replace(BEAT, bytes_max=1 << 40)
    assert MessageCodec([huge], LIMITS).frame_limits == {63: LIMITS.frame_bytes_max}


def test_encode_over_limit_asserts() -> None:
    """A message that its receiver would refuse is a mistake of the engine and does not leave."""
    tight = dataclasses.replace(APPEND, bytes_max=100)
    with pytest.raises(AssertionError, match="above its limit of 100"):
        MessageCodec([tight], LIMITS).encode(append_of(entries=entries_of(3)))


@pytest.mark.parametrize("change", [{"sender": 1 << 16}, {"epoch": -1}, {"term": 1 << 64}])
def test_encode_out_of_range_fails(change: dict[str, int]) -> None:
    """A number that its field cannot hold never leaves."""
    with pytest.raises(struct.error):
        codec().encode(append_of(**change))


def _array(*scalars: object, length: int | None = None) -> bytes:
    packed = b"".join(
        scalar if isinstance(scalar, bytes) else cbor2.dumps(scalar) for scalar in scalars
    )
    packed = bytes((0x80 | (len(scalars) if length is None else length),)) + packed
    return len(packed).to_bytes(2, "big") + packed


def _wide(code: int, value: int) -> bytes:
    return bytes((code,)) + value.to_bytes(1 << (code & 3), "big")


BEAT_SCALARS = (_wide(0x1A, 1), _wide(0x1B, 2), _wide(0x19, 3), _wide(0x19, 4))


def test_decode_beat_by_hand() -> None:
    """The layout is what the module says it is: each scalar in the full width of its kind."""
    assert codec().decode(63, _array(*BEAT_SCALARS)) == Beat(epoch=1, term=2, sender=3, to=4)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x00",
        b"\x00\x00",
        _array(),
        _array(*BEAT_SCALARS[:3]),
        _array(*BEAT_SCALARS, _wide(0x19, 4)),
        _array(*BEAT_SCALARS, length=5),
        _array(*BEAT_SCALARS, length=3),
        _array(*BEAT_SCALARS) + b"\x00",
        _array(*BEAT_SCALARS)[:-1],
        b"\x00\x00" + _array(*BEAT_SCALARS)[2:],
        b"\xff\xff" + _array(*BEAT_SCALARS)[2:],
        _array(1, 2, 3, 4),
        _array(True, *BEAT_SCALARS[1:]),
        _array(*BEAT_SCALARS[:3], None),
        _array(*BEAT_SCALARS[:2], b"\x39\x00\x03", BEAT_SCALARS[3]),
        _array(*BEAT_SCALARS[:2], b"\x42ab", BEAT_SCALARS[3]),
        _array(b"\xc2" + BEAT_SCALARS[0], *BEAT_SCALARS[1:]),
        _array(*BEAT_SCALARS, length=0x1F),
    ],
    ids=lambda case: f"{len(case)}_bytes" if isinstance(case, bytes) else None,
)
def test_decode_misshapen_refused(content: bytes) -> None:
    """Any other number, kind or width of fields is refused by the name of the message."""
    with pytest.raises(SchemaError, match="a message Beat"):
        codec().decode(63, content)


@pytest.mark.parametrize("byte", [0x00, 0x01, 0xF3, 0xF6, 0xF7, 0xFF])
@pytest.mark.parametrize("which", [0, 1])
def test_decode_no_boolean_refused(byte: int, which: int) -> None:
    """A boolean is true or false and nothing else."""
    content = content_of(codec().encode(append_of(probe=True, last=True)))
    at = [at for at in range(len(content)) if content[at] == 0xF5][which]
    with pytest.raises(SchemaError, match="a message Append"):
        codec().decode(1, content[:at] + bytes((byte,)) + content[at + 1 :])


def test_decode_broken_entries_refused() -> None:
    """What follows the scalars is exactly a sequence of runs."""
    content = content_of(codec().encode(append_of(entries=entries_of(2))))
    for bad in (content[:-1], content + b"\x00"):
        with pytest.raises(SchemaError, match="run of entries"):
            codec().decode(1, bad)


def test_decode_unknown_number_refused() -> None:
    """A number that the engine does not use is refused."""
    with pytest.raises(SchemaError, match="no message of number 5"):
        codec().decode(5, b"")


@record
class Nameless:
    """Lacks the receiver."""

    epoch: int
    term: int
    sender: int


@record
class Double:
    """Has entries twice."""

    epoch: int
    term: int
    sender: int
    to: int
    entries: tuple[Entry, ...]
    more: tuple[Entry, ...]


Wide = dataclasses.make_dataclass("Wide", [*HEAD, *(f"field_{at}" for at in range(20))])


@pytest.mark.parametrize(
    ("specs", "sentence"),
    [
        ([dataclasses.replace(BEAT, number=0)], "Beat has number 0; numbers are 1 to 63"),
        ([dataclasses.replace(BEAT, number=64)], "has number 64"),
        ([PARCEL], "has number 80; numbers are 1 to 63"),
        ([BEAT, dataclasses.replace(APPEND, number=63)], "two messages of number 63"),
        ([BEAT, dataclasses.replace(BEAT, number=5)], "two specs of Beat"),
        ([dataclasses.replace(BEAT, bytes_max=0)], "has a limit of 0 bytes"),
        ([dataclasses.replace(BEAT, record=int)], "int is not a record"),
        ([dataclasses.replace(BEAT, record=Append)], "but its spec lists"),
        (
            [dataclasses.replace(BEAT, fields=dict(reversed(HEAD.items())))],
            "but its spec lists",
        ),
        (
            [
                MessageSpec(
                    number=1,
                    record=Nameless,
                    fields={name: HEAD[name] for name in ("epoch", "term", "sender")},
                    bytes_max=9,
                )
            ],
            r"lacks \['to'\]",
        ),
        (
            [
                MessageSpec(
                    number=1,
                    record=Double,
                    fields={**HEAD, "entries": FieldKind.ENTRIES, "more": FieldKind.ENTRIES},
                    bytes_max=None,
                )
            ],
            "more than one field of entries",
        ),
        (
            [
                MessageSpec(
                    number=1,
                    record=Double,
                    fields={**HEAD, "entries": FieldKind.ENTRIES, "more": FieldKind.BYTES},
                    bytes_max=None,
                )
            ],
            "more than one field of entries, ranges or bytes",
        ),
        (
            [
                MessageSpec(
                    number=1,
                    record=Wide,
                    fields={**HEAD, **{f"field_{at}": FieldKind.U64 for at in range(20)}},
                    bytes_max=None,
                )
            ],
            "has 24 scalar fields; 23 fit",
        ),
    ],
)
def test_codec_wrong_spec_refused(specs: list[MessageSpec], sentence: str) -> None:
    """A spec that contradicts its record or the wire is refused before anything is sent."""
    with pytest.raises(PluginError, match=sentence):
        MessageCodec(specs, LIMITS)


@pytest.mark.parametrize("number", [63, 64, 79, 96])
def test_codec_wrong_own_number_refused(number: int) -> None:
    """replog's own messages between nodes have the numbers 80 to 95 and no others."""
    with pytest.raises(PluginError, match=f"has number {number}; numbers are 80 to 95"):
        MessageCodec([], LIMITS, [dataclasses.replace(PARCEL, number=number)])
