"""Scripted nodes: they say on loopback whatever a test tells them to."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TypeAlias

import cbor2
import trio

from replog.frames import FrameCodec, FrameType, Outcome, OwnFrame, Reply, Request, ServerHello
from replog.limits import Limits
from replog.wire import FrameReader, pack_frame

CODEC = FrameCodec(Limits())
KEEPALIVE = pack_frame(FrameType.KEEPALIVE, b"")


class Conversation:
    """One connection of a client, as its node sees it."""

    def __init__(self, node: ScriptedNode, stream: trio.SocketStream, number: int) -> None:
        self.node = node
        self.stream = stream
        self.number = number
        """The count of this node's conversations before this one."""
        self.keepalive_count = 0
        """How many keepalives of the client were read."""
        self._reader = FrameReader(dict.fromkeys(map(int, FrameType), 1 << 24))
        self._came: list[OwnFrame] = []

    async def send(self, *frames: OwnFrame | bytes) -> None:
        """Send frames, or any bytes."""
        parts = [frame if isinstance(frame, bytes) else CODEC.encode(frame) for frame in frames]
        await self.stream.send_all(b"".join(parts))

    async def receive(self) -> OwnFrame | None:
        """The next frame of the client; ``None``: it has hung up."""
        while not self._came:
            try:
                data = await self.stream.receive_some()
            except trio.BrokenResourceError:
                return None
            if not data:
                return None
            for frame_type, content in self._reader.feed(data):
                if frame_type == FrameType.KEEPALIVE:
                    self.keepalive_count += 1
                    continue
                self._came.append(CODEC.decode(frame_type, content))
        return self._came.pop(0)

    async def welcome(self, leader_id: int | None = None) -> None:
        """Take the client's hello and answer it; ``None``: this node leads."""
        await self.receive()
        node = self.node
        members = tuple((other.node_id, other.address) for other in node.cluster)
        leader_id = node.node_id if leader_id is None else leader_id
        await self.send(ServerHello(1, node.cluster_id, node.node_id, leader_id, members))

    async def only_live(self, seconds: float) -> None:
        """Read nothing and send nothing but keepalives."""
        until = trio.current_time() + seconds
        while trio.current_time() < until:
            await self.send(KEEPALIVE)
            await trio.sleep(0.02)

    async def request(self) -> Request:
        """The next request."""
        request = await self.receive()
        assert isinstance(request, Request), f"expected a request, not {request}"
        self.node.requests.append(request)
        return request

    async def serve(self) -> None:
        """Answer every request with its own body, until the client hangs up."""
        while (request := await self.receive()) is not None:
            assert isinstance(request, Request)
            self.node.requests.append(request)
            await self.send(done(request, request.body))

    async def until_hung_up(self) -> None:
        """Take whatever comes, and answer nothing."""
        while (request := await self.receive()) is not None:
            assert isinstance(request, Request)
            self.node.requests.append(request)


Script: TypeAlias = "Callable[[Conversation], Awaitable[None]]"


class ScriptedNode:
    """A listening port that follows a script on every connection."""

    def __init__(self, node_id: int, script: Script) -> None:
        self.node_id = node_id
        self.script = script
        self.cluster_id = "scripted"
        self.address = ""
        self.cluster: Sequence[ScriptedNode] = ()
        self.conversations: list[Conversation] = []
        self.requests: list[Request] = []
        """Everything that was asked of it, over all connections."""

    @property
    def bodies(self) -> list[bytes]:
        """The bodies of the requests."""
        return [request.body for request in self.requests]

    async def _follow(self, stream: trio.SocketStream) -> None:
        conversation = Conversation(self, stream, len(self.conversations))
        self.conversations.append(conversation)
        await self.script(conversation)


@asynccontextmanager
async def scripted_nodes(*scripts: Script) -> AsyncIterator[list[ScriptedNode]]:
    """Nodes 1, 2, ... with these scripts; all of it ends after 10 seconds at the latest."""
    nodes = [ScriptedNode(at, script) for at, script in enumerate(scripts, start=1)]
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            for node in nodes:
                (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
                node.address = f"127.0.0.1:{listener.socket.getsockname()[1]}"
                node.cluster = nodes
                nursery.start_soon(trio.serve_listeners, node._follow, [listener])
            yield nodes
            nursery.cancel_scope.cancel()


def done(request: Request, result: object = None, index: int = 1) -> Reply:
    """The reply to a request that was done."""
    return Reply(request.request_id, Outcome.DONE, index, cbor2.dumps(result), "", "", 0, "")


def not_done(request: Request, code: str, leader: ScriptedNode | None = None) -> Reply:
    """The reply to a request that was definitely not done."""
    leader_id, address = (leader.node_id, leader.address) if leader else (0, "")
    return Reply(
        request.request_id, Outcome.NOT_DONE, 0, b"", code, f"because of {code}", leader_id, address
    )


async def lead(conversation: Conversation) -> None:
    """The script of a good leader."""
    await conversation.welcome()
    await conversation.serve()
