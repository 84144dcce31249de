"""replog's own frames: the records of the handshake, requests and replies, there and back."""

from __future__ import annotations

import dataclasses

import cbor2
import pytest

from replog.errors import CallerError, FrameError, SchemaError
from replog.frames import (
    HANDSHAKE_LIMITS,
    SENTENCE_CHARS_MAX,
    ClientHello,
    FrameCodec,
    FrameType,
    Outcome,
    OwnFrame,
    PeerHello,
    PeerWelcome,
    Refusal,
    Reply,
    Request,
    ServerHello,
    refusal_of_first,
)
from replog.limits import Limits
from replog.wire import HEADER_BYTES, FrameReader, pack_frame

LIMITS = Limits()
CODEC = FrameCodec(LIMITS)

PEER_HELLO = PeerHello(
    version_min=1,
    version_max=2,
    cluster_id="berlin",
    sender=1,
    incarnation=(1 << 63) - 1,
    receiver=65_535,
    engine="some",
    epoch=3,
    birth=(1 << 63) - 1,
    met=((2, 5), (3, 1)),
)
REPLY = Reply(
    request_id=9,
    outcome=Outcome.DONE,
    index=77,
    value=cbor2.dumps([1, 2]),
    code="",
    message="",
    leader_id=0,
    leader_address="",
)
FRAMES: dict[FrameType, OwnFrame] = {
    FrameType.PEER_HELLO: PEER_HELLO,
    FrameType.PEER_WELCOME: PeerWelcome(
        version=1, sender=2, incarnation=(1 << 64) - 1, birth=1, met=((1, 7),)
    ),
    FrameType.REFUSAL: Refusal(reason="node 3 is not a member: add it first"),
    FrameType.CLIENT_HELLO: ClientHello(version_min=1, version_max=1, cluster_id=""),
    FrameType.SERVER_HELLO: ServerHello(
        version=1,
        cluster_id="berlin",
        node_id=2,
        leader_id=0,
        members=((1, "a:1"), (2, "b:2")),
    ),
    FrameType.REQUEST: Request(request_id=(1 << 64) - 1, verb="call", body=b"\x00" * 300),
    FrameType.REPLY: REPLY,
}


def array_of(frame: OwnFrame) -> list[object]:
    """The fields of a frame as CBOR holds them."""
    content: list[object] = cbor2.loads(CODEC.encode(frame)[HEADER_BYTES:])
    return content


@pytest.mark.parametrize(
    ("frame_type", "frame"),
    [
        *FRAMES.items(),
        (FrameType.PEER_HELLO, dataclasses.replace(PEER_HELLO, birth=1, met=())),
        (FrameType.SERVER_HELLO, ServerHello(1, "", 1, 1, ())),
        (FrameType.REQUEST, Request(0, "", b"")),
        *(
            (
                FrameType.REPLY,
                dataclasses.replace(
                    REPLY,
                    outcome=outcome,
                    code="NotLeader",
                    message="node 2 does not lead",
                    leader_id=3,
                    leader_address="10.0.0.3:7100",
                ),
            )
            for outcome in Outcome
        ),
    ],
)
def test_decode_what_was_encoded(frame_type: FrameType, frame: OwnFrame) -> None:
    """Every frame comes back equal, field by field and type by type."""
    ((number, content),) = FrameReader(CODEC.frame_limits).feed(CODEC.encode(frame))
    came = CODEC.decode(number, content)
    assert number == frame_type
    assert came == frame
    for field in dataclasses.fields(frame):
        assert type(getattr(came, field.name)) is type(getattr(frame, field.name))


def test_every_type_shown() -> None:
    """The frames of these tests are all that there are, and each has a limit."""
    assert {*FRAMES, FrameType.KEEPALIVE} == set(FrameType) == set(CODEC.frame_limits)
    assert set(HANDSHAKE_LIMITS) == set(FRAMES) - {FrameType.REQUEST, FrameType.REPLY}
    assert all(CODEC.frame_limits[number] == most for number, most in HANDSHAKE_LIMITS.items())
    assert CODEC.frame_limits[FrameType.REQUEST] == LIMITS.frame_bytes_max


def test_keepalive_empty() -> None:
    """A keepalive has no content, so none may come with it and there is nothing to decode."""
    reader = FrameReader(CODEC.limits_of(FrameType.KEEPALIVE))
    assert reader.feed(pack_frame(FrameType.KEEPALIVE, b"")) == [(FrameType.KEEPALIVE, b"")]
    with pytest.raises(FrameError, match="above its limit of 0"):
        reader.feed(pack_frame(FrameType.KEEPALIVE, b"a"))
    with pytest.raises(SchemaError, match="no record"):
        CODEC.decode(FrameType.KEEPALIVE, b"")


def test_limits_of_a_port() -> None:
    """A port takes the limits of the frames that it expects, and no other."""
    assert CODEC.limits_of(FrameType.REPLY) == {70: LIMITS.frame_bytes_max}
    assert CODEC.limits_of() == {}


STRANGERS: list[object] = [
    None, True, 0, -1, 1 << 32, 1.5, "text", b"bytes", [], [1], ["a"], [[1, "a"]], {},
]  # fmt: skip


@pytest.mark.parametrize("frame_type", FRAMES)
def test_decode_stranger_in_any_field(frame_type: FrameType) -> None:
    """A value of another kind in any field is refused, or is the value of a legal record."""
    frame = FRAMES[frame_type]
    array = array_of(frame)
    names = [field.name for field in dataclasses.fields(frame)]
    refused = 0
    for at, name in enumerate(names):
        for stranger in STRANGERS:
            content = cbor2.dumps([*array[:at], stranger, *array[at + 1 :]])
            try:
                came = CODEC.decode(frame_type, content)
            except SchemaError:
                refused += 1
                continue
            assert type(getattr(came, name)) is type(getattr(frame, name))
    assert refused >= len(names) * (len(STRANGERS) - 4)


@pytest.mark.parametrize("frame_type", FRAMES)
def test_decode_other_shape_refused(frame_type: FrameType) -> None:
    """One field more or less, a map, or bytes behind the array are refused."""
    array = array_of(FRAMES[frame_type])
    for other in (array[:-1], [*array, None], [array], dict(enumerate(array)), None):
        with pytest.raises(SchemaError):
            CODEC.decode(frame_type, cbor2.dumps(other))
    good = cbor2.dumps(array)
    for bad in (good + b"\x00", good[:-1], b"\x9f" + good[1:] + b"\xff", b"\xc0" + good, b""):
        with pytest.raises(SchemaError):
            CODEC.decode(frame_type, bad)


@pytest.mark.parametrize(
    ("frame_type", "at", "value"),
    [
        (FrameType.PEER_HELLO, 0, 1 << 16),
        (FrameType.PEER_HELLO, 3, 0),
        (FrameType.PEER_HELLO, 3, 65_536),
        (FrameType.PEER_HELLO, 5, 0),
        (FrameType.PEER_HELLO, 7, 1 << 32),
        (FrameType.PEER_HELLO, 8, 0),
        (FrameType.PEER_HELLO, 8, 1 << 63),
        (FrameType.PEER_HELLO, 8, True),
        (FrameType.PEER_HELLO, 9, [1]),
        (FrameType.PEER_HELLO, 9, [[1]]),
        (FrameType.PEER_HELLO, 9, [[0, 1]]),
        (FrameType.PEER_HELLO, 9, [[65_536, 1]]),
        (FrameType.PEER_HELLO, 9, [[1, 0]]),
        (FrameType.PEER_HELLO, 9, [[1, 1 << 63]]),
        (FrameType.PEER_HELLO, 9, [[1, True]]),
        (FrameType.PEER_HELLO, 9, [[2, 1], [1, 1]]),
        (FrameType.PEER_HELLO, 9, [[1, 1], [1, 2]]),
        (FrameType.PEER_WELCOME, 2, -1),
        (FrameType.SERVER_HELLO, 2, 0),
        (FrameType.SERVER_HELLO, 3, 65_536),
        (FrameType.SERVER_HELLO, 4, [[0, "a"]]),
        (FrameType.SERVER_HELLO, 4, [[True, "a"]]),
        (FrameType.SERVER_HELLO, 4, [[1, b"a"]]),
        (FrameType.SERVER_HELLO, 4, [[1, "a", 2]]),
        (FrameType.SERVER_HELLO, 4, [[1]]),
        (FrameType.SERVER_HELLO, 4, ["1a"]),
        (FrameType.REQUEST, 0, -1),
        (FrameType.REQUEST, 0, False),
        (FrameType.REQUEST, 2, "text"),
        (FrameType.REPLY, 1, 4),
        (FrameType.REPLY, 1, -1),
        (FrameType.REPLY, 3, None),
        (FrameType.REPLY, 6, 65_536),
    ],
)
def test_decode_out_of_range_refused(frame_type: FrameType, at: int, value: object) -> None:
    """A number outside its range, or a list of anything else, is refused."""
    array = array_of(FRAMES[frame_type])
    array[at] = value
    with pytest.raises(SchemaError, match=type(FRAMES[frame_type]).__name__):
        CODEC.decode(frame_type, cbor2.dumps(array))


def test_decode_unknown_type_refused() -> None:
    """A type that replog does not have is refused."""
    with pytest.raises(SchemaError, match="type 99 came, which holds no record"):
        CODEC.decode(99, b"\x80")


def test_encode_long_sentence_cut() -> None:
    """A sentence of any length travels, cut, and always fits into its frame."""
    sentence = "\N{GRINNING FACE}" * 100_000
    for frame in (Refusal(sentence), dataclasses.replace(REPLY, message=sentence)):
        ((number, content),) = FrameReader(CODEC.frame_limits).feed(CODEC.encode(frame))
        came = CODEC.decode(number, content)
        assert isinstance(came, Refusal | Reply)
        cut = came.reason if isinstance(came, Refusal) else came.message
        assert cut == sentence[:SENTENCE_CHARS_MAX]


def test_encode_surrogate_in_sentence() -> None:
    """A sentence that quotes a name which is not Unicode still travels."""
    frame = CODEC.encode(Refusal("cannot open \udcff.log"))
    came = CODEC.decode(FrameType.REFUSAL, frame[HEADER_BYTES:])
    assert came == Refusal("cannot open ?.log")


@pytest.mark.parametrize(
    "frame",
    [
        Request(1, "call", bytes(LIMITS.frame_bytes_max)),
        dataclasses.replace(REPLY, value=bytes(LIMITS.frame_bytes_max)),
        dataclasses.replace(PEER_HELLO, cluster_id="x" * 20_000),
    ],
    ids=lambda frame: type(frame).__name__,
)
def test_encode_too_large_refused(frame: OwnFrame) -> None:
    """A frame that its receiver would refuse does not leave; the caller gets a sentence."""
    with pytest.raises(CallerError, match="is above its limit of"):
        CODEC.encode(frame)


def test_frames_without_a_record() -> None:
    """A request, and a reply to what is done, are the same bytes without a record, and have the
    same limit."""
    request, reply = Request(300, "call", b"body"), Reply(7, Outcome.DONE, 9, b"v", "", "", 0, "")
    assert CODEC.encode_request(300, "call", b"body") == CODEC.encode(request)
    assert CODEC.encode_done(7, 9, b"v") == CODEC.encode(reply)
    too_long = bytes(LIMITS.frame_bytes_max)
    with pytest.raises(CallerError, match=r"a request of .* is above its limit of"):
        CODEC.encode_request(1, "call", too_long)
    with pytest.raises(CallerError, match=r"a reply of .* is above its limit of"):
        CODEC.encode_done(1, 1, too_long)


@pytest.mark.parametrize(
    ("expected", "came", "sentence"),
    [
        (FrameType.PEER_HELLO, FrameType.PEER_HELLO, None),
        (FrameType.CLIENT_HELLO, FrameType.CLIENT_HELLO, None),
        (FrameType.PEER_HELLO, FrameType.CLIENT_HELLO, "for the nodes of the cluster"),
        (FrameType.CLIENT_HELLO, FrameType.PEER_HELLO, "this port is for clients"),
        (FrameType.PEER_HELLO, FrameType.REFUSAL, "begins with the hello of another node"),
        (FrameType.CLIENT_HELLO, 3, "begins with the hello of a client, not with type 3"),
    ],
)
def test_first_frame_refusal(expected: FrameType, came: int, sentence: str | None) -> None:
    """Whoever knocks at the wrong port is told which one is right."""
    refusal = refusal_of_first(expected, came)
    if sentence is None:
        assert refusal is None
    else:
        assert refusal is not None
        assert sentence in refusal
