"""The client's side of a connection, and the order in which it looks for the leader."""

from __future__ import annotations

import cbor2
import pytest

from replog.client_core import (
    HANDLERS,
    REQUEST_OVERHEAD_BYTES,
    Answered,
    Broken,
    ClientCore,
    ConnectionState,
    Welcomed,
    failure_of,
)
from replog.client_search import LeaderSearch
from replog.errors import (
    BadCommand,
    CommandFailed,
    CommandTooLarge,
    DiskFull,
    DumpUnavailable,
    EntryReplaced,
    HandshakeError,
    NotDone,
    NotLeader,
    OutcomeUnknown,
    Overloaded,
    SchemaError,
)
from replog.frames import (
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
)
from replog.limits import Limits
from replog.wire import FrameReader, pack_frame

CODEC = FrameCodec(Limits())
HELLO = ServerHello(
    version=1, cluster_id="c", node_id=1, leader_id=1, members=((1, "a:1"), (2, "b:2"))
)
KEEPALIVE = pack_frame(FrameType.KEEPALIVE, b"")
FRAMES: dict[FrameType, bytes] = {
    FrameType.KEEPALIVE: KEEPALIVE,
    **{
        frame_type: CODEC.encode(frame)
        for frame_type, frame in (
            (FrameType.PEER_HELLO, PeerHello(1, 1, "c", 1, 1, 2, "e", 1, 1, ())),
            (FrameType.PEER_WELCOME, PeerWelcome(1, 1, 1, 1, ())),
            (FrameType.REFUSAL, Refusal("go away")),
            (FrameType.CLIENT_HELLO, ClientHello(1, 1, "")),
            (FrameType.SERVER_HELLO, HELLO),
            (FrameType.REQUEST, Request(1, "propose", b"")),
            (FrameType.REPLY, Reply(1, Outcome.DONE, 1, b"\xf6", "", "", 0, "")),
        )
    },
}


def core_in(state: ConnectionState, requests_max: int = 8) -> ClientCore[str]:
    """A core that has come as far as ``state``."""
    core = ClientCore[str](CODEC, requests_max)
    core.hello()
    if state is not ConnectionState.HELLO:
        assert core.receive(CODEC.encode(HELLO)) == [Welcomed(HELLO)]
    if state is ConnectionState.CLOSED:
        list(core.end(0))
    return core


def ready_core(requests_max: int = 8) -> ClientCore[str]:
    """A core that takes requests."""
    return core_in(ConnectionState.READY, requests_max)


def reply_to(request_id: int, value: bytes = b"\xf6", outcome: Outcome = Outcome.DONE) -> bytes:
    """The frame of a reply."""
    return CODEC.encode(Reply(request_id, outcome, 5, value, "", "", 0, ""))


def decoded(frame: bytes) -> OwnFrame:
    """The record in a whole frame."""
    ((frame_type, content),) = FrameReader(dict.fromkeys(range(256), 1 << 24)).feed(frame)
    return CODEC.decode(frame_type, content)


# --- The state table ----------------------------------------------------------------------------


def test_table_is_total() -> None:
    """Every state says what every type of frame does in it."""
    assert set(HANDLERS) == set(ConnectionState)
    for row in HANDLERS.values():
        assert set(row) == set(FrameType)


EXPECTED = {
    ConnectionState.HELLO: {FrameType.SERVER_HELLO, FrameType.REFUSAL},
    ConnectionState.READY: {FrameType.REPLY, FrameType.REFUSAL, FrameType.KEEPALIVE},
    ConnectionState.CLOSED: set(FrameType),
}


@pytest.mark.parametrize("state", ConnectionState)
@pytest.mark.parametrize("frame_type", FrameType)
def test_receive_frame_out_of_place(state: ConnectionState, frame_type: FrameType) -> None:
    """A frame that the state does not expect breaks the connection, and no other does so."""
    core = core_in(state)
    if state is ConnectionState.READY:
        core.request("propose", b"", "w")
    events = core.receive(FRAMES[frame_type])
    broken = [event.failure for event in events if isinstance(event, Broken)]
    if frame_type in EXPECTED[state]:
        assert not broken or [str(failure) for failure in broken] == ["go away"]
    else:
        assert len(broken) == 1
        assert core.state is ConnectionState.CLOSED


def test_hello_names_versions_and_cluster() -> None:
    """The first bytes say which versions the client speaks and which cluster it wants."""
    assert decoded(ClientCore[str](CODEC, 1, "c").hello()) == ClientHello(1, 1, "c")


@pytest.mark.parametrize(
    ("hello", "sentence"),
    [
        (ServerHello(2, "c", 1, 1, ()), "version 2"),
        (ServerHello(1, "other", 1, 1, ()), "cluster 'other', not 'c'"),
    ],
)
def test_receive_hello_that_does_not_fit(hello: ServerHello, sentence: str) -> None:
    """A node of another version or cluster is not talked to."""
    core = ClientCore[str](CODEC, 1, "c")
    core.hello()
    (event,) = core.receive(CODEC.encode(hello))
    assert isinstance(event, Broken)
    assert isinstance(event.failure, HandshakeError)
    assert sentence in str(event.failure)


def test_receive_refusal_gives_its_reason() -> None:
    """The reason of a refusal reaches the caller as it is, and what follows it is not looked at."""
    core = core_in(ConnectionState.HELLO)
    (event,) = core.receive(CODEC.encode(Refusal("wrong door")) + KEEPALIVE)
    assert isinstance(event, Broken)
    assert str(event.failure) == "wrong door"
    assert core.receive(CODEC.encode(HELLO)) == []


def test_receive_from_a_stranger() -> None:
    """What answers instead of a node is called no client port of a node."""
    core = core_in(ConnectionState.HELLO)
    (event,) = core.receive(b"HTTP/1.1 400 Bad Request\r\n")
    assert isinstance(event, Broken)
    assert "no client port of a node" in str(event.failure)


# --- Requests and replies -----------------------------------------------------------------------


def test_replies_in_any_order() -> None:
    """Each reply goes to whoever waits for it, whatever the order and the cut of the bytes."""
    core = ready_core()
    frames = [core.request("propose", bytes((n,)), f"w{n}") for n in range(3)]
    assert [decoded(frame) for _, frame in frames] == [
        Request(n + 1, "propose", bytes((n,))) for n in range(3)
    ]
    stream = b"".join(reply_to(n, cbor2.dumps(n)) for n in (3, 1, 2))
    events = [event for at in range(len(stream)) for event in core.receive(stream[at : at + 1])]
    assert [
        (event.waiter, event.value, event.reply.index)
        for event in events
        if isinstance(event, Answered)
    ] == [("w2", 3, 5), ("w0", 1, 5), ("w1", 2, 5)]
    assert core.open_count == 0


def test_reply_to_what_was_never_asked() -> None:
    """A reply to an id that was not used breaks the connection."""
    core = ready_core()
    core.request("propose", b"", "w")
    (event,) = core.receive(reply_to(2))
    assert isinstance(event, Broken)
    assert "request 2" in str(event.failure)
    assert list(core.end(0)) == [("w", True)]


def test_reply_twice() -> None:
    """A second reply breaks the connection, but the first one counts."""
    core = ready_core()
    core.request("propose", b"", "w")
    first, second = core.receive(reply_to(1) + reply_to(1))
    assert isinstance(first, Answered)
    assert isinstance(second, Broken)
    assert list(core.end(0)) == []


def test_reply_with_a_result_that_is_no_cbor() -> None:
    """A result that cannot be decoded leaves its request unanswered."""
    core = ready_core()
    core.request("propose", b"", "w")
    (event,) = core.receive(reply_to(1, b"\xff"))
    assert isinstance(event, Broken)
    assert isinstance(event.failure, SchemaError)
    assert list(core.end(0)) == [("w", True)]


def test_forgotten_request_keeps_its_place() -> None:
    """A late reply is ignored, and until it comes the request counts as in flight."""
    core = ready_core(requests_max=2)
    core.request("propose", b"", "w1")
    core.request("propose", b"", "w2")
    core.forget(1)
    assert core.room == 0
    assert core.receive(reply_to(1)) == []
    assert core.room == 1
    (event,) = core.receive(reply_to(1))
    assert isinstance(event, Broken), "the second late reply is one too many"


def test_receive_keepalives_asks_for_nothing() -> None:
    """However many keepalives come, before or after an own one, none is to be answered."""
    core = ready_core()
    assert core.receive(KEEPALIVE * 3) == []
    assert core.keepalive() == KEEPALIVE
    assert core.receive(KEEPALIVE * 3) == []
    assert core.state is ConnectionState.READY


def test_answered_count_takes_in_late_replies() -> None:
    """A reply counts as one although nobody waits for it, and a request until its reply came."""
    core = ready_core()
    core.request("propose", b"", "w1")
    core.request("propose", b"", "w2")
    core.forget(1)
    assert (core.answered_count, core.unanswered_count, core.open_count) == (0, 2, 1)
    core.receive(reply_to(1))
    assert (core.answered_count, core.unanswered_count) == (1, 1)
    core.receive(reply_to(2))
    assert (core.answered_count, core.unanswered_count) == (2, 0)


def test_overhead_bound_holds() -> None:
    """A request adds no more to its body than the bound says."""
    core = ready_core()
    for size in (0, 23, 24, 255, 256, 65_536):
        core._last_request_id = (1 << 40) + size
        _, frame = core.request("propose", bytes(size), "w")
        assert len(frame) <= size + REQUEST_OVERHEAD_BYTES


def test_end_tells_what_cannot_have_arrived() -> None:
    """A request of which the last byte stayed behind did not arrive; any other may have."""
    sizes = []
    for unsent_bytes in range(300):
        core = ready_core()
        frames = [core.request("propose", b"x" * 20, f"w{n}")[1] for n in range(3)]
        last = len(frames[2])
        sizes = [len(KEEPALIVE), last, len(frames[1]), len(frames[0])]
        core.keepalive()
        behind = [unsent_bytes > sum(sizes[:count]) for count in (3, 2, 1)]
        assert list(core.end(unsent_bytes)) == [
            (f"w{n}", not unsent) for n, unsent in enumerate(behind)
        ]
    assert sum(sizes) < 300, "every boundary was crossed"


@pytest.mark.parametrize(
    ("outcome", "code", "made"),
    [
        (Outcome.FAILED, "KvError", CommandFailed),
        (Outcome.UNKNOWN, "OutcomeUnknown", OutcomeUnknown),
        (Outcome.UNKNOWN, "NotLeader", OutcomeUnknown),
        (Outcome.NOT_DONE, "NotLeader", NotLeader),
        (Outcome.NOT_DONE, "Overloaded", Overloaded),
        (Outcome.NOT_DONE, "DiskFull", DiskFull),
        (Outcome.NOT_DONE, "CommandTooLarge", CommandTooLarge),
        (Outcome.NOT_DONE, "BadCommand", BadCommand),
        (Outcome.NOT_DONE, "EntryReplaced", EntryReplaced),
        (Outcome.NOT_DONE, "DumpUnavailable", DumpUnavailable),
        (Outcome.NOT_DONE, "OfTheFuture", NotDone),
        (Outcome.NOT_DONE, "OutcomeUnknown", NotDone),
    ],
)
def test_failure_of_each_code(outcome: Outcome, code: str, made: type[Exception]) -> None:
    """The outcome decides the family of an error, the code only its class within it."""
    failure = failure_of(Reply(1, outcome, 0, b"", code, "a sentence", 2, "b:2"), 1, 7)
    assert type(failure) is made
    if made is not NotLeader:
        assert str(failure) == "a sentence"
    if isinstance(failure, CommandFailed):
        assert failure.name == code


# --- The search ---------------------------------------------------------------------------------


def hello_of(node_id: int, leader_id: int) -> ServerHello:
    """The hello of a node that takes ``leader_id`` for the leader."""
    return ServerHello(1, "c", node_id, leader_id, ((1, "a:1"), (2, "b:2"), (3, "c:3")))


def test_search_follows_the_hint() -> None:
    """The leader that a node names is tried next, also when its address was not given."""
    search = LeaderSearch(["a:1"], {}, "")
    assert search.next_address() == "a:1"
    assert not search.note_hello("a:1", hello_of(1, 3))
    assert search.next_address() == "c:3"
    assert search.note_hello("c:3", hello_of(3, 3))
    assert search.leader_id == 3
    assert search.cluster_id == "c"


def test_search_tries_each_address_once_per_round() -> None:
    """Two nodes that name each other do not keep the search going for ever."""
    search = LeaderSearch(["a:1"], {}, "")
    assert not search.note_hello("a:1", hello_of(1, 2))
    assert not search.note_hello("b:2", hello_of(2, 1))
    assert search.next_address() == "c:3"
    search.note_failed("c:3", "connection refused")
    assert search.next_address() is None
    assert not search.is_hopeless
    search.begin_round()
    assert search.next_address() == "a:1", "the latest hint leads the next round"


def test_search_forgets_a_hint_that_fails() -> None:
    """An address that does not answer is no hint any more."""
    search = LeaderSearch(["a:1", "b:2"], {}, "")
    search.note_hint(2, "b:2")
    search.note_failed("b:2", "connection refused")
    search.begin_round()
    assert search.next_address() == "a:1"
    assert search.reasons() == "b:2: connection refused"


def test_search_is_hopeless_when_all_refuse() -> None:
    """Only when every address refused is there no point in another round."""
    search = LeaderSearch(["a:1", "b:2"], {}, "")
    search.note_failed("a:1", "wrong port", is_refusal=True)
    search.note_failed("b:2", "connection refused")
    assert not search.is_hopeless
    search.note_failed("b:2", "wrong port", is_refusal=True)
    assert search.is_hopeless


def test_search_takes_a_hint_by_id() -> None:
    """A hint without an address means the member of that id."""
    search = LeaderSearch(["a:1"], {1: "a:1", 2: "b:2"}, "")
    search.note_hint(2, "")
    assert search.next_address() == "b:2"
