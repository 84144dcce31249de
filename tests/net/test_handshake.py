"""Between nodes nothing passes before both sides know each other: one test per check.

Node 1 is a real transport on loopback; its peer is scripted, frame by frame.  Every stranger here
differs from a correct peer in one thing alone, so that each check is seen by itself.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
import structlog
import trio
from structlog.testing import capture_logs

from replog import plugins
from replog.address import Address
from replog.errors import StorageFull
from replog.formation import NOBODY_MET, Formation, MetRecord
from replog.frames import (
    FrameCodec,
    FrameType,
    OwnFrame,
    PeerHello,
    PeerWelcome,
    Refusal,
    ServerHello,
)
from replog.limits import Limits
from replog.transport.meetings import Meetings
from replog.transport.tcp import PROTOCOL_VERSION, Member, TcpTransport
from replog.types import Epoch, Voter
from replog.wire import FrameReader, MessageCodec
from replog_raft.messages import TimeoutNow

from running import until

LIMITS = Limits()
FRAMES = FrameCodec(LIMITS)
MESSAGES = MessageCodec(plugins.find_engine("raft").messages, LIMITS)
EPOCH = Epoch(
    number=1, engine="raft", voters=(Voter(1, 71), Voter(2, 72), Voter(3, 73)), start_index=1
)
NODE = Member("demo", 1, 71, EPOCH, EPOCH.voters)
BIRTH = 1001
"""Of node 1's directory."""
HELLO = PeerHello(
    version_min=PROTOCOL_VERSION,
    version_max=PROTOCOL_VERSION,
    cluster_id="demo",
    sender=2,
    incarnation=72,
    receiver=1,
    engine="raft",
    epoch=1,
    birth=2002,
    met=(),
)
WELCOME = PeerWelcome(
    PROTOCOL_VERSION, sender=2, incarnation=72, birth=2002, met=((1, BIRTH), (3, 3003))
)
WELCOMED = PeerWelcome(PROTOCOL_VERSION, sender=1, incarnation=71, birth=BIRTH, met=((2, 2002),))
"""How node 1 answers a correct peer that it has not met before."""


def message(sender: int = 2, to: int = 1, term: int = 1) -> TimeoutNow:
    return TimeoutNow(epoch=1, term=term, sender=sender, to=to)


class Memory:
    """Whom node 1 has met: its formation, and the disk that remembers it."""

    def __init__(self, recorded: MetRecord = NOBODY_MET) -> None:
        self.formation = Formation(1, BIRTH, (1, 2, 3), recorded)
        self.saved: list[MetRecord] = []
        self.failure: Exception | None = None
        self.news_count = 0

    def meetings(self) -> Meetings:
        """What a transport asks."""
        return Meetings(self.formation, self._save, self._note)

    def _save(self, recorded: MetRecord) -> None:
        if self.failure is not None:
            raise self.failure
        self.saved.append(recorded)

    def _note(self) -> None:
        self.news_count += 1


class Peer:
    """The scripted end of one connection."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._reader = FrameReader({**FRAMES.frame_limits, **MESSAGES.frame_limits})
        self._came: list[tuple[int, bytes]] = []

    async def send(self, frame: OwnFrame | TimeoutNow) -> None:
        if isinstance(frame, TimeoutNow):
            await self._stream.send_all(MESSAGES.encode(frame))
        else:
            await self._stream.send_all(FRAMES.encode(frame))

    async def receive(self) -> object:
        """The next frame but keepalives; ``None``: the connection was closed."""
        while True:
            for at, (frame_type, content) in enumerate(self._came):
                if frame_type != FrameType.KEEPALIVE:
                    del self._came[: at + 1]
                    codec = MESSAGES if frame_type in MESSAGES.frame_limits else FRAMES
                    return codec.decode(frame_type, content)
            try:
                data = await self._stream.receive_some()
            except trio.BrokenResourceError:
                return None
            if not data:
                return None
            self._came = list(self._reader.feed(data))

    async def refusal(self) -> str:
        """The sentence with which the other side ends the connection, now."""
        refusal = await self.receive()
        assert isinstance(refusal, Refusal), f"expected a refusal, not {refusal}"
        assert await self.receive() is None, "nothing follows a refusal"
        return refusal.reason


# Called: what the node demands of a caller


class Called:
    """Node 1, which is called; its own calls go nowhere."""

    def __init__(self) -> None:
        self.heard: list[object] = []
        self.memory = Memory()
        self.transport = TcpTransport(
            NODE,
            Address("127.0.0.1", 0),
            {1: Address("127.0.0.1", 1)},
            MESSAGES,
            LIMITS,
            self.heard.append,
            lambda: None,
            self.memory.meetings(),
            structlog.get_logger(),
        )

    @asynccontextmanager
    async def by(self, hello: PeerHello = HELLO) -> AsyncIterator[Peer]:
        """A peer that has called and said its hello."""
        (listener,) = self.transport._listeners
        stream = await trio.open_tcp_stream(*listener.socket.getsockname())
        async with stream:
            peer = Peer(stream)
            await peer.send(hello)
            yield peer


@pytest.fixture
async def called() -> AsyncIterator[Called]:
    node = Called()
    with trio.fail_after(10), capture_logs():
        await node.transport.open()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(node.transport.run)
            yield node
            nursery.cancel_scope.cancel()


async def test_correct_caller_is_welcome(called: Called) -> None:
    """A correct peer is welcomed by the node's own id and incarnation, and its messages pass."""
    async with called.by() as peer:
        assert await peer.receive() == WELCOMED
        await peer.send(message())
        await until(lambda: called.heard == [message()])


async def test_caller_of_more_versions_is_welcome(called: Called) -> None:
    """A caller that speaks other versions as well is welcomed in ours."""
    hello = replace(HELLO, version_min=0, version_max=PROTOCOL_VERSION + 3)
    async with called.by(hello) as peer:
        assert await peer.receive() == WELCOMED


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        pytest.param(
            {"version_min": 2, "version_max": 4},
            "node 1 speaks version 1 of the peer protocol, not 2 to 4",
            id="later_versions",
        ),
        pytest.param(
            {"version_min": 0, "version_max": 0},
            "node 1 speaks version 1 of the peer protocol, not 0 to 0",
            id="earlier_versions",
        ),
        pytest.param(
            {"cluster_id": "other"},
            "this is node 1 of cluster 'demo', not of 'other'",
            id="cluster",
        ),
        pytest.param({"receiver": 3}, "this is node 1, not node 3", id="receiver"),
        pytest.param({"sender": 9}, "node 9 is no member of cluster 'demo'", id="stranger"),
        pytest.param(
            {"incarnation": 99},
            "node 2 has incarnation 99, and node 1 knows it as 72",
            id="incarnation",
        ),
        pytest.param(
            {"sender": 3},
            "node 3 has incarnation 72, and node 1 knows it as 73",
            id="incarnation_of_another",
        ),
        pytest.param(
            {"sender": 1, "incarnation": 71},
            "node 1 is called by a node of the same id",
            id="itself",
        ),
        pytest.param(
            {"met": ((1, BIRTH + 1),)},
            "node 1's directory was made anew: it has forgotten what it voted",
            id="knows_another_birth",
        ),
        pytest.param(
            {"engine": "other"}, "this cluster runs the engine 'raft', not 'other'", id="engine"
        ),
    ],
)
async def test_caller_is_refused(called: Called, changed: dict[str, object], sentence: str) -> None:
    """A caller that is wrong in one thing is told that thing, and the connection ends."""
    async with called.by(replace(HELLO, **changed)) as peer:  # type: ignore[arg-type]
        assert sentence in await peer.refusal()
    assert called.heard == []


async def test_refused_caller_takes_no_place(called: Called) -> None:
    """A stranger under a peer's id does not end the connection of the peer itself."""
    async with called.by() as peer:
        assert isinstance(await peer.receive(), PeerWelcome)
        async with called.by(replace(HELLO, incarnation=99)) as stranger:
            await stranger.refusal()
        await peer.send(message())
        await until(lambda: called.heard == [message()])


async def test_meeting_durable_before_the_welcome(called: Called) -> None:
    """The welcome tells the caller that it is remembered when that is on disk, and not before."""
    async with called.by() as peer:
        welcome = await peer.receive()
        assert called.memory.saved == [MetRecord(met=((2, 2002),))]
        assert welcome == WELCOMED
        assert called.memory.news_count == 1


async def test_meeting_without_room_is_no_meeting(called: Called) -> None:
    """Where there is no room to remember a caller it is told so and is not welcome, until there
    is."""
    called.memory.failure = StorageFull("there is no room on the disk; make some")
    async with called.by() as peer:
        assert "cannot remember whom it meets: there is no room" in await peer.refusal()
    called.memory.failure = None
    async with called.by() as peer:
        assert await peer.receive() == WELCOMED


async def test_same_birth_again_is_no_news(called: Called) -> None:
    """A peer that calls again is welcome again, and nothing is written."""
    for _ in range(2):
        async with called.by() as peer:
            assert await peer.receive() == WELCOMED
    assert len(called.memory.saved) == 1


async def test_second_birth_is_refused(called: Called) -> None:
    """A caller that was met under another birth is told what that means and what to do."""
    async with called.by() as peer:
        assert isinstance(await peer.receive(), PeerWelcome)
    async with called.by(replace(HELLO, birth=2003)) as anew:
        sentence = await anew.refusal()
    assert "node 2's directory was made anew: it has forgotten what it voted" in sentence
    assert "`replog rejoin`" in sentence
    assert called.memory.saved == [MetRecord(met=((2, 2002),))]


async def test_caller_says_that_it_knows_us(called: Called) -> None:
    """A hello counts as much as a welcome: who remembers us in it is one less to wait for."""
    async with called.by(replace(HELLO, met=((1, BIRTH),))) as peer:
        assert isinstance(await peer.receive(), PeerWelcome)
    assert called.memory.formation.waits_for == (3,)


@pytest.mark.parametrize(
    "foreign",
    [
        pytest.param(message(sender=3), id="sender"),
        pytest.param(message(sender=1), id="sender_is_the_node"),
        pytest.param(message(to=3), id="to"),
    ],
)
async def test_message_of_other_ends_is_refused(called: Called, foreign: TimeoutNow) -> None:
    """A peer that sends a message of other ends than its own is cut off before it is heard."""
    async with called.by() as peer:
        assert isinstance(await peer.receive(), PeerWelcome)
        await peer.send(message())
        await peer.send(foreign)
        assert await peer.refusal() == "node 2 sent a message that is not its own"
    assert called.heard == [message()]


# Calling: what the node demands of whom it called


class Calling:
    """Node 1, which calls node 2: a scripted one, that answers every hello alike."""

    def __init__(self, port: int, logged: list[dict[str, object]]) -> None:
        self.logged = logged
        self.memory = Memory()
        self.heard: list[object] = []
        self.transport = TcpTransport(
            NODE,
            Address("127.0.0.1", 0),
            {1: Address("127.0.0.1", 1), 2: Address("127.0.0.1", port)},
            MESSAGES,
            LIMITS,
            self.heard.append,
            self._send,
            self.memory.meetings(),
            structlog.get_logger(),
        )

    def _send(self) -> None:
        """A link was made: the node's turn, in which it has something to say."""
        self.transport.send(message(sender=1, to=2))
        self.transport.flush()

    def reasons(self) -> list[object]:
        """Why node 2 could not be reached, as logged."""
        return [line["reason"] for line in self.logged if line["event"] == "peer_unreachable"]


@asynccontextmanager
async def calling(answer: OwnFrame, came: list[object]) -> AsyncIterator[Calling]:
    """Node 1 calls; what comes to node 2 on its first connection, up to the end, is ``came``."""

    async def follow(stream: trio.SocketStream) -> None:
        peer = Peer(stream)
        is_first = not came
        hello = await peer.receive()
        await peer.send(answer)
        if is_first:
            came.append(hello)
            while (frame := await peer.receive()) is not None:
                came.append(frame)
            came.append(None)

    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    with trio.fail_after(10), capture_logs() as logged:
        node = Calling(listener.socket.getsockname()[1], logged)  # type: ignore[arg-type]
        await node.transport.open()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, follow, [listener])
            nursery.start_soon(node.transport.run)
            yield node
            nursery.cancel_scope.cancel()


async def test_correct_answer_makes_the_link() -> None:
    """The node says truly who it is and whom it calls, and its messages follow the welcome."""
    came: list[object] = []
    async with calling(WELCOME, came) as node:
        await until(lambda: len(came) == 2)
        assert node.reasons() == []
    assert came == [
        PeerHello(
            version_min=PROTOCOL_VERSION,
            version_max=PROTOCOL_VERSION,
            cluster_id="demo",
            sender=1,
            incarnation=71,
            receiver=2,
            engine="raft",
            epoch=1,
            birth=BIRTH,
            met=(),
        ),
        message(sender=1, to=2),
    ]


async def test_welcome_counts_when_it_is_durable() -> None:
    """Who is told in a welcome that it is remembered has that on disk before it counts."""
    came: list[object] = []
    async with calling(WELCOME, came) as node:
        await until(lambda: len(came) == 2)
        assert node.memory.saved == [MetRecord(met=((2, 2002), (3, 3003)), known_by=(2,))]
        assert node.memory.formation.waits_for == (3,)


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        pytest.param(
            replace(WELCOME, incarnation=99),
            "node 2 has incarnation 99, and node 1 knows it as 72",
            id="incarnation",
        ),
        pytest.param(
            replace(WELCOME, sender=3),
            "is node 3, not node 2; check the peer addresses",
            id="node",
        ),
        pytest.param(
            replace(WELCOME, sender=3, incarnation=73),
            "is node 3, not node 2; check the peer addresses",
            id="another_member",
        ),
        pytest.param(
            ServerHello(1, "demo", 2, 2, ()), "is not the peer port of a node", id="client_port"
        ),
        pytest.param(
            replace(WELCOME, met=((1, BIRTH + 1),)),
            "node 1's directory was made anew",
            id="knows_another_birth",
        ),
        pytest.param(replace(WELCOME, version=9), "answered in version 9", id="version"),
        pytest.param(Refusal("go away"), "go away", id="refused"),
    ],
)
async def test_answer_makes_no_link(answer: OwnFrame, sentence: str) -> None:
    """Who answers a call and is wrong in one thing is told no message; the log has the reason."""
    came: list[object] = []
    async with calling(answer, came) as node:
        await until(lambda: came[-1:] == [None])
        await until(lambda: bool(node.reasons()))
        assert sentence in str(node.reasons()[0])
        assert not [line for line in node.logged if line["event"] == "peer_connected"]
    hello, end = came
    assert isinstance(hello, PeerHello)
    assert end is None
